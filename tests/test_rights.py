"""Descriptors over UNIX sockets: each one arrives with the byte that it was sent with, and none is left."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import random
import resource
import socket
import subprocess
import sys
import textwrap
import weakref
from types import SimpleNamespace

import pytest

import fdtransport
from fdtransport import UnixTransport
from fdtransport._core import backpressure, rights
from fdtransport.testing import FOREVER, FaultPlan, RecordingProtocol, descriptors, sweep
from fdtransport.testing.observe import pattern, until

MAX = 253
CONTROL = socket.CMSG_SPACE(MAX * 4)


def identity(fd):
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def is_cloexec(fd):
    return bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


class Files:
    """Files that can be told apart, and that are closed at the end."""

    def __init__(self):
        self.open = []

    def __call__(self, count=1):
        made = [os.memfd_create("passed") for _ in range(count)]
        self.open += made
        return made

    def close(self):
        for fd in self.open:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.open.clear()


@pytest.fixture
def files():
    files = Files()
    yield files
    files.close()


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


async def connect(sock, factory=RecordingProtocol):
    transport, protocol = await fdtransport.create_unix_connection(factory, sock=sock)
    assert type(transport) is UnixTransport
    return transport, protocol


def receive(sock, size=1):
    """Bytes and the files that came with them; None when nothing is there."""
    try:
        data, control, flags, _ = sock.recvmsg(size, CONTROL, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    assert not flags & socket.MSG_CTRUNC
    fds = array.array("i")
    for _, _, value in control:
        fds.frombytes(value)
    found = [identity(fd) for fd in fds]
    for fd in fds:
        os.close(fd)
    return data, found


class Peer:
    """Reads byte by byte where a set of files may come; knows at which byte each one came."""

    def __init__(self, sock):
        self.sock = sock
        self.data = b""
        self.sets = {}

    def read(self, count=1_000_000, sizes=lambda: 1):
        for _ in range(count):
            got = receive(self.sock, sizes())
            if got is None or not got[0]:
                return got is not None
            data, found = got
            if found:
                self.sets[len(self.data)] = found
            self.data += data
        return False


def send(sock, data, fds):
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


class Receiver(RecordingProtocol):
    """Keeps what it got, in order; closes the descriptors."""

    def __init__(self, **hooks):
        super().__init__(**hooks)
        self.got = []
        self.on_fds = lambda fds: None

    def fds_received(self, fds):
        self.got.append([identity(fd) for fd in fds])
        assert all(map(is_cloexec, fds))
        for fd in fds:
            os.close(fd)
        self.on_fds(fds)

    def data_received(self, data):
        self.got.append(data)
        super().data_received(data)


class BufferedReceiver(asyncio.BufferedProtocol):
    def __init__(self, size=4096):
        self.got = []
        self.buffer = bytearray(size)
        self.lost = []

    def get_buffer(self, _):
        return self.buffer

    def fds_received(self, fds):
        self.got.append([identity(fd) for fd in fds])
        for fd in fds:
            os.close(fd)

    def buffer_updated(self, count):
        self.got.append(bytes(self.buffer[:count]))

    def connection_lost(self, exc):
        self.lost.append(exc)


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


# -- sending ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, MAX])
async def test_descriptors_arrive_with_the_first_byte_though_they_are_closed_after_the_call(
    pair, files, count
):
    transport, _ = await connect(pair[0])
    sent = files(count)
    names = [identity(fd) for fd in sent]
    transport.send_fds(b"hello", sent)
    files.close()
    others = files(count)  # have the same numbers now
    peer = Peer(pair[1])
    peer.read()
    assert peer.data == b"hello"
    assert peer.sets == {0: names}
    assert names != [identity(fd) for fd in others]
    await transport.aclose()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_data_may_be_any_bytes_and_descriptors_any_objects_with_fileno(pair, files, kind):
    transport, _ = await connect(pair[0])
    (fd,) = files()
    with os.fdopen(*files(), "rb", closefd=False) as file, socket.socket() as sock:
        transport.send_fds(kind(b"x"), iter([fd, file, sock]))
        names = [identity(fd), identity(file.fileno()), identity(sock.fileno())]
    assert receive(pair[1]) == (b"x", names)
    await transport.aclose()


@pytest.mark.parametrize(
    ("data", "count", "what"),
    [(b"", 1, "at least one byte"), (b"x", 0, "1 to 253 .* not 0"), (b"x", MAX + 1, "1 to 253 .* not 254")],
)
async def test_what_cannot_travel_is_refused_and_nothing_is_sent(pair, files, data, count, what):
    transport, _ = await connect(pair[0])
    sent = files(count)
    before = descriptors()
    with pytest.raises(ValueError, match=what):
        transport.send_fds(data, sent)
    assert descriptors() == before
    assert receive(pair[1]) is None
    await transport.aclose()


async def test_a_descriptor_that_is_not_open_is_refused_and_nothing_is_left(pair, files):
    transport, _ = await connect(pair[0])
    good, bad = files(2)
    os.close(bad)
    before = descriptors()
    for fds in ([good, bad], [good, -1]):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            transport.send_fds(b"x", fds)  # a copy of the good one must not pass for the bad one
        assert caught.value.errno == errno.EBADF
    for fds in (["0"], [True], [None]):
        with pytest.raises(TypeError, match="file descriptor"):
            transport.send_fds(b"x", fds)
    with pytest.raises(TypeError, match="bytes-like"):
        transport.send_fds("x", [good])
    assert descriptors() == before
    assert transport.get_write_buffer_size() == 0
    transport.write(b"alive")
    assert receive(pair[1], 10) == (b"alive", [])
    await transport.aclose()


async def test_a_process_without_free_descriptors_is_told_in_the_call(pair, files):
    transport, _ = await connect(pair[0])
    sent = files(5)
    before = descriptors()
    with FaultPlan() as plan:
        plan.fail("dup", nth=4, errno=errno.EMFILE)
        with pytest.raises(OSError, match="Too many open files") as caught:
            transport.send_fds(b"x", sent)
    assert caught.value.errno == errno.EMFILE
    assert descriptors() == before
    assert receive(pair[1]) is None
    await transport.aclose()


async def test_what_was_written_before_and_after_keeps_its_place(pair, files):
    transport, _ = await connect(pair[0])
    a, b, c = files(3)
    for number in range(20):  # further ones than the first two wait for the end of the turn
        transport.write(b"%02d" % number)
    transport.send_fds(b"A", [a])
    transport.send_fds(b"B", [b])
    transport.write(b"between")
    transport.send_fds(b"C", [c])
    transport.writelines([b"after", b"wards"])
    await transport.flushed()
    peer = Peer(pair[1])
    peer.read()
    before = b"".join(b"%02d" % number for number in range(20))
    assert peer.data == before + b"ABbetweenCafterwards"
    assert peer.sets == {40: [identity(a)], 41: [identity(b)], 49: [identity(c)]}
    await transport.aclose()


async def test_they_leave_at_once_whatever_waits_for_the_end_of_the_turn(pair, files):
    transport, _ = await connect(pair[0])
    (fd,) = files()
    for _ in range(10):
        transport.write(b"x")
    transport.send_fds(b"A", [fd])
    peer = Peer(pair[1])
    peer.read()
    assert (peer.data, peer.sets) == (b"x" * 10 + b"A", {10: [identity(fd)]})
    await transport.aclose()


@pytest.mark.parametrize("seed", range(12))
async def test_each_set_arrives_with_its_own_byte_whatever_the_peer_takes(pair, files, seed):
    rnd = random.Random(seed)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    transport, _ = await connect(pair[0])
    expected, data = {}, b""
    for _ in range(60):
        piece = pattern(rnd.choice([1, 3, 100, 5000, 40_000]), len(data))
        if rnd.random() < 0.5:
            sent = files(rnd.randint(1, 4))
            expected[len(data)] = [identity(fd) for fd in sent]
            transport.send_fds(piece, sent)
            files.close()
        elif rnd.random() < 0.3:
            transport.writelines([piece[:1], piece[1:]])
        else:
            transport.write(piece)
        data += piece
        if rnd.random() < 0.3:
            await asyncio.sleep(0)
    assert transport.get_write_buffer_size() > 100_000
    transport.close()
    peer, places = Peer(pair[1]), sorted(expected)

    def size():
        # Up to the next byte that has descriptors, then that one alone.
        ahead = next((place for place in places if place >= len(peer.data)), len(data) + 1) - len(peer.data)
        return ahead or 1

    while not peer.read(count=rnd.randint(1, 200), sizes=lambda: min(size(), rnd.choice([1, 700, 70_000]))):
        await asyncio.sleep(0)
    assert peer.data == data
    assert peer.sets == expected


async def test_a_message_that_the_kernel_takes_in_part_goes_on_as_bytes(pair, files):
    transport, _ = await connect(pair[0])
    (fd,) = files()
    with FaultPlan() as plan:
        plan.short("sendmsg", n=1)
        plan.short("write", n=1)
        transport.send_fds(b"hello", [fd])
        await transport.flushed()
        assert plan.count("sendmsg") == 1
    peer = Peer(pair[1])
    peer.read()
    assert (peer.data, peer.sets) == (b"hello", {0: [identity(fd)]})
    await transport.aclose()


async def test_flow_control_counts_the_bytes(pair, files):
    transport, protocol = await connect(pair[0])
    (fd,) = files()
    while not protocol.count("paused"):
        transport.send_fds(bytes(10_000), [fd])
    assert transport.get_write_buffer_size() > 65536
    flushing = asyncio.ensure_future(transport.flushed())
    while not flushing.done():
        receive(pair[1], 100_000)
        await asyncio.sleep(0)
    assert protocol.count("resumed") == 1
    transport.set_write_buffer_limits(high=0, hard=1000)
    transport.send_fds(bytes(1_000_000), [fd])
    await transport.aclose()
    assert isinstance(protocol.reason, fdtransport.BufferLimitError)


async def test_a_pull_producer_is_asked_again_after_descriptors(pair, files):
    transport, _ = await connect(pair[0])
    (fd,) = files()

    class Producer:
        asked = 0

        def resume_producing(self):
            self.asked += 1
            if self.asked <= 3:
                transport.send_fds(b"x", [fd])

        def stop_producing(self):
            pass

    producer = Producer()
    transport.register_producer(producer, streaming=False)
    await until(lambda: producer.asked == 4, "it was asked after each set")
    transport.unregister_producer()
    peer = Peer(pair[1])
    peer.read()
    assert peer.sets == {place: [identity(fd)] for place in range(3)}
    await transport.aclose()


async def test_descriptors_may_be_sent_in_connection_made_and_by_a_stream_writer(pair, files):
    (fd,) = files()
    transport, _ = await connect(
        pair[0], lambda: RecordingProtocol(made=lambda protocol: protocol.transport.send_fds(b"x", [fd]))
    )
    assert receive(pair[1]) == (b"x", [identity(fd)])
    await transport.aclose()
    near, far = socket.socketpair()
    with far:
        _, writer = await fdtransport.open_unix_connection(sock=near)
        writer.transport.send_fds(b"y", [fd])
        await writer.drain()
        assert receive(far) == (b"y", [identity(fd)])
        writer.close()
        await writer.wait_closed()


async def test_a_server_sends_and_receives_descriptors_too(files, tmp_path):
    (fd,) = files()

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def fds_received(self, fds):
            self.fds = fds

        def data_received(self, data):
            self.transport.send_fds(data, self.fds)
            for fd in self.fds:
                os.close(fd)

    async with await fdtransport.create_unix_server(Echo, tmp_path / "socket"):
        transport, receiver = await fdtransport.create_unix_connection(Receiver, tmp_path / "socket")
        transport.send_fds(b"there and back", [fd])
        await until(lambda: len(receiver.got) == 2, "it came back")
        assert receiver.got == [[identity(fd)], b"there and back"]
        await transport.aclose()


# -- the end, with descriptors in the queue ---------------------------------------------------------


async def blocked(pair, files, sets=5):
    """A transport with descriptors in its queue that the peer does not take."""
    transport, protocol = await connect(pair[0])
    transport.write(bytes(1_000_000))
    for _ in range(sets):
        transport.send_fds(b"x", files(2))
    files.close()
    return transport, protocol


def waiting():
    return sum("memfd:passed" in target for target in descriptors().values())


@pytest.mark.parametrize("end", ["abort", "aclose", "peer", "detach", "limit", "fault"])
async def test_an_end_before_they_were_sent_closes_them(pair, files, end):
    transport, protocol = await blocked(pair, files)
    assert waiting() == 10
    if end == "abort":
        transport.abort()
    elif end == "aclose":
        await transport.aclose(0.01)
    elif end == "peer":
        pair[1].close()
    elif end == "detach":
        file, _, unsent = transport.detach()
        assert file is pair[0]
        assert unsent.endswith(b"x" * 5)
    elif end == "limit":
        transport.set_write_buffer_limits(hard=100_000)
    else:
        with FaultPlan() as plan:
            plan.fail("write", errno=errno.EIO)
            plan.fail("writev", errno=errno.EIO)
            receive(pair[1], 1_000_000)
            await until(lambda: plan.injected, "it was tried again")
    await until(lambda: protocol.lost, "the transport was lost")
    assert not waiting()


async def test_a_failed_write_closes_them_though_reading_goes_on(pair, files):
    transport, protocol = await blocked(pair, files)
    pair[1].send(b"something to read")
    transport.pause_reading()
    pair[1].close()
    await until(transport.is_closing, "the write failed")
    assert not protocol.lost
    assert not waiting()
    transport.resume_reading()
    await until(lambda: protocol.lost, "the transport was lost")


async def test_close_sends_them_first(pair, files):
    transport, protocol = await blocked(pair, files)
    transport.close()
    peer = Peer(pair[1])
    while not protocol.lost:
        peer.read(sizes=lambda: max(1, 1_000_000 - len(peer.data)))
        await asyncio.sleep(0)
    peer.read()
    assert sorted(peer.sets) == [1_000_000 + n for n in range(5)]
    assert not waiting()


async def test_while_a_file_is_sent_they_are_refused_and_none_is_left(pair, files, tmp_path):
    near, far = pair
    transport, _ = await connect(near)
    (tmp_path / "file").write_bytes(pattern(1_000_000))
    with (tmp_path / "file").open("rb") as file:
        sending = asyncio.ensure_future(transport.sendfile(file))
        await turns()
        [one] = files()
        before = descriptors()
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.send_fds(b"x", [one])
        assert descriptors() == before
        peer = Peer(far)
        await until(lambda: peer.read(100, lambda: 65536) or sending.done(), "the file is sent")
        assert await sending == 1_000_000
        transport.send_fds(b"y", [one])
        await until(lambda: peer.read(100, lambda: 65536) or len(peer.data) > 1_000_000, "all is there")
        assert peer.data == pattern(1_000_000) + b"y"
        assert list(peer.sets.values()) == [[identity(one)]]
    await transport.aclose()


async def test_after_the_end_they_are_dropped_and_after_write_eof_refused(pair, files):
    transport, _ = await connect(pair[0])
    (fd,) = files()
    transport.write_eof()
    with pytest.raises(RuntimeError, match="after write_eof"):
        transport.send_fds(b"x", [fd])
    transport.abort()
    before = descriptors()
    await transport.aclose()
    transport.send_fds(b"x", [fd])
    assert descriptors().keys() <= before.keys()


async def test_a_peer_that_has_gone_is_an_error_of_the_transport_and_not_of_the_call(pair, files):
    transport, protocol = await connect(pair[0])
    transport.pause_reading()
    pair[1].close()
    transport.send_fds(b"x", files())
    transport.resume_reading()
    await until(lambda: protocol.lost, "the transport was lost")
    assert protocol.reason.errno == errno.EPIPE
    assert waiting() == 1  # ours


def test_a_loop_that_ends_before_they_were_sent_leaves_none(loop, pair, files):
    async def main():
        transport, _ = await blocked(pair, files)
        transport.close()
        return transport

    transport = loop.run_until_complete(main())
    loop.close()
    transport.abort()
    assert not waiting()


async def test_a_transport_that_is_collected_closes_them(pair, files):
    transports = [(await blocked(pair, files))[0]]
    transports[0]._remove_interest()  # the loop holds it otherwise

    def forget():
        transports.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        forget()
    assert not waiting()


async def test_a_lost_transport_is_freed_without_the_garbage_collector(pair, files):
    transport, protocol = await connect(pair[0], Receiver)
    transport.send_fds(b"x", files())
    await transport.aclose()
    references = [weakref.ref(transport), weakref.ref(protocol)]
    gc.disable()
    try:
        await turns()
        del transport, protocol
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


# -- what the kernel says -----------------------------------------------------------------------------


async def test_too_many_in_flight_are_waited_for_however_long_it_takes(pair, files, monkeypatch):
    monkeypatch.setattr(backpressure, "BREATH", 0.0005)
    transport, _ = await connect(pair[0])
    (fd,) = files()
    with FaultPlan() as plan:
        plan.fail("sendmsg", errno=errno.ETOOMANYREFS, times=2 * backpressure.BREATHS)
        transport.send_fds(b"x", [fd])
        transport.write(b"y")
        await transport.flushed()
        assert plan.count("sendmsg") == 2 * backpressure.BREATHS + 1
    peer = Peer(pair[1])
    peer.read()
    assert (peer.data, peer.sets) == (b"xy", {0: [identity(fd)]})
    await transport.aclose()


CROWDED = """
    import array, asyncio, os, resource, socket, sys
    import fdtransport

    async def main():
        near, far = socket.socketpair()
        far.setblocking(False)
        lost = []

        class Protocol(asyncio.Protocol):
            def connection_lost(self, exc):
                lost.append(exc)

        transport, _ = await fdtransport.create_unix_connection(Protocol, sock=near)
        for _ in range(12):
            transport.send_fds(b"x", [0] * 10)
        assert transport.get_write_buffer_size(), "the limit of the kernel was not met"
        await asyncio.sleep(0.1)
        arrived = 0
        while arrived < 120:
            try:
                _, control, _, _ = far.recvmsg(1, 4096)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            fds = array.array("i", control[0][2])
            arrived += len(fds)
            for fd in fds:
                os.close(fd)
        assert not transport.get_write_buffer_size() and not lost
        transport.close()

    if sys.argv[1] == "uvloop":
        import uvloop as loops
    else:
        loops = asyncio
    resource.setrlimit(resource.RLIMIT_NOFILE, (250, 250))
    with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
        runner.run(main())
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_the_kernel_s_limit_for_an_ordinary_user_holds_them_back_and_loses_none(kind):
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    command = [sys.executable, "-c", textwrap.dedent(CROWDED), kind]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


