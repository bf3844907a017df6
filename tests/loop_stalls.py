"""For how long a loop is held by whatever runs on it."""

from __future__ import annotations

import asyncio
import os
import time


class Longest:
    """Measures while the block runs: ``with Longest() as longest: ...; longest.seconds``.

    The time for which this thread could have run, and had to wait for a processor, does not count, as far as
    the system tells it (Linux: the second number of /proc/thread-self/schedstat).
    """

    def __enter__(self) -> Longest:
        try:
            self._told = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._told = -1
        self.seconds, self._last = 0.0, self._now()
        self._handle: asyncio.Handle = asyncio.get_running_loop().call_soon(self._turn)
        return self

    def _now(self) -> float:
        waited = int(os.pread(self._told, 100, 0).split()[1]) if self._told >= 0 else 0
        return time.monotonic() - waited / 1e9

    def _turn(self) -> None:
        self._look()
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def _look(self) -> None:
        now = self._now()
        self.seconds, self._last = max(self.seconds, now - self._last), now

    def __exit__(self, *exc: object) -> None:
        self._handle.cancel()
        self._look()
        if self._told >= 0:
            os.close(self._told)
