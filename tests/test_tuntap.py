"""TUN and TAP with the kernel on the other side, in network namespaces that the tests make."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
import typing_extensions
from conftest import LOOPS
from network import Namespace, ip_checksum, needs_tuntap, own_namespace_unchanged, udp, udp_socket
from relay_ends import Quiet

import fdtransport
from fdtransport import (
    CloseReason,
    DescriptorInUseError,
    Link,
    LinkState,
    TunTapAddress,
    TunTapTransport,
    connect_fd,
    connect_packet_fd,
    connect_tuntap,
    connect_tuntap_queues,
    connect_url,
    open_tuntap,
    relay,
)
from fdtransport._core import syscalls, tun_device
from fdtransport.testing import FarEnd, FaultPlan, RecordingDatagramProtocol, descriptors
from fdtransport.testing.observe import until

pytestmark = needs_tuntap

HERE = "10.9.0.1"  # the kernel's address, of the namespace
QUIET: dict[str, Any] = {"link_local": False}  # nothing comes that no test has caused


@pytest.fixture
def space() -> Iterator[Namespace]:
    with own_namespace_unchanged(), Namespace() as space:
        yield space


Connect = Callable[..., Awaitable[tuple[TunTapTransport, RecordingDatagramProtocol]]]


@pytest.fixture
async def connect(space: Namespace) -> AsyncIterator[Connect]:
    """Makes interfaces in the namespace; those that are still there at the end are aborted."""
    made: list[TunTapTransport] = []

    async def connect(name: str | None = None, **options: Any) -> Any:
        factory = options.pop("factory", RecordingDatagramProtocol)
        defaults: dict[str, Any] = {"netns": space, "addresses": [f"{HERE}/24"], **QUIET}
        transport, protocol = await connect_tuntap(factory, name, **{**defaults, **options})
        made.append(transport)
        return transport, protocol

    yield connect
    for transport in made:
        transport.abort()
    for _ in range(3):
        await asyncio.sleep(0)


def ip(space: Namespace, *arguments: str) -> Any:
    if shutil.which("ip") is None:
        pytest.skip("the ip command is not here")
    out = space.run("ip", "-j", *arguments)
    return json.loads(out) if out else None


# -- packets ------------------------------------------------------------------------------------------


async def test_a_packet_that_is_sent_comes_out_of_a_socket_and_the_answer_comes_back(
    connect: Connect, space: Namespace
) -> None:
    transport, protocol = await connect()
    with udp_socket(space) as sock:
        transport.sendto(udp(b"question"))
        data, source = sock.recvfrom(100)
        assert (data, source) == (b"question", ("10.9.0.2", 9))
        sock.sendto(b"answer", source)
    await until(lambda: protocol.records, "the answer came")
    (packet,) = protocol.records
    assert packet[20:] == packet[20:28] + b"answer"
    assert (packet[12:16], packet[16:20]) == (socket.inet_aton(HERE), socket.inet_aton("10.9.0.2"))
    assert (transport.sent, transport.received) == (1, 1)
    assert (transport.sent_bytes, transport.received_bytes) == (36, len(packet))


class Pong(asyncio.DatagramProtocol):
    """Answers pings of IPv4 with nothing but what asyncio's protocols know."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data[0] >> 4 == 4 and data[9] == socket.IPPROTO_ICMP and data[20] == 8:
            icmp = b"\0\0\0\0" + data[24:]
            icmp = b"\0\0" + ip_checksum(icmp + bytes(len(icmp) % 2)).to_bytes(2, "big") + icmp[4:]
            self.transport.sendto(data[:12] + data[16:20] + data[12:16] + icmp, addr)


#: Pings of the flood: FDTRANSPORT_FLOOD=20000 for all of them.
FLOOD = int(os.environ.get("FDTRANSPORT_FLOOD", "2000"))


@pytest.mark.skipif(shutil.which("ping") is None, reason="the ping command is not here")
async def test_a_flood_of_pings_is_answered_to_the_last_one(connect: Connect, space: Namespace) -> None:
    transport, _ = await connect(factory=Pong)
    command = ("ping", "-f", "-q", "-c", str(FLOOD), "-W", "2", "10.9.0.2")
    told = await asyncio.to_thread(space.run, *command, timeout=60)
    assert f"{FLOOD} packets transmitted, {FLOOD} received, 0% packet loss" in told
    assert transport.received == transport.sent == FLOOD


async def test_packets_of_every_size_are_whole_in_both_directions(connect: Connect, space: Namespace) -> None:
    transport, protocol = await connect(mtu=65535)
    sizes = [0, 1, 1471, 1472, 1473, 9000, 32767, 65507]
    with udp_socket(space) as sock:
        for size in sizes:
            transport.sendto(udp(b"x" * size))
            assert len(sock.recv(70000)) == size
            sock.sendto(b"y" * size, ("10.9.0.2", 9))
    await until(lambda: len(protocol.records) == len(sizes), "all of them came")
    assert [len(packet) - 28 for packet in protocol.records] == sizes


