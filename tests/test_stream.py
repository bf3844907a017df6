"""Byte streams: what goes to the kernel and when, what comes from it, and how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import fcntl
import gc
import itertools
import logging
import os
import socket
import struct
import sys
import termios
import warnings
import weakref
from collections.abc import Callable

import pytest

from fdtransport import BufferLimitError, CloseReason, Detached, StreamTransport, connect_fd
from fdtransport._core import backpressure, reading, stream, syscalls
from fdtransport._core.lifecycle import State
from fdtransport._core.readiness import forgets_after_error, hangup_watch

LIMIT = 10.0
marker = contextvars.ContextVar("marker", default="outside")


class Record(asyncio.Protocol):
    """Writes down what it is told, and does what it is asked to do on the way."""

    def __init__(self, keep_open: bool = False) -> None:
        self.keep_open = keep_open
        self.data = bytearray()
        self.told: list[str] = []
        self.contexts: list[str] = []
        self.exception: BaseException | None = None
        self.lost = asyncio.get_running_loop().create_future()
        self.on: dict[str, Callable[[], object]] = {}

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self.contexts.append(marker.get())
        self.on.get(what, lambda: None)()

    def connection_made(self, transport) -> None:
        self.transport = transport
        self._tell("made")

    def data_received(self, data) -> None:
        self.data += data
        self._tell("data")

    def eof_received(self) -> bool:
        self._tell("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self._tell("pause")

    def resume_writing(self) -> None:
        self._tell("resume")

    def connection_lost(self, exc) -> None:
        self.exception = exc
        self._tell("lost")
        self.lost.set_result(exc)

    async def end(self) -> BaseException | None:
        return await asyncio.wait_for(asyncio.shield(self.lost), LIMIT)


class Small(Record, asyncio.BufferedProtocol):
    """Reads into a buffer of its own."""

    def __init__(self, size: int = 100) -> None:
        super().__init__()
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        self.on.get("get_buffer", lambda: None)()
        return self.buffer

    def buffer_updated(self, count) -> None:
        self.data += self.buffer[:count]
        self._tell("data")


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0)


def take(far, limit: int = 1 << 24) -> bytes:
    """What can be read from the far end now."""
    data = bytearray()
    while len(data) < limit:
        try:
            piece = far.recv(min(1 << 16, limit - len(data)))
        except (BlockingIOError, ConnectionResetError):
            break
        if not piece:
            break
        data += piece
    return bytes(data)


async def receive(far, size: int) -> bytes:
    data = bytearray()
    async with asyncio.timeout(LIMIT):
        while len(data) < size:
            data += take(far)
            await asyncio.sleep(0)
    return bytes(data)


@pytest.fixture
def far_end():
    """Makes socket pairs; the far ends are closed after the test."""
    ends = []

    def make():
        near, far = socket.socketpair()
        far.setblocking(False)
        ends.append(far)
        return near, far

    yield make
    for end in ends:
        end.close()


@pytest.fixture
def calls(monkeypatch):
    """The sizes of the write system calls, in order."""
    sizes = []

    def count(name):
        original = getattr(syscalls, name)

        def call(fd, data):
            sizes.append(sum(map(len, data)) if name == "writev" else len(data))
            return original(fd, data)

        monkeypatch.setattr(syscalls, name, call)

    count("write")
    count("writev")
    return sizes


# -- the cork -------------------------------------------------------------------------------------


async def test_a_burst_of_small_writes_leaves_in_a_few_system_calls(far_end, calls):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    pieces = [bytes([number]) * 64 for number in range(100)]
    for piece in pieces:
        transport.write(piece)
    assert calls == [64] * stream.CORK_AFTER
    await turns()
    assert calls == [64] * stream.CORK_AFTER + [64 * (100 - stream.CORK_AFTER)]
    assert take(far) == b"".join(pieces)
    transport.close()
    await protocol.end()


async def test_each_turn_of_the_loop_begins_a_new_burst(far_end, calls):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    for _ in range(10):
        calls.clear()
        for _ in range(10):
            transport.write(b"x")
        await turns(2)
        assert calls == [1] * stream.CORK_AFTER + [10 - stream.CORK_AFTER]
    assert len(take(far)) == 100
    transport.close()
    await protocol.end()


async def test_cork_zero_offers_every_write_at_once(far_end, calls):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near, cork=0)
    assert transport.cork == 0
    for _ in range(100):
        transport.write(b"x" * 64)
    assert calls == [64] * 100
    assert len(take(far)) == 6400
    transport.close()
    await protocol.end()


async def test_cork_is_a_number_of_writes(far_end, calls):
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    assert transport.cork == stream.CORK_AFTER
    transport.cork = 7
    for _ in range(20):
        transport.write(b"x")
    assert (transport.cork, len(calls)) == (7, 7)
    with pytest.raises(ValueError, match="must be >= 0"):
        transport.cork = -1
    transport.cork = 0
    assert calls[7:] == [13]  # what was held goes out
    transport.abort()
    await protocol.end()


async def test_what_is_held_leaves_early_when_it_is_much(far_end, calls):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    for _ in range(stream.CORK_AFTER + 17):
        transport.write(bytes(4096))
    assert len(calls) == stream.CORK_AFTER + 1
    assert calls[-1] > stream.CORK_BYTES
    total = 4096 * (stream.CORK_AFTER + 17)
    assert len(await receive(far, total)) == total
    transport.close()
    await protocol.end()


async def test_a_large_piece_is_not_held_and_takes_what_is_held_along(far_end, calls):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    for number in range(6):
        transport.write(bytes([number]))
    assert len(calls) == stream.CORK_AFTER
    transport.write(b"L" * stream.CORK_PIECE)
    assert sum(calls) == 6 + stream.CORK_PIECE
    transport.write(b"M" * stream.CORK_PIECE)
    assert calls[-1] == stream.CORK_PIECE
    assert take(far) == bytes(range(6)) + b"L" * stream.CORK_PIECE + b"M" * stream.CORK_PIECE
    transport.close()
    await protocol.end()


async def test_an_answer_to_a_request_never_waits_for_the_turn(far_end, calls):
    near, far = far_end()
    answered = []

    def answer() -> None:
        before = len(calls)
        for _ in range(stream.CORK_AFTER):
            protocol.transport.write(b"answer")
        answered.append(len(calls) - before)

    transport, protocol = await connect_fd(Record, near)
    protocol.on["data"] = answer
    for number in range(1, 21):
        far.send(b"request")
        await until(lambda number=number: len(answered) == number)
    assert answered == [stream.CORK_AFTER] * 20
    transport.close()
    await protocol.end()


SENDS = {
    "close": lambda transport: transport.close(),
    "write_eof": lambda transport: transport.write_eof(),
    "abort": lambda transport: transport.abort(),
    "detach": lambda transport: transport.detach().file.close(),
    "set_protocol": lambda transport: transport.set_protocol(transport.get_protocol()),
    "get_write_buffer_size": lambda transport: transport.get_write_buffer_size(),
    "set_write_buffer_limits": lambda transport: transport.set_write_buffer_limits(1 << 20),
    "cork": lambda transport: setattr(transport, "cork", 0),
}


@pytest.mark.parametrize("how", SENDS)
async def test_what_only_the_cork_holds_counts_as_sent(far_end, how):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    for number in range(20):
        transport.write(bytes([number]))
    SENDS[how](transport)
    assert take(far) == bytes(range(20))
    transport.abort()
    await protocol.end()


async def test_the_cork_alone_never_pauses_the_protocol(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    transport.set_write_buffer_limits(high=100)
    for _ in range(50):
        transport.write(b"x" * 64)
    await turns()
    assert protocol.told == ["made"]
    assert len(take(far)) == 3200
    transport.close()
    await protocol.end()


async def test_flushed_includes_what_the_cork_holds(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    for _ in range(20):
        transport.write(b"x")
    await transport.flushed()
    assert take(far) == b"x" * 20
    transport.close()
    await protocol.end()


# -- writing --------------------------------------------------------------------------------------


async def test_order_is_kept_through_direct_held_queued_and_vectored_writes(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    expected = bytearray()
    for number, size in enumerate([1, 10, 100, 1, 1, 1, 9000, 1, 300_000, 1, 5, 70_000, 1, 8192, 3] * 3):
        data = bytes([number]) * size
        expected += data
        if number % 3:
            transport.write(data)
        else:
            transport.writelines([data[: size // 2], b"", bytearray(data[size // 2 :])])
    transport.write_eof()
    assert await receive(far, len(expected)) == expected
    transport.close()
    await protocol.end()


async def test_one_byte_per_system_call_still_sends_everything(far_end, monkeypatch):
    write = syscalls.write
    monkeypatch.setattr(syscalls, "write", lambda fd, data: write(fd, memoryview(data)[:1]))
    monkeypatch.setattr(syscalls, "writev", lambda fd, parts: write(fd, memoryview(parts[0])[:1]))
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    data = os.urandom(3000)
    for start in range(0, 3000, 100):
        transport.write(data[start : start + 100])
    transport.close()
    assert await receive(far, 3000) == data
    assert await protocol.end() is None


async def test_a_vector_longer_than_the_kernel_allows_is_sent_in_parts(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    pieces = [bytes([number % 251]) * 5000 for number in range(2000)]
    transport.writelines(pieces)
    transport.close()
    assert await receive(far, 10_000_000) == b"".join(pieces)
    assert await protocol.end() is None


async def test_a_buffer_that_changes_after_write_changes_nothing_that_is_sent(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    expected = b""
    for size in (10, 10, 10, 10, 10, 10, 9000, 500_000, 10, 300_000):
        for make in (lambda data: data, memoryview):
            data = bytearray(b"a" * size)
            transport.write(make(data))
            expected += bytes(data)
            data[:] = b"b" * size
    transport.close()
    assert await receive(far, len(expected)) == expected
    await protocol.end()


def injected(monkeypatch, name: str, number: int, times: int) -> list[int]:
    """Make the next *times* calls fail; returns the list of the calls so far."""
    calls: list[int] = []
    original = getattr(syscalls, name)

    def call(*args):
        calls.append(1)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return original(*args)

    monkeypatch.setattr(syscalls, name, call)
    return calls


async def test_a_shortage_of_kernel_buffers_is_waited_out_without_spinning(far_end, monkeypatch):
    monkeypatch.setattr(backpressure, "BREATH", 0.001)
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    tries = injected(monkeypatch, "write", errno.ENOBUFS, 5)
    transport.write(b"one ")
    transport.write(b"two ")
    assert len(tries) == 1
    await turns(1)
    assert len(tries) <= 2
    await asyncio.wait_for(transport.flushed(), LIMIT)
    transport.write(b"three")
    assert take(far) == b"one two three"
    assert len(tries) == 7
    transport.close()
    assert await protocol.end() is None


async def test_a_shortage_without_end_ends_the_transport_with_its_errno(far_end, monkeypatch):
    monkeypatch.setattr(backpressure, "BREATH", 0.0)
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    tries = injected(monkeypatch, "write", errno.ENOBUFS, 1 << 30)
    transport.write(b"data")
    error = await protocol.end()
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOBUFS
    assert len(tries) == backpressure.BREATHS + 1


async def test_close_waits_out_a_shortage_of_kernel_buffers(far_end, monkeypatch):
    monkeypatch.setattr(backpressure, "BREATH", 0.001)
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    injected(monkeypatch, "write", errno.ENOBUFS, 3)
    transport.write(b"data")
    transport.close()
    assert await protocol.end() is None
    assert take(far) == b"data"


async def test_abort_during_a_shortage_of_kernel_buffers_ends_at_once(far_end, monkeypatch):
    monkeypatch.setattr(backpressure, "BREATH", 0.001)
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    injected(monkeypatch, "write", errno.ENOBUFS, 1 << 30)
    transport.write(b"data")
    transport.abort()
    assert await protocol.end() is None
    await asyncio.sleep(0.005)  # the breath that was under way comes to nothing
    assert take(far) == b""


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["write", "writev", "read"])
async def test_an_interruption_is_invisible(far_end, monkeypatch, name, number):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    tries = injected(monkeypatch, name, number, 2)
    transport.writelines([bytes(20_000)] * 3)
    transport.write(b"tail")
    far.send(b"data")
    assert await receive(far, 60_004) == bytes(60_000) + b"tail"
    await until(lambda: protocol.data)
    assert protocol.data == b"data"
    assert name == "write" or len(tries) >= 3
    transport.close()
    assert await protocol.end() is None


async def test_a_failed_write_is_told_once_after_everything_readable(far_end, monkeypatch):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    far.send(b"last words")
    injected(monkeypatch, "write", errno.EIO, 1 << 30)
    transport.write(b"data")
    transport.write(b"more")
    assert transport.is_closing()
    error = await protocol.end()
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    assert protocol.told == ["made", "data", "lost"]
    assert protocol.data == b"last words"
    assert transport.close_reason is CloseReason.ERROR


async def full(far_end):
    """A transport whose kernel buffer takes nothing more, and whose queue is short."""
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    while not transport.get_write_buffer_size():
        transport.write(bytes(1000))
    return far, transport, protocol


@pytest.mark.parametrize("how", ["write", "writelines"])
async def test_a_large_piece_takes_back_what_small_ones_were_allowed(far_end, how):
    _, transport, protocol = await full(far_end)
    transport.set_write_buffer_limits(high=60_000)
    transport.write(b"x")  # small ones may come without a look at the marks from here on
    for _ in range(5):
        transport.write(bytes(10_000)) if how == "write" else transport.writelines([bytes(5000)] * 2)
    while transport.get_write_buffer_size() <= 60_000:
        transport.write(bytes(2000))
    assert protocol.told == ["made", "pause"]
    transport.abort()
    await protocol.end()


async def test_a_protocol_that_wrote_while_it_was_paused_is_paused_again(far_end):
    far, transport, protocol = await full(far_end)
    transport.set_write_buffer_limits(high=20_000, low=10_000)
    for _ in range(50):
        transport.write(bytes(1000))
    assert protocol.told == ["made", "pause"]
    while "resume" not in protocol.told:
        take(far, 2000)
        await turns(1)
    while transport.get_write_buffer_size() <= 20_000:
        transport.write(bytes(1000))
    assert protocol.told == ["made", "pause", "resume", "pause"]
    transport.abort()
    await protocol.end()


@pytest.mark.parametrize("then", ["write_eof", "close", "abort"])
async def test_what_was_written_before_connection_made_counts_from_then_on(far_end, then):
    near, far = far_end()
    protocol = Record()
    transport = StreamTransport(asyncio.get_running_loop(), near, protocol)
    transport.write(bytes(2 << 20))
    getattr(transport, then)()
    assert protocol.told == []
    await turns()
    assert protocol.told == (["made", "lost"] if then == "abort" else ["made", "pause"])
    if then != "abort":
        await receive(far, 2 << 20)
        await until(lambda: "resume" in protocol.told)
        transport.close()
    await protocol.end()


async def test_the_hard_limit_ends_the_transport_with_a_clear_error_and_not_memory(far_end):
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    transport.set_write_buffer_limits(high=10_000, hard=1 << 20)
    for _ in range(100):
        transport.write(bytes(100_000))
        assert transport.get_write_buffer_size() <= 1 << 20
    error = await protocol.end()
    assert isinstance(error, BufferLimitError)
    assert protocol.told == ["made", "pause", "lost"]


async def test_a_write_after_the_loss_warns_from_the_fifth_on(far_end, caplog):
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    transport.abort()
    await protocol.end()
    with caplog.at_level(logging.WARNING, "fdtransport"):
        for number in range(1, 8):
            transport.write(b"lost")
            assert len(caplog.records) == max(0, number - 4)


# -- flushed --------------------------------------------------------------------------------------


async def test_flushed_returns_when_the_kernel_has_everything(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    transport.write(bytes(2 << 20))
    waiting = asyncio.ensure_future(transport.flushed())
    await turns()
    assert not waiting.done()
    assert transport.get_write_buffer_size() > 0
    await receive(far, 2 << 20)
    await asyncio.wait_for(waiting, LIMIT)
    assert transport.get_write_buffer_size() == 0
    transport.close()
    await protocol.end()


async def test_flushed_raises_the_error_that_ended_the_transport(far_end, monkeypatch):
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    transport.write(bytes(2 << 20))
    waiting = asyncio.ensure_future(transport.flushed())
    await turns()
    injected(monkeypatch, "write", errno.EIO, 1 << 30)
    transport._flush()  # as the loop does when the descriptor is writable
    with pytest.raises(OSError, match="Input/output error") as failure:
        await asyncio.wait_for(waiting, LIMIT)
    assert failure.value.errno == errno.EIO
    await protocol.end()


@pytest.mark.parametrize("how", ["abort", "detach"])
async def test_flushed_raises_when_what_was_written_will_not_be_sent(far_end, how):
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    transport.write(bytes(2 << 20))
    waiting = asyncio.ensure_future(transport.flushed())
    await turns()
    given_back = getattr(transport, how)()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(waiting, LIMIT)
    await protocol.end()
    if how == "detach":
        given_back.file.close()


async def test_cancelled_waiters_are_not_kept(far_end):
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    transport.write(bytes(2 << 20))
    for _ in range(100):
        for wait in (transport.flushed, transport.wait_hangup):
            waiting = asyncio.ensure_future(wait())
            await turns(2)
            waiting.cancel()
            await asyncio.wait([waiting])
    assert sum(len(futures) for futures in transport._waiters.values()) <= 4
    transport.abort()
    await protocol.end()


# -- reading --------------------------------------------------------------------------------------


class Firehose:
    """syscalls.read and readv of a descriptor that always has more."""

    def __init__(self, monkeypatch) -> None:
        self.reads = 0
        monkeypatch.setattr(syscalls, "read", self.read)
        monkeypatch.setattr(syscalls, "readv", self.readv)

    def read(self, _fd, size):
        self.reads += 1
        return bytes(size)

    def readv(self, _fd, buffers):
        self.reads += 1
        return sum(map(len, buffers))


@pytest.mark.parametrize("factory", [Record, Small], ids=["protocol", "buffered"])
async def test_a_sender_without_end_gets_a_bounded_number_of_reads_per_wake_up(far_end, monkeypatch, factory):
    near, far = far_end()
    transport, protocol = await connect_fd(factory, near)
    hose = Firehose(monkeypatch)
    far.send(b"x")  # is never taken, and so readable for ever
    seen = []
    for _ in range(20):
        await turns(1)
        seen.append(hose.reads)
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= 2 * reading.READS  # a turn of uvloop may be two of its wake-ups
    assert sum(steps) > 0
    transport.abort()
    await protocol.end()


async def test_a_short_read_ends_the_wake_up(far_end, monkeypatch):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    reads = injected(monkeypatch, "read", 0, 0)
    far.send(b"x" * 1000)
    await until(lambda: protocol.data)
    assert len(reads) == 1
    transport.close()
    await protocol.end()


async def test_a_pause_inside_the_callback_stops_the_wake_up(far_end, monkeypatch):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    protocol.on["data"] = transport.pause_reading
    hose = Firehose(monkeypatch)
    far.send(b"x")
    await turns(10)
    assert (hose.reads, protocol.told) == (1, ["made", "data"])
    transport.abort()
    await protocol.end()


async def test_an_empty_buffer_of_a_buffered_protocol_is_an_error(far_end, reports):
    near, far = far_end()
    transport, protocol = await connect_fd(lambda: Small(0), near)
    far.send(b"x")
    assert isinstance(await protocol.end(), RuntimeError)
    assert transport.close_reason is CloseReason.ERROR
    assert [report["message"] for report in reports] == ["Fatal error: protocol.get_buffer() call failed."]


@pytest.mark.parametrize("buffer", [b"read-only", memoryview(bytearray(100))[::2]], ids=["read-only", "gaps"])
async def test_a_buffer_that_cannot_be_filled_ends_the_transport_once(far_end, reports, buffer):
    near, far = far_end()
    protocol = Small()
    protocol.buffer = buffer
    await connect_fd(lambda: protocol, near)
    far.send(b"x")
    assert isinstance(await protocol.end(), BufferError)
    assert [report["message"] for report in reports] == ["Fatal error: protocol.get_buffer() call failed."]
    assert protocol.told == ["made", "lost"]


async def test_the_protocol_can_be_switched_between_plain_and_buffered_in_mid_stream(far_end):
    near, far = far_end()
    transport, first = await connect_fd(Record, near)
    protocols = [first, Small(), Record(), Small(3), Record()]
    sent = bytearray()
    for number, protocol in enumerate(protocols):
        transport.set_protocol(protocol)
        assert transport.get_protocol() is protocol
        piece = bytes([number]) * 1000
        sent += piece
        far.send(piece)
        await until(lambda protocol=protocol, piece=piece: protocol.data == piece)
    assert b"".join(bytes(protocol.data) for protocol in protocols) == sent
    transport.close()
    await protocols[-1].end()
    assert all("lost" not in protocol.told for protocol in protocols[:-1])


async def test_the_protocol_can_be_switched_from_inside_its_own_callback(far_end):
    near, far = far_end()
    transport, plain = await connect_fd(Record, near)
    buffered = Small(10)
    plain.on["data"] = lambda: transport.set_protocol(buffered)
    buffered.on["data"] = lambda: transport.set_protocol(plain)
    total = 200_000
    far.send(bytes(total))
    far.shutdown(socket.SHUT_WR)
    last = await asyncio.wait_for(
        asyncio.wait([plain.lost, buffered.lost], return_when=asyncio.FIRST_COMPLETED), LIMIT
    )
    assert len(last[0]) == 1
    assert len(plain.data) + len(buffered.data) == total
    assert len(buffered.data) % 10 == 0


async def test_a_protocol_that_is_replaced_in_get_buffer_takes_no_byte_with_it(far_end):
    near, far = far_end()
    transport, buffered = await connect_fd(Small, near)
    plain = Record()
    buffered.on["get_buffer"] = lambda: transport.set_protocol(plain)
    far.send(b"for the next one")
    far.shutdown(socket.SHUT_WR)
    assert await plain.end() is None
    assert (plain.data, buffered.data) == (b"for the next one", b"")


async def test_a_pause_in_get_buffer_holds_from_there_on(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Small, near)
    protocol.on["get_buffer"] = transport.pause_reading
    far.send(b"later")
    await turns(10)
    assert protocol.told == ["made"]
    del protocol.on["get_buffer"]
    transport.resume_reading()
    await until(lambda: protocol.data == b"later")
    transport.abort()
    await protocol.end()


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_connection_made_leaves_a_transport_that_works(loop, exception):
    class Interrupted(asyncio.Protocol):
        data = b""

        def connection_made(self, transport):
            raise exception

        def data_received(self, data):
            self.data += data

    near, far = socket.socketpair()
    with far:
        opening = loop.create_task(connect_fd(Interrupted, near.detach()))
        with pytest.raises(exception):
            loop.run_until_complete(turns(100))
        transport, protocol = loop.run_until_complete(asyncio.wait_for(opening, LIMIT))
        far.send(b"x")
        loop.run_until_complete(until(lambda: protocol.data == b"x"))
        loop.run_until_complete(transport.aclose())


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_the_end_is_told_once_also_when_it_is_interrupted(loop, exception):
    """An interrupt goes through to whoever runs the loop; what runs after it finds the transport closing."""

    class Interrupted(asyncio.Protocol):
        told = 0

        def eof_received(self):
            self.told += 1
            raise exception

    async def open_one():
        return await connect_fd(Interrupted, read)

    read, write = os.pipe()
    transport, protocol = loop.run_until_complete(open_one())
    os.close(write)
    with pytest.raises(exception):
        loop.run_until_complete(turns(100))
    loop.run_until_complete(transport.aclose())
    assert protocol.told == 1
    assert transport.close_reason is CloseReason.PEER


async def test_a_half_closed_socket_of_a_bare_descriptor_learns_of_a_reset_with_its_errno():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    transport, protocol = await connect_fd(lambda: Record(keep_open=True), near.detach())
    far.shutdown(socket.SHUT_WR)
    await until(lambda: "eof" in protocol.told)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    lost = await protocol.end()
    assert isinstance(lost, OSError)
    assert lost.errno == errno.EPIPE  # what the kernel makes of a reset after an end: tcp_reset()
    assert transport.close_reason is CloseReason.ERROR


async def test_a_protocol_that_is_neither_is_refused_and_the_descriptor_untouched(far_end):
    near, far = far_end()
    os.set_blocking(near.fileno(), True)
    for fd in (-1, 1 << 20):
        with pytest.raises(OSError, match="Bad file descriptor"):
            await connect_fd(Record, fd)
    assert os.get_blocking(near.fileno())
    near.close()
    assert far.recv(1) == b""


# -- the end of the other side --------------------------------------------------------------------


@pytest.mark.parametrize("factory", [Record, Small, lambda: Small(1)], ids=["protocol", "100 B", "1 B"])
@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
async def test_everything_arrives_from_a_peer_that_dies_with_unread_input(far_end, factory, paused):
    # The kernel reports an error together with the data then; libuv drops such a descriptor.
    near, far = far_end()
    transport, protocol = await connect_fd(factory, near)
    if paused:
        transport.pause_reading()
    transport.write(b"never read")
    data = os.urandom(100_000)
    far.setblocking(True)
    far.send(data)
    far.close()
    if paused:
        await until(lambda: transport.hung_up)
        await turns(10)
        assert protocol.data == b""
        transport.resume_reading()
    error = await protocol.end()
    assert protocol.data == data
    assert error is None or (isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE))


@pytest.mark.parametrize("size", [1, 100, 5000])
async def test_everything_arrives_when_reading_is_paused_and_resumed_all_the_time(far_end, size):
    near, far = far_end()
    transport, protocol = await connect_fd(lambda: Small(size), near)

    def pause() -> None:
        transport.pause_reading()
        asyncio.get_running_loop().call_soon(transport.resume_reading)

    protocol.on["data"] = pause
    transport.write(b"never read")
    data = os.urandom(min(100_000, size * 1000))
    far.setblocking(True)
    far.send(data)
    far.close()
    await protocol.end()
    assert protocol.data == data


async def test_what_was_sent_arrives_before_the_error_of_a_write_to_the_dead(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    data = os.urandom(100_000)
    far.setblocking(True)
    far.send(data)
    far.close()
    transport.write(b"too late")
    assert isinstance(await protocol.end(), BrokenPipeError)
    assert protocol.data == data


async def test_the_loss_after_a_failed_write_waits_for_a_paused_reader(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    transport.pause_reading()
    far.send(b"unread")
    far.close()
    transport.write(b"too late")
    await turns(10)
    assert protocol.told == ["made"]
    transport.resume_reading()
    assert isinstance(await protocol.end(), BrokenPipeError)
    assert protocol.data == b"unread"


async def test_waiting_for_a_hang_up_of_a_file_ends_with_the_transport(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"data")

    class Paused(Record):
        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    transport, protocol = await connect_fd(Paused, os.open(path, os.O_RDONLY))
    waiting = asyncio.ensure_future(transport.wait_hangup())
    await turns()
    assert not waiting.done()
    transport.close()
    await asyncio.wait_for(waiting, LIMIT)
    await protocol.end()


async def test_the_watch_of_a_write_descriptor_that_is_closed_early_is_not_taken_from_its_next_owner():
    reading, far_writing = os.pipe()
    far_reading, writing = os.pipe()
    first, one = await connect_fd(lambda: Record(keep_open=True), (reading, writing))
    os.close(far_writing)
    await until(lambda: "eof" in one.told)  # from now on the write descriptor is watched
    first.write_eof()  # and now it is closed
    await until(lambda: first._wfd == -1)
    source, sink = os.pipe()
    other = os.dup(sink) if sink != writing else sink
    if sink != writing:
        os.dup2(sink, writing, inheritable=False)
        os.close(sink)
        os.close(other)
    second, two = await connect_fd(Record, writing)  # the same number
    first.close()
    await one.end()
    os.close(source)
    await two.end()
    assert second.hung_up
    os.close(far_reading)


# -- nothing spins --------------------------------------------------------------------------------


class Counting:
    """A loop that counts how often a descriptor calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.calls = loop, 0

    def __getattr__(self, name):
        return getattr(self.loop, name)

    def _count(self, callback, *args) -> None:
        self.calls += 1
        callback(*args)

    def add_reader(self, fd, callback, *args) -> None:
        self.loop.add_reader(fd, self._count, callback, *args)

    def add_writer(self, fd, callback, *args) -> None:
        self.loop.add_writer(fd, self._count, callback, *args)


