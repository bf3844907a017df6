"""Relays between real kernel objects: exact bytes, ends, back pressure, and nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import pty
import shlex
import socket
import ssl
import subprocess
import threading
import tty
from contextlib import asynccontextmanager, suppress

import pytest

from fdtransport import connect_fd, open_fd
from fdtransport._core.spare import SIZE, TCP_SIZE, stock_of
from fdtransport.relay import Relay, RelayResult, relay
from fdtransport.testing import (
    FOREVER,
    FarEnd,
    FaultPlan,
    RecordingProtocol,
    descriptors,
    fd_pair_maker,
    idle_cost,
    pattern,
    read_pipe_maker,
    socket_pair_maker,
    sweep,
    tcp_maker,
    write_pipe_maker,
)
from fdtransport.testing.observe import until

MIB = 1 << 20
BULK = 64 * MIB
MAKERS = {
    "unix": socket_pair_maker,
    "tcp": tcp_maker,
    "pipes": fd_pair_maker,
    "pipe-in": read_pipe_maker,
    "pipe-out": write_pipe_maker,
}


class Quiet(asyncio.Protocol):
    """Leaves what comes in the kernel until somebody takes over."""

    def connection_made(self, transport):
        with suppress(NotImplementedError):
            transport.pause_reading()


async def near(file):
    """One of our transports on *file*, silent so far."""
    transport, _ = await connect_fd(Quiet, file)
    return transport


async def end_of(kind):
    """``(transport, far end)``."""
    return await MAKERS[kind]()(Quiet)


@asynccontextmanager
async def relayed(a="unix", b="unix", **options):
    """``(task, far end of a, far end of b)`` of a running relay."""
    one, far_one = await end_of(a)
    try:
        other, far_other = await end_of(b)
    except OSError:
        far_one.close()
        await lost(one)
        raise
    with far_one, far_other:
        task = asyncio.ensure_future(relay(one, other, **options))
        try:
            async with asyncio.timeout(20):
                yield task, far_one, far_other
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await asyncio.sleep(0)


async def lost(*transports):
    """Have these gone before the test looks at what is left."""
    for transport in transports:
        await transport.aclose(0)


# -- exact bytes -------------------------------------------------------------------------------------


def send_all(fd, size, digest):
    for at in range(0, size, MIB):
        data = pattern(min(MIB, size - at), at)
        digest.update(data)
        while data:
            data = data[os.write(fd, data) :]


def receive_all(fd, digest, size=None):
    buffer, total = bytearray(MIB), 0
    view = memoryview(buffer)
    while total != size:
        try:
            count = os.readv(fd, [buffer])
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            count = 0
        if not count:
            break
        digest.update(view[:count])
        total += count
    return total


async def carry(source_fd, sink_fd, size, end):
    """Send *size* bytes into one descriptor and take them from another, in threads; call *end* when
    all is sent. True when what came out is what went in."""
    sent, received = hashlib.sha1(), hashlib.sha1()

    def send():
        send_all(source_fd, size, sent)
        end()

    _, total = await asyncio.gather(
        asyncio.to_thread(send), asyncio.to_thread(receive_all, sink_fd, received, size)
    )
    return total == size and sent.digest() == received.digest()


def stream_pair(kind):
    """``(ours, the other's)`` of a connected pair of sockets."""
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, other


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("copy", [False, True], ids=["splice", "copy"])
async def test_64_mib_arrive_exactly_both_ways_at_once(kind, copy):
    a, far_a = stream_pair(kind)
    b, far_b = stream_pair(kind)
    with far_a, far_b:
        task = asyncio.ensure_future(relay(await near(a), await near(b), copy=copy))
        there, back = await asyncio.gather(
            carry(far_a.fileno(), far_b.fileno(), BULK, lambda: far_a.shutdown(socket.SHUT_WR)),
            carry(far_b.fileno(), far_a.fileno(), BULK, lambda: far_b.shutdown(socket.SHUT_WR)),
        )
        result = await task
    assert there
    assert back
    assert result.a_to_b.bytes == result.b_to_a.bytes == BULK
    assert result.a_to_b.engine == result.b_to_a.engine == ("copy" if copy else "splice")
    assert result.error is None
    assert result.seconds > 0


@pytest.mark.parametrize("source", ["unix", "pipe", "tcp"])
@pytest.mark.parametrize("sink", ["unix", "pipe", "tcp"])
async def test_a_byte_stream_of_any_kind_goes_into_one_of_any_other_by_splice(source, sink):
    def make(kind):
        if kind == "pipe":
            reading, writing = os.pipe()
            return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
        return stream_pair(kind)

    source_reads, source_writes = make(source)
    sink_reads, sink_writes = make(sink)
    with source_writes, sink_reads:
        task = asyncio.ensure_future(relay(await near(source_reads), await near(sink_writes), one_way=True))
        assert await carry(source_writes.fileno(), sink_reads.fileno(), 8 * MIB, source_writes.close)
        result = await task
    assert result.a_to_b.bytes == 8 * MIB
    assert result.a_to_b.engine == "splice"
    assert result.b_to_a.engine == ""
    assert result.error is None


async def test_a_pipe_goes_into_a_file(tmp_path):
    reading, writing = os.pipe()
    target = tmp_path / "target"
    sent = hashlib.sha1()

    def send():
        send_all(writing, BULK, sent)
        os.close(writing)

    fd = os.open(target, os.O_WRONLY | os.O_CREAT)
    task = asyncio.ensure_future(relay(await near(reading), await near(fd)))
    await asyncio.to_thread(send)
    result = await task
    assert result.a_to_b.engine == "splice"
    assert result.error is None
    assert hashlib.sha1(target.read_bytes()).digest() == sent.digest()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_file_goes_into_a_socket_and_its_end_is_passed_on(tmp_path, kind):
    source = tmp_path / "source"
    source.write_bytes(pattern(BULK))
    ours, other = stream_pair(kind)
    received = hashlib.sha1()
    with other:
        task = asyncio.ensure_future(relay(await near(os.open(source, os.O_RDONLY)), await near(ours)))
        assert await asyncio.to_thread(receive_all, other.fileno(), received) == BULK
        result = await task
    assert result.a_to_b.engine == "splice"
    assert received.digest() == hashlib.sha1(pattern(BULK)).digest()


async def test_a_file_opened_for_appending_is_copied_to_without_losing_a_byte(tmp_path):
    reading, writing = os.pipe()
    log = tmp_path / "log"
    log.write_bytes(b"earlier\n")
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)

    def send():
        send_all(writing, 8 * MIB, hashlib.sha1())
        os.close(writing)

    task = asyncio.ensure_future(relay(await near(reading), await near(fd)))
    await asyncio.to_thread(send)
    result = await task
    assert result.a_to_b.engine == "copy"
    assert result.error is None
    assert log.read_bytes() == b"earlier\n" + pattern(8 * MIB)


