"""TCP and UNIX stream sockets: asyncio's functions under asyncio's names, as module functions.

Names are resolved by the loop and dialled by aiohappyeyeballs; a numeric address needs neither a
thread nor a lookup.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl as _ssl
import struct
from asyncio import constants, transports
from asyncio.trsock import TransportSocket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack, overload

from ._core.accept import Server
from ._core.addresses import bind, dial, is_tcp, resolve, set_nodelay
from ._core.lifecycle import Event
from ._core.opening import open_transport
from ._core.socket_file import bind_unix, dial_unix, remover, unix_family
from ._core.stream import StreamTransport
from ._core.tls import Tls, client_tls, server_tls
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer

__all__ = [
    "Server",
    "SocketTransport",
    "create_connection",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Host = str | bytes
Port = int | str
LocalAddress = tuple[Host | None, Port | None]
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


class _Borrowed(socket.socket):
    """A socket object for a bare descriptor: it closes it when it is told to, and never by itself."""

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()


# loop.sendfile() serves only what isinstance() takes for this class of asyncio's, and a class with
# __slots__ of its own cannot inherit from it. isinstance() believes __class__ as well.
_FlowControlMixin: type = getattr(transports, "_FlowControlMixin", asyncio.Transport)
_KnownToAsyncio = type("SocketTransport", (_FlowControlMixin,), {"__slots__": ()})


class SocketTransport(StreamTransport):
    """A connected stream socket: TCP, UNIX or any other family.

    A drop-in for the transport that asyncio's ``create_connection`` and ``create_server`` give, also
    for ``loop.start_tls`` and ``loop.sendfile`` (where the loop has them for transports that are not
    its own: asyncio's has, uvloop has not). Extra info: ``socket``, ``sockname``, ``peername``,
    ``fd`` and, on a UNIX socket of Linux, ``peercred`` (process id, user id, group id).

    *file*: a socket object or its descriptor. TCP_NODELAY is set, as asyncio does.

    :raises ValueError: it is a datagram, packet or listening socket.
    :raises OSError: ENOTSOCK, it is no socket; or it is closed.
    :raises DescriptorInUseError: it is under a transport already.
    """

    __slots__ = ()

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    __class__ = property(lambda _: _KnownToAsyncio)  # pyright: ignore[reportIncompatibleMethodOverride]

    def _check_kind(self) -> None:
        if isinstance(self._server, Server):
            return  # accept(2) gives what the listening socket is, options included
        handle = self._reading_handle
        if handle is None or handle is not self._writing_handle:
            raise ValueError("a stream socket is one descriptor for both directions")
        if not isinstance(handle.file, socket.socket):
            try:
                handle.file = _Borrowed(fileno=handle.fd)
            except OSError as exc:
                raise OSError(exc.errno, f"{exc.strerror}: {handle.file!r}") from None
        sock = handle.file
        _check_stream(sock)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"a connected socket was expected, and this one listens: {sock!r}")
        set_nodelay(sock)
        if self._extra is None:
            self._extra = {}
        if "peername" not in self._extra:  # a reset takes it away
            self._extra["peername"] = self._find_extra("peername")

    def _register(self) -> None:
        if not isinstance(self._server, Server):
            super()._register()

    def _begun(self) -> None:
        # The poller takes every socket, so an accepted one may come to it after connection_made, as
        # with asyncio: a connection that is turned away there costs less than half.
        if isinstance(self._server, Server) and self._state.reads:
            try:
                super()._register()
            except OSError as exc:
                self._step(Event.READ_ERROR, exc)
        super()._begun()

    def _find_extra(self, name: str) -> Any:
        if self._reading_handle is None:
            return None
        sock: Any = self._reading_handle.file
        value: Any = None
        try:
            if name == "socket":
                value = TransportSocket(sock)
            elif name == "sockname":
                value = sock.getsockname()
            elif name == "peername":
                value = sock.getpeername()
            elif name == "peercred" and sock.family == socket.AF_UNIX:
                value = struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except (OSError, AttributeError):
            return None  # not connected any more, or not on this system
        if value is not None and self._extra is not None:
            self._extra[name] = value
        return value

    def _keep_extra(self) -> None:
        handle: Any = self._reading_handle
        if handle is not None and self._extra is not None and "sockname" not in self._extra:
            try:
                self._extra["sockname"] = handle.file.getsockname()
            except OSError:
                pass

    def can_write_eof(self) -> bool:
        """True: ``write_eof()`` ends the write side by shutdown(2)."""
        return True

    def detach(self) -> Any:
        """As on every transport; a bare descriptor comes back as the number that it was."""
        detached = super().detach()
        if isinstance(detached.file, _Borrowed):
            return detached._replace(file=detached.file.detach())
        return detached

    def _reset(self) -> None:
        if self._reading_handle is not None:
            sock: Any = self._reading_handle.file
            if is_tcp(sock):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _check_stream(sock: socket.socket, family: int | None = None) -> None:
    """Refuse what a stream transport cannot use, before anything is done to it."""
    if isinstance(sock, _ssl.SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")
    if sock.type != socket.SOCK_STREAM or family not in (None, sock.family):
        what = "Stream Socket" if family is None else "UNIX Domain Stream Socket"
        raise ValueError(f"A {what} was expected, got {sock!r}")


async def _connect(protocol_factory: Callable[[], P], sock: socket.socket, tls: Tls | None) -> tuple[Any, P]:
    """A transport on a connected socket; when this raises, the socket is the caller's."""
    if tls is None:
        return await open_transport(SocketTransport, protocol_factory, sock)
    loop = asyncio.get_running_loop()
    protocol = protocol_factory()
    waiter = loop.create_future()
    layer = tls.layer(loop, protocol, waiter)
    transport = SocketTransport(loop, sock, layer)
    try:
        await waiter
    except BaseException:
        transport._give_back()
        raise
    return layer._app_transport, protocol


# -- TCP --------------------------------------------------------------------------------------------


class _TlsOptions(TypedDict, total=False):
    server_hostname: str | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None


class _DialOptions(_TlsOptions, total=False):
    family: int
    proto: int
    flags: int
    sock: socket.socket | None
    local_addr: LocalAddress | None
    happy_eyeballs_delay: float | None
    interleave: int | None
    all_errors: bool


@overload
async def create_connection(
    protocol_factory: Callable[[], P],
    host: Host | None = None,
    port: Port | None = None,
    *,
    ssl: None = None,
    **options: Unpack[_DialOptions],
) -> tuple[SocketTransport, P]: ...
@overload
async def create_connection(
    protocol_factory: Callable[[], P],
    host: Host | None = None,
    port: Port | None = None,
    *,
    ssl: _ssl.SSLContext | bool,
    **options: Unpack[_DialOptions],
) -> tuple[asyncio.Transport, P]: ...

async def create_connection(
    protocol_factory: Callable[[], P],
    host: Host | None = None,
    port: Port | None = None,
    *,
    ssl: _ssl.SSLContext | bool | None = None,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    sock: socket.socket | None = None,
    local_addr: LocalAddress | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    happy_eyeballs_delay: float | None = None,
    interleave: int | None = None,
    all_errors: bool = False,
) -> tuple[Any, P]:
    """Connect to a TCP server; a drop-in for ``loop.create_connection``, on every loop and Python.

    All options are asyncio's. Returns ``(transport, protocol)`` after ``connection_made``; the
    transport is a `SocketTransport`, or asyncio's TLS transport over one when *ssl* is given.

    :raises OSError: nobody could be reached; with *all_errors* an ExceptionGroup of one per address.
    :raises ValueError: contradictory options, or *sock* is no stream socket.
    :raises OverflowError: the port is not in 0 to 65535.

    When this raises, and when it is cancelled, nothing stays open, and *sock* is the caller's.

    ::

        transport, protocol = await create_connection(asyncio.Protocol, "127.0.0.1", port)
    """
    if ssl and server_hostname is None:
        if not host:
            raise ValueError("You must set server_hostname when using ssl without a host")
        server_hostname = host.decode("idna") if isinstance(host, bytes) else host
    tls = client_tls(ssl, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout)
    if host is None and port is None:
        if sock is None:
            raise ValueError("host and port was not specified and no sock specified")
        _check_stream(sock)
        return await _connect(protocol_factory, sock, tls)
    if sock is not None:
        raise ValueError("host/port and sock can not be specified at the same time")
    remote = await resolve(host, port, family, proto, flags)
    local = None if local_addr is None else await resolve(*local_addr[:2], family, proto, flags)
    sock = await dial(remote, local, happy_eyeballs_delay, interleave, all_errors)
    try:
        return await _connect(protocol_factory, sock, tls)
    except BaseException:
        sock.close()
        raise


async def open_connection(
    host: Host | None = None, port: Port | None = None, *, limit: int = DEFAULT_LIMIT, **kwds: Any
) -> tuple[StreamReader, asyncio.StreamWriter]:
    """Connect to a TCP server; a drop-in for ``asyncio.open_connection``.

    *limit*: bytes that ``readline`` and ``readuntil`` accept at most. Everything else as in
    ``create_connection``. Returns ``(reader, writer)``.

    ::

        reader, writer = await open_connection("127.0.0.1", port)
        line = await reader.readline()
    """
    return await _open(lambda factory: create_connection(factory, host, port, **kwds), limit)


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    host: Host | Iterable[Host] | None = None,
    port: Port | None = None,
    *,
    family: int = socket.AF_UNSPEC,
    flags: int = socket.AI_PASSIVE,
    sock: socket.socket | None = None,
    backlog: int = 100,
    ssl: _ssl.SSLContext | None = None,
    reuse_address: bool | None = None,
    reuse_port: bool | None = None,
    keep_alive: bool | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
) -> Server:
    """Serve TCP; a drop-in for ``loop.create_server``, as of Python 3.13 on every Python.

    All options are asyncio's: *host* may be a sequence of names, None or ``""`` for every interface,
    *sock* a bound stream socket of any family. Returns a `Server`. Each connection becomes a
    `SocketTransport` with a protocol of *protocol_factory*.

    :raises OSError: a name cannot be resolved or an address not be bound.
    :raises ValueError: contradictory options, or *sock* is no stream socket.
    :raises OverflowError: the port is not in 0 to 65535.

    When this raises, and when it is cancelled, nothing stays open, and *sock* is the caller's.

    ::

        async with await create_server(MyProtocol, "127.0.0.1", 8000) as server:
            await server.serve_forever()
    """
    tls = server_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
    if host is None and port is None:
        if sock is None:
            raise ValueError("Neither host/port nor sock were specified")
        _check_stream(sock)
        return _serve(protocol_factory, [sock], tls, backlog, start_serving)
    if sock is not None:
        raise ValueError("host/port and sock can not be specified at the same time")
    if host is None or isinstance(host, str | bytes):
        hosts: list[Any] = [host or None]
    else:
        hosts = list(host)
    found = await asyncio.gather(*(resolve(host, port, family, 0, flags) for host in hosts))
    infos = list(dict.fromkeys(info for infos in found for info in infos))
    sockets: list[socket.socket] = []
    try:
        for info in infos:
            bound = bind(info, reuse_address, reuse_port, keep_alive)
            if bound is not None:
                sockets.append(bound)
        if not sockets:
            raise OSError(f"could not bind on any address out of {[info[4] for info in infos]!r}")
        return _serve(protocol_factory, sockets, tls, backlog, start_serving)
    except BaseException:
        for bound in sockets:
            bound.close()
        raise