async def test_a_batch_is_one_call_and_nothing_is_lost_when_a_burst_comes(
    connect: Connect, space: Namespace
) -> None:
    class Batches(RecordingDatagramProtocol):
        sizes: list[int]

        def connection_made(self, transport: Any) -> None:
            self.sizes = []
            super().connection_made(transport)

        def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
            self.sizes.append(len(records))
            for data, addr in records:
                self.datagram_received(data, addr)

    _, protocol = await connect(factory=Batches)
    with udp_socket(space) as sock:
        for number in range(400):
            sock.sendto(number.to_bytes(2, "big"), ("10.9.0.2", 9))
    await until(lambda: len(protocol.records) == 400, "all of them came")
    assert [packet[28:] for packet in protocol.records] == [n.to_bytes(2, "big") for n in range(400)]
    assert max(protocol.sizes) == 64  # type: ignore[attr-defined]
    assert len(protocol.sizes) < 20  # type: ignore[attr-defined]


async def test_with_pi_the_protocol_of_each_packet_is_told_and_can_be_given(
    connect: Connect, space: Namespace
) -> None:
    transport, protocol = await connect(pi=True, addresses=[f"{HERE}/24", "fd00::1/64"])
    addresses: list[Any] = []
    protocol.datagram_received = lambda data, addr: addresses.append(addr)  # type: ignore[method-assign]
    with udp_socket(space) as sock:
        transport.sendto(udp(b"plain"))
        transport.sendto(udp(b"spoken"), TunTapAddress(transport.name, 0, 0x0800))
        assert [sock.recv(10), sock.recv(10)] == [b"plain", b"spoken"]
        sock.sendto(b"four", ("10.9.0.2", 9))
    six = space.inside(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    with six:
        six.sendto(b"six", ("fd00::2", 9))
    await until(lambda: len(addresses) == 2, "both came")
    assert [addr.protocol for addr in addresses] == [0x0800, 0x86DD]
    assert addresses[0][:2] == (transport.name, 0)


async def test_a_tap_carries_ethernet_frames(connect: Connect, space: Namespace) -> None:
    transport, protocol = await connect(mode="tap", hwaddr="02:00:00:00:00:01")
    assert transport.get_extra_info("hwaddr") == "02:00:00:00:00:01"
    with udp_socket(space) as sock:
        sock.sendto(b"who are you", ("10.9.0.2", 9))  # the kernel asks for the address first (RFC 826)
        await until(lambda: protocol.records, "the question came")
        question = protocol.records[0]
        assert question[:14] == b"\xff" * 6 + bytes.fromhex("020000000001") + b"\x08\x06"
        mine, theirs = bytes.fromhex("020000000002"), question[6:12]
        answer = question[14:20] + b"\0\2" + mine + question[38:42] + theirs + question[28:32]
        transport.sendto(theirs + mine + b"\x08\x06" + answer)
        await until(lambda: len(protocol.records) == 2, "the packet came")
        frame = protocol.records[1]
        assert frame[:14] == mine + theirs + b"\x08\x00"
        assert frame[42:] == b"who are you"
        transport.sendto(theirs + mine + b"\x08\x00" + udp(b"this is me"))
        assert sock.recv(100) == b"this is me"


# -- what is sent wrongly -----------------------------------------------------------------------------


async def test_bad_packets_and_link_flaps_are_told_and_no_other_packet_is_lost(
    connect: Connect, space: Namespace
) -> None:
    transport, protocol = await connect()
    bad = [b"", b"\x45", b"\x00" * 40, b"text", bytes(2000)]
    sent, refused = [], 0
    with udp_socket(space) as sock:
        for number in range(1000):
            transport.sendto(bad[number % len(bad)])
            if number % 100 == 50:
                transport.link.set(up=False)
                transport.sendto(udp(b"while it is down"))
                transport.link.set(up=True)
                refused += 1
            transport.sendto(udp(str(number).encode()))
            sent.append(str(number).encode())
        got = [sock.recv(100) for _ in sent]
    assert got == sent
    assert len(protocol.errors) == transport.refused == 1000 + refused
    assert {getattr(error, "errno", None) for error in protocol.errors} == {
        errno.EINVAL, errno.EIO, errno.EMSGSIZE,
    }  # fmt: skip
    assert not protocol.lost
    assert transport.sent == 1000


async def test_each_refusal_says_what_is_wrong(connect: Connect) -> None:
    transport, protocol = await connect(mtu=1400)
    for packet in (b"", b"text", b"\x45", bytes(20), udp(bytes(2000))):
        transport.sendto(packet)
    transport.link.set(up=False)
    transport.sendto(udp(b"down"))
    said = [str(error).partition(": ")[2] for error in protocol.errors]
    assert said == [
        "an empty packet",
        "a packet of IP version 7, which is not 4 or 6",
        "a packet of 1 bytes, and its header alone has 20 or more",
        "a packet of IP version 0, which is not 4 or 6",
        f"2028 bytes, and the interface {transport.name} carries 1400 at most (its MTU)",
        f"the interface {transport.name} is down",
    ]


async def test_a_larger_mtu_holds_at_once_whoever_sets_it(connect: Connect, space: Namespace) -> None:
    transport, protocol = await connect(mtu=1000)
    ip(space, "link", "set", transport.name, "mtu", "3000")
    with udp_socket(space) as sock:
        transport.sendto(udp(bytes(2972)))
        assert len(sock.recv(4000)) == 2972
    transport.sendto(udp(bytes(2973)))
    assert [getattr(error, "errno", None) for error in protocol.errors] == [errno.EMSGSIZE]


async def test_an_address_of_another_interface_is_refused(connect: Connect) -> None:
    transport, _ = await connect()
    for wrong in (("10.9.0.1", 5), TunTapAddress("other", 0), 5):
        with pytest.raises(ValueError, match="Invalid address"):
            transport.sendto(udp(b"x"), wrong)
    transport.sendto(udp(b"x"), TunTapAddress(transport.name, 0))
    assert transport.sent == 1


# -- flow control and loss ----------------------------------------------------------------------------


async def test_a_slow_way_out_queues_and_loses_no_frame(space: Namespace) -> None:
    """EAGAIN is told when a small sndbuf is full of frames that a slow interface has not sent on."""
    if shutil.which("tc") is None:
        pytest.skip("the tc command is not here")
    frames = [b"\x02\0\0\0\0\x02" + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + n.to_bytes(2, "big") + bytes(998)
              for n in range(60)]  # fmt: skip
    options: dict[str, Any] = {"mode": "tap", "sndbuf": 20000, "netns": space, **QUIET}
    transport, protocol = await connect_tuntap(RecordingDatagramProtocol, "slow", **options)
    for line in (
        "ip link add one type veth peer name other",
        "ip link add bridge type bridge",
        "ip link set slow master bridge",
        "ip link set one master bridge",
        "ip link set bridge up",
        "ip link set one up",
        "ip link set other up",
        "tc qdisc add dev one root tbf rate 8mbit burst 2kb latency 10s",
    ):
        await asyncio.to_thread(space.run, *line.split())
    sock = space.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)))
    with sock:
        sock.bind(("other", 0x88B5))
        sock.setblocking(False)
        transport.set_write_buffer_limits(high=10_000, low=1_000)
        # The bridge sends on at once what its ports have learnt of; a port begins with listening.
        for port in ("slow", "one"):
            line = f"ip link set {port} type bridge_slave state 3"
            await asyncio.to_thread(space.run, *line.split())
        for frame in frames:
            transport.sendto(frame)
        assert transport.get_write_buffer_size() > 10_000
        assert protocol.paused
        got: list[bytes] = []

        def arrived() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    got.append(sock.recv(2000))
            return len(got) == len(frames)

        await until(arrived, lambda: f"all came, {len(got)}", 10)
        assert got == frames
    await until(lambda: not protocol.paused, "the protocol was resumed")
    assert (transport.get_write_buffer_size(), transport.sent, protocol.errors) == (0, 60, [])
    await transport.aclose()


