"""What a terminal has besides its bytes: size, modes, speed, the job in its foreground.

All of it works on the master of a pair of terminals, where the kernel takes it as meant for the other end
(pty(7), tty_ioctl(4)), and on every other terminal.
"""

from __future__ import annotations

import array
import errno
import os
import re
import struct
import sys
from typing import Any, NamedTuple

from . import syscalls

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

__all__ = [
    "LINE_LIMIT", "WindowSize", "checked_size", "come_to_foreground", "cooked", "device_of",
    "echoes", "end_of_file", "has_external", "in_foreground", "is_canonical", "line_lengths",
    "modes_of", "raw", "session_of", "set_echo", "set_external", "set_modes", "set_window_size",
    "signal_foreground", "signal_session", "slave_path", "speed_of", "window_size",
]  # fmt: skip

#: Bytes of a line that a terminal in canonical mode keeps, without its end; it drops the rest
#: (MAX_CANON of termios(3), N_TTY_BUF_SIZE of Linux).
LINE_LIMIT = 4095

IFLAG, OFLAG, CFLAG, LFLAG, ISPEED, OSPEED, CC = range(7)
#: Of ioctl_tty(2); the termios module knows neither them nor, before Python 3.13, EXTPROC.
_TIOCGPTN, _TIOCGSID, _TIOCSIG, _TCGETS2 = 0x80045430, 0x5429, 0x40045436, 0x802C542A
_TIOCGDEV = 0x80045432
_EXTPROC = 0o200000
_DISABLED = b"\0"  # _POSIX_VDISABLE
#: A queue that TCFLSH of ioctl_tty(2) does not know.
_NO_QUEUE = 3


class WindowSize(NamedTuple):
    """The size of a terminal's window: characters, and pixels where somebody has told them."""

    rows: int
    columns: int
    xpixel: int = 0
    ypixel: int = 0


def checked_size(size: Any) -> WindowSize:
    """*size* as a `WindowSize`; ValueError when no window can have it."""
    try:
        wanted = WindowSize(*size)
    except TypeError:
        raise TypeError(
            f"a window size is (rows, columns) or (rows, columns, xpixel, ypixel), not {size!r}"
        ) from None
    for name, number in zip(WindowSize._fields, wanted, strict=True):
        least = 0 if "pixel" in name else 1
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= 0xFFFF:
            raise ValueError(f"{name} of a window must be an int from {least} to 65535, not {number!r}")
    return wanted


def window_size(fd: int) -> WindowSize:
    """TIOCGWINSZ of ioctl_tty(2)."""
    answer = array.array("H", [0, 0, 0, 0])
    syscalls.ioctl(fd, termios.TIOCGWINSZ, answer)
    return WindowSize(*answer)


def set_window_size(fd: int, size: WindowSize) -> None:
    """TIOCSWINSZ of ioctl_tty(2): the job in the foreground gets SIGWINCH if it is another size."""
    syscalls.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size))


def modes_of(fd: int) -> list[Any]:
    """The attributes, as the termios module has them; but what fails is an OSError."""
    try:
        return syscalls.tcgetattr(fd)
    except termios.error as exc:
        raise OSError(*exc.args) from None


def set_modes(fd: int, modes: list[Any]) -> None:
    """Take the attributes over at once, whatever is still on its way."""
    while True:
        try:
            syscalls.tcsetattr(fd, termios.TCSANOW, modes)
            return
        except termios.error as exc:
            # Stopped in the background and continued: PEP 475 does not know this one.
            if exc.args[0] != errno.EINTR:
                raise OSError(*exc.args) from None


def raw(modes: list[Any]) -> list[Any]:
    """*modes* as cfmakeraw(3) makes them: every byte as it is, at once."""
    t = termios
    changed = [*modes[:CC], list(modes[CC])]
    changed[IFLAG] &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
    changed[OFLAG] &= ~t.OPOST
    changed[LFLAG] &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
    changed[CFLAG] = changed[CFLAG] & ~(t.CSIZE | t.PARENB) | t.CS8
    changed[CC][t.VMIN], changed[CC][t.VTIME] = 1, 0
    return changed


