"""Programs that nobody here wrote, on terminals: what they draw, ask and record."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_programs import executable, needed

from fdtransport.pty_process import PtyProcessTransport, open_pty_process, spawn_pty
from fdtransport.testing.observe import until

pyte = needed("pyte")
ENV = {"PATH": os.defpath, "TERM": "linux", "LANG": "C.UTF-8", "HOME": "/nonexistent"}


class Screen(asyncio.Protocol):
    """A terminal emulator: what a person would see."""

    def __init__(self, rows: int, columns: int) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.ended = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.stream.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.ended = True

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    async def until(self, condition: Callable[[list[str]], object]) -> None:
        await until(lambda: condition(self.lines), lambda: f"it was drawn: {self.lines}", 10)


async def program(
    *words: str, rows: int = 10, columns: int = 40, **options: Any
) -> tuple[PtyProcessTransport, Screen]:
    return await spawn_pty(lambda: Screen(rows, columns), *words, size=(rows, columns), env=ENV, **options)


async def test_less_draws_pages_and_a_new_size(tmp_path: Path) -> None:
    executable("less", "less")
    text = tmp_path / "text"
    text.write_text("".join(f"line {n}\n" for n in range(1, 101)))
    transport, screen = await program("less", str(text))
    await screen.until(lambda lines: lines[:9] == [f"line {n}" for n in range(1, 10)])
    transport.write(b" ")
    await screen.until(lambda lines: lines[:9] == [f"line {n}" for n in range(10, 19)])
    screen.screen.resize(20, 40)
    transport.resize(20, 40)
    await screen.until(lambda lines: lines[:19] == [f"line {n}" for n in range(10, 29)])
    transport.write(b"g")
    await screen.until(lambda lines: lines[:19] == [f"line {n}" for n in range(1, 20)])
    transport.write(b"q")
    assert await transport.wait() == 0
    await until(lambda: screen.ended, "the terminal ended")


async def test_vim_edits_a_file(tmp_path: Path) -> None:
    executable("vim", "vim")
    text = tmp_path / "text"
    text.write_text("one\ntwo\n")
    transport, screen = await program("vim", "-u", "NONE", "-i", "NONE", "-n", "text", cwd=tmp_path)
    await screen.until(lambda lines: lines[:4] == ["one", "two", "~", "~"])
    assert not transport.canonical
    assert not transport.echo
    transport.write(b"othree\x1b")
    await screen.until(lambda lines: lines[:3] == ["one", "three", "two"])
    transport.write(b":wq\r")
    assert await transport.wait() == 0
    await until(lambda: screen.ended, "the terminal ended")
    assert text.read_text() == "one\nthree\ntwo\n"


async def test_ssh_keygen_asks_for_a_passphrase(tmp_path: Path) -> None:
    executable("ssh-keygen", "openssh-client")
    key = tmp_path / "key"
    reader, writer = await open_pty_process("ssh-keygen", "-q", "-t", "ed25519", "-f", str(key), env=ENV)
    async with asyncio.timeout(10):
        for _ in range(2):
            await reader.readuntil(b":")
            await writer.transport.wait_noecho()
            writer.write(b"a secret\n")
        rest = await reader.read()
    assert b"a secret" not in rest
    assert await writer.transport.wait() == 0
    assert key.exists()
    writer.close()


async def test_script_records_a_session_within_a_session(tmp_path: Path) -> None:
    executable("script", "bsdutils")
    record = tmp_path / "record"
    reader, writer = await open_pty_process(
        "script",
        "-q",
        "-e",
        "-c",
        "stty size; exit 3",
        str(record),
        size=(33, 99),
        env={**ENV, "SHELL": "/bin/sh"},
    )
    assert await reader.read() == b"33 99\r\n"
    assert await writer.transport.wait() == 3
    assert b"33 99" in record.read_bytes()
    writer.close()


def has_the_answer(lines: list[str]) -> bool:
    return any(line.split()[-1:] == ["42"] for line in lines)


async def test_tmux_keeps_a_session(tmp_path: Path) -> None:
    executable("tmux", "tmux")
    socket = str(tmp_path / "tmux")
    words = ("tmux", "-f", "/dev/null", "-S", socket)
    transport, screen = await program(*words, "new-session", "sh", rows=12, columns=60)
    await screen.until(lambda lines: lines[-1].startswith("["))
    transport.write(b"echo $((6 * 7))\r")
    await screen.until(has_the_answer)
    transport.send_signal(signal.SIGHUP)  # the client goes, the session stays
    await transport.wait()
    transport, screen = await program(*words, "attach", rows=12, columns=60)
    await screen.until(has_the_answer)
    transport.write(b"exit\r")
    assert await transport.wait() == 0
    await until(lambda: screen.ended, "the terminal ended")
