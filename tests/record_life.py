"""One life of a record transport, for sweeps of failing system calls; as one_life is for byte streams."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from one_life import SWEPT, has_begun_and_ended, narrow

from fdtransport._core import backpressure
from fdtransport.errors import Meaning
from fdtransport.testing import (
    FarEnd,
    FaultPlan,
    Outcome,
    PairMaker,
    RecordingDatagramProtocol,
    sweep,
)

__all__ = ["RECORDS", "any_call_may_fail", "check", "live"]

#: No two alike; more than a narrowed socket or pipe holds, so that some have to wait.
RECORDS = [bytes([n]) * size for n, size in enumerate((1, 4000, 4096, 300, 4096, 2))]
#: The kernel raises it to the least that it allows (socket(7)): one record of a page.
NARROW = 0


@dataclass
class Life:
    """What one life of a record transport came to."""

    refused: int = 0
    """The errno that the helper raised, 0 when it did not."""
    losses: int = 0
    lost_with: int = 0
    """The errno that connection_lost told, 0 for None."""
    errors: list[int | None] = field(default_factory=list)
    """The errnos that error_received told."""
    acknowledged: bool = False
    """Whether flushed() said that the kernel has everything that was not refused."""
    arrived: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    events_after_loss: int = 0
    one_record: frozenset[int] = frozenset()
    """The errnos that say of a read that it concerns one record, after which it goes on."""
    breaches: list[Any] = field(default_factory=list)
    """What the protocol saw that breaks the contract."""

    def __repr__(self) -> str:
        return (
            f"<Life refused={self.refused} losses={self.losses} lost_with={self.lost_with} "
            f"errors={self.errors} acknowledged={self.acknowledged} "
            f"arrived={[len(r) for r in self.arrived]} received={[len(r) for r in self.received]}>"
        )


async def live(make: PairMaker) -> Life:
    """Send and receive every record, paused in between, then close; the far end does the same."""
    life = Life()
    read_all = asyncio.Event()

    def noted(protocol: Any, *_: Any) -> None:
        # A record that an error took the place of does not come any more.
        if protocol.lost or protocol.records[-1:] == RECORDS[-1:]:
            read_all.set()

    protocol = RecordingDatagramProtocol(data=noted, lost=noted)
    try:
        transport, far = await make(lambda: protocol)
    except OSError as exc:
        life.refused = exc.errno or -1
        return life
    life.one_record = frozenset(n for n, what in transport._READ_ERRORS.items() if what is Meaning.RECORD)
    narrow(transport.fileno(), NARROW)
    talking = asyncio.ensure_future(talk(make, far, life))
    try:
        if make.features.writable:
            for record in RECORDS:
                transport.sendto(record)
            with contextlib.suppress(OSError):
                await transport.flushed()
                life.acknowledged = True
        if make.features.readable:
            transport.pause_reading()
            await asyncio.sleep(0)
            transport.resume_reading()
            await read_all.wait()
        transport.close()
        await transport.aclose()
    finally:
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        with contextlib.suppress(OSError):
            while make.features.writable and (record := far.recv_now()):  # what it had not taken yet
                life.arrived.append(record)
        far.close()
    life.losses = protocol.count("lost")
    life.lost_with = getattr(protocol.reason, "errno", None) or 0
    life.errors = [getattr(exc, "errno", None) for exc in protocol.errors]
    life.received = protocol.records
    life.events_after_loss = len(protocol.events) - 1 - protocol.names.index("lost")
    life.breaches = protocol.breaches
    return life


async def talk(make: PairMaker, far: FarEnd, life: Life) -> None:
    """The other side: sends, and takes what comes, until it is cancelled or at the end."""

    async def send() -> None:
        with contextlib.suppress(OSError):  # the transport has gone
            for record in RECORDS:
                await far.send(record)

    sending = asyncio.ensure_future(send()) if make.features.readable else None
    try:
        while make.features.writable and (record := await far.recv()):
            life.arrived.append(record)
        if sending is not None:
            await sending
    except OSError:
        pass
    finally:
        if sending is not None:
            sending.cancel()


def in_order(records: list[bytes]) -> bool:
    """Whether each is one that was sent, whole, and none came twice or before its time."""
    places = [RECORDS.index(record) for record in records]
    return all(a < b for a, b in pairwise(places))


def check(outcome: Outcome, make: PairMaker) -> None:
    """No hang, no leak, one loss with its errno, and each record that is missing was told of."""
    if not has_begun_and_ended(outcome):
        return
    what, life = str(outcome), outcome.result
    assert life.events_after_loss == 0, what
    assert life.breaches == [], what
    assert in_order(life.arrived), what
    assert in_order(life.received), what
    assert set(life.errors) <= {outcome.errno}, what
    if life.lost_with:
        assert life.lost_with in (outcome.errno, errno.ECONNRESET, errno.EPIPE), what
    if life.acknowledged:
        assert len(life.arrived) + len(life.errors) >= len(RECORDS) * make.features.writable, what
    if not outcome.reached or outcome.transient:
        assert (life.lost_with, life.errors) == (0, []), what
        assert life.arrived == (RECORDS if make.features.writable else []), what
        assert life.received == (RECORDS if make.features.readable else []), what


async def any_call_may_fail(make: PairMaker, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of a life fails, with each errno that is SWEPT; *times* is 1 or FOREVER."""
    monkeypatch.setattr(backpressure, "BREATH", 0.0)
    scenario = partial(live, make)
    if times == 1:
        sweeps = [sweep(scenario, errnos=SWEPT)]
    else:
        # What concerns one record is told each time, and never ends: not to be the answer of every read.
        with FaultPlan() as plan:
            told = {*SWEPT} & (await live(make)).one_record
        others = plan.counts().keys() - {"read", "recvfrom"}
        sweeps = [
            sweep(scenario, errnos={*SWEPT} - told, times=(times,)),
            sweep(scenario, others, told, times=(times,)),
        ]
    runs = 0
    for outcomes in sweeps:
        async for outcome in outcomes:
            runs += 1
            check(outcome, make)
    assert runs > 10 * (len(SWEPT) - 2)
