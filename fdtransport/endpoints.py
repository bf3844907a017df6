"""Endpoints by URL: the same strings for the command and for programs.

`SCHEMES` is the table: one row for each kind of endpoint. The grammar is in ``urls``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ._core import syscalls
from ._core.opening import open_transport
from ._core.socket_file import unix_family
from ._core.stream import StreamTransport
from .datagrams import create_datagram_endpoint
from .errors import EndpointError
from .fd import connect_fd
from .fifo import connect_fifo
from .packets import PacketStream, packet_stream_factory
from .pty_port import connect_pty
from .sessions import create_datagram_server
from .sockets import Server, listening_socket, serve
from .stdio import connect_stdio
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .tcp import create_connection, create_server
from .tls import client_context, server_context
from .unix import create_unix_connection, create_unix_server
from .urls import (
    Address,
    Option,
    Url,
    address,
    choice,
    descriptor,
    descriptors,
    file,
    flag,
    group,
    host_name,
    listening_address,
    name,
    nothing,
    path,
    permissions,
    read_options,
    seconds,
    socket_path,
    split_url,
    whole,
)

__all__ = [
    "SCHEMES",
    "Endpoint",
    "connect_url",
    "listen_url",
    "open_packet_url",
    "open_url",
    "parse_url",
    "scheme_of",
]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Factory = Callable[[], asyncio.BaseProtocol]
#: (protocol factory, target, mode, options) -> (transport, protocol)
Connect = Callable[[Factory, Any, str, dict[str, Any]], Awaitable[tuple[Any, Any]]]
#: (protocol factory, target, options) -> server
Listen = Callable[[Factory, Any, dict[str, Any]], Awaitable[Server]]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A row of the table."""

    form: str
    """How it is written."""
    target: Callable[[Url], Any]
    """Reads what comes between scheme and options."""
    connect: Connect | None
    options: Mapping[str, Option] = field(default_factory=dict)
    modes: tuple[str, ...] = ("rw", "r", "w")
    """Directions in which it can be opened, the natural one first."""
    once: bool = False
    """Whether it is there once in a process, and cannot be opened again for the next connection."""
    listen: Listen | None = None
    records: bool = False
    """Whether it carries records, and no bytes."""


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
    if scheme.listen is not None and "type" in scheme.options:
        for option in _OF_NO_USE[options.get("type", "stream")]:
            if option in options:
                raise EndpointError(f"{url!r}: option {option!r} is of no use with this type of socket")
    return Endpoint(url, scheme, target, mode, options)


