"""Records: boundaries, errors of one record, batches, bounded queues; on every kind that has them here."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import itertools
import os
import signal
import socket
import struct
import sys
import weakref
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import lost, receive, turns, until

from fdtransport import BufferLimitError, CloseReason, PacketTransport, UnpollableFileError
from fdtransport._core import backpressure, syscalls
from fdtransport._core.opening import open_transport
from fdtransport._core.packet import HARD_LIMIT, RECORD_BYTES, RECORDS
from fdtransport.testing import FOREVER, FaultPlan, RecordingDatagramProtocol, idle_cost

KINDS = {"seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}


class Batches(RecordingDatagramProtocol):
    """Takes the records of a wake-up in one call."""

    def __init__(self, **hooks):
        super().__init__(**hooks)
        self.batches = []

    def packets_received(self, records):
        self.batches.append(records)
        for data, addr in records:
            self.datagram_received(data, addr)


async def connect_packet_fd(factory, fd, **options):
    """The helper of that name gives sockets a transport of their own, which ``test_datagrams`` tests."""
    return await open_transport(PacketTransport, factory, fd, **options)


@asynccontextmanager
async def packets(kind="seqpacket", protocol=None, **options):
    """A record transport, its protocol, and a non-blocking socket as the far end."""
    near, far = socket.socketpair(socket.AF_UNIX, KINDS[kind])
    far.setblocking(False)
    with near, far:
        transport, protocol = await connect_packet_fd(
            lambda: RecordingDatagramProtocol() if protocol is None else protocol, near, **options
        )
        try:
            async with asyncio.timeout(20):
                yield transport, protocol, far
        finally:
            transport.abort()
            await lost(protocol)


async def connect(fd, **options):
    return await connect_packet_fd(RecordingDatagramProtocol, fd, **options)


def block(transport, size=1000):
    """Send numbered records until one has to wait; how many were sent."""
    count = 0
    while not transport.get_write_buffer_size():
        transport.sendto(record(count, size))
        count += 1
    return count


def record(n, size=1000):
    return b"%6d" % n + bytes([n % 251]) * (size - 6)


# -- boundaries ---------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(list(KINDS)),
    batches=st.booleans(),
    there=st.lists(st.binary(max_size=300), max_size=100),
    back=st.lists(st.binary(max_size=300), max_size=100),
)
async def test_boundaries_are_kept_both_ways(kind, batches, there, back):
    protocol = Batches() if batches else RecordingDatagramProtocol()
    async with packets(kind, protocol) as (transport, protocol, far):
        receiving = asyncio.create_task(receive(far, len(there)))
        for data in there:
            transport.sendto(data)
        for data in back:
            while True:
                try:
                    far.send(data)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0)
        assert await receiving == there
        await until(lambda: len(protocol.records) == len(back))
        assert protocol.records == back


@pytest.mark.parametrize("kind", KINDS)
async def test_an_empty_record_is_no_end_of_file(kind):
    async with packets(kind) as (transport, protocol, far):
        for n in range(1, 4):
            far.send(b"")
            await until(lambda n=n: len(protocol.records) == n)
            transport.sendto(b"")
            assert await receive(far, 1) == [b""]
        far.send(b"x")
        await until(lambda: len(protocol.records) == 4)
        assert protocol.records == [b"", b"", b"", b"x"]


async def test_empty_records_before_others_are_delivered_though_the_peer_has_gone():
    async with packets() as (transport, protocol, far):
        for data in (b"", b"one", b"", b"", b"two"):
            far.send(data)
        far.close()
        await lost(protocol)
        assert protocol.records == [b"", b"one", b"", b"", b"two"]
        assert (protocol.reason, transport.close_reason) == (None, CloseReason.PEER)


async def test_200_records_pass_a_peer_that_reads_late():
    async with packets() as (transport, protocol, far):
        for n in range(200):
            transport.sendto(record(n, 4000))
        assert protocol.paused
        assert await receive(far, 200) == [record(n, 4000) for n in range(200)]
        await until(lambda: not protocol.paused)
        assert protocol.names == ["made", "paused", "resumed"]
        assert transport.get_write_buffer_size() == 0


async def test_a_record_longer_than_max_size_is_cut():
    async with packets(max_size=4) as (_transport, protocol, far):
        far.send(b"abcdef")
        far.send(b"gh")
        await until(lambda: len(protocol.records) == 2)
        assert protocol.records == [b"abcd", b"gh"]


@pytest.mark.parametrize(
    ("wrong", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("x", TypeError)]
)
async def test_a_max_size_of_no_use_is_refused(wrong, error):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        with pytest.raises(error):
            await connect(near, max_size=wrong)
        assert near.getblocking()


# -- the end ------------------------------------------------------------------------------------


async def test_the_end_of_a_packet_pipe():
    read, write = os.pipe2(os.O_DIRECT)
    transport, protocol = await connect(read)
    for data in (b"one", b"two", b"three"):
        os.write(write, data)
    os.close(write)
    await lost(protocol)
    assert protocol.records == [b"one", b"two", b"three"]
    assert (protocol.reason, transport.close_reason, transport.hung_up) == (None, CloseReason.PEER, True)


async def test_writing_to_a_packet_pipe():
    read, write = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
    transport, protocol = await connect(write)
    count = block(transport)
    for n in range(count, count + 50):
        transport.sendto(record(n))
    assert transport.get_write_buffer_size() == 51_000
    for n in range(count + 50):
        while True:
            try:
                data = os.read(read, 1 << 16)
                break
            except BlockingIOError:
                await asyncio.sleep(0)
        assert data == record(n)
    with pytest.raises(NotImplementedError):
        transport.pause_reading()
    os.close(read)
    await lost(protocol)  # it has nothing to write, and notices all the same
    assert transport.close_reason is CloseReason.PEER


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [10, 3 * RECORDS])
async def test_close_sends_what_is_queued(kind, count):
    async with packets(kind) as (transport, protocol, far):
        sent = block(transport)
        for n in range(sent, sent + count):
            transport.sendto(record(n))
        transport.close()
        transport.sendto(record(sent + count))  # the flush is under way: sent as well
        assert transport.is_closing()
        assert not transport.is_reading()
        await turns()
        assert not protocol.lost
        assert await receive(far, sent + count + 1) == [record(n) for n in range(sent + count + 1)]
        await lost(protocol)
        assert (protocol.reason, transport.close_reason) == (None, CloseReason.LOCAL)


async def test_abort_drops_what_is_queued():
    async with packets() as (transport, protocol, far):
        sent = block(transport)
        transport.sendto(record(sent))
        transport.abort()
        await lost(protocol)
        assert await receive(far, sent - 1) == [record(n) for n in range(sent - 1)]
        assert far.recv(100) == b""
        assert (protocol.reason, transport.close_reason) == (None, CloseReason.ABORT)


async def test_aclose_is_bounded():
    async with packets() as (transport, protocol, _far):
        block(transport)
        await transport.aclose(timeout=0.02)
        assert protocol.lost
        assert transport.close_reason is CloseReason.ABORT


@pytest.mark.parametrize("close_first", [False, True])
async def test_detach_gives_the_descriptor_and_the_unsent_records_back(close_first):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.setblocking(False)
    with near, far:
        transport, protocol = await connect(near)
        sent = block(transport)
        transport.sendto(b"")
        transport.sendto(b"last")
        if close_first:
            transport.close()
        file, unread, unsent = transport.detach()
        assert file is near
        assert unread == b""
        assert unsent == [(record(sent - 1), None), (b"", None), (b"last", None)]
        assert near.getblocking()
        await lost(protocol)
        assert await receive(far, sent - 1) == [record(n) for n in range(sent - 1)]
        near.send(b"mine again")
        assert await receive(far, 1) == [b"mine again"]
        with pytest.raises(OSError, match="has ended"):
            transport.detach()


async def test_detach_of_an_empty_queue_gives_no_records():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        transport, protocol = await connect(near)
        assert transport.detach() == (near, b"", [])
        await lost(protocol)


async def test_flushed_waits_for_the_last_record():
    async with packets() as (transport, _protocol, far):
        sent = block(transport)
        flushing = asyncio.create_task(transport.flushed())
        await turns()
        assert not flushing.done()
        await receive(far, sent)
        await flushing
        assert transport.get_write_buffer_size() == 0


async def test_a_hang_up_is_noticed_while_reading_is_paused():
    async with packets() as (transport, protocol, far):
        transport.pause_reading()
        far.send(b"last words")
        await turns()
        assert not transport.hung_up
        far.close()
        async with asyncio.timeout(1):
            await transport.wait_hangup()
        assert (transport.hung_up, protocol.records, protocol.lost) == (True, [], False)
        cost = await idle_cost(0.1)
        assert cost.cpu < 0.05, cost
        transport.resume_reading()
        await lost(protocol)
        assert protocol.records == [b"last words"]


@pytest.mark.parametrize("batches", [False, True])
async def test_records_before_a_failed_send_are_delivered_first(batches):
    async with packets(protocol=Batches() if batches else None) as (transport, protocol, far):
        transport.pause_reading()
        count = 0
        try:
            while count < 3 * RECORDS:
                far.send(record(count, 100))
                count += 1
        except BlockingIOError:
            pass
        far.close()
        transport.resume_reading()
        transport.sendto(b"nobody there")
        assert not protocol.records, "delivered inside sendto()"
        assert not transport.is_reading()
        await lost(protocol)
        assert protocol.records == [record(n, 100) for n in range(count)]
        assert protocol.reason.errno == errno.EPIPE
        assert transport.close_reason is CloseReason.ERROR


async def test_records_before_a_failed_send_wait_for_a_paused_reader():
    async with packets() as (transport, protocol, far):
        transport.pause_reading()
        far.send(b"one")
        far.close()
        transport.sendto(b"nobody there")
        await turns(20)
        assert (protocol.records, protocol.lost) == ([], False)
        transport.resume_reading()
        await lost(protocol)
        assert protocol.records == [b"one"]
        assert protocol.reason.errno == errno.EPIPE


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("paused", [False, True])
async def test_records_before_a_reset_are_delivered_first(paused, batches):
    """The kernel tells the reset first, and what came before it afterwards."""
    async with packets(protocol=Batches() if batches else None) as (transport, protocol, far):
        transport.pause_reading()
        transport.sendto(b"never read")
        count = 0
        try:
            while count < 2 * RECORDS:
                far.send(record(count, 100))
                count += 1
        except BlockingIOError:
            pass
        far.close()
        if paused:
            await transport.wait_hangup()
        transport.resume_reading()
        await lost(protocol)
        assert protocol.records == [record(n, 100) for n in range(count)]
        assert isinstance(protocol.reason, ConnectionResetError)
        assert transport.close_reason is CloseReason.ERROR


# -- errors of one record -----------------------------------------------------------------------


@asynccontextmanager
async def refused():
    """A transport on a connected UDP socket whose peer is not there, and a socket that can become it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
            reserved.bind(("127.0.0.1", 0))
            address = reserved.getsockname()
        near.bind(("127.0.0.1", 0))
        near.connect(address)
        transport, protocol = await connect(near)

        def peer():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.bind(address)
            sock.connect(near.getsockname())
            return sock

        try:
            async with asyncio.timeout(20):
                yield transport, protocol, peer
        finally:
            transport.abort()
            await lost(protocol)


