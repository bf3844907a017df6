"""The device file of a serial port: opened, set up, and put back as it was. All of it may block: for threads.

What the kernel does on opening cannot be prevented: it raises DTR and RTS. What can be done is to say so
again at once, before anything else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Unpack

from . import serial_line, syscalls
from .off_loop import Departures
from .serial_error import SerialError, serial_error
from .serial_line import Attributes
from .serial_rs485 import RS485, clear_rs485, in_milliseconds, rs485_of, set_rs485
from .serial_settings import SerialSettings, SettingsChanges

__all__ = ["DEPARTURES", "Opening", "SerialFile"]

#: One for all loops of the process: a port is the process's, whichever loop has it.
DEPARTURES = Departures()

_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))

@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a port is to be opened, besides its `SerialSettings`."""

    exclusive: bool = True
    dtr: bool | None = None
    rts: bool | None = None
    hang_up: bool | None = None
    discard: bool = False
    mark_errors: bool = False
    low_latency: bool = False
    rs485: RS485 | None = None
    #: Whether settings that the driver does not have are an error; pyserial takes no notice of them.
    strict: bool = True


class SerialFile:
    """An open serial port: its descriptor, its settings, and how it was before."""

    __slots__ = (
        "_before", "_latency_before", "_lock", "_locked", "_ours", "_process", "_rs485_before", "asked",
        "device", "fd", "opening", "path", "rs485_by_hand", "settings",
    )  # fmt: skip

    def __init__(
        self, path: str, settings: SerialSettings, opening: Opening, wait: Callable[[int], None]
    ) -> None:
        self.path: str = path
        self.opening: Opening = opening
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._locked = False
        self._latency_before: bool | None = None
        self._rs485_before: tuple[RS485 | None] | None = None
        self.rs485_by_hand: RS485 | None = None
        """What the driver cannot do, and is for the transport to do."""
        self.settings: SerialSettings = settings
        self.asked: SerialSettings = settings
        self.fd: int = -1
        self._before: Attributes | None = None
        self._ours: Attributes | None = None
        self.device: int = self._look()
        wait(self.device)
        try:
            self.fd = syscalls.open(path, os.O_RDWR | _FLAGS)
        except OSError as exc:
            raise serial_error(exc.errno, _why_not_opened(path, exc)) from exc
        try:
            self._set_up(settings)
        except BaseException as exc:
            self.close()
            if isinstance(exc, OSError) and not isinstance(exc, SerialError):
                raise serial_error(exc.errno, f"{path}: {exc.strerror or exc}") from exc
            raise

    def _look(self) -> int:
        try:
            found = syscalls.stat(self.path)
        except ValueError as exc:
            raise serial_error(errno.ENOENT, f"{self.path!r} is no path: {exc}") from None
        except OSError as exc:
            raise serial_error(exc.errno, _why_not_opened(self.path, exc)) from exc
        if not stat.S_ISCHR(found.st_mode):  # first: opening another kind of file may do something
            kind = syscalls.kind(found.st_mode)
            raise serial_error(errno.ENOTTY, f"{self.path} is {kind}, and no serial port")
        return found.st_rdev

    def _set_up(self, settings: SerialSettings) -> None:
        opening, fd = self.opening, self.fd
        if not syscalls.isatty(fd):
            raise serial_error(errno.ENOTTY, f"{self.path} is a device, but no serial port")
        if opening.exclusive:
            self.lock()
        if opening.dtr is not None or opening.rts is not None:
            self._set_lines(opening.dtr, opening.rts)
        self._before = serial_line.attributes_of(fd)
        self.configure(settings)
        if opening.low_latency:
            try:
                self._latency_before = serial_line.has_low_latency(fd)
                serial_line.set_low_latency(fd, True)
            except OSError as exc:
                if exc.errno not in serial_line.NO_SUCH:
                    raise
                raise serial_error(exc.errno, f"{self.path} has no low latency mode; leave it out") from exc
        if opening.rs485 is not None:
            self._set_rs485(opening.rs485)
        if opening.discard:
            serial_line.discard_input(fd)

    def lock(self) -> None:
        """Have nobody else open it: flock(2), which everybody who asks obeys, and TIOCEXCL, which all but
        root obey without asking."""
        try:
            syscalls.lock(self.fd)
        except BlockingIOError as exc:
            raise serial_error(errno.EBUSY, f"{self.path} is in use: {_HOLDER}") from exc
        serial_line.exclude_others(self.fd, True)
        self._locked = True

    def unlock(self) -> None:
        """Let others open it."""
        self._locked = False
        serial_line.exclude_others(self.fd, False)
        syscalls.unlock(self.fd)

    @property
    def locked(self) -> bool:
        """Whether nobody else can open it."""
        return self._locked

    def _set_lines(self, dtr: bool | None, rts: bool | None) -> None:
        lines = ((serial_line.DTR, dtr), (serial_line.RTS, rts))
        on = sum(line for line, state in lines if state)
        off = sum(line for line, state in lines if state is False)
        try:
            serial_line.set_modem_lines(self.fd, on, off)
        except OSError as exc:
            if exc.errno not in serial_line.NO_SUCH:
                raise
            if self.opening.strict:
                text = f"{self.path} has no lines DTR and RTS; leave them out"
                raise serial_error(exc.errno, text) from exc

    def _set_rs485(self, wanted: RS485) -> None:
        try:
            before = rs485_of(self.fd)
            set_rs485(self.fd, wanted)
        except OSError as exc:
            if exc.errno not in serial_line.NO_SUCH:
                raise
        else:
            self._rs485_before = (before,)
            if (got := rs485_of(self.fd)) != in_milliseconds(wanted):  # drivers leave out what they have not
                raise serial_error(errno.EINVAL, f"{self.path} has not {wanted}; it has {got}")
            return
        try:
            on = wanted.rts_after_send
            serial_line.set_modem_lines(self.fd, *((serial_line.RTS, 0) if on else (0, serial_line.RTS)))
        except OSError as exc:
            if exc.errno not in serial_line.NO_SUCH:
                raise
            text = f"{self.path} has neither an RS-485 mode nor a line RTS; leave rs485 out"
            raise serial_error(exc.errno, text) from exc
        self.rs485_by_hand = wanted

    def configure(self, settings: SerialSettings, fd: int | None = None) -> None:
        """Take *settings* over at once, without throwing anything away; the lines stay as they are. *fd*: a
        copy of the descriptor, for a thread that may outlive this one.

        ``settings`` afterwards are those that the driver says it has.

        :raises SerialError: EINVAL, the driver has not all of them; it has been put back.
        """
        fd = self.fd if fd is None else fd
        before = serial_line.attributes_of(fd)
        wanted = serial_line.configured(before, settings, mark_errors=self.opening.mark_errors)
        if self.opening.hang_up is not None:
            wanted = serial_line.hanging_up(wanted, self.opening.hang_up)
        try:
            if wanted != before:
                serial_line.set_attributes(fd, wanted)
        except OSError as exc:
            raise serial_error(exc.errno, f"{self.path} refuses {_words(settings)}: {exc.strerror}") from exc
        self._ours = serial_line.attributes_of(fd)
        got = serial_line.settings_in(self._ours)
        if self.opening.strict and (missing := serial_line.refused(settings, got)):
            serial_line.set_attributes(fd, before)
            self._ours = before
            raise serial_error(errno.EINVAL, f"{self.path} has not {missing}{_hint(self.path)}")
        self.asked = settings
        self.settings = got if self.opening.strict else replace(settings, baudrate=got.baudrate)

    def change(self, fd: int, **changes: Unpack[SettingsChanges]) -> None:
        """In a thread: take *changes* over besides what was asked for before. *fd*: see ``configure``.

        Those that come at the same time come one after the other, and none after the port was put back.
        """
        with self._lock:
            if self.fd < 0:
                raise serial_error(errno.EBADF, f"{self.path} is not open any more")
            self.configure(replace(self.asked, **changes), fd)

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        """Put back what was changed, and close. What the line has not sent yet the kernel may wait for."""
        with self._lock:
            fd, self.fd = self.fd, -1
            if fd < 0:
                return
            try:
                if self._process == os.getpid():  # a process that was forked has a copy: the port is in use
                    self._put_back(fd)
            finally:
                syscalls.close(fd)

    def _put_back(self, fd: int) -> None:
        """Each of it, whatever becomes of the others: unplugged, there is nothing to put back."""
        if self._locked:
            with contextlib.suppress(OSError):
                serial_line.exclude_others(fd, False)
        if self._latency_before is False:
            with contextlib.suppress(OSError):
                serial_line.set_low_latency(fd, False)
        if self._rs485_before is not None:
            before_485 = self._rs485_before[0]
            with contextlib.suppress(OSError):
                clear_rs485(fd) if before_485 is None else set_rs485(fd, before_485)
        with contextlib.suppress(OSError):
            self._put_attributes_back(fd)

    def _put_attributes_back(self, fd: int) -> None:
        before, ours = self._before, self._ours
        if before is None or before == ours or serial_line.attributes_of(fd) != ours:
            return  # nothing was changed; or somebody else has set it up meanwhile: it is theirs then
        if self.opening.hang_up is not None:
            before = serial_line.hanging_up(before, self.opening.hang_up)
        serial_line.set_attributes(fd, before)


def _words(settings: SerialSettings) -> str:
    return f"{settings.baudrate} baud {settings.bytesize}{settings.parity}{settings.stopbits:g}"


_HOLDER = "somebody has it exclusively (fuser -v tells who)"


def _why_not_opened(path: str, exc: OSError) -> str:
    text = f"cannot open {path}: {exc.strerror or exc}"
    if exc.errno == errno.EACCES:
        return f"{text}; the user must be in the group of the device (ls -l {path})"
    if exc.errno == errno.ENOENT:
        return f"{text}; python -m serial.tools.list_ports, of pyserial, lists those that are there"
    if exc.errno == errno.EBUSY:
        # TIOCEXCL outlives a program that was killed for as long as the other end of the pair is open.
        left = ", or was killed having it: close its other end" if _is_virtual(path) else ""
        return f"{text}; {_HOLDER}{left}"
    return text


def _is_virtual(path: str) -> bool:
    return os.path.realpath(path).startswith("/dev/pts/")


def _hint(path: str) -> str:
    if _is_virtual(path):
        return "; a pair of terminals (a virtual port) has 8 data bits and no parity"
    return "; see the device's manual for what it has"
