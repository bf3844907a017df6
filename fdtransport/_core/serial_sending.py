"""When a serial line has sent what it was given: there is no event for it, only questions."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from . import serial_line
from .serial_settings import SerialSettings

__all__ = ["LOOK", "steps_until_sent", "wait_sent"]

#: Seconds for which a line may take nothing before what waits for it is dropped on closing: as long as the
#: kernel itself waits by default (closing_wait of setserial(8)).
STALLED = 30.0
#: Seconds between two looks at what is unsent.
LOOK = 0.005


def wait_sent(fd: int, settings: SerialSettings, hurry: threading.Event, patience: float | None) -> bool:
    """Wait, and hold this thread, until the line has sent everything; whether it has.

    False when *hurry* is set, after *patience* seconds, and, where that is None, when nothing has moved for
    as long as the kernel itself would wait.
    """
    started = since = time.monotonic()
    last = -1
    for left, pause in steps_until_sent(fd, settings):
        now = time.monotonic()
        if left != last:
            last, since = left, now
        if now - since > STALLED if patience is None else now - started > patience:
            return False
        if hurry.wait(pause):
            return False
    return True


def steps_until_sent(fd: int, settings: SerialSettings) -> Iterator[tuple[int, float]]:
    """Bytes that are unsent and seconds until the next look, again and again until there are none."""
    while left := serial_line.unsent(fd):
        yield left, min(max(left * settings.character_time / 2, LOOK), 0.1)
    for pause in serial_line.until_shifted_out(fd, settings):
        yield 0, pause
