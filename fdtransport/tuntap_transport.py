"""The transport on a descriptor of a TUN or TAP interface, which carries IP packets or Ethernet frames."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import struct
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, NamedTuple

from ._core import syscalls
from ._core import tun_device as device_calls
from ._core.handle import Handle
from ._core.lifecycle import Event
from ._core.off_loop import Departures
from ._core.packet import RECORD_BYTES, RECORDS, PacketTransport
from ._core.root import NO_QUEUE
from ._core.segmentation import HEADER_SIZE, NO_HEADER, segments
from ._core.stream import BytesLike, as_buffer
from ._core.tun_device import EBADFD, Device
from .errors import ErrnoTable, Meaning, meaning
from .link import Link, LinkState

__all__ = ["TunTapAddress", "TunTapTransport"]

#: Bytes of the largest packet: what the length field of IPv4 can tell (RFC 791).
LARGEST = 65535
#: Bytes of the shortest one, which is a header alone.
IP_HEADER = 20
#: Bytes of an Ethernet header with one VLAN tag.
ETHERNET = 18
#: Full batches of one wake-up.
BATCHES = 4
_PI = 4  # struct tun_pi: flags, protocol
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"

#: Those that are being closed. Nobody waits for them: a name is free once the loss was told.
DEPARTURES = Departures()

#: EIO: the link is down. EINVAL: not a packet. Both concern that packet, and others may follow.
_WRITE_ERRORS: ErrnoTable = {
    **PacketTransport._WRITE_ERRORS,
    **dict.fromkeys((errno.EIO, errno.ENOMEM, errno.EFAULT), Meaning.RECORD),
}


class TunTapAddress(NamedTuple):
    """Where a packet came from: the ``addr`` of ``datagram_received``."""

    name: str
    queue: int
    protocol: int | None = None
    """The protocol number of Ethernet (0x0800 for IPv4), with ``pi=True``; None otherwise."""


class TunTapTransport(PacketTransport):
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

    __slots__ = (
        "_address",
        "_addresses",
        "_as_it_is",
        "_device",
        "_largest",
        "_least",
        "_link",
        "_missed_before",
        "_offloads",
        "_segments",
        "_vnet_hdr",
        "_watcher",
        "_with_pi",
        "received",
        "received_bytes",
        "refused",
        "sent",
        "sent_bytes",
    )  # fmt: skip

    _WRITE_ERRORS = _WRITE_ERRORS
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
        self._device: Any = device
        self._link: Link | None = None
        self._address: Any = TunTapAddress("", queue)
        self._addresses: dict[bytes, TunTapAddress] = {}
        self._vnet_hdr = vnet_hdr
        self._with_pi = False
        self._as_it_is = False  # whether a record is what a program is given, and gives
        self._offloads = offloads
        self._segments: deque[bytes] = deque()
        self._least = self._largest = 0
        self._missed_before = 0
        self._watcher: PacketTransport | None = None
        #: Packets and bytes that came, and that the kernel took. Packets that could not be sent, each of
        #: which was told to ``error_received``.
        self.received: int = 0
        self.received_bytes: int = 0
        self.sent: int = 0
        self.sent_bytes: int = 0
        self.refused: int = 0
        state = None if link is None else link.state()
        room = LARGEST + ETHERNET + max(_PI, HEADER_SIZE)
        super().__init__(loop, file, protocol, waiter, extra, server, max_size=room)
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

    # -- points of the core --------------------------------------------------------------------

    def _check_kind(self) -> None:
        handle = self._reading_handle
        if handle is None or handle is not self._writing_handle:
            raise ValueError("the descriptor of a TUN or TAP interface is one for both directions")
        if self._device is None:
            self._device = device_calls.device_of(handle.fd)
        if bool(self._device.flags & device_calls.VNET_HDR) != (self._vnet_hdr is not None):
            what = "has a header before each packet: vnet_hdr is 'raw' or 'split'"
            lacks = "has no header before a packet: vnet_hdr is None"
            raise ValueError(f"this descriptor {lacks if self._vnet_hdr else what}")
        self._with_pi = not self._device.flags & device_calls.NO_PI
        self._as_it_is = self._vnet_hdr != "split" and not self._with_pi
        self._address = TunTapAddress(self._device.name, self._address.queue)
        if not self._device.tap:
            self._least = IP_HEADER + (HEADER_SIZE if self._vnet_hdr == "raw" else 0)
        self._note_mtu(LARGEST)

    def _reader(self) -> Callable[[], object]:
        batch = hasattr(self._protocol, "packets_received")
        if self._vnet_hdr == "split":
            return self._read_split_batch if batch else self._read_split
        return self._read_batch if batch and self._as_it_is else self._read

    def _read_batch(self) -> None:
        """The same as ``_read``, for a protocol that takes a batch: without a call per packet."""
        if self._paused:
            self._readable_but_paused()
            return
        # A turn of the loop costs as much as ten packets.
        for _ in range(BATCHES):
            if not self._take_batch() or self._paused or not self._state.reads:
                break

    def _take_batch(self) -> bool:
        """Read and deliver one; whether it was a full one, behind which there may be more."""
        # The loop over the packets runs in C, and what came before an error stays in the list: a call of
        # Python per packet would cost a third of what the kernel takes for it.
        budget, total, error = self._budget, 0, None
        packets: list[bytes] = []
        read, fd, size = self._sys.read, self._rfd, self._max_size
        try:
            while len(packets) < budget and total < RECORD_BYTES:
                at_once = max(1, (RECORD_BYTES - total) // self._largest)
                before = len(packets)
                packets.extend(map(read, repeat(fd, min(at_once, budget - before)), repeat(size)))
                total += sum(map(len, packets[before:]))
            self._budget = min(4 * budget, RECORDS)
        except OSError as exc:
            self._budget = len(packets) or 1
            total = sum(map(len, packets))
            error = exc
        self.received += len(packets)
        self.received_bytes += total
        self._deliver(list(zip(packets, repeat(self._address))))
        if error is not None and self._state.reads:
            self._read_failed(error)
        return error is None and len(packets) >= RECORDS

    def _read_split(self) -> None:
        self._read()
        if self._segments and not self._paused and self._state.reads:
            self._loop.call_soon(self._read_on, context=self._context)

    def _read_split_batch(self) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        waiting, error = self._segments, None
        read, fd, size, cut = self._sys.read, self._rfd, self._max_size, self._cut
        try:
            while len(waiting) < RECORDS:
                waiting.extend(cut(read(fd, size)))
        except OSError as exc:
            error = exc
        packets = [waiting.popleft() for _ in range(min(len(waiting), RECORDS))]
        self.received += len(packets)
        self.received_bytes += sum(map(len, packets))
        self._deliver(list(zip(packets, repeat(self._address))))
        if waiting:
            self._loop.call_soon(self._read_on, context=self._context)
        elif error is not None and self._state.reads:
            self._read_failed(error)

    def _read_on(self) -> None:
        """What is left of a packet that was split is no reason for the kernel to call."""
        if self._segments and not self._paused and self._state.reads:
            self._reader()()

    def resume_reading(self) -> None:
        super().resume_reading()
        if self._segments:
            self._loop.call_soon(self._read_on, context=self._context)

    def _receive(self) -> tuple[bytes, Any]:
        address = self._address
        if self._vnet_hdr == "split":
            data = self._next_segment()
        else:
            data = self._sys.read(self._rfd, self._max_size)
            if self._with_pi:
                address = self._address_of(data[2:_PI])
                data = data[_PI:]
        self.received += 1
        self.received_bytes += len(data)
        return data, address

    def _next_segment(self) -> bytes:
        if not self._segments:
            self._segments.extend(self._cut(self._sys.read(self._rfd, self._max_size)))
        return self._segments.popleft()

    def _cut(self, data: bytes) -> list[bytes]:
        """The packets in one with a header; one at least."""
        try:
            cut = list(segments(data, self._device.tap))
        except (ArithmeticError, IndexError, ValueError, struct.error):
            cut = []
        if not cut:
            what = f"a header that does not fit its packet: {data[:HEADER_SIZE].hex()}"
            raise OSError(errno.EPROTO, f"{os.strerror(errno.EPROTO)}: {what}")
        return cut

    def _address_of(self, protocol: bytes) -> TunTapAddress:
        address = self._addresses.get(protocol)
        if address is None:
            address = self._address._replace(protocol=int.from_bytes(protocol, "big"))
            self._addresses[protocol] = address
        return address

    def _is_end(self) -> bool:
        return False

    # -- writing -------------------------------------------------------------------------------

    def sendto(self, data: BytesLike, addr: Any = None) -> None:
        """Give the kernel one packet, as if it had come in by the interface; never waits.

        What it cannot take now (EAGAIN with a small ``sndbuf``, ENOBUFS) is queued, under the water marks.
        *addr*: None, or what ``datagram_received`` was given, so that ``sendto(answer, addr)`` answers. With
        ``pi=True`` its *protocol* is sent along; without one it is that of the IP version. With
        ``vnet_hdr="raw"`` *data* begins with the header.

        :raises TypeError: *data* is not bytes-like. :raises ValueError: *addr* is of another interface.
        """
        # The commonest case in one frame, with nothing worked out anew: that halves what the library adds to
        # the system call.
        if type(data) is bytes and self._as_it_is and (addr is None or addr is self._address):
            size = len(data)
            fits = self._least <= size <= self._largest
            if fits and self._state.writes and (self._queue is NO_QUEUE or not self._queue.size):
                try:
                    self._sys.write(self._wfd, data)
                except OSError as exc:
                    self._not_sent(exc, data, None)
                    if self._queue.size > self._mark:
                        self._check_flow()
                else:
                    self.sent += 1
                    self.sent_bytes += size
                return
        super().sendto(data, addr)

    def send_packets(self, packets: Iterable[BytesLike]) -> None:
        """``sendto`` for each of *packets*, in order, at less cost: the counterpart of ``packets_received``.

        :raises TypeError: one of them is not bytes-like; then none was sent.
        """
        waiting = [packet if type(packet) is bytes else as_buffer(packet) for packet in packets]
        sizes = list(map(len, waiting))
        fit = bool(sizes) and self._as_it_is and self._least <= min(sizes) and max(sizes) <= self._largest
        at = 0
        while at < len(waiting):
            if not (fit and self._state.writes and (self._queue is NO_QUEUE or not self._queue.size)):
                self.sendto(waiting[at])
                at += 1
                continue
            # The loop over the packets runs in C; how many were taken before an error is in the list.
            taken: list[int] = []
            error = None
            try:
                taken.extend(map(self._sys.write, repeat(self._wfd), waiting[at:] if at else waiting))
            except OSError as exc:
                error = exc
            self.sent += len(taken)
            self.sent_bytes += sum(taken)
            at += len(taken)
            if error is not None:
                self._not_sent(error, waiting[at], None)
                at += 1
                if self._queue.size > self._mark:
                    self._check_flow()

    def _send(self, data: BytesLike, addr: Any) -> None:
        size = len(data)
        if not self._least <= size <= self._largest:
            self._check_size(data, size)
        if self._as_it_is:
            self._sys.write(self._wfd, data)
        elif self._with_pi:
            self._sys.writev(self._wfd, [b"\0\0" + self._protocol_of(data, addr), data])
        else:
            self._sys.writev(self._wfd, [NO_HEADER, data])
        self.sent += 1
        self.sent_bytes += size

    def _protocol_of(self, data: BytesLike, addr: Any) -> bytes:
        if addr is not None and addr.protocol is not None:
            return int(addr.protocol).to_bytes(2, "big")
        if self._device.tap:
            return bytes(data[12:14])
        version = data[0] >> 4 if len(data) else 0
        if version not in (4, 6):
            raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {self._no_packet(data)}")
        return _IPV4 if version == 4 else _IPV6

    def _check_size(self, data: BytesLike, size: int) -> None:
        """The kernel takes whatever it is given. Raise for what the interface would not carry."""
        if size < self._least:
            raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {self._no_packet(data)}")
        if self._link is not None and self._vnet_hdr != "raw":
            with contextlib.suppress(OSError):  # it was moved to another namespace
                self._note_mtu(self._link.state().mtu)  # which may have been changed
        if size > self._largest:
            what = f"{size} bytes, and the interface {self.name} carries {self._largest} at most (its MTU)"
            raise OSError(errno.EMSGSIZE, f"{os.strerror(errno.EMSGSIZE)}: {what}")

    def _note_mtu(self, mtu: int) -> None:
        if self._vnet_hdr == "raw":
            mtu = LARGEST + HEADER_SIZE  # what is larger than the MTU is to be segmented
        self._largest = mtu + (ETHERNET if self._device.tap else 0)

    def _check_address(self, addr: Any) -> None:
        if not (isinstance(addr, tuple) and addr[:2] == self._address[:2]):
            raise ValueError(f"Invalid address: must be None or {self._address}, not {addr!r}")

    def _not_sent(self, exc: OSError, data: BytesLike, addr: Any) -> None:
        if meaning(exc, self._WRITE_ERRORS) is Meaning.RECORD and ": " not in str(exc.strerror):
            exc = self._told(exc, data)
        super()._not_sent(exc, data, addr)

    def _told(self, exc: OSError, data: BytesLike) -> OSError:
        """The same error with what it means here."""
        what = {
            errno.EIO: f"the interface {self.name} is down",
            errno.EINVAL: self._no_packet(data),
        }.get(exc.errno or 0)
        return exc if what is None else OSError(exc.errno, f"{os.strerror(exc.errno or 0)}: {what}")

    def _no_packet(self, data: BytesLike) -> str:
        """Why the kernel does not take it."""
        raw = self._vnet_hdr == "raw"
        packet = data[HEADER_SIZE:] if raw else data
        if not len(packet):
            return "an empty packet"
        if self._device.tap:
            return "an Ethernet frame has 14 bytes at least"
        if packet[0] >> 4 not in (4, 6):
            return f"a packet of IP version {packet[0] >> 4}, which is not 4 or 6"
        if len(packet) < IP_HEADER:
            return f"a packet of {len(packet)} bytes, and its header alone has {IP_HEADER} or more"
        return "the header before the packet does not fit it" if raw else "the packet is none"

    def _refused(self, exc: OSError) -> None:
        self.refused += 1
        super()._refused(exc)

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
