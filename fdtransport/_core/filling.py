"""An async iterable as the producer of a byte stream."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterable
from typing import Any

__all__ = ["write_from"]


async def write_from(transport: Any, source: AsyncIterable[Any]) -> int:
    """``StreamTransport.write_from``."""
    gate = _Gate(transport)
    total = 0
    transport.register_producer(gate)
    try:
        async for data in source:
            transport.write(data)
            total += memoryview(data).nbytes
            if gate.closed is not None:
                await gate.closed
            elif transport._dropped:
                await asyncio.sleep(0)
            if not transport._state.writes:
                break
    finally:
        if transport._flow.producer is gate:
            transport.unregister_producer()
    if not (transport._state.writes or transport._state.flushing):
        ended = ConnectionResetError(errno.ECONNRESET, "the transport has ended")
        raise transport._exception or gate.error or ended
    return total


class _Gate:
    """The push producer behind ``write_from``: a future to wait for while writing is paused."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.closed: asyncio.Future[None] | None = None
        self.error: BaseException | None = None

    def pause_producing(self) -> None:
        if self.closed is None:
            self.closed = self._transport._loop.create_future()

    def resume_producing(self) -> None:
        future, self.closed = self.closed, None
        if future is not None and not future.done():
            future.set_result(None)

    def stop_producing(self) -> None:
        self.error = self._transport._exception
        self.resume_producing()
