"""Programs at terminals of their own, as jobs of a session, and what becomes of them and of the terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fdtransport import PtyProcessTransport, open_unix_connection, spawn_pty
from fdtransport.testing.observe import until

LEADER = str(Path(__file__).with_name("terminal_session.py"))
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("PYTHONASYNCIODEBUG", "TERM")},
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "TERM": "dumb",
}
PATIENCE = 20

#: What each job begins with; ``run`` takes the loop that the test has.
PRELUDE = """
import asyncio, os, signal, sys
from fdtransport import attach_terminal, connect_terminal

def tell(*words):
    os.write(3, (" ".join(map(str, words)) + "\\n").encode())

def run(main):
    if sys.argv[1] == "uvloop":
        import uvloop as source
    else:
        import asyncio as source
    with asyncio.Runner(loop_factory=source.new_event_loop) as runner:
        runner.get_loop().slow_callback_duration = 60  # a busy machine is not this program's fault
        runner.run(main())
"""

#: Attached until a key is typed, or something happens.
ATTACHED = """
async def main():
    async with attach_terminal(on_resize=lambda size: tell("size", *size[:2])) as (reader, writer):
        tell("attached", os.get_blocking(0))
        key = await reader.read(100)
        tell("key", key, os.get_blocking(0))
        {ending}
run(main)
"""


class Session(asyncio.Protocol):
    """A terminal with a session that has one job, and what is told of that."""

    def __init__(self) -> None:
        self.shown = b""
        self.over = False
        self.terminal: PtyProcessTransport
        self.told: asyncio.StreamReader
        self.orders: asyncio.StreamWriter
        self.pid = 0

    def data_received(self, data: bytes) -> None:
        self.shown += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True

    async def hears(self, words: str) -> None:
        line = (await self.told.readline()).decode().strip()
        assert line == words, f"{line!r}, and on the terminal: {self.shown.decode()}"

    def order(self, word: str) -> None:
        self.orders.write(word.encode() + b"\n")

    def type(self, keys: bytes) -> None:
        self.terminal.write(keys)

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    async def until_shown(self, text: bytes) -> None:
        await until(lambda: text in self.shown, lambda: f"{text!r} was shown: {self.shown!r}", PATIENCE)

    @property
    def is_raw(self) -> bool:
        return not (self.terminal.canonical or self.terminal.echo)


@asynccontextmanager
async def session(*job: str, where: str = "fg", **options: Any) -> AsyncIterator[Session]:
    """*job* as the only one of a session, on a terminal of its own."""
    ours, theirs = socket.socketpair()
    command = (sys.executable, "-I", "-S", LEADER, where, *job)
    with theirs:
        terminal, one = await spawn_pty(
            Session, *command, fds={3: theirs.fileno()}, env=ENVIRONMENT, **options
        )
    one.terminal = terminal
    one.told, one.orders = await open_unix_connection(sock=ours)
    try:
        async with asyncio.timeout(PATIENCE):
            word, pid = (await one.told.readline()).split()
            assert word == b"started"
            one.pid = int(pid)
            yield one
            await terminal.wait()
    finally:
        if terminal.returncode is None:
            terminal.kill()
            if one.pid:
                os.kill(one.pid, signal.SIGKILL)
        one.orders.close()
        await one.orders.wait_closed()
        terminal.abort()
        await until(lambda: one.over, "the terminal ended")


def loop_name() -> str:
    """That of the test's loop: what it starts has one of the same kind."""
    return "uvloop" if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else "asyncio"


def job(program: str, **options: Any) -> Any:
    """As ``session``, of a Python program."""
    python = (sys.executable, "-X", "dev", "-W", "error", "-c")
    return session(*python, PRELUDE + program, loop_name(), **options)


@asynccontextmanager
async def shell(*command: str) -> AsyncIterator[Session]:
    terminal, one = await spawn_pty(Session, *command, env={**ENVIRONMENT, "PS1": "> "}, echo=False)
    one.terminal = terminal
    try:
        async with asyncio.timeout(PATIENCE):
            yield one
    finally:
        terminal.abort()
        await terminal.wait()
        await until(lambda: one.over, "the terminal ended")
