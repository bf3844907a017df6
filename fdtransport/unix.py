"""UNIX stream sockets: asyncio's functions under asyncio's names, as module functions."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as _ssl
from collections.abc import Callable
from typing import Any, TypeVar, Unpack, overload

from ._core.accept import Server
from ._core.socket_file import bind_unix, dial_unix, remover, unix_family
from ._core.tls import client_tls, server_tls
from .sockets import (
    Connected,
    TlsOptions,
    UnixTransport,
    check_stream,
    connect_socket,
    open_by,
    serve,
    stream_factory,
)
from .streams import DEFAULT_LIMIT, StreamReader

__all__ = ["create_unix_connection", "create_unix_server", "open_unix_connection", "start_unix_server"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@overload
async def create_unix_connection(
    protocol_factory: Callable[[], P],
    path: Path | None = None,
    *,
    ssl: None = None,
    sock: socket.socket | None = None,
    **options: Unpack[TlsOptions],
) -> tuple[UnixTransport, P]: ...
@overload
async def create_unix_connection(
    protocol_factory: Callable[[], P],
    path: Path | None = None,
    *,
    ssl: _ssl.SSLContext | bool,
    sock: socket.socket | None = None,
    **options: Unpack[TlsOptions],
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
        check_stream(sock, unix_family())
        return await connect_socket(protocol_factory, sock, tls)
    if sock is not None:
        raise ValueError("path and sock can not be specified at the same time")
    sock = socket.socket(unix_family(), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await dial_unix(sock, os.fspath(path))
        return await connect_socket(protocol_factory, sock, tls)
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
    return await open_by(lambda factory: create_unix_connection(factory, path, **kwds), limit)


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
    max_connections: int | None = None,
) -> Server:
    """Serve on a UNIX socket; a drop-in for ``loop.create_unix_server``, and a safer one.

    *path*: of a socket file, or an abstract name of Linux (``"\\0name"``, unix(7)). *mode*:
    permissions of the file, whatever the umask, from its first moment on; who may write may connect.
    *cleanup_socket*: remove the file on close, if it is still this server's. *max_connections*: while
    there are so many, further ones wait in the backlog. The other options are asyncio's. Returns a
    `Server`. Each connection becomes a `UnixTransport` with a protocol of *protocol_factory*.

    A socket file of this user that nobody serves any more is replaced. The file of a living server,
    that of another user, a symbolic link and anything else are left alone.

    :raises OSError: EADDRINUSE, the path is taken; ENAMETOOLONG, it is longer than unix(7) allows
        (107 bytes on Linux); or it cannot be made.
    :raises ValueError: contradictory options, or *sock* is no UNIX stream socket.

    When this raises, and when it is cancelled, nothing stays behind, and *sock* is the caller's.

    ::

        server = await create_unix_server(MyProtocol, "/run/app.sock", mode=0o660)
    """
    tls = server_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
    if path is None:
        if sock is None:
            raise ValueError("path was not specified, and no sock specified")
        check_stream(sock, unix_family())
        on_close = remover(sock.getsockname()) if cleanup_socket else None
        return serve(protocol_factory, [sock], tls, backlog, start_serving, on_close, max_connections)
    if sock is not None:
        raise ValueError("path and sock can not be specified at the same time")
    path = os.fspath(path)
    sock = socket.socket(unix_family(), socket.SOCK_STREAM)
    remove: Callable[[], None] | None = None
    try:
        await bind_unix(sock, path, mode)
        remove = remover(path)
        on_close = remove if cleanup_socket else None
        return serve(protocol_factory, [sock], tls, backlog, start_serving, on_close, max_connections)
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
    return await create_unix_server(stream_factory(client_connected_cb, limit), path, **kwds)