async def test_a_terminal_goes_into_a_socket():
    master, slave = pty.openpty()
    tty.setraw(slave)
    ours, other = stream_pair("unix")
    with other:
        task = asyncio.ensure_future(relay(await near(slave), await near(ours)))
        assert await carry(master, other.fileno(), 2 * MIB, lambda: None)
        os.close(master)
        result = await task
    assert result.a_to_b.bytes == 2 * MIB


async def test_dev_null_takes_everything():
    async with relayed_files(os.open("/dev/null", os.O_WRONLY)) as (task, far):
        await far.send(pattern(MIB))
        far.close()
        result = await task
    assert result.a_to_b.bytes == MIB
    assert result.error is None


@asynccontextmanager
async def relayed_files(sink, **options):
    reading, writing = os.pipe()
    with FarEnd(writing) as far:
        task = asyncio.ensure_future(relay(await near(reading), await near(sink), **options))
        yield task, far


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


# -- transports of other libraries -------------------------------------------------------------------


async def foreign_end():
    """``((reader, writer), far end)``, asyncio's or uvloop's own."""
    ours, other = socket.socketpair()
    return await asyncio.open_unix_connection(sock=ours), FarEnd(other, timeout=20)


async def both_ways(task, client, server, size=4 * MIB):
    async def carry_over(source, sink):
        sending = asyncio.ensure_future(source.send(pattern(size)))
        received = await sink.recv_exactly(size)
        await sending
        source.shutdown_write()
        return received == pattern(size)

    assert all(await asyncio.gather(carry_over(client, server), carry_over(server, client)))
    result = await task
    assert result.error is None
    assert result.a_to_b.bytes == result.b_to_a.bytes == size
    return result


async def test_transports_of_the_loop_itself_are_relayed_by_callbacks():
    (one, client), (other, server) = await foreign_end(), await foreign_end()
    with client, server:
        task = asyncio.ensure_future(relay(one, other))
        result = await both_ways(task, client, server)
        await one[1].wait_closed()
    assert (result.a_to_b.engine, result.b_to_a.engine) == ("callbacks", "callbacks")


async def test_one_of_ours_and_one_of_the_loops_own_are_relayed():
    (one, client), (other, server) = await end_of("unix"), await foreign_end()
    with client, server:
        task = asyncio.ensure_future(relay(one, other))
        result = await both_ways(task, client, server)
    assert (result.a_to_b.engine, result.b_to_a.engine) == ("copy", "callbacks")