async def pass_some(files, buffered):
    """One life of two transports, one of which sends descriptors to the other."""
    here = files(2)
    names = [identity(fd) for fd in here]
    near, far = socket.socketpair()
    made = []
    try:
        sender, protocol = await connect(near)
        made.append(sender)
        receiver, received = await connect(far, BufferedReceiver if buffered else Receiver)
        made.append(receiver)
        sender.write(pattern(300_000))
        sender.send_fds(b"A" * 10, here)
        sender.send_fds(b"B" * 10, here[:1])
        sender.close()
        await until(lambda: receiver.is_closing(), "all was received, or something failed")
        await receiver.aclose()
        await sender.aclose()
        data = b"".join(item for item in received.got if isinstance(item, bytes))
        sets = [item for item in received.got if isinstance(item, list)]
        return data, [names.index(name) for found in sets for name in found], protocol.reason
    finally:
        for transport in made:
            await transport.aclose(0)
        near.close()
        far.close()
        files.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("buffered", [False, True], ids=["plain", "buffered"])
@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
async def test_any_call_may_fail_and_no_descriptor_is_left_or_wrong(files, buffered, times, reports):
    runs, whole = 0, pattern(300_000) + b"A" * 10 + b"B" * 10
    async for outcome in sweep(lambda: pass_some(files, buffered), times=(times,), at_most=4):
        what = str(outcome)
        runs += 1
        assert not outcome.hung, what
        assert not outcome.leaked, what
        if outcome.error is None:
            data, order, _ = outcome.result
            assert whole.startswith(data), what
            assert order == [0, 1, 0][: len(order)], what
            assert len(order) in ((3,) if data == whole else (0, 2, 3)), what
        if not outcome.name or outcome.transient:
            assert outcome.error is None, what
            assert data == whole, what
    assert runs > 40
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


