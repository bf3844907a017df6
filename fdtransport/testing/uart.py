"""One end of a virtual serial line: a terminal for the bytes, and by emulation what a terminal has not.

The library makes each of its calls through one module. What it asks of this port there (attributes, modem
lines, counts, what is unsent) is answered here; the bytes go through the kernel. Other programs, and
pyserial, see a plain terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .._core import serial_line, syscalls
from .._core.serial_line import Attributes

try:
    import termios
    import tty
except ImportError:  # Windows
    termios = tty = None  # type: ignore[assignment]

__all__ = ["Uart", "emulated", "emulation"]

_TCGETS2, _TCSETS2, _TERMIOS2 = 0x802C542A, 0x402C542B, struct.Struct("=IIIIB19sII")
_TIOCMGET, _TIOCMBIS, _TIOCMBIC, _TIOCGICOUNT = 0x5415, 0x5416, 0x5417, 0x545D
_TIOCOUTQ, _TIOCSBRK, _TIOCCBRK, _TIOCSERGETLSR = 0x5411, 0x5427, 0x5428, 0x5459
_TIOCGSERIAL, _TIOCSSERIAL, _TIOCGRS485, _TIOCSRS485 = 0x541E, 0x541F, 0x542E, 0x542F
_COUNTS = ("cts", "dsr", "ri", "cd", "rx", "tx", "frame", "overrun", "parity", "brk", "buf_overrun")
#: What each line that is set here is at the other end of a null modem cable.
_CROSSED = {serial_line.RTS: ("cts",), serial_line.DTR: ("dsr", "cd")}
_BITS = {"cts": serial_line.CTS, "dsr": serial_line.DSR, "ri": serial_line.RI, "cd": serial_line.CD}
#: Bytes on their way, beyond which the port is not read any more.
HELD = 4096
#: The shortest time that bytes are held for, in seconds: what timers are good for.
TICK = 0.001

_uarts: dict[int, Uart] = {}
_originals: dict[str, Callable[..., Any]] = {}
_lock = threading.RLock()
_emulations = 0


class Uart:
    """See the module's first lines. *speed*: whether bytes take the time that they would take on a wire."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, speed: bool, rs485: bool) -> None:
        self.peer: Uart
        self._loop = loop
        self._speed = speed
        self._timer: asyncio.TimerHandle | None = None
        self._held = bytearray()
        self._since = 0.0
        self._written = self._taken = 0
        self._reading = False
        self._rs485 = [0] * 8 if rs485 else None
        self._serial = [0] * 18
        self._break = False
        self.lines: int = 0
        self.counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self.master: int
        self.master, self._slave = os.openpty()  # the second one, so that it is there while nobody has it
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.path: str = os.ttyname(self._slave)
        self._device = os.fstat(self._slave).st_rdev
        self.attributes: Attributes = serial_line.attributes_of(self._slave)
        with _lock:
            _uarts[self._device] = self

    def start(self) -> None:
        self._resume()

    def close(self) -> None:
        """The device is gone."""
        with _lock:
            if _uarts.get(self._device) is self:
                del _uarts[self._device]
        if self._timer is not None:
            self._timer.cancel()
        self._pause()
        for fd in (self.master, self._slave):
            if fd >= 0:
                os.close(fd)
        self.master = self._slave = -1

    # -- bytes ------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self.master)

    def _resume(self) -> None:
        if not self._reading and self.master >= 0:
            self._reading = True
            self._loop.add_reader(self.master, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self.master, HELD)
        except OSError:
            return
        self._held += data
        self._taken += len(data)
        self._written = max(self._written, self._taken)  # another program's are not counted
        if len(self._held) >= HELD:
            self._pause()
        self._send()

    @property
    def _character_time(self) -> float:
        return serial_line.settings_in(self.attributes).character_time if self._speed else 0.0

    def _may_send(self) -> bool:
        return not self.attributes.cflag & termios.CRTSCTS or bool(self.lines & serial_line.CTS)

    def _send(self) -> None:
        """Let what may leave now leave."""
        if self._timer is None and self._held and self.master >= 0 and self._may_send():
            if self._character_time:
                self._since = self._loop.time()
                self._timer = self._loop.call_later(max(self._character_time, TICK), self._arrive)
            else:
                self._arrive()

    def _arrive(self) -> None:
        """So many bytes as had the time for it."""
        self._timer = None
        time = self._character_time
        number = int((self._loop.time() - self._since) / time) if time else len(self._held)
        taken = self.peer.receive(bytes(self._held[:number]))
        del self._held[:taken]
        self.counts["tx"] += taken
        if len(self._held) < HELD:
            self._resume()
        if taken < number and self._held:  # there is no room at the other end
            self._since = self._loop.time()
            self._timer = self._loop.call_later(TICK, self._arrive)
        elif self._held and self._may_send():
            self._since += number * time
            self._timer = self._loop.call_later(max(time, TICK), self._arrive)

    def receive(self, data: bytes) -> int:
        """Bytes that come over the line; how many there was room for."""
        if self.master < 0:
            return len(data)  # nobody is there
        step = 256
        taken = 0
        for i in range(0, len(data), step):
            piece = data[i : i + step]
            marked = piece.replace(b"\xff", b"\xff\xff") if self._marks else piece
            if not self._push(marked):
                break
            taken += len(piece)
        self.counts["rx"] += taken
        return taken

    def _push(self, marked: bytes) -> bool:
        try:
            count = os.write(self.master, marked)
        except BlockingIOError:
            return False
        if count < len(marked):  # the rest of a piece is lost, as with an overrun
            self.counts["buf_overrun"] += 1
        return True

    @property
    def _marks(self) -> bool:
        return bool(self.attributes.iflag & termios.PARMRK)

    def damage(self, byte: int, kind: str = "parity") -> None:
        """Have *byte* come with the wrong parity, or (``"frame"``) without a stop bit."""
        self.counts[kind] += 1
        self.counts["rx"] += 1
        self._push(bytes([0xFF, 0, byte]) if self._marks else bytes([byte]))

    def receive_break(self) -> None:
        self.counts["brk"] += 1
        self._push(b"\xff\0\0" if self._marks else b"\0")

    # -- lines ------------------------------------------------------------------------------------------

    def set_input(self, name: str, on: bool) -> None:
        """Set CTS, DSR, RI or CD, as the other end would."""
        bit = _BITS[name]
        if bool(self.lines & bit) != on:
            self.lines ^= bit
            if name != "ri" or not on:
                self.counts[name] += 1
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._send)

    def _set_outputs(self, bits: int, on: bool) -> None:
        self.lines = self.lines | bits if on else self.lines & ~bits
        for line, names in _CROSSED.items():
            if bits & line:
                for name in names:
                    self.peer.set_input(name, on)

    # -- what the library asks -----------------------------------------------------------------------------

    def unsent(self) -> int:
        return max(self._written - self._taken, 0) + len(self._held)

    def wrote(self, number: int) -> None:
        """The port's program has written so many bytes; the terminal hands them over when it likes."""
        self._written += number

    def ioctl(self, request: int, argument: Any) -> Any:
        """The answer; NotImplemented for what the kernel is to answer."""
        if request == _TCGETS2:
            _fill(argument, _TERMIOS2.pack(*self.attributes))
        elif request == _TCSETS2:
            self.attributes = Attributes(*_TERMIOS2.unpack(bytes(argument)))
        elif request == _TIOCMGET:
            _fill(argument, struct.pack("i", self.lines))
        elif request in (_TIOCMBIS, _TIOCMBIC):
            self._set_outputs(struct.unpack("i", bytes(argument)[:4])[0], request == _TIOCMBIS)
        elif request == _TIOCGICOUNT:
            _fill(argument, struct.pack("11i", *self.counts.values()))
        elif request == _TIOCOUTQ:
            _fill(argument, struct.pack("i", self.unsent()))
        elif request == _TIOCSERGETLSR:
            _fill(argument, struct.pack("i", 0 if self.unsent() else 1))
        elif request == _TIOCSBRK:
            if not self._break:
                self._loop.call_soon_threadsafe(self.peer.receive_break)
            self._break = True
        elif request == _TIOCCBRK:
            self._break = False
        elif request == _TIOCGSERIAL:
            _fill(argument, struct.pack("18i", *self._serial))
        elif request == _TIOCSSERIAL:
            self._serial = list(struct.unpack("18i", bytes(argument)[:72]))
        elif request in (_TIOCGRS485, _TIOCSRS485):
            if self._rs485 is None:
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
            if request == _TIOCGRS485:
                _fill(argument, struct.pack("8I", *self._rs485))
            else:
                self._rs485 = list(struct.unpack("8I", bytes(argument)))
        else:
            return NotImplemented
        return 0

    def opened(self) -> None:
        """As the kernel does: it raises both lines."""
        self._set_outputs(serial_line.DTR | serial_line.RTS, True)

    def closed(self) -> None:
        """Nobody but this has it any more, perhaps; the kernel lowers both lines then, if it is to."""
        if self.master >= 0 and self.attributes.cflag & termios.HUPCL and not self._in_use():
            self._set_outputs(serial_line.DTR | serial_line.RTS, False)

    def _in_use(self) -> bool:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
        return any(fd != self._slave and emulated(fd) is self for fd in numbers)

    def drop_output(self) -> None:
        self._held.clear()
        self._written = self._taken


