"""Relays: ends, losses, what was there before, cancelling, arguments."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import select
import socket
import tty
from contextlib import suppress

import pytest
from relay_ends import MAKERS, MIB, Quiet, end_of, flood, lost, move, near, relayed, relayed_files

from fdtransport import StreamTransport, connect_fd, open_fd
from fdtransport.relay import Relay, RelayResult, relay
from fdtransport.testing import FOREVER, FarEnd, FaultPlan, RecordingProtocol, pattern
from fdtransport.testing.observe import until

# -- ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unix", "tcp", "pipes"])
async def test_a_half_close_passes_through_and_the_answer_still_comes_back(kind):
    async with relayed(kind, kind) as (task, client, server):
        await client.send(b"question")
        client.shutdown_write()
        assert await server.recv_to_end() == b"question"
        assert not task.done()
        await server.send(b"answer")
        server.shutdown_write()
        assert await client.recv_to_end() == b"answer"
        result = await task
    assert (result.a_to_b.bytes, result.b_to_a.bytes) == (8, 6)
    assert result.error is None
    assert result.failed == ""


async def test_an_end_of_file_comes_after_everything_that_was_sent_before_it():
    async with relayed() as (task, client, server):
        data = pattern(4 * MIB)
        sending = asyncio.ensure_future(client.send(data))
        await asyncio.sleep(0)
        assert await server.recv_exactly(MIB) == data[:MIB]
        assert await server.recv_exactly(3 * MIB) == data[MIB:]
        await sending
        client.shutdown_write()
        server.shutdown_write()
        assert await server.recv_to_end() == b""
        assert (await task).error is None


async def test_an_end_that_cannot_half_close_is_not_told_of_the_other_end_of_file():
    master, slave = pty.openpty()
    tty.setraw(slave)
    one, client = await end_of("unix")
    other = await near(slave)
    with client, FarEnd(master) as terminal:
        task = asyncio.ensure_future(relay(one, other))
        await client.send(b"stty\n")
        client.shutdown_write()
        assert await terminal.recv_exactly(5) == b"stty\n"
        await terminal.send(b"speed 38400 baud\n")
        assert await client.recv_exactly(17) == b"speed 38400 baud\n"
        assert not task.done()
        terminal.close()
        assert await client.recv_to_end() == b""
        await task


async def near_as(kind, file):
    loop = asyncio.get_running_loop()
    made = loop.create_future()
    transport = kind(loop, file, Quiet(), made)
    await made
    return transport


class Deaf(StreamTransport):
    """Somebody's own kind: its other side does not hear of an end, and soon has nothing more to say."""

    _EOF_SILENCE = 0.05

    def can_write_eof(self):
        return False


class AllAtOnce(StreamTransport):
    _EOF_CLOSES = True


@pytest.mark.parametrize("kind", [Deaf, AllAtOnce])
async def test_a_kind_of_transport_says_itself_how_it_ends_with_the_other_end(kind):
    ours, theirs = socket.socketpair()
    other = await near_as(kind, ours)
    one, client = await end_of("unix")
    with client, FarEnd(theirs) as server:
        task = asyncio.ensure_future(relay(one, other))
        await client.send(b"question")
        client.shutdown_write()
        async with asyncio.timeout(10):
            assert await server.recv_to_end() == b"question"
            result = await task
    assert (result.a_to_b.bytes, result.error) == (8, None)


async def test_a_kind_of_transport_says_itself_how_long_it_may_take_what_nobody_will_answer():
    class Slow(StreamTransport):
        _PATIENCE = 0.05

    ours, theirs = socket.socketpair()
    other = await near_as(Slow, ours)
    one, client = await end_of("unix")
    with client, FarEnd(theirs):
        task = asyncio.ensure_future(relay(one, other))
        await flood(client)
        client.close()
        async with asyncio.timeout(10):
            result = await task
    assert (result.failed, result.error.errno) == ("b", errno.ETIMEDOUT)


