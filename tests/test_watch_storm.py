"""Watched trees in a storm: what was told is what is there, in whatever way the records came or were lost.

A few storms by default. ``FDTRANSPORT_STORMS=many`` runs 200 of 3,000 operations in each way and 5 of 50,000.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from storm import exchange, flood
from tree_oracle import Replay, differ, walked
from watchers_side_by_side import compare

from fdtransport import Watcher, watch
from fdtransport._core.inotify_records import unpacked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")

HERE = Path(__file__).parent
MANY = os.environ.get("FDTRANSPORT_STORMS") == "many"
OVERFLOW = struct.pack("iIII", -1, 0x4000, 0, 0)
WATCHES = 1000


class Stage:
    """Trees, a place outside of them, and storms over them."""

    def __init__(self, path: Path, trees: int = 1) -> None:
        self.outside = str(path / "outside")
        os.mkdir(self.outside)
        self.roots = [str(path / f"tree{n}") for n in range(trees)]
        for root in self.roots:
            os.mkdir(root)

    def command(self, seed: int, operations: int) -> list[str]:
        return [
            sys.executable, "-S", str(HERE / "storm.py"),
            str(seed), str(operations), self.outside, *self.roots,
        ]  # fmt: skip

    async def storm(self, seed: int, operations: int, meanwhile: Callable[[], Any] | None = None) -> None:
        process = await asyncio.create_subprocess_exec(
            *self.command(seed, operations), stdout=subprocess.DEVNULL
        )
        while process.returncode is None:
            await asyncio.sleep(0)
            if meanwhile is not None:
                await meanwhile()
            elif not process._transport.is_closing():  # type: ignore[attr-defined]
                await process.wait()
        assert process.returncode == 0

    def storm_while_nobody_looks(self, seed: int, operations: int) -> None:
        subprocess.run(self.command(seed, operations), check=True, stdout=subprocess.DEVNULL)


class Listener:
    """Applies the events of a consumer as they come."""

    def __init__(self, events: Any, batch: bool = False) -> None:
        self.replay = Replay()
        self.task = asyncio.ensure_future(self._listen(events, batch))
        self._events = events

    async def _listen(self, events: Any, batch: bool) -> None:
        async for event in events:
            if batch:
                self.replay.apply(event)
            else:
                self.replay.one(event)

    async def caught_up(self) -> Replay:
        subscription = self._events.__aiter__()
        while subscription._queue or subscription._missed or subscription._settled:
            assert not self.task.done(), self.task.result()
            await asyncio.sleep(0)
        return self.replay


async def check(watcher: Watcher, listener: Listener, roots: list[str], kept: Any = None) -> None:
    """What is there is what the watcher shows and what it told; a new file in each directory is told of."""

    def truth() -> dict[str, bool]:
        found = walked(*roots)
        return found if kept is None else {path: is_dir for path, is_dir in found.items() if kept(path)}

    await watcher.ready()
    replay = await listener.caught_up()
    there = truth()
    shown, told = differ(there, watcher.snapshot()), differ(there, replay.paths)
    assert (shown, told) == ("", "")
    assert not replay.lost
    assert replay.faults == []
    assert len(watcher._engine.tree.by_wd) == sum(there.values())  # none is watched that is not there
    probes = {os.path.join(path, "probe-1") for path, is_dir in there.items() if is_dir}
    for path in probes:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    await watcher.ready()
    replay = await listener.caught_up()
    assert replay.probes == probes
    assert not differ(truth(), watcher.snapshot())


async def plain(stage: Stage, seed: int, operations: int) -> None:
    async with watch(*stage.roots, initial=True) as w:
        listener = Listener(w)
        await stage.storm(seed, operations)
        await check(w, listener, stage.roots)
    await listener.task


async def existing(stage: Stage, seed: int, operations: int) -> None:
    """The storm has begun before, and goes on while the trees are listed."""
    stage.storm_while_nobody_looks(seed, operations)
    async with AsyncExitStack() as stack:
        storm = asyncio.ensure_future(stage.storm(seed + 1, operations))
        w = await stack.enter_async_context(watch(*stage.roots, initial=True, batch=True))
        listener = Listener(w, batch=True)
        await storm
        await check(w, listener, stage.roots)


async def blocked(stage: Stage, seed: int, operations: int) -> None:
    async with watch(*stage.roots, initial=True) as w:
        listener = Listener(w)
        for part in range(4):
            stage.storm_while_nobody_looks(4 * seed + part, operations // 4)
            await asyncio.sleep(0)
        await check(w, listener, stage.roots)


async def overflowing(stage: Stage, seed: int, operations: int) -> None:
    async with watch(*stage.roots, initial=True) as w:
        listener = Listener(w)
        await stage.storm(seed, operations // 3)
        flood(stage.roots[0], 18000)
        stage.storm_while_nobody_looks(seed + 1000, operations // 3)
        await stage.storm(seed + 2000, operations // 3)
        await check(w, listener, stage.roots)
        assert listener.replay.overflows >= 1


def interposed(w: Watcher, change: Callable[[bytes], list[bytes]]) -> None:
    fed = w._fed
    w._fed = lambda data: [fed(piece) for piece in change(data)]  # type: ignore[method-assign, assignment]


async def losing(stage: Stage, seed: int, operations: int) -> None:
    """Runs of records are lost, at any place, and the kernel says no more than that."""
    rng = random.Random(seed)

    def lose(data: bytes) -> list[bytes]:
        return [OVERFLOW] if rng.random() < 0.15 else [data]

    async with watch(*stage.roots, initial=True) as w:
        interposed(w, lose)
        listener = Listener(w)
        await stage.storm(seed, operations)
        interposed(w, lambda data: [data])
        w._fed(OVERFLOW)  # else what was lost last is not known
        del w._fed
        await check(w, listener, stage.roots)


async def piecemeal(stage: Stage, seed: int, operations: int) -> None:
    """Each record comes alone, and what can be done is done before the next one."""

    def cut(data: bytes) -> list[bytes]:
        pieces, at = [], 0
        for _ in unpacked(data):
            end = at + 16 + struct.unpack_from("I", data, at + 12)[0]
            pieces.append(data[at:end])
            at = end
        return pieces

    async with watch(*stage.roots, initial=True) as w:
        interposed(w, cut)
        listener = Listener(w)
        await stage.storm(seed, operations)
        await check(w, listener, stage.roots)


async def slow_consumers(stage: Stage, seed: int, operations: int) -> None:
    """One listens when all is over, one now and then; both have a short queue. The third misses nothing."""
    async with watch(*stage.roots, initial=True, maxsize=200000) as w:
        listener = Listener(w)
        late, slow = w.subscribe(maxsize=40), w.subscribe(maxsize=40)
        replays = Replay(), Replay()
        for replay in replays:
            replay.paths = walked(*stage.roots)

        async def now_and_then() -> None:
            for _ in range(3):
                if slow._queue:
                    replays[1].one(await slow.get())
                await asyncio.sleep(0)

        await stage.storm(seed, operations, now_and_then)
        await w.ready()
        for subscription, replay in zip((late, slow), replays, strict=True):
            while subscription._queue or subscription._missed:
                replay.one(await subscription.get())
            assert not differ(walked(*stage.roots), replay.paths)
            assert replay.faults == []
            assert replay.overflows == replay.rescans >= 1
        assert not listener.replay.overflows
        for _ in range(2):  # for the probes that follow
            subscription._missed = None
        await check(w, listener, stage.roots)


async def changing_roots(stage: Stage, seed: int, operations: int) -> None:
    rng = random.Random(seed)
    async with watch(stage.roots[0], initial=True) as w:
        listener = Listener(w)

        async def add_or_remove() -> None:
            root = rng.choice(stage.roots)
            await (w.remove(root) if root in w.roots else w.add(root))

        await stage.storm(seed, operations, add_or_remove)
        if not w.roots:
            await w.add(stage.roots[0])
        await check(w, listener, list(w.roots))


async def ignoring(stage: Stage, seed: int, operations: int) -> None:
    def kept(path: str) -> bool:
        inner = path[len(stage.roots[0]) :]
        return not any(part.startswith("a") or part == "sub.d" for part in inner.split("/"))

    async with watch(*stage.roots, initial=True, ignore=["a*", "sub.d"]) as w:
        listener = Listener(w)
        await stage.storm(seed, operations)
        await check(w, listener, stage.roots, kept)


async def ignoring_by_place(stage: Stage, seed: int, operations: int) -> None:
    """What is ignored depends on the path, and so on every move of a directory above."""

    def ignored(path: str, _is_dir: bool = False) -> bool:
        return not path[len(stage.roots[0]) :].count("/") % 3 and os.path.basename(path)[0] in "abcde"

    def kept(path: str) -> bool:
        inner = path[len(stage.roots[0]) + 1 :].split("/")
        return not any(ignored("/".join([stage.roots[0], *inner[:n]])) for n in range(1, len(inner) + 1))

    async with watch(*stage.roots, initial=True, ignore=ignored) as w:
        listener = Listener(w)
        await stage.storm(seed, operations)
        await check(w, listener, stage.roots, kept)


WAYS = {
    way.__name__: way
    for way in (
        plain, existing, blocked, overflowing, losing, piecemeal, slow_consumers, changing_roots, ignoring,
        ignoring_by_place,
    )
}  # fmt: skip
TREES = {"changing_roots": 4, "plain": 2}


@pytest.mark.parametrize("seed", range(200) if MANY else range(1))
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.timeout(300)
async def test_what_was_told_is_what_is_there(way, seed, tmp_path):
    stage = Stage(tmp_path, TREES.get(way, 1))
    await WAYS[way](stage, seed, 3000 if MANY else 700)


class Roots:
    """What can happen to roots themselves, and above them."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random = str(path), random.Random(seed)
        self.roots = [f"{path}/r", f"{path}/p/q/r"]
        self.away = [f"{path}/away1", f"{path}/away2"]
        for each in (*self.roots, *self.away):
            os.makedirs(f"{each}/a")

    def happen(self) -> None:
        pick, root = self.random.choice, self.random.choice(self.roots)
        with contextlib.suppress(OSError):
            match self.random.randrange(11):
                case 0:
                    shutil.rmtree(root)
                case 1 | 2:
                    os.makedirs(f"{root}/{pick('abc')}/{pick('xyz')}", exist_ok=True)
                case 3:
                    os.rename(root, pick(self.away))
                case 4:
                    os.rename(pick(self.away), root)
                case 5:
                    exchange(*self.roots)
                case 6:
                    exchange(root, pick(self.away))
                case 7:
                    os.rename(f"{root}/{pick('abc')}", f"{pick(self.roots)}/{pick('abc')}")
                case 8:
                    os.close(os.open(f"{root}/{pick('abc')}/f", os.O_CREAT | os.O_WRONLY))
                case 9:
                    os.rename(root, f"{pick(self.roots)}/{pick('abc')}")
                case 10:
                    shutil.rmtree(f"{self.path}/p")