# -- receiving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Receiver, BufferedReceiver])
async def test_descriptors_come_just_before_the_bytes_that_they_came_with(pair, files, make):
    transport, protocol = await connect(pair[0], make)
    a, b, c = files(3)
    pair[1].send(b"before ")
    send(pair[1], b"with a", [a])
    send(pair[1], b"with b and c", [b, c])
    pair[1].send(b"after")
    await until(lambda: protocol.got[-1:] == [b"after"], "all came")
    assert protocol.got == [
        [identity(a)], b"before with a", [identity(b), identity(c)], b"with b and c", b"after",
    ]  # fmt: skip
    await transport.aclose()


@pytest.mark.parametrize("make", [Receiver, BufferedReceiver])
async def test_as_many_as_the_kernel_sends_at_once_are_received(pair, files, make):
    transport, protocol = await connect(pair[0], make)
    sent = files(MAX)
    send(pair[1], b"many", sent)
    await until(lambda: len(protocol.got) == 2, "they came")
    assert protocol.got == [[identity(fd) for fd in sent], b"many"]
    await transport.aclose()


@pytest.mark.parametrize("make", [RecordingProtocol, lambda: BufferedReceiverWithout()])
async def test_for_a_protocol_without_the_callback_the_kernel_drops_them(pair, make):
    transport, protocol = await connect(pair[0], make)
    read, write = os.pipe2(os.O_NONBLOCK)
    before = descriptors()
    send(pair[1], b"x", [write])
    os.close(write)
    with pytest.raises(BlockingIOError):
        os.read(read, 1)  # it is in flight
    await until(lambda: bytes(protocol.received) == b"x", "the byte came")
    assert os.read(read, 1) == b""  # nobody has it
    assert descriptors().keys() == before.keys() - {write}
    os.close(read)
    await transport.aclose()


