"""Files through byte streams: as asyncio sends them, on every loop and every kind of descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import os
import socket
import sys
import threading
import warnings
from pathlib import Path

import pytest

import fdtransport
from fdtransport import CloseReason, connect_fd, create_connection
from fdtransport._core import file_copying, file_sending
from fdtransport._core.borrowed import Nowait
from fdtransport._core.lifecycle import State
from fdtransport.testing import FarEnd, FaultPlan, RecordingProtocol, descriptors, pattern
from fdtransport.testing.observe import LoopTurns, turns, until

SIZE = 3_000_001
DATA = pattern(SIZE)
BEFORE, AFTER = b"before " * 3000, b" after" * 3000


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


@pytest.fixture
def file(path):
    with path.open("rb") as file:
        yield file


def tcp():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    return near, far


def pipe():
    reading, writing = os.pipe()
    return writing, reading


PAIRS = {"tcp": tcp, "unix": socket.socketpair, "pipe": pipe}


@pytest.fixture(params=PAIRS)
def kind(request):
    return request.param


@contextlib.asynccontextmanager
async def streaming(kind="tcp", **hooks):
    """``(transport, protocol, far end)``."""
    near, other = PAIRS[kind]()
    with FarEnd(other) as far:
        transport, protocol = await connect_fd(lambda: RecordingProtocol(**hooks), near)
        try:
            yield transport, protocol, far
        finally:
            transport.abort()
            await transport.aclose()


async def stuck(transport, file, **arguments):
    """A task that sends and has filled the descriptor's buffer."""
    sending = asyncio.ensure_future(transport.sendfile(file, **arguments))
    await until(lambda: transport._writer_on, "the descriptor is full")
    return sending


def failed(task):
    """The exception of a task that has ended with one."""
    assert task.done()
    return task.exception()


# -- the same as asyncio ------------------------------------------------------------------------------


class Theirs:
    @staticmethod
    async def connect(factory, sock):
        return await asyncio.get_running_loop().create_connection(factory, sock=sock)

    @staticmethod
    async def sendfile(transport, *args, **kwargs):
        return await asyncio.get_running_loop().sendfile(transport, *args, **kwargs)


class Ours:
    @staticmethod
    async def connect(factory, sock):
        return await fdtransport.create_connection(factory, sock=sock)

    sendfile = staticmethod(fdtransport.sendfile)


def whole(path):
    return path.open("rb")


def raw(path):
    return path.open("rb", buffering=0)


def empty(path):
    (path.parent / "empty").write_bytes(b"")
    return (path.parent / "empty").open("rb")


def text(path):
    return path.open("r")


def write_only(path):
    return (path.parent / "new").open("wb")


def closed(path):
    file = path.open("rb")
    file.close()
    return file


def in_memory(path):
    return io.BytesIO(DATA)


USES = [
    (whole, (), {}),
    (raw, (), {}),
    (whole, (1000,), {}),
    (whole, (1000, 2000), {}),
    (whole, (0, SIZE), {}),
    (whole, (0, SIZE + 1000), {}),
    (whole, (SIZE - 10, 1 << 60), {}),
    (whole, (SIZE,), {}),
    (whole, (SIZE + 1000,), {}),
    (whole, (), {"fallback": False}),
    (empty, (), {}),
    (empty, (0, 10), {"fallback": False}),
    (text, (), {}),
    (write_only, (0, 10), {}),
    (closed, (), {}),
    (in_memory, (1000, 2000), {}),
    (in_memory, (), {"fallback": False}),
    *((whole, arguments, {}) for arguments in ((0, 0), (0, -1), (0, 1.5), (0, "1"), (-1,), (1.5,), ("1",))),
    (whole, (1 << 70,), {}),
]


async def use(functions, path, make, arguments, options):
    """Write, send a file, write, close; what the caller, the protocol and the peer saw."""
    near, other = tcp()
    protocol = RecordingProtocol()
    seen = {}
    with FarEnd(other) as far, contextlib.closing(make(path)) as file:
        transport, _ = await functions.connect(lambda: protocol, near)
        arriving = asyncio.ensure_future(far.recv_to_end())
        transport.write(BEFORE)
        try:
            seen["result"] = await functions.sendfile(transport, file, *arguments, **options)
        except Exception as exc:
            seen["result"] = type(exc)
        with contextlib.suppress(OSError, ValueError):
            seen["position"] = file.tell()
        seen["reading"] = transport.is_reading()
        transport.write(AFTER)
        transport.close()
        seen["arrived"] = await arriving
        await until(lambda: protocol.lost, "it was lost")
    seen["names"], seen["reason"] = (
        [name for name in protocol.names if name in ("made", "lost")],
        protocol.reason,
    )
    return seen


