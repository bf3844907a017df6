"""Sockets that keep the boundaries of what is sent: UDP, UNIX datagrams, SOCK_SEQPACKET, and every other
family that the kernel has (netlink, packet and raw sockets, vsock).

``create_datagram_endpoint`` is asyncio's, as a module function.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, TypeVar, Unpack

from ._core import multicast, syscalls
from ._core.endpoint_socket import Endpoint, check_records, make_socket
from ._core.handle import Handle
from ._core.multicast import Group, Interface
from ._core.opening import open_transport
from ._core.packet import PacketTransport
from ._core.socket_object import Borrowed, OnSocket
from ._core.stream import BytesLike
from .errors import ErrnoTable, Meaning, bad_descriptor
from .packets import PacketStream, packet_stream_factory

__all__ = ["DatagramTransport", "create_datagram_endpoint", "open_datagram_endpoint"]

P = TypeVar("P", bound=asyncio.BaseProtocol)

#: recv(2) returns the true length of a record then, also of one that it has cut; a flag costs nothing.
_TRUNC = socket.MSG_TRUNC if sys.platform == "linux" else 0
#: getpeername(2) answers there although nothing is connected: the kernel itself is the peer.
_ALWAYS_NAMED = (getattr(socket, "AF_NETLINK", -1),)
_UNIX = getattr(socket, "AF_UNIX", -1)
#: Seconds between two tries where no poller tells when there is room, at first and at most.
PATIENCE, MOST_PATIENCE = 0.002, 0.05

# A socket without connections outlives whatever becomes of a record or of whom it was sent to. (The
# negative numbers are those of a name that could not be looked up.)
_LIVES_ON = (
    errno.ECONNRESET, errno.ENODEV, errno.ENOMEM, errno.ENONET, errno.ENXIO, errno.EPERM, errno.ETIMEDOUT,
) if sys.platform == "linux" else (errno.ECONNRESET,)  # fmt: skip
_NO_NAME = [getattr(socket, name) for name in dir(socket) if name.startswith("EAI_")]
_READ_ERRORS: ErrnoTable = {**PacketTransport._READ_ERRORS, **dict.fromkeys(_LIVES_ON, Meaning.RECORD)}
_WRITE_ERRORS: ErrnoTable = {
    **dict.fromkeys([*errno.errorcode, *(code for code in _NO_NAME if code < 0)], Meaning.RECORD),
    **PacketTransport._WRITE_ERRORS,
    **dict.fromkeys((errno.EBADF, errno.ENOTSOCK), Meaning.FATAL),
}


class DatagramTransport(OnSocket, PacketTransport):
    """Records on a socket. A drop-in for asyncio's datagram transport, and for every family.

    *file*: a socket object or its descriptor. *address*: where what is sent goes, when the socket is
    not connected. *max_size*: bytes of the largest record; a longer one is not delivered in part, but
    told to ``error_received`` (EMSGSIZE). *on_close* is called before the descriptor is closed.

    What concerns one record, or the other side of a socket without connections (ECONNREFUSED), goes to
    ``error_received``, and the transport lives. The end of a SOCK_SEQPACKET connection ends it.
    Extra info: ``socket``, ``sockname``, ``peername``, ``fd``, ``peercred``.

    :raises ValueError: it is a stream socket, or one that listens. :raises OSError: it is no socket.
    """

    __slots__ = ("_READ_ERRORS", "_WRITE_ERRORS", "_address", "_blind", "_connected", "_on_close",
                 "_patience", "_sock", "_timeout")  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        *,
        address: Any = None,
        max_size: int = 64 * 1024,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._sock: Any = None
        self._address = address
        self._on_close: Callable[[], None] | None = None
        self._timeout: float | None = 0
        self._patience = PATIENCE
        super().__init__(loop, file, protocol, waiter, extra, server, max_size=max_size)
        self._on_close = on_close

    # -- points of the core -------------------------------------------------------------------

    def _check_kind(self) -> None:
        sock = self._take_socket("datagram")
        check_records(sock)
        timeout = sock.gettimeout()
        if timeout != 0:
            sock.setblocking(False)  # the object as well: with a timeout of its own it would wait
        if not isinstance(sock, Borrowed):
            self._timeout = timeout
        self._sock = sock
        self._keep_peer()
        peer = self.get_extra_info("peername") if sock.family not in _ALWAYS_NAMED else None
        if self._address is None:
            self._address = peer
        self._find_peer(sock, connected=peer is not None)

    def _find_peer(self, sock: socket.socket, *, connected: bool) -> None:
        self._connected = connected
        has_connections = sock.type == socket.SOCK_SEQPACKET
        self._READ_ERRORS = PacketTransport._READ_ERRORS if has_connections else _READ_ERRORS
        self._WRITE_ERRORS = PacketTransport._WRITE_ERRORS if has_connections else _WRITE_ERRORS
        # unix_dgram_poll() looks at the queue of the peer of a connected socket only. Another one is
        # always writable, also while whoever it sends to takes no more.
        self._blind = sock.family == _UNIX and not connected

    def _receive(self) -> tuple[bytes, Any]:
        record: tuple[bytes, Any] = self._sys.recvfrom(self._sock, self._max_size, _TRUNC)
        size = len(record[0])
        if size > self._max_size:
            what = f"a record of {size} bytes, which is more than max_size ({self._max_size})"
            raise OSError(errno.EMSGSIZE, f"{os.strerror(errno.EMSGSIZE)}: {what}")
        return record

    def _send(self, data: BytesLike, addr: Any) -> None:
        if not self._connected:
            if addr is None:
                addr = self._address
            if addr is not None:
                self._sys.sendto(self._sock, data, addr)
                return
        self._sys.send(self._sock, data)

    def sendto(self, data: BytesLike, addr: Any = None) -> None:
        """Send one record; never waits: as ``sendto`` of `PacketTransport`."""
        # The commonest case first, in one frame: that halves what the library adds to the system call.
        plain = type(data) is bytes and addr is None and self._connected and not self._queue.size
        if not (plain and self._state.writes):
            super().sendto(data, addr)
            return
        try:
            self._sys.send(self._sock, data)
        except OSError as exc:
            self._not_sent(exc, data, None)
            if self._queue.size > self._mark:
                self._check_flow()

    def _check_address(self, addr: Any) -> None:
        if self._address is not None and addr != self._address:
            raise ValueError(f"Invalid address: must be None or {self._address}")

    def _is_end(self) -> bool:
        # A connected SOCK_SEQPACKET has ends and empty records. After the end, what is not empty comes first.
        if not syscalls.has_hung_up(self._rfd):
            return False
        try:
            return not syscalls.bytes_readable(self._rfd)
        except OSError:
            return True  # a family that cannot tell

    def _add_writer(self) -> None:
        if not self._blind:
            super()._add_writer()
        elif not self._writer_on:
            self._writer_on = True
            self._loop.call_later(self._patience, self._after_breath, context=self._context)

    def _after_breath(self) -> None:
        first = self._queue.first
        super()._after_breath()
        stuck = first is not None and self._queue.first is first
        self._patience = min(2 * self._patience, MOST_PATIENCE) if stuck else PATIENCE

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        sock, self._sock = self._sock, None
        on_close, self._on_close = self._on_close, None
        try:
            if on_close is not None and how is Handle.close:
                on_close()
        finally:
            files = super()._let_go(how)
        if sock is not None and self._timeout != 0 and how is Handle.release:
            sock.settimeout(self._timeout)
        return files

    # -- multicast ----------------------------------------------------------------------------

    def join_group(self, group: str, interface: Interface = None) -> None:
        """Receive what is sent to a multicast group of IPv4 or IPv6.

        *interface*: its name or index, for IPv4 also its address; None: the kernel chooses. The port
        is that which the socket is bound to. See ip(7), ipv6(7).

        :raises ValueError: *group* is none, or of another family.
        :raises OSError: ENODEV, there is no such interface; EADDRINUSE, it is joined already.

        ::

            transport.join_group("239.1.2.3", "eth0")
        """
        multicast.join(self._open_socket(), group, interface)

    def leave_group(self, group: str, interface: Interface = None) -> None:
        """Undo ``join_group``. :raises OSError: EADDRNOTAVAIL, it is not joined."""
        multicast.leave(self._open_socket(), group, interface)

    def _open_socket(self) -> socket.socket:
        if self._sock is None:
            raise bad_descriptor("the transport has ended") from self._exception
        sock: socket.socket = self._sock
        return sock


class _Options(TypedDict, total=False):
    family: int
    proto: int
    flags: int
    reuse_port: bool | None
    allow_broadcast: bool | None
    sock: socket.socket | None
    type: int
    mode: int
    join: Group | Iterable[Group]
    ttl: int | None
    loopback: bool | None
    interface: Interface
    max_size: int


async def create_datagram_endpoint(
    protocol_factory: Callable[[], P],
    local_addr: Any = None,
    remote_addr: Any = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    reuse_port: bool | None = None,
    allow_broadcast: bool | None = None,
    sock: socket.socket | None = None,
    type: int = socket.SOCK_DGRAM,
    mode: int = 0o600,
    join: Group | Iterable[Group] = (),
    ttl: int | None = None,
    loopback: bool | None = None,
    interface: Interface = None,
    max_size: int = 64 * 1024,
) -> tuple[DatagramTransport, P]:
    """A datagram socket; a drop-in for ``loop.create_datagram_endpoint``, on every loop and Python.

    The options up to *sock* are asyncio's; *sock* may be a record socket of any family. Beyond them:

    - *type*: SOCK_DGRAM; SOCK_SEQPACKET connects a UNIX socket that has records and an end; SOCK_RAW.
    - *mode*: permissions of the file of a UNIX socket at *local_addr*, from its first moment on. A file
      that nobody is bound to any more is replaced; that of a living socket and anything else are left
      alone. It is removed at the end, if it is still this one's.
    - *join*: a multicast group, ``(group, interface)``, or several of them. An endpoint that is bound to
      the group's own address shares it with others on this machine.
    - *interface*: which to send multicast from, and to join on, by name, index or IPv4 address. *ttl*:
      hops, 0 to 255. *loopback*: whether multicast comes back to this machine (the kernel's default).
    - *max_size*: bytes of the largest record. A longer one is told to ``error_received`` (EMSGSIZE).

    Returns ``(transport, protocol)`` after ``connection_made``.

    :raises OSError: as socket(2), bind(2) and connect(2); EADDRINUSE: a UNIX path is taken.
    :raises ValueError, TypeError: contradictory options, addresses of the wrong form.

    When this raises, and when it is cancelled, nothing stays behind, and *sock* is the caller's.

    ::

        transport, protocol = await create_datagram_endpoint(
            MyProtocol, local_addr=("239.1.2.3", 5000), join="239.1.2.3"
        )
    """
    if sock is not None:
        if sock.type == socket.SOCK_STREAM:
            raise ValueError(f"A datagram socket was expected, got {sock!r}")
        given = {
            "local_addr": local_addr, "remote_addr": remote_addr, "family": family, "proto": proto,
            "flags": flags, "reuse_port": reuse_port, "allow_broadcast": allow_broadcast, "join": join,
            "ttl": ttl, "loopback": loopback, "interface": interface,
        }  # fmt: skip
        problems = ", ".join(f"{name}={value}" for name, value in given.items() if value)
        if problems:
            raise ValueError(
                f"socket modifier keyword arguments can not be used when sock is specified. ({problems})"
            )
        return await open_transport(DatagramTransport, protocol_factory, sock, max_size=max_size)
    groups = tuple(multicast.groups_of(join, interface))
    wanted = Endpoint(
        local_addr, remote_addr, family, proto, flags, type, reuse_port, allow_broadcast, mode, groups, ttl,
        loopback, interface,
    )  # fmt: skip
    made = await make_socket(wanted)
    try:
        return await open_transport(
            DatagramTransport,
            protocol_factory,
            made.sock,
            address=made.address,
            max_size=max_size,
            on_close=made.remove,
        )
    except BaseException:
        made.undo()
        raise


async def open_datagram_endpoint(
    local_addr: Any = None, remote_addr: Any = None, *, limit: int = 256, **options: Unpack[_Options]
) -> PacketStream:
    """A `PacketStream` (``recv``, ``recv_from``, ``send``, ``async for``, ``drain``) on a datagram socket.

    *limit*: records that wait for ``recv`` before the kernel's own queue has to hold them. Everything
    else as in ``create_datagram_endpoint``.

    ::

        async with await open_datagram_endpoint(remote_addr=("127.0.0.1", 5353)) as packets:
            await packets.send(b"question")
            answer = await packets.recv()
    """
    factory = packet_stream_factory(limit)
    _, stream = await create_datagram_endpoint(factory, local_addr, remote_addr, **options)
    return stream
