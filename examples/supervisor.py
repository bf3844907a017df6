"""Runs several programs, shows what they print as it comes, and starts again what fails.

    python -m examples.supervisor 'python -m http.server' 'tail -F /var/log/syslog'

A program that ends with status 0 has done its work. One that fails is started again: after --pause seconds,
the next time after twice as long, and so on up to a minute; one that ran for a minute is forgiven. Ctrl-C or
SIGTERM ends them all: each gets SIGTERM, and when 3 seconds were not enough SIGKILL. Without arguments it
shows itself for two seconds, with three small programs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence

import fdtransport

from . import between, run_command

LONGEST, FORGIVEN, GRACE = 60.0, 60.0, 3.0
COLOURS, ERROR, PLAIN = ("\033[36m", "\033[33m", "\033[35m", "\033[32m", "\033[34m"), "\033[31m", "\033[m"
SHOWN = {
    "steps": "for n in 1 2 3; do echo step $n of 3; sleep 0.2; done",
    "doubtful": "echo looks for a reason to go on; sleep 0.1; echo there is none >&2; exit 3",
    "worker": 'trap "echo tidies up; exit" TERM; while echo is at work; do sleep 0.4; done',
}


class Board:
    """Where all lines go, each after the name of its program. When it is gone, all is stopped."""

    def __init__(self, names: Sequence[str], stop: Callable[[], object]) -> None:
        self.stop, self.width = stop, max(map(len, names))
        self.error: OSError | None = None
        self.coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.colours = dict(zip(names, itertools.cycle(COLOURS), strict=False))

    def show(self, name: str, text: str, colour: str = "") -> None:
        head = f"{name:{self.width}} |"
        if self.coloured:
            head, text = f"{self.colours[name]}{head}{PLAIN}", f"{colour}{text}{PLAIN if colour else ''}"
        try:
            print(head, text, flush=True)
        except OSError as exc:
            if self.error is None:
                self.error = exc
                self.stop()

    async def show_all(self, name: str, reader: fdtransport.StreamReader, colour: str = "") -> None:
        while line := await reader.readline():
            self.show(name, line.decode(errors="replace").rstrip("\r\n"), colour)


async def run_once(name: str, command: Sequence[str], board: Board) -> int:
    """Run it to its end; its status, or minus the number of a signal. When this is cancelled, it is ended."""
    process = await fdtransport.create_subprocess_exec(
        *command,
        fds={0: asyncio.subprocess.DEVNULL, 1: "r", 2: "r"},
        start_new_session=True,  # Ctrl-C is for us, and what follows from it
        linger=1.0,  # what it leaves behind in the background may not keep its output open for longer
        limit=1 << 20,
    )
    async with process, asyncio.TaskGroup() as group:
        shows = (board.show_all(name, process.fds[fd], colour) for fd, colour in ((1, ""), (2, ERROR)))
        shown = [group.create_task(show) for show in shows]
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await process.terminate(grace=GRACE)
            await asyncio.wait(shown)  # its last words
            raise
    return code


async def keep_running(name: str, command: Sequence[str], board: Board, pause: float) -> None:
    failures = 0
    while True:
        began = time.monotonic()
        try:
            code = await run_once(name, command, board)
        except OSError as exc:
            board.show(name, f"cannot be started: {exc}", ERROR)
            return
        if not code:
            board.show(name, "has done its work")
            return
        failures = 1 if time.monotonic() - began > FORGIVEN else failures + 1
        wait = min(pause * 2 ** (failures - 1), LONGEST)
        how = f"status {code}" if code > 0 else signal.Signals(-code).name
        board.show(name, f"failed with {how}, and is started again in {wait:g} s", ERROR)
        await asyncio.sleep(wait)


async def run(programs: dict[str, Sequence[str]], pause: float, seconds: float | None) -> int:
    """Keep all of them running for so many seconds, or until they have done their work."""
    task, told = asyncio.current_task(), []
    assert task is not None
    board = Board(list(programs), task.cancel)

    def terminated() -> None:
        told.append(143)
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated)
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for name, command in programs.items():
                group.create_task(keep_running(name, command, board, pause))
    except TimeoutError:
        pass
    except asyncio.CancelledError:
        if board.error is not None:
            raise board.error from None
        return told[0] if told else 130
    return 0


def words(text: str) -> list[str]:
    with contextlib.suppress(ValueError):  # a quotation that is not closed
        if found := shlex.split(text):
            return found
    raise argparse.ArgumentTypeError(f"a program and its arguments are needed, not {text!r}")


def main() -> int:
    parser = argparse.ArgumentParser("python -m examples.supervisor", None, __doc__.splitlines()[0])
    parser.add_argument("command", nargs="*", type=words, help="a program and its arguments, quoted as one")
    parser.add_argument("--pause", type=between(float, 0.01, 60), default=0.5, metavar="SECONDS",
                        help="before a program is started again (default 0.5)")  # fmt: skip
    args = parser.parse_args()
    if not args.command:
        return run_command(run({name: ["sh", "-c", line] for name, line in SHOWN.items()}, args.pause, 2.0))
    programs: dict[str, Sequence[str]] = {}
    for command in args.command:
        name = os.path.basename(command[0])
        programs[f"{name} {len(programs) + 1}" if name in programs else name] = command
    return run_command(run(programs, args.pause, None))


if __name__ == "__main__":
    sys.exit(main())
