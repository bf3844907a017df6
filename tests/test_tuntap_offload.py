"""Large packets and unfinished checksums, between the TCP of two namespaces and this library."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from network import Forward, Namespace, needs_tuntap, own_namespace_unchanged, snmp, udp, udp_socket

from fdtransport import TunTapTransport, connect_tuntap
from fdtransport._core import syscalls
from fdtransport._core.segmentation import GSO_NONE, GSO_TCPV4, HEADER_SIZE, NO_HEADER, OffloadHeader
from fdtransport._core.tun_device import OFFLOADS
from fdtransport.testing import RecordingDatagramProtocol
from fdtransport.testing.observe import until

pytestmark = needs_tuntap

#: Seconds of iperf3.
IPERF_SECONDS = os.environ.get("FDTRANSPORT_IPERF", "1")
#: MiB of a transfer: FDTRANSPORT_TRANSFER=1024 for a gigabyte.
TRANSFER = int(os.environ.get("FDTRANSPORT_TRANSFER", "8"))


class Forwarding(Forward, asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.kinds: set[int] = set()
        self.longest = 0
        self.errors: list[Exception] = []

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        self.longest = max(self.longest, *(len(data) for data, _ in records))
        super().packets_received(records)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)


@pytest.fixture
def spaces() -> Iterator[tuple[Namespace, Namespace]]:
    with own_namespace_unchanged(), Namespace() as near, Namespace() as far:
        yield near, far


async def joined(
    spaces: tuple[Namespace, Namespace], **options: Any
) -> tuple[tuple[TunTapTransport, Forwarding], tuple[TunTapTransport, Forwarding]]:
    """A TUN in each of the namespaces; what one gets, the other is given."""
    near = await connect_tuntap(
        Forwarding, "wire", netns=spaces[0], addresses=["10.9.0.1/24", "fd00::1/64"], **options
    )
    far = await connect_tuntap(
        Forwarding, "wire", netns=spaces[1], addresses=["10.9.0.2/24", "fd00::2/64"], **options
    )
    near[1].other, far[1].other = far[0], near[0]
    return near, far


def transfer(spaces: tuple[Namespace, Namespace], to: str, size: int) -> str | None:
    """Send *size* bytes by TCP from one namespace to the other; None, or what went wrong."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    listener = spaces[1].inside(lambda: socket.create_server((to, 7000), family=family))
    block = bytes(range(256)) * 1024
    digests = []

    def receive() -> None:
        with listener.accept()[0] as sock:
            sock.settimeout(30)
            digest = hashlib.sha256()
            while data := sock.recv(1 << 20):
                digest.update(data)
            digests.append(digest.digest())

    thread = threading.Thread(target=receive)
    thread.start()
    with listener:
        sent = hashlib.sha256()
        with spaces[0].inside(lambda: socket.create_connection((to, 7000), timeout=30)) as sock:
            for _ in range(size // len(block)):
                sock.sendall(block)
                sent.update(block)
        thread.join()
    return None if digests == [sent.digest()] else "the checksums differ"


@pytest.mark.parametrize("address", ["10.9.0.2", "fd00::2"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("vnet_hdr", [None, "raw", "split"])
@pytest.mark.timeout(120)
async def test_a_tcp_transfer_arrives_whole_and_without_a_wrong_checksum(
    spaces: tuple[Namespace, Namespace], vnet_hdr: Any, address: str
) -> None:
    near, far = await joined(spaces, vnet_hdr=vnet_hdr)
    try:
        assert await asyncio.to_thread(transfer, spaces, address, TRANSFER << 20) is None
        for space in spaces:
            assert snmp(space, "Tcp:")["InCsumErrors"] == 0
            assert snmp(space, "Tcp:")["InErrs"] == 0
        assert near[1].errors == far[1].errors == []
        # Cut, no packet is larger than the MTU; passed on, many are. Uncut ones are counted whole.
        assert (near[1].longest > 1510) == (vnet_hdr == "raw")
    finally:
        near[0].abort()
        far[0].abort()


async def test_udp_segments_are_cut_and_each_arrives(spaces: tuple[Namespace, Namespace]) -> None:
    near, far = await joined(spaces, vnet_hdr="split")
    offloads = near[0].get_extra_info("offloads")
    if not offloads & 0x20:
        pytest.skip("this kernel gives no large packets of UDP")
    with udp_socket(spaces[1], "10.9.0.2") as sock:
        with spaces[0].inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT of udp(7)
            payload = os.urandom(9500)
            sender.sendto(payload, ("10.9.0.2", 5000))
        sock.setblocking(False)
        got: list[bytes] = []
        loop = asyncio.get_running_loop()
        while len(got) < 10:
            got.append(await asyncio.wait_for(loop.sock_recv(sock, 2000), 5))
        assert got == [payload[at : at + 1000] for at in range(0, 9500, 1000)]
        assert snmp(spaces[1], "Udp:")["InCsumErrors"] == 0
    near[0].abort()
    far[0].abort()


async def test_the_most_that_the_kernel_lets_go_is_taken(spaces: tuple[Namespace, Namespace]) -> None:
    transport, _ = await connect_tuntap(asyncio.DatagramProtocol, netns=spaces[0], vnet_hdr="raw")
    assert transport.get_extra_info("offloads") in OFFLOADS
    assert transport.get_extra_info("offloads") >= 0x07
    transport.abort()


async def test_split_segments_wait_while_reading_is_paused(spaces: tuple[Namespace, Namespace]) -> None:
    class Pausing(RecordingDatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.pause_reading()

    options: dict[str, Any] = {"addresses": "10.9.0.1/24", "link_local": False, "vnet_hdr": "split"}
    transport, protocol = await connect_tuntap(Pausing, netns=spaces[0], **options)
    with spaces[0].inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)
        sender.sendto(bytes(5000), ("10.9.0.2", 5000))
    for number in range(1, 6):
        await until(lambda n=number: len(protocol.records) == n, f"segment {number} came")  # type: ignore[misc]
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(protocol.records) == number
        transport.resume_reading()
    transport.abort()


@pytest.mark.parametrize("batch", [False, True])
async def test_a_header_that_does_not_fit_its_packet_is_told_and_the_transport_lives(
    spaces: tuple[Namespace, Namespace], batch: bool
) -> None:
    class Batches(RecordingDatagramProtocol):
        def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
            for data, addr in records:
                self.datagram_received(data, addr)

    options: dict[str, Any] = {"addresses": "10.9.0.1/24", "link_local": False, "vnet_hdr": "split"}
    factory = Batches if batch else RecordingDatagramProtocol
    transport, protocol = await connect_tuntap(factory, netns=spaces[0], **options)
    wrong = [
        b"short",
        OffloadHeader(1, GSO_TCPV4, 0, 1460, 20, 16).packed() + b"\x45" + bytes(20),  # ends within its header
        OffloadHeader(1, GSO_TCPV4, 0, 1460, 20, 16).packed() + b"\x45" + bytes(31) + b"\x50" + bytes(7),
    ]
    read = syscalls.read

    def told() -> int:
        return len(protocol.errors) + len(protocol.records)

    with udp_socket(spaces[0]) as sock, pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "read", lambda *args: read(*args) and wrong.pop() if wrong else read(*args))
        for number in range(4):
            sock.sendto(b"%d" % number, ("10.9.0.2", 9))
            await until(lambda n=number: told() > n, "it was told")  # type: ignore[misc]
    assert [getattr(error, "errno", 0) for error in protocol.errors] == [errno.EPROTO] * 3
    assert [packet[28:] for packet in protocol.records] == [b"3"]
    transport.abort()


async def test_a_list_for_split_is_sent_in_order_around_what_is_refused_and_counted_without_headers(
    spaces: tuple[Namespace, Namespace],
) -> None:
    options: dict[str, Any] = {"addresses": "10.9.0.1/24", "link_local": False, "vnet_hdr": "split"}
    transport, protocol = await connect_tuntap(RecordingDatagramProtocol, netns=spaces[0], **options)
    texts = [b"%d" % number for number in range(100)]
    packets: list[bytes | memoryview] = [udp(text) for text in texts]
    size = sum(map(len, packets))
    packets[7] = memoryview(packets[7])
    with udp_socket(spaces[0]) as sock:
        sock.setblocking(True)
        sock.settimeout(5)
        transport.send_packets(packets)
        assert [sock.recv(100) for _ in texts] == texts
        assert (transport.sent, transport.sent_bytes) == (100, size)
        no_packet = b"\x15" + bytes(30)  # of IP version 1
        transport.send_packets([*packets[:50], no_packet, *packets[50:], udp(bytes(2000))])
        assert [sock.recv(100) for _ in texts] == texts
    refused = [getattr(error, "errno", 0) for error in protocol.errors]
    assert refused == [errno.EINVAL, errno.EMSGSIZE]
    assert (transport.sent, transport.sent_bytes, transport.refused) == (200, 2 * size, 2)
    transport.abort()
    transport.send_packets(packets)
    assert transport.sent == 200


async def test_with_raw_the_header_tells_what_is_left_to_do(spaces: tuple[Namespace, Namespace]) -> None:
    options: dict[str, Any] = {"addresses": "10.9.0.1/24", "link_local": False, "vnet_hdr": "raw"}
    transport, protocol = await connect_tuntap(RecordingDatagramProtocol, netns=spaces[0], **options)
    with udp_socket(spaces[0]) as sock:
        sock.sendto(b"unfinished", ("10.9.0.2", 9))
        await until(lambda: protocol.records, "it came")
        header = OffloadHeader.of(protocol.records[0])
        assert (header.kind, header.checksum_start, header.checksum_offset) == (GSO_NONE, 20, 6)
        packet = protocol.records[0][HEADER_SIZE:]
        back = packet[:12] + packet[16:20] + packet[12:16] + packet[22:24] + packet[20:22] + packet[24:]
        transport.sendto(NO_HEADER + back)  # for the other way the sums are the same, and unfinished
        transport.sendto(protocol.records[0][:HEADER_SIZE] + back)
        sock.setblocking(True)
        sock.settimeout(5)
    for wrong in (b"", NO_HEADER, NO_HEADER + bytes(19)):
        transport.sendto(wrong)
    assert [getattr(error, "errno", 0) for error in protocol.errors] == [22, 22, 22]
    transport.abort()


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 is not here")
@pytest.mark.parametrize("vnet_hdr", [None, "raw", "split"])
@pytest.mark.timeout(60)
async def test_iperf3_goes_through_and_no_checksum_is_wrong(
    spaces: tuple[Namespace, Namespace], vnet_hdr: Any
) -> None:
    near, far = await joined(spaces, vnet_hdr=vnet_hdr)
    serving = asyncio.ensure_future(
        asyncio.to_thread(spaces[1].run, "iperf3", "-s", "-1", "-B", "10.9.0.2", timeout=30)
    )
    listens = ("sh", "-c", "until ss -Hltn | grep -q 5201; do sleep 0.01; done")
    await asyncio.to_thread(spaces[1].run, *listens, timeout=10)
    client = ("iperf3", "-c", "10.9.0.2", "-J", "-t", IPERF_SECONDS)
    told = json.loads(await asyncio.to_thread(spaces[0].run, *client, timeout=40))
    await serving
    assert told["end"]["sum_received"]["bytes"] > 1_000_000
    for space in spaces:
        assert snmp(space, "Tcp:")["InCsumErrors"] == 0
    near[0].abort()
    far[0].abort()
