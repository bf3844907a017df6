"""What it takes to watch very many directories: `python -m benchmarks.directories [COUNT]`.

Prints the seconds until everything is known, the memory, the watches' own in the kernel not counted, and
the longest time for which the loop did nothing else, for ``watch()`` on asyncio's loop.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.idle import private_dirty
from fdtransport import watch

FANOUT = 100
SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None


def make(path: str, count: int) -> None:
    """*count* directories, a hundred in each, with a file in every tenth."""
    level = [path]
    made = 0
    while made < count:
        following = []
        for parent in level:
            for number in range(min(FANOUT, count - made)):
                inner = f"{parent}/{number:02}"
                os.mkdir(inner)
                made += 1
                if not number % 10:
                    os.close(os.open(f"{inner}/file", os.O_CREAT | os.O_WRONLY))
                following.append(inner)
        level = following


class Gaps:
    """How long the loop did nothing for anybody else: in wall time, and in this thread's processor time."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    async def measure(self) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0)
            now, spent = time.perf_counter(), time.thread_time()
            self.wall.append(now - wall)
            self.cpu.append(spent - cpu)
            wall, cpu = now, spent


async def main(count: int) -> None:
    path = tempfile.mkdtemp(dir=SHM)
    try:
        make(path, count)
        gc.collect()
        before = private_dirty()
        gaps = Gaps()
        measuring = asyncio.ensure_future(gaps.measure())
        began, cpu = time.perf_counter(), time.process_time()
        async with watch(path) as watcher:
            spent, cpu = time.perf_counter() - began, time.process_time() - cpu
            opened = len(gaps.wall)
            gc.collect()
            memory = private_dirty() - before
            print(f"{watcher!r}: {spent:.2f} s, {1e6 * cpu / count:.1f} us of processor for each directory")
            print(f"{memory / count:.0f} bytes for each directory, {memory / 1e6:.1f} MB")
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # what was done here between is not the watcher's
            closing = len(gaps.wall)
            began = time.perf_counter()
        print(f"closed in {time.perf_counter() - began:.2f} s")
        measuring.cancel()
        for what, part in (("opening", slice(None, opened)), ("closing", slice(closing, None))):
            wall, used = (sorted(each[part]) for each in (gaps.wall, gaps.cpu))
            usual = wall[-len(wall) // 100 - 1]
            print(
                f"{what}: the loop was held for {1e3 * wall[-1]:.1f} ms at most, with at most "
                f"{1e3 * used[-1]:.1f} ms of work; for {1e3 * usual:.1f} ms in 99 of 100 turns"
            )
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
