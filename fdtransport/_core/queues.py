"""What waits to be written: bytes in order, or records with their boundaries.

No descriptor, no loop. Every operation costs the same however much is queued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["ByteQueue", "PacketQueue", "SealedQueue"]

#: Below this a piece is copied into a common buffer: for 64-byte pieces a vectored write is twice
#: as slow as join and write. From here on copying costs more than the kernel's walk of the vector.
SMALL = 4096
#: What one offer to the kernel holds at most; more than any pipe or socket buffer takes at once.
OFFER_BYTES = 256 * 1024
OFFER_PIECES = 64

Buffer = bytes | memoryview


class ByteQueue:
    """Ordered pieces of bytes and their total ``size``; pieces are immutable, of bytes, not empty.

    ``room`` is for a transport's hot path: as long as it stays above zero, a piece may go straight
    to ``pieces`` if its length is taken from ``room``, with nothing else to look at.
    """

    __slots__ = ("_counted", "pieces", "room")

    def __init__(self) -> None:
        self.pieces: deque[Buffer] = deque()
        self.room = 0
        self._counted = 0  # size plus room: what a piece takes from one it adds to the other

    @property
    def size(self) -> int:
        return self._counted - self.room

    def grant(self, room: int) -> None:
        """Allow *room* bytes to come without a further look; 0 revokes it."""
        self._counted += room - self.room
        self.room = room

    def append(self, piece: Buffer) -> None:
        self.pieces.append(piece)
        self.grant(0)  # what it was reckoned from has changed
        self._counted += len(piece)

    def offer(self) -> Buffer | list[Buffer]:
        """What to hand to the kernel next: one buffer for write, or several for writev.

        Runs of small pieces are joined, once: what was joined is large and is not copied again.
        """
        pieces = self.pieces
        if len(pieces) == 1:
            return pieces[0]
        vector, total = self._large_front()
        if pieces and total < OFFER_BYTES:
            if self.size <= OFFER_BYTES and self.size - total < SMALL * len(pieces):
                # At once: a look at each of a thousand small pieces costs more than sending them.
                vector.append(_join(pieces))
                pieces.clear()
            else:
                self._mixed(vector, total)
        pieces.extendleft(reversed(vector))
        return vector[0] if len(vector) == 1 else vector

    def _large_front(self) -> tuple[list[Buffer], int]:
        """Take the large pieces that come first off the queue."""
        pieces = self.pieces
        front: list[Buffer] = []
        total = 0
        while pieces and len(pieces[0]) >= SMALL and total < OFFER_BYTES and len(front) < OFFER_PIECES:
            front.append(pieces.popleft())
            total += len(front[-1])
        return front, total

    def _mixed(self, vector: list[Buffer], total: int) -> None:
        """Take more off the queue, small pieces joined between large ones."""
        pieces = self.pieces
        run: list[Buffer] = []
        run_size = 0
        while pieces and total < OFFER_BYTES and len(vector) < OFFER_PIECES:
            piece = pieces.popleft()
            total += len(piece)
            if len(piece) < SMALL:
                run.append(piece)
                run_size += len(piece)
                if run_size < OFFER_BYTES // 4:
                    continue
                piece, run, run_size = _join(run), [], 0
            elif run:
                vector.append(_join(run))
                run, run_size = [], 0
            vector.append(piece)
        if run:
            vector.append(_join(run))

    def advance(self, count: int) -> None:
        """The kernel has taken *count* bytes from the front."""
        self._counted -= count
        pieces = self.pieces
        while count:
            first = pieces[0]
            if count < len(first):
                # A view moves the front in constant time: one byte per write stays linear.
                pieces[0] = memoryview(first)[count:]
                return
            count -= len(first)
            pieces.popleft()

    def take(self) -> bytes:
        """Everything that is queued, as one bytes object; the queue is empty afterwards."""
        data = b"".join(self.pieces)
        self.clear()
        return data

    def clear(self) -> None:
        self.pieces.clear()
        self.room = self._counted = 0


def _join(run: Collection[Buffer]) -> Buffer:
    # Alone it is what is left of a piece that was partly taken: not to be copied at each offer.
    return next(iter(run)) if len(run) == 1 else b"".join(run)


class _Closed(deque[Buffer]):
    """Empty, and yet it does not look so to a ``write()`` that asks whether it must queue."""

    def __bool__(self) -> bool:
        return True


class SealedQueue(ByteQueue):
    """What *queue* holds, and nothing more: ``append`` raises until it is ``opened``.

    For the time of a file that goes past the queue (sendfile(2)). That writing is refused meanwhile
    costs ``write()`` nothing: it finds pieces, no room, and so comes to ``append``.
    """

    __slots__ = ("_former", "feed")

    def __init__(self, queue: ByteQueue) -> None:
        self._former = queue
        self.room = 0
        self._counted = queue.size
        self.pieces = queue.pieces or _Closed()
        #: What goes on with the file when the descriptor takes more; None while the queue goes out.
        self.feed: Callable[[], None] | None = None

    def grant(self, room: int) -> None:
        """There is none."""

    def append(self, piece: Buffer) -> None:
        raise RuntimeError("unable to write; sendfile is in progress")

    def advance(self, count: int) -> None:
        super().advance(count)
        if not self.pieces:
            self.pieces = _Closed()

    def clear(self) -> None:
        super().clear()
        self.pieces = _Closed()

    def opened(self) -> ByteQueue:
        """The queue that was sealed, with what is left in it."""
        self._former.room = 0
        self._former._counted = self._counted
        return self._former


class PacketQueue:
    """Records with their destination, boundaries kept; ``size`` is the sum of their bytes.

    An empty record counts as one byte, so that a flood of them is held back like any other.

    ``room`` is for a transport's hot path: a record of fewer bytes may go straight to the kernel, with
    nothing else to look at.
    """

    __slots__ = ("packets", "room", "size")

    def __init__(self) -> None:
        self.packets: deque[tuple[bytes, Any]] = deque()
        self.room = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self.packets)

    def grant(self, room: int) -> None:
        """Allow records of less than *room* bytes to go past the queue; 0 revokes it."""
        self.room = room

    def append(self, data: bytes, addr: Any = None) -> None:
        self.room = 0  # they are to come after this one
        self.packets.append((data, addr))
        self.size += len(data) or 1

    def peek(self) -> tuple[bytes, Any]:
        return self.packets[0]

    @property
    def first(self) -> tuple[bytes, Any] | None:
        """What ``peek`` gives; None when there is nothing."""
        return self.packets[0] if self.packets else None

    def pop(self) -> tuple[bytes, Any]:
        packet = self.packets.popleft()
        self.size -= len(packet[0]) or 1
        return packet

    def take(self) -> list[tuple[bytes, Any]]:
        packets = list(self.packets)
        self.clear()
        return packets

    def clear(self) -> None:
        self.packets.clear()
        self.size = 0
