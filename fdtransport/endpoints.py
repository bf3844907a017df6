"""Endpoints by URL: the same strings for the command and for programs.

The grammar is in ``urls``, and the table of kinds in ``schemes``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .errors import EndpointError
from .packets import PacketStream, packet_stream_factory
from .schemes import OF_NO_USE, SCHEMES, Factory, Scheme
from .sockets import Server
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .url_options import read_options
from .urls import Url, split_url

__all__ = [
    "Endpoint",
    "connect_url",
    "listen_url",
    "open_packet_url",
    "open_url",
    "parse_url",
    "scheme_of",
]

P = TypeVar("P", bound=asyncio.BaseProtocol)
@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint string that was understood; nothing is open yet."""

    url: str
    scheme: Scheme
    target: Any
    mode: str
    options: dict[str, Any]

    @property
    def listens(self) -> bool:
        return self.scheme.listen is not None

    @property
    def records(self) -> bool:
        """Whether it carries records, and no bytes."""
        return self.scheme.records or self.options.get("type", "stream") != "stream"

    def __str__(self) -> str:
        return self.url

    async def connect(self, protocol_factory: Callable[[], P]) -> tuple[Any, P]:
        """Open it, or connect; ``(transport, protocol)`` after ``connection_made``."""
        if self.scheme.connect is None:
            raise EndpointError(f"{self.url!r} listens; without +listen it could be connected to")
        return await self.scheme.connect(protocol_factory, self.target, self.mode, self.options)

    async def listen(self, protocol_factory: Factory) -> Server:
        """Serve there."""
        if self.scheme.listen is None:
            forms = " or ".join(row.form for row in SCHEMES.values() if row.listen)
            raise EndpointError(f"{self.url!r} does not listen; what does is {forms}")
        return await self.scheme.listen(protocol_factory, self.target, self.options)

    def but(self, mode: str) -> Endpoint:
        """The same in another direction, where the kind has a choice."""
        return replace(self, mode=mode) if mode in self.scheme.modes else self


def scheme_of(url: str) -> tuple[Url, Scheme]:
    """The parts of *url*, and the row of the table that is for it.

    :raises EndpointError: it is no endpoint, or there is no such row.
    """
    parts = split_url(url)
    name = parts.scheme + ("+listen" if parts.listens else "")
    if name not in SCHEMES:
        forms = ", ".join(row.form for row in SCHEMES.values())
        raise EndpointError(f"{url!r}: unknown scheme {name!r}; there are {forms}")
    return parts, SCHEMES[name]


def parse_url(url: str, mode: str | None = None) -> Endpoint:
    """Understand *url*; *mode* is as in ``connect_url``. Nothing is opened.

    :raises EndpointError: it is no endpoint; one line says what would be.
    """
    parts, scheme = scheme_of(url)
    if mode is None:
        mode = scheme.modes[0]
    elif mode not in scheme.modes:
        allowed = " or ".join(scheme.modes)
        raise EndpointError(f"{url!r} cannot be opened with mode {mode!r}, only {allowed}")
    target = scheme.target(parts)
    options = read_options(parts, scheme.options, mode)
    scheme.check(url, options)
    if scheme.listen is not None and "type" in scheme.options:
        for option in OF_NO_USE[options.get("type", "stream")]:
            if option in options:
                raise EndpointError(f"{url!r}: option {option!r} is of no use with this type of socket")
    return Endpoint(url, scheme, target, mode, options)


