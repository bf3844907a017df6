"""Packets from a TUN or TAP interface: a list of them in one call, and large ones cut into segments."""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Callable
from itertools import repeat, starmap
from typing import Any

from .packet import RECORD_BYTES, RECORDS
from .segmentation import HEADER_SIZE, segments
from .tun_packets import PI
from .tun_sending import TunSending

__all__ = ["TunReading"]

#: Full batches of one wake-up.
BATCHES = 4


class TunReading(TunSending):
    """The read side of a `TunTapTransport`. See the module's first lines."""

    __slots__ = ("_addresses", "_segments", "received", "received_bytes")

    def __init__(self, *args: Any, **options: Any) -> None:
        self._addresses: dict[bytes, Any] = {}  # by the protocol numbers that were met
        self._segments: deque[bytes] = deque()  # of packets that were split, not yet delivered
        #: Packets and bytes that came.
        self.received: int = 0
        self.received_bytes: int = 0
        super().__init__(*args, **options)

    def _reader(self) -> Callable[[], object]:
        batch = hasattr(self._protocol, "packets_received")
        if self._vnet_hdr == "split":
            return self._read_split_batch if batch else self._read_split
        return self._read_batch if batch and self._as_it_is else self._read

    def _is_end(self) -> bool:
        return False

    # -- many at once -------------------------------------------------------------------------

    def _read_batch(self) -> None:
        """The same as ``_read``, for a protocol that takes a batch: without a call per packet."""
        if self._paused:
            self._readable_but_paused()
            return
        read, source, protocol = self._sys.read, (self._rfd, self._max_size), self._protocol
        # A turn of the loop costs as much as ten packets.
        for _ in range(BATCHES):
            # The loop over the packets runs in C, and what came before an error stays in the list: a call
            # of Python per packet would cost a third of what the kernel takes for it.
            packets: list[bytes] = []
            error = None
            budget, at_once, total = self._budget, self._together, 0
            try:
                while True:
                    count = min(at_once, budget - len(packets))
                    packets.extend(starmap(read, repeat(source, count)))
                    if len(packets) == budget:
                        break
                    total += sum(map(len, packets[-count:]))
                    if total >= RECORD_BYTES:
                        break
                    at_once = (RECORD_BYTES - total) // self._largest or 1
                if budget < RECORDS:
                    self._budget = min(4 * budget, RECORDS)
            except OSError as exc:
                exc.__traceback__ = None  # it would keep this frame alive, and so the packets
                self._budget = len(packets) or 1
                error = exc
            self._give(packets, error)
            if len(packets) < RECORDS or self._paused or not self._state.reads:
                break  # there is no more, or it may not be told
            if self._protocol is not protocol:
                break  # the new one may take them in another way

    def _give(self, packets: list[bytes], error: OSError | None) -> None:
        """Count and deliver a list, and then what reading it ended with."""
        if packets:
            self.received += len(packets)
            self.received_bytes += sum(map(len, packets))
            try:
                self._protocol.packets_received(list(zip(packets, repeat(self._address))))
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._data_failed("packets_received", exc)
        if error is not None and self._state.reads:
            self._read_failed(error)

    # -- one by one ---------------------------------------------------------------------------

    def _receive(self) -> tuple[bytes, Any]:
        address = self._address
        if self._vnet_hdr == "split":
            data = self._next_segment()
        else:
            data = self._sys.read(self._rfd, self._max_size)
            if self._with_pi:
                address = self._address_of(data[2:PI])
                data = data[PI:]
        self.received += 1
        self.received_bytes += len(data)
        return data, address

    def _address_of(self, protocol: bytes) -> Any:
        address = self._addresses.get(protocol)
        if address is None:
            address = self._address._replace(protocol=int.from_bytes(protocol, "big"))
            self._addresses[protocol] = address
        return address

    # -- cut into segments --------------------------------------------------------------------

    def _read_split(self) -> None:
        self._read()
        if self._segments and not self._paused and self._state.reads:
            self._loop.call_soon(self._read_on, context=self._context)

    def _read_split_batch(self) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        waiting, error, most = self._segments, None, min(RECORDS, self._together)
        read, fd, size, cut = self._sys.read, self._rfd, self._max_size, self._cut
        try:
            while len(waiting) < most:
                waiting.extend(cut(read(fd, size)))
        except OSError as exc:
            exc.__traceback__ = None  # it would keep this frame alive
            error = exc
        self._give([waiting.popleft() for _ in range(min(len(waiting), most))], error)
        if waiting:
            self._loop.call_soon(self._read_on, context=self._context)

    def _read_on(self) -> None:
        """What is left of a packet that was split is no reason for the kernel to call."""
        if self._segments and not self._paused and self._state.reads:
            self._reader()()

    def resume_reading(self) -> None:
        super().resume_reading()
        if self._segments:
            self._loop.call_soon(self._read_on, context=self._context)

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
