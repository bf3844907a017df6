"""A descriptor that somebody closes under its transport, and whose number another file gets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys

import pytest

from fdtransport import (
    connect_fd,
    create_connection,
    create_datagram_endpoint,
    create_datagram_server,
    create_unix_connection,
)
from fdtransport.testing import RecordingDatagramProtocol, RecordingProtocol, descriptors
from fdtransport.testing.observe import until


@pytest.fixture
async def debugging():
    loop = asyncio.get_running_loop()
    before = loop.get_debug()
    loop.set_debug(True)
    yield loop
    loop.set_debug(before)


@pytest.fixture
def victim(tmp_path):
    return tmp_path / "victim"


def take_over(fd: int, path) -> int:
    """Close *fd* behind everybody's back; its number becomes that of a new file."""
    os.close(fd)
    stranger = os.open(path, os.O_RDWR | os.O_CREAT)
    if stranger != fd:
        os.dup2(stranger, fd)
        os.close(stranger)
    return fd


@pytest.mark.parametrize("size", [1, 1_000_000])
async def test_nothing_is_written_to_the_file_that_has_the_number_now(debugging, victim, size):
    near, far = socket.socketpair()
    with far:
        transport, protocol = await connect_fd(RecordingProtocol, near.detach())
        stranger = take_over(transport.fileno(), victim)
        transport.write(b"s" * size)
        await until(lambda: protocol.lost, "the loss is told")
        assert protocol.reason.errno == errno.EBADF
        assert "somebody else has closed" in str(protocol.reason)
        os.write(stranger, b"mine")  # it is open, and nobody else's
        os.close(stranger)
    assert victim.read_bytes() == b"mine"


async def test_closing_leaves_the_other_file_open_and_as_it_is(debugging, victim):
    read, write = os.pipe()
    transport, protocol = await connect_fd(RecordingProtocol, read)
    stranger = take_over(read, victim)
    blocking = os.get_blocking(stranger)
    transport.close()
    await until(lambda: protocol.lost, "the loss is told")
    assert os.get_blocking(stranger) is blocking
    os.close(stranger)
    os.close(write)


async def test_a_socket_object_does_not_close_it_later_either(debugging, victim):
    near, far = socket.socketpair()
    with far:
        transport, protocol = await create_connection(RecordingProtocol, sock=near)
        stranger = take_over(near.fileno(), victim)
        transport.abort()
        await until(lambda: protocol.lost, "the loss is told")
        assert near.fileno() == -1
        os.close(stranger)


class TakesDescriptors(RecordingProtocol):
    def fds_received(self, fds):
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("move", ["write", "read", "send"])
@pytest.mark.parametrize("make", [RecordingProtocol, TakesDescriptors], ids=["", "fds_received"])
async def test_a_transport_that_passes_descriptors_looks_as_well(debugging, victim, make, move):
    before = descriptors()
    near, far = socket.socketpair()
    with far:
        transport, protocol = await create_unix_connection(make, sock=near)
        with socket.socket() as file:
            transport.send_fds(b"x", [file])
            stranger = take_over(near.fileno(), victim)
            if move == "write":
                transport.write(b"s")
            elif move == "send":
                transport.send_fds(b"s", [file])
            else:
                transport._read()  # the poller does not know the number any more
        await until(lambda: protocol.lost, "the loss is told")
        assert "somebody else has closed" in str(protocol.reason)
        os.write(stranger, b"mine")
        os.close(stranger)
    assert victim.read_bytes() == b"mine"
    assert descriptors() == before


class Records(asyncio.DatagramProtocol):
    lost = None

    def connection_lost(self, exc):
        self.lost = exc or True


@pytest.mark.parametrize("move", ["send", "receive"])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["datagram", "seqpacket"])
async def test_records_are_not_given_to_another_socket_that_has_the_number(debugging, kind, move):
    before = descriptors()
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    mine, other = socket.socketpair(socket.AF_UNIX, kind)
    transport, protocol = await create_datagram_endpoint(Records, sock=near)
    os.close(near.fileno())
    os.dup2(mine.fileno(), near.fileno())
    stranger = near.fileno()
    other.send(b"for somebody else")
    if move == "send":
        transport.sendto(b"secret")
    else:
        transport._read()
    await until(lambda: protocol.lost, "the loss is told")
    assert "somebody else has closed" in str(protocol.lost)
    assert os.read(stranger, 100) == b"for somebody else"  # it is open, and nobody has read there
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.recv(100)
    os.close(stranger)
    for sock in (far, mine, other):
        sock.close()
    assert descriptors() == before


async def test_sessions_end_when_somebody_closes_the_socket_of_their_server(debugging, reports):
    before = descriptors()
    sessions = []

    def factory():
        sessions.append(RecordingDatagramProtocol())
        return sessions[-1]

    server = await create_datagram_server(factory, ("127.0.0.1", 0))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine,
    ):
        client.connect(server.sockets[0].getsockname())
        client.send(b"x")
        await until(lambda: sessions and sessions[0].records, "there is a session")
        stranger = sessions[0].transport.fileno()
        os.close(stranger)
        os.dup2(mine.fileno(), stranger)
        sessions[0].transport.sendto(b"secret")
        await until(lambda: sessions[0].lost, "the loss is told")
        assert "somebody else has closed" in str(sessions[0].reason)
        server.close()
        await server.wait_closed()
        os.fstat(stranger)
        os.close(stranger)
    assert descriptors() == before
    assert len(reports) <= 1


async def test_a_write_side_that_has_ended_is_not_looked_for(debugging):
    read, far = os.pipe()
    other, write = os.pipe()
    transport, protocol = await connect_fd(RecordingProtocol, (read, write))
    transport.pause_reading()
    transport.write_eof()
    os.write(far, b"some bytes")
    assert os.dup(other) == write  # the number is free
    source, sink = os.pipe()
    os.dup2(sink, write)
    try:
        assert transport.splice_out(write, 100) == 10
        assert os.read(source, 100) == b"some bytes"
    finally:
        for fd in (far, other, source, sink, write):
            os.close(fd)
    transport.close()
    await until(lambda: protocol.lost, "the loss is told")
    assert protocol.reason is None


def test_no_number_is_compared_with_bytes():
    """``python -bb`` makes an error of that."""
    program = """
import asyncio, os, socket, fdtransport
async def main():
    near, far = socket.socketpair()
    reader, writer = await fdtransport.open_fd((near.detach(), os.open(os.devnull, os.O_WRONLY)))
    far.send(b"x")
    assert await reader.read(1) == b"x"
    writer.write(b"x")
    await writer.transport.flushed()
    writer.transport.abort()
    far.close()
asyncio.run(main(), debug=True)
"""
    done = subprocess.run(
        [sys.executable, "-bb", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_in_debug_mode_bytes_move_as_ever(debugging):
    before = descriptors()
    read, write = os.pipe()
    source, reading = await connect_fd(RecordingProtocol, read)
    sink, _ = await connect_fd(asyncio.Protocol, write)
    for _ in range(5):
        sink.write(b"x" * 100_000)
    sink.close()
    await until(lambda: reading.lost, "everything has come")
    assert reading.received == b"x" * 500_000
    await source.aclose()
    await sink.aclose()
    assert descriptors() == before
