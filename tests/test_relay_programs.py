"""Programs as ends of a relay: what they are given, how long they are waited for, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from child_checks import no_child_is_left  # noqa: F401 - a fixture
from relay_ends import MIB, Quiet, near

from fdtransport import RelayResult, connect_exec, create_subprocess_exec, open_fd, relay, spawn_pty
from fdtransport.program import ProgramTransport
from fdtransport.pty_process import PtyProcessTransport
from fdtransport.testing import FarEnd, pattern

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds after which a silent end is given up, in place of ten."""
    monkeypatch.setattr(ProgramTransport, "_PATIENCE", 1.0)
    monkeypatch.setattr(PtyProcessTransport, "_EOF_SILENCE", 1.0)
    return 1.0


@contextlib.asynccontextmanager
async def relayed_to(program: Any, **options: Any) -> AsyncIterator[tuple[asyncio.Task[RelayResult], FarEnd]]:
    """A relay between a socket and *program*, and the far end of the socket."""
    ours, theirs = socket.socketpair()
    async with asyncio.timeout(30):
        with FarEnd(theirs) as far:
            task = asyncio.ensure_future(relay(await near(ours), program, **options))
            try:
                yield task, far
            finally:
                task.cancel()
                await asyncio.wait([task])
                await program.finish(0.1)


async def shell(script: str, **options: Any) -> Any:
    transport, _ = await connect_exec(Quiet, "sh", "-c", script, **options)
    return transport


async def on_a_terminal(script: str, **options: Any) -> Any:
    transport, _ = await spawn_pty(Quiet, "sh", "-c", script, **options)
    return transport


async def test_bytes_go_through_a_program_and_the_ends_are_passed_on() -> None:
    cat = await shell("cat; exit 3")
    async with relayed_to(cat) as (task, far):
        sending = asyncio.ensure_future(far.send(pattern(3 * MIB)))
        assert await far.recv_exactly(3 * MIB) == pattern(3 * MIB)
        await sending
        far.shutdown_write()
        assert await far.recv(1) == b""
        result = await task
        assert (result.error, result.a_to_b.engine, result.b_to_a.engine) == (None, "splice", "splice")
        assert await cat.finish() == 3


async def test_a_program_that_ends_ends_the_relay_though_there_is_more_for_it() -> None:
    program = await shell("head -c 3; exit 4")
    async with relayed_to(program) as (task, far):
        await far.send(bytes(100_000))
        assert await far.recv(10) == bytes(3)
        assert await far.recv(1) == b""
        result = await task
        assert result.error is None or isinstance(result.error, BrokenPipeError)
        assert await program.finish() == 4


async def test_a_program_that_takes_nothing_is_given_up_when_nobody_is_there_any_more(silence: float) -> None:
    sleeper = await shell("sleep 60")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    client.setblocking(False)
    task = asyncio.ensure_future(relay(await near(accepted), sleeper))
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(bytes(65536))
            await asyncio.sleep(0)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    result = await asyncio.wait_for(task, 20)
    assert result.error is not None
    assert await sleeper.finish(0.05) == -signal.SIGTERM


async def test_a_line_goes_to_a_terminal_and_its_end_as_ctrl_d() -> None:
    cat = await on_a_terminal("cat; exit 5", echo=False)
    async with relayed_to(cat) as (task, far):
        await far.send(b"one line\n")
        far.shutdown_write()
        assert await far.recv_exactly(10) == b"one line\r\n"
        assert await far.recv(1) == b""
        assert (await task).error is None
        assert await cat.finish() == 5


async def test_a_terminal_is_hung_up_when_it_is_silent_after_the_end_of_its_input(silence: float) -> None:
    program = await on_a_terminal("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done; sleep 60", raw=True)
    async with relayed_to(program) as (task, far):
        far.shutdown_write()
        assert await far.recv_exactly(16) == b"1\n2\n3\n4\n5\n6\n7\n8\n"
        assert await far.recv(1) == b""
        assert (await task).error is None
        assert await program.finish() == -signal.SIGHUP


async def test_a_line_that_a_terminal_would_cut_ends_the_relay_with_an_error() -> None:
    cat = await on_a_terminal("cat", echo=False)
    async with relayed_to(cat) as (task, far):
        await far.send(b"a short line\n" + b"x" * 5000)
        result = await task
        assert isinstance(result.error, OSError)
        assert (result.error.errno, result.failed) == (errno.EMSGSIZE, "b")


async def test_a_raw_terminal_is_spliced_to_and_byte_exact() -> None:
    cat = await on_a_terminal("cat", raw=True)
    async with relayed_to(cat) as (task, far):
        sending = asyncio.ensure_future(far.send(pattern(200_000)))
        assert await far.recv_exactly(200_000) == pattern(200_000)
        await sending
        far.close()
        result = await task
        assert (result.a_to_b.bytes, result.a_to_b.engine) == (200_000, "splice")
        assert await cat.finish() == -signal.SIGHUP


async def test_the_output_of_one_program_goes_to_the_input_of_another() -> None:
    async with asyncio.timeout(30):
        numbers = await create_subprocess_exec("seq", "100000", fds={1: "r"})
        count = await create_subprocess_exec("wc", "-l", fds={0: "w", 1: "r"})
        assert numbers.stdout is not None
        first = await numbers.stdout.readline()  # what the reader has besides goes along
        result = await relay(numbers.stdout, count.stdin)
        result.raise_for_error()
        assert first == b"1\n"
        assert await count.communicate() == (b"99999\n", None)
        await numbers.wait_closed()


async def test_the_input_and_the_output_of_a_program_are_one_end() -> None:
    ours, theirs = socket.socketpair()
    async with asyncio.timeout(30):
        process = await create_subprocess_exec("tr", "a-z", "A-Z", fds={0: "w", 1: "r"})
        with FarEnd(theirs) as far:
            task = asyncio.ensure_future(relay((process.stdout, process.stdin), await near(ours)))
            await far.send(b"through")
            far.shutdown_write()
            assert await far.recv_to_end() == b"THROUGH"
            assert (await task).error is None
        await process.wait_closed()


async def test_a_reader_or_a_writer_alone_is_one_direction() -> None:
    a, far_a = socket.socketpair()
    b, far_b = socket.socketpair()
    async with asyncio.timeout(30):
        with FarEnd(far_a) as left, FarEnd(far_b) as right:
            reader, _ = await open_fd(a)
            another, writer = await open_fd(b)
            task = asyncio.ensure_future(relay(reader, writer))
            await right.send(b"dropped")
            await left.send(b"passed on")
            left.shutdown_write()
            assert await right.recv_to_end() == b"passed on"
            right.shutdown_write()
            result = await task
            assert (result.a_to_b.bytes, result.b_to_a.bytes, result.error) == (9, 0, None)
            assert await left.recv_to_end() == b""
    with pytest.raises(ValueError, match="no bytes can go"):
        await relay(reader, another)
    process = await create_subprocess_exec("true", fds={1: "r"})
    with pytest.raises(TypeError, match=r"which <Process .* is not; its \(stdout, stdin\) are"):
        await relay(process, writer)
    await process.aclose()
    with pytest.raises(TypeError, match="which None is not"):
        await relay(asyncio.StreamReader(), writer)
