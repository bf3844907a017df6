"""Terminals, from the master's side: what a program writes to its terminal is read here.

A pair of terminals (pty(7)) is a pipe in both directions with a terminal's ways in the middle: echo, lines,
signals from the keyboard, a window size. The end of the pair that programs have is the slave.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable, Iterable
from typing import Any

from ._core import syscalls, terminal
from ._core.stream import BytesLike, StreamTransport, as_buffer
from ._core.terminal import WindowSize
from ._core.terminal_events import PacketMode, TerminalEvent, events_in, set_packet_mode
from .errors import bad_descriptor

__all__ = ["OnEvent", "PtyTransport", "TerminalEvent", "WindowSize"]

OnEvent = Callable[[TerminalEvent], object]

#: Seconds between two looks at a terminal's modes, at first and at most: nothing tells of a change.
LOOK, MOST_LOOK = 0.001, 0.05
#: Seconds for the other end to read what it was sent, before it is hung up, and between two looks at it.
GRACE, PAUSE = 0.2, 0.002


class PtyTransport(StreamTransport):
    """A byte stream on the master of a pair of terminals, and the terminal's own things.

    It ends with ``eof_received`` and ``connection_lost(None)`` when nobody has the other end any more, after
    everything that was written there. Closing it hangs the terminal up (SIGHUP), and the kernel throws away
    what the program has not read by then: ``close()`` gives it 0.2 s to read it.

    ``write_eof()`` types the terminal's end-of-file character (see ``send_eof``); the program can go on
    writing. Extra info: ``slave_name``, ``window_size``, ``fd``.

    :raises OSError: ENOTTY, the descriptor is not the master of a pair of terminals.
    """

    __slots__ = ("_grace", "_line", "_on_event", "_quoting")

    #: What is told of events, where the terminal is in packet mode.
    _on_event: OnEvent | None
    #: Bytes of the line that has been begun, in canonical mode.
    _line: int
    #: The byte that was written last, if it is the one that quotes the next (Ctrl-V).
    _quoting: bytes
    #: Seconds that are left for what is unread on the other end, once this one is to be closed.
    _grace: float

    #: A read(2) of a terminal takes what one of its buffers has, at most 4 KiB as a rule.
    _plenty, _most_reads = 2048, 32

    def __init__(self, *args: Any, on_event: OnEvent | None = None, **kwargs: Any) -> None:
        self._on_event = on_event
        super().__init__(*args, **kwargs)

    def _check_kind(self) -> None:
        self._begin_line()
        self._grace = GRACE
        if self._rfd < 0 or self._wfd != self._rfd:
            raise bad_descriptor("a terminal's master is one descriptor, open for both directions")
        terminal.slave_path(self._rfd)

    def _find_extra(self, name: str) -> Any:
        if name == "slave_name":
            return terminal.slave_path(self._rfd)
        if name == "window_size":
            return terminal.window_size(self._rfd)
        return None

    def _open_fd(self) -> int:
        if self._rfd < 0:
            raise bad_descriptor("the terminal's transport has ended")
        return self._rfd

    # -- the size of the window -----------------------------------------------------------------

    @property
    def window_size(self) -> WindowSize:
        """``(rows, columns, xpixel, ypixel)`` of the terminal, as programs there see it.

        :raises OSError: EBADF, the transport has ended.
        """
        return terminal.window_size(self._open_fd())

    def resize(self, rows: int, columns: int, xpixel: int = 0, ypixel: int = 0) -> None:
        """Give the window another size; the job in the foreground gets SIGWINCH if it is another one.

        :raises ValueError: no window can have it: below 1 character or above 65535.
        :raises OSError: EBADF, the transport has ended.
        """
        size = terminal.checked_size((rows, columns, xpixel, ypixel))
        terminal.set_window_size(self._open_fd(), size)

    # -- modes ----------------------------------------------------------------------------------

    @property
    def termios(self) -> list[Any]:
        """A snapshot of the terminal's attributes, as ``termios.tcgetattr`` gives them; to be set as well.

        :raises OSError: EBADF, the transport has ended; what the kernel says against them.
        """
        return terminal.modes_of(self._open_fd())

    @termios.setter
    def termios(self, modes: list[Any]) -> None:
        self._set_modes(self._open_fd(), modes)

    def _set_modes(self, fd: int, modes: list[Any]) -> None:
        terminal.set_modes(fd, modes)

    def raw(self) -> None:
        """Have every byte pass as it is, at once: no echo, lines, signals or translation (cfmakeraw(3))."""
        self.termios = terminal.raw(self.termios)

    def cooked(self) -> None:
        """Have lines, echo and signals from the keyboard, as a terminal begins."""
        self.termios = terminal.cooked(self.termios)

    @property
    def canonical(self) -> bool:
        """Whether the terminal collects lines before its program gets them."""
        return terminal.is_canonical(self.termios)

    @property
    def echo(self) -> bool:
        """Whether what is written here comes back; to be set as well. Programs set it as they like."""
        return terminal.echoes(self.termios)

    @echo.setter
    def echo(self, on: bool) -> None:
        self.termios = terminal.set_echo(self.termios, on)

    async def wait_noecho(self) -> None:
        """Return when the terminal does not echo: a program there asks for a password.

        ``asyncio.timeout`` bounds it; cancelling is safe. The kernel tells nobody of the change: it is looked
        for, every 1 ms at first and every 50 ms later. A program that edits lines itself (bash and Python at
        their prompts) does not have the terminal echo either: wait for the question first.

        :raises ConnectionResetError: the transport ended before.
        """
        pause = LOOK
        while True:
            if self._state.closing:
                raise ConnectionResetError(errno.ECONNRESET, "the terminal has ended") from self._exception
            if not self.echo:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, MOST_LOOK)

    @property
    def speed(self) -> tuple[int, int]:
        """Baud to and from the program: what it has set, without effect on the bytes.

        :raises OSError: EBADF, the transport has ended.
        """
        return terminal.speed_of(self._open_fd())

    # -- jobs -----------------------------------------------------------------------------------

    @property
    def foreground_pgid(self) -> int | None:
        """The process group of the job in the foreground; None when there is none."""
        return syscalls.tcgetpgrp(self._open_fd()) or None

    def send_signal(self, sig: int, target: str = "child") -> None:
        """Send a signal to the program at the terminal (``"child"``), to the job in its foreground
        (``"foreground"``, as Ctrl-C does), or to every process of its session (``"session"``: they are
        looked for in /proc, and the loop waits meanwhile).

        :raises ProcessLookupError: there is no such process.
        :raises ValueError: no such *sig* or *target*.
        :raises OSError: EBADF, the transport has ended; PermissionError, it is another user's.
        """
        number = signal.Signals(sig)
        if target == "child":
            self._signal_child(number)
        elif target == "foreground":
            fd = self._open_fd()
            if self.foreground_pgid is None:
                raise ProcessLookupError(errno.ESRCH, "no job is in the foreground of the terminal")
            terminal.signal_foreground(fd, number)
        elif target == "session":
            if not terminal.signal_session(self._session_leader(), number):
                raise ProcessLookupError(errno.ESRCH, "nobody is left of the terminal's session")
        else:
            raise ValueError(f"target must be 'child', 'foreground' or 'session', not {target!r}")

    def _session_leader(self) -> int:
        try:
            return terminal.session_of(self._open_fd())
        except OSError as exc:
            if exc.errno != errno.ENOTTY:
                raise
            raise ProcessLookupError(errno.ESRCH, "no session has the terminal") from None

    def _signal_child(self, number: signal.Signals) -> None:
        raise ProcessLookupError(errno.ESRCH, "no program was started on this terminal from here")

    # -- events ---------------------------------------------------------------------------------

    def _hear_events(self) -> None:
        """Put the terminal into packet mode."""
        set_packet_mode(self._rfd)
        self._sys = PacketMode(self._tell_status)

    def _tell_status(self, status: int) -> bool:
        """What a read said beside the bytes; whether reading may go on."""
        paused = self._paused  # a protocol that does its own reading reads all the same
        for event in events_in(status):
            self._tell(event)
        return self._goes_on_reading(paused)

    def _goes_on_reading(self, paused: bool) -> bool:
        """After events, before which it was *paused* or not: whether they have left reading as it was."""
        return self._state.reads and self._paused is paused

    def _tell(self, event: TerminalEvent) -> None:
        hear = self._on_event or getattr(self._protocol, "terminal_event", None)
        if hear is not None:
            self._call_inside("terminal_event() failed", hear, event)

    # -- the end ---------------------------------------------------------------------------------

    def _read_failed(self, exc: OSError) -> None:
        if isinstance(exc, InterruptedError):
            return  # whoever was told of an event has paused this; what there is waits for the end of that
        # What read(2) says when nobody has the other end, and nothing is left to read.
        if exc.errno == errno.EIO and self._nobody_there():
            self._read_eof()
        else:
            super()._read_failed(exc)

    def _maybe_flushed(self) -> None:
        ending = self._state.flushing and self._state.closing and self._rfd >= 0
        if ending and self._grace > 0 and not self._queue.size:
            if self._is_unread():
                self._grace -= PAUSE
                self._loop.call_later(PAUSE, self._maybe_flushed, context=self._context)
                return
            self._grace = 0
        super()._maybe_flushed()

    def _is_unread(self) -> bool:
        """Whether something waits to be read at the other end; only there can it be asked."""
        if self._nobody_there():
            return False
        try:
            slave = syscalls.open_slave(self._rfd)
        except OSError:
            return False
        waiting = 0
        with contextlib.suppress(OSError):
            waiting = syscalls.poll_now(slave, select.POLLIN) & select.POLLIN
        with contextlib.suppress(OSError):
            syscalls.close(slave)
        return bool(waiting)

    # -- writing --------------------------------------------------------------------------------

    def write(self, data: BytesLike) -> None:
        """Type *data*. As with every transport, but for the length of a line.

        :raises OSError: EMSGSIZE, the terminal is in canonical mode and a line (with what of it was written
            before) is longer than the 4095 bytes that it keeps; nothing of *data* is sent. The kernel would
            drop the rest without a word. ``raw()``, on either end, lifts the limit. It holds for ``sendfile``
            and for a relay as well.
        """
        if self._state.writes and as_buffer(data):
            if self._is_over():
                self._unsent()
                return
            try:
                modes = terminal.modes_of(self._wfd)
            except OSError:
                pass  # writing will tell
            else:
                self._count_line(data, modes)
        super().write(data)

    def writelines(self, list_of_data: Iterable[BytesLike]) -> None:
        """``write`` of all of it together."""
        self.write(b"".join([as_buffer(data) for data in list_of_data]))

    def _check_unseen(self) -> None:
        # Files and relays go past write(). In this mode they are to be read and written instead.
        modes = terminal.modes_of(self._wfd)
        if _keeps_lines(modes):
            raise OSError(errno.EINVAL, "a terminal in canonical mode cuts lines that are too long")
        self._begin_line()

    def _begin_line(self) -> None:
        self._line, self._quoting = 0, b""

    def _count_line(self, data: BytesLike, modes: list[Any]) -> None:
        if not _keeps_lines(modes):
            self._begin_line()
            return
        lengths, quoting = terminal.line_lengths(self._quoting + bytes(data), modes)
        lengths[0] += self._line
        longest = max(lengths)
        if longest > terminal.LINE_LIMIT:
            raise OSError(
                errno.EMSGSIZE,
                f"{os.strerror(errno.EMSGSIZE)}: a line of {longest} bytes for a terminal in canonical mode,"
                f" which keeps {terminal.LINE_LIMIT} of it and drops the rest; raw() lifts the limit",
            )
        self._line, self._quoting = lengths[-1], quoting

    def send_eof(self) -> None:
        """Type the end-of-file character that the terminal has (Ctrl-D, usually): the program's next read
        gives nothing. A line that has been begun reaches it first. More can be written afterwards.

        A program that edits lines itself (bash and Python at their prompts) has no such character meanwhile,
        and reads Ctrl-D as a key: ``write(b"\\x04")``.

        :raises OSError: EINVAL, the terminal has none: it is in raw mode, or the character is disabled;
            EBADF, the transport has ended.
        """
        character = self._end_of_file()
        # In the middle of a line the first one only sends off what there is of it.
        StreamTransport.write(self, character * (2 if self._line else 1))
        self._begin_line()

    def _end_of_file(self) -> bytes:
        character = terminal.end_of_file(self.termios)
        if character is None:
            raise OSError(
                errno.EINVAL,
                "the terminal has no end-of-file character in its present mode; a program that reads keys"
                " one by one gets Ctrl-D by write(b'\\x04')",
            )
        return character

    def can_write_eof(self) -> bool:
        """Whether the terminal has an end-of-file character now; in raw mode it has none."""
        return self._rfd >= 0 and terminal.end_of_file(self.termios) is not None

    def write_eof(self) -> None:
        """``send_eof()`` after what is queued; nothing can be written afterwards. Idempotent.

        :raises NotImplementedError: the terminal has no end-of-file character now (see ``can_write_eof``).
        """
        if self._state.writes and not self._state.closing and self.can_write_eof():
            self.send_eof()
        super().write_eof()

    def _end_writing(self) -> None:
        """The character has been typed."""

    def _add_writer(self) -> None:
        # A hang-up counts as writable, for ever, to a poller; and what is unsent then has no reader.
        if self._nobody_there():
            self._unsent()
        else:
            super()._add_writer()

    def _is_over(self) -> bool:
        """Whether what is written has no reader any more; the kernel would keep it for the next one."""
        return self._nobody_there()

    def _nobody_there(self) -> bool:
        try:
            return bool(syscalls.poll_now(self._rfd, 0) & select.POLLHUP)
        except OSError:
            return False  # no memory

    def _unsent(self) -> None:
        self._write_failed(OSError(errno.EIO, "nobody has the other end of the terminal"))


def _keeps_lines(modes: list[Any]) -> bool:
    return terminal.is_canonical(modes) and not terminal.has_external(modes)
