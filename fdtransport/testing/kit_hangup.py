"""Promise 21: the far end goes while nobody reads, and the transport notices."""

from __future__ import annotations

import asyncio
import time

from .observe import expect, turns, until
from .promises import promise
from .recording import RecordingProtocol
from .trial import Trial


@promise(21, "hang-up", "readable", "extended", "hangup")
async def a_hang_up_is_noticed_while_reading_is_paused(trial: Trial) -> None:
    delays: list[float] = []
    while not delays or (min(delays) > 0.05 and len(delays) < 5):
        pair = await trial.open()
        pair.transport.pause_reading()
        pair.far.send_now(b"unread")
        waiting = asyncio.ensure_future(pair.transport.wait_hangup())
        await turns(10)
        expect(not pair.transport.hung_up, "hung_up is true before the far end has gone")
        expect(not waiting.done(), "wait_hangup() returned before the far end has gone")
        start = time.monotonic()
        pair.far.close()
        await until(lambda p=pair: p.transport.hung_up, "hung_up was true", 1.0)  # type: ignore[misc]
        delays.append(time.monotonic() - start)
        await asyncio.wait_for(waiting, 1.0)
        expect(pair.protocol.names == ["made"], f"paused, and yet: {pair.protocol.summary()}", 15)
        pair.transport.resume_reading()
        await pair.until_lost()
        if trial.features.end_of_file:
            expect(pair.protocol.received == b"unread", "what was unread is lost", 18)
            expect(pair.protocol.count("eof") == 1, f"events: {pair.protocol.summary()}", 17)
    expect(min(delays) <= 0.05, f"it took {min(delays) * 1000:.0f} ms at best")


@promise(21, "hang-up", "readable", "writable", "half_close", "extended", "hangup")
async def a_hang_up_is_noticed_while_half_closed(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.far.shutdown_write()
    await pair.until_seen("eof")
    await turns(10)
    expect(not pair.protocol.lost, "the transport ended although eof_received was true", 17)
    pair.far.close()
    await until(lambda: pair.transport.hung_up or pair.protocol.lost, "the hang-up was noticed", 1.0)


@promise(21, "hang-up", "extended", "hangup")
async def wait_hangup_ends_with_the_transport(trial: Trial) -> None:
    pair = await trial.open()
    waiting = asyncio.ensure_future(pair.transport.wait_hangup())
    cancelled = asyncio.ensure_future(pair.transport.wait_hangup())
    await turns(3)
    cancelled.cancel()
    await turns(3)
    pair.transport.abort()
    await pair.until_lost()
    await until(waiting.done, "wait_hangup() returned after the loss")
    if not waiting.cancelled():
        waiting.exception()
