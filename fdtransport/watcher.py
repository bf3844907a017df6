"""Directory trees that are watched, and whose every change is told once, under its true path."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Literal, overload

from ._core import syscalls
from ._core.inotify_limits import as_limit_error
from ._core.inotify_records import InotifyMask
from ._core.opening import open_transport
from ._core.watch_engine import STRUCTURE, Engine
from ._core.watch_files import Files
from ._core.watch_ignore import Ignore, ignoring
from ._core.watch_scan import Steps
from ._core.watch_tree import Change, Kind, Node
from .inotify import InotifyTransport
from .watch_subscription import E_co, Subscription, check_options

__all__ = ["Watcher", "watch"]

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

#: Seconds of work in one turn of the loop.
SLICE = 0.003
#: Bytes of records that wait here. Beyond, they wait in the kernel, whose queue may run over.
BACKLOG = 8 * 1024 * 1024
#: Seconds until what is open is looked at again, at first and at most.
PATIENCE, MOST_PATIENCE = 0.02, 1.0


class Watcher(Generic[E_co]):
    """What ``watch`` gives: an async context manager, and an async iterator of its events.

    For type checkers, ``Watcher`` is one of events, and ``Watcher[list[WatchEvent]]`` one with ``batch``.
    """

    def __init__(
        self,
        roots: tuple[PathLike, ...],
        *,
        recursive: bool,
        mask: int,
        ignore: Ignore,
        follow_root: bool,
        initial: bool,
        maxsize: int,
        settle: float,
        batch: bool,
    ) -> None:
        given = [os.fspath(root) for root in roots]
        self._text = not any(isinstance(root, bytes) for root in given)
        self._given = [self._plain(root) for root in given]
        wanted = int(InotifyMask(mask))
        if wanted & ~int(InotifyMask.ALL_EVENTS):
            raise ValueError(f"mask is of the events in InotifyMask.ALL_EVENTS, and {mask!r} has others")
        self._recursive = recursive
        self._mask = wanted & ~int(InotifyMask.DELETE_SELF | InotifyMask.MOVE_SELF) | STRUCTURE
        self._ignored = ignoring(ignore, self._root_of)
        self._follow = follow_root
        self._initial = initial
        check_options(maxsize, settle)
        self._options = (maxsize, settle, batch)
        self._engine: Engine | None = None
        self._transport: InotifyTransport | None = None
        self._subscriptions: list[Subscription[Any]] = []
        self._main: Subscription[Any] | None = None
        self._work: Steps | None = None
        self._scheduled: asyncio.Handle | None = None
        self._patience = PATIENCE
        self._idle: list[asyncio.Future[None]] = []
        self._doing: set[asyncio.Future[None]] = set()
        self._closed = False
        self._telling = True
        self._adding: str | None = None  # the root that is, and whose contents are not told

    def _plain(self, root: str | bytes) -> str:
        if isinstance(root, bytes) is self._text:
            raise TypeError("the roots are all str or all bytes: events have paths of the same kind")
        path = os.fsdecode(root)
        if not path:
            raise ValueError("a root is a path, and not empty")
        if "\0" in path:
            raise ValueError("embedded null byte")
        return path.rstrip("/") or "/"

    def _root_of(self, path: str) -> str:
        """The root that *path* is in."""
        assert self._engine is not None
        for root in self._engine.tree.roots:
            if is_in(path, root):
                return root
        return path

    # -- coming and going ---------------------------------------------------------------------

    async def __aenter__(self) -> Watcher[E_co]:
        """Watch the roots; returns when all that is there is known.

        :raises OSError: a root is not there (ENOENT), no directory (ENOTDIR), cannot be read (EACCES).
        :raises InotifyLimitError: instances or watches of the user are used up.
        """
        if self._engine is not None:
            raise RuntimeError("a watcher is entered once; watch() makes another one")
        try:
            fd = syscalls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise as_limit_error(exc) from None
        try:
            self._engine = Engine(
                Files(fd, self._mask), self._tell, recursive=self._recursive, ignored=self._ignored
            )
            self._transport, _ = await open_transport(InotifyTransport, lambda: _Records(self), fd)
        except BaseException:
            syscalls.close(fd)
            raise
        self._telling = self._initial
        try:
            self._main = self.subscribe(*self._options)
            for root in self._given:
                await self._do(partial(self._add, root))
            await self.ready()
        except BaseException:
            await self.aclose()
            raise
        self._telling = True
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop watching; those who wait for events get what has come, and then the end. Idempotent."""
        transport, engine = self._transport, self._engine
        self._end(None)
        if transport is None or engine is None:
            return
        if not transport.is_closing():
            # The kernel takes its time to close an instance, for each watch that it has.
            transport.set_protocol(_Nothing())
            until = time.perf_counter() + SLICE
            try:
                for number in list(engine.tree.by_wd):
                    if transport.is_closing():
                        break  # by somebody else meanwhile: its descriptor may be another's
                    engine.files.unwatch(number)
                    if time.perf_counter() > until:
                        await asyncio.sleep(0)
                        until = time.perf_counter() + SLICE
            finally:
                transport.close()  # also if this is cancelled
        await transport.aclose()

    def _end(self, exc: BaseException | None) -> None:
        self._closed = True
        for future in (*self._idle, *self._doing):
            if not future.done():
                future.set_exception(OSError(errno.EBADF, "the watcher was closed"))
        self._idle.clear()
        if self._work is not None:
            self._work.close()
            self._work = None
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        for subscription in self._subscriptions:
            subscription._end(exc)
        self._subscriptions.clear()

    # -- for the caller -----------------------------------------------------------------------

    async def add(self, root: PathLike) -> None:
        """Watch another root; returns when what is in it is known. Errors as of entering.

        :raises ValueError: it is watched already, as a root or in one, or has one in it.
        """
        path = self._plain(os.fspath(root))
        await self._do(partial(self._add, path))

    async def remove(self, root: PathLike) -> None:
        """Watch a root no more: UNWATCHED is told of it, and nothing after that.

        :raises ValueError: it is no root.
        """
        path = self._plain(os.fspath(root))
        await self._do(partial(self._remove, path))

    async def rescan(self) -> None:
        """Look at everything again, also at what could not be watched before."""
        await self._do(self._open_engine().rescan)

    async def ready(self) -> None:
        """Return when every event that the kernel has at this moment was told, and nothing is open about it.

        A file that left waits up to 0.05 s for the news that it has arrived somewhere. Cancelling is safe.
        """
        self._open_engine()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(future)
        self._run()
        await future

    @overload
    def subscribe(
        self, maxsize: int = 16384, settle: float = 0.0, batch: Literal[False] = False
    ) -> Subscription[Change]: ...
    @overload
    def subscribe(
        self, maxsize: int = 16384, settle: float = 0.0, *, batch: Literal[True]
    ) -> Subscription[list[Change]]: ...
    @overload
    def subscribe(
        self, maxsize: int = 16384, settle: float = 0.0, batch: bool = False
    ) -> Subscription[Change | list[Change]]: ...
    def subscribe(self, maxsize: int = 16384, settle: float = 0.0, batch: bool = False) -> Subscription[Any]:
        """One more consumer, with a queue of its own; it gets what happens from now on. As of ``watch``.

        It costs what waits in it until its ``close()``, or that of the watcher.
        """
        leave = self._subscriptions.remove
        subscription = Subscription[Any](self._open_engine(), maxsize, settle, batch, self._text, leave)
        self._subscriptions.append(subscription)
        return subscription

    def snapshot(self) -> dict[Any, bool]:
        """Every path that is there, as far as it was told, and whether it is a directory; the roots too."""
        found: dict[Any, bool] = {}
        for path, root in self._open_engine().tree.roots.items():
            found[path] = True
            found.update((inner, entry is not None) for inner, entry in root.below(path))
        return found if self._text else {os.fsencode(path): is_dir for path, is_dir in found.items()}

    @property
    def roots(self) -> tuple[Any, ...]:
        """The roots that are there."""
        roots = self._open_engine().tree.roots
        return tuple(roots if self._text else map(os.fsencode, roots))

    def __aiter__(self) -> Subscription[E_co]:
        if self._main is None:
            raise RuntimeError("a watcher is to be entered first: async with watch(...) as w")
        return self._main

    def __repr__(self) -> str:
        if self._engine is None:
            return f"<Watcher not entered {self._given!r}>"
        tree = self._engine.tree
        return f"<Watcher {list(tree.roots)!r} directories={len(tree.by_wd)}>"

    def _open_engine(self) -> Engine:
        if self._engine is None or self._transport is None:
            raise RuntimeError("a watcher is to be entered first: async with watch(...) as w")
        if self._closed:
            raise OSError(errno.EBADF, "the watcher is closed")
        return self._engine

    # -- work ---------------------------------------------------------------------------------

    def _tell(self, change: Change, node: Node | None) -> None:
        if change.error is not None:
            change = change._replace(error=as_limit_error(change.error))
        if self._is_told(change):
            for subscription in self._subscriptions:
                subscription._put(change, node)

    def _is_told(self, change: Change) -> bool:
        """Whether it is no news only of what is there at first."""
        if change.kind is Kind.ERROR or change.kind is Kind.MOUNT:
            return True
        if self._adding is None or not self._telling:
            return self._telling
        # What has left another root is news.
        return not is_in(change.path if change.old_path is None else change.old_path, self._adding)

    def _add(self, path: str) -> Steps:
        assert self._engine is not None
        self._adding = None if self._initial else path
        try:
            yield from self._engine.add_root(path, self._follow)
        except NotADirectoryError as exc:
            what = "to watch a file, watch the directory that it is in"
            raise NotADirectoryError(exc.errno, f"{exc.strerror}: {what}", path) from None
        except OSError as exc:
            exc.filename = path
            raise as_limit_error(exc) from None
        finally:
            self._adding = None

    def _remove(self, path: str) -> Steps:
        assert self._engine is not None
        self._engine.remove_root(path)
        yield

    async def _do(self, task: Callable[[], Steps]) -> None:
        """Have the engine do *task* between two records; what it raises is raised here."""
        engine = self._open_engine()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def steps() -> Steps:
            try:
                yield from task()
            except Exception as exc:  # also what the program's own ignore raises
                if not future.done():
                    future.set_exception(exc)
                return
            finally:
                if not future.done():
                    future.set_result(None)

        engine.tasks.append(steps)
        self._doing.add(future)
        try:
            self._run()
            await future
        finally:
            self._doing.discard(future)

    def _fed(self, data: bytes) -> None:
        engine, transport = self._engine, self._transport
        assert engine is not None
        assert transport is not None
        engine.feed(data)
        if engine.backlog > BACKLOG:
            transport.pause_reading()
        if self._work is None:
            self._patience = PATIENCE
            self._run()

    def _run(self) -> None:
        """Work for a little while; go on in the next turn of the loop, or when there is something to do."""
        engine, transport = self._engine, self._transport
        assert engine is not None
        if transport is None or self._closed:
            return
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        loop = asyncio.get_running_loop()
        if self._work is None:
            self._work = engine.work()
        until = time.perf_counter() + SLICE
        try:
            for _ in self._work:
                if time.perf_counter() > until:
                    self._scheduled = loop.call_soon(self._run)
                    return
            waiting = engine.files.queued()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._work = None
            transport._callback_failed("watching failed", exc)
            return
        self._work = None
        if not transport.is_reading() and engine.backlog <= BACKLOG:
            transport.resume_reading()
        if engine.busy:
            self._scheduled = loop.call_soon(self._run)
        elif waiting:
            pass  # the transport has it before long
        elif not engine.settled:
            self._scheduled = loop.call_later(self._patience, self._run)
            self._patience = min(self._patience * 1.5, MOST_PATIENCE)
        else:
            self._patience = PATIENCE
            self._told_all()

    def _told_all(self) -> None:
        assert self._engine is not None
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        self._idle.clear()


