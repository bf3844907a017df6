"""The TUN without a device has the kernel's rules: the same tests run with a real one, where one can be."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from network import Namespace, needs_tuntap, packet_socket

from fdtransport import connect_tuntap
from fdtransport._core.tun_device import EBADFD
from fdtransport.testing import FarEnd, MemoryTun, RecordingDatagramProtocol
from fdtransport.testing.observe import until

PACKET = b"\x45" + bytes(19)
FRAME = b"\x02\0\0\0\0\x01" + b"\x02\0\0\0\0\x02" + b"\x88\xb5"
Open = Callable[..., Awaitable[tuple[Any, Any, Any]]]


@pytest.fixture(params=["memory", pytest.param("kernel", marks=needs_tuntap)])
async def open_tun(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Opens one: (transport, protocol, function that has the kernel send a packet by it)."""
    closing: list[Any] = []

    async def open_memory(**options: Any) -> Any:
        tun = MemoryTun(**options)
        transport, protocol = await tun.connect(RecordingDatagramProtocol)
        closing.extend((transport.abort, tun.far.close))
        return transport, protocol, tun.send, tun.delete

    async def open_real(**options: Any) -> Any:
        space = Namespace()
        factory = RecordingDatagramProtocol
        transport, protocol = await connect_tuntap(factory, netns=space, link_local=False, **options)
        far = FarEnd(packet_socket(space, transport.name))
        closing.extend((transport.abort, far.close, space.close))
        return transport, protocol, far.send_now, transport.link.delete

    yield open_memory if request.param == "memory" else open_real
    for close in closing:
        close()
    for _ in range(3):
        await asyncio.sleep(0)


def errnos(protocol: Any) -> list[Any]:
    return [error.errno for error in protocol.errors]


async def test_what_is_no_packet_is_refused(open_tun: Open) -> None:
    transport, protocol, *_ = await open_tun()
    for wrong in (b"", b"\x45", b"\0" * 40, b"text of more than 20 bytes"):
        transport.sendto(wrong)
    transport.sendto(PACKET)
    assert errnos(protocol) == [errno.EINVAL] * 4
    assert transport.sent == 1


async def test_many_at_once_are_the_same_as_one_by_one(open_tun: Open) -> None:
    transport, protocol, *_ = await open_tun()
    good = [PACKET + bytes([n]) for n in range(5)]
    bad = [b"\0" * 40, b"\x45", PACKET + bytes(2000)]
    transport.send_packets([good[0], bad[0], bytearray(good[1]), good[2], bad[1], memoryview(good[3])])
    transport.send_packets(iter([bad[2], good[4]]))
    transport.send_packets([])
    assert errnos(protocol) == [errno.EINVAL, errno.EINVAL, errno.EMSGSIZE]
    assert (transport.sent, transport.sent_bytes, transport.refused) == (5, 5 * 21, 3)
    with pytest.raises(TypeError):
        transport.send_packets([good[0], "text"])
    assert transport.sent == 5
    transport.link.set(up=False)
    transport.send_packets(good)
    assert errnos(protocol)[3:] == [errno.EIO] * 5


async def test_many_at_once_queue_when_the_kernel_is_full(tun: MemoryTun) -> None:
    transport, protocol = await tun.connect(RecordingDatagramProtocol)
    transport.set_write_buffer_limits(high=10_000)
    packets = [PACKET + n.to_bytes(2, "big") + bytes(1000) for n in range(1500)]
    transport.send_packets(packets[:1000])
    transport.send_packets(packets[1000:])
    assert protocol.paused
    assert [await tun.recv() for _ in packets] == packets
    await until(lambda: not protocol.paused, "the protocol was resumed")
    assert (transport.sent, protocol.errors) == (1500, [])
    transport.close()
    transport.send_packets(packets)
    await until(lambda: protocol.lost, "it was lost")


async def test_what_is_no_frame_is_refused(open_tun: Open) -> None:
    transport, protocol, *_ = await open_tun(mode="tap")
    transport.send_packets([])
    transport.sendto(FRAME[:13])
    transport.sendto(FRAME + b"text")
    assert errnos(protocol) == [errno.EINVAL]
    assert transport.sent == 1


async def test_more_than_the_mtu_is_refused(open_tun: Open) -> None:
    transport, protocol, *_ = await open_tun(mtu=1400)
    transport.sendto(PACKET + bytes(1381))
    transport.sendto(PACKET + bytes(1380))
    assert errnos(protocol) == [errno.EMSGSIZE]
    transport.link.set(mtu=1500)
    transport.sendto(PACKET + bytes(1381))
    assert errnos(protocol) == [errno.EMSGSIZE]


