"""Pairs for the contract kit and the sweep, by every way to get a datagram transport."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import fdtransport
from fdtransport.testing import FarEnd, Features

Factory = Callable[[], Any]
Pair = tuple[Any, FarEnd]

UDP = Features(half_close=False, records=True, empty_records=True, waits=False)
DATAGRAM = Features(half_close=False, records=True, empty_records=True)
SEQPACKET = Features(records=True)
#: Room for what the kit sends before anybody reads.
ROOM = 8 << 20

_numbers = itertools.count()


def roomy(sock: socket.socket) -> socket.socket:
    """Where the system allows it, a receive buffer that holds everything."""
    force = getattr(socket, "SO_RCVBUFFORCE", 33)
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, ROOM)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    return sock


def udp_pair(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Two UDP sockets that are connected to each other."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    near, far = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
    near.bind((host, 0))
    far.bind((host, 0))
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    return roomy(near), roomy(far)


async def _given(factory: Factory, near: socket.socket, other: socket.socket) -> Pair:
    far = FarEnd(other)
    try:
        transport, _ = await fdtransport.create_datagram_endpoint(factory, sock=near)
    except BaseException:
        near.close()
        far.close()
        raise
    return transport, far


async def given_udp(factory: Factory, _directory: Path) -> Pair:
    return await _given(factory, *udp_pair())


async def given_datagram(factory: Factory, _directory: Path) -> Pair:
    return await _given(factory, *socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))


async def given_seqpacket(factory: Factory, _directory: Path) -> Pair:
    return await _given(factory, *socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))


async def udp6(factory: Factory, _directory: Path) -> Pair:
    near, other = udp_pair(socket.AF_INET6)
    here, there = near.getsockname()[:2], other.getsockname()[:2]
    near.close()
    far = FarEnd(other)
    try:
        transport, _ = await fdtransport.create_datagram_endpoint(factory, here, there)
    except BaseException:
        far.close()
        raise
    roomy(transport.get_extra_info("socket")._sock)
    return transport, far


async def datagram_paths(factory: Factory, directory: Path) -> Pair:
    """The far end is connected back to the transport's path as soon as it is bound."""
    here, there = (str(directory / f"{next(_numbers)}{side}") for side in ("near", "far"))
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    other.bind(there)
    far: list[FarEnd] = []

    def connected() -> Any:
        other.connect(here)
        far.append(FarEnd(other))
        return factory()

    try:
        transport, _ = await fdtransport.create_datagram_endpoint(
            connected, here, there, family=socket.AF_UNIX
        )
    except BaseException:
        for end in far:
            end.close()
        other.close()
        raise
    return transport, far[0]


async def dialled_seqpacket(factory: Factory, directory: Path) -> Pair:
    path = str(directory / str(next(_numbers)))
    far: list[FarEnd] = []

    def accepted() -> Any:
        far.append(FarEnd(listener.accept()[0]))
        return factory()

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        try:
            transport, _ = await fdtransport.create_datagram_endpoint(
                accepted, remote_addr=path, family=socket.AF_UNIX, type=socket.SOCK_SEQPACKET
            )
        except BaseException:
            for end in far:
                end.close()
            raise
    return transport, far[0]


class Maker:
    """A maker for the kit, from a function of a protocol factory and a directory."""

    def __init__(
        self, make: Callable[[Factory, Path], Awaitable[Pair]], features: Features, directory: Path
    ) -> None:
        self._make = make
        self._directory = directory
        self.features = features

    async def __call__(self, factory: Factory) -> Pair:
        return await self._make(factory, self._directory)


GIVEN = {"given_blocking": True}
KINDS: dict[str, tuple[Callable[[Factory, Path], Awaitable[Pair]], Features]] = {
    "given-udp": (given_udp, UDP.but(**GIVEN)),
    "given-datagram": (given_datagram, DATAGRAM.but(**GIVEN)),
    "given-seqpacket": (given_seqpacket, SEQPACKET.but(**GIVEN)),
    "udp6": (udp6, UDP),
    "datagram-paths": (datagram_paths, DATAGRAM),
    "dialled-seqpacket": (dialled_seqpacket, SEQPACKET),
}
