"""Programs: their start on a terminal and without one, the stall of the loop meanwhile, their output
(rows 30, 31 and 33)."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from benchmarks.job import Job, carries_out
from benchmarks.reads import CHUNK

TRUE = ("/bin/true",)
#: Programs under way at once, where that can be.
AT_ONCE = 8

_resident: list[bytearray] = []


def fill_memory(job: Job) -> None:
    """Have as much memory in use as the case says, for all its rounds."""
    size = job.case.options.get("resident", 0)
    if size and not (job.check or _resident):
        block = bytearray(size)
        block[::4096] = bytes([1]) * len(block[::4096])
        _resident.append(block)


def programs(job: Job) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """As many command lines as the round has, and what each of them says."""
    for number in range(job.size):
        yield (("/bin/echo", str(number)), b"%d\n" % number) if job.check else (TRUE, b"")


def compare(job: Job, wanted: bytes, result: tuple[bytes, int]) -> None:
    output, status = result
    if status or (job.check and output.replace(b"\r\n", b"\n") != wanted):
        raise ValueError(f"status {status}, and {output!r} in place of {wanted!r}")


Start = Callable[..., Awaitable[tuple[bytes, int]]]


async def _one_after_the_other(job: Job, left: Iterator[Any], start: Start) -> None:
    for words, wanted in left:
        compare(job, wanted, await start(words))


@carries_out("spawns", "protocol")
async def spawn_in_a_loop(job: Job) -> None:
    fill_memory(job)
    start = job.library.on_terminal if job.case.kind == "pty" else job.library.on_pipe
    left = programs(job)
    with job.clock():
        await asyncio.gather(*(_one_after_the_other(job, left, start) for _ in range(AT_ONCE)))


@carries_out("spawns", "blocking")
def spawn_blocking(job: Job) -> None:
    fill_memory(job)
    start, left = job.library.on_terminal, programs(job)
    with job.clock():
        for words, wanted in left:
            compare(job, wanted, start(words))


class Beat:
    """A callback in every turn of the loop, and the longest time between two of them."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.longest, self.last, self.going = 0.0, time.perf_counter(), True
        self.loop.call_soon(self._beat)

    def _note(self) -> None:
        now = time.perf_counter()
        self.longest, self.last = max(self.longest, now - self.last), now

    def _beat(self) -> None:
        self._note()
        if self.going:
            self.loop.call_soon(self._beat)

    def take(self) -> float:
        self._note()
        longest, self.longest = self.longest, 0.0
        return longest


@carries_out("stalls", "protocol")
async def stall_in_a_loop(job: Job) -> None:
    """What one start takes from everything else in the loop; the median, and the longest of them."""
    fill_memory(job)
    start = job.library.on_terminal if job.case.kind == "pty" else job.library.on_pipe
    beat, stalls = Beat(), []
    with job.clock():
        for words, wanted in programs(job):
            beat.take()
            result = await start(words)
            stalls.append(beat.take())
            compare(job, wanted, result)
    beat.going = False
    _tell(job, stalls)


@carries_out("stalls", "blocking")
def stall_of_a_call(job: Job) -> None:
    """Of a library that blocks, the start alone: its user can have a thread for the rest."""
    fill_memory(job)
    stalls = []
    with job.clock():
        for words, wanted in programs(job):
            before = time.perf_counter()
            process = job.library.start_on_terminal(words)
            stalls.append(time.perf_counter() - before)
            compare(job, wanted, job.library.end_on_terminal(process))
    _tell(job, stalls)


def _tell(job: Job, stalls: list[float]) -> None:
    job.measured |= {"stall": 1e6 * statistics.median(stalls), "worst": 1e6 * max(stalls)}


@carries_out("output", "stream")
async def read_output(job: Job) -> None:
    """All that a program writes to its pipe, read by await."""
    take, count, source = job.taker(), 0, job.source()
    words, pipe_size = ("head", "-c", str(job.size)), job.case.options.get("pipe_size")
    with job.clock():
        process = await job.library.with_output(words, source, pipe_size)
        while data := await process.stdout.read(CHUNK):
            take(data)
            count += len(data)
        status = await process.wait()
    if status:
        raise ValueError(f"status {status}")
    job.took(count)


@carries_out("output", "blocking")
def read_output_blocking(job: Job) -> None:
    take, count, source = job.taker(), 0, job.source()
    words = ["head", "-c", str(job.size)]
    with job.clock():
        reader, writer = os.pipe()
        copies = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((source.fileno(), writer))]
        pid = os.posix_spawnp(words[0], words, os.environ, file_actions=copies)
        os.close(writer)
        while data := os.read(reader, CHUNK):
            take(data)
            count += len(data)
        os.close(reader)
        os.waitpid(pid, 0)
    job.took(count)