def cooked(modes: list[Any]) -> list[Any]:
    """*modes* with lines, echo and signals, as a terminal begins."""
    t = termios
    changed = [*modes[:CC], list(modes[CC])]
    changed[IFLAG] = changed[IFLAG] & ~(t.INLCR | t.IGNCR) | t.BRKINT | t.ICRNL | t.IXON
    changed[OFLAG] |= t.OPOST | t.ONLCR
    changed[LFLAG] = changed[LFLAG] & ~_EXTPROC | t.ECHO | t.ECHOE | t.ECHOK | t.ICANON | t.ISIG | t.IEXTEN
    return changed


def set_echo(modes: list[Any], on: bool) -> list[Any]:
    changed = list(modes)
    changed[LFLAG] = modes[LFLAG] | termios.ECHO if on else modes[LFLAG] & ~(termios.ECHO | termios.ECHONL)
    return changed


def set_external(modes: list[Any]) -> list[Any]:
    """*modes* with EXTPROC, under which the master of a raw terminal is told of each change of them."""
    changed = list(modes)
    changed[LFLAG] |= _EXTPROC
    return changed


def has_external(modes: list[Any]) -> bool:
    return bool(modes[LFLAG] & _EXTPROC)


def is_canonical(modes: list[Any]) -> bool:
    """Whether the terminal collects lines before it gives them to its program."""
    return bool(modes[LFLAG] & termios.ICANON)


def echoes(modes: list[Any]) -> bool:
    return bool(modes[LFLAG] & termios.ECHO)


def end_of_file(modes: list[Any]) -> bytes | None:
    """The byte that says end of file; None where no byte does."""
    if not is_canonical(modes) or modes[LFLAG] & _EXTPROC:
        return None
    return _character(modes, termios.VEOF)


def _character(modes: list[Any], number: int) -> bytes | None:
    value: bytes = modes[CC][number]
    return None if value == _DISABLED else value


def line_lengths(data: bytes, modes: list[Any]) -> tuple[list[int], bytes]:
    """The bytes that each line of *data* takes in a terminal in canonical mode, the last one unfinished; and
    the byte at its very end that quotes the next one, if that is what it does."""
    if modes[IFLAG] & termios.PARMRK:
        data = data.replace(b"\xff", b"\xff\xff")
    quote = _character(modes, termios.VLNEXT) if modes[LFLAG] & termios.IEXTEN else None
    pending = b""
    if quote is not None and quote in data:
        data = re.sub(re.escape(quote) + b"(?s:.)", b"\0", data)  # no break, whatever it is
        pending = quote if data.endswith(quote) else b""
        data = data.removesuffix(pending)
    breaks = _breaks_of(modes)
    ends = bytes(byte in breaks for byte in range(256))
    return [len(line) for line in data.translate(ends).split(b"\1")], pending


def _breaks_of(modes: list[Any]) -> bytes:
    """The bytes after which what follows is counted as another line."""
    t = termios
    numbers = [t.VEOF, t.VEOL, t.VKILL]
    if modes[LFLAG] & t.IEXTEN:
        numbers.append(t.VEOL2)
    if modes[LFLAG] & t.ISIG and not modes[LFLAG] & getattr(t, "NOFLSH", 0):
        numbers += [t.VINTR, t.VQUIT, t.VSUSP]  # they throw away what came before them
    found = [_character(modes, number) for number in numbers]
    if not modes[IFLAG] & t.INLCR:
        found.append(b"\n")
    if modes[IFLAG] & t.ICRNL and not modes[IFLAG] & t.IGNCR:
        found.append(b"\r")
    return b"".join(byte for byte in found if byte is not None)


def _speeds() -> dict[int, int]:
    names = [name for name in dir(termios) if name[0] == "B" and name[1:].isdigit()]
    return {getattr(termios, name): int(name[1:]) for name in names}


