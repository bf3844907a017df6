"""Serial ports, opened: a transport and a protocol, or a reader and a writer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from ._core.opening import open_transport
from ._core.parmrk import LineError
from ._core.serial_file import DEPARTURES, Opening
from ._core.serial_frames import Characters
from ._core.serial_rs485 import RS485
from ._core.serial_settings import Parity, SerialSettings
from .serial_port import FilePort
from .serial_transport import SerialTransport, checked_timeout
from .serial_urls import WINDOWS, open_by_pyserial, open_port, pyserial_asyncio
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .writer import StreamWriter

__all__ = ["StrPath", "check_no_frames", "connect_serial", "open_serial", "transport_on"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
StrPath = str | os.PathLike[str]


async def transport_on(
    loop: asyncio.AbstractEventLoop | None,
    protocol_factory: Callable[[], P],
    port: Any,
    gap: float | Characters | None = None,
    close_timeout: float | None = None,
    kind: type[SerialTransport] = SerialTransport,
) -> tuple[SerialTransport, P]:
    """A transport of *kind* on an open port, which is closed if that fails."""

    def make(running: Any, file: Any, protocol: Any, waiter: Any) -> SerialTransport:
        transport = kind(loop or running, protocol, file, waiter)
        transport.close_timeout = close_timeout
        if gap:
            transport.gather_frames(gap, transport.settings)
        return transport

    try:
        return await open_transport(make, protocol_factory, port)
    except BaseException:
        device = port.file.device if isinstance(port, FilePort) else None
        DEPARTURES.run(asyncio.get_running_loop(), device, lambda _: port.close())
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
    them so. *hupcl*: whether closing lowers them, from now on; None leaves that as it is. *discard_input*:
    throw away what has come before. *low_latency*: have the driver hand over each character at once. *rs485*:
    see `RS485`.

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
    if isinstance(read_gap, Characters):
        if not all(isinstance(part, int | float) for part in read_gap) or not max(read_gap) > 0:
            raise ValueError(f"read_gap is a time above 0, not {read_gap!r}")
    elif read_gap is not None and (not isinstance(read_gap, int | float) or not read_gap > 0):
        raise ValueError(f"read_gap is a number of seconds above 0, or Characters, not {read_gap!r}")
    checked_timeout(close_timeout)
    if rs485 is not None and not isinstance(rs485, RS485):
        raise ValueError(f"rs485 is an RS485 or None, not {rs485!r}")
    if on_line_error is not None and not callable(on_line_error):
        raise ValueError(f"on_line_error is a function or None, not {on_line_error!r}")
    path = os.fsdecode(url)
    opening = Opening(
        exclusive=exclusive, dtr=dtr, rts=rts, hang_up=hupcl, discard=discard_input, low_latency=low_latency,
        rs485=rs485, mark_errors=on_line_error is not None,
    )  # fmt: skip
    if WINDOWS:
        instance = await open_by_pyserial(path, settings, opening, {})
        loop = asyncio.get_running_loop()
        connected: tuple[Any, P] = await pyserial_asyncio().connection_for_serial(
            loop, protocol_factory, instance
        )
        return connected
    port = await open_port(path, settings, opening, allow)
    if isinstance(port, FilePort):
        port.on_line_error = on_line_error
    return await transport_on(None, protocol_factory, port, read_gap, close_timeout)


def check_no_frames(options: dict[str, Any]) -> None:
    """:raises ValueError: frames are asked for, of a reader."""
    if options.get("read_gap"):
        raise ValueError("read_gap is for connect_serial: a reader has no frames")


async def open_serial(
    url: StrPath, baudrate: int = 9600, *, limit: int = DEFAULT_LIMIT, **options: Any
) -> tuple[StreamReader, StreamWriter[SerialTransport]]:
    """A reader and a writer for a serial port; with the options of ``connect_serial`` but *read_gap*.

    *limit*: bytes that ``readline`` and ``readuntil`` accept at most. ``writer.transport`` is the
    `SerialTransport`. The reader raises `SerialError` when the device goes.

    ::

        reader, writer = await open_serial("/dev/ttyUSB0", 115200)
        writer.write(b"AT\\r")
        print(await reader.readline())
    """
    check_no_frames(options)
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await connect_serial(lambda: protocol, url, baudrate, **options)
    return reader, stream_writer(transport, protocol, reader, loop)