def on_asyncio(scenario, *arguments):
    """What it comes to with asyncio's own transports, whatever loop the test runs on."""

    async def finish():
        seen = await scenario(Theirs, *arguments)
        await asyncio.get_running_loop().shutdown_default_executor()
        return seen

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(finish())


@pytest.fixture
async def no_threads_left():
    yield
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.parametrize(
    ("make", "arguments", "options"),
    USES,
    ids=[" ".join([make.__name__, *map(str, arguments), *options]) for make, arguments, options in USES],
)
async def test_everything_is_seen_as_with_asyncio(path, make, arguments, options, no_threads_left):
    theirs = await asyncio.to_thread(on_asyncio, use, path, make, arguments, options)
    ours = await use(Ours, path, make, arguments, options)
    assert ours == theirs


async def lose(functions, path, how):
    """Have something end the connection in the middle of a file; what the caller saw."""
    near, other = tcp()
    protocol = RecordingProtocol()
    with FarEnd(other) as far, path.open("rb") as file:
        transport, _ = await functions.connect(lambda: protocol, near)
        sending = asyncio.ensure_future(functions.sendfile(transport, file))
        await asyncio.sleep(0)
        arrived = await far.recv_exactly(1000)
        if how == "reset":
            far.reset()
        else:
            getattr(transport, how)()
        with pytest.raises(ConnectionError) as caught:
            await sending
        at = file.tell()
        transport.abort()
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.count("lost") == 1
        assert 1000 <= at < SIZE
        assert DATA.startswith(arrived)
    return caught.type


@pytest.mark.parametrize("how", ["reset", "write_eof"])
async def test_an_end_in_the_middle_is_seen_as_with_asyncio(path, how):
    assert await lose(Ours, path, how) is await asyncio.to_thread(on_asyncio, lose, path, how)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closing_in_the_middle_ends_the_sending(path, how):
    # asyncio's own loop.sendfile waits for ever then.
    assert issubclass(await lose(Ours, path, how), ConnectionError)


async def refuse(functions, path):
    near, other = tcp()
    texts = []
    with FarEnd(other) as far, path.open("rb") as file:
        transport, _ = await functions.connect(RecordingProtocol, near)
        sending = asyncio.ensure_future(functions.sendfile(transport, file))
        await asyncio.sleep(0)
        for data in (b"x", bytearray(b"x"), memoryview(b"x"), bytes(100_000)):
            with pytest.raises(RuntimeError) as caught:
                transport.write(data)
            texts.append(str(caught.value))
        with pytest.raises(RuntimeError):
            transport.writelines([b"x", bytes(100_000)])
        texts.append(transport.get_write_buffer_size())
        arriving = asyncio.ensure_future(far.recv_exactly(SIZE + 1))
        await sending
        transport.write(b"x")
        assert await arriving == DATA + b"x"
        transport.close()
        with pytest.raises(RuntimeError) as caught:
            await functions.sendfile(transport, file)
        texts.append(str(caught.value))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return texts


async def test_writing_meanwhile_is_refused_as_by_asyncio(path):
    assert await refuse(Ours, path) == await asyncio.to_thread(on_asyncio, refuse, path)


# What asyncio has wrong: its fallback begins at the position of the file and calls that the offset, sends
# large files with bytes that it has overwritten since (3.12 and later), and fails on pipes at the end; and
# what a file object had read ahead makes it tell a wrong position after a native one.


@pytest.mark.parametrize("make", [whole, in_memory])
async def test_the_position_does_not_say_where_to_begin_and_is_right_in_the_end(path, make):
    with make(path) as file:
        file.read(5)
        async with streaming() as (transport, _, far):
            sending = asyncio.ensure_future(transport.sendfile(file))
            assert await far.recv_exactly(SIZE) == DATA
            assert await sending == file.tell() == SIZE


async def test_what_was_written_to_the_file_and_not_flushed_is_sent(path):
    with path.open("r+b") as file:
        file.write(b"new")
        async with streaming() as (transport, _, far):
            sending = asyncio.ensure_future(transport.sendfile(file))
            assert await far.recv_exactly(SIZE) == b"new" + DATA[3:]
            assert await sending == SIZE


