"""One case each: something that users of descriptors in asyncio have run into, as a question with yes or no.

A case is a coroutine function that is given a `Peer` and raises AssertionError, with what it saw, when the
answer is no. Nothing here knows which peer it is: each is asked in its own words for the same thing.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import contextvars
import errno
import os
import resource
import socket
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

#: Seconds that something may take which happens at once, or not at all.
SOON = 1.0


@dataclass
class Peer:
    """What a library offers for each kind: a coroutine function, or None where it has nothing."""

    read_pipe: Callable[[Any, int], Awaitable[Any]]
    write_pipe: Callable[[Any, int], Awaitable[Any]]
    stream: Callable[[Any, socket.socket], Awaitable[Any]]
    """A connected stream socket."""
    records: Callable[[Any, socket.socket], Awaitable[Any]]
    """A connected socket with records."""
    file: Callable[[Any, int], Awaitable[Any]]
    """To read whatever standard input may be."""
    unix_server: Callable[[Any, str], Awaitable[Any]]
    tcp_server: Callable[[Any], Awaitable[Any]]


CASES: dict[str, Callable[[Peer], Awaitable[None]]] = {}


def case(question: str) -> Callable[[Callable[[Peer], Awaitable[None]]], Callable[[Peer], Awaitable[None]]]:
    def enter(function: Callable[[Peer], Awaitable[None]]) -> Callable[[Peer], Awaitable[None]]:
        CASES[question] = function
        return function

    return enter


class Log(asyncio.Protocol, asyncio.DatagramProtocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.data = bytearray()
        self.records: list[bytes] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.errors: list[Exception] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.records.append(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def eof_received(self) -> None:
        self.told.append("eof")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        if not self.lost.done():
            self.lost.set_result(exc)


class Reports(list[dict[str, Any]]):
    """What the loop's exception handler is told meanwhile."""

    def __init__(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: self.append(context))


async def until(condition: Callable[[], Any], what: str, seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s that {what}"
        await asyncio.sleep(0.001)


async def spin_of(seconds: float = 0.3) -> float:
    """The share of a processor that an idle loop takes."""
    before = time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - before) / seconds


