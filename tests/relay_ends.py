"""What the tests of relays share: ends, relays between them, and bytes that go through."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
from contextlib import asynccontextmanager, suppress

from fdtransport import connect_fd
from fdtransport.relay import relay
from fdtransport.testing import (
    FarEnd,
    fd_pair_maker,
    pattern,
    read_pipe_maker,
    socket_pair_maker,
    tcp_maker,
    write_pipe_maker,
)

MIB = 1 << 20
MAKERS = {
    "unix": socket_pair_maker,
    "tcp": tcp_maker,
    "pipes": fd_pair_maker,
    "pipe-in": read_pipe_maker,
    "pipe-out": write_pipe_maker,
}


class Quiet(asyncio.Protocol):
    """Leaves what comes in the kernel until somebody takes over."""

    def connection_made(self, transport):
        with suppress(NotImplementedError):
            transport.pause_reading()


async def near(file):
    """One of our transports on *file*, silent so far."""
    transport, _ = await connect_fd(Quiet, file)
    return transport


async def end_of(kind):
    """``(transport, far end)``."""
    return await MAKERS[kind]()(Quiet)


@asynccontextmanager
async def relayed(a="unix", b="unix", **options):
    """``(task, far end of a, far end of b)`` of a running relay."""
    one, far_one = await end_of(a)
    try:
        other, far_other = await end_of(b)
    except OSError:
        far_one.close()
        await lost(one)
        raise
    with far_one, far_other:
        task = asyncio.ensure_future(relay(one, other, **options))
        try:
            async with asyncio.timeout(20):
                yield task, far_one, far_other
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await asyncio.sleep(0)


async def lost(*transports):
    """Have these gone before the test looks at what is left."""
    for transport in transports:
        await transport.aclose(0)


@asynccontextmanager
async def relayed_files(sink, **options):
    reading, writing = os.pipe()
    with FarEnd(writing) as far:
        task = asyncio.ensure_future(relay(await near(reading), await near(sink), **options))
        yield task, far


def send_all(fd, size, digest):
    for at in range(0, size, MIB):
        data = pattern(min(MIB, size - at), at)
        digest.update(data)
        while data:
            data = data[os.write(fd, data) :]


def receive_all(fd, digest, size=None):
    buffer, total = bytearray(MIB), 0
    view = memoryview(buffer)
    while total != size:
        try:
            count = os.readv(fd, [buffer])
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            count = 0
        if not count:
            break
        digest.update(view[:count])
        total += count
    return total


async def carry(source_fd, sink_fd, size, end):
    """Send *size* bytes into one descriptor and take them from another, in threads; call *end* when
    all is sent. True when what came out is what went in."""
    sent, received = hashlib.sha1(), hashlib.sha1()

    def send():
        send_all(source_fd, size, sent)
        end()

    _, total = await asyncio.gather(
        asyncio.to_thread(send), asyncio.to_thread(receive_all, sink_fd, received, size)
    )
    return total == size and sent.digest() == received.digest()


def stream_pair(kind):
    """``(ours, the other's)`` of a connected pair of sockets."""
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, other


async def flood(far):
    """Write until nothing is taken for a while; how much it was."""
    sent = quiet = 0
    while quiet < 100:
        count = far.send_now(bytes(65536))
        sent += count
        quiet = 0 if count else quiet + 1
        await asyncio.sleep(0 if quiet < 50 else 0.001)
    return sent


async def move(size=3 * MIB, **options):
    """Relay *size* bytes each way through two UNIX pairs; the result."""
    async with relayed(**options) as (task, client, server):
        sends = [asyncio.ensure_future(far.send(pattern(size))) for far in (client, server)]
        there, back = await asyncio.gather(server.recv_exactly(size), client.recv_exactly(size))
        assert there == back == pattern(size)
        await asyncio.gather(*sends)
        client.shutdown_write()
        server.shutdown_write()
        return await task
