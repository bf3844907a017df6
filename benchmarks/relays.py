"""Relaying one way between two ends (rows 13 to 15 and 26)."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.ends import End
from benchmarks.job import Job, carries_out
from benchmarks.libraries import Endpoint

CHUNK = 65_536


def ends(job: Job) -> tuple[End, End]:
    """The end that a source writes to, and the one that a sink reads from."""
    source, sink = job.case.kind.split(">")
    if source == "file":
        return End(source, reader=os.dup(job.file().fileno())), job.end("sink", sink)
    return job.end("source", source), job.end("sink", sink)


class Half(Endpoint):
    """One end of a relay: what it reads the other writes; a full write buffer pauses the other's reading."""

    def __init__(self, job: Job) -> None:
        self.lost = job.library.signal()
        self.transport: Any = None
        self.other: Half = self

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.other.transport.resume_reading()

    def connection_lost(self, exc: Any) -> None:
        self.other.transport.close()
        self.lost.set_result(None)


@carries_out("relay", "protocol")
async def relay_by_protocol(job: Job) -> None:
    one, other = Half(job), Half(job)
    one.other, other.other = other, one
    source, sink = ends(job)
    other.transport = await job.library.connect(other, sink)
    one.transport = await job.library.connect(one, source)
    with job.clock():
        await one.lost
        await other.lost


class Still(Endpoint):
    """Leaves what there is to the relay: a file is readable at once."""

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()


@carries_out("relay", "relay")
async def relay_by_library(job: Job) -> None:
    source, sink = ends(job)
    one = await job.library.connect(Still(), source)
    other = await job.library.connect(Endpoint(), sink)
    with job.clock():
        await job.library.relay(one, other, copy="copied" in job.case.options)


@carries_out("relay", "stream")
async def relay_by_stream(job: Job) -> None:
    one, other = [await job.library.stream(end) for end in ends(job)]
    with job.clock():
        while data := await one.receive(CHUNK):
            await other.send(data)
        await other.close()
    await one.close()


@carries_out("relay", "blocking")
def relay_blocking(job: Job) -> None:
    source, sink = ends(job)
    reader, writer = source.reader, sink.writer
    assert reader is not None
    assert writer is not None
    with job.clock():
        while data := os.read(reader, CHUNK):
            sent = os.write(writer, data)
            while sent < len(data):
                sent += os.write(writer, data[sent:])
        sink.close()


@carries_out("relay", "splice")
def relay_spliced(job: Job) -> None:
    import fcntl

    source, sink = ends(job)
    reader, writer = source.reader, sink.writer
    assert reader is not None
    assert writer is not None
    out, into = os.pipe()
    room = fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 1 << 20 if source.kind == "tcp" else 1 << 18)
    with job.clock():
        while count := os.splice(reader, into, room):
            while count:
                count -= os.splice(out, writer, count)
        sink.close()
    os.close(out)
    os.close(into)
