"""Promise 22: no state spins the loop."""

from __future__ import annotations

import os

from .observe import expect, idle_cost, turns, until
from .promises import promise
from .recording import RecordingProtocol
from .trial import Pair, Trial

#: Of so many idle seconds, so much may be spent. The wait itself is one wake-up, a timer of 50 ms makes
#: four more, a spin burns it all.
SECONDS, WAKEUPS, CPU = 0.2, 3, 0.065


async def stays_idle(pair: Pair, state: str) -> None:
    # What the state still has to do, it does now.
    for _ in range(3):
        await idle_cost(0.01)
    told = len(pair.protocol.events)
    # A machine under load may wake a loop for its own reasons: the best of three is judged.
    cost = await idle_cost(SECONDS)
    for _ in range(2):
        if not cost.is_idle(CPU, WAKEUPS):
            cost = await idle_cost(SECONDS)
    expect(cost.is_idle(CPU, WAKEUPS), f"{state}: {cost} in {SECONDS} idle seconds")
    expect(len(pair.protocol.events) == told, f"{state}, and yet {pair.protocol.names[told:]} came", 2)


@promise(22, "idle")
async def a_fresh_transport_does_not_spin(trial: Trial) -> None:
    await stays_idle(await trial.open(), "fresh")


@promise(22, "idle", "readable")
async def a_paused_transport_with_unread_data_does_not_spin(trial: Trial) -> None:
    pair = await trial.open()
    pair.transport.pause_reading()
    pair.far.send_now(b"unread")
    await stays_idle(pair, "paused with unread data")


@promise(22, "idle", "readable")
async def a_paused_transport_whose_far_end_has_gone_does_not_spin(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.transport.pause_reading()
    if trial.features.writable:
        pair.transport.write(b"unread there, so that a socket sees an error too")
    pair.far.send_now(b"unread")
    await turns(3)
    pair.far.close()
    await stays_idle(pair, "paused, far end gone")


@promise(22, "idle", "readable", "half_close")
async def a_half_closed_transport_does_not_spin(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.far.shutdown_write()
    await pair.until_seen("eof")
    await stays_idle(pair, "far end half-closed")


@promise(22, "idle", "writable", "half_close")
async def a_transport_after_write_eof_does_not_spin(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.transport.write_eof()
    expect(await pair.far.recv() == b"", "the far end saw no end of file", 28)
    await stays_idle(pair, "write side ended")
    pair.far.close()
    await pair.until_seen("eof")
    await stays_idle(pair, "write side ended, far end gone")


@promise(22, "idle", "readable", "writable", "half_close")
async def a_half_closed_transport_whose_far_end_has_gone_does_not_spin(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.far.shutdown_write()
    await pair.until_seen("eof")
    pair.far.close()
    await turns(5)
    await stays_idle(pair, "half-closed, far end gone")


@promise(22, "idle", "writable")
async def a_transport_with_a_backlog_does_not_spin(trial: Trial) -> None:
    pair = await trial.open()
    await pair.fill()
    await stays_idle(pair, "backlog, far end reads nothing")
    pair.transport.close()
    await stays_idle(pair, "closing, far end reads nothing")


@promise(22, "idle", "readable", "writable")
async def a_paused_transport_with_a_backlog_does_not_spin(trial: Trial) -> None:
    pair = await trial.open()
    pair.transport.pause_reading()
    await pair.fill()
    pair.far.send_now(b"unread")
    await stays_idle(pair, "paused with unread data and a backlog")


@promise(22, "idle", "write_only", "ends")
async def a_write_only_transport_whose_reader_has_gone_does_not_spin(trial: Trial) -> None:
    for end in (False, True):
        pair = await trial.open()
        if end:
            await pair.fill()
        pair.far.close()
        await pair.until_lost()
        await stays_idle(pair, "reader gone")


@promise(22, "idle records")
async def nothing_spins_after_the_loss_although_a_duplicate_is_open(trial: Trial) -> None:
    # A poller that was not told before the close goes on watching for whoever else has the file open.
    pair = await trial.open()
    duplicates = [os.dup(fd) for fd in pair.fds]
    try:
        if trial.features.readable:
            pair.far.send_now(b"unread")
        pair.transport.abort()
        await until(lambda: pair.protocol.lost, "connection_lost came")
        pair.far.close()
        await stays_idle(pair, "lost, with a duplicate of its descriptor open")
    finally:
        for fd in duplicates:
            os.close(fd)