async def connect_url(
    protocol_factory: Callable[[], P], url: str, *, mode: str | None = None
) -> tuple[Any, P]:
    """Open what *url* names, with a protocol of *protocol_factory*.

    ======================  =====================================================================
    ``-`` or ``stdio:``     standard input and output of this process
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
    ``file:/path``          for writing: ``append``, ``create=yes|no|new``
    ======================  =====================================================================

    *mode*: ``"r"`` to read, ``"w"`` to write, ``"rw"`` for both. Default: both; for FIFOs and files,
    which have one direction, to read. A file that is written to is emptied first, unless ``append``
    is given; ``create=no`` wants it to be there, ``create=new`` wants it not to be. Paths, hosts and
    values are percent-decoded (``?`` in a path is ``%3F``), IPv6 addresses are in brackets.

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


# -- rows --------------------------------------------------------------------------------------------


async def _stdio(factory: Factory, _target: None, mode: str, _options: dict[str, Any]) -> tuple[Any, Any]:
    return await connect_stdio(factory, 0 if "r" in mode else None, 1 if "w" in mode else None)


async def _fd(
    factory: Factory, target: int | tuple[int, int], _mode: str, _options: dict[str, Any]
) -> tuple[Any, Any]:
    return await connect_fd(factory, target)


async def _fd_server(factory: Factory, target: int, options: dict[str, Any]) -> Server:
    sock = listening_socket(target)
    try:
        return serve(factory, [sock], None, options.get("backlog"), True)
    except BaseException:
        sock.detach()
        raise


async def _tcp(factory: Factory, target: Address, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    async with _within(options):
        transport, protocol = await create_connection(factory, *target)
    _keep_alive(transport.get_extra_info("socket"), options)
    return transport, protocol


async def _tcp_server(factory: Factory, target: Address, options: dict[str, Any]) -> Server:
    server = await create_server(factory, target.host, target.port, backlog=options.get("backlog", 100))
    for sock in server.sockets:
        _keep_alive(sock, options)  # what is accepted inherits it: tcp(7)
    return server


async def _tls(factory: Factory, target: Address, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    if "context" not in options:  # made once for all connections of an endpoint
        files = {name: options.get(name) for name in ("ca", "cert", "key")}
        options["context"] = client_context(**files, insecure=options.get("insecure", False))
    name = options.get("sni", target.host)
    async with _within(options):
        connecting = create_connection(factory, *target, ssl=options["context"], server_hostname=name)
        transport, protocol = await connecting
    _keep_alive(transport.get_extra_info("socket"), options)
    return transport, protocol


async def _tls_server(factory: Factory, target: Address, options: dict[str, Any]) -> Server:
    context = server_context(options["cert"], options["key"], options.get("ca"))
    return await create_server(factory, *target, ssl=context, backlog=options.get("backlog", 100))


async def _udp(factory: Factory, target: Address, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    sending = _without(options, "timeout", "broadcast")
    async with _within(options):
        return await create_datagram_endpoint(
            factory, remote_addr=tuple(target), allow_broadcast=options.get("broadcast"), **sending
        )


async def _udp_server(factory: Factory, target: Address, options: dict[str, Any]) -> Server:
    return await create_datagram_server(factory, tuple(target), **options)


async def _unix(factory: Factory, target: str, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    kind = options.get("type", "stream")
    async with _within(options):
        if kind == "stream":
            return await create_unix_connection(factory, target)
        # What has no name cannot be answered: the kernel finds an abstract one (autobind of unix(7)).
        local = "" if kind == "datagram" else None
        return await create_datagram_endpoint(factory, local, target, family=unix_family(), type=_KINDS[kind])


async def _unix_server(factory: Factory, target: str, options: dict[str, Any]) -> Server:
    kind = options.get("type", "stream")
    if kind == "stream":
        return await create_unix_server(
            factory, target, backlog=options.get("backlog", 100), mode=options.get("mode", 0o600)
        )
    serving = _without(options, "type")
    return await create_datagram_server(factory, target, family=unix_family(), type=_KINDS[kind], **serving)


def _without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


async def _fifo(factory: Factory, target: str, mode: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    return await connect_fifo(factory, target, mode, **options)


async def _pty(factory: Factory, target: str, mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    return await connect_pty(factory, link=target, **options)


async def _file(factory: Factory, target: str, mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if mode == "r":
        flags |= os.O_RDONLY
    else:
        flags |= os.O_WRONLY | (os.O_APPEND if options.get("append") else os.O_TRUNC)
        flags |= {"yes": os.O_CREAT, "no": 0, "new": os.O_CREAT | os.O_EXCL}[options.get("create", "yes")]
    fd = syscalls.open(target, flags, 0o666)
    try:
        return await open_transport(StreamTransport, factory, fd)
    except BaseException:
        syscalls.close(fd)
        raise


@contextlib.asynccontextmanager
async def _within(options: dict[str, Any]) -> AsyncIterator[None]:
    """Bound a connect by the option ``timeout``."""
    try:
        async with asyncio.timeout(options.get("timeout")):
            yield
    except TimeoutError as exc:
        raise TimeoutError(exc.errno or errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None


def _keep_alive(sock: Any, options: dict[str, Any]) -> None:
    if "keepalive" in options:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, options["keepalive"])
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, options["keepalive"])


_ALIVE = whole(1, 32767)  # what tcp(7) takes
_BACKLOG = whole(1, 65535)
_WRITING = ("w",)
_CERTIFICATES = file("certificates of authorities")
_CERTIFICATE = file("a certificate and its chain")
_KEY = file("a key")
_MULTICAST = {"ttl": whole(0, 255), "loopback": flag(), "interface": name()}
_SESSIONS = {"idle": seconds(), "sessions": whole(1, 1_000_000)}
_KINDS = {
    "datagram": socket.SOCK_DGRAM,
    "seqpacket": socket.SOCK_SEQPACKET if hasattr(socket, "SOCK_SEQPACKET") else 5,
}
_KIND = choice("stream", *_KINDS)
#: Options of a listening UNIX socket that a type of it has no use for.
_OF_NO_USE = {"stream": ("idle", "sessions"), "seqpacket": ("idle", "sessions"), "datagram": ("backlog",)}

SCHEMES: dict[str, Scheme] = {
    "stdio": Scheme("- (or stdio:)", nothing, _stdio, once=True),
    "fd": Scheme("fd:N", descriptors, _fd, once=True),
    "tcp": Scheme("tcp://host:port", address, _tcp, {"keepalive": _ALIVE, "timeout": seconds()}),
    "tcp+listen": Scheme(
        "tcp+listen://host:port",
        listening_address,
        None,
        {"backlog": _BACKLOG, "keepalive": _ALIVE},
        listen=_tcp_server,
    ),
    "tls": Scheme(
        "tls://host:port",
        address,
        _tls,
        {
            "ca": _CERTIFICATES,
            "cert": _CERTIFICATE,
            "key": _KEY,
            "sni": host_name(),
            "insecure": flag(),
            "keepalive": _ALIVE,
            "timeout": seconds(),
        },
    ),
    "tls+listen": Scheme(
        "tls+listen://host:port",
        listening_address,
        None,
        {
            "cert": replace(_CERTIFICATE, required=True),
            "key": replace(_KEY, required=True),
            "ca": _CERTIFICATES,
            "backlog": _BACKLOG,
        },
        listen=_tls_server,
    ),
    "udp": Scheme(
        "udp://host:port",
        address,
        _udp,
        {"broadcast": flag(), "timeout": seconds(), **_MULTICAST},
        records=True,
    ),
    "udp+listen": Scheme(
        "udp+listen://host:port",
        listening_address,
        None,
        {"join": group(), **_SESSIONS, **_MULTICAST},
        listen=_udp_server,
        records=True,
    ),
    "unix": Scheme("unix:/path", socket_path, _unix, {"timeout": seconds(), "type": _KIND}),
    "unix+listen": Scheme(
        "unix+listen:/path",
        socket_path,
        None,
        {"backlog": _BACKLOG, "mode": permissions(), "type": _KIND, **_SESSIONS},
        listen=_unix_server,
    ),
    "fd+listen": Scheme("fd+listen:N", descriptor, None, {"backlog": _BACKLOG}, listen=_fd_server),
    "fifo": Scheme(
        "fifo:/path",
        path,
        _fifo,
        {"create": permissions(), "eof": replace(choice("close", "event", "reopen"), modes=("r",))},
        modes=("r", "w"),
    ),
    "pty": Scheme("pty:/link", path, _pty, {"mode": permissions()}, modes=("rw",)),
    "file": Scheme(
        "file:/path",
        path,
        _file,
        {
            "append": replace(flag(), modes=_WRITING),
            "create": replace(choice("yes", "no", "new"), modes=_WRITING),
        },
        modes=("r", "w"),
    ),
}
