"""Checksums and segments, judged by scapy, which knows the formats by itself."""

from __future__ import annotations

import random
import socket
import struct
from typing import Any

import pytest

from fdtransport._core.segmentation import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    HEADER_SIZE,
    NEEDS_CHECKSUM,
    NO_HEADER,
    OffloadHeader,
    checksum,
    segments,
)

scapy = pytest.importorskip("scapy.all", reason="scapy is the judge")

RANDOM = random.Random(7)


def slow_checksum(data: bytes) -> int:
    """As RFC 1071 has it."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize("data", [
    b"", b"\0", bytes(7), b"\xff\xff", b"\xff\xff\xff\xff", b"\1", b"\0\1", b"\xff\xfe\0\1", b"\xab" * 65535,
    *(RANDOM.randbytes(n) for n in range(1, 60)),
])  # fmt: skip
def test_the_checksum_is_that_of_the_rfc(data: bytes) -> None:
    assert checksum(data) == slow_checksum(data)
    assert checksum(data, 0x1234) == slow_checksum(b"\x12\x34" + data)
    assert checksum(memoryview(data)) == checksum(data)


def big(
    layer4: Any,
    payload: bytes,
    kind: int,
    size: int,
    *,
    six: bool = False,
    tap: bool = False,
    vlan: bool = False,
) -> tuple[bytes, Any]:
    """What the kernel gives for one large packet, and the packet as scapy has it."""
    if six:
        network: Any = scapy.IPv6(src="fd00::1", dst="fd00::2", tc=3)
    else:
        network = scapy.IP(src="10.9.0.1", dst="10.9.0.2", id=65530, flags="DF", tos=2, options=b"")
    packet = network / layer4 / scapy.Raw(payload)
    if tap:
        ether = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        packet = ether / scapy.Dot1Q(vlan=5) / packet if vlan else ether / packet
    raw = bytes(packet)
    start = (14 + (4 if vlan else 0) if tap else 0) + (40 if six else 20)
    offset = 16 if isinstance(layer4, scapy.TCP) else 6
    hdr = start + (len(layer4) if isinstance(layer4, scapy.TCP) else 8)
    # The kernel leaves the sum of the pseudo header there, with the length of everything.
    addresses = packet[scapy.IPv6 if six else scapy.IP]
    family = socket.AF_INET6 if six else socket.AF_INET
    pseudo = socket.inet_pton(family, addresses.src) + socket.inet_pton(family, addresses.dst)
    pseudo += struct.pack("!II", len(raw) - start, 6 if isinstance(layer4, scapy.TCP) else 17)
    partial = ~slow_checksum(pseudo) & 0xFFFF
    raw = raw[: start + offset] + partial.to_bytes(2, "big") + raw[start + offset + 2 :]
    header = OffloadHeader(NEEDS_CHECKSUM, kind, hdr, size, start, offset)
    return header.packed() + raw, packet


def judged(packet: bytes, tap: bool, six: bool) -> Any:
    """*packet* as scapy reads it; every checksum and length is what scapy would have put there."""
    base = scapy.Ether if tap else scapy.IPv6 if six else scapy.IP
    read = base(packet)
    again = base(packet)
    for layer, fields in ((scapy.IP, ("chksum", "len")), (scapy.IPv6, ("plen",)), (scapy.TCP, ("chksum",)),
                          (scapy.UDP, ("chksum", "len"))):  # fmt: skip
        if again.haslayer(layer):
            for field in fields:
                again[layer].delfieldval(field)
    assert bytes(again) == packet
    return read


@pytest.mark.parametrize("tap", [False, True], ids=["tun", "tap"])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("length", [1448, 1449, 5000, 64000])
def test_a_large_tcp_packet_becomes_segments_that_scapy_reads(tap: bool, six: bool, length: int) -> None:
    payload = RANDOM.randbytes(length)
    options = [("NOP", None), ("NOP", None), ("Timestamp", (77, 88))]
    layer = scapy.TCP(
        sport=5, dport=6, seq=2**32 - 2000, ack=9, flags="FPACE", window=500, options=options, urgptr=3
    )
    kind = (GSO_TCPV6 if six else GSO_TCPV4) | GSO_ECN
    data, _ = big(layer, payload, kind, 1448, six=six, tap=tap)
    found = [judged(segment, tap, six) for segment in segments(data, tap)]
    assert b"".join(bytes(segment[scapy.TCP].payload) for segment in found) == payload
    assert len(found) == -(-length // 1448)
    for number, segment in enumerate(found):
        tcp = segment[scapy.TCP]
        assert tcp.seq == (2**32 - 2000 + number * 1448) % 2**32
        assert (tcp.ack, tcp.window, tcp.urgptr, tcp.options) == (9, 500, 3, options)
        last, first = number == len(found) - 1, number == 0
        expected = {"A", "E"} | ({"F", "P"} if last else set()) | ({"C"} if first else set())
        assert set(str(tcp.flags)) == expected
        if not six:
            ip = segment[scapy.IP]
            assert (ip.id, str(ip.flags), ip.tos) == ((65530 + number) % 65536, "DF", 2)


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("length", [1200, 1201, 30000])
def test_a_large_udp_packet_becomes_datagrams_that_scapy_reads(six: bool, length: int) -> None:
    payload = RANDOM.randbytes(length)
    data, _ = big(scapy.UDP(sport=5, dport=6), payload, GSO_UDP, 1200, six=six)
    found = [judged(segment, False, six) for segment in segments(data)]
    pieces = [bytes(segment[scapy.UDP].payload) for segment in found]
    assert pieces == [payload[at : at + 1200] for at in range(0, length, 1200)]


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_tags_of_a_vlan_are_kept(six: bool) -> None:
    kind = GSO_TCPV6 if six else GSO_TCPV4
    layer = scapy.TCP(sport=5, dport=6, flags="A")
    data, _ = big(layer, bytes(3000), kind, 1448, six=six, tap=True, vlan=True)
    found = [judged(segment, True, six) for segment in segments(data, tap=True)]
    assert [segment[scapy.Dot1Q].vlan for segment in found] == [5, 5, 5]


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("size", [0, 1, 100, 1451])
def test_a_checksum_that_the_kernel_has_left_undone_is_filled_in(six: bool, size: int) -> None:
    for layer in (scapy.TCP(sport=5, dport=6, flags="A"), scapy.UDP(sport=5, dport=6)):
        data, packet = big(layer, RANDOM.randbytes(size), GSO_NONE, 0, six=six)
        (found,) = segments(data)
        judged(found, False, six)
        assert found == bytes(packet)


def test_a_udp_checksum_of_zero_is_sent_as_ones() -> None:
    """RFC 768: 0 would say that there is none. The checksum over itself is 0."""
    layer = scapy.UDP(sport=5, dport=6)
    _, packet = big(layer, bytes(2), GSO_UDP, 2)
    data, _ = big(layer, bytes(packet)[26:28], GSO_UDP, 2)
    (found,) = segments(data)
    assert found[26:28] == b"\xff\xff"


def test_a_packet_of_which_nothing_is_left_to_do_is_passed_on_as_it_is() -> None:
    packet = RANDOM.randbytes(100)
    assert list(segments(NO_HEADER + packet)) == [packet]
    assert len(NO_HEADER) == HEADER_SIZE == 10


def test_the_header_is_read_as_it_was_written() -> None:
    header = OffloadHeader(1, 0x81, 66, 1448, 34, 16)
    assert OffloadHeader.of(header.packed() + b"more") == header
