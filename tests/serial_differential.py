"""What users of serial ports have met, asked of this library and of its peers: a table of the README.

    python tests/serial_differential.py [--readme]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from asking import Table
from serial_cases import CASES, Peer

OURS = ("fdtransport", "fdtransport on uvloop")
MODULES = {
    "fdtransport": "fdtransport.serial",
    "fdtransport on uvloop": "fdtransport.serial",
    "pyserial-asyncio": "serial_asyncio",
    "pyserial-asyncio-fast": "serial_asyncio_fast",
    "serialx": "serialx",
}


def peer(name: str) -> Peer:
    """The three functions of each, which have the same names; a rate is given unless it is None."""
    module: Any = import_module(MODULES[name])

    async def connect(factory: Any, url: str, *, baudrate: int | None = 115200, **settings: Any) -> Any:
        if baudrate is not None:
            settings["baudrate"] = baudrate
        loop = asyncio.get_running_loop()
        return (await module.create_serial_connection(loop, factory, url, **settings))[0]

    async def streams(url: str, **settings: Any) -> Any:
        return await module.open_serial_connection(url=url, baudrate=115200, **settings)

    adopt: Callable[[Any, Any], Awaitable[Any]] | None = None
    if hasattr(module, "connection_for_serial"):

        async def adopt(factory: Any, serial: Any) -> Any:
            return (await module.connection_for_serial(asyncio.get_running_loop(), factory, serial))[0]

    bounded = {} if name.startswith("pyserial") else {"close_timeout": 0.5}
    return Peer(connect, streams, adopt, bounded)


def heading() -> str:
    python = "{}.{}.{}".format(*sys.version_info[:3])
    peers = ", ".join(f"{name} {metadata.version(name)}" for name in MODULES if name not in OURS)
    return f"From a run of `python tests/serial_differential.py`, CPython {python}, {peers}:"


TABLE = Table("serial differential", Path(__file__).resolve(), CASES, tuple(MODULES), peer, OURS, heading, 15)

if __name__ == "__main__":
    sys.exit(TABLE.main())
