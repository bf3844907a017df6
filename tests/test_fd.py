"""Any descriptor: what the helpers take over, what they refuse, and that what they refuse is untouched."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pty
import socket
import sys
import termios
from contextlib import suppress
from typing import Any

import pytest
from waiting import turns, until

from fdtransport import (
    DescriptorInUseError,
    UnpollableFileError,
    connect_fd,
    connect_packet_fd,
    open_fd,
    open_packet_fd,
)
from fdtransport.testing import FaultPlan, RecordingDatagramProtocol, RecordingProtocol, pattern


async def as_transport(fd, **options):
    return await connect_fd(RecordingProtocol, fd, **options)


async def as_packets(fd, **options):
    return await connect_packet_fd(RecordingDatagramProtocol, fd, **options)


#: name -> a call that takes a descriptor over
HELPERS = {
    "connect_fd": as_transport,
    "open_fd": open_fd,
    "connect_packet_fd": as_packets,
    "open_packet_fd": open_packet_fd,
}
every_helper = pytest.mark.parametrize("helper", HELPERS.values(), ids=HELPERS)
BYTES = {name: HELPERS[name] for name in ("connect_fd", "open_fd")}
every_byte_helper = pytest.mark.parametrize("helper", BYTES.values(), ids=BYTES)


def transport_of(made):
    first = made[0] if isinstance(made, tuple) else made
    if isinstance(first, asyncio.StreamReader):
        return made[1].transport
    return getattr(first, "transport", first)


async def gone(transport):
    """Until the transport has ended and let go of its descriptor."""
    await until(lambda: transport.get_protocol() is None)


def flags(fd):
    return fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)


class Untouched:
    """Checks that descriptors are open after the block, with the flags that they had before."""

    def __init__(self, *fds):
        self.fds = fds

    def __enter__(self):
        self.before = [(os.fstat(fd)[:3], flags(fd)) for fd in self.fds]
        return self

    def __exit__(self, *exc):
        if exc[0] is None:
            assert [(os.fstat(fd)[:3], flags(fd)) for fd in self.fds] == self.before


@pytest.fixture
def pipe():
    fds = os.pipe()
    yield fds
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


@pytest.fixture
def pair():
    pair = socket.socketpair()
    yield pair
    for sock in pair:
        sock.close()


# -- what is taken ------------------------------------------------------------------------------


async def test_an_int_is_taken_over(pair):
    near, far = pair[0].detach(), pair[1]
    transport, protocol = await as_transport(near)
    assert protocol.names == ["made"]
    transport.write(b"hello")
    far.send(b"world")
    await until(lambda: protocol.received == b"world")
    assert far.recv(10) == b"hello"
    assert (transport.fileno(), transport.get_extra_info("fd")) == (near, near)
    transport.close()
    await gone(transport)
    assert transport.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(near)


async def test_an_object_with_fileno_is_taken_over(pair):
    near, far = pair
    transport, _protocol = await as_transport(near)
    transport.write(b"hello")
    assert far.recv(10) == b"hello"
    transport.close()
    await gone(transport)
    assert near.fileno() == -1


async def test_a_raw_file_is_taken_over(pipe):
    read, write = pipe
    file = os.fdopen(os.dup(read), "rb", buffering=0)
    transport, protocol = await as_transport(file)
    os.write(write, b"hello")
    await until(lambda: protocol.received == b"hello")
    transport.close()
    await gone(transport)
    assert file.closed


async def test_a_pair_is_one_transport():
    near_read, far_write = os.pipe()
    far_read, near_write = os.pipe()
    transport, protocol = await as_transport((near_read, near_write))
    os.write(far_write, b"in")
    await until(lambda: protocol.received == b"in")
    transport.write(b"out")
    assert os.read(far_read, 10) == b"out"
    assert transport.can_write_eof()
    transport.write_eof()
    assert os.read(far_read, 10) == b""
    os.write(far_write, b"more")
    await until(lambda: protocol.received == b"inmore")
    os.close(far_write)
    await gone(transport)
    assert (protocol.reason, protocol.names[-2:]) == (None, ["eof", "lost"])
    os.close(far_read)


async def test_one_descriptor_twice_is_one_duplex_transport(pair):
    near, far = pair[0].detach(), pair[1]
    reader, writer = await open_fd((near, near))
    far.send(b"in")
    assert await reader.read(10) == b"in"
    writer.write(b"out")
    assert far.recv(10) == b"out"
    writer.write_eof()
    assert far.recv(10) == b""
    far.send(b"more")
    assert await reader.read(10) == b"more"
    far.close()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(near)


@pytest.mark.parametrize("way", ["read", "write"])
async def test_one_direction_of_a_socket(way, pair):
    near, far = pair[0].detach(), pair[1]
    reader, writer = await open_fd((near, None) if way == "read" else (None, near))
    if way == "read":
        with pytest.raises(OSError, match="read-only"):
            writer.write(b"x")
        far.send(b"in")
        assert await reader.read(10) == b"in"
    else:
        assert reader.at_eof()
        writer.write(b"out")
        assert far.recv(10) == b"out"
    writer.close()
    await writer.wait_closed()
    assert far.recv(10) == b""


async def test_two_descriptors_of_one_socket_are_a_pair(pair):
    near, far = pair
    reader, writer = await open_fd((near.fileno(), os.dup(near.fileno())))
    near.detach()
    far.send(b"in")
    assert await reader.read(10) == b"in"
    writer.write(b"out")
    assert far.recv(10) == b"out"
    far.close()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


@every_byte_helper
async def test_a_regular_file_is_read_to_its_end(helper, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pattern(1_000_000))
    made = await helper(os.open(path, os.O_RDONLY))
    if helper is open_fd:
        reader, writer = made
        assert await reader.read() == pattern(1_000_000)
        await writer.wait_closed()
    else:
        await gone(made[0])
        assert made[1].received == pattern(1_000_000)


async def test_a_regular_file_is_written(tmp_path):
    path = tmp_path / "file"
    _reader, writer = await open_fd(os.open(path, os.O_WRONLY | os.O_CREAT))
    for start in range(0, 1_000_000, 10_000):
        writer.write(pattern(10_000, start))
        await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert path.read_bytes() == pattern(1_000_000)


@every_byte_helper
async def test_dev_null_is_at_its_end(helper):
    made = await helper(os.open(os.devnull, os.O_RDONLY))
    if helper is open_fd:
        assert await made[0].read() == b""
        await made[1].wait_closed()
    await gone(transport_of(made))


async def test_a_terminal_is_taken():
    master, slave = pty.openpty()
    mode = termios.tcgetattr(slave)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    reader, writer = await open_fd(slave)
    os.write(master, b"typed\n")
    assert await reader.readline() == b"typed\n"
    writer.write(b"shown")
    await until(lambda: writer.transport.get_write_buffer_size() == 0)
    assert os.read(master, 10) == b"shown"
    writer.close()
    await writer.wait_closed()
    os.close(master)


async def test_cork_is_passed_on(pair):
    transport, _ = await as_transport(pair[0], cork=0)
    assert transport.cork == 0
    transport.abort()
    await gone(transport)
    _reader, writer = await open_fd(pair[1], cork=7)
    assert writer.transport.cork == 7
    writer.close()
    await writer.wait_closed()


# -- the mode of the descriptor -----------------------------------------------------------------


@every_helper
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("end", ["close", "abort", "detach"])
async def test_the_mode_is_put_back(helper, blocking, end):
    kind = socket.SOCK_SEQPACKET if "packet" in helper.__name__ else socket.SOCK_STREAM
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    other = os.dup(near.fileno())  # the mode belongs to what both share
    os.set_blocking(other, blocking)
    before = fcntl.fcntl(other, fcntl.F_GETFL)
    with near, far:
        transport = transport_of(await helper(near.detach()))
        assert not os.get_blocking(other)
        if end == "detach":
            file = transport.detach().file
            assert flags(file) == (before, fcntl.FD_CLOEXEC)
            os.close(file)
        else:
            getattr(transport, end)()
        await gone(transport)
        assert fcntl.fcntl(other, fcntl.F_GETFL) == before
    os.close(other)


async def test_the_modes_of_a_pair_are_put_back():
    near_read, far_write = os.pipe()
    far_read, near_write = os.pipe()
    os.set_blocking(near_write, False)
    with Untouched(near_read, near_write):
        transport, _ = await as_transport((near_read, near_write))
        assert transport.detach().file == (near_read, near_write)
    await gone(transport)
    for fd in (near_read, near_write, far_read, far_write):
        os.close(fd)


async def test_the_mode_of_a_pair_that_shares_one_description_is_put_back(pair):
    near = pair[0]
    other = os.dup(near.fileno())
    third = os.dup(near.fileno())
    transport, _ = await as_transport((near.detach(), other))
    assert not os.get_blocking(third)
    transport.close()
    await gone(transport)
    assert os.get_blocking(third)
    os.close(third)


@every_byte_helper
async def test_detach_gives_back_exactly_what_was_given(helper, pair):
    near, far = pair
    with Untouched(near.fileno()):
        transport = transport_of(await helper(near))
        detached = transport.detach()
    assert detached.file is near
    await gone(transport)
    far.send(b"mine again")
    assert near.recv(100) == b"mine again"
    transport = transport_of(await helper(near))  # and it can be taken over anew
    transport.close()
    await gone(transport)


# -- what is refused ----------------------------------------------------------------------------


class NoFileno:
    pass


class BadFileno:
    def __init__(self, answer):
        self.answer = answer

    def fileno(self):
        return self.answer


WRONG = {
    "None": None,
    "a string": "0",
    "bytes": b"0",
    "a float": 0.0,
    "True": True,
    "False": False,
    "an object": NoFileno(),
    "a fileno of None": BadFileno(None),
    "a fileno of a string": BadFileno("0"),
    "a fileno of a float": BadFileno(0.0),
    "a class": socket.socket,
    "a dict": {},
    "an empty tuple": (),
    "a pair of nothing": (None, None),
    "a pair of strings": ("0", "1"),
    "a pair of floats": (0.0, 1.0),
    "a pair of pairs": ((0, 1), (0, 1)),
}


@every_helper
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_what_is_no_descriptor_is_a_type_error(helper, wrong):
    with Untouched(0, 1, 2), pytest.raises(TypeError):
        await helper(wrong)
    await turns()


@every_helper
async def test_a_list_or_a_triple_is_no_pair(helper, pipe):
    with Untouched(*pipe):
        for wrong in ([*pipe], (*pipe, pipe[1]), (pipe[0],), {*pipe}):
            with pytest.raises(TypeError):
                await helper(wrong)
        await turns()


NUMBERS = [-1, -5, -(2**31) - 1, 10**6, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30]


@every_helper
@pytest.mark.parametrize("number", NUMBERS)
async def test_a_number_that_is_no_descriptor_is_a_bad_descriptor(helper, number):
    for wrong in (number, BadFileno(number)):
        with pytest.raises(OSError, match=r"(?i)bad file descriptor") as caught:
            await helper(wrong)
        assert caught.value.errno == errno.EBADF


@every_helper
async def test_a_closed_descriptor_is_a_bad_descriptor(helper, pipe):
    read, _write = pipe
    number = os.dup(read)
    os.close(number)
    file = os.fdopen(os.dup(read), "rb", buffering=0)
    file.close()
    sock = socket.socket()
    sock.close()
    for wrong in (number, file, sock):
        with pytest.raises(OSError, match=r"(?i)bad file descriptor") as caught:
            await helper(wrong)
        assert caught.value.errno == errno.EBADF


@every_byte_helper
async def test_a_pair_with_a_bad_half_leaves_the_good_one_alone(helper, pipe):
    read, write = pipe
    closed = os.dup(read)
    os.close(closed)
    with Untouched(read, write):
        for wrong in [(read, closed), (closed, write), (read, -1), (-1, write)]:
            with pytest.raises(OSError, match=r"(?i)bad file descriptor"):
                await helper(wrong)
        for wrong in [(read, "x"), ("x", write)]:
            with pytest.raises(TypeError):
                await helper(wrong)
        await turns()
    os.write(write, b"x")
    assert os.read(read, 1) == b"x"


@every_byte_helper
async def test_a_pair_the_wrong_way_round_is_refused(helper, pipe):
    read, write = pipe
    with Untouched(read, write):
        with pytest.raises(OSError, match="write-only, and is to be read") as caught:
            await helper((write, read))
        assert caught.value.errno == errno.EBADF
        other_read, other_write = os.pipe()
        with pytest.raises(OSError, match="read-only, and is to be written to"):
            await helper((read, other_read))
        with pytest.raises(OSError, match="write-only, and is to be read"):
            await helper((other_write, write))
        os.close(other_read)
        os.close(other_write)
        await turns()


@every_helper
async def test_a_directory_is_refused(helper, tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    with Untouched(fd):
        with pytest.raises(IsADirectoryError) as caught:
            await helper(fd)
        assert caught.value.errno == errno.EISDIR
        await turns()
    os.close(fd)


@every_helper
async def test_a_descriptor_that_can_neither_read_nor_write_is_refused(helper, tmp_path):
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_PATH)
    with Untouched(fd), pytest.raises(OSError, match="Bad file descriptor") as caught:
        await helper(fd)
    assert caught.value.errno == errno.EBADF
    os.close(fd)


@pytest.mark.parametrize("helper", [as_packets, open_packet_fd])
async def test_a_regular_file_has_no_records(helper, tmp_path):
    path = tmp_path / "file"
    path.touch()
    for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        fd = os.open(path, mode)
        with Untouched(fd):
            with pytest.raises(UnpollableFileError) as caught:
                await helper(fd)
            assert caught.value.errno == errno.EPERM
            await turns()
        os.close(fd)


@every_helper
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["stream", "seqpacket"])
@pytest.mark.parametrize("half", [False, True], ids=["", "half of a pair"])
async def test_a_listening_socket_is_refused_at_once(helper, kind, half, pipe):
    with socket.socket(socket.AF_UNIX, kind) as listening:
        listening.bind("")
        listening.listen()
        fd = listening.fileno()
        with Untouched(fd), pytest.raises(ValueError, match="listens"):
            await helper((fd, pipe[1]) if half else fd)


@every_helper
async def test_a_descriptor_under_a_transport_of_ours_is_refused(helper, pair):
    near, far = pair
    reader, writer = await open_fd(near)
    with Untouched(near.fileno()):
        for again in (near, near.fileno(), BadFileno(near.fileno())):
            with pytest.raises(DescriptorInUseError, match="already under a transport") as caught:
                await helper(again)
            assert caught.value.errno == errno.EBUSY
            assert isinstance(caught.value, RuntimeError)
        await turns()
    far.send(b"still mine")
    assert await reader.read(100) == b"still mine"
    writer.close()
    await writer.wait_closed()


@every_byte_helper
async def test_a_pair_with_a_half_under_a_transport_leaves_the_other_alone(helper, pipe):
    read, write = pipe
    near_read, far_write = os.pipe()
    transport, _protocol = await as_transport(read)
    with Untouched(near_read, write):
        with pytest.raises(DescriptorInUseError):
            await helper((read, write))
        await turns()
    transport.close()
    await gone(transport)
    for fd in (near_read, far_write):
        os.close(fd)


@every_helper
async def test_a_socket_under_a_transport_of_the_loop_is_refused(helper, pair, reports):
    near, far = pair
    reader, writer = await asyncio.open_connection(sock=near)
    fd = near.fileno()
    try:
        with Untouched(fd):
            async with asyncio.timeout(2):
                with pytest.raises(RuntimeError):
                    await helper(fd)
            await turns()
        far.send(b"still theirs")
        assert await reader.read(100) == b"still theirs"
        writer.write(b"both ways")
        assert far.recv(100) == b"both ways"
    finally:
        writer.close()
        await writer.wait_closed()
        await turns()


async def test_writing_to_a_read_only_descriptor_is_refused(pipe):
    read, write = pipe
    transport, protocol = await as_transport(read)
    for call in (
        lambda: transport.write(b"x"),
        lambda: transport.write(b""),
        lambda: transport.writelines([b"x"]),
        lambda: transport.write_eof(),
    ):
        with pytest.raises(OSError, match="read-only") as caught:
            call()
        assert caught.value.errno == errno.EBADF
    assert not transport.can_write_eof()
    os.write(write, b"alive")
    await until(lambda: protocol.received == b"alive")
    transport.close()
    await gone(transport)


async def test_reading_from_a_write_only_descriptor_is_refused(pipe):
    read, write = pipe
    transport, _protocol = await as_transport(write)
    for call in (transport.pause_reading, transport.resume_reading):
        with pytest.raises(NotImplementedError):
            call()
    assert not transport.is_reading()
    transport.write(b"alive")
    assert os.read(read, 10) == b"alive"
    transport.close()
    await gone(transport)


@pytest.mark.parametrize(("cork", "error"), [(-1, ValueError), ("x", TypeError), (1.5, TypeError)])
@every_byte_helper
async def test_a_cork_of_no_use_leaves_the_descriptor_alone(helper, cork, error, pair):
    near, far = pair
    with Untouched(near.fileno()):
        with pytest.raises(error):
            await helper(near, cork=cork)
        await turns()
    far.send(b"mine")
    assert near.recv(10) == b"mine"


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_of_no_use_leaves_the_descriptor_alone(limit, pair):
    with Untouched(pair[0].fileno()):
        with pytest.raises(ValueError, match="Limit"):
            await open_fd(pair[0], limit=limit)
        await turns()


@pytest.mark.parametrize("connect", [connect_fd, connect_packet_fd])
async def test_a_factory_that_fails_leaves_the_descriptor_alone(connect, pair):
    def fail():
        raise ZeroDivisionError

    near, far = pair
    with Untouched(near.fileno()):
        with pytest.raises(ZeroDivisionError):
            await connect(fail, near)
        with pytest.raises(TypeError):
            await connect(None, near)
        await turns()
    far.send(b"mine")
    assert near.recv(10) == b"mine"


@pytest.mark.parametrize("protocol", [None, 5, "protocol", object()], ids=["None", "int", "str", "object"])
@pytest.mark.parametrize("connect", [connect_fd, connect_packet_fd])
async def test_what_is_no_protocol_is_refused(connect, protocol, pair, reports):
    with Untouched(pair[0].fileno()):
        made = None
        try:
            with pytest.raises(TypeError):
                made = await connect(lambda: protocol, pair[0])
        finally:
            if made is not None:
                made[0].abort()
            await turns()


@every_helper
@pytest.mark.parametrize("name", ["fcntl", "set_blocking", "status_flags"])
async def test_a_kernel_that_refuses_leaves_the_descriptor_alone(helper, name, pair):
    near, _far = pair
    with Untouched(near.fileno()):
        with FaultPlan() as plan:
            plan.fail(name, 1, errno.EIO, fd=near.fileno())
            with pytest.raises(OSError, match="Input/output error"):
                await helper(near)
            assert plan.injected
        await turns()
    transport = transport_of(await helper(near))
    transport.close()
    await gone(transport)


@every_byte_helper
async def test_a_kernel_that_refuses_the_second_of_a_pair_leaves_both_alone(helper, pipe):
    read, _write = pipe
    other_read, other_write = os.pipe()
    with Untouched(read, other_write):
        for name in ("fcntl", "set_blocking", "status_flags"):
            with FaultPlan() as plan:
                plan.fail(name, 1, errno.EIO, fd=other_write)
                with pytest.raises(OSError, match="Input/output error"):
                    await helper((read, other_write))
                assert plan.injected
        await turns()
    os.close(other_read)
    os.close(other_write)


@every_helper
async def test_a_loop_that_refuses_leaves_the_descriptor_alone(helper, pair, monkeypatch):
    """As when the system has no more memory for watches: ENOSPC of epoll_ctl(2)."""
    near, far = pair
    loop = asyncio.get_running_loop()

    class Refusing:
        def add_reader(self, *_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(loop, name)

    from fdtransport._core import opening

    monkeypatch.setattr(opening.asyncio, "get_running_loop", Refusing)
    with Untouched(near.fileno()):
        async with asyncio.timeout(5):
            with pytest.raises(OSError, match="No space") as caught:
                await helper(near)
        assert caught.value.errno == errno.ENOSPC
        monkeypatch.undo()
        await turns()
    far.send(b"mine")
    assert near.recv(10) == b"mine"


# -- cancelling ---------------------------------------------------------------------------------


@every_helper
async def test_cancelling_anywhere_leaves_the_descriptor_alone(helper):
    for turn in range(5):
        kind = socket.SOCK_SEQPACKET if "packet" in helper.__name__ else socket.SOCK_STREAM
        near, far = socket.socketpair(socket.AF_UNIX, kind)
        with near, far:
            with Untouched(near.fileno()):
                task = asyncio.create_task(helper(near))
                await turns(turn)
                task.cancel()
                try:
                    transport = transport_of(await task)
                except asyncio.CancelledError:
                    pass
                else:
                    transport.detach()
                await turns()
            far.send(b"mine")
            await turns()
            assert near.recv(10) == b"mine"


@every_byte_helper
async def test_cancelling_anywhere_leaves_a_pair_alone(helper):
    for turn in range(5):
        near_read, far_write = os.pipe()
        far_read, near_write = os.pipe()
        with Untouched(near_read, near_write):
            task = asyncio.create_task(helper((near_read, near_write)))
            await turns(turn)
            task.cancel()
            try:
                transport = transport_of(await task)
            except asyncio.CancelledError:
                pass
            else:
                transport.detach()
            await turns()
        for fd in (near_read, far_write, far_read, near_write):
            os.close(fd)


async def test_a_timeout_is_a_cancel(pair):
    near, _far = pair
    with Untouched(near.fileno()):
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await as_transport(near)
                raise AssertionError
        await turns()


async def test_the_protocol_of_a_cancelled_helper_is_told_the_end(pair):
    protocol = RecordingProtocol()
    task = asyncio.create_task(connect_fd(lambda: protocol, pair[0]))
    await turns(1)
    task.cancel()
    await turns()
    assert task.cancelled()
    assert protocol.names in ([], ["made", "lost"])
    assert protocol.reason is None


# -- numbers that come again --------------------------------------------------------------------


async def test_a_number_can_be_taken_over_again_after_its_end():
    for _ in range(20):
        near, far = socket.socketpair()
        with far:
            transport, protocol = await as_transport(near.detach())
            far.send(b"x")
            await until(lambda protocol=protocol: protocol.received)
            transport.close()
            await gone(transport)


async def test_a_descriptor_that_was_closed_behind_our_back_is_not_closed_again(pair):
    near = pair[0].detach()
    transport, _protocol = await as_transport(near)
    os.close(near)
    transport.abort()
    await turns(1)
    await gone(transport)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
async def test_10000_descriptors_come_and_go():
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(20 if sys.flags.dev_mode else 200):  # asyncio's debug mode makes them dear
        pairs = [socket.socketpair() for _ in range(25)]
        transports = [(await as_transport(near.detach()))[0] for near, _ in pairs]
        for transport in transports:
            transport.close()
        for transport in transports:
            await gone(transport)
        for _, far in pairs:
            assert far.recv(1) == b""
            far.close()
    assert len(os.listdir("/proc/self/fd")) == count


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_transport_that_ends_itself_while_its_helper_is_cancelled_gives_the_descriptor_back(
    end: str,
) -> None:
    class Fickle(RecordingProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            getattr(transport, end)()
            task.cancel()

    reading, writing = os.pipe()
    protocol = Fickle()
    task = asyncio.ensure_future(connect_fd(lambda: protocol, reading))
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: protocol.lost)
    assert os.get_blocking(reading)
    os.close(reading)
    os.close(writing)
