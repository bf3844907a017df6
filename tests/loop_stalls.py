"""For how long a loop is held by whatever runs on it."""

from __future__ import annotations

import asyncio
import time


class Longest:
    """Measures while the block runs: ``with Longest() as longest: ...; longest.seconds``.

    What holds the loop always is told from what the system did in between by taking the least of some runs.
    """

    def __enter__(self) -> Longest:
        self.seconds, self._last = 0.0, time.monotonic()
        self._handle: asyncio.Handle = asyncio.get_running_loop().call_soon(self._turn)
        return self

    def _turn(self) -> None:
        self._look()
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def _look(self) -> None:
        now = time.monotonic()
        self.seconds, self._last = max(self.seconds, now - self._last), now

    def __exit__(self, *exc: object) -> None:
        self._handle.cancel()
        self._look()
