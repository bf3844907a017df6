"""The records of inotify(7): the kernel's names for their bits, and how they lie in what is read."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from enum import IntFlag

__all__ = ["ENCODING", "HEADER", "InotifyMask", "names_of", "unpacked"]


class InotifyMask(IntFlag):
    """What to watch for, how, and what an event says: the names of inotify(7) without their IN_."""

    ACCESS = 0x1
    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    CLOSE_NOWRITE = 0x10
    OPEN = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800

    CLOSE = 0x18
    MOVE = 0xC0
    ALL_EVENTS = 0xFFF

    # What only events have.
    UNMOUNT = 0x2000
    Q_OVERFLOW = 0x4000
    IGNORED = 0x8000
    ISDIR = 0x40000000

    # How to watch.
    ONLYDIR = 0x1000000
    DONT_FOLLOW = 0x2000000
    EXCL_UNLINK = 0x4000000
    MASK_CREATE = 0x10000000
    MASK_ADD = 0x20000000
    ONESHOT = 0x80000000

    def __str__(self) -> str:
        return "|".join(names_of(self)) or "0"


#: The single bits by their names, in the kernel's order.
_BITS = {bit.name or "": int(bit) for bit in InotifyMask if bit & (bit - 1) == 0}


def names_of(mask: int) -> list[str]:
    """The kernel's names of the bits in *mask*, without their IN_."""
    return [name for name, bit in _BITS.items() if mask & bit]


#: watch, mask, cookie, bytes of the name that follows: struct inotify_event.
HEADER = struct.Struct("iIII")
ENCODING = sys.getfilesystemencoding()


def unpacked(data: bytes) -> Iterator[tuple[int, int, int, str]]:
    """The records in *data*: number of the watch, mask, cookie, name ("" for the watched thing itself).

    A name that is no text keeps its bytes, as ``os.fsdecode`` has it.
    """
    at, end, take = 0, len(data), HEADER.unpack_from
    while at < end:
        number, mask, cookie, length = take(data, at)
        at += 16
        name = ""
        if length:  # padded with NULs
            name = data[at : at + length].rstrip(b"\0").decode(ENCODING, "surrogateescape")
            at += length
        yield number, mask, cookie, name