async def connect_url(
    protocol_factory: Callable[[], P], url: str, *, mode: str | None = None
) -> tuple[Any, P]:
    """Open what *url* names, with a protocol of *protocol_factory*.

    ======================  =====================================================================
    ``-`` or ``stdio:``     standard input and output of this process; ``-?raw``: the user's terminal, as
                            in ``connect_terminal``, with ``escape=^]``, ``escape=0x1d`` or
                            ``escape=none``
    ``fd:N``, ``fd:R,W``    a descriptor, or one to read and one to write
    ``tcp://host:port``     ``keepalive=SECONDS`` of silence before the peer is asked whether it
                            is there, ``timeout=SECONDS`` for connecting
    ``tls://host:port``     as tcp, and the server is verified: by the system's authorities or those
                            in ``ca=FILE``, for the host's name or ``sni=NAME``; ``cert=FILE`` and
                            ``key=FILE`` for a certificate of our own; ``insecure`` takes any server
    ``udp://host:port``     records; ``broadcast``, ``ttl=N``, ``loopback=yes|no``, ``interface=NAME``,
                            ``timeout=SECONDS``
    ``unix:/path``          or ``unix:@name`` (abstract); ``timeout=SECONDS``; records with
                            ``type=datagram`` or ``type=seqpacket``
    ``fifo:/path``          ``eof=close|event|reopen`` and ``create=660`` as in ``connect_fifo``
    ``pty:/link``           a virtual serial port with a link to it; ``mode=660`` as in ``connect_pty``
    ``serial:/dev/path``    a serial port; ``baud=9600``, ``bits=8``, ``parity=N|E|O|M|S``, ``stop=1``,
                            ``xonxoff``, ``rtscts``, ``exclusive=no``, ``dtr=no``, ``rts=no`` as in
                            ``connect_serial``
    ``exec:PROGRAM ARGS``   standard input and output of a program; ``cwd=DIRECTORY``,
                            ``stderr=inherit|stdout|null``; on a terminal of its own with ``pty``, and
                            then ``size=24x80`` (rows and columns)
    ``shell:COMMAND``       the same of a command line for ``/bin/sh``
    ``tun:name``            a TUN interface, and ``tap:name`` a TAP: records; ``addr=10.9.0.1/24,fd00::1/64``,
                            ``mtu=N``, ``up=no``, ``route=10.0.0.0/8``, ``netns=PATH``, ``hwaddr=...`` (tap),
                            ``txqueuelen=N``, ``persist``, as in ``connect_tuntap``
    ``file:/path``          for writing: ``append``, ``create=yes|no|new``; for reading: ``follow`` it as
                            it grows and is rotated, ``from=start|end``
    ``watch:/directory``    what happens in it and below, as lines of JSON: ``recursive=yes|no``,
                            ``initial``, ``follow`` (it need not be there), ``settle=SECONDS``,
                            ``ignore=NAME,...``
    ======================  =====================================================================

    *mode*: ``"r"`` to read, ``"w"`` to write, ``"rw"`` for both. Default: both; for FIFOs and files,
    which have one direction, to read. A file that is written to is emptied first, unless ``append``
    is given; ``create=no`` wants it to be there, ``create=new`` wants it not to be. Paths, hosts, commands
    and values are percent-decoded (``?`` in a path is ``%3F``), IPv6 addresses are in brackets.

    There is no shell in ``exec:``: what is decoded is split into words, with the quotes of a shell
    (``shlex.split``), and nothing else means anything. ``"exec:" + quote(shlex.join(words))``, with
    ``urllib.parse.quote``, has any words arrive. The transport is an `ExecTransport` or, with ``pty``, a
    `PtyProcessTransport`: ``returncode``, ``await transport.wait()``, ``await transport.finish()``. For
    *mode*, which means nothing to a terminal, see ``connect_exec``.

    Returns ``(transport, protocol)`` after ``connection_made``. Cancelling is safe.

    :raises EndpointError: *url* is no endpoint; nothing was opened.
    :raises OSError: it cannot be opened.

    ::

        transport, protocol = await connect_url(asyncio.Protocol, "tcp://127.0.0.1:7000?timeout=5")
    """
    return await parse_url(url, mode).connect(protocol_factory)


async def open_url(
    url: str, *, mode: str | None = None, limit: int = DEFAULT_LIMIT
) -> tuple[StreamReader, asyncio.StreamWriter]:
    """A reader and a writer for what *url* names; otherwise as ``connect_url``.

    *limit*: bytes that ``readline`` and ``readuntil`` accept at most.

    :raises EndpointError: *url* is no endpoint, or one with records (``open_packet_url``).

    ::

        reader, writer = await open_url("unix:/run/app.sock")
    """
    endpoint = parse_url(url, mode)
    if endpoint.records:
        raise EndpointError(f"{url!r} carries records; open_packet_url gives them")
    if endpoint.options.get("eof") == "event":
        raise EndpointError(f"{url!r}: a reader that has ended cannot go on; eof is close or reopen here")
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await endpoint.connect(lambda: protocol)
    return reader, stream_writer(transport, protocol, reader, loop)


async def open_packet_url(url: str, *, limit: int = 256) -> PacketStream:
    """A `PacketStream` (``recv``, ``send``, ``async for``, ``drain``) for what *url* names, where that has
    records; otherwise as ``connect_url``.

    *limit*: records that wait for ``recv`` before the kernel's own queue has to hold them.

    :raises EndpointError: *url* is no endpoint, or one with bytes (``open_url``).

    ::

        async with await open_packet_url("udp://127.0.0.1:5353") as packets:
            await packets.send(b"question")
    """
    endpoint = parse_url(url)
    if not endpoint.records:
        raise EndpointError(f"{url!r} carries bytes; open_url gives a reader and a writer")
    _, stream = await endpoint.connect(packet_stream_factory(limit))
    return stream


async def listen_url(protocol_factory: Callable[[], asyncio.BaseProtocol], url: str) -> Server:
    """Serve on what *url* names, with a protocol of *protocol_factory* for each connection.

    =============================  ==============================================================
    ``tcp+listen://host:port``     ``backlog=N``, ``keepalive=SECONDS``; no host: every interface,
                                   port 0: any that is free (see ``server.sockets``)
    ``tls+listen://host:port``     ``cert=FILE`` and ``key=FILE`` (PEM), ``backlog=N``; with
                                   ``ca=FILE`` clients need a certificate of these authorities
    ``udp+listen://host:port``     each address that sends is a connection, until it was quiet for
                                   ``idle=SECONDS`` (60); ``sessions=N`` at once (1024),
                                   ``join=GROUP``, ``interface=NAME``, ``ttl=N``, ``loopback=yes|no``
    ``unix+listen:/path``          or ``unix+listen:@name``; ``mode=660`` (default 600),
                                   ``backlog=N``; ``type=seqpacket``; ``type=datagram`` with
                                   ``idle`` and ``sessions``
    ``fd+listen:N``                or ``fd:N?listen``; a descriptor that listens already, of any
                                   stream family (from systemd, whose first one is 3);
                                   ``backlog=N`` (default: as it is)
    =============================  ==============================================================

    Returns a `Server`, which accepts already.

    :raises EndpointError: *url* is no endpoint that listens; nothing was opened.
    :raises OSError: it cannot be bound.

    ::

        async with await listen_url(MyProtocol, "tcp+listen://127.0.0.1:7000") as server:
            await server.serve_forever()
    """
    return await parse_url(url).listen(protocol_factory)
