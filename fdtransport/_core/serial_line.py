"""A serial line in the kernel's terms: attributes with any speed, modem lines, what waits to be sent.

Attributes go by TCGETS2 and TCSETS2 (ioctl_tty(2)), which have the speed as a number; where the platform has
other calls, by termios(3), with the speeds that it has names for.
"""

from __future__ import annotations

import array
import errno
import functools
import struct
import sys
from typing import Any, NamedTuple

from . import syscalls
from .serial_settings import SerialSettings

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

__all__ = [
    "Attributes",
    "Counters",
    "attributes_of",
    "configured",
    "counters_of",
    "discard_input",
    "discard_output",
    "exclude_others",
    "hanging_up",
    "has_low_latency",
    "modem_lines",
    "refused",
    "set_attributes",
    "set_break",
    "set_low_latency",
    "set_modem_lines",
    "settings_in",
    "shifting_out",
    "unsent",
]  # fmt: skip

#: Of ioctl_tty(2), as all but alpha, mips, parisc, powerpc and sparc have them.
_TCGETS2, _TCSETS2 = 0x802C542A, 0x402C542B
_TERMIOS2 = struct.Struct("=IIIIB19sII")
_BOTHER, _CBAUD = 0o010000, 0o010017
_IBSHIFT = 16
#: Parity that is always the same, which POSIX has not.
_CMSPAR = 0o10000000000 if sys.platform == "linux" else 0
_TIOCGICOUNT, _TIOCSBRK, _TIOCCBRK = 0x545D, 0x5427, 0x5428
_TIOCSERGETLSR, _TEMT = 0x5459, 1
DTR, RTS, CTS, CD, RI, DSR = 0x002, 0x004, 0x020, 0x040, 0x080, 0x100


class Attributes(NamedTuple):
    """What termios(3) has, with the speeds as numbers."""

    iflag: int
    oflag: int
    cflag: int
    lflag: int
    line: int
    cc: bytes
    ispeed: int
    ospeed: int


def attributes_of(fd: int) -> Attributes:
    if _has_termios2():
        answer = bytearray(_TERMIOS2.size)
        try:
            syscalls.ioctl(fd, _TCGETS2, answer)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # unknown to a kernel (under a translator, say) that has the other
                raise
        else:
            found = Attributes(*_TERMIOS2.unpack(answer))
            return found._replace(ispeed=found.ispeed or found.ospeed)  # 0: as the other direction
    return _by_name(_tcgetattr(fd))


def set_attributes(fd: int, wanted: Attributes) -> None:
    """Take *wanted* over at once: nothing is flushed, nothing is waited for."""
    if _has_termios2():
        try:
            syscalls.ioctl(fd, _TCSETS2, _TERMIOS2.pack(*wanted))
            return
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
    _tcsetattr(fd, _with_names(wanted, _tcgetattr(fd)))


def _has_termios2() -> bool:
    return sys.platform == "linux"


def _tcgetattr(fd: int) -> list[Any]:
    try:
        return syscalls.tcgetattr(fd)
    except termios.error as exc:
        raise OSError(*exc.args) from None


def _tcsetattr(fd: int, modes: list[Any]) -> None:
    try:
        syscalls.tcsetattr(fd, termios.TCSANOW, modes)
    except termios.error as exc:
        raise OSError(*exc.args) from None


@functools.cache
def _names() -> dict[int, int]:
    """Speed -> the number that termios has for it."""
    names = [name for name in dir(termios) if name[0] == "B" and name[1:].isdigit()]
    return {int(name[1:]): getattr(termios, name) for name in names}


def _by_name(modes: list[Any]) -> Attributes:
    speeds = {number: speed for speed, number in _names().items()}
    cc = b"".join(c if isinstance(c, bytes) else bytes([c]) for c in modes[6])
    iflag, oflag, cflag, lflag, ispeed, ospeed = modes[:6]
    speed = speeds.get(ospeed, ospeed)
    return Attributes(iflag, oflag, cflag, lflag, 0, cc, speeds.get(ispeed, ispeed), speed)


def _with_names(wanted: Attributes, modes: list[Any]) -> list[Any]:
    names = _names()
    if wanted.ospeed not in names:
        raise OSError(errno.EINVAL, f"{wanted.ospeed} baud is none of the rates that this platform has")
    speed = names[wanted.ospeed]
    cc = [wanted.cc[i : i + 1] or found for i, found in enumerate(modes[6])]  # of which TCGETS2 has fewer
    return [wanted.iflag, wanted.oflag, wanted.cflag, wanted.lflag, speed, speed, cc]


