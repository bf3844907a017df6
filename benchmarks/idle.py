"""Memory of idle transports (row 19)."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from benchmarks.job import Job, carries_out
from benchmarks.libraries import Endpoint


def private_dirty() -> int:
    """Bytes of memory that only this process has and that it has written to."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise OSError("no Private_Dirty in smaps_rollup")


@carries_out("memory", "protocol")
async def idle_transports(job: Job) -> None:
    """The sockets and protocols are there before the count begins, and so is what a first transport needs."""
    pairs = [job.pair() for _ in range(job.size)]
    protocols = [Endpoint() for _ in pairs]
    transports: list[Any] = [None] * len(pairs)
    as_asyncio = "as_asyncio" in job.case.options

    async def connect(number: int) -> None:
        end, protocol = pairs[number][0], protocols[number]
        if as_asyncio:
            transports[number] = await job.library.connect_socket(protocol, end.sock)
        else:
            transports[number] = await job.library.connect(protocol, end)

    await connect(0)
    gc.collect()
    before = private_dirty()
    for number in range(1, len(pairs)):
        await connect(number)
    await job.library.turn()
    gc.collect()
    job.measured = {"bytes": (private_dirty() - before) / (len(pairs) - 1)}
    for transport in transports:
        transport.abort()
    await job.library.turn()
