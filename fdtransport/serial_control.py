"""What a serial line has besides its bytes, as methods of its transport: settings, lines, counts."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, Unpack

from ._core import serial_line, syscalls
from ._core.off_loop import result_off_loop
from ._core.serial_error import SerialError, serial_error
from ._core.serial_file import DEPARTURES
from ._core.serial_frames import FrameReading
from ._core.serial_line import Counters
from ._core.serial_sending import Break, Sending
from ._core.serial_settings import SerialSettings, SettingsChanges
from ._core.serial_threads import PumpedPort
from .errors import Meaning, meaning
from .serial_modem import ModemChanges, ModemLines
from .serial_port import FilePort, Port

__all__ = ["LineControl", "device_of"]

T = TypeVar("T")


class LineControl(FrameReading):
    """See the module's first lines. What may be a question to a device is asked in a thread."""

    __slots__ = ("_break", "_pump", "_serial")

    #: The port: one of ours, or pyserial's.
    _serial: Any
    #: What moves its bytes, if it has no descriptor of its own.
    _pump: PumpedPort | None
    #: The last one that was sent.
    _break: Break | None

    # -- settings -------------------------------------------------------------------------------------

    @property
    def settings(self) -> SerialSettings:
        """What the line is set to; ``baudrate`` is the one that the driver says it has.

        With an instance of pyserial's it is what that was told.
        """
        port = self._serial
        if isinstance(port, Port):
            return port.settings
        names = ("baudrate", "bytesize", "parity", "stopbits", "xonxoff", "rtscts")
        return SerialSettings(**{name: getattr(port, name) for name in names})

    async def reconfigure(self, *, drain: bool = True, **changes: Unpack[SettingsChanges]) -> SerialSettings:
        """Change some of the settings of the open port; what they are then.

        Nothing is thrown away, and DTR and RTS stay as they are. *drain*: first wait until what was written
        has left with the former settings. Off the loop.

        :raises SerialError: the driver does not have them; nothing was changed.
        :raises ValueError: no serial port has them.

        ::

            await transport.reconfigure(baudrate=115200)
        """
        replace(self.settings, **changes)  # what is wrong with them is told before anything else
        if drain:
            await self.drain_wire()
        port = self._serial
        if isinstance(port, FilePort):
            await self._off_loop(lambda fd: port.file.change(fd, **changes))
        elif isinstance(port, Port):
            for name, value in changes.items():
                setattr(port, name, value)
        else:
            await self._off_loop(lambda _fd: port.apply_settings(dict(changes)))
        self._measure_gap(self.settings)
        return self.settings

    async def _off_loop(self, call: Callable[[int], T]) -> T:
        """What ``call(fd)`` returns, called in a thread, with a copy of the descriptor that stays open for
        as long as that takes."""
        if self._pump is not None:
            return await result_off_loop(lambda: call(-1), DEPARTURES, None)
        fd = syscalls.dup(self._open_fd())
        begun = threading.Event()

        def run() -> T:
            begun.set()
            try:
                return call(fd)
            finally:
                syscalls.close(fd)

        try:
            return await result_off_loop(run, DEPARTURES, device_of(fd))
        except OSError as exc:
            raise self._named(exc) from exc.__cause__
        except RuntimeError:  # there are no threads any more
            if not begun.is_set():
                syscalls.close(fd)
            raise

    def _open_fd(self) -> int:
        if self._rfd < 0:
            raise serial_error(errno.EBADF, f"{self._name()} is not open any more") from self._exception
        return self._rfd

    # -- lines ----------------------------------------------------------------------------------------

    async def modem_lines(self) -> ModemLines:
        """How DTR, RTS, CTS, DSR, RI and CD are. Off the loop: it may be a question to a USB device.

        :raises SerialError: the port has none (ENOTTY), or has gone.
        """
        if self._pump is not None:
            port = self._serial

            def ask(_fd: int) -> ModemLines:
                return ModemLines(*(bool(getattr(port, name)) for name in ModemLines._fields))

            return await self._off_loop(ask)
        return ModemLines.of(await self._off_loop(serial_line.modem_lines))

    async def set_modem_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        """Set DTR and RTS; None leaves one as it is. Off the loop.

        :raises SerialError: the port has none (ENOTTY), or has gone.
        """
        on = (serial_line.DTR if dtr else 0) | (serial_line.RTS if rts else 0)
        off = (serial_line.DTR if dtr is False else 0) | (serial_line.RTS if rts is False else 0)
        port = self._serial
        if self._pump is not None:

            def set_them(_fd: int) -> None:
                for name, state in (("dtr", dtr), ("rts", rts)):
                    if state is not None:
                        setattr(port, name, state)

            await self._off_loop(set_them)
            return
        await self._off_loop(lambda fd: serial_line.set_modem_lines(fd, on, off))
        if isinstance(port, Port):
            port.note_lines(dtr, rts)

    def modem_changes(self, *lines: str) -> ModemChanges:
        """An async iterator over the changes of CTS, DSR, RI and CD, or of those *lines* only.

        The driver counts edges, also between two looks (every 10 ms, while somebody waits), so that none is
        lost from this call on. With a driver that does not count, only what is so at a look is seen. It ends
        with the transport.

        :raises SerialError: from the iteration, the port has no modem lines (ENOTTY).
        :raises ValueError: *lines* are some of ``"cts"``, ``"dsr"``, ``"ri"``, ``"cd"``.

        ::

            async for change in transport.modem_changes("cd"):
                print("carrier" if change.lines.cd else "no carrier")
        """
        self._open_fd()
        self._check_device("tell of changes of its lines")
        return ModemChanges(self.fileno, self._off_loop, self._name(), *lines)

    def counters(self) -> Counters:
        """What the driver has counted: edges, characters, errors by their kind. The numbers only ever grow.

        :raises SerialError: it does not count (ENOTTY).
        """
        self._check_device("count")
        try:
            return serial_line.counters_of(self._open_fd())
        except OSError as exc:
            raise self._named(exc) from None

    def _check_device(self, what: str) -> None:
        if self._pump is not None:
            text = f"{self._name()} is served by pyserial, which does not {what}"
            raise serial_error(errno.EOPNOTSUPP, text)

    async def send_break(self, duration: float = 0.25) -> None:
        """Hold the line at 0 for *duration* seconds, after everything that was written has left.

        Cancelling is safe: it ends the break, and so does closing the port.
        """
        await self.drain_wire()
        port = self._serial
        if self._pump is not None:
            await self._off_loop(lambda _fd: port.send_break(duration))
            return
        held = self._break = Break()
        try:
            await self._off_loop(held.begin)
            await asyncio.sleep(duration)
        finally:
            if self._rfd >= 0:  # else it ends before the port is closed
                await self._off_loop(held.end)

    async def drain_wire(self) -> float:
        """Return when the last stop bit of what was written has left; when that was, by the loop's clock.

        ``flushed()`` returns when the kernel has everything, which may be long before. As exact as the driver
        tells: some only say how much their hardware holds at most. Cancelling is safe.

        :raises OSError: the transport ended before.
        """
        await self.flushed()
        if self._pump is not None:
            await self._off_loop(lambda _fd: self._serial.flush())
        else:
            sending = Sending(self.settings)
            step = await self._off_loop(sending.look)
            while step is not None:
                await asyncio.sleep(step[1])
                step = await self._off_loop(sending.look)
        return self._loop.time()

    def _name(self) -> str:
        return str(getattr(self._serial, "port", None) or self._serial)

    def _named(self, exc: OSError) -> OSError:
        """*exc* as a `SerialError` that says which port it was."""
        if isinstance(exc, SerialError) or meaning(exc, self._READ_ERRORS) is not Meaning.FATAL:
            return exc
        path = self._name()
        what = exc.strerror or str(exc)
        if path.startswith("/") and not os.path.exists(path):
            what = f"{what} (there is no such device any more)"
        named = serial_error(exc.errno, f"{path}: {what}")
        exc.__traceback__ = None
        named.__cause__ = exc
        return named


def device_of(fd: int) -> int | None:
    try:
        return syscalls.fstat(fd).st_rdev
    except OSError:
        return None
