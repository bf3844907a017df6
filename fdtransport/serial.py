"""Serial ports: a drop-in for pyserial-asyncio, and what it does not have.

``from fdtransport import serial as serial_asyncio`` is all that a program for pyserial-asyncio needs. New
ones use ``connect_serial`` and ``open_serial``. pyserial need not be installed for ports by path; where it
is, it lends its URL schemes and its exception class.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from ._core import serial_line, syscalls
from ._core.base import Detached
from ._core.handle import Handle
from ._core.lifecycle import CloseReason, Event, State
from ._core.opening import open_transport
from ._core.serial_error import SerialError, serial_error
from ._core.serial_file import DEPARTURES, Opening, wait_sent
from ._core.serial_settings import Parity, SerialSettings
from ._core.serial_threads import PumpedPort
from ._core.stream import StreamTransport
from .errors import Meaning, meaning
from .serial_port import Port
from .serial_urls import open_port
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer

__all__ = [
    "SerialError",
    "SerialSettings",
    "SerialTransport",
    "connect_serial",
    "connection_for_serial",
    "create_serial_connection",
    "open_serial",
    "open_serial_connection",
]

P = TypeVar("P", bound=asyncio.BaseProtocol)
StrPath = str | os.PathLike[str]


class SerialTransport(StreamTransport):
    """A byte stream on a serial port. Made by ``connect_serial``, and by pyserial-asyncio's functions.

    It ends with ``connection_lost(SerialError)`` when the device goes, or the other end of a virtual one: a
    serial line has no end of file. ``connection_lost`` comes when the port is closed, so that it can be
    opened again there; closing waits, off the loop, until the line has sent everything. ``abort()``, also
    during that, throws it away.

    The order of the arguments is pyserial-asyncio's; *serial_instance* is any open port of pyserial's. Its
    descriptor is read and written directly where that is all that its class does; else it is served by two
    threads. Extra info: ``serial``, ``fd``.

    :raises SerialError: *serial_instance* is not open.
    """

    __slots__ = ("_departing", "_pump", "_serial")

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
        file = serial_instance if _has_own_descriptor(serial_instance) else PumpedPort(serial_instance)
        self._pump = file if isinstance(file, PumpedPort) else None
        try:
            super().__init__(loop, file, protocol, waiter, {**(extra or {}), "serial": serial_instance})
        except BaseException:
            if self._pump is not None:
                self._pump.dispose()
            raise
        if self._pump is not None:
            loop.call_soon(self._pump.start)
        if isinstance(serial_instance, Port):
            serial_instance.belongs_to(self)

    def _check_kind(self) -> None:
        if self._rfd < 0 or self._wfd < 0:
            raise serial_error(errno.EBADF, f"{self._serial!r} is not open for both directions")

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs on."""
        return self._loop

    @property
    def serial(self) -> Any:
        """The port: settings, lines and counts under pyserial's names. What was given to the constructor."""
        return self._serial

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
        if not self._is_tty():
            return OSError(errno.ECONNRESET, "the other end has closed the connection")
        return OSError(errno.EIO, "hung up")

    def _is_end(self) -> bool:
        # pyserial sets ports up so that a read of nothing gives b"" as well (VMIN of termios(3)).
        return not self._is_tty() or syscalls.has_hung_up(self._rfd)

    def _is_tty(self) -> bool:
        return syscalls.isatty(self._rfd)

    def _read_failed(self, exc: OSError) -> None:
        super()._read_failed(self._named(exc))

    def _write_failed(self, exc: OSError) -> None:
        super()._write_failed(self._named(exc))

    def _named(self, exc: OSError) -> OSError:
        """*exc* as a `SerialError` that says which port it was."""
        if isinstance(exc, SerialError) or meaning(exc, self._READ_ERRORS) is not Meaning.FATAL:
            return exc
        path = str(getattr(self._serial, "port", None) or self._serial)
        what = exc.strerror or str(exc)
        if path.startswith("/") and not os.path.exists(path):
            what = f"{what}; the device has gone: unplugged, or a virtual one whose other end was closed"
        named = serial_error(exc.errno, f"{path}: {what}")
        exc.__traceback__ = None
        named.__cause__ = exc
        return named

    def detach(self) -> Detached:
        """As with every transport. :raises SerialError: EOPNOTSUPP, the port has no descriptor of its own."""
        if self._pump is not None:
            raise serial_error(errno.EOPNOTSUPP, f"{self._serial!r} has no descriptor that could be detached")
        return super().detach()

    def _give_back(self) -> None:
        super()._give_back()
        if self._pump is not None:
            self._pump.dispose()

    def abort(self, reset: bool = False) -> None:
        if self._departing is not None:
            self._departing.set()
        super().abort(reset)

    def _end_soon(self) -> None:
        """Close the port, which may take until the line has sent everything, and end then."""
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
        DEPARTURES.run(self._loop, _device_of(fd), lambda: self._depart(file, fd, hurry))

    def _depart(self, file: Any, fd: int, hurry: threading.Event) -> None:
        """In a thread: let the line send, close, and have the loop tell."""
        error = None
        try:
            if isinstance(file, PumpedPort):
                file.drain(hurry)
            elif syscalls.isatty(fd):
                settings = getattr(file, "settings", None) or SerialSettings()
                if hurry.is_set() or not wait_sent(fd, settings, hurry):
                    serial_line.discard_output(fd)
        except OSError:
            pass  # unplugged: nothing is left to be sent
        try:
            file.close()
        except OSError as exc:
            error = exc
        try:
            self._loop.call_soon_threadsafe(self._departed, error, context=self._context)
        except RuntimeError:  # the loop was closed meanwhile: nobody is there to be told
            self._state = State.CLOSED

    def _departed(self, error: OSError | None) -> None:
        if error is not None and error.errno not in (errno.EBADF, errno.EINTR):
            self._report("closing the port failed", error)
        self._step(Event.TURN)