class BufferedReceiverWithout(asyncio.BufferedProtocol):
    def __init__(self):
        self.received = bytearray()
        self.buffer = bytearray(10)

    def get_buffer(self, _):
        return self.buffer

    def buffer_updated(self, count):
        self.received += self.buffer[:count]


async def test_ordinary_transports_move_their_bytes_by_plain_calls(pair):
    with FaultPlan() as plan:
        transport, protocol = await connect(pair[0])
        pair[1].send(b"x")
        await until(lambda: protocol.received, "it came")
        transport.write(b"y")
        assert {name for name in plan.counts() if "msg" in name} == set()
        await transport.aclose()


async def test_descriptors_wait_while_reading_is_paused(pair, files):
    transport, protocol = await connect(pair[0], Receiver)
    transport.pause_reading()
    (fd,) = files()
    send(pair[1], b"x", [fd])
    await turns()
    assert protocol.got == []
    transport.resume_reading()
    await until(lambda: len(protocol.got) == 2, "they came")
    await transport.aclose()


async def test_descriptors_that_come_after_the_end_are_nobody_s(pair, files):
    transport, protocol = await connect(pair[0], Receiver)
    (fd,) = files()
    transport.close()
    send(pair[1], b"x", [fd])
    await transport.aclose()
    assert protocol.got == []
    assert waiting() == 1


