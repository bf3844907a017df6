"""One case each: a fault that users of serial ports in asyncio have met, as a question with yes or no.

Made like differential_cases: a case is given a `Peer` and raises AssertionError, with what it saw, when the
answer is no. `KERNEL` puts faults under every peer alike, so this module comes before any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import socket
import termios
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from loop_stalls import Longest
from serial_ends import unaccepting
from terminal_pair import Port, port

#: Seconds that something may take which happens at once, or not at all.
SOON = 2.0
#: Seconds for which a driver holds whoever closes its port, and what the loop may be held for.
TRANSMITTING, HELD = 0.6, 0.3


@dataclass
class Peer:
    """What a library offers: coroutine functions, or None where it has nothing."""

    connect: Callable[..., Awaitable[Any]]
    """From a factory, a URL and settings, a transport."""
    streams: Callable[..., Awaitable[Any]]
    """From a URL and settings, a reader and a writer."""
    adopt: Callable[[Any, Any], Awaitable[Any]] | None
    """From a factory and an open serial.Serial, a transport."""
    bounded: dict[str, Any] = field(default_factory=dict)
    """The settings of a port whose close takes half a second at most."""


CASES: dict[str, Callable[[Peer], Awaitable[None]]] = {}


def case(question: str) -> Callable[[Callable[[Peer], Awaitable[None]]], Callable[[Peer], Awaitable[None]]]:
    def enter(function: Callable[[Peer], Awaitable[None]]) -> Callable[[Peer], Awaitable[None]]:
        CASES[question] = function
        return function

    return enter


class Kernel:
    """A driver that is slow to close, and one that fails to read: for one terminal, under everybody."""

    def __init__(self) -> None:
        self.slow: str | None = None
        self.failing: str | None = None
        self._close, self._read, self._readv = os.close, os.read, os.readv
        self._tcdrain, self._ioctl = termios.tcdrain, fcntl.ioctl
        os.close, os.read, os.readv = self.close, self.read, self.readv
        termios.tcdrain, fcntl.ioctl = self.tcdrain, self.ioctl

    def _is(self, fd: Any, path: str | None) -> bool:
        with contextlib.suppress(OSError):
            return path is not None and os.isatty(fd) and os.ttyname(fd) == path
        return False

    def _wait(self, fd: Any) -> None:
        if self._is(fd, self.slow):
            time.sleep(TRANSMITTING)

    def close(self, fd: int) -> None:
        self._wait(fd)
        self._close(fd)

    def tcdrain(self, fd: Any) -> None:
        self._wait(fd)
        self._tcdrain(fd)

    def ioctl(self, fd: Any, request: int, *rest: Any) -> Any:
        if request == termios.TCSBRK and rest == (1,):
            self._wait(fd)
        return self._ioctl(fd, request, *rest)

    def _fail(self, fd: int) -> None:
        if self._is(fd, self.failing):
            self.failing = None
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read(self, fd: int, count: int) -> bytes:
        self._fail(fd)
        return self._read(fd, count)

    def readv(self, fd: int, buffers: Any) -> int:
        self._fail(fd)
        return self._readv(fd, buffers)


KERNEL = Kernel()


class Log(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = bytearray()
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Reports:
    """What the loop's exception handler is called with."""

    def __init__(self) -> None:
        self.said: list[str] = []
        asyncio.get_running_loop().set_exception_handler(self._note)

    def _note(self, _loop: Any, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        self.said.append(str(context.get("message")) if exc is None else type(exc).__name__)

    def none(self) -> None:
        assert not self.said, f"{self.said[0]} is reported, {len(self.said)} times"


def not_held(longest: Longest) -> None:
    assert longest.seconds < HELD, f"held for {longest.seconds:.1f} s"


async def soon(condition: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, otherwise
        await asyncio.sleep(0.001)


async def drained(one: Port, count: int, otherwise: str) -> bytes:
    """What has come to the far end, read without holding the loop."""
    os.set_blocking(one.far, False)
    came = bytearray()

    def enough() -> bool:
        with contextlib.suppress(BlockingIOError):
            came.extend(KERNEL._read(one.far, 65536))
        return len(came) >= count

    await soon(enough, otherwise)
    return bytes(came)


async def full(peer: Peer, one: Port, **settings: Any) -> Log:
    """A port that takes nothing more, with something waiting in the transport."""
    log = Log()
    await peer.connect(lambda: log, one.path, **settings)
    await soon(lambda: log.transport, "connection_made never comes")
    log.transport.write(bytes(200_000))
    await asyncio.sleep(0.05)
    return log


# -- writing -----------------------------------------------------------------------------------------


@case("After a write that the port took in parts, the loop is idle")
async def idle_after_partial_write(peer: Peer) -> None:
    with port() as one:
        reports, log = Reports(), Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        log.transport.write(bytes(50_000))
        came = await drained(one, 50_000, "the data never comes")
        assert len(came) == 50_000
        spent = time.process_time()
        await asyncio.sleep(0.5)
        spent = time.process_time() - spent
        reports.none()
        assert spent < 0.1, f"{spent * 200:.0f} % of a processor"


@case("A write to a full port does not hold the loop")
async def full_port(peer: Peer) -> None:
    with port() as one:
        log = Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        os.set_blocking(one.kept, False)
        for _ in range(20):  # what was written moves on once more, in the kernel
            with contextlib.suppress(BlockingIOError):
                while os.write(one.kept, bytes(4096)):
                    pass
            await asyncio.sleep(0.005)
        freeing = threading.Timer(SOON, lambda: KERNEL._read(one.far, 65536))
        freeing.start()
        with Longest() as longest:
            log.transport.write(b"more")
            await asyncio.sleep(0.05)
        freeing.cancel()
        not_held(longest)


@case("What is done to a bytearray after write changes nothing that is sent")
async def aliasing(peer: Peer) -> None:
    with port() as one:
        log, data = Log(), bytearray(b"a" * 60_000)
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        log.transport.write(data)
        data[:] = b"b" * len(data)
        came = await drained(one, 60_000, "the data never comes")
        assert b"b" not in came, f"{came.count(b'b')} of {len(came)} bytes are wrong"


@case("`write('text')` raises TypeError where it is called")
async def text(peer: Peer) -> None:
    with port() as one:
        reports, log = Reports(), Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        try:
            log.transport.write("text")
        except TypeError:
            pass
        except Exception as exc:
            raise AssertionError(f"{type(exc).__name__}") from exc
        else:
            await asyncio.sleep(0.3)
            reports.none()
            raise AssertionError("it is taken")


@case("`write` after the loss raises nothing")
async def after_the_loss(peer: Peer) -> None:
    with port() as one:
        log = Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        os.close(one.far)
        os.close(one.kept)
        await soon(lambda: log.lost, "connection_lost never comes")
        log.transport.write(b"x")


@case("`can_write_eof()` is False: a port has no end of file")
async def eof(peer: Peer) -> None:
    with port() as one:
        log = Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        assert not log.transport.can_write_eof(), "can_write_eof() is True"


# -- reading -----------------------------------------------------------------------------------------


@case("A descriptor above 1023 works")
async def high_descriptor(peer: Peer) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with port() as one:
        below = [os.dup(one.kept) for _ in range(1100)]
        reports, log = Reports(), Log()
        await peer.connect(lambda: log, one.path)
        os.write(one.far, b"hello")
        await soon(lambda: log.data or log.lost or reports.said, "it hears nothing")
        reports.none()
        assert log.data == b"hello", f"lost: {log.lost}"
        log.transport.write(b"answer")
        assert await drained(one, 6, "the answer never comes") == b"answer"
        for fd in below:
            os.close(fd)


@case("`pause_reading` in `connection_made` holds")
async def paused(peer: Peer) -> None:
    class Pausing(Log):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    with port() as one:
        log = Pausing()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        os.write(one.far, b"hello")
        await asyncio.sleep(0.2)
        assert not log.data, "data comes all the same"
        log.transport.resume_reading()
        await soon(lambda: log.data, "nothing comes after resume_reading")


@case("A `BufferedProtocol` gets its data, and `is_reading` tells the truth")
async def buffered(peer: Peer) -> None:
    class Buffered(asyncio.BufferedProtocol):
        transport: Any = None
        data = b""

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def get_buffer(self, sizehint: int) -> bytearray:
            self.buffer = bytearray(100)
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.data += self.buffer[:nbytes]

    with port() as one:
        reports, protocol = Reports(), Buffered()
        await peer.connect(lambda: protocol, one.path)
        os.write(one.far, b"hello")
        await soon(lambda: protocol.data or reports.said, "it hears nothing")
        reports.none()
        assert protocol.data == b"hello"
        assert protocol.transport.is_reading()
        protocol.transport.pause_reading()
        assert not protocol.transport.is_reading()


# -- the end -----------------------------------------------------------------------------------------


@case("`close` and `abort` may be called again")
async def twice(peer: Peer) -> None:
    with port() as one:
        reports, log = Reports(), Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        for end in (log.transport.close, log.transport.abort, log.transport.abort, log.transport.close):
            end()
        await soon(lambda: log.lost, "connection_lost never comes")
        log.transport.close()
        log.transport.abort()
        await asyncio.sleep(0.05)
        import gc

        gc.collect()  # tasks whose exception nobody asked for
        await asyncio.sleep(0.05)
        reports.none()
        assert log.lost == [None], f"connection_lost: {log.lost}"


@case("A peer that reads nothing cannot hold `close` for ever")
async def stalled(peer: Peer) -> None:
    with port() as one:
        log = await full(peer, one, **peer.bounded)
        log.transport.close()
        await soon(lambda: log.lost, "connection_lost never comes")


@case("A driver that is slow to close does not hold the loop")
async def slow_close(peer: Peer) -> None:
    with port() as one:
        log = Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        KERNEL.slow = one.path
        with Longest() as longest:
            log.transport.close()
            await soon(lambda: log.lost, "connection_lost never comes")
        KERNEL.slow = None
        not_held(longest)


@case("Nor does the close of a `socket://`")
async def socket_close(peer: Peer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        log = Log()
        await peer.connect(lambda: log, "socket://{}:{}".format(*server.getsockname()))
        await soon(lambda: log.transport, "connection_made never comes")
        with Longest() as longest:
            log.transport.close()
            await soon(lambda: log.lost, "connection_lost never comes")
            await asyncio.sleep(0.01)
        not_held(longest)


@case("Nor does the open of a `socket://` that nobody accepts")
async def socket_open(peer: Peer) -> None:
    with unaccepting() as url:
        with Longest() as longest:
            opening = asyncio.ensure_future(peer.connect(Log, url))
            await asyncio.sleep(0.5)
            opening.cancel()
            await asyncio.wait([opening], timeout=SOON)
        not_held(longest)


def in_a_run_of_its_own(main: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
    """``asyncio.run``, on a loop of the same kind, in a thread."""
    kind = type(asyncio.get_running_loop())

    def run() -> Any:
        with asyncio.Runner(loop_factory=kind) as runner:
            return runner.run(main())  # type: ignore[arg-type]

    return asyncio.to_thread(run)


@case("`asyncio.run` that ends right after `close`: `connection_lost` is told")
async def run_and_told(peer: Peer) -> None:
    with port() as one:
        log = Log()

        async def main() -> None:
            await peer.connect(lambda: log, one.path)
            await soon(lambda: log.transport, "connection_made never comes")
            log.transport.close()

        await in_a_run_of_its_own(main)
        assert log.lost == [None], f"connection_lost: {log.lost or 'never'}"


@case("... and the port, locked, can be opened again at once")
async def run_and_again(peer: Peer) -> None:
    with port() as one:
        kept = []

        async def main() -> None:
            log = Log()
            await peer.connect(lambda: log, one.path, exclusive=True)
            await soon(lambda: log.transport, "connection_made never comes")
            log.transport.close()
            kept.append(log.transport)

        for _ in range(3):
            await in_a_run_of_its_own(main)


@case("`connection_lost` comes when the port is closed: it can be opened again from there")
async def reopened_at_once(peer: Peer) -> None:
    with port() as one:
        again: list[Any] = []

        class Again(Log):
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                again.append(asyncio.ensure_future(peer.connect(Log, one.path, exclusive=True)))

        log = Again()
        await peer.connect(lambda: log, one.path, exclusive=True)
        await soon(lambda: log.transport, "connection_made never comes")
        log.transport.close()
        await soon(lambda: again and again[0].done(), "it does not open again")
        exc = again[0].exception()
        assert exc is None, f"{type(exc).__name__}: {exc}"


@case("A failed read is told by `connection_lost`, though data waited and could be sent")
async def failed_read(peer: Peer) -> None:
    with port() as one:
        log = await full(peer, one)
        KERNEL.failing = one.path
        os.write(one.far, b"x")
        await soon(lambda: KERNEL.failing is None, "it does not read")
        os.set_blocking(one.far, False)
        deadline = time.monotonic() + SOON
        while not log.lost:
            assert time.monotonic() < deadline, "connection_lost never comes"
            with contextlib.suppress(OSError):
                KERNEL._read(one.far, 65536)
            await asyncio.sleep(0.001)
        assert log.lost[0] is not None, "connection_lost(None)"
        assert getattr(log.lost[0], "errno", None) == errno.EIO, f"{type(log.lost[0]).__name__} without it"


@case("An unplugged port is told once, with an errno, and the loop is idle")
async def unplugged(peer: Peer) -> None:
    with port() as one:
        reports, log = Reports(), Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        os.close(one.far)
        os.close(one.kept)
        await soon(lambda: log.lost, "connection_lost never comes")
        spent = time.process_time()
        await asyncio.sleep(0.3)
        spent = time.process_time() - spent
        reports.none()
        assert len(log.lost) == 1
        assert getattr(log.lost[0], "errno", None) is not None, f"{type(log.lost[0]).__name__} without one"
        assert spent < 0.1, f"{spent * 300:.0f} % of a processor"


# -- settings, and the names of pyserial-asyncio -------------------------------------------------------


@case("RS-485 that the port refuses leaves its other settings usable")
async def refused_rs485(peer: Peer) -> None:
    import serial.rs485

    with port() as one:
        log = Log()
        await peer.connect(lambda: log, one.path)
        await soon(lambda: log.transport, "connection_made never comes")
        its = log.transport.serial
        assert hasattr(its, "rs485_mode"), "it has no RS-485"
        try:
            its.rs485_mode = serial.rs485.RS485Settings()
        except (OSError, ValueError):
            pass
        else:
            raise AssertionError("the refusal is not told")
        its.baudrate = 19200
        assert its.baudrate == 19200


@case("`create_serial_connection(loop, factory, url)` opens at 9600 baud")
async def default_rate(peer: Peer) -> None:
    with port() as one:
        log = Log()
        try:
            await peer.connect(lambda: log, one.path, baudrate=None)
        except TypeError as exc:
            raise AssertionError(str(exc)) from exc
        await soon(lambda: log.transport, "connection_made never comes")
        assert log.transport.serial.baudrate == 9600


@case("`open_serial_connection` takes `limit` and `loop`")
async def limit(peer: Peer) -> None:
    with port() as one:
        try:
            reader, writer = await peer.streams(one.path, limit=64, loop=asyncio.get_running_loop())
        except TypeError as exc:
            raise AssertionError(str(exc)) from exc
        os.write(one.far, bytes(200))
        try:
            await asyncio.wait_for(reader.readuntil(b"\n"), SOON)
        except asyncio.LimitOverrunError:
            pass
        writer.close()


@case("`connection_for_serial` takes an open `serial.Serial`")
async def adopted(peer: Peer) -> None:
    import serial

    assert peer.adopt is not None, "there is none"
    with port() as one:
        log = Log()
        await peer.adopt(lambda: log, serial.serial_for_url(one.path))
        os.write(one.far, b"hello")
        await soon(lambda: log.data, "it hears nothing")
        log.transport.close()
        await soon(lambda: log.lost, "connection_lost never comes")
