"""Answers pings: every address of a network that a TUN interface leads to is there, and is this program.

    python -m examples.tun_ping --address 10.9.0.1/24 --address fd09::1/64
    ping 10.9.0.77
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct
import sys
from typing import Any

from fdtransport import TunTapTransport, connect_tuntap

from . import between, run_command
from .selftest import Namespace, run_selftest

ICMP, ICMP6 = 1, 58
ECHO, REPLY, ECHO6, REPLY6 = 8, 0, 128, 129


def checksum(data: bytes) -> bytes:
    """Of the Internet, RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def answer(packet: bytes) -> bytes | None:
    """The reply to an echo request of IPv4 or IPv6; None to anything else."""
    if packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4
        if len(packet) < start + 8:  # anybody may send a protocol's header by halves
            return None
        if packet[9] != ICMP or packet[start] != ECHO or packet[6] & 0x3F or packet[7]:  # or a fragment
            return None
        head = packet[:12] + packet[16:20] + packet[12:16] + packet[20:start]
        body = packet[start + 4 :]
        return head + bytes([REPLY, 0]) + checksum(bytes([REPLY, 0, 0, 0]) + body) + body
    if len(packet) < 48 or packet[6] != ICMP6 or packet[40] != ECHO6:
        return None
    addresses = packet[24:40] + packet[8:24]
    body = packet[44:]
    pseudo = addresses + struct.pack("!II", len(body) + 4, ICMP6)  # RFC 8200, 8.1
    said = bytes([REPLY6, 0]) + checksum(pseudo + bytes([REPLY6, 0, 0, 0]) + body) + body
    return packet[:8] + addresses + said


class Pinged(asyncio.DatagramProtocol):
    """A protocol as for UDP: a packet comes, and one goes back."""

    def __init__(self, wanted: int | None = None) -> None:
        self.answered, self.wanted = 0, wanted

    def connection_made(self, transport: Any) -> None:
        self.transport: TunTapTransport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = answer(data)
        if reply is not None:
            self.transport.sendto(reply, addr)
            self.answered += 1
            if self.answered == self.wanted:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            print(exc, file=sys.stderr)


async def run(name: str | None, addresses: list[str], count: int | None) -> None:
    transport, protocol = await connect_tuntap(lambda: Pinged(count), name, addresses=addresses)
    try:
        print(f"{transport.name} leads to {', '.join(addresses)}; Ctrl-C ends it", flush=True)
        await transport.wait_hangup()
    finally:
        await transport.aclose()
        print(f"{protocol.answered} pings answered")


async def selftest() -> None:
    with Namespace() as space:
        transport, protocol = await connect_tuntap(
            Pinged, netns=space, addresses=["10.9.0.1/24", "fd09::1/64"], link_local=False
        )
        try:
            await ping(space)
            assert protocol.answered == transport.sent == 200
        finally:
            await transport.aclose()


async def ping(space: Namespace) -> None:
    loop = asyncio.get_running_loop()
    for family, kind, to in ((socket.AF_INET, ICMP, "10.9.0.77"), (socket.AF_INET6, ICMP6, "fd09::77")):
        with space.socket(family, socket.SOCK_RAW, kind) as sock:
            for number in range(100):
                first = ECHO if kind == ICMP else ECHO6
                echo = struct.pack("!BBHHH", first, 0, 0, 7, number) + b"ping" * 9
                if kind == ICMP:  # of IPv6 the kernel sees to it
                    echo = echo[:2] + checksum(echo) + echo[4:]
                sock.sendto(echo, (to, 0))
                while True:  # a raw socket is told of the requests of others, too
                    reply = await asyncio.wait_for(loop.sock_recv(sock, 2000), 5)
                    reply = reply[20:] if kind == ICMP else reply
                    if reply[0] in (REPLY, REPLY6):
                        break
                assert reply[4:] == echo[4:], reply
        print(f"100 pings of {to} answered")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.tun_ping", description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="of the interface (default: tun0, or the next that is free)")
    parser.add_argument("--address", action="append", metavar="ADDRESS/PREFIX", help="10.9.0.1/24 by default")
    parser.add_argument("--selftest", action="store_true", help="in a network namespace of its own")
    parser.add_argument("--count", type=between(int, 1, 10**9), metavar="N", help="end after so many pings")
    args = parser.parse_args()
    if args.selftest:
        return run_command(run_selftest(selftest))
    return run_command(run(args.name, args.address or ["10.9.0.1/24"], args.count))


if __name__ == "__main__":
    sys.exit(main())
