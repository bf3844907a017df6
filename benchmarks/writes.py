"""Writing: small and large pieces with flow control (rows 1 to 3, 11, 12), flows per turn (rows 5, 6)."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.job import Job, carries_out
from benchmarks.libraries import Endpoint


class Flow(Endpoint):
    """Follows pause and resume for a writer that is a coroutine, as asyncio's drain does.

    Writing on from inside `resume_writing` would spare a turn of the loop, but asyncio's transports lose
    bytes or lose the connection twice when such a write is followed by `close`.
    """

    def __init__(self, job: Job) -> None:
        self.signal = job.library.signal
        self.lost = self.signal()
        self.resumed: Any = None

    def pause_writing(self) -> None:
        self.resumed = self.signal()

    def resume_writing(self) -> None:
        resumed, self.resumed = self.resumed, None
        resumed.set_result(None)

    def connection_lost(self, exc: Any) -> None:
        self.lost.set_result(None)


@carries_out("writes", "protocol")
async def write_by_protocol(job: Job) -> None:
    end = job.end("sink")
    if (size := job.case.options.get("our_pipe_size")) and hasattr(job.library, "with_pipe_size"):
        job.library.with_pipe_size(end, size)
    flow, batches = Flow(job), job.batches()
    transport = await job.library.connect(flow, end)
    write = transport.write
    with job.clock():
        for batch in batches:
            for piece in batch:
                write(piece)
            if flow.resumed is not None:
                await flow.resumed
        transport.close()
        await flow.lost


@carries_out("writes", "stream")
async def write_by_stream(job: Job) -> None:
    stream = await job.library.stream(job.end("sink"))
    batches = job.batches()
    with job.clock():
        for batch in batches:
            for piece in batch:
                await stream.send(piece)
        await stream.close()


@carries_out("writes", "blocking")
def write_blocking(job: Job) -> None:
    end = job.end("sink")
    fd, batches = end.writer, job.batches()
    assert fd is not None
    with job.clock():
        for batch in batches:
            for piece in batch:
                sent = os.write(fd, piece)
                while sent < len(piece):
                    sent += os.write(fd, piece[sent:])
        end.close()


@carries_out("ticks", "protocol")
async def write_a_batch_per_turn(job: Job) -> None:
    flow, batches, turn = Flow(job), job.batches(), job.library.turn
    transport = await job.library.connect(flow, job.end("sink"))
    write = transport.write
    with job.clock():
        for batch in batches:
            for piece in batch:
                write(piece)
            await turn()
            if flow.resumed is not None:
                await flow.resumed
        transport.close()
        await flow.lost
