"""The contract kit over TUN and TAP interfaces, in a network namespace that each test makes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from network import Namespace, PacketFarEnd, needs_tuntap, own_namespace_unchanged, packet_socket

from fdtransport import TunTapTransport
from fdtransport._core.opening import open_transport
from fdtransport._core.segmentation import NO_HEADER
from fdtransport._core.stream import as_buffer
from fdtransport.testing import Features, MemoryTun, MemoryTunTransport, Promise, packet_promises
from fdtransport.tuntap_settings import Settings, open_interface

#: The beginning of an IPv4 packet, and of an Ethernet frame: what makes one of a record of the kit.
PACKET = b"\x45" + bytes(19)
FRAME = b"\x02\0\0\0\0\x01" + b"\x02\0\0\0\0\x02" + b"\x08\x00"

#: Packets that nobody reads are dropped by the kernel, as of UDP; and there is no other end that can go.
#: It is closed in a thread, and connection_lost comes then.
FEATURES = Features(
    half_close=False, records=True, empty_records=False, waits=False, ends=False, open_in_lost=False
)


class Dressed(TunTapTransport):
    """Takes the records of the kit, which are no packets."""

    __slots__ = ()

    def sendto(self, data: Any, addr: Any = None) -> None:
        before = {"raw": NO_HEADER}.get(self._vnet_hdr or "", b"")
        super().sendto(before + (FRAME if self._device.tap else PACKET) + bytes(as_buffer(data)), addr)


class Stripped(Dressed):
    """Gives the records back as well."""

    __slots__ = ()

    def _reader(self) -> Callable[[], object]:
        return self._read

    def _receive(self) -> tuple[bytes, Any]:
        data, addr = super()._receive()
        return data[len(FRAME) if self._device.tap else len(NO_HEADER) :], addr


#: The options of each kind, the class that makes the kit's records fit, and whether its far end has a frame.
KINDS: dict[str, tuple[dict[str, Any], type[TunTapTransport], bool]] = {
    "tun": ({"mode": "tun"}, Dressed, False),
    "tun-pi": ({"mode": "tun", "pi": True}, Dressed, False),
    "tun-raw": ({"mode": "tun", "vnet_hdr": "raw"}, Stripped, False),
    "tun-split": ({"mode": "tun", "vnet_hdr": "split"}, Dressed, False),
    "tap": ({"mode": "tap"}, Stripped, True),
}


#: Those that have ways of their own; FDTRANSPORT_CONTRACT=all takes all of them.
TESTED = tuple(KINDS) if os.environ.get("FDTRANSPORT_CONTRACT") == "all" else ("tun", "tun-split", "tap")


def features_of(kind: str) -> Features:
    # A packet socket sends no frame without a byte, and there is one on a TAP only.
    return FEATURES.but(empty_records=kind == "tap")


class Maker:
    def __init__(self, kind: str, space: Namespace) -> None:
        self.kind, self.space = kind, space
        self.features = features_of(kind)

    async def __call__(self, factory: Callable[[], Any]) -> tuple[Any, PacketFarEnd]:
        options, make, tap = KINDS[self.kind]
        given = {**options, "netns": self.space, "mtu": 16000, "txqueuelen": 2000, "link_local": False}
        opened = open_interface(Settings(None, 1, given))
        try:
            head = FRAME if tap else PACKET
            far = PacketFarEnd(packet_socket(self.space, opened.device.name), head, both=tap)
            transport, _ = await open_transport(
                make, factory, opened.fd, device=opened.device, link=opened.link,
                vnet_hdr=options.get("vnet_hdr"), offloads=opened.offloads,
            )  # fmt: skip
        finally:
            opened.link.close()
        return transport, far


@pytest.fixture
def space() -> Iterator[Namespace]:
    with own_namespace_unchanged(), Namespace() as space:
        yield space


def _cases() -> list[Any]:
    return [
        pytest.param(kind, promise, id=f"{kind}-{promise}")
        for kind in TESTED
        for promise in packet_promises(features_of(kind))
    ]


@needs_tuntap
@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize(("kind", "promise"), _cases())
async def test_contract(kind: str, promise: Promise, space: Namespace) -> None:
    assert await promise.run(Maker(kind, space))
    await asyncio.sleep(0)


# -- without a device ----------------------------------------------------------------------------------


class DressedMemory(MemoryTunTransport):
    """As `Dressed`."""

    __slots__ = ()

    def sendto(self, data: Any, addr: Any = None) -> None:
        super().sendto(PACKET + bytes(as_buffer(data)), addr)


async def memory_tun(factory: Callable[[], Any]) -> tuple[Any, Any]:
    tun = MemoryTun(
        mtu=16500, transport_class=DressedMemory, far_end=lambda sock: PacketFarEnd(sock, PACKET, both=False)
    )
    try:
        transport, _ = await tun.connect(factory)
    except BaseException:
        tun.close()
        raise
    return transport, tun.far


MEMORY = FEATURES.but(waits=True, open_in_lost=True)


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize("promise", packet_promises(MEMORY), ids=str)
async def test_contract_in_memory(promise: Promise) -> None:
    assert await promise.run(memory_tun, MEMORY)