async def test_while_reading_is_paused_the_kernel_keeps_a_queue_and_counts_the_rest(
    connect: Connect, space: Namespace
) -> None:
    transport, protocol = await connect(txqueuelen=100)
    transport.pause_reading()
    with udp_socket(space) as sock:
        for number in range(300):
            sock.sendto(number.to_bytes(2, "big"), ("10.9.0.2", 9))
    missed = transport.missed
    assert 190 <= missed <= 200
    transport.resume_reading()
    await until(lambda: len(protocol.records) == 300 - missed, "the rest came")
    assert [packet[28:] for packet in protocol.records] == [n.to_bytes(2, "big") for n in range(300 - missed)]


async def test_the_counters_are_those_of_the_kernel(connect: Connect, space: Namespace) -> None:
    transport, protocol = await connect(name="counted")
    with udp_socket(space) as sock:
        for size in range(0, 1400, 7):
            transport.sendto(udp(bytes(size)))
            sock.sendto(bytes(size), ("10.9.0.2", 9))
            sock.sendto(bytes(size), ("10.9.0.2", 9))
            await asyncio.sleep(0)
    await until(lambda: len(protocol.records) == 400, "all of them came")
    (told,) = ip(space, "-s", "link", "show", "counted")
    # What the kernel has received is what we have sent.
    kernel = told["stats64"]
    assert (kernel["rx"]["packets"], kernel["rx"]["bytes"]) == (transport.sent, transport.sent_bytes)
    assert (kernel["tx"]["packets"], kernel["tx"]["bytes"]) == (transport.received, transport.received_bytes)
    assert transport.link.state().statistics["tx_packets"] == 400


