"""What users have run into, asked of this library and of its peers: the table of the README.

    python tests/differential.py [--readme]

Each question is put to each peer in a process of its own, so that one that hangs or dies is an answer too.
``--readme`` writes the table into README.md; a test looks that our own columns have no "no".
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asking import Table
from differential_cases import CASES, Peer

PEERS = ("fdtransport", "fdtransport on uvloop", "asyncio", "uvloop")
OURS = PEERS[:2]


def theirs() -> Peer:
    """What the running loop has itself."""
    loop = asyncio.get_running_loop()

    async def read_pipe(factory: Any, fd: int) -> Any:
        return (await loop.connect_read_pipe(factory, os.fdopen(fd, "rb", 0)))[0]

    async def write_pipe(factory: Any, fd: int) -> Any:
        return (await loop.connect_write_pipe(factory, os.fdopen(fd, "wb", 0)))[0]

    async def stream(factory: Any, sock: Any) -> Any:
        return (await loop.create_connection(factory, sock=sock))[0]

    async def records(factory: Any, sock: Any) -> Any:
        if sock.type == sock.type.SOCK_SEQPACKET:  # the nearest thing that they have
            return await write_pipe(factory, sock.detach())
        return (await loop.create_datagram_endpoint(factory, sock=sock))[0]

    async def unix_server(factory: Any, path: str) -> Any:
        return await loop.create_unix_server(factory, path)

    async def tcp_server(factory: Any) -> Any:
        server = await loop.create_server(factory, "127.0.0.1", 0)
        KEPT.append(server)
        return server.sockets[0].getsockname()

    return Peer(read_pipe, write_pipe, stream, records, read_pipe, unix_server, tcp_server)


def ours() -> Peer:
    """What this library has, on whatever loop runs."""
    import fdtransport

    def first(function: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return (await function(*args, **kwargs))[0]

        return call

    async def unix_server(factory: Any, path: str) -> Any:
        server = await fdtransport.create_unix_server(factory, path)
        KEPT.append(server)
        return server

    async def tcp_server(factory: Any) -> Any:
        server = await fdtransport.create_server(factory, "127.0.0.1", 0)
        KEPT.append(server)
        return server.sockets[0].getsockname()

    async def stream(factory: Any, sock: Any) -> Any:
        return (await fdtransport.create_connection(factory, sock=sock))[0]

    async def standard_input(factory: Any, fd: int) -> Any:
        return (await fdtransport.connect_stdio(factory, fd, None))[0]

    return Peer(
        first(fdtransport.connect_read_pipe), first(fdtransport.connect_write_pipe), stream,
        first(fdtransport.connect_packet_fd), standard_input, unix_server, tcp_server,
    )  # fmt: skip


KEPT: list[Any] = []


def versions() -> str:
    import uvloop

    python = "{}.{}.{}".format(*sys.version_info[:3])
    return f"From a run of `python tests/differential.py`, CPython {python}, uvloop {uvloop.__version__}:"


TABLE = Table(
    "differential", Path(__file__).resolve(), CASES, PEERS, lambda peer: ours() if peer in OURS else theirs(),
    OURS, versions,
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(TABLE.main())