@pytest.mark.parametrize("make", [Receiver, BufferedReceiver])
async def test_a_protocol_set_in_mid_stream_gets_them_from_then_on(pair, files, make):
    transport, first = await connect(pair[0])
    a, b, c = files(3)
    send(pair[1], b"a", [a])
    await until(lambda: first.received == b"a", "the first came")
    second, third = make(), RecordingProtocol()
    transport.set_protocol(second)
    send(pair[1], b"b", [b])
    await until(lambda: len(second.got) == 2, "the second came")
    assert second.got == [[identity(b)], b"b"]
    transport.set_protocol(third)
    send(pair[1], b"c", [c])
    await until(lambda: third.received == b"c", "the third came")
    assert waiting() == 3
    await transport.aclose()


async def test_an_exception_in_the_callback_is_reported_and_ends_the_transport(pair, files, reports):
    transport, protocol = await connect(pair[0], Receiver)
    failure = OSError(errno.EAGAIN, "not even this one passes for a failed read")

    def fail(_):
        raise failure

    protocol.on_fds = fail
    send(pair[1], b"x", files())
    await until(lambda: protocol.lost, "the transport was lost")
    assert [report["message"] for report in reports] == ["Fatal error: protocol.fds_received() call failed."]
    assert protocol.reason is failure
    assert protocol.received == b""
    await transport.aclose()


