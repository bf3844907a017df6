"""A terminal for a serial port: what is typed goes to the port, what the port sends is shown.

Ctrl-] leaves. Ctrl-T and a key: b sends a break, r and d switch RTS and DTR, i shows the port, + and - go to
the next baud rate, Ctrl-T sends itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from typing import Any

import fdtransport
from fdtransport.serial import SerialTransport
from fdtransport.testing import serial_pair
from fdtransport.testing.observe import until

from . import between, run_command

MENU = b"\x14"  # Ctrl-T
ENDS = {"cr": b"\r", "lf": b"\n", "crlf": b"\r\n"}
RATES = (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600)


class Session:
    """The keys that go to the port, and those that are for this program."""

    def __init__(self, port: SerialTransport, screen: asyncio.StreamWriter, end: bytes, echo: bool) -> None:
        self.port = port
        self.screen = screen
        self.end = end
        self.echo = echo
        self.in_menu = False

    def say(self, text: str) -> None:
        self.screen.write(f"\r\n--- {text}\r\n".encode())

    async def typed(self, keys: bytes) -> None:
        for key in (keys[n : n + 1] for n in range(len(keys))):
            if self.in_menu:
                self.in_menu = False
                await self.choose(key)
            elif key == MENU:
                self.in_menu = True
            else:
                self.send(self.end if key == b"\r" else key)

    def send(self, data: bytes) -> None:
        self.port.write(data)
        if self.echo:
            self.screen.write(data)

    async def choose(self, key: bytes) -> None:
        try:
            if key == MENU:
                self.send(MENU)
            elif key == b"b":
                await self.port.send_break()
                self.say("break")
            elif key in (b"r", b"d"):
                name = {b"r": "rts", b"d": "dtr"}[key]
                on = not getattr(await self.port.modem_lines(), name)
                await self.port.set_modem_lines(**{name: on})
                self.say(f"{name.upper()} {'on' if on else 'off'}")
            elif key in (b"+", b"-"):
                await self.change_rate(key)
            elif key == b"i":
                self.say(f"{self.port.settings}")
                self.say(f"{await self.port.modem_lines()}")
            else:
                self.say("b break, r RTS, d DTR, i info, + faster, - slower, Ctrl-T itself, Ctrl-] leaves")
        except fdtransport.SerialError as exc:  # it has no such lines, or not this rate
            self.say(str(exc))

    async def change_rate(self, key: bytes) -> None:
        now = self.port.settings.baudrate
        rates = [rate for rate in RATES if (rate > now if key == b"+" else rate < now)]
        if rates:
            settings = await self.port.reconfigure(baudrate=rates[0] if key == b"+" else rates[-1])
            self.say(f"{settings.baudrate} baud")


async def run(path: str, baud: int, end: str, echo: bool, terminal: Any = (0, 1)) -> None:
    reader, writer = await fdtransport.open_serial(path, baud)
    port: Any = writer.transport
    try:
        async with fdtransport.attach_terminal(terminal) as (keyboard, screen):
            session = Session(port, screen, ENDS[end], echo)
            session.say(f"{path} {baud} baud; Ctrl-T h for help, Ctrl-] leaves")

            async def show() -> None:
                while data := await reader.read(65536):
                    screen.write(data)
                    await screen.drain()

            async def keys() -> None:
                while data := await keyboard.read(4096):
                    await session.typed(data)

            tasks = [asyncio.create_task(show()), asyncio.create_task(keys())]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*waiting)
        for task in done:
            task.result()
    finally:
        await port.aclose(timeout=1)


async def selftest() -> None:
    """Somebody types at a terminal of its own, and a device answers."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    shown = bytearray()

    def sees(text: bytes) -> bool:
        with contextlib.suppress(BlockingIOError):
            shown.extend(os.read(master, 65536))
        return text in shown

    async with serial_pair() as pair:
        device_reader, device = await fdtransport.open_serial(pair.b.path, 9600)
        session = asyncio.create_task(run(pair.a.path, 9600, "crlf", False, slave))
        await until(lambda: sees(b"Ctrl-] leaves"), "it began")
        os.write(master, b"AT\r")
        if await device_reader.readline() != b"AT\r\n":
            raise RuntimeError("the device got something else")
        device.write(b"OK\r\n")
        await until(lambda: sees(b"OK\r\n"), "the answer is shown")
        answers = {b"r": b"RTS off", b"+": b"19200 baud", b"i": b"dtr=True", b"?": b"b break"}
        for key, answer in answers.items():
            os.write(master, MENU + key)
            await until(lambda wanted=answer: sees(wanted), f"{answer!r} is shown")
        if "rts" in pair.a.lines:
            raise RuntimeError("RTS is still on")
        os.write(master, b"\x1d")
        await session
        device.close()
        await device.wait_closed()
    os.close(master)
    print("what was typed reached the device, and its answer the screen")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.serial_terminal", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", nargs="?", help="the port; without one, the selftest runs")
    parser.add_argument("--baud", type=between(int, 1, 10**9), default=115200)
    parser.add_argument("--end", choices=sorted(ENDS), default="cr", help="what the Enter key sends")
    parser.add_argument("--echo", action="store_true", help="show what is typed")
    parser.add_argument("--selftest", action="store_true", help="over virtual ports")
    args = parser.parse_args()
    if args.selftest or args.path is None:
        return run_command(selftest())
    return run_command(run(args.path, args.baud, args.end, args.echo))


if __name__ == "__main__":
    sys.exit(main())
