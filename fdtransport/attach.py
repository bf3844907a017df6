"""The user's own terminal: every key as it is typed, and the terminal as it was when that is over.

How it is put back, whatever happens, is in ``_core/raw_terminal.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, TypeVar

from ._core import syscalls, terminal
from ._core.escape import Escape, checked_escape, spelled
from ._core.handle import FileLike, Handle, fileno_of
from ._core.lifecycle import Event
from ._core.opening import open_transport
from ._core.raw_terminal import RawTerminal
from ._core.screen import Screen
from ._core.terminal import WindowSize
from .errors import bad_descriptor
from .stdio import StdioTransport
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .writer import StreamWriter

__all__ = ["ESCAPE", "TerminalTransport", "attach_terminal", "connect_terminal"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
OnResize = Callable[[WindowSize], object]
Files = tuple[FileLike | None, FileLike | None]

#: Ctrl-], as telnet has it.
ESCAPE = b"\x1d"
#: Seconds in which the escape byte can be typed once more, to be sent.
PAUSE = 0.5
#: Seconds for what is to be shown, once the user has left.
GRACE = 0.5


class Resizable(Protocol):
    def resize(self, rows: int, columns: int, xpixel: int = 0, ypixel: int = 0) -> None: ...


class TerminalTransport(StdioTransport):
    """The terminal of this program's user, in raw mode. Made by ``connect_terminal``.

    It ends with ``connection_lost(None)`` when the user leaves by the escape byte, and with ``eof_received``
    before that when the terminal hangs up. ``write_eof()`` is not possible: a terminal shows no end.
    Extra info: ``window_size``, ``fd``.
    """

    __slots__ = ("_escape", "_escape_byte", "_own", "_raw", "_size", "_tell_size", "_timer")

    #: Nobody should have to type something in order to see that nobody listens.
    _EOF_CLOSES = True

    _escape: Escape | None
    _raw: RawTerminal | None
    #: The size of the window, as far as was told.
    _size: WindowSize
    _timer: asyncio.TimerHandle | None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: Files,
        *args: Any,
        escape: bytes | None = ESCAPE,
        on_resize: OnResize | None = None,
        own: bool = False,
        **kwargs: Any,
    ) -> None:
        self._escape_byte = checked_escape(escape)
        self._escape = self._raw = self._timer = None
        self._tell_size: list[OnResize] = [] if on_resize is None else [on_resize]
        self._own = own
        super().__init__(loop, file, *args, **kwargs)

    def _check_kind(self) -> None:
        super()._check_kind()
        if self._rfd < 0:
            raise bad_descriptor("a terminal is attached to read what is typed there")
        if not syscalls.isatty(self._rfd):
            kind = syscalls.kind(syscalls.fstat(self._rfd).st_mode)
            what = f"a terminal is needed to read what is typed, and descriptor {self._rfd} is {kind}"
            raise OSError(errno.ENOTTY, f"{os.strerror(errno.ENOTTY)}: {what}")
        screen = None
        if self._wfd >= 0 and syscalls.isatty(self._wfd):
            self._sys = screen = Screen(self._sys, self._wfd)
        if self._escape_byte is not None:
            self._escape = Escape(self._sys, self._rfd, self._escape_byte, self._escape_changed)
            self._sys = self._escape
        self._size = self.window_size
        nonblocking = [loan.claim.fd for loan in self._loans if loan.claim.made_nonblocking]
        self._raw = RawTerminal(self._rfd, nonblocking, screen, self._window_changed)
        self._raw.enter()

    def _find_extra(self, name: str) -> Any:
        return self.window_size if name == "window_size" else None

    # -- the size of the window -----------------------------------------------------------------

    @property
    def window_size(self) -> WindowSize:
        """``(rows, columns, xpixel, ypixel)`` of the terminal's window; 0 where nobody has told.

        :raises OSError: EBADF, the transport has ended.
        """
        if self._rfd < 0:
            raise bad_descriptor("the terminal's transport has ended")
        return terminal.window_size(self._rfd)

    def forward_size(self, to: Resizable) -> None:
        """Give *to*, a `PtyTransport` for instance, the size of this window: now, and whenever it changes,
        until one of the two ends. A size that nobody has told is not forwarded.
        """

        def resize(size: WindowSize) -> None:
            if size.rows and size.columns:
                try:
                    to.resize(*size)
                except OSError:
                    self._tell_size.remove(resize)  # that has ended

        self._tell_size.append(resize)
        resize(self.window_size)

    def _window_changed(self) -> None:
        """Something may have changed; called inside a signal handler."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._look_at_size, context=self._context)

    def _look_at_size(self) -> None:
        if self._rfd < 0:
            return
        with contextlib.suppress(OSError):  # the terminal has gone, which reading tells
            before, self._size = self._size, self.window_size
            if before != self._size:
                for tell in [*self._tell_size]:
                    self._call_inside("on_resize() failed", tell, self._size)

    # -- the user leaves ------------------------------------------------------------------------

    @property
    def escape(self) -> bytes | None:
        """The byte by which the user leaves; None for none."""
        return self._escape_byte

    @property
    def escaped(self) -> bool:
        """Whether the user has left by it."""
        return self._escape is not None and self._escape.over

    @property
    def how_to_leave(self) -> str:
        """A line that tells the user."""
        if self._escape_byte is None:
            return "no key leaves; this ends with the other side"
        return f"{spelled(self._escape_byte)} leaves; typed twice, it is sent"

    def _escape_changed(self) -> None:
        assert self._escape is not None
        self._stop_timer()
        if self._escape.over:
            self._loop.call_soon(self._leave, context=self._context)  # after what came before it
        elif self._escape.typed:
            self._timer = self._loop.call_later(PAUSE, self._leave, context=self._context)

    def _leave(self) -> None:
        assert self._escape is not None
        self._escape.over = True
        self._step(Event.EOF_CLOSE)
        self.close()  # there was an end of file before
        if self._queue.size:
            self._loop.call_later(GRACE, self.abort)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # -- the end --------------------------------------------------------------------------------

    def can_write_eof(self) -> bool:
        """False: a terminal shows no end."""
        return False

    def _remove_interest(self) -> None:
        # Nothing passes any more. The loss is told at the next turn of the loop, which may never come.
        self._stop_timer()
        if self._raw is not None:
            self._raw.leave()
        super()._remove_interest()

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        files = self._files
        try:
            return super()._let_go(how)
        finally:
            if self._own and how is Handle.close:
                _close(files)


