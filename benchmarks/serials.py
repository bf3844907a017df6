"""Serial ports, on a terminal (row 22): what differs from a socket is that there is no end of file.

Small and large writes and ping-pong are those of every kind (rows 4 and 22, in `writes` and `reads`).
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.job import Job, carries_out
from benchmarks.libraries import Endpoint
from benchmarks.reads import CHUNK


class Counter(Endpoint):
    """Takes so many bytes, then closes."""

    def __init__(self, job: Job) -> None:
        self.lost = job.library.signal()
        self.take, self.count, self.size = job.taker(), 0, job.size
        self.transport: Any = None

    def data_received(self, data: bytes) -> None:
        self.take(data)
        self.count += len(data)
        if self.count >= self.size:
            self.transport.close()

    def connection_lost(self, exc: Any) -> None:
        self.lost.set_result(None)


@carries_out("serial-reads", "protocol")
async def read_so_much_by_protocol(job: Job) -> None:
    counter = Counter(job)
    counter.transport = await job.library.connect(counter, job.end("serial_source"))
    with job.clock():
        await counter.lost
    job.took(counter.count)


@carries_out("serial-reads", "blocking")
def read_so_much_blocking(job: Job) -> None:
    end, take, count = job.end("serial_source"), job.taker(), 0
    assert end.reader is not None
    with job.clock():
        while count < job.size:
            data = os.read(end.reader, CHUNK)
            take(data)
            count += len(data)
    job.took(count)
