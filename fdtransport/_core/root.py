"""What every part of a transport stands on: its state, its points to override, its callbacks.

The parts are `interest` (what the loop and the poller are asked for), `backpressure` (the queue and
who fills it) and `base` (the life). One object, one set of slots, one room each.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from ..errors import COMMON, WRITING, ErrnoTable
from . import syscalls
from .flow import Flow
from .handle import Handle
from .lifecycle import CloseReason, Event, State
from .queues import ByteQueue, PacketQueue
from .readiness import EventSource

__all__ = ["NEVER", "NO_FLOW", "NO_QUEUE", "Root"]

NEVER = sys.maxsize

# A transport that never had to queue a byte shares these with all others like it.
NO_QUEUE: Any = ByteQueue()
NO_FLOW = Flow()


class Root(asyncio.BaseTransport):
    """See the module's first lines."""

    __slots__ = (
        "__weakref__",
        "_close_reason",
        "_context",
        "_exception",
        "_flow",
        "_held",
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
        "_sys",
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
    _server: Any
    _context: contextvars.Context
    #: What moves bytes and records: the module ``syscalls``, or an object with the same functions, which an
    #: adapter or the debug mode puts there (a slot costs no time, unlike a class attribute).
    _sys: Any
    _reading_handle: Handle | None
    _writing_handle: Handle | None
    _rfd: int
    _wfd: int
    _read_events: EventSource
    _write_events: EventSource
    _reader_on: bool
    _writer_on: bool
    _paused: bool
    _hung_up: bool
    #: Whether the helper that makes it is not through: until then the descriptor may have to be given back.
    _held: bool
    _watched: int
    _mark: int
    _tries: int
    _exception: BaseException | None
    _close_reason: CloseReason | None
    _waiters: dict[str, list[asyncio.Future[None]]] | None

    #: What a failed read or write means to this kind.
    _READ_ERRORS: ErrnoTable = COMMON
    _WRITE_ERRORS: ErrnoTable = WRITING
    #: Events of epoll_ctl(2) that tell a hang-up of this kind, besides those that are always reported.
    _ALSO_WATCHED: ClassVar[int] = 0
    _new_queue: ClassVar[Callable[[], ByteQueue | PacketQueue]]

    # -- what an adapter may override ---------------------------------------------------------

    def _check_kind(self) -> None:
        """Raise when this is no descriptor for this kind of transport."""
        for handle in {self._reading_handle, self._writing_handle}:
            if handle is not None and syscalls.listens(handle.fd):
                # Neither reading nor writing it would fail before the first client comes.
                raise ValueError(f"a connected socket was expected, and this one listens: {handle.file!r}")

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

    def _cannot_poll(self, fd: int) -> None:
        """Raise if files that cannot be polled are not for this kind of transport."""

    # -- what streams and packets have, each in its own way -----------------------------------

    def _step(self, event: Event, exc: BaseException | None = None) -> None:
        """Take one edge of the table of lives."""
        raise NotImplementedError

    def _reader(self) -> Callable[[], object]:
        """The bound method that the loop is to call when the descriptor is readable."""
        raise NotImplementedError

    def _writer(self) -> Callable[[], object]:
        """The same for when it is writable."""
        return self._flush

    def _flush(self) -> None:
        raise NotImplementedError

    def _drain(self) -> None:
        raise NotImplementedError

    def _offer_cork(self) -> None:
        """Hand over to the kernel what waits only for the end of the loop's turn."""

    def _hold(self, hold: bool) -> None:
        """Have every write wait for the end of the turn, so that the queue empties once per request."""

    # -- callbacks, waiters --------------------------------------------------------------------

    def _report(self, message: str, exc: BaseException) -> None:
        context = {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        self._loop.call_exception_handler(context)

    def _guard(self, message: str, function: Callable[..., object], *args: Any) -> bool:
        """Call, and report what it raises; whether it did not."""
        try:
            function(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(message, exc)
            return False
        return True

    def _call(self, name: str) -> None:
        """Call a flow callback of the protocol in this transport's context."""
        self._call_inside(f"protocol.{name}() failed", getattr(self._protocol, name))

    def _call_inside(self, message: str, function: Callable[..., object], *args: Any) -> None:
        """Call in this transport's context, and report what it raises.

        ``write()`` may be called from anywhere: inside the context, where it cannot be entered
        once more, or outside of it.
        """
        entered = False

        def inside() -> None:
            nonlocal entered
            entered = True
            self._guard(message, function, *args)

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
        # (On a closed loop nobody waits any more, and a future could not tell it.)
        if self._waiters and not self._loop.is_closed():
            for future in self._waiters.pop(kind, ()):
                if not future.done():
                    future.set_result(None) if exc is None else future.set_exception(exc)

    def fileno(self) -> int:
        """The descriptor that is read, or else written; -1 after the end."""
        return self._rfd if self._rfd >= 0 else self._wfd
