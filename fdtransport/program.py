"""A byte stream with a program at its other end: the process, and an end that comes after its last word.

What `PtyProcessTransport` (a program on a terminal) and `ExecTransport` (one on two pipes) share.
"""

from __future__ import annotations

import signal
import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from ._core.child import LADDER, Child, Ending
from ._core.handle import Handle
from ._core.lifecycle import Event, State
from ._core.stream import StreamTransport

__all__ = ["ProgramTransport"]

#: The slots are those of the two classes: of bases, only one may have any.
_THEIRS: tuple[str, ...] = ()


class ProgramTransport(StreamTransport):
    """A `StreamTransport` with a program behind it, and what there is to know of that and to do with it.

    When the program has ended, what it wrote is read, and then the stream ends, whoever else still has the
    other end of it. Extra info: also ``pid``.

    As an async context manager it ends with ``finish()``, so that the program has gone after the block::

        reader, writer = await open_pty_process("bash")
        async with writer.transport:
            writer.write(b"make\\n")
    """

    __slots__ = _THEIRS

    #: The signals of ``terminate``.
    _LADDER: ClassVar[Sequence[int]] = LADDER
    #: What is left for it is not waited for once it takes no more of it.
    _PATIENCE = 10.0

    _child: Child
    #: What starts the program; None once it has.
    _start: Callable[..., Child] | None
    #: Seconds after its end for which others are listened to; None: until they have gone.
    _linger: float | None
    #: Once true, what is there to be read is all that is waited for.
    _last: bool

    def __init__(self, *args: Any, start: Callable[..., Child], linger: float | None, **kwargs: Any) -> None:
        self._start = start
        self._linger = linger
        self._last = self._dropped = False
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            if self._start is None:
                self._child.kill_and_forget()
            raise

    def _begin_program(self) -> None:
        """Start it; for ``_check_kind``, when all else is well."""
        start, self._start = self._start, None
        assert start is not None
        exited = weakref.WeakMethod(self._exited)  # the loop holds the child, not this
        try:
            self._child = start(self._loop, lambda: _call(exited()))
            self._child.dies = True
        except BaseException:
            self._start = start
            raise

    def __del__(self) -> None:
        forgotten = getattr(self, "_state", State.CLOSED) is not State.CLOSED
        try:
            super().__del__()
        finally:
            if forgotten and not self._child.inherited:
                self._child.kill_and_forget()

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        if self._start is None:
            self._child.dies = False  # the stream has ended as it should
        return super()._let_go(how)

    def _find_extra(self, name: str) -> Any:
        return self._child.pid if name == "pid" else super()._find_extra(name)

    # -- the program ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The number of its process; on a terminal, that of its session as well."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; its status, or minus the number of the signal that ended it."""
        return self._child.returncode

    @property
    def status_known(self) -> bool:
        """False when somebody else took the status of the process: the return code is 255 then."""
        return self._child.status_known

    async def wait(self) -> int:
        """The return code as soon as it has ended, whoever has the stream and whatever is unread.

        Also after the transport has ended. Cancelling is safe.
        """
        return await self._child.wait()

    def kill(self) -> None:
        """End it with SIGKILL. :raises ProcessLookupError: it has ended."""
        self._child.send_signal(signal.SIGKILL)

    def terminate(self, ladder: Sequence[int] | None = None, grace: float = 5.0) -> Ending:
        """Send the first signal of *ladder* now. Awaited, it sends the next one whenever *grace* seconds were
        not enough, and gives the return code. Nothing is sent to what has ended.

        *ladder*: None for SIGTERM and SIGKILL; on a terminal SIGHUP, SIGCONT, SIGTERM and SIGKILL.

        :raises ValueError: *ladder* is empty, or *grace* negative.
        """
        return self._child.end(self._LADDER if ladder is None else ladder, grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.finish()

    @abstractmethod
    async def finish(self, grace: float = 5.0) -> int:
        """Close the stream and return the return code, with ``terminate`` if the program does not end."""

    # -- the end --------------------------------------------------------------------------------

    def _exited(self) -> None:
        """The loop tells that the program has ended."""
        if not self._state.reads:
            return
        if self._linger:
            self._loop.call_later(self._linger, self._read_last, context=self._context)
        elif self._linger is None:
            self._context.run(self._read_on)
        else:
            self._context.run(self._read_last)

    def _read_last(self) -> None:
        # Whatever it wrote can be read now: the kernel hands it on before it says that there is nothing.
        self._last = True
        if self._state.reads:
            self._hangup()
            self._read_on()

    def _read_on(self) -> None:
        if self._state.reads and not self._paused:
            self._remove_reader()
            self._read_the_rest()

    def _read_again(self) -> None:
        if self._last:
            self._read_the_rest()
        else:
            super()._read_again()

    def _read_failed(self, exc: OSError) -> None:
        if self._last and isinstance(exc, BlockingIOError):
            self._read_eof()
        else:
            super()._read_failed(exc)

    def _unsent(self) -> None:
        # What the program did not read before it ended is nobody's fault, and its end is told anyhow.
        self._dropped = True
        self._queue.clear()
        self._remove_writer()
        self._wake("flushed", self._cut_off())
        self._wake("sent", self._cut_off())  # a file on its way holds reading, and so the end
        self._shrunk()
        if self._state.closing and self._state.flushing:
            self._step(Event.FLUSHED)  # whoever would write more is not waited for
        elif not self._state.reads:
            self._step(Event.HANGUP)  # where that was told before, it was left to this write to tell


def _call(method: Callable[[], object] | None) -> None:
    if method is not None:
        method()
