"""The contract kit over the terminal of a user, whose end of it is the far one."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from one_life import short_calls_are_invisible

from fdtransport._core import raw_terminal
from fdtransport._core.opening import open_transport
from fdtransport.attach import TerminalTransport
from fdtransport.testing import FarEnd, Features, PairMaker, Promise, check_run_exit, stream_promises

NOT_KEPT = (
    # What is detached is the user's terminal, and not the descriptor that stood in for it.
    "detach_gives_the_descriptors_back_as_they_were",
    # The kernel throws away what was typed and not read when the terminal hangs up.
    "end_of_file_waits_while_reading_is_paused",
    "what_the_kernel_holds_when_the_far_end_goes_is_delivered",
    "a_hang_up_is_noticed_while_reading_is_paused",
    "what_was_readable_is_delivered_before_a_write_error",
)


def terminal_and_user() -> tuple[tuple[int, int], int]:
    master, slave = os.openpty()
    return (slave, os.dup(slave)), master


class Patient(PairMaker):
    """A terminal moves a few KB at a time: in debug mode a megabyte takes seconds."""

    async def __call__(self, protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
        transport, far = await super().__call__(protocol_factory)
        far.timeout = 20
        return transport, far


# (Every byte is in what the kit sends, the escape among them.)
connect = partial(open_transport, partial(TerminalTransport, escape=None, own=True))
# In the main thread only.
MAKE = Patient(terminal_and_user, Features(half_close=False, own_loop=False), connect)
PROMISES = [promise for promise in stream_promises(MAKE.features) if promise.name not in NOT_KEPT]


@pytest.mark.parametrize("promise", PROMISES, ids=str)
async def test_contract(promise: Promise) -> None:
    assert await promise.run(MAKE, timeout=20)


def test_a_run_that_ends_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a thread: there it is refused, because the signals cannot be handled.
    monkeypatch.setattr(raw_terminal, "_hear", lambda: None)
    check_run_exit(MAKE)


async def test_short_reads_and_writes_are_invisible() -> None:
    await short_calls_are_invisible(MAKE, 997)