@pytest.mark.parametrize("state", ["idle", "paused", "paused and full", "under load"])
async def test_an_interface_that_is_deleted_is_one_loss(
    connect: Connect, space: Namespace, state: str
) -> None:
    transport, protocol = await connect()
    if state.startswith("paused"):
        transport.pause_reading()
        if state == "paused and full":
            with udp_socket(space) as sock:
                for _ in range(600):
                    sock.sendto(b"unread", ("10.9.0.2", 9))
            await asyncio.sleep(0.01)
    elif state == "under load":
        for _ in range(100):
            transport.sendto(udp(b"load"))
    await asyncio.sleep(0)
    transport.link.delete()
    assert transport.get_extra_info("mtu", "gone") == "gone"
    if state == "under load":
        for _ in range(100):
            transport.sendto(udp(b"load"))
    await until(lambda: protocol.lost, "the loss was told")
    await asyncio.sleep(0.01)
    assert protocol.count("lost") == 1
    assert isinstance(protocol.reason, OSError)
    assert protocol.reason.errno == tun_device.EBADFD
    assert str(protocol.reason).endswith("was deleted")
    assert transport.close_reason is CloseReason.ERROR
    with pytest.raises(OSError, match="the transport has ended"):
        transport.link.state()


@pytest.mark.parametrize("end", ["close", "abort", "delete"])
async def test_the_loop_does_not_wait_while_the_kernel_takes_the_interface_down(
    connect: Connect, end: str
) -> None:
    transport, protocol = await connect()
    here, closers = threading.get_ident(), []

    def close(fd: int) -> None:
        closers.append(threading.get_ident())
        os.close(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "close", close)
        if end == "delete":
            transport.link.delete()
        else:
            getattr(transport, end)()
        await until(lambda: protocol.lost, "the loss was told")
    assert len(closers) == 1
    assert here not in closers


# -- settings -----------------------------------------------------------------------------------------


async def test_the_interface_is_as_it_was_asked_for(connect: Connect, space: Namespace) -> None:
    transport, _ = await connect(
        "asked%d", mode="tap", addresses=[f"{HERE}/24", "fd00::1/64"], mtu=1400, txqueuelen=77,
        hwaddr="02:00:00:00:00:07", routes=["10.77.0.0/16", "fd77::/32"], sndbuf=50_000,
        owner=1234, group="root",
    )  # fmt: skip
    assert transport.name == "asked0"
    (told,) = ip(space, "-d", "addr", "show", "asked0")
    assert (told["mtu"], told["txqlen"], told["address"]) == (1400, 77, "02:00:00:00:00:07")
    assert "UP" in told["flags"]
    assert {a["local"]: a["prefixlen"] for a in told["addr_info"]} == {HERE: 24, "fd00::1": 64}
    assert not any(a.get("tentative") for a in told["addr_info"])
    data = told["linkinfo"]["info_data"]
    assert (data["type"], str(data["user"]), str(data["group"])) == ("tap", "1234", "root")
    routes = {route["dst"] for version in ("-4", "-6") for route in ip(space, version, "route")}
    assert {"10.77.0.0/16", "fd77::/32"} <= routes
    extra = transport.get_extra_info
    assert (extra("ifname"), extra("mode"), extra("mtu"), extra("sndbuf")) == ("asked0", "tap", 1400, 50_000)
    assert extra("addresses") == [ip_interface(f"{HERE}/24"), ip_interface("fd00::1/64")]
    assert extra("ifindex") == told["ifindex"]
    assert {route.destination for route in transport.link.routes()} >= {ip_network("10.77.0.0/16")}


async def test_with_a_peer_the_link_is_from_one_address_to_another(
    connect: Connect, space: Namespace
) -> None:
    transport, _ = await connect(addresses="10.9.0.1/32", peer="10.9.0.2")
    (told,) = ip(space, "addr", "show", transport.name)
    assert told["addr_info"][0]["address"] == "10.9.0.2"
    with udp_socket(space) as sock:
        transport.sendto(udp(b"by the peer"))
        assert sock.recv(100) == b"by the peer"


async def test_addresses_can_be_used_as_soon_as_it_is_there(connect: Connect, space: Namespace) -> None:
    for number in range(10):
        await connect(addresses=[f"fd0{number}::1/64"])

        def bound(address: str = f"fd0{number}::1") -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.bind((address, 5000))

        space.inside(bound)


async def test_an_interface_without_link_local_addresses_says_nothing(connect: Connect) -> None:
    transport, protocol = await connect()
    await asyncio.sleep(0.2)  # a router would be asked for within this time
    assert protocol.records == []
    assert transport.get_extra_info("addresses") == [ip_interface(f"{HERE}/24")]


