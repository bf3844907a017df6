"""Polls the registers of a Modbus RTU device: each frame is one callback, ended by the silence after it."""

from __future__ import annotations

import argparse
import asyncio
import struct
import sys
from collections.abc import Callable
from typing import Any

import fdtransport
from fdtransport.serial import Characters
from fdtransport.testing import serial_pair

from . import between, run_command

#: What the standard wants: 3.5 characters of silence end a frame, and from 19200 baud on 1.75 ms.
GAP = Characters(3.5, least=0.00175)
READ_REGISTERS = 3


def checksum(frame: bytes) -> bytes:
    """CRC-16 as Modbus has it."""
    crc = 0xFFFF
    for byte in frame:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return struct.pack("<H", crc)


def seal(frame: bytes) -> bytes:
    return frame + checksum(frame)


def unseal(frame: bytes) -> bytes | None:
    """The frame without its checksum; None when that is wrong."""
    return frame[:-2] if len(frame) >= 4 and checksum(frame[:-2]) == frame[-2:] else None


class Frames(asyncio.Protocol):
    """Gives each good frame to *on_frame*, and counts the others."""

    def __init__(self, on_frame: Callable[[bytes], None]) -> None:
        self.on_frame = on_frame
        self.bad = 0

    def connection_made(self, transport: Any) -> None:
        self.transport: fdtransport.SerialTransport = transport

    def data_received(self, data: bytes) -> None:
        frame = unseal(data)
        if frame is None:
            self.bad += 1
        else:
            self.on_frame(frame)

    def send(self, frame: bytes) -> None:
        self.transport.write(seal(frame))


class Master:
    """Asks one thing at a time."""

    def __init__(self) -> None:
        self.frames = Frames(self._answered)
        self._answer: asyncio.Future[bytes] | None = None

    def _answered(self, frame: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(frame)

    async def read_registers(self, unit: int, first: int, count: int, timeout: float = 1.0) -> list[int]:
        self._answer = asyncio.get_running_loop().create_future()
        self.frames.send(struct.pack(">BBHH", unit, READ_REGISTERS, first, count))
        async with asyncio.timeout(timeout):
            answer = await self._answer
        if answer[1] & 0x80:
            raise RuntimeError(f"unit {unit} refuses: exception {answer[2]}")
        return list(struct.unpack(f">{count}H", answer[3:]))


class Device:
    """A unit with registers that hold their own numbers."""

    def __init__(self, unit: int) -> None:
        self.unit = unit
        self.frames = Frames(self._asked)

    def _asked(self, frame: bytes) -> None:
        unit, function, first, count = struct.unpack(">BBHH", frame)
        if unit != self.unit:
            return
        if function != READ_REGISTERS or not 1 <= count <= 125:
            self.frames.send(bytes([unit, function | 0x80, 1]))
            return
        values = [(first + n) & 0xFFFF for n in range(count)]
        self.frames.send(struct.pack(f">BBB{count}H", unit, function, 2 * count, *values))


async def poll(path: str, baud: int, unit: int, first: int, count: int, times: int) -> None:
    master = Master()
    transport, _ = await fdtransport.connect_serial(
        lambda: master.frames, path, baud, parity="N", read_gap=GAP
    )
    try:
        for _ in range(times):
            try:
                print(await master.read_registers(unit, first, count))
            except TimeoutError:
                print("no answer")
            await asyncio.sleep(0)
    finally:
        await transport.aclose(timeout=1)


async def selftest(times: int) -> None:
    """A device of our own at the other end, at a speed that takes its time."""
    async with serial_pair(speed=True) as pair:
        device = Device(unit=17)
        far, _ = await fdtransport.connect_serial(
            lambda: device.frames, pair.b.path, 115200, read_gap=GAP
        )
        pair.b.receive(b"noise on the line")
        await asyncio.sleep(0.01)
        await poll(pair.a.path, 115200, 17, 100, 10, times)
        print(f"{device.frames.bad} bad frames")
        await far.aclose(timeout=1)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.modbus_poll", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", nargs="?", help="the port; without one, the selftest runs")
    parser.add_argument("--baud", type=between(int, 1, 10**9), default=9600)
    parser.add_argument("--unit", type=between(int, 1, 247), default=1)
    parser.add_argument("--first", type=between(int, 0, 65535), default=0, help="the first register")
    parser.add_argument("--count", type=between(int, 1, 125), default=10, help="registers (default 10)")
    parser.add_argument("--times", type=between(int, 1, 10**9), default=5, help="polls (default 5)")
    parser.add_argument("--selftest", action="store_true", help="of a device of its own")
    args = parser.parse_args()
    if args.selftest or args.path is None:
        return run_command(selftest(args.times))
    return run_command(poll(args.path, args.baud, args.unit, args.first, args.count, args.times))


if __name__ == "__main__":
    sys.exit(main())
