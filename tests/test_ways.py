"""The engines of a relay, between real kernel objects and under fault: exact bytes and back pressure."""

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
import time
import tty
from contextlib import asynccontextmanager, suppress

import pytest
from one_life import SWEPT
from relay_ends import (
    MIB,
    Quiet,
    carry,
    end_of,
    flood,
    lost,
    move,
    near,
    receive_all,
    relayed,
    relayed_files,
    send_all,
    stream_pair,
)

from fdtransport._core import backpressure
from fdtransport._core.backpressure import BREATH, BREATHS
from fdtransport._core.spare import SIZE, TCP_SIZE, stock_of
from fdtransport.relay import relay
from fdtransport.testing import FOREVER, FarEnd, FaultPlan, descriptors, idle_cost, pattern, sweep
from fdtransport.testing.observe import turns

BULK = 64 * MIB

# -- exact bytes -------------------------------------------------------------------------------------


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


@asynccontextmanager
async def file_relayed(tmp_path, kind, size, at=0, **options):
    """``(task, far end)`` of a relay from a file of *size* bytes, opened at position *at*, to a new pair."""
    (tmp_path / "source").write_bytes(pattern(size))
    source = os.open(tmp_path / "source", os.O_RDONLY)
    os.lseek(source, at, os.SEEK_SET)
    if kind == "pipe":
        other, ours = os.pipe()
    else:
        ours, other = stream_pair(kind)
    with FarEnd(other) as far:
        yield asyncio.ensure_future(relay(await near(source), await near(ours), **options)), far


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe"])
async def test_a_file_is_sent_past_the_process_and_its_end_is_passed_on(tmp_path, kind):
    with FaultPlan() as plan:
        async with file_relayed(tmp_path, kind, BULK, at=17) as (task, far):
            received = hashlib.sha1()
            fd = far.filenos()[0]
            os.set_blocking(fd, True)
            count = await asyncio.to_thread(receive_all, fd, received)
            result = await task
    assert count == result.a_to_b.bytes == BULK - 17
    assert result.a_to_b.engine == ("splice" if kind == "pipe" else "sendfile")
    assert result.error is None
    assert received.digest() == hashlib.sha1(pattern(BULK)[17:]).digest()
    assert not plan.count("write") + plan.count("writev")
    assert plan.count("preadv") >= BULK // MIB // 2  # whether it is in memory is asked again and again
    if kind != "pipe":
        assert not plan.count("splice") + plan.count("pipe")


@pytest.mark.parametrize("target", ["file", "null", "log"])
async def test_a_file_goes_into_a_file(tmp_path, target):
    (tmp_path / "source").write_bytes(pattern(8 * MIB))
    path = "/dev/null" if target == "null" else tmp_path / target
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if target == "log" else 0)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    result = await relay(await near(source), await near(os.open(path, flags, 0o600)))
    assert result.error is None
    assert result.a_to_b.bytes == 8 * MIB
    assert result.a_to_b.engine == ("copy" if target == "log" else "splice")
    assert target == "null" or path.read_bytes() == pattern(8 * MIB)


@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO, errno.ENOSYS])
async def test_a_file_that_is_not_sent_any_further_is_copied_without_losing_a_byte(tmp_path, nth, error):
    with FaultPlan() as plan:
        plan.fail("sendfile", nth, error)
        async with file_relayed(tmp_path, "unix", 8 * MIB) as (task, far):
            assert await far.recv_to_end() == pattern(8 * MIB)
            result = await task
    assert result.error is None
    assert result.a_to_b.engine == "copy"


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR, errno.ENOBUFS])
async def test_a_file_whose_sending_must_come_again_loses_nothing(tmp_path, error):
    with FaultPlan() as plan:
        for nth in (1, 2, 7):
            plan.fail("sendfile", nth, error)
        async with file_relayed(tmp_path, "tcp", 8 * MIB) as (task, far):
            assert await far.recv_to_end() == pattern(8 * MIB)
            assert (await task).error is None
        assert plan.injected == 3


async def test_a_file_sent_in_short_pieces_loses_nothing(tmp_path):
    with FaultPlan() as plan:
        plan.short("sendfile", n=4097)
        async with file_relayed(tmp_path, "unix", MIB) as (task, far):
            assert await far.recv_to_end() == pattern(MIB)
            assert (await task).a_to_b.bytes == MIB
        assert plan.injected > 255


