"""Bytes that a coroutine makes, as a transport: it writes into a pipe, and the transport reads it.

For sources that are no descriptor that could be read: a file that grows, events as lines of text.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ._core import syscalls
from ._core.handle import Handle
from ._core.opening import open_transport
from .pipes import PipeTransport

__all__ = ["FedTransport", "Sink", "connect_fed"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Sink(asyncio.BaseProtocol):
    """The end of the pipe that the coroutine writes to."""

    def __init__(self) -> None:
        self.lost: bool = False
        self._paused: asyncio.Future[None] | None = None
        self.reader: FedTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport: PipeTransport = transport

    def pause_writing(self) -> None:
        self._paused = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        self.resume_writing()
        if self.reader is not None and not isinstance(exc, BrokenPipeError | None):
            self.reader._force_close(exc)  # before the pipe is closed, which would be a clean end

    async def write(self, data: bytes) -> None:
        """Write, and wait while the reader is behind. :raises BrokenPipeError: there is no reader."""
        if not self.lost:
            self.transport.write(data)
            if self._paused is not None:
                await asyncio.shield(self._paused)
        if self.lost:
            raise BrokenPipeError


class FedTransport(PipeTransport):
    """The end that is read. When it ends, so does the coroutine."""

    __slots__ = ("_feeder",)

    _feeder: asyncio.Task[None] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._feeder = None
        super().__init__(*args, **kwargs)

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        feeder, self._feeder = self._feeder, None
        if feeder is not None and not self._loop.is_closed():
            self._loop.call_soon(feeder.cancel)  # a task that has not begun would not clean up
        return super()._let_go(how)


async def connect_fed(
    protocol_factory: Callable[[], P], feed: Callable[[Sink], Awaitable[None]]
) -> tuple[FedTransport, P]:
    """Read what *feed* writes to its sink. When it returns that is the end; what it raises, the loss has.

    Returns ``(transport, protocol)`` after ``connection_made``.
    """
    reading, writing = syscalls.pipe(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        sink_transport, sink = await open_transport(PipeTransport, Sink, (None, writing))
    except BaseException:
        syscalls.close(reading)
        syscalls.close(writing)
        raise
    try:
        transport, protocol = await open_transport(FedTransport, protocol_factory, (reading, None))
    except BaseException:
        sink_transport.abort()
        syscalls.close(reading)
        raise
    sink.reader = transport
    feeder = asyncio.ensure_future(_feed(feed, sink, transport))
    if transport._rfd < 0:
        asyncio.get_running_loop().call_soon(feeder.cancel)  # the protocol has closed it already
    else:
        transport._feeder = feeder
    return transport, protocol


async def _feed(feed: Callable[[Sink], Awaitable[None]], sink: Sink, transport: FedTransport) -> None:
    try:
        await feed(sink)
    except BrokenPipeError:
        pass  # nobody reads any more
    except Exception as exc:
        transport._force_close(exc)
    finally:
        sink.transport.close()