@pytest.mark.parametrize(("arguments", "sent"), [((), 30_000), ((0, 7), 7)])
async def test_a_pipe_is_read_to_its_end_or_by_count(arguments, sent, no_threads_left):
    reading, writing = os.pipe()
    os.write(writing, b"piped " * 5000)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        async with streaming() as (transport, _, far):
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await transport.sendfile(file, fallback=False)
            with pytest.raises(io.UnsupportedOperation):
                await transport.sendfile(file, 5)  # it cannot skip
            assert await transport.sendfile(file, *arguments) == sent
            assert await far.recv_exactly(sent) == (b"piped " * 5000)[:sent]


# -- every kind of descriptor -------------------------------------------------------------------------


async def test_what_is_written_before_and_after_keeps_its_place(kind, file):
    async with streaming(kind) as (transport, protocol, far):
        arriving = asyncio.ensure_future(far.recv_to_end())
        for number in range(1000):  # most of it waits in the cork
            transport.write(b"%4d" % number)
        with FaultPlan() as plan:
            assert await transport.sendfile(file, fallback=False) == SIZE
        assert not plan.count("read") + plan.count("readv")
        transport.write(AFTER)
        await transport.aclose()
        assert await arriving == b"".join(b"%4d" % number for number in range(1000)) + DATA + AFTER
        assert protocol.names == ["made", "lost"]


async def test_a_backlog_leaves_first(kind, file):
    async with streaming(kind) as (transport, protocol, far):
        transport.write(DATA)
        assert protocol.paused
        sending = asyncio.ensure_future(transport.sendfile(file))
        await turns()
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"x")
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            await transport.sendfile(file)
        assert await far.recv_exactly(2 * SIZE) == DATA + DATA
        assert await sending == SIZE
        assert protocol.names == ["made", "paused", "resumed"]
        transport.write(b"x")
        assert await far.recv_exactly(1) == b"x"


@pytest.mark.parametrize("pair", [False, True])
async def test_a_file_goes_into_a_file(file, tmp_path, pair):
    target = os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)
    reading, writing = os.pipe()
    transport, _ = await connect_fd(asyncio.Protocol, (reading, target) if pair else target)
    transport.write(BEFORE)
    assert await transport.sendfile(file, fallback=False) == SIZE
    transport.write(AFTER)
    await transport.aclose()
    for fd in (writing, reading)[: 1 if pair else 2]:
        os.close(fd)
    assert (tmp_path / "target").read_bytes() == BEFORE + DATA + AFTER


async def test_what_the_kernel_does_not_send_to_is_written_to(file, tmp_path):
    (tmp_path / "log").write_bytes(b"earlier ")
    target = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND)
    transport, _ = await connect_fd(asyncio.Protocol, target)
    with pytest.raises(asyncio.SendfileNotAvailableError) as caught:
        await transport.sendfile(file, fallback=False)
    assert caught.value.__cause__.errno == errno.EINVAL
    assert await transport.sendfile(file) == SIZE
    await transport.aclose()
    assert (tmp_path / "log").read_bytes() == b"earlier " + DATA


async def test_a_descriptor_that_must_stay_blocking_is_written_to(file):
    async with streaming("pipe") as (transport, _, far):
        transport._sys = Nowait(set())
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await transport.sendfile(file, fallback=False)
        arriving = asyncio.ensure_future(far.recv_exactly(SIZE))
        assert await transport.sendfile(file) == SIZE
        assert await arriving == DATA


async def test_a_transport_that_cannot_write_says_so(file):
    reading, writing = os.pipe()
    transport, _ = await connect_fd(asyncio.Protocol, reading)
    with pytest.raises(OSError, match="read-only") as caught:
        await transport.sendfile(file)
    assert caught.value.errno == errno.EBADF
    os.close(writing)
    await transport.aclose()
    async with streaming() as (transport, _, _):
        transport.write_eof()
        with pytest.raises(RuntimeError, match="write_eof"):
            await transport.sendfile(file)