def errnos(protocol):
    return [exc.errno for exc in protocol.errors]


async def test_a_refused_datagram_is_told_and_later_ones_arrive():
    async with refused() as (transport, protocol, peer):
        for n in range(1, 5):
            transport.sendto(b"refused")
            await until(lambda n=n: len(protocol.errors) == n)
            with peer() as far:
                far.send(b"good %d" % n)
                await until(lambda n=n: len(protocol.records) == n)
                transport.sendto(b"answer")
                assert await receive(far, 1) == [b"answer"]
        assert errnos(protocol) == [errno.ECONNREFUSED] * 4
        assert protocol.records == [b"good %d" % n for n in range(1, 5)]


async def test_a_refusal_that_the_next_sendto_meets_is_told_and_later_ones_arrive():
    async with refused() as (transport, protocol, peer):
        for n in range(1, 20):
            transport.sendto(b"refused")
            transport.sendto(b"meets the refusal")  # before the loop can
            assert errnos(protocol).count(errno.ECONNREFUSED) >= n
            await turns(n % 4)
        await turns(20)
        with peer() as far:
            far.send(b"good")
            await until(lambda: protocol.records)
            transport.sendto(b"answer")
            assert await receive(far, 1) == [b"answer"]


async def test_errors_that_a_socket_keeps_for_recvmsg_do_not_spin_the_loop():
    """IP_RECVERR of ip(7): the poller reports POLLERR until MSG_ERRQUEUE has been read."""
    async with refused() as (transport, protocol, peer):
        with socket.socket(fileno=os.dup(transport.fileno())) as sock:
            sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        for n in range(1, 4):
            transport.sendto(b"refused")
            await until(lambda n=n: len(protocol.errors) == n)
            await until(lambda: not syscalls.poll_now(transport.fileno(), 0))
        with peer() as far:
            far.send(b"good")
            await until(lambda: protocol.records)
        assert errnos(protocol) == [errno.ECONNREFUSED] * 3


