"""Any descriptor that somebody holds: a byte stream, a pair of them, or records."""

from __future__ import annotations

import asyncio
import operator
import socket
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ._core.handle import FileLike
from ._core.opening import open_transport
from ._core.packet import PacketTransport
from ._core.socket_object import Borrowed
from ._core.stream import StreamTransport
from .datagrams import DatagramTransport
from .packets import PacketStream, open_packets
from .streams import DEFAULT_LIMIT, StreamReader, open_streams
from .writer import StreamWriter

__all__ = ["connect_fd", "connect_packet_fd", "open_fd", "open_packet_fd"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def connect_fd(
    protocol_factory: Callable[[], P],
    fd: FileLike | tuple[FileLike, FileLike],
    *,
    cork: int | None = None,
) -> tuple[StreamTransport, P]:
    """Put a transport on a descriptor that carries bytes, or on a pair (read, write) of them.

    *fd*: an int or an object with ``fileno()``: a pipe, a terminal, a stream socket, a device, a
    regular file... It is taken over: closed when the transport ends. *cork*: see
    ``StreamTransport.cork``. Returns ``(transport, protocol)`` after ``connection_made``.

    :raises TypeError: *fd* is no descriptor.
    :raises OSError: it is closed, a directory, or refused by the poller.
    :raises ValueError: it is a socket that listens.
    :raises DescriptorInUseError: it is under a transport already.

    When this raises, and when it is cancelled, the descriptor is the caller's, open and as it was.

    ::

        read, write = os.pipe()
        transport, protocol = await connect_fd(asyncio.Protocol, read)
    """
    _check_cork(cork)
    transport, protocol = await open_transport(StreamTransport, protocol_factory, fd)
    if cork is not None:
        transport.cork = cork
    return transport, protocol


async def open_fd(
    fd: FileLike | tuple[FileLike, FileLike], *, limit: int = DEFAULT_LIMIT, cork: int | None = None
) -> tuple[StreamReader, StreamWriter[StreamTransport]]:
    """A reader and a writer on a descriptor that carries bytes, or on a pair (read, write) of them.

    As ``connect_fd``. *limit*: bytes that ``readline`` and ``readuntil`` accept at most. The reader
    of a write-only descriptor is at its end; the writer of a read-only one raises OSError (EBADF).

    ::

        reader, writer = await open_fd((read, write))
        line = await reader.readline()
    """
    _check_cork(cork)
    reader, writer = await open_streams(StreamTransport, fd, limit=limit)
    if cork is not None:
        writer.transport.cork = cork
    return reader, writer


def _check_cork(cork: int | None) -> None:
    """Raise before the descriptor is taken over."""
    if cork is not None and operator.index(cork) < 0:
        raise ValueError(f"cork ({cork!r}) must be >= 0")


async def connect_packet_fd(
    protocol_factory: Callable[[], P], fd: FileLike, *, max_size: int = 64 * 1024
) -> tuple[PacketTransport, P]:
    """Put a transport on a descriptor that carries records: one read is one ``datagram_received``.

    *max_size*: the largest record in bytes; the kernel cuts longer ones (eventfd and timerfd give 8,
    a network interface its MTU). Ownership and errors as with ``connect_fd``. A socket, of whatever
    family, gets a `DatagramTransport`, with addresses, which does not cut.

    :raises UnpollableFileError: the descriptor is a regular file.
    """
    make = partial(_record_class(fd), max_size=max_size)
    return await open_transport(make, protocol_factory, fd)


async def open_packet_fd(fd: FileLike, *, max_size: int = 64 * 1024, limit: int = 256) -> PacketStream:
    """A `PacketStream` (``recv``, ``send``, ``async for``, ``drain``) on a descriptor with records.

    As ``connect_packet_fd``. *limit*: records that wait for ``recv`` before the kernel's own queue
    has to hold them.
    """
    return await open_packets(partial(_record_class(fd), max_size=max_size), fd, limit=limit)


def _record_class(fd: FileLike) -> type[PacketTransport]:
    if isinstance(fd, tuple):
        return PacketTransport
    try:
        sock = fd if isinstance(fd, socket.socket) else Borrowed.of(fd)
    except (OSError, OverflowError, ValueError):
        return PacketTransport  # no socket; or no open descriptor, which it tells
    return PacketTransport if sock.type == socket.SOCK_STREAM else DatagramTransport
