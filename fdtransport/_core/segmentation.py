"""Packets that the kernel has not finished: checksums to fill in, and many segments in one packet.

No descriptor, no loop. A TUN or TAP that takes work off the kernel's hands gets such packets, each with a
``struct virtio_net_hdr`` (``<linux/virtio_net.h>``) before it that tells what is left to do.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["HEADER_SIZE", "NO_HEADER", "OffloadHeader", "checksum", "segments"]

_HEADER = struct.Struct("=BBHHHH")
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
    # A number to the base 65536 is, modulo 65535, the sum of its digits; so is the sum of its two halves, if
    # the cut is between digits. Few operations on large numbers, where a loop over the digits would be one in
    # Python.
    total = int.from_bytes(data, "big")
    if len(data) & 1:
        total <<= 8
    for shift, mask in _halves(len(data)):
        total = (total >> shift) + (total & mask)
    total = (total + start) % 0xFFFF
    return 0xFFFF - total if total else 0xFFFF if not start and not any(data) else 0


@functools.lru_cache(256)
def _halves(size: int) -> tuple[tuple[int, int], ...]:
    """Where to cut a number of so many bytes, again and again, until a division is cheaper."""
    steps, bits = [], 8 * size + 8
    while bits > 512:
        shift = (bits // 2 + 15) // 16 * 16
        steps.append((shift, (1 << shift) - 1))
        bits = shift + 1
    return tuple(steps)


def segments(data: bytes, tap: bool = False) -> Iterator[bytes]:
    """The packets that *data*, a packet after its header, stands for, each ready to be sent.

    *tap*: they are Ethernet frames.
    """
    flags, kind, _, size, start, offset = _HEADER.unpack_from(data)
    if kind & ~GSO_ECN == GSO_NONE or not size:
        packet = data[HEADER_SIZE:]
        yield _finished(packet, start, offset) if flags & NEEDS_CHECKSUM else packet
        return
    packet = data[HEADER_SIZE:]
    network = _network_start(packet, tap)
    if kind & ~GSO_ECN == GSO_UDP:
        yield from _udp_segments(packet, network, start, size)
    else:
        yield from _tcp_segments(packet, network, start, size)


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


def _sum(data: bytes) -> int:
    """The sum of an even number of bytes."""
    return int.from_bytes(data, "big") % 0xFFFF


class _Network:
    """The IP header of the segments."""

    def __init__(self, packet: bytes, at: int, end: int) -> None:
        self._front = packet[:at]
        self._four = packet[at] >> 4 == 4
        header = packet[at:end]
        if self._four:
            self._number = int.from_bytes(header[4:6], "big")
            self._parts = header[:2], header[6:10], header[12:]
            # All but the length and the number of the packet, which change.
            self._sum = sum(map(_sum, self._parts))
        else:
            self._parts = header[:4], header[6:], b""
        # IPv4 counts its own header; IPv6 only the extension headers.
        self._size = len(header) - (0 if self._four else 40)

    def of(self, size: int, number: int) -> bytes:
        """For the segment *number* with *size* bytes after the header."""
        first, second, third = self._parts
        total = size + self._size
        if not self._four:
            return b"%b%b%b%b" % (self._front, first, total.to_bytes(2, "big"), second)
        identity = self._number + number & 0xFFFF
        value = -(self._sum + total + identity) % 0xFFFF
        changed = struct.pack("!HH", total, identity)
        return b"%b%b%b%b%b%b" % (self._front, first, changed, second, value.to_bytes(2, "big"), third)


def _tcp_segments(packet: bytes, network: int, start: int, size: int) -> Iterator[bytes]:
    body = start + (packet[start + 12] >> 4) * 4
    ip = _Network(packet, network, start)
    ports, after = packet[start : start + 4], packet[start + 8 : start + 13]  # acknowledgement, header size
    window, rest = packet[start + 14 : start + 16], packet[start + 18 : body]  # urgent pointer, options
    sequence = int.from_bytes(packet[start + 4 : start + 8], "big")
    flags = packet[start + 13]
    header = body - start
    fixed = _pseudo(packet, network, _TCP) + sum(map(_sum, (ports, after + b"\0", window, rest)))
    payload = memoryview(packet)[body:]
    for number, at in enumerate(range(0, len(payload), size)):
        piece = bytes(payload[at : at + size])
        last = at + size >= len(payload)
        # FIN and PSH are of the last segment alone, CWR of the first (RFC 3168).
        now = (flags if last else flags & ~_FIN_PSH) & (0xFF if not number else ~_CWR)
        value = sequence + at & 0xFFFFFFFF
        length = header + len(piece)
        whole = fixed + (value >> 16) + (value & 0xFFFF) + now + length
        check = checksum(piece, whole)
        yield b"%b%b%b%b%c%b%b%b%b" % (
            ip.of(length, number), ports, value.to_bytes(4, "big"), after, now, window,
            check.to_bytes(2, "big"), rest, piece,
        )  # fmt: skip


def _udp_segments(packet: bytes, network: int, start: int, size: int) -> Iterator[bytes]:
    ip = _Network(packet, network, start)
    ports = packet[start : start + 4]
    fixed = _pseudo(packet, network, _UDP) + _sum(ports)
    payload = memoryview(packet)[start + 8 :]
    for number, at in enumerate(range(0, len(payload), size)):
        piece = bytes(payload[at : at + size])
        length = 8 + len(piece)
        check = checksum(piece, fixed + 2 * length) or 0xFFFF  # 0 would be: none (RFC 768)
        yield b"%b%b%b%b%b" % (
            ip.of(length, number), ports, length.to_bytes(2, "big"), check.to_bytes(2, "big"), piece,
        )  # fmt: skip