async def test_whoever_has_a_window_has_it_followed_by_another_one():
    class Window(StreamTransport):
        followed = None

        def forward_size(self, to):
            self.followed = to

        def resize(self, rows, columns, xpixel=0, ypixel=0):
            pass

    pairs = [socket.socketpair() for _ in range(2)]
    a, b = [await near_as(Window, ours) for ours, _ in pairs]
    task = asyncio.ensure_future(relay(a, b))
    await until(lambda: a.followed is b and b.followed is a, "the relay has begun")
    for _, theirs in pairs:
        theirs.close()
    await task


async def test_without_linger_the_second_direction_may_go_on_for_ever():
    async with relayed() as (task, client, server):
        client.shutdown_write()
        assert await server.recv_to_end() == b""
        for _ in range(3):
            await server.send(b"more")
            assert await client.recv_exactly(4) == b"more"
        assert not task.done()


@pytest.mark.parametrize("linger", [0, 0.05])
async def test_linger_bounds_what_comes_after_the_first_end(linger):
    async with relayed(linger=linger) as (task, client, server):
        await client.send(b"last words")
        client.shutdown_write()
        assert await server.recv_exactly(10) == b"last words"
        result = await task
        assert await client.recv_to_end() == b""
        assert await server.recv_to_end() == b""
    assert 0.9 * linger <= result.seconds < linger + 5
    assert result.error is None


async def test_what_a_peer_does_not_take_within_linger_is_dropped_and_said():
    async with relayed(linger=0.05) as (task, client, server):
        flood = asyncio.ensure_future(server.send(bytes(16 * MIB)))
        client.shutdown_write()
        result = await task
        flood.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await flood
    assert isinstance(result.error, TimeoutError)
    assert result.error.errno == errno.ETIMEDOUT
    assert result.failed == "a"
    with pytest.raises(TimeoutError):
        result.raise_for_error()


async def test_one_way_ends_with_its_source_and_drops_what_the_sink_sends():
    async with relayed(one_way=True) as (task, client, server):
        await server.send(bytes(4 * MIB))  # nobody else would take so much
        await client.send(b"data")
        client.shutdown_write()
        assert await server.recv_to_end() == b"data"
        result = await task
        assert await client.recv_to_end() == b""
    assert result.a_to_b.bytes == 4
    assert result.b_to_a.bytes == 0
    assert result.error is None


async def test_an_end_without_a_write_side_makes_the_relay_one_way():
    async with relayed("pipe-in", "unix") as (task, source, server):
        await server.send(b"dropped")
        await source.send(b"data")
        source.close()
        assert await server.recv_to_end() == b"data"
        result = await task
    assert (result.a_to_b.engine, result.b_to_a.engine) == ("splice", "")


async def test_an_end_without_a_read_side_makes_the_relay_one_way_back():
    async with relayed("pipe-out", "unix") as (task, sink, server):
        await server.send(b"data")
        server.shutdown_write()
        assert await sink.recv_to_end() == b"data"
        result = await task
    assert (result.a_to_b.engine, result.b_to_a.engine) == ("", "splice")
    assert result.b_to_a.bytes == 4


async def test_stop_reads_no_more_and_delivers_what_was_read():
    one, client = await end_of("unix")
    other, server = await end_of("unix")
    with client, server:
        run = Relay(one, other)
        task = asyncio.ensure_future(run.run())
        await client.send(bytes(100_000))
        await until(lambda: run.result.a_to_b.bytes == 100_000, "the relay has moved everything")
        run.stop()
        assert len(await server.recv_to_end()) == 100_000
        result = await task
        assert await client.recv_to_end() == b""
    assert result.error is None


# -- loss --------------------------------------------------------------------------------------------


async def test_what_came_before_a_reset_is_delivered_and_the_error_is_in_the_result():
    async with relayed("tcp", "unix") as (task, client, server):
        await client.send(b"before")
        assert await server.recv_exactly(6) == b"before"
        client.reset()
        assert await server.recv_to_end() == b""
        result = await task
    assert isinstance(result.error, ConnectionResetError)
    assert result.error.errno == errno.ECONNRESET
    assert result.failed == "a"
    assert result.a_to_b.bytes == 6
    with pytest.raises(ConnectionResetError):
        result.raise_for_error()


