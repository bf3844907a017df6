"""TUN: packets read and written (row 17), and TCP between two namespaces through a relay of them (row 18).

Each round makes its network namespaces, and nothing is changed in the machine's own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from benchmarks.datagrams import Records, Watch
from benchmarks.ends import End
from benchmarks.job import Job, carries_out
from examples.selftest import Namespace

#: Packets that wait when the clock starts, or are written until it stops.
BATCH = 2048
HERE, THERE = "10.9.0.1", "10.9.0.2"
#: Of an IPv4 and a UDP header.
HEADERS = 28
NAME = "bench0"


class PacketRecords(Records):
    """As `Records`, in batches of another size."""

    def batches(self) -> Any:
        made = (self._made * (BATCH // len(self._made) + 1))[:BATCH]
        for at in range(0, self._job.size, BATCH):
            batch = made[: min(BATCH, self._job.size - at)]
            self.note(0, batch)
            yield batch


def packet(payload: bytes) -> bytes:
    """UDP over IPv4 from the other side to the socket of this one."""
    size = HEADERS + len(payload)
    addresses = socket.inet_aton(THERE) + socket.inet_aton(HERE)
    head = struct.pack("!BBHIBBH", 0x45, 0, size, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big") + head[12:]
    return head + struct.pack("!HHHH", 9, 5000, size - 20, 0) + payload


def udp_socket(space: Namespace) -> socket.socket:
    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), 64 << 20)
        sock.bind((HERE, 5000))
        sock.settimeout(5)
        return sock

    return space.inside(make)


class Collector(asyncio.DatagramProtocol):
    """Counts what comes, up to a number that is set before; keeps it in a byte-exact round only."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.got: list[bytes] = []
        self.wanted = 0
        self.done: Any = None

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        if self.keep:
            self.got += [data[HEADERS:] for data, _ in records]
        self.wanted -= len(records)
        if not self.wanted:
            self.done.set_result(None)


OPTIONS: dict[str, Any] = {"addresses": f"{HERE}/24", "txqueuelen": 2 * BATCH, "link_local": False}


@carries_out("tun-read", "protocol")
async def read_by_protocol(job: Job) -> None:
    from fdtransport import connect_tuntap

    with Namespace() as space:
        transport, protocol = await connect_tuntap(
            lambda: Collector(job.check), NAME, netns=space, **OPTIONS
        )
        watch, records = Watch(job), PacketRecords(job)
        with udp_socket(space) as sock:
            for batch in records.batches():
                transport.pause_reading()
                protocol.got, protocol.wanted, protocol.done = [], len(batch), job.library.signal()
                for record in batch:
                    sock.sendto(record, (THERE, 9))
                watch.on()
                transport.resume_reading()
                await protocol.done
                watch.off()
                records.note(1, protocol.got if job.check else batch)
        watch.stop()
        await transport.aclose()
    records.finish()


@carries_out("tun-write", "protocol")
async def write_by_protocol(job: Job) -> None:
    def send(transport: Any, packets: list[bytes]) -> None:
        for data in packets:
            transport.sendto(data)

    await _write_by_protocol(job, send)


@carries_out("tun-write-list", "protocol")
async def write_lists_by_protocol(job: Job) -> None:
    await _write_by_protocol(job, lambda transport, packets: transport.send_packets(packets))


async def _write_by_protocol(job: Job, send: Callable[[Any, list[bytes]], None]) -> None:
    from fdtransport import connect_tuntap

    with Namespace() as space:
        transport, _ = await connect_tuntap(asyncio.DatagramProtocol, NAME, netns=space, **OPTIONS)
        watch, records = Watch(job), PacketRecords(job)
        with udp_socket(space) as sock:
            for batch in records.batches():
                packets = [packet(record) for record in batch]
                watch.on()
                for at in range(0, len(packets), 64):
                    send(transport, packets[at : at + 64])
                    await job.library.turn()
                watch.off()
                records.note(1, [sock.recv(65_536) for _ in batch])
        watch.stop()
        await transport.aclose()
    records.finish()