async def test_a_file_that_is_not_in_memory_is_waited_for(tmp_path):
    with FaultPlan() as plan:
        plan.fail("preadv", nth=2, errno=errno.EAGAIN, times=4)
        async with file_relayed(tmp_path, "unix", 4 * MIB) as (task, far):
            assert await far.recv_to_end() == pattern(4 * MIB)
            assert (await task).a_to_b.engine == "sendfile"
        assert plan.count("posix_fadvise") == 4


async def test_a_file_of_proc_comes_whole():
    with open("/proc/version", "rb") as file:  # noqa: ASYNC230
        expected = file.read()
    ours, other = stream_pair("unix")
    with FarEnd(other) as far:
        source = os.open("/proc/version", os.O_RDONLY)
        task = asyncio.ensure_future(relay(await near(source), await near(ours)))
        assert await far.recv_to_end() == expected
        assert (await task).a_to_b.bytes == len(expected)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_reader_of_a_file_that_goes_away_is_an_error(tmp_path, kind):
    async with file_relayed(tmp_path, kind, BULK) as (task, far):
        await far.recv_exactly(1000)
        far.close()
        result = await task
    assert result.error.errno in (errno.EPIPE, errno.ECONNRESET)
    assert result.failed == "b"
    assert 1000 <= result.a_to_b.bytes < BULK


async def test_a_file_waits_for_a_slow_reader_without_work(tmp_path):
    async with file_relayed(tmp_path, "tcp", BULK) as (task, far):
        await turns(200)
        idle = await idle_cost()
        assert idle.is_idle(cpu=0.02, wakeups=2), str(idle)
        assert await far.recv_exactly(BULK) == pattern(BULK)
        assert (await task).error is None


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


async def test_bytes_that_cannot_be_had_back_from_the_pipe_are_an_error():
    with FaultPlan() as plan:
        plan.fail("splice", 2, errno.EINVAL)
        plan.fail("read", errno=errno.EIO)
        async with relayed("pipe-in", "unix") as (task, source, server):
            await source.send(b"data")
            assert await server.recv_to_end() == b""
            result = await task
    assert result.error.errno == errno.EIO
    assert result.failed == "b"


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


async def test_a_sink_without_buffers_is_tried_again_after_a_breath():
    async with relayed(one_way=True) as (task, client, server):
        started = time.monotonic()
        with FaultPlan() as plan:
            plan.fail("splice", 2, errno.ENOBUFS, 3)  # the first one reads, the others write
            await client.send(b"data")
            client.shutdown_write()
            assert await server.recv_to_end() == b"data"
        assert plan.injected == 3
        assert time.monotonic() - started >= 3 * BREATH
        assert (await task).error is None


async def test_a_sink_that_never_has_buffers_ends_the_relay(monkeypatch):
    monkeypatch.setattr(backpressure, "BREATH", 0.0)
    async with relayed(one_way=True) as (task, client, server):
        with FaultPlan() as plan:
            plan.fail("splice", 2, errno.ENOBUFS, FOREVER)
            await client.send(b"data")
            async with asyncio.timeout(5):
                result = await task
        assert plan.injected == BREATHS + 1
        assert result.error.errno == errno.ENOBUFS
        assert await server.recv_to_end() == b""


@pytest.mark.parametrize("copy", [False, True], ids=["splice", "copy"])
async def test_no_fault_makes_a_relay_hang_leak_or_lose_bytes_in_silence(copy, reports, monkeypatch):
    monkeypatch.setattr(backpressure, "BREATH", 0.0)
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
    async for outcome in sweep(scenario, errnos=SWEPT, times=(1, FOREVER)):
        runs += 1
        assert not outcome.hung, str(outcome)
        assert not outcome.leaked, str(outcome)
        if outcome.error is None:
            received, regular = outcome.result
            assert received == len(data) or not regular, str(outcome)
        if outcome.transient:
            assert outcome.error is None, str(outcome)
            assert outcome.result == (len(data), True), str(outcome)
    assert runs > 30 * (len(SWEPT) - 2)
