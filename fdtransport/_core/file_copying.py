"""A file that is read and written piece by piece: what is left where the kernel cannot send it.

Knows nothing of the transport but asyncio's own methods, so that it serves TLS and other libraries'
transports too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import stat
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from . import syscalls
from .readiness import in_memory

__all__ = ["check_file", "copy_file", "reading_held", "seek"]

#: Bytes that are read at once. Larger pieces cost TLS nothing less, and more memory.
PIECE = 64 * 1024


def check_file(file: Any, offset: int, count: int | None) -> None:
    """Raise what ``loop.sendfile`` raises for arguments that make no sense."""
    mode = getattr(file, "mode", "b")  # gzip's is an int
    if isinstance(file, io.TextIOBase) or (isinstance(mode, str) and "b" not in mode):
        raise ValueError("file should be opened in binary mode")
    if not (hasattr(file, "fileno") or hasattr(file, "read")):
        raise TypeError(f"file should be a binary file object (got {file!r})")
    if count is not None:
        if not isinstance(count, int):
            raise TypeError(f"count must be a positive integer (got {count!r})")
        if count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")
    if not isinstance(offset, int):
        raise TypeError(f"offset must be a non-negative integer (got {offset!r})")
    if offset < 0:
        raise ValueError(f"offset must be a non-negative integer (got {offset!r})")


@contextlib.contextmanager
def reading_held(transport: Any) -> Iterator[None]:
    """Leave what comes in the kernel, so that the peer's end of file does not cut the file short."""
    reading = getattr(transport, "is_reading", None)  # what can only be written to may not have it
    if reading is None or not reading():
        yield
        return
    transport.pause_reading()
    try:
        yield
    finally:
        transport.resume_reading()


def seek(file: Any, position: int) -> None:
    """Have *file* go on from *position*, where it can."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # ValueError: it was closed meanwhile
        file.seek(position)


async def copy_file(
    transport: Any, file: Any, offset: int, count: int | None, drained: Callable[[], Awaitable[Any]]
) -> int:
    """Write *file* to *transport*; *drained* is awaited while more than the high water mark is queued.

    :raises ConnectionError: the transport ended meanwhile.
    :raises OSError: *file* cannot be read.
    """
    if offset or _seekable(file):
        file.seek(offset)
    sent = 0
    try:
        while count is None or sent < count:
            if transport.is_closing():
                raise ConnectionResetError(errno.ECONNRESET, "the transport ended before the file was sent")
            size = PIECE if count is None else min(PIECE, count - sent)
            data = await _read(file, size, offset + sent)
            if not data:
                break
            if transport.is_closing():
                continue
            transport.write(data)
            sent += len(data)
            if transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]:
                await drained()
            else:
                await asyncio.sleep(0)
    finally:
        if sent:
            seek(file, offset + sent)
    return sent


def _seekable(file: Any) -> bool:
    try:
        return bool(file.seekable())
    except AttributeError:
        return hasattr(file, "seek")


async def _read(file: Any, size: int, position: int) -> bytes:
    """The next bytes, from a thread unless they are at hand."""
    # One read of the kernel's where it has that: a pipe's reader must not wait for a full piece.
    read = getattr(file, "read1", None) or file.read
    if _at_hand(file, position):
        data = read(size)
    else:
        reading = asyncio.get_running_loop().run_in_executor(None, read, size)
        try:
            data = await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The thread cannot be stopped, and moves the position when it is done.
            reading.add_done_callback(partial(_seek_after, file, position))
            raise
    if data is None:
        raise BlockingIOError(errno.EAGAIN, f"{file!r} is non-blocking, and has nothing now")
    return bytes(data)


def _seek_after(file: Any, position: int, reading: asyncio.Future[Any]) -> None:
    if not reading.cancelled():
        reading.exception()  # or else it would be reported as lost
        seek(file, position)


def _at_hand(file: Any, position: int) -> bool:
    if isinstance(file, io.BytesIO):
        return True
    if not isinstance(file, io.FileIO | io.BufferedReader | io.BufferedRandom):
        return False  # whatever its read() does besides
    fd = file.fileno()
    return stat.S_ISREG(syscalls.fstat(fd).st_mode) and in_memory(fd, position)
