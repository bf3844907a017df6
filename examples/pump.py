"""Back pressure without a line of flow control: an async generator into a slow pipe.

``write_from`` asks the generator for the next piece only while the pipe's reader keeps up, so that
memory stays flat however much the generator could make.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator

import fdtransport

from . import between, run_command


async def pieces(count: int, made: list[int]) -> AsyncIterator[bytes]:
    for number in range(count):
        made.append(number)
        yield bytes(16 * 1024)


async def run(count: int) -> None:
    read, write = os.pipe()
    sink, _ = await fdtransport.connect_fd(asyncio.Protocol, write)
    reader, _ = await fdtransport.open_fd(read)
    made: list[int] = []
    writing = asyncio.create_task(sink.write_from(pieces(count, made)))
    taken, most_ahead = 0, 0
    while taken < count * 16 * 1024:
        taken += len(await reader.readexactly(16 * 1024))
        most_ahead = max(most_ahead, len(made) * 16 * 1024 - taken)
    written = await writing
    await sink.aclose()
    print(f"{written} bytes went through; at most {most_ahead // 1024} KiB were ahead of the reader")
    print(f"the pipe was closed: {sink.close_reason}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.pump", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pieces", type=between(int, 1, 10**9), default=2000, metavar="N", help="of 16 KiB (default 2000)"
    )
    return run_command(run(parser.parse_args().pieces))


if __name__ == "__main__":
    sys.exit(main())
