"""Accepting connections: a server over listening stream sockets, of whatever family.

What a connection becomes is decided by the one who makes the server; what happens when the process
runs out of descriptors, when a factory raises and when everything is over is decided here.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import socket
import sys
import warnings
import weakref
from asyncio.trsock import TransportSocket
from collections.abc import Callable, Sequence
from typing import Any

from . import syscalls
from .handle import Handle

__all__ = ["Server"]

#: Connections accepted in one wake-up at most, so that a flood cannot starve those that are there.
ACCEPTS = 64
#: Seconds until the next try when the system is short of descriptors or memory, and between reports of it.
RETRY, REPORT = 0.1, 1.0

#: The system is short of something. The connection waits in the backlog, and the poller would call at once.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
#: One connection is gone, or forbidden (netfilter), or brings its network's error along: see accept(2).
_ONE_LESS = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH",
        "ENETUNREACH",
    )
    if hasattr(errno, name)
)  # fmt: skip


class Server(asyncio.AbstractServer):
    """Accepts connections from listening sockets until it is closed; what ``create_server`` returns.

    A drop-in for ``asyncio.Server``, as of Python 3.13 on every Python. The sockets are taken over:
    made non-blocking, and closed by ``close()``.

    *make* is called for each connection as a transport class is, ``make(loop, connection, protocol,
    None, extra, server)``, with the peer's address in *extra*; what it returns has ``close()`` and
    ``abort()``, and tells the server of its begin and end by ``_attach`` and ``_detach``. *on_close*
    is called once, before the sockets are closed. *backlog* None leaves that of sockets that listen
    already. While there are *max_connections*, none is accepted: further ones wait in the backlog.

    :raises ValueError: *max_connections* is below 1.
    :raises OSError: a socket is closed; :raises DescriptorInUseError: one is under a transport or
        another server. All of them are as they were then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket],
        make: Callable[..., Any],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        backlog: int | None = 100,
        on_close: Callable[[], object] | None = None,
        max_connections: int | None = None,
    ) -> None:
        self._listeners: list[_Listener] | None = None
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections ({max_connections!r}) must be >= 1, or None for no limit")
        self._loop = loop
        self._make = make
        self._protocol_factory = protocol_factory
        self._backlog = backlog
        self._on_close = on_close
        self._connections = 0
        self._limit = sys.maxsize if max_connections is None else max_connections
        self._context = contextvars.copy_context()
        self._clients: set[weakref.ref[Any]] = set()
        self._serving = False
        self._forever: asyncio.Future[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._reported = -REPORT
        listeners: list[_Listener] = []
        try:
            for sock in sockets:
                listeners.append(_Listener(self, sock))
        except BaseException:
            for listener in listeners:
                listener.release()
            raise
        self._listeners = listeners

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that this server accepts on."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether connections are being accepted."""
        return self._serving

    @property
    def sockets(self) -> tuple[TransportSocket, ...]:
        """The listening sockets; empty after ``close()``."""
        return tuple(TransportSocket(listener.sock) for listener in self._listeners or ())

    async def start_serving(self) -> None:
        """Begin to accept, unless that has begun already.

        :raises RuntimeError: the server is closed.
        :raises OSError: as listen(2).
        """
        self._begin()

    def _begin(self) -> None:
        """``start_serving()`` for who cannot wait."""
        if self._listeners is None:
            raise RuntimeError(f"server {self!r} is closed")
        if not self._serving:
            self._context = contextvars.copy_context()
            if self._backlog is not None:
                for listener in self._listeners:
                    listener.sock.listen(self._backlog)
            try:
                for listener in self._listeners:
                    listener.start()
            except BaseException:
                for listener in self._listeners:
                    listener.stop()
                raise
            self._serving = True

    async def serve_forever(self) -> None:
        """Accept until this is cancelled, then close, and return when the last connection is gone.

        :raises RuntimeError: the server is closed, or is served forever already.
        :raises asyncio.CancelledError: always, also when ``close()`` ends it.
        """
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        self._begin()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Accept no more and close the listening sockets. Idempotent; connections live on."""
        listeners, self._listeners = self._listeners, None
        if listeners is None:
            return
        self._serving = False
        try:
            if self._on_close is not None:
                self._on_close()
        finally:
            for listener in listeners:
                try:
                    listener.close()
                except OSError as exc:
                    self._report("closing a listening socket failed", exc)
            if self._forever is not None:
                self._forever.cancel()
            self._wake()

    def _give_back(self) -> None:
        """End without closing the sockets: whoever made this server failed."""
        listeners, self._listeners = self._listeners, None
        self._serving = False
        for listener in listeners or ():
            listener.release()

    def close_clients(self) -> None:
        """``close()`` every connection that was accepted and is still there."""
        for transport in self._open_clients():
            transport.close()

    def abort_clients(self) -> None:
        """``abort()`` every connection that was accepted and is still there."""
        for transport in self._open_clients():
            transport.abort()

    def _open_clients(self) -> list[Any]:
        # The set shrinks by itself whenever a transport is collected.
        found = [reference() for reference in list(self._clients)]
        return [transport for transport in found if transport is not None]

    async def aclose(self, timeout: float | None = None) -> None:
        """Accept no more, ``close()`` every connection, and return when the last one is gone.

        *timeout*: seconds for the connections to send what is queued; those that are left then are
        aborted. None: as long as it takes. Cancelling is safe: the connections go on closing.

        ::

            await server.aclose(timeout=10)
        """
        self.close()
        self.close_clients()
        closed = self._loop.create_future()
        self._waiters.append(closed)
        self._wake()
        await asyncio.wait([closed], timeout=timeout)
        if not closed.done():
            self.abort_clients()
            await closed

    async def wait_closed(self) -> None:
        """Return when the server is closed and its last connection is gone. Cancelling is safe."""
        if self._listeners is None and not self._connections:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        if self._listeners is None and not self._connections:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()

    def _attach(self, _transport: Any = None) -> None:
        self._connections += 1
        if self._connections == self._limit:
            for listener in self._listeners or ():
                listener.stop()

    def _detach(self, _transport: Any = None) -> None:
        if self._connections == self._limit and not self._loop.is_closed():
            for listener in self._listeners or ():
                listener.start_again()
        self._connections -= 1
        if not self._connections:
            self._wake()

    def _welcome(self, connection: socket.socket, address: Any) -> None:
        """Make a transport of a connection. What goes wrong ends this one only."""
        try:
            protocol = self._protocol_factory()
            transport = self._make(self._loop, connection, protocol, None, {"peername": address}, self)
        except (SystemExit, KeyboardInterrupt):
            connection.close()
            raise
        except BaseException as exc:
            connection.close()
            self._report("Error on transport creation for incoming connection", exc)
        else:
            # A reference that removes itself: WeakSet does the same, at three times the price.
            self._clients.add(weakref.ref(transport, self._clients.discard))

    def _report_shortage(self, exc: OSError, sock: socket.socket) -> None:
        """Tell that nothing can be accepted for now, and not ten times a second."""
        now = self._loop.time()
        if now - self._reported >= REPORT:
            self._reported = now
            self._report("socket.accept() out of system resource", exc, socket=TransportSocket(sock))

    def _report(self, message: str, exc: BaseException, **more: Any) -> None:
        self._loop.call_exception_handler({"message": message, "exception": exc, "server": self, **more})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} sockets={self.sockets!r}>"

    def __del__(self) -> None:
        if self._listeners is None or any(listener.inherited for listener in self._listeners):
            return  # closed; or a copy of the parent's, in a process that was forked
        warnings.warn(f"unclosed server {self!r}", ResourceWarning, stacklevel=1, source=self)
        self.close()


class _Listener:
    """One listening socket of a server, and how it is doing."""

    __slots__ = ("_budget", "_handle", "_kind", "_polling", "_retry", "_server", "_timeout", "sock")

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self.sock = sock
        self._timeout = sock.gettimeout()
        self._handle = Handle(sock)
        sock.setblocking(False)  # the object as well: with a timeout of its own it would wait
        self._kind = (int(sock.family), int(sock.type), sock.proto)
        self._budget = 1
        self._polling = False
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        # In the server's own context, whichever connection's end it is that makes room for others.
        server = self._server
        server._context.run(server.get_loop().add_reader, self._handle.fd, self.accept)
        self._polling = True

    def start_again(self) -> None:
        """Go on after a shortage, or after there were as many connections as there may be."""
        self._retry = None
        try:
            self.start()
        except OSError as exc:
            self._fail(exc)

    def stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        loop = self._server.get_loop()
        if self._polling and not loop.is_closed():
            loop.remove_reader(self._handle.fd)
        self._polling = False

    @property
    def inherited(self) -> bool:
        return self._handle.inherited

    def close(self) -> None:
        self.stop()
        self._handle.close()

    def release(self) -> None:
        self.stop()
        self._handle.release()
        self.sock.settimeout(self._timeout)

    def accept(self) -> None:
        """Take what waits; called by the loop when something does."""
        # Asking until the kernel says that there is no more costs one call too many for each lone
        # connection, so the budget follows what comes.
        budget = self._budget
        server, sock, kind = self._server, self.sock, self._kind
        for count in range(budget):
            try:
                fd, address = syscalls.accept(sock)
            except BlockingIOError:
                self._budget = max(1, count)
                return
            except OSError as exc:
                if exc.errno in _ONE_LESS:
                    continue
                self._fail(exc)
                return
            connection = socket.socket(*kind, fileno=fd)
            connection.setblocking(False)
            # A context of its own, so that what one factory sets is not there for the next one.
            contextvars.copy_context().run(server._welcome, connection, address)
            if not self._polling:
                return  # closed by the factory or by a callback, or there are as many as there may be
        self._budget = min(2 * budget, ACCEPTS)

    def _fail(self, exc: OSError) -> None:
        exc.__traceback__ = None
        self.stop()
        if exc.errno in _SHORT:
            self._retry = self._server.get_loop().call_later(RETRY, self.start_again)
            self._server._report_shortage(exc, self.sock)
        else:
            message = "accepting failed; no more connections are accepted from this socket"
            self._server._report(message, exc, socket=TransportSocket(self.sock))
