"""The await-based reader and writer.

The reader is an ``asyncio.StreamReader`` for every caller, with all of its methods. Inside it reads
the descriptor itself, from the task that wants the bytes, and waits for the loop only when there
are none: no callback, buffer and wake-up per piece. While nobody reads, at most one piece is read
ahead; then the kernel's own buffer holds the peer back.

The writer is an ``asyncio.StreamWriter`` whose ``start_tls`` works on every loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ._core import syscalls
from ._core.opening import open_transport
from ._core.reading import READ_SIZE
from ._core.stream import StreamTransport
from .writer import StreamWriter, with_our_writer

__all__ = ["StreamReader", "StreamReaderProtocol", "open_streams", "stream_protocol", "stream_writer"]

DEFAULT_LIMIT = 64 * 1024
#: Reads without a wait before the task lets the others have a turn.
READS_PER_TURN = 16
#: Smaller requests are served from a buffer that is filled with larger reads.
DIRECT = 16 * 1024


class StreamReader(asyncio.StreamReader):
    """An ``asyncio.StreamReader`` that reads the descriptor of its transport itself.

    Over any other transport than a `StreamTransport` (TLS, for instance) it works as asyncio's.
    Bytes that came before an error are given out before the error is raised.
    """

    # asyncio's own fields
    _buffer: bytearray
    _eof: bool
    _exception: BaseException | None
    _limit: int
    _loop: asyncio.AbstractEventLoop
    _paused: bool
    _waiter: asyncio.Future[None] | None

    def __init__(self, limit: int = DEFAULT_LIMIT, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(limit=limit, loop=loop)
        self._direct: StreamTransport | None = None
        self._ahead = b""  # one piece read ahead; empty when _buffer is not, or at the end
        self._more = True  # whether the kernel is thought to have more
        self._held = False  # whether reading is paused because nobody reads
        self._left: int | None = None  # after a failed write: bytes still to be fetched
        self._reads = 0
        self._error_after_buffer: BaseException | None = None
        self._writer: asyncio.StreamWriter | None = None

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        super().set_transport(transport)
        if isinstance(transport, StreamTransport):
            self._direct = transport
            if not transport.can_read:
                self.feed_eof()

    # -- from the protocol --------------------------------------------------------------------

    def read_ready(self, transport: StreamTransport) -> None:
        """The loop says that there is something."""
        self._direct = transport
        if transport.is_closing():
            self._fetch_the_last(transport)
        elif self._waiter is not None:
            data = transport.read_now(READ_SIZE)
            if data:
                self._more = len(data) == READ_SIZE
                self._buffer += data
                self._wake()
        elif not (self._ahead or self._buffer or self._eof):
            data = transport.read_now(READ_SIZE)
            if data:
                self._more = len(data) == READ_SIZE
                self._ahead = data
        elif transport.hung_up:
            self.peer_gone()
        else:
            # Nobody reads. The kernel holds the rest; the hang-up watch looks after the end.
            self._more = self._held = True
            transport.pause_reading()
            transport.read_paused()

    def peer_gone(self) -> None:
        """Fetch what the other side left, so that its end is noticed though nobody reads.

        As with asyncio, what is over twice the limit stays where it is until somebody reads.
        """
        transport = self._direct
        assert transport is not None
        if transport.is_closing():
            self._held = False
            transport.resume_reading()  # a write failed: the loss waits for what is here
            return
        self._merge()
        for _ in range(READS_PER_TURN):
            if len(self._buffer) > 2 * self._limit:
                self._paused = True  # _maybe_resume_transport() looks at it
                transport.pause_reading()
                break
            data = transport.read_now(READ_SIZE)
            if not data:
                break
            self._buffer += data
        if not self._paused:
            self._held = False
            transport.resume_reading()
        if self._buffer:
            self._wake()

    def _fetch_the_last(self, transport: StreamTransport) -> None:
        """A write failed: what is here now must be fetched before the loss, however much it is."""
        self._merge()
        if self._left is None:
            try:
                self._left = syscalls.bytes_readable(transport.fileno())
            except OSError:
                self._left = 0  # it cannot tell: one piece
        for _ in range(READS_PER_TURN):
            data = transport.read_now(READ_SIZE)
            if not data:
                break
            self._buffer += data
            self._left -= len(data)
            if self._left <= 0:
                transport.abort()  # the loss tells the failed write's error
                break
        if self._buffer:
            self._wake()

    def replaced(self) -> None:
        """Another protocol reads from now on: what it has for this reader, it feeds."""
        transport, self._direct = self._direct, None
        self._merge()
        if transport is not None and self._held:
            self._held = False
            transport.resume_reading()

    def upgraded(self, transport: asyncio.BaseTransport) -> None:
        """From now on *transport*, which is over the former one, feeds this reader."""
        self._transport = transport
        self._paused = False

    def take_unread(self) -> bytes:
        """Give up what was read and not given out."""
        self._merge()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def feed_data(self, data: Any) -> None:
        self._merge()
        super().feed_data(data)

    def feed_eof(self) -> None:
        self._merge()
        super().feed_eof()

    def set_exception(self, exc: BaseException) -> None:
        self._merge()
        if not self._buffer:
            super().set_exception(exc)  # type: ignore[arg-type]
            return
        self._error_after_buffer = exc
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(exc)

    def exception(self) -> BaseException | None:  # type: ignore[override]
        return self._exception or self._error_after_buffer

    def _merge(self) -> None:
        if self._ahead:
            self._buffer += self._ahead
            self._ahead = b""

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # -- for the caller -----------------------------------------------------------------------

    def at_eof(self) -> bool:
        return super().at_eof() and not self._ahead

    async def read(self, n: int = -1) -> bytes:
        """Up to *n* bytes as soon as there are any; all until the end when *n* is negative.

        Returns ``b""`` at the end of file. Cancelling is safe: nothing is lost.

        :raises OSError: the connection was lost with an error, and everything before was read.
        """
        if self._direct is None:
            return await super().read(n)
        if self._exception is not None:
            raise self._exception
        if n == 0:
            return b""
        if n < 0:
            while not self._eof:
                await self._wait_for_data("read")
            return self.take_unread()
        if not self._buffer and not self._eof:
            data = self._ahead
            if data:
                if len(data) <= n:
                    self._ahead = b""
                    return data
                self._merge()
            elif self._more and n >= DIRECT:
                size = min(n, READ_SIZE)
                got = self._direct.read_now(size)
                if got:
                    self._more = len(got) == size
                    self._reads += 1
                    if self._reads >= READS_PER_TURN:
                        self._reads = 0
                        self._ahead = got  # kept should the task be cancelled here
                        await asyncio.sleep(0)
                        return await self.read(n)
                    return got
                self._more = False
                if not self._eof:
                    await self._wait_for_data("read")
            else:
                await self._wait_for_data("read")
        data = bytes(memoryview(self._buffer)[:n])
        del self._buffer[:n]
        self._maybe_resume_transport()
        return data

    async def _wait_for_data(self, func_name: str) -> None:
        """asyncio's own reading methods call this when the buffer has too little for them."""
        if self._direct is None:
            await super()._wait_for_data(func_name)  # type: ignore[misc]
            return
        if self._waiter is not None:
            raise RuntimeError(
                f"{func_name}() called while another coroutine is already waiting for incoming data"
            )
        error = self.exception()
        if error is not None:
            raise error
        if self._ahead:
            self._merge()
            return
        if self._more:
            data = self._direct.read_now(READ_SIZE)
            if data:
                self._more = len(data) == READ_SIZE
                self._buffer += data
                self._reads += 1
                if self._reads >= READS_PER_TURN:
                    self._reads = 0
                    await asyncio.sleep(0)
                return
            self._more = False
            if self._eof:
                return
        self._reads = 0
        self._held = self._paused = False
        self._direct.resume_reading()
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            if self._waiter is waiter:  # not that of the next reader
                self._waiter = None

    def _maybe_resume_transport(self) -> None:
        """asyncio's own reading methods call this when they have taken something from the buffer."""
        super()._maybe_resume_transport()  # type: ignore[misc]
        if self._error_after_buffer is not None and not self._buffer:
            self._exception = self._error_after_buffer


