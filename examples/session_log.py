"""Records a session at a terminal, with times, and plays it back.

    python -m examples.session_log --record session.cast             # your shell; exit or Ctrl-] ends it
    python -m examples.session_log --record session.cast make test   # any program, also without a terminal
    python -m examples.session_log --play session.cast --speed 4

Without arguments it shows itself: a small session, recorded and played back. The file is an asciicast, which
asciinema plays as well (https://docs.asciinema.org/manual/asciicast/v2/).
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import fdtransport

from . import between, run_command

COLOURS = (
    "stty size; for n in 1 2 3 4 5 6; do printf '\\033[3%sm#### ' $n; sleep 0.2; done; printf '\\033[m\\n'"
)


class Cast:
    """A recording that grows, and the terminal that it is of."""

    def __init__(self, path: str, terminal: Any, command: Sequence[str]) -> None:
        self.terminal = terminal
        self.began = time.monotonic()
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # half a character may come
        self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - it is closed by whoever has this
        rows, columns, *_ = terminal.window_size
        head = {"version": 2, "width": columns, "height": rows, "command": " ".join(command)}
        self.write({**head, "timestamp": int(time.time())})

    def write(self, line: object) -> None:
        # What there is of it can be played, whatever happens.
        print(json.dumps(line, ensure_ascii=False), file=self.file, flush=True)

    def event(self, kind: str, text: str) -> None:
        self.write([round(time.monotonic() - self.began, 6), kind, text])

    def output(self, data: bytes) -> None:
        if text := self.decode(data):
            self.event("o", text)

    def resize(self, rows: int, columns: int, xpixel: int = 0, ypixel: int = 0) -> None:
        self.terminal.resize(rows, columns, xpixel, ypixel)
        self.event("r", f"{columns}x{rows}")


async def record(path: str, command: Sequence[str], *, attach: bool) -> int:
    """Run *command* on a terminal in this one (*attach*), or with no keyboard; its exit status."""
    async with contextlib.AsyncExitStack() as stack:
        size: Any = (24, 80)
        if attach:
            keys, screen = await stack.enter_async_context(fdtransport.attach_terminal())
            size = tuple(map(max, screen.transport.get_extra_info("window_size"), (1, 1, 0, 0)))
        output, typed = await fdtransport.open_pty_process(*command, size=size)
        terminal: Any = typed.transport
        stack.push_async_callback(terminal.finish)
        cast = Cast(path, terminal, command)
        stack.callback(cast.file.close)
        if attach:
            screen.transport.forward_size(cast)
            stack.callback(asyncio.create_task(copy(keys, typed)).cancel)
        while data := await output.read(65536):
            cast.output(data)
            if attach:
                screen.write(data)
                await screen.drain()
            else:
                show(data)
        code = await terminal.wait()
        return int(code) if code >= 0 else 128 - code


async def copy(keys: asyncio.StreamReader, typed: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # the program has ended
        while data := await keys.read(65536):
            typed.write(data)
            await typed.drain()
    typed.close()  # the user leaves, and the terminal is hung up


def show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def events(path: str) -> Iterator[tuple[float, str, str]]:
    with open(path, encoding="utf-8") as file:
        try:
            if json.loads(next(file, "")).get("version") != 2:
                raise ValueError("it is of another version")
            for at, kind, text in map(json.loads, file):
                yield float(at), kind, text
        except (ValueError, AttributeError, TypeError) as exc:
            raise OSError(f"{path} is no asciicast: {exc}") from None


async def play(path: str, speed: float) -> None:
    began = time.monotonic()
    for at, kind, text in events(path):
        await asyncio.sleep(began + at / speed - time.monotonic())
        if kind == "o":
            show(text.encode("utf-8", "surrogatepass"))


async def show_itself(speed: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await record(path := f"{folder}/session.cast", ["sh", "-c", COLOURS], attach=False)
        print(
            f"recorded {sum(1 for _ in events(path))} events; played back {speed:g} times as fast:",
            flush=True,
        )
        await play(path, speed)


def main() -> int:
    parser = argparse.ArgumentParser("python -m examples.session_log", None, __doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--record", metavar="FILE", help="write a recording there")
    which.add_argument("--play", metavar="FILE", help="play it")
    parser.add_argument(
        "--speed", type=between(float, 0.01, 1000), default=2.0, metavar="N", help="(default 2)"
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, help="what is recorded (your shell)")
    args = parser.parse_args()
    if args.play:
        return run_command(play(args.play, args.speed))
    program = args.program or [os.environ.get("SHELL", "/bin/sh")]
    if args.record:
        return run_command(record(args.record, program, attach=sys.stdin.isatty()))
    return run_command(show_itself(args.speed))


if __name__ == "__main__":
    sys.exit(main())