async def test_something_that_is_no_file_is_refused():
    async with streaming() as (transport, _, _):
        for what in (3, "name", None):
            with pytest.raises(TypeError, match="file object"):
                await transport.sendfile(what)
        with pytest.raises(ValueError, match="binary"):
            await transport.sendfile(io.StringIO("text"))


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["self/cmdline", "version", "self/maps"])
async def test_a_file_of_proc_has_no_size_and_yet_a_content(name):
    path = Path("/proc", name)
    async with streaming() as (transport, _, far):
        with whole(path) as file:
            sent = await transport.sendfile(file)
            assert file.tell() == sent > 10
            assert len(await far.recv_exactly(sent)) == sent
            assert await transport.sendfile(file, 2, 5) == 5
            file.seek(2)
            assert await far.recv_exactly(5) == file.read(5)


async def test_a_file_that_shrinks_meanwhile_ends_there(path, file):
    async with streaming() as (transport, _, far):
        sending = await stuck(transport, file, count=SIZE)
        os.truncate(path, SIZE // 2)
        got = asyncio.ensure_future(far.recv_to_end())
        sent = await sending
        assert sent < SIZE
        assert file.tell() == sent
        transport.close()
        assert await got == DATA[:sent]


async def test_a_file_that_grows_meanwhile_is_sent_to_its_end(path, file):
    async with streaming() as (transport, _, far):
        sending = await stuck(transport, file)
        with path.open("ab") as more:
            more.write(b"more")
        assert await far.recv_exactly(SIZE + 4) == DATA + b"more"
        assert await sending == SIZE + 4


async def test_a_file_beyond_two_gibibytes(tmp_path):
    start = (1 << 31) - SIZE // 2
    with (tmp_path / "sparse").open("w+b") as file:
        file.seek(start)
        file.write(DATA)
        file.flush()
        async with streaming("unix") as (transport, _, far):
            sending = asyncio.ensure_future(transport.sendfile(file, start, 1 << 40))
            assert await far.recv_exactly(SIZE) == DATA
            assert await sending == SIZE
            assert file.tell() == start + SIZE


async def test_a_file_that_is_closed_meanwhile_is_an_error_and_the_stream_goes_on(path):
    async with streaming() as (transport, _, far):
        file = path.open("rb")
        sending = await stuck(transport, file)
        file.close()
        with path.open("rb") as other:  # it may have the number now
            arrived = await far.recv(1 << 20)
            await until(sending.done, "it has ended")
            assert other.tell() == 0
        assert isinstance(failed(sending), ValueError)
        transport.write(b"end")
        transport.close()
        arrived += await far.recv_to_end()
        assert arrived.endswith(b"end")
        assert DATA.startswith(arrived[:-3])


async def test_a_slow_disk_is_waited_for_without_holding_the_loop_or_spinning(file):
    async with streaming() as (transport, _, far):
        with FaultPlan() as plan, LoopTurns() as loop_turns:
            plan.fail("preadv", nth=2, errno=errno.EAGAIN, times=5)
            sending = asyncio.ensure_future(transport.sendfile(file))
            assert await far.recv_exactly(SIZE) == DATA
            assert await sending == SIZE
        assert plan.count("posix_fadvise") == 5
        assert plan.count("preadv") < plan.count("sendfile") + 10
        assert loop_turns


# -- in the middle --------------------------------------------------------------------------------


@pytest.mark.parametrize("backlog", [0, 1_000_000])
async def test_cancelling_anywhere_leaves_a_stream_that_goes_on(kind, file, backlog):
    for step in (*range(6), 30):
        async with streaming(kind) as (transport, protocol, far):
            transport.write(DATA[:backlog])
            sending = asyncio.ensure_future(transport.sendfile(file))
            arrived = b""
            for _ in range(step):
                await asyncio.sleep(0)
                arrived += far.recv_now(20_000) or b""
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            assert transport.is_reading() is (kind != "pipe")
            transport.write(b"end")
            transport.close()
            arrived += await far.recv_to_end()
            assert arrived == DATA[:backlog] + DATA[: file.tell()] + b"end"
            await until(lambda protocol=protocol: protocol.lost, "it was lost")
            assert protocol.count("lost") == 1
        file.seek(0)


async def test_one_after_the_other_and_cancelled_in_between(file):
    async with streaming() as (transport, _, far):
        for _ in range(3):
            sending = await stuck(transport, file)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await far.recv_exactly(file.tell())
            file.seek(0)
        sending = asyncio.ensure_future(transport.sendfile(file))
        assert await far.recv_exactly(SIZE) == DATA
        assert await sending == SIZE


async def test_detaching_in_the_middle_gives_the_descriptor_back(file):
    near, other = tcp()
    with FarEnd(other) as far:
        transport, protocol = await connect_fd(RecordingProtocol, near)
        sending = await stuck(transport, file)
        detached = transport.detach()
        await turns()
        assert isinstance(failed(sending), ConnectionError)
        assert (detached.unread, detached.unsent) == (b"", b"")
        assert await far.recv_exactly(file.tell()) == DATA[: file.tell()]
        near.sendall(b"end")
        assert await far.recv_exactly(3) == b"end"
        near.close()
        assert protocol.names == ["made", "lost"]


@pytest.mark.parametrize("how", ["close", "abort", "write_eof"])
async def test_an_end_while_a_backlog_goes_out_before_the_file(file, how):
    async with streaming() as (transport, protocol, far):
        transport.write(DATA)
        sending = asyncio.ensure_future(transport.sendfile(file))
        await turns()
        getattr(transport, how)()
        arrived = await far.recv_to_end()
        assert DATA.startswith(arrived)
        assert len(arrived) == SIZE or how == "abort"
        await until(sending.done, "it has ended")
        assert isinstance(failed(sending), ConnectionError)
        assert file.tell() == 0
        if how == "write_eof":
            assert transport._state is State.WRITE_ENDED
            transport.close()
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.count("lost") == 1


async def test_the_write_side_of_a_pair_may_end_in_the_middle(file):
    back, far_writes = os.pipe()
    far_reads, there = os.pipe()
    with FarEnd((far_reads, far_writes)) as far:
        transport, protocol = await connect_fd(RecordingProtocol, (back, there))
        sending = await stuck(transport, file)
        transport.write_eof()
        assert len(await far.recv_to_end()) < SIZE
        await turns()
        assert isinstance(failed(sending), BrokenPipeError)
        await far.send(b"still read")
        await until(lambda: protocol.received == b"still read", "it goes on reading")
        await transport.aclose()


@pytest.mark.parametrize("keep_open", [False, True])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_peer_that_has_ended_its_side_gets_the_whole_file(kind, file, keep_open):
    async with streaming(kind, keep_open=keep_open) as (transport, protocol, far):
        sending = await stuck(transport, file)
        await far.send(b"request")
        far.shutdown_write()
        assert await far.recv_exactly(SIZE) == DATA
        assert await sending == SIZE
        await until(lambda: protocol.count("eof"), "the end was told")
        assert protocol.names[:3] == ["made", "data", "eof"]
        assert transport.is_closing() is not keep_open


async def test_a_peer_that_goes_away_ends_the_transport_once_with_its_errno(kind, file):
    async with streaming(kind) as (transport, protocol, far):
        sending = await stuck(transport, file)
        far.close()
        await until(sending.done, "it has ended")
        assert failed(sending).errno in (errno.EPIPE, errno.ECONNRESET)
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.names == ["made", "lost"]
        assert protocol.reason is None or protocol.reason.errno in (errno.EPIPE, errno.ECONNRESET)
        assert transport.close_reason in (CloseReason.ERROR, CloseReason.PEER)


async def test_a_flood_of_small_files_lets_the_others_have_a_turn(tmp_path):
    (tmp_path / "small").write_bytes(b"small")
    seen = []

    async def watch():
        while True:
            seen.append(1)
            await asyncio.sleep(0)

    async with streaming("unix") as (transport, _, far):
        watching = asyncio.ensure_future(watch())
        with (tmp_path / "small").open("rb") as file:
            for _ in range(50):
                await transport.sendfile(file)
        watching.cancel()
        assert len(seen) >= 50
        assert await far.recv_exactly(250) == b"small" * 50


async def test_a_wake_up_sends_a_bounded_number_of_pieces(file, tmp_path, monkeypatch):
    monkeypatch.setattr(file_sending, "PIECE", 10_000)
    target = os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)  # takes everything at once
    transport, _ = await connect_fd(asyncio.Protocol, target)
    with FaultPlan() as plan:
        sending = asyncio.ensure_future(transport.sendfile(file))
        await asyncio.sleep(0)
        assert plan.count("sendfile") == file_sending.PIECES
        assert await sending == SIZE
    await transport.aclose()


