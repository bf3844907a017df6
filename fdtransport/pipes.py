"""Pipes, and whatever else can be one half of one: FIFOs, sockets, terminals, character devices.

``connect_read_pipe`` and ``connect_write_pipe`` are asyncio's, as module functions. What they are given
is used in that one direction only, also when it could do both.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, cast, overload

from ._core import syscalls
from ._core.handle import FileLike
from ._core.opening import open_transport
from ._core.packet import PacketTransport
from ._core.stream import BytesLike, StreamTransport
from .errors import UnpollableFileError
from .packets import PacketStream, open_packets
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .writer import StreamWriter

__all__ = ["PacketPipeTransport", "PipeTransport", "connect_read_pipe", "connect_write_pipe", "open_pipe"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


class PipeTransport(StreamTransport):
    """One or both directions of a pipe, or of something that is used like one.

    *file*: ``(file, None)`` to read, ``(None, file)`` to write, or as with `StreamTransport`.
    *pipe_size*: bytes that the pipe is to hold; the kernel rounds up, and leaves it as it is when that
    is more than the user may have (pipe(7)). Extra info: ``pipe`` (the file as it was given),
    ``pipe_size`` (the real one), ``fd``.

    :raises UnpollableFileError: a regular file or a block device.
    :raises ValueError: *pipe_size* for what is no pipe.
    """

    __slots__ = ("_wanted_size",)

    def __init__(self, *args: Any, pipe_size: int | None = None, **kwargs: Any) -> None:
        self._wanted_size = pipe_size
        super().__init__(*args, **kwargs)

    def _check_kind(self) -> None:
        for handle in (self._reading_handle, self._writing_handle):
            if handle is None:
                continue
            mode = syscalls.fstat(handle.fd).st_mode
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                raise UnpollableFileError(
                    f"{handle.file!r} is {syscalls.kind(mode)}, not a pipe; connect_fd and open_fd take it"
                )
            if self._wanted_size is not None:
                _set_size(handle.fd, mode, self._wanted_size)

    def _find_extra(self, name: str) -> Any:
        handle = self._reading_handle or self._writing_handle
        if handle is not None and name == "pipe":
            return handle.file
        if handle is not None and name == "pipe_size" and stat.S_ISFIFO(syscalls.fstat(handle.fd).st_mode):
            return syscalls.pipe_size(handle.fd)
        return None


def _set_size(fd: int, mode: int, size: int) -> None:
    if not stat.S_ISFIFO(mode):
        raise ValueError(f"pipe_size ({size!r}) is for a pipe, and descriptor {fd} is {syscalls.kind(mode)}")
    try:
        syscalls.set_pipe_size(fd, size)
    except PermissionError:
        pass  # over the user's share: it works as it is


class PacketPipeTransport(PacketTransport):
    """A pipe that keeps the boundaries of what is written to it (O_DIRECT of pipe(2)).

    A record has 1 to 4096 bytes (PIPE_BUF); another one goes to ``error_received``.
    """

    __slots__ = ()

    _LARGEST: ClassVar[int] = 4096  # PIPE_BUF of pipe(7)

    def _send(self, data: BytesLike, addr: Any) -> None:
        if not 0 < len(data) <= self._LARGEST:
            # The kernel would cut it into several records, or make none of it.
            raise OSError(errno.EMSGSIZE, f"a record of {len(data)} bytes; a pipe has 1 to {self._LARGEST}")
        super()._send(data, addr)


async def connect_read_pipe(
    protocol_factory: Callable[[], P], pipe: FileLike, *, pipe_size: int | None = None
) -> tuple[PipeTransport, P]:
    """Read from a pipe: ``loop.connect_read_pipe`` for every loop.

    *pipe*: a file object or a descriptor: a pipe, FIFO, socket, terminal or other character device. It
    is taken over: made non-blocking, and closed at the end. *pipe_size*: see `PipeTransport`. Returns
    ``(transport, protocol)`` after ``connection_made``. Cancelling is safe.

    :raises UnpollableFileError: a regular file (``connect_fd`` takes those). It is a ValueError too.
    :raises OSError: closed, a directory, or write-only (EBADF); then it is the caller's, as it was.
    :raises DescriptorInUseError: it is under a transport already.

    ::

        read, write = os.pipe()
        transport, protocol = await connect_read_pipe(asyncio.Protocol, read)

    See pipe(7). For this process's own standard input there is ``connect_stdio``.
    """
    return await open_transport(PipeTransport, protocol_factory, (pipe, None), pipe_size=pipe_size)


async def connect_write_pipe(
    protocol_factory: Callable[[], P], pipe: FileLike, *, pipe_size: int | None = None
) -> tuple[PipeTransport, P]:
    """Write to a pipe: ``loop.connect_write_pipe`` for every loop.

    As ``connect_read_pipe``. What comes in on a *pipe* that could be read as well (a terminal, a
    socket) is left there. The loss is told when the reader goes, also while nothing is written.

    :raises OSError: also when it is read-only (EBADF).
    """
    return await open_transport(PipeTransport, protocol_factory, (None, pipe), pipe_size=pipe_size)


@overload
async def open_pipe(
    *, pipe_size: int | None = None, packet: Literal[False] = False, limit: int | None = None
) -> tuple[StreamReader, StreamWriter[PipeTransport]]: ...
@overload
async def open_pipe(
    *, pipe_size: int | None = None, packet: Literal[True], limit: int | None = None
) -> tuple[PacketStream, PacketStream]: ...
async def open_pipe(
    *, pipe_size: int | None = None, packet: bool = False, limit: int | None = None
) -> tuple[Any, Any]:
    """A new pipe: ``(reader, writer)``, each on its own end and with its own life.

    *pipe_size*: bytes that it is to hold; see `PipeTransport`. *limit*: bytes that ``readline`` and
    ``readuntil`` accept at most (64 KiB). *packet*: keep the boundaries of what is written; the two
    ends are then `PacketStream`, and *limit* is the records that may wait (256). Cancelling is safe.

    :raises OSError: no descriptors are left, or *pipe_size* is none (EINVAL).

    ::

        reader, writer = await open_pipe()
        writer.write(b"one line\\n")
        line = await reader.readline()
        writer.close()

    Closing the writer ends the reader, once it has read what is left. See pipe(7).
    """
    if packet and not hasattr(os, "O_DIRECT"):
        raise OSError(errno.ENOSYS, "packet pipes are not available on this platform")
    open_end = _open_packet_end if packet else _open_stream_end
    reading, writing = syscalls.pipe(os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECT if packet else 0))
    try:
        if pipe_size is not None:
            _set_size(reading, stat.S_IFIFO, pipe_size)
        source, transport = await open_end((reading, None), limit)
    except BaseException:
        syscalls.close(reading)
        syscalls.close(writing)
        raise
    try:
        sink, _ = await open_end((None, writing), limit)
    except BaseException:
        transport.abort()
        syscalls.close(writing)
        raise
    return source, sink


_Half = tuple[int, None] | tuple[None, int]


async def _open_stream_end(half: _Half, limit: int | None) -> tuple[Any, PipeTransport]:
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit or DEFAULT_LIMIT, loop)
    transport, _ = await open_transport(PipeTransport, lambda: protocol, half)
    return (reader if half[1] is None else stream_writer(transport, protocol, reader, loop)), transport


async def _open_packet_end(half: _Half, limit: int | None) -> tuple[PacketStream, PacketPipeTransport]:
    stream = await open_packets(PacketPipeTransport, half, limit=limit or 256)
    return stream, cast(PacketPipeTransport, stream.transport)
