"""An echo server for socket activation: systemd starts it for the first client, and it ends after the last.

Where no sockets were passed, it shows itself: it plays systemd's part, and is the client of what it
started. In earnest, with clients from another terminal:

    systemd-socket-activate -l 127.0.0.1:7000 -l /tmp/echo.sock python -m examples.activated
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys

import fdtransport

from . import between, run_command

#: Begins a program as systemd does, with what it has as standard input for descriptor 3. (LISTEN_PID is
#: the process that is to take it, whose number is known in that process first.)
AS_SYSTEMD = 'exec env LISTEN_FDS=1 LISTEN_FDNAMES=echo.socket LISTEN_PID=$$ "$@" 3<&0 </dev/null'


async def serve(passed: list[fdtransport.ActivationSocket], idle: float) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    leaving: asyncio.TimerHandle | None = None
    clients = 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal clients, leaving
        clients += 1
        if leaving is not None:
            leaving.cancel()
        with contextlib.suppress(ConnectionError):  # it may go in any way that it likes
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        clients -= 1
        if not clients:
            leaving = loop.call_later(idle, done.set)

    servers = []
    for name, sock in passed:
        print(f"serving {name}: {sock.getsockname()}", flush=True)
        # start_server takes the socket over, whatever its family; its file, if it has one, stays systemd's.
        servers.append(await fdtransport.start_server(echo, sock=sock, backlog=socket.SOMAXCONN))
    with contextlib.suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(signal.SIGTERM, done.set)
    await done.wait()
    for server in servers:
        await server.aclose(timeout=5)
    print("done", flush=True)


def start(sock: socket.socket, output: int, idle: float) -> subprocess.Popen[bytes]:
    command = ["sh", "-c", AS_SYSTEMD, "sh", sys.executable, "-m", "examples.activated", f"--idle={idle}"]
    return subprocess.Popen(command, stdin=sock.fileno(), stdout=output)


async def show(idle: float) -> int:
    """What systemd does, and a client."""
    print("no sockets were passed: this is systemd, with a client", flush=True)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        read, write = os.pipe()
        child = start(sock, write, idle)
        os.close(write)
    try:
        told, _ = await fdtransport.open_fd(read)
        reader, writer = await fdtransport.open_connection(*address)
        writer.write(b"hello\n")
        print(f"client: {(await reader.readline()).decode().strip()}", flush=True)
        writer.close()
        await writer.wait_closed()
        async for line in told:
            print(f"server: {line.decode().strip()}", flush=True)
        return child.wait()
    finally:
        child.kill()
        child.wait()


async def run(idle: float) -> int:
    passed = fdtransport.activation_sockets()
    if not passed:
        return await show(idle)
    await serve(passed, idle)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.activated", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--idle",
        type=between(float, 0.01, 1e6),
        default=1.0,
        metavar="SECONDS",
        help="how long it waits for another client (default 1)",
    )
    return run_command(run(parser.parse_args().idle))


if __name__ == "__main__":
    sys.exit(main())