async def test_a_protocol_is_told_of_changes_of_the_link(connect: Connect) -> None:
    class Watching(RecordingDatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.states: list[LinkState] = []
            super().connection_made(transport)

        def link_changed(self, state: LinkState) -> None:
            self.states.append(state)

    transport, protocol = await connect(factory=Watching)
    states: list[LinkState] = protocol.states  # type: ignore[attr-defined]
    transport.link.set(up=False)
    await until(lambda: states and not states[-1].up, "it was told that it is down", 10)
    transport.link.set(up=True, mtu=1234)
    await until(lambda: states[-1].up and states[-1].mtu == 1234, "it was told that it is up again", 10)
    transport.set_carrier(False)
    await until(lambda: not states[-1].running, "it was told that the cable is out", 10)
    assert states[-1].up
    told = len(states)
    transport.link.delete()
    await until(lambda: protocol.lost, "the loss was told")
    assert len(states) <= told + 1


async def test_without_a_carrier_it_begins_unplugged(connect: Connect) -> None:
    transport, _ = await connect(carrier=False)
    state = transport.link.state()
    assert (state.up, state.carrier, state.running) == (True, False, False)
    transport.set_carrier(True)
    assert transport.link.state().carrier
    await until(lambda: transport.link.state().running, "packets pass", 10)


async def test_a_persistent_interface_stays_and_can_be_attached_to_again(connect: Connect) -> None:
    transport, _ = await connect("stays", persist=True)
    await transport.aclose()
    again, _ = await connect("stays", addresses=())
    assert again.get_extra_info("addresses") == [ip_interface(f"{HERE}/24")]
    again.set_persist(False)
    await again.aclose()
    await connect("stays", mode="tap")  # it has gone: another kind of it can be made


async def test_queues_share_an_interface_and_can_step_out(space: Namespace) -> None:
    factory = RecordingDatagramProtocol
    options: dict[str, Any] = {"addresses": [f"{HERE}/24"], "netns": space, **QUIET}
    async with await connect_tuntap_queues(factory, "many", queues=3, **options) as group:
        assert [transport.get_extra_info("queue") for transport in group.transports] == [0, 1, 2]
        assert (group.name, len(group), len(list(group))) == ("many", 3, 3)
        with udp_socket(space) as sock:
            for port in range(200):
                sock.sendto(b"spread", ("10.9.0.2", 1000 + port))

            def counts() -> list[int]:
                return [len(protocol.records) for protocol in group.protocols]

            await until(lambda: sum(counts()) == 200, "all of them came")
            assert sum(1 for count in counts() if count) > 1
            for transport in group.transports[1:]:
                transport.detach_queue()
            before = counts()
            for port in range(200):
                sock.sendto(b"to one", ("10.9.0.2", 1000 + port))
            await until(lambda: sum(counts()) == 400, "all of them came")
            assert counts()[1:] == before[1:]
            group.transports[1].attach_queue()
            for number, transport in enumerate(group.transports):
                transport.sendto(udp(b"from %d" % number))
                assert sock.recv(100) == b"from %d" % number
        group.transports[0].abort()
        await asyncio.sleep(0.01)
        assert group.link.state().up  # as long as one of them is there
    with pytest.raises(OSError, match="has ended"):
        group.link.state()


async def test_a_descriptor_that_is_attached_already_is_adopted(space: Namespace) -> None:
    flags = tun_device.TUN
    fd, _ = space.inside(lambda: tun_device.open_device("given", flags))
    transport, _ = await connect_tuntap(RecordingDatagramProtocol, fd=fd)
    assert (transport.name, transport.get_extra_info("pi")) == ("given", True)
    transport.link.set(up=True, link_local=False)
    transport.link.add_address(f"{HERE}/24")
    with udp_socket(space) as sock:
        transport.sendto(udp(b"adopted"))
        assert sock.recv(100) == b"adopted"
    with pytest.raises(DescriptorInUseError):
        await connect_tuntap(RecordingDatagramProtocol, fd=fd)
    assert transport.detach().file == fd
    os.close(fd)


@pytest.mark.parametrize("given", ["a pipe", "no interface", "a header", "options"])
async def test_a_descriptor_that_cannot_be_adopted_stays_the_callers(space: Namespace, given: str) -> None:
    options: dict[str, Any] = {}
    if given == "a pipe":
        fd, other = os.pipe()
        os.close(other)
    elif given == "no interface":
        fd = os.open("/dev/net/tun", os.O_RDWR)
    else:
        flags = tun_device.TUN | tun_device.NO_PI | (tun_device.VNET_HDR if given == "a header" else 0)
        fd, _ = space.inside(lambda: tun_device.open_device("g%d", flags))
        options = {"mtu": 1400} if given == "options" else {}
    match = {
        "a pipe": "is no descriptor of a TUN or TAP",
        "no interface": "is attached to no interface",
        "a header": "vnet_hdr is 'raw' or 'split'",
        "options": "is set already: mtu cannot be given",
    }[given]
    blocking = os.get_blocking(fd)
    with pytest.raises((OSError, ValueError), match=match):
        await connect_tuntap(RecordingDatagramProtocol, fd=fd, **options)
    assert os.get_blocking(fd) == blocking
    os.close(fd)


async def test_packets_by_await(space: Namespace) -> None:
    async with open_tuntap("by", addresses=[f"{HERE}/24"], netns=space, link_local=False) as tun:
        assert (tun.name, tun.link.state().mtu) == ("by", 1500)
        with udp_socket(space) as sock:
            sock.sendto(b"one", ("10.9.0.2", 9))
            sock.sendto(b"two", ("10.9.0.2", 9))
            got = []
            async for packet in tun:
                got.append(packet[28:])
                if len(got) == 2:
                    break
            assert got == [b"one", b"two"]
            await tun.send(udp(b"back"))
            assert sock.recv(10) == b"back"
        with pytest.raises(OSError, match="IP version 7"):
            await tun.send(b"text")
    tun = await open_tuntap("by", netns=space)  # the same, awaited; and the name is free again
    await tun.aclose()


async def test_it_works_in_a_namespace_that_is_given_by_path_or_process(space: Namespace) -> None:
    child = await asyncio.to_thread(
        space.inside, lambda: __import__("subprocess").Popen(["sleep", "60"])
    )
    try:
        for netns in (child.pid, f"/proc/{child.pid}/ns/net"):
            async with open_tuntap("where", netns=netns) as tun:
                assert space.inside(lambda: socket.if_nametoindex("where")) == tun.link.state().ifindex
    finally:
        child.kill()
        child.wait()


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("a/b", {}, "'a/b' is no name of an interface: it has no slash"),
        ("sixteen-bytes-xx", {}, "is 16 bytes long, and the name of an interface has 15"),
        ("", {}, "is no name of an interface"),
        ("%d%d", {}, "but one %d"),
        ("a\0b", {}, "is no name of an interface"),
        ("\ud800", {}, "it cannot be encoded"),
        (None, {"sndbuf": 0}, "sndbuf .0. is a number from 1"),
        (None, {"owner": -1}, "user .-1. is a number from 0"),
        (None, {"txqueuelen": 1 << 32}, "txqueuelen .4294967296. is a number from 0"),
        (None, {"mode": "ton"}, "mode is 'tun' or 'tap', not 'ton'"),
        (None, {"addresses": ["10.9.0.1/33"]}, "'10.9.0.1/33' is no address of an interface; one is"),
        (None, {"addresses": ["host"]}, "as 10.9.0.1/24 or fd00::1/64|written as 10.9.0.1/24"),
        (None, {"addresses": "10.9.0.1", "peer": "fd00::1"}, "an address of its family"),
        (None, {"mtu": 67}, "mtu .67. is a number from 68 to 65535"),
        (None, {"mtu": 1279, "addresses": ["10.9.0.1/24", "fd00::1/64"]}, "IPv6 takes an MTU of 1280"),
        (None, {"hwaddr": "02:00:00:00:00:01"}, "a TUN interface has no hardware address"),
        (None, {"mode": "tap", "hwaddr": "nonsense"}, "no hardware address; one is written as 02:"),
        (None, {"mode": "tap", "hwaddr": "01:00:00:00:00:01"}, "the address of a group"),
        (None, {"vnet_hdr": "cooked"}, "vnet_hdr is None, 'raw' or 'split'"),
        (None, {"pi": True, "vnet_hdr": "raw"}, "not both"),
        (None, {"owner": "nobody-of-this-name"}, "there is no user 'nobody-of-this-name'"),
        (None, {"routes": ["10.0.0.0/8"], "up": False}, "up is False"),
        (None, {"routes": ["10.0.0.1/8"]}, "has host bits set"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_opened(
    name: str | None, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        await connect_tuntap(RecordingDatagramProtocol, name, **options)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        (b"tun0", {}, "the name of an interface is a str, not b'tun0'"),
        (None, {"mtu": "1400"}, "mtu is a whole number, not '1400'"),
        (None, {"mtu": 1400.5}, "mtu is a whole number"),
        (None, {"sndbuf": "much"}, "sndbuf is a whole number"),
        (None, {"owner": 1.5}, "user is a whole number"),
    ],
)
async def test_what_is_of_the_wrong_type_is_named(name: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        await connect_tuntap(RecordingDatagramProtocol, name, **options)


async def test_a_name_that_is_no_utf_8_can_be_used(connect: Connect, space: Namespace) -> None:
    transport, _ = await connect("\udc80odd")
    with Link("\udc80odd", space) as link:
        assert (transport.name, link.state().name) == ("\udc80odd", "\udc80odd")


async def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="unknown options: mtuu"):
        await connect_tuntap(RecordingDatagramProtocol, mtuu=5)  # type: ignore[call-arg]


async def test_an_interface_that_is_in_use_or_of_another_kind_says_so(connect: Connect) -> None:
    await connect("taken")
    with pytest.raises(OSError, match="'taken' is in use by another descriptor") as busy:
        await connect("taken")
    assert busy.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="is a TUN with one queue, and a TAP with one queue was asked") as kind:
        await connect("taken", mode="tap")
    assert kind.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="'lo' is no TUN or TAP interface, but a device"):
        await connect("lo")