async def test_a_reader_that_leaves_ends_the_relay():
    async with relayed("unix", "pipe-out") as (task, client, sink):
        await client.send(b"data")
        assert await sink.recv_exactly(4) == b"data"
        sink.close()
        await task
        assert await client.recv_to_end() == b""


async def test_a_reader_that_leaves_with_bytes_on_the_way_is_an_error():
    async with relayed("unix", "pipe-out") as (task, client, sink):
        flood = asyncio.ensure_future(client.send(bytes(16 * MIB)))
        await sink.recv_exactly(MIB)
        sink.close()
        result = await task
        with suppress(OSError):
            await flood
    assert isinstance(result.error, BrokenPipeError)
    assert result.failed == "b"


@pytest.mark.parametrize("copy", [False, True], ids=["splice", "copy"])
async def test_a_peer_that_goes_while_both_directions_are_blocked_gets_nothing_more(copy):
    async with relayed(copy=copy) as (task, client, server):
        await asyncio.gather(flood(client), flood(server))
        server.close()
        await client.recv_to_end()
        result = await task
    assert result.failed == "b"
    assert isinstance(result.error, BrokenPipeError | ConnectionResetError)
    assert result.a_to_b.bytes <= 2 * MIB


@pytest.mark.parametrize("copy", [False, True], ids=["splice", "copy"])
async def test_who_only_reads_when_it_has_sent_gets_all_from_a_peer_that_has_gone(copy):
    async with relayed("tcp", copy=copy) as (task, client, server):
        there, back = await asyncio.gather(flood(client), flood(server))
        client.reset()  # nobody takes what the server sends any more
        await server.send(bytes(4 * MIB))  # and it does not read before that is gone
        await server.recv_to_end()
        result = await task
    assert result.failed == "a"
    assert there > 0 < back


@pytest.mark.parametrize("copy", [False, True], ids=["splice", "copy"])
async def test_a_full_disk_is_told_with_its_errno(copy):
    async with relayed_files(os.open("/dev/full", os.O_WRONLY), copy=copy) as (task, far):
        await far.send(b"data")
        result = await task
    assert result.failed == "b"
    assert result.error.errno == errno.ENOSPC
    assert result.a_to_b.bytes == 0


@pytest.mark.parametrize("nth", [2, 4, 6])
async def test_an_error_of_the_sink_is_told_with_its_errno(nth):
    with FaultPlan() as plan:
        plan.fail("splice", nth, errno.EIO)
        async with relayed("pipe-in", "unix") as (task, source, server):
            sending = asyncio.ensure_future(source.send(bytes(MIB)))
            received = await server.recv_to_end()
            result = await task
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending
    assert result.error.errno == errno.EIO
    assert len(received) == result.a_to_b.bytes < MIB


async def test_an_answer_that_is_there_when_writing_fails_is_still_delivered():
    async with relayed("unix", "unix") as (task, client, server):
        await server.send(b"413 too large")
        server.close()
        assert await client.recv_exactly(13) == b"413 too large"
        with suppress(OSError):
            await client.send(bytes(MIB))
        client.close()
        await task


async def test_a_transport_that_was_lost_before_is_an_end_from_the_start():
    one, client = await end_of("unix")
    other, server = await end_of("unix")
    with client, server:
        await one.aclose()
        result = await relay(one, other)
        assert await server.recv_to_end() == b""
    assert result.error is None
    assert result.a_to_b.bytes == 0


async def test_an_end_of_file_that_was_told_before_is_passed_on():
    class HalfOpen(asyncio.Protocol):
        def eof_received(self):
            return True

    file, other_file = MAKERS["unix"]().open_files()
    with FarEnd(other_file) as client:
        one, _ = await connect_fd(HalfOpen, file)
        client.shutdown_write()
        await until(lambda: one.hung_up, "the end of file is told")
        other, server = await end_of("unix")
        with server:
            task = asyncio.ensure_future(relay(one, other))
            assert await server.recv_to_end() == b""
            await server.send(b"answer")
            server.shutdown_write()
            assert await client.recv_to_end() == b"answer"
            assert (await task).error is None


