"""One consumer of the events of a watched tree, with a queue of its own."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Generic

from typing_extensions import TypeVar

from ._core.watch_difference import Difference, compacted
from ._core.watch_engine import Engine
from ._core.watch_tree import Change, Kind, Node

__all__ = ["Subscription", "check_options"]

#: How much longer than once the time of quiet may last altogether.
LONGEST = 10

#: What is given out: an event, or with ``batch`` a list of them.
E_co = TypeVar("E_co", default=Change, covariant=True)


def check_options(maxsize: int, settle: float) -> None:
    """:raises ValueError: they make no sense."""
    if maxsize < 1:
        raise ValueError(f"maxsize ({maxsize!r}) must be at least 1 event")
    if settle < 0:
        raise ValueError(f"settle ({settle!r}) must be at least 0 seconds")


class Subscription(Generic[E_co]):
    """Events, in order: ``async for``, or ``get()``. Made by ``watch`` and ``Watcher.subscribe``.

    For type checkers, ``WatchSubscription[list[WatchEvent]]`` is one with ``batch``.

    When more than *maxsize* of them wait, those that follow are not kept. Whoever goes on then gets what
    waits, OVERFLOW, what has become different since, and RESCANNED: the same tree in the end. Nobody else
    is held up by it.
    """

    def __init__(
        self,
        engine: Engine,
        maxsize: int,
        settle: float,
        batch: bool,
        text: bool,
        leave: Callable[[Subscription[Any]], object],
    ) -> None:
        check_options(maxsize, settle)
        self._leave = leave
        self._engine = engine
        self._maxsize = maxsize
        self._settle = settle
        self._batch = batch
        self._text = text
        self._queue: deque[Change] = deque()
        self._settled: deque[Change] = deque()  # were quiet for long enough
        self._missed: Difference | None = None
        self._arrivals = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._exc: BaseException | None = None

    # -- from the watcher ---------------------------------------------------------------------

    def _put(self, change: Change, node: Node | None) -> None:
        self._arrivals += 1
        if self._missed is not None:
            self._missed.note(change, node)
            return
        if len(self._queue) >= self._maxsize:
            self._missed = Difference(self._engine.tree)
            self._missed.note(change, node)
            return
        self._queue.append(change)
        if self._waiter is not None:
            self._wake()

    def _end(self, exc: BaseException | None = None) -> None:
        self._ended, self._exc = True, exc
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # -- for the caller -----------------------------------------------------------------------

    def close(self) -> None:
        """Listen no more: what waits can be had, and then comes the end; the watcher goes on. Idempotent."""
        if not self._ended:
            self._missed = None
            self._leave(self)
            self._end()

    async def get(self) -> E_co:
        """The next event; with ``batch``, the list of all that have come. Cancelling is safe: none is lost.

        :raises EOFError: there will be none any more: it was closed, or the last root has gone.
        :raises OSError: the watcher failed.
        """
        if self._settle and not self._settled:
            await self._quiet()
        source = self._settled or self._queue
        while not source:
            if self._missed is not None:
                self._repair()
            elif self._ended or self._engine.over:
                if self._exc is not None:
                    raise self._exc
                raise EOFError("no more events")
            else:
                await self._wait()
                if self._settle:
                    await self._quiet()
            source = self._settled or self._queue
        given: Any  # whoever made this said which it is
        if self._batch:
            given = [change if self._text else _encoded(change) for change in source]
            source.clear()
        else:
            change = source.popleft()
            given = change if self._text else _encoded(change)
        return given  # type: ignore[no-any-return]

    async def _wait(self) -> None:
        if self._waiter is None:
            self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._waiter)

    async def _quiet(self) -> None:
        """Wait until something has come, and then for a time in which nothing does."""
        while not (self._queue or self._missed or self._ended or self._engine.over):
            await self._wait()
        loop = asyncio.get_running_loop()
        latest = loop.time() + LONGEST * self._settle
        while not self._ended:
            arrivals = self._arrivals
            await asyncio.sleep(max(0, min(self._settle, latest - loop.time())))
            if arrivals == self._arrivals or loop.time() >= latest:
                break
        self._settled.extend(compacted(self._queue))
        self._queue.clear()

    def _repair(self) -> None:
        missed, self._missed = self._missed, None
        assert missed is not None
        self._queue.append(Change(Kind.OVERFLOW, "", "", False))
        self._queue.extend(missed.changes())
        self._queue.append(Change(Kind.RESCANNED, "", "", False))

    def __aiter__(self) -> Subscription[E_co]:
        return self

    async def __anext__(self) -> E_co:
        try:
            return await self.get()
        except EOFError:
            raise StopAsyncIteration from None


def _encoded(change: Change) -> Change:
    """The same with paths of bytes."""
    old = change.old_path
    return change._replace(
        directory=os.fsencode(change.directory),
        name=os.fsencode(change.name),
        old_path=None if old is None else os.fsencode(old),
    )
