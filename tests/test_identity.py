"""A descriptor that somebody closes under its transport, and whose number another file gets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from fdtransport import connect_fd, create_connection
from fdtransport.testing import RecordingProtocol, descriptors
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
