"""Calls of the kernel that may take their time, made in a thread: the loop goes on meanwhile.

The threads are those of the loop's default executor: ``asyncio.run()`` waits for them before it closes the
loop, so that nothing is cut off half done.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["Departures", "made_off_loop", "result_off_loop", "run_off_loop"]

T = TypeVar("T")


def _submit(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> asyncio.Future[Any]:
    """Call *work* in a thread of the executor.

    :raises RuntimeError: it has none any more, or none can be started; *work* is not called then. (The
        executor itself keeps what it had no thread for, and would call it later.)
    """
    claim: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        if claim.set_running_or_notify_cancel():
            try:
                claim.set_result(work())
            except BaseException as exc:
                claim.set_exception(exc)

    try:
        loop.run_in_executor(None, run)
    except RuntimeError:
        if claim.cancel():
            raise
    return asyncio.wrap_future(claim, loop=loop)


def run_off_loop(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> asyncio.Future[Any] | None:
    """Call *work*, which raises nothing, in a thread. None when the executor has been shut down: it is one
    of its own then, and nobody can wait for it."""
    try:
        return _submit(loop, work)
    except RuntimeError:
        _in_a_thread(work)
        return None


def _in_a_thread(work: Callable[[], object]) -> None:
    """In one of its own; here and now if there can be no more of them."""
    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError:
        work()


async def result_off_loop(work: Callable[[], T], departures: Departures, device: int | None) -> T:
    """What ``work()`` returns, called in a thread; what it raises comes out. Cancelling is safe: it goes on
    without anybody who waits, and *device* counts among the departures until it has ended."""
    over = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as exc:
            errors.append(exc)
        finally:
            over.set()

    future = _submit(asyncio.get_running_loop(), run)
    departures.add(departures.ticket(), device, over)
    await asyncio.shield(future)
    if errors:
        raise errors.pop()
    return results.pop()


class _Making(Generic[T]):
    """Something that is being made in a thread, for somebody who may not want it any more."""

    def __init__(self, make: Callable[[], T], undo: Callable[[T], object]) -> None:
        self._make = make
        self._undo = undo
        self._lock = threading.Lock()
        self._made: list[T] = []
        self._unwanted = False
        self._started = False
        self.over = threading.Event()

    def run(self) -> None:
        with self._lock:
            if self._unwanted:
                return
            self._started = True
        try:
            made = self._make()
            with self._lock:
                if not self._unwanted:
                    self._made.append(made)
                    return
            self._undo(made)
        finally:
            self.over.set()

    def take(self) -> T:
        return self._made.pop()

    def leave(self) -> tuple[list[T], bool]:
        """Nobody waits any more. What is there already, and whether something may still come, which its
        thread undoes."""
        with self._lock:
            self._unwanted = True
            made, self._made = self._made, []
            return made, self._started and not self.over.is_set()


async def made_off_loop(
    make: Callable[[Callable[[int], None]], T], undo: Callable[[T], object], departures: Departures
) -> T:
    """What ``make(wait)`` returns, called in a thread; what it raises comes out. ``wait(device)`` waits until
    *departures* has done with the device.

    Cancelling is safe: what was made, or still comes, is undone in a thread by ``undo(made)``, and counts
    among the departures until then.
    """
    ticket = departures.ticket()
    making = _Making(lambda: make(lambda device: departures.wait(device, ticket)), undo)
    loop = asyncio.get_running_loop()
    future = _submit(loop, making.run)
    try:
        await future
    except BaseException:
        found, still = making.leave()
        for made in found:  # it came at the very moment at which nobody wanted it any more
            departures.run(loop, None, lambda _, made=made: undo(made))  # type: ignore[misc]
        if still:
            departures.add(ticket, None, making.over)
        raise
    return making.take()


class Departures:
    """Those devices that are being closed in threads, for whoever wants to open one of them anew.

    A device is named by its number, ``st_rdev`` of stat(2); None is one of which that is not known yet. Each
    waits only for those that came before it, so that no two can wait for each other.
    """

    def __init__(self) -> None:
        self._tickets = itertools.count()
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)  # the threads are the parent's

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._under_way: list[tuple[int, int | None, threading.Event]] = []

    def ticket(self) -> int:
        return next(self._tickets)

    def add(self, ticket: int, device: int | None, over: threading.Event) -> None:
        with self._lock:
            self._under_way = [entry for entry in self._under_way if not entry[2].is_set()]
            self._under_way.append((ticket, device, over))

    def run(
        self, loop: asyncio.AbstractEventLoop, device: int | None, work: Callable[[bool], object]
    ) -> None:
        """Have ``work(True)``, which closes *device*, called in a thread of the executor.

        If it takes longer than a moment it returns False, and ``work(False)`` is called in a thread of its
        own: the executor's are few, and the whole program's.
        """
        over = threading.Event()

        def depart() -> None:
            if finish(True) is False:
                _in_a_thread(lambda: finish(False))

        def finish(briefly: bool) -> object:
            done: object = None
            try:
                done = work(briefly)
            finally:
                if done is not False:
                    over.set()
            return done

        self.add(self.ticket(), device, over)
        run_off_loop(loop, depart)

    def wait(self, device: int, before: int) -> None:
        """Wait, and hold this thread, until nobody with a ticket *before* that is still closing *device*."""
        with self._lock:
            waited = [o for ticket, d, o in self._under_way if ticket < before and d in (None, device)]
        for over in waited:
            over.wait()
