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
from typing import Any, NoReturn

from .attach import TerminalTransport
from .endpoints import Endpoint, parse_url, scheme_of
from .errors import EndpointError, TransportError
from .program import ProgramTransport
from .progress import progress, size
from .records import LONGEST, PIECE
from .relay import Relay, RelayResult
from .schemes import SCHEMES
from .tls import explain
from .urls import Address

__all__ = ["main"]

EXAMPLES = """\
endpoints:
  -                         standard input and output (the default of B)
  -?raw                     this terminal, as it is typed     ?escape=KEY (^], 0x1d, none)
  fd:3, fd:3,4              a descriptor, or one to read and one to write
  tcp://host:port           a TCP connection            ?keepalive=SECONDS&timeout=SECONDS
  tcp+listen://host:port    a TCP server                ?keepalive=SECONDS&backlog=N
  tls://host:port           TLS, server verified        ?ca=FILE&cert=FILE&key=FILE&sni=NAME&insecure
  tls+listen://host:port    a TLS server                ?cert=FILE&key=FILE&ca=FILE&backlog=N
  udp://host:port           a UDP socket                ?broadcast&ttl=N&interface=NAME
  udp+listen://host:port    a UDP server                ?idle=SECONDS&sessions=N&join=GROUP
  unix:/path, unix:@name    a UNIX connection           ?timeout=SECONDS&type=stream|datagram|seqpacket
  unix+listen:/path         a UNIX server               ?mode=660&backlog=N&type=...
  fd+listen:3, fd:3?listen  a descriptor that listens   ?backlog=N
  fifo:/path                a FIFO                      ?eof=close|event|reopen&create=660
  pty:/link                 a virtual serial port       ?mode=660
  serial:/dev/path          a serial port               ?baud=115200&parity=E&rtscts
  exec:PROGRAM ARGUMENTS    a program, without a shell  ?cwd=DIR&stderr=inherit|stdout|null
                            the same, on a terminal     ?pty&size=ROWSxCOLUMNS&cwd=DIR
  shell:COMMAND LINE        a command line for /bin/sh  ?cwd=DIR&stderr=...  or  ?pty&size=...&cwd=DIR
  tun:name                  a TUN interface             ?addr=10.9.0.1/24&mtu=N&up=no&route=NET&netns=PATH
  tap:name                  a TAP interface             the same, and ?hwaddr=MAC
  file:/path                a file                      ?append&create=yes|no|new
                                                        or, to read, ?follow&from=start|end
  watch:/directory          its events as JSON lines    ?ignore=NAME,...&recursive=yes|no
                                                        &initial&follow&settle=SECONDS

examples:
  python -m fdtransport tcp+listen://127.0.0.1:7000 unix:/run/app.sock
  cat big | python -m fdtransport - tcp://example.org:9000
  python -m fdtransport fifo:requests -
  python -m fdtransport '-?raw' tcp://127.0.0.1:7000
  python -m fdtransport 'tls+listen://:8443?cert=c.pem&key=k.pem' tcp://127.0.0.1:80
  python -m fdtransport tcp+listen://127.0.0.1:7000 'exec:/bin/bash -i?pty'

A listener relays each connection to a new connection of the other endpoint, or to a new program; of UDP and
UNIX datagrams, each address that sends is one, until it was quiet for idle=SECONDS (60). A record becomes
bytes as it is, and what is read from a stream at once becomes records of --record bytes and a shorter one;
--frame keeps the boundaries in the stream, as packets of a TUN or TAP always have them (2).

The command of exec: is words, quoted as in a shell; in it a ? is written %3F, a # %23 and a % %25. The end of
the other endpoint is the end of the program's input; on a terminal Ctrl-D is typed, and the program is hung
up when it has said nothing for 10 seconds since (--linger S: after S). When the other endpoint is lost, the
program is hung up or its streams are closed, and what runs on is ended by SIGTERM and SIGKILL, each after 5
seconds.

Exit status: that of the program, or 128 and the number of the signal that ended it (of two programs: of the
last that failed); otherwise 0; 1 when an endpoint cannot be opened or fails; 2 for a wrong command line; 130
after Ctrl-C.
"""
STDIO = SCHEMES["stdio"]
#: Seconds that a program has for each step of its end; and when there is no time for it.
GRACE, HURRY = 5.0, 0.5


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        options = " ".join(action.option_strings[0] for action in self._actions if action.option_strings)
        self.exit(2, f"fdtransport: {message}; the options are {options}, then A and B\n")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1e9:
            return float(text)
    raise argparse.ArgumentTypeError(f"a number of seconds is needed, not {text!r}")


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) > 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, not {text!r}")


