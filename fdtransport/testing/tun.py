"""A TUN or TAP without a device: for tests of protocols, without root and without a namespace.

::

    async def test_my_protocol():
        tun = MemoryTun(addresses=["10.9.0.1/24"])
        transport, protocol = await tun.connect(MyDatagramProtocol)
        tun.send(packet)                    # as if the kernel sent it by the interface
        answer = await tun.recv()           # what the transport sent
        tun.link.set(up=False)              # sendto() is told EIO now
        tun.delete()                        # connection_lost(OSError(EBADFD))

The rules are the kernel's, as they were measured: which packets it refuses, with which errno; that it drops
what is not read, beyond *txqueuelen* packets, and that the sender does not notice; that nothing passes while
the link is down. The memory is a pair of sockets.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from ipaddress import ip_interface
from typing import Any, TypeVar

from .._core import syscalls
from .._core.netlink import LinkState
from .._core.opening import open_transport
from .._core.packet import PacketTransport
from .._core.tun_device import EBADFD, NO_PI, TAP, TUN, Device
from .._core.tun_packets import ETHERNET
from ..tuntap_transport import TunTapTransport
from .ends import FarEnd

__all__ = ["MemoryLink", "MemoryTun", "MemoryTunTransport"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class MemoryLink:
    """The settings of an interface that is not there: the part of `fdtransport.Link` that tests need."""

    def __init__(self, device: Device, mtu: int, txqueuelen: int, addresses: Any) -> None:
        self.index: int = 1
        self._addresses = [ip_interface(address) for address in addresses]
        names = ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes",
                 "rx_errors", "tx_errors", "rx_dropped", "tx_dropped")  # fmt: skip
        self._state = LinkState(
            1, device.name, True, True, True, mtu, "02:00:00:00:00:01" if device.tap else None, txqueuelen,
            "tun", dict.fromkeys(names, 0), {},
        )  # fmt: skip
        self.on_change: Callable[[LinkState], object] = lambda _state: None

    def hold(self) -> MemoryLink:
        return self

    def close(self) -> None:
        """There is nothing to close."""

    def state(self) -> LinkState:
        """As of ``Link``."""
        return self._state

    def set(self, **changes: Any) -> None:
        """As of ``Link``; protocols with ``link_changed`` are told."""
        self._state = self._state._replace(**changes)
        self._state = self._state._replace(running=self._state.up and self._state.carrier)
        self.on_change(self._state)

    def addresses(self) -> list[Any]:
        """As of ``Link``."""
        return list(self._addresses)

    def is_settled(self) -> bool:
        """As of ``Link``."""
        return True

    def add_address(self, address: Any, peer: Any = None, *, check: bool = False) -> None:
        """As of ``Link``."""
        if ip_interface(address) not in self._addresses:
            self._addresses.append(ip_interface(address))

    def remove_address(self, address: Any, peer: Any = None) -> None:
        """As of ``Link``."""
        if ip_interface(address) not in self._addresses:
            raise _error(errno.EADDRNOTAVAIL)
        self._addresses.remove(ip_interface(address))

    def count(self, way: str, packets: int, size: int) -> None:
        statistics = self._state.statistics
        statistics[f"{way}_packets"] += packets
        statistics[f"{way}_bytes"] += size


class MemoryTunTransport(TunTapTransport):
    """A `TunTapTransport` whose device is a `MemoryTun`."""

    __slots__ = ()

    def set_sndbuf(self, size: int) -> None:
        sock = socket.socket(fileno=self._fd())
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        finally:
            sock.detach()

    def set_persist(self, on: bool) -> None:
        """It is gone with its transport."""

    def detach_queue(self) -> None:
        raise _error(errno.EINVAL)  # it has one queue

    def attach_queue(self) -> None:
        raise _error(errno.EINVAL)

    def set_carrier(self, on: bool) -> None:
        link: Any = self.link
        link.set(carrier=on)

    def _is_deleted(self) -> bool:
        return bool(self._sys.deleted)

    def _end_soon(self) -> None:
        PacketTransport._end_soon(self)  # there is no kernel that takes its time

    def _find_extra(self, name: str) -> Any:
        return None if name == "sndbuf" else super()._find_extra(name)


class MemoryTun:
    """The kernel's side of an interface, and the rules by which it takes and gives packets."""

    def __init__(
        self,
        name: str = "tun0",
        *,
        mode: str = "tun",
        mtu: int = 1500,
        txqueuelen: int = 500,
        addresses: Any = (),
        transport_class: type[MemoryTunTransport] = MemoryTunTransport,
        far_end: Callable[[socket.socket], FarEnd] = FarEnd,
    ) -> None:
        self._device = Device(name, (TAP if mode == "tap" else TUN) | NO_PI)
        self._class = transport_class
        self._waiting: deque[bytes] = deque()  # in the kernel's queue, beyond what the socket holds
        self._unread = 0
        #: Whether the interface was deleted.
        self.deleted: bool = False
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near.setblocking(False)
        #: The settings of the interface.
        self.link: MemoryLink = MemoryLink(self._device, mtu, txqueuelen, addresses)
        #: The other end, as the contract kit wants it; it owns the socket.
        self.far: FarEnd = far_end(far)

    # -- for tests -----------------------------------------------------------------------------

    async def connect(self, protocol_factory: Callable[[], P]) -> tuple[MemoryTunTransport, P]:
        """The transport of the interface: ``(transport, protocol)``."""
        link: Any = self.link

        def make(*args: Any) -> MemoryTunTransport:
            transport = self._class(*args, device=self._device, link=link)
            transport._sys = self
            return transport

        transport, protocol = await open_transport(make, protocol_factory, self._near)
        self.link.on_change = transport._link_changed
        return transport, protocol

    def send(self, packet: bytes) -> bool:
        """Have the kernel send *packet* by the interface; whether there was room for it. Who sends by a
        network is not told.

        :raises ValueError: no kernel sends that: an empty packet, or one that is longer than the MTU.
        """
        state = self.link.state()
        most = state.mtu + (ETHERNET if self._device.tap else 0)
        if not 1 <= len(packet) <= most:
            raise ValueError(f"a packet has 1 to {most} bytes here, and this one {len(packet)}")
        if not state.running or self._unread >= state.txqueuelen:
            state.statistics["tx_dropped"] += 1
            return False
        self._unread += 1
        self._waiting.append(packet)
        self._move()
        return True

    def recv_now(self) -> bytes | None:
        """The next packet that the transport has sent; None when there is none."""
        return self.far.recv_now() or None

    async def recv(self) -> bytes:
        """The next packet that the transport has sent. :raises TimeoutError: none came."""
        return await self.far.recv()

    def delete(self) -> None:
        """Delete the interface: ``connection_lost`` comes with EBADFD."""
        self.deleted = True
        self.far.close()

    def close(self) -> None:
        """Close what was not given to a transport."""
        self.far.close()
        self._near.close()

    def _move(self) -> None:
        while self._waiting and not self.deleted and self.far.send_now(self._waiting[0]):
            self._waiting.popleft()

    # -- what the transport calls --------------------------------------------------------------

    def read(self, fd: int, size: int) -> bytes:
        if self.deleted:
            raise _error(EBADFD)
        data: bytes = syscalls.read(fd, size)
        if not data:
            raise _error(EBADFD)  # the other end has gone
        self._unread = max(self._unread - 1, 0)
        self._move()
        if not self.link.state().up:
            raise _error(errno.EAGAIN)  # what it held is lost
        self.link.count("tx", 1, len(data))
        return data

    def write(self, fd: int, data: Any) -> int:
        if self.deleted:
            raise _error(EBADFD)
        if not self.link.state().up:
            raise _error(errno.EIO)
        if len(data) < 14 if self._device.tap else not len(data) or data[0] >> 4 not in (4, 6):
            raise _error(errno.EINVAL)
        try:
            written = syscalls.write(fd, data)
        except BrokenPipeError:
            raise _error(EBADFD) from None
        self.link.count("rx", 1, written)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(syscalls, name)
