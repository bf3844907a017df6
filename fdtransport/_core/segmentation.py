"""Packets that the kernel has not finished: checksums to fill in, and many segments in one packet.

No descriptor, no loop. A TUN or TAP that takes work off the kernel's hands gets such packets, each with a
``struct virtio_net_hdr`` (``<linux/virtio_net.h>``) before it that tells what is left to do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["HEADER_SIZE", "NO_HEADER", "OffloadHeader", "checksum", "segments"]

_HEADER = struct.Struct("=BBHHHH")
_pack_field, _pack_fields, _pack_long = (struct.Struct(f).pack_into for f in ("!H", "!HH", "!I"))
HEADER_SIZE = _HEADER.size
#: Before a packet of which nothing is left to do.
NO_HEADER = bytes(HEADER_SIZE)

NEEDS_CHECKSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP = 0, 1, 4, 5
GSO_ECN = 0x80

_FIN_PSH, _CWR = 0x09, 0x80
_TCP, _UDP = 6, 17


class OffloadHeader(NamedTuple):
    """What is left to do for a packet; the first 10 bytes with ``vnet_hdr="raw"``."""

    flags: int
    kind: int
    header_size: int
    """Bytes of all headers, which each segment gets; a hint."""
    segment_size: int
    """Bytes of payload of each segment."""
    checksum_start: int
    """Where the checksum begins to count: the TCP or UDP header."""
    checksum_offset: int
    """Where it stands, from there."""

    @classmethod
    def of(cls, data: bytes) -> OffloadHeader:
        return cls(*_HEADER.unpack_from(data))

    def packed(self) -> bytes:
        return _HEADER.pack(*self)


def checksum(data: bytes | memoryview, start: int = 0) -> int:
    """The checksum of the Internet (RFC 1071) over *data*, with *start* added to the sum."""
    # A number to the base 65536 is, modulo 65535, the sum of its digits; so is the sum of its quarters, if
    # the cuts are between digits. Few operations on large numbers, where a loop over the digits would be one
    # in Python; and the division, of a quarter, takes a quarter of the time.
    number, quarter = int.from_bytes, len(data) // 8 * 2
    rest = number(data[3 * quarter :], "big")
    if len(data) & 1:
        rest <<= 8
    total = start + rest + number(data[:quarter], "big") + number(data[quarter : 2 * quarter], "big")
    total = (total + number(data[2 * quarter : 3 * quarter], "big")) % 0xFFFF
    return 0xFFFF - total if total else 0xFFFF if not start and not any(data) else 0


def segments(data: bytes, tap: bool = False) -> Iterable[bytes]:
    """The packets that *data*, a packet after its header, stands for, each ready to be sent.

    *tap*: they are Ethernet frames.
    """
    flags, kind, _, size, start, offset = _HEADER.unpack_from(data)
    if kind & ~GSO_ECN == GSO_NONE or not size:
        packet = data[HEADER_SIZE:]
        return (_finished(packet, start, offset) if flags & NEEDS_CHECKSUM else packet,)
    packet = data[HEADER_SIZE:]
    network = _network_start(packet, tap)
    if kind & ~GSO_ECN == GSO_UDP:
        return _udp_segments(packet, network, start, size)
    return _tcp_segments(packet, network, start, size)


def _network_start(packet: bytes, tap: bool) -> int:
    """Where the IP header begins, after the Ethernet header and what VLAN tags it has."""
    if not tap:
        return 0
    at = 12
    while packet[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return at + 2


def _finished(packet: bytes, start: int, offset: int) -> bytes:
    """With the checksum that the kernel has left undone; the sum of the pseudo header is in its place."""
    at = start + offset
    value = checksum(memoryview(packet)[start:]) or 0xFFFF
    return b"%b%b%b" % (packet[:at], value.to_bytes(2, "big"), packet[at + 2 :])


def _pseudo(packet: bytes, network: int, protocol: int) -> int:
    """The sum of the addresses and the protocol; the length is still to be added."""
    if packet[network] >> 4 == 4:
        addresses = packet[network + 12 : network + 20]
    else:
        addresses = packet[network + 8 : network + 40]
    return _sum(addresses) + protocol


def _sum(data: bytes | bytearray) -> int:
    """The sum of an even number of bytes."""
    return int.from_bytes(data, "big") % 0xFFFF


class _Headers:
    """The headers of the segments, which are those of the large packet but for a few fields.

    They are changed in place: that takes half as long as putting them together anew.
    """

    def __init__(self, packet: bytes, network: int, transport: int, body: int) -> None:
        self.buffer = bytearray(packet[:body])
        self._network = network
        self._four = packet[network] >> 4 == 4
        if self._four:
            self._identity = int.from_bytes(packet[network + 4 : network + 6], "big")
            # Length, number and checksum change.
            fields = packet[network : network + 2] + packet[network + 6 : network + 10]
            self._sum = _sum(fields + packet[network + 12 : transport])
        # IPv4 counts its own header; IPv6 only the extension headers.
        self._before = transport - network - (0 if self._four else 40)

    def set(self, size: int, number: int) -> None:
        """To those of the segment *number*, with *size* bytes after the IP header."""
        total = size + self._before
        if not self._four:
            _pack_field(self.buffer, self._network + 4, total)
            return
        identity = self._identity + number & 0xFFFF
        _pack_fields(self.buffer, self._network + 2, total, identity)
        _pack_field(self.buffer, self._network + 10, -(self._sum + total + identity) % 0xFFFF)


def _tcp_segments(packet: bytes, network: int, start: int, size: int) -> Iterator[bytes]:
    header = (packet[start + 12] >> 4) * 4
    body = start + header
    headers = _Headers(packet, network, start, body)
    buffer, sequence_at, flags_at, checksum_at = headers.buffer, start + 4, start + 13, start + 16
    sequence = int.from_bytes(packet[sequence_at : start + 8], "big")
    flags = packet[flags_at]
    _pack_long(buffer, sequence_at, 0)
    buffer[flags_at] = 0
    _pack_field(buffer, checksum_at, 0)
    fixed = _pseudo(packet, network, _TCP) + _sum(buffer[start:])
    last = len(packet) - size
    for number, at in enumerate(range(body, len(packet), size)):
        piece = packet[at : at + size]
        # FIN and PSH are of the last segment alone, CWR of the first (RFC 3168).
        now = (flags if at >= last else flags & ~_FIN_PSH) & (0xFF if not number else ~_CWR)
        value = sequence + at - body & 0xFFFFFFFF
        length = header + len(piece)
        headers.set(length, number)
        _pack_long(buffer, sequence_at, value)
        buffer[flags_at] = now
        changed = (value >> 16) + (value & 0xFFFF) + now + length
        _pack_field(buffer, checksum_at, checksum(piece, fixed + changed))
        yield b"".join((buffer, piece))


def _udp_segments(packet: bytes, network: int, start: int, size: int) -> Iterator[bytes]:
    body = start + 8
    headers = _Headers(packet, network, start, body)
    fixed = _pseudo(packet, network, _UDP) + _sum(packet[start : start + 4])
    for number, at in enumerate(range(body, len(packet), size)):
        piece = packet[at : at + size]
        length = 8 + len(piece)
        headers.set(length, number)
        check = checksum(piece, fixed + 2 * length) or 0xFFFF  # 0 would be: none (RFC 768)
        _pack_fields(headers.buffer, start + 4, length, check)
        yield b"".join((headers.buffer, piece))
