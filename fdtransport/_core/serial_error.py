"""What goes wrong with serial ports: one exception class for old callers and for new ones."""

from __future__ import annotations

import errno
import importlib
from typing import TYPE_CHECKING

from ..errors import TransportError

__all__ = ["SerialError", "SerialValueError", "serial_error"]

if TYPE_CHECKING:

    class _Known(OSError):
        """pyserial's SerialException where pyserial is installed."""

else:
    try:
        _Known = importlib.import_module("serial").SerialException
    except (ImportError, AttributeError):  # AttributeError: another project of that name
        _Known = OSError


class SerialError(TransportError, _Known):
    """A serial port failed. An ``OSError`` with the true errno; and, where pyserial is installed, its
    ``serial.SerialException``, so that code written for either catches it.

    It is also the class that Python has for the errno, where there is one: FileNotFoundError for a port that
    is not there, PermissionError for one that may not be opened; and ValueError for settings that cannot be.
    """


class SerialNotFoundError(SerialError, FileNotFoundError):
    pass


class SerialPermissionError(SerialError, PermissionError):
    pass


class SerialValueError(SerialError, ValueError):
    pass


class SerialTimeoutError(SerialError, TimeoutError):
    pass


_CLASSES: dict[int, type[SerialError]] = {
    errno.ENOENT: SerialNotFoundError,
    errno.EACCES: SerialPermissionError,
    errno.EPERM: SerialPermissionError,
    errno.EINVAL: SerialValueError,
    errno.ETIMEDOUT: SerialTimeoutError,
}


def serial_error(number: int | None, what: str) -> SerialError:
    """A `SerialError` with the errno *number* (EIO where the system gave none)."""
    number = number or errno.EIO
    return _CLASSES.get(number, SerialError)(number, what)
