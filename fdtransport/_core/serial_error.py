"""What goes wrong with serial ports: one exception class for old callers and for new ones."""

from __future__ import annotations

import errno
import importlib
from typing import TYPE_CHECKING

from ..errors import TransportError

__all__ = ["SerialError", "serial_error"]

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
    is not there, PermissionError for one that may not be opened.
    """


class _Missing(SerialError, FileNotFoundError):
    pass


class _Forbidden(SerialError, PermissionError):
    pass


class _Late(SerialError, TimeoutError):
    pass


_CLASSES: dict[int, type[SerialError]] = {
    errno.ENOENT: _Missing,
    errno.EACCES: _Forbidden,
    errno.EPERM: _Forbidden,
    errno.ETIMEDOUT: _Late,
}


def serial_error(number: int | None, what: str) -> SerialError:
    """A `SerialError` with the errno *number* (EIO where the system gave none)."""
    number = number or errno.EIO
    return _CLASSES.get(number, SerialError)(number, what)
