"""Connected stream sockets of any family, and what the kinds of them (``tcp``, ``unix``) share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
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
from ._core.rights import PassesDescriptors
from ._core.socket_object import OnSocket, PeerCredentials
from ._core.stream import StreamTransport
from ._core.tls import Tls, shake_hands
from .errors import EndpointError, bad_descriptor
from .streams import StreamReader, stream_protocol, stream_writer

__all__ = [
    "Connected",
    "PeerCredentials",
    "Server",
    "SocketTransport",
    "TlsOptions",
    "UnixTransport",
    "check_stream",
    "connect_socket",
    "listening_socket",
    "open_by",
    "serve",
    "stream_factory",
    "transport_class",
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
    its own: asyncio's has, uvloop has not; the transport's own ``sendfile`` is faster, and on both).
    Extra info: ``socket``, ``sockname``, ``peername``, ``fd`` and, on a UNIX socket of Linux,
    ``peercred`` (a `PeerCredentials`).

    *file*: a socket object or its descriptor. TCP_NODELAY is set, as asyncio does.

    :raises ValueError: it is a datagram, packet or listening socket.
    :raises OSError: ENOTSOCK, it is no socket; or it is closed.
    :raises DescriptorInUseError: it is under a transport already.
    """

    __slots__ = ()

    @property
    def _sendfile_compatible(self) -> Any:
        # asyncio's own way to send natively wants asyncio's own transports; our loop has another.
        return getattr(self._loop, "_transport_sendfile", constants._SendfileMode.FALLBACK)

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


class UnixTransport(PassesDescriptors, SocketTransport):
    """A connected UNIX stream socket: a `SocketTransport` that also passes descriptors.

    ``send_fds`` sends them. A protocol that has a method ``fds_received(fds)`` gets those that come,
    a list of numbers that are close-on-exec and its own to close, just before ``data_received`` or
    ``buffer_updated`` has the bytes that they came with. These may begin with bytes that were sent
    before, and end with bytes of the message that the descriptors belong to (unix(7), "ancillary
    data forms a barrier"). The two calls are one event: what the first one does to reading takes
    effect after the second, except that nothing comes after a ``close()``. For a protocol without
    that method the kernel drops them.

    When some of them could not be had, for want of free descriptors, the others are closed and the
    transport ends with OSError (EMFILE).

    ::

        class Receiver(asyncio.Protocol):
            def fds_received(self, fds):
                self.files = [os.fdopen(fd, "rb") for fd in fds]
    """

    __slots__ = ()


def transport_class(sock: socket.socket) -> type[SocketTransport]:
    """The kind of transport for a connected stream socket, or for those that a listening one accepts."""
    return UnixTransport if sock.family == getattr(socket, "AF_UNIX", None) else SocketTransport


def check_stream(sock: socket.socket, family: int | None = None) -> None:
    """Refuse what a stream transport cannot use, before anything is done to it."""
    if isinstance(sock, _ssl.SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")
    if sock.type != socket.SOCK_STREAM or family not in (None, sock.family):
        what = "Stream Socket" if family is None else "UNIX Domain Stream Socket"
        raise ValueError(f"A {what} was expected, got {sock!r}")


def listening_socket(fd: int) -> socket.socket:
    """A socket object for a descriptor that listens for streams; it owns the descriptor.

    :raises OSError: EBADF, ENOTSOCK; EINVAL, it does not listen or not for streams. The descriptor
        is as it was.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        if exc.errno == errno.EBADF:
            raise bad_descriptor(f"{fd} is not open") from None
        raise OSError(exc.errno, f"{exc.strerror}: descriptor {fd}") from None
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listens or sock.type != socket.SOCK_STREAM:
        what = f"a listening stream socket was expected, and descriptor {sock.detach()} "
        raise EndpointError(what + ("listens for records" if listens else "does not listen"))
    return sock


async def connect_socket(
    protocol_factory: Callable[[], P], sock: socket.socket, tls: Tls | None
) -> tuple[Any, P]:
    """A transport on a connected socket; when this raises, the socket is the caller's, and closed
    if it was the handshake that failed."""
    if tls is None:
        return await open_transport(transport_class(sock), protocol_factory, sock)
    loop = asyncio.get_running_loop()
    protocol = protocol_factory()
    waiter = loop.create_future()
    layer = tls.layer(loop, protocol, waiter)
    app = layer._app_transport
    try:
        transport = transport_class(sock)(loop, sock, layer)
    except BaseException:
        app.abort()  # it would warn that it was never closed
        raise
    try:
        await shake_hands(layer, waiter)
    except BaseException:
        transport._give_back()
        raise
    return app, protocol


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
    backlog: int | None,
    start_serving: bool,
    on_close: Callable[[], object] | None = None,
    max_connections: int | None = None,
) -> Server:
    """A server on these sockets; when this raises, they are the caller's."""
    loop = asyncio.get_running_loop()
    make = transport_class(sockets[0]) if tls is None else partial(_accept_tls, tls)
    server = Server(loop, sockets, make, protocol_factory, backlog, on_close, max_connections)
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