@pytest.mark.parametrize("seed", range(200) if MANY else range(3))
async def test_roots_are_followed_whatever_happens_to_them(seed, tmp_path):
    stage = Roots(tmp_path, seed)
    async with watch(*stage.roots, initial=True, follow_root=True) as w:
        listener = Listener(w)
        for _ in range(300):
            stage.happen()
            for _ in range(stage.random.choice((0, 0, 0, 1, 3))):
                await asyncio.sleep(0)
        await w.ready()
        replay = await listener.caught_up()
        there = walked(*stage.roots)
        assert (differ(there, w.snapshot()), differ(there, replay.paths)) == ("", "")
        assert replay.faults == []


def test_the_comparison_with_others_finds_nothing_missing_here():
    for blocked in (False, True):
        row = compare("fdtransport", 0, 200, blocked, quiet=0.2)
        assert (row["missing"], row["ghosts"], row["note"]) == (0, 0, "")
        assert row["probes"] == row["directories"] > 5


@pytest.mark.skipif(not MANY, reason="takes minutes: FDTRANSPORT_STORMS=many")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.timeout(1800)
async def test_what_was_told_is_what_is_there_after_a_long_storm(seed, tmp_path):
    await plain(Stage(tmp_path, 3), 1000 + seed, 50_000)