# -- faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 4097])
async def test_a_few_bytes_at_a_time_lose_nothing(kind, file, n):
    count = 300 * n
    async with streaming(kind) as (transport, _, far):
        with FaultPlan() as plan:
            plan.short("sendfile", n=n)
            sending = asyncio.ensure_future(transport.sendfile(file, 11, count))
            assert await far.recv_exactly(count) == DATA[11 : 11 + count]
            assert await sending == count
        assert plan.injected >= 300
        assert file.tell() == 11 + count


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR, errno.ENOBUFS])
async def test_a_kernel_that_says_later_is_asked_again(kind, file, error):
    async with streaming(kind) as (transport, _, far):
        with FaultPlan() as plan:
            for nth in (1, 2, 4, 8):
                plan.fail("sendfile", nth, error)
            sending = asyncio.ensure_future(transport.sendfile(file))
            assert await far.recv_exactly(SIZE) == DATA
            assert await sending == SIZE
        assert plan.injected >= 3


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL, errno.ENOMEM, errno.EBADF, errno.EOVERFLOW])
async def test_a_file_that_cannot_be_sent_any_further_is_an_error_and_the_stream_goes_on(file, error):
    async with streaming() as (transport, protocol, far):
        with FaultPlan() as plan:
            plan.fail("sendfile", 3, error)
            sending = asyncio.ensure_future(transport.sendfile(file))
            arrived = b""
            while not sending.done():
                arrived += far.recv_now(50_000) or b""
                await asyncio.sleep(0)
            assert failed(sending).errno == error
        transport.write(b"end")
        transport.close()
        arrived += await far.recv_to_end()
        assert 0 < file.tell() < SIZE
        assert arrived == DATA[: file.tell()] + b"end"
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.reason is None


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_a_file_that_cannot_be_sent_at_all_is_read_and_written(file, error):
    async with streaming() as (transport, _, far):
        with FaultPlan() as plan:
            plan.fail("sendfile", 1, error)
            with pytest.raises(asyncio.SendfileNotAvailableError) as caught:
                await transport.sendfile(file, fallback=False)
            assert caught.value.__cause__.errno == error
            plan.fail("sendfile", 1, error)
            sending = asyncio.ensure_future(transport.sendfile(file, 1000))
            assert await far.recv_exactly(SIZE - 1000) == DATA[1000:]
            assert await sending == SIZE - 1000
            assert file.tell() == SIZE


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("error", [errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN])
async def test_a_connection_that_fails_ends_the_transport_with_that(file, error, nth):
    async with streaming() as (transport, protocol, far):
        with FaultPlan() as plan:
            plan.fail("sendfile", nth, error)
            sending = asyncio.ensure_future(transport.sendfile(file))
            while not sending.done():
                far.recv_now(50_000)
                await asyncio.sleep(0)
        assert isinstance(failed(sending), ConnectionError)
        assert failed(sending).errno == error
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.count("lost") == 1
        assert protocol.reason.errno == error