def _fill(argument: Any, data: bytes) -> None:
    view = memoryview(argument).cast("B")
    size = min(len(view), len(data))
    view[:size] = data[:size]


def emulated(fd: int) -> Uart | None:
    """The one that *fd* is an open port of."""
    try:
        return _uarts.get(os.fstat(fd).st_rdev)
    except OSError:
        return None


def _real(name: str) -> Callable[..., Any]:
    return _originals.get(name) or getattr(syscalls, name)


def _ioctl(fd: int, request: int, argument: Any = 0, *more: Any) -> Any:
    uart = emulated(fd)
    if uart is not None:
        answer = uart.ioctl(request, argument)
        if answer is not NotImplemented:
            return answer
    return _real("ioctl")(fd, request, argument, *more)


def _tcflush(fd: int, queue: int) -> None:
    uart = emulated(fd)
    _real("tcflush")(fd, queue)
    if uart is not None and queue != termios.TCIFLUSH:
        uart.drop_output()


def _open(path: Any, *args: Any, **kwargs: Any) -> int:
    fd: int = _real("open")(path, *args, **kwargs)
    uart = emulated(fd)
    if uart is not None:
        uart.opened()
    return fd


def _close(fd: int) -> None:
    uart = emulated(fd)
    _real("close")(fd)
    if uart is not None:
        uart.closed()


def _writing(name: str) -> Callable[..., int]:
    def write(fd: int, data: Any) -> int:
        count: int = _real(name)(fd, data)
        uart = emulated(fd)
        if uart is not None:
            uart.wrote(count)
        return count

    return write


_FUNCTIONS = {
    "ioctl": _ioctl, "tcflush": _tcflush, "open": _open, "close": _close, "write": _writing("write"),
    "writev": _writing("writev"),
}  # fmt: skip


@contextlib.contextmanager
def emulation() -> Iterator[None]:
    """Have the library's calls come here while the block runs. What else is put in front of them has to be
    taken away inside of it: the calls are put back as they were before."""
    global _emulations
    with _lock:
        _emulations += 1
        for name, function in _FUNCTIONS.items():
            if name not in _originals:
                _originals[name] = getattr(syscalls, name)
                setattr(syscalls, name, function)
    try:
        yield
    finally:
        with _lock:
            _emulations -= 1
            if not _emulations:
                for name, function in _originals.items():
                    setattr(syscalls, name, function)
                _originals.clear()
