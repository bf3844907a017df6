"""What the command shows of a relay that runs, on standard error."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["progress", "size"]

#: Seconds between two updates.
TICK = 0.25


def size(count: float) -> str:
    """*count* bytes in words."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"


class _Line:
    """One line that is written anew again and again."""

    def __init__(self) -> None:
        self._started = self._at = time.monotonic()
        self._total = 0

    def show(self, there: int, back: int) -> None:
        now, total = time.monotonic(), there + back
        rate = (total - self._total) / ((now - self._at) or 1)
        self._at, self._total = now, total
        line = f"> {size(there)}, < {size(back)}, {size(rate)}/s, {now - self._started:.0f} s"
        print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print(file=sys.stderr, flush=True)


class _Bar:
    """The same by tqdm."""

    def __init__(self, tqdm: Any) -> None:
        tqdm.monitor_interval = 0  # it would be a thread
        self._bar = tqdm(unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr)

    def show(self, there: int, back: int) -> None:
        self._bar.set_postfix_str(f"> {size(there)}, < {size(back)}", refresh=False)
        self._bar.update(there + back - self._bar.n)

    def close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def progress(moved: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Show what *moved* says, bytes there and back, while the block runs: by tqdm if that is installed."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        shown: _Line | _Bar = _Line()
    else:
        shown = _Bar(tqdm)
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal timer
        with contextlib.suppress(OSError):  # nobody looks any more
            shown.show(*moved())
        timer = loop.call_later(TICK, tick)

    timer = loop.call_later(TICK, tick)
    try:
        yield
    finally:
        timer.cancel()
        with contextlib.suppress(OSError):
            shown.show(*moved())
            shown.close()
