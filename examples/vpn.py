"""A network between two hosts: a TUN interface on each, and UDP or TLS between them.

    python -m examples.vpn --listen 0.0.0.0:5555 --address 10.9.0.1/24 --tls --cert c.pem --key k.pem
    python -m examples.vpn --connect host:5555 --address 10.9.0.2/24 --tls --ca c.pem

Over UDP a packet is a datagram, which anybody can read, change and send: for a network that is trusted. With
TLS it travels after its length, two bytes, and the other side is verified; with --ca, the listener verifies
who connects too. The MTU of both interfaces follows that of the way between them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fdtransport import (
    TunTapTransport,
    connect_tuntap,
    create_connection,
    create_datagram_endpoint,
    create_server,
)

from . import between, run_command
from .selftest import Namespace, run_selftest, transfer

#: A datagram that is no packet: the MTU that its sender can do. (A packet does not begin with a zero.)
HELLO = struct.Struct("!4sH")
MARK = b"\0vpn"
#: Seconds between two of them, before the first answer and after it.
ASKING, KEEPING = 0.5, 10.0
#: Of ip(7) and ipv6(7): the path's MTU, and that a datagram is told to be too long rather than cut.
IP_MTU, IP_MTU_DISCOVER, DO = 14, 10, 2
IPV6_MTU, IPV6_MTU_DISCOVER = 24, 23
#: Bytes of an MTU: what every host of IPv4 takes (RFC 791), and the most.
SMALLEST, LARGEST = 576, 65535
#: Of the interfaces when packets go through a byte stream: one that any Internet path has room for.
STREAM_MTU = 1400


class Tunnel(asyncio.DatagramProtocol):
    """The interface. What comes from it goes over the wire, if there is one."""

    transport: TunTapTransport

    def __init__(self) -> None:
        self.wire: Any = None
        self.there = asyncio.Event()
        self.refused = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        if self.wire is not None:
            self.wire.send([packet for packet, _ in records])

    def error_received(self, exc: Exception) -> None:
        self.refused += 1  # what the other side sent is no packet, or this interface is down

    def joined(self, wire: Any) -> None:
        self.wire = wire
        self.there.set()

    def parted(self, wire: Any) -> None:
        if self.wire is wire:
            self.wire = None
            self.there.clear()
            self.transport.resume_reading()

    def set_mtu(self, mtu: int) -> None:
        if not self.transport.is_closing() and self.transport.get_extra_info("mtu") != mtu:
            self.transport.link.set(mtu=mtu)

    async def end(self) -> None:
        if self.wire is not None:
            self.wire.transport.abort()
        await self.transport.aclose()


class Datagrams(asyncio.DatagramProtocol):
    """The wire over UDP. *peer* is None where the socket is connected, and else who said hello last."""

    def __init__(self, tunnel: Tunnel, listens: bool, mtu: int | None) -> None:
        self.tunnel, self.listens, self.wanted = tunnel, listens, mtu
        self.peer: Any = None
        self.timer: asyncio.TimerHandle | None = None
        self.limit = LARGEST

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.sock = transport.get_extra_info("socket")
        self.six = self.sock.family == socket.AF_INET6
        level, option = (
            (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if self.six else (socket.IPPROTO_IP, IP_MTU_DISCOVER)
        )
        self.sock.setsockopt(level, option, DO)
        if not self.listens:
            self.tunnel.joined(self)
            self.ask()

    def room(self) -> int:
        """Bytes of the largest packet that gets from here to there whole."""
        outer = LARGEST
        if not self.listens:  # the kernel knows the way of a connected socket only
            if self.six:
                outer = self.sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
            else:
                outer = self.sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
        room = min(outer, LARGEST) - (48 if self.six else 28)
        return max(min(room, self.wanted or room), SMALLEST)

    def ask(self, seconds: float = ASKING) -> None:
        self.greet()
        self.timer = asyncio.get_running_loop().call_later(seconds, self.ask, seconds)

    def greet(self) -> None:
        self.transport.sendto(HELLO.pack(MARK, self.room()), self.peer)

    def send(self, packets: list[bytes]) -> None:
        sendto, peer = self.transport.sendto, self.peer
        for packet in packets:
            sendto(packet, peer)

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        self.tunnel.transport.send_packets([data for data, _ in records if data[:1] != b"\0"])
        for data, addr in records:
            if len(data) == HELLO.size and data.startswith(MARK):
                self.greeted(HELLO.unpack(data)[1], addr)

    def greeted(self, mtu: int, addr: Any) -> None:
        self.limit = max(mtu, SMALLEST)  # for the other way
        self.tunnel.set_mtu(min(self.room(), self.limit))
        if self.listens:
            self.peer = addr
            self.tunnel.joined(self)
            self.greet()
        elif self.timer is not None:
            self.timer.cancel()
            self.timer = asyncio.get_running_loop().call_later(KEEPING, self.ask, KEEPING)

    def error_received(self, exc: Exception) -> None:
        # EMSGSIZE: the way has become narrower, and the kernel knows by how much. Others: nobody is there.
        if not self.listens:
            self.tunnel.set_mtu(min(self.room(), self.limit))

    def pause_writing(self) -> None:
        self.tunnel.transport.pause_reading()

    def resume_writing(self) -> None:
        self.tunnel.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.tunnel.parted(self)


class Stream(asyncio.Protocol):
    """The wire over TLS or TCP: each packet after its length, two bytes."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.rest = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.tunnel.wire is not None:
            self.tunnel.wire.transport.abort()  # the newer one counts
        self.tunnel.joined(self)

    def send(self, packets: list[bytes]) -> None:
        self.transport.write(b"".join(len(packet).to_bytes(2, "big") + packet for packet in packets))

    def data_received(self, data: bytes) -> None:
        data, at = self.rest + data, 0
        packets = []
        while at + 2 <= len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2], "big")
            if end > len(data):
                break
            packets.append(data[at + 2 : end])
            at = end
        self.rest = data[at:]
        self.tunnel.transport.send_packets(packets)

    def pause_writing(self) -> None:
        self.tunnel.transport.pause_reading()

    def resume_writing(self) -> None:
        self.tunnel.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.tunnel.parted(self)
        self.lost.set()


