"""Send a log to a TCP server as it grows, across rotations, without losing or doubling a line.

    python -m examples.tail_logs /var/log/app.log tcp://collector:7000

Without arguments it writes and rotates a log of its own, and compares what arrives at a server of its own.
The same without a program: ``python -m fdtransport 'file:/var/log/app.log?follow' tcp://collector:7000``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile

import fdtransport

from . import between, run_command


async def tail(log: str, url: str) -> None:
    """Relay until one end is closed."""
    source = await fdtransport.open_url(f"file:{log}?follow")
    try:
        sink = await fdtransport.open_url(url)
    except BaseException:
        source[1].close()
        raise
    (await fdtransport.relay(source, sink, one_way=True)).raise_for_error()


async def write_and_rotate(log: str, lines: int, arrived: list[bytes]) -> None:
    """A program that writes a log, and opens it anew when it was rotated."""
    file = open(log, "a")  # noqa: ASYNC230, SIM115
    rotated = 0
    try:
        for number in range(lines):
            file.write(f"line {number}\n")
            file.flush()
            if number % 100 == 99:
                # Two rotations before anybody has read the first would leave one file without a name.
                while len(arrived) < number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                rotated += 1
                os.rename(log, f"{log}.{rotated}")
                file.write("the last of this file\n")
                file.close()
                file = open(log, "a")  # noqa: ASYNC230, SIM115
    finally:
        file.close()
    print(f"{lines} lines were written, and the file was rotated {rotated} times")


async def selftest(lines: int) -> int:
    arrived: list[bytes] = []
    expected = []
    for number in range(lines):
        expected.append(b"line %d\n" % number)
        if number % 100 == 99:
            expected.append(b"the last of this file\n")
    expected.append(b"the end\n")
    complete = asyncio.Event()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            arrived.append(line)
            if len(arrived) == len(expected):
                complete.set()
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "app.log")
        with open(log, "w"):  # noqa: ASYNC230
            pass
        async with await fdtransport.start_server(collect, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            tailing = asyncio.ensure_future(tail(log, f"tcp://{host}:{port}"))
            try:
                await write_and_rotate(log, lines, arrived)
                with open(log, "a") as file:  # noqa: ASYNC230
                    file.write("the end\n")  # a new file is begun when there is something in it
                await asyncio.wait_for(complete.wait(), 30)
            finally:
                tailing.cancel()
                await asyncio.gather(tailing, return_exceptions=True)
    how = "each in its place" if arrived == expected else "and not as written"
    print(f"{len(arrived)} lines arrived, {how}")
    return arrived != expected


async def run(log: str | None, url: str | None, lines: int) -> int:
    if log is None or url is None:
        return await selftest(lines)
    await tail(log, url)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.tail_logs", description=__doc__.splitlines()[0])
    parser.add_argument("log", nargs="?", help="the file (default: one of its own)")
    parser.add_argument("url", nargs="?", help="where it goes")
    parser.add_argument(
        "--lines", type=between(int, 1, 10**7), default=1000, metavar="N",
        help="of its own log (default 1000)",
    )  # fmt: skip
    args = parser.parse_args()
    if args.log is not None and args.url is None:
        parser.error("a log goes to a URL, as in tcp://collector:7000")
    return run_command(run(args.log, args.url, args.lines))


if __name__ == "__main__":
    sys.exit(main())