# -- read and written --------------------------------------------------------------------------------


async def foreign(sock, protocol):
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
    return transport


async def test_another_librarys_transport_gets_a_file_with_bounded_memory(file, no_threads_left):
    near, other = tcp()
    protocol, sizes = RecordingProtocol(), []
    with FarEnd(other) as far:
        transport = await foreign(near, protocol)
        transport.write(BEFORE)
        sending = asyncio.ensure_future(fdtransport.sendfile(transport, file))
        arrived = b""
        while len(arrived) < len(BEFORE) + SIZE:
            sizes.append(transport.get_write_buffer_size())
            arrived += far.recv_now(100_000) or b""
            await asyncio.sleep(0)
        assert arrived == BEFORE + DATA
        assert await sending == file.tell() == SIZE
        assert transport.get_protocol() is protocol
        assert not protocol.paused
        assert max(sizes) < transport.get_write_buffer_limits()[1] + 2 * file_copying.PIECE
        await far.send(b"read")
        await until(lambda: protocol.received == b"read", "reading goes on")
        transport.close()
        await until(lambda: protocol.lost, "it was lost")


async def test_another_librarys_transport_that_is_lost_ends_the_sending(file):
    near, other = tcp()
    protocol = RecordingProtocol()
    with FarEnd(other) as far:
        transport = await foreign(near, protocol)
        sending = asyncio.ensure_future(fdtransport.sendfile(transport, file))
        await far.recv_exactly(1000)
        far.reset()
        with pytest.raises(ConnectionError):
            await sending
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.count("lost") == 1
        assert 0 < file.tell() < SIZE
        with pytest.raises(RuntimeError, match="closing"):
            await fdtransport.sendfile(transport, file)


