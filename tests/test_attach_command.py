"""The relay command at a user's terminal, as its user sees it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from real_programs import executable
from terminal_jobs import ENVIRONMENT, PATIENCE, Session, loop_name, session, shell

from fdtransport.testing.observe import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfds")


class Server:
    """The other end of the command, and what it was sent."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.url = f"tcp://127.0.0.1:{self.sock.getsockname()[1]}"
        self.peer: socket.socket

    async def accept(self) -> None:
        self.peer, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        self.peer.setblocking(False)

    async def receives(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        received = b""
        while len(received) < len(data):
            received += await loop.sock_recv(self.peer, 100)
        assert received == data

    async def is_left(self) -> None:
        """A reset is one way to leave: the command has not read everything."""
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(self.peer, 100) == b""

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.sock.close()
    if hasattr(server, "peer"):
        server.peer.close()


@asynccontextmanager
async def command(server: Server, url: str = "-?raw") -> AsyncIterator[Session]:
    """``python -m fdtransport URL`` of a server, connected and shown what the server says."""
    loop = ("--loop", "uvloop") if loop_name() == "uvloop" else ()
    async with session(sys.executable, "-W", "error", "-m", "fdtransport", *loop, url, server.url) as one:
        await server.accept()
        server.peer.send(b"$ ")
        await one.until_shown(b"$ ")
        assert one.is_raw
        yield one


async def test_the_command_attaches_and_a_key_leaves(server: Server) -> None:
    async with command(server) as one:
        assert one.shown.startswith(b"fdtransport: Ctrl-] leaves; typed twice, it is sent\r\n")
        one.type(b"ls\r\x03\x1d\x1d")
        await server.receives(b"ls\r\x03\x1d")
        one.type(b"\x1d")
        await one.hears("exited 0 same")
        await one.until_shown(b"$ \r\nfdtransport: left\r\n")
        await server.is_left()


@pytest.mark.parametrize(
    ("url", "told", "keys"),
    [
        ("-?raw&escape=none", b"no key leaves", b"\x1d."),
        ("stdio:?raw&escape=^a", b"Ctrl-A leaves", b"\x1d.\x01\x01"),
    ],
)
async def test_the_command_takes_another_key(url: str, told: bytes, keys: bytes, server: Server) -> None:
    async with command(server, url) as one:
        assert told in one.shown
        one.type(keys)
        await server.receives(keys.replace(b"\x01\x01", b"\x01"))
        server.peer.shutdown(socket.SHUT_WR)
        await one.hears("exited 0 same")


async def test_the_command_ends_when_the_other_end_does(server: Server) -> None:
    async with command(server) as one:
        server.peer.send(b"bye\r\n")
        server.peer.shutdown(socket.SHUT_WR)
        await one.hears("exited 0 same")
        assert one.shown.endswith(b"$ bye\r\n")
        await server.is_left()


async def test_the_command_tells_of_an_error_of_the_other_end(server: Server) -> None:
    async with command(server) as one:
        server.reset()
        await one.hears("exited 1 same")
        await one.until_shown(f"fdtransport: {server.url}: Connection reset by peer\r\n".encode())


@pytest.mark.parametrize(
    ("name", "told"),
    [("SIGTERM", "exited 0"), ("SIGINT", "exited 130"), ("SIGHUP", "killed SIGHUP")],
)
async def test_the_command_leaves_the_terminal_as_it_was_at(name: str, told: str, server: Server) -> None:
    async with command(server) as one:
        one.kill(getattr(signal, name))
        await one.hears(f"{told} same")


async def test_the_command_needs_a_terminal(server: Server) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fdtransport", "-?raw", server.url,
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    _, errors = await process.communicate()
    await server.accept()
    needed = "a terminal is needed to read what is typed, and descriptor 0 is a character device"
    assert errors.decode() == f"fdtransport: cannot open -?raw: {needed}\n"
    assert process.returncode == 1


# -- programs that nobody here wrote -------------------------------------------------------------------


async def test_a_shell_with_job_control_stops_it_and_continues_it(server: Server) -> None:
    executable("bash", "bash")
    async with shell("bash", "--norc", "--noediting", "-i") as one:
        attach = f"{sys.executable} -m fdtransport '-?raw' {server.url}"
        one.type(f"stty -g; {attach}; echo status $?\n".encode())
        await server.accept()
        server.peer.send(b"remote$ ")
        await one.until_shown(b"remote$ ")
        before = one.shown.partition(b"> ")[2].splitlines()[0]
        assert one.is_raw
        one.terminal.send_signal(signal.SIGTSTP, "foreground")
        await one.until_shown(b"Stopped")
        one.type(b"bg\n")
        await one.until_shown(b" &\r\n")
        one.shown = b""
        one.type(b'while [ -n "$(jobs -r)" ]; do sleep 0.02; done; jobs\n')
        await one.until_shown(b"Stopped")
        one.type(b"fg\n")
        await until(lambda: one.is_raw, "it was raw again", PATIENCE)
        server.peer.send(b"still there")
        await one.until_shown(b"still there")
        one.type(b"\x1d.")
        await one.until_shown(b"left\r\n")
        one.shown = b""
        one.type(b"stty -g; echo done\n")
        await one.until_shown(b"done")
        assert before in one.shown


async def test_it_works_inside_another_terminal_program(server: Server) -> None:
    executable("script", "bsdutils")
    attach = f"{sys.executable} -m fdtransport -?raw {server.url}"
    async with shell("script", "-qec", f"stty size; {attach}; echo status $?", "/dev/null") as one:
        await server.accept()
        server.peer.send(b"$ ")
        await one.until_shown(b"$ ")
        one.type(b"keys\x03")
        await server.receives(b"keys\x03")
        one.type(b"\x1d.")
        await one.until_shown(b"status 0\r\n")
