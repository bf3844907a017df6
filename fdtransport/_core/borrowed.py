"""Descriptors that are used for a while and stay whose they were, the mode of their description included.

O_NONBLOCK belongs to the open file description (open(2)), and the description of a standard stream is
shared: with the shell that reads the same terminal, with the next command that writes to the same pipe.
A process that sets it and is killed leaves it set. So it is not set:

    a file, /dev/null               has nothing to wait for; used as it is
    a pipe, a FIFO, a terminal      opened anew by way of /proc: a description of our own
    a socket                        cannot be opened anew; used as it is, with calls that never wait
    what cannot be opened anew      (no permission, no /proc): set all the same, and put back at the end
                                    and at exit
"""

from __future__ import annotations

import atexit
import errno
import os
import select
import stat
from dataclasses import dataclass
from typing import Any

from ..errors import bad_descriptor
from . import syscalls
from .handle import FileLike, Handle

__all__ = ["Claim", "Loan", "Nowait", "borrow"]

#: Major and minor number of /dev/ptmx: opening a terminal's master anew gives another terminal.
_MASTER = (5, 2)


class Claim(Handle):
    """A descriptor that is given back where others are closed."""

    __slots__ = ()

    def close(self) -> None:
        self.release()


@dataclass(slots=True, eq=False)
class Loan:
    """One borrowed descriptor."""

    claim: Claim
    """Its number: taken, so that no other transport uses it meanwhile."""
    handle: Handle
    """What to read or write: the claim itself, or a descriptor of our own on the same file."""
    stays_blocking: bool = False
    """O_NONBLOCK is not set and must stay so: for the calls of `Nowait` only."""

    def end(self) -> None:
        atexit.unregister(self.end)
        try:
            self.handle.close()
        finally:
            self.claim.close()


def borrow(file: FileLike, *, to_read: bool) -> Loan:
    """Borrow *file* to read it or to write to it, not both.

    :raises OSError: it is not open, or not open for this.
    :raises DescriptorInUseError: it is under a transport already.
    """
    claim = Claim(file, keep_mode=True)
    try:
        if not (claim.readable if to_read else claim.writable):
            raise bad_descriptor(f"{file!r} is {'write' if to_read else 'read'}-only")
        mode = syscalls.fstat(claim.fd).st_mode
        if not _pollable(claim.fd, mode):
            return Loan(claim, claim)
        if stat.S_ISSOCK(mode):
            return Loan(claim, claim, stays_blocking=syscalls.get_blocking(claim.fd))
        fresh = _open_anew(claim.fd, mode, to_read)
        if fresh is not None:
            return Loan(claim, fresh)
        claim.release()
        claim = Claim(file)
        loan = Loan(claim, claim)
        atexit.register(loan.end)
        return loan
    except BaseException:
        claim.release()
        raise


def _pollable(fd: int, mode: int) -> bool:
    """Whether epoll_ctl(2) would take the descriptor."""
    if not stat.S_ISCHR(mode):
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    if syscalls.isatty(fd):
        return True
    try:
        poller = syscalls.epoll()
    except OSError:  # another platform
        return True
    try:
        poller.register(fd, 0)
    except PermissionError:
        return False
    finally:
        poller.close()
    return True


def _open_anew(fd: int, mode: int, to_read: bool) -> Handle | None:
    """The same pipe or terminal under a description of its own; None where there is none to have."""
    if not stat.S_ISFIFO(mode):
        device = syscalls.fstat(fd).st_rdev
        if not syscalls.isatty(fd) or (os.major(device), os.minor(device)) == _MASTER:
            return None
    flags = (os.O_RDONLY if to_read else os.O_WRONLY) | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fresh = syscalls.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return None
    try:
        # A FIFO whose writers have all left waits for the next one when it is opened now (fifo(7)).
        if not to_read or not _has_hung_up(fd) or _has_hung_up(fresh):
            return Handle(fresh)
    except BaseException:
        syscalls.close(fresh)
        raise
    syscalls.close(fresh)
    return None


def _has_hung_up(fd: int) -> bool:
    return bool(syscalls.poll_now(fd, select.POLLIN) & select.POLLHUP)


class Nowait:
    """read(2), write(2) and their kin that do not wait, though O_NONBLOCK is not set.

    preadv2(2) and pwritev2(2) with RWF_NOWAIT, which sockets take; -1 is the position of a stream.
    Other descriptors than *fds* get the plain calls.
    """

    __slots__ = ("_fds",)

    def __init__(self, fds: set[int]) -> None:
        self._fds = fds

    def read(self, fd: int, size: int) -> bytes:
        if fd not in self._fds:
            return syscalls.read(fd, size)
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.readv(fd, [buffer])])

    def readv(self, fd: int, buffers: list[Any]) -> int:
        if fd not in self._fds:
            return syscalls.readv(fd, buffers)
        return syscalls.preadv(fd, buffers, -1, syscalls.RWF_NOWAIT)

    def write(self, fd: int, data: Any) -> int:
        return self.writev(fd, [data]) if fd in self._fds else syscalls.write(fd, data)

    def writev(self, fd: int, buffers: list[Any]) -> int:
        if fd not in self._fds:
            return syscalls.writev(fd, buffers)
        return syscalls.pwritev(fd, buffers, -1, syscalls.RWF_NOWAIT)

    def splice(self, source: int, sink: int, *args: Any) -> int:
        if source in self._fds or sink in self._fds:
            raise OSError(errno.EINVAL, "splice() waits where only the flag of the socket says not to")
        return syscalls.splice(source, sink, *args)
