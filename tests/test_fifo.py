"""FIFOs: waiting for a reader, what end of file means, and what is left behind."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import stat
import subprocess
import sys
import threading

import pytest
from waiting import lost, until

from fdtransport import CloseReason, EndpointError
from fdtransport._core import fifo_file, syscalls
from fdtransport.fifo import FifoTransport, connect_fifo, open_fifo
from fdtransport.testing import (
    FOREVER,
    FarEnd,
    FaultPlan,
    RecordingBufferedProtocol,
    RecordingProtocol,
    descriptors,
    idle_cost,
    pattern,
    sweep,
)


@pytest.fixture
def fifo(tmp_path):
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


def writer(path):
    return FarEnd(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def reader(path):
    return FarEnd(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def told(protocol):
    """What a protocol was told, data joined: ``["made", b"one", "eof"]``."""
    out = []
    for name, argument in protocol.events:
        if name != "data":
            out.append(name)
        elif out and isinstance(out[-1], bytes):
            out[-1] += argument
        else:
            out.append(bytes(argument))
    return out


class Eofs(RecordingProtocol):
    """Takes any number of ends of file."""

    def eof_received(self):
        self.events.append(("eof", None))
        if "eof" in self.hooks:
            self.hooks["eof"](self)


class Calls:
    """Counts what the kernel is asked for while the block runs."""

    def __init__(self):
        self.plan = FaultPlan()

    def __enter__(self):
        self.plan.__enter__()
        return self

    def __exit__(self, *exc):
        self.plan.__exit__(*exc)

    def __call__(self, *names):
        return sum(self.plan.count(name) for name in names)


# -- reading, the end closes


async def test_a_reader_is_there_before_any_writer_and_does_not_take_that_for_the_end(fifo):
    transport, protocol = await connect_fifo(RecordingProtocol, fifo)
    with Calls() as calls:
        assert (await idle_cost(0.1)).is_idle(0.05, 20)
        assert not calls("read")
    assert protocol.names == ["made"]
    with writer(fifo) as far:
        await far.send(pattern(200_000))
    await lost(protocol)
    assert protocol.received == pattern(200_000)
    assert protocol.names[-2:] == ["eof", "lost"]
    assert transport.close_reason is CloseReason.PEER


async def test_an_empty_read_before_any_writer_is_not_the_end(fifo):
    reader, stream = await open_fifo(fifo)
    line = asyncio.ensure_future(reader.readline())  # reads the descriptor itself
    await asyncio.sleep(0.01)
    assert not line.done()
    with writer(fifo) as far:
        await far.send(b"line\n")
        assert await line == b"line\n"
    assert await reader.read() == b""
    stream.close()
    await stream.wait_closed()


async def test_a_writer_that_writes_nothing_ends_it(fifo):
    _, protocol = await connect_fifo(RecordingProtocol, fifo)
    writer(fifo).close()
    await lost(protocol)
    assert protocol.names == ["made", "eof", "lost"]


async def test_the_end_comes_after_the_last_of_several_writers(fifo):
    _, protocol = await connect_fifo(RecordingProtocol, fifo)
    with writer(fifo) as one:
        with writer(fifo) as two:
            await two.send(b"two")
        await until(lambda: protocol.received == b"two")
        await one.send(b"one")
        await until(lambda: protocol.received == b"twoone")
    await lost(protocol)


async def test_it_is_read_into_the_buffer_of_a_buffered_protocol(fifo):
    _, protocol = await connect_fifo(RecordingBufferedProtocol, fifo)
    with writer(fifo) as far:
        await far.send(pattern(100_000))
    await lost(protocol)
    assert protocol.received == pattern(100_000)


# -- eof="event"


async def test_each_last_writer_that_leaves_is_an_event_and_the_next_one_is_read(fifo):
    transport, protocol = await connect_fifo(Eofs, fifo, eof="event")
    for number in range(5):
        with writer(fifo) as far:
            await far.send(b"message %d" % number)
        await until(lambda number=number: protocol.count("eof") == number + 1)
    expected = [part for number in range(5) for part in (b"message %d" % number, "eof")]
    assert told(protocol) == ["made", *expected]
    assert not transport.hung_up
    await transport.aclose()
    assert protocol.names[-1] == "lost"
    assert transport.close_reason is CloseReason.LOCAL


async def test_after_the_last_writer_nothing_runs_until_the_next(fifo):
    transport, protocol = await connect_fifo(Eofs, fifo, eof="event")
    with writer(fifo) as far:
        await far.send(b"one")
    await until(lambda: protocol.count("eof"))
    with Calls() as calls:
        assert (await idle_cost(0.2)).is_idle(0.05, 20)
        assert not calls("read", "readv")
    with writer(fifo) as far:
        with Calls() as calls:
            assert (await idle_cost(0.1)).is_idle(0.05, 20)
            assert not calls("read", "readv")
        await far.send(b"two")
        await until(lambda: protocol.received == b"onetwo")
    await transport.aclose()


async def test_a_writer_between_the_end_and_its_notice_has_an_end_of_its_own(fifo):
    def at_once(protocol):
        if protocol.count("eof") < 3:
            with writer(fifo) as far:
                far.send_now(b"next")

    transport, protocol = await connect_fifo(lambda: Eofs(eof=at_once), fifo, eof="event")
    at_once(protocol)
    await until(lambda: protocol.count("eof") == 3)
    assert told(protocol) == ["made", b"next", "eof", b"next", "eof", b"next", "eof"]
    await transport.aclose()


async def test_a_writer_that_came_and_left_while_the_fifo_was_opened_anew_is_not_lost(fifo, monkeypatch):
    transport, protocol = await connect_fifo(Eofs, fifo, eof="event")
    real = syscalls.open

    def slow(path, *args):
        fd = real(path, *args)
        if str(path).startswith("/proc") and protocol.count("eof") == 0 and not raced:
            raced.append(path)
            with writer(fifo) as far:
                far.send_now(b"two")
        return fd

    raced = []
    monkeypatch.setattr(syscalls, "open", slow)
    with writer(fifo) as far:
        await far.send(b"one")
    await until(lambda: protocol.count("eof") == 2)
    assert raced
    assert told(protocol) == ["made", b"one", "eof", b"two", "eof"]
    await transport.aclose()


async def test_the_next_writer_is_read_also_when_the_path_is_gone(fifo):
    transport, protocol = await connect_fifo(Eofs, fifo, eof="event")
    fd = os.open(fifo, os.O_WRONLY)
    other = os.open(fifo, os.O_PATH)
    os.unlink(fifo)
    os.close(fd)
    await until(lambda: protocol.count("eof"))
    with writer(f"/proc/self/fd/{other}") as far:
        await far.send(b"still")
        await until(lambda: protocol.received == b"still")
    os.close(other)
    await transport.aclose()


async def test_an_end_while_reading_is_paused_is_told_when_it_resumes(fifo):
    transport, protocol = await connect_fifo(Eofs, fifo, eof="event")
    transport.pause_reading()
    with writer(fifo) as far:
        await far.send(b"one")
        await asyncio.sleep(0.01)
    assert (await idle_cost(0.1)).is_idle(0.05, 20)
    assert protocol.names == ["made"]
    transport.resume_reading()
    await until(lambda: protocol.count("eof"))
    assert told(protocol) == ["made", b"one", "eof"]
    transport.pause_reading()
    transport.resume_reading()
    assert (await idle_cost(0.1)).is_idle(0.05, 20)
    with writer(fifo) as far:
        await far.send(b"two")
        await until(lambda: protocol.received == b"onetwo")
    await transport.aclose()


async def test_an_exception_in_eof_received_ends_it(fifo, reports):
    def fail(_):
        raise ZeroDivisionError

    _, protocol = await connect_fifo(lambda: Eofs(eof=fail), fifo, eof="event")
    writer(fifo).close()
    await lost(protocol)
    assert isinstance(protocol.reason, ZeroDivisionError)
    assert len(reports) == 1


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_it_can_be_ended_from_inside_the_event(fifo, how):
    _, protocol = await connect_fifo(
        lambda: Eofs(eof=lambda protocol: getattr(protocol.transport, how)()), fifo, eof="event"
    )
    writer(fifo).close()
    await lost(protocol)
    assert protocol.names == ["made", "eof", "lost"]
    assert protocol.reason is None


@pytest.mark.parametrize("name", ["open", "dup2"])
async def test_a_kernel_that_cannot_open_it_anew_ends_it_with_its_errno(fifo, name):
    _, protocol = await connect_fifo(Eofs, fifo, eof="event")
    with FaultPlan() as plan:
        plan.fail(name, errno=errno.EMFILE)
        writer_end = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        os.close(writer_end)
        await lost(protocol)
    assert protocol.reason.errno == errno.EMFILE


async def test_two_hundred_writers_leave_no_descriptor(fifo):
    transport, protocol = await connect_fifo(Eofs, fifo, eof="event")
    before = descriptors()
    for number in range(1, 201):
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b"x")
        os.close(fd)
        await until(lambda number=number: protocol.count("eof") == number)
    assert descriptors() == before
    await transport.aclose()


# -- eof="reopen"


async def test_with_reopen_writers_come_and_go_unnoticed(fifo):
    transport, protocol = await connect_fifo(RecordingProtocol, fifo, eof="reopen")
    for _ in range(5):
        with writer(fifo) as far:
            await far.send(b"some ")
    await until(lambda: protocol.received == b"some " * 5)
    with Calls() as calls:
        assert (await idle_cost(0.2)).is_idle(0.05, 20)
        assert not calls("read")
    assert set(protocol.names) == {"made", "data"}
    with pytest.raises(OSError, match="read-only"):
        transport.write(b"to itself")
    await transport.aclose()


async def test_lines_of_many_writers_come_through_one_reader(fifo):
    reader, stream = await open_fifo(fifo, eof="reopen")
    for number in range(3):
        with writer(fifo) as far:
            await far.send(b"%d\n" % number)
        assert await reader.readline() == b"%d\n" % number
    stream.close()
    await stream.wait_closed()


# -- writing


async def test_a_writer_with_a_reader_is_there_at_once_and_bytes_arrive(fifo):
    with reader(fifo) as far:
        transport, protocol = await connect_fifo(RecordingProtocol, fifo, "w")
        transport.write(pattern(300_000))
        transport.close()
        assert await far.recv_to_end() == pattern(300_000)
        await lost(protocol)


@pytest.mark.parametrize("inotify", [True, False], ids=["inotify", "no inotify"])
async def test_a_writer_waits_for_a_reader_and_the_loop_goes_on(fifo, inotify, monkeypatch):
    if not inotify:

        def missing(flags):
            raise OSError(errno.ENOSYS, "no inotify")

        monkeypatch.setattr(syscalls, "inotify_init1", missing)
    connecting = asyncio.ensure_future(connect_fifo(RecordingProtocol, fifo, "w"))
    await asyncio.sleep(0.05)
    assert not connecting.done()
    assert threading.active_count() == 1
    with reader(fifo) as far:
        async with asyncio.timeout(5):
            transport, _ = await connecting
        transport.write(b"hello")
        assert await far.recv_exactly(5) == b"hello"
        await transport.aclose()


async def test_a_reader_that_does_not_wait_is_seen_without_a_timer(fifo, monkeypatch):
    monkeypatch.setattr(fifo_file, "PATIENCE", 30.0)
    monkeypatch.setattr(fifo_file, "MOST_PATIENCE", 30.0)
    connecting = asyncio.ensure_future(connect_fifo(RecordingProtocol, fifo, "w"))
    await asyncio.sleep(0.02)
    with reader(fifo):
        async with asyncio.timeout(2):
            transport, _ = await connecting
        await transport.aclose()


async def test_a_reader_that_came_while_the_watch_was_set_up_is_seen(fifo, monkeypatch):
    monkeypatch.setattr(fifo_file, "PATIENCE", 30.0)
    add, ends = syscalls.inotify_add_watch, []

    def late(*args):
        ends.append(reader(fifo))  # before there is a watch
        return add(*args)

    monkeypatch.setattr(syscalls, "inotify_add_watch", late)
    async with asyncio.timeout(2):
        transport, _ = await connect_fifo(RecordingProtocol, fifo, "w")
    await transport.aclose()
    ends[0].close()


async def test_a_reader_that_waits_in_the_kernel_is_found(fifo):
    connecting = asyncio.ensure_future(connect_fifo(RecordingProtocol, fifo, "w"))
    await asyncio.sleep(0.02)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as cat:  # noqa: ASYNC220
        async with asyncio.timeout(5):
            transport, _ = await connecting
        transport.write(b"meow")
        await transport.aclose()
        assert cat.stdout.read() == b"meow"


async def test_waiting_costs_next_to_nothing(fifo):
    connecting = asyncio.ensure_future(connect_fifo(RecordingProtocol, fifo, "w"))
    await asyncio.sleep(0.3)
    cost = await idle_cost(0.5)
    assert cost.cpu < 0.05, cost
    assert cost.wakeups < 50, cost
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


@pytest.mark.parametrize("steps", range(8))
async def test_a_cancelled_wait_leaves_nothing(fifo, steps):
    before = descriptors()
    connecting = asyncio.ensure_future(connect_fifo(RecordingProtocol, fifo, "w"))
    for _ in range(steps):
        await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert descriptors() == before


async def test_the_wait_can_be_bounded(fifo):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await connect_fifo(RecordingProtocol, fifo, "w")


async def test_a_fifo_that_is_removed_meanwhile_ends_the_wait(fifo):
    connecting = asyncio.ensure_future(connect_fifo(RecordingProtocol, fifo, "w"))
    await asyncio.sleep(0.02)
    os.unlink(fifo)
    with pytest.raises(FileNotFoundError):
        async with asyncio.timeout(5):
            await connecting


async def test_an_idle_writer_notices_that_the_reader_has_gone(fifo):
    far = reader(fifo)
    transport, protocol = await connect_fifo(RecordingProtocol, fifo, "w")
    far.close()
    await lost(protocol)
    assert transport.close_reason is CloseReason.PEER


async def test_a_writer_that_cannot_be_read_says_so(fifo):
    with reader(fifo):
        transport, _ = await connect_fifo(RecordingProtocol, fifo, "w")
        with pytest.raises(NotImplementedError):
            transport.pause_reading()
        await transport.aclose()


async def test_two_of_ours_meet(fifo):
    waiting = asyncio.ensure_future(open_fifo(fifo, "w"))
    await asyncio.sleep(0.01)
    reader, reading = await open_fifo(fifo)
    async with asyncio.timeout(5):
        _, writing = await waiting
    writing.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writing.close()
    await writing.wait_closed()
    assert await reader.read() == b""
    reading.close()
    await reading.wait_closed()


# -- what is at the path


@pytest.mark.parametrize("mode", ["r", "w"])
@pytest.mark.parametrize("kind", ["file", "directory", "device", "socket"])
async def test_something_else_at_the_path_is_refused_unopened(tmp_path, kind, mode, monkeypatch):
    path = str(tmp_path / "it")
    with socket.socket(socket.AF_UNIX) as sock:
        if kind == "file":
            os.close(os.open(path, os.O_CREAT))
        elif kind == "directory":
            os.mkdir(path)
        elif kind == "device":
            path = "/dev/null"
        else:
            sock.bind(path)
        before = descriptors()
        with Calls() as calls, pytest.raises(EndpointError, match="not a FIFO"):
            await connect_fifo(RecordingProtocol, path, mode, create=0o600)
        assert not calls("open")
        assert descriptors() == before
        assert syscalls.stat(path)


async def test_a_file_that_takes_the_fifos_place_is_not_kept_open(fifo, monkeypatch):
    real, before = syscalls.stat, descriptors()

    def exchange(path):
        found = real(path)
        os.unlink(path)
        os.close(os.open(path, os.O_CREAT))
        return found

    monkeypatch.setattr(syscalls, "stat", exchange)
    with pytest.raises(EndpointError, match="a regular file, not a FIFO"):
        await connect_fifo(RecordingProtocol, fifo)
    assert descriptors() == before


async def test_a_missing_fifo_is_told(tmp_path):
    for mode in "rw":
        with pytest.raises(FileNotFoundError) as caught:
            await connect_fifo(RecordingProtocol, tmp_path / "none", mode)
        assert caught.value.filename.endswith("none")


@pytest.mark.parametrize("convert", [str, os.fsencode, lambda path: path], ids=["str", "bytes", "Path"])
async def test_a_missing_fifo_is_made_on_request(tmp_path, convert):
    path = tmp_path / "new"
    transport, _ = await connect_fifo(RecordingProtocol, convert(path), create=0o640)
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    await transport.aclose()
    assert path.exists()  # others may know it by now
    transport, _ = await connect_fifo(RecordingProtocol, convert(path), create=0o600)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    await transport.aclose()


async def test_a_fifo_that_was_made_in_vain_is_removed(tmp_path):
    path = tmp_path / "new"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await connect_fifo(RecordingProtocol, path, "w", create=0o600)
    assert not path.exists()

    def refuse():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await connect_fifo(refuse, path, create=0o600)
    assert not path.exists()


async def test_a_fifo_of_somebody_else_is_never_removed(fifo):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await connect_fifo(RecordingProtocol, fifo, "w", create=0o600)
    assert os.stat(fifo)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("a\0b",), {}, ValueError, "null"),
        ((5,), {}, TypeError, "int"),
        (("x", "rw"), {}, ValueError, "'rw'"),
        (("x", "r"), {"eof": "keep"}, ValueError, "'keep'"),
    ],
    ids=["NUL", "a number", "unknown mode", "unknown eof"],
)
async def test_nonsense_is_refused_in_one_line(arguments, options, error, words):
    with pytest.raises(error, match=words) as caught:
        await connect_fifo(RecordingProtocol, *arguments, create=0o600, **options)
    assert "\n" not in str(caught.value)


async def test_a_reader_by_await_cannot_go_on_after_its_end(fifo):
    with pytest.raises(ValueError, match="'event'"):
        await open_fifo(fifo, eof="event")


async def test_a_fifo_can_be_made_larger(fifo):
    transport, _ = await connect_fifo(RecordingProtocol, fifo, pipe_size=256 * 1024)
    assert transport.get_extra_info("pipe_size") == 256 * 1024
    await transport.aclose()


async def test_every_descriptor_is_close_on_exec(fifo):
    transport, protocol = await connect_fifo(Eofs, fifo, eof="event")
    assert not os.get_inheritable(transport.fileno())
    writer(fifo).close()
    await until(lambda: protocol.count("eof"))
    assert not os.get_inheritable(transport.fileno())
    assert not os.get_blocking(transport.fileno())
    await transport.aclose()


async def test_one_that_is_forgotten_warns_and_closes(fifo):
    loop = asyncio.get_running_loop()
    protocol = RecordingProtocol()
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    transport = FifoTransport(loop, (fd, None), protocol)
    transport.pause_reading()
    await asyncio.sleep(0.01)
    transport._remove_interest()
    protocol.transport = None
    with pytest.warns(ResourceWarning, match="FifoTransport"):
        del transport
    assert fd not in descriptors()


async def test_any_call_may_fail_while_writers_come_and_go(tmp_path, reports):
    kept = {("stat", FOREVER), ("unlink", FOREVER)}
    made = itertools.count()

    async def scenario():
        path = tmp_path / str(next(made))
        protocol = Eofs()
        try:
            transport, _ = await connect_fifo(lambda: protocol, path, eof="event", create=0o600)
        except OSError as exc:
            return exc.errno, path.exists()
        try:
            for number in (1, 2):
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.write(fd, b"x")
                os.close(fd)
                await until(lambda number=number: protocol.lost or protocol.count("eof") == number)
        except OSError:
            pass  # there is no reader any more
        transport.close()
        await transport.aclose()
        assert protocol.count("lost") == 1
        return protocol.reason and protocol.reason.errno, False

    async for outcome in sweep(scenario, times=(1, FOREVER)):
        assert not outcome.hung, str(outcome)
        assert not outcome.leaked, str(outcome)
        assert outcome.error is None, str(outcome)
        number, left_there = outcome.result
        assert number in (None, outcome.errno), str(outcome)
        # What cannot be looked at may be somebody else's by now: it is not removed.
        assert not left_there or (outcome.name, outcome.times) in kept, str(outcome)
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


async def test_any_call_may_fail_while_a_reader_is_waited_for(tmp_path, reports):
    made = itertools.count()

    async def scenario():
        path = tmp_path / str(next(made))
        os.mkfifo(path)
        connecting = asyncio.ensure_future(connect_fifo(RecordingProtocol, path, "w"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with reader(path):
            try:
                async with asyncio.timeout(4):
                    transport, _ = await connecting
            except OSError as exc:
                return exc.errno
            await transport.aclose()
        return None

    async for outcome in sweep(scenario, times=(1, FOREVER)):
        assert not outcome.hung, str(outcome)
        assert not outcome.leaked, str(outcome)
        assert outcome.error is None, str(outcome)
        assert outcome.result in (None, outcome.errno), str(outcome)
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


def test_waiting_ends_with_the_loop(fifo):
    code = (
        f"import asyncio; from fdtransport.fifo import connect_fifo\nasync def main():\n"
        f"    asyncio.ensure_future(connect_fifo(asyncio.Protocol, {fifo!r}, 'w'))\n"
        f"    await asyncio.sleep(0.02)\nasyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, b"")
