"""An echo server on TCP and on a UNIX socket, with a client for each that checks the answers.

The same protocol serves both: what asyncio users write already runs unchanged.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from typing import cast

import fdtransport

from . import between, run_command


class Echo(asyncio.Protocol):
    """Sends back what comes. The peer is held back while it does not read its answers."""

    def __init__(self, on_end: Callable[[fdtransport.CloseReason | None], None]) -> None:
        self.on_end = on_end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(fdtransport.StreamTransport, transport)
        # A transport is a push producer: it is paused while its own queue is too long.
        self.transport.register_producer(self.transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def eof_received(self) -> bool:
        self.transport.unregister_producer()
        return False  # close, after what is queued

    def connection_lost(self, exc: BaseException | None) -> None:
        self.on_end(self.transport.close_reason)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lines: int) -> None:
    for number in range(lines):
        writer.write(b"line %d\n" % number)
        await writer.drain()
        answer = await reader.readline()
        if answer != b"line %d\n" % number:
            raise RuntimeError(f"{answer!r} came back")
    writer.close()
    await writer.wait_closed()
    print(f"  client: {lines} lines came back")


async def run(lines: int) -> None:
    ended: asyncio.Queue[fdtransport.CloseReason | None] = asyncio.Queue()

    def echo() -> Echo:
        return Echo(ended.put_nowait)

    async with await fdtransport.create_server(echo, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        print(f"tcp://{host}:{port}")
        await ask(*await fdtransport.open_connection(host, port), lines)
        print(f"  server: ended by {await ended.get()}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "echo.sock")
        async with await fdtransport.create_unix_server(echo, path):
            print(f"unix:{path}")
            await ask(*await fdtransport.open_unix_connection(path), lines)
            print(f"  server: ended by {await ended.get()}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.echo_server", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--lines", type=between(int, 1, 10**9), default=1000, metavar="N", help="per client (default 1000)"
    )
    return run_command(run(parser.parse_args().lines))


if __name__ == "__main__":
    sys.exit(main())
