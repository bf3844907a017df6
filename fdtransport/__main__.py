"""The relay command: ``python -m fdtransport [options] A [B]``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from .attach import TerminalTransport
from .command_line import STDIO, endpoints_of, loop_factory, options_of
from .endpoints import Endpoint
from .errors import EndpointError, TransportError
from .program import ProgramTransport
from .progress import progress, size
from .relay import Relay, RelayResult
from .tls import explain
from .urls import Address

__all__ = ["main"]

#: Seconds that a program has for each step of its end; and when there is no time for it.
GRACE, HURRY = 5.0, 0.5


def _tell(message: str, before: str = "") -> None:
    with contextlib.suppress(OSError):
        print(f"{before}fdtransport: {message}", file=sys.stderr, flush=True)


def _reason(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLError):
        return explain(exc)
    if not (isinstance(exc, OSError) and exc.strerror):
        return str(exc) or type(exc).__name__
    if isinstance(exc, TransportError) or not (exc.errno and exc.errno > 0):
        return str(exc.strerror)
    words = os.strerror(exc.errno)
    if not exc.strerror.startswith(words):
        return words  # other libraries tell where it happened instead, which we say already
    # What follows is a whole sentence, which says more than the kernel's words.
    known = exc.errno in (errno.EBADF, errno.ENOTTY)
    return exc.strerror.removeprefix(f"{words}: ") if known else exc.strerror


class _Quiet(asyncio.Protocol):
    """Leaves what comes where it is, until the relay takes it."""

    def __init__(self, made: Callable[[Any], None] | None = None) -> None:
        self._made = made

    def error_received(self, exc: Exception) -> None:
        """One record was refused: the relay will be told of the next."""

    def connection_made(self, transport: Any) -> None:
        with contextlib.suppress(NotImplementedError):
            transport.pause_reading()
        if self._made is not None:
            self._made(transport)


class Command:
    """One run of the command, between endpoint *a* and endpoint *b*."""

    def __init__(self, options: argparse.Namespace, a: Endpoint, b: Endpoint) -> None:
        self.options = options
        self.a: Endpoint = a
        self.b: Endpoint = b
        self.status: int = 0
        self.connections: int = 0
        self.failures: int = 0
        self.done: RelayResult = RelayResult()  # what the relays that have ended moved
        self._tasks: set[asyncio.Task[None]] = set()  # one per pair of ends
        self._running: dict[asyncio.Task[Any] | None, Relay] = {}
        self._listens = a.listens or b.listens
        self._single = options.one or a.scheme.once or b.scheme.once or not self._listens
        self._slots = asyncio.Semaphore(options.max or 1_000_000_000)
        self._full = asyncio.Event()  # no more connections
        self._stopping = False
        self._work: asyncio.Task[None]

    async def run(self) -> int:
        """Do it, and return the exit status."""
        self._work = asyncio.ensure_future(self._serve() if self._listens else self._once())
        if not self._listens:
            self._tasks.add(self._work)
        shown = progress(self.moved) if self.options.progress else contextlib.nullcontext()
        with _signals(self), shown, contextlib.suppress(asyncio.CancelledError):
            await self._work
        return self.status

    def interrupt(self, status: int) -> None:
        """End now; what was read and not written is lost."""
        self.status = status
        self._work.cancel()

    def stop(self) -> None:
        """Read no more, send what was read, and end. The second time, end now."""
        if self._stopping:
            self.interrupt(143)
        self._stopping = True
        self._full.set()
        for task in self._tasks:
            relay = self._running.get(task)
            if relay is not None:
                relay.stop()
            else:
                task.cancel()

    def moved(self) -> tuple[int, int]:
        """Bytes from a to b and from b to a, so far."""
        results = [self.done, *(relay.result for relay in self._running.values())]
        return sum(result.a_to_b.bytes for result in results), sum(result.b_to_a.bytes for result in results)

    def _fail(self, message: str) -> None:
        _tell(message)
        self.failures += 1
        if self._single:
            self.status = 1

    # -- two endpoints ------------------------------------------------------------------------

    async def _once(self) -> None:
        """Open both and relay. The standard streams come last, and only as far as they are of use; a program
        comes after what may fail."""
        first, last = sorted((self.a, self.b), key=lambda end: (end.scheme is STDIO, end.scheme.begins))
        opened = await self._open(first, first.mode)
        if opened is not None:
            await self._relay_with(opened, first, last)

    async def _relay_with(self, opened: Any, endpoint: Endpoint, other: Endpoint) -> None:
        """Open *other* as well, and relay between it and *opened*, which is of *endpoint*."""
        second, in_order = None, False
        try:
            writes = endpoint.records or _can(lambda: opened.write(b""))
            reads = _can(opened.resume_reading)
            if reads:
                opened.pause_reading()
            useful = {"r": writes, "w": reads}
            mode = "".join(letter for letter in other.mode if useful[letter])
            second = await self._open(other, mode or other.mode)
            if second is not None:
                await self._relay(*((opened, second) if endpoint is self.a else (second, opened)))
                in_order = True
        finally:
            opened.abort()
            ends = (opened, second) if endpoint is self.b else (second, opened)
            await self._finish([end for end in ends if isinstance(end, ProgramTransport)], in_order)

    async def _finish(self, programs: list[ProgramTransport], in_order: bool) -> None:
        """See to the end of *programs*, and take over the status of the first that failed."""
        ending = [program.finish(GRACE) if in_order else _hurry(program) for program in programs]
        try:
            codes = await asyncio.gather(*ending)
        except asyncio.CancelledError:
            await asyncio.gather(*map(_hurry, programs))
            raise
        for code in codes:
            if self._single and not self.status:
                self.status = code if code >= 0 else 128 - code

    async def _open(self, endpoint: Endpoint, mode: str) -> Any:
        """A silent transport; None when it cannot be had, which is told."""
        try:
            transport, _ = await endpoint.but(mode).connect(_Quiet)
        except OSError as exc:
            self._fail(f"cannot open {endpoint}: {_reason(exc)}")
            return None
        if isinstance(transport, TerminalTransport):
            _tell(f"{transport.how_to_leave}\r")  # the terminal is in raw mode
        return transport

    async def _relay(self, a: Any, b: Any) -> None:
        options = self.options
        relay = Relay(
            a,
            b,
            linger=options.linger,
            copy=options.copy,
            one_way=self.a.mode == "r",
            record_size=options.record,
            frame=options.frame,
        )
        task = asyncio.current_task()
        self._running[task] = relay
        try:
            result = await relay.run()
        except ValueError:
            self._fail(f"no bytes can go from {self.a} to {self.b}")
            b.abort()
            return
        finally:
            del self._running[task]
            for total, moved in (
                (self.done.a_to_b, relay.result.a_to_b),
                (self.done.b_to_a, relay.result.b_to_a),
            ):
                total.bytes += moved.bytes
                total.records += moved.records
                total.refused += moved.refused
                total.refusal = moved.refusal or total.refusal
                total.engine = total.engine or moved.engine
        for moved, sink in ((result.a_to_b, self.b), (result.b_to_a, self.a)):
            if moved.refusal is not None:
                _tell(f"{sink}: {moved.refused} records refused, the last: {_reason(moved.refusal)}")
        if any(isinstance(end, TerminalTransport) and end.escaped for end in (a, b)):
            _tell("left", before="\n")  # wherever in its line the other side was
        if result.error is not None:
            failed = self.a if result.failed == "a" else self.b
            may_leave = failed.scheme is STDIO or failed.scheme.begins
            if not (may_leave and isinstance(result.error, BrokenPipeError)):
                self._fail(f"{failed}: {_reason(result.error)}")

    # -- a listener ---------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Relay each connection, until this is stopped or has served its one connection."""
        listener = self.a if self.a.listens else self.b
        try:
            server = await listener.listen(lambda: _Quiet(self._accepted))
        except OSError as exc:
            self._fail(f"cannot open {listener}: {_reason(exc)}")
            self.status = 1
            return
        try:
            if isinstance(listener.target, Address) and not listener.target.port:
                ports = {sock.getsockname()[1] for sock in server.sockets}
                _tell(f"{listener}: listening on port {' and '.join(map(str, sorted(ports)))}")
            await self._full.wait()
            server.close()
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _accepted(self, transport: Any) -> None:
        if self._full.is_set():
            transport.abort()
            return
        self.connections += 1
        if self._single:
            self._full.set()
        task = asyncio.ensure_future(self._connection(transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, transport: Any) -> None:
        listener, other = (self.a, self.b) if self.a.listens else (self.b, self.a)
        try:
            async with self._slots:
                await self._relay_with(transport, listener, other)
        finally:
            transport.abort()


async def _hurry(program: ProgramTransport) -> int:
    program.close()
    return await program.terminate(grace=HURRY)


def _can(method: Callable[[], object]) -> bool:
    try:
        method()
    except (NotImplementedError, OSError, RuntimeError):
        return False
    return True


def _print_stats(command: Command, seconds: float) -> None:
    for source, sink, moved in (
        (command.a, command.b, command.done.a_to_b),
        (command.b, command.a, command.done.b_to_a),
    ):
        if moved.engine:
            rate = f"{size(moved.bytes / seconds)}/s" if seconds else "-"
            _tell(f"{source} > {sink}: {moved.bytes} bytes in {seconds:.3f} s, {rate}, {moved.engine}")
        if moved.refused:
            _tell(f"{source} > {sink}: {moved.refused} of {moved.records} records refused")
    if command.connections:
        _tell(f"{command.connections} connections, {command.failures} failed")


@contextlib.contextmanager
def _signals(command: Command) -> Iterator[None]:
    """Ctrl-C ends at once, SIGTERM in good order."""
    loop = asyncio.get_running_loop()
    handlers: dict[int, Callable[[], None]] = {
        signal.SIGINT: partial(command.interrupt, 130),
        signal.SIGTERM: command.stop,
    }
    with contextlib.suppress(NotImplementedError):  # Windows
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        with contextlib.suppress(NotImplementedError):
            for number in handlers:
                loop.remove_signal_handler(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = options_of(sys.argv[1:] if arguments is None else arguments)
    try:
        a, b = endpoints_of(options)
        factory = loop_factory(options.loop)
    except EndpointError as exc:
        _tell(str(exc))
        return 2
    started = time.monotonic()
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            command = Command(options, a, b)
            status = runner.run(command.run())
    except KeyboardInterrupt:
        return 130
    if options.stats:
        _print_stats(command, time.monotonic() - started)
    return status


if __name__ == "__main__":
    sys.exit(main())
