"""An echo server that systemd starts when the first client comes, and that ends when the last has gone.

Try it in a terminal, and connect from another one:

    systemd-socket-activate -l 127.0.0.1:7000 -l /tmp/echo.sock python -m examples.activated
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket

import fdtransport

HINT = "no sockets were passed; try: systemd-socket-activate -l 127.0.0.1:7000 python -m examples.activated"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def run(idle: float) -> None:
    servers: list[fdtransport.Server] = []
    clients = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal clients
        clients += 1
        try:
            await echo(reader, writer)
        finally:
            clients -= 1
            if not clients:
                asyncio.get_running_loop().call_later(idle, lambda: clients or done.set())

    done = asyncio.Event()
    for name, sock in fdtransport.activation_sockets():
        # create_server and its kin take the socket over; its file, if it has one, stays systemd's.
        server = await fdtransport.start_server(serve, sock=sock, backlog=socket.SOMAXCONN)
        servers.append(server)
        print(f"serving {name}: {sock.getsockname()}", flush=True)
    if not servers:
        print(HINT)
        return
    with contextlib.suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    await done.wait()
    for server in servers:
        await server.aclose(timeout=5)
    print("done")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.activated", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--idle", type=float, default=1.0, metavar="SECONDS", help="ends so long after the last client (1)"
    )
    asyncio.run(run(parser.parse_args().idle))


if __name__ == "__main__":
    main()