async def test_no_bytes_come_when_the_callback_closes(pair, files):
    transport, protocol = await connect(pair[0], Receiver)
    protocol.on_fds = lambda _: transport.close()
    send(pair[1], b"x", files())
    await until(lambda: protocol.lost, "the transport was lost")
    assert protocol.received == b""
    assert protocol.reason is None


async def test_a_pause_in_the_callback_holds_after_the_bytes_that_came_along(pair, files):
    transport, protocol = await connect(pair[0], Receiver)
    protocol.on_fds = lambda _: transport.pause_reading()
    (fd,) = files()
    send(pair[1], b"x", [fd])
    send(pair[1], b"y", [fd])
    await until(lambda: protocol.received, "the first came")
    await turns()
    assert protocol.received == b"x"
    transport.resume_reading()
    await until(lambda: protocol.received == b"xy", "the second came")
    await transport.aclose()


@pytest.mark.parametrize("make", [Receiver, BufferedReceiver])
@pytest.mark.parametrize("room", [0, 3])
async def test_descriptors_for_which_there_is_no_room_end_the_transport_and_none_is_left(
    pair, files, make, room
):
    transport, protocol = await connect(pair[0], make)
    await turns()
    sent = files(10)
    before = descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    placeholders = [os.dup(0) for _ in range(50)]  # every number up to the last one is taken
    last = placeholders[-1]
    for fd in placeholders[-room:] if room else ():
        os.close(fd)
        placeholders.remove(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, limits[1]))
    try:
        send(pair[1], b"x", sent)
        await until(lambda: protocol.lost, "the transport was lost")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in placeholders:
            os.close(fd)
    exc = protocol.lost[0] if make is BufferedReceiver else protocol.reason
    assert exc.errno == errno.EMFILE
    assert f"{room} of the descriptors" in str(exc)
    assert protocol.got == []
    assert descriptors().keys() <= before.keys()
    assert waiting() == 10
    await transport.aclose()


