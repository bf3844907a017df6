"""One check at work: it opens pairs, watches what the loop is told, and clears up after the check."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .ends import FarEnd, collect_ends
from .observe import Broken, describe, expect, newcomers, pattern, turns, until
from .observe import descriptors as open_descriptors
from .promises import Breach, Features, Maker, Promise
from .recording import Recorder, RecordingDatagramProtocol, RecordingProtocol

__all__ = ["Pair", "Trial"]

CHUNK = 256 * 1024


@dataclass
class Pair:
    """A transport with its protocol, its far end, and the descriptors that came with the transport."""

    transport: Any
    protocol: Any
    far: FarEnd
    fds: tuple[int, ...]

    async def until_lost(self, timeout: float = 2.0) -> None:
        """Wait for ``connection_lost``, and a little for what must not come after it."""
        await until(lambda: self.protocol.lost, self._told("connection_lost came"), timeout)
        await turns(3)

    async def until_seen(self, name: str, times: int = 1, timeout: float = 2.0) -> None:
        """Wait until the protocol has recorded ``name`` so many times."""
        what = self._told(f"{times} * {name!r} was told")
        await until(lambda: self.protocol.count(name) >= times, what, timeout)

    async def until_received(self, n: int, timeout: float = 4.0) -> bytes:
        """Wait until the protocol has ``n`` bytes of data, and return them."""
        received = 0
        seen = 0

        def enough() -> bool:
            nonlocal received, seen
            events = self.protocol.events
            received += sum(len(data) for name, data in events[seen:] if name == "data")
            seen = len(events)
            return received >= n

        await until(enough, self._told(f"{n} bytes arrived"), timeout)
        data: bytes = self.protocol.received
        return data

    def _told(self, what: str) -> Callable[[], str]:
        return lambda: f"{what}; events: {self.protocol.summary()}"

    async def fill(self) -> int:
        """Write the pattern, unread, until the kernel is full and a backlog is queued; return its length.

        The kernel's own buffers differ a thousandfold between kinds, so the length cannot be a constant.
        """
        written = 0
        size = -1
        while size != self.transport.get_write_buffer_size() or size < CHUNK:
            if self.transport.is_closing():
                return written
            expect(
                written < 64 * 1024 * 1024, "64 MiB were written to a peer that reads nothing: no backlog", 26
            )
            size = self.transport.get_write_buffer_size()
            if size < CHUNK:
                self.transport.write(pattern(CHUNK, written))
                written += CHUNK
            await turns(5)
        return written


class Trial:
    """What a check works with. ``features`` are those of the kind, ``reports`` what the loop was told."""

    def __init__(self, make: Maker, features: Features, *, timeout: float = 5.0) -> None:
        self.make = make
        self.features = features
        self.timeout = timeout
        self._limit = asyncio.timeout(timeout)
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.reports: list[dict[str, Any]] = []
        self.cause: BaseException | None = None
        self._pairs: list[Pair] = []
        self._ends: list[FarEnd] = []

    async def open(self, protocol: Any = None, *, early: bytes = b"") -> Pair:
        """A new pair. ``early`` bytes wait in the kernel before the transport exists, if that can be done."""
        if protocol is None:
            protocol = self.recorder()
        known = len(self._ends)

        def factory() -> Any:
            if early and len(self._ends) > known:
                self._ends[-1].send_now(early)
            return protocol

        before = open_descriptors()
        transport, far = await self.make(factory)
        theirs = newcomers(before).keys() - set(far.filenos())
        pair = Pair(transport, protocol, far, tuple(sorted(theirs)))
        self._pairs.append(pair)
        return pair

    def recorder(self, **hooks: Callable[..., Any]) -> Any:
        """A recording protocol of the kind that the transport calls."""
        return RecordingDatagramProtocol(**hooks) if self.features.records else RecordingProtocol(**hooks)

    def forget(self) -> None:
        """Keep no reference to the pairs; their far ends are still closed at the end."""
        self._pairs.clear()

    def close_ends(self) -> None:
        """Close every far end that was made so far."""
        for far in self._ends:
            far.close()

    def take_reports(self) -> list[dict[str, Any]]:
        """What the exception handler was told so far; the check answers for it."""
        reports, self.reports = self.reports, []
        return reports

    async def run(self, promise: Promise) -> list[Breach]:
        """Run the check of ``promise``, clear up, and return everything that was broken meanwhile."""
        breaches: list[Breach] = []

        def broken(seen: str, number: int | None = None) -> None:
            breaches.append(Breach(number or promise.number, promise.name, seen))

        before = open_descriptors()
        handler = self.loop.get_exception_handler()
        # Warnings about writes after the loss are provoked on purpose; without any handler they would
        # go to stderr.
        quiet = logging.NullHandler()
        logging.getLogger().addHandler(quiet)
        unraisable = sys.unraisablehook
        self.loop.set_exception_handler(lambda _loop, context: self.reports.append(context))
        sys.unraisablehook = lambda args: broken(f"{args.exc_value!r} was raised in {args.object!r}", 11)
        try:
            with collect_ends() as self._ends:
                await self._check(promise, broken)
                await self._clear_up(broken)
            for report in self.take_reports():
                broken(f"the loop was told: {_report(report)}", 12)
            left = await self.left_open(before)
            if left and not breaches:
                broken(f"descriptors were left open: {left}", 3)
        finally:
            logging.getLogger().removeHandler(quiet)
            sys.unraisablehook = unraisable
            self.loop.set_exception_handler(handler)
        return _collapsed(breaches)

    def restart_clock(self) -> None:
        """To be called after what held the loop, and had a time limit of its own."""
        self._limit.reschedule(self.loop.time() + self.timeout)

    async def _check(self, promise: Promise, broken: Callable[..., None]) -> None:
        limit = self._limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                # A task of its own, for a context of its own.
                await asyncio.ensure_future(promise.check(self))
        except Broken as exc:
            broken(exc.seen, exc.number)
        except Exception as exc:
            self.cause = exc
            if limit.expired():
                broken(f"it hung for {self.timeout:g} s; {self._state()}")
            else:
                where = traceback.extract_tb(exc.__traceback__)[-1]
                broken(f"{exc!r} was raised in {where.name}, line {where.lineno} of {where.filename}")

    def _state(self) -> str:
        return "; ".join(f"{describe(p.transport)} told {p.protocol!r}" for p in self._pairs)

    async def _clear_up(self, broken: Callable[..., None]) -> None:
        """End every pair, which is a check of its own: nothing may survive an abort."""
        for pair in self._pairs:
            try:
                pair.transport.abort()
            except Exception as exc:
                broken(f"abort() raised {exc!r}", 5)
        for pair in self._pairs:
            if isinstance(pair.protocol, Recorder):
                try:
                    await until(lambda p=pair.protocol: p.lost, "connection_lost came", 1.0)  # type: ignore[misc]
                except Broken:
                    broken(f"connection_lost never came after abort(); events: {pair.protocol.summary()}", 3)
        await turns(3)
        for pair in self._pairs:
            if isinstance(pair.protocol, Recorder):
                for number, seen in dict.fromkeys(pair.protocol.breaches):
                    broken(seen, number)
        for far in self._ends + [pair.far for pair in self._pairs]:
            far.close()
        await turns(3)
        self._pairs.clear()
        self._ends = []

    async def left_open(self, before: dict[int, str]) -> dict[int, str]:
        """What is open and was not before. A descriptor that is closed off the loop has a moment for it."""

        def left() -> dict[int, str]:
            # libuv keeps one descriptor of /dev/null in reserve.
            spare = not isinstance(self.loop, asyncio.SelectorEventLoop)
            return {fd: what for fd, what in newcomers(before).items() if not (spare and what == "/dev/null")}

        try:
            await until(lambda: not left(), "every descriptor was closed", 0.5)
        except Broken:
            return left()
        return {}


def _collapsed(breaches: list[Breach]) -> list[Breach]:
    """Each breach once; a callback that fails on every event fails a thousand times."""
    times = Counter(breaches)
    return [b if n == 1 else Breach(b.number, b.name, f"{b.seen} ({n} times)") for b, n in times.items()]


def _report(context: dict[str, Any]) -> str:
    exc = context.get("exception")
    return f"{context.get('message')!r} with {exc!r}" if exc is not None else repr(context.get("message"))
