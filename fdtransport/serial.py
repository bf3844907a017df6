"""Serial ports: a drop-in for pyserial-asyncio, and what it does not have.

On Windows, whose serial ports are no descriptors, the transports are pyserial-asyncio's own.

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
from ._core.serial_file import Opening
from ._core.serial_frames import Characters
from ._core.serial_line import Counters
from ._core.serial_rs485 import RS485
from ._core.serial_settings import SerialSettings
from .serial_connect import connect_serial, open_serial, transport_on
from .serial_modem import ModemChange, ModemLines
from .serial_port import Port
from .serial_ports import PortInfo, list_ports
from .serial_reconnect import ReconnectingSerial
from .serial_transport import SerialTransport, checked_timeout
from .serial_urls import WINDOWS, open_port, pyserial_asyncio
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .writer import StreamWriter

__all__ = [
    "RS485",
    "Characters",
    "Counters",
    "LineError",
    "ModemChange",
    "ModemLines",
    "PortInfo",
    "ReconnectingSerial",
    "SerialError",
    "SerialSettings",
    "SerialTransport",
    "connect_serial",
    "connection_for_serial",
    "create_serial_connection",
    "list_ports",
    "open_serial",
    "open_serial_connection",
]

P = TypeVar("P", bound=asyncio.BaseProtocol)

#: Turns of the loop from connection_made to the first read, of what pyserial-asyncio's functions open.
#: `run_until_complete` of these takes up to four to return (on uvloop). A protocol that is through by then,
#: and calls `loop.stop()` as its documentation does, would stop that once more, and not the `run_forever` to
#: come.
STILL = 4


class WaitingSerialTransport(SerialTransport):
    """A `SerialTransport` that does not read in the first turns of its life."""

    __slots__ = ()

    def _begin_reading(self, waiter: asyncio.Future[None] | None) -> None:
        self._remove_reader()
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._read_in(STILL)

    def _read_in(self, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._read_in, turns - 1, context=self._context)
        else:
            super()._begin_reading(None)


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
    if WINDOWS:
        connected: tuple[Any, P] = await pyserial_asyncio().create_serial_connection(
            loop, protocol_factory, *args, **kwargs
        )
        return connected
    close_timeout = checked_timeout(kwargs.pop("close_timeout", None))
    port = await _port_for(*args, **kwargs)
    return await transport_on(
        loop, protocol_factory, port, close_timeout=close_timeout, kind=WaitingSerialTransport
    )


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

    if WINDOWS:
        connected: tuple[Any, P] = await pyserial_asyncio().connection_for_serial(
            loop, protocol_factory, serial_instance
        )
        return connected

    def make(running: Any, file: Any, protocol: Any, waiter: Any) -> SerialTransport:
        return WaitingSerialTransport(loop or running, protocol, file, waiter)

    return await open_transport(make, protocol_factory, serial_instance)


async def open_serial_connection(
    *, loop: asyncio.AbstractEventLoop | None = None, limit: int | None = None, **kwargs: Any
) -> tuple[StreamReader, StreamWriter[SerialTransport]]:
    """As pyserial-asyncio has it: ``create_serial_connection`` for a reader and a writer."""
    loop = loop or asyncio.get_running_loop()
    reader, protocol = stream_protocol(DEFAULT_LIMIT if limit is None else limit, loop)
    transport, _ = await create_serial_connection(loop, lambda: protocol, **kwargs)
    return reader, stream_writer(transport, protocol, reader, loop)
