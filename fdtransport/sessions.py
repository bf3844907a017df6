"""Servers of records: each peer is one session, with a transport and a protocol of its own.

A datagram socket has no connections: there, whoever sends from a new address begins a session, and the
sessions share the socket. SOCK_SEQPACKET has connections, which are accepted as those of streams are.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ._core.accept import REPORT, Server
from ._core.endpoint_socket import Endpoint, make_sockets
from ._core.handle import Handle
from ._core.lifecycle import Event
from ._core.multicast import Group, Interface, groups_of
from .datagrams import DatagramTransport

__all__ = ["DatagramServer", "SessionTransport", "create_datagram_server"]

#: Records and bytes that wait for a session which does not read; more of them are dropped.
INBOX_RECORDS, INBOX_BYTES = 256, 1024 * 1024


class _Share(Handle):
    """A session's part of the shared socket: what came for it, and what it waits for.

    To its transport it is the descriptor, which it does not close, and the source of readiness.
    """

    __slots__ = ("_reader", "_timer", "_turn", "_waiting", "address", "full", "heard", "hub", "inbox", "size",
                 "transport")  # fmt: skip

    def __init__(self, hub: _Hub, address: Any) -> None:  # not Handle's: the number is the hub's
        self.file = hub.sock
        self.fd = hub.sock.fileno()
        self._flags = os.O_RDWR | os.O_NONBLOCK
        self.hub = hub
        self.address = address
        self.inbox: deque[tuple[bytes, Any]] = deque()
        self.size = 0
        self.full = False
        self.transport: SessionTransport | None = None
        self._reader: tuple[Any, ...] | None = None
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.heard = hub.loop.time()
        if hub.idle is not None:
            self._timer = hub.loop.call_later(hub.idle, self._look)

    # -- records ------------------------------------------------------------------------------

    @property
    def takes_more(self) -> bool:
        """False from the transport's ``close()`` on."""
        return self.transport is None or not self.transport.is_closing()

    def put(self, record: tuple[bytes, Any]) -> None:
        self.heard = self.hub.loop.time()
        if len(self.inbox) >= INBOX_RECORDS or self.size >= INBOX_BYTES:
            self._drop()
            return
        self.full = False
        self.inbox.append(record)
        self.size += len(record[0])
        self._wake()

    def take(self) -> tuple[bytes, Any]:
        if not self.inbox:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        record = self.inbox.popleft()
        self.size -= len(record[0])
        return record

    def _drop(self) -> None:
        """Told once until there is room again, as the kernel tells that its own queue overran."""
        if self.transport is not None:
            self.transport.dropped += 1
            if not self.full:
                self.full = True
                self.transport._context.run(self.transport._tell, OSError(errno.ENOBUFS, "records were lost"))

    def _look(self) -> None:
        """End the session if it was quiet for so long."""
        assert self.hub.idle is not None
        left = self.heard + self.hub.idle - self.hub.loop.time()
        if left > 0:
            self._timer = self.hub.loop.call_later(left, self._look)
        elif self.transport is not None:
            self.transport._context.run(self.transport._step, Event.EOF_CLOSE)

    # -- readiness ----------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._reader is not None and self._turn is None:
            self._turn = self.hub.loop.call_soon(self._ready)

    def _ready(self) -> None:
        self._turn = None
        if self._reader is not None:
            callback, *args = self._reader
            try:
                callback(*args)
            finally:  # also after an interrupt (KeyboardInterrupt), which the callback lets through
                if self.inbox:
                    self._wake()

    def add_reader(self, _fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        self._reader = (callback, *args)
        if self.inbox:
            self._wake()

    def remove_reader(self, _fd: int, /) -> None:
        self._reader = None

    def add_writer(self, _fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        self.hub.want_write(self, (callback, *args))

    def remove_writer(self, _fd: int, /) -> None:
        self.hub.want_write(self, None)

    def forget(self) -> None:
        self._disown()

    def _disown(self) -> int:
        for pending in (self._timer, self._turn):
            if pending is not None:
                pending.cancel()
        if self.fd >= 0:
            self.fd = -1
            self.transport = None
            self.hub.forget(self)
        return -1  # nothing is to be closed


class SessionTransport(DatagramTransport):
    """What one peer of a datagram server sends, and the way back to it. Made by the server.

    A `DatagramTransport` on a socket that it shares: closing it ends the session, and ``detach`` is not
    possible. What comes after ``close()`` begins a new session; what came before and was not read goes with
    the old one. Records that come while reading is paused wait, up to 256 of them or 1 MiB; more are
    dropped, counted in ``dropped`` and told to ``error_received`` (ENOBUFS), once until there is room.
    """

    __slots__ = ("_share",)

    def _check_kind(self) -> None:
        share: Any = self._reading_handle
        self._share: _Share = share
        self._read_events = self._write_events = share
        self._sock = share.file
        self._address = share.address
        self._find_peer(self._sock, connected=False)
        share.transport = self

    def _register(self) -> None:
        """The socket is watched by the server."""

    def _watch(self, fd: int, *, reading: bool) -> None:
        """A peer without a connection does not hang up."""

    def _receive(self) -> tuple[bytes, Any]:
        return self._share.take()

    def _send(self, data: Any, addr: Any) -> None:
        self._share.heard = self._loop.time()
        super()._send(data, addr)

    def _is_end(self) -> bool:
        return False

    def detach(self) -> Any:
        """:raises OSError: EOPNOTSUPP, the socket is the server's."""
        raise OSError(errno.EOPNOTSUPP, "a session shares the socket of its server")


class _Writing(DatagramTransport):
    """The shared socket. Nothing is queued here: its turn to write is that of the sessions that wait."""

    __slots__ = ()

    _protocol: _Hub

    def _flush(self) -> None:
        self._protocol.write_ready()

    def _after_breath(self) -> None:
        if self._wfd >= 0:
            self._writer_on = False
            self._flush()


class _Hub(asyncio.DatagramProtocol):
    """One bound socket of a server, and its sessions."""

    def __init__(
        self, server: DatagramServer, sock: socket.socket, idle: float | None, most: int, max_size: int
    ) -> None:
        self.server = server
        self.sock = sock
        self.loop = server.get_loop()
        self.idle = idle
        self._most = most
        self._sessions: dict[Any, _Share] = {}  # the latest one of each address
        self._shares: set[_Share] = set()  # and those that it came after, until they have ended
        self._writers: dict[_Share, tuple[Any, ...]] = {}
        self._accepts = False
        self._transport = _Writing(self.loop, sock, self, None, None, server, max_size=max_size)
        self._transport.pause_reading()

    # -- what the server asks for -------------------------------------------------------------

    def start(self) -> None:
        self._accepts = True
        self._transport.resume_reading()

    def stop(self) -> None:
        self._accepts = False
        self._transport.pause_reading()

    @property
    def inherited(self) -> bool:
        handle = self._transport._reading_handle
        return handle is not None and handle.inherited

    def close(self) -> None:
        self._accepts = False
        self._close_if_empty()

    def release(self) -> None:
        self._transport._give_back()

    def _close_if_empty(self) -> None:
        if not (self._accepts or self._shares):
            self._transport.abort()

    # -- protocol of the socket ---------------------------------------------------------------

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        for record in records:
            share = self._sessions.get(record[1])
            if share is None or not share.takes_more:
                share = self._begin(record)
            if share is not None:
                share.put(record)

    def _begin(self, record: tuple[bytes, Any]) -> _Share | None:
        address = record[1]
        if not self._accepts:
            return None
        if len(self._shares) >= self._most:
            self.server._refuse(OSError(errno.EMFILE, f"there are {self._most} sessions already"))
            return None
        share = self._sessions[address] = _Share(self, address)
        self._shares.add(share)
        # A context of its own, so that what one factory sets is not there for the next one.
        contextvars.copy_context().run(self.server._welcome, share, address)  # type: ignore[arg-type]
        return share if share.fd >= 0 else None

    def error_received(self, exc: Exception) -> None:
        self.server._refuse(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        for share in tuple(self._shares):
            if share.transport is not None:
                share.transport._step(Event.READ_ERROR, exc)
        if exc is not None:
            self.server._report("the socket failed; its sessions have ended", exc)

    # -- what the sessions ask for ------------------------------------------------------------

    def want_write(self, share: _Share, callback: tuple[Any, ...] | None) -> None:
        if callback is not None:
            self._writers[share] = callback
            self._transport._add_writer()
        elif self._writers.pop(share, None) is not None and not self._writers:
            self._transport._remove_writer()

    def write_ready(self) -> None:
        for callback, *args in tuple(self._writers.values()):
            callback(*args)

    def forget(self, share: _Share) -> None:
        self._shares.discard(share)
        if self._sessions.get(share.address) is share:
            del self._sessions[share.address]
        self._close_if_empty()


class DatagramServer(Server):
    """The server of a datagram socket: ``sockets``, ``close`` and so on as of every `Server`.

    ``refused`` counts the records that began no session, because there were enough of them, and errors
    of the socket. After ``close()`` the sessions live on, and the socket with them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Iterable[socket.socket],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        idle: float | None,
        sessions: int,
        max_size: int,
        on_close: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(loop, (), SessionTransport, protocol_factory, 0, on_close)
        self.refused: int = 0
        hubs: list[Any] = []
        try:
            for sock in sockets:
                hubs.append(_Hub(self, sock, idle, sessions, max_size))
        except BaseException:
            for hub in hubs:
                hub.release()
            self._listeners = None
            raise
        self._listeners = hubs

    def _begin(self) -> None:
        if self._listeners is None:
            raise RuntimeError(f"server {self!r} is closed")
        for hub in self._listeners:
            hub.start()
        self._serving = True

    def _refuse(self, exc: Exception) -> None:
        self.refused += 1
        now = self._loop.time()
        if now - self._reported >= REPORT:
            self._reported = now
            self._report("records began no session", exc)


async def create_datagram_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    local_addr: Any = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = socket.AI_PASSIVE,
    type: int = socket.SOCK_DGRAM,
    sock: socket.socket | None = None,
    reuse_port: bool | None = None,
    mode: int = 0o600,
    join: Group | Iterable[Group] = (),
    ttl: int | None = None,
    loopback: bool | None = None,
    interface: Interface = None,
    max_size: int = 64 * 1024,
    idle: float | None = 60.0,
    sessions: int = 1024,
    backlog: int = 100,
    start_serving: bool = True,
) -> Server:
    """Serve records: each peer gets a transport and a protocol of *protocol_factory*, as a connection does.

    *local_addr*: ``(host, port)``, where the host None or ``""`` is every interface; or a path with
    ``family=AF_UNIX``. *type*: SOCK_DGRAM, where each address that sends begins a session, which ends
    after *idle* seconds without a record either way (None: never), with at most *sessions* at once; or
    SOCK_SEQPACKET, with connections and *backlog*. *sock*: a bound socket instead. The other options are
    those of ``create_datagram_endpoint``; all of the addresses that a host has are bound.

    Returns a `Server`. What a session sends goes to its peer. A UNIX peer without a name of its own
    cannot be answered.

    :raises OSError: as bind(2). :raises ValueError: contradictory options.

    When this raises, and when it is cancelled, nothing stays behind, and *sock* is the caller's.

    ::

        async with await create_datagram_server(MyProtocol, ("127.0.0.1", 5000)) as server:
            await server.serve_forever()
    """
    if idle is not None and not idle > 0:
        raise ValueError(f"idle ({idle!r}) must be above 0 seconds, or None")
    if sessions < 1:
        raise ValueError(f"sessions ({sessions!r}) must be at least 1")
    loop = asyncio.get_running_loop()

    def serve(sockets: list[socket.socket], on_close: Callable[[], None] | None) -> Server:
        server: Server
        if sockets[0].type == socket.SOCK_SEQPACKET:
            make = partial(DatagramTransport, max_size=max_size)
            server = Server(loop, sockets, make, protocol_factory, backlog, on_close)
        else:
            server = DatagramServer(loop, sockets, protocol_factory, idle, sessions, max_size, on_close)
        try:
            if start_serving:
                server._begin()
        except BaseException:
            server._give_back()
            raise
        return server

    if sock is not None:
        if local_addr is not None:
            raise ValueError("local_addr and sock can not be specified at the same time")
        if sock.type == socket.SOCK_STREAM:
            raise ValueError(f"A datagram socket was expected, got {sock!r}")
        return serve([sock], None)
    if not local_addr:
        raise ValueError("Neither local_addr nor sock were specified")
    groups = tuple(groups_of(join, interface))
    wanted = Endpoint(
        local_addr, None, family, proto, flags, type, reuse_port, None, mode, groups, ttl, loopback,
        interface,
    )  # fmt: skip
    made = await make_sockets(wanted)

    def remove() -> None:
        for one in made:
            if one.remove is not None:
                one.remove()

    try:
        return serve([one.sock for one in made], remove)
    except BaseException:
        for one in made:
            one.undo()
        raise