def drain(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = bytearray()
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(fd, 1 << 20):
            data += piece
    return bytes(data)


async def collect(fd: int, size: int, seconds: float = 5.0) -> bytes:
    """Up to *size* bytes as they come; what there is when nothing more comes for a while."""
    data, quiet = bytearray(), time.monotonic() + SOON
    deadline = time.monotonic() + seconds
    while len(data) < size and time.monotonic() < min(deadline, quiet):
        piece = drain(fd)
        if piece:
            data += piece
            quiet = time.monotonic() + SOON
        await asyncio.sleep(0.001)
    return bytes(data)


# -- pipes -------------------------------------------------------------------------------------------


@case("a write pipe notices that its reader has gone, while nobody writes, and does not spin")
async def _(peer: Peer) -> None:
    reading, writing = os.pipe()
    protocol = Log()
    await peer.write_pipe(lambda: protocol, writing)
    os.close(reading)
    await asyncio.wait_for(asyncio.shield(protocol.lost), SOON)
    assert protocol.told.count("lost") == 1, protocol.told
    assert await spin_of() < 0.5, "the loop spins"


@case("an exception in data_received is reported and ends a read pipe")
async def _(peer: Peer) -> None:
    reports = Reports()
    reading, writing = os.pipe()

    class Failing(Log):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    protocol = Failing()
    await peer.read_pipe(lambda: protocol, reading)
    os.write(writing, b"x")
    await asyncio.wait_for(asyncio.shield(protocol.lost), SOON)
    assert isinstance(protocol.lost.result(), ZeroDivisionError), protocol.lost.result()
    assert len(reports) == 1, f"{len(reports)} reports"


@case("a BufferedProtocol can read a pipe")
async def _(peer: Peer) -> None:
    Reports()
    reading, writing = os.pipe()

    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer, self.got = bytearray(64), b""

        def get_buffer(self, _size: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, size: int) -> None:
            self.got += self.buffer[:size]

    protocol = Buffered()
    await peer.read_pipe(lambda: protocol, reading)
    os.write(writing, b"into the buffer")
    await until(lambda: protocol.got == b"into the buffer", "the bytes arrive")


@case("the blocking mode of a pipe that others share is as it was, after close()")
async def _(peer: Peer) -> None:
    reading, writing = os.pipe()
    shared = os.dup(writing)
    protocol = Log()
    transport = await peer.write_pipe(lambda: protocol, writing)
    transport.close()
    await asyncio.wait_for(asyncio.shield(protocol.lost), SOON)
    await asyncio.sleep(0)
    assert os.get_blocking(shared), "it is left non-blocking"
    os.close(reading)


@case("abort() twice, and after the loss, does nothing more")
async def _(peer: Peer) -> None:
    reports = Reports()
    _reading, writing = os.pipe()
    protocol = Log()
    transport = await peer.write_pipe(lambda: protocol, writing)
    transport.write(b"x" * 1_000_000)
    transport.abort()
    transport.abort()
    await asyncio.wait_for(asyncio.shield(protocol.lost), SOON)
    transport.abort()
    await asyncio.sleep(0.01)
    assert protocol.told.count("lost") == 1, protocol.told
    assert not reports, reports[0].get("exception")


@case("write() after the loss drops the bytes and raises nothing")
async def _(peer: Peer) -> None:
    reading, writing = os.pipe()
    protocol = Log()
    transport = await peer.write_pipe(lambda: protocol, writing)
    transport.abort()
    await asyncio.wait_for(asyncio.shield(protocol.lost), SOON)
    transport.write(b"late")
    os.close(reading)


@case("what comes in on a socket that is only written to is left there, and ends nothing")
async def _(peer: Peer) -> None:
    near, far = socket.socketpair()
    other = near.dup()
    protocol = Log()
    transport = await peer.write_pipe(lambda: protocol, near.detach())
    far.send(b"for somebody else")
    await asyncio.sleep(0.05)
    assert not protocol.lost.done(), "the transport ended"
    transport.write(b"still writing")
    assert await collect(far.fileno(), 13) == b"still writing"
    assert drain(other.fileno()) == b"for somebody else"


@case("/dev/null as input is an end of file or an error of the call")
async def _(peer: Peer) -> None:
    Reports()
    fd = os.open(os.devnull, os.O_RDONLY)
    protocol = Log()
    try:
        await peer.read_pipe(lambda: protocol, fd)
    except (OSError, ValueError):
        return
    await asyncio.wait_for(asyncio.shield(protocol.lost), SOON)


@case("a regular file as standard input is read to its end")
async def _(peer: Peer) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"line\n" * 50_000)
        file.seek(0)
        protocol = Log()
        await peer.file(lambda: protocol, os.dup(file.fileno()))
        await asyncio.wait_for(asyncio.shield(protocol.lost), 5)
        assert len(protocol.data) == 250_000, f"{len(protocol.data)} bytes of 250000"


# -- writing -----------------------------------------------------------------------------------------


@case("a memoryview of integers is sent whole, behind a backlog")
async def _(peer: Peer) -> None:
    Reports()
    near, far = socket.socketpair()
    transport = await peer.stream(Log, near)
    numbers = array.array("I", range(250_000))
    transport.write(memoryview(numbers))
    got = await collect(far.fileno(), 1_000_000)
    assert got == numbers.tobytes(), f"{len(got)} bytes of 1000000"


@case("a bytearray that is changed after write() is sent as it was")
async def _(peer: Peer) -> None:
    near, far = socket.socketpair()
    transport = await peer.stream(Log, near)
    transport.write(b"-" * 500_000)
    data = bytearray(b"A" * 1000)
    transport.write(data)
    data[:] = b"B" * 1000
    got = await collect(far.fileno(), 501_000)
    assert got[-1000:] == b"A" * 1000, got[-4:]


@case("writelines() obeys flow control")
async def _(peer: Peer) -> None:
    near, _far = socket.socketpair()
    protocol = Log()
    transport = await peer.stream(lambda: protocol, near)
    transport.writelines([b"x" * 100_000] * 20)
    await asyncio.sleep(0)
    assert protocol.told == ["pause"], f"{transport.get_write_buffer_size()} bytes queued"


@case("close() in resume_writing ends once and quietly")
async def _(peer: Peer) -> None:
    reports = Reports()
    near, far = socket.socketpair()

    class Closing(Log):
        def resume_writing(self) -> None:
            self.transport.close()

    protocol = Closing()
    transport = await peer.stream(lambda: protocol, near)
    transport.write(b"x" * 1_000_000)
    await collect(far.fileno(), 1_000_000)
    await asyncio.wait_for(asyncio.shield(protocol.lost), SOON)
    await asyncio.sleep(0.01)
    assert protocol.told.count("lost") == 1, protocol.told
    assert not reports, repr(reports[0].get("exception"))


