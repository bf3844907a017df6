"""Network namespaces that tests make, and what is on their other side: the kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from examples import selftest
from fdtransport.testing import FarEnd

_ETH_P_ALL, _SOL_PACKET, _IGNORE_OUTGOING = 3, 263, 23


class Namespace(selftest.Namespace):
    """A network namespace of its own, without a name: it goes when its descriptor and its interfaces do."""

    def run(self, *command: str, **options: Any) -> str:
        """The output of a command that runs in here."""

        def run() -> str:
            return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout

        return self.inside(run)


@contextlib.contextmanager
def own_namespace_unchanged() -> Iterator[None]:
    """Whatever is tested, the machine's own interfaces are the same as before."""
    before = sorted(os.listdir("/sys/class/net"))
    yield
    assert sorted(os.listdir("/sys/class/net")) == before


def why_not() -> str | None:
    """Why interfaces cannot be made here; None when they can."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
        Namespace().close()
    except OSError as exc:
        return f"no TUN and TAP here: {exc}"
    return None


needs_tuntap = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def packet_socket(space: Namespace, name: str) -> socket.socket:
    """A socket that receives what comes in by an interface, and sends by it: packet(7)."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), 16 << 20)
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_SNDBUFFORCE", 32), 16 << 20)
        sock.bind((name, 0x0800))  # the protocol is that of what is sent
        return sock

    return space.inside(make)


def ip_checksum(header: bytes) -> int:
    """Written by the book (RFC 791), and not as the library does it."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(payload: bytes, source: str = "10.9.0.2", to: str = "10.9.0.1", protocol: int = 17) -> bytes:
    """An IPv4 packet."""
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(to),
    )  # fmt: skip
    return head[:10] + ip_checksum(head).to_bytes(2, "big") + head[12:] + payload


def udp(payload: bytes, source_port: int = 9, port: int = 5000, **addresses: str) -> bytes:
    """A UDP packet of IPv4, without a checksum."""
    return ipv4(struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload, **addresses)


def udp_socket(space: Namespace, address: str = "10.9.0.1", port: int = 5000) -> socket.socket:
    """A UDP socket in a namespace, which does not wait longer than a few seconds."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), 16 << 20)
        sock.bind((address, port))
        sock.settimeout(5)
        return sock

    return space.inside(make)


class PacketFarEnd(FarEnd):
    """The kernel's side of an interface: what is sent here is read from the TUN or TAP, and the reverse.

    The records of the kit are no packets: *head* goes before each.
    """

    def __init__(self, sock: socket.socket, head: bytes, *, both: bool) -> None:
        super().__init__(sock)
        self._head = head
        self._both = both  # what is sent here needs one, too
        self.is_record = True
        self.can_shutdown_write = self.can_reset = False

    def send_now(self, data: bytes) -> int:
        return super().send_now(self._head + data if self._both else data)

    def _send_record(self, record: memoryview) -> bool:
        return super()._send_record(memoryview(self._head + bytes(record)) if self._both else record)

    def recv_now(self, n: int = 1 << 18) -> bytes | None:
        data = super().recv_now(n)
        return data and data[len(self._head) :]


class Forward:
    """Gives every packet of one transport to another; a part of a ``DatagramProtocol``."""

    other: Any = None

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        if self.other is not None:  # a network loses what comes before it is there
            self.other.send_packets([data for data, _ in records])


def snmp(space: Namespace, protocol: str) -> dict[str, int]:
    """The counters of a protocol in a namespace: /proc/net/snmp of proc(5)."""

    def read() -> str:
        with open("/proc/thread-self/net/snmp") as file:
            return file.read()

    rows = [line.split()[1:] for line in space.inside(read).splitlines() if line.startswith(protocol)]
    names, values = rows
    return dict(zip(names, map(int, values), strict=True))
