"""The contract kit over a serial port: the slave of a pair of terminals."""

from __future__ import annotations

import os
import tty
from collections.abc import Callable
from typing import Any

import pytest
from one_life import short_calls_are_invisible

from fdtransport import serial
from fdtransport.testing import FarEnd, Features, PairMaker, Promise, check_run_exit, stream_promises


async def connect(protocol_factory: Callable[[], Any], path: str) -> tuple[Any, Any]:
    return await serial.connect_serial(protocol_factory, path, 115200)


class Ports(PairMaker):
    async def __call__(self, protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
        master, slave = os.openpty()
        tty.setraw(master)
        path = os.ttyname(slave)
        far = FarEnd(master)
        far.timeout = 20
        try:
            transport, _ = await connect(protocol_factory, path)
        except BaseException:
            far.close()
            raise
        finally:
            os.close(slave)
        return transport, far


MAKE = Ports(os.openpty, Features(half_close=False, open_in_lost=False, end_of_file=False, abort_keeps=False))


@pytest.mark.parametrize("promise", stream_promises(MAKE.features), ids=str)
async def test_contract(promise: Promise) -> None:
    assert await promise.run(MAKE, timeout=20)


def test_a_run_that_ends_in_the_middle_leaves_nothing() -> None:
    check_run_exit(MAKE)


async def test_short_reads_and_writes_are_invisible() -> None:
    await short_calls_are_invisible(MAKE, 997)
