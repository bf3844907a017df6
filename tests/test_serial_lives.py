"""A port that is opened and closed again and again, exclusively: each time at once, and nothing is left.

``FDTRANSPORT_SERIAL_LIVES`` is the number of lives of each kind.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from typing import Any

import pytest
from conftest import LOOPS, open_descriptors
from terminal_pair import port

from fdtransport.serial import connect_serial, create_serial_connection, open_serial

LIVES = int(os.environ.get("FDTRANSPORT_SERIAL_LIVES", 100))
#: Seconds that a life may take at most, on a machine that does other things as well.
PATIENCE = 10


class Once(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def closed(path: str, _: int) -> None:
    transport, protocol = await connect_serial(Once, path)
    transport.write(b"ping")
    transport.close()
    assert await protocol.lost is None


async def closed_and_not_waited_for(path: str, _: int) -> None:
    transport, _ = await connect_serial(Once, path)
    transport.write(b"ping")
    transport.close()


async def aborted_with_a_full_queue(path: str, _: int) -> None:
    transport, _ = await connect_serial(Once, path)
    transport.write(bytes(100_000))
    transport.abort()


async def cancelled(path: str, number: int) -> None:
    """Anywhere: before the thread has the port, meanwhile, and after it."""
    opening = asyncio.ensure_future(connect_serial(Once, path))
    for _ in range(number % 10):
        await asyncio.sleep(0)
    if number % 3 == 0:
        await asyncio.sleep(number % 7 * 0.0001)
    opening.cancel()
    for outcome in await asyncio.gather(opening, return_exceptions=True):
        if not isinstance(outcome, BaseException):
            outcome[0].close()


async def as_a_stream(path: str, _: int) -> None:
    _, writer = await open_serial(path)
    writer.write(b"ping")
    writer.close()
    await writer.wait_closed()


async def as_pyserial_asyncio_has_it(path: str, _: int) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await create_serial_connection(loop, Once, path, exclusive=True)
    transport.close()
    await protocol.lost


WAYS = (
    closed, closed_and_not_waited_for, aborted_with_a_full_queue, cancelled, as_a_stream,
    as_pyserial_asyncio_has_it,
)  # fmt: skip


def read_away(far: int) -> None:
    try:
        while os.read(far, 65536):
            pass
    except BlockingIOError:
        pass


async def settled(path: str) -> None:
    """Nobody is closing it any more."""
    async with asyncio.timeout(PATIENCE):
        await closed(path, 0)


@pytest.mark.timeout(60 + LIVES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_each_life_begins_at_once_and_leaves_nothing(way: Callable[[str, int], Any]) -> None:
    with port() as one:
        os.set_blocking(one.far, False)
        await settled(one.path)
        before = open_descriptors()
        for number in range(LIVES):
            async with asyncio.timeout(PATIENCE):
                await way(one.path, number)
            read_away(one.far)
        await settled(one.path)
        gc.collect()
        assert set(open_descriptors()) == set(before)


@pytest.mark.timeout(60 + LIVES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", LOOPS)
def test_so_does_each_run_of_a_loop(name: str, way: Callable[[str, int], Any]) -> None:
    with port() as one:
        os.set_blocking(one.far, False)
        before = open_descriptors()
        for number in range(LIVES):
            with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
                runner.run(asyncio.wait_for(way(one.path, number), PATIENCE))
            read_away(one.far)
        with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
            runner.run(settled(one.path))
        gc.collect()
        assert set(open_descriptors()) == set(before)