async def test_the_loops_own_pipes_are_relayed():
    loop = asyncio.get_running_loop()
    source, other_writes = os.pipe()
    other_reads, sink = os.pipe()
    one, _ = await loop.connect_read_pipe(Quiet, os.fdopen(source, "rb", 0))
    other, _ = await loop.connect_write_pipe(Quiet, os.fdopen(sink, "wb", 0))
    with FarEnd(other_writes) as writer, FarEnd(other_reads) as reader:
        task = asyncio.ensure_future(relay(one, other))
        sending = asyncio.ensure_future(writer.send(pattern(MIB)))
        assert await reader.recv_exactly(MIB) == pattern(MIB)
        await sending
        writer.close()
        assert await reader.recv_to_end() == b""
        result = await task
    assert result.a_to_b.engine == "callbacks"
    assert result.b_to_a.engine == ""


@pytest.mark.parametrize("foreign", [0, 1])
async def test_a_slow_reader_holds_a_fast_writer_back_also_through_other_transports(foreign):
    ends = [await (foreign_end() if number == foreign else end_of("unix")) for number in range(2)]
    (one, client), (other, server) = ends
    with client, server:
        task = asyncio.ensure_future(relay(one, other))
        sent = await flood(client)
        assert sent < 4 * MIB
        client.shutdown_write()
        assert len(await server.recv_to_end()) == sent
        server.close()
        await task


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Key and certificate for localhost, in one file."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = f"openssl req {options} -addext subjectAltName=DNS:localhost -keyout {path} -out {path}.crt"
    try:
        subprocess.run(shlex.split(command), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the program openssl, which makes the certificate, is not installed")
    with open(path, "ab") as file, open(f"{path}.crt", "rb") as crt:
        file.write(crt.read())
    return path


async def test_tls_is_terminated_in_both_directions(certificate):
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(certificate)
    client_side = ssl.create_default_context(cafile=f"{certificate}.crt")
    backend, server = await end_of("unix")
    finished = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        finished.set_result(await relay((reader, writer), backend))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
    with server:
        host, port = listener.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection(
            host, port, ssl=client_side, server_hostname="localhost"
        )
        data = pattern(MIB)
        writer.write(data)
        assert await server.recv_exactly(MIB) == data
        sending = asyncio.ensure_future(server.send(data))
        assert await reader.readexactly(MIB) == data
        await sending
        writer.close()
        await writer.wait_closed()
        assert await server.recv_to_end() == b""
        result = await finished
    listener.close()
    await listener.wait_closed()
    assert (result.a_to_b.engine, result.b_to_a.engine) == ("callbacks", "copy")
    assert result.a_to_b.bytes == result.b_to_a.bytes == MIB


# -- back pressure -----------------------------------------------------------------------------------


async def flood(far):
    """Write until nothing is taken for a while; how much it was."""
    sent = quiet = 0
    while quiet < 100:
        count = far.send_now(bytes(65536))
        sent += count
        quiet = 0 if count else quiet + 1
        await asyncio.sleep(0 if quiet < 50 else 0.001)
    return sent


@pytest.mark.parametrize("copy", [False, True], ids=["splice", "copy"])
@pytest.mark.parametrize("kind", ["unix", "tcp", "pipes"])
async def test_a_slow_reader_holds_a_fast_writer_back_and_nothing_spins_meanwhile(kind, copy):
    held = TCP_SIZE if kind == "tcp" and not copy else SIZE
    alone, far_alone = await end_of(kind)  # what the kernel itself holds for such a pair
    with far_alone:
        alone_sent = await flood(far_alone)
        await lost(alone)
    async with relayed(kind, kind, copy=copy) as (task, client, server):
        sent = await flood(client)
        # Twice the kernel's own share, since there are two pairs (TCP grows its), and ours.
        assert sent <= (8 if kind == "tcp" else 3) * alone_sent + 2 * held + MIB
        idle = await idle_cost(0.2)
        assert idle.wakeups <= 3, str(idle)
        client.shutdown_write()
        assert len(await server.recv_to_end()) == sent
        server.shutdown_write()
        result = await task
    assert result.a_to_b.bytes == sent


async def test_an_idle_relay_costs_nothing_and_holds_no_pipe():
    async with relayed() as (_, client, server):
        await client.send(b"hello")
        assert await server.recv_exactly(5) == b"hello"
        assert len(stock_of(asyncio.get_running_loop())._pipes) == 1
        before = len(descriptors())
        async with relayed() as (_, other_client, other_server):
            ends = len(descriptors())
            assert ends == before + 4
            await other_client.send(b"hello")
            assert await other_server.recv_exactly(5) == b"hello"
            assert len(descriptors()) == ends
            idle = await idle_cost(0.2)
            assert idle.wakeups <= 3, str(idle)
    assert not stock_of(asyncio.get_running_loop())._pipes


async def test_many_blocked_relays_have_a_pipe_each_and_give_it_back():
    stock = stock_of(asyncio.get_running_loop())
    ends = [(await end_of("unix"), await end_of("unix")) for _ in range(12)]
    tasks = [asyncio.ensure_future(relay(a, b)) for (a, _), (b, _) in ends]
    sent = [await flood(client) for (_, client), _ in ends]
    for (_, client), (_, server) in ends:
        client.shutdown_write()
        server.shutdown_write()
    for size, (_, (_, server)) in zip(sent, ends, strict=True):
        assert len(await server.recv_to_end()) == size
    await asyncio.gather(*tasks)
    assert not stock._pipes
    assert stock.users == 0
    for (_, client), (_, server) in ends:
        client.close()
        server.close()


# -- engines and faults ------------------------------------------------------------------------------


async def move(size=3 * MIB, **options):
    """Relay *size* bytes each way through two UNIX pairs; the result."""
    async with relayed(**options) as (task, client, server):
        sends = [asyncio.ensure_future(far.send(pattern(size))) for far in (client, server)]
        there, back = await asyncio.gather(server.recv_exactly(size), client.recv_exactly(size))
        assert there == back == pattern(size)
        await asyncio.gather(*sends)
        client.shutdown_write()
        server.shutdown_write()
        return await task


async def test_spliced_bytes_never_enter_the_process():
    with FaultPlan() as plan:
        result = await move()
    assert result.a_to_b.engine == "splice"
    assert plan.count("splice") >= 12
    assert not plan.count("read") + plan.count("readv") + plan.count("write") + plan.count("writev")


async def test_copy_never_splices():
    with FaultPlan() as plan:
        result = await move(copy=True)
    assert result.a_to_b.engine == "copy"
    assert not plan.count("splice")


@pytest.mark.parametrize("nth", range(1, 12))
async def test_a_refusal_to_splice_at_any_moment_falls_back_without_losing_a_byte(nth):
    with FaultPlan() as plan:
        plan.fail("splice", nth, errno.EINVAL)
        result = await move()
    engines = {result.a_to_b.engine, result.b_to_a.engine}
    assert engines == {"splice", "copy"}
    assert result.error is None


async def test_short_splices_lose_nothing():
    with FaultPlan() as plan:
        plan.short("splice", n=4097)
        result = await move(MIB)
    assert result.a_to_b.bytes == result.b_to_a.bytes == MIB
    assert plan.injected > 512


@pytest.mark.parametrize("nth", range(1, 10))
async def test_splices_that_are_told_to_come_again_lose_nothing(nth):
    with FaultPlan() as plan:
        plan.fail("splice", nth, errno.EAGAIN)
        plan.fail("splice", nth + 10, errno.EINTR)
        result = await move()
    assert result.error is None
    assert result.a_to_b.engine == "splice"


async def test_without_descriptors_for_a_pipe_it_copies():
    with FaultPlan() as plan:
        plan.fail("pipe", errno=errno.EMFILE, times=FOREVER)
        result = await move()
    assert result.a_to_b.engine == result.b_to_a.engine == "copy"
    assert result.error is None


async def test_a_pipe_that_may_not_grow_will_do():
    async with relayed() as (task, client, server):
        with FaultPlan() as plan:
            plan.fail("fcntl", errno=errno.EPERM, times=FOREVER)
            sending = asyncio.ensure_future(client.send(pattern(MIB)))
            assert await server.recv_exactly(MIB) == pattern(MIB)
            await sending
        assert plan.injected
        client.close()
        server.close()
        assert (await task).a_to_b.engine == "splice"


@pytest.mark.parametrize("copy", [False, True], ids=["splice", "copy"])
async def test_no_fault_makes_a_relay_hang_leak_or_lose_bytes_in_silence(copy, reports):
    data = pattern(600_000)

    async def scenario():
        async with relayed(copy=copy) as (task, client, server):

            async def send():
                with suppress(OSError):
                    await client.send(data)
                    client.shutdown_write()

            sending = asyncio.ensure_future(send())
            received = await server.recv_to_end()
            with suppress(OSError):
                server.shutdown_write()
            await client.recv_to_end()
            await sending
            result = await task
            assert data.startswith(received)
            return len(received), result.error is None

    runs = 0
    async for outcome in sweep(scenario, at_most=3, timeout=10, times=(1, FOREVER)):
        runs += 1
        if (outcome.name, outcome.errno, outcome.times) == ("splice", errno.ENOBUFS, FOREVER):
            continue  # it tries again for as long as memory is short
        assert not outcome.hung, str(outcome)
        assert not outcome.leaked, str(outcome)
        if outcome.error is None:
            received, regular = outcome.result
            assert received == len(data) or not regular, str(outcome)
        if outcome.transient:
            assert outcome.error is None, str(outcome)
            assert outcome.result == (len(data), True), str(outcome)
    assert runs > 100


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
    assert threading.active_count() >= 1
