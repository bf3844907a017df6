"""The transport of a process: one life for it, and one for each of its descriptors.

What a protocol is told comes in one order: the data of each descriptor, its end, ``process_exited``,
``connection_lost``. That the process itself has ended is known at once (``wait()``, ``get_returncode()``,
``early_exit``), whoever else still holds its descriptors and whatever is still unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, ClassVar

from ._core import syscalls
from ._core.child import LADDER, Child, Ending, start_child
from ._core.child_fds import Descriptors, close_ends, open_ends
from ._core.lifecycle import CloseReason, State
from ._core.spawn import StrOrBytesPath
from ._core.stream import StreamTransport
from .process_pipes import PipeProtocol, Place, connecting

__all__ = ["Phase", "ProcessTransport"]

#: Turns of the loop in which, after the linger, what had come before is still read.
LAST_TURNS = 32


class Phase(Enum):
    STARTING = "starting"  # before connection_made
    RUNNING = "running"
    EXITED = "exited"  # it has ended, and a descriptor has not
    CLOSED = "closed"  # connection_lost has been called


class ProcessTransport(asyncio.SubprocessTransport):
    """A process and its descriptors. Made by ``subprocess_exec``; asyncio's methods and these.

    ``get_pipe_transport(n)`` is the transport of the child's descriptor *n*: a `PipeTransport`, or a
    `UnixTransport` for ``"rw"``. Each has a life, flow control and half-close of its own.
    """

    #: Whether ``process_exited`` does not wait for the ends of the descriptors.
    _exit_first: ClassVar[bool] = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        argv: Sequence[StrOrBytesPath],
        fds: Descriptors,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        *,
        linger: float | None = None,
        pipe_size: int | None = None,
        pipe_protocol: Callable[[ProcessTransport, int], asyncio.BaseProtocol] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(extra)
        self._phase = Phase.CLOSED  # until it is all there: __del__ looks at it
        if linger is not None and not linger >= 0:
            raise ValueError(f"linger ({linger!r}) must be >= 0 seconds, or None")
        if pipe_size is not None and not 0 < pipe_size < 1 << 31:
            raise ValueError(f"pipe_size ({pipe_size!r}) must be > 0 bytes")
        if not hasattr(protocol, "connection_made"):
            raise TypeError(f"a protocol is needed, not {protocol!r}")
        self._loop = loop
        self._protocol: Any = protocol
        self._linger = linger
        self._timer: asyncio.Handle | None = None
        self._close_reason: CloseReason | None = None
        self._context = contextvars.copy_context()
        self._waiting: list[asyncio.Future[None]] = []
        self._full: set[int] = set()
        self._pipes: dict[int, StreamTransport] = {}
        self._open: set[int] = set()
        with contextlib.ExitStack() as undo, open_ends(fds) as (theirs, ours):
            undo.callback(close_ends, ours)
            self._child: Child = start_child(loop, self._child_ended, argv, fds=theirs, **options)
            undo.callback(self._child.kill_and_forget)
            self._child.dies = True
            begin = loop.call_soon(self._begin, waiter, context=self._context)
            undo.callback(begin.cancel)
            undo.callback(setattr, self, "_protocol", None)  # it is told nothing of what is aborted here
            make = pipe_protocol or PipeProtocol
            for number, end in tuple(ours.items()):
                connect = connecting(fds[number], end, pipe_size)
                self._pipes[number] = connect(loop, make(self, number), Place(self, number))
                del ours[number]
                undo.callback(self._pipes[number].abort)
            undo.pop_all()
        self._phase = Phase.STARTING

    # -- life ----------------------------------------------------------------------------------

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            self._guard("protocol.connection_made() failed", self._protocol.connection_made, self)
        finally:  # also after an interrupt: whoever waits for the end must not wait for ever
            self._phase = Phase.RUNNING
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            if self._child.returncode is not None:
                self._exited()

    def _child_ended(self) -> None:
        if self._phase is Phase.RUNNING:  # else _begin sees to it
            self._context.run(self._exited)

    def _exited(self) -> None:
        self._phase = Phase.EXITED
        try:
            early = getattr(self._protocol, "early_exit", None)
            if early is not None:
                self._guard("protocol.early_exit() failed", early, self._child.returncode)
            if self._exit_first:
                self._guard("protocol.process_exited() failed", self._protocol.process_exited)
        finally:
            self._end_pipes()

    def _end_pipes(self) -> None:
        for pipe in self._open_pipes():
            # The process has let go of them before its end shows. From here on the loop does not hold this
            # transport any more, and nobody else need hold a descriptor that is not being read.
            pipe._look_for_hangup()
            if pipe._state is State.BOTH_ENDED:
                pipe.close()  # a socket that has no more to move, and that nobody else can end
        if self._open and self._linger is not None:
            self._timer = self._loop.call_later(self._linger, self._linger_over, LAST_TURNS)
        self._maybe_end()

    def _linger_over(self, turns: int) -> None:
        """Somebody else holds descriptors of the process: what they had before its end is read, no more."""
        unread = turns and any(
            pipe.can_read and pipe.is_reading() and syscalls.bytes_readable(pipe.fileno())
            for pipe in self._open_pipes()
        )
        if unread:
            self._timer = self._loop.call_soon(self._linger_over, turns - 1)
            return
        for pipe in self._open_pipes():
            pipe.abort()

    def _pipe_opened(self, number: int) -> None:
        self._open.add(number)

    def _pipe_lost(self, number: int) -> None:
        self._open.discard(number)
        self._resume_writing(number)
        self._maybe_end()

    def _maybe_end(self) -> None:
        if self._phase is not Phase.EXITED or self._open:
            return
        self._phase = Phase.CLOSED
        if self._close_reason is None:
            self._close_reason = CloseReason.PEER
        if self._timer is not None:
            self._timer.cancel()
        try:
            if not self._exit_first:
                self._guard("protocol.process_exited() failed", self._protocol.process_exited)
        finally:
            self._tell_lost()

    def _tell_lost(self) -> None:
        try:
            self._guard("protocol.connection_lost() failed", self._protocol.connection_lost, None)
        finally:
            self._protocol = None
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def _guard(self, message: str, function: Callable[..., object], *args: Any) -> None:
        try:
            function(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            context = {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
            self._loop.call_exception_handler(context)

    def _open_pipes(self) -> list[StreamTransport]:
        return [self._pipes[number] for number in sorted(self._open)]

    def close(self) -> None:
        """Close every descriptor, and kill the process if it runs, as asyncio does. Idempotent.

        ``process_exited`` and ``connection_lost(None)`` follow. A process that shall live on is waited
        for instead.
        """
        self._shut(CloseReason.LOCAL, lambda pipe: pipe.close())

    def abort(self) -> None:
        """As ``close()``, without what is still queued for the process. Idempotent."""
        self._shut(CloseReason.ABORT, lambda pipe: pipe.abort())

    def _shut(self, reason: CloseReason, how: Callable[[StreamTransport], object]) -> None:
        if self._phase is Phase.CLOSED:
            return
        if self._close_reason is None:
            self._close_reason = reason
        for pipe in self._open_pipes():
            how(pipe)
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self.kill()

    async def aclose(self, timeout: float | None = None) -> None:
        """``close()``, and return after ``connection_lost``.

        *timeout*: seconds for what is queued, which somebody else may have to read; then ``abort()``.
        Cancelling is safe: the transport goes on closing.
        """
        self.close()
        try:
            async with asyncio.timeout(timeout):
                await self.wait_closed()
        except TimeoutError:
            self.abort()
            await self.wait_closed()

    async def wait_closed(self) -> None:
        """Return after ``connection_lost``: the process and every descriptor of it have ended."""
        while self._phase is not Phase.CLOSED:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(future)
            try:
                await future
            finally:
                if future in self._waiting:  # cancelled
                    self._waiting.remove(future)

    async def wait(self) -> int:
        """The return code, as soon as the process has ended, whatever is unread and whoever has its
        descriptors. Cancelling is safe."""
        return await self._child.wait()

    _wait = wait  # asyncio's Process calls it

    def is_closing(self) -> bool:
        """Whether ``connection_lost`` has come or is under way."""
        return self._close_reason is not None or self._phase is Phase.CLOSED

    @property
    def close_reason(self) -> CloseReason | None:
        """Who ended it: PEER when the process did; None while it is open."""
        return self._close_reason

    # -- the process ---------------------------------------------------------------------------

    def get_pid(self) -> int:
        """The number of the process."""
        return self._child.pid

    def get_returncode(self) -> int | None:
        """None while it runs; minus the number of the signal that ended it."""
        return self._child.returncode

    @property
    def status_known(self) -> bool:
        """False when somebody else took the status of the process: the return code is 255 then."""
        return self._child.status_known

    def send_signal(self, signal: int) -> None:
        """Send a signal to the process, and never to another one that has its number by now.

        :raises ProcessLookupError: it has ended. :raises PermissionError: as kill(2).
        """
        self._child.send_signal(signal)

    def terminate(self, ladder: Sequence[int] = LADDER, grace: float = 5.0) -> Ending:  # type: ignore[override]
        """Send SIGTERM, or the first signal of *ladder*. Nothing, if the process has ended.

        Awaiting the result goes on with the next signal, by default SIGKILL, after *grace* seconds, and
        gives the return code.

        ::

            code = await transport.terminate(grace=1.0)

        :raises PermissionError: as kill(2). :raises ValueError: *ladder* is empty, *grace* negative.
        """
        return self._child.end(ladder, grace)

    def kill(self) -> None:
        """Send SIGKILL.

        :raises ProcessLookupError: it has ended.
        """
        self._child.send_signal(signal.SIGKILL)

    # -- its descriptors -----------------------------------------------------------------------

    def get_pipe_transport(self, fd: int) -> Any:
        """The transport of the child's descriptor *fd*; None when there is none to it."""
        return self._pipes.get(fd)

    def close_fd(self, fd: int) -> None:
        """Close this side of the child's descriptor *fd*, after what is queued for it.

        :raises ValueError: there is no transport on it.
        """
        if fd not in self._pipes:
            raise ValueError(f"descriptor {fd} of the child has no transport, {sorted(self._pipes)} have")
        self._pipes[fd].close()

    # asyncio's protocols have one pause_writing() for all descriptors.

    def _pause_writing(self, number: int) -> None:
        self._full.add(number)
        if len(self._full) == 1:
            self._protocol.pause_writing()

    def _resume_writing(self, number: int) -> None:
        if number in self._full:
            self._full.remove(number)
            if not self._full:
                self._guard("protocol.resume_writing() failed", self._protocol.resume_writing)

    def get_protocol(self) -> Any:
        """The protocol; None after the loss."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell *protocol* what comes from now on."""
        if self._phase is not Phase.CLOSED:
            self._protocol = protocol

    def __repr__(self) -> str:
        try:
            code = self._child.returncode
            known = "" if self._child.status_known else " (unknown)"
            state = self._phase.value if code is None else f"{self._phase.value} returncode={code}{known}"
            return f"<{type(self).__name__} {state} pid={self._child.pid} open={sorted(self._open)}>"
        except AttributeError:
            return f"<{type(self).__name__} not built>"

    def __del__(self) -> None:
        if getattr(self, "_phase", Phase.CLOSED) is Phase.CLOSED:
            return
        if self._child.inherited:
            return  # a copy, in a process that was forked: the parent's goes on
        try:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, stacklevel=1, source=self)
        finally:
            self._phase = Phase.CLOSED
            self._child.kill_and_forget()
