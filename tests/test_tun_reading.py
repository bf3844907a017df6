"""Lists of packets: what they may hold, who they go to, and what they leave behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from garbage import nothing_for_the_collector
from network import Namespace, needs_tuntap

from fdtransport import connect_tuntap
from fdtransport.testing import MemoryTun
from fdtransport.testing.observe import until

PACKET = b"\x45" + bytes(19)


def packets(count: int) -> list[bytes]:
    return [PACKET + n.to_bytes(2, "big") for n in range(count)]


class Lists(asyncio.DatagramProtocol):
    """Keeps the lists as they come."""

    def __init__(self, then: Callable[[Lists], object] = lambda _self: None) -> None:
        self.lists: list[list[bytes]] = []
        self.lost: list[Exception | None] = []
        self.then = then

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        self.lists.append([data for data, _ in records])
        self.then(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    @property
    def packets(self) -> list[bytes]:
        return [data for each in self.lists for data in each]


class OneByOne(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.packets.append(data)


@pytest.fixture
def tun() -> Iterator[MemoryTun]:
    tun = MemoryTun()
    yield tun
    tun.close()


async def test_a_protocol_that_comes_between_two_lists_is_called_in_its_own_way(tun: MemoryTun) -> None:
    second = OneByOne()

    def switch(protocol: Lists) -> None:
        if len(protocol.lists[-1]) == 64:  # behind a full one the next would follow at once
            protocol.transport.set_protocol(second)

    transport, first = await tun.connect(lambda: Lists(switch))
    transport.pause_reading()
    wanted = packets(300)
    assert all(tun.send(packet) for packet in wanted)
    transport.resume_reading()
    await until(lambda: len(first.packets) + len(second.packets) == 300, "all of them came")
    assert first.packets + second.packets == wanted
    assert len(first.lists[-1]) == 64
    assert not transport.is_closing()
    transport.abort()


@pytest.mark.parametrize("how", ["pause_reading", "close"])
async def test_after_a_pause_or_the_end_in_a_list_no_other_follows(tun: MemoryTun, how: str) -> None:
    def end(protocol: Lists) -> None:
        if len(protocol.lists[-1]) == 64:
            getattr(protocol.transport, how)()

    transport, protocol = await tun.connect(lambda: Lists(end))
    transport.pause_reading()
    wanted = packets(300)
    assert all(tun.send(packet) for packet in wanted)
    transport.resume_reading()
    await until(lambda: [each for each in protocol.lists if len(each) == 64], "a full list came")
    for _ in range(10):
        await asyncio.sleep(0)
    assert [len(each) for each in protocol.lists].count(64) == 1
    assert protocol.packets == wanted[: len(protocol.packets)]
    transport.abort()
    await until(lambda: protocol.lost, "it was lost")


async def test_the_end_of_a_list_leaves_nothing_to_the_collector(tun: MemoryTun) -> None:
    transport, protocol = await tun.connect(Lists)
    with nothing_for_the_collector(BlockingIOError):
        for count in (1, 10, 100):
            assert all(tun.send(packet) for packet in packets(count))
            await until(lambda n=count: len(protocol.packets) == n, "all of them came")  # type: ignore[misc]
            protocol.lists.clear()
        for _ in range(10):
            await asyncio.sleep(0)
    transport.abort()


@needs_tuntap
@pytest.mark.parametrize("vnet_hdr", [None, "raw", "split"])
async def test_no_list_goes_on_beyond_256_kib(vnet_hdr: Any) -> None:
    options: dict[str, Any] = {"addresses": "10.9.0.1/24", "link_local": False, "vnet_hdr": vnet_hdr}
    with Namespace() as space:
        transport, protocol = await connect_tuntap(Lists, netns=space, mtu=65535, **options)
        transport.pause_reading()
        with space.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_SNDBUFFORCE", 32), 64 << 20)
            for size in (30_000, 100):
                for _ in range(100):
                    sock.sendto(bytes(size), ("10.9.0.2", 9))
        transport.resume_reading()
        await until(lambda: len(protocol.packets) == 200, "all of them came")
        assert max(sum(map(len, each[:-1])) for each in protocol.lists) < 256 * 1024
        assert max(map(len, protocol.lists)) <= 64
        assert transport.received_bytes == sum(map(len, protocol.packets))
        await transport.aclose()
