"""What the command is asked for: its options, and the two ends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .endpoints import Endpoint, parse_url, scheme_of
from .errors import EndpointError
from .records import LONGEST, PIECE
from .schemes import SCHEMES

__all__ = ["STDIO", "endpoints_of", "loop_factory", "options_of"]

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
  serial:/dev/path          a serial port               ?baud=115200&bits=7&parity=E&stop=2&rtscts
                                                        &xonxoff&dtr=no&rts=no&exclusive=no
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


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; a wrong one ends the program with one line and status 2."""
    # What begins with a dash is an option to argparse.
    words = [f"stdio:{word[1:]}" if word.startswith("-?") else word for word in arguments]
    options = _parser().parse_args(words)
    for end in ("a", "b"):  # as it was typed, for what is told of it
        if getattr(options, end).startswith("stdio:?"):
            setattr(options, end, f"-{getattr(options, end)[6:]}")
    return options


def endpoints_of(options: argparse.Namespace) -> tuple[Endpoint, Endpoint]:
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


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop. :raises EndpointError: it is not installed."""
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise EndpointError("--loop uvloop: uvloop is not installed; asyncio is always there") from None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
