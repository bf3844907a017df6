"""What a loop offers about descriptors, and what it does not, in one place.

A transport asks an *event source* for readiness: something with the loop's own ``add_reader``,
``remove_reader``, ``add_writer`` and ``remove_writer``. For a descriptor that epoll accepts, that
is the loop itself, with nothing in between. For a regular file or /dev/null, which epoll refuses
with EPERM, it is a `Pump`.

The `HangupWatch` of a loop tells when the other side of a descriptor goes, while nobody reads it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol

from . import syscalls

__all__ = ["EventSource", "HangupWatch", "Pump", "events_of", "forgets_after_error", "hangup_watch"]


class EventSource(Protocol):
    def add_reader(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> Any: ...
    def remove_reader(self, fd: int, /) -> Any: ...
    def add_writer(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> Any: ...
    def remove_writer(self, fd: int, /) -> Any: ...


def events_of(loop: asyncio.AbstractEventLoop) -> EventSource:
    """What a transport on *loop* asks first: the loop, or what a loop of ours has for transports."""
    source: EventSource = getattr(loop, "_transport_events", loop)
    return source


def forgets_after_error(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop's poller drops a descriptor for good after it saw POLLERR once.

    libuv stops such a poll handle, and uvloop closes it after one last call of the callbacks. What
    is still readable would never be told, so on these loops reading transports arm the hang-up
    watch as well, which adds the reader anew.
    """
    return not isinstance(loop, asyncio.SelectorEventLoop)


class Pump:
    """Readiness for files that are always ready: one callback per turn of the loop.

    It never spins: a registration ends with end of file, or while the transport is paused. When
    the next bytes of a regular file are not in memory, they are requested (posix_fadvise(2)) and
    looked for again after a moment, so that a slow disk does not hold the loop.
    """

    __slots__ = ("_callbacks", "_loop", "_patience", "_turns")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: dict[str, tuple[Any, ...]] = {}
        self._turns: dict[str, asyncio.Handle] = {}
        self._patience = 0.0

    def add_reader(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        self._add("read", fd, callback, *args)

    def add_writer(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        self._add("write", fd, callback, *args)

    def remove_reader(self, _fd: int, /) -> bool:
        return self._remove("read")

    def remove_writer(self, _fd: int, /) -> bool:
        return self._remove("write")

    def _add(self, side: str, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        self._callbacks[side] = (callback, *args)
        if side not in self._turns:
            self._turns[side] = self._loop.call_soon(self._turn, side, fd)

    def _remove(self, side: str) -> bool:
        if side in self._turns:
            self._turns.pop(side).cancel()
        return self._callbacks.pop(side, None) is not None

    def _turn(self, side: str, fd: int) -> None:
        if side == "read" and not in_memory(fd):
            self._patience = min(max(self._patience * 2, 0.001), 0.016)
            self._turns[side] = self._loop.call_later(self._patience, self._turn, side, fd)
            return
        self._patience = 0.0
        self._turns[side] = self._loop.call_soon(self._turn, side, fd)
        callback, *args = self._callbacks[side]
        callback(*args)


def in_memory(fd: int, position: int | None = None, size: int = 1 << 18) -> bool:
    """False when reading the next byte of the file *fd*, or the one at *position*, would wait for its disk.

    The disk is then asked for *size* bytes.

    preadv2(2) with RWF_NOWAIT answers EAGAIN then. Files and systems without that flag, and
    everything that has no position, count as ready.
    """
    if position is None:
        try:
            position = syscalls.lseek(fd, 0, os.SEEK_CUR)
        except OSError:
            return True  # it has no position
    try:
        syscalls.preadv(fd, [bytearray(1)], position, syscalls.RWF_NOWAIT)
    except BlockingIOError:
        syscalls.posix_fadvise(fd, position, size, os.POSIX_FADV_WILLNEED)
        return False
    except OSError:
        pass  # the read itself will tell what is wrong
    return True


_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, HangupWatch] = weakref.WeakKeyDictionary()


def hangup_watch(loop: asyncio.AbstractEventLoop) -> HangupWatch:
    """The one watch of *loop*."""
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = HangupWatch(loop)
    return watch


# EPOLLERR and EPOLLHUP are reported whether asked for or not (epoll_ctl(2)).
_RDHUP: int = getattr(select, "EPOLLRDHUP", 0)
_ONESHOT: int = getattr(select, "EPOLLONESHOT", 0)


class HangupWatch:
    """One private epoll of a loop, itself watched by the loop, that waits for hang-ups only.

    Each descriptor is armed with EPOLLONESHOT: one report, then silence, so that a hang-up, which
    is level-triggered and for ever, cannot spin. The epoll exists while something is armed.
    """

    __slots__ = ("__weakref__", "_armed", "_epoll", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._epoll: Any = None
        # Weakly: what nobody holds any more shall be collected, and warn, though it is armed.
        self._armed: dict[int, Callable[[], Callable[[], object] | None]] = {}

    def arm(self, fd: int, callback: Callable[[], object], *, reading: bool, more: int = 0) -> bool:
        """Call *callback* once when the other side of *fd* has gone, or, when *reading*, has ended; or for
        the events *more*.

        False where the platform has no epoll. :raises OSError: as epoll_ctl(2); EPERM for a file
        that cannot be polled.
        """
        loop = self._loop()
        if not _ONESHOT or loop is None:
            return False
        if self._epoll is None:
            self._epoll = syscalls.epoll()
            loop.add_reader(self._epoll.fileno(), self._ready)
        mask = _ONESHOT | (_RDHUP if reading else 0) | more
        try:
            try:
                self._epoll.register(fd, mask)
            except FileExistsError:
                self._epoll.modify(fd, mask)
        except OSError:
            self._close_if_idle()
            raise
        bound = isinstance(callback, MethodType)
        self._armed[fd] = weakref.WeakMethod(callback) if bound else lambda: callback
        return True

    def disarm(self, fd: int) -> None:
        """Forget *fd*; to be called before the descriptor is closed."""
        if self._armed.pop(fd, None) is None:
            return
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # closed behind our back: the kernel has forgotten it already
        self._close_if_idle()

    def _ready(self) -> None:
        for fd, _events in self._epoll.poll(0, 64):
            reference = self._armed.get(fd)
            callback = reference() if reference is not None else None
            if callback is not None:
                callback()
            if self._epoll is None:
                return

    def _close_if_idle(self) -> None:
        if self._armed or self._epoll is None:
            return
        epoll, self._epoll = self._epoll, None
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(epoll.fileno())
        epoll.close()


def cannot_be_polled(exc: OSError) -> bool:
    """epoll_ctl(2) answers EPERM for a file that does not support polling."""
    return exc.errno == errno.EPERM