async def test_cancelling_gives_another_librarys_transport_its_protocol_back(file):
    near, other = tcp()
    protocol = RecordingProtocol()
    with FarEnd(other):
        transport = await foreign(near, protocol)
        sending = asyncio.ensure_future(fdtransport.sendfile(transport, file))
        await until(lambda: protocol.paused, "it is paused")
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert transport.get_protocol() is protocol
        assert transport.is_reading()
        transport.abort()
        await until(lambda: protocol.lost, "it was lost")


async def test_a_transport_of_records_is_refused(file):
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), family=socket.AF_INET
    )
    with pytest.raises(RuntimeError, match="not supported"):
        await fdtransport.sendfile(transport, file)
    transport.close()
    await turns()


async def test_a_writer_may_stand_for_its_transport(file):
    near, other = tcp()
    with FarEnd(other) as far:
        reader, writer = await fdtransport.open_connection(sock=near)
        writer.write(BEFORE)
        sending = asyncio.ensure_future(fdtransport.sendfile(writer, file, fallback=False))
        assert await far.recv_exactly(len(BEFORE) + SIZE) == BEFORE + DATA
        assert await sending == SIZE
        await far.send(b"answer\n")
        assert await reader.readline() == b"answer\n"
        writer.close()
        await writer.wait_closed()


async def test_a_pipe_is_sent_as_it_comes_and_cancelling_does_not_wait_for_it(no_threads_left):
    reading, writing = os.pipe()
    async with streaming() as (transport, _, far):
        with os.fdopen(reading, "rb") as file:
            sending = asyncio.ensure_future(transport.sendfile(file))
            for piece in (b"one", b"two"):
                os.write(writing, piece)
                assert await far.recv_exactly(3) == piece
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            os.close(writing)  # the thread that reads sees the end
            transport.write(b"end")
            assert await far.recv_exactly(3) == b"end"
            await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_cancelled_read_leaves_the_position_after_what_was_sent(no_threads_left):
    gate = threading.Event()

    class Slow(io.BytesIO):
        def read1(self, size=-1):
            data = super().read1(size)
            if self.tell() > 2 * file_copying.PIECE:
                gate.wait(5)
            return data

    class File:  # whose read() may wait, for all that is known
        def __init__(self):
            self.data = Slow(DATA)
            self.read1, self.seek, self.tell = self.data.read1, self.data.seek, self.data.tell
            self.read, self.seekable = self.data.read, self.data.seekable

    file = File()
    async with streaming() as (transport, _, far):
        sending = asyncio.ensure_future(transport.sendfile(file))
        await until(lambda: file.tell() > 2 * file_copying.PIECE, "it waits in a thread")
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        gate.set()
        await until(lambda: file.tell() == 2 * file_copying.PIECE, "the position is put right")
        assert await far.recv_exactly(2 * file_copying.PIECE) == DATA[: 2 * file_copying.PIECE]


async def test_a_non_blocking_file_without_data_is_an_error(no_threads_left):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    async with streaming() as (transport, _, _):
        with os.fdopen(reading, "rb", 0) as file:
            with pytest.raises(BlockingIOError):
                await transport.sendfile(file)
            os.close(writing)
            assert await transport.sendfile(file) == 0


@pytest.mark.parametrize("how", ["abort", "close", "collected"])
def test_a_loop_that_ends_in_the_middle_of_a_file_leaves_nothing(loop, tmp_path, how):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    before = descriptors()

    async def begin(near, file):
        transport, _ = await create_connection(asyncio.Protocol, sock=near)
        tasks = [asyncio.ensure_future(transport.sendfile(file)), asyncio.ensure_future(transport.flushed())]
        await turns(20)
        assert not tasks[0].done()
        return transport, tasks

    near, far = socket.socketpair()
    unraisable = []
    with far, (tmp_path / "file").open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", unraisable.append)
        transport, tasks = loop.run_until_complete(begin(near, file))
        del near
        loop.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            if how != "collected":
                getattr(transport, how)()
            if how == "abort":
                assert transport.fileno() == -1
            for task in tasks:
                task._log_destroy_pending = False
            del transport, tasks, task
            gc.collect()
    assert [str(found.exc_value) for found in unraisable] == []
    assert descriptors().items() <= before.items()  # the loop's own have gone
