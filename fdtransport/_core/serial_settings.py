"""The settings of a serial line as data. Nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

__all__ = ["Parity", "SerialSettings", "SettingsChanges"]

Parity = Literal["N", "E", "O", "M", "S"]

#: What an unsigned int of the kernel holds; which rates there are is for the driver to say.
_MOST_BAUD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialSettings:
    """How the two ends of a serial line understand each other.

    :raises ValueError: a value that no serial port has; the message says which there are.
    """

    baudrate: int = 9600
    """Bits per second, any whole number; the driver may round it (see ``SerialTransport.settings``)."""
    bytesize: Literal[5, 6, 7, 8] = 8
    """Data bits per character."""
    parity: Parity = "N"
    """None, even, odd, mark (always 1) or space (always 0)."""
    stopbits: float = 1
    """1 or 2; 1.5 with characters of 5 bits."""
    xonxoff: bool = False
    """Flow control by the characters XON and XOFF, which then are no data."""
    rtscts: bool = False
    """Flow control by the lines RTS and CTS, which the driver then serves."""

    def __post_init__(self) -> None:
        baud = self.baudrate
        if not isinstance(baud, int) or isinstance(baud, bool) or not 1 <= baud <= _MOST_BAUD:
            raise ValueError(f"baudrate is a whole number from 1 to {_MOST_BAUD}, not {baud!r}")
        _check("bytesize", self.bytesize, 5, 6, 7, 8)
        _check("parity", self.parity, "N", "E", "O", "M", "S")
        _check("stopbits", self.stopbits, 1, 1.5, 2)
        _check("xonxoff", self.xonxoff, False, True)
        _check("rtscts", self.rtscts, False, True)

    @property
    def bits(self) -> float:
        """Bits on the line for one character: start bit, data, parity, stop bits."""
        return 1 + self.bytesize + (self.parity != "N") + self.stopbits

    @property
    def character_time(self) -> float:
        """Seconds that one character takes on the line."""
        return self.bits / self.baudrate


class SettingsChanges(TypedDict, total=False):
    """Some of the settings: what is to be other than it is."""

    baudrate: int
    bytesize: Literal[5, 6, 7, 8]
    parity: Parity
    stopbits: float
    xonxoff: bool
    rtscts: bool


def _check(name: str, value: object, *allowed: object) -> None:
    if value not in allowed or isinstance(value, bool) is not isinstance(allowed[0], bool):
        *most, last = map(repr, allowed)
        raise ValueError(f"{name} of a serial port is {', '.join(most)} or {last}, not {value!r}")
