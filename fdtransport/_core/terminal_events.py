"""What happens to a terminal besides its bytes: packet mode, and who opens it."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import struct
import weakref
from collections.abc import Callable
from enum import Enum
from typing import Any

from . import syscalls

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

__all__ = ["Openings", "PacketMode", "TerminalEvent", "events_in", "openings", "set_packet_mode"]


class TerminalEvent(Enum):
    """What a program did with its end of a terminal."""

    OPENED = "opened"
    """Somebody has it now, and nobody had it before."""
    CLOSED = "closed"
    """Nobody has it any more; what was written there has been delivered."""
    CHANGED = "changed"
    """Its speed or its modes are other ones: see ``transport.speed`` and ``transport.termios``."""
    INPUT_FLUSHED = "input flushed"
    """What it had not read was thrown away, by tcflush(3) or a signal from the keyboard."""
    OUTPUT_FLUSHED = "output flushed"
    """What it had written and was not read here was thrown away."""
    STOPPED = "stopped"
    """Its output is held back, by Ctrl-S or tcflow(3)."""
    STARTED = "started"
    """Its output goes on."""


#: The control bytes of packet mode: TIOCPKT of ioctl_tty(2).
_STATUS = (
    (0x01, TerminalEvent.INPUT_FLUSHED),
    (0x02, TerminalEvent.OUTPUT_FLUSHED),
    (0x04, TerminalEvent.STOPPED),
    (0x08, TerminalEvent.STARTED),
    (0x40, TerminalEvent.CHANGED),
)


def events_in(status: int) -> list[TerminalEvent]:
    return [event for bit, event in _STATUS if status & bit]


def set_packet_mode(master: int) -> None:
    """From now on each read of *master* begins with a byte that says what it is: see `PacketMode`."""
    syscalls.ioctl(master, termios.TIOCPKT, array.array("i", [1]))


class PacketMode:
    """The functions that move the bytes of a master in packet mode, without its control bytes.

    The bound method *tell* is given each of these, 0 before bytes among them, and answers whether reading may
    go on.
    """

    __slots__ = ("_method",)

    def __init__(self, tell: Callable[[int], bool]) -> None:
        self._method = weakref.WeakMethod(tell)  # that of the transport that has this

    def _tell(self, status: int) -> bool:
        tell = self._method()
        return tell is not None and tell(status)

    def read(self, fd: int, size: int) -> bytes:
        while True:
            data = syscalls.read(fd, size + 1)
            if not data:
                return data
            go_on = self._tell(data[0])
            if not data[0]:
                return data[1:]
            self._check(go_on)

    def readv(self, fd: int, buffers: list[Any]) -> int:
        status = bytearray(1)
        while True:
            count = syscalls.readv(fd, [status, *buffers])
            if not count:
                return 0
            go_on = self._tell(status[0])
            if not status[0]:
                return count - 1
            self._check(go_on)

    def _check(self, go_on: bool) -> None:
        if not go_on:
            # Not EAGAIN: there may well be more.
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    def splice(self, *_args: object) -> int:
        raise OSError(errno.EINVAL, "a terminal in packet mode cannot be spliced")

    def __getattr__(self, name: str) -> Any:
        return getattr(syscalls, name)


_openings: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Openings] = weakref.WeakKeyDictionary()


def openings(loop: asyncio.AbstractEventLoop) -> Openings:
    """The one of *loop*: a user may have 128 instances of inotify, and more terminals than that."""
    found = _openings.get(loop)
    if found is None:
        found = _openings[loop] = Openings(loop)
    return found


class Openings:
    """Tells when somebody opens a file, by one inotify(7) of the loop, which is there while it is needed."""

    __slots__ = ("__weakref__", "_callbacks", "_fd", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._fd = -1
        self._callbacks: dict[int, weakref.WeakMethod[Callable[[], object]]] = {}

    def watch(self, path: str, callback: Callable[[], object]) -> int:
        """Call the bound method *callback*, which is not kept alive, each time *path* was opened."""
        loop = self._loop()
        assert loop is not None
        if self._fd < 0:
            self._fd = syscalls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            loop.add_reader(self._fd, self._ready)
        try:
            number = syscalls.inotify_add_watch(self._fd, os.fsencode(path), syscalls.IN_OPEN)
        except OSError:
            self._close_if_idle()
            raise
        self._callbacks[number] = weakref.WeakMethod(callback)
        return number

    def forget(self, number: int) -> None:
        if self._callbacks.pop(number, None) is not None:
            try:
                syscalls.inotify_rm_watch(self._fd, number)
            except OSError:
                pass  # it went with the file
            self._close_if_idle()

    def _ready(self) -> None:
        try:
            data = syscalls.read(self._fd, 65536)
        except OSError:
            return
        numbers = []
        while data:
            number, _mask, _cookie, length = struct.unpack_from("iIII", data)
            numbers.append(number)
            data = data[16 + length :]
        if -1 in numbers:  # the queue ran over: it may have been any of them
            numbers = list(self._callbacks)
        for number in dict.fromkeys(numbers):
            reference = self._callbacks.get(number)
            callback = reference and reference()
            if callback:
                callback()

    def __del__(self) -> None:
        if self._fd >= 0:
            _close(self._fd)

    def _close_if_idle(self) -> None:
        if self._callbacks or self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(fd)
        _close(fd)


def _close(fd: int) -> None:
    try:
        syscalls.close(fd)
    except OSError:
        pass  # it is closed all the same, and had nothing that could be lost