# -- what was there before, and what it is told ------------------------------------------------------


async def test_what_a_reader_has_buffered_goes_first():
    file, other_file = MAKERS["unix"]().open_files()
    with FarEnd(other_file) as client:
        reader, writer = await open_fd(file)
        await client.send(b"CONNECT host\n" + pattern(200_000))
        assert await reader.readline() == b"CONNECT host\n"
        assert reader._buffer or reader._ahead
        other, server = await end_of("unix")
        with server:
            task = asyncio.ensure_future(relay((reader, writer), other))
            assert await server.recv_exactly(200_000) == pattern(200_000)
            await client.send(b"next")
            client.shutdown_write()
            assert await server.recv_to_end() == b"next"
            server.shutdown_write()
            result = await task
            await writer.wait_closed()
    assert result.a_to_b.bytes == 200_004
    assert result.a_to_b.engine == "splice"
    assert reader.at_eof()


async def test_a_reader_that_has_everything_is_relayed_although_its_transport_is_gone():
    reading, writing = os.pipe()
    os.write(writing, b"everything")
    os.close(writing)
    reader, writer = await open_fd(reading)
    await reader._wait_for_data("test")
    await writer.transport.aclose()
    other, server = await end_of("unix")
    with server:
        result = await relay((reader, writer), other)
        assert await server.recv_to_end() == b"everything"
    assert result.a_to_b.bytes == 10


async def test_what_a_reader_has_from_before_an_error_is_delivered_and_the_error_is_told():
    file, other_file = MAKERS["tcp"]().open_files()
    with FarEnd(other_file) as client:
        reader, writer = await open_fd(file)
        await client.send(b"before")
        await reader._wait_for_data("test")
        client.reset()
        await until(lambda: writer.transport.get_protocol() is None, "the reset has been noticed")
        other, server = await end_of("unix")
        with server:
            result = await relay((reader, writer), other)
            assert await server.recv_to_end() == b"before"
    assert result.error.errno == errno.ECONNRESET
    assert result.failed == "a"


async def test_what_waits_to_be_written_goes_first():
    one, client = await end_of("unix")
    other, server = await end_of("unix")
    with client, server:
        waiting = pattern(2 * MIB)
        other.write(waiting)
        assert other.get_write_buffer_size() > 0
        await client.send(b"relayed")
        task = asyncio.ensure_future(relay(one, other))
        client.shutdown_write()
        server.shutdown_write()
        assert await server.recv_to_end() == waiting + b"relayed"
        await task


async def test_the_protocol_is_told_of_the_loss_and_gets_no_data():
    protocol = RecordingProtocol(made=lambda p: p.transport.pause_reading())
    file, other_file = MAKERS["unix"]().open_files()
    with FarEnd(other_file) as client:
        one, _ = await connect_fd(lambda: protocol, file)
        other, server = await end_of("unix")
        with server:
            task = asyncio.ensure_future(relay(one, other))
            await client.send(b"data")
            assert await server.recv_exactly(4) == b"data"
            client.close()
            server.close()
            await task
    assert protocol.names == ["made", "lost"]
    assert not protocol.breaches


async def test_a_drain_that_was_waiting_is_woken():
    file, other_file = MAKERS["unix"]().open_files()
    with FarEnd(other_file) as far:
        reader, writer = await open_fd(file)
        writer.write(bytes(2 * MIB))
        draining = asyncio.ensure_future(writer.drain())
        await asyncio.sleep(0)
        other, server = await end_of("unix")
        with server:
            task = asyncio.ensure_future(relay((reader, writer), other))
            await far.recv_exactly(2 * MIB)
            await draining
            far.close()
            server.close()
            await task