async def open_tunnel(options: argparse.Namespace, netns: Any = None) -> Tunnel:
    mtu = options.mtu or (STREAM_MTU if options.tls or options.tcp else None)
    _, tunnel = await connect_tuntap(
        Tunnel, options.name, addresses=options.address, mtu=mtu, netns=netns or options.netns,
        routes=options.route, txqueuelen=1000,
    )  # fmt: skip
    return tunnel


async def listen(tunnel: Tunnel, options: argparse.Namespace) -> Any:
    """The server or the socket; to be closed."""
    host, port = options.listen
    if not (options.tls or options.tcp):
        wire = lambda: Datagrams(tunnel, True, options.mtu)  # noqa: E731
        return (await create_datagram_endpoint(wire, (host or "0.0.0.0", port)))[0]
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.ca)
        context.load_cert_chain(options.cert, options.key)
        context.verify_mode = ssl.CERT_REQUIRED if options.ca else ssl.CERT_NONE
    return await create_server(lambda: Stream(tunnel), host or None, port, ssl=context)


async def keep_connected(tunnel: Tunnel, options: argparse.Namespace) -> None:
    """Connect, and connect again."""
    host, port = options.connect
    if not (options.tls or options.tcp):
        await create_datagram_endpoint(
            lambda: Datagrams(tunnel, False, options.mtu), remote_addr=(host, port)
        )
        await asyncio.Event().wait()
    context = None
    if options.tls:
        context = ssl.create_default_context(cafile=options.ca)
        if options.cert:
            context.load_cert_chain(options.cert, options.key)
    while True:
        try:
            _, stream = await create_connection(lambda: Stream(tunnel), host, port, ssl=context)
        except OSError as exc:
            print(f"{host}:{port}: {exc}", file=sys.stderr)
        else:
            try:
                await stream.lost.wait()
            finally:
                stream.transport.abort()
        await asyncio.sleep(1)


async def run(options: argparse.Namespace) -> None:
    tunnel = await open_tunnel(options)
    try:
        print(f"{tunnel.transport.name} is {', '.join(options.address)}", flush=True)
        if options.listen:
            await listen(tunnel, options)
            await tunnel.transport.wait_hangup()
        else:
            connected = asyncio.ensure_future(keep_connected(tunnel, options))
            deleted = asyncio.ensure_future(tunnel.transport.wait_hangup())
            try:
                await asyncio.wait([connected, deleted], return_when=asyncio.FIRST_COMPLETED)
            finally:
                deleted.cancel()
                await stopped(connected)  # raises why there is no way to the other side
    finally:
        await tunnel.end()