class StreamReaderProtocol(asyncio.StreamReaderProtocol):
    """Between a transport and a `StreamReader`; also a protocol that asyncio's TLS can drive."""

    _transport: Any
    _over_ssl: bool

    def __init__(
        self,
        stream_reader: asyncio.StreamReader,
        client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        connected = None if client_connected_cb is None else with_our_writer(client_connected_cb)
        super().__init__(stream_reader, connected, loop=loop)

    def connection_lost(self, exc: Exception | None) -> None:
        reader = self._stream_reader  # type: ignore[attr-defined]
        super().connection_lost(exc)
        if reader is not None:
            reader._writer = None  # it cannot end anything any more

    def read_ready(self) -> None:
        reader = self._stream_reader  # type: ignore[attr-defined]
        if reader is not None:
            reader.read_ready(self._transport)
        else:
            self._transport.read_now(READ_SIZE)  # for nobody: dropped, as asyncio does

    def peer_gone(self) -> None:
        reader = self._stream_reader  # type: ignore[attr-defined]
        if reader is not None:
            reader.peer_gone()

    def replaced(self) -> None:
        """Another protocol has been set in place of this one."""
        reader = self._stream_reader  # type: ignore[attr-defined]
        if reader is not None:
            reader.replaced()

    def upgraded(self, transport: asyncio.Transport) -> None:
        """TLS has begun: *transport* is written to and feeds the reader from now on."""
        self._transport = transport
        self._over_ssl = True
        reader = self._stream_reader  # type: ignore[attr-defined]
        if reader is not None:
            reader.upgraded(transport)

    def take_unread(self) -> bytes:
        """What was read and not given out; for ``detach()`` and TLS."""
        reader = self._stream_reader  # type: ignore[attr-defined]
        return b"" if reader is None else reader.take_unread()


def stream_protocol(
    limit: int,
    loop: asyncio.AbstractEventLoop,
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any] | None = None,
) -> tuple[StreamReader, StreamReaderProtocol]:
    """A reader and the protocol that feeds it."""
    if limit <= 0:
        raise ValueError("Limit cannot be <= 0")
    reader = StreamReader(limit, loop)
    return reader, StreamReaderProtocol(reader, client_connected_cb, loop=loop)


def stream_writer(
    transport: asyncio.Transport,
    protocol: StreamReaderProtocol,
    reader: StreamReader,
    loop: asyncio.AbstractEventLoop,
) -> StreamWriter[Any]:
    """The writer to *reader*'s other direction. Whoever holds one of them holds both."""
    # asyncio's writer closes the transport when it is collected; one that was never asked for (of
    # a descriptor that can only be read, say) must not end the reading by that.
    writer: StreamWriter[Any] = StreamWriter(transport, protocol, reader, loop)
    reader._writer = writer
    return writer


async def open_streams(
    make: Callable[..., Any], file: Any, *, limit: int = DEFAULT_LIMIT, **options: Any
) -> tuple[StreamReader, StreamWriter[Any]]:
    """As ``open_transport``, for a reader and a writer.

    Both are always there: the reader of a write-only descriptor is at its end from the start, the
    writer of a read-only one raises OSError (EBADF) when it is written to.
    """
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await open_transport(make, lambda: protocol, file, **options)
    return reader, stream_writer(transport, protocol, reader, loop)
