"""The contract kit over terminals."""

from __future__ import annotations

import os
import tty
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from one_life import short_calls_are_invisible

from fdtransport._core.opening import open_transport
from fdtransport.pty import PtyTransport
from fdtransport.testing import FarEnd, Features, PairMaker, Promise, check_run_exit, stream_promises


def raw_pair() -> tuple[int, int]:
    master, slave = os.openpty()
    tty.setraw(slave)
    return master, slave


class Patient(PairMaker):
    """A terminal moves a few KB at a time: in debug mode a megabyte takes seconds."""

    async def __call__(self, protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
        transport, far = await super().__call__(protocol_factory)
        far.timeout = 20
        return transport, far


connect_master = partial(open_transport, PtyTransport)
MAKE = Patient(raw_pair, Features(half_close=False), connect_master)


@pytest.mark.parametrize("promise", stream_promises(MAKE.features), ids=str)
async def test_contract(promise: Promise) -> None:
    assert await promise.run(MAKE, timeout=20)


def test_a_run_that_ends_in_the_middle_leaves_nothing() -> None:
    check_run_exit(MAKE)


async def test_short_reads_and_writes_are_invisible() -> None:
    await short_calls_are_invisible(MAKE, 997)
