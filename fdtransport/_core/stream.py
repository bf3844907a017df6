"""Byte streams: the hot paths.

Reading: the loop calls a bound method of this class with no hop between. 64 KiB per read; a larger
buffer makes glibc map and unmap memory for each small read, at three times the cost per event.

Writing: try at once, keep what the kernel did not take. After a few small writes in one turn of
the loop, further ones wait for its end and leave together (the *cork*): the system call is most of
what a small write costs.
"""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, ClassVar, Protocol

from ..errors import Meaning, meaning
from . import syscalls
from .base import NEVER, BaseTransport
from .lifecycle import Event, State
from .queues import Buffer, ByteQueue
from .readiness import Pump

__all__ = ["BytesLike", "ReadyProtocol", "StreamTransport", "as_buffer"]

BytesLike = bytes | bytearray | memoryview

READ_SIZE = 64 * 1024
#: After a full read: as much as glibc still has at hand, just under where it starts to map memory.
MORE_SIZE = 124 * 1024
#: Reads per wake-up, so that a fast sender cannot starve the others.
READS = 8
#: Writes per wake-up, for the same reason.
WRITES = 16
#: Writes in a turn of the loop that go out at once before the cork holds further ones.
CORK_AFTER = 2
#: A piece of this size is never held: its system call costs less than keeping it.
CORK_PIECE = 8 * 1024
#: What the cork holds at most.
CORK_BYTES = 64 * 1024


class ReadyProtocol(Protocol):
    """A protocol that does its own reading: it is told of readiness and asks for the bytes.

    For await-based streams and the relay. Beside these it has the callbacks of
    ``asyncio.BaseProtocol`` and ``eof_received``.
    """

    def read_ready(self) -> None:
        """There is something to read, or the end: call ``read_now`` or one of its kin."""

    def peer_gone(self) -> None:
        """The hang-up watch saw the other side go while reading was paused. May be left out."""

    def write_ready(self) -> None:
        """What ``want_write`` asked for. May be left out by a protocol that never asks."""


