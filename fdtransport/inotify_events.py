"""What an inotify transport tells: events, watches that end, an overflow; and the protocol that is told."""

from __future__ import annotations

import asyncio
import logging
import os
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from ._core.inotify_records import InotifyMask

__all__ = ["InotifyEvent", "InotifyProtocol", "InotifyWatch", "WatchEnd"]

_log = logging.getLogger("fdtransport")
_ISDIR = int(InotifyMask.ISDIR)


class WatchEnd(Enum):
    """Why a watch has ended."""

    REMOVED = "removed"
    """``remove()`` was called."""
    DELETED = "deleted"
    """What it watched is no more."""
    MOVED = "moved"
    """What it watched has another name now, and nobody knows which."""
    UNMOUNTED = "unmounted"
    """The file system that it was on has gone."""
    ONCE = "once"
    """It was for one event (ONESHOT), and that has come."""


class InotifyWatch:
    """One watch of an `InotifyTransport`; made by ``add_watch``."""

    __slots__ = ("_end", "_keep", "_text", "_transport", "mask", "number", "path")

    def __init__(
        self,
        transport: Any,  # the one that it is of
        number: int,
        path: str | bytes,
        mask: InotifyMask,
        keep_moved: bool,
    ) -> None:
        self._keep = keep_moved
        self._transport = transport
        self._text = isinstance(path, str)
        self._end: WatchEnd | None = None
        #: Its number in the kernel.
        self.number: int = number
        #: The path as it was given.
        self.path: str | bytes = path
        #: What was asked for.
        self.mask: InotifyMask = mask

    @property
    def active(self) -> bool:
        """Whether events of it may come."""
        return self._transport._watches.get(self.number) is self

    def remove(self) -> None:
        """End it: no event of it comes after this. ``watch_removed`` follows. Idempotent."""
        self._transport._remove(self, WatchEnd.REMOVED)

    def __repr__(self) -> str:
        state = "" if self.active else " ended"
        return f"<InotifyWatch{state} {self.number} {self.path!r} {self.mask!s}>"


class InotifyEvent(NamedTuple):
    """One event, as the kernel told it."""

    watch: InotifyWatch
    """The watch that it is of."""
    mask: int
    """The bits of inotify(7); ``flags`` has them by name."""
    cookie: int
    """The number that the two halves of a rename share; otherwise 0."""
    name: str | bytes
    """The name in the watched directory; empty for what is watched itself. Bytes if the path was."""

    @property
    def flags(self) -> InotifyMask:
        """The mask with its names."""
        return InotifyMask(self.mask)

    @property
    def is_dir(self) -> bool:
        """Whether it is about a directory."""
        return bool(self.mask & _ISDIR)

    @property
    def path(self) -> str | bytes:
        """The watch's path and the name."""
        path: Any = self.watch.path
        return os.path.join(path, self.name) if self.name else path

    @property
    def as_path(self) -> Path:
        """``path`` as a ``pathlib.Path``."""
        return Path(os.fsdecode(self.path))


class InotifyProtocol(asyncio.BaseProtocol):
    """What an `InotifyTransport` calls. One of the first two is to be overridden."""

    def event_received(self, event: InotifyEvent) -> None:
        """An event. Not called if there is an ``events_received``."""

    # def events_received(self, events: list[InotifyEvent]): those of a wake-up, in one call

    def overflow_received(self) -> None:
        """The kernel's queue ran over: events were lost here. What is watched has to be looked at anew.

        What was in the queue behind this, and is told after it, may have gaps as well: the kernel says so
        once for as long as this waits there. So look once ``queued_bytes`` of this moment have come.
        """
        _log.warning("events of inotify were lost, and %r does not care", self)

    def watch_removed(self, watch: InotifyWatch, reason: WatchEnd) -> None:
        """*watch* has ended; all others live on."""