def _far_half_closes(transport, far) -> None:
    far.shutdown(socket.SHUT_WR)


def _far_closes(transport, far) -> None:
    far.close()


def _far_sends_to_a_paused_one(transport, far) -> None:
    transport.pause_reading()
    far.send(b"unread")


def _far_closes_on_a_paused_one(transport, far) -> None:
    transport.pause_reading()
    far.send(b"unread")
    far.close()


def _far_resets_a_paused_one(transport, far) -> None:
    transport.pause_reading()
    transport.write(b"unread")
    far.send(b"unread")
    far.close()


def _both_half_close(transport, far) -> None:
    transport.write_eof()
    far.shutdown(socket.SHUT_WR)


def _half_close_and_then_gone(transport, far) -> None:
    transport.write_eof()
    far.close()


def _full_and_nobody_reads(transport, far) -> None:
    transport.write(bytes(4 << 20))


def _closing_and_nobody_reads(transport, far) -> None:
    transport.write(bytes(4 << 20))
    transport.close()


def _closing_with_a_producer(transport, far) -> None:
    transport.register_producer(Producer())
    transport.close()


def _idle(transport, far) -> None:
    pass


STATES = [
    _idle,
    _far_half_closes,
    _far_closes,
    _far_sends_to_a_paused_one,
    _far_closes_on_a_paused_one,
    _far_resets_a_paused_one,
    _both_half_close,
    _half_close_and_then_gone,
    _full_and_nobody_reads,
    _closing_and_nobody_reads,
    _closing_with_a_producer,
]


