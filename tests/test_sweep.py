"""Every system call of a transport's life fails once, and for good, with each of ten errnos.

Whatever fails and whenever: no hang, no descriptor left open, one loss with the errno that the kernel
gave, and nothing that was acknowledged is missing at the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from dataclasses import dataclass
from typing import Any

import pytest

from fdtransport.testing import (
    ERRNOS,
    FOREVER,
    FarEnd,
    FaultPlan,
    PairMaker,
    RecordingProtocol,
    fd_pair_maker,
    read_pipe_maker,
    socket_pair_maker,
    sweep,
    tcp_maker,
    write_pipe_maker,
)

DATA = bytes(range(256)) * 700  # more than a pipe holds: some of it has to wait

KINDS: dict[str, PairMaker] = {
    "socket fd": socket_pair_maker(),
    "tcp fd": tcp_maker(),
    "fd pair": fd_pair_maker(),
    "read fd": read_pipe_maker(),
    "write fd": write_pipe_maker(),
}


@dataclass
class Life:
    """What one life of a transport came to."""

    refused: int = 0
    """The errno that the helper raised, 0 when it did not."""
    losses: int = 0
    lost_with: int = 0
    """The errno that connection_lost told, 0 for None."""
    acknowledged: int = 0
    """Bytes that flushed() said the kernel has."""
    arrived: bytes = b""
    received: bytes = b""
    events_after_loss: int = 0


async def live(make: PairMaker) -> Life:
    """Send and receive, end the write side, close; the far end does the same."""
    life = Life()
    protocol = RecordingProtocol(keep_open=True)
    try:
        transport, far = await make(lambda: protocol)
    except OSError as exc:
        life.refused = exc.errno or -1
        return life
    talking = asyncio.ensure_future(talk(make, far, life))
    try:
        if make.features.writable:
            for at in range(0, len(DATA), 10_000):
                transport.write(DATA[at : at + 10_000])
            try:
                await transport.flushed()
                life.acknowledged = len(DATA)
                if transport.can_write_eof():
                    transport.write_eof()
            except OSError:
                pass
        if make.features.readable:
            transport.pause_reading()
            await asyncio.sleep(0)
            transport.resume_reading()
            while not (protocol.lost or protocol.count("eof")):
                await asyncio.sleep(0.001)
        transport.close()
        await transport.aclose()
    finally:
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        with contextlib.suppress(OSError):
            while make.features.writable and (data := far.recv_now()):  # what it had not taken yet
                life.arrived += data
        far.close()
    life.losses = protocol.count("lost")
    life.lost_with = getattr(protocol.reason, "errno", None) or 0
    life.received = b"".join(data for name, data in protocol.events if name == "data")
    life.events_after_loss = len(protocol.events) - 1 - protocol.names.index("lost")
    return life


async def talk(make: PairMaker, far: FarEnd, life: Life) -> None:
    """The other side: sends, ends, and reads what comes, until it is cancelled or at the end."""

    async def send() -> None:
        try:
            await far.send(DATA)
            if make.features.half_close or not make.features.writable:
                far.shutdown_write()
        except OSError:
            pass  # the transport has gone

    sending = asyncio.ensure_future(send()) if make.features.readable else None
    try:
        while make.features.writable:
            data = await far.recv()
            if not data:
                break
            life.arrived += data
        if sending is not None:
            await sending
    except OSError:
        pass
    finally:
        if sending is not None:
            sending.cancel()


def check(outcome: Any, make: PairMaker) -> None:
    what = str(outcome)
    assert not outcome.hung, what
    assert outcome.error is None, what
    assert not outcome.leaked, what
    life: Life = outcome.result
    if life.refused:
        assert life.refused == outcome.errno, what
        return
    assert life.losses == 1, what
    assert life.events_after_loss == 0, what
    assert DATA.startswith(life.arrived), what
    assert DATA.startswith(life.received), what
    assert len(life.arrived) >= life.acknowledged, what
    if life.lost_with:
        assert life.lost_with in (outcome.errno, errno.ECONNRESET, errno.EPIPE), what
    if not outcome.name or outcome.transient:
        assert life.lost_with == 0, what
        assert life.arrived == (DATA if make.features.writable else b""), what
        assert life.received == (DATA if make.features.readable else b""), what


@pytest.mark.timeout(120)
@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
async def test_any_call_may_fail(make: PairMaker, times: int, reports: list[dict[str, Any]]) -> None:
    runs = 0
    async for outcome in sweep(lambda: live(make), errnos=ERRNOS, times=(times,), at_most=4):
        runs += 1
        check(outcome, make)
    assert runs > 20
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
async def test_a_few_bytes_at_a_time_are_exact(make: PairMaker) -> None:
    with FaultPlan() as plan:
        for name in ("read", "write", "readv", "writev"):
            plan.short(name, n=251)
        life = await live(make)
    assert life.losses == 1
    assert life.arrived == (DATA if make.features.writable else b"")
    assert life.received == (DATA if make.features.readable else b"")
