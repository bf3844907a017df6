"""Packets for a TUN or TAP interface: how they reach the kernel, and why one does not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from itertools import repeat
from typing import Any

from ..errors import ErrnoTable, Meaning, meaning
from .packet import PacketTransport
from .segmentation import HEADER_SIZE, NO_HEADER
from .stream import BytesLike, as_buffer
from .tun_packets import TunPackets

__all__ = ["TunSending"]

_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"

#: EIO: the link is down. EINVAL: not a packet. Both concern that packet, and others may follow.
_WRITE_ERRORS: ErrnoTable = {
    **PacketTransport._WRITE_ERRORS,
    **dict.fromkeys((errno.EIO, errno.ENOMEM, errno.EFAULT), Meaning.RECORD),
}


class TunSending(TunPackets):
    """The write side of a `TunTapTransport`. See the module's first lines."""

    __slots__ = ("refused", "sent", "sent_bytes")

    _WRITE_ERRORS = _WRITE_ERRORS

    def __init__(self, *args: Any, **options: Any) -> None:
        #: Packets and bytes that the kernel took. Packets that could not be sent, each of which was told
        #: to ``error_received``.
        self.sent: int = 0
        self.sent_bytes: int = 0
        self.refused: int = 0
        super().__init__(*args, **options)

    # -- what an adapter may override ---------------------------------------------------------

    def _ask_mtu(self) -> None:
        """Have ``_note_mtu`` know the MTU as it is now, where somebody can tell it."""

    # -- writing ------------------------------------------------------------------------------

    def sendto(self, data: BytesLike, addr: Any = None) -> None:
        """Give the kernel one packet, as if it had come in by the interface; never waits.

        What it cannot take now (EAGAIN with a small ``sndbuf``, ENOBUFS) is queued, under the water marks.
        *addr*: None, or what ``datagram_received`` was given, so that ``sendto(answer, addr)`` answers. With
        ``pi=True`` its *protocol* is sent along; without one it is that of the IP version. With
        ``vnet_hdr="raw"`` *data* begins with the header.

        :raises TypeError: *data* is not bytes-like. :raises ValueError: *addr* is of another interface.
        """
        # The commonest case in one frame, with nothing worked out anew: that more than halves what the
        # library adds to the system call.
        if type(data) is bytes and (addr is None or addr is self._address):
            size = len(data)
            if size < self._queue.room and size >= self._least:
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
        if self._as_it_is and not (self._queue.room or self._queue.size) and self._state.writes:
            self._own_queue().grant(self._largest + 1)

    def send_packets(self, packets: Iterable[BytesLike]) -> None:
        """``sendto`` for each of *packets*, in order, at less cost: the counterpart of ``packets_received``.

        :raises TypeError: one of them is not bytes-like; then none was sent.
        """
        waiting = [packet if type(packet) is bytes else as_buffer(packet) for packet in packets]
        if not waiting:
            return
        sizes = list(map(len, waiting))
        shortest, longest = min(sizes), max(sizes)
        left = iter(waiting)  # one for all: what came before an error is not gone through again
        at = 0
        while at < len(waiting):
            if not self._state.writes:
                self._refuse_write(sum(sizes[at:]) or 1)
                return
            if shortest < self._least or longest >= self._room_of_lists():
                self.sendto(next(left))
                at += 1
                continue
            # The loop over the packets runs in C; how many were taken before an error is in the list.
            taken: list[int] = []
            next_ones: Iterable[BytesLike] = left
            header = 0
            if not self._as_it_is:
                next_ones, header = map(NO_HEADER.__add__, left), HEADER_SIZE
            try:
                taken.extend(map(self._sys.write, repeat(self._wfd), next_ones))
                failed = None
            except OSError as exc:
                exc.__traceback__ = None  # it would keep this frame alive, and so the packets
                failed = exc
            self.sent += len(taken)
            self.sent_bytes += sum(taken) - header * len(taken)
            at += len(taken)
            if failed is not None:
                self._not_sent(failed, waiting[at], None)
                at += 1
                if self._queue.size > self._mark:
                    self._check_flow()

    def _room_of_lists(self) -> int:
        """Packets shorter than this may go to the kernel at once, in a list."""
        room: int = self._queue.room
        if self._vnet_hdr == "split" and not self._queue.size and self._state.writes:
            return self._largest + 1
        return room

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
        if self._vnet_hdr != "raw":
            self._ask_mtu()  # which may have been changed
        if size > self._largest:
            what = f"{size} bytes, and the interface {self._device.name} carries {self._largest} at most"
            raise OSError(errno.EMSGSIZE, f"{os.strerror(errno.EMSGSIZE)}: {what} (its MTU)")

    def _check_address(self, addr: Any) -> None:
        if not (isinstance(addr, tuple) and addr[:2] == self._address[:2]):
            raise ValueError(f"Invalid address: must be None or {self._address}, not {addr!r}")

    # -- what an errno means ------------------------------------------------------------------

    def _not_sent(self, exc: OSError, data: BytesLike, addr: Any) -> None:
        if meaning(exc, self._WRITE_ERRORS) is Meaning.RECORD and ": " not in str(exc.strerror):
            exc = self._told(exc, data)
        super()._not_sent(exc, data, addr)

    def _told(self, exc: OSError, data: BytesLike) -> OSError:
        """The same error with what it means here."""
        what = {
            errno.EIO: f"the interface {self._device.name} is down",
            errno.EINVAL: self._no_packet(data),
        }.get(exc.errno or 0)
        return exc if what is None else OSError(exc.errno, f"{os.strerror(exc.errno or 0)}: {what}")

    def _refused(self, exc: OSError) -> None:
        self.refused += 1
        super()._refused(exc)