async def test_a_refused_datagram_is_no_hang_up():
    async with refused() as (transport, protocol, peer):
        waiting = asyncio.create_task(transport.wait_hangup())
        await turns()
        for n in range(1, 4):
            transport.sendto(b"refused")
            await until(lambda n=n: len(protocol.errors) == n)
            await turns(20)
        assert not transport.hung_up
        assert not waiting.done()
        waiting.cancel()
        with peer() as far:
            far.send(b"good")
            await until(lambda: protocol.records)


async def test_a_refusal_while_reading_is_paused_is_told_afterwards():
    async with refused() as (transport, protocol, peer):
        for n in range(1, 4):
            transport.pause_reading()
            transport.sendto(b"refused")
            await turns(20)
            cost = await idle_cost(0.05)
            assert cost.cpu < 0.03, cost
            assert (len(protocol.errors), transport.hung_up) == (n - 1, False)
            with peer() as far:
                far.send(b"good")
                await turns(10)
                transport.resume_reading()
                await until(lambda n=n: len(protocol.records) == n)
                assert errnos(protocol) == [errno.ECONNREFUSED] * n


@pytest.mark.parametrize("kind", [*KINDS, "udp"])
async def test_a_record_that_is_too_long_is_told_and_the_next_one_goes(kind):
    if kind == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
            near.connect(("127.0.0.1", 9))
            transport, protocol = await connect(near)
            transport.sendto(bytes(100_000))
            assert errnos(protocol) == [errno.EMSGSIZE]
            assert not transport.is_closing()
            transport.close()
            await lost(protocol)
        return
    async with packets(kind) as (transport, protocol, far):
        transport.sendto(bytes(10_000_000))
        assert errnos(protocol) == [errno.EMSGSIZE]
        sent = block(transport)
        transport.sendto(bytes(1_000_000))  # queued: found out when its turn comes
        transport.sendto(b"next")
        got = await receive(far, sent + 1)
        assert got == [*(record(n) for n in range(sent)), b"next"]
        assert errnos(protocol) == [errno.EMSGSIZE] * 2
        assert transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_what_nobody_receives_any_more(kind):
    """A datagram socket whose peer has gone refuses record by record; a connection ends."""
    async with packets(kind) as (transport, protocol, far):
        far.close()
        if kind == "datagram":
            await turns(10)
            for n in range(1, 4):
                transport.sendto(b"x")
                assert errnos(protocol) == ([errno.ECONNREFUSED] + [errno.ENOTCONN] * 2)[:n]
            assert not transport.is_closing()
        else:
            await lost(protocol)


