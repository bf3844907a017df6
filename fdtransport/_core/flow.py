"""Water marks, pause and resume that strictly alternate, and the registered producer.

No descriptor, no loop: the transport tells the size of its queue and passes the verdict on.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["DEFAULT_HIGH", "Flow", "Producer", "check_limits"]

DEFAULT_HIGH = 64 * 1024


class Producer(Protocol):
    """Something that writes to a transport and can be held back.

    A *push* producer (``streaming=True``) writes on its own until it is paused. A *pull* producer
    (``streaming=False``) writes when ``resume_producing()`` asks it to, and is never paused.
    """

    def pause_producing(self) -> None: ...
    def resume_producing(self) -> None: ...
    def stop_producing(self) -> None: ...


def check_limits(high: int | None, low: int | None) -> tuple[int, int]:
    """``(high, low)`` in bytes with asyncio's defaults filled in.

    :raises ValueError: unless ``high >= low >= 0``.
    """
    if high is None:
        high = DEFAULT_HIGH if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return high, low


class Flow:
    """The back pressure of one write queue."""

    __slots__ = ("hard", "high", "low", "paused", "producer", "streaming")

    def __init__(self) -> None:
        self.high, self.low = check_limits(None, None)
        self.hard: int | None = None
        self.paused = False
        self.producer: Producer | None = None
        self.streaming = False

    def set_limits(self, high: int | None, low: int | None, hard: int | None) -> None:
        high, low = check_limits(high, low)
        if hard is not None and hard < high:
            raise ValueError(f"hard ({hard!r}) must be >= high ({high!r})")
        self.high, self.low, self.hard = high, low, hard

    def must_pause(self, size: int) -> bool:
        """True, once, when *size* bytes have gone above the high mark."""
        if self.paused or size <= self.high:
            return False
        self.paused = True
        return True

    def must_resume(self, size: int) -> bool:
        """True, once, when *size* bytes have come down to the low mark."""
        if not self.paused or size > self.low:
            return False
        self.paused = False
        return True

    def over_hard_limit(self, size: int) -> bool:
        return self.hard is not None and size > self.hard

    def register(self, producer: Producer, streaming: bool) -> None:
        """:raises RuntimeError: when another producer is registered; the message names both."""
        if self.producer is not None:
            raise RuntimeError(
                f"cannot register producer {producer!r}: producer {self.producer!r} is still registered"
            )
        self.producer, self.streaming = producer, streaming

    def unregister(self) -> Producer | None:
        producer, self.producer = self.producer, None
        return producer

    @property
    def push(self) -> Producer | None:
        """The producer, if it is one that is paused and resumed."""
        return self.producer if self.streaming else None

    @property
    def pull(self) -> Producer | None:
        """The producer, if it is one that is asked for more."""
        return None if self.streaming else self.producer
