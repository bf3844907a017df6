"""The files of UNIX sockets: made with the right mode, never taken from a living server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from . import syscalls

__all__ = ["bind_unix", "dial_unix", "remover", "unix_family"]

#: Seconds between two tries at a server whose backlog is full, or at a directory's lock.
PATIENCE = 0.01
#: What fits into an address of unix(7) beside the NUL at its end: 108 bytes on Linux, 104 elsewhere.
PATH_BYTES = 107 if sys.platform == "linux" else 103
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

    :raises OSError: as connect(2); ENAMETOOLONG, the path is too long.
    """
    _check_length(path)
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            # connect(2) does not go on by itself then, and no poller tells when there is room. Loops
            # that wait for the socket to become writable take it for connected.
            await asyncio.sleep(PATIENCE)
        except OSError as exc:
            exc.filename = path
            raise


def _check_length(path: str | bytes) -> None:
    """Python's own error has no errno, and does not tell the limit."""
    size = len(os.fsencode(path))
    limit = PATH_BYTES if path[:1] not in ("\0", b"\0") else PATH_BYTES + 1  # its NUL comes first
    if size > limit:
        what = f"AF_UNIX path too long: {size} bytes, and at most {limit} fit"
        raise OSError(errno.ENAMETOOLONG, what, path)


async def bind_unix(sock: socket.socket, path: str | bytes, mode: int) -> None:
    """Bind, in the place of a socket file of ours that nobody serves any more if there is one.

    :raises OSError: EADDRINUSE, the path is taken; ENAMETOOLONG, it is too long; others as bind(2).
    """
    is_file = _is_file(path)
    _check_length(path)
    if not is_file:
        sock.bind(path)
        return
    if hasattr(os, "fchmod"):
        # Linux gives the mode of the socket to the file, so that there is no moment before a chmod.
        os.fchmod(sock.fileno(), mode)
    if not _try_bind(sock, path):
        # Of two servers that find the same old file, none must remove what the other has just made.
        async with _locked(os.path.dirname(path) or os.curdir):
            owner = await _clear(path)
            if owner is None and not _try_bind(sock, path):
                owner = "a server that has just started"
        if owner:
            raise OSError(errno.EADDRINUSE, f"Address {path!r} is already in use, by {owner}")
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
            exc.filename = path
            raise
        return False
    return True


async def _clear(path: str | bytes) -> str | None:
    """Remove what nobody owns any more; the owner, or None when the path is free.

    bind(2) makes the file first and then has the socket found by it: in between, somebody's new file
    looks like an old one. A file that nobody is found by at two moments is old.
    """
    seen = None
    while True:
        owner, file = _owner(path), _identity(path)
        if owner is not None or file is None:
            return owner
        if file == seen:
            syscalls.unlink(path)
            return None
        seen = file
        await asyncio.sleep(PATIENCE)


def _identity(path: str | bytes) -> tuple[int, int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _owner(path: str | bytes) -> str | None:
    """Who has the path; None when nobody has, or it is a socket file of ours to which no socket is bound
    any more.

    A datagram socket that connects to it tells, without disturbing a server: EPROTOTYPE when there
    is one, also one that does not listen yet; ECONNREFUSED when there is none.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(status.st_mode):
        return "a symbolic link" if stat.S_ISLNK(status.st_mode) else syscalls.kind(status.st_mode)
    with socket.socket(unix_family(), socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno == errno.ECONNREFUSED:
                mine = status.st_uid == os.geteuid()
                return None if mine else f"a socket file that user {status.st_uid} has left"
    return "a server"


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
    keeps the file's inode number from being used again. In a process that was forked since then the
    function does nothing: the file is the parent's.
    """
    if not _is_file(path):
        return None
    path = os.path.abspath(path)
    try:
        made = os.lstat(path)
    except OSError:
        return None

    maker = os.getpid()

    def remove() -> None:
        if os.getpid() != maker:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(path), made):
                syscalls.unlink(path)

    return remove
