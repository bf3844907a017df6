"""The byte by which the user of a terminal leaves, taken out of what is read.

In raw mode every key goes to the other side, the one that means "let me out" among them. So one byte is
set aside for that: typed once it says so, typed twice it is sent once. Which of the two it was shows at
the next byte, or when none comes for a while; that is the transport's to time.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Escape", "checked_escape", "spelled"]


def checked_escape(byte: Any) -> bytes | None:
    """*byte* as it should be: one byte, or None for none."""
    if byte is not None and not isinstance(byte, bytes):
        raise TypeError(f"an escape is one byte, as b'\\x1d', or None, not {byte!r}")
    if byte is not None and len(byte) != 1:
        raise ValueError(f"an escape is one byte, and {byte!r} has {len(byte)}")
    return byte


def spelled(byte: bytes) -> str:
    """What is on the keys that type *byte*."""
    number = byte[0]
    if number < 0x20 or number == 0x7F:
        return f"Ctrl-{chr(number ^ 0x40)}"
    return chr(number) if 0x20 < number < 0x7F else f"{number:#04x}"


class Escape:
    """The functions that move the bytes (*below*), without the escape in what is read from *fd*.

    The bound method *changed* is called when ``typed`` or ``over`` is another than before.
    """

    __slots__ = ("_below", "_byte", "_changed", "_fd", "over", "typed")

    def __init__(self, below: Any, fd: int, byte: bytes, changed: Callable[[], None]) -> None:
        self._below = below
        self._fd = fd
        self._byte = byte
        self._changed = weakref.WeakMethod(changed)  # that of the transport that has this
        #: Whether it was the last byte that came, and is not known to be sent or to end.
        self.typed: bool = False
        #: Whether another byte has come after it: nothing is read any more.
        self.over: bool = False

    def _sift(self, data: bytes) -> bytes:
        """What of *data* goes on; the rest is dropped."""
        before = self.typed
        kept = []
        while data and not self.over:
            if self.typed:
                self.typed, self.over = False, not data.startswith(self._byte)
                kept.append(self._byte * (not self.over))
                data = data[1:]
            else:
                plain, found, data = data.partition(self._byte)
                kept.append(plain)
                self.typed = bool(found)
        if self.typed or self.over or before:
            changed = self._changed()
            if changed is not None:
                changed()
        return b"".join(kept)

    def _nothing(self) -> BlockingIOError:
        return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def read(self, fd: int, size: int) -> bytes:
        if fd == self._fd and self.over:
            raise self._nothing()
        data: bytes = self._below.read(fd, size)
        if fd != self._fd or not data:
            return data
        kept = self._sift(data)
        if not kept:
            raise self._nothing()
        return kept

    def readv(self, fd: int, buffers: list[Any]) -> int:
        if fd == self._fd and self.over:
            raise self._nothing()
        one = buffers if fd != self._fd else buffers[:1]
        count: int = self._below.readv(fd, one)
        if fd != self._fd or not count:
            return count
        view = memoryview(one[0]).cast("B")
        kept = self._sift(bytes(view[:count]))
        if not kept:
            raise self._nothing()
        view[: len(kept)] = kept
        return len(kept)

    def splice(self, source: int, sink: int, *args: Any) -> int:
        if source == self._fd:
            raise OSError(errno.EINVAL, "what is spliced cannot be looked at")
        moved: int = self._below.splice(source, sink, *args)
        return moved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)
