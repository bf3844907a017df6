"""What ``transport.serial`` is: the port under the names that pyserial has for its parts.

Programs for pyserial-asyncio look at the settings and the lines of a port there, and set them. Reading and
writing are the transport's. The calls go to the kernel at once; those of the transport that are coroutines
go there off the loop.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ._core import serial_line, syscalls
from ._core.parmrk import LineError
from ._core.serial_error import SerialValueError, serial_error
from ._core.serial_file import SerialFile
from ._core.serial_rs485 import RS485, clear_rs485, set_rs485
from ._core.serial_settings import SerialSettings

__all__ = ["FilePort", "Port", "SocketPort"]


class Port:
    """See the module's first lines. ``port`` and ``name`` are the path or the URL."""

    def __init__(self, port: str, settings: SerialSettings) -> None:
        self.port: str = port
        self._settings = settings
        self._owner: Any = lambda: None
        self._rts = self._dtr = True
        self._break = False
        self.timeout: float | None = 0
        """Of no effect, as is ``write_timeout``: nothing waits here."""
        self.write_timeout: float | None = 0
        self.inter_byte_timeout: float | None = None
        self.dsrdtr: bool = False

    # -- what a kind of port has ---------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor; -1 after the end."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the transport that has the port; without one, the port."""
        transport = self._owner()
        if transport is None or transport.is_closed:
            self.close_now()  # or it is being collected
        else:
            transport.close()

    def close_now(self) -> None:
        """Close the port, whoever has it."""
        raise NotImplementedError

    def _configure(self, settings: SerialSettings) -> None:
        """Have the port take *settings*."""
        self._settings = settings

    def _set_lines(self, on: int, off: int) -> None:
        """Set and clear modem lines, where there are some."""

    def _lines(self) -> int:
        return serial_line.CTS | serial_line.DSR | serial_line.CD

    def _set_break(self, on: bool) -> None:
        """Begin or end a break, where there is such a thing."""

    # -- settings --------------------------------------------------------------------------------------

    def belongs_to(self, transport: Any) -> None:
        """*transport* closes it, from now on; None: nobody does."""
        self._owner = weakref.ref(transport) if transport is not None else lambda: None

    @property
    def name(self) -> str:
        return self.port

    @property
    def portstr(self) -> str:
        return self.port

    @property
    def fd(self) -> int | None:
        """The descriptor; None after the end."""
        fd = self.fileno()
        return fd if fd >= 0 else None

    @property
    def is_open(self) -> bool:
        return self.fileno() >= 0

    def isOpen(self) -> bool:
        return self.is_open

    @property
    def settings(self) -> SerialSettings:
        return self._settings

    def _set(self, **changes: Any) -> None:
        self._configure(replace(self.settings, **changes))

    @property
    def baudrate(self) -> int:
        return self.settings.baudrate

    @baudrate.setter
    def baudrate(self, baudrate: int) -> None:
        self._set(baudrate=int(baudrate))

    @property
    def bytesize(self) -> int:
        return self.settings.bytesize

    @bytesize.setter
    def bytesize(self, bytesize: int) -> None:
        self._set(bytesize=bytesize)

    @property
    def parity(self) -> str:
        return self.settings.parity

    @parity.setter
    def parity(self, parity: str) -> None:
        self._set(parity=parity)

    @property
    def stopbits(self) -> float:
        return self.settings.stopbits

    @stopbits.setter
    def stopbits(self, stopbits: float) -> None:
        self._set(stopbits=stopbits)

    @property
    def xonxoff(self) -> bool:
        return self.settings.xonxoff

    @xonxoff.setter
    def xonxoff(self, on: bool) -> None:
        self._set(xonxoff=bool(on))

    @property
    def rtscts(self) -> bool:
        return self.settings.rtscts

    @rtscts.setter
    def rtscts(self, on: bool) -> None:
        self._set(rtscts=bool(on))

    _NAMES = ("baudrate", "bytesize", "parity", "stopbits", "xonxoff", "dsrdtr", "rtscts", "timeout",
              "write_timeout", "inter_byte_timeout")  # fmt: skip

    def get_settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._NAMES}

    def apply_settings(self, settings: dict[str, Any]) -> None:
        for name in self._NAMES:
            if name in settings and settings[name] != getattr(self, name):
                setattr(self, name, settings[name])

    # -- lines -----------------------------------------------------------------------------------------

    @property
    def rts(self) -> bool:
        """Request to send: as it was set here last."""
        return self._rts

    @rts.setter
    def rts(self, on: bool) -> None:
        self._rts = bool(on)
        self._line(serial_line.RTS, on)

    @property
    def dtr(self) -> bool:
        """Data terminal ready: as it was set here last."""
        return self._dtr

    @dtr.setter
    def dtr(self, on: bool) -> None:
        self._dtr = bool(on)
        self._line(serial_line.DTR, on)

    def note_lines(self, dtr: bool | None, rts: bool | None) -> None:
        """Somebody else has set them."""
        self._dtr = self._dtr if dtr is None else dtr
        self._rts = self._rts if rts is None else rts

    def _line(self, line: int, on: bool) -> None:
        self._check_open()
        self._set_lines(line if on else 0, 0 if on else line)

    @property
    def cts(self) -> bool:
        """Clear to send."""
        return self._is_on(serial_line.CTS)

    @property
    def dsr(self) -> bool:
        """Data set ready."""
        return self._is_on(serial_line.DSR)

    @property
    def ri(self) -> bool:
        """Ring indicator."""
        return self._is_on(serial_line.RI)

    @property
    def cd(self) -> bool:
        """Carrier detect."""
        return self._is_on(serial_line.CD)

    def _is_on(self, line: int) -> bool:
        self._check_open()
        return bool(self._lines() & line)

    @property
    def break_condition(self) -> bool:
        return self._break

    @break_condition.setter
    def break_condition(self, on: bool) -> None:
        self._check_open()
        self._break = bool(on)
        self._set_break(self._break)

    def send_break(self, duration: float = 0.25) -> None:
        """Hold the line at 0 for *duration* seconds, and the loop as well: see ``SerialTransport``."""
        self.break_condition = True
        time.sleep(duration)
        self.break_condition = False

    # -- bytes -----------------------------------------------------------------------------------------

    @property
    def in_waiting(self) -> int:
        """Bytes that have come and were not read yet."""
        return syscalls.bytes_readable(self._check_open())

    @property
    def out_waiting(self) -> int:
        """Bytes that the kernel has and the line has not."""
        return serial_line.unsent(self._check_open())

    def inWaiting(self) -> int:
        return self.in_waiting

    def write(self, data: Any) -> int:
        """``transport.write(data)``; the number of bytes."""
        self._check_open()
        transport = self._owner()
        if transport is None:
            raise serial_error(errno.EBADF, f"{self.port} belongs to no transport")
        transport.write(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: what ``transport.write()`` was given is on its way (``transport.drain_wire()`` waits)."""

    def _check_open(self) -> int:
        fd = self.fileno()
        if fd < 0:
            raise serial_error(errno.EBADF, f"{self.port} is not open")
        return fd

    def __repr__(self) -> str:
        s = self.settings
        state = "open" if self.is_open else "closed"
        return (
            f"<{type(self).__name__} {self.port!r} {state} {s.baudrate} baud"
            f" {s.bytesize}{s.parity}{s.stopbits:g} xonxoff={s.xonxoff} rtscts={s.rtscts}>"
        )


class FilePort(Port):
    """A device."""

    def __init__(self, file: SerialFile) -> None:
        super().__init__(file.path, file.settings)
        self.file: SerialFile = file
        self._rs485: Any = None
        self.lines_set: dict[str, bool] = {
            name: on for name, on in (("dtr", file.opening.dtr), ("rts", file.opening.rts)) if on is not None
        }
        """DTR and RTS, where somebody has set them."""
        self.on_line_error: Callable[[LineError], object] | None = None
        self._rts = file.opening.rts is not False
        self._dtr = file.opening.dtr is not False

    def fileno(self) -> int:
        return self.file.fd

    def close_now(self) -> None:
        self.file.close()

    @property
    def settings(self) -> SerialSettings:
        return self.file.settings

    def _configure(self, settings: SerialSettings) -> None:
        self._check_open()
        self.file.configure(settings)

    @property
    def exclusive(self) -> bool:
        return self.file.locked

    @exclusive.setter
    def exclusive(self, on: bool | None) -> None:
        self._check_open()
        if on:
            self.file.lock()
        elif on is not None:
            self.file.unlock()

    @property
    def rs485_mode(self) -> Any:
        """What the driver was told of RS-485, to be set as well: an object with the attributes of pyserial's
        ``RS485Settings``; None turns it off.

        :raises SerialError: the driver has no such mode; a ValueError, too. Nothing is changed then.
        """
        return self._rs485

    @rs485_mode.setter
    def rs485_mode(self, mode: Any) -> None:
        fd = self._check_open()
        try:
            if mode is None:
                clear_rs485(fd)
            else:
                set_rs485(fd, _rs485_from(mode))
        except OSError as exc:
            text = f"{self.port} has no RS-485 mode: {exc.strerror}"
            raise SerialValueError(exc.errno, text) from exc
        self._rs485 = mode

    def set_low_latency_mode(self, on: bool) -> None:
        """Have the driver hand over each character at once.

        :raises SerialError: the driver has no such mode; a ValueError, too.
        """
        try:
            serial_line.set_low_latency(self._check_open(), bool(on))
        except OSError as exc:
            text = f"{self.port} has no low latency mode: {exc.strerror}"
            raise SerialValueError(exc.errno, text) from exc

    def _set_lines(self, on: int, off: int) -> None:
        try:
            serial_line.set_modem_lines(self.file.fd, on, off)
        except OSError as exc:
            raise serial_error(exc.errno, f"{self.port}: {exc.strerror}") from exc
        lines = (serial_line.DTR, serial_line.RTS)
        self.note_lines(*(True if on & line else False if off & line else None for line in lines))

    def note_lines(self, dtr: bool | None, rts: bool | None) -> None:
        super().note_lines(dtr, rts)
        for name, on in (("dtr", dtr), ("rts", rts)):
            if on is not None:
                self.lines_set[name] = on

    @property
    def asked_baudrate(self) -> int:
        """The speed that was asked for, which the driver may have rounded."""
        return self.file.asked.baudrate

    def _lines(self) -> int:
        try:
            return serial_line.modem_lines(self.file.fd)
        except OSError as exc:
            raise serial_error(exc.errno, f"{self.port}: {exc.strerror}") from exc

    def _set_break(self, on: bool) -> None:
        serial_line.set_break(self.file.fd, on)

    def reset_input_buffer(self) -> None:
        """Throw away what has come and was not read yet."""
        serial_line.discard_input(self._check_open())

    def reset_output_buffer(self) -> None:
        """Throw away what the kernel has and the line has not."""
        serial_line.discard_output(self._check_open())

    flushInput = reset_input_buffer
    flushOutput = reset_output_buffer


def _rs485_from(mode: Any) -> RS485:
    return RS485(
        rts_on_send=bool(mode.rts_level_for_tx),
        rts_after_send=bool(mode.rts_level_for_rx),
        delay_before_send=mode.delay_before_tx or 0.0,
        delay_after_send=mode.delay_before_rx or 0.0,
        receive_while_sending=bool(mode.loopback),
    )


class SocketPort(Port):
    """A connection to something that has a serial port, without a way to set that up: raw TCP."""

    def __init__(self, url: str, settings: SerialSettings, sock: socket.socket) -> None:
        super().__init__(url, settings)
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def close_now(self) -> None:
        self._sock.close()

    exclusive: bool | None = None

    @property
    def out_waiting(self) -> int:
        return serial_line.unsent(self._check_open())

    def reset_input_buffer(self) -> None:
        """Throw away what has come and was not read yet."""
        fd = self._check_open()
        with contextlib.suppress(BlockingIOError):
            while syscalls.read(fd, 65536):
                pass

    def reset_output_buffer(self) -> None:
        """Nothing: what the kernel has is on its way."""
        self._check_open()

    flushInput = reset_input_buffer
    flushOutput = reset_output_buffer
