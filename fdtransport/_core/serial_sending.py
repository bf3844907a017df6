"""When a serial line has sent what it was given: there is no event for it, only questions."""

from __future__ import annotations

import threading
import time

from . import serial_line
from .serial_settings import SerialSettings

__all__ = ["LOOK", "Break", "Sending", "wait_sent"]

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
    sending = Sending(settings)
    while (step := sending.look(fd)) is not None:
        left, pause = step
        now = time.monotonic()
        if left != last:
            last, since = left, now
        if now - since > STALLED if patience is None else now - started > patience:
            return False
        if hurry.wait(pause):
            return False
    return True


class Sending:
    """Looks whether a line with these settings has sent everything."""

    __slots__ = ("_looks", "_time")

    def __init__(self, settings: SerialSettings) -> None:
        self._time = settings.character_time
        self._looks = 0

    def look(self, fd: int) -> tuple[int, float] | None:
        """Bytes that the hardware has not yet, and seconds until the next look; None when all is sent."""
        left = serial_line.unsent(fd)
        if left:
            self._looks = 0
            return left, min(max(left * self._time / 2, LOOK), 0.1)
        pause = serial_line.shifting_out(fd, self._looks, self._time)
        self._looks += 1
        return None if pause is None else (0, pause)


class Break:
    """A break that one thread begins and another one ends, in whatever order they come to it."""

    __slots__ = ("_lock", "_on", "_over")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on = self._over = False

    def begin(self, fd: int) -> None:
        with self._lock:
            if not self._over:
                serial_line.set_break(fd, True)
                self._on = True

    def end(self, fd: int) -> None:
        with self._lock:
            self._over = True
            if self._on:
                serial_line.set_break(fd, False)
                self._on = False