# What ip(7) and udp(7) tell about an earlier datagram; what a socket or a firewall tells about this one.
ANSWERS = [
    errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN,
    errno.EMSGSIZE, errno.EACCES, errno.ENOPROTOOPT, errno.EPROTO, errno.EOPNOTSUPP,
]  # fmt: skip
REFUSALS = [errno.EPERM, errno.ENOTCONN, errno.EDESTADDRREQ, errno.EINVAL]


@pytest.mark.parametrize(
    ("name", "number"),
    [("read", number) for number in ANSWERS] + [("write", number) for number in (*ANSWERS, *REFUSALS)],
    ids=lambda value: errno.errorcode.get(value, value),
)
async def test_an_error_of_one_datagram_is_told_and_the_transport_lives(number, name):
    async with packets("datagram") as (transport, protocol, far):
        with FaultPlan() as plan:
            plan.fail(name, 1, number, fd=transport.fileno())
            transport.sendto(b"one")
            transport.sendto(b"two")
            far.send(b"three")
            await until(lambda: protocol.records)
            assert plan.injected == 1
        assert errnos(protocol) == [number]
        assert await receive(far, 1) == [b"one" if name == "read" else b"two"]
        assert not transport.is_closing()


async def test_an_error_of_one_queued_record_does_not_stop_the_others():
    async with packets() as (transport, protocol, far):
        with FaultPlan() as plan:
            sent = block(transport)
            for n in range(sent, sent + 5):
                transport.sendto(record(n))
            plan.fail("write", 3, errno.EHOSTUNREACH, fd=transport.fileno())
            got = await receive(far, sent + 4)
        assert errnos(protocol) == [errno.EHOSTUNREACH]
        assert got == [record(n) for n in range(sent + 5) if n != sent + 1]


@pytest.mark.parametrize("name", ["read", "write"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENODEV, errno.EBADFD], ids=errno.errorcode.get)
async def test_any_other_error_ends_the_transport_with_its_errno(number, name):
    async with packets() as (transport, protocol, far):
        with FaultPlan() as plan:
            plan.fail(name, 1, number, FOREVER, fd=transport.fileno())
            transport.sendto(b"one")
            if name == "read":
                far.send(b"two")
            await lost(protocol)
        assert protocol.reason.errno == number
        assert transport.close_reason is CloseReason.ERROR
        assert protocol.names == ["made", "lost"]


@pytest.mark.parametrize("name", ["read", "write"])
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR], ids=errno.errorcode.get)
async def test_eagain_and_eintr_are_invisible(number, name):
    async with packets() as (transport, protocol, far):
        with FaultPlan() as plan:
            plan.fail(name, 1, number, 3, fd=transport.fileno())
            for n in range(5):
                transport.sendto(record(n))
                far.send(record(n))
            assert await receive(far, 5) == [record(n) for n in range(5)]
            await until(lambda: len(protocol.records) == 5)
            assert plan.injected == 3
        assert protocol.records == [record(n) for n in range(5)]
        assert protocol.names == ["made"] + ["data"] * 5


