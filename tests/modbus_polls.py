"""Modbus RTU by pymodbus, client and server, over a cable; and what that takes by several transports.

    python tests/modbus_polls.py [ROUNDS]

pymodbus has a serial transport of its own, which knows how to do just this. In interleaved rounds it is
compared with ours and with those that came before, in its place.
"""

from __future__ import annotations

import asyncio
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from terminal_pair import cable

OWN = "pymodbus"
MODULES = ("fdtransport.serial", "serial_asyncio", "serial_asyncio_fast")


@contextmanager
def speaking_by(create_serial_connection: Callable[..., Any] | None) -> Iterator[None]:
    """Have pymodbus open its ports by this function; None leaves it its own."""
    transport = importlib.import_module("pymodbus.transport.transport")
    own = transport.create_serial_connection
    transport.create_serial_connection = create_serial_connection or own
    try:
        yield
    finally:
        transport.create_serial_connection = own


async def polled(client: str, server: str, transactions: int) -> float:
    """Seconds for so many transactions, each of them checked."""
    from pymodbus.client import AsyncModbusSerialClient
    from pymodbus.server import ModbusSerialServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    device = SimDevice(1, simdata=[SimData(0, values=0, count=64, datatype=DataType.REGISTERS)])
    serving = ModbusSerialServer(device, port=server, baudrate=115200)
    await serving.serve_forever(background=True)
    asking = AsyncModbusSerialClient(client, baudrate=115200, timeout=5)
    try:
        assert await asking.connect()
        began = time.perf_counter()
        for number in range(transactions // 2):
            written = await asking.write_registers(8, [number, number ^ 0xFFFF], device_id=1)
            assert not written.isError()
            read = await asking.read_holding_registers(8, count=2, device_id=1)
            assert read.registers == [number, number ^ 0xFFFF]
        return time.perf_counter() - began
    finally:
        asking.close()
        await serving.shutdown()


def main(rounds: int) -> None:
    ways: dict[str, Callable[..., Any] | None] = {OWN: None}
    for name in MODULES:
        ways[name] = importlib.import_module(name).create_serial_connection
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        shift = number % len(ways)
        for name in [*ways][shift:] + [*ways][:shift]:
            with cable() as (one, other), speaking_by(ways[name]):
                seconds[name].append(asyncio.run(polled(one, other, 1000)))
    for name, taken in seconds.items():
        ratios = [mine / own for mine, own in zip(taken, seconds[OWN], strict=True)]
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        print(f"{name}: {statistics.median(taken):.3f} s for 1000 transactions, {spread} of its own")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
