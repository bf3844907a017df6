"""Every system call of a serial port's life fails once, and for good: see test_sweep.

``FDTRANSPORT_SWEEP=1`` has each call fail with each of ten errnos; without it, three calls of each name
with three errnos.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import termios
import threading
from typing import Any

import pytest
from one_life import DATA, SWEPT
from serial_ends import Terminal, terminal

from fdtransport import connect_serial
from fdtransport._core import backpressure
from fdtransport._core.serial_file import DEPARTURES
from fdtransport.testing import FOREVER, RecordingProtocol, sweep
from fdtransport.testing.observe import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs devpts"),
    pytest.mark.timeout(600),
]

WHOLE = "FDTRANSPORT_SWEEP" in os.environ
ERRNOS = SWEPT if WHOLE else (errno.EAGAIN, errno.EIO, errno.EBADF)
AT_MOST = None if WHOLE else 3


@pytest.fixture(autouse=True)
def no_time_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backpressure, "BREATH", 0.0)


async def life(device: Terminal, **options: Any) -> tuple[bytes, bytes, RecordingProtocol]:
    """What came through both ways, and who was told. OSErrors of what is asked besides are let pass."""
    protocol = RecordingProtocol()
    arrived = b""
    try:
        transport, _ = await connect_serial(lambda: protocol, device.path, 115200, **options)
    except OSError:
        # What was open by then is being closed in a thread.
        number, ticket = os.stat(device.path).st_rdev, DEPARTURES.ticket()
        await asyncio.to_thread(DEPARTURES.wait, number, ticket)
        return b"", b"", protocol
    try:
        transport.write(DATA[:2000])
        device.send(DATA[:2000])
        async with asyncio.timeout(3):
            while (len(arrived) < 2000 or len(protocol.received) < 2000) and not protocol.lost:
                arrived += device.received()
                await asyncio.sleep(0.001)
        for ask in (
            transport.drain_wire,
            lambda: transport.reconfigure(baudrate=9600),
            lambda: transport.send_break(0.001),
            transport.modem_lines,
        ):
            try:
                await ask()
            except OSError:
                continue
    finally:
        transport.close()
        await until(lambda: protocol.lost, "connection_lost came")
    assert protocol.count("lost") == 1
    return arrived, protocol.received, protocol


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("options", [{}, {"read_gap": 0.002}], ids=["bytes", "frames"])
async def test_any_call_of_a_serial_port_may_fail(
    options: dict[str, Any], times: int, reports: list[dict[str, Any]]
) -> None:
    threads = threading.active_count()
    with terminal() as device:
        kept = os.open(device.path, os.O_RDWR | os.O_NOCTTY)
        before = termios.tcgetattr(kept)
        async for outcome in sweep(
            lambda: life(device, **options), errnos=ERRNOS, times=(times,), at_most=AT_MOST
        ):
            what = str(outcome)
            assert not outcome.hung, what
            assert outcome.error is None, what
            assert not outcome.leaked, what
            arrived, received, protocol = outcome.result
            assert DATA[:2000].startswith(arrived), what
            assert DATA[:2000].startswith(received), what
            if not outcome.reached or outcome.transient:
                assert (len(arrived), len(received), protocol.reason) == (2000, 2000, None), what
            if not outcome.reached:
                assert termios.tcgetattr(kept) == before, what
            termios.tcsetattr(kept, termios.TCSANOW, before)
            termios.tcflush(kept, termios.TCIOFLUSH)
            device.received()
        os.close(kept)
    assert threading.active_count() <= threads + 32  # those of the executor
    assert {report["message"] for report in reports} <= {
        "closing the descriptor failed",
    }