# -- the test ----------------------------------------------------------------------------------------


class Ends(contextlib.AsyncExitStack):
    """What a test opens, closed in the reverse order."""

    async def open(self, options: argparse.Namespace, netns: Namespace) -> Tunnel:
        tunnel = await open_tunnel(options, netns)
        self.push_async_callback(tunnel.end)
        return tunnel


async def through(kind: str, megabytes: float, certificate: tuple[Path, Path] | None) -> None:
    """Two namespaces, a tunnel between them over the loopback interface of this one, and TCP through it."""
    tls: list[str] = [] if kind == "udp" else [f"--{kind}"]
    serves = [*tls, *(["--cert", str(certificate[0]), "--key", str(certificate[1])] if certificate else [])]
    trusts = [*tls, *(["--ca", str(certificate[0])] if certificate else [])]
    async with Ends() as ends:
        here, there = (ends.enter_context(Namespace()) for _ in range(2))
        options = parse(["--listen", "localhost:0", "--address", "10.9.0.1/24", *serves])
        near = await ends.open(options, here)
        server = await listen(near, options)
        ends.callback(server.close)
        sock = server.get_extra_info("socket") if kind == "udp" else server.sockets[0]
        address = f"localhost:{sock.getsockname()[1]}"
        options = parse(["--connect", address, "--address", "10.9.0.2/24", *trusts])
        far = await ends.open(options, there)
        connected = asyncio.ensure_future(keep_connected(far, options))
        ends.push_async_callback(stopped, connected)
        async with asyncio.timeout(20):
            await asyncio.gather(near.there.wait(), far.there.wait())
        rate = await transfer(there, here, "10.9.0.1", megabytes)
        mtus = {end.transport.get_extra_info("mtu") for end in (near, far)}
        assert len(mtus) == 1, f"the MTUs differ: {mtus}"
        told = f"{megabytes:g} MB through the tunnel, checksums equal, {rate:.2f} Gbit/s"
        print(f"{kind}: {told}, MTU {mtus.pop()}", flush=True)


async def stopped(task: asyncio.Future[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def selftest(megabytes: float) -> None:
    await through("udp", megabytes, None)
    await through("tcp", megabytes, None)
    if shutil.which("openssl") is None:
        print("tls: not tested, for want of openssl")
        return
    with tempfile.TemporaryDirectory() as directory:
        cert, key = Path(directory) / "cert.pem", Path(directory) / "key.pem"
        line = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        command = [*line.split(), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        command += ["-keyout", str(key), "-out", str(cert)]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        await through("tls", megabytes, (cert, key))


def host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"HOST:PORT is needed, not {text!r}")
    return host.strip("[]"), int(port)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.vpn", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--listen", type=host_and_port, metavar="HOST:PORT", help="wait for the other side there")
    add("--connect", type=host_and_port, metavar="HOST:PORT", help="the other side")
    add("--address", action="append", default=[], metavar="ADDRESS/PREFIX", help="of this host")
    add("--route", action="append", default=[], metavar="NETWORK", help="reached through it")
    add("--name", help="of the interface")
    add("--netns", help="the network namespace that gets the interface")
    add("--mtu", type=between(int, SMALLEST, LARGEST), help="bytes (default: what the way has room for)")
    add("--tls", action="store_true", help="over TLS; without it, UDP in the clear")
    add("--tcp", action="store_true", help="over TCP in the clear, for comparison")
    add("--cert", metavar="FILE", help="certificate of this side")
    add("--key", metavar="FILE", help="its key")
    add("--ca", metavar="FILE", help="authorities of the other side's certificate")
    add("--selftest", action="store_true", help="with namespaces of its own, on this host")
    add("--size", type=between(float, 0.001, 1e6), default=4, metavar="MB", help="of its transfers")
    options = parser.parse_args(arguments)
    if not options.selftest:
        if (options.listen is None) == (options.connect is None):
            parser.error("one of --listen and --connect is needed")
        if options.listen and options.tls and not (options.cert and options.key):
            parser.error("--listen with --tls needs --cert and --key")
    return options


def main() -> int:
    options = parse()
    test: Callable[[], Any] = lambda: selftest(options.size)  # noqa: E731
    return run_command(run_selftest(test) if options.selftest else run(options))


if __name__ == "__main__":
    sys.exit(main())
