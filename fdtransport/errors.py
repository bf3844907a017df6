"""The exception family, and what each errno means to a transport.

Every exception here is an ``OSError`` that carries the true errno, so that code which catches
``OSError`` and looks at ``errno`` works for all kinds of descriptor.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

__all__ = [
    "BufferLimitError",
    "DescriptorInUseError",
    "EndpointError",
    "ErrnoTable",
    "InotifyLimitError",
    "Meaning",
    "OutputLimitError",
    "TransportError",
    "UnpollableFileError",
    "meaning",
]


class TransportError(OSError):
    """Base of this library's own exceptions; ``errno`` is the kernel's number where there is one."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Its subclasses are made from something else than OSError is; process pools pickle them.
        return _remake, (type(self), self.args)


def _remake(cls: type[TransportError], args: tuple[Any, ...]) -> TransportError:
    exc = cls.__new__(cls, *args)
    OSError.__init__(exc, *args)
    return exc


class UnpollableFileError(TransportError, ValueError):
    """The descriptor cannot be waited for (a regular file, a directory) and the call needs one that can.

    ``errno`` is EPERM, which is what ``epoll_ctl(2)`` answers for such a file. A ValueError too: that
    is what asyncio raises.
    """

    def __init__(self, what: str) -> None:
        super().__init__(errno.EPERM, what)


class DescriptorInUseError(TransportError, RuntimeError):
    """The descriptor is already under a transport. ``errno`` is EBUSY."""

    def __init__(self, fd: int) -> None:
        super().__init__(
            errno.EBUSY, f"file descriptor {fd} is already under a transport; close or detach that one first"
        )


class BufferLimitError(TransportError):
    """More was written than the hard limit of the write buffer allows. ``errno`` is ENOBUFS."""

    def __init__(self, size: int, hard: int) -> None:
        what = f"write buffer of {size} bytes is over its hard limit of {hard} bytes"
        super().__init__(errno.ENOBUFS, what)


class EndpointError(TransportError, ValueError):
    """An endpoint string (URL) cannot be used; the message says what would be right. ``errno`` is EINVAL."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EINVAL, what)

    def __str__(self) -> str:
        return str(self.strerror)


class OutputLimitError(TransportError):
    """A process gave more output than was to be taken. ``errno`` is ENOBUFS."""

    def __init__(self, fd: int, limit: int) -> None:
        super().__init__(errno.ENOBUFS, f"more than {limit} bytes came from descriptor {fd} of the process")


class InotifyLimitError(TransportError):
    """A limit of inotify(7) is reached; the message says which, what uses it up, and how to raise it.

    ``errno`` is ENOSPC for watches and EMFILE for instances, as the kernel answers.
    """

    def __init__(
        self, number: int, what: str, *, limit: str = "", value: int = -1, used: int = -1, remedy: str = ""
    ) -> None:
        super().__init__(number, what)
        self.limit: str = limit
        """The limit's name, as sysctl(8) has it."""
        self.value: int = value
        """What it is set to; -1 when that cannot be read."""
        self.used: int = used
        """How many of them were found to be in use by this user."""
        self.remedy: str = remedy
        """The command that raises it."""


class Meaning(Enum):
    """What a failed system call means to the transport that made it."""

    AGAIN = auto()
    """Nothing happened; the poller tells when to try again."""
    LATER = auto()
    """The kernel is short of memory for now. The poller does not know when that ends: try after a breath."""
    END = auto()
    """It is this kind's way to say end of file."""
    RECORD = auto()
    """It concerns this one record; the transport lives."""
    FATAL = auto()
    """The descriptor is of no further use."""


ErrnoTable = Mapping[int, Meaning]

#: What holds for every kind. EINTR is not here: os.read and its kin retry by themselves (PEP 475).
COMMON: ErrnoTable = {
    errno.EAGAIN: Meaning.AGAIN,
    errno.EWOULDBLOCK: Meaning.AGAIN,
    errno.EINTR: Meaning.AGAIN,
}

#: Writing, besides: the kernel is out of buffers, and will have some again.
WRITING: ErrnoTable = {**COMMON, errno.ENOBUFS: Meaning.LATER}


def meaning(exc: OSError, table: ErrnoTable = COMMON) -> Meaning:
    """Look *exc* up in *table*; what is not listed is fatal."""
    return table.get(exc.errno or 0, Meaning.FATAL)


def bad_descriptor(what: str) -> OSError:
    """EBADF as the OSError that the kernel would have given, with a text that names the culprit."""
    return OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {what}")
