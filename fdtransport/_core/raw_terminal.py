"""The user's own terminal in raw mode, and all the ways in which it is put back.

The modes of a terminal are not the process's that sets them (termios(3)): they stay when it ends, is killed
or stopped, and its user has a shell without echo and line ends then. So they are put back

    at the end of the transport     and at exit, for a program that does not wait for that
    SIGTERM, SIGHUP, SIGINT,        whose default action would be the end: put back first, and then that
    SIGQUIT                         end it is, by that signal, as the parent process expects
    SIGTSTP                         as well, and then the stop; SIGCONT goes on in raw mode, with what the
                                    modes and the size of the window are by then
    SIGSTOP, SIGKILL                cannot be caught: a shell with job control puts its terminal right

A signal for which the program has a handler of its own, or which it ignores, is left to it: the modes are
put back when it ends the transport, or itself. What a process in the background does to its terminal stops
it (SIGTTOU, tty_ioctl(4)), as it should: it is put into raw mode when it comes to the foreground, and a
terminal that somebody else has by now is not touched.

All of that is in the main thread, the only one in which Python handles signals.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from . import syscalls, terminal
from .screen import Screen

__all__ = ["RawTerminal"]

#: Whose default action is the end, or a stop.
_GIVING_WAY = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGTSTP")

#: Those in raw mode now, or to be again when the process goes on.
_held: list[RawTerminal] = []
#: The handlers that were there before ours.
_former: dict[int, Any] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)  # they are the parent's


class RawTerminal:
    """The terminal *fd* from ``enter()`` to ``leave()``.

    *nonblocking*: descriptors on which O_NONBLOCK was set though others share them; put back together with
    the modes, and so is what was switched on on the *screen*. The bound method *resized* is called, inside a
    signal handler, when the window may have another size.
    """

    def __init__(
        self, fd: int, nonblocking: Sequence[int], screen: Screen | None, resized: Callable[[], None]
    ) -> None:
        self._fd = fd
        self._device = terminal.device_of(fd)
        self._nonblocking = nonblocking
        self._screen = screen
        self._resized = weakref.WeakMethod(resized)
        self._before: list[Any] | None = None  # what to put back; None when that has been done
        self._raw: list[Any] | None = None
        self._leaving = False

    def enter(self) -> None:
        """Begin.

        :raises RuntimeError: this is not the main thread.
        :raises OSError: it is no terminal, or another job's and this one cannot wait for it; EBUSY, it is in
            raw mode already.
        """
        if self._device in [held._device for held in _held]:
            raise OSError(errno.EBUSY, f"{os.strerror(errno.EBUSY)}: this terminal is attached already")
        _hear()
        _held.append(self)
        try:
            self.take()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """End. Idempotent."""
        if self in _held:  # not in a process that was forked
            self._leaving = True  # a stop in the middle of this must not take it again
            self.put_back()
            _held.remove(self)
            if not _held:
                _stop_hearing()

    def take(self) -> None:
        """Raw mode, from whatever mode it has now. It is waited for, stopped, in the background."""
        if self._leaving:
            return
        terminal.come_to_foreground(self._fd)
        for fd in self._nonblocking:
            syscalls.set_blocking(fd, False)
        modes = terminal.modes_of(self._fd)
        if modes != self._raw:
            self._before = modes
            terminal.set_modes(self._fd, terminal.raw(modes))
            self._raw = terminal.modes_of(self._fd)
            if self._screen is not None:
                self._screen.redo()

    def put_back(self) -> None:
        """The modes that it had, unless it is another job's by now, whose modes those are."""
        before = self._before
        if before is None:
            return
        in_foreground = terminal.in_foreground(self._fd)
        if in_foreground and self._screen is not None:
            self._screen.undo()  # while it cannot wait
        for fd in self._nonblocking:
            with contextlib.suppress(OSError):
                syscalls.set_blocking(fd, True)
        if in_foreground:
            # Should that change at this moment, it must not stop us: this may be the end.
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
            try:
                terminal.set_modes(self._fd, before)
            except OSError:
                pass  # it has gone
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        self._before = self._raw = None  # last: a signal may come in between

    def tell_size(self) -> None:
        resized = self._resized()
        if resized is not None:
            resized()


# -- signals -------------------------------------------------------------------------------------------


def _give_way(number: int, _frame: object) -> None:
    """The default action of a signal, with the terminals as they were."""
    for held in [*_held]:
        held.put_back()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    # Continued. Or it had no effect: on the first process of a container, or on one that nobody would
    # continue (an orphaned process group, of setpgid(2)).
    signal.signal(number, _give_way)
    _go_on()


def _go_on() -> None:
    for held in [*_held]:
        with contextlib.suppress(OSError):  # it has gone, which reading tells
            held.take()
        held.tell_size()


def _continued(number: int, frame: Any) -> None:
    _go_on()
    _call_former(number, frame)


def _window_changed(number: int, frame: Any) -> None:
    for held in [*_held]:
        held.tell_size()
    _call_former(number, frame)


def _call_former(number: int, frame: Any) -> None:
    former = _former.get(number)
    if callable(former):
        former(number, frame)


_HANDLERS: dict[str, Callable[[int, Any], None]] = {
    **dict.fromkeys(_GIVING_WAY, _give_way),
    "SIGCONT": _continued,
    "SIGWINCH": _window_changed,
}


def _hear() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "the user's terminal is attached in the main thread: only there can the signals be handled"
            " that have to put it back"
        )
    if not _held:
        atexit.register(_leave_all)
    for name, handler in _HANDLERS.items():
        number = getattr(signal, name)
        former = signal.getsignal(number)
        # None: not Python's, which could not put it back.
        if former is None or former is handler or (handler is _give_way and former is not signal.SIG_DFL):
            continue
        _former[number] = former
        signal.signal(number, handler)


def _stop_hearing() -> None:
    atexit.unregister(_leave_all)
    for name, handler in _HANDLERS.items():
        number = getattr(signal, name)
        if number in _former and signal.getsignal(number) is handler:
            with contextlib.suppress(ValueError):  # collected in another thread: they do nothing alone
                signal.signal(number, _former[number])
                del _former[number]


def _leave_all() -> None:
    for held in [*_held]:
        held.leave()
