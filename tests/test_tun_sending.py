"""The short way of a packet to the kernel: it is open only as long as the long one would end the same."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from garbage import nothing_for_the_collector

from fdtransport._core.packet import PacketTransport
from fdtransport.testing import MemoryTun, RecordingDatagramProtocol
from fdtransport.testing.observe import until

PACKET = b"\x45" + bytes(19)


@pytest.fixture
def tun() -> Iterator[MemoryTun]:
    tun = MemoryTun()
    yield tun
    tun.close()


async def test_the_first_packet_opens_it_for_the_others(
    tun: MemoryTun, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_way: list[Any] = []
    whole = PacketTransport.sendto

    def sendto(self: Any, data: Any, addr: Any = None) -> None:
        long_way.append(data)
        whole(self, data, addr)

    monkeypatch.setattr(PacketTransport, "sendto", sendto)
    addresses = []

    class Noting(RecordingDatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            addresses.append(addr)

    transport, _ = await tun.connect(Noting)
    assert tun.send(PACKET)
    await until(lambda: addresses, "a packet came")
    (address,) = addresses
    sent = [PACKET + bytes([n]) for n in range(100)]
    for packet in sent:
        transport.sendto(packet, address if packet[-1] % 2 else None)
    transport.send_packets(sent)
    assert [await tun.recv() for _ in range(200)] == sent * 2
    assert long_way == sent[:1]
    assert (transport.sent, transport.sent_bytes) == (200, 200 * 21)
    transport.abort()


async def test_order_is_kept_while_it_opens_and_closes(tun: MemoryTun) -> None:
    transport, protocol = await tun.connect(RecordingDatagramProtocol)
    transport.set_write_buffer_limits(high=20_000)
    wanted: list[bytes] = []
    got: list[bytes | None] = []

    def send() -> None:
        wanted.append(PACKET + len(wanted).to_bytes(4, "big") + bytes(1000))
        transport.sendto(wanted[-1])

    for _ in range(3):
        while not protocol.paused:
            send()
        for _ in range(5):  # the kernel could take more at once, and others come first
            got.append(tun.recv_now())
            send()
        while protocol.paused:
            got.append(await tun.recv())
    while len(got) < len(wanted):
        got.append(await tun.recv())
    assert got == wanted
    assert (transport.sent, protocol.errors) == (len(wanted), [])
    transport.abort()


@pytest.mark.parametrize("how", ["abort", "close", "detach"])
async def test_it_is_closed_when_the_transport_has_ended(tun: MemoryTun, how: str) -> None:
    transport, protocol = await tun.connect(RecordingDatagramProtocol)
    transport.sendto(PACKET)
    transport.sendto(PACKET)
    kept = getattr(transport, how)()
    transport.sendto(PACKET)
    transport.send_packets([PACKET, PACKET])
    await until(lambda: protocol.lost, "it was lost")
    transport.sendto(PACKET)
    assert transport.sent == 2
    assert [await tun.recv(), await tun.recv()] == [PACKET] * 2
    assert tun.recv_now() is None
    if kept is not None:
        kept.file.close()


@pytest.mark.parametrize("mode", ["tun", "tap"])
async def test_sizes_that_do_not_fit_are_refused_while_it_is_open(mode: str) -> None:
    tun = MemoryTun(mode=mode)
    transport, protocol = await tun.connect(RecordingDatagramProtocol)
    good = PACKET + bytes(1000)
    for _ in range(2):
        transport.sendto(good)
    transport.sendto(b"")
    transport.sendto(good[:13])
    transport.send_packets([good, good[:13], good])
    tun.link.set(mtu=600)
    transport.sendto(good)
    transport.send_packets([PACKET, good])
    tun.link.set(mtu=1400)
    transport.sendto(good)
    refused = [errno.EINVAL] * 3 + [errno.EMSGSIZE] * 2
    assert [error.errno for error in protocol.errors] == refused  # type: ignore[attr-defined]
    assert (transport.sent, transport.refused) == (6, 5)
    transport.abort()
    tun.close()


async def test_a_full_kernel_leaves_nothing_to_the_collector(tun: MemoryTun) -> None:
    transport, _ = await tun.connect(RecordingDatagramProtocol)
    many = [PACKET + bytes(1000)] * 1000
    with nothing_for_the_collector(BlockingIOError):
        transport.send_packets(many)
        assert transport.get_write_buffer_size()
    transport.abort()


async def test_what_is_left_of_a_list_when_the_interface_goes_is_refused_at_once(
    tun: MemoryTun, caplog: pytest.LogCaptureFixture
) -> None:
    transport, protocol = await tun.connect(RecordingDatagramProtocol)
    transport.sendto(PACKET)
    tun.delete()
    transport.send_packets([PACKET] * 1000)
    transport.send_packets([PACKET] * 1000)
    await until(lambda: protocol.lost, "it was lost")
    assert transport.sent == 1
    assert len(caplog.records) < 10