async def test_enobufs_queues_and_tries_again():
    async with packets() as (transport, protocol, far):
        with FaultPlan() as plan:
            plan.fail("write", 1, errno.ENOBUFS, 3, fd=transport.fileno())
            for n in range(5):
                transport.sendto(record(n))
            assert transport.get_write_buffer_size() == 5000
            assert await receive(far, 5) == [record(n) for n in range(5)]
            assert plan.injected == 3
        assert protocol.names == ["made"]


async def test_enobufs_for_good_ends_the_transport_with_it(monkeypatch):
    monkeypatch.setattr(backpressure, "BREATH", 0.0001)
    async with packets() as (transport, protocol, _far):
        with FaultPlan() as plan:
            plan.fail("write", 1, errno.ENOBUFS, FOREVER, fd=transport.fileno())
            transport.sendto(b"never")
            await lost(protocol)
            assert plan.injected == backpressure.BREATHS + 1
        assert protocol.reason.errno == errno.ENOBUFS


@pytest.mark.parametrize("end", ["close", "abort", "detach"])
async def test_ending_while_it_waits_for_buffers(end):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.setblocking(False)
    with near, far:
        transport, protocol = await connect(near)
        with FaultPlan() as plan:
            plan.fail("write", 1, errno.ENOBUFS, 2, fd=transport.fileno())
            transport.sendto(b"one")
            answer = getattr(transport, end)()
            await lost(protocol)
            await asyncio.sleep(0.03)  # a late try finds nothing to do
        if end == "close":
            assert far.recv(10) == b"one"
        elif end == "detach":
            assert answer.unsent == [(b"one", None)]


async def test_a_socket_that_was_never_connected_ends_at_once():
    near = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    transport, protocol = await connect(near)
    await lost(protocol)
    assert protocol.reason.errno == errno.ENOTCONN
    assert transport.close_reason is CloseReason.ERROR


async def test_a_record_that_only_partly_went_is_told():
    async with packets() as (transport, protocol, far):
        with FaultPlan() as plan:
            plan.short("write", 3, times=1, fd=transport.fileno())
            transport.sendto(b"abcdef")
            transport.sendto(b"next")
        assert errnos(protocol) == [errno.EMSGSIZE]
        assert await receive(far, 2) == [b"abc", b"next"]


async def test_an_overrun_of_the_kernels_queue_is_told_and_the_transport_lives():
    """netlink(7) tells ENOBUFS once when records were lost; the next ones are there."""
    async with packets() as (transport, protocol, far):
        with FaultPlan() as plan:
            plan.fail("read", 2, errno.ENOBUFS, fd=transport.fileno())
            far.send(b"one")
            far.send(b"two")
            await until(lambda: len(protocol.records) == 2)
        assert protocol.names == ["made", "data", "error", "data"]
        assert errnos(protocol) == [errno.ENOBUFS]


# -- the queue ----------------------------------------------------------------------------------


async def test_the_protocol_is_paused_and_resumed_at_the_water_marks():
    async with packets() as (transport, protocol, far):
        transport.set_write_buffer_limits(high=10_000, low=2_000)
        sent = block(transport)
        while not protocol.paused:
            transport.sendto(record(sent))
            sent += 1
        assert transport.get_write_buffer_size() == 11_000
        transport.sendto(b"")  # an empty one counts as one byte
        assert transport.get_write_buffer_size() == 11_001
        await receive(far, sent + 1)
        await until(lambda: not protocol.paused)
        assert protocol.names == ["made", "paused", "resumed"]


async def test_what_would_pass_the_hard_limit_is_dropped_counted_and_told():
    async with packets() as (transport, protocol, far):
        transport.set_write_buffer_limits(high=4000, low=1000, hard=10_000)
        sent = block(transport)
        for n in range(sent, sent + 9):
            transport.sendto(record(n))
        assert (transport.get_write_buffer_size(), transport.dropped) == (10_000, 0)
        for dropped, data in enumerate([b"x", b"", record(0)], 1):
            transport.sendto(data)
            assert (transport.get_write_buffer_size(), transport.dropped) == (10_000, dropped)
            assert len(protocol.errors) == dropped
            assert isinstance(protocol.errors[-1], BufferLimitError)
        assert await receive(far, sent + 9) == [record(n) for n in range(sent + 9)]
        transport.sendto(b"there is room again")
        assert await receive(far, 1) == [b"there is room again"]
        assert not transport.is_closing()


async def test_a_single_record_over_the_hard_limit_is_dropped_counted_and_told():
    async with packets() as (transport, protocol, far):
        transport.set_write_buffer_limits(high=10, low=0, hard=20)
        with FaultPlan() as plan:
            plan.fail("write", 1, errno.EAGAIN, fd=transport.fileno())
            transport.sendto(bytes(100))
        assert (transport.get_write_buffer_size(), transport.dropped) == (0, 1)
        assert isinstance(protocol.errors[0], BufferLimitError)
        assert not transport.is_closing()
        transport.sendto(b"next")
        assert await receive(far, 1) == [b"next"]


