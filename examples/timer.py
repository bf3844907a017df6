"""A new kind of descriptor in one file: timerfd, the kernel's own clock tick.

What an adapter has to say is how the object is opened and what a record of it means; buffering,
flow control, closing and errors are the core's. ``connect_timer`` is complete as it stands.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from fdtransport import PacketTransport, connect_packet_fd

from . import between, run_command

TFD_NONBLOCK, TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC


def timerfd(interval: float) -> int:
    """A descriptor that becomes readable every *interval* seconds: timerfd_create(2)."""
    # os.timerfd_create is there from Python 3.13 on.
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
    seconds, nanoseconds = divmod(round(interval * 1e9), 10**9)
    spec = struct.pack("llll", seconds, nanoseconds, seconds, nanoseconds)
    if fd < 0 or libc.timerfd_settime(fd, 0, spec, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(fd)


class Ticks(asyncio.DatagramProtocol):
    """One record is eight bytes: how often the timer has expired since the last one."""

    def __init__(self, on_tick: Callable[[int], None]) -> None:
        self.on_tick = on_tick

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.on_tick(int.from_bytes(data, sys.byteorder))


async def connect_timer(interval: float, on_tick: Callable[[int], None]) -> PacketTransport:
    """Call *on_tick* with the number of expirations, every *interval* seconds, until it is closed."""
    fd = timerfd(interval)
    try:
        transport, _ = await connect_packet_fd(lambda: Ticks(on_tick), fd, max_size=8)
    except BaseException:
        os.close(fd)
        raise
    return transport


async def run(interval: float, ticks: int) -> None:
    start = time.monotonic()
    counted = 0
    expired: asyncio.Queue[int] = asyncio.Queue()
    transport = await connect_timer(interval, expired.put_nowait)
    try:
        while counted < ticks:
            counted += await expired.get()
            print(f"tick {counted} after {time.monotonic() - start:.3f} s")
    finally:
        await transport.aclose()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.timer", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--interval",
        type=between(float, 1e-6, 1e6),
        default=0.1,
        metavar="SECONDS",
        help="between ticks (default 0.1)",
    )
    parser.add_argument(
        "--ticks", type=between(int, 1, 10**9), default=5, metavar="N", help="how many (default 5)"
    )
    args = parser.parse_args()
    return run_command(run(args.interval, args.ticks))


if __name__ == "__main__":
    sys.exit(main())