def _take(handle: Handle) -> Any:
    """Let go of the descriptor without closing it; None if it is somebody else's file by now."""
    return handle.release() if handle.fd >= 0 else None


def _device_of(fd: int) -> int | None:
    try:
        return syscalls.fstat(fd).st_rdev
    except OSError:
        return None


def _has_own_descriptor(instance: Any) -> bool:
    """Whether reading and writing its descriptor is all that the port's class does."""
    if isinstance(instance, Port):
        return True
    home = getattr(getattr(type(instance), "read", None), "__module__", None)
    writes = getattr(getattr(type(instance), "write", None), "__module__", None)
    return home == writes and home in ("serial.serialposix", "serial.urlhandler.protocol_socket")


async def _connect(
    loop: asyncio.AbstractEventLoop | None, protocol_factory: Callable[[], P], port: Any
) -> tuple[SerialTransport, P]:
    """A transport on an open port, which is closed if that fails."""

    def make(running: Any, file: Any, protocol: Any, waiter: Any) -> SerialTransport:
        return SerialTransport(loop or running, protocol, file, waiter)

    try:
        return await open_transport(make, protocol_factory, port)
    except BaseException:
        device = _device_of(port.fileno()) if isinstance(port, Port) else None
        DEPARTURES.run(asyncio.get_running_loop(), device, port.close)
        raise


async def connect_serial(
    protocol_factory: Callable[[], P],
    url: StrPath,
    baudrate: int = 9600,
    *,
    bytesize: int = 8,
    parity: Parity = "N",
    stopbits: float = 1,
    xonxoff: bool = False,
    rtscts: bool = False,
    exclusive: bool = True,
    dtr: bool | None = None,
    rts: bool | None = None,
    hupcl: bool | None = None,
    discard_input: bool = False,
    allow: Collection[str] = (),
) -> tuple[SerialTransport, P]:
    """Open a serial port.

    *url*: the path of the device (``/dev/ttyUSB0``, ``/dev/serial/by-id/...``), or a URL as pyserial has:
    ``socket://host:port`` (TCP without a way to set the port up), ``hwgrep://EXPRESSION`` (the port whose
    description matches), and, served in threads, ``rfc2217://host:port``, ``loop://``, ``spy://path``. All
    but paths and sockets need pyserial. *allow*: options of the URL that write a file (``"file"`` of
    ``spy://``) or load a class (``"class"`` of ``alt://``) have to be named here.

    *baudrate* to *rtscts*: see `SerialSettings`; what the driver does not have is an error here, and not
    silently something else. *exclusive*: nobody else can open the port meanwhile (flock(2) and TIOCEXCL of
    ioctl_tty(2)). *dtr*, *rts*: the lines, set right after the kernel has raised both on opening; None leaves
    them so. *hupcl*: whether closing lowers them; None leaves that as it is. *discard_input*: throw away what
    has come before.

    Returns ``(transport, protocol)`` after ``connection_made``. The port is opened in a thread. When this
    raises or is cancelled, nothing stays open. At the end the port is put back as it was found.

    :raises SerialError: no such device, no permission, in use, or no serial port; settings that its driver
        does not have. It is an OSError with the errno of the kernel.
    :raises ValueError: settings that no serial port has.

    ::

        transport, protocol = await connect_serial(Meter, "/dev/ttyUSB0", 300, bytesize=7, parity="E")
    """
    settings = SerialSettings(
        baudrate=baudrate, bytesize=bytesize, parity=parity, stopbits=stopbits,  # type: ignore[arg-type]
        xonxoff=xonxoff, rtscts=rtscts,
    )  # fmt: skip
    opening = Opening(exclusive=exclusive, dtr=dtr, rts=rts, hang_up=hupcl, discard=discard_input)
    port = await open_port(os.fspath(url), settings, opening, allow)
    return await _connect(None, protocol_factory, port)


