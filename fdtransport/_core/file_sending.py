"""A file on its way out of a byte stream: by sendfile(2), past the write queue.

While it is under way the queue is sealed (``SealedQueue``), which is what ``write()`` sees of it. The
other way, for what the kernel does not send, is ``file_copying``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import Meaning, meaning
from . import syscalls
from .backpressure import BREATH
from .file_copying import check_file, copy_file, reading_held, seek
from .queues import SealedQueue
from .readiness import in_memory

__all__ = ["concerns_sink", "send_file"]

#: Bytes per system call, and calls per wake-up, so that a fast reader cannot starve the others.
PIECE, PIECES = 1024 * 1024, 4
#: Seconds until a disk is asked again, at first and at most.
PATIENCE, MOST_PATIENCE = 0.001, 0.016

#: Errnos that tell of what is written to. All others may come from the file just as well.
_OF_THE_SINK = frozenset({
    errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOTCONN, errno.ESHUTDOWN,
    errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
})  # fmt: skip


def concerns_sink(exc: OSError) -> bool:
    """Whether what sendfile(2) failed with is certain to be the fault of the descriptor written to."""
    return exc.errno in _OF_THE_SINK


async def send_file(transport: Any, file: Any, offset: int, count: int | None, fallback: bool) -> int:
    """``StreamTransport.sendfile``."""
    if transport.is_closing():
        raise RuntimeError("Transport is closing")
    check_file(file, offset, count)
    if not transport._state.writes:
        transport._refuse_write(0)
    if type(transport._queue) is SealedQueue:
        raise RuntimeError("unable to send a file; sendfile is in progress")
    with reading_held(transport):
        try:
            size = _size_to_send(transport, file)
            with _sealed(transport) as queue:
                await _queue_sent(transport)
                sending = FileSending(transport, queue, file, offset, count, size)
                sent = await sending.run()
            if sent or size:
                return sent
            # Files of /proc and of FUSE have no size, and some of them nothing for sendfile(2).
            if not fallback:
                return 0
        except asyncio.SendfileNotAvailableError:
            if not fallback:
                raise
        return await copy_file(transport, file, offset, count, transport.flushed)


def _size_to_send(transport: Any, file: Any) -> int:
    """How large the file is; SendfileNotAvailableError unless the kernel can send it."""
    if not hasattr(transport._sys, "sendfile"):
        raise asyncio.SendfileNotAvailableError(f"{transport!r} does not send by its descriptor alone")
    try:
        if hasattr(file, "flush"):
            file.flush()  # what was written to it is to be sent too
        status = syscalls.fstat(file.fileno())
    except (AttributeError, io.UnsupportedOperation):
        raise asyncio.SendfileNotAvailableError(f"{file!r} has no descriptor") from None
    if not stat.S_ISREG(status.st_mode):
        raise asyncio.SendfileNotAvailableError(f"{file!r} is no regular file")
    return status.st_size


@contextlib.contextmanager
def _sealed(transport: Any) -> Iterator[SealedQueue]:
    """Have ``write()`` refuse."""
    queue = transport._queue = SealedQueue(transport._queue)
    try:
        yield queue
    finally:
        if not queue.size:
            transport._remove_writer()
        transport._queue = queue.opened()


async def _queue_sent(transport: Any) -> None:
    transport._offer_cork()
    if transport._queue.size:
        await transport._add_waiter("flushed")
    if not transport._state.writes:
        raise transport._cut_off()


class FileSending:
    """One file and how far it is. What the table of lives does to the transport ends it (``sent``)."""

    def __init__(
        self, transport: Any, queue: SealedQueue, file: Any, offset: int, count: int | None, size: int
    ) -> None:
        self._transport = transport
        self._queue = queue
        self._file = file
        self._start = self._position = offset
        self._stop = sys.maxsize if count is None else offset + count
        self._size = size
        self._send: Callable[..., int] = transport._sys.sendfile
        self._done: asyncio.Future[None] = transport._add_waiter("sent")
        self._timer: asyncio.TimerHandle | None = None
        self._patience = 0.0

    async def run(self) -> int:
        """Send, and return the bytes that went.

        :raises asyncio.SendfileNotAvailableError: the kernel refuses; nothing was sent.
        """
        self._queue.feed = self._go_on
        self._go_on()
        waits = not self._done.done()
        try:
            await self._done
        finally:
            self._queue.feed = None
            if self._timer is not None:
                self._timer.cancel()
            if self._position > self._start:
                seek(self._file, self._position)
        if not waits:
            await asyncio.sleep(0)  # a task that sends file after file must not starve the others
        return self._position - self._start

    def _go_on(self) -> None:
        """Send what is taken now."""
        self._timer = None
        for _ in range(PIECES):
            if self._done.done():  # lost, or cancelled
                return
            size = min(self._stop - self._position, PIECE)
            try:
                fd = self._file.fileno()  # each time: it must not be the number of a file that was closed
                if not in_memory(fd, self._position, size):
                    self._patience = min(max(self._patience * 2, PATIENCE), MOST_PATIENCE)
                    self._again(self._patience)
                    return
                self._transport._check_unseen()
                sent = self._send(self._transport._wfd, fd, self._position, size)
            except OSError as exc:
                self._refused(exc)
                return
            except Exception as exc:  # ValueError: it is closed; OverflowError: no file has that position
                self._done.set_exception(exc)
                return
            self._patience = 0.0
            self._position += sent
            if not sent or self._position == self._stop:
                self._done.set_result(None)
                return
            if sent < size and self._position < self._size:
                break  # full
        self._transport._add_writer()

    def _again(self, seconds: float) -> None:
        # The poller would call at once.
        self._transport._remove_writer()
        self._timer = self._transport._loop.call_later(seconds, self._go_on)

    def _refused(self, exc: OSError) -> None:
        transport = self._transport
        verdict = meaning(exc, transport._WRITE_ERRORS)
        if verdict is Meaning.AGAIN:
            transport._add_writer()
        elif verdict is Meaning.LATER:
            self._again(BREATH)
        elif concerns_sink(exc):
            if exc.errno == errno.ENOTCONN:  # Python has no ConnectionError of its own for it
                self._done.set_exception(ConnectionError(*exc.args))
            transport._write_failed(exc)  # which ends this as well
        elif self._position == self._start:
            unavailable = asyncio.SendfileNotAvailableError(f"sendfile(2) failed: {exc}")
            unavailable.__cause__ = exc
            self._done.set_exception(unavailable)
        else:
            self._done.set_exception(exc)
