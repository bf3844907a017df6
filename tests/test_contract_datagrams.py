"""The contract kit over every way to get a datagram transport."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from datagram_makers import KINDS, Maker
from one_life import has_begun_and_ended

from fdtransport.testing import (
    ERRNOS,
    FOREVER,
    FarEnd,
    Outcome,
    Promise,
    RecordingDatagramProtocol,
    packet_promises,
    sweep,
)


def _cases() -> list[Any]:
    return [
        pytest.param(kind, promise, id=f"{kind}-{promise}")
        for kind, (_, features) in KINDS.items()
        for promise in packet_promises(features)
    ]


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize(("kind", "promise"), _cases())
async def test_contract(kind: str, promise: Promise, tmp_path: Path) -> None:
    make, features = KINDS[kind]
    assert await promise.run(Maker(make, features, tmp_path))


# -- every system call fails -------------------------------------------------------------------------

RECORDS = [b"%4d" % n + bytes(3000) for n in range(60)]


@dataclass
class Life:
    """What one life of an endpoint came to."""

    refused: int = 0
    losses: int = 0
    lost_with: int = 0
    errors: list[int] = field(default_factory=list)
    acknowledged: bool = False
    arrived: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)


async def live(maker: Maker) -> Life:
    """Send to a far end that reads only later, receive, close."""
    life, protocol = Life(), RecordingDatagramProtocol()
    try:
        transport, far = await maker(lambda: protocol)
    except OSError as exc:
        life.refused = exc.errno or -1
        return life
    try:
        for record in RECORDS:
            transport.sendto(record)
        reading = asyncio.ensure_future(_read(far, life))
        try:
            await transport.flushed()
            life.acknowledged = True
        except OSError:
            pass
        for record in RECORDS[:20]:
            try:
                await far.send(record)
            except OSError:
                break
        while not protocol.lost and len(protocol.records) + len(protocol.errors) < 20:
            await asyncio.sleep(0.001)
        await transport.aclose()
        for _ in range(5):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        while data := far.recv_now():
            life.arrived.append(data)
    except ConnectionResetError:
        pass
    finally:
        far.close()
    life.losses = protocol.count("lost")
    life.lost_with = getattr(protocol.reason, "errno", None) or 0
    life.errors = [getattr(error, "errno", 0) or 0 for error in protocol.errors]
    life.received = protocol.records
    return life


async def _read(far: FarEnd, life: Life) -> None:
    while data := await far.recv():
        life.arrived.append(data)


def check(outcome: Outcome, maker: Maker) -> None:
    if not has_begun_and_ended(outcome):
        return
    what, life = str(outcome), outcome.result
    missing = len(RECORDS) - len(life.arrived)
    # In order, each at most once, each whole; what is missing was told.
    assert [record for record in RECORDS if record in set(life.arrived)] == life.arrived, what
    assert life.received == [record for record in RECORDS[:20] if record in set(life.received)], what
    assert not missing or life.errors or life.lost_with or not life.acknowledged, what
    assert set(life.errors) | {life.lost_with} <= {0, outcome.errno}, what
    if not outcome.name or outcome.transient:
        assert (life.lost_with, life.errors, missing) == (0, [], 0), what
        assert len(life.received) == 20, what


@pytest.mark.timeout(120)
@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("kind", KINDS)
async def test_any_call_may_fail(
    kind: str, times: int, tmp_path: Path, reports: list[dict[str, Any]]
) -> None:
    maker = Maker(*KINDS[kind], tmp_path)
    runs = 0
    async for outcome in sweep(lambda: live(maker), errnos=ERRNOS, times=(times,), at_most=3):
        runs += 1
        check(outcome, maker)
    assert runs > 20
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}
