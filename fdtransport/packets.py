"""The await-based end of a record transport."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from typing import Any

from ._core.lifecycle import CloseReason
from ._core.opening import open_transport
from ._core.packet import PacketTransport
from ._core.stream import BytesLike

__all__ = ["PacketStream", "open_packets", "packet_stream_factory"]


class PacketStream(asyncio.DatagramProtocol):
    """Records by ``await``: made by ``open_packet_fd`` and its kin.

    ::

        async with await open_packet_fd(fd) as packets:
            await packets.send(b"ping")
            async for data in packets:
                print(data)
    """

    transport: PacketTransport

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self._loop = loop
        self._limit = limit  # from so many records that wait here on, the kernel's queue holds them
        self._received: deque[tuple[bytes, Any]] = deque()
        self._errors: deque[Exception] = deque(maxlen=limit)  # nobody may ask for them
        self._lost: BaseException | bool = False
        self._reader: asyncio.Future[None] | None = None
        self._writers: set[asyncio.Future[None]] = set()
        self._paused = False

    # -- protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        self._received.extend(records)
        if len(self._received) >= self._limit:
            self.transport.pause_reading()
        self._wake()

    def error_received(self, exc: Exception) -> None:
        self._errors.append(exc)
        self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._lost = exc or True
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        for writer in self._writers:
            if not writer.done():
                writer.set_result(None)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    # -- for the caller -----------------------------------------------------------------------

    async def recv(self) -> bytes:
        """The next record. Cancelling is safe.

        :raises EOFError: the other side has ended and every record was given out; a write-only descriptor.
        :raises OSError: an error that concerned one record, told once; or the loss.
        """
        return (await self.recv_from())[0]

    async def recv_from(self) -> tuple[bytes, Any]:
        """The next record and the address that it came from; otherwise as ``recv``."""
        while not self._received:
            self._raise_error()
            if isinstance(self._lost, BaseException):
                raise self._lost
            if self._lost:
                raise EOFError("no more records")
            if self._reader is not None:
                raise RuntimeError("recv() called while another coroutine is already waiting")
            try:
                self.transport.resume_reading()
            except NotImplementedError:
                raise EOFError("the descriptor is write-only") from None
            reader = self._reader = self._loop.create_future()
            try:
                await reader
            finally:
                if self._reader is reader:  # not that of the next caller
                    self._reader = None
        return self._received.popleft()

    async def send(self, data: BytesLike, addr: Any = None) -> None:
        """Send one record, and wait while too much is queued. Cancelling is safe: it is queued.

        :raises OSError: an error of this record; an error of an earlier one, told once, and then this
            one was not sent; the loss.
        """
        self._raise_error()
        self.transport.sendto(data, addr)
        self._raise_error()
        await self.drain()

    def _raise_error(self) -> None:
        if self._errors:
            raise self._errors.popleft()

    async def drain(self) -> None:
        """Wait while more is queued than the high water mark. Cancelling is safe.

        :raises OSError: what is queued will not be sent any more: the loss.
        """
        if self.transport.is_closing():
            await asyncio.sleep(0)  # connection_lost() may be on its way
        if self._paused and not self._lost:
            writer = self._loop.create_future()
            self._writers.add(writer)
            try:
                await writer
            finally:
                self._writers.discard(writer)
        if isinstance(self._lost, BaseException):
            raise self._lost
        if self._lost or self.transport.close_reason in (CloseReason.ERROR, CloseReason.ABORT):
            raise ConnectionResetError(errno.ECONNRESET, "Connection lost")

    def close(self) -> None:
        """Send what is queued, then end."""
        self.transport.close()

    async def aclose(self, timeout: float | None = None) -> None:
        """Close and wait for the end; abort after *timeout* seconds."""
        await self.transport.aclose(timeout)

    async def __aenter__(self) -> PacketStream:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> PacketStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.recv()
        except EOFError:
            raise StopAsyncIteration from None


def packet_stream_factory(limit: int) -> Callable[[], PacketStream]:
    """The protocol factory of a `PacketStream` that reads on until *limit* records wait."""
    if limit < 1:
        raise ValueError(f"limit ({limit!r}) must be at least 1 record")
    loop = asyncio.get_running_loop()
    return lambda: PacketStream(loop, limit)


async def open_packets(
    make: Callable[..., PacketTransport], file: Any, *, limit: int = 256, **options: Any
) -> PacketStream:
    """As ``open_transport``, for a `PacketStream` that reads on until *limit* records wait."""
    _, stream = await open_transport(make, packet_stream_factory(limit), file, **options)
    return stream
