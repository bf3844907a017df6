"""Writes down what is sent to a network, in a file that Wireshark and tshark open.

    python -m examples.tun_pcap --address 10.9.0.1/24 --write dump.pcap
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any

from fdtransport import connect_tuntap

from . import between, run_command
from .selftest import Namespace, run_selftest

#: LINKTYPE_RAW and LINKTYPE_ETHERNET of https://www.tcpdump.org/linktypes.html.
LINKS = {"tun": 101, "tap": 1}
MAGIC, LONGEST = 0xA1B23C4D, 1 << 18  # with nanoseconds


class Recorder(asyncio.DatagramProtocol):
    """One write to the file for all packets of a wake-up."""

    def __init__(self, file: IO[bytes], mode: str, wanted: int | None) -> None:
        self.file = file
        self.written = 0
        self.wanted = wanted
        self.done = asyncio.Event()
        file.write(struct.pack("=IHHiIII", MAGIC, 2, 4, 0, 0, LONGEST, LINKS[mode]))

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        if self.wanted is not None:
            records = records[: self.wanted - self.written]
        for packet, _ in records:
            self.file.write(struct.pack("=IIII", seconds, nanoseconds, len(packet), len(packet)) + packet)
        self.file.flush()
        self.written += len(records)
        if self.written == self.wanted:
            self.done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set()


async def run(file: IO[bytes], mode: Any, count: int | None, **options: Any) -> int:
    transport, recorder = await connect_tuntap(lambda: Recorder(file, mode, count), mode=mode, **options)
    try:
        print(f"what is sent to {transport.name} is written down", flush=True)
        await recorder.done.wait()
    finally:
        missed = transport.missed
        await transport.aclose()
    print(f"{recorder.written} packets, and {missed} that came too fast")
    return recorder.written


async def selftest() -> None:
    with Namespace() as space, tempfile.TemporaryFile() as file:
        options = {"netns": space, "addresses": "10.9.0.1/24", "link_local": False, "txqueuelen": 1000}
        task = asyncio.ensure_future(run(file, "tun", 300, **options))
        with space.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(300):
                while True:
                    try:
                        sock.sendto(b"packet %d" % number, ("10.9.0.2", 9))
                        break
                    except OSError:  # the interface is not there yet, or it never will be
                        await asyncio.wait([task], timeout=0.001)
                        if task.done():
                            task.result()
        assert await asyncio.wait_for(task, 10) == 300
        file.seek(0)
        data, at = file.read(), 24
        for number in range(300):
            size = struct.unpack_from("=I", data, at + 8)[0]
            assert data[at + 16 : at + 16 + size].endswith(b"packet %d" % number)
            at += 16 + size
        assert at == len(data)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.tun_pcap", description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", default="tun.pcap", help="default tun.pcap")
    parser.add_argument("--name", help="of the interface")
    parser.add_argument("--mode", choices=("tun", "tap"), default="tun", help="packets, or frames")
    parser.add_argument("--address", action="append", metavar="ADDRESS/PREFIX", help="10.9.0.1/24 by default")
    parser.add_argument("--count", type=between(int, 1, 10**9), metavar="N", help="end after so many packets")
    parser.add_argument("--selftest", action="store_true", help="in a network namespace of its own")
    args = parser.parse_args()
    if args.selftest:
        return run_command(run_selftest(selftest))
    addresses = args.address or ["10.9.0.1/24"]

    with open(args.write, "wb") as file:
        recording = run(file, args.mode, args.count, name=args.name, addresses=addresses)
        return run_command(_quietly(recording))


async def _quietly(recording: Coroutine[Any, Any, int]) -> None:
    await recording


if __name__ == "__main__":
    sys.exit(main())
