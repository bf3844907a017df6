"""Which serial ports there are."""

from __future__ import annotations

import asyncio
import importlib
import os
from dataclasses import dataclass

from .serial_urls import pyserial

__all__ = ["PortInfo", "list_ports"]

_LINKS = "/dev/serial/by-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortInfo:
    """A serial port, and the USB device that it is part of, where it is."""

    path: str
    """The device; another one may have it after the next start."""
    by_id: str | None
    """The link of udev that always leads to this device."""
    description: str | None
    vid: int | None
    pid: int | None
    serial_number: str | None
    manufacturer: str | None
    product: str | None
    interface: str | None
    location: str | None
    """The place in the tree of USB ports."""


async def list_ports() -> list[PortInfo]:
    """The serial ports that there are, by path. Looked for in a thread.

    :raises SerialError: EPROTONOSUPPORT, pyserial is not installed.

    ::

        for port in await list_ports():
            print(port.path, port.description)
    """
    pyserial("list_ports()")
    return await asyncio.get_running_loop().run_in_executor(None, _find)


def _find() -> list[PortInfo]:
    links = {}
    if os.path.isdir(_LINKS):
        for name in sorted(os.listdir(_LINKS)):
            path = os.path.join(_LINKS, name)
            links[os.path.realpath(path)] = path
    found = importlib.import_module("serial.tools.list_ports").comports()
    return [
        PortInfo(
            path=port.device,
            by_id=links.get(os.path.realpath(port.device)),
            description=None if port.description == "n/a" else port.description,
            vid=port.vid,
            pid=port.pid,
            serial_number=port.serial_number,
            manufacturer=port.manufacturer,
            product=port.product,
            interface=port.interface,
            location=port.location,
        )
        for port in sorted(found, key=lambda port: str(port.device))
    ]
