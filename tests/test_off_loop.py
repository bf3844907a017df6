"""Calls that may take their time, made in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from fdtransport._core.off_loop import Departures, made_off_loop, result_off_loop, run_off_loop
from fdtransport.testing.observe import until


class Maker:
    """Makes things when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.made = 0
        self.undone = 0

    def make(self, wait: Callable[[int], None]) -> str:
        self.begun.set()
        assert self.go.wait(5)
        self.made += 1
        return "thing"

    def undo(self, thing: str) -> None:
        assert thing == "thing"
        self.undone += 1


async def test_what_was_made_comes_back() -> None:
    maker = Maker()
    maker.go.set()
    assert await made_off_loop(maker.make, maker.undo, Departures()) == "thing"
    assert maker.undone == 0


async def test_what_making_raises_comes_out() -> None:
    def wrong(wait: Callable[[int], None]) -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await made_off_loop(wrong, print, Departures())
    with pytest.raises(ValueError, match="on purpose"):
        await result_off_loop(lambda: wrong(lambda _: None), Departures(), 1)


async def test_what_nobody_waits_for_any_more_is_undone_and_waited_for_by_the_next() -> None:
    maker, departures = Maker(), Departures()
    first = asyncio.ensure_future(made_off_loop(maker.make, maker.undo, departures))
    await until(maker.begun.is_set, "it has begun")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    def second(wait: Callable[[int], None]) -> int:
        wait(7)
        return maker.undone

    waiting = asyncio.ensure_future(made_off_loop(second, print, departures))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    maker.go.set()
    assert await waiting == 1


async def test_two_that_are_cancelled_do_not_wait_for_each_other() -> None:
    departures, go, waited = Departures(), threading.Event(), []

    def make(wait: Callable[[int], None]) -> None:
        assert go.wait(5)
        wait(7)
        waited.append(None)

    tasks = [asyncio.ensure_future(made_off_loop(make, lambda _: None, departures)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    go.set()
    await until(lambda: len(waited) == 2, "both are over")


async def test_only_the_device_that_departs_is_waited_for() -> None:
    departures, go = Departures(), threading.Event()
    departures.run(asyncio.get_running_loop(), 7, lambda _: go.wait(5))

    def wait_for(device: int) -> Callable[[Callable[[int], None]], int]:
        def make(wait: Callable[[int], None]) -> int:
            wait(device)
            return device

        return make

    assert await made_off_loop(wait_for(8), print, departures) == 8
    waiting = asyncio.ensure_future(made_off_loop(wait_for(7), print, departures))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    go.set()
    assert await waiting == 7


async def test_what_takes_long_goes_on_in_a_thread_of_its_own() -> None:
    seen: list[tuple[bool, str]] = []

    def work(briefly: bool) -> bool:
        seen.append((briefly, threading.current_thread().name))
        return not briefly

    departures = Departures()
    departures.run(asyncio.get_running_loop(), 7, work)
    await made_off_loop(lambda wait: wait(7), print, departures)
    assert [briefly for briefly, _ in seen] == [True, False]
    assert seen[0][1] != seen[1][1]


def test_without_an_executor_a_thread_does_it() -> None:
    done = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await loop.shutdown_default_executor()
        assert run_off_loop(loop, done.set) is None
        with pytest.raises(RuntimeError):
            await result_off_loop(int, Departures(), 1)

    asyncio.run(main())
    assert done.wait(5)


class NoThreads:
    """While the block runs, no thread can be started: RLIMIT_NPROC of getrlimit(2) is reached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def __enter__(self) -> None:
        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        self._patch.setattr(threading.Thread, "start", refuse)

    def __exit__(self, *exc: object) -> None:
        self._patch.undo()


async def other_work() -> None:
    """As that of the rest of the program: an executor keeps what it had no thread for, and does it first."""
    await asyncio.get_running_loop().run_in_executor(None, int)


async def test_what_no_thread_was_there_for_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    maker.go.set()
    with NoThreads(monkeypatch):
        with pytest.raises(RuntimeError, match="thread"):
            await made_off_loop(maker.make, maker.undo, Departures())
        with pytest.raises(RuntimeError, match="thread"):
            await result_off_loop(lambda: maker.make(print), Departures(), None)
    await other_work()
    assert maker.made == maker.undone


async def test_without_a_thread_a_device_is_closed_all_the_same_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[bool] = []
    departures = Departures()

    def close(briefly: bool) -> bool:
        closed.append(briefly)
        return not briefly

    with NoThreads(monkeypatch):
        departures.run(asyncio.get_running_loop(), 7, close)
    await other_work()
    assert closed == [True, False]
    departures.wait(7, departures.ticket())
