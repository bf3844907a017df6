"""The life that byte streams and records share: opening, closing, the end.

What happens when is the table of ``lifecycle``; this module carries its actions out. The hot paths
are in ``stream`` and ``packet``.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import bad_descriptor
from . import syscalls
from .backpressure import Backpressure
from .handle import FileLike, Handle, adopt
from .identity import Checked
from .lifecycle import TABLE, Action, CloseReason, Event, State, reason_of
from .readiness import events_of
from .root import NEVER, NO_FLOW, NO_QUEUE

__all__ = ["NEVER", "BaseTransport", "Detached"]


class Detached(NamedTuple):
    """What ``detach()`` gives back."""

    file: Any
    """The descriptor, file object or pair that the transport was made from, in its former mode."""
    unread: bytes
    """Bytes that were read from it and not delivered to anybody."""
    unsent: bytes
    """Bytes that were written to the transport and not taken by the kernel."""


class BaseTransport(Backpressure):
    """See the module's first lines. Not to be used by itself."""

    __slots__ = ()

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
        self._sys = syscalls
        self._rfd = self._wfd = -1
        self._reading_handle, self._writing_handle = adopt(file)
        self._extra = extra
        self._server = server
        self._context = contextvars.copy_context()
        self._read_events = self._write_events = events_of(loop)
        self._queue = NO_QUEUE
        self._flow = NO_FLOW
        self._mark = NEVER  # no flow callback before connection_made
        self._paused = self._reader_on = self._writer_on = self._hung_up = self._held = False
        self._tries = 0  # after ENOBUFS; after the loss, writes that were dropped
        self._watched = -1
        self._exception = None
        self._close_reason = None
        self._waiters = None
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
        if loop.get_debug():
            self._check_identity()
        if server is not None:
            _attach(server, self)

    def _check_identity(self) -> None:
        """Ask before every call whether the descriptors still are what they were."""
        if self._sys is syscalls:
            self._sys = Checked(self._sys, self._rfd, self._wfd)

    # -- life ----------------------------------------------------------------------------------

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            self._guard("protocol.connection_made() failed", self._protocol.connection_made, self)
        finally:  # also after an interrupt (KeyboardInterrupt): whoever waits here must not wait for ever
            self._begun()
            self._begin_reading(waiter)

    def _begin_reading(self, waiter: asyncio.Future[None] | None) -> None:
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
        if self._state is not State.CLOSED:
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

    # -- actions of the table ------------------------------------------------------------------

    def _stop_reading(self) -> None:
        self._remove_reader()
        if self._state in (State.READ_ENDED, State.BOTH_ENDING):
            self._watch_quietly(self._wfd, reading=False)

    def _flush_and_tell(self) -> None:
        self._offer_cork()
        self._maybe_flushed()

    def _finish_writing(self) -> None:
        self._remove_writer()
        if self._waiters:
            # As with asyncio's sockets, write_eof() does not wait for a file.
            self._wake("sent", BrokenPipeError(errno.EPIPE, "write_eof() came before the file was sent"))
        self._end_writing()

    def _drop(self) -> None:
        self._remove_writer()
        if self._queue.size:
            self._wake("flushed", self._cut_off())
        if self._waiters:
            self._wake("sent", self._cut_off())
        self._queue.clear()
        self._mark = NEVER
        if self._state is State.WRITE_FAILED and self._flow.must_resume(0):
            # Whoever waits to write must not wait for the reader that is being served first.
            self._call("resume_writing")

    def _schedule(self) -> None:
        self._remove_interest()
        if self._loop.is_closed():
            self._state = State.CLOSED
            self._let_go(Handle.close)
            return
        self._tries = 0
        if not self._held:
            self._end_soon()

    def _let_end(self) -> None:
        """The helper that made this transport is through; an end that came meanwhile goes on."""
        self._held = False
        if self._state is State.LOSING:
            self._schedule()

    def _closed_in_thread(self, error: Exception | None) -> None:
        """Called in the thread that has closed the descriptor for ``_end_soon``: have the loop go on."""
        try:
            self._loop.call_soon_threadsafe(self._departed, error, context=self._context)
        except RuntimeError:  # the loop was closed meanwhile: nobody is there to be told
            self._state = State.CLOSED

    def _departed(self, error: Exception | None) -> None:
        if error is not None and getattr(error, "errno", None) not in (errno.EBADF, errno.EINTR):
            self._report("closing the descriptor failed", error)
        self._step(Event.TURN)

    def _end_soon(self) -> None:
        """Have the last step come from the loop; an adapter may have it wait for something."""
        self._loop.call_soon(self._step, Event.TURN, context=self._context)

    def _tell_lost(self) -> None:
        protocol, exc = self._protocol, self._exception
        try:
            producer = self._flow.unregister() if self._flow is not NO_FLOW else None
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
        if self._loop.is_closed():
            self._reader_on = self._writer_on = False
        else:
            self._remove_reader()
            self._remove_writer()
        self._unwatch()

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        """Close or release the descriptors; the numbers are not ours any more."""
        if isinstance(self._sys, Checked):
            for handle in (self._reading_handle, self._writing_handle):
                if handle is not None and not self._sys.is_still(handle.fd):
                    handle.forget()
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

    # -- protocol ------------------------------------------------------------------------------

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

    def pause_producing(self) -> None:
        """``pause_reading()``, under the name that makes a transport a push producer."""
        self.pause_reading()

    def resume_producing(self) -> None:
        """``resume_reading()``, under the name that makes a transport a push producer."""
        self.resume_reading()

    def stop_producing(self) -> None:
        """``close()``, under the name that makes a transport a push producer."""
        self.close()

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            state = self._state.label
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
        handle = self._reading_handle or self._writing_handle
        # In a process that was forked it is a copy. The pollers are shared with the parent (epoll(7)).
        copied = handle is not None and handle.inherited
        try:
            # Without a descriptor it was closed, by a thread perhaps, and its loop before it could tell.
            if handle is not None and not copied:
                warnings.warn(f"unclosed transport {self!r}", ResourceWarning, stacklevel=1, source=self)
        finally:
            self._state = State.CLOSED
            if not copied:
                self._remove_interest()
            try:
                self._let_go(Handle.close)
            except OSError:
                pass  # somebody else closed the descriptor
            if self._server is not None and not copied:
                _detach(self._server, self)


_DO: dict[Action, Callable[[BaseTransport], None]] = {
    Action.STOP_READING: BaseTransport._stop_reading,
    Action.FLUSH: BaseTransport._flush_and_tell,
    Action.END_WRITING: BaseTransport._finish_writing,
    Action.DROP: BaseTransport._drop,
    Action.DRAIN: lambda transport: transport._drain(),
    Action.SCHEDULE: BaseTransport._schedule,
    Action.TELL_LOST: BaseTransport._tell_lost,
}


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
