"""Byte streams: the hot path of writing, on top of that of reading (``reading``).

Try at once, keep what the kernel did not take. After a few small writes in one turn of the loop,
further ones wait for its end and leave together (the *cork*): the system call is most of what a
small write costs.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, ClassVar

from ..errors import Meaning, meaning
from . import syscalls
from .base import NEVER
from .file_sending import send_file
from .filling import write_from
from .handle import FileLike, Handle
from .identity import Checked
from .lifecycle import Event, State
from .queues import Buffer, ByteQueue, SealedQueue
from .ready import ReadyTransport

__all__ = ["BytesLike", "StreamTransport", "as_buffer"]

BytesLike = bytes | bytearray | memoryview

#: Writes per wake-up, so that a fast reader cannot starve the others.
WRITES = 16
#: Writes in a turn of the loop that go out at once before the cork holds further ones.
CORK_AFTER = 2
#: A piece of this size is never held: its system call costs less than keeping it.
CORK_PIECE = 8 * 1024
#: What the cork holds at most.
CORK_BYTES = 64 * 1024


class StreamTransport(ReadyTransport, asyncio.Transport):
    """A byte stream on any descriptor that has one, or on a pair of a read and a write descriptor.

    A drop-in for asyncio's transports. *file* is a descriptor, an object with ``fileno()``, or a
    pair of such; it is taken over: made non-blocking, and closed at the end. What the descriptor
    cannot do by its access mode the transport cannot do either. Usually made by ``connect_fd`` and
    the other helpers rather than by hand.

    :raises OSError: the descriptor is closed, a directory, or the poller refuses it.
    :raises ValueError: it is a socket that listens.
    :raises DescriptorInUseError: it is under a transport already.
    :raises TypeError: *file* or *protocol* is of no use.
    """

    __slots__ = ("_cork", "_corked", "_direct")

    _new_queue: ClassVar[Callable[[], ByteQueue]] = ByteQueue

    # What the kind is as an end of a relay; for adapters to override.
    #: Whether the end of the other end closes it, rather than its write side alone.
    _EOF_CLOSES: ClassVar[bool] = False
    #: Seconds of silence after that end which count as its own, where its peer may not have heard of it;
    #: None where ``write_eof()`` tells for sure, and the answer may take its time.
    _EOF_SILENCE: ClassVar[float | None] = None
    #: Seconds without progress after which what is left for it is dropped, when nobody waits for its answers
    #: any more; None: never.
    _PATIENCE: ClassVar[float | None] = None
    #: Whether what is written may have no reader any more, and is taken without end: who goes on writing must
    #: let the loop turn, or would never hear of the end.
    _dropped: bool = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: FileLike | tuple[FileLike | None, FileLike | None],
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> None:
        self._burst = 0
        self._cork = self._direct = CORK_AFTER
        self._corked = False
        super().__init__(loop, file, protocol, waiter, extra, server)

    # -- TLS ----------------------------------------------------------------------------------

    @property
    def _start_tls_compatible(self) -> bool:
        # What loop.start_tls() asks.
        return self._rfd >= 0 and self._wfd >= 0

    def _check_upgrade(self) -> None:
        """Raise if TLS cannot start here, and the connection is to go on without it.

        :raises RuntimeError: one direction has ended, or somebody else writes here.
        """
        if self._state.ended:
            raise RuntimeError("Cannot start TLS after write_eof()")
        if self._flow.producer is not None:
            raise RuntimeError(f"{self._flow.producer!r} is registered, and would write past TLS")

    # -- what an adapter may override ---------------------------------------------------------

    def can_write_eof(self) -> bool:
        """Whether ``write_eof()`` can end the write side and leave the read side."""
        if self._wfd < 0:
            return False
        return self._wfd != self._rfd or stat.S_ISSOCK(syscalls.fstat(self._wfd).st_mode)

    def _end_writing(self) -> None:
        if self._state is State.LOSING:
            return  # the close that follows ends it
        try:
            if self._writing_handle is self._reading_handle:
                syscalls.shutdown_write(self._wfd)
                return
            handle = self._part_with_writing()
            if handle is not None:
                try:
                    if stat.S_ISSOCK(syscalls.fstat(handle.fd).st_mode):
                        syscalls.shutdown_write(handle.fd)  # the read descriptor may be a dup of it
                finally:
                    handle.close()
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:  # the peer has gone: reading will tell
                self._step(Event.READ_ERROR, exc)

    def _part_with_writing(self) -> Handle | None:
        """What is to be closed for the write side of a pair to end; nothing here uses it any more."""
        if self._watched == self._wfd:
            self._unwatch()
        if isinstance(self._sys, Checked):
            self._sys.forget(self._wfd)
        handle, self._writing_handle, self._wfd = self._writing_handle, None, -1
        return handle

    def _pending_error(self) -> OSError | None:
        try:
            code = syscalls.socket_error(self._wfd if self._wfd >= 0 else self._rfd)
        except OSError:
            return None  # no socket
        return OSError(code, os.strerror(code)) if code else None

    # -- writing ------------------------------------------------------------------------------

    @property
    def cork(self) -> int:
        """Writes in one turn of the loop that go out at once before further small ones wait for
        the end of the turn, to leave together. 0 turns that off: every write is offered at once.
        """
        return 0 if self._cork is NEVER else self._cork

    @cork.setter
    def cork(self, writes: int) -> None:
        if writes < 0:
            raise ValueError(f"cork ({writes!r}) must be >= 0")
        self._cork = writes or NEVER
        self._hold(self._flow.pull is not None)
        self._offer_cork()

    def write(self, data: BytesLike) -> None:
        """Send *data* (bytes, bytearray or a contiguous memoryview); never waits.

        What the kernel does not take at once is queued, and ``pause_writing()`` is called when
        more than the high water mark is. Changing the buffer afterwards changes nothing that is
        sent. After the loss it is dropped.

        :raises TypeError: *data* is something else.
        :raises RuntimeError: after ``write_eof()``.
        :raises OSError: EBADF, the descriptor is read-only.
        """
        queue = self._queue
        if type(data) is bytes and data:
            size = len(data)
            room = queue.room - size
            if room > 0 and size < CORK_PIECE:
                queue.pieces.append(data)
                queue.room = room
                return
        else:
            data = as_buffer(data)
            size = len(data)
        if not (size and self._state.writes):
            self._refuse_write(size)
            return
        if queue.pieces:
            queue.append(bytes(data))
            room = self._mark - queue.size
            if room < 0 or size >= CORK_PIECE:
                self._queue_grew()
            else:
                queue.grant(room)
        elif self._burst < self._direct or (size >= CORK_PIECE and self._direct):
            self._burst += 1
            try:
                sent = self._sys.write(self._wfd, data)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                self._write_raised(exc, data)
                return
            if sent < size:
                self._keep(data, sent)
        else:
            self._start_cork(bytes(data))

    def writelines(self, list_of_data: Iterable[BytesLike]) -> None:
        """Send each item in order, as ``write`` does, with one system call where possible.

        Any iterable; every item is checked before the first is sent.

        :raises TypeError: an item is not bytes-like; nothing is sent then.
        """
        pieces = [bytes(as_buffer(data)) for data in list_of_data]
        pieces = [piece for piece in pieces if piece]
        total = sum(map(len, pieces))
        if total < CORK_PIECE or not self._state.writes:
            self.write(b"".join(pieces))
            return
        queue = self._own_queue()
        for piece in pieces:
            queue.append(piece)
        self._queue_grew()

    def _keep(self, data: BytesLike, sent: int) -> None:
        """Queue what the kernel has left of *data*, and have the loop say when to go on."""
        rest = memoryview(data)[sent:] if type(data) is bytes else bytes(memoryview(data)[sent:])
        self._own_queue().append(rest)
        self._add_writer()
        if self._queue.size > self._mark:
            self._check_flow()

    def _start_cork(self, data: bytes) -> None:
        queue = self._own_queue()
        queue.append(data)
        if not self._corked:
            self._corked = True
            self._loop.call_soon(self._uncork, context=self._context)
        if self._mark != NEVER:
            self._mark = min(CORK_BYTES, self._flow.high)
            if queue.size > self._mark:
                self._queue_grew()
            else:
                queue.grant(self._mark - queue.size)

    def _uncork(self) -> None:
        self._corked = False
        self._burst = 0
        self._offer_cork()

    def _hold(self, hold: bool) -> None:
        self._direct = 0 if hold else self._cork

    def _offer_cork(self) -> None:
        if self._queue.size and not self._writer_on and self._wfd >= 0:
            self._flush()

    def _queue_grew(self) -> None:
        if not self._writer_on:
            self._flush()
        if self._mark != NEVER or self._flow.paused:
            self._check_flow()

    def _writer(self) -> Callable[[], object]:
        queue = self._queue
        return (type(queue) is SealedQueue and queue.feed) or self._flush

    def _flush(self) -> None:
        """Offer the queue to the kernel; called by the loop when the descriptor is writable."""
        queue = self._queue
        queue.grant(0)
        if not queue.size:
            if not (self._state.writes and self._wants_more()) and not self._queue.size:
                self._remove_writer()
            return
        for _ in range(WRITES):
            offer = queue.offer()
            try:
                if type(offer) is list:
                    sent = self._sys.writev(self._wfd, offer)
                    size = sum(map(len, offer))
                else:
                    sent = self._sys.write(self._wfd, offer)
                    size = len(offer)
            except BlockingIOError:
                sent, size = 0, 1
            except OSError as exc:
                self._write_raised(exc)
                return
            self._tries = 0
            queue.advance(sent)
            if sent < size or not queue.size:
                break
        if queue.size:
            self._add_writer()
        else:
            self._remove_writer()
        if self._waiters or self._flow.paused or self._flow.producer or self._state.flushing:
            self._shrunk()

    def _wants_more(self) -> bool:
        """Tell a protocol that does its own writing; whether it wants to be told again."""
        if not hasattr(self._protocol, "write_ready"):
            return False
        answer: list[object] = []
        self._guard("protocol.write_ready() failed", lambda: answer.append(self._protocol.write_ready()))
        return any(answer)

    def _write_raised(self, exc: OSError, data: Buffer | bytearray = b"") -> None:
        """A write failed; *data* was being written and is not queued yet."""
        verdict = meaning(exc, self._WRITE_ERRORS)
        if verdict in (Meaning.AGAIN, Meaning.LATER):
            if data:
                self._own_queue().append(bytes(data))
            if verdict is Meaning.AGAIN:
                self._add_writer()
            else:
                self._breathe(exc)
            if self._queue.size > self._mark:
                self._check_flow()
        else:
            self._write_failed(exc)

    def write_eof(self) -> None:
        """End the write side after what is queued; the read side goes on. Idempotent.

        On a transport with a write side only this is ``close()``.

        :raises NotImplementedError: the kind cannot end one side (see ``can_write_eof``).
        :raises OSError: EBADF, the descriptor is read-only.
        """
        if self._state is State.READ_ONLY:
            self._refuse_write(0)
        if self._state.closing or self._state.ended:
            return
        if not self.can_write_eof():
            raise NotImplementedError(f"{self!r} cannot end its write side alone")
        self._step(Event.WRITE_EOF)

    async def sendfile(
        self, file: Any, offset: int = 0, count: int | None = None, *, fallback: bool = True
    ) -> int:
        """Send *file* from *offset* on, *count* bytes of it or all; return when the kernel has them.

        The bytes go from the page cache to the descriptor without entering the process
        (sendfile(2)), on every loop and to every kind of descriptor that takes them so. *file*: a
        binary file object. What was written before goes first; ``write()`` raises RuntimeError
        meanwhile, and reading is paused, as with ``loop.sendfile``. Where the kernel cannot, because
        *file* is no regular file for instance, it is read and written piece by piece if *fallback*
        is true. A slow disk does not hold the loop.

        Returns the bytes sent, fewer than *count* if the file ends before. The position of the file is
        then ``offset`` plus that, also when this raises, and as it was if that is nothing. Cancelling is
        safe: it stops between two pieces, ``file.tell()`` says how far it came, and the transport goes on.

        :raises asyncio.SendfileNotAvailableError: the kernel cannot, and *fallback* is false.
        :raises ValueError: *file* is a text file or closed, *offset* is negative, *count* is below 1.
        :raises TypeError: *file* is no file object, *offset* or *count* no int.
        :raises RuntimeError: the transport is closing, or another file is under way.
        :raises ConnectionError: the transport ended meanwhile, also by ``close()``.
        :raises OSError: the file cannot be read, or the descriptor not be written to.

        ::

            with open("index.html", "rb") as file:
                await transport.sendfile(file)
        """
        return await send_file(self, file, offset, count, fallback)

    async def write_from(self, source: AsyncIterable[BytesLike]) -> int:
        """Write everything that *source* yields, as fast as the reader takes it.

        Returns the bytes written. The source is asked for the next piece only while the queue is
        below its water marks. Cancelling is safe: what was yielded is written, the rest is not asked
        for. *source* counts as this transport's producer meanwhile.

        :raises OSError: the transport ended meanwhile.
        """
        return await write_from(self, source)


def as_buffer(data: Any) -> BytesLike:
    """*data* as something that counts in bytes; TypeError when it is not bytes-like."""
    if isinstance(data, bytes | bytearray):
        return data
    if not isinstance(data, memoryview):
        raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
    if not data.c_contiguous:
        raise TypeError("data argument must be a contiguous memoryview")
    return data if data.format == "B" and data.ndim == 1 else data.cast("B")