@pytest.mark.parametrize(
    ("number", "match"),
    [
        (errno.ENOENT, "modprobe tun"),
        (errno.ENODEV, "modprobe tun"),
        (errno.EACCES, "chmod 0666 /dev/net/tun"),
        (errno.EPERM, "--device /dev/net/tun"),
    ],
)
async def test_a_node_that_cannot_be_opened_says_what_to_do(number: int, match: str) -> None:
    with FaultPlan() as plan:
        plan.fail("open", errno=number)
        with pytest.raises(OSError, match=match) as told:
            await connect_tuntap(RecordingDatagramProtocol)
    assert told.value.errno == number


async def test_no_privilege_says_what_it_takes() -> None:
    with FaultPlan() as plan:
        plan.fail("ioctl", errno=errno.EPERM)
        with pytest.raises(OSError, match=r"CAP_NET_ADMIN.*unshare -rn.*ip tuntap add"):
            await connect_tuntap(RecordingDatagramProtocol)


async def test_any_call_that_fails_leaves_nothing_behind(space: Namespace) -> None:
    before = descriptors()
    names = ("open", "ioctl", "setns", "send", "recvfrom", "fcntl", "set_blocking")
    failures: list[int | None] = []
    for name in names:
        for nth in range(1, 20):
            with FaultPlan() as plan:
                plan.fail(name, nth, errno.ENOMEM)
                try:
                    transport, protocol = await connect_tuntap(
                        RecordingDatagramProtocol, "fails", netns=space, mtu=1400, addresses="10.9.0.1/24",
                        vnet_hdr="split",
                    )  # fmt: skip
                except OSError as exc:
                    failures.append(exc.errno)
                else:
                    transport.abort()
                    await until(lambda p=protocol: p.lost, "it was lost")  # type: ignore[misc]
                if not plan.injected:
                    break
    gc.collect()
    assert descriptors() == before
    assert len(failures) > 10
    assert set(failures) == {errno.ENOMEM}


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_run_that_returns_right_after_the_end_leaks_nothing(
    space: Namespace, new_loop: Any, how: str
) -> None:
    class Watching(RecordingDatagramProtocol):
        def link_changed(self, state: LinkState) -> None:
            """So that there is a watch to be closed as well."""

    async def run() -> None:
        transport, _ = await connect_tuntap(Watching, netns=space, addresses=f"{HERE}/24")
        transport.sendto(udp(b"on its way"))
        getattr(transport, how)()

    before = descriptors()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())
    assert descriptors() == before


