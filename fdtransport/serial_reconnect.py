"""A serial port that comes and goes: waited for, opened again, set up as it was."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from ._core import syscalls
from ._core.file_events import Watched, file_events
from ._core.serial_error import SerialError, serial_error
from .serial_connect import StrPath, check_no_frames, connect_serial
from .serial_port import FilePort
from .serial_transport import SerialTransport
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .writer import StreamWriter

__all__ = ["ReconnectingSerial"]

P = TypeVar("P", bound=asyncio.BaseProtocol)

_log = logging.getLogger("fdtransport")

#: The device is not there, or goes away just now.
_ABSENT = (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EIO)
#: It is there, and may be to be had before long: who may open it is set a moment after it appears.
_LATER = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.ECONNREFUSED, errno.ETIMEDOUT)
#: The network on the way to it is down, or not up yet.
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNRESET, socket.EAI_AGAIN)
#: This process, or the machine, is short of something; a program that runs for months outlives that.
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: A connection that ended sooner, in seconds, counts as a failure.
SHORT = 1.0


class ReconnectingSerial:
    """A serial port that may be unplugged and plugged in again; with the options of ``connect_serial``.

    As an async iterator it gives a reader and a writer each time that the device is there. What ends the one
    before is for the loop's body to catch::

        async with ReconnectingSerial("/dev/serial/by-id/usb-ACME-if00", 115200) as port:
            async for reader, writer in port:
                try:
                    async for line in reader:
                        print(line)
                except SerialError as exc:
                    print("waiting for it:", exc)

    Settings and lines that were changed on the open port are set again on the next one. A device that is not
    there is waited for by inotify(7) on its directory, with no polling. One that is there and cannot be had
    (somebody else has it, no permission yet, no network, no descriptor free), and one that keeps going at
    once, is tried again after *first* seconds, then twice as many, up to *most*. *on_wait* is called with
    each `SerialError` that is waited out.

    ``aclose()`` ends whoever waits, and the loop. Another loop, or ``connect``, opens the port again.

    :raises ValueError: *first* and *most* are no such numbers.
    """

    def __init__(
        self,
        url: StrPath,
        baudrate: int = 9600,
        *,
        first: float = 0.05,
        most: float = 5.0,
        on_wait: Callable[[SerialError], object] | None = None,
        limit: int = DEFAULT_LIMIT,
        **options: Any,
    ) -> None:
        if not 0 < first <= most:
            raise ValueError(f"first and most are seconds, 0 < first <= most, not {first!r} and {most!r}")
        self._url = os.fspath(url)
        self._options: dict[str, Any] = {"baudrate": baudrate, **options}
        self._first, self._most = first, most
        self._on_wait = on_wait
        self._limit = limit
        self._transport: SerialTransport | None = None
        self._writer: StreamWriter[SerialTransport] | None = None
        self._waiting: tuple[asyncio.Timeout, asyncio.Event] | None = None
        self._life = object()  # from one aclose() to the next
        self._opened = 0.0
        self._failures = 0

    @property
    def transport(self) -> SerialTransport | None:
        """The one that there is now, or was last; None before the first."""
        return self._transport

    @property
    def connected(self) -> bool:
        """Whether the port is open now."""
        return self._transport is not None and not self._transport.is_closing()

    async def connect(self, protocol_factory: Callable[[], P]) -> tuple[SerialTransport, P]:
        """Wait until the device is there, and open it with a new protocol.

        ``asyncio.timeout`` bounds it; cancelling is safe.

        :raises SerialError: what waiting does not change: it is no serial port, or has not these settings;
            EBADF, ``aclose()`` was called meanwhile.
        :raises RuntimeError: it is open already, or waited for already.
        """
        if self.connected:
            raise RuntimeError(f"{self._url} is open already; aclose() first")
        if self._waiting is not None:
            raise RuntimeError(f"another task waits for {self._url} already; aclose() first")
        over = asyncio.Event()
        try:
            async with asyncio.timeout(None) as until_closed:
                self._waiting = until_closed, over
                return await self._appear(protocol_factory)
        except TimeoutError:
            if not until_closed.expired():
                raise
            raise serial_error(errno.EBADF, f"{self._url} was closed while it was waited for") from None
        finally:
            self._waiting = None
            over.set()

    async def _appear(self, protocol_factory: Callable[[], P]) -> tuple[SerialTransport, P]:
        self._keep_state()
        if self._transport is not None:
            short = asyncio.get_running_loop().time() - self._opened < SHORT
            self._failures = self._failures + 1 if short else 0
            if self._failures:
                await asyncio.sleep(self._pause())
        while True:
            places = _places(self._url)
            with file_events(places) as (happened, complete):
                if places != _places(self._url):
                    continue  # a directory on the way came, or went, before its place was watched
                # Only now that it is watched: no appearance can slip through in between.
                try:
                    found, protocol = await connect_serial(protocol_factory, self._url, **self._options)
                except SerialError as exc:
                    if exc.errno not in _ABSENT + _LATER + _UNREACHABLE + _SCARCE:
                        raise
                    self._tell(exc)
                    absent = exc.errno == errno.ENOENT or self._url.startswith("hwgrep:")
                    by_itself = absent and complete and exc.errno not in _LATER
                    self._failures += 1
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if by_itself else self._pause()):
                            await happened.wait()
                            self._failures = 0
                else:
                    self._transport, self._opened = found, asyncio.get_running_loop().time()
                    return found, protocol

    def _pause(self) -> float:
        doublings = min(self._failures - 1, 1000)  # a float holds no more
        return min(self._first * 2.0**doublings, self._most)

    def _tell(self, exc: SerialError) -> None:
        _log.info("waiting for %s: %s", self._url, exc)
        if self._on_wait is not None:
            self._on_wait(exc)

    def _keep_state(self) -> None:
        """What was changed on the open port holds for the next one."""
        port = self._transport.serial if self._transport is not None else None
        if not isinstance(port, FilePort):
            return
        settings = port.settings
        for name in ("bytesize", "parity", "stopbits", "xonxoff", "rtscts"):
            self._options[name] = getattr(settings, name)
        self._options["baudrate"] = port.asked_baudrate
        self._options.update(port.lines_set)

    async def open(self) -> tuple[StreamReader, StreamWriter[SerialTransport]]:
        """As ``connect``, for a reader and a writer.

        :raises ValueError: there is a *read_gap*, and a reader has no frames.
        """
        check_no_frames(self._options)
        loop = asyncio.get_running_loop()
        reader, protocol = stream_protocol(self._limit, loop)
        transport, _ = await self.connect(lambda: protocol)
        return reader, stream_writer(transport, protocol, reader, loop)

    def __aiter__(self) -> AsyncIterator[tuple[StreamReader, StreamWriter[SerialTransport]]]:
        return self._openings(self._life)

    async def _openings(
        self, life: object
    ) -> AsyncIterator[tuple[StreamReader, StreamWriter[SerialTransport]]]:
        """Until ``aclose()``. What has been opened since then is another's."""
        while life is self._life:
            await self._leave()
            if life is not self._life:
                return
            try:
                reader, self._writer = await self.open()
            except SerialError:
                if life is self._life:
                    raise
                return
            if life is not self._life:
                return
            yield reader, self._writer

    async def _leave(self, timeout: float | None = None) -> None:
        if self._transport is not None:
            await self._transport.aclose(timeout)
        self._writer = None  # only now: one that is collected while its transport is open warns

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the port, if it is open, and end whoever waits for it: a loop over this ends, ``connect`` and
        ``open`` raise `SerialError` (EBADF). *timeout*: see ``SerialTransport.aclose``."""
        self._life = object()
        if self._waiting is not None:
            until_closed, over = self._waiting
            if until_closed.when() is None:
                until_closed.reschedule(0)
            await over.wait()
        await self._leave(timeout)

    async def __aenter__(self) -> ReconnectingSerial:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def _places(url: str) -> list[Watched]:
    """What is to be watched for the device at *url*: where it, or a directory on the way to it, would appear;
    and, if it is there, who may have it."""
    appearing = syscalls.IN_CREATE | syscalls.IN_MOVED_TO | syscalls.IN_ATTRIB | syscalls.IN_MOVE_SELF
    if url.startswith("hwgrep://"):
        return [("/dev", appearing, None)]
    if "://" in url:
        return [("", 0, None)]  # nowhere: then it is tried again
    places: list[Watched] = []
    path = os.path.abspath(url)
    for way in dict.fromkeys((path, os.path.realpath(path))):  # a link, and what it leads to
        directory, name = os.path.split(way)
        while not os.path.isdir(directory):
            directory, name = os.path.split(directory)
        places.append((directory, appearing, name))
    return places
