"""Serial ports: a drop-in for pyserial-asyncio, and what it does not have.

``from fdtransport import serial as serial_asyncio`` is all that a program for pyserial-asyncio needs. New
ones use ``connect_serial`` and ``open_serial``. pyserial need not be installed for ports by path; where it
is, it lends its URL schemes and its exception class.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from ._core.opening import open_transport
from ._core.parmrk import LineError
from ._core.serial_error import SerialError, serial_error
from ._core.serial_file import DEPARTURES, Opening
from ._core.serial_frames import Characters
from ._core.serial_line import Counters
from ._core.serial_rs485 import RS485
from ._core.serial_settings import Parity, SerialSettings
from .serial_modem import ModemChange, ModemLines
from .serial_port import FilePort, Port
from .serial_transport import SerialTransport
from .serial_urls import open_port
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer

__all__ = [
    "RS485",
    "Characters",
    "Counters",
    "LineError",
    "ModemChange",
    "ModemLines",
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


async def _connect(
    loop: asyncio.AbstractEventLoop | None,
    protocol_factory: Callable[[], P],
    port: Any,
    gap: float = 0.0,
    close_timeout: float | None = None,
) -> tuple[SerialTransport, P]:
    """A transport on an open port, which is closed if that fails."""

    def make(running: Any, file: Any, protocol: Any, waiter: Any) -> SerialTransport:
        transport = SerialTransport(loop or running, protocol, file, waiter)
        transport.close_timeout = close_timeout
        if gap:
            transport.gather_frames(gap)
        return transport

    try:
        return await open_transport(make, protocol_factory, port)
    except BaseException:
        device = port.file.device if isinstance(port, FilePort) else None
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
    low_latency: bool = False,
    rs485: RS485 | None = None,
    read_gap: float | Characters | None = None,
    on_line_error: Callable[[LineError], object] | None = None,
    close_timeout: float | None = None,
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
    has come before. *low_latency*: have the driver hand over each character at once. *rs485*: see `RS485`.

    *read_gap*: seconds of silence, or `Characters`, that end a frame: ``data_received`` is called once for
    each, and for parts of one above 64 KiB. *on_line_error*: called with a `LineError` for each break and
    each damaged character, before the bytes that came with it.

    *close_timeout*: seconds after which ``close()`` becomes ``abort()``; None waits for as long as the line
    takes.

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
    gap = read_gap.seconds(settings) if isinstance(read_gap, Characters) else read_gap or 0.0
    if gap < 0:
        raise ValueError(f"read_gap is a number of seconds above 0, not {read_gap!r}")
    opening = Opening(
        exclusive=exclusive, dtr=dtr, rts=rts, hang_up=hupcl, discard=discard_input, low_latency=low_latency,
        rs485=rs485, mark_errors=on_line_error is not None,
    )  # fmt: skip
    port = await open_port(os.fspath(url), settings, opening, allow)
    if isinstance(port, FilePort):
        port.on_line_error = on_line_error
    return await _connect(None, protocol_factory, port, gap, close_timeout)


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
    if options.get("read_gap"):
        raise ValueError("read_gap is for connect_serial: a reader has no frames")
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
    ``connect_serial`` does. *close_timeout*, *allow*: see there.

    :raises SerialError: see ``connect_serial``. :raises ValueError: an argument that pyserial does not have.
    """
    close_timeout = kwargs.pop("close_timeout", None)
    port = await _port_for(*args, **kwargs)
    return await _connect(loop, protocol_factory, port, close_timeout=close_timeout)


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