async def open_serial(
    url: StrPath, baudrate: int = 9600, *, limit: int = DEFAULT_LIMIT, **options: Any
) -> tuple[StreamReader, asyncio.StreamWriter]:
    """A reader and a writer for a serial port; with the options of ``connect_serial``.

    *limit*: bytes that ``readline`` and ``readuntil`` accept at most. ``writer.transport`` is the
    `SerialTransport`. The reader raises `SerialError` when the device goes.

    ::

        reader, writer = await open_serial("/dev/ttyUSB0", 115200)
        writer.write(b"AT\\r")
        print(await reader.readline())
    """
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await connect_serial(lambda: protocol, url, baudrate, **options)
    return reader, stream_writer(transport, protocol, reader, loop)


# -- pyserial-asyncio's functions --------------------------------------------------------------------------


def _pyserial_options(
    baudrate: Any = 9600,
    bytesize: Any = 8,
    parity: Any = "N",
    stopbits: Any = 1,
    timeout: Any = None,
    xonxoff: Any = False,
    rtscts: Any = False,
    write_timeout: Any = None,
    dsrdtr: Any = False,
    inter_byte_timeout: Any = None,
    exclusive: Any = None,
    *,
    writeTimeout: Any = None,
    interCharTimeout: Any = None,
    **others: Any,
) -> tuple[SerialSettings, Opening, dict[str, Any]]:
    """The arguments of pyserial's ``Serial`` after the port. Timeouts have no meaning here."""
    if others:
        raise ValueError(f"unexpected keyword arguments: {others!r}")
    settings = SerialSettings(
        baudrate=int(baudrate), bytesize=bytesize, parity=parity, stopbits=stopbits,
        xonxoff=bool(xonxoff), rtscts=bool(rtscts),
    )  # fmt: skip
    opening = Opening(
        exclusive=bool(exclusive),
        dtr=None if dsrdtr else True,
        rts=None if rtscts else True,
        strict=False,
    )
    shown = {
        "inter_byte_timeout": inter_byte_timeout if interCharTimeout is None else interCharTimeout,
        "dsrdtr": bool(rtscts if dsrdtr is None else dsrdtr),
    }
    return settings, opening, shown


async def create_serial_connection(
    loop: asyncio.AbstractEventLoop, protocol_factory: Callable[[], P], *args: Any, **kwargs: Any
) -> tuple[SerialTransport, P]:
    """As pyserial-asyncio has it: the further arguments are those of ``serial.serial_for_url``.

    The port is opened in a thread, and ``connection_made`` has been called when this returns. What has come
    before is kept. Settings that the driver does not have are taken no notice of, as by pyserial;
    ``connect_serial`` does.

    *allow*: see there.

    :raises SerialError: see ``connect_serial``. :raises ValueError: an argument that pyserial does not have.
    """
    port = await _port_for(*args, **kwargs)
    return await _connect(loop, protocol_factory, port)


async def _port_for(url: Any, *args: Any, allow: Collection[str] = (), **kwargs: Any) -> Any:
    settings, opening, shown = _pyserial_options(*args, **kwargs)
    if url is None:
        raise serial_error(errno.EINVAL, "no port: its path or URL is None")
    port = await open_port(os.fspath(url), settings, opening, allow, **shown)
    if isinstance(port, Port):
        for name, value in shown.items():
            setattr(port, name, value)
    return port


async def connection_for_serial(
    loop: asyncio.AbstractEventLoop, protocol_factory: Callable[[], P], serial_instance: Any
) -> tuple[SerialTransport, P]:
    """As pyserial-asyncio has it: a transport on an instance of ``serial.Serial`` that is open already.

    The transport closes it at the end. When this raises, it is the caller's, and open.
    """

    def make(running: Any, file: Any, protocol: Any, waiter: Any) -> SerialTransport:
        return SerialTransport(loop or running, protocol, file, waiter)

    return await open_transport(make, protocol_factory, serial_instance)


async def open_serial_connection(
    *, loop: asyncio.AbstractEventLoop | None = None, limit: int | None = None, **kwargs: Any
) -> tuple[StreamReader, asyncio.StreamWriter]:
    """As pyserial-asyncio has it: ``create_serial_connection`` for a reader and a writer."""
    loop = loop or asyncio.get_running_loop()
    reader, protocol = stream_protocol(DEFAULT_LIMIT if limit is None else limit, loop)
    transport, _ = await create_serial_connection(loop, lambda: protocol, **kwargs)
    return reader, stream_writer(transport, protocol, reader, loop)
