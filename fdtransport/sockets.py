"""Connected stream sockets of any family, and what the kinds of them (``tcp``, ``unix``) share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl as _ssl
import struct
from asyncio import constants, transports
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypedDict, TypeVar

from ._core.accept import Server
from ._core.addresses import is_tcp, set_nodelay
from ._core.lifecycle import Event
from ._core.opening import open_transport
from ._core.socket_object import OnSocket
from ._core.stream import StreamTransport
from ._core.tls import Tls
from .streams import StreamReader, stream_protocol, stream_writer

__all__ = [
    "Connected",
    "Server",
    "SocketTransport",
    "TlsOptions",
    "check_stream",
    "connect_socket",
    "open_by",
    "serve",
    "stream_factory",
]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


# loop.sendfile() serves only what isinstance() takes for this class of asyncio's, and a class with
# __slots__ of its own cannot inherit from it. isinstance() believes __class__ as well.
_FlowControlMixin: type = getattr(transports, "_FlowControlMixin", asyncio.Transport)
_KnownToAsyncio = type("SocketTransport", (_FlowControlMixin,), {"__slots__": ()})


class SocketTransport(OnSocket, StreamTransport):
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
        sock = self._take_socket("stream")
        check_stream(sock)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"a connected socket was expected, and this one listens: {sock!r}")
        set_nodelay(sock)
        self._keep_peer()

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

    def can_write_eof(self) -> bool:
        """True: ``write_eof()`` ends the write side by shutdown(2)."""
        return True

    def _reset(self) -> None:
        if self._reading_handle is not None:
            sock: Any = self._reading_handle.file
            if is_tcp(sock):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _pending_error(self) -> OSError | None:
        handle: Any = self._reading_handle
        code = handle.file.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(code, os.strerror(code)) if code else None


def check_stream(sock: socket.socket, family: int | None = None) -> None:
    """Refuse what a stream transport cannot use, before anything is done to it."""
    if isinstance(sock, _ssl.SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")
    if sock.type != socket.SOCK_STREAM or family not in (None, sock.family):
        what = "Stream Socket" if family is None else "UNIX Domain Stream Socket"
        raise ValueError(f"A {what} was expected, got {sock!r}")


async def connect_socket(
    protocol_factory: Callable[[], P], sock: socket.socket, tls: Tls | None
) -> tuple[Any, P]:
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


class TlsOptions(TypedDict, total=False):
    server_hostname: str | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None


def _accept_tls(
    tls: Tls, loop: Any, sock: socket.socket, protocol: Any, waiter: Any, extra: Any, server: Server
) -> SocketTransport:
    return SocketTransport(loop, sock, tls.layer(loop, protocol, waiter), None, extra, server)


def serve(
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


async def open_by(
    connect: Callable[[Callable[[], Any]], Awaitable[tuple[Any, Any]]], limit: int
) -> tuple[StreamReader, asyncio.StreamWriter]:
    """A reader and a writer on what *connect* makes with the protocol factory that it is given."""
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await connect(lambda: protocol)
    return reader, stream_writer(transport, protocol, reader, loop)


def stream_factory(client_connected_cb: Connected, limit: int) -> Callable[[], Any]:
    """The protocol factory of a server that calls *client_connected_cb* with a reader and a writer."""
    loop = asyncio.get_running_loop()
    return lambda: stream_protocol(limit, loop, client_connected_cb)[1]
