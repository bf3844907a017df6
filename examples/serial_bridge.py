"""A serial port for several clients of TCP at once: what it sends goes to all, what they send goes to it.

What becomes of a client that does not keep up is said by --slow: it is dropped, it loses what came meanwhile,
or everybody waits for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
from typing import Any

import fdtransport
from fdtransport.testing import serial_pair
from fdtransport.testing.observe import until

from . import between, run_command

#: Bytes that wait for one client before it counts as slow.
BACKLOG = 256 * 1024
#: Bytes that the kernel keeps for one client: a serial port is slow, and what it said should be recent.
KERNEL = 16 * 1024


class Client(asyncio.Protocol):
    """One of those who share the port."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.slow = False
        self.lost = 0

    def connection_made(self, transport: Any) -> None:
        self.transport: fdtransport.SocketTransport = transport
        transport.set_write_buffer_limits(BACKLOG)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
        self.bridge.clients.add(self)

    def data_received(self, data: bytes) -> None:
        self.bridge.to_port(self, data)

    def pause_writing(self) -> None:
        self.slow = True
        self.bridge.is_slow(self)

    def resume_writing(self) -> None:
        self.slow = False
        self.bridge.is_quick_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self.bridge.clients.discard(self)
        self.bridge.is_quick_again()


class Bridge(asyncio.Protocol):
    """The port's side."""

    def __init__(self, slow: str) -> None:
        self.policy = slow
        self.clients: set[Client] = set()
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.port: fdtransport.SerialTransport = transport

    def data_received(self, data: bytes) -> None:
        for client in tuple(self.clients):
            if client.slow and self.policy == "skip":
                client.lost += len(data)
            else:
                client.transport.write(data)

    def to_port(self, client: Client, data: bytes) -> None:
        self.port.write(data)

    def is_slow(self, client: Client) -> None:
        if self.policy == "drop":
            client.transport.abort()
        elif self.policy == "wait":
            self.port.pause_reading()

    def is_quick_again(self) -> None:
        if self.policy == "wait" and not any(client.slow for client in self.clients):
            self.port.resume_reading()

    def pause_writing(self) -> None:
        """The port takes no more: nobody is read."""
        for client in self.clients:
            client.transport.pause_reading()

    def resume_writing(self) -> None:
        for client in self.clients:
            client.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        for client in tuple(self.clients):
            client.transport.close()
        if not self.gone.done():
            self.gone.set_result(exc)


async def start(path: str, baud: int, host: str, port: int, slow: str) -> tuple[Bridge, fdtransport.Server]:
    transport, bridge = await fdtransport.connect_serial(lambda: Bridge(slow), path, baud)
    try:
        return bridge, await fdtransport.create_server(lambda: Client(bridge), host, port)
    except BaseException:
        transport.abort()
        raise


async def run(path: str, baud: int, host: str, port: int, slow: str) -> None:
    bridge, server = await start(path, baud, host, port, slow)
    async with server:
        print(f"{path} is at {server.sockets[0].getsockname()[:2]}", flush=True)
        error = await bridge.gone
    if error is not None:
        raise error


def check(condition: object, what: str) -> None:
    if not condition:
        raise RuntimeError(f"the selftest failed: {what}")


async def selftest() -> None:
    """Three clients, one of which does not read, under each policy."""
    for slow in ("drop", "skip", "wait"):
        left, lost = await share(slow)
        print(f"{slow}: {left} of 3 clients are left, {'some' if lost else 'no'} bytes were lost to them")


async def share(slow: str) -> tuple[int, int]:
    flood = bytes(range(256)) * 4096
    async with contextlib.AsyncExitStack() as stack:
        pair = await stack.enter_async_context(serial_pair())
        from_port, to_port = await fdtransport.open_serial(pair.b.path, 115200)
        stack.callback(to_port.transport.abort)
        bridge, server = await start(pair.a.path, 115200, "127.0.0.1", 0, slow)
        await stack.enter_async_context(server)
        stack.callback(bridge.port.abort)
        readers = []
        for _ in range(3):
            reader, writer = await fdtransport.open_connection(*server.sockets[0].getsockname()[:2])
            stack.callback(writer.transport.abort)
            readers.append(reader)
        writer.write(b"a question")
        check(await from_port.readexactly(10) == b"a question", "what a client sends reaches the port")
        await until(lambda: len(bridge.clients) == 3, "three clients are there")
        to_port.write(flood)
        quick = [asyncio.create_task(reader.readexactly(len(flood))) for reader in readers[:2]]
        if slow == "wait":
            await until(lambda: not bridge.port.is_reading(), "the port waits")
            check(not any(task.done() for task in quick), "everybody waits")
            quick.append(asyncio.create_task(readers[2].readexactly(len(flood))))
        check(all(got == flood for got in await asyncio.gather(*quick)), "who reads has everything")
        return len(bridge.clients), sum(client.lost for client in bridge.clients)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.serial_bridge", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", nargs="?", help="the port; without one, the selftest runs")
    parser.add_argument("--baud", type=between(int, 1, 10**9), default=115200)
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=between(int, 0, 65535), default=2000)
    parser.add_argument("--slow", choices=("drop", "skip", "wait"), default="drop")
    parser.add_argument("--selftest", action="store_true", help="over a pair of virtual ports")
    args = parser.parse_args()
    if args.selftest or args.path is None:
        return run_command(selftest())
    return run_command(run(args.path, args.baud, args.host, args.port, args.slow))


if __name__ == "__main__":
    sys.exit(main())
