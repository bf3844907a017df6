"""Reading from a port whose driver marks what came damaged: a seam between the kernel and a transport."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable
from typing import Any

from . import syscalls
from .parmrk import Decoder, LineError

__all__ = ["MarkedReading"]


class MarkedReading:
    """The functions that move the bytes of a port, without the marks.

    The bound method *tell* is given each `LineError`, before the bytes that were read together with it, and
    answers whether reading may go on.
    """

    __slots__ = ("_decoder", "_method")

    def __init__(self, tell: Callable[[LineError], bool]) -> None:
        self._method = weakref.WeakMethod(tell)  # that of the transport that has this
        self._decoder = Decoder()

    def read(self, fd: int, size: int) -> bytes:
        while True:
            marked = syscalls.read(fd, size)
            if not marked:
                return marked
            data, errors = self._decoder.decode(marked)
            go_on = True
            for error in errors:
                tell = self._method()
                go_on = tell is not None and tell(error)
            if data:
                return data
            if not go_on:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def readv(self, fd: int, buffers: list[Any]) -> int:
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        data = memoryview(self.read(fd, sum(map(len, views))))
        count = 0
        for view in views:
            part = data[count : count + len(view)]
            view[: len(part)] = part
            count += len(part)
        return count

    def splice(self, *_args: object) -> int:
        raise OSError(errno.EINVAL, "what is marked cannot be spliced")

    def __getattr__(self, name: str) -> Any:
        return getattr(syscalls, name)
