"""TCP: asyncio's functions under asyncio's names, as module functions.

Names are resolved by the loop and dialled by aiohappyeyeballs; a numeric address needs neither a
thread nor a lookup.
"""

from __future__ import annotations

import asyncio
import socket
import ssl as _ssl
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Unpack, overload

from ._core.accept import Server
from ._core.addresses import bind_all, dial, resolve
from ._core.tls import client_tls, server_tls
from .sockets import (
    Connected,
    SocketTransport,
    TlsOptions,
    check_stream,
    connect_socket,
    open_by,
    serve,
    stream_factory,
)
from .streams import DEFAULT_LIMIT, StreamReader

__all__ = ["create_connection", "create_server", "open_connection", "start_server"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Host = str | bytes
Port = int | str
LocalAddress = tuple[Host | None, Port | None]


class _DialOptions(TlsOptions, total=False):
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
    transport is a `SocketTransport`, or asyncio's TLS transport over one when *ssl* is given. TLS that
    ends without its goodbye is ``ssl.SSLEOFError`` to the protocol: it may have been cut short on the
    way (``ssl.OP_IGNORE_UNEXPECTED_EOF`` in the context's options takes it for an ordinary end).

    :raises OSError: nobody could be reached; with *all_errors* an ExceptionGroup of one per address.
    :raises ValueError: contradictory options, or *sock* is no stream socket.
    :raises OverflowError: the port is not in 0 to 65535.

    When this raises, and when it is cancelled, nothing stays open, and *sock* is the caller's; it is
    closed if a TLS handshake failed on it.

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
        check_stream(sock)
        return await connect_socket(protocol_factory, sock, tls)
    if sock is not None:
        raise ValueError("host/port and sock can not be specified at the same time")
    remote = await resolve(host, port, family, proto, flags)
    local = None if local_addr is None else await resolve(*local_addr[:2], family, proto, flags)
    sock = await dial(remote, local, happy_eyeballs_delay, interleave, all_errors)
    try:
        return await connect_socket(protocol_factory, sock, tls)
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
    return await open_by(lambda factory: create_connection(factory, host, port, **kwds), limit)


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
    max_connections: int | None = None,
) -> Server:
    """Serve TCP; a drop-in for ``loop.create_server``, as of Python 3.13 on every Python.

    All options are asyncio's: *host* may be a sequence of names, None or ``""`` for every interface,
    *sock* a bound stream socket of any family. *max_connections*: while there are so many, further
    ones wait in the backlog. Returns a `Server`. Each connection becomes a `SocketTransport` with a
    protocol of *protocol_factory*.

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
        check_stream(sock)
        return serve(protocol_factory, [sock], tls, backlog, start_serving, None, max_connections)
    if sock is not None:
        raise ValueError("host/port and sock can not be specified at the same time")
    if host is None or isinstance(host, str | bytes):
        hosts: list[Any] = [host or None]
    else:
        hosts = list(host)
    found = await asyncio.gather(*(resolve(host, port, family, 0, flags) for host in hosts))
    infos = dict.fromkeys(info for infos in found for info in infos)
    sockets = bind_all(infos, reuse_address, reuse_port, keep_alive)
    try:
        return serve(protocol_factory, sockets, tls, backlog, start_serving, None, max_connections)
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
    return await create_server(stream_factory(client_connected_cb, limit), host, port, **kwds)
