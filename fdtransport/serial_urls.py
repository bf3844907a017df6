"""What a serial port can be besides a path: the URLs that pyserial knows.

``socket://`` is a TCP connection of this library; ``hwgrep://`` and ``alt://`` lead to a path. What is left
(``rfc2217://``, ``loop://``, ``spy://``, ``cp2110://``) is pyserial's own, opened and served in threads.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ._core.addresses import dial, resolve, set_nodelay
from ._core.off_loop import made_off_loop
from ._core.serial_error import SerialError, serial_error
from ._core.serial_file import DEPARTURES, Opening, SerialFile
from ._core.serial_settings import SerialSettings
from .serial_port import FilePort, SocketPort

__all__ = ["WINDOWS", "open_by_pyserial", "open_port", "pyserial", "pyserial_asyncio"]

#: URL options that do something besides configuring the port, and what that is.
_GUARDED = {("spy", "file"): "writes a file", ("alt", "class"): "loads a class"}


async def open_port(
    url: str, settings: SerialSettings, opening: Opening, allow: Collection[str] = (), **others: Any
) -> Any:
    """An open port: what a `SerialTransport` is made from. *others*: further arguments for pyserial's class.

    :raises SerialError: it cannot be opened, or *url* is none.
    """
    scheme, mark, _ = url.partition("://")
    if not mark:
        return await _open_path(url, settings, opening)
    scheme = scheme.lower()
    if scheme == "hwgrep":  # what follows is an expression, which may have brackets in it
        return await _open_path(await _find(url), settings, opening)
    if scheme != "alt":
        _check_plain(url, opening)
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, keep_blank_values=True)
    except ValueError as exc:
        raise serial_error(errno.EINVAL, f"{url!r}: {exc}") from None
    if isinstance(allow, str):
        raise TypeError(f"allow is a collection of names, as ({allow!r},), not a str")
    for option in options:
        if (what := _GUARDED.get((scheme, option))) and option not in allow:
            raise serial_error(
                errno.EPERM, f"{url!r}: option {option!r} {what}; allow it by name: allow=({option!r},)"
            )
    if scheme == "socket":
        _check_options(url, options, "logging")
        return await _open_socket(url, parts.hostname, parts, settings)
    if scheme == "alt" and "class" not in options:
        _check_options(url, options, "class")
        return await _open_path(parts.netloc + parts.path, settings, opening)
    return await open_by_pyserial(url, settings, opening, others)


def _check_plain(url: str, opening: Opening) -> None:
    """Refuse what only a device has."""
    only = {
        "low_latency": opening.low_latency, "rs485": opening.rs485, "on_line_error": opening.mark_errors,
        "hupcl": opening.hang_up is not None,
    }  # fmt: skip
    for name, asked in only.items():
        if asked:
            raise serial_error(errno.EOPNOTSUPP, f"{url!r} is no device of this machine; leave {name} out")


def _check_options(url: str, options: Collection[str], *known: str) -> None:
    for option in options:
        if option not in known:
            raise serial_error(
                errno.EINVAL, f"{url!r}: unknown option {option!r}; there is {' and '.join(known)}"
            )


async def _open_path(path: str, settings: SerialSettings, opening: Opening) -> FilePort:
    def make(wait: Callable[[int], None]) -> SerialFile:
        return SerialFile(path, settings, opening, wait)

    return FilePort(await made_off_loop(make, SerialFile.close, DEPARTURES))


async def _open_socket(url: str, host: str | None, parts: Any, settings: SerialSettings) -> SocketPort:
    try:
        port = parts.port
    except ValueError:
        port = None
    if not host or not port:
        raise serial_error(errno.EINVAL, f"{url!r}: it is socket://host:port, with a port from 1 to 65535")
    try:
        sock = await dial(await resolve(host, port, 0, 0, 0), None, None, None, False)
    except OSError as exc:
        raise serial_error(exc.errno, f"cannot open {url}: {exc.strerror or exc}") from exc
    set_nodelay(sock)
    return SocketPort(url, settings, sock)


def pyserial(what: str) -> Any:
    """The package. :raises SerialError: EPROTONOSUPPORT, it is not installed; *what* needs it."""
    try:
        found = importlib.import_module("serial")
        found.serial_for_url  # noqa: B018 - another project has the same name
    except (ImportError, AttributeError):
        raise serial_error(
            errno.EPROTONOSUPPORT, f"{what} needs pyserial: pip install fdtransport[serial]"
        ) from None
    return found


#: Where a serial port is no descriptor, and pyserial-asyncio has the transport.
WINDOWS = os.name == "nt"


def pyserial_asyncio() -> Any:
    """The package. :raises SerialError: EPROTONOSUPPORT, it is not installed."""
    try:
        return importlib.import_module("serial_asyncio")
    except ImportError:
        text = "serial ports of this platform need pyserial-asyncio: pip install fdtransport[serial]"
        raise serial_error(errno.EPROTONOSUPPORT, text) from None


async def _find(url: str) -> str:
    """The path of the port that ``hwgrep://EXPRESSION&n=N&skip_busy`` is about."""
    pyserial(url)

    def find() -> str:
        handler = importlib.import_module("serial.urlhandler.protocol_hwgrep")
        try:
            return str(handler.Serial().from_url(url))
        except SerialError:
            raise
        except Exception as exc:  # SerialException, ValueError, re.error
            number = errno.ENODEV if isinstance(exc, OSError) else errno.EINVAL
            raise serial_error(number, f"{url!r}: {exc}") from exc

    return await asyncio.get_running_loop().run_in_executor(None, find)


async def open_by_pyserial(
    url: str, settings: SerialSettings, opening: Opening, others: dict[str, Any]
) -> Any:
    serial_for_url = pyserial(url).serial_for_url

    def make(_wait: Callable[[int], None]) -> Any:
        try:
            instance = serial_for_url(
                url, settings.baudrate, settings.bytesize, settings.parity, settings.stopbits,
                xonxoff=settings.xonxoff, rtscts=settings.rtscts, do_not_open=True,
                exclusive=opening.exclusive or None, **others,
            )  # fmt: skip
            if opening.dtr is not None:
                instance.dtr = opening.dtr
            if opening.rts is not None:
                instance.rts = opening.rts
            instance.open()
        except Exception as exc:  # also a KeyError, for options that it does not know
            below = exc.__context__  # pyserial keeps the errno of what it could not open to itself
            number = getattr(exc, "errno", None) or getattr(below, "errno", None)
            fallback = errno.EIO if isinstance(exc, OSError) else errno.EINVAL
            raise serial_error(number or fallback, f"cannot open {url}: {exc}") from exc
        return instance

    return await made_off_loop(make, lambda instance: instance.close(), DEPARTURES)
