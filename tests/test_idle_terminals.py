"""Terminals on which nothing happens wake nobody, whoever is on the other side or is not.

``FDTRANSPORT_IDLE=10`` has them all be silent for ten seconds; 0.3 are without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from child_checks import no_child_is_left  # noqa: F401

from fdtransport import connect_pty, spawn_pty
from fdtransport.testing import RecordingProtocol, idle_cost
from fdtransport.testing.observe import turns, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs devpts and inotify")

SECONDS = float(os.environ.get("FDTRANSPORT_IDLE", 0.3))


def slave_of(transport: Any) -> int:
    return os.open(transport.get_extra_info("slave_name"), os.O_RDWR | os.O_NOCTTY)


async def closed_again(transport: Any) -> None:
    slave = slave_of(transport)
    await until(lambda: transport.is_opened, "it was opened")
    os.close(slave)
    await until(lambda: not transport.is_opened, "it was closed")


async def a_port_that_nobody_ever_had() -> Any:
    return (await connect_pty(RecordingProtocol))[0]


async def a_port_that_nobody_has_any_more() -> Any:
    transport = await a_port_that_nobody_ever_had()
    await closed_again(transport)
    return transport


async def a_port_left_while_reading_was_paused() -> Any:
    transport = await a_port_that_nobody_ever_had()
    transport.pause_reading()
    slave = slave_of(transport)
    os.write(slave, b"unread")
    os.close(slave)
    return transport


async def a_port_for_which_more_waits_than_the_kernel_takes() -> Any:
    transport = await a_port_that_nobody_has_any_more()
    transport.write(bytes(100_000))
    assert transport.get_write_buffer_size()
    return transport


async def a_program_that_says_nothing() -> Any:
    return (await spawn_pty(RecordingProtocol, "sleep", "1000"))[0]


async def a_program_that_does_not_read() -> Any:
    transport = (await spawn_pty(RecordingProtocol, "sleep", "1000", raw=True))[0]
    transport.write(bytes(100_000))
    assert transport.get_write_buffer_size()
    return transport


async def a_program_that_let_go_of_its_terminal() -> Any:
    closed = "exec <&- >&- 2>&-; exec sleep 1000"
    transport = (await spawn_pty(RecordingProtocol, "sh", "-c", closed))[0]
    fds = f"/proc/{transport.pid}/fd"
    await until(lambda: not os.path.exists(f"{fds}/0") and not os.path.exists(f"{fds}/2"), "it has let go")
    return transport


async def a_program_that_has_ended_unread() -> Any:
    protocol = RecordingProtocol(made=lambda made: made.transport.pause_reading())
    transport = (await spawn_pty(lambda: protocol, "echo", "unread"))[0]
    await transport.wait()
    return transport


STATES: tuple[Callable[[], Awaitable[Any]], ...] = (
    a_port_that_nobody_ever_had, a_port_that_nobody_has_any_more, a_port_left_while_reading_was_paused,
    a_port_for_which_more_waits_than_the_kernel_takes, a_program_that_says_nothing,
    a_program_that_does_not_read, a_program_that_let_go_of_its_terminal, a_program_that_has_ended_unread,
)  # fmt: skip


@pytest.mark.timeout(60 + 4 * SECONDS)
async def test_silence_on_the_other_side_wakes_nobody() -> None:
    transports = [await make() for make in STATES for _ in range(3)]
    await idle_cost(0.1)  # what there still is to do is done now
    # What ends the idle time is the one wake-up that there is. The best of three, should this thread have
    # had to wait for something else.
    costs = []
    while len(costs) < 3 and (not costs or costs[-1].wakeups > 1):
        costs.append(await idle_cost(SECONDS))
    assert costs[-1].is_idle(0.05, 1), " ".join(map(str, costs))
    for transport in transports:
        transport.abort()
        if hasattr(transport, "terminate"):
            await transport.terminate(grace=0.0)
    await turns()
