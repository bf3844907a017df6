"""The far end: the other side of a transport under test, made of plain system calls.

Nothing of the library is used here, so that a fault of the library cannot hide a fault of the
library. The end steps along with the loop instead of registering with it: a registration would be
one more thing that the loop under test could get wrong (uvloop forgets a descriptor after POLLERR).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Protocol, TypeAlias

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FarEnd", "File", "HasFileno", "collect_ends"]

CHUNK = 256 * 1024
_WAIT = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOBUFS})
# A terminal whose other side has gone says EIO where a pipe says end of file.
_END = frozenset({errno.EIO})


class HasFileno(Protocol):
    """Anything with a descriptor: a file object, a socket."""

    def fileno(self) -> int: ...


File: TypeAlias = "int | HasFileno | tuple[int | HasFileno, int | HasFileno]"

_collected: ContextVar[list[FarEnd] | None] = ContextVar("fdtransport_testing_ends", default=None)


@contextlib.contextmanager
def collect_ends() -> Iterator[list[FarEnd]]:
    """Gather every `FarEnd` that is made inside the block, the newest last."""
    ends: list[FarEnd] = []
    token = _collected.set(ends)
    try:
        yield ends
    finally:
        _collected.reset(token)


class FarEnd:
    """The other side of a transport under test.

    ``file`` is a descriptor, an object with ``fileno()``, or a pair (one to read, one to write). What the
    end can do follows from the access mode of the descriptor. The end owns what it is given: it makes
    it non-blocking and closes it. Every coroutine gives up with TimeoutError after ``timeout`` seconds;
    cancelling one is safe, what it has already moved stays moved.

    Make it *before* the transport: then the kit can leave bytes in the kernel for a transport that is
    only just being made.

    ::

        near, other = socket.socketpair()
        far = FarEnd(other)
        transport, protocol = await connect_fd(factory, near.detach())
        await far.send(b"hello")
    """

    def __init__(self, file: File, *, timeout: float = 5.0) -> None:
        self.timeout = timeout
        reading, writing = file if isinstance(file, tuple) else (file, file)
        # Both names are set before anything can fail, for the sake of __del__.
        self._read_fd = self._write_fd = -1
        self._sock: socket.socket | None = None
        if isinstance(file, tuple):
            self._read_fd = _take(reading)
            self._write_fd = _take(writing)
        else:
            fd = _take(reading)
            mode = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR) if fcntl else os.O_RDWR
            self._read_fd = fd if mode != os.O_WRONLY else -1
            self._write_fd = fd if mode != os.O_RDONLY else -1
        if self._read_fd == self._write_fd and stat.S_ISSOCK(os.fstat(self._read_fd).st_mode):
            self._sock = socket.socket(fileno=self._read_fd)
        #: What the end can do; fixed at the start, it stays readable after ``close``.
        self.can_receive: bool = self._read_fd >= 0
        self.can_send: bool = self._write_fd >= 0
        self.is_socket: bool = self._sock is not None
        self.is_tcp: bool = self._sock is not None and self._sock.family in (socket.AF_INET, socket.AF_INET6)
        self.is_datagram: bool = self._sock is not None and self._sock.type == socket.SOCK_DGRAM
        self.is_record: bool = self._sock is not None and self._sock.type != socket.SOCK_STREAM
        self.can_shutdown_write: bool = self.can_send and (
            self._read_fd != self._write_fd or (self.is_socket and not self.is_datagram)
        )
        self.can_reset: bool = self.is_socket and not self.is_datagram
        for fd in self.filenos():
            os.set_blocking(fd, False)
        ends = _collected.get()
        if ends is not None:
            ends.append(self)

    def __repr__(self) -> str:
        return f"<FarEnd read={self._read_fd} write={self._write_fd}>"

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()

    def __enter__(self) -> FarEnd:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def filenos(self) -> tuple[int, ...]:
        """The descriptors that are still open."""
        return tuple(sorted({self._read_fd, self._write_fd} - {-1}))

    # Now or never

    def send_now(self, data: bytes) -> int:
        """Give the kernel what it takes at once; return how many bytes that were, 0 when it is full.

        :raises OSError: the kernel's, BrokenPipeError for instance.
        :raises ValueError: after ``close``, or when the end cannot send.
        """
        fd = _open(self._write_fd)
        try:
            return self._sock.send(data) if self._sock is not None else os.write(fd, data)
        except OSError as exc:
            if exc.errno in _WAIT:
                return 0
            raise

    def recv_now(self, n: int = CHUNK) -> bytes | None:
        """Take what is there: b"" at the end of the stream, None when there is nothing yet."""
        fd = _open(self._read_fd)
        try:
            return os.read(fd, n)
        except OSError as exc:
            if exc.errno in _WAIT:
                return None
            if exc.errno in _END:
                return b""
            raise

    # In good time

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; on a record descriptor, as one record (also an empty one)."""
        view = memoryview(data).cast("B")
        if self.is_record:
            async for _ in _steps(self.timeout, f"{self!r} to take a record of {len(view)} bytes"):
                if self._send_record(view):
                    return
        sent = 0
        async for _ in _steps(self.timeout, f"{self!r} to take {len(view)} bytes"):
            while sent < len(view):
                n = self.send_now(view[sent : sent + CHUNK])  # type: ignore[arg-type]
                if not n:
                    break
                sent += n
            if sent == len(view):
                return

    def _send_record(self, record: memoryview) -> bool:
        assert self._sock is not None
        try:
            self._sock.send(record)
        except OSError as exc:
            if exc.errno in _WAIT:
                return False
            raise
        return True

    async def recv(self, n: int = CHUNK) -> bytes:
        """Wait for at least one byte and return at most ``n``; b"" is the end of the stream."""
        async for _ in _steps(self.timeout, f"something to arrive at {self!r}"):
            data = self.recv_now(n)
            if data is not None:
                return data
        raise AssertionError("unreachable")

    async def recv_exactly(self, n: int) -> bytes:
        """Wait for ``n`` bytes.

        :raises asyncio.IncompleteReadError: the stream ended before.
        """
        parts: list[bytes] = []
        missing = n
        while missing:
            data = await self.recv(min(missing, CHUNK))
            if not data:
                raise asyncio.IncompleteReadError(b"".join(parts), n)
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    async def recv_to_end(self) -> bytes:
        """Everything up to the end of the stream; a reset ends it too."""
        parts: list[bytes] = []
        with contextlib.suppress(ConnectionResetError):
            while data := await self.recv():
                parts.append(data)
        return b"".join(parts)

    # Going away

    def shutdown_write(self) -> None:
        """Say end of file and go on receiving.

        :raises OSError: ENOTSUP, the kind cannot.
        """
        if not self.can_shutdown_write:
            raise OSError(errno.ENOTSUP, "this end cannot close one direction", repr(self))
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_WR)
        elif self._write_fd >= 0:
            fd, self._write_fd = self._write_fd, -1
            os.close(fd)

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        sock, self._sock = self._sock, None
        fds = self.filenos()
        self._read_fd = self._write_fd = -1
        if sock is not None:
            sock.close()
            return
        for fd in fds:
            os.close(fd)

    def reset(self) -> None:
        """Go away so that the transport sees ECONNRESET.

        On TCP at any time; on a UNIX socket only while bytes of the transport are unread here.

        :raises OSError: ENOTSUP, the kind cannot.
        """
        if self._sock is None or not self.can_reset:
            raise OSError(errno.ENOTSUP, "this end cannot reset", repr(self))
        if self.is_tcp:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


def _take(file: int | HasFileno) -> int:
    """The descriptor alone, so that no other object closes it behind our back."""
    if isinstance(file, int):
        return file
    if isinstance(file, socket.socket):
        return file.detach()
    # A file object cannot let go of its descriptor: keep our own, and let it close its own.
    fd = os.dup(file.fileno())
    close = getattr(file, "close", None)
    if close is not None:
        close()
    return fd


def _open(fd: int) -> int:
    if fd < 0:
        raise ValueError("this end is closed, or does not go in that direction")
    return fd


async def _steps(timeout: float, what: str) -> AsyncIterator[None]:
    """Come back again and again, first every turn of the loop and then every millisecond."""
    deadline = time.monotonic() + timeout
    turn = 0
    while True:
        yield
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        turn += 1
        await asyncio.sleep(0 if turn < 50 else 0.001)