# -- reading -----------------------------------------------------------------------------------------


@case("a peer that goes is noticed while reading is paused")
async def _(peer: Peer) -> None:
    near, far = socket.socketpair()
    protocol = Log()
    transport = await peer.stream(lambda: protocol, near)
    transport.pause_reading()
    far.close()
    if hasattr(transport, "wait_hangup"):
        await asyncio.wait_for(transport.wait_hangup(), SOON)
    else:
        await asyncio.wait_for(asyncio.shield(protocol.lost), SOON)


@case("resume_reading() in a task does not move the callbacks into the task's context")
async def _(peer: Peer) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="the connection's")
    near, far = socket.socketpair()
    seen: list[str] = []

    class Looking(Log):
        def data_received(self, data: bytes) -> None:
            seen.append(variable.get())

    transport = await peer.stream(Looking, near)
    transport.pause_reading()
    await asyncio.sleep(0.01)

    async def task() -> None:
        variable.set("the task's")
        transport.resume_reading()

    await asyncio.create_task(task())
    far.send(b"x")
    await until(lambda: seen, "the data comes")
    assert seen == ["the connection's"], seen


# -- records -----------------------------------------------------------------------------------------


@case("200 records through a blocked SOCK_SEQPACKET peer arrive as 200")
async def _(peer: Peer) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    protocol = Log()
    transport = await peer.records(lambda: protocol, near)
    send = getattr(transport, "sendto", None) or transport.write
    sent = [b"%03d" % number * 300 for number in range(200)]
    for record in sent:
        send(record)
    far.setblocking(False)
    got: list[bytes] = []

    def more() -> bool:
        with contextlib.suppress(BlockingIOError):
            while record := far.recv(65536):
                got.append(record)
        return len(got) >= 200 or protocol.lost.done()

    with contextlib.suppress(AssertionError):
        await until(more, "the records come")
    assert got == sent, f"{len(got)} of 200"


@case("a connected UDP endpoint lives on after ECONNREFUSED, and hears the next datagram")
async def _(peer: Peer) -> None:
    far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far.bind(("127.0.0.1", 0))
    address = far.getsockname()
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    near.connect(address)
    far.close()
    protocol = Log()
    transport = await peer.records(lambda: protocol, near)
    transport.sendto(b"to nobody")
    await until(lambda: protocol.errors, "the error is told")
    assert getattr(protocol.errors[0], "errno", 0) == errno.ECONNREFUSED, protocol.errors
    far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far.bind(address)
    far.sendto(b"hello", transport.get_extra_info("sockname"))
    await until(lambda: protocol.records == [b"hello"], "the datagram comes")


# -- servers -----------------------------------------------------------------------------------------


@case("the path of a living UNIX server is not taken from it")
async def _(peer: Peer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        await peer.unix_server(Log, path)
        error = 0
        try:
            await peer.unix_server(Log, path)
        except OSError as exc:
            error = exc.errno or 0
        assert error == errno.EADDRINUSE, os.strerror(error) if error else "a second server has it now"


@case("a UNIX server's socket is for its user alone unless asked otherwise")
async def _(peer: Peer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.umask(0)
        await peer.unix_server(Log, f"{folder}/socket")
        mode = stat.S_IMODE(os.stat(f"{folder}/socket").st_mode)
        assert mode == 0o600, oct(mode)


@case("out of descriptors, a server serves everybody in the end and reports it once a second at most")
async def _(peer: Peer) -> None:
    reports = Reports()
    clients = [socket.socket() for _ in range(10)]
    met: list[Log] = []

    class Guest(Log):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            met.append(self)

    address = await peer.tcp_server(Guest)
    await asyncio.sleep(0.01)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, limit[1]))
    started = time.monotonic()
    for client in clients:
        client.setblocking(False)
        client.connect_ex(address)
    await asyncio.sleep(0.3)
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    with contextlib.suppress(AssertionError):
        await until(lambda: len(met) == 10, "all ten are met", 3)
    assert len(met) == 10, f"{len(met)} of 10 served"
    most = 1 + int(time.monotonic() - started)
    assert len(reports) <= most, f"{len(reports)} reports"
