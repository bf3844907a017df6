"""Whether a number still is the file that it was: asked before every call, in asyncio's debug mode.

When somebody closes a descriptor under a transport, the kernel gives its number to the next file that
is opened, and what is written then goes there. Nothing tells; only fstat(2) can. It would make every
small write a third dearer, so that it is asked where mistakes are looked for: in debug mode.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from ..errors import bad_descriptor

__all__ = ["Checked"]


class Checked:
    """The functions that move the bytes (``syscalls``, or an adapter's own), each after a look at whose
    number, or socket object, it is given.

    :raises OSError: EBADF, from any of them: the number is another file's now, or nobody's.
    """

    __slots__ = ("_below", "_files")

    def __init__(self, below: Any, *fds: int) -> None:
        self._below = below
        self._files = {fd: _identity(fd) for fd in fds if fd >= 0}

    def is_still(self, fd: int) -> bool:
        """Whether *fd* is the file that it was; true of a number that was not given."""
        known = self._files.get(fd)
        if known is None:
            return True
        try:
            return known == _identity(fd)
        except OSError:
            return False

    def forget(self, fd: int) -> None:
        """*fd* is closed, and its number may be any file's."""
        self._files.pop(fd, None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._below, name)  # AttributeError: an adapter's own need not have it

        def checked(*args: Any) -> Any:
            for arg in args:
                fd = arg.fileno() if isinstance(arg, socket.socket) else arg
                if type(fd) is int and not self.is_still(fd):
                    raise bad_descriptor(f"somebody else has closed descriptor {fd} under its transport")
            return function(*args)

        return checked


def _identity(fd: int) -> tuple[int, int, int]:
    found = os.stat(fd)  # not by the door in syscalls: it is about the calls that go through there
    return found.st_dev, found.st_ino, found.st_rdev
