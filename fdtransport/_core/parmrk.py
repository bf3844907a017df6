"""Bytes in which the kernel has marked what came damaged (PARMRK of termios(3)), taken apart.

No descriptor, no loop. The marks are ``FF 00 X`` for a character X with the wrong parity or without a stop
bit, ``FF 00 00`` for a break, and ``FF FF`` for a character FF that is as it should be.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Decoder", "LineError"]

_MARK = b"\xff"
_DAMAGED = b"\xff\x00"


class LineError(NamedTuple):
    """Something that came over the line and was no proper character."""

    kind: Literal["break", "damaged"]
    """A break; or a character with the wrong parity or without a stop bit (the counts tell which)."""
    offset: int
    """How many bytes came before it, since the port was opened: its place in what was received."""
    byte: int | None
    """The damaged character as it came, which is received at its place; None for a break."""


class Decoder:
    """Takes pieces of marked bytes as they come, however they are cut."""

    __slots__ = ("_cut", "offset")

    def __init__(self) -> None:
        self._cut = b""
        self.offset = 0
        """Bytes that were given out."""

    def decode(self, marked: bytes) -> tuple[bytes, list[LineError]]:
        """The bytes that came, and what was wrong with them, in order.

        A piece that ends inside of a mark keeps that for the next one. What is no mark is taken as it is.
        """
        if self._cut:
            marked = self._cut + marked
            self._cut = b""
        if _MARK not in marked:
            self.offset += len(marked)
            return marked, []
        plain = bytearray()
        errors: list[LineError] = []
        place = 0
        while (mark := marked.find(_MARK, place)) >= 0:
            plain += marked[place:mark]
            found = marked[mark : mark + 3]
            if found in (_MARK, _DAMAGED):
                self._cut = found
                place = len(marked)
                break
            if found.startswith(_DAMAGED):
                byte = found[2]
                kind: Literal["break", "damaged"] = "damaged" if byte else "break"
                errors.append(LineError(kind, self.offset + len(plain), byte or None))
                plain += found[2:] if byte else b""
                place = mark + 3
            else:
                plain += _MARK
                place = mark + (2 if found.startswith(_MARK * 2) else 1)  # the kernel gives nothing else
        plain += marked[place:]
        self.offset += len(plain)
        return bytes(plain), errors
