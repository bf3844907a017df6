"""What was switched on in the user's terminal by what is shown there, and is to be switched off.

A program that draws (vim, less, top, tmux) asks the terminal for a second screen, for reports of the mouse,
for other codes of some keys, and takes that back before it ends. When its user leaves in the middle, or the
connection to it breaks, nobody would: the shell would be on the wrong screen, without a cursor, and typed at
by the mouse. The sequences are those of xterm ("DEC Private Mode Set" of its ctlseqs), which others have as
well; a terminal that was not asked for one is not sent one either.
"""

from __future__ import annotations

import contextlib
import errno
import re
from typing import Any

from . import syscalls

__all__ = ["Screen"]

#: What a terminal begins with: the cursor is shown, and lines wrap. Other modes that can be undone are off.
_BEGINS_ON = (b"25", b"7")
_KNOWN = (
    b"1", b"5", b"6", b"9", b"47", b"66", b"1000", b"1001", b"1002", b"1003", b"1004", b"1005", b"1006",
    b"1007", b"1015", b"1016", b"1047", b"1049", b"2004", b"2026", *_BEGINS_ON,
)  # fmt: skip
#: Private modes, codes for more keys (xterm's and kitty's), and the keypad; or all as at the beginning.
_SEQUENCE = re.compile(rb"\x1b(?:\[\?([0-9;]{1,60})([hl])|\[([<>])([0-9;]{0,20})([mu])|([=>c]))")
_KEYPAD, _MORE_KEYS, _STACKED_KEYS = b"=", b">4m", b">u"
#: One that has begun and may go on.
_BEGUN = re.compile(rb"\x1b(?:\[(?:[?<>][0-9;]{0,60})?)?\Z")
_LONGEST = 64


class Screen:
    """The functions that move the bytes (*below*), with an eye on what is written to *fd*."""

    __slots__ = ("_begun", "_below", "_changed", "_fd", "_undone")

    def __init__(self, below: Any, fd: int) -> None:
        self._below = below
        self._fd = fd
        self._begun = b""
        #: What is otherwise than at the beginning, the first change first: what made it so, what undoes it.
        self._changed: dict[bytes, tuple[bytes, bytes]] = {}
        self._undone = False

    def see(self, data: bytes) -> None:
        """*data* was shown."""
        if not self._begun and b"\x1b" not in data:
            return
        data = self._begun + data
        for modes, letter, sign, numbers, keys, other in _SEQUENCE.findall(data):
            if other == b"c":
                self._changed.clear()
            elif other:
                self._note(_KEYPAD, other == b"=", b"\x1b=", b"\x1b>")
            elif keys == b"u":
                self._note(_STACKED_KEYS, sign == b">", b"\x1b[>%bu" % numbers, b"\x1b[<u")
            elif sign == b">" and numbers.startswith(b"4"):
                more = numbers not in (b"4", b"4;", b"4;0")
                self._note(_MORE_KEYS, more, b"\x1b[>%bm" % numbers, b"\x1b[>4m")
            for mode in modes.split(b";"):
                if mode in _KNOWN:
                    on, off = (b"\x1b[?%b%b" % (mode, end) for end in (b"h", b"l"))
                    undo = (off, on) if mode in _BEGINS_ON else (on, off)
                    self._note(mode, (letter == b"h") is not (mode in _BEGINS_ON), *undo)
        begun = _BEGUN.search(data, max(0, len(data) - _LONGEST))
        self._begun = begun[0] if begun else b""

    def _note(self, what: bytes, changed: bool, do: bytes, undo: bytes) -> None:
        if changed:
            self._changed[what] = do, undo
        else:
            self._changed.pop(what, None)

    def undo(self) -> None:
        """Have the terminal as at the beginning, if it takes that now."""
        if self._changed and not self._undone:
            self._undone = True
            # And without colours, which nobody knows any more.
            self._show([*(undo for _, undo in reversed(self._changed.values())), b"\x1b[m"])

    def redo(self) -> None:
        """Have it again as it was before ``undo()``."""
        if self._undone:
            self._undone = False
            self._show([do for do, _ in self._changed.values()])

    def _show(self, sequences: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            syscalls.write(self._fd, b"".join(sequences))

    # -- what the transport calls --------------------------------------------------------------

    def write(self, fd: int, data: Any) -> int:
        count: int = self._below.write(fd, data)
        if fd == self._fd:
            self.see(bytes(memoryview(data)[:count]))
        return count

    def writev(self, fd: int, buffers: list[Any]) -> int:
        count: int = self._below.writev(fd, buffers)
        if fd == self._fd:
            self.see(b"".join(buffers)[:count])
        return count

    def splice(self, source: int, sink: int, *args: Any) -> int:
        if sink == self._fd:
            raise OSError(errno.EINVAL, "what is spliced cannot be looked at")
        moved: int = self._below.splice(source, sink, *args)
        return moved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)
