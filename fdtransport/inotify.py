"""inotify(7): what happens to files and directories, as a transport of events.

This is the kernel's own interface, made exact: one watch sees one directory or file, by its inode. For a
tree, with everything in it under its true path, see ``watch``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from ._core import syscalls
from ._core.base import BaseTransport
from ._core.inotify_limits import as_limit_error, limits, watch_numbers
from ._core.inotify_records import ENCODING, HEADER, InotifyMask
from ._core.lifecycle import Event
from ._core.opening import open_transport
from .errors import Meaning, meaning
from .inotify_events import InotifyEvent, InotifyWatch, WatchEnd

__all__ = ["InotifyTransport", "connect_inotify"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_log = logging.getLogger("fdtransport")

#: Bytes per wake-up, some five hundred events: more costs the other users of the loop more than it saves.
READ_SIZE = 16 * 1024

_MASK = InotifyMask
_IGNORED, _OVERFLOW, _UNMOUNT = int(_MASK.IGNORED), int(_MASK.Q_OVERFLOW), int(_MASK.UNMOUNT)
_MOVE_SELF = int(_MASK.MOVE_SELF)
_ASKED = int(_MASK.MASK_ADD | _MASK.MASK_CREATE)
#: What is about the watch, and not only about what it watches.
_OF_WATCH = _IGNORED | _OVERFLOW | _UNMOUNT | _MOVE_SELF


class InotifyTransport(BaseTransport, asyncio.ReadTransport):
    """Events of inotify(7). See `InotifyProtocol` for what it calls, and ``connect_inotify`` for one.

    Extra info: ``watches`` (those that are active), ``limits`` (the kernel's, see `InotifyLimits`),
    ``queued_bytes`` (what the kernel holds), ``fd``.
    """

    __slots__ = ("_lost_events", "_rest", "_watches")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> None:
        self._watches: dict[int, InotifyWatch] = {}
        self._rest = b""  # was read, and reading was paused before it was delivered
        self._lost_events = False  # some of which may have been the end of a watch
        super().__init__(loop, file, protocol, waiter, extra, server)

    def _check_kind(self) -> None:
        assert self._reading_handle is not None
        try:
            what = syscalls.readlink(f"/proc/self/fd/{self._rfd}")
        except OSError:
            return  # no /proc
        if what not in ("anon_inode:inotify", "inotify"):
            raise ValueError(f"an inotify instance was expected, not {what!r}")

    def _set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not any(hasattr(protocol, name) for name in ("event_received", "events_received", "raw_received")):
            raise TypeError(f"a protocol with event_received or events_received is needed, not {protocol!r}")
        super()._set_protocol(protocol)

    def _find_extra(self, name: str) -> Any:
        if name == "watches":
            return tuple(self._watches.values())
        if name == "limits":
            return limits()
        if name == "queued_bytes":
            return syscalls.bytes_readable(self._rfd)
        return None

    # -- watches ------------------------------------------------------------------------------

    def add_watch(self, path: PathLike, mask: int, *, keep_moved: bool = False) -> InotifyWatch:
        """Watch what is at *path* now for the events in *mask* (`InotifyMask`, with its flags).

        The kernel watches an inode, whatever its names: what has a watch already, under this path or
        another, has to be asked for with MASK_ADD, which adds *mask* to that watch and returns it. When
        the watched thing itself is moved, its path is true no more, and the watch ends; *keep_moved*: it
        lives on, under the path that it was given. A move of a directory above it is not told by the
        kernel.

        :raises FileExistsError: it is watched already.
        :raises InotifyLimitError: the user's watches are used up (ENOSPC).
        :raises ValueError: *mask* has no event. :raises OSError: ENOENT, EACCES (it has to be readable),
            ENOTDIR with ONLYDIR; EBADF, the transport has ended.

        ::

            watch = transport.add_watch("/etc", InotifyMask.CLOSE_WRITE | InotifyMask.MOVED_TO)
        """
        given = os.fspath(path)
        if self._rfd < 0 or self._state.closing:
            raise OSError(errno.EBADF, "the transport has ended", given)
        name = os.fsencode(given)
        if b"\0" in name:
            raise ValueError("embedded null byte")  # it would be the end of the path
        wanted = InotifyMask(mask)
        if not wanted & InotifyMask.ALL_EVENTS:
            raise ValueError(f"a mask has at least one event of ALL_EVENTS, and {wanted!r} has none")
        asked = int(wanted)
        if not keep_moved and not asked & InotifyMask.ONESHOT:
            asked |= _MOVE_SELF
        if not asked & _ASKED:
            asked |= int(InotifyMask.MASK_CREATE)
        try:
            number = syscalls.inotify_add_watch(self._rfd, name, asked)
        except FileExistsError:
            what = "it is watched already; MASK_ADD adds to that watch, and remove() ends it"
            raise FileExistsError(errno.EEXIST, what, given) from None
        except OSError as exc:
            exc.filename = given
            raise as_limit_error(exc) from None
        watch = self._watches.get(number)
        if watch is None:
            watch = self._watches[number] = InotifyWatch(self, number, given, wanted & ~_ASKED, keep_moved)
        else:
            watch.mask |= wanted & ~_ASKED
        return watch

    def _remove(self, watch: InotifyWatch, reason: WatchEnd) -> None:
        if not watch.active:
            return
        del self._watches[watch.number]
        try:
            syscalls.inotify_rm_watch(self._rfd, watch.number)
        except OSError:
            pass  # EINVAL: it has ended by itself, and the record of it waits to be read
        self._loop.call_soon(self._tell_end, watch, reason, context=self._context)

    def _tell_end(self, watch: InotifyWatch, reason: WatchEnd) -> None:
        told = getattr(self._protocol, "watch_removed", None)
        if told is not None:
            self._guard("protocol.watch_removed() failed", told, watch, reason)

    def _ended(self, number: int, reason: WatchEnd) -> None:
        watch = self._watches.pop(number, None)
        if watch is not None:
            self._tell_end(watch, watch._end or reason)

    # -- reading ------------------------------------------------------------------------------

    def _reader(self) -> Callable[[], object]:
        return self._read

    def _read(self) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        data = self._rest
        if data:
            self._rest = b""
        else:
            try:
                data = self._sys.read(self._rfd, READ_SIZE)
            except OSError as exc:
                if meaning(exc, self._READ_ERRORS) is not Meaning.AGAIN:
                    exc.__traceback__ = None
                    self._step(Event.READ_ERROR, exc)
                return
        protocol = self._protocol
        raw = getattr(protocol, "raw_received", None)
        try:
            if raw is not None:
                raw(data)
            else:
                batch = getattr(protocol, "events_received", None)
                self._deliver(data, batch)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: the protocol's callback for events failed.", exc)
            return
        if self._lost_events:
            self._look_for_ends()

    def _deliver(self, data: bytes, batch: Callable[[list[InotifyEvent]], object] | None) -> None:
        """Tell the events in *data*, one by one or as a list; from a pause on they are kept."""
        watches, take, new = self._watches, HEADER.unpack_from, tuple.__new__
        one = self._protocol.event_received if batch is None else None
        events: list[InotifyEvent] = []
        at, end = 0, len(data)
        name: str | bytes
        while at < end:
            number, mask, cookie, length = take(data, at)
            start = at + 16
            at = start + length
            watch = watches.get(number)
            if watch is None and mask != _OVERFLOW:
                continue  # of a watch that was removed
            if mask & _OF_WATCH:
                if events and batch is not None:
                    batch(events)
                    events = []
                    if self._paused or not self._state.reads:
                        at = start - 16
                        break
                if not self._of_watch(number, watch, mask):
                    if self._paused or not self._state.reads:
                        break
                    continue
            assert watch is not None
            if length:  # padded with NULs
                raw = data[start:at].rstrip(b"\0")
                name = raw.decode(ENCODING, "surrogateescape") if watch._text else raw
            else:
                name = "" if watch._text else b""
            event = new(InotifyEvent, (watch, mask, cookie, name))
            if one is None:
                events.append(event)
            else:
                one(event)
                if self._paused or not self._state.reads:
                    break
        if events and batch is not None:
            batch(events)
        if at < end and self._state.reads:
            self._rest = data[at:]

    def _of_watch(self, number: int, watch: InotifyWatch | None, mask: int) -> bool:
        """A record about a watch or the queue; whether it is an event as well."""
        if mask & _OVERFLOW:
            self._lost_events = True
            told = getattr(self._protocol, "overflow_received", None)
            if told is None:
                _log.warning("events of inotify were lost, and %r has no overflow_received()", self._protocol)
            else:
                self._guard("protocol.overflow_received() failed", told)
            return False
        assert watch is not None
        if mask & _IGNORED:
            once = bool(watch.mask & InotifyMask.ONESHOT)
            self._ended(number, WatchEnd.ONCE if once else WatchEnd.DELETED)
            return False
        if mask & _UNMOUNT:
            watch._end = WatchEnd.UNMOUNTED  # IGNORED follows
            return True
        if not watch._keep:
            self._remove(watch, WatchEnd.MOVED)
        return bool(watch.mask & _MOVE_SELF)

    def _look_for_ends(self) -> None:
        """After an overflow: the record that a watch has ended may be among those that were lost."""
        if self._rest or not self._state.reads:
            return
        alive = watch_numbers(self._rfd)
        if syscalls.bytes_readable(self._rfd):
            return  # it may be among these as well
        self._lost_events = False
        for number in [number for number in self._watches if number not in alive]:
            self._ended(number, WatchEnd.DELETED)

    def resume_reading(self) -> None:
        """Let events come again. Idempotent."""
        super().resume_reading()
        if self._rest:
            self._loop.call_soon(self._go_on, context=self._context)

    def _go_on(self) -> None:
        if self._rest and not self._paused and self._state.reads:
            self._read()

    def _unread(self) -> bytes:
        return self._rest

    def _flush(self) -> None:
        """There is nothing to write."""

    def _keep_extra(self) -> None:
        self._watches.clear()
        self._rest = b""


async def connect_inotify(protocol_factory: Callable[[], P]) -> tuple[InotifyTransport, P]:
    """A new instance of inotify(7), without watches; ``(transport, protocol)`` after ``connection_made``.

    See `InotifyProtocol` for what the protocol is called with, and ``InotifyTransport.add_watch``.
    Cancelling is safe.

    :raises InotifyLimitError: the user's instances are used up (EMFILE).
    :raises OSError: ENOSYS, there is no inotify here.

    ::

        class Show(InotifyProtocol):
            def event_received(self, event):
                print(event.flags, event.path)

        transport, protocol = await connect_inotify(Show)
        transport.add_watch("/tmp", InotifyMask.CREATE | InotifyMask.DELETE)
    """
    try:
        fd = syscalls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise as_limit_error(exc) from None
    try:
        return await open_transport(InotifyTransport, protocol_factory, fd)
    except BaseException:
        syscalls.close(fd)
        raise
