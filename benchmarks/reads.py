"""Reading: one small event, ping-pong, bulk, and many descriptors ready at once.

Rows 7 to 9, 11, 12, 20 and 32.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Iterator
from typing import Any

from benchmarks.job import Job, carries_out
from benchmarks.libraries import Endpoint

CHUNK = 65_536
QUESTION = bytes(64)


@contextlib.contextmanager
def until_hung_up() -> Iterator[None]:
    """The end of a terminal is an error for read(2)."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


class Bouncer(Endpoint):
    """Writes to the far end from its own read event, so that the next event is ready at once."""

    def __init__(self, job: Job, far: int) -> None:
        self.done = job.library.signal()
        self.left, self.far = job.size, far

    def data_received(self, data: bytes) -> None:
        self.left -= 1
        if self.left:
            os.write(self.far, data)
        else:
            self.done.set_result(None)


@carries_out("event", "protocol")
async def events_by_protocol(job: Job) -> None:
    near, far = job.pair()
    assert far.writer is not None
    bouncer = Bouncer(job, far.writer)
    transport = await job.library.connect(bouncer, near)
    with job.clock():
        os.write(far.writer, QUESTION)
        await bouncer.done
    transport.abort()
    await job.library.turn()


@carries_out("event", "stream")
async def events_by_stream(job: Job) -> None:
    near, far = job.pair()
    stream, fd = await job.library.stream(near), far.writer
    assert fd is not None
    with job.clock():
        for _ in range(job.size):
            os.write(fd, QUESTION)
            await stream.receive(CHUNK)
    await stream.close()


@carries_out("event", "blocking")
def events_blocking(job: Job) -> None:
    near, far = job.pair()
    reader, writer = near.reader, far.writer
    assert reader is not None
    assert writer is not None
    with select.epoll() as poller:
        poller.register(reader, select.EPOLLIN)
        with job.clock():
            for _ in range(job.size):
                os.write(writer, QUESTION)
                for fd, _mask in poller.poll():
                    os.read(fd, CHUNK)


class Echo(Endpoint):
    """Answers with what it got."""

    def __init__(self, job: Job) -> None:
        self.lost = job.library.signal()
        self.transport: Any = None

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Any) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


@carries_out("ping", "protocol")
async def answer_by_protocol(job: Job) -> None:
    echo = Echo(job)
    echo.transport = await job.library.connect(echo, job.end("client"))
    with job.clock():
        await echo.lost
    echo.transport.close()
    await job.library.turn()


@carries_out("ping", "stream")
async def answer_by_stream(job: Job) -> None:
    stream = await job.library.stream(job.end("client"))
    with job.clock():
        try:
            while data := await stream.receive(CHUNK):
                await stream.send(data)
        except stream.ends:
            pass
    await stream.close()


@carries_out("ping", "blocking")
def answer_blocking(job: Job) -> None:
    end = job.end("client")
    assert end.reader is not None
    assert end.writer is not None
    with job.clock(), until_hung_up():
        while data := os.read(end.reader, CHUNK):
            os.write(end.writer, data)


@carries_out("ping", "expect")
def answer_expecting(job: Job) -> None:
    child = job.library.expect(job.end("client"))
    with job.clock(), contextlib.suppress(job.library.end):
        while True:
            child.send(child.read_nonblocking(CHUNK, -1))


class Reader(Endpoint):
    """Counts what comes until the end."""

    def __init__(self, job: Job) -> None:
        self.lost = job.library.signal()
        self.take, self.count = job.taker(), 0

    def data_received(self, data: bytes) -> None:
        self.take(data)
        self.count += len(data)

    def connection_lost(self, exc: Any) -> None:
        self.lost.set_result(None)


@carries_out("reads", "protocol")
async def read_by_protocol(job: Job) -> None:
    reader, end = Reader(job), job.end("source")
    if (size := job.case.options.get("our_pipe_size")) and hasattr(job.library, "with_pipe_size"):
        job.library.with_pipe_size(end, size)
    await job.library.connect(reader, end)
    with job.clock():
        await reader.lost
    job.took(reader.count)


@carries_out("reads", "stream")
@carries_out("streams", "stream")
async def read_by_stream(job: Job) -> None:
    stream, take, count = await job.library.stream(job.end("source")), job.taker(), 0
    with job.clock():
        try:
            while data := await stream.receive(CHUNK):
                take(data)
                count += len(data)
        except stream.ends:
            pass
    job.took(count)
    await stream.close()


@carries_out("reads", "blocking")
@carries_out("streams", "blocking")
def read_blocking(job: Job) -> None:
    end, take, count = job.end("source"), job.taker(), 0
    assert end.reader is not None
    with job.clock(), until_hung_up():
        while data := os.read(end.reader, CHUNK):
            take(data)
            count += len(data)
    job.took(count)


@carries_out("reads", "expect")
def read_expecting(job: Job) -> None:
    child, take, count = job.library.expect(job.end("source")), job.taker(), 0
    with job.clock(), contextlib.suppress(job.library.end):
        while data := child.read_nonblocking(CHUNK, -1):
            take(data)
            count += len(data)
    job.took(count)


class Crowd:
    """100 far ends that are written to together, each time that all have been heard."""

    def __init__(self, job: Job, active: int = 100) -> None:
        self.pairs = [job.pair() for _ in range(active + job.case.options["idle"])]
        self.far = [far.writer for _, far in self.pairs[-active:]]
        self.rounds = job.size // active
        self.heard = 0

    def ask(self) -> None:
        for fd in self.far:
            os.write(fd, QUESTION)  # type: ignore[arg-type]


class Member(Endpoint):
    def __init__(self, crowd: Crowd, done: Any) -> None:
        self.crowd, self.done = crowd, done

    def data_received(self, data: bytes) -> None:
        crowd = self.crowd
        crowd.heard += 1
        if crowd.heard == len(crowd.far):
            crowd.heard = 0
            crowd.rounds -= 1
            if crowd.rounds:
                crowd.ask()
            else:
                self.done.set_result(None)


@carries_out("ready", "protocol")
async def ready_by_protocol(job: Job) -> None:
    crowd, done = Crowd(job), job.library.signal()
    transports = [await job.library.connect(Member(crowd, done), near) for near, _ in crowd.pairs]
    with job.clock():
        crowd.ask()
        await done
    for transport in transports:
        transport.abort()
    await job.library.turn()


@carries_out("ready", "blocking")
def ready_blocking(job: Job) -> None:
    crowd = Crowd(job)
    with select.epoll() as poller:
        for near, _ in crowd.pairs:
            assert near.reader is not None
            poller.register(near.reader, select.EPOLLIN)
        with job.clock():
            for _ in range(crowd.rounds):
                crowd.ask()
                for fd, _mask in poller.poll(-1, len(crowd.far)):
                    os.read(fd, CHUNK)
