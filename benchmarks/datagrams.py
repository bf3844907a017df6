"""UDP: records received, sent and answered (row 23).

Both sockets are in this process (but for the echo), so that none is lost; only the side under test is timed.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
import socket
import time
from typing import Any

from benchmarks.ends import udp_pair
from benchmarks.job import Job, carries_out

#: Records between two looks at the other side; a receive buffer of the default size has room for them.
BATCH = 64


class Watch:
    """Time and processor of what is done between ``on`` and ``off``."""

    def __init__(self, job: Job) -> None:
        gc.collect()
        self._job = job
        self._wall = self._cpu = 0.0

    def on(self) -> None:
        self._wall -= time.perf_counter()
        self._cpu -= time.process_time()

    def off(self) -> None:
        self._cpu += time.process_time()
        self._wall += time.perf_counter()

    def stop(self) -> None:
        per_record = 1e6 / self._job.size
        self._job.measured = {"cpu": self._cpu * per_record, "wall": self._wall * per_record}


class Records:
    """The records of a round, and digests of those that went in and came out."""

    def __init__(self, job: Job) -> None:
        self._job = job
        random_bytes = random.Random(3).randbytes
        self._made = [random_bytes(job.case.options["piece"]) for _ in range(BATCH)]
        self._digests = hashlib.sha256(), hashlib.sha256()
        self.counts = [0, 0]

    def batches(self) -> Any:
        for at in range(0, self._job.size, BATCH):
            batch = self._made[: min(BATCH, self._job.size - at)]
            self.note(0, batch)
            yield batch

    def note(self, side: int, records: list[bytes]) -> None:
        for record in records:
            self.counts[side] += len(record)
            if self._job.check:
                # With its length, so that a boundary that moved is seen.
                self._digests[side].update(len(record).to_bytes(4, "big") + record)

    def finish(self) -> None:
        self._job.moved = [
            (count, digest.hexdigest()) for count, digest in zip(self.counts, self._digests, strict=True)
        ]


class Collector(asyncio.DatagramProtocol):
    """Counts what comes, up to a number that is set before."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.wanted = 0
        self.done: Any = None

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.append(data)
        if len(self.got) == self.wanted:
            self.done.set_result(None)


@carries_out("udp-receive", "protocol")
async def receive_by_protocol(job: Job) -> None:
    near, far = udp_pair()
    protocol, records = Collector(), Records(job)
    transport = await job.library.datagrams(protocol, near)
    watch = Watch(job)
    for batch in records.batches():
        protocol.got, protocol.wanted, protocol.done = [], len(batch), job.library.signal()
        for record in batch:
            far.send(record)
        watch.on()
        await protocol.done
        watch.off()
        records.note(1, protocol.got)
    watch.stop()
    await _end(job, transport, far, records)


@carries_out("udp-send", "protocol")
async def send_by_protocol(job: Job) -> None:
    near, far = udp_pair()
    records = Records(job)
    transport = await job.library.datagrams(Collector(), near)
    far.settimeout(5)
    watch = Watch(job)
    for batch in records.batches():
        watch.on()
        for record in batch:
            transport.sendto(record)
        await job.library.turn()
        watch.off()
        records.note(1, [far.recv(65_536) for _ in batch])
    watch.stop()
    await _end(job, transport, far, records)


class Echo(asyncio.DatagramProtocol):
    """Sends back what comes."""

    def __init__(self, job: Job) -> None:
        self.left, self.done = job.size, job.library.signal()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data)
        self.left -= 1
        if not self.left:
            self.done.set_result(None)


@carries_out("udp-echo", "protocol")
async def echo_by_protocol(job: Job) -> None:
    echo = Echo(job)
    transport = await job.library.datagrams(echo, job.end("client").sock)
    with job.clock():
        await echo.done
    transport.close()
    for _ in range(3):
        await job.library.turn()


async def _end(job: Job, transport: Any, far: socket.socket, records: Records) -> None:
    transport.close()
    for _ in range(3):
        await job.library.turn()
    far.close()
    records.finish()


def _blocking(job: Job, receives: bool) -> None:
    near, far = udp_pair()
    records = Records(job)
    watch = Watch(job)
    for batch in records.batches():
        source, sink = (far, near) if receives else (near, far)
        if not receives:
            watch.on()
        for record in batch:
            source.send(record)
        watch.on() if receives else watch.off()
        got = [sink.recvfrom(65_536)[0] for _ in batch]
        if receives:
            watch.off()
        records.note(1, got)
    watch.stop()
    near.close()
    far.close()
    records.finish()


@carries_out("udp-receive", "blocking")
def receive_blocking(job: Job) -> None:
    _blocking(job, receives=True)


@carries_out("udp-send", "blocking")
def send_blocking(job: Job) -> None:
    _blocking(job, receives=False)