async def test_a_process_descriptor_that_comes_unasked_is_closed(pair):
    passpidfd = 76
    try:
        pair[0].setsockopt(socket.SOL_SOCKET, passpidfd, 1)
    except OSError:
        pytest.skip("this kernel has no SO_PASSPIDFD")
    transport, protocol = await connect(pair[0], Receiver)
    before = descriptors()
    pair[1].send(b"x")
    await until(lambda: protocol.received, "it came")
    assert protocol.got == [b"x"]
    assert descriptors() == before
    await transport.aclose()


async def test_a_socket_with_a_timeout_is_not_waited_for(pair, files):
    pair[0].settimeout(30)
    socket.setdefaulttimeout(30)
    try:
        transport, protocol = await connect(pair[0], Receiver)
    finally:
        socket.setdefaulttimeout(None)
    transport._read()  # as after a wake-up for nothing
    transport.send_fds(b"x", files())
    assert protocol.got == []
    await transport.aclose()


def test_the_limit_is_that_of_the_kernel(pair):
    with open(os.devnull, "rb") as file:
        for count, fits in ((rights.SCM_MAX_FD, True), (rights.SCM_MAX_FD + 1, False)):
            with contextlib.nullcontext() if fits else pytest.raises(OSError, match="Invalid argument"):
                send(pair[1], b"x", [file.fileno()] * count)


# -- who is there -----------------------------------------------------------------------------------


async def test_the_peer_s_credentials_have_names(pair):
    transport, _ = await connect(pair[0])
    who = transport.get_extra_info("peercred")
    assert who == (os.getpid(), os.getuid(), os.getgid())
    assert SimpleNamespace(**who._asdict()) == SimpleNamespace(pid=who[0], uid=who[1], gid=who[2])
    await transport.aclose()
