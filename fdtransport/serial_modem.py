"""The modem lines of a serial port, and their changes.

The kernel has a call that waits for a change (TIOCMIWAIT of tty_ioctl(4)), and it is not used: a thread in it
keeps the port open, for everybody, until a signal ends it. The driver counts every edge (TIOCGICOUNT), also
while nobody looks: so the counts are looked at while somebody waits for a change, and none is lost.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from ._core import serial_line
from ._core.serial_error import serial_error
from ._core.serial_line import Counters

__all__ = ["ModemChange", "ModemChanges", "ModemLines"]

#: Calls a function with the descriptor, off the loop: the device may be at the end of a USB.
Ask = Callable[[Callable[[int], int]], Awaitable[int]]

#: Seconds between two looks.
LOOK = 0.01
_NAMES = ("cts", "dsr", "ri", "cd")
_BITS = {"cts": serial_line.CTS, "dsr": serial_line.DSR, "ri": serial_line.RI, "cd": serial_line.CD}


class ModemLines(NamedTuple):
    """The lines beside the data: those that this side sets, and those that the other one does."""

    dtr: bool
    """Data terminal ready; set here."""
    rts: bool
    """Request to send; set here."""
    cts: bool
    """Clear to send."""
    dsr: bool
    """Data set ready."""
    ri: bool
    """Ring indicator."""
    cd: bool
    """Carrier detect."""

    @classmethod
    def of(cls, bits: int) -> ModemLines:
        line = serial_line
        return cls(*(bool(bits & b) for b in (line.DTR, line.RTS, line.CTS, line.DSR, line.RI, line.CD)))


class ModemChange(NamedTuple):
    """What has happened to the lines since the last change that was told."""

    lines: ModemLines
    """How they are now."""
    edges: Mapping[str, int]
    """How often each of ``"cts"``, ``"dsr"``, ``"ri"`` and ``"cd"`` has changed; those that have. Of RI, how
    often it has ended, where the driver counts."""


class ModemChanges:
    """An async iterator over the changes of the lines; it ends with the transport. Made by
    ``SerialTransport.modem_changes()``; what happens from then on is told.

    :raises SerialError: from the iteration, the port has no modem lines.
    """

    def __init__(self, fileno: Callable[[], int], ask: Ask, name: str, *lines: str) -> None:
        for line in lines:
            if line not in _NAMES:
                raise ValueError(f"a line that can change is {', '.join(_NAMES)}, not {line!r}")
        self._fileno = fileno
        self._ask = ask
        self._name = name
        self._wanted = lines or _NAMES
        self._bits: int | None = None
        self._counts = self._count()

    def _count(self) -> Counters | None:
        """What the driver has counted, which it keeps here; None if it does not count."""
        try:
            return serial_line.counters_of(self._fileno())
        except OSError as exc:
            if exc.errno in serial_line.NO_SUCH:
                return None
            raise

    def __aiter__(self) -> ModemChanges:
        return self

    async def __anext__(self) -> ModemChange:
        while self._fileno() >= 0:
            try:
                change = await (self._differences() if self._counts is None else self._edges())
                if change is not None:
                    return change
            except OSError as exc:
                if exc.errno in (errno.EIO, errno.ENODEV, errno.ENXIO, errno.EBADF):
                    break  # unplugged: the transport tells
                if exc.errno in serial_line.NO_SUCH:
                    text = f"{self._name} has no modem lines; a pair of terminals has none"
                    raise serial_error(exc.errno, text) from exc
                raise
            await asyncio.sleep(LOOK)
        raise StopAsyncIteration

    async def _edges(self) -> ModemChange | None:
        before, now = self._counts, self._count()
        if now is None or before is None:
            return None
        edges = {name: (getattr(now, name) - getattr(before, name)) & 0x7FFFFFFF for name in self._wanted}
        edges = {name: number for name, number in edges.items() if number}
        if not edges:
            return None
        bits = await self._ask(serial_line.modem_lines)
        if self._counts is not before:
            return None  # somebody else who waits has told it
        self._counts = now  # and not before: who is cancelled meanwhile has told nothing
        return ModemChange(ModemLines.of(bits), edges)

    async def _differences(self) -> ModemChange | None:
        bits = await self._ask(serial_line.modem_lines)
        before, self._bits = self._bits, bits
        changed = 0 if before is None else before ^ bits
        edges = {name: 1 for name in self._wanted if changed & _BITS[name]}
        return ModemChange(ModemLines.of(bits), edges) if edges else None