# -- cancelling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 40])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_cancelling_at_any_time_aborts_both_ends_and_leaks_nothing(kind, turns):
    one, client = await end_of(kind)
    other, server = await end_of(kind)
    with client, server:
        task = asyncio.ensure_future(relay(one, other))
        for _ in range(turns):
            with suppress(OSError):
                client.send_now(bytes(65536))
                server.send_now(bytes(65536))
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if not turns:
            await lost(one, other)  # it had not begun: they are still the caller's
        await asyncio.sleep(0)
        assert one.is_closing()
        assert other.is_closing()
        await client.recv_to_end()
        await server.recv_to_end()


def test_a_run_that_ends_in_the_middle_of_a_relay_leaks_nothing(loop):
    async def main():
        one, client = await end_of("unix")
        other, server = await end_of("unix")
        asyncio.ensure_future(relay(one, other))
        client.send_now(bytes(65536))
        await asyncio.sleep(0)
        return client, server

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        client, server = runner.run(main())
    client.close()
    server.close()


# -- arguments ---------------------------------------------------------------------------------------


async def test_both_ends_must_not_be_the_same():
    one, client = await end_of("unix")
    with client:
        with pytest.raises(ValueError, match="both ends of the relay are"):
            await relay(one, one)
        assert not one.is_closing()
        await lost(one)


async def test_two_ends_of_which_no_bytes_can_go_to_each_other_are_refused():
    one, client = await end_of("pipe-in")
    other, server = await end_of("pipe-in")
    with client, server:
        with pytest.raises(ValueError, match="no bytes can go"):
            await relay(one, other)
        await lost(one, other)


async def test_what_is_no_byte_stream_is_refused():
    loop = asyncio.get_running_loop()
    one, client = await end_of("unix")
    datagrams, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
    with client:
        for wrong in (datagrams, 3, "tcp://host:1", (one,), None):
            with pytest.raises(TypeError, match="byte streams"):
                await relay(one, wrong)
        datagrams.close()
        await lost(one)


async def test_the_result_is_live():
    one, client = await end_of("unix")
    other, server = await end_of("unix")
    with client, server:
        run = Relay(one, other)
        assert run.result == RelayResult()
        task = asyncio.ensure_future(run.run())
        for count in (1, 2, 3):
            await client.send(b"x")
            await server.recv_exactly(1)
            assert run.result.a_to_b.bytes == count
        assert run.result.seconds == 0
        client.close()
        server.close()
        assert await task is run.result
    assert run.result.seconds > 0


# -- many --------------------------------------------------------------------------------------------


async def test_relays_in_two_threads_do_not_meet():
    def run():
        async def main():
            return await move(MIB)

        return asyncio.run(main())

    results = await asyncio.gather(*(asyncio.to_thread(run) for _ in range(2)))
    assert [result.a_to_b.bytes for result in results] == [MIB, MIB]


@pytest.mark.parametrize("copy", [False, True], ids=["by the kernel", "copy"])
async def test_a_reader_that_leaves_in_the_middle_of_a_file_is_an_error(tmp_path, copy):
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * MIB))
    reading, writing = os.pipe()
    with FarEnd(reading) as far:
        source = await near(os.open(path, os.O_RDONLY))
        task = asyncio.ensure_future(relay(source, await near(writing), copy=copy))
        await far.recv_exactly(MIB)
    async with asyncio.timeout(10):
        result = await task
    assert result.failed == "b"
    assert isinstance(result.error, BrokenPipeError)
    assert result.a_to_b.bytes < 8 * MIB


async def test_a_reader_that_leaves_while_the_disk_is_slow_is_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * MIB))
    reading, writing = os.pipe()
    with FaultPlan() as plan, FarEnd(reading) as far:
        source = await near(os.open(path, os.O_RDONLY))
        sink = await near(writing)
        plan.fail("preadv", nth=3, errno=errno.EAGAIN, times=FOREVER)  # what comes next is not in memory
        task = asyncio.ensure_future(relay(source, sink))
        async with asyncio.timeout(10):
            while not plan.injected:
                far.recv_now()
                await asyncio.sleep(0)
        while select.select([reading], [], [], 0)[0]:
            far.recv_now()
        far.close()
        async with asyncio.timeout(10):
            result = await task
    assert result.failed == "b"
    assert isinstance(result.error, BrokenPipeError)
