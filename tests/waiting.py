"""Waiting in tests, counted in looks at the thing: a machine that stalls for a moment does not matter."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["lost", "receive", "turns", "until"]


async def turns(n: int = 5) -> None:
    """Let the loop turn *n* times."""
    for _ in range(n):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], steps: int = 10_000) -> None:
    """Look at every turn of the loop, and after fifty of them every millisecond."""
    for step in range(steps):
        if condition():
            return
        await asyncio.sleep(0 if step < 50 else 0.001)
    raise AssertionError("waited in vain")


async def lost(protocol: Any) -> None:
    """Until the transport of a recording protocol has told its loss."""
    await until(lambda: protocol.lost)
    await turns(1)  # the descriptor is closed when the callback has returned
    assert not protocol.breaches


async def receive(sock: socket.socket, count: int) -> list[bytes]:
    """Take *count* records from a non-blocking socket."""
    records: list[bytes] = []
    while len(records) < count:
        try:
            records.append(sock.recv(1 << 20))
        except BlockingIOError:
            await asyncio.sleep(0.0005)
    return records