# -- endpoints ----------------------------------------------------------------------------------------


async def test_packets_go_over_a_byte_stream_with_their_lengths(space: Namespace) -> None:
    near, other = socket.socketpair()
    far = FarEnd(other)
    wire, _ = await connect_fd(Quiet, near)
    url = f"tun:piped?addr={HERE}/24&mtu=1400&netns=/proc/self/fd/{space.fileno()}"
    tun, _ = await connect_url(Quiet, url)
    tun.link.set(link_local=False)
    assert (tun.name, tun.link.state().mtu) == ("piped", 1400)
    relaying = asyncio.ensure_future(relay(tun, wire))
    packet = udp(b"over a stream")
    with udp_socket(space) as sock:
        await far.send(len(packet).to_bytes(2, "big") + packet)
        data, source = await asyncio.to_thread(sock.recvfrom, 100)
        assert data == b"over a stream"
        sock.sendto(b"and back", source)
        answer = b""
        while not answer.endswith(b"and back"):
            size = int.from_bytes(await far.recv_exactly(2), "big")
            answer = await far.recv_exactly(size)
    far.close()
    result = await relaying
    assert (result.b_to_a.records, result.error) == (1, None)


async def test_packets_go_over_datagrams_as_they_are(space: Namespace) -> None:
    near, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far = FarEnd(other)
    wire, _ = await connect_packet_fd(Quiet, near)
    tun, _ = await connect_url(Quiet, f"tun:?addr={HERE}/24&netns=/proc/self/fd/{space.fileno()}")
    relaying = asyncio.ensure_future(relay(tun, wire))
    with udp_socket(space) as sock:
        await far.send(udp(b"as it is"))
        assert await asyncio.to_thread(sock.recv, 100) == b"as it is"
    far.close()
    await relaying


