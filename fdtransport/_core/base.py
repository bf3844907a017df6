"""The life that byte streams and records share: opening, reading interest, back pressure, the end.

What happens when is the table of ``lifecycle``; this module carries its actions out. The hot paths
are in ``stream`` and ``packet``.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import os
import stat
import sys
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from ..errors import COMMON, WRITING, BufferLimitError, ErrnoTable, bad_descriptor
from . import syscalls
from .flow import Flow, Producer
from .handle import FileLike, Handle, fileno_of
from .lifecycle import TABLE, Action, CloseReason, Event, State, reason_of
from .queues import ByteQueue, PacketQueue
from .readiness import EventSource, Pump, cannot_be_polled, forgets_after_error, hangup_watch

__all__ = ["BaseTransport", "Detached"]

_log = logging.getLogger("fdtransport")

#: From this many writes after the loss on, each is warned of, as asyncio does.
WARN_FROM_LOST_WRITE = 5
#: After ENOBUFS: seconds until the next try, and tries until it counts as an error.
BREATH, BREATHS = 0.01, 100

NEVER = sys.maxsize

# A transport that never had to queue a byte shares these with all others like it.
_NO_QUEUE: Any = ByteQueue()
_NO_FLOW = Flow()


class Detached(NamedTuple):
    """What ``detach()`` gives back."""

    file: Any
    """The descriptor, file object or pair that the transport was made from, in its former mode."""
    unread: bytes
    """Bytes that were read from it and not delivered to anybody."""
    unsent: bytes
    """Bytes that were written to the transport and not taken by the kernel."""


class BaseTransport(asyncio.BaseTransport):
    """See the module's first lines. Not to be used by itself."""

    __slots__ = (
        "__weakref__",
        "_close_reason",
        "_context",
        "_exception",
        "_flow",
        "_hung_up",
        "_loop",
        "_mark",
        "_paused",
        "_protocol",
        "_queue",
        "_read_events",
        "_reader_on",
        "_reading_handle",
        "_rfd",
        "_server",
        "_state",
        "_tries",
        "_waiters",
        "_watched",
        "_wfd",
        "_write_events",
        "_writer_on",
        "_writing_handle",
    )

    _loop: asyncio.AbstractEventLoop
    _protocol: Any
    _queue: Any
    _flow: Flow
    _state: State
    _extra: dict[str, Any] | None

    #: What a failed read or write means to this kind.
    _READ_ERRORS: ClassVar[ErrnoTable] = COMMON
    _WRITE_ERRORS: ClassVar[ErrnoTable] = WRITING
    _new_queue: ClassVar[Callable[[], ByteQueue | PacketQueue]]

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: FileLike | tuple[FileLike | None, FileLike | None],
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> None:
        self._state = State.CLOSED  # until it is all there: __del__ and repr look at it
        if not hasattr(protocol, "connection_made"):
            raise TypeError(f"a protocol is needed, not {protocol!r}")
        self._loop = loop
        self._rfd = self._wfd = -1
        self._reading_handle, self._writing_handle = _adopt(file)
        self._extra = extra
        self._server = server
        self._context = contextvars.copy_context()
        self._read_events: EventSource = loop
        self._write_events: EventSource = loop
        self._queue = _NO_QUEUE
        self._flow = _NO_FLOW
        self._mark = NEVER  # no flow callback before connection_made
        self._paused = self._reader_on = self._writer_on = self._hung_up = False
        self._tries = 0  # after ENOBUFS; after the loss, writes that were dropped
        self._watched = -1
        self._exception: BaseException | None = None
        self._close_reason: CloseReason | None = None
        self._waiters: dict[str, list[asyncio.Future[None]]] | None = None
        if self._reading_handle is not None:
            self._rfd = self._reading_handle.fd
        if self._writing_handle is not None:
            self._wfd = self._writing_handle.fd
        # First in the queue of the loop: whatever readiness brings comes after connection_made.
        begin = loop.call_soon(self._begin, waiter, context=self._context)
        try:
            self._set_protocol(protocol)
            self._check_kind()
            self._register()
        except BaseException:
            begin.cancel()
            self._remove_interest()
            self._protocol = None
            self._let_go(Handle.release)
            raise
        self._state = (
            State.READ_ONLY if self._wfd < 0 else State.WRITE_ONLY if self._rfd < 0 else State.OPEN
        )
        if server is not None:
            _attach(server, self)

    # -- what an adapter may override ---------------------------------------------------------

    def _check_kind(self) -> None:
        """Raise when this is no descriptor for this kind of transport."""

    def _find_extra(self, name: str) -> Any:
        """Extra info that is worked out when somebody asks; None when there is none."""
        return None

    def _end_writing(self) -> None:
        """End the write side; what was queued has been sent."""

    def _reset(self) -> None:
        """Make the peer see a reset rather than an end, where the kind can."""

    def _pending_error(self) -> OSError | None:
        """The error that the kernel keeps for the descriptor after a hang-up, if the kind has one."""
        return None

    # -- registration -------------------------------------------------------------------------

    def _register(self) -> None:
        """Ask for readiness now, so that a refusal is the caller's and not a deaf transport's."""
        try:
            if self._rfd < 0:
                self._watch(self._wfd, reading=False)
                return
            if forgets_after_error(self._loop):
                # uvloop looks at the poller before it runs what is ready, so a reader that was
                # added here could be called before connection_made: _begin adds it. The watch's
                # own epoll accepts or refuses the descriptor meanwhile.
                self._watch(self._rfd, reading=True)
            else:
                self._add_reader()
        except OSError as exc:
            if not cannot_be_polled(exc):
                raise
            fd = self.fileno()
            if stat.S_ISDIR(syscalls.fstat(fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), fd) from None
            self._cannot_poll(fd)
            pump = Pump(self._loop)
            if self._rfd >= 0:
                self._read_events = pump
                self._add_reader()
            if self._wfd == fd:
                self._write_events = pump

    def _cannot_poll(self, fd: int) -> None:
        """Raise if files that cannot be polled are not for this kind of transport."""

    def _add_reader(self) -> None:
        # The loop runs a callback in a copy of the context that add_reader was called in; going
        # through run() makes it the one context of this transport, whoever resumes reading.
        self._read_events.add_reader(self._rfd, self._context.run, self._reader())
        self._reader_on = True

    def _reader(self) -> Callable[[], object]:
        """The bound method that the loop is to call when the descriptor is readable."""
        raise NotImplementedError

    def _remove_reader(self) -> None:
        if self._reader_on:
            self._reader_on = False
            self._read_events.remove_reader(self._rfd)

    def _add_writer(self) -> None:
        if not self._writer_on:
            try:
                self._write_events.add_writer(self._wfd, self._context.run, self._flush)
            except OSError as exc:
                if not cannot_be_polled(exc):
                    self._step(Event.WRITE_ERROR, exc)
                    return
                # The write descriptor of a pair is a file (a full disk gives short writes).
                self._write_events = Pump(self._loop)
                self._write_events.add_writer(self._wfd, self._context.run, self._flush)
            self._writer_on = True

    def _remove_writer(self) -> None:
        if self._writer_on:
            self._writer_on = False
            self._write_events.remove_writer(self._wfd)

    # -- hang-up ------------------------------------------------------------------------------

    @property
    def hung_up(self) -> bool:
        """Whether the other side is known to have gone, or to have ended its direction.

        Noticed also while reading is paused and while nobody writes. What it sent before can
        still be read.
        """
        return self._hung_up

    async def wait_hangup(self) -> None:
        """Return when the other side has gone, or when this transport has ended. Cancelling is safe."""
        if self._rfd >= 0 and self._state.reads and not self._hung_up:
            self._watch_quietly(self._rfd, reading=True)
        while not (self._hung_up or self._state is State.CLOSED):
            await self._add_waiter("hangup")

    def _watch(self, fd: int, *, reading: bool) -> None:
        if self._watched != fd:
            self._unwatch()
        if hangup_watch(self._loop).arm(fd, self._on_hangup, reading=reading):
            self._watched = fd

    def _unwatch(self) -> None:
        if self._watched >= 0:
            watched, self._watched = self._watched, -1
            hangup_watch(self._loop).disarm(watched)

    def _watch_quietly(self, fd: int, *, reading: bool) -> None:
        """As ``_watch``, for a transport that lives on when the kernel refuses the watch."""
        if self._watched != fd or not reading:
            try:
                self._watch(fd, reading=reading)
            except OSError:
                pass  # a file, or no memory for one more watch: reading and writing will tell

    def _on_hangup(self) -> None:
        self._context.run(self._hangup)

    def _hangup(self) -> None:
        self._note_hangup()
        if self._reader_on and forgets_after_error(self._loop):
            self._remove_reader()
            self._read_the_rest()
        if self._queue.size:
            if self._writer_on:
                return  # the write that is waiting will tell, with its errno
            self._flush()
        error = None if self._state.reads else self._pending_error()
        if error is not None:
            self._step(Event.READ_ERROR, error)
        else:
            self._step(Event.HANGUP)

    def _read_again(self) -> None:
        if self._hung_up and forgets_after_error(self._loop):
            self._read_the_rest()
        else:
            self._add_reader()

    def _read_the_rest(self) -> None:
        """Go on reading where the loop's poller has dropped the descriptor."""
        self._add_reader()

    def _note_hangup(self) -> None:
        self._hung_up = True
        self._wake("hangup")

    # -- life ---------------------------------------------------------------------------------

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report("protocol.connection_made() failed", exc)
        self._begun()
        try:
            if self.is_reading() and not self._reader_on:
                self._read_again()
        except (OSError, RuntimeError) as exc:  # RuntimeError: a transport of the loop's own has it
            if waiter is None or waiter.done():
                self._step(Event.READ_ERROR, exc)
            else:
                waiter.set_exception(exc)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _begun(self) -> None:
        self._queue.grant(0)
        self._mark = self._flow.high
        if self._queue.size:
            self._flush()
            self._check_flow()

    def _step(self, event: Event, exc: BaseException | None = None) -> None:
        old = self._state
        new, actions = TABLE[old][event]
        if new is not old:
            self._state = new
            self._queue.grant(0)  # write() is to look at the state again
            self._close_reason = reason_of(event, old, new, self._close_reason)
            if exc is not None and self._exception is None:
                self._exception = exc
        for action in actions:
            _DO[action](self)

    def close(self) -> None:
        """Stop reading, send what is queued, then end with ``connection_lost(None)``.

        Idempotent. A registered producer is waited for until it unregisters. A peer that never
        reads can hold the end back for ever: see ``aclose``.
        """
        self._step(Event.CLOSE)

    def abort(self, reset: bool = False) -> None:
        """Drop what is queued and end at the next turn of the loop. Idempotent.

        *reset*: have the peer see a connection reset, where the kind can (TCP: SO_LINGER of
        socket(7) with a time of zero).
        """
        if self._state is State.CLOSED:
            return
        self._offer_cork()
        if reset:
            self._reset()
        self._step(Event.ABORT)

    async def aclose(self, timeout: float | None = None) -> None:
        """Close, and return when the descriptor is closed.

        *timeout*: seconds for the queue to be sent; then the transport is aborted. Cancelling is
        safe: the transport goes on closing.
        """
        self.close()
        if self._state is State.CLOSED:
            return
        lost = self._add_waiter("lost")
        await asyncio.wait([lost], timeout=timeout)
        if not lost.done():
            self.abort()
            await lost

    def is_closing(self) -> bool:
        """Whether ``connection_lost`` has come or is under way."""
        return self._state.closing

    @property
    def close_reason(self) -> CloseReason | None:
        """Who ended it: this side, the peer, an error or an abort; None while it is open."""
        return self._close_reason

    def detach(self) -> Detached:
        """Give the descriptor back, in its former mode, and end without closing it.

        ``connection_lost(None)`` follows. What only waited for the end of the loop's turn is sent
        first.

        :raises OSError: EBADF, the transport has ended already.
        """
        self._offer_cork()
        if (self._rfd < 0 and self._wfd < 0) or self._state is State.LOSING:
            raise bad_descriptor("the transport has ended") from self._exception
        unread, unsent = self._unread(), self._queue.take()
        if unsent:
            self._wake("flushed", self._cut_off())
        self._remove_interest()
        file = self._let_go(Handle.release)
        self._step(Event.CLOSE)
        self._step(Event.FLUSHED)  # close() was called before, or would wait for a producer
        return Detached(file, unread, unsent)

    def _give_back(self) -> None:
        """End without closing the descriptor: the helper that made this transport failed."""
        if self._state not in (State.LOSING, State.CLOSED):
            self._remove_interest()
            self._queue.clear()
            self._let_go(Handle.release)
            self._step(Event.ABORT)

    def _unread(self) -> bytes:
        take = getattr(self._protocol, "take_unread", None)  # one that does its own reading
        unread: bytes = take() if take is not None else b""
        return unread

    def _force_close(self, exc: BaseException | None) -> None:
        """What asyncio's TLS calls on the transport below it."""
        self._step(Event.ABORT if exc is None else Event.READ_ERROR, exc)

    # -- actions of the table -----------------------------------------------------------------

    def _stop_reading(self) -> None:
        self._remove_reader()
        if self._state in (State.READ_ENDED, State.BOTH_ENDING):
            self._watch_quietly(self._wfd, reading=False)

    def _flush_and_tell(self) -> None:
        self._offer_cork()
        self._maybe_flushed()

    def _maybe_flushed(self) -> None:
        if not self._state.flushing or self._queue.size:
            return
        producer = self._flow.producer
        # A transport that does not read any more has nothing to produce.
        if producer is None or (isinstance(producer, BaseTransport) and not producer._state.reads):
            self._step(Event.FLUSHED)

    def _drop(self) -> None:
        self._remove_writer()
        if self._queue.size:
            self._wake("flushed", self._cut_off())
        self._queue.clear()
        self._mark = NEVER
        if self._state is State.WRITE_FAILED and self._flow.must_resume(0):
            # Whoever waits to write must not wait for the reader that is being served first.
            self._call("resume_writing")

    def _drain(self) -> None:
        raise NotImplementedError

    def _schedule(self) -> None:
        self._remove_interest()
        if self._loop.is_closed():
            self._state = State.CLOSED
            self._let_go(Handle.close)
            return
        self._tries = 0
        self._loop.call_soon(self._step, Event.TURN, context=self._context)

    def _tell_lost(self) -> None:
        protocol, exc = self._protocol, self._exception
        try:
            producer = self._flow.unregister() if self._flow is not _NO_FLOW else None
            if producer is not None:
                self._guard("producer.stop_producing() failed", producer.stop_producing)
            self._keep_extra()
            self._guard("protocol.connection_lost() failed", protocol.connection_lost, exc)
        finally:
            self._protocol = self._exception = None
            try:
                self._let_go(Handle.close)
            except OSError as error:
                # EBADF: closed behind our back, which the loss has told. EINTR: closed all the same.
                if error.errno not in (errno.EBADF, errno.EINTR):
                    self._report("closing the descriptor failed", error)
            for kind in tuple(self._waiters or ()):
                self._wake(kind)
            server, self._server = self._server, None
            if server is not None:
                _detach(server, self)

    def _keep_extra(self) -> None:
        """The last moment at which extra info can be worked out from the descriptor."""

    def _remove_interest(self) -> None:
        if not self._loop.is_closed():
            self._remove_reader()
            self._remove_writer()
        self._unwatch()

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        """Close or release the descriptors; the numbers are not ours any more."""
        self._rfd = self._wfd = -1
        reading, self._reading_handle = self._reading_handle, None
        writing, self._writing_handle = self._writing_handle, None
        files = []
        try:
            # The write handle of a pair first: both may share one description, and the first one
            # to have changed its mode is the one to put it back.
            if writing is not None and writing is not reading:
                files.append(how(writing))
        finally:
            if reading is not None:
                files.append(how(reading))
        return files[0] if len(files) == 1 else tuple(reversed(files))

    # -- reading ------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether data may come: not paused, not ended, not closing."""
        return not self._paused and self._state.reads and not self._state.closing

    def pause_reading(self) -> None:
        """No data callback after this returns, until ``resume_reading()``. Idempotent.

        :raises NotImplementedError: on a write-only transport.
        """
        self._check_reads()
        # The poller is asked to stop only if something comes: a pause that ends before that, as
        # in a relay, costs no system call.
        self._paused = True

    def resume_reading(self) -> None:
        """Let data come again. Idempotent.

        :raises NotImplementedError: on a write-only transport.
        """
        self._check_reads()
        if not self._paused:
            return
        self._paused = False
        try:
            if self._state is State.WRITE_FAILED:
                self._drain()
            elif self._state.reads and not self._reader_on:
                self._read_again()
        except OSError as exc:
            self._step(Event.READ_ERROR, exc)

    def _check_reads(self) -> None:
        if self._state is State.WRITE_ONLY:
            raise NotImplementedError(f"{self!r} cannot read: its descriptor is write-only")

    def _readable_but_paused(self) -> None:
        self._remove_reader()
        if self._read_events is self._loop:
            self._watch_quietly(self._rfd, reading=True)

    def pause_producing(self) -> None:
        """``pause_reading()``, under the name that makes a transport a push producer."""
        self.pause_reading()

    def resume_producing(self) -> None:
        """``resume_reading()``, under the name that makes a transport a push producer."""
        self.resume_reading()

    def stop_producing(self) -> None:
        """``close()``, under the name that makes a transport a push producer."""
        self.close()

    # -- writing ------------------------------------------------------------------------------

    def _flush(self) -> None:
        raise NotImplementedError

    def _offer_cork(self) -> None:
        """Hand over to the kernel what waits only for the end of the loop's turn."""

    def _own_queue(self) -> Any:
        if self._queue is _NO_QUEUE:
            self._queue = type(self)._new_queue()
        return self._queue

    def _own_flow(self) -> Flow:
        if self._flow is _NO_FLOW:
            self._flow = Flow()
        return self._flow

    def get_write_buffer_size(self) -> int:
        """Bytes that were written and that the kernel did not take."""
        self._offer_cork()
        return int(self._queue.size)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """``(low, high)`` in bytes."""
        return (self._flow.low, self._flow.high)

    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None, *, hard: int | None = None
    ) -> None:
        """Set the water marks in bytes, as asyncio does, and a hard limit (default: none).

        Above *high* the protocol's ``pause_writing()`` is called, at *low* or below
        ``resume_writing()``. Above *hard* the transport ends with ``BufferLimitError``.

        :raises ValueError: unless ``hard >= high >= low >= 0``.
        """
        flow = self._own_flow()
        flow.set_limits(high, low, hard)
        if self._mark != NEVER or flow.paused:
            self._mark = flow.high
            self._queue.grant(0)
            self._offer_cork()
            self._check_flow()

    @property
    def _protocol_paused(self) -> bool:
        # asyncio's sendfile fallback and TLS look at it.
        return self._flow.paused

    def _check_flow(self) -> None:
        """Pause the protocol and the producer if the queue is above its mark."""
        flow, size = self._flow, self._queue.size
        if size <= flow.high and not flow.paused:
            self._mark = flow.high
            return
        flow = self._own_flow()
        if flow.over_hard_limit(size):
            self._step(Event.READ_ERROR, BufferLimitError(size, flow.hard or 0))
            return
        paused = flow.must_pause(size)
        self._mark = NEVER if flow.hard is None else flow.hard
        if paused:
            if flow.push is not None:
                self._guard("producer.pause_producing() failed", flow.push.pause_producing)
            self._call("pause_writing")

    def _shrunk(self) -> None:
        """After the kernel took something: resume, tell an empty queue."""
        queue, flow = self._queue, self._flow
        if flow.paused and flow.must_resume(queue.size):
            self._mark = flow.high
            if flow.push is not None:
                self._guard("producer.resume_producing() failed", flow.push.resume_producing)
            self._call("resume_writing")
        if not queue.size:
            if self._waiters:
                self._wake("flushed")
            if flow.pull is not None:
                # Not from here: its answer may empty the queue again, and so on without end.
                self._loop.call_soon(self._ask_producer, context=self._context)
            self._maybe_flushed()

    async def flushed(self) -> None:
        """Return when the kernel has everything that was written. Cancelling is safe.

        :raises OSError: the transport ended before; the loss's own exception where it had one.
        """
        self._offer_cork()
        while self._queue.size:
            await self._add_waiter("flushed")
        if self._close_reason in (CloseReason.ERROR, CloseReason.ABORT):
            raise self._cut_off()

    def _cut_off(self) -> BaseException:
        return self._exception or ConnectionResetError(
            errno.ECONNRESET, "the transport ended before everything was sent"
        )

    def register_producer(self, producer: Producer, streaming: bool = True) -> None:
        """Make *producer* (an object with ``pause_producing``, ``resume_producing`` and
        ``stop_producing``) the source of what is written here, and obey the water marks through it.

        *streaming*: True for a push producer, paused and resumed exactly as the protocol is; False
        for a pull producer, asked by ``resume_producing()`` now and each time the queue empties.
        Another transport is a push producer. On a transport that is closing or lost the producer
        is stopped at once.

        :raises RuntimeError: another producer is registered.
        """
        if self._state.closing:
            producer.stop_producing()
            return
        flow = self._own_flow()
        flow.register(producer, streaming)
        if isinstance(producer, BaseTransport):
            producer._add_waiter("lost").add_done_callback(lambda _: self._producer_lost(producer))
        if not streaming:
            self._hold(True)
            self._ask_producer()
        elif flow.paused:
            self._guard("producer.pause_producing() failed", producer.pause_producing)

    def _ask_producer(self) -> None:
        """Ask a pull producer for more."""
        producer = self._flow.pull
        if producer is not None and not self._queue.size and self._state.writes:
            self._guard("producer.resume_producing() failed", producer.resume_producing)

    def _hold(self, hold: bool) -> None:
        """Have every write wait for the end of the turn, so that the queue empties once per request."""

    def unregister_producer(self) -> None:
        """Forget the producer, without stopping it. Without one it does nothing."""
        if self._flow.producer is not None:
            self._flow.unregister()
            self._hold(False)
            self._maybe_flushed()

    def _producer_lost(self, producer: Producer) -> None:
        if self._flow.producer is producer:
            self.unregister_producer()

    def _write_failed(self, exc: OSError) -> None:
        exc.__traceback__ = None  # it would keep frames, and so this transport, alive
        if exc.errno in (errno.EPIPE, errno.ECONNRESET):
            self._note_hangup()
        self._step(Event.WRITE_ERROR, exc)

    def _breathe(self, exc: OSError) -> None:
        """The kernel has no buffers. The poller would call at once and again: wait a little."""
        self._tries += 1
        if self._tries > BREATHS:
            self._write_failed(exc)
            return
        if self._writer_on:
            self._write_events.remove_writer(self._wfd)
        self._writer_on = True
        self._loop.call_later(BREATH, self._after_breath, context=self._context)

    def _after_breath(self) -> None:
        if self._queue.size and self._wfd >= 0:
            self._writer_on = False
            self._flush()

    def _refuse_write(self, size: int) -> None:
        """``write()`` in a state in which nothing can be sent."""
        state = self._state
        if state is State.READ_ONLY:
            raise bad_descriptor("this transport's descriptor is read-only")
        if state.ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        if size:
            self._tries += 1
            if self._tries >= WARN_FROM_LOST_WRITE:
                _log.warning("write() on a transport that has ended: %r", self)

    # -- protocol -----------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what comes from now on to *protocol*; ``connection_made`` is not called on it."""
        if self._state is State.CLOSED:
            return
        self._offer_cork()
        replaced = getattr(self._protocol, "replaced", None)  # one that does its own reading
        if replaced is not None:
            replaced()
        self._set_protocol(protocol)
        if self._reader_on:
            self._add_reader()

    def _set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        """The protocol; None after the loss."""
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Information about the transport: ``fd``, and what its kind has; *default* otherwise."""
        if name == "fd":
            return self.fileno()
        extra = self._extra
        if extra is not None and name in extra:
            return extra[name]
        value = self._find_extra(name) if self.fileno() >= 0 else None
        return default if value is None else value

    def fileno(self) -> int:
        """The descriptor that is read, or else written; -1 after the end."""
        return self._rfd if self._rfd >= 0 else self._wfd

    # -- callbacks, waiters -------------------------------------------------------------------

    def _report(self, message: str, exc: BaseException) -> None:
        context = {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        self._loop.call_exception_handler(context)

    def _guard(self, message: str, function: Callable[..., object], *args: Any) -> None:
        """Call, and report what it raises."""
        try:
            function(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(message, exc)

    def _call(self, name: str) -> None:
        """Call a flow callback of the protocol in this transport's context.

        ``write()`` may be called from anywhere: inside the context, where it cannot be entered
        once more, or outside of it.
        """
        function = getattr(self._protocol, name)
        entered = False

        def inside() -> None:
            nonlocal entered
            entered = True
            self._guard(f"protocol.{name}() failed", function)

        try:
            self._context.run(inside)
        except RuntimeError:
            if entered:
                raise
            inside()

    def _callback_failed(self, message: str, exc: BaseException) -> None:
        """A callback that carries data raised: report it, and end with it."""
        self._report(message, exc)
        self._step(Event.READ_ERROR, exc)

    def _add_waiter(self, kind: str) -> asyncio.Future[None]:
        if self._waiters is None:
            self._waiters = {}
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = [other for other in self._waiters.get(kind, ()) if not other.done()]  # or cancelled
        self._waiters[kind] = [*waiting, future]
        if self._state is State.CLOSED:
            future.set_result(None)
        return future

    def _wake(self, kind: str, exc: BaseException | None = None) -> None:
        if self._waiters:
            for future in self._waiters.pop(kind, ()):
                if not future.done():
                    future.set_result(None) if exc is None else future.set_exception(exc)

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            state = self._state.name.lower()
            fds = f"fd={self.fileno()}"
            if self._rfd >= 0 and self._wfd >= 0 and self._rfd != self._wfd:
                fds = f"fd={self._rfd},{self._wfd}"
            read = "paused" if self._paused else "polling" if self._reader_on else "idle"
            write = "polling" if self._writer_on else "idle"
            return f"<{name} {state} {fds} read={read} write=<{write}, bufsize={self._queue.size}>>"
        except AttributeError:
            return f"<{name} not built>"

    def __del__(self) -> None:
        try:
            if self._state is State.CLOSED:
                return
        except AttributeError:
            return  # its constructor failed before it had anything
        try:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, stacklevel=1, source=self)
        finally:
            self._state = State.CLOSED
            self._remove_interest()
            try:
                self._let_go(Handle.close)
            except OSError:
                pass  # somebody else closed the descriptor
            if self._server is not None:
                _detach(self._server, self)


_DO: dict[Action, Callable[[BaseTransport], None]] = {
    Action.STOP_READING: BaseTransport._stop_reading,
    Action.FLUSH: BaseTransport._flush_and_tell,
    Action.END_WRITING: lambda transport: transport._end_writing(),
    Action.DROP: BaseTransport._drop,
    Action.DRAIN: lambda transport: transport._drain(),
    Action.SCHEDULE: BaseTransport._schedule,
    Action.TELL_LOST: BaseTransport._tell_lost,
}


def _adopt(
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
        return _adopt(to_read)
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


def _attach(server: Any, transport: BaseTransport) -> None:
    """Server bookkeeping takes the transport from Python 3.13 on, and nothing before."""
    if sys.version_info >= (3, 13):
        server._attach(transport)
    else:
        server._attach()


def _detach(server: Any, transport: BaseTransport) -> None:
    if sys.version_info >= (3, 13):
        server._detach(transport)
    else:
        server._detach()
