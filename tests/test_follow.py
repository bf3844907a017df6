"""A file that grows, is rotated or cut, read on and on; and the events of directories as lines."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_inotify import touch

from fdtransport import EndpointError, connect_url, open_url
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
