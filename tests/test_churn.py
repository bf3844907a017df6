"""Ten thousand lives of every kind: as many descriptors afterwards as before, and no more memory.

``FDTRANSPORT_CHURN`` is the number of lives; a development mode, which is slow, has fewer of them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from typing import TypeAlias

import pytest
from conftest import LOOPS

import fdtransport

LIVES = int(os.environ.get("FDTRANSPORT_CHURN", 1000 if sys.flags.dev_mode else 10_000))
WARM_UP = 300
#: What caches of the interpreter and of the loop may still grow by after the warm-up, whatever LIVES is.
BLOCKS, KIBIBYTES = 300, 4096

Life: TypeAlias = Callable[[], Awaitable[None]]


class Once(asyncio.Protocol):
    """Takes one message, answers nothing, and tells when it is over."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.heard, self.lost = loop.create_future(), loop.create_future()

    def data_received(self, data: bytes) -> None:
        self.heard.set_result(data)

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.heard.set_result(data)

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def hear_and_close(transport, protocol) -> None:
    assert await protocol.heard == b"ping"
    transport.close()
    assert await protocol.lost is None


@asynccontextmanager
async def fd(tmp_path: Path) -> AsyncIterator[Life]:
    async def life() -> None:
        near, far = socketpair()
        with far:
            transport, protocol = await fdtransport.connect_fd(Once, near)
            transport.write(b"ping")
            assert far.recv(4) == b"ping"
            far.send(b"ping")
            await hear_and_close(transport, protocol)

    yield life


@asynccontextmanager
async def fd_pair(tmp_path: Path) -> AsyncIterator[Life]:
    async def life() -> None:
        (reading, far_writing), (far_reading, writing) = os.pipe(), os.pipe()
        transport, protocol = await fdtransport.connect_fd(Once, (reading, writing))
        transport.write(b"ping")
        assert os.read(far_reading, 4) == b"ping"
        os.write(far_writing, b"ping")
        await hear_and_close(transport, protocol)
        os.close(far_reading)
        os.close(far_writing)

    yield life


@asynccontextmanager
async def records(tmp_path: Path) -> AsyncIterator[Life]:
    async def life() -> None:
        near, far = socketpair(AF_UNIX, SOCK_SEQPACKET)
        with far:
            transport, protocol = await fdtransport.connect_packet_fd(Once, near)
            transport.sendto(b"ping")
            assert far.recv(4) == b"ping"
            far.send(b"ping")
            await hear_and_close(transport, protocol)

    yield life


@asynccontextmanager
async def streams(tmp_path: Path) -> AsyncIterator[Life]:
    async def life() -> None:
        near, far = socketpair()
        with far:
            reader, writer = await fdtransport.open_fd(near)
            writer.write(b"ping")
            far.send(b"ping")
            assert await reader.readexactly(4) == far.recv(4) == b"ping"
            writer.close()
            await writer.wait_closed()

    yield life


@asynccontextmanager
async def read_pipe(tmp_path: Path) -> AsyncIterator[Life]:
    async def life() -> None:
        reading, writing = os.pipe()
        transport, protocol = await fdtransport.connect_read_pipe(Once, os.fdopen(reading, "rb", 0))
        os.write(writing, b"ping")
        await hear_and_close(transport, protocol)
        os.close(writing)

    yield life


@asynccontextmanager
async def write_pipe(tmp_path: Path) -> AsyncIterator[Life]:
    async def life() -> None:
        reading, writing = os.pipe()
        transport, protocol = await fdtransport.connect_write_pipe(Once, os.fdopen(writing, "wb", 0))
        transport.write(b"ping")
        transport.close()
        assert await protocol.lost is None
        assert os.read(reading, 5) == b"ping"
        os.close(reading)

    yield life


@asynccontextmanager
async def fifo(tmp_path: Path) -> AsyncIterator[Life]:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async def life() -> None:
        transport, protocol = await fdtransport.connect_fifo(Once, path)
        writer, writing = await fdtransport.connect_fifo(Once, path, "w")
        writer.write(b"ping")
        await hear_and_close(transport, protocol)
        writer.close()
        await writing.lost

    yield life


class Echo(asyncio.Protocol):
    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@asynccontextmanager
async def tcp(tmp_path: Path) -> AsyncIterator[Life]:
    server = await fdtransport.create_server(Echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()

    async def life() -> None:
        transport, protocol = await fdtransport.create_connection(Once, host, port)
        transport.write(b"ping")
        assert await protocol.heard == b"ping"
        transport.abort(reset=True)  # or the system would run out of ports
        await protocol.lost

    async with server:
        yield life


@asynccontextmanager
async def unix(tmp_path: Path) -> AsyncIterator[Life]:
    path = str(tmp_path / "socket")
    server = await fdtransport.create_unix_server(Echo, path)

    async def life() -> None:
        transport, protocol = await fdtransport.create_unix_connection(Once, path)
        transport.write(b"ping")
        await hear_and_close(transport, protocol)

    async with server:
        yield life


@asynccontextmanager
async def stdio(tmp_path: Path) -> AsyncIterator[Life]:
    """Of this process's own standard input and output: for the child below."""

    async def life() -> None:
        transport, protocol = await fdtransport.connect_stdio(Once)
        transport.close()
        assert await protocol.lost is None

    yield life


KINDS = (fd, fd_pair, records, streams, read_pipe, write_pipe, fifo, tcp, unix)


def resident() -> int:
    """KiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


async def state() -> tuple[int, int, int]:
    for _ in range(20):  # the other side of a connection may be a few turns behind
        await asyncio.sleep(0)
    gc.collect()
    return len(os.listdir("/proc/self/fd")), sys.getallocatedblocks(), resident()


async def churn(kind: Callable[[Path], object], tmp_path: Path) -> None:
    async with kind(tmp_path) as life:
        for _ in range(WARM_UP):
            await life()
        descriptors, blocks, kibibytes = await state()
        for _ in range(LIVES):
            await life()
        after = await state()
    assert after[0] == descriptors
    assert after[1] - blocks < BLOCKS, f"{(after[1] - blocks) / LIVES:.2f} blocks are left of each life"
    assert after[2] - kibibytes < KIBIBYTES, f"{(after[2] - kibibytes) / LIVES:.2f} KiB are left of each life"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_ten_thousand_lives_leave_nothing(kind, tmp_path):
    await churn(kind, tmp_path)


def one_way_each() -> tuple[tuple[int, int], tuple[int, int]]:
    """Standard input and output for a child, and what keeps them open."""
    (stdin, writing), (reading, stdout) = os.pipe(), os.pipe()
    return (stdin, stdout), (reading, writing)


def one_for_both() -> tuple[tuple[int, int], tuple[int, int]]:
    near, far = socketpair()
    return (near.fileno(), os.dup(near.detach())), (far.fileno(), os.dup(far.detach()))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("kind", [one_way_each, one_for_both], ids=["pipes", "a socket"])
def test_ten_thousand_lives_of_the_standard_streams_leave_nothing(kind, name):
    standard, kept = kind()
    try:
        child = [sys.executable, __file__, name]
        with subprocess.Popen(child, stdin=standard[0], stdout=standard[1]) as process:
            assert process.wait(60) == 0
    finally:
        for fd in (*standard, *kept):
            os.close(fd)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
        runner.run(churn(stdio, Path()))
