"""The files of FIFOs: opened without waiting in the kernel, or not opened at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator

from ..errors import EndpointError
from . import syscalls
from .file_events import file_events

__all__ = ["FLAGS", "Path", "opened_fifo"]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# Windows has neither these nor FIFOs.
FLAGS: int = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))
#: Seconds between two looks for a reader, at first and at most.
PATIENCE, MOST_PATIENCE = 0.005, 0.1


@contextlib.asynccontextmanager
async def opened_fifo(
    path: Path, mode: str, eof: str, create: int | None
) -> AsyncIterator[tuple[int, None] | tuple[None, int]]:
    """What a transport is made from; undone again when none is made."""
    if mode not in ("r", "w"):
        raise ValueError(f"mode must be 'r' or 'w', not {mode!r}")
    if eof not in ("close", "event", "reopen"):
        raise ValueError(f"eof must be 'close', 'event' or 'reopen', not {eof!r}")
    name = os.fspath(path)
    made = create is not None and _make(name, create)
    identity, fd = None, -1
    try:
        if made:
            identity = syscalls.stat(name)
        if mode == "w":
            fd = await _open_for_writing(name)
            yield None, fd
        else:
            fd = _open(name, os.O_RDWR if eof == "reopen" else os.O_RDONLY)
            yield fd, None
    except BaseException:
        if fd >= 0:
            syscalls.close(fd)
        with contextlib.suppress(OSError):
            if made and (identity is None or os.path.samestat(identity, syscalls.stat(name))):
                syscalls.unlink(name)
        raise


def _make(path: str | bytes, mode: int) -> bool:
    try:
        syscalls.mkfifo(path, mode)
    except FileExistsError:
        return False
    return True


def _open(path: str | bytes, access: int) -> int:
    _check(path, syscalls.stat(path))  # first: opening a device can do something
    fd = syscalls.open(path, access | FLAGS)
    try:
        _check(path, syscalls.fstat(fd))
    except BaseException:
        syscalls.close(fd)
        raise
    return fd


def _check(path: str | bytes, found: os.stat_result) -> None:
    if not stat.S_ISFIFO(found.st_mode):
        raise EndpointError(f"{path!r} is {syscalls.kind(found.st_mode)}, not a FIFO")


def _try_to_open(path: str | bytes) -> int | None:
    """The FIFO, opened for writing; None while nobody reads it."""
    try:
        return _open(path, os.O_WRONLY)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        return None


async def _open_for_writing(path: str | bytes) -> int:
    fd = _try_to_open(path)
    if fd is not None:
        return fd
    patience = PATIENCE
    with file_events([(path, syscalls.IN_OPEN, None)]) as (opened, _):
        while True:
            opened.clear()
            fd = _try_to_open(path)  # only now that it is watched: none can slip through in between
            if fd is not None:
                return fd
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await opened.wait()
            patience = min(patience * 2, MOST_PATIENCE)