def _open(source: FileLike | str | os.PathLike[str] | Files) -> tuple[Files, bool]:
    """What to read and what to write, and whether it was opened here."""
    if isinstance(source, tuple):
        return source, False
    if isinstance(source, str | os.PathLike):
        first = syscalls.open(source, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    else:
        first = syscalls.dup(fileno_of(source))
    try:
        return (first, syscalls.dup(first)), True
    except BaseException:
        syscalls.close(first)
        raise


def _close(files: Any) -> None:
    for fd in files:
        if fd is not None:
            with contextlib.suppress(OSError):
                syscalls.close(fd)


async def connect_terminal(
    protocol_factory: Callable[[], P],
    terminal: FileLike | str | os.PathLike[str] | Files = (0, 1),
    *,
    escape: bytes | None = ESCAPE,
    on_resize: OnResize | None = None,
) -> tuple[TerminalTransport, P]:
    """Put one transport on the user's terminal, in raw mode: every key as it is typed, nothing echoed.

    *terminal*: what to read and what to write, standard input and output by default (the second may be
    anything, or None); one descriptor or file object for both; a path, as ``"/dev/tty"``. *escape*: the byte
    by which the user leaves (Ctrl-]); typed twice within half a second, it is sent once; None for none. What
    is typed right after it is dropped. *on_resize* is called with the new `WindowSize` when the size of the
    window changes; ``transport.forward_size(pty)`` hands it on.

    The terminal is put back as it was when the transport ends or is aborted, when the program ends, and
    before it dies of SIGTERM, SIGHUP, SIGINT or SIGQUIT or is stopped by SIGTSTP: its modes, O_NONBLOCK, and
    what was switched on in it by what was shown (a second screen, reports of the mouse, a hidden cursor). The
    handlers of these signals are put back as well. Signals that the program handles or ignores are left to
    it. After a stop it goes on in raw mode. A program in the background is stopped here until it comes to the
    foreground, as with every program that sets a terminal's modes.

    Sizes change by SIGWINCH, which comes from the controlling terminal only. Returns ``(transport,
    protocol)`` after ``connection_made``. Cancelling is safe.

    :raises OSError: ENOTTY, what is to be read is no terminal; EIO, it is another job's, and this program
        cannot wait in the background; EBUSY, it is attached already; it is not open, or cannot be opened.
    :raises RuntimeError: this is not the main thread, which alone can handle signals.
    :raises DescriptorInUseError: it is under a transport already.
    :raises ValueError: *escape* is not one byte.

    ::

        transport, protocol = await connect_terminal(Keys, escape=None)
        transport.write(b"press a key\\r\\n")

    See termios(3), tty_ioctl(4), credentials(7) for process groups and sessions.
    """
    files, own = _open(terminal)
    try:
        return await open_transport(
            TerminalTransport, protocol_factory, files, escape=escape, on_resize=on_resize, own=own
        )
    except BaseException:
        if own:
            _close(files)
        raise


@contextlib.asynccontextmanager
async def attach_terminal(
    terminal: FileLike | str | os.PathLike[str] | Files = (0, 1),
    *,
    escape: bytes | None = ESCAPE,
    on_resize: OnResize | None = None,
    limit: int = DEFAULT_LIMIT,
) -> AsyncIterator[tuple[StreamReader, StreamWriter[TerminalTransport]]]:
    """The user's terminal in raw mode, as a reader and a writer, for the length of a block.

    As ``connect_terminal``. ``writer.transport`` is the `TerminalTransport`: ``window_size``,
    ``forward_size``, ``escaped``. The reader is at its end when the user has left. After the block, however
    it ends, the terminal is as it was; what is to be shown has half a second for that. *limit*: bytes that
    ``readline`` and ``readuntil`` accept at most.

    A shell in a window of its own, so to say::

        shell, _ = await spawn_pty(asyncio.Protocol, "bash")
        async with attach_terminal() as (reader, writer):
            await relay((reader, writer), shell)  # which forwards the size of the window as well
    """
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await connect_terminal(lambda: protocol, terminal, escape=escape, on_resize=on_resize)
    writer = stream_writer(transport, protocol, reader, loop)
    try:
        yield reader, writer
    except BaseException:
        transport.abort()
        raise
    finally:
        await transport.aclose(GRACE)