class _Version(argparse.Action):
    """Prints it; what reads it is slow to import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"fdtransport {version('fdtransport')}")
        except PackageNotFoundError:
            parser.exit(1, "fdtransport: this is a checkout that is not installed; it has no version\n")
        parser.exit()


def _record(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 < int(text) <= LONGEST:
            return int(text)
    raise argparse.ArgumentTypeError(f"a number of bytes from 1 to {LONGEST} is needed, not {text!r}")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m fdtransport",
        description="Relay bytes or records between two endpoints, both ways, by the kernel where it can.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="an endpoint")
    parser.add_argument("b", metavar="B", nargs="?", default="-", help="the other one (-)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("-u", action="store_true", dest="only_to_b", help="one way, from A to B")
    ways.add_argument("-U", action="store_true", dest="only_to_a", help="one way, from B to A")
    parser.add_argument(
        "--linger", type=_seconds, metavar="S", help="end S seconds after the first direction has ended"
    )
    parser.add_argument("--copy", action="store_true", help="copy in user space, never splice")
    parser.add_argument("--one", action="store_true", help="a listener serves one connection and ends")
    parser.add_argument(
        "--max", type=_count, metavar="N", help="a listener relays N connections at once; others wait"
    )
    parser.add_argument(
        "--record", type=_record, default=PIECE, metavar="N", help="bytes of a record made of a stream (1400)"
    )
    parser.add_argument(
        "--frame", type=int, choices=(2, 4), help="in the stream, each record has its length before it"
    )
    parser.add_argument("--stats", action="store_true", help="tell at the end what was moved, on stderr")
    parser.add_argument("--progress", action="store_true", help="tell meanwhile, on stderr")
    parser.add_argument("--version", action=_Version, nargs=0, help="tell the version")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop to use")
    return parser


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


# -- the command line --------------------------------------------------------------------------------


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    # What begins with a dash is an option to argparse.
    words = [f"stdio:{word[1:]}" if word.startswith("-?") else word for word in arguments]
    options = _parser().parse_args(words)
    for end in ("a", "b"):  # as it was typed, for what is told of it
        if getattr(options, end).startswith("stdio:?"):
            setattr(options, end, f"-{getattr(options, end)[6:]}")
    return options


def _endpoints(options: argparse.Namespace) -> tuple[Endpoint, Endpoint]:
    """Understand both ends, and see that they fit each other; nothing is opened."""
    if options.only_to_a:
        options.a, options.b = options.b, options.a
    ends = options.a, options.b
    rows = [scheme_of(url)[1] for url in ends]
    listeners = sum(row.listen is not None for row in rows)
    if listeners == 2:
        raise EndpointError("A and B both listen; one of them has to be connected to")
    if not listeners and (options.one or options.max):
        raise EndpointError("--one and --max are for a listener, as tcp+listen://host:port")
    one_way = options.only_to_a or options.only_to_b or rows == [STDIO, STDIO]
    one_way = one_way or any("rw" not in row.modes for row in rows)
    modes = ("r", "w") if one_way else ("rw", "rw")
    a, b = (parse_url(url, mode) for url, mode in zip(ends, modes, strict=True))
    if options.frame and a.records == b.records:
        raise EndpointError("--frame is for a byte stream at one end and records at the other")
    return a, b


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise EndpointError("--loop uvloop: uvloop is not installed; asyncio is always there") from None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    try:
        a, b = _endpoints(options)
        factory = _loop_factory(options.loop)
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
