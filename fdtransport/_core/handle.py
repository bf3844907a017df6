"""The owner of one descriptor: who may use the number, and how it was before."""

from __future__ import annotations

import errno
import os
import socket
from typing import Protocol

from ..errors import DescriptorInUseError, bad_descriptor
from . import syscalls

__all__ = ["FileLike", "Handle", "adopt", "fileno_of"]


class HasFileno(Protocol):
    def fileno(self) -> int: ...


FileLike = int | HasFileno

_PATH_ONLY: int = getattr(os, "O_PATH", 0)

#: A byte per descriptor number, 1 while a live handle of this process owns it. A second transport
#: on one number would replace the first one's interest in the loop, and the first would be deaf for
#: ever. (A set would cost a hundred bytes per transport.)
_owned = bytearray(64)


def _forked() -> None:
    # The transports that were copied are the parent's, and so are their descriptors. (The length stays.)
    _owned[:] = bytes(len(_owned))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def fileno_of(file: FileLike) -> int:
    """The descriptor number of an int or of an object with ``fileno()``.

    :raises TypeError: it is neither. :raises OSError: EBADF, it is closed or negative.
    """
    if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, "fileno")):
        raise TypeError(f"a file descriptor or an object with fileno() is needed, not {file!r}")
    if isinstance(file, int):
        fd = file
    else:
        try:
            fd = file.fileno()
        except ValueError:  # "I/O operation on closed file"
            raise bad_descriptor(f"{file!r} is closed") from None
        if not isinstance(fd, int):
            raise TypeError(f"{file!r}.fileno() returned {fd!r}, which is no int")
    if fd < 0:
        raise bad_descriptor(f"{fd} is no descriptor" if isinstance(file, int) else f"{file!r} is closed")
    return fd


class Handle:
    """Owns one descriptor from ``Handle(file)`` on, until ``close()`` or ``release()``.

    Taking over makes the descriptor non-blocking. O_NONBLOCK belongs to the open file description
    (open(2)), which a parent process or a dup may share; it is put back on the way out.

    ``readable`` and ``writable`` tell the access mode it was opened with. *keep_mode*: leave
    O_NONBLOCK alone, for whoever sees to it otherwise that no call waits.

    :raises OSError: the descriptor is not open.
    :raises DescriptorInUseError: another handle owns the number.
    """

    __slots__ = ("_flags", "fd", "file")

    def __init__(self, file: FileLike, *, keep_mode: bool = False) -> None:
        self.fd = -1
        self.file = file
        fd = fileno_of(file)
        if fd < len(_owned) and _owned[fd]:
            raise DescriptorInUseError(fd)
        try:
            flags = syscalls.status_flags(fd)
        except (OSError, OverflowError) as exc:  # more than a C int holds is no descriptor either
            number = exc.errno if isinstance(exc, OSError) and exc.errno else errno.EBADF
            raise OSError(number, f"{os.strerror(number)}: {file!r} is not open") from None
        if flags & _PATH_ONLY:
            raise bad_descriptor(f"{file!r} was opened with O_PATH, for its name and not for its bytes")
        self._flags = flags | os.O_NONBLOCK if keep_mode else flags
        if not self._flags & os.O_NONBLOCK:
            syscalls.set_blocking(fd, False)
        self.fd = fd
        if fd >= len(_owned):
            _owned.extend(bytes(fd + 1))
        _owned[fd] = 1

    @property
    def readable(self) -> bool:
        return self._flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self._flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def made_nonblocking(self) -> bool:
        """Whether O_NONBLOCK was set by this handle, and is put back by it."""
        return not self._flags & os.O_NONBLOCK

    @property
    def inherited(self) -> bool:
        """Whether it was the parent process that took the descriptor over, before fork(2)."""
        return self.fd >= 0 and not _owned[self.fd]

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        """Close the descriptor, once. Afterwards the number is nobody's.

        :raises OSError: as close(2) tells; the descriptor is closed all the same.
        """
        fd = self._disown()
        if fd < 0:
            return
        if isinstance(self.file, int):
            syscalls.close(fd)
        else:
            self.file.close()  # type: ignore[attr-defined]

    def release(self) -> FileLike:
        """Give the descriptor back, as it was, without closing it."""
        self._disown()
        return self.file

    def forget(self) -> None:
        """The number is somebody else's file now: neither close it nor change its mode."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _owned[fd] = 0
            if isinstance(self.file, socket.socket):
                self.file.detach()  # else it would close the number when it is collected

    def _disown(self) -> int:
        # The number is forgotten before it is closed: whoever gets it next is safe from us.
        inherited = self.inherited  # then the parent goes on with the description
        fd, self.fd = self.fd, -1
        if fd >= 0 and not inherited:
            _owned[fd] = 0
            if self.made_nonblocking:
                try:
                    syscalls.set_blocking(fd, True)
                except OSError:
                    pass  # closed behind our back; closing it will tell
        return fd


def adopt(
    file: FileLike | tuple[FileLike | None, FileLike | None],
) -> tuple[Handle | None, Handle | None]:
    """Take over one descriptor, or a read and a write one; all of it or nothing.

    None in a pair leaves a direction out, also of a descriptor that has both.
    """
    if not isinstance(file, tuple):
        handle = _own(file)
        return (handle if handle.readable else None, handle if handle.writable else None)
    if len(file) != 2:
        raise TypeError(f"a pair is (read descriptor, write descriptor), not {file!r}")
    to_read, to_write = file
    if to_read is None or to_write is None:
        if to_read is to_write:
            raise TypeError("a pair of no descriptors")
    elif fileno_of(to_read) == fileno_of(to_write):
        return adopt(to_read)
    reading = writing = None
    try:
        if to_read is not None:
            reading = _own(to_read)
            if not reading.readable:
                raise bad_descriptor(f"{to_read!r} is write-only, and is to be read")
        if to_write is not None:
            writing = _own(to_write)
            if not writing.writable:
                raise bad_descriptor(f"{to_write!r} is read-only, and is to be written to")
    except BaseException:
        if writing is not None:
            writing.release()
        if reading is not None:
            reading.release()
        raise
    return reading, writing


def _own(file: FileLike) -> Handle:
    """*file* taken over; a handle that an adapter has made is that already."""
    return file if isinstance(file, Handle) else Handle(file)
