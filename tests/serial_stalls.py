"""For how long a loop is held, at most, by what a program does with a serial port; the peers beside us.

    python tests/serial_stalls.py

Each figure is the least of some runs: what holds the loop does so in each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from loop_stalls import Longest
from serial_ends import unaccepting
from terminal_pair import Port, port

#: Seconds that the loop may be held for; runs; seconds that are watched after something that takes longer.
MOST, RUNS, WATCHED = 0.010, 5, 0.2
MODULES = ("fdtransport.serial", "serial_asyncio", "serial_asyncio_fast", "serialx")

Situation = Callable[[Any], Awaitable[float]]
SITUATIONS: dict[str, Situation] = {}


def situation(name: str) -> Callable[[Situation], Situation]:
    def enter(function: Situation) -> Situation:
        SITUATIONS[name] = function
        return function

    return enter


class Quiet(asyncio.Protocol):
    def __init__(self) -> None:
        self.made = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.made.set_result(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def opened(module: Any, url: str) -> tuple[Any, Quiet]:
    loop = asyncio.get_running_loop()
    _, protocol = await module.create_serial_connection(loop, Quiet, url, baudrate=115200)
    return await protocol.made, protocol


async def full(module: Any, one: Port) -> tuple[Any, Quiet]:
    """Nobody reads at the other end: the kernel takes nothing more, and much waits."""
    transport, protocol = await opened(module, one.path)
    transport.write(bytes(1 << 20))
    for _ in range(20):
        await asyncio.sleep(0.002)
    return transport, protocol


async def empty(module: Any, one: Port) -> tuple[Any, Quiet]:
    return await opened(module, one.path)


async def ended(transport: Any, protocol: Quiet) -> None:
    transport.abort()
    await protocol.lost


Ready = Callable[[Any, Port], Awaitable[tuple[Any, Quiet]]]
Deed = Callable[[Any, Quiet], Awaitable[object]]


def on_a_port(name: str, ready: Ready = full) -> Callable[[Deed], Deed]:
    """The situation of what a program does with a port that was opened before."""

    def enter(deed: Deed) -> Deed:
        @situation(name)
        async def measured(module: Any) -> float:
            with port() as one:
                transport, protocol = await ready(module, one)
                with Longest() as longest:
                    await deed(transport, protocol)
                if not protocol.lost.done():
                    await ended(transport, protocol)
            return longest.seconds

        return deed

    return enter


@situation("open")
async def _open(module: Any) -> float:
    with port() as one:
        with Longest() as longest:
            transport, protocol = await opened(module, one.path)
        await ended(transport, protocol)
    return longest.seconds


@on_a_port("close", empty)
async def _close(transport: Any, protocol: Quiet) -> None:
    transport.close()
    await protocol.lost


@on_a_port("close, full queue, stalled peer")
async def _close_full(transport: Any, protocol: Quiet) -> None:
    transport.close()
    await asyncio.sleep(WATCHED)


@on_a_port("abort, full queue, stalled peer")
async def _abort_full(transport: Any, protocol: Quiet) -> None:
    await ended(transport, protocol)


@on_a_port("write, full queue, stalled peer")
async def _write_full(transport: Any, protocol: Quiet) -> None:
    for _ in range(100):
        transport.write(bytes(1000))
    await asyncio.sleep(0.02)


@on_a_port("flush (which discards), full queue, stalled peer")
async def _flush_full(transport: Any, protocol: Quiet) -> None:
    flushed = transport.flush()
    if asyncio.iscoroutine(flushed):
        await given_up(asyncio.ensure_future(flushed))


@on_a_port("modem lines, asked and set", empty)
async def _lines(transport: Any, protocol: Quiet) -> None:
    its = transport.serial
    for name in ("cts", "dsr", "ri", "cd"):
        with contextlib.suppress(OSError, AttributeError):  # a terminal has none
            getattr(its, name)
    for name in ("rts", "dtr"):
        with contextlib.suppress(OSError, AttributeError):
            setattr(its, name, True)
    await asyncio.sleep(0.02)


async def given_up(task: asyncio.Future[Any]) -> None:
    """Cancel what takes longer."""
    await asyncio.sleep(WATCHED)
    task.cancel()
    await asyncio.wait([task])


@situation("open of a socket:// that nobody accepts")
async def _backlog(module: Any) -> float:
    with unaccepting() as url, Longest() as longest:
        await given_up(asyncio.ensure_future(opened(module, url)))
    return longest.seconds


@situation("close of a socket://")
async def _socket_close(module: Any) -> float:
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport, protocol = await opened(module, "socket://{}:{}".format(*server.getsockname()))
        with Longest() as longest:
            transport.close()
            await protocol.lost
            await asyncio.sleep(0.01)
    return longest.seconds


async def least(name: str, module: Any, enough: float = 0.0, runs: int = RUNS) -> float:
    """Of some runs, of which none follows one that held the loop for no longer than *enough*."""
    best = float("inf")
    for _ in range(runs):
        gc.collect()
        gc.disable()
        try:
            best = min(best, await SITUATIONS[name](module))
        finally:
            gc.enable()
        if best <= enough:
            break
    return best


def main() -> None:
    print(f"| longest stall of the loop, ms, least of {RUNS} runs | {' | '.join(MODULES)} |")
    print("|---" * (len(MODULES) + 1) + "|")
    for name in SITUATIONS:
        figures = []
        for module in MODULES:
            try:
                figures.append(f"{asyncio.run(least(name, import_module(module))) * 1000:.2f}")
            except Exception as exc:
                figures.append(type(exc).__name__)
        print(f"| {name} | {' | '.join(figures)} |", flush=True)
    os._exit(0)  # what the peers left open is of no interest any more


if __name__ == "__main__":
    main()
