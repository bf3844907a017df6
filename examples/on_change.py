"""Run a command whenever files change, once for all that change together.

    python -m examples.on_change src python -m pytest

Without arguments it has a directory and a command of its own, and ends after three runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fdtransport

from . import between, run_command

IGNORED = [".git", "__pycache__", "*.pyc", "*~", ".*.sw?"]


async def on_change(directory: str, command: Sequence[str], settle: float, runs: int | None) -> None:
    """*settle*: seconds of quiet before it runs, so that saving ten files is one run."""
    done = 0
    async with fdtransport.watch(directory, ignore=IGNORED, settle=settle, batch=True) as watcher:
        async for events in watcher:
            names = sorted({event.name for event in events})
            print(f"changed: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}", flush=True)
            process = await fdtransport.create_subprocess_exec(*command)
            # What changes meanwhile waits, and makes it run once more.
            print(f"  ended with {await process.wait()}", flush=True)
            done += 1
            if done == runs:
                return


def save(directory: str, text: str) -> None:
    for name in ("one", "two", "three"):  # three files, one run
        Path(directory, name).write_text(text)


async def selftest(settle: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", "print('  the command runs')"]
        running = asyncio.ensure_future(on_change(directory, command, settle, 3))
        number = 0
        while not running.done():
            number += 1
            save(directory, str(number))
            await asyncio.wait([running], timeout=4 * settle + 0.2)
        await running


async def run(directory: str | None, command: Sequence[str], settle: float) -> None:
    if directory is None:
        await selftest(settle)
    else:
        await on_change(directory, command or ["true"], settle, None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.on_change", description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", help="what to watch (default: one of its own)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    parser.add_argument(
        "--settle",
        type=between(float, 1e-3, 60),
        default=0.05,
        metavar="SECONDS",
        help="of quiet before it runs (default 0.05)",
    )
    args = parser.parse_args()
    return run_command(run(args.directory, args.command, args.settle))


if __name__ == "__main__":
    sys.exit(main())
