"""The directories of a watched tree, opened, watched and listed by descriptor.

A path may lead somewhere else a moment later; what is opened, watched through /proc/self/fd and listed is
one directory, whatever becomes of its names meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from . import syscalls
from .inotify_records import InotifyMask

__all__ = ["Files"]

_FLAGS: int = sum(getattr(os, name, 0) for name in ("O_DIRECTORY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"))
_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)


# MASK_ADD: to ask for the number of a directory that is watched changes nothing about it.
_MODE = int(InotifyMask.ONLYDIR | InotifyMask.EXCL_UNLINK | InotifyMask.MASK_ADD)


class Files:
    """Directories, for the inotify instance *inotify*."""

    def __init__(self, inotify: int, mask: int) -> None:
        self._inotify = inotify
        # What relative paths are relative to, whatever becomes of it.
        try:
            self._here = os.getcwd()
        except FileNotFoundError:
            self._here = ""
        self._mask = mask | _MODE

    def absolute(self, path: str) -> str:
        if path[0] == "/":
            return path
        if not self._here:
            raise FileNotFoundError(errno.ENOENT, "the working directory was deleted", path)
        return f"{self._here}/{path}"

    def open(self, path: str, *, follow: bool) -> int:
        return syscalls.open(self.absolute(path), os.O_RDONLY | _FLAGS | (0 if follow else _NOFOLLOW))

    def open_in(self, directory: int, name: str) -> int:
        return syscalls.open(name, os.O_RDONLY | _FLAGS | _NOFOLLOW, dir_fd=directory)

    def close(self, fd: int) -> None:
        syscalls.close(fd)

    def watch(self, fd: int, more: int = 0) -> int:
        """The number of the watch of the directory *fd*, which is made if there is none."""
        return self._watch(fd, self._mask | more)

    def watch_for(self, fd: int, mask: int) -> int:
        """The same, for the events of *mask* only, unless it is watched already."""
        return self._watch(fd, mask | _MODE)

    def _watch(self, fd: int, mask: int) -> int:
        try:
            return syscalls.inotify_add_watch(self._inotify, b"/proc/self/fd/%d" % fd, mask)
        except FileNotFoundError:
            raise OSError(errno.ENOSYS, "trees can be watched only where /proc is mounted") from None

    def unwatch(self, number: int) -> None:
        try:
            syscalls.inotify_rm_watch(self._inotify, number)
        except OSError:
            pass  # it went with its directory

    def list(self, fd: int) -> AbstractContextManager[Iterator[Any]]:
        return syscalls.scandir(fd)

    def has_file(self, directory: int, name: str) -> bool:
        """Whether there is a *name* in *directory* that is no directory."""
        try:
            found = syscalls.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        return not stat.S_ISDIR(found.st_mode)

    def device(self, fd: int) -> int:
        """The number of the file system that *fd* is on; -1 when nobody can tell."""
        try:
            return syscalls.fstat(fd).st_dev
        except OSError:
            return -1

    def queued(self) -> int:
        """Bytes of events that nobody has read yet."""
        return syscalls.bytes_readable(self._inotify)
