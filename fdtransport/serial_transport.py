"""The transport of a serial port: its bytes, and its end."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import Any

from ._core import serial_line, syscalls
from ._core.base import Detached
from ._core.handle import Handle
from ._core.lifecycle import CloseReason, State
from ._core.parmrk import LineError
from ._core.serial_error import serial_error
from ._core.serial_file import DEPARTURES
from ._core.serial_marks import MarkedReading
from ._core.serial_rs485 import HandDriven
from ._core.serial_sending import wait_sent
from ._core.serial_threads import PumpedPort
from .serial_control import LineControl, device_of
from .serial_port import FilePort, Port

__all__ = ["SerialTransport", "checked_timeout"]

#: Seconds for which a thread of the executor may be held by a port that is being closed.
BRIEFLY = 1.0


class SerialTransport(LineControl):
    """A byte stream on a serial port. Made by ``connect_serial``, and by pyserial-asyncio's functions.

    It ends with ``connection_lost(SerialError)`` when the device goes, or the other end of a virtual one: a
    serial line has no end of file. ``connection_lost`` comes when the port is closed, so that it can be
    opened again there; closing waits, off the loop, until the line has sent everything (``asyncio.run()``, at
    its end, one second for that). ``abort()``, also meanwhile, throws it away.

    The order of the arguments is pyserial-asyncio's; *serial_instance* is any open port of pyserial's. Its
    descriptor is read and written directly where that is all that its class does; else it is served by two
    threads. Extra info: ``serial``, ``fd``.

    :raises SerialError: *serial_instance* is not open.
    """

    __slots__ = ("_close_timeout", "_closing_timer", "_departing", "_hand", "_tty")

    #: A read(2) of a terminal device takes at most 4 KiB, however much has come.
    _plenty, _most_reads = 2048, 32
    #: A line has no end of file; what is answered there comes soon.
    _EOF_SILENCE = 1.0

    #: Set to have what is unsent thrown away, while the port is being closed.
    _departing: threading.Event | None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.BaseProtocol,
        serial_instance: Any,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self._serial = serial_instance
        self._departing = None
        self._break = None
        self._close_timeout: float | None = None
        self._closing_timer: asyncio.TimerHandle | None = None
        self._hand: HandDriven | None = None
        file = serial_instance if _has_own_descriptor(serial_instance) else PumpedPort(serial_instance)
        self._pump = file if isinstance(file, PumpedPort) else None
        try:
            super().__init__(loop, file, protocol, waiter, {**(extra or {}), "serial": serial_instance})
        except BaseException:
            if self._pump is not None:
                self._pump.dispose()
            raise
        if waiter is None:
            # Made by hand, as with pyserial-asyncio: nothing is read in the turn of connection_made.
            self._remove_reader()
        if self._pump is not None:
            loop.call_soon(self._pump.start)
        if isinstance(serial_instance, Port):
            serial_instance.belongs_to(self)

    def _check_kind(self) -> None:
        if self._rfd < 0 or self._wfd < 0:
            raise serial_error(errno.EBADF, f"{self._serial!r} is not open for both directions")
        self._tty = syscalls.isatty(self._rfd)
        if isinstance(self._serial, FilePort):
            if self._serial.file.opening.mark_errors:
                self._sys = MarkedReading(self._tell_line_error)
            by_hand = self._serial.file.rs485_by_hand
            if by_hand is not None:
                port = self._serial
                hand = HandDriven(self._loop, self._sys, port, by_hand, self._queued, self._after_breath)
                self._sys = self._hand = hand

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs on."""
        return self._loop

    @property
    def serial(self) -> Any:
        """The port: settings, lines and counts under pyserial's names. What was given to the constructor."""
        return self._serial

    @property
    def is_closed(self) -> bool:
        """Whether it is over: the port is closed."""
        return self._state is State.CLOSED

    # -- writing --------------------------------------------------------------------------------------

    def can_write_eof(self) -> bool:
        """False: a serial line has no end of file."""
        return False

    def flush(self) -> None:
        """Throw away what was written and not taken by the kernel yet. pyserial-asyncio calls that so;
        ``await flushed()`` waits for it instead."""
        self._offer_cork()
        if self._queue.size and self._wfd >= 0:
            self._remove_writer()
            self._wake("flushed", self._cut_off())
            self._queue.clear()
            self._queue.grant(0)
            self._shrunk()

    # -- modes of reading and writing -----------------------------------------------------------------

    def _queued(self) -> int:
        return int(self._queue.size)

    def _tell_line_error(self, error: LineError) -> bool:
        self._call_inside("on_line_error() failed", self._serial.on_line_error, error)
        return self._state.reads and not self._paused

    # -- the end --------------------------------------------------------------------------------------

    def _read_eof(self) -> None:
        self._read_failed(self._why_ended())

    def _why_ended(self) -> OSError:
        """A read gave nothing."""
        error = self._pump.error if self._pump is not None else None
        if isinstance(error, OSError):
            return error
        if error is not None:
            return serial_error(errno.EIO, f"{type(error).__name__}: {error}")
        if not self._tty:
            return OSError(errno.ECONNRESET, "the other end has closed the connection")
        # (Its node may be there for a moment still.)
        virtual = os.path.realpath(self._name()).startswith("/dev/pts/")
        return OSError(errno.EIO, f"hung up: {'its other end was closed' if virtual else 'it was unplugged'}")

    def _is_end(self) -> bool:
        # pyserial sets ports up so that a read of nothing gives b"" as well (VMIN of termios(3)).
        return not self._tty or syscalls.has_hung_up(self._rfd)

    def _read_failed(self, exc: OSError) -> None:
        super()._read_failed(self._named(exc))

    def _write_failed(self, exc: OSError) -> None:
        super()._write_failed(self._named(exc))

    def detach(self) -> Detached:
        """As with every transport. :raises SerialError: EOPNOTSUPP, the port has no descriptor of its own."""
        if self._pump is not None:
            raise serial_error(errno.EOPNOTSUPP, f"{self._serial!r} has no descriptor that could be detached")
        detached = super().detach()
        self._disown()
        return detached

    def _give_back(self) -> None:
        super()._give_back()
        self._disown()
        if self._pump is not None:
            self._pump.dispose()

    def _disown(self) -> None:
        if isinstance(self._serial, Port):
            self._serial.belongs_to(None)

    @property
    def close_timeout(self) -> float | None:
        """Seconds after ``close()`` at which the transport aborts, should the line not have taken everything
        by then; None, the default, waits on."""
        return self._close_timeout

    @close_timeout.setter
    def close_timeout(self, seconds: float | None) -> None:
        self._close_timeout = checked_timeout(seconds)

    def close(self) -> None:
        super().close()
        if self._close_timeout is None or self._closing_timer is not None or self._state is State.CLOSED:
            return
        self._closing_timer = self._loop.call_later(self._close_timeout, self.abort)

    def abort(self, reset: bool = False) -> None:
        if self._departing is not None:
            self._departing.set()
        super().abort(reset)

    def _end_soon(self) -> None:
        """Close the port, which may take until the line has sent everything, and end then."""
        self._stop_gathering()
        if self._hand is not None:
            self._hand.stop()
        handle = self._reading_handle
        if handle is None:  # detached
            super()._end_soon()
            return
        fd = handle.fd
        file: Any = self._let_go(_take)
        if file is None:  # closed behind our back
            super()._end_soon()
            return
        hurry = self._departing = threading.Event()
        if self._close_reason is CloseReason.ABORT:
            hurry.set()
        DEPARTURES.run(self._loop, device_of(fd), lambda briefly: self._depart(file, fd, hurry, briefly))

    def _depart(self, file: Any, fd: int, hurry: threading.Event, briefly: bool) -> bool:
        """In a thread: let the line send, close, and have the loop tell. False when that takes too long."""
        error: Exception | None = None
        try:
            if not self._let_send(file, fd, hurry, BRIEFLY if briefly else None):
                return False
        except Exception:
            pass  # unplugged: nothing is left to be sent. (Or whatever the code of another port raises.)
        try:
            file.close_now() if isinstance(file, Port) else file.close()
        except Exception as exc:
            error = exc
        self._closed_in_thread(error)
        return True

    def _let_send(self, file: Any, fd: int, hurry: threading.Event, patience: float | None) -> bool:
        if isinstance(file, PumpedPort):
            return file.drain(hurry, patience)
        if not self._tty:
            return True
        if self._break is not None:
            self._break.end(fd)
        sent = None if hurry.is_set() else wait_sent(fd, self.settings, hurry, patience)
        if sent is False and not hurry.is_set() and patience is not None:
            return False
        if not sent:
            serial_line.discard_output(fd)
        if self._hand is not None:
            self._hand.end(fd)
        return True

    def _departed(self, error: Exception | None) -> None:
        if self._closing_timer is not None:
            self._closing_timer.cancel()
            self._closing_timer = None
        super()._departed(error)


def checked_timeout(seconds: float | None) -> float | None:
    if seconds is not None and (not isinstance(seconds, int | float) or not seconds >= 0):
        raise ValueError(f"close_timeout is a number of seconds from 0 on, or None, not {seconds!r}")
    return seconds


def _take(handle: Handle) -> Any:
    """Let go of the descriptor without closing it; None if it is somebody else's file by now."""
    return handle.release() if handle.fd >= 0 else None


def _has_own_descriptor(instance: Any) -> bool:
    """Whether reading and writing its descriptor is all that the port's class does."""
    if isinstance(instance, Port):
        return True
    home = getattr(getattr(type(instance), "read", None), "__module__", None)
    writes = getattr(getattr(type(instance), "write", None), "__module__", None)
    return home == writes and home in ("serial.serialposix", "serial.urlhandler.protocol_socket")
