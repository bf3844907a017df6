"""Every family of sockets that this kernel has, as records: netlink, packet, raw and vsock."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from contextlib import asynccontextmanager, suppress

import pytest

from fdtransport import (
    DatagramTransport,
    connect_fd,
    connect_packet_fd,
    create_datagram_endpoint,
    open_packet_fd,
)
from fdtransport.testing import FarEnd, RecordingDatagramProtocol, RecordingProtocol
from fdtransport.testing.observe import turns, until

#: linux/rtnetlink.h
RTM_GETLINK, RTM_NEWLINK, NLMSG_DONE = 18, 16, 3
REQUEST_DUMP = 0x301
IFLA_IFNAME = 3


def make(family, kind, proto=0):
    """A socket, or the reason to skip the test."""
    try:
        return socket.socket(family, kind, proto)
    except PermissionError:
        pytest.skip("needs to be root")
    except OSError as exc:
        pytest.skip(f"not in this kernel: {exc}")


@asynccontextmanager
async def on(sock, **options):
    transport, protocol = await connect_packet_fd(RecordingDatagramProtocol, sock, **options)
    assert isinstance(transport, DatagramTransport)
    try:
        async with asyncio.timeout(10):
            yield transport, protocol
    finally:
        transport.abort()
        await until(lambda: protocol.lost, "it ended")
        await turns(2)


def messages(data):
    """``(type, payload)`` of each netlink message in a record."""
    while data:
        size, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:size]
        data = data[(size + 3) & ~3 :]


def link_name(payload):
    at = 16
    while at < len(payload):
        size, kind = struct.unpack_from("=HH", payload, at)
        if kind == IFLA_IFNAME:
            return payload[at + 4 : at + size - 1].decode()
        at += (size + 3) & ~3
    return None


def dump_links(n=1):
    return struct.pack("=IHHIIBxHiII", 32, RTM_GETLINK, REQUEST_DUMP, n, 0, 0, 0, 0, 0, 0)


async def test_netlink_dumps_the_links_of_this_machine():
    sock = make(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    names = []
    async with await open_packet_fd(sock) as packets, asyncio.timeout(10):
        await packets.send(dump_links())
        done = False
        while not done:
            data, addr = await packets.recv_from()
            assert addr == (0, 0)  # the kernel
            for kind, payload in messages(data):
                done = done or kind == NLMSG_DONE
                if kind == RTM_NEWLINK:
                    names.append(link_name(payload))
    assert sorted(names) == sorted(name for _, name in socket.if_nameindex())


async def test_netlink_takes_an_address_with_each_record():
    sock = make(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    async with on(sock) as (transport, protocol):
        transport.sendto(dump_links(), (0, 0))
        await until(lambda: protocol.records, "the kernel answered")
        assert not protocol.errors


async def test_a_netlink_queue_that_overran_is_told_and_the_transport_lives():
    sock = make(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK)
    far = make(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK)
    with far:
        sock.bind((0, 1))  # a group of programs
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with on(sock) as (transport, protocol):
            transport.pause_reading()
            message = struct.pack("=IHHII", 1016, 16, 0, 0, 0) + bytes(1000)

            def tell_group():
                with suppress(ConnectionRefusedError):  # the kernel itself does not listen
                    far.sendto(message, (0, 1))

            for _ in range(100):
                tell_group()
            transport.resume_reading()
            await until(lambda: protocol.errors, "the overrun was told")
            assert protocol.errors[0].errno == errno.ENOBUFS
            before = len(protocol.records)
            await turns(10)
            tell_group()
            await until(lambda: len(protocol.records) > before, "it goes on")
            assert not transport.is_closing()


async def test_frames_of_the_loopback_interface():
    sock = make(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))  # an Ethernet type for experiments
    sock.bind(("lo", 0x88B5))
    async with on(sock) as (transport, protocol):
        frame = bytes(12) + b"\x88\xb5" + b"hello" * 10
        transport.sendto(frame)
        await until(lambda: protocol.records, "the frame came back")
        assert protocol.records[0] == frame
        assert transport.get_extra_info("sockname")[0] == "lo"
        transport.sendto(frame, ("lo", 0x88B5))
        await until(lambda: len(protocol.records) > 1, "with an address of its own")


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


async def test_a_raw_icmp_socket_pings_this_machine():
    sock = make(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    request = struct.pack("!BBHHH", 8, 0, 0, 0x7A5F, 1) + bytes(16)
    request = request[:2] + struct.pack("!H", checksum(request)) + request[4:]

    def answers(protocol):
        return [r for r in protocol.records if r[20] == 0 and r[24:26] == b"\x7a\x5f"]

    async with on(sock) as (transport, protocol):
        transport.sendto(request, ("127.0.0.1", 0))
        await until(lambda: answers(protocol), "the answer came")


async def test_a_family_by_its_number_with_addresses_of_its_own():
    protocol = RecordingDatagramProtocol()
    try:
        transport, _ = await create_datagram_endpoint(
            lambda: protocol,
            (0, 0),
            family=socket.AF_NETLINK,
            proto=socket.NETLINK_ROUTE,
            type=socket.SOCK_RAW,
        )
    except PermissionError:
        pytest.skip("needs to be root")
    transport.sendto(dump_links())
    await until(lambda: protocol.records, "the kernel answered")
    transport.close()
    await until(lambda: protocol.lost, "it ended")
    await turns(2)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
async def test_vsock_within_this_machine(kind):
    listener = make(socket.AF_VSOCK, kind)
    with listener:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        near = socket.socket(socket.AF_VSOCK, kind)
        near.settimeout(0.5)
        try:
            near.connect((1, listener.getsockname()[1]))  # VMADDR_CID_LOCAL
        except OSError as exc:
            near.close()
            pytest.skip(f"this kernel has no loopback of vsock: {exc}")
        far = FarEnd(listener.accept()[0])
    with far:
        if kind == socket.SOCK_STREAM:
            transport, protocol = await connect_fd(RecordingProtocol, near)
            transport.write(b"bytes")
        else:
            transport, protocol = await connect_packet_fd(RecordingDatagramProtocol, near)
            transport.sendto(b"bytes")
        assert await far.recv() == b"bytes"
        far.close()
        await until(lambda: protocol.lost, "the end was told")
        await turns(2)


async def test_an_unconnected_vsock_socket_is_one_clear_error():
    sock = make(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
    async with on(sock) as (transport, protocol):
        transport.sendto(b"to nobody")
        await until(lambda: protocol.errors or protocol.lost, "it was told")
        told = protocol.errors[0] if protocol.errors else protocol.reason
        assert told is None or told.errno in (errno.ENOTCONN, errno.EPIPE)
