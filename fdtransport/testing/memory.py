"""Pairs of transport and far end without any device: for the contract kit, and for tests of protocols.

::

    async def test_my_protocol():
        (client, client_protocol), (server, _) = await memory_pair(MyProtocol, RecordingProtocol)

The memory is the kernel's: socket pairs and pipes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from .ends import FarEnd
from .promises import Features

__all__ = [
    "Connect",
    "PairMaker",
    "fd_pair_maker",
    "memory_pair",
    "packet_pair_maker",
    "read_pipe_maker",
    "socket_pair_maker",
    "tcp_maker",
    "write_pipe_maker",
]

A = TypeVar("A", bound=asyncio.BaseProtocol)
B = TypeVar("B", bound=asyncio.BaseProtocol)

#: ``connect(protocol_factory, file)`` -> (transport, protocol), as ``fdtransport.connect_fd`` has it.
Connect: TypeAlias = Callable[[Callable[[], Any], Any], Awaitable[tuple[Any, Any]]]


class PairMaker:
    """A maker for the contract kit: ``await maker(protocol_factory)`` gives (transport, far end).

    ``open_files`` gives what ``connect`` is to take over, and what the far end owns. ``features`` are those
    of the kind; tests can choose the promises by them before anything is made. When ``connect`` raises
    or is cancelled, the maker closes both.
    """

    def __init__(
        self, open_files: Callable[[], tuple[Any, Any]], features: Features, connect: Connect | None = None
    ) -> None:
        self.open_files: Callable[[], tuple[Any, Any]] = open_files
        self.features: Features = features.but(tidy_maker=True)
        self.connect: Connect | None = connect

    async def __call__(self, protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
        connect = self.connect if self.connect is not None else _connect_fd()
        file, other = self.open_files()
        far = FarEnd(other)
        try:
            transport, _ = await connect(protocol_factory, file)
        except BaseException:
            far.close()
            for part in file if isinstance(file, tuple) else (file,):
                os.close(part) if isinstance(part, int) else part.close()
            raise
        return transport, far


def _connect_fd() -> Connect:
    from ..fd import connect_fd

    return connect_fd


def _connect_packet_fd() -> Connect:
    from ..fd import connect_packet_fd

    return connect_packet_fd


_GIVEN = Features(given_blocking=True)


def socket_pair_maker(connect: Connect | None = None, *, drop_in: bool = False) -> PairMaker:
    """Two UNIX stream sockets, blocking as they come. ``connect`` is given the descriptor.

    ``drop_in``: what ``connect`` makes stands in for asyncio's socket transports, and is held to that.
    """

    def open_files() -> tuple[int, socket.socket]:
        near, other = socket.socketpair()
        return near.detach(), other

    return PairMaker(open_files, _GIVEN.but(resets=True, socket=drop_in), connect)


def tcp_maker(connect: Connect | None = None, *, drop_in: bool = False) -> PairMaker:
    """Two TCP sockets over the loopback interface, blocking as they come; else as ``socket_pair_maker``."""

    def open_files() -> tuple[int, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            other, _ = listener.accept()
        return near.detach(), other

    return PairMaker(open_files, _GIVEN.but(resets=True, tcp=True, socket=drop_in), connect)


def fd_pair_maker(connect: Connect | None = None) -> PairMaker:
    """Two pipes: the transport has a read descriptor and a write descriptor."""

    def open_files() -> tuple[tuple[int, int], tuple[int, int]]:
        near_read, far_write = os.pipe()
        far_read, near_write = os.pipe()
        return (near_read, near_write), (far_read, far_write)

    return PairMaker(open_files, _GIVEN, connect)


def read_pipe_maker(connect: Connect | None = None) -> PairMaker:
    """A pipe that the transport reads."""
    return PairMaker(os.pipe, _GIVEN.but(writable=False, half_close=False), connect)


def write_pipe_maker(connect: Connect | None = None) -> PairMaker:
    """A pipe that the transport writes."""

    def open_files() -> tuple[int, int]:
        reading, writing = os.pipe()
        return writing, reading

    return PairMaker(open_files, _GIVEN.but(readable=False, half_close=False), connect)


def packet_pair_maker(connect: Connect | None = None, kind: int = socket.SOCK_SEQPACKET) -> PairMaker:
    """Two UNIX sockets that keep the boundaries of records: SOCK_SEQPACKET or SOCK_DGRAM."""

    def open_files() -> tuple[int, socket.socket]:
        near, other = socket.socketpair(socket.AF_UNIX, kind)
        return near.detach(), other

    features = _GIVEN.but(
        half_close=kind != socket.SOCK_DGRAM, records=True, empty_records=kind == socket.SOCK_DGRAM
    )
    return PairMaker(open_files, features, connect if connect is not None else _late_packet_connect)


async def _late_packet_connect(protocol_factory: Callable[[], Any], file: Any) -> tuple[Any, Any]:
    return await _connect_packet_fd()(protocol_factory, file)


async def memory_pair(
    protocol_factory_a: Callable[[], A], protocol_factory_b: Callable[[], B]
) -> tuple[tuple[Any, A], tuple[Any, B]]:
    """Two connected transports of this library: ((transport, protocol), (transport, protocol)).

    What one writes, the other receives, as over a UNIX socket. What a factory raises comes out, and
    leaves nothing behind; cancelling is safe.
    """
    connect = _connect_fd()
    near, other = socket.socketpair()
    with near, other:
        first = await connect(protocol_factory_a, near.fileno())
        near.detach()
        try:
            second = await connect(protocol_factory_b, other.fileno())
        except BaseException:
            first[0].abort()
            raise
        other.detach()
    return first, second