def speed_of(fd: int) -> tuple[int, int]:
    """Baud to and from the program. Any number where the kernel tells it, else the usual ones."""
    if sys.platform == "linux":
        answer = bytearray(44)  # struct termios2 of ioctl_tty(2)
        try:
            syscalls.ioctl(fd, _TCGETS2, answer)
            speeds: tuple[int, int] = struct.unpack_from("II", answer, 36)
            return speeds
        except OSError as exc:
            if exc.errno not in (errno.ENOTTY, errno.EINVAL):
                raise  # these two: another machine, with other numbers
    modes = modes_of(fd)
    known = _speeds()
    return known.get(modes[ISPEED], 0), known.get(modes[OSPEED], 0)


def slave_path(fd: int) -> str:
    """The path of the other end of a master. :raises OSError: ENOTTY, it is no master."""
    number = array.array("i", [0])
    syscalls.ioctl(fd, _TIOCGPTN, number)
    return f"/dev/pts/{number[0]}"


def device_of(fd: int) -> int:
    """The number of the terminal itself, also where *fd* is /dev/tty, which is each one's own."""
    answer = array.array("I", [0])
    try:
        syscalls.ioctl(fd, _TIOCGDEV, answer)
    except OSError:
        return syscalls.fstat(fd).st_rdev  # another platform
    return answer[0]


def session_of(fd: int) -> int:
    """The process that leads the session of the terminal. :raises OSError: ENOTTY, there is none."""
    answer = array.array("i", [0])
    syscalls.ioctl(fd, _TIOCGSID, answer)
    return answer[0]


def in_foreground(fd: int) -> bool:
    """Whether this process may do as it likes with the terminal, as far as job control is concerned."""
    try:
        return syscalls.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # not the terminal of our session, which asks nobody; or hung up, which is told later


def come_to_foreground(fd: int) -> None:
    """Return in the foreground: stopped by the kernel until then, as everybody who wants the terminal.

    :raises OSError: EIO, this process is in the background and is not stopped there.
    """
    while not in_foreground(fd):
        try:
            # The kernel stops whoever may not, and complains of the queue to whoever may. (What would do
            # something is done in the end with arguments from before the stop.)
            syscalls.ioctl(fd, getattr(termios, "TCFLSH", 0), _NO_QUEUE)
        except InterruptedError:
            pass  # stopped and continued
        except OSError:
            # EINVAL: SIGTTOU is ignored. EIO: nobody is there who could continue us.
            if not in_foreground(fd):
                what = "the terminal is another job's, and this one is in the background"
                raise OSError(errno.EIO, f"{os.strerror(errno.EIO)}: {what}") from None


def signal_foreground(fd: int, number: int) -> None:
    """Signal the job in the foreground of a master's terminal; the kernel finds it and signals it at once."""
    syscalls.ioctl(fd, _TIOCSIG, number)


def signal_session(leader: int, number: int) -> int:
    """Signal every process of the session that *leader* leads; how many those were.

    The kernel has no call for it: they are looked for in /proc, and each is held by a pidfd meanwhile, so
    that nobody else with its number is hit.
    """
    count = 0
    refused: PermissionError | None = None
    for name in os.listdir("/proc"):
        if not name.isdecimal() or _session_of_process(name) != leader:
            continue
        try:
            pidfd = syscalls.pidfd_open(int(name))
        except ProcessLookupError:
            continue
        try:
            if _session_of_process(name) == leader:
                syscalls.pidfd_send_signal(pidfd, number)
                count += 1
        except ProcessLookupError:
            pass  # it has ended meanwhile
        except PermissionError as exc:
            refused = exc  # another user's by now, as with sudo(8); the others are still to hear of it
        finally:
            syscalls.close(pidfd)
    if refused is not None and not count:
        raise refused  # as kill(2) has it for a group
    return count


def _session_of_process(name: str) -> int:
    try:
        with open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return -1
    return int(fields[3]) if fields[0] not in (b"Z", b"X") else -1
