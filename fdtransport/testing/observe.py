"""What the checks look at: descriptors, idleness, bytes; and how they wait without sleeping blindly."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Broken", "Idle", "LoopTurns", "descriptors", "expect", "idle_cost", "pattern", "turns", "until"]


class Broken(Exception):
    """Raised inside a check: what was seen, and the promise that it breaks if not the one being checked."""

    def __init__(self, seen: str, number: int | None = None) -> None:
        super().__init__(seen)
        self.seen = seen
        self.number = number


def expect(condition: object, seen: str, number: int | None = None) -> None:
    """Fail the check with what was ``seen`` unless ``condition`` holds."""
    if not condition:
        raise Broken(seen, number)


async def turns(n: int = 3) -> None:
    """Let the loop turn ``n`` times."""
    for _ in range(n):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], what: str | Callable[[], str], timeout: float = 2.0) -> None:
    """Wait for ``condition``, looking at every turn of the loop and then every millisecond.

    ``what`` is waited for, or a function that tells it with the state of things at the end.

    :raises Broken: it did not come within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    for turn in itertools.count():
        if condition():
            return
        if time.monotonic() > deadline:
            raise Broken(f"waited {timeout:g} s in vain until {what if isinstance(what, str) else what()}")
        await asyncio.sleep(0 if turn < 50 else 0.001)


#: No two places within 64 KiB look alike, and a prime length never lines up with a buffer.
_BLOCK = random.Random(1).randbytes(65537)


def pattern(n: int, at: int = 0) -> bytes:
    """``n`` bytes of an endless pattern, from offset ``at``: shows what was lost, doubled or moved."""
    start = at % len(_BLOCK)
    whole = (start + n) // len(_BLOCK) + 1
    return (_BLOCK * whole)[start : start + n]


def descriptors() -> dict[int, str]:
    """The open descriptors of this process and what they are, without those of pollers.

    A loop's hang-up watch comes and goes with what it watches, which is nobody's leak. Empty where the
    system has no /proc.
    """
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself
            continue
        if target != "anon_inode:[eventpoll]":
            found[int(name)] = target
    return found


def newcomers(before: dict[int, str]) -> dict[int, str]:
    """The descriptors that are open now and were not (or were something else) ``before``."""
    return {fd: target for fd, target in descriptors().items() if before.get(fd) != target}


@dataclass(frozen=True)
class Idle:
    """What an idle loop cost: seconds of processor, and how often it went to sleep."""

    cpu: float
    wakeups: int
    #: Whether the platform can count wake-ups.
    counted: bool = True

    def is_idle(self, cpu: float, wakeups: int) -> bool:
        """Whether it stayed within these bounds. A loop that never went to sleep spins, even if others
        took the processor from it.
        """
        return self.cpu <= cpu and (not self.counted or 1 <= self.wakeups <= wakeups)

    def __str__(self) -> str:
        return f"{self.wakeups} wake-ups and {self.cpu * 1000:.0f} ms of processor"


async def idle_cost(seconds: float = 0.3) -> Idle:
    """Do nothing for ``seconds`` and tell what the loop did meanwhile.

    A loop that spins burns processor; one that is woken by a timer or again and again by a descriptor
    gives the processor away each time that it waits. Both are seen from outside, on any loop.
    """
    cpu, waits = time.thread_time(), _waits()
    await asyncio.sleep(seconds)
    return Idle(time.thread_time() - cpu, _waits() - waits, _THREAD is not None)


#: Only Linux counts for a thread.
_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)


def _waits() -> int:
    if resource is None or _THREAD is None:
        return 0
    return resource.getrusage(_THREAD).ru_nvcsw


class LoopTurns:
    """Counts the turns of the loop while the block runs: ``with LoopTurns() as turns: turns.count``."""

    def __init__(self) -> None:
        self.count: int = 0
        self._handle: asyncio.Handle | None = None

    def __enter__(self) -> LoopTurns:
        self._turn(asyncio.get_running_loop())
        return self

    def __exit__(self, *exc: object) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self.count += 1
        self._handle = loop.call_soon(self._turn, loop)


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    """``data`` in pieces of ``size`` bytes."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def describe(transport: Any) -> str:
    """``repr``, which must not raise; here it must not hide another fault either."""
    try:
        return repr(transport)
    except Exception as exc:
        return f"<{type(transport).__name__} whose repr raised {exc!r}>"