def is_in(path: str, root: str) -> bool:
    """Whether *path* is *root* or below it."""
    return path == root or path.startswith(root if root == "/" else root + "/")


class _Nothing(asyncio.BaseProtocol):
    """The protocol when what comes is of no use any more."""

    def raw_received(self, data: bytes) -> None:
        pass

    def connection_lost(self, exc: BaseException | None) -> None:
        pass


class _Records(asyncio.BaseProtocol):
    """The protocol of the transport: its records go to the engine as they are."""

    def __init__(self, watcher: Watcher[Any]) -> None:
        self._watcher = watcher

    def raw_received(self, data: bytes) -> None:
        self._watcher._fed(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._watcher._end(exc)


@overload
def watch(
    *roots: PathLike, recursive: bool = True, mask: int = InotifyMask.MODIFY | InotifyMask.CLOSE_WRITE,
    ignore: Ignore = None, follow_root: bool = False, initial: bool = False, maxsize: int = 16384,
    settle: float = 0.0, batch: Literal[False] = False,
) -> Watcher[Change]: ...  # fmt: skip
@overload
def watch(
    *roots: PathLike, recursive: bool = True, mask: int = InotifyMask.MODIFY | InotifyMask.CLOSE_WRITE,
    ignore: Ignore = None, follow_root: bool = False, initial: bool = False, maxsize: int = 16384,
    settle: float = 0.0, batch: Literal[True],
) -> Watcher[list[Change]]: ...  # fmt: skip
@overload
def watch(
    *roots: PathLike, recursive: bool = True, mask: int = InotifyMask.MODIFY | InotifyMask.CLOSE_WRITE,
    ignore: Ignore = None, follow_root: bool = False, initial: bool = False, maxsize: int = 16384,
    settle: float = 0.0, batch: bool = False,
) -> Watcher[Change | list[Change]]: ...  # fmt: skip
def watch(
    *roots: PathLike,
    recursive: bool = True,
    mask: int = InotifyMask.MODIFY | InotifyMask.CLOSE_WRITE,
    ignore: Ignore = None,
    follow_root: bool = False,
    initial: bool = False,
    maxsize: int = 16384,
    settle: float = 0.0,
    batch: bool = False,
) -> Watcher[Any]:
    """Watch directories and everything below them.

    ::

        async with watch("src") as w:
            async for event in w:
                print(event.kind, event.path)

    Whatever appears, moves or goes is told once, under its true path, also when it happens faster than it
    can be told, or when the kernel's queue has run over: then OVERFLOW is told, what has become different,
    and RESCANNED. The events alone, applied to what ``snapshot()`` gave (or with *initial* to nothing), give
    the tree. What is already in a new directory when the watch of that begins is told as CREATED, with
    ``synthetic`` set, and not what was written to it before.

    *roots*: directories, or links to some, all str or all bytes; more by ``add``. *recursive*: False for
    what is directly in them. *mask*: what is told of the contents of files, from MODIFY, CLOSE_WRITE,
    ATTRIB, OPEN, ACCESS and CLOSE_NOWRITE (the last three also of our own listing of directories). *ignore*:
    names or patterns as ``fnmatch`` has them, those with a ``/`` for the path below the root, or a function
    of the path and whether it is a directory; what is ignored is not even watched. *follow_root*: a root
    need not be there, and is watched again whenever it is. *initial*: tell what is there at first as CREATED.
    *settle*: seconds of quiet before events are told, those that cancel each other out left away. *batch*: a
    list of all that have come instead of one. *maxsize*: events that wait for the consumer, see
    `Subscription`.

    Errors come when it is entered, see ``Watcher.__aenter__``; later ones as events of kind ERROR, and the
    watcher goes on. A move of a directory above a root is not told by the kernel, nor that a root which is a
    link leads elsewhere: ``rescan`` sees it. See inotify(7).
    """
    return Watcher(
        roots,
        recursive=recursive,
        mask=mask,
        ignore=ignore,
        follow_root=follow_root,
        initial=initial,
        maxsize=maxsize,
        settle=settle,
        batch=batch,
    )