async def test_the_queue_is_bounded_without_being_told():
    async with packets() as (transport, protocol, _far):
        for n in range(1000):
            transport.sendto(record(n, 10_000))
        assert HARD_LIMIT - 10_000 < transport.get_write_buffer_size() <= HARD_LIMIT
        assert transport.dropped == len(protocol.errors) > 0


async def test_ending_from_error_received_while_the_queue_is_sent():
    for end in ("close", "abort"):
        protocol = RecordingDatagramProtocol(error=lambda p, _exc, end=end: getattr(p.transport, end)())
        async with packets(protocol=protocol) as (transport, _protocol, far):
            with FaultPlan() as plan:
                sent = block(transport)
                transport.sendto(record(sent))
                plan.fail("write", 1, errno.EMSGSIZE, fd=transport.fileno())
                got = await receive(far, sent - 1 + (end == "close"))
                await lost(protocol)
            assert got[: sent - 1] == [record(n) for n in range(sent - 1)]
            assert got[sent - 1 :] == ([record(sent)] if end == "close" else [])
            assert protocol.names == ["made", "error", "lost"]


# -- batches ------------------------------------------------------------------------------------


async def fill(far, count, size):
    for n in range(count):
        while True:
            try:
                far.send(record(n, size))
                break
            except BlockingIOError:
                await asyncio.sleep(0)


@pytest.mark.parametrize("size", [10, 40_000])
async def test_a_batch_has_at_most_64_records_and_256_kib(size):
    async with packets("seqpacket", Batches()) as (transport, protocol, far):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        transport.pause_reading()
        await asyncio.sleep(0)
        count = 0
        while count < 3 * RECORDS:
            try:
                far.send(record(count, size))
            except BlockingIOError:
                break
            count += 1
        transport.resume_reading()
        await until(lambda: len(protocol.records) == count)
        assert protocol.records == [record(n, size) for n in range(count)]
        assert [len(batch) for batch in protocol.batches[:-1]]
        for batch in protocol.batches:
            assert len(batch) <= RECORDS
            assert sum(len(data) for data, _ in batch[:-1]) < RECORD_BYTES
            assert all(addr is None for _, addr in batch)


async def test_a_wake_up_brings_at_most_64_records_one_by_one():
    async with packets() as (transport, protocol, far):
        transport.pause_reading()
        count = 0
        try:
            while count < 3 * RECORDS:
                far.send(record(count, 10))
                count += 1
        except BlockingIOError:
            pass
        transport.resume_reading()
        seen = [0]
        while seen[-1] < count:
            await asyncio.sleep(0)
            seen.append(len(protocol.records))
        assert max(b - a for a, b in itertools.pairwise(seen)) <= RECORDS


@pytest.mark.parametrize("kind", KINDS)
async def test_a_pause_inside_a_batch_holds_at_once(kind):
    protocol = RecordingDatagramProtocol(data=lambda p, _data: p.transport.pause_reading())
    async with packets(kind, protocol) as (transport, _protocol, far):
        for n in range(5):
            far.send(record(n))
        for n in range(1, 6):
            await until(lambda n=n: len(protocol.records) >= n)
            await turns(10)
            assert len(protocol.records) == n
            transport.resume_reading()
        assert protocol.records == [record(n) for n in range(5)]


@pytest.mark.parametrize("end", ["close", "abort", "detach"])
async def test_ending_inside_a_batch_ends_it(end):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        _transport, protocol = await connect_packet_fd(
            lambda: RecordingDatagramProtocol(data=lambda p, _data: getattr(p.transport, end)()), near
        )
        for n in range(5):
            far.send(record(n))
        await lost(protocol)
        assert protocol.records == [record(0)]


@pytest.mark.parametrize("batches", [False, True])
async def test_a_pause_in_the_last_batch_holds_the_end_back(batches):
    make = Batches if batches else RecordingDatagramProtocol
    protocol = make(data=lambda p, _data: p.transport.pause_reading())
    async with packets(protocol=protocol) as (transport, _protocol, far):
        far.send(b"last")
        far.close()
        await until(lambda: protocol.records)
        await turns(20)
        assert protocol.names == ["made", "data"]
        assert transport.hung_up
        transport.resume_reading()
        await lost(protocol)


async def test_closing_in_a_batch_keeps_an_error_behind_it_quiet():
    protocol = Batches(data=lambda p, _data: p.transport.close())
    async with packets(protocol=protocol) as (transport, _protocol, far):
        with FaultPlan() as plan:
            plan.fail("read", 2, errno.ENOBUFS, fd=transport.fileno())
            far.send(b"last")
            await lost(protocol)
        assert protocol.names == ["made", "data", "lost"]


