"""Writes each line that a serial device sends, with the time, and goes on when the device was unplugged."""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import time
from typing import TextIO

import fdtransport
from fdtransport.testing import serial_pair
from fdtransport.testing.observe import until

from . import between, run_command


async def log(port: fdtransport.ReconnectingSerial, out: TextIO) -> None:
    async for reader, _ in port:
        print(f"{stamp()} -- connected", file=out, flush=True)
        try:
            async for line in reader:
                text = line.rstrip().decode("utf-8", "backslashreplace")
                print(f"{stamp()} {text}", file=out, flush=True)
        except fdtransport.SerialError as exc:
            print(f"{stamp()} -- {exc}", file=out, flush=True)


def stamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03}"


async def run(path: str, baud: int) -> None:
    async with fdtransport.ReconnectingSerial(path, baud) as port:
        await log(port, sys.stdout)


async def selftest() -> None:
    """A device that is unplugged again and again."""
    out = io.StringIO()
    async with serial_pair() as pair, fdtransport.ReconnectingSerial(pair.a.path, 115200) as port:
        logging = asyncio.create_task(log(port, out))
        for number in range(3):
            await until(lambda: port.connected, "it is connected")
            pair.a.receive(b"measurement %d\n" % number)
            await until(lambda n=number: f"measurement {n}" in out.getvalue(), "it was written down")
            pair.a.unplug()
            await until(lambda: not port.connected, "it is gone")
            pair.a.plug()
        logging.cancel()
        await asyncio.gather(logging, return_exceptions=True)
    print(out.getvalue(), end="")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.serial_logger", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", nargs="?", help="the port; without one, the selftest runs")
    parser.add_argument("--baud", type=between(int, 1, 10**9), default=115200)
    parser.add_argument("--selftest", action="store_true", help="over a pair of virtual ports")
    args = parser.parse_args()
    return run_command(selftest() if args.selftest or args.path is None else run(args.path, args.baud))


if __name__ == "__main__":
    sys.exit(main())
