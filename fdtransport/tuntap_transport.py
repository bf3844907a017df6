"""The transport on a descriptor of a TUN or TAP interface, which carries IP packets or Ethernet frames."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
from collections.abc import Callable
from typing import Any, NamedTuple

from ._core import syscalls
from ._core import tun_device as device_calls
from ._core.handle import Handle
from ._core.lifecycle import Event
from ._core.off_loop import Departures
from ._core.packet import PacketTransport
from ._core.tun_device import EBADFD, Device
from ._core.tun_reading import TunReading
from .link import Link, LinkState

__all__ = ["TunTapAddress", "TunTapTransport"]

#: Those that are being closed. Nobody waits for them: a name is free once the loss was told.
DEPARTURES = Departures()


class TunTapAddress(NamedTuple):
    """Where a packet came from: the ``addr`` of ``datagram_received``."""

    name: str
    queue: int
    protocol: int | None = None
    """The protocol number of Ethernet (0x0800 for IPv4), with ``pi=True``; None otherwise."""


class TunTapTransport(TunReading):
    """IP packets (TUN) or Ethernet frames (TAP) as datagrams; made by ``connect_tuntap``.

    *file*: a descriptor that is attached to an interface. The protocol is an ``asyncio.DatagramProtocol``
    as of UDP; one that has ``packets_received(records)`` gets a list of ``(packet, address)`` in one call,
    up to 64 packets or 256 KiB, and up to four such lists a wake-up; one that has ``link_changed(state)`` is
    told when the link goes up or down or changes its MTU (see ``connect_tuntap``).

    A packet is never cut. What the kernel refuses (EINVAL: it is no packet; EIO: the link is down) or would
    let pass although it does not fit (EMSGSIZE: more than the MTU) is told to ``error_received``, and the
    transport lives. When the interface is deleted, ``connection_lost`` gets an OSError with EBADFD.

    Extra info: ``fd``, ``ifname``, ``ifindex``, ``mode``, ``mtu``, ``hwaddr``, ``addresses``, ``queue``,
    ``pi``, ``vnet_hdr``, ``offloads``, ``sndbuf``, ``device`` (the flags of the descriptor).
    """

    __slots__ = ("_link", "_missed_before", "_offloads", "_watcher")

    _FRAME = 2
    # The kernel tells that an interface is deleted (EPOLLERR) as it tells that a packet is there, to those
    # who wait for EPOLLIN or EPOLLPRI. The latter never comes, so a packet alone wakes nobody.
    _ALSO_WATCHED = getattr(select, "EPOLLPRI", 0)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        *,
        device: Device | None = None,
        link: Link | None = None,
        queue: int = 0,
        vnet_hdr: str | None = None,
        offloads: int = 0,
    ) -> None:
        self._link: Link | None = None
        self._missed_before = 0
        self._offloads = offloads
        self._watcher: PacketTransport | None = None
        state = None if link is None else link.state()
        super().__init__(
            loop, file, protocol, waiter, extra, server,
            address=TunTapAddress("", queue), device=device, vnet_hdr=vnet_hdr,
        )  # fmt: skip
        if link is not None and state is not None:
            self._link = link.hold()
            self._missed_before = state.statistics["tx_dropped"]
            self._note_mtu(state.mtu)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def link(self) -> Link:
        """The settings of the interface: MTU, addresses, routes, up and down.

        :raises OSError: EBADF, the transport has ended; EPERM, a descriptor was given whose interface is in
            a network namespace that may not be entered.
        """
        if self._link is None:
            number = errno.EBADF if self.fileno() < 0 else errno.EPERM
            what = "the transport has ended" if self.fileno() < 0 else "the interface cannot be reached"
            raise OSError(number, f"{os.strerror(number)}: {what}")
        return self._link

    @property
    def name(self) -> str:
        """The name of the interface, as it was when it was opened."""
        name: str = self._address.name
        return name

    @property
    def missed(self) -> int:
        """Packets for this interface that the kernel dropped since it was opened.

        It keeps ``txqueuelen`` packets (500) for whoever reads; more are dropped, also while reading is
        paused, and their sender does not notice. Of an interface with several queues it is the sum.
        """
        return self.link.state().statistics["tx_dropped"] - self._missed_before

    def _find_extra(self, name: str) -> Any:
        own: dict[str, Callable[[], Any]] = {
            "ifname": lambda: self.name,
            "mode": lambda: self._device.mode,
            "queue": lambda: self._address.queue,
            "pi": lambda: self._with_pi,
            "vnet_hdr": lambda: self._vnet_hdr,
            "offloads": lambda: self._offloads,
            "device": lambda: self._device.flags,
            "sndbuf": lambda: device_calls.sndbuf(self._wfd),
        }
        if name in own:
            return own[name]()
        link = self._link
        if link is None or name not in ("ifindex", "addresses", "mtu", "hwaddr", "txqueuelen"):
            return None
        try:
            if name == "addresses":
                return link.addresses()
            return link.index if name == "ifindex" else getattr(link.state(), name)
        except OSError:
            return None  # the interface was deleted, or moved to another namespace

    def _ask_mtu(self) -> None:
        if self._link is not None:
            with contextlib.suppress(OSError):  # it was moved to another namespace
                self._note_mtu(self._link.state().mtu)

    # -- the end -------------------------------------------------------------------------------

    def _gone(self, exc: OSError) -> OSError:
        if exc.errno != EBADFD:
            return exc
        return OSError(exc.errno, f"{os.strerror(exc.errno)}: the interface {self.name} was deleted")

    def _read_failed(self, exc: OSError) -> None:
        super()._read_failed(self._gone(exc))

    def _write_failed(self, exc: OSError) -> None:
        super()._write_failed(self._gone(exc))

    def _is_deleted(self) -> bool:
        return self._rfd >= 0 and bool(syscalls.poll_now(self._rfd, 0) & select.POLLERR)

    def _hangup(self) -> None:
        if self._is_deleted():  # and what it held with it
            self._note_hangup()
            self._step(Event.READ_ERROR, self._gone(OSError(EBADFD, os.strerror(EBADFD))))
        else:
            super()._hangup()

    def _keep_extra(self) -> None:
        if self._extra is None:
            self._extra = {}
        for name in ("ifname", "mode", "queue", "vnet_hdr", "offloads", "device"):
            self._extra.setdefault(name, self._find_extra(name))

    def _end_soon(self) -> None:
        """Close the descriptor, which the kernel takes some 20 ms for if the interface goes with it, and
        end then."""
        if self._reading_handle is None:  # detached
            super()._end_soon()
            return
        handle: Handle = self._let_go(lambda handle: handle)
        DEPARTURES.run(self._loop, None, lambda _: self._depart(handle))

    def _depart(self, handle: Handle) -> None:
        """In a thread."""
        error = None
        try:
            handle.close()
        except OSError as exc:
            error = exc
        self._closed_in_thread(error)

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        link, self._link = self._link, None
        watcher, self._watcher = self._watcher, None
        if watcher is not None and not self._loop.is_closed():
            watcher.abort()
        if link is not None:
            link.close()
        return super()._let_go(how)

    # -- the interface -------------------------------------------------------------------------

    def set_carrier(self, on: bool) -> None:
        """Plug the cable of the interface in or out: whether the kernel sends anything by it."""
        device_calls.set_carrier(self._fd(), on)

    def set_persist(self, on: bool) -> None:
        """Have the interface stay when its last descriptor is closed, or not."""
        device_calls.set_persist(self._fd(), on)

    def set_sndbuf(self, size: int) -> None:
        """Bytes of sent packets that may be on their way through the kernel before ``sendto`` queues.

        The default is no limit. What the kernel delivers on this machine counts as arrived at once.
        """
        device_calls.set_sndbuf(self._fd(), size)

    def detach_queue(self) -> None:
        """Have the kernel send by the other queues of the interface. Nothing comes until ``attach_queue``.

        :raises OSError: EINVAL, the interface was not opened with several queues.
        """
        device_calls.set_queue(self._fd(), False)

    def attach_queue(self) -> None:
        """Have this queue take part again."""
        device_calls.set_queue(self._fd(), True)

    def _fd(self) -> int:
        if self._rfd < 0:
            raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: the transport has ended")
        return self._rfd

    async def _watch_link(self) -> None:
        """Tell the protocol of changes."""
        watcher = await self.link.watch(self._link_changed)
        if self._link is None:
            watcher.abort()  # the loss came first
        else:
            self._watcher = watcher

    def _link_changed(self, state: LinkState | None) -> None:
        if state is None or self._state.closing:
            return
        self._note_mtu(state.mtu)
        told = getattr(self._protocol, "link_changed", None)
        if told is not None:
            self._guard("protocol.link_changed() failed", told, state)