async def test_protocols_can_change_in_mid_batch():
    second = Batches()
    first = RecordingDatagramProtocol(data=lambda p, _data: p.transport.set_protocol(second))
    async with packets(protocol=first) as (transport, _protocol, far):
        second.connection_made(transport)
        for n in range(5):
            far.send(record(n))
        await until(lambda: len(second.records) == 4)
        assert first.records + second.records == [record(n) for n in range(5)]
        transport.set_protocol(first)
        transport.close()
        await lost(first)


@pytest.mark.parametrize("batches", [False, True])
async def test_an_exception_in_a_data_callback_is_reported_and_ends_the_transport(batches, reports):
    error = ValueError("raised on purpose")

    def fail(*_):
        raise error

    protocol = (Batches if batches else RecordingDatagramProtocol)(data=fail)
    async with packets(protocol=protocol) as (transport, _protocol, far):
        far.send(b"one")
        far.send(b"two")
        await lost(protocol)
        assert protocol.records == [b"one"]
        assert [report["exception"] for report in reports] == [error]
        assert reports[0]["transport"] is transport
        assert reports[0]["protocol"] is protocol
        assert protocol.reason is error


async def test_an_exception_in_error_received_is_reported_and_the_transport_lives(reports):
    error = ValueError("raised on purpose")

    def fail(*_):
        raise error

    protocol = RecordingDatagramProtocol(error=fail)
    async with packets(protocol=protocol) as (transport, _protocol, far):
        transport.sendto(bytes(10_000_000))
        transport.sendto(b"next")
        assert await receive(far, 1) == [b"next"]
        assert [report["exception"] for report in reports] == [error]


async def test_sendto_from_the_callbacks():
    def echo(protocol, data):
        protocol.transport.sendto(data)

    async with packets(protocol=RecordingDatagramProtocol(data=echo)) as (_transport, _protocol, far):
        for n in range(10):
            far.send(record(n))
        assert await receive(far, 10) == [record(n) for n in range(10)]


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["text", None, 5, [b"x"], memoryview(b"abcd")[::2]])
async def test_sendto_refuses_what_is_no_bytes(wrong):
    async with packets() as (transport, _protocol, far):
        with pytest.raises(TypeError):
            transport.sendto(wrong)
        transport.sendto(b"fine")
        assert await receive(far, 1) == [b"fine"]


async def test_sendto_sends_any_bytes_like_object_as_it_is_now():
    async with packets() as (transport, _protocol, far):
        sent = block(transport)
        buffer = bytearray(b"before")
        transport.sendto(buffer)
        transport.sendto(memoryview(buffer))
        transport.sendto(memoryview(bytes(8)).cast("I"))
        buffer[:] = b"after!"
        assert (await receive(far, sent + 3))[sent:] == [b"before", b"before", bytes(8)]


async def test_sendto_refuses_an_address():
    async with packets() as (transport, _protocol, _far):
        with pytest.raises(ValueError, match="one peer only"):
            transport.sendto(b"x", ("127.0.0.1", 9))


async def test_sendto_on_a_read_only_descriptor_raises():
    read, write = os.pipe2(os.O_DIRECT)
    transport, protocol = await connect(read)
    with pytest.raises(OSError, match="read-only") as caught:
        transport.sendto(b"x")
    assert caught.value.errno == errno.EBADF
    os.close(write)
    await lost(protocol)


async def test_sendto_after_the_end_drops_and_warns(caplog):
    async with packets() as (transport, protocol, _far):
        transport.close()
        await lost(protocol)
        for _ in range(6):
            transport.sendto(b"")
        assert len(caplog.records) == 2


@pytest.mark.parametrize("path", ["file", "/dev/null", "/dev/zero"])
async def test_a_file_that_cannot_be_polled_is_refused(path, tmp_path):
    if path == "file":
        path = tmp_path / "file"
        path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(UnpollableFileError, match="no records; use connect_fd") as caught:
        await connect(fd)
    assert caught.value.errno == errno.EPERM
    assert os.get_blocking(fd)
    await turns()
    os.close(fd)


def test_a_transport_that_is_left_open_warns_and_closes(loop):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        transport, protocol = loop.run_until_complete(connect(near.detach()))
        loop.close()
        protocol.transport = None
        forget = [transport]
        del transport
        with pytest.warns(ResourceWarning, match="unclosed transport <PacketTransport open"):
            forget.clear()
        assert far.recv(10) == b""


async def test_the_protocol_and_the_file_are_let_go_at_the_end():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        transport, protocol = await connect(near)
        file, gone = weakref.ref(near), weakref.ref(protocol)
        del near
        far.close()
        await lost(protocol)
        del protocol
        await turns(1)
        assert (file(), gone()) == (None, None)
        assert "closed" in repr(transport)


# -- other descriptors that give records --------------------------------------------------------


