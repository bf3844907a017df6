"""Accepting connections that are already queued (row 21)."""

from __future__ import annotations

import socket
import struct
from typing import Any

from benchmarks.job import Job, carries_out
from benchmarks.libraries import Endpoint


class Queue:
    """A listening socket with clients that are connected already; they reset when closed."""

    def __init__(self, count: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1_024)
        self.clients = [socket.create_connection(self.listener.getsockname()) for _ in range(count)]

    def close(self) -> None:
        for client in self.clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        self.listener.close()


class Guest(Endpoint):
    left = 0
    done: Any = None

    def connection_made(self, transport: Any) -> None:
        transport.abort()

    def connection_lost(self, exc: Any) -> None:
        Guest.left -= 1
        if not Guest.left:
            Guest.done.set_result(None)


@carries_out("accept", "protocol")
async def accept_by_protocol(job: Job) -> None:
    queue = Queue(job.size)
    Guest.left, Guest.done = job.size, job.library.signal()
    with job.clock():
        server = await job.library.serve(Guest, queue.listener)
        await Guest.done
    server.close()
    await job.library.turn()
    queue.close()


@carries_out("accept", "stream")
async def accept_by_stream(job: Job) -> None:
    queue = Queue(job.size)
    with job.clock():
        await job.library.accept(queue.listener, job.size)
    queue.close()


@carries_out("accept", "blocking")
def accept_blocking(job: Job) -> None:
    queue = Queue(job.size)
    with job.clock():
        for _ in range(job.size):
            connection, _ = queue.listener.accept()
            connection.close()
    queue.close()