class Descriptor:
    """What a blocking loop reads and writes."""

    def __init__(self, space: Namespace) -> None:
        from fdtransport import Link
        from fdtransport._core import tun_device

        def opened() -> int:
            return tun_device.open_device(NAME, tun_device.TUN | tun_device.NO_PI)[0]

        self.fd = space.inside(opened)
        with Link(NAME, space) as link:
            link.set(link_local=False, txqueuelen=2 * BATCH)
            link.add_address(f"{HERE}/24")
            link.set(up=True)

    def close(self) -> None:
        os.close(self.fd)


class Peer:
    """The same by python-pytun."""

    def __init__(self, space: Namespace) -> None:
        from pytun import IFF_NO_PI, IFF_TUN, TunTapDevice

        from fdtransport import Link

        def opened() -> Any:
            device = TunTapDevice(name=NAME, flags=IFF_TUN | IFF_NO_PI)
            with Link(NAME) as link:
                link.set(link_local=False, txqueuelen=2 * BATCH)
            device.addr, device.netmask = HERE, "255.255.255.0"
            device.up()
            return device

        self.device = space.inside(opened)

    def close(self) -> None:
        self.device.close()


def _blocking(job: Job, device: Any, read: Any, write: Any, space: Namespace, reads: bool) -> None:
    watch, records = Watch(job), PacketRecords(job)
    with udp_socket(space) as sock:
        for batch in records.batches():
            if reads:
                for record in batch:
                    sock.sendto(record, (THERE, 9))
                got = []
                watch.on()
                for _ in batch:
                    data = read(65_536)
                    if job.check:
                        got.append(data[HEADERS:])
                watch.off()
                records.note(1, got if job.check else batch)
            else:
                packets = [packet(record) for record in batch]
                watch.on()
                for data in packets:
                    write(data)
                watch.off()
                records.note(1, [sock.recv(65_536) for _ in batch])
    watch.stop()
    device.close()
    records.finish()


def _by_descriptor(job: Job, reads: bool) -> None:
    with Namespace() as space:
        device = Descriptor(space)
        fd = device.fd
        _blocking(job, device, lambda size: os.read(fd, size), lambda data: os.write(fd, data), space, reads)


def _by_peer(job: Job, reads: bool) -> None:
    with Namespace() as space:
        peer = Peer(space)
        _blocking(job, peer, peer.device.read, peer.device.write, space, reads)


@carries_out("tun-read", "blocking")
def read_blocking(job: Job) -> None:
    _by_descriptor(job, True)


@carries_out("tun-write", "blocking")
@carries_out("tun-write-list", "blocking")
def write_blocking(job: Job) -> None:
    _by_descriptor(job, False)


@carries_out("tun-read", "pytun")
def read_by_pytun(job: Job) -> None:
    _by_peer(job, True)


@carries_out("tun-write", "pytun")
@carries_out("tun-write-list", "pytun")
def write_by_pytun(job: Job) -> None:
    _by_peer(job, False)


class Forward(asyncio.DatagramProtocol):
    """Gives what it gets to the other interface."""

    other: Any = None

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        if self.other is not None:
            self.other.send_packets([data for data, _ in records])


@carries_out("tun-relay", "protocol")
async def relay_by_protocol(job: Job) -> None:
    from fdtransport import connect_tuntap

    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"mtu": job.library.tun_mtu, "vnet_hdr": job.library.tun_offload}
    with Namespace() as here, Namespace() as there:
        one, near = await connect_tuntap(Forward, NAME, addresses=f"{HERE}/24", netns=here, **options)
        other, far = await connect_tuntap(Forward, NAME, addresses=f"{THERE}/24", netns=there, **options)
        near.other, far.other = other, one
        with there.inside(lambda: socket.create_server((THERE, 7000))) as server:
            server.setblocking(False)
            source = here.socket(socket.AF_INET, socket.SOCK_STREAM)
            await loop.sock_connect(source, (THERE, 7000))
            sink, _ = await loop.sock_accept(server)
        for sock, order in ((source, "source"), (sink, "sink")):
            sock.setblocking(True)
            job._waiting.append((End.of_socket("tcp", sock), order, job.size))
        ended: asyncio.Future[None] = loop.create_future()
        control = job.loads[1]
        with job.clock():
            loop.add_reader(control.fileno(), ended.set_result, None)
            await ended
            loop.remove_reader(control.fileno())
        await asyncio.gather(one.aclose(), other.aclose())