async def test_eventfd_counts():
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    transport, protocol = await connect(fd, max_size=8)
    for value in (1, 5, 1 << 40):
        os.eventfd_write(fd, value)
        await until(lambda: protocol.records)
        assert protocol.records == [struct.pack("Q", value)]
        protocol.events.clear()
        protocol.events.append(("made", None))
    transport.sendto(struct.pack("Q", 7))
    await until(lambda: protocol.records)
    assert protocol.records == [struct.pack("Q", 7)]
    transport.sendto(b"short")  # an eventfd takes 8 bytes, not 5
    assert errnos(protocol) == [errno.EINVAL]
    transport.close()
    await lost(protocol)


async def test_eventfd_that_is_full_queues():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    transport, protocol = await connect(fd)
    transport.pause_reading()
    full = struct.pack("Q", 2**64 - 2)
    transport.sendto(full)
    transport.sendto(struct.pack("Q", 5))
    assert transport.get_write_buffer_size() == 8
    await turns(10)
    assert transport.get_write_buffer_size() == 8
    transport.resume_reading()
    await until(lambda: len(protocol.records) == 2)
    assert protocol.records == [full, struct.pack("Q", 5)]
    transport.close()
    await lost(protocol)


async def test_eventfd_as_a_semaphore_gives_ones():
    fd = os.eventfd(3, os.EFD_SEMAPHORE)
    transport, protocol = await connect(fd)
    await until(lambda: len(protocol.records) == 3)
    assert protocol.records == [struct.pack("Q", 1)] * 3
    transport.close()
    await lost(protocol)


libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def timer(first, interval):
    """A timerfd that expires after *first* seconds, and then every *interval* seconds."""
    if sys.version_info >= (3, 13):
        fd = os.timerfd_create(1)
        os.timerfd_settime(fd, initial=first, interval=interval)
        return fd
    fd = checked(libc.timerfd_create(1, 0))
    times = (ctypes.c_long * 4)(0, round(interval * 1e9), 0, round(first * 1e9))
    checked(libc.timerfd_settime(fd, 0, times, None))
    return fd


async def test_timerfd_ticks():
    transport, protocol = await connect(timer(0.002, 0.005))
    await until(lambda: len(protocol.records) >= 3)
    assert {len(data) for data in protocol.records} == {8}
    transport.pause_reading()
    count = len(protocol.records)
    await asyncio.sleep(0.03)
    assert len(protocol.records) == count
    transport.resume_reading()
    await until(lambda: len(protocol.records) > count)
    assert struct.unpack("Q", protocol.records[count])[0] >= 3  # the ticks in between, in one
    transport.close()
    await lost(protocol)


async def test_inotify_events_come_as_they_are(tmp_path):
    fd = checked(libc.inotify_init1(os.O_CLOEXEC))
    checked(libc.inotify_add_watch(fd, os.fsencode(tmp_path), 0x100 | 0x200))  # IN_CREATE, IN_DELETE
    transport, protocol = await connect(fd)
    for n in range(3):
        (tmp_path / f"file{n}").touch()
    (tmp_path / "file0").unlink()

    def seen():
        events, data = [], b"".join(protocol.records)
        while data:
            _watch, mask, _cookie, length = struct.unpack_from("iIII", data)
            events.append((mask, data[16 : 16 + length].rstrip(b"\0")))
            data = data[16 + length :]
        return events

    await until(lambda: len(seen()) == 4)
    assert seen() == [(0x100, b"file0"), (0x100, b"file1"), (0x100, b"file2"), (0x200, b"file0")]
    with pytest.raises(OSError, match="read-only"):
        transport.sendto(b"x")
    transport.close()
    await lost(protocol)


@pytest.fixture
def process():
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def test_a_pidfd_ends_with_an_error_when_the_process_has(process):
    """It is readable then, but there is nothing to read: EINVAL."""
    transport, protocol = await connect(os.pidfd_open(process))
    await turns()
    assert protocol.names == ["made"]
    signal.pidfd_send_signal(transport.fileno(), signal.SIGKILL)
    await lost(protocol)
    assert protocol.reason.errno == errno.EINVAL


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="no netlink here")
async def test_a_netlink_dump_comes_record_by_record():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as near:
        near.bind((0, 0))
        transport, protocol = await connect(near)
        # RTM_GETLINK with NLM_F_REQUEST | NLM_F_DUMP, of rtnetlink(7)
        transport.sendto(struct.pack("IHHII", 32, 18, 0x301, 1, 0) + bytes(16))

        def done():
            return any(struct.unpack_from("IH", data)[1] == 3 for data in protocol.records)  # NLMSG_DONE

        await until(done)
        assert b"lo\0" in b"".join(protocol.records)
        transport.close()
        await lost(protocol)


def test_is_a_datagram_transport():
    assert issubclass(PacketTransport, asyncio.DatagramTransport)
    assert issubclass(PacketTransport, asyncio.BaseTransport)
