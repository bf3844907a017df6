"""Sending files, to any transport."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

from ._core.file_copying import check_file, copy_file, reading_held
from ._core.stream import StreamTransport

__all__ = ["sendfile"]


async def sendfile(
    transport: Any, file: Any, offset: int = 0, count: int | None = None, *, fallback: bool = True
) -> int:
    """Send *file* to *transport*, as ``loop.sendfile`` does, and on every loop.

    To a transport of this library it is ``StreamTransport.sendfile``, which see for everything. To any
    other, TLS among them, the file is read and written piece by piece, as fast as that takes it, and
    the last of it may still be in its buffer when this returns. *transport*: a stream's writer will
    do too.

    :raises asyncio.SendfileNotAvailableError: that is the only way, and *fallback* is false.

    and what ``StreamTransport.sendfile`` raises.

    ::

        with open("index.html", "rb") as file:
            await fdtransport.sendfile(writer, file)
    """
    if isinstance(transport, asyncio.StreamWriter):
        transport = transport.transport
    if isinstance(transport, StreamTransport):
        return await transport.sendfile(file, offset, count, fallback=fallback)
    if transport.is_closing():
        raise RuntimeError("Transport is closing")
    check_file(file, offset, count)
    if hasattr(transport, "sendto") or not hasattr(transport, "write"):
        raise RuntimeError(f"sendfile is not supported for transport {transport!r}")
    if not fallback:
        raise asyncio.SendfileNotAvailableError(f"the kernel cannot send a file to {transport!r}")
    with reading_held(transport):
        pace = _Pace(transport)
        try:
            return await copy_file(transport, file, offset, count, pace.drained)
        finally:
            pace.end()


class _Pace(asyncio.Protocol):
    """The protocol of a transport meanwhile: passes everything on, and sees when it takes more."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._former = transport.get_protocol()
        self._resumed: asyncio.Future[None] | None = None
        self._lost = False
        transport.set_protocol(self)

    def end(self) -> None:
        if not self._lost:
            self._transport.set_protocol(self._former)

    async def drained(self) -> None:
        """Wait until less is queued; to be called above the high water mark, where writing is paused."""
        if not self._lost:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def pause_writing(self) -> None:
        self._former.pause_writing()

    def resume_writing(self) -> None:
        self._former.resume_writing()
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._former.data_received(data)

    def eof_received(self) -> Any:
        return self._former.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._resumed is not None and not self._resumed.done():
            ended = ConnectionResetError(errno.ECONNRESET, "the transport ended before the file was sent")
            self._resumed.set_exception(exc or ended)
        self._former.connection_lost(exc)