class StreamTransport(BaseTransport, asyncio.Transport):
    """A byte stream on any descriptor that has one, or on a pair of a read and a write descriptor.

    A drop-in for asyncio's transports. *file* is a descriptor, an object with ``fileno()``, or a
    pair of such; it is taken over: made non-blocking, and closed at the end. What the descriptor
    cannot do by its access mode the transport cannot do either. Usually made by ``connect_fd`` and
    the other helpers rather than by hand.

    :raises OSError: the descriptor is closed, a directory, or the poller refuses it.
    :raises DescriptorInUseError: it is under a transport already.
    :raises TypeError: *file* or *protocol* is of no use.
    """

    __slots__ = ("_burst", "_cork", "_corked", "_direct", "_sys")

    #: What moves the bytes: the module ``syscalls``, or an object of an adapter with the same functions
    #: (a slot costs no time, unlike a class attribute).
    _sys: Any

    _new_queue: ClassVar[Callable[[], ByteQueue]] = ByteQueue

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._burst = 0
        self._cork = self._direct = CORK_AFTER
        self._corked = False
        self._sys = syscalls
        super().__init__(*args, **kwargs)

    # -- what an adapter may override ---------------------------------------------------------

    def _is_end(self) -> bool:
        """Whether an empty read means end of file."""
        return True

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
            handle, self._writing_handle, self._wfd = self._writing_handle, None, -1
            if handle is not None:
                if self._watched == handle.fd:
                    self._unwatch()
                try:
                    if stat.S_ISSOCK(syscalls.fstat(handle.fd).st_mode):
                        syscalls.shutdown_write(handle.fd)  # the read descriptor may be a dup of it
                finally:
                    handle.close()
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:  # the peer has gone: reading will tell
                self._step(Event.READ_ERROR, exc)

    # -- reading ------------------------------------------------------------------------------

    def _reader(self) -> Callable[[], object]:
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            return self._read_into
        if hasattr(protocol, "read_ready"):
            return self._tell_ready
        return self._read

    # Both end in a call of themselves rather than in a loop: nearly always one read is all there is.

    def _read(self, reads: int = READS, size: int = READ_SIZE) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        self._burst = 0  # a request was read: its answer does not wait
        try:
            data = self._sys.read(self._rfd, size)
        except OSError as exc:
            self._read_failed(exc)
            return
        if not data:
            self._read_nothing()
            return
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.data_received() call failed.", exc)
            return
        full = len(data) == size
        del data  # not one buffer per call, but the same one again
        if full and reads > 1 and self._goes_on(StreamTransport._read):
            self._read(reads - 1, MORE_SIZE)

    def _read_into(self, reads: int = READS) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        self._burst = 0
        try:
            buffer = self._protocol.get_buffer(-1)
            size = memoryview(buffer).nbytes
            if not size:
                raise RuntimeError("get_buffer() returned an empty buffer")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.get_buffer() call failed.", exc)
            return
        if not self._state.reads:
            return  # get_buffer() closed the transport
        try:
            count = self._sys.readv(self._rfd, [buffer])
        except OSError as exc:
            self._read_failed(exc)
            return
        if not count:
            self._read_nothing()
            return
        try:
            self._protocol.buffer_updated(count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.buffer_updated() call failed.", exc)
            return
        if count == size and reads > 1 and self._goes_on(StreamTransport._read_into):
            self._read_into(reads - 1)

    def _tell_ready(self) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        self._burst = 0
        self._guard("protocol.read_ready() failed", self._protocol.read_ready)

    def _goes_on(self, method: Callable[..., object]) -> bool:
        """After a callback: whether the same way of reading may go on in this wake-up."""
        if self._paused or not self._state.reads:
            return False
        return getattr(self._reader(), "__func__", None) is method

    # -- for a ReadyProtocol ------------------------------------------------------------------

    @property
    def can_read(self) -> bool:
        """Whether the descriptor has a read side."""
        return self._rfd >= 0

    def read_paused(self) -> None:
        """After ``pause_reading()`` in ``read_ready``: stop the poller, watch for a hang-up only."""
        self._readable_but_paused()

    def read_now(self, size: int) -> bytes | None:
        """Up to *size* bytes if there are any; None when there are none now, or none any more.

        End of file goes to ``eof_received()``, an error to ``connection_lost()``.
        """
        if not self._state.reads:
            return None
        self._burst = 0
        try:
            data: bytes = self._sys.read(self._rfd, size)
        except OSError as exc:
            self._read_failed(exc)
            return None
        if data:
            return data
        self._read_nothing()
        return None

    def readinto_now(self, buffer: bytearray | memoryview) -> int:
        """As ``read_now``, into *buffer*; 0 when there is nothing."""
        return self._take(self._sys.readv, self._rfd, [buffer])

    def splice_out(self, pipe: int, size: int) -> int:
        """Move up to *size* bytes from here into the write end of a pipe, without copying them.

        Returns the bytes moved; 0 as ``read_now`` gives None, or when the pipe is full.

        :raises OSError: EINVAL, this descriptor cannot be spliced from (splice(2)).
        """
        args = (self._rfd, pipe, size, None, None, syscalls.SPLICE_F_NONBLOCK)
        return self._take(self._sys.splice, *args, may_refuse=True)

    def _take(self, call: Callable[..., int], *args: Any, may_refuse: bool = False) -> int:
        if not self._state.reads:
            return 0
        try:
            count = call(*args)
        except OSError as exc:
            if exc.errno == errno.EINVAL and may_refuse:
                raise
            self._read_failed(exc)
            return 0
        if not count:
            self._read_nothing()
        return count

    def splice_in(self, pipe: int, size: int) -> int | None:
        """Move up to *size* bytes from the read end of a pipe to here, without copying them.

        The pipe must hold some, and the queue of this transport must be empty. Returns the bytes
        moved; None when the kernel takes none now: `want_write` then tells when to go on, or the
        loss when it was an error.

        :raises OSError: EINVAL, this descriptor cannot be spliced to (a file opened with O_APPEND).
        """
        if not self._state.writes:
            return None
        try:
            moved: int = self._sys.splice(pipe, self._wfd, size, None, None, syscalls.SPLICE_F_NONBLOCK)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise
            verdict = meaning(exc, self._WRITE_ERRORS)
            if verdict is Meaning.LATER:
                self._breathe(exc)
            elif verdict is Meaning.FATAL:
                self._write_failed(exc)
            return None
        self._tries = 0
        return moved

    def want_write(self) -> None:
        """Have ``protocol.write_ready()`` called once, when the kernel takes more and nothing is queued."""
        if self._state.writes:
            self._add_writer()

    # -- the end of reading -------------------------------------------------------------------

    def _read_failed(self, exc: OSError) -> None:
        verdict = meaning(exc, self._READ_ERRORS)
        if verdict is Meaning.AGAIN:
            if self._state is State.WRITE_FAILED:
                self._step(Event.DRAINED)
            elif isinstance(self._read_events, Pump) and self._reader_on:
                # Not at its end after all: back to the poller.
                self._remove_reader()
                self._read_events = self._loop
                self._add_reader()
            return
        if verdict is Meaning.END:
            self._read_eof()
            return
        exc.__traceback__ = None  # it would keep frames, and so this transport, alive
        self._note_hangup()
        self._step(Event.READ_ERROR, exc)

    def _read_nothing(self) -> None:
        try:
            end = self._is_end()
        except OSError as exc:
            self._read_failed(exc)
            return
        if end:
            self._read_eof()

    def _read_eof(self) -> None:
        self._note_hangup()
        if self._state is State.WRITE_FAILED and getattr(self._exception, "errno", 0) == errno.ECONNRESET:
            self._step(Event.DRAINED)  # the write took the error; for the read nothing is left but b""
            return
        try:
            keep = bool(self._protocol.eof_received())
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.eof_received() call failed.", exc)
            return
        self._step(Event.EOF_KEEP if keep else Event.EOF_CLOSE)

    def _hangup(self) -> None:
        super()._hangup()
        if self._paused and self._state.reads and hasattr(self._protocol, "peer_gone"):
            self._guard("protocol.peer_gone() failed", self._protocol.peer_gone)

    def _read_the_rest(self) -> None:
        # Finite, and ends with end of file or an error: no poller is needed for it.
        if not isinstance(self._read_events, Pump):
            self._read_events = Pump(self._loop)
        self._add_reader()

    def _drain(self) -> None:
        # A write failed. Reading goes on until it would wait; while it is paused, the loss waits.
        # A protocol that does its own reading is told, and resumes when it sees fit.
        if self._paused and hasattr(self._protocol, "peer_gone"):
            self._guard("protocol.peer_gone() failed", self._protocol.peer_gone)
        elif not self._paused and self._state is State.WRITE_FAILED:
            self._remove_reader()
            self._read_the_rest()

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

    def _flush(self) -> None:
        """Offer the queue to the kernel; called by the loop when the descriptor is writable."""
        queue = self._queue
        queue.grant(0)
        if not queue.size:
            self._remove_writer()
            if self._state.writes and hasattr(self._protocol, "write_ready"):
                self._guard("protocol.write_ready() failed", self._protocol.write_ready)
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

    async def write_from(self, source: AsyncIterable[BytesLike]) -> int:
        """Write everything that *source* yields, as fast as the reader takes it.

        Returns the bytes written. The source is asked for the next piece only while the queue is
        below its water marks. Cancelling is safe: what was yielded is written, the rest is not asked
        for. *source* counts as this transport's producer meanwhile.

        :raises OSError: the transport ended meanwhile.
        """
        gate = _Gate(self)
        total = 0
        self.register_producer(gate)
        try:
            async for data in source:
                self.write(data)
                total += memoryview(data).nbytes
                if gate.closed is not None:
                    await gate.closed
                if not self._state.writes:
                    break
        finally:
            if self._flow.producer is gate:
                self.unregister_producer()
        if not (self._state.writes or self._state.flushing):
            ended = ConnectionResetError(errno.ECONNRESET, "the transport has ended")
            raise self._exception or gate.error or ended
        return total


class _Gate:
    """The push producer behind ``write_from``: a future to wait for while writing is paused."""

    def __init__(self, transport: StreamTransport) -> None:
        self._transport = transport
        self.closed: asyncio.Future[None] | None = None
        self.error: BaseException | None = None

    def pause_producing(self) -> None:
        if self.closed is None:
            self.closed = self._transport._loop.create_future()

    def resume_producing(self) -> None:
        future, self.closed = self.closed, None
        if future is not None and not future.done():
            future.set_result(None)

    def stop_producing(self) -> None:
        self.error = self._transport._exception
        self.resume_producing()


def as_buffer(data: Any) -> BytesLike:
    """*data* as something that counts in bytes; TypeError when it is not bytes-like."""
    if isinstance(data, bytes | bytearray):
        return data
    if not isinstance(data, memoryview):
        raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
    if not data.c_contiguous:
        raise TypeError("data argument must be a contiguous memoryview")
    return data if data.format == "B" and data.ndim == 1 else data.cast("B")