def configured(before: Attributes, settings: SerialSettings, *, mark_errors: bool = False) -> Attributes:
    """*before* with *settings*, and every byte as it is (cfmakeraw(3)).

    *mark_errors*: a character that came damaged, and a break, are marked by bytes (PARMRK of termios(3)).
    """
    t = termios
    iflag = before.iflag & ~(
        t.IGNBRK | t.BRKINT | t.IGNPAR | t.PARMRK | t.INPCK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL
        | t.IXON | t.IXOFF | t.IXANY | getattr(t, "IUCLC", 0)
    )  # fmt: skip
    if settings.xonxoff:
        iflag |= t.IXON | t.IXOFF
    if mark_errors:
        iflag |= t.INPCK | t.PARMRK
    lflag = before.lflag & ~(t.ECHO | t.ECHOE | t.ECHOK | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
    cflag = before.cflag & ~(t.CSIZE | t.CSTOPB | t.PARENB | t.PARODD | t.CRTSCTS | _CMSPAR)
    cflag |= t.CREAD | t.CLOCAL | {5: t.CS5, 6: t.CS6, 7: t.CS7, 8: t.CS8}[settings.bytesize]
    if settings.stopbits != 1:
        cflag |= t.CSTOPB
    if settings.rtscts:
        cflag |= t.CRTSCTS
    cflag |= _parity_flags()[settings.parity]
    cc = bytearray(before.cc)
    cc[t.VMIN], cc[t.VTIME] = 1, 0  # else a read of nothing would look like the end
    speed = settings.baudrate
    if _has_termios2():
        # Those who ask by termios(3) see the usual speeds by their names.
        cflag = cflag & ~(_CBAUD | _CBAUD << _IBSHIFT) | _names().get(speed, _BOTHER)
    return Attributes(iflag, before.oflag & ~t.OPOST, cflag, lflag, before.line, bytes(cc), speed, speed)


def hanging_up(attributes: Attributes, on: bool) -> Attributes:
    """With or without HUPCL: whether the last one who closes the port lowers DTR and RTS."""
    cflag = attributes.cflag | termios.HUPCL if on else attributes.cflag & ~termios.HUPCL
    return attributes._replace(cflag=cflag)


def _parity_flags() -> dict[str, int]:
    t = termios
    return {
        "N": 0,
        "E": t.PARENB,
        "O": t.PARENB | t.PARODD,
        "M": t.PARENB | t.PARODD | _CMSPAR,
        "S": t.PARENB | _CMSPAR,
    }


def settings_in(found: Attributes) -> SerialSettings:
    """What *found* amounts to; the speed is the one that the driver says it has."""
    t = termios
    sizes: dict[int, Any] = {t.CS5: 5, t.CS6: 6, t.CS7: 7, t.CS8: 8}
    bytesize = sizes[found.cflag & t.CSIZE]
    parity = found.cflag & (t.PARENB | t.PARODD | _CMSPAR) if found.cflag & t.PARENB else 0
    parities: dict[int, Any] = {flags: name for name, flags in reversed(_parity_flags().items())}
    return SerialSettings(
        baudrate=found.ospeed or 1,
        bytesize=bytesize,
        parity=parities[parity],
        stopbits=(1.5 if bytesize == 5 else 2) if found.cflag & t.CSTOPB else 1,
        xonxoff=bool(found.iflag & t.IXON),
        rtscts=bool(found.cflag & t.CRTSCTS),
    )


#: From here on the two ends would not understand each other: 5 % at the last of ten bits is half a bit.
_TOLERANCE = 0.05


def refused(wanted: SerialSettings, got: SerialSettings) -> str:
    """What the driver did not take of *wanted*, in words; empty when it took everything.

    Of the speed, what it rounded too far to be understood by the other end.
    """
    differences = [
        f"{name} {getattr(wanted, name)!r} (it has {getattr(got, name)!r})"
        for name in ("bytesize", "parity", "stopbits", "xonxoff", "rtscts")
        if getattr(wanted, name) != getattr(got, name)
    ]
    if abs(got.baudrate - wanted.baudrate) > _TOLERANCE * wanted.baudrate:
        differences.insert(0, f"{wanted.baudrate} baud (it has {got.baudrate})")
    return ", ".join(differences)


# -- modem lines -----------------------------------------------------------------------------------------


def modem_lines(fd: int) -> int:
    """TIOCMGET of ioctl_tty(2). :raises OSError: ENOTTY or EINVAL, there are none."""
    answer = array.array("i", [0])
    _lines_call(fd, termios.TIOCMGET, answer)
    return answer[0]


def set_modem_lines(fd: int, on: int, off: int = 0) -> None:
    """Set and clear DTR and RTS; what is in neither stays as it is. TIOCMBIS and TIOCMBIC."""
    if off:
        _lines_call(fd, termios.TIOCMBIC, struct.pack("i", off))
    if on:
        _lines_call(fd, termios.TIOCMBIS, struct.pack("i", on))


def _lines_call(fd: int, request: int, argument: Any) -> None:
    try:
        syscalls.ioctl(fd, request, argument)
    except OSError as exc:
        if exc.errno in NO_SUCH:
            raise OSError(exc.errno, "there are no modem lines; a pair of terminals has none") from exc
        raise


#: What a driver answers to a call that it does not have.
NO_SUCH = (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class Counters(NamedTuple):
    """What the driver has counted since the port was found (TIOCGICOUNT of ioctl_tty(2))."""

    cts: int
    """Changes of CTS."""
    dsr: int
    ri: int
    """Trailing edges of RI."""
    cd: int
    rx: int
    """Characters received."""
    tx: int
    """Characters sent."""
    frame: int
    """Characters without a stop bit: another speed, or noise."""
    overrun: int
    """Characters that the hardware lost because nobody fetched them in time."""
    parity: int
    """Characters with the wrong parity."""
    brk: int
    """Breaks."""
    buf_overrun: int
    """Characters that the kernel lost because nobody read them in time."""


def counters_of(fd: int) -> Counters:
    """:raises OSError: ENOTTY, the driver does not count."""
    answer = array.array("i", [0] * 20)
    syscalls.ioctl(fd, _TIOCGICOUNT, answer)
    return Counters(*answer[:11])


# -- what waits ----------------------------------------------------------------------------------------------


def unsent(fd: int) -> int:
    """Bytes that the kernel has and the hardware has not yet: TIOCOUTQ of ioctl_tty(2)."""
    answer = array.array("i", [0])
    syscalls.ioctl(fd, termios.TIOCOUTQ, answer)
    return answer[0]


def shifting_out(fd: int, looks: int, character_time: float) -> float | None:
    """Whether the hardware still sends what it was given: seconds until the next look; None, it is done.

    *looks*: how often this was asked before. Some drivers tell (TIOCSERGETLSR of ioctl_tty(2)). Of the others
    it is known at best how much their hardware holds: it is given as long as all of that takes.
    """
    answer = array.array("I", [0])
    try:
        syscalls.ioctl(fd, _TIOCSERGETLSR, answer)
        # After that many it is held back by the other end, and will not move.
        return None if answer[0] & _TEMT or looks >= 2 * HOLDS else character_time
    except OSError as exc:
        if exc.errno not in NO_SUCH:
            raise
    if looks:
        return None
    try:
        return min(_held_by_hardware(fd), HOLDS) * character_time
    except OSError as exc:
        if exc.errno not in NO_SUCH:
            raise
        return None  # no hardware, as with a pair of terminals


#: Characters that hardware holds at most, as far as is waited for them.
HOLDS = 256


def _held_by_hardware(fd: int) -> int:
    """The size of the transmitter's FIFO: TIOCGSERIAL of ioctl_tty(2)."""
    answer = array.array("i", [0] * 32)
    syscalls.ioctl(fd, termios.TIOCGSERIAL, answer)
    return answer[5] or 1


#: Flags and place of them in struct serial_struct.
_LOW_LATENCY, _FLAGS = 0x2000, 4


def set_low_latency(fd: int, on: bool) -> None:
    """Have the driver hand over each character at once (ASYNC_LOW_LATENCY of setserial(8))."""
    state = array.array("i", [0] * 32)
    syscalls.ioctl(fd, termios.TIOCGSERIAL, state)
    state[_FLAGS] = state[_FLAGS] | _LOW_LATENCY if on else state[_FLAGS] & ~_LOW_LATENCY
    syscalls.ioctl(fd, termios.TIOCSSERIAL, state)


def has_low_latency(fd: int) -> bool:
    state = array.array("i", [0] * 32)
    syscalls.ioctl(fd, termios.TIOCGSERIAL, state)
    return bool(state[_FLAGS] & _LOW_LATENCY)


def discard_output(fd: int) -> None:
    _flush(fd, termios.TCOFLUSH)


def discard_input(fd: int) -> None:
    _flush(fd, termios.TCIFLUSH)


def _flush(fd: int, queue: int) -> None:
    try:
        syscalls.tcflush(fd, queue)
    except termios.error as exc:
        raise OSError(*exc.args) from None


def set_break(fd: int, on: bool) -> None:
    """Begin or end a break: the line is held at 0. TIOCSBRK and TIOCCBRK of ioctl_tty(2)."""
    syscalls.ioctl(fd, _TIOCSBRK if on else _TIOCCBRK, 0)


def exclude_others(fd: int, on: bool) -> None:
    """From now on only root can open the terminal once more: TIOCEXCL of ioctl_tty(2). It holds for as long
    as anybody has it open, or, for one of a pair, as the other end is there: to be undone before closing."""
    syscalls.ioctl(fd, termios.TIOCEXCL if on else termios.TIOCNXCL)
