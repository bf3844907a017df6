"""Sending a file that is in memory over a socket (row 25)."""

from __future__ import annotations

import os

from benchmarks.job import Job, carries_out
from benchmarks.writes import Flow


@carries_out("sendfile", "protocol")
async def send_by_library(job: Job) -> None:
    flow, file = Flow(job), job.file()
    transport = await job.library.connect(flow, job.end("sink"))
    with job.clock():
        await job.library.sendfile(transport, file, flow)
        transport.close()
        await flow.lost


@carries_out("sendfile", "blocking")
def send_blocking(job: Job) -> None:
    end, file = job.end("sink"), job.file()
    fd, sent = end.writer, 0
    assert fd is not None
    with job.clock():
        while count := os.sendfile(fd, file.fileno(), sent, 1 << 30):
            sent += count
        end.close()