async def test_while_it_is_down_nothing_passes(open_tun: Open) -> None:
    transport, protocol, *_ = await open_tun()
    transport.link.set(up=False)
    transport.sendto(PACKET)
    assert errnos(protocol) == [errno.EIO]
    transport.link.set(up=True)
    transport.sendto(PACKET)
    assert (errnos(protocol), transport.sent, protocol.lost) == ([errno.EIO], 1, False)


async def test_what_is_not_read_is_dropped_beyond_the_queue(open_tun: Open) -> None:
    transport, protocol, send, _ = await open_tun(txqueuelen=50)
    transport.pause_reading()
    for number in range(80):
        try:
            send(PACKET + bytes([number]))
        except OSError as exc:
            assert exc.errno == errno.ENOBUFS  # noqa: PT017 - a packet socket is told, others are not
    assert 25 <= transport.missed <= 30
    transport.resume_reading()
    await until(lambda: len(protocol.records) == 80 - transport.missed, "the others came")
    assert protocol.records[:50] == [PACKET + bytes([n]) for n in range(50)]


@pytest.mark.parametrize("paused", [False, True])
async def test_deleting_it_is_the_end(open_tun: Open, paused: bool) -> None:
    transport, protocol, _, delete = await open_tun()
    if paused:
        transport.pause_reading()
    await asyncio.sleep(0)
    delete()
    await until(lambda: protocol.lost, "the loss was told")
    assert protocol.reason.errno == EBADFD
    assert protocol.count("lost") == 1


async def test_one_queue_cannot_step_out(open_tun: Open) -> None:
    transport, *_ = await open_tun()
    for change in (transport.detach_queue, transport.attach_queue):
        with pytest.raises(OSError, match="Invalid argument") as told:
            change()
        assert told.value.errno == errno.EINVAL


async def test_counters_and_addresses(open_tun: Open) -> None:
    transport, protocol, send, _ = await open_tun(addresses=["10.9.0.1/24"])
    transport.sendto(PACKET)
    send(PACKET + b"one")
    await until(lambda: protocol.records, "it came")
    told = transport.link.state().statistics
    assert (told["rx_packets"], told["rx_bytes"]) == (transport.sent, transport.sent_bytes) == (1, 20)
    assert (told["tx_packets"], told["tx_bytes"]) == (transport.received, transport.received_bytes) == (1, 23)
    transport.link.add_address("10.8.0.1/24")
    assert [str(a) for a in transport.get_extra_info("addresses")] == ["10.9.0.1/24", "10.8.0.1/24"]
    transport.link.remove_address("10.9.0.1/24")
    with pytest.raises(OSError, match="Cannot assign"):
        transport.link.remove_address("10.9.0.1/24")


@pytest.fixture
def tun() -> Iterator[MemoryTun]:
    tun = MemoryTun()
    yield tun
    tun.close()


async def test_in_memory_what_is_sent_can_be_looked_at(tun: MemoryTun) -> None:
    transport, protocol = await tun.connect(RecordingDatagramProtocol)
    transport.sendto(PACKET)
    assert await tun.recv() == PACKET
    assert tun.recv_now() is None
    assert tun.send(PACKET)
    await until(lambda: protocol.records == [PACKET], "it came")
    transport.set_carrier(False)
    assert not tun.send(PACKET)
    transport.abort()
    await until(lambda: protocol.lost, "it was lost")


@pytest.mark.parametrize("size", [0, 1501])
async def test_in_memory_no_kernel_sends_what_no_kernel_would(tun: MemoryTun, size: int) -> None:
    transport, protocol = await tun.connect(RecordingDatagramProtocol)
    with pytest.raises(ValueError, match="a packet has 1 to 1500 bytes here"):
        tun.send(bytes(size))
    assert tun.send(PACKET)
    await until(lambda: protocol.records == [PACKET], "it came")
    transport.abort()
    await until(lambda: protocol.lost, "it was lost")


async def test_in_memory_a_protocol_is_told_of_changes(tun: MemoryTun) -> None:
    class Watching(RecordingDatagramProtocol):
        def link_changed(self, state: Any) -> None:
            self.events.append(("link", state.up))

    transport, protocol = await tun.connect(Watching)
    tun.link.set(up=False)
    assert protocol.events[-1] == ("link", False)
    transport.abort()
    await until(lambda: protocol.lost, "it was lost")
