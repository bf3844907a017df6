"""The modem lines of a serial port, and their changes.

The kernel has a call that waits for a change (TIOCMIWAIT of tty_ioctl(4)), and it is not used: a thread in it
keeps the port open, for everybody, until a signal ends it. The driver counts every edge (TIOCGICOUNT), also
while nobody looks: so the counts are looked at while somebody waits for a change, and none is lost.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ._core import serial_line
from ._core.serial_error import serial_error

__all__ = ["ModemChange", "ModemChanges", "ModemLines"]

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

    :raises SerialError: the port has no modem lines.
    """

    def __init__(self, fileno: Callable[[], int], name: str, *lines: str) -> None:
        for line in lines:
            if line not in _NAMES:
                raise ValueError(f"a line that can change is {', '.join(_NAMES)}, not {line!r}")
        self._fileno = fileno
        self._wanted = lines or _NAMES
        fd = fileno()
        try:
            self._bits = serial_line.modem_lines(fd)
        except OSError as exc:
            if exc.errno in serial_line.NO_SUCH:
                text = f"{name} has no modem lines; a pair of terminals has none"
                raise serial_error(exc.errno, text) from exc
            raise serial_error(exc.errno, f"{name}: {exc.strerror}") from exc
        try:
            self._counts: serial_line.Counters | None = serial_line.counters_of(fd)
        except OSError as exc:
            if exc.errno not in serial_line.NO_SUCH:
                raise serial_error(exc.errno, f"{name}: {exc.strerror}") from exc
            self._counts = None  # only what is so at the moment of a look is seen

    def __aiter__(self) -> ModemChanges:
        return self

    async def __anext__(self) -> ModemChange:
        while True:
            change = self._look()
            if change is not None:
                return change
            await asyncio.sleep(LOOK)

    def _look(self) -> ModemChange | None:
        fd = self._fileno()
        if fd < 0:
            raise StopAsyncIteration
        try:
            counts = None if self._counts is None else serial_line.counters_of(fd)
            if counts is not None and counts[:4] == self._counts[:4]:  # type: ignore[index]
                return None  # and no question to the device, which may be at the end of a USB
            bits = serial_line.modem_lines(fd)
        except OSError as exc:
            if exc.errno in (errno.EIO, errno.ENODEV, errno.ENXIO, errno.EBADF):
                raise StopAsyncIteration from None  # unplugged: the transport tells
            raise
        if counts is not None and self._counts is not None:
            edges = {name: getattr(counts, name) - getattr(self._counts, name) for name in self._wanted}
        else:
            edges = {name: int(bool((bits ^ self._bits) & _BITS[name])) for name in self._wanted}
        self._bits, self._counts = bits, counts
        edges = {name: number & 0x7FFFFFFF for name, number in edges.items() if number}
        return ModemChange(ModemLines.of(bits), edges) if edges else None