async def start_server(
    client_connected_cb: Connected,
    host: Host | Iterable[Host] | None = None,
    port: Port | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> Server:
    """Serve TCP with a reader and a writer per connection; a drop-in for ``asyncio.start_server``.

    *client_connected_cb*: a function or coroutine function, called with ``(reader, writer)``.
    *limit*: bytes that ``readline`` and ``readuntil`` accept at most. Everything else as in
    ``create_server``.

    ::

        async def echo(reader, writer):
            writer.write(await reader.readline())
            writer.close()

        server = await start_server(echo, "127.0.0.1", 8000)
    """
    return await create_server(_stream_factory(client_connected_cb, limit), host, port, **kwds)


def _accept_tls(
    tls: Tls, loop: Any, sock: socket.socket, protocol: Any, waiter: Any, extra: Any, server: Server
) -> SocketTransport:
    return SocketTransport(loop, sock, tls.layer(loop, protocol, waiter), None, extra, server)


def _serve(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    sockets: Sequence[socket.socket],
    tls: Tls | None,
    backlog: int,
    start_serving: bool,
    on_close: Callable[[], object] | None = None,
) -> Server:
    """A server on these sockets; when this raises, they are the caller's."""
    loop = asyncio.get_running_loop()
    make = SocketTransport if tls is None else partial(_accept_tls, tls)
    server = Server(loop, sockets, make, protocol_factory, backlog, on_close)
    try:
        if start_serving:
            server._begin()
        for sock in sockets:
            set_nodelay(sock)  # what they accept inherits it (tcp(7)), which saves a call for each
    except BaseException:
        server._give_back()
        raise
    return server


# -- UNIX -------------------------------------------------------------------------------------------


@overload
async def create_unix_connection(
    protocol_factory: Callable[[], P],
    path: Path | None = None,
    *,
    ssl: None = None,
    sock: socket.socket | None = None,
    **options: Unpack[_TlsOptions],
) -> tuple[SocketTransport, P]: ...
@overload
async def create_unix_connection(
    protocol_factory: Callable[[], P],
    path: Path | None = None,
    *,
    ssl: _ssl.SSLContext | bool,
    sock: socket.socket | None = None,
    **options: Unpack[_TlsOptions],
) -> tuple[asyncio.Transport, P]: ...
async def create_unix_connection(
    protocol_factory: Callable[[], P],
    path: Path | None = None,
    *,
    ssl: _ssl.SSLContext | bool | None = None,
    sock: socket.socket | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> tuple[Any, P]:
    """Connect to a UNIX server; a drop-in for ``loop.create_unix_connection``.

    *path*: of a socket file, or an abstract name of Linux (``"\\0name"``, unix(7)). All options are
    asyncio's. Returns ``(transport, protocol)`` after ``connection_made``. A server whose backlog is
    full is waited for.

    :raises OSError: nobody serves there.
    :raises ValueError: contradictory options, or *sock* is no UNIX stream socket.

    When this raises, and when it is cancelled, nothing stays open, and *sock* is the caller's.

    ::

        transport, protocol = await create_unix_connection(asyncio.Protocol, "/run/app.sock")
    """
    if ssl and server_hostname is None:
        raise ValueError("you have to pass server_hostname when using ssl")
    tls = client_tls(ssl, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout)
    if path is None:
        if sock is None:
            raise ValueError("no path and sock were specified")
        _check_stream(sock, unix_family())
        return await _connect(protocol_factory, sock, tls)
    if sock is not None:
        raise ValueError("path and sock can not be specified at the same time")
    sock = socket.socket(unix_family(), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await dial_unix(sock, os.fspath(path))
        return await _connect(protocol_factory, sock, tls)
    except BaseException:
        sock.close()
        raise


async def open_unix_connection(
    path: Path | None = None, *, limit: int = DEFAULT_LIMIT, **kwds: Any
) -> tuple[StreamReader, asyncio.StreamWriter]:
    """Connect to a UNIX server; a drop-in for ``asyncio.open_unix_connection``.

    *limit*: bytes that ``readline`` and ``readuntil`` accept at most. Everything else as in
    ``create_unix_connection``. Returns ``(reader, writer)``.

    ::

        reader, writer = await open_unix_connection("/run/app.sock")
    """
    return await _open(lambda factory: create_unix_connection(factory, path, **kwds), limit)


async def create_unix_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    path: Path | None = None,
    *,
    sock: socket.socket | None = None,
    backlog: int = 100,
    ssl: _ssl.SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    cleanup_socket: bool = True,
    mode: int = 0o600,
) -> Server:
    """Serve on a UNIX socket; a drop-in for ``loop.create_unix_server``, and a safer one.

    *path*: of a socket file, or an abstract name of Linux (``"\\0name"``, unix(7)). *mode*:
    permissions of the file, whatever the umask, from its first moment on; who may write may connect.
    *cleanup_socket*: remove the file on close, if it is still this server's. The other options are
    asyncio's. Returns a `Server`.

    A socket file that nobody serves any more is replaced. The file of a living server, a symbolic
    link and anything else are left alone.

    :raises OSError: EADDRINUSE, the path is taken; or it cannot be made.
    :raises ValueError: contradictory options, or *sock* is no UNIX stream socket.

    When this raises, and when it is cancelled, nothing stays behind, and *sock* is the caller's.

    ::

        server = await create_unix_server(MyProtocol, "/run/app.sock", mode=0o660)
    """
    tls = server_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
    if path is None:
        if sock is None:
            raise ValueError("path was not specified, and no sock specified")
        _check_stream(sock, unix_family())
        on_close = remover(sock.getsockname()) if cleanup_socket else None
        return _serve(protocol_factory, [sock], tls, backlog, start_serving, on_close)
    if sock is not None:
        raise ValueError("path and sock can not be specified at the same time")
    path = os.fspath(path)
    sock = socket.socket(unix_family(), socket.SOCK_STREAM)
    remove: Callable[[], None] | None = None
    try:
        await bind_unix(sock, path, mode)
        remove = remover(path)
        on_close = remove if cleanup_socket else None
        return _serve(protocol_factory, [sock], tls, backlog, start_serving, on_close)
    except BaseException:
        if remove is not None:
            remove()
        sock.close()
        raise


async def start_unix_server(
    client_connected_cb: Connected,
    path: Path | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> Server:
    """Serve on a UNIX socket with a reader and a writer per connection, as ``asyncio.start_unix_server``.

    *client_connected_cb*: a function or coroutine function, called with ``(reader, writer)``.
    *limit*: bytes that ``readline`` and ``readuntil`` accept at most. Everything else as in
    ``create_unix_server``.

    ::

        server = await start_unix_server(echo, "/run/app.sock")
    """
    return await create_unix_server(_stream_factory(client_connected_cb, limit), path, **kwds)


# -- streams ----------------------------------------------------------------------------------------


async def _open(
    connect: Callable[[Callable[[], Any]], Awaitable[tuple[Any, Any]]], limit: int
) -> tuple[StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await connect(lambda: protocol)
    return reader, stream_writer(transport, protocol, reader, loop)


def _stream_factory(client_connected_cb: Connected, limit: int) -> Callable[[], Any]:
    loop = asyncio.get_running_loop()
    return lambda: stream_protocol(limit, loop, client_connected_cb)[1]
