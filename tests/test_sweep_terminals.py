"""Every system call of a terminal's life fails once, and for good: see test_sweep.

``FDTRANSPORT_SWEEP=1`` has each call fail with each of ten errnos; without it, three calls of each name
with three errnos.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from typing import Any

import pytest
from child_checks import children, no_child_is_left  # noqa: F401
from one_life import DATA, SWEPT, Life, live
from test_contract_pty import MAKE

from fdtransport import connect_pty, spawn_pty
from fdtransport._core import backpressure
from fdtransport.testing import FOREVER, FarEnd, Outcome, RecordingProtocol, sweep
from fdtransport.testing.observe import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs devpts and pidfds"),
    pytest.mark.timeout(600),
]

WHOLE = "FDTRANSPORT_SWEEP" in os.environ
ERRNOS = SWEPT if WHOLE else (errno.EAGAIN, errno.EIO, errno.EBADF)
AT_MOST = None if WHOLE else 3

both = pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])


@pytest.fixture(autouse=True)
def no_time_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ENOBUFS for good a transport tries a hundred times, and waits between: not for as long here."""
    monkeypatch.setattr(backpressure, "BREATH", 0.0)


def check_outcome(outcome: Outcome) -> str:
    """No hang, nothing raised but what the helper says, no descriptor left open."""
    what = str(outcome)
    assert not outcome.hung, what
    assert outcome.error is None, what
    assert not outcome.leaked, what
    return what


def may_be_reported(reports: list[dict[str, Any]]) -> None:
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


@both
async def test_any_call_of_a_terminal_may_fail(times: int, reports: list[dict[str, Any]]) -> None:
    async for outcome in sweep(lambda: live(MAKE), errnos=ERRNOS, times=(times,), at_most=AT_MOST):
        what = check_outcome(outcome)
        life: Life = outcome.result
        if life.refused:
            assert life.refused == outcome.errno, what
            continue
        assert (life.losses, life.events_after_loss, life.breaches) == (1, 0, []), what
        # (What the other end has not read when the terminal is hung up, the kernel throws away.)
        assert DATA.startswith(life.arrived), what
        assert DATA.startswith(life.received), what
        if life.lost_with:
            assert life.lost_with in (outcome.errno, errno.EIO), what
        if not outcome.reached or outcome.transient:
            assert (life.lost_with, life.arrived, life.received) == (0, DATA, DATA), what
    may_be_reported(reports)


SIZE = 30_000


async def a_program() -> tuple[int, int | None, bytes]:
    """What the helper raised; else the status of a program and what it said before its end."""
    protocol = RecordingProtocol()
    try:
        transport, _ = await spawn_pty(lambda: protocol, "sh", "-c", f"head -c {SIZE} /dev/zero; exit 3")
    except OSError as exc:
        await until(lambda: not children(), "nobody is left")
        return exc.errno or -1, None, b""
    try:
        await until(lambda: protocol.lost, "connection_lost came", 4)
        await asyncio.wait_for(transport.wait(), 4)
    finally:
        transport.abort()
    assert protocol.breaches == []
    assert protocol.count("lost") == 1
    if not transport.status_known:  # waitid() failed, and it is a zombie
        os.waitpid(transport.pid, 0)  # noqa: ASYNC222
    await until(lambda: not children(), "nobody is left")
    status = transport.returncode
    return getattr(protocol.reason, "errno", None) or 0, status, protocol.received


@both
async def test_any_call_for_a_program_on_a_terminal_may_fail(
    times: int, reports: list[dict[str, Any]]
) -> None:
    async for outcome in sweep(a_program, errnos=ERRNOS, times=(times,), at_most=AT_MOST):
        what = check_outcome(outcome)
        told, status, output = outcome.result
        assert not output.strip(b"\0"), what
        if status is None:
            assert told == outcome.errno, what
        elif not told:
            assert status in (3, 255), what
            assert len(output) == SIZE or (outcome.name == "waitid" and status == 255), what
        else:
            assert told in (outcome.errno, errno.EIO), what
        if not outcome.reached or outcome.transient:
            assert (told, status, len(output)) == (0, 3, SIZE), what
    may_be_reported(reports)


async def a_port() -> tuple[int, bytes, bytes]:
    """What the helper raised or the loss told; what came through a virtual serial port both ways."""
    protocol = RecordingProtocol()
    try:
        transport, _ = await connect_pty(lambda: protocol)
    except OSError as exc:
        return exc.errno or -1, b"", b""
    arrived = b""
    try:
        name = transport.get_extra_info("slave_name")
        if name is not None:
            with FarEnd(os.open(name, os.O_RDWR | os.O_NOCTTY)) as far:
                transport.write(DATA[:5000])
                await far.send(DATA[:5000])
                while len(arrived) < 5000 and not protocol.lost and (data := await far.recv()):
                    arrived += data
                await until(lambda: protocol.lost or len(protocol.received) >= 5000, "all came", 4)
    except OSError as exc:  # of get_extra_info(), or of a terminal whose other side has gone
        return exc.errno or -1, arrived, protocol.received
    finally:
        transport.abort()
        await until(lambda: protocol.lost, "connection_lost came")
    assert protocol.count("lost") == 1
    return getattr(protocol.reason, "errno", None) or 0, arrived, protocol.received


@both
async def test_any_call_of_a_port_may_fail(times: int, reports: list[dict[str, Any]]) -> None:
    errnos = [number for number in ERRNOS if number != errno.EIO]  # nobody has it, says that: it lives on
    async for outcome in sweep(a_port, errnos=errnos, times=(times,), at_most=AT_MOST):
        what = check_outcome(outcome)
        told, arrived, received = outcome.result
        assert DATA.startswith(arrived), what
        assert DATA.startswith(received), what
        if not outcome.reached or outcome.transient:
            assert (told, arrived, received) == (0, DATA[:5000], DATA[:5000]), what
    may_be_reported(reports)
