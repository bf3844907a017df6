"""Pipes: what may be one, which direction is used, and how large they are."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import pty
import socket
import tempfile
import termios
import tty
import weakref

import pytest
from waiting import lost, until

from fdtransport import DescriptorInUseError, UnpollableFileError
from fdtransport._core import syscalls
from fdtransport.pipes import (
    PacketPipeTransport,
    PipeTransport,
    connect_read_pipe,
    connect_write_pipe,
    open_pipe,
)
from fdtransport.testing import FarEnd, RecordingDatagramProtocol, RecordingProtocol, idle_cost, pattern


def raw_terminal():
    master, slave = pty.openpty()
    tty.setraw(slave)
    return master, slave


# -- what is read


async def test_bytes_and_the_end_of_a_pipe_are_read():
    read, write = os.pipe()
    transport, protocol = await connect_read_pipe(RecordingProtocol, read)
    with FarEnd(write) as far:
        await far.send(pattern(300_000))
    await lost(protocol)
    assert protocol.received == pattern(300_000)
    assert protocol.names[-2:] == ["eof", "lost"]
    assert protocol.reason is None
    assert transport.fileno() == -1


async def test_what_is_written_arrives_and_closing_is_the_end_of_file():
    read, write = os.pipe()
    with FarEnd(read) as far:
        transport, protocol = await connect_write_pipe(RecordingProtocol, write)
        transport.write(pattern(300_000))
        transport.write_eof()
        assert await far.recv_to_end() == pattern(300_000)
        await lost(protocol)
    assert protocol.reason is None


@pytest.mark.parametrize("wrap", [int, lambda fd: os.fdopen(fd, "rb", 0)], ids=["int", "file object"])
async def test_the_pipe_is_in_the_extra_info_and_let_go_of_at_the_end(wrap):
    read, write = os.pipe()
    file = wrap(read)
    transport, protocol = await connect_read_pipe(RecordingProtocol, file)
    assert transport.get_extra_info("pipe") is file
    assert transport.get_extra_info("fd") == read
    os.close(write)
    await lost(protocol)
    assert transport.get_extra_info("pipe", "gone") == "gone"
    if file is not read:
        assert file.closed
        reference = weakref.ref(file)
        del file
        gc.collect()
        assert reference() is None


async def test_a_socket_is_read_and_never_written_to():
    near, other = socket.socketpair()
    transport, _ = await connect_read_pipe(RecordingProtocol, near.detach())
    with FarEnd(other):
        assert not transport.can_write_eof()
        with pytest.raises(OSError, match="read-only") as caught:
            transport.write(b"no")
        assert caught.value.errno == errno.EBADF
        transport.abort()
        await transport.aclose()


async def test_a_terminal_is_read_and_its_other_half_may_have_a_transport_of_its_own():
    master, slave = raw_terminal()
    with FarEnd(master) as far:
        other = os.dup(slave)
        reading, protocol = await connect_read_pipe(RecordingProtocol, slave)
        writing, writer = await connect_write_pipe(RecordingProtocol, other)
        await far.send(b"in" * 100)
        await until(lambda: protocol.received == b"in" * 100)
        writing.write(b"out")
        assert await far.recv_exactly(3) == b"out"
        assert writer.names == ["made"]
        await writing.aclose()
        await reading.aclose()


async def test_dev_null_is_at_its_end():
    null = os.open(os.devnull, os.O_RDONLY)
    _, protocol = await connect_read_pipe(RecordingProtocol, null)
    await lost(protocol)
    assert protocol.names == ["made", "eof", "lost"]


# -- what is written


@pytest.mark.parametrize("kind", ["terminal", "socket"])
async def test_input_on_a_write_transport_neither_ends_it_nor_is_taken(kind):
    other, near = raw_terminal() if kind == "terminal" else (s.detach() for s in socket.socketpair())
    far = FarEnd(other)
    reader = FarEnd(os.dup(near))
    transport, protocol = await connect_write_pipe(RecordingProtocol, near)
    with far, reader:
        for _ in range(50):
            await far.send(b"4 B!")
        assert await reader.recv_exactly(200) == b"4 B!" * 50
        transport.write(b"still here")
        assert await far.recv_exactly(10) == b"still here"
        assert protocol.names == ["made"]
        assert (await idle_cost(0.1)).is_idle(0.05, 20)
        with pytest.raises(NotImplementedError):
            transport.pause_reading()
        await transport.aclose()


async def test_an_idle_write_transport_notices_that_its_reader_has_gone():
    read, write = os.pipe()
    _, protocol = await connect_write_pipe(RecordingProtocol, write)
    os.close(read)
    await lost(protocol)
    assert protocol.reason is None


async def test_a_reader_that_goes_before_all_is_written_is_a_broken_pipe():
    read, write = os.pipe()
    transport, protocol = await connect_write_pipe(RecordingProtocol, write)
    transport.write(bytes(1_000_000))
    os.close(read)
    await lost(protocol)
    assert protocol.reason.errno == errno.EPIPE


async def test_a_written_dev_null_takes_everything():
    transport, protocol = await connect_write_pipe(RecordingProtocol, os.open(os.devnull, os.O_WRONLY))
    transport.write(bytes(1_000_000))
    await transport.flushed()
    transport.close()
    await lost(protocol)


# -- what is refused

CONNECT = {"read": connect_read_pipe, "write": connect_write_pipe}


@pytest.mark.parametrize("connect", CONNECT.values(), ids=CONNECT)
async def test_a_regular_file_is_refused_with_a_word_on_what_takes_it(connect):
    with tempfile.TemporaryFile() as file:
        for wanted in (UnpollableFileError, ValueError, OSError):
            with pytest.raises(wanted, match=r"regular file.*connect_fd"):
                await connect(RecordingProtocol, file)
        assert os.get_blocking(file.fileno())
        file.write(b"open")


async def test_a_directory_is_refused(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            await connect_read_pipe(RecordingProtocol, fd)
        assert os.get_blocking(fd)
    finally:
        os.close(fd)


async def test_the_wrong_end_of_a_pipe_is_refused_and_left_as_it_was():
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="write-only") as caught:
            await connect_read_pipe(RecordingProtocol, write)
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="read-only") as caught:
            await connect_write_pipe(RecordingProtocol, read)
        assert caught.value.errno == errno.EBADF
        assert os.get_blocking(read)
        assert os.get_blocking(write)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("connect", CONNECT.values(), ids=CONNECT)
async def test_closed_and_impossible_files_are_refused(connect):
    with tempfile.TemporaryFile() as file:
        pass
    with pytest.raises(OSError, match="closed") as caught:
        await connect(RecordingProtocol, file)
    assert caught.value.errno == errno.EBADF
    for nonsense in ("0", None, 1.5, True):
        with pytest.raises(TypeError):
            await connect(RecordingProtocol, nonsense)


async def test_a_pipe_under_a_transport_is_refused():
    near, other = socket.socketpair()
    with other:
        transport, _ = await connect_read_pipe(RecordingProtocol, near)
        with pytest.raises(DescriptorInUseError):
            await connect_write_pipe(RecordingProtocol, near)
        await transport.aclose()


async def test_cancelled_connecting_leaves_the_pipe_as_it_was():
    read, write = os.pipe()
    task = asyncio.ensure_future(connect_read_pipe(RecordingProtocol, read))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.get_blocking(read)
    os.close(read)
    os.close(write)
    await asyncio.sleep(0)


# -- sizes


@pytest.mark.parametrize("connect", CONNECT.values(), ids=CONNECT)
async def test_a_pipe_can_be_made_larger_and_tells_its_real_size(connect):
    read, write = os.pipe()
    ours, other = (read, write) if connect is connect_read_pipe else (write, read)
    transport, _ = await connect(RecordingProtocol, ours, pipe_size=100_000)
    assert transport.get_extra_info("pipe_size") == 128 * 1024
    assert fcntl.fcntl(other, fcntl.F_GETPIPE_SZ) == 128 * 1024
    os.close(other)
    transport.abort()
    await transport.aclose()


async def test_a_size_over_the_users_share_leaves_the_pipe_as_it_is(monkeypatch):
    def refuse(fd, size):
        raise PermissionError(errno.EPERM, "over the limit")

    monkeypatch.setattr(syscalls, "set_pipe_size", refuse)
    read, write = os.pipe()
    transport, _ = await connect_read_pipe(RecordingProtocol, read, pipe_size=1 << 30)
    assert transport.get_extra_info("pipe_size") == fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
    os.close(write)
    await transport.aclose()


async def test_a_size_for_what_is_no_pipe_is_refused():
    near, other = socket.socketpair()
    with near, other, pytest.raises(ValueError, match="is a socket"):
        await connect_write_pipe(RecordingProtocol, near, pipe_size=4096)


async def test_what_is_no_pipe_has_no_pipe_size():
    near, other = socket.socketpair()
    with other:
        transport, _ = await connect_write_pipe(RecordingProtocol, near)
        assert transport.get_extra_info("pipe_size") is None
        await transport.aclose()


async def test_an_impossible_size_is_refused_and_leaves_nothing():
    with pytest.raises(OSError, match="Invalid argument") as caught:
        await open_pipe(pipe_size=1 << 31 | 1)
    assert caught.value.errno == errno.EINVAL


# -- new pipes


async def test_a_new_pipe_carries_lines_and_its_end():
    reader, writer = await open_pipe()
    writer.write(b"one\ntwo\n")
    assert await reader.readline() == b"one\n"
    writer.close()
    assert await reader.read() == b"two\n"
    await writer.wait_closed()


async def test_a_new_pipe_holds_its_writer_back():
    reader, writer = await open_pipe(pipe_size=4096)
    assert writer.get_extra_info("pipe_size") == 4096
    data = pattern(1_000_000)

    async def feed():
        for at in range(0, len(data), 10_000):
            writer.write(data[at : at + 10_000])
            assert writer.transport.get_write_buffer_size() < 100_000
            await writer.drain()
        writer.close()

    feeding = asyncio.ensure_future(feed())
    assert await reader.read() == data
    await feeding
    await writer.wait_closed()


async def test_a_new_packet_pipe_keeps_boundaries():
    source, sink = await open_pipe(packet=True)
    async with source, sink:
        for record in (b"aa", b"bbb", bytes(4096)):
            await sink.send(record)
        assert [await source.recv() for _ in range(3)] == [b"aa", b"bbb", bytes(4096)]
        for record in (bytes(4097), b""):
            sink.transport.sendto(record)
            with pytest.raises(OSError, match="4096") as caught:
                await sink.send(b"x")
            assert caught.value.errno == errno.EMSGSIZE
        await sink.send(b"alive")
        assert await source.recv() == b"alive"
        await sink.aclose()
        with pytest.raises(EOFError):
            await source.recv()


async def test_a_full_packet_pipe_queues_records():
    source, sink = await open_pipe(packet=True)
    records = [b"%d" % number for number in range(1000)]
    for record in records:
        sink.transport.sendto(record)
    assert sink.transport.get_write_buffer_size()
    async with source, sink:
        assert [await source.recv() for _ in records] == records


async def test_both_ends_of_a_new_pipe_are_closed_when_the_second_is_refused(monkeypatch):
    arm, calls = PipeTransport._register, []

    def refuse(self):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "no room")
        arm(self)

    monkeypatch.setattr(PipeTransport, "_register", refuse)
    with pytest.raises(OSError, match="no room"):
        await open_pipe()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(calls) == 2


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancelled_open_pipe_leaves_nothing(steps):
    task = asyncio.ensure_future(open_pipe())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    try:
        _, writer = await task
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    else:
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.01)


async def test_a_record_protocol_can_be_put_on_a_packet_pipe():
    read, write = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    loop = asyncio.get_running_loop()
    protocol = RecordingDatagramProtocol()
    transport = PacketPipeTransport(loop, (read, None), protocol)
    os.write(write, b"one")
    os.write(write, b"two")
    os.close(write)
    await lost(protocol)
    assert [event for event in protocol.events if event[0] == "data"]
    assert transport.is_closing()


async def test_the_terminal_mode_is_left_alone():
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    keep = os.dup(slave)
    transport, _ = await connect_read_pipe(RecordingProtocol, slave)
    assert termios.tcgetattr(keep) == before
    transport.close()
    await transport.aclose()
    assert os.get_blocking(keep)
    os.close(keep)
    os.close(master)
