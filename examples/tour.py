"""Move real bytes through every adapter, on this machine, and check that all of them arrive.

For each kind of descriptor a stream of random bytes goes in at one end and is compared at the
other. One line per kind: how much, the check sum, the rate; or why it is not available here.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import fdtransport

from . import between, run_command

MIB = 1024 * 1024
Lane = AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
lanes: list[tuple[str, str, Callable[[], AbstractAsyncContextManager[Any]]]] = []


def lane(name: str, what: str) -> Callable[[Callable[[], Lane]], None]:
    """A lane yields ``(reader, writer)``: what is written comes out of the reader."""

    def add(function: Callable[[], Lane]) -> None:
        lanes.append((name, what, asynccontextmanager(function)))

    return add


@lane("fd", "a descriptor: one end of a socket pair")
async def by_fd() -> Lane:
    ours, theirs = socket.socketpair()
    _, writer = await fdtransport.open_fd(ours.detach())
    reader, other = await fdtransport.open_fd(theirs.detach())
    yield reader, writer
    other.close()


@lane("fd pair", "a read descriptor and a write descriptor as one stream")
async def by_fd_pair() -> Lane:
    there, back = os.pipe(), os.pipe()
    reader, writer = await fdtransport.open_fd((back[0], there[1]))
    echo_in, echo_out = await fdtransport.open_fd((there[0], back[1]))
    echo = asyncio.create_task(copy(echo_in, echo_out))
    yield reader, writer
    await echo


@lane("pipe", "a new pipe with a buffer of 1 MiB")
async def by_pipe() -> Lane:
    yield await fdtransport.open_pipe(pipe_size=MIB)


@lane("fifo", "a named pipe in the file system")
async def by_fifo() -> Lane:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fifo")
        os.mkfifo(path)
        (reader, _), (_, writer) = await asyncio.gather(
            fdtransport.open_fifo(path, "r"), fdtransport.open_fifo(path, "w")
        )
        yield reader, writer


@lane("stdio", "standard input and output of a child process")
async def by_stdio() -> Lane:
    command = [sys.executable, "-m", "examples.tour", "--echo"]
    into, out_of = os.pipe(), os.pipe()
    child = await asyncio.create_subprocess_exec(*command, stdin=into[0], stdout=out_of[1])
    os.close(into[0])
    os.close(out_of[1])
    reader, writer = await fdtransport.open_fd((out_of[0], into[1]))
    writer.write(b"?")  # its answer tells that the child has started, which is not to be timed
    await reader.readexactly(1)
    yield reader, writer
    await child.wait()


@asynccontextmanager
async def accepted(server_of: Callable[[Callable[..., None]], Any]) -> AsyncIterator[tuple[Any, Any]]:
    """Serve one connection: yields the server and a future for its ``(reader, writer)``."""
    arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    server = await server_of(lambda reader, writer: arrived.set_result((reader, writer)))
    try:
        yield server, arrived
    finally:
        server.close()
        (await arrived)[1].close()


@lane("tcp", "a TCP connection over the loopback")
async def by_tcp() -> Lane:
    async with accepted(lambda served: fdtransport.start_server(served, "127.0.0.1", 0)) as (server, arrived):
        port = server.sockets[0].getsockname()[1]
        _, writer = await fdtransport.open_connection("127.0.0.1", port)
        reader, _ = await arrived
        yield reader, writer


@lane("unix", "a UNIX socket in the file system")
async def by_unix() -> Lane:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "socket"))
        async with accepted(lambda served: fdtransport.start_unix_server(served, path)) as (_, arrived):
            _, writer = await fdtransport.open_unix_connection(path)
            reader, _ = await arrived
            yield reader, writer


@lane("relay", "socket to socket through relay(), spliced by the kernel")
async def by_relay() -> Lane:
    near, a = socket.socketpair()
    b, far = socket.socketpair()
    _, writer = await fdtransport.open_fd(near.detach())
    reader, other = await fdtransport.open_fd(far.detach())
    left, _ = await fdtransport.connect_fd(asyncio.Protocol, a.detach())
    right, _ = await fdtransport.connect_fd(asyncio.Protocol, b.detach())
    relaying = asyncio.create_task(fdtransport.relay(left, right))
    yield reader, writer
    other.close()
    await relaying


@lane("records", "SOCK_SEQPACKET: one write is one record")
async def by_records() -> Lane:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender = await fdtransport.open_packet_fd(ours.detach())
    receiver = await fdtransport.open_packet_fd(theirs.detach())
    reader = asyncio.StreamReader()

    async def unpack() -> None:
        async for record in receiver:
            reader.feed_data(record)
        reader.feed_eof()

    class Writer:
        """As much of a StreamWriter as the tour needs, a record per write."""

        def write(self, data: bytes) -> None:
            self.rest = [data[at : at + 8192] for at in range(0, len(data), 8192)]

        async def drain(self) -> None:
            for record in self.rest:
                await sender.send(record)

        def close(self) -> None:
            sender.close()

        async def wait_closed(self) -> None:
            await sender.aclose()

    unpacking = asyncio.create_task(unpack())
    yield reader, Writer()  # type: ignore[misc]
    await unpacking
    await receiver.aclose()


@lane("file", "a regular file, written and read back without stopping the loop")
async def by_file() -> Lane:
    with tempfile.TemporaryFile() as file:
        _, writer = await fdtransport.open_fd(os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY))
        reader = asyncio.StreamReader()

        async def read_back() -> None:
            await writer.wait_closed()
            source, _ = await fdtransport.open_fd(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY))
            while data := await source.read(MIB):
                reader.feed_data(data)
            reader.feed_eof()

        reading = asyncio.create_task(read_back())
        yield reader, writer
        await reading


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def move(reader: Any, writer: Any, size: int) -> tuple[str, float]:
    """Send *size* random bytes; return the check sum that arrived, and the seconds it took."""
    block = random.Random(size).randbytes(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()
    count = 0

    async def send() -> None:
        left = size
        while left:
            data = block[: min(left, len(block))]
            sent.update(data)
            writer.write(data)
            await writer.drain()
            left -= len(data)
        if hasattr(writer, "can_write_eof") and writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()

    start = time.perf_counter()
    sending = asyncio.create_task(send())
    while count < size and (data := await reader.read(65536)):
        received.update(data)
        count += len(data)
    await sending
    seconds = time.perf_counter() - start
    writer.close()
    await writer.wait_closed()
    if count != size or sent.digest() != received.digest():
        raise RuntimeError(f"{count} bytes of {size} arrived, or others than were sent")
    return received.hexdigest(), seconds


async def tour(size: int) -> int:
    """Returns the exit status."""
    version = sys.version.split()[0]
    print(f"fdtransport on Python {version}, {sys.platform}: {len(lanes)} kinds, check sums compared")
    failed = 0
    for name, what, open_lane in lanes:
        try:
            async with asyncio.timeout(60), open_lane() as (reader, writer):
                digest, seconds = await move(reader, writer, size)
        except NotImplementedError as exc:
            print(f"{name:8} not available here: {exc}")
        except Exception as exc:
            failed += 1
            print(f"{name:8} FAILED: {exc or type(exc).__name__}")
        else:
            rate = size / MIB / seconds
            print(f"{name:8} {size / MIB:g} MiB  sha256 {digest[:12]} ok  {rate:6.0f} MiB/s  {what}")
    print(f"{len(lanes) - failed} of {len(lanes)} kinds moved every byte" if failed else "every byte arrived")
    return 1 if failed else 0


async def echo() -> None:
    await copy(*await fdtransport.open_stdio())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.tour", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size",
        type=between(float, 0.01, 1e6),
        default=32,
        metavar="MIB",
        help="how much per kind (default 32)",
    )
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    return run_command(echo() if args.echo else tour(int(args.size * MIB)))


if __name__ == "__main__":
    sys.exit(main())
