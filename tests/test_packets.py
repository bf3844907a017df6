"""PacketStream: records by await, with back pressure both ways."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import struct
import weakref
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import receive, turns, until

from fdtransport import BufferLimitError, PacketStream, UnpollableFileError, open_packet_fd
from fdtransport._core.packet import RECORDS
from fdtransport.testing import FOREVER, FaultPlan

KINDS = {"seqpacket": socket.SOCK_SEQPACKET, "datagram": socket.SOCK_DGRAM}


@asynccontextmanager
async def packets(kind="seqpacket", **options):
    """A PacketStream and a non-blocking socket as the far end."""
    near, far = socket.socketpair(socket.AF_UNIX, KINDS[kind])
    far.setblocking(False)
    with near, far:
        stream = await open_packet_fd(near, **options)
        try:
            async with asyncio.timeout(20):
                yield stream, far
        finally:
            stream.transport.abort()
            await stream.aclose()


async def send(sock, data):
    while True:
        try:
            sock.send(data)
            return
        except BlockingIOError:
            await asyncio.sleep(0.0005)


def record(n, size=1000):
    return b"%6d" % n + bytes([n % 251]) * (size - 6)


@pytest.mark.parametrize("kind", KINDS)
async def test_records_go_both_ways(kind):
    async with packets(kind) as (stream, far):
        assert isinstance(stream, PacketStream)
        for data in (b"one", b"", record(3)):
            await send(far, data)
            assert await stream.recv() == data
            await stream.send(data)
            assert await receive(far, 1) == [data]
        await send(far, b"from")
        assert await stream.recv_from() == (b"from", None)


async def test_recv_waits_for_a_record():
    async with packets() as (stream, far):
        waiting = asyncio.create_task(stream.recv())
        await turns()
        assert not waiting.done()
        far.send(b"one")
        far.send(b"two")
        assert await waiting == b"one"
        assert await stream.recv() == b"two"


async def test_records_come_before_the_end():
    async with packets() as (stream, far):
        for n in range(3 * RECORDS):
            await send(far, record(n, 10))
            await turns(1)
        far.close()
        assert [data async for data in stream] == [record(n, 10) for n in range(3 * RECORDS)]
        for _ in range(2):
            with pytest.raises(EOFError):
                await stream.recv()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises(ConnectionResetError):
            await stream.send(b"nobody there")


async def test_iteration_can_be_left_and_taken_up_again():
    async with packets() as (stream, far):
        for n in range(4):
            far.send(record(n))
        seen = []
        for _ in range(2):
            async for data in stream:
                seen.append(data)
                if len(seen) % 2 == 0:
                    break
        assert seen == [record(n) for n in range(4)]


async def test_a_context_sends_what_is_queued_and_closes():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.setblocking(False)
    with far:
        async with await open_packet_fd(near) as stream:
            count = 0
            while not stream.transport.get_write_buffer_size():
                await stream.send(record(count))
                count += 1
            receiving = asyncio.create_task(receive(far, count + 1))
        assert near.fileno() == -1
        assert await receiving == [*(record(n) for n in range(count)), b""]
        with pytest.raises(EOFError):
            await stream.recv()


async def test_aclose_is_bounded():
    async with packets() as (stream, _far):
        while not stream.transport.get_write_buffer_size():
            await stream.send(bytes(1000))
        await stream.aclose(timeout=0.02)
        with pytest.raises(ConnectionResetError):
            await stream.drain()


async def test_close_ends_a_recv_that_waits():
    async with packets() as (stream, _far):
        waiting = asyncio.create_task(stream.recv())
        await turns()
        stream.close()
        with pytest.raises(EOFError):
            await waiting


async def test_sending_after_close_is_told():
    async with packets() as (stream, far):
        stream.close()
        with pytest.raises(ConnectionResetError):
            await stream.send(b"lost")
        assert far.recv(10) == b""


# -- back pressure ------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 10, 256])
async def test_takes_no_more_than_its_limit_and_a_batch_while_nobody_receives(limit):
    async with packets(limit=limit) as (stream, far):
        sent = blocked = 0
        while blocked < 20:
            try:
                far.send(record(sent, 10))
                sent += 1
                blocked = 0
            except BlockingIOError:
                blocked += 1
            await asyncio.sleep(0)
        waiting = len(stream._received)
        assert limit <= waiting < limit + RECORDS
        assert waiting < sent
        assert not stream.transport.is_reading()
        assert [await stream.recv() for _ in range(sent)] == [record(n, 10) for n in range(sent)]


async def test_send_waits_for_a_slow_peer():
    async with packets() as (stream, far):
        stream.transport.set_write_buffer_limits(high=5000, low=1000)
        done = 0

        async def send_all():
            nonlocal done
            for n in range(1000):
                await stream.send(record(n))
                done = n

        sending = asyncio.create_task(send_all())
        await turns(50)
        assert 5000 < stream.transport.get_write_buffer_size() <= 6000
        stopped_at = done
        await turns(50)
        assert done == stopped_at
        assert await receive(far, 1000) == [record(n) for n in range(1000)]
        await sending


async def test_several_senders_wait_and_go_on_together():
    async with packets() as (stream, far):
        stream.transport.set_write_buffer_limits(high=0)
        senders = [asyncio.create_task(stream.send(record(n))) for n in range(500)]
        await turns()
        assert not all(task.done() for task in senders)
        senders[-1].cancel()  # queued all the same
        assert await receive(far, 500) == [record(n) for n in range(500)]
        async with asyncio.timeout(5):
            await asyncio.wait(senders)
        assert [task.cancelled() for task in senders].count(True) == 1


async def test_drains_that_are_cancelled_leave_nothing_behind():
    async with packets() as (stream, _far):
        while not stream._paused:
            stream.transport.sendto(bytes(1000))
        for _ in range(100):
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await stream.drain()
        assert len(stream._writers) <= 1


async def test_what_the_peer_does_not_take_ends_with_the_loss():
    async with packets() as (stream, far):
        stream.transport.set_write_buffer_limits(high=0)
        while not stream.transport.get_write_buffer_size():
            stream.transport.sendto(bytes(1000))
        sending = asyncio.create_task(stream.send(b"more"))
        await turns()
        far.close()
        with pytest.raises(OSError) as caught:  # noqa: PT011
            await sending
        assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


# -- errors -------------------------------------------------------------------------------------


async def test_the_error_of_a_record_is_told_by_the_send_that_it_concerns():
    async with packets() as (stream, far):
        with pytest.raises(OSError, match="too long") as caught:
            await stream.send(bytes(10_000_000))
        assert caught.value.errno == errno.EMSGSIZE
        await stream.send(b"next")
        assert await receive(far, 1) == [b"next"]
        far.send(b"answer")
        assert await stream.recv() == b"answer"


async def test_a_record_over_the_hard_limit_is_told_by_its_send():
    async with packets() as (stream, _far):
        stream.transport.set_write_buffer_limits(high=10_000, low=0, hard=10_000)
        sent = 0
        while stream.transport.get_write_buffer_size() < 10_000:
            await stream.send(record(sent))
            sent += 1
        with pytest.raises(BufferLimitError):
            await stream.send(record(sent))
        assert stream.transport.dropped == 1


async def test_an_error_of_an_earlier_record_is_told_once_to_whoever_calls_next():
    async with packets() as (stream, far):
        for call in (stream.recv, lambda: stream.send(b"not sent")):
            with FaultPlan() as plan:
                plan.fail("recvfrom", 2, errno.ECONNREFUSED, fd=stream.transport.fileno())
                far.send(b"one")
                far.send(b"two")
                await until(lambda: stream._errors and len(stream._received) == 2)
            assert [await stream.recv(), await stream.recv()] == [b"one", b"two"]
            with pytest.raises(ConnectionRefusedError):
                await call()
            await stream.send(b"sent")
            assert await receive(far, 1) == [b"sent"]


async def test_an_error_reaches_a_recv_that_waits():
    async with packets() as (stream, far):
        waiting = asyncio.create_task(stream.recv())
        await turns()
        with FaultPlan() as plan:
            plan.fail("recvfrom", 1, errno.ENOBUFS, fd=stream.transport.fileno())
            far.send(b"one")
            with pytest.raises(OSError) as caught:  # noqa: PT011
                await waiting
        assert caught.value.errno == errno.ENOBUFS
        assert await stream.recv() == b"one"


async def test_errors_that_nobody_asks_for_do_not_pile_up():
    async with packets(limit=10) as (stream, _far):
        for _ in range(1000):
            stream.transport.sendto(bytes(10_000_000))
        assert len(stream._errors) <= 10


async def test_the_loss_is_told_to_both_sides():
    async with packets() as (stream, far):
        with FaultPlan() as plan:
            plan.fail("recvfrom", 1, errno.EIO, FOREVER, fd=stream.transport.fileno())
            far.send(b"x")
            for call in (stream.recv, stream.recv, stream.drain, lambda: stream.send(b"x")):
                with pytest.raises(OSError) as caught:  # noqa: PT011
                    await call()
                assert caught.value.errno == errno.EIO


async def test_a_failed_send_is_told_though_nobody_receives():
    async with packets(limit=1) as (stream, far):
        far.send(b"one")
        await until(lambda: not stream.transport.is_reading())
        far.send(b"two")
        far.close()
        with pytest.raises(OSError):  # noqa: PT011
            await stream.send(b"nobody there")
        with pytest.raises(OSError):  # noqa: PT011
            await stream.drain()
        assert [await stream.recv(), await stream.recv()] == [b"one", b"two"]
        with pytest.raises(BrokenPipeError):
            await stream.recv()


async def test_a_refused_datagram_is_told_and_later_ones_are_received():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
            reserved.bind(("127.0.0.1", 0))
            address = reserved.getsockname()
        near.bind(("127.0.0.1", 0))
        near.connect(address)
        async with await open_packet_fd(near) as stream, asyncio.timeout(10):
            for n in range(3):
                await stream.send(b"refused")
                with pytest.raises(ConnectionRefusedError):
                    await stream.recv()
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
                    far.bind(address)
                    far.connect(near.getsockname())
                    far.send(b"%d" % n)
                    assert await stream.recv() == b"%d" % n


async def test_a_second_recv_is_refused():
    async with packets() as (stream, far):
        first = asyncio.create_task(stream.recv())
        await turns()
        with pytest.raises(RuntimeError, match="already waiting"):
            await stream.recv()
        far.send(b"x")
        assert await first == b"x"


# -- cancelling ---------------------------------------------------------------------------------


async def test_a_recv_that_is_cancelled_anywhere_loses_nothing():
    for turn in range(8):
        async with packets() as (stream, far):
            task = asyncio.create_task(stream.recv())
            for n in range(turn):
                far.send(record(n))
                await asyncio.sleep(0)
            task.cancel()
            received = []
            with suppress(asyncio.CancelledError):
                received.append(await task)
            far.send(record(turn))
            while len(received) < turn + 1:
                received.append(await stream.recv())
            assert received == [record(n) for n in range(turn + 1)]


async def test_a_cancelled_recv_does_not_disturb_the_next():
    async with packets() as (stream, far):
        first = asyncio.create_task(stream.recv())
        await turns()
        second = asyncio.create_task(stream.recv())
        stream.packets_received([])  # wakes the first, which is cancelled before it runs
        first.cancel()
        await turns()
        far.send(b"one")
        async with asyncio.timeout(2):
            assert await second == b"one"
        with pytest.raises(asyncio.CancelledError):
            await first


@given(
    kind=st.sampled_from(list(KINDS)),
    limit=st.integers(1, 20),
    records=st.lists(st.binary(max_size=50), max_size=60),
    steps=st.lists(st.none() | st.integers(0, 4), max_size=80),
)
async def test_random_recvs_and_cancels_give_every_record_once_in_order(kind, limit, records, steps):
    async with packets(kind, limit=limit) as (stream, far):

        async def feed():
            for data in records:
                await send(far, data)

        feeding = asyncio.create_task(feed())
        received = []
        for cancel_after in steps:
            if len(received) == len(records):
                break
            task = asyncio.create_task(stream.recv())
            if cancel_after is not None:
                await turns(cancel_after)
                task.cancel()
            with suppress(asyncio.CancelledError):
                received.append(await task)
        while len(received) < len(records):
            received.append(await stream.recv())
        await feeding
        assert received == records


# -- opening ------------------------------------------------------------------------------------


async def test_one_way_descriptors():
    read, write = os.pipe2(os.O_DIRECT)
    async with await open_packet_fd(read) as source, await open_packet_fd(write) as sink:
        await sink.send(b"one")
        await sink.send(b"two")
        assert [await source.recv(), await source.recv()] == [b"one", b"two"]
        with pytest.raises(OSError, match="read-only"):
            await source.send(b"x")
        with pytest.raises(EOFError):
            await sink.recv()
        assert [data async for data in sink] == []
        sink.close()
        assert [data async for data in source] == []


async def test_an_eventfd_is_waited_for():
    fd = os.eventfd(0)
    async with await open_packet_fd(fd, max_size=8) as events:
        waiting = asyncio.create_task(events.recv())
        await turns()
        os.eventfd_write(fd, 5)
        assert await waiting == struct.pack("Q", 5)


BAD_OPTIONS = [
    ({"limit": 0}, ValueError),
    ({"limit": -1}, ValueError),
    ({"limit": None}, TypeError),
    ({"limit": "x"}, TypeError),
    ({"max_size": 0}, ValueError),
    ({"max_size": None}, TypeError),
    ({"max_size": 1.5}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), BAD_OPTIONS)
async def test_bad_options_leave_the_descriptor_alone(options, error):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        with pytest.raises(error):
            await open_packet_fd(near, **options)
        assert near.getblocking()
        far.send(b"x")
        await turns()
        assert near.recv(1) == b"x"


async def test_a_regular_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        with pytest.raises(UnpollableFileError):
            await open_packet_fd(file)
        assert file.read() == b"content"


async def test_a_stream_that_is_dropped_after_its_end_is_freed():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        stream = await open_packet_fd(near)
        far.close()
        with pytest.raises(EOFError):
            await stream.recv()
        await turns()
        gone = weakref.ref(stream)
        gc.disable()
        try:
            del stream
            assert gone() is None
        finally:
            gc.enable()
