"""One life of a transport, short and with everything in it, for sweeps of failing system calls.

Few calls, so that each of them can fail in each way, and each way to read, write, wait and end at least
once: a write that goes out directly, one that the cork holds, a vectored one, one that has to wait for the
poller; reading that is paused and resumed; the ends of both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from fdtransport._core import backpressure
from fdtransport.testing import (
    ERRNOS,
    FarEnd,
    FaultPlan,
    Outcome,
    PairMaker,
    RecordingBufferedProtocol,
    RecordingProtocol,
    sweep,
)
from fdtransport.testing.observe import until

__all__ = [
    "CUTS",
    "DATA",
    "SWEPT",
    "Life",
    "any_call_may_fail",
    "check",
    "has_begun_and_ended",
    "large_buffer",
    "live",
    "narrow",
    "short_calls_are_invisible",
]

#: More than a pipe and a narrowed socket hold: some of it has to wait.
DATA = bytes(range(256)) * 600
#: Two small writes go out directly, the third is held by the cork, the fourth joins it, the last waits.
CUTS = (0, 100, 200, 300, 20_000, len(DATA))
#: What the kernel of a socket holds for its writer; it takes twice this for its own bookkeeping.
NARROW = 32 * 1024
#: asyncio's debug mode makes a life five times as dear: there, one errno for each way to take it (see
#: errors.Meaning); all of them without it.
SWEPT = (errno.EAGAIN, errno.EIO, errno.ENOBUFS) if sys.flags.dev_mode else ERRNOS
#: What moves bytes.
SHORT = ("read", "write", "readv", "writev", "preadv", "pwritev")

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
    breaches: list[Any] = field(default_factory=list)
    """What the protocol saw that breaks the contract."""


async def live(make: PairMaker, recording: Callable[..., Any] = RecordingProtocol) -> Life:
    """Send and receive, end the write side, close; the far end does the same."""
    life = Life()
    read_all = asyncio.Event()

    def over(*_: Any) -> bool:
        read_all.set()
        return True

    protocol = recording(eof=over, lost=over)
    try:
        transport, far = await make(lambda: protocol)
    except OSError as exc:
        life.refused = exc.errno or -1
        return life
    narrow(transport.fileno())
    talking = asyncio.ensure_future(talk(make, far, life))
    try:
        if make.features.writable:
            for start, end in pairwise(CUTS):
                transport.write(DATA[start:end])
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
            if make.features.half_close or not make.features.writable:
                await read_all.wait()
            else:  # the far end cannot say that it is through
                await until(lambda: read_all.is_set() or protocol.received == DATA, "all was read", 9)
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
    life.received = protocol.received
    life.events_after_loss = len(protocol.events) - 1 - protocol.names.index("lost")
    life.breaches = protocol.breaches
    return life


def narrow(fd: int, size: int = NARROW) -> None:
    """Have a socket take less than there is to send, as a pipe does."""
    if fd >= 0 and stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


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


def has_begun_and_ended(outcome: Outcome) -> bool:
    """Whether there was a life; if not, its helper raised the errno. No hang, no leak, and one loss."""
    what, life = str(outcome), outcome.result
    assert not outcome.hung, what
    assert outcome.error is None, what
    assert not outcome.leaked, what
    if life.refused:
        assert life.refused == outcome.errno, what
        return False
    assert life.losses == 1, what
    return True


def check(outcome: Outcome, make: PairMaker) -> None:
    """No hang, no descriptor left open, one loss with the errno, nothing acknowledged and lost."""
    if not has_begun_and_ended(outcome):
        return
    what, life = str(outcome), outcome.result
    assert life.events_after_loss == 0, what
    assert life.breaches == [], what
    assert DATA.startswith(life.arrived), what
    assert DATA.startswith(life.received), what
    assert len(life.arrived) >= life.acknowledged, what
    if life.lost_with:
        assert life.lost_with in (outcome.errno, errno.ECONNRESET, errno.EPIPE), what
    if not outcome.reached or outcome.transient:
        assert life.lost_with == 0, what
        assert life.arrived == (DATA if make.features.writable else b""), what
        assert life.received == (DATA if make.features.readable else b""), what


def large_buffer(**hooks: Any) -> RecordingBufferedProtocol:
    """A BufferedProtocol that takes as much in a call as data_received is given."""
    return RecordingBufferedProtocol(64 * 1024, **hooks)


async def any_call_may_fail(
    make: PairMaker, times: int, monkeypatch: pytest.MonkeyPatch, recording: Any = RecordingProtocol
) -> None:
    """Every call of a life fails, with each errno that is SWEPT; *times* is 1 or FOREVER."""
    # Of ENOBUFS for good a transport tries a hundred times, and waits between: not for as long here.
    monkeypatch.setattr(backpressure, "BREATH", 0.0)
    runs = 0
    async for outcome in sweep(lambda: live(make, recording), errnos=SWEPT, times=(times,)):
        runs += 1
        check(outcome, make)
    assert runs > 10 * (len(SWEPT) - 2)


async def short_calls_are_invisible(make: PairMaker, n: int) -> None:
    """What moves bytes moves at most *n* of them in each call of a life."""
    with FaultPlan() as plan:
        for name in SHORT:
            plan.short(name, n)
        life = await live(make)
    assert life.losses == 1
    assert life.arrived == (DATA if make.features.writable else b"")
    assert life.received == (DATA if make.features.readable else b"")
