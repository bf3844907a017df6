"""A file that others write to, read on and on: as it grows, is rotated, or is cut and begun anew."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from ._core import syscalls
from ._core.inotify_records import InotifyMask
from ._core.readiness import in_memory
from .errors import EndpointError
from .feeding import FedTransport, Sink, connect_fed
from .inotify import InotifyTransport, connect_inotify
from .inotify_events import InotifyEvent, InotifyProtocol, InotifyWatch, WatchEnd

__all__ = ["connect_follow"]

P = TypeVar("P", bound=asyncio.BaseProtocol)

_FLAGS: int = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"))
READ_SIZE = 64 * 1024
_NAMES = (
    InotifyMask.CREATE | InotifyMask.MOVE | InotifyMask.DELETE | InotifyMask.ATTRIB
    | InotifyMask.ONLYDIR | InotifyMask.MASK_ADD
)  # fmt: skip
_MODIFY = int(InotifyMask.MODIFY)
_CONTENTS = InotifyMask.MODIFY | InotifyMask.ATTRIB
#: Links that the kernel follows one after the other, see path_resolution(7).
LINKS = 40
#: Why what is at the path cannot be read now; it may be another time.
_NOT_NOW = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP)


class _Stirring(InotifyProtocol):
    """Wakes whoever waits for anything to happen."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()
        self.names = True  # whether more than the contents of files may have changed
        self._exc: BaseException | None = None

    def names_have_changed(self) -> None:
        self.names = True
        self.happened.set()

    def events_received(self, events: list[InotifyEvent]) -> None:
        self.names = self.names or any(event.mask != _MODIFY for event in events)
        self.happened.set()

    def overflow_received(self) -> None:
        self.names_have_changed()

    def watch_removed(self, watch: InotifyWatch, reason: WatchEnd) -> None:
        self.names_have_changed()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._exc = exc
        self.happened.set()

    def check(self) -> None:
        """:raises OSError: nothing will wake anybody any more."""
        if self._exc is not None:
            raise self._exc


