"""Relays in which an end has records: datagrams, packets, SOCK_SEQPACKET.

Between two such ends one record stays one record. Between one and a byte stream a *framing* decides:

    `Pieces`    the bytes of a record are written as they are; what is read from the stream at once, cut
                to a size, is a record
    `Lengths`   in the stream each record comes after its length, and so every boundary is kept
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ._core import syscalls
from ._core.reading import READ_SIZE
from .packets import PacketStream
from .sides import Moved, Owner, Side
from .ways import Way

__all__ = ["Framing", "Lengths", "Pieces", "RecordSide", "RecordWay"]

#: Bytes of the largest record that is made of a stream without frames: one Ethernet frame has room for it.
PIECE = 1400
#: Bytes of the largest record after a length.
LONGEST = 1 << 20
#: Seconds of silence after which an end without a connection, which cannot be told of an end, is closed.
SILENCE = 1.0


class Framing(Protocol):
    """How records stand in a byte stream."""

    def cut(self, data: bytes) -> Iterator[bytes]:
        """The records that are complete with *data*. :raises OSError: EPROTO, there are none to be found."""

    def join(self, record: bytes) -> bytes:
        """What to write for a record. :raises OSError: EMSGSIZE, there is no way to write it."""

    def rest(self) -> int:
        """Bytes of a record that is not complete."""


class Pieces:
    """No frames."""

    def __init__(self, size: int = PIECE) -> None:
        if not 1 <= size <= LONGEST:
            raise ValueError(f"the size of a record ({size!r}) must be 1 to {LONGEST} bytes")
        self._size = size

    def cut(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), self._size):
            yield data[at : at + self._size]

    def join(self, record: bytes) -> bytes:
        return record

    def rest(self) -> int:
        return 0


class Lengths:
    """Each record after its length, a big-endian number of *width* bytes, 2 or 4."""

    def __init__(self, width: int) -> None:
        if width not in (2, 4):
            raise ValueError(f"a length has 2 or 4 bytes, not {width!r}")
        self._width = width
        self._most = min((1 << 8 * width) - 1, LONGEST)
        self._rest = bytearray()

    def cut(self, data: bytes) -> Iterator[bytes]:
        rest, width, at = self._rest, self._width, 0
        rest += data
        while at + width <= len(rest):
            size = int.from_bytes(rest[at : at + width], "big")
            if size > self._most:
                what = f"a frame of {size} bytes, and at most {self._most} are taken: is it framed?"
                raise OSError(errno.EPROTO, what)
            if at + width + size > len(rest):
                break
            at += width
            yield bytes(rest[at : at + size])
            at += size
        del rest[:at]

    def join(self, record: bytes) -> bytes:
        if len(record) > self._most:
            what = f"a record of {len(record)} bytes, and a frame has {self._most} at most"
            raise OSError(errno.EMSGSIZE, what)
        return len(record).to_bytes(self._width, "big") + record

    def rest(self) -> int:
        return len(self._rest)


class RecordSide(Side, asyncio.DatagramProtocol):
    """A transport of records as an end of a relay, and its protocol meanwhile."""

    onward: RecordWay | None

    def _has_connection(self) -> bool:
        sock = self.transport.get_extra_info("socket")
        return sock is not None and sock.type == socket.SOCK_SEQPACKET

    def can_write(self) -> bool:
        return self.lost or self.transport._wfd >= 0

    def at_end(self) -> bool:
        return self.lost or not self.transport._state.reads

    def take_over(self) -> None:
        super().take_over()
        if self.inward is not None and not self.lost:
            # pause_writing() as soon as anything is queued, resume_writing() when all is sent.
            self.transport.set_write_buffer_limits(high=0)

    def waiting(self) -> list[tuple[bytes, Any]]:
        """The records that a `PacketStream` had received and not given out."""
        if not isinstance(self.former, PacketStream):
            return []
        records = list(self.former._received)
        self.former._received.clear()
        return records

    def end(self) -> float | None:
        if not self._has_connection():
            return SILENCE
        if not self.transport.is_closing():
            # The way here is over when nothing is queued.
            try:
                syscalls.shutdown_write(self.transport.fileno())
            except OSError:
                pass  # it has gone, and will tell
        return None

    # -- protocol -----------------------------------------------------------------------------

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        if self.onward is not None and not self.onward.over:
            self.onward.pass_on(records)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.packets_received([(data, addr)])

    def error_received(self, exc: Exception) -> None:
        """One record, or an answer to one, is no reason to end."""
        way: Any = self.inward or self.onward
        way.refused(exc)


class RecordWay(Way):
    """One direction of a relay, from or to an end with records.

    What is queued on the way is what came in one wake-up: 64 records or 256 KiB at most.
    """

    def __init__(self, relay: Owner, source: Side, sink: Side, moved: Moved, framing: Framing) -> None:
        super().__init__(relay, source, sink, moved)
        self._framing = framing

    def choose_engine(self, splices: bool) -> None:
        self.moved.engine = "records"
        self.pump: Callable[[], None] = self._read if self.source.ours else self._nothing

    def start(self) -> None:
        if isinstance(self.source, RecordSide):
            records = self.source.waiting()
            if records:
                self.pass_on(records)
        super().start()

    def _read(self) -> None:
        for _ in range(self.moves):
            data = self.source.transport.read_now(READ_SIZE)
            if not data:
                return
            self.write(data)
            if self.blocked or self.over or len(data) < READ_SIZE:
                return

    def write(self, data: bytes | memoryview) -> None:
        """Bytes from a stream."""
        try:
            for record in self._framing.cut(bytes(data)):
                self._send(record)
        except OSError as exc:
            self.relay.failed(self.source, exc)
            self.source.transport.abort()

    def pass_on(self, records: list[tuple[bytes, Any]]) -> None:
        """Records from an end that has them."""
        if isinstance(self.sink, RecordSide):
            for record, _ in records:
                self._send(record)
            return
        framed = []
        for record, _ in records:
            try:
                framed.append(self._framing.join(record))
            except OSError as exc:
                self.refused(exc)
        self.moved.records += len(framed)
        super().write(b"".join(framed))

    def _send(self, record: bytes) -> None:
        if self.over:
            return
        self.moved.records += 1
        self.moved.bytes += len(record)
        self.sink.transport.sendto(record)
        if self.sink.transport.is_closing():
            self.drop()

    def refused(self, exc: Exception) -> None:
        """A record could not be delivered, or the other side answered that one was not."""
        self.moved.refused += 1
        self.moved.refusal = exc

    def source_ended(self) -> None:
        rest = self._framing.rest()
        if rest and not (self.ended or self.over):
            what = f"the stream ended inside of a frame: {rest} bytes are left over"
            self.relay.failed(self.source, OSError(errno.EPROTO, what))
        super().source_ended()
