"""A file that grows, is rotated or cut, read on and on; and the events of directories as lines."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_inotify import touch

from fdtransport import EndpointError, connect_url, open_url, watch
from fdtransport._core import syscalls
from fdtransport.follow import connect_follow
from fdtransport.testing import sweep
from fdtransport.testing.observe import idle_cost, turns, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")

SOON = 10


class Collecting(asyncio.Protocol):
    def __init__(self):
        self.data = b""
        self.lost = None

    def data_received(self, data):
        self.data += data

    def connection_lost(self, exc):
        self.lost = [exc]

    async def has(self, data):
        await until(lambda: self.data == data, lambda: f"{data!r} came, and not {self.data!r}", SOON)


@pytest.fixture
async def follow():
    made = []

    async def connect(path, more=""):
        transport, protocol = await connect_url(Collecting, f"file:{path}?follow{more}")
        made.append(transport)
        return protocol

    yield connect
    for transport in made:
        transport.abort()
        await transport.aclose()
    await turns(5)


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


async def test_what_is_added_comes(follow, tmp_path):
    log = tmp_path / "log"
    log.write_text("one\n")
    read = await follow(log)
    await read.has(b"one\n")
    append(log, "two\n")
    await read.has(b"one\ntwo\n")
    idle = await idle_cost(0.2)
    assert idle.is_idle(0.1, 2), str(idle)
    append(log, "three\n")
    await read.has(b"one\ntwo\nthree\n")


async def test_from_the_end_only_what_is_added_comes(follow, tmp_path):
    log = tmp_path / "log"
    log.write_text("one\n")
    read = await follow(log, "&from=end")
    append(log, "two\n")
    await read.has(b"two\n")


async def test_a_rotated_file_is_read_to_its_end_before_the_new_one(follow, tmp_path):
    log = tmp_path / "log"
    old = log.open("w")
    read = await follow(log)
    old.write("1")
    old.flush()
    await read.has(b"1")
    log.rename(tmp_path / "log.1")
    touch(log)  # as logrotate does; the program knows nothing of it yet
    await turns(20)
    old.write("2")
    old.flush()
    await read.has(b"12")
    old.write("3")
    old.close()
    append(log, "4")
    await read.has(b"1234")
    log.unlink()
    await turns(20)
    log.write_text("5")
    await read.has(b"12345")
    append(log, "6")
    await read.has(b"123456")


async def test_many_rotations_lose_nothing_and_double_nothing(follow, tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    read = await follow(log)
    expected = b""
    for turn in range(30):
        for n in range(20):
            append(log, f"{turn} {n}\n")
            expected += b"%d %d\n" % (turn, n)
        await read.has(expected)
        log.rename(tmp_path / "log.1")
        if turn % 3:
            await turns(turn)


async def test_a_file_that_is_cut_is_read_from_its_beginning(follow, tmp_path):
    log = tmp_path / "log"
    log.write_text("one\n")
    read = await follow(log)
    await read.has(b"one\n")
    os.truncate(log, 0)
    await turns(20)
    append(log, "2\n")
    await read.has(b"one\n2\n")


async def test_a_directory_that_goes_and_comes_again_is_no_end(follow, tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    log = directory / "log"
    log.write_text("1")
    read = await follow(log)
    await read.has(b"1")
    append(log, "2")
    await read.has(b"12")
    log.unlink()
    log.write_text("3")
    await read.has(b"123")


async def test_directories_above_may_go_and_come_again_one_by_one(follow, tmp_path):
    log = tmp_path / "a" / "b" / "log"
    os.makedirs(log.parent)
    log.write_text("1")
    read = await follow(log)
    await read.has(b"1")
    # The directory is not told to have gone as long as the file is open.
    shutil.rmtree(tmp_path / "a")
    await turns(20)
    os.mkdir(tmp_path / "a")
    await turns(20)
    os.mkdir(tmp_path / "a" / "b")
    await turns(20)
    log.write_text("2")
    await read.has(b"12")
    shutil.rmtree(tmp_path / "a")
    os.makedirs(log.parent)
    log.write_text("3")
    await read.has(b"123")


async def test_a_link_is_followed_to_where_the_file_is_rotated_and_when_it_leads_elsewhere(follow, tmp_path):
    for name in ("files", "links", "logs"):
        (tmp_path / name).mkdir()
    file, link, log = tmp_path / "files" / "f", tmp_path / "links" / "f", tmp_path / "logs" / "f"
    file.write_text("1")
    link.symlink_to("../files/f")
    log.symlink_to(link)
    read = await follow(log)
    await read.has(b"1")
    file.rename(tmp_path / "files" / "f.1")
    await turns(20)
    file.write_text("2")
    await read.has(b"12")
    (tmp_path / "files" / "g").write_text("3")
    (tmp_path / "new").symlink_to("../files/g")
    (tmp_path / "new").rename(link)
    await read.has(b"123")
    append(tmp_path / "files" / "g", "4")
    await read.has(b"1234")


async def test_what_is_no_file_at_the_path_is_waited_out(follow, tmp_path):
    log = tmp_path / "log"
    log.write_text("1")
    read = await follow(log)
    await read.has(b"1")
    log.unlink()
    log.mkdir()
    touch(log / "inner")
    await turns(20)
    shutil.rmtree(log)
    for make in (os.mkfifo, lambda path: os.symlink(path, path), lambda path: os.symlink(tmp_path, path)):
        make(log)
        await turns(20)
        log.unlink()
    log.write_text("2")
    await read.has(b"12")
    append(log, "3")
    await read.has(b"123")


async def test_a_successor_that_nobody_may_read_yet_is_begun_when_it_can_be(follow, tmp_path, monkeypatch):
    # As logrotate makes it: first the file, then its owner and mode.
    log = tmp_path / "log"
    log.write_text("1")
    read = await follow(log)
    await read.has(b"1")
    opened, refused = syscalls.open, []

    def open_(path, *args, **kwargs):
        if path == str(log) and not log.stat().st_mode & 0o004:
            refused.append(path)
            raise PermissionError(errno.EACCES, "not yet", path)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(syscalls, "open", open_)
    new = tmp_path / "new"
    new.write_text("2")
    new.chmod(0o600)
    new.rename(log)
    await until(lambda: refused, "it was tried", SOON)
    await turns(20)
    assert len(refused) < 4  # it is not tried again and again
    log.chmod(0o644)
    await read.has(b"12")
    append(log, "3")
    await read.has(b"123")


async def test_a_failing_system_call_is_told_and_is_never_a_silence_nor_a_clean_end(tmp_path):
    number = 0

    async def scenario():
        nonlocal number
        number += 1
        log = tmp_path / str(number) / "log"
        log.parent.mkdir()
        log.write_text("1")
        transport, protocol = await connect_url(Collecting, f"file:{log}?follow")

        async def has(data):
            await until(lambda: protocol.data == data or protocol.lost, "it comes, or the loss", SOON)
            if protocol.lost:
                raise protocol.lost[0] or AssertionError("a clean end")

        try:
            await has(b"1")
            log.rename(tmp_path / "log.1")
            log.write_text("2")
            await has(b"12")
        finally:
            transport.abort()
            await transport.aclose()

    names = ("inotify_add_watch", "open", "fstat", "stat", "read", "readlink", "pipe", "write")
    async for outcome in sweep(scenario, names, (errno.EINTR, errno.EIO), timeout=SOON, at_most=4):
        assert not outcome.hung, str(outcome)
        assert not outcome.leaked, str(outcome)
        assert outcome.error is None or isinstance(outcome.error, OSError), str(outcome)


async def test_a_protocol_that_closes_at_once_leaves_nothing_behind(tmp_path):
    class Closing(Collecting):
        def connection_made(self, transport):
            transport.abort()

    before = asyncio.all_tasks()
    (tmp_path / "log").write_text("1")
    for url in (f"file:{tmp_path}/log?follow", f"watch:{tmp_path}"):
        transport, _ = await connect_url(Closing, url)
        await transport.aclose()
        await until(lambda: asyncio.all_tasks() <= before, "nothing runs any more", SOON)


async def test_a_file_is_followed_by_its_path_though_the_working_directory_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    (tmp_path / "log").write_text("1")
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    transport, protocol = await connect_follow(Collecting, os.fsencode(tmp_path / "log"))
    await protocol.has(b"1")
    transport.abort()
    await transport.aclose()
    async with watch(tmp_path):
        pass
    for opening in (connect_follow(Collecting, "log"), watch("d").__aenter__()):
        with pytest.raises(FileNotFoundError):
            await opening


async def test_a_slow_reader_holds_the_file_and_not_the_memory(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(bytes(4 << 20))
    transport, protocol = await connect_url(Collecting, f"file:{log}?follow")
    transport.pause_reading()
    await turns(50)
    taken = len(protocol.data)
    assert taken < 1 << 20
    transport.resume_reading()
    await until(lambda: len(protocol.data) == 4 << 20, "all", SOON)
    transport.close()
    await transport.aclose()
    assert protocol.lost == [None]
    await turns(5)


async def test_what_cannot_be_followed_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        await connect_url(Collecting, f"file:{tmp_path}/nothing?follow")
    with pytest.raises(EndpointError, match="a directory, and only a file can be followed"):
        await connect_url(Collecting, f"file:{tmp_path}?follow")
    with pytest.raises(EndpointError, match="of no use for writing"):
        await connect_url(Collecting, f"file:{tmp_path}/x?follow", mode="w")
    with pytest.raises(EndpointError, match="'from' is of use with 'follow' only"):
        await connect_url(Collecting, f"file:{tmp_path}/x?from=end")


async def test_events_of_a_directory_come_as_lines_of_json(tmp_path):
    reader, writer = await open_url(f"watch:{tmp_path}?ignore=.git,*.tmp")
    (tmp_path / ".git").mkdir()
    touch(tmp_path / "a.tmp")
    touch(tmp_path / os.fsdecode(b"\xff"))
    lines = [json.loads(await reader.readline()) for _ in range(2)]
    path = os.path.join(tmp_path, "\udcff")
    assert lines == [
        {"kind": "created", "path": path, "directory": False},
        {"kind": "written", "path": path, "directory": False},
    ]
    writer.close()
    await writer.wait_closed()
    await turns(5)


async def test_the_lines_end_when_the_directory_has_gone(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    reader, writer = await open_url(f"watch:{root}?initial")
    shutil.rmtree(root)
    lines = [json.loads(line) async for line in reader]
    assert [line["kind"] for line in lines] == ["created", "deleted"]
    assert lines[0]["found"]
    writer.close()
    await writer.wait_closed()


async def test_nonsense_about_a_directory_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        await open_url(f"watch:{tmp_path}/nothing")
    for url, what in ((f"watch:{tmp_path}?ignore=a,,b", "commas"), ("watch:", "path is missing")):
        with pytest.raises(EndpointError, match=what):
            await open_url(url)


def test_the_command_follows_a_file_and_prints_events(tmp_path):
    log = tmp_path / "log"
    log.write_text("one\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "fdtransport"]
    with (
        subprocess.Popen(
            [*command, f"file:{log}?follow", "-"], stdout=subprocess.PIPE, env=environment
        ) as tail,
        subprocess.Popen(
            [*command, f"watch:{tmp_path}?initial", "-"], stdout=subprocess.PIPE, env=environment
        ) as told,
    ):
        assert tail.stdout.readline() == b"one\n"
        assert json.loads(told.stdout.readline())["path"] == str(tmp_path)
        assert json.loads(told.stdout.readline())["path"] == str(log)
        append(log, "two\n")
        assert tail.stdout.readline() == b"two\n"
        assert json.loads(told.stdout.readline())["kind"] == "modified"
        tail.terminate()
        told.terminate()