@pytest.mark.parametrize("bring", STATES, ids=lambda bring: bring.__name__.strip("_"))
async def test_no_state_wakes_the_loop_again_and_again(far_end, bring):
    near, far = far_end()
    loop, protocol = Counting(asyncio.get_running_loop()), Record(keep_open=True)
    transport = StreamTransport(loop, near, protocol)
    await turns(3)
    bring(transport, far)
    await turns(20)
    before = loop.calls
    await turns(100)
    assert loop.calls == before
    assert before < 20
    transport.abort()
    await protocol.end()


# -- detach ---------------------------------------------------------------------------------------


async def test_detach_gives_the_descriptor_back_as_it_was_with_what_was_not_sent(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    data = os.urandom(2 << 20)
    transport.write(data)
    given_back = transport.detach()
    assert isinstance(given_back, Detached)
    assert given_back.file is near
    assert near.getblocking() is True
    assert (given_back.unread, transport.fileno()) == (b"", -1)
    assert await receive(far, len(data) - len(given_back.unsent)) + given_back.unsent == data
    assert await protocol.end() is None
    assert transport.close_reason is CloseReason.LOCAL
    near.send(b"alive")
    assert take(far) == b"alive"
    with pytest.raises(OSError, match="has ended"):
        transport.detach()
    near.close()


async def test_detach_of_a_pair_gives_the_pair_back():
    (reading, far_writing), (far_reading, writing) = os.pipe(), os.pipe()
    transport, protocol = await connect_fd(Record, (reading, writing))
    os.write(far_writing, b"for the next owner")
    given_back = transport.detach()
    assert given_back.file == (reading, writing)
    assert os.read(reading, 100) == b"for the next owner"
    await protocol.end()
    for fd in (reading, writing, far_reading, far_writing):
        assert os.get_blocking(fd)
        os.close(fd)


async def test_a_detached_descriptor_goes_under_a_new_transport_at_once(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    again, second = await connect_fd(Record, transport.detach().file)
    far.send(b"data")
    await until(lambda: second.data)
    assert protocol.told == ["made", "lost"]
    again.close()
    await second.end()


@pytest.mark.parametrize("producer", [False, True], ids=["", "with a producer"])
async def test_detach_while_close_is_flushing_ends_the_transport(far_end, producer):
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    if producer:
        transport.register_producer(Producer())
    transport.write(bytes(2 << 20))
    transport.close()
    unsent = transport.detach().unsent
    assert len(unsent) > 0
    assert await protocol.end() is None
    assert transport.close_reason is CloseReason.LOCAL
    near.close()


async def test_a_file_can_still_be_saved_in_connection_lost(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    saved = []
    protocol.on["lost"] = lambda: saved.append(transport.detach().file)
    transport.abort()
    await protocol.end()
    await turns()
    assert saved == [near]
    near.send(b"alive")
    assert take(far) == b"alive"
    near.close()


async def test_detach_inside_a_callback_stops_the_wake_up(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    kept = []
    protocol.on["data"] = lambda: kept.append(transport.detach())
    far.setblocking(True)
    far.send(bytes(150_000))
    await protocol.end()
    assert kept[0].file is near
    near.setblocking(False)
    assert len(protocol.data) + len(take(near)) == 150_000
    near.close()


# -- producers ------------------------------------------------------------------------------------


class Producer:
    def __init__(self) -> None:
        self.told: list[str] = []

    def pause_producing(self) -> None:
        self.told.append("pause")

    def resume_producing(self) -> None:
        self.told.append("resume")

    def stop_producing(self) -> None:
        self.told.append("stop")


async def pieces(count: int, size: int, seen: list[int]):
    for number in range(count):
        seen.append(number)
        yield bytes([number % 251]) * size


async def test_write_from_asks_the_source_only_as_fast_as_the_reader_takes(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    seen: list[int] = []
    writing = asyncio.ensure_future(transport.write_from(pieces(200, 50_000, seen)))
    await turns(30)
    assert len(seen) < 20
    assert transport.get_write_buffer_size() <= 64 * 1024 + 50_000
    expected = b"".join([bytes([number % 251]) * 50_000 for number in range(200)])
    assert await receive(far, len(expected)) == expected
    assert await asyncio.wait_for(writing, LIMIT) == len(expected)
    transport.close()
    await protocol.end()


async def test_write_from_counts_bytes_whatever_the_items_are(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)

    async def source():
        yield b"abc"
        yield bytearray(b"def")
        yield memoryview(bytes(80)).cast("Q")
        yield b""

    assert await transport.write_from(source()) == 86
    await transport.flushed()
    assert take(far) == b"abcdef" + bytes(80)
    transport.close()
    await protocol.end()


async def test_a_cancelled_write_from_leaves_a_transport_that_works(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    seen: list[int] = []
    source = pieces(200, 50_000, seen)
    writing = asyncio.ensure_future(transport.write_from(source))
    await turns(10)
    writing.cancel()
    await asyncio.wait([writing])
    await source.aclose()  # it is its maker's; CPython 3.13.0 crashes when uvloop's debug mode collects it
    count = len(seen)
    transport.register_producer(Producer())  # the place is free
    transport.unregister_producer()
    transport.write(b"end")
    assert (await receive(far, count * 50_000 + 3))[-3:] == b"end"
    assert len(seen) == count
    transport.close()
    await protocol.end()


async def test_write_from_raises_what_its_source_raises_and_the_transport_lives(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)

    async def source():
        yield b"data"
        raise LookupError("no more")

    with pytest.raises(LookupError):
        await transport.write_from(source())
    transport.write(b" and more")
    assert take(far) == b"data and more"
    transport.close()
    assert await protocol.end() is None


async def test_write_from_raises_when_the_transport_is_lost_meanwhile(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    seen: list[int] = []
    writing = asyncio.ensure_future(transport.write_from(pieces(1000, 50_000, seen)))
    await turns(10)
    far.close()
    with pytest.raises(OSError, match="Errno") as failure:
        await asyncio.wait_for(writing, LIMIT)
    assert failure.value.errno in (errno.EPIPE, errno.ECONNRESET)
    assert len(seen) < 20
    await protocol.end()


async def test_two_chained_transports_hold_a_fast_writer_back_with_bounded_memory(far_end):
    source_near, source_far = far_end()
    sink_near, sink_far = far_end()
    sink, sinking = await connect_fd(Record, sink_near)

    class Forward(Record):
        def data_received(self, data) -> None:
            largest.append(sink.get_write_buffer_size())
            sink.write(data)

        def connection_lost(self, exc) -> None:
            super().connection_lost(exc)
            sink.close()

    largest: list[int] = []
    source, forwarding = await connect_fd(Forward, source_near)
    sink.register_producer(source)
    total, data, sent = 8 << 20, os.urandom(1 << 20), 0
    received = bytearray()
    async with asyncio.timeout(LIMIT):
        while len(received) < total:
            try:
                while sent < total:
                    sent += source_far.send(data[sent % len(data) :][: total - sent])
            except BlockingIOError:
                pass
            for _ in range(10):
                await asyncio.sleep(0)
            if not source.is_reading():
                assert sent < total  # the writer is being held back
            received += take(sink_far, 200_000)
    assert received == data * 8
    assert max(largest) <= 2 * 64 * 1024 + reading.READS * reading.READ_SIZE
    assert {"pause", "resume"} <= set(sinking.told)
    source_far.close()
    await forwarding.end()
    assert await sinking.end() is None


async def test_a_chain_whose_source_is_lost_lets_the_sink_close(far_end):
    source_near, source_far = far_end()
    sink_near, _ = far_end()
    sink, sinking = await connect_fd(Record, sink_near)
    source, forwarding = await connect_fd(Record, source_near)
    sink.register_producer(source)
    sink.close()
    await turns(10)
    assert "lost" not in sinking.told  # the producer may still write
    source_far.close()
    await forwarding.end()
    assert await sinking.end() is None
    assert source.close_reason is CloseReason.PEER


async def test_a_chain_whose_sink_is_lost_closes_the_source(far_end):
    source_near, _ = far_end()
    sink_near, _ = far_end()
    sink, sinking = await connect_fd(Record, sink_near)
    source, forwarding = await connect_fd(Record, source_near)
    sink.register_producer(source)
    sink.abort()
    await sinking.end()
    assert await forwarding.end() is None
    assert source.close_reason is CloseReason.LOCAL


async def test_a_pull_producer_is_asked_each_time_the_queue_has_emptied_and_not_more_often(far_end, calls):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    asked = []

    class Pull(Producer):
        def resume_producing(self) -> None:
            asked.append(transport.get_write_buffer_size())
            if len(asked) > 50:
                transport.unregister_producer()
                return
            for _ in range(10):
                transport.write(b"x" * 10)

    transport.register_producer(Pull(), streaming=False)
    await until(lambda: len(asked) > 50)
    assert set(asked) == {0}
    assert len(take(far)) == 5000
    assert calls == [100] * 50
    transport.close()
    await protocol.end()


@pytest.mark.parametrize("asked_before", [0, 3], ids=["at once", "later"])
async def test_a_pull_producer_that_fails_is_reported_once_and_close_does_not_wait_for_it(
    far_end, reports, asked_before
):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    asked = []

    class Pull(Producer):
        def resume_producing(self) -> None:
            asked.append(None)
            if len(asked) > asked_before:
                raise ValueError("nothing more")
            transport.write(b"x" * 10)

    transport.register_producer(Pull(), streaming=False)
    await until(lambda: len(asked) > asked_before)
    transport.write(b"y")  # anybody else goes on writing
    transport.register_producer(Producer(), streaming=False)  # the place is free
    transport.unregister_producer()
    transport.close()
    assert await protocol.end() is None
    assert take(far) == b"x" * 10 * asked_before + b"y"
    assert [report["message"] for report in reports] == ["producer.resume_producing() failed"]
    assert len(asked) == asked_before + 1


# -- callbacks, context, the end ------------------------------------------------------------------


async def test_all_callbacks_run_in_the_context_of_creation(far_end):
    near, far = far_end()
    marker.set("creator")
    transport, protocol = await connect_fd(lambda: Record(keep_open=True), near)
    protocol.on["data"] = lambda: transport.write(bytes(1 << 20))  # pause_writing from inside
    elsewhere = contextvars.Context()
    elsewhere.run(transport.pause_reading)
    far.send(b"data")
    await turns()
    elsewhere.run(transport.resume_reading)
    await until(lambda: "pause" in protocol.told)
    await receive(far, 1 << 20)
    await until(lambda: "resume" in protocol.told)
    elsewhere.run(transport.write, bytes(1 << 20))  # and from outside
    await receive(far, 1 << 20)
    far.shutdown(socket.SHUT_WR)
    await until(lambda: "eof" in protocol.told)
    elsewhere.run(transport.close)
    await protocol.end()
    assert set(protocol.told) == {"made", "data", "pause", "resume", "eof", "lost"}
    assert set(protocol.contexts) == {"creator"}


async def test_a_change_of_the_context_in_one_callback_is_seen_in_the_next(far_end):
    near, far = far_end()
    marker.set("creator")
    transport, protocol = await connect_fd(Record, near)
    protocol.on["data"] = lambda: marker.set("changed")
    far.send(b"data")
    await until(lambda: protocol.data)
    transport.close()
    await protocol.end()
    assert protocol.contexts == ["creator", "creator", "changed"]
    assert marker.get() == "creator"


async def test_a_lost_transport_dies_without_the_garbage_collector(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(lambda: Record(keep_open=True), near)
    transport.write(bytes(1 << 20))
    far.send(b"data")
    while not protocol.data:
        await turns(1)
    transport.register_producer(Producer())
    transport.unregister_producer()
    await receive(far, 1 << 20)
    await transport.aclose()
    dead = [weakref.ref(thing) for thing in (transport, protocol, near)]
    gc.disable()
    try:
        del transport, protocol, near
        await turns(3)
        assert [ref() for ref in dead] == [None] * 3
    finally:
        gc.enable()


async def test_a_transport_lost_with_an_error_dies_without_the_garbage_collector(far_end, monkeypatch):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    with monkeypatch.context() as faulty:
        injected(faulty, "read", errno.EIO, 1)
        far.send(b"data")
        await protocol.end()
    assert protocol.exception is not None
    dead = weakref.ref(transport)
    gc.disable()
    try:
        del transport, protocol.transport
        await turns(3)
        assert dead() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("strict", [False, True], ids=["warning", "error"])
async def test_a_transport_that_is_never_closed_warns_and_closes_its_descriptor(far_end, monkeypatch, strict):
    gc.collect()  # what other tests left
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    near, far = far_end()
    fd = near.detach()
    transport, protocol = await connect_fd(Record, fd)
    transport._remove_interest()  # the loop would keep it alive
    text = repr(transport)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error" if strict else "always")
        del protocol.transport, transport
        gc.collect()
    told = [str(ignore.exc_value) for ignore in ignored] if strict else [str(each.message) for each in caught]
    assert told == [f"unclosed transport {text}"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert far.recv(1) == b""
    del protocol


def test_a_transport_that_outlives_its_loop_lets_everything_go_when_it_is_closed(loop):
    near, far = socket.socketpair()
    other = type(loop)()
    protocol = asyncio.Protocol()

    async def connect() -> StreamTransport:
        transport, _ = await connect_fd(lambda: protocol, near)
        transport.pause_reading()
        far.send(b"unread")
        await turns()
        return transport

    transport = other.run_until_complete(connect())
    assert hangup_watch(other)._epoll is not None
    other.close()
    transport.close()
    assert near.fileno() == -1
    assert hangup_watch(other)._epoll is None
    assert "closed" in repr(transport)
    far.close()


async def test_a_refused_watch_leaves_the_callers_descriptor_alone(far_end, monkeypatch):
    def refuse():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(syscalls, "epoll", refuse)
    near, far = far_end()
    if forgets_after_error(asyncio.get_running_loop()):
        file = near
    else:  # only a write-only transport needs the watch from the beginning
        reading, file = os.pipe()
        os.close(reading)
    made = []

    class Never(Record):
        def connection_made(self, transport) -> None:
            made.append(transport)

    with pytest.raises(OSError, match="Too many open files"):
        await connect_fd(Never, file)
    monkeypatch.undo()
    far.send(b"data")
    await turns(10)
    assert made == []
    if file is near:
        assert near.getblocking()
        transport, protocol = await connect_fd(Record, near)
        await until(lambda: protocol.data == b"data")
        transport.close()
        await protocol.end()
    else:
        os.close(file)
        near.close()


async def test_an_exception_in_a_callback_that_carries_data_is_reported_once_and_ends_it(far_end, reports):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    error = LookupError("bug")

    def fail() -> None:
        raise error

    protocol.on["data"] = fail
    far.send(b"data")
    assert await protocol.end() is error
    assert transport.close_reason is CloseReason.ERROR
    assert len(reports) == 1
    assert reports[0]["exception"] is error
    assert reports[0]["transport"] is transport
    assert reports[0]["protocol"] is protocol


def unread(fd: int) -> int:
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]


async def test_the_buffer_size_is_exact_through_every_kind_of_write(far_end):
    near, far = far_end()
    transport, protocol = await connect_fd(Record, near)
    written = read = 0
    for size in (1, 1, 1, 1, 1, 1, 100, 8192, 500_000, 3, 3, 100_000, 1):
        transport.write(bytes(size))
        written += size
        assert transport.get_write_buffer_size() == written - read - unread(far.fileno())
        read += len(take(far, 30_000))
        await turns(1)
        assert transport.get_write_buffer_size() == written - read - unread(far.fileno())
    transport.abort()
    await protocol.end()
    assert transport.get_write_buffer_size() == 0


async def test_repr_shows_state_descriptor_interest_and_size(far_end):
    near, _ = far_end()
    transport, protocol = await connect_fd(Record, near)
    assert repr(transport) == (
        f"<StreamTransport open fd={near.fileno()} read=polling write=<idle, bufsize=0>>"
    )
    transport.pause_reading()
    transport.write(bytes(4 << 20))
    size = transport.get_write_buffer_size()
    assert f"read=paused write=<polling, bufsize={size}>" in repr(transport)
    transport.abort()
    await protocol.end()
    assert repr(transport) == "<StreamTransport closed fd=-1 read=paused write=<idle, bufsize=0>>"
    assert repr(StreamTransport.__new__(StreamTransport)) == "<StreamTransport not built>"
    assert transport._state is State.CLOSED
