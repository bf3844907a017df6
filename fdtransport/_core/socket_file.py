"""The files of UNIX sockets: made with the right mode, never taken from a living server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from typing import Any

from . import syscalls

__all__ = ["bind_unix", "dial_unix", "remover", "unix_family"]

#: Seconds between two tries at a server whose backlog is full, or at a directory's lock.
PATIENCE = 0.01
#: Tries at a directory's lock; it is held for some system calls only.
LOCK_TRIES = 100


def unix_family() -> int:
    """AF_UNIX. :raises NotImplementedError: the platform has none."""
    family: int | None = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise NotImplementedError("UNIX sockets are not available on this platform")
    return family


async def dial_unix(sock: socket.socket, path: str | bytes) -> None:
    """Connect; wait while the server's backlog is full.

    :raises OSError: as connect(2).
    """
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            # connect(2) does not go on by itself then, and no poller tells when there is room. Loops
            # that wait for the socket to become writable take it for connected.
            await asyncio.sleep(PATIENCE)


async def bind_unix(sock: socket.socket, path: str | bytes, mode: int) -> None:
    """Bind, in the place of a socket file that nobody serves any more if there is one.

    :raises OSError: EADDRINUSE, the path is a living server's, or no socket file; others as bind(2).
    """
    if not _is_file(path):
        sock.bind(path)
        return
    if hasattr(os, "fchmod"):
        # Linux gives the mode of the socket to the file, so that there is no moment before a chmod.
        os.fchmod(sock.fileno(), mode)
    taken = OSError(errno.EADDRINUSE, f"Address {path!r} is already in use")
    if not _try_bind(sock, path):
        # Of two servers that find the same old file, none must remove what the other has just made.
        async with _locked(os.path.dirname(path) or os.curdir):
            if not _is_stale(path):
                raise taken
            syscalls.unlink(path)
            if not _try_bind(sock, path):
                raise taken
    if stat.S_IMODE(os.lstat(path).st_mode) != mode:
        os.chmod(path, mode)  # the umask took something away


def _is_file(path: str | bytes) -> bool:
    """Whether a UNIX address is the path of a file, and no abstract name."""
    if not path or path[0] in (0, "\0"):
        return False
    if "\0" in os.fsdecode(path):
        raise ValueError(f"embedded null byte in {path!r}")  # bind(2) would take what is before it
    return True


def _try_bind(sock: socket.socket, path: str | bytes) -> bool:
    try:
        sock.bind(path)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _is_stale(path: str | bytes) -> bool:
    """Whether the path is that of a socket file to which no socket is bound any more.

    A datagram socket that connects to it tells, without disturbing a server: EPROTOTYPE when there
    is one, also one that does not listen yet; ECONNREFUSED when there is none.
    """
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(unix_family(), socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as exc:
            return exc.errno == errno.ECONNREFUSED
    return False


@contextlib.asynccontextmanager
async def _locked(directory: Any) -> AsyncIterator[None]:
    """Hold an flock(2) on a directory, where that is possible."""
    try:
        fd = syscalls.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield  # not readable for us
        return
    try:
        for _ in range(LOCK_TRIES):
            try:
                syscalls.lock(fd)
            except BlockingIOError:
                await asyncio.sleep(PATIENCE)
            except OSError:
                break  # no locks on this file system
            else:
                break
        yield
    finally:
        syscalls.close(fd)


def remover(path: str | bytes) -> Callable[[], None] | None:
    """A function that removes the socket file at *path*, if it is then still the one that is there now.

    None for an abstract name, and when there is no file. To be called while the socket is bound: it
    keeps the file's inode number from being used again.
    """
    if not _is_file(path):
        return None
    path = os.path.abspath(path)
    try:
        made = os.lstat(path)
    except OSError:
        return None

    def remove() -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(path), made):
                syscalls.unlink(path)

    return remove