class _Follower:
    """The file that is read now, and what there is at the path."""

    def __init__(self, path: str, transport: InotifyTransport, stirring: _Stirring) -> None:
        self.path = path
        self._transport = transport
        self._stirring = stirring
        self._watch: InotifyWatch | None = None
        self._directories: set[InotifyWatch] = set()
        self._refused: tuple[int, int, int] | None = None  # what could not be opened, and as it was then
        self.fd = -1
        self._position = 0

    def open(self) -> None:
        """Take the file at the path. :raises OSError: there is none."""
        fd = syscalls.open(self.path, os.O_RDONLY | _FLAGS)
        try:
            there = syscalls.fstat(fd)
            if not stat.S_ISREG(there.st_mode):
                what = syscalls.kind(there.st_mode)
                raise EndpointError(f"{self.path!r} is {what}, and only a file can be followed")
            if self.fd >= 0 and os.path.samestat(there, syscalls.fstat(self.fd)):
                raise FileNotFoundError(errno.ENOENT, "it is the same file again", self.path)
            # By the descriptor: the path may be another file's by now.
            watched = f"/proc/self/fd/{fd}"
            watch = self._transport.add_watch(watched, _CONTENTS, keep_moved=True)
        except BaseException:
            syscalls.close(fd)
            raise
        self.close()
        if self._watch is not None:
            self._watch.remove()
        self.fd, self._position, self._watch = fd, 0, watch

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            syscalls.close(fd)

    def to_end(self) -> None:
        self._position = syscalls.lseek(self.fd, 0, os.SEEK_END)

    def watch_names(self) -> None:
        """Notice what happens to the path, and to every link on the way; directories may be new ones."""
        place, used = self.path, set[InotifyWatch]()
        for _ in range(LINKS):
            directory = os.path.dirname(place)
            try:
                place = os.path.join(directory, syscalls.readlink(place))
            except OSError as exc:
                if exc.errno == errno.EINVAL:  # it is there, and no link
                    self._watch_directory(directory, used)
                else:
                    self._watch_missing(directory, used)
                break
            self._watch_directory(directory, used)
        for watch in self._directories - used:
            watch.remove()
        self._directories = used

    def _watch_missing(self, directory: str, used: set[InotifyWatch]) -> None:
        """Notice when *directory* comes or goes: a file of it that is open keeps it from being told.

        The one above is watched first, for then what happens to the one below is known.
        """
        while True:
            above = os.path.dirname(directory)
            self._watch_directory(above, used)
            if self._watch_directory(directory, used) or above == directory:
                return
            directory = above

    def _watch_directory(self, directory: str, used: set[InotifyWatch]) -> bool:
        """Watch what has that path now; false if nothing has."""
        try:
            watch = self._transport.add_watch(directory, _NAMES)
        except OSError as exc:
            return exc.errno not in (errno.ENOENT, errno.ENOTDIR)
        used.add(watch)
        if watch not in self._directories:
            self._directories.add(watch)
            self._stirring.names_have_changed()  # look again: what happened before is not told
        return True

    async def read(self) -> bytes:
        """What comes next in the file, without waiting for more than the disk."""
        patience = 0.001
        while not in_memory(self.fd):
            await asyncio.sleep(patience)
            patience = min(2 * patience, 0.016)
        data = syscalls.read(self.fd, READ_SIZE)
        self._position += len(data)
        return data

    def was_cut(self) -> bool:
        """Whether there is less in the file than was read; then it is read from its beginning."""
        if syscalls.fstat(self.fd).st_size >= self._position:
            return False
        self._position = syscalls.lseek(self.fd, 0, os.SEEK_SET)
        return True

    def successor_has_begun(self) -> bool:
        """Whether the path is another file's, and there is something in that.

        Rotation makes an empty one before the program that writes knows of it.
        """
        try:
            there = syscalls.stat(self.path)
        except OSError:
            return False
        if not there.st_size or not stat.S_ISREG(there.st_mode) or self._refused == _state(there):
            return False
        return not os.path.samestat(there, syscalls.fstat(self.fd))

    def take_successor(self) -> bool:
        """Go on with the file at the path; false if that cannot be: it may be given to us only later."""
        try:
            there = syscalls.stat(self.path)
            self.open()
        except EndpointError:
            return False  # it is no file any more
        except OSError as exc:
            if exc.errno not in _NOT_NOW:
                raise
            if exc.errno == errno.EACCES:
                self._refused = _state(there)
            return False
        return True

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        while True:
            # First, and only then looked at: what comes later sets it again.
            self._stirring.happened.clear()
            if self._stirring.names:
                self._stirring.names = False
                self.watch_names()
            while data := await self.read():
                yield data
            if self.was_cut():
                continue
            if self.successor_has_begun():
                while data := await self.read():
                    yield data  # the last words of the old one
                if self.take_successor():
                    continue
            await self._watch_successor()

    async def _watch_successor(self) -> None:
        """Wait until something happens to the file, to its path, or to what is at the path."""
        watch = None
        with contextlib.suppress(OSError):
            if not os.path.samestat(syscalls.stat(self.path), syscalls.fstat(self.fd)):
                watch = self._transport.add_watch(self.path, InotifyMask.MODIFY | InotifyMask.MASK_ADD)
                if self.successor_has_begun():
                    self._stirring.happened.set()
        try:
            await self._stirring.happened.wait()
            self._stirring.check()
        finally:
            # It may have been the file that is read after all.
            if watch is not None and watch is not self._watch and watch not in self._directories:
                watch.remove()


def _state(there: os.stat_result) -> tuple[int, int, int]:
    return there.st_dev, there.st_ino, there.st_ctime_ns


async def connect_follow(
    protocol_factory: Callable[[], P], path: str | os.PathLike[str], *, from_end: bool = False
) -> tuple[FedTransport, P]:
    """Read a file, and then what is added to it, until the transport is closed.

    When the file is renamed or deleted and another one takes its path (rotation), what is left in the old
    one comes first; the new one is begun when there is something in it. When it is cut short it is read from
    its beginning again; what is cut and written anew to at least that length before anybody could look is
    not noticed. *from_end*: skip what is in it now.

    Returns ``(transport, protocol)`` after ``connection_made``. Cancelling is safe.

    :raises FileNotFoundError: there is no such file. :raises EndpointError: it is no regular file.
    :raises InotifyLimitError: instances or watches of the user are used up.

    ::

        transport, protocol = await connect_follow(MyProtocol, "/var/log/syslog", from_end=True)
    """
    place = os.path.join("" if os.path.isabs(path) else os.getcwd(), os.fsdecode(path))
    transport, stirring = await connect_inotify(_Stirring)
    follower = _Follower(place, transport, stirring)
    try:
        follower.open()
        if from_end:
            follower.to_end()
    except BaseException:
        follower.close()
        transport.abort()
        raise

    async def feed(sink: Sink) -> None:
        try:
            async with contextlib.aclosing(follower.pieces()) as pieces:
                async for data in pieces:
                    await sink.write(data)
        finally:
            follower.close()
            transport.abort()

    try:
        return await connect_fed(protocol_factory, feed)
    except BaseException:
        follower.close()
        transport.abort()
        raise