async def test_two_commands_are_a_tunnel(space: Namespace, tmp_path: Path) -> None:
    """``python -m fdtransport`` twice, and a connection between them, through which UDP goes."""
    wire, commands = tmp_path / "wire", []
    with Namespace() as there:
        spaces = space, there
        tuns = [f"tun:tun{n}?addr=10.9.0.{n}/24&netns=/proc/self/fd/{spaces[n - 1].fileno()}" for n in (1, 2)]
        try:
            for ends in ((f"unix+listen:{wire}", tuns[0]), (tuns[1], f"unix:{wire}")):
                commands.append(
                    await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "fdtransport", *ends,
                        pass_fds=[one.fileno() for one in spaces],
                        cwd=Path(fdtransport.__file__).parent.parent,
                    )
                )  # fmt: skip
                await until(wire.exists, "the first one listens", 20)
            up = {n: Link("lo", spaces[n - 1]) for n in (1, 2)}
            await until(lambda: all(_is_up(up[n], f"tun{n}") for n in (1, 2)), "both are there", 20)
            with udp_socket(space, "10.9.0.1") as here, udp_socket(there, "10.9.0.2") as other:
                for source, sink, to in ((here, other, "10.9.0.2"), (other, here, "10.9.0.1")):
                    source.sendto(b"through both", (to, 5000))
                    assert await asyncio.to_thread(sink.recv, 100) == b"through both"
            for link in up.values():
                link.close()
        finally:
            for command in commands:
                with contextlib.suppress(ProcessLookupError):  # the other one's end was its own
                    command.terminate()
                await command.wait()


def _is_up(link: Link, name: str) -> bool:
    try:
        return link.find(name).up
    except OSError:
        return False


# -- without privilege --------------------------------------------------------------------------------

UNPRIVILEGED = """
import asyncio, os, socket, sys
from network import udp
from fdtransport import connect_tuntap
from fdtransport.testing import RecordingDatagramProtocol

async def main():
    if len(sys.argv) == 1:
        name, options = None, {"addresses": ["10.9.0.1/24", "fd00::1/64"], "mtu": 1400, "link_local": False}
    else:
        name, options = sys.argv[1], {}
        for wrong, more in ((name, {"addresses": "10.8.0.1/24"}), ("other", {})):
            try:
                await connect_tuntap(RecordingDatagramProtocol, wrong, **more)
            except PermissionError as exc:
                print(exc)
    transport, protocol = await connect_tuntap(RecordingDatagramProtocol, name, **options)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("10.9.0.1", 5000))
        sock.settimeout(5)
        transport.sendto(udp(b"unprivileged"))
        print(sock.recv(100), open("/proc/self/uid_map").read().split())
    await transport.aclose()

asyncio.run(main())
"""


async def run_unprivileged(before: str, *command: str) -> bytes:
    """What a command of a user without privilege says, with a node that is 0666, as distributions have it.

    All of it is in a mount namespace and a network namespace of its own. *before*: what root does there.
    """
    for tool in ("unshare", "setpriv", "mknod", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here")
    # The interpreter and the library may be where only their owner can go: they get another place.
    places = {
        "python": Path(sys.base_prefix),
        "library": Path(fdtransport.__file__).parent.parent,
        "tests": Path(__file__).parent,
        "root": Path(__file__).parent.parent,
        "site": Path(typing_extensions.__file__).parent,
    }
    script = "\n".join([
        "mount -t tmpfs none /mnt; mknod -m 666 /mnt/tun c 10 200; mount --bind /mnt/tun /dev/net/tun",
        *(f"mkdir /mnt/{name}; mount --bind '{path}' /mnt/{name}" for name, path in places.items()),
        before,
        'exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"',
    ])  # fmt: skip
    python = f"/mnt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    process = await asyncio.create_subprocess_exec(
        "unshare", "-m", "-n", "sh", "-ec", script, "sh",
        *(python if part == "python" else part for part in command),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/",
        env={
            "PYTHONPATH": "/mnt/library:/mnt/tests:/mnt/root:/mnt/site",
            "LD_LIBRARY_PATH": "/mnt/python/lib",
            "PATH": os.environ["PATH"],
        },
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    return out


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to make a device node for everybody")


@as_root
async def test_a_user_without_privilege_runs_it_in_a_namespace_of_their_own() -> None:
    out = await run_unprivileged("", "unshare", "-rn", "python", "-c", UNPRIVILEGED)
    assert out.split(b"\n")[0] == b"b'unprivileged' ['0', '65534', '1']", out.decode()


@as_root
async def test_a_user_without_privilege_uses_an_interface_that_was_made_for_them() -> None:
    before = (
        "ip tuntap add made mode tun user 65534; ip addr add 10.9.0.1/24 dev made; ip link set made up;"
        " ip link set lo up"
    )
    out = await run_unprivileged(before, "python", "-c", UNPRIVILEGED, "made")
    address, other, got = out.decode().splitlines()
    assert "CAP_NET_ADMIN" in address
    assert "10.8.0.1/24" in address
    assert "CAP_NET_ADMIN" in other
    assert "unshare -rn" in other
    assert got.startswith("b'unprivileged' ['0', '0', "), out.decode()
