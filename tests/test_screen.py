"""What was switched on in a terminal is known, however it came, and switched off again."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import Iterator

import pytest

from fdtransport import attach_terminal, relay
from fdtransport._core import syscalls
from fdtransport._core.screen import Screen
from fdtransport.testing import FarEnd, pattern

#: What vim sends at its start, and at its end.
VIM = (
    b"\x1b[?1049h\x1b[22;0;0t\x1b[>4;2m\x1b[?1h\x1b=\x1b[?2004h\x1b[?1004h"
    b"\x1b[1;24r\x1b[?12h\x1b[?12l\x1b[?25l\x1b[m"
)
VIM_ENDS = b"\x1b[?2004l\x1b[>4;m\x1b[?1004l\x1b[?1l\x1b>\x1b[?25h\x1b[?1049l\x1b[23;0;0t"

SHOWN = {
    "nothing": (b"", b""),
    "colours and moves": (b"\x1b[31mred\x1b[2;3H\x1b[2J\x1b]0;title\x07", b""),
    "vim": (VIM, b"\x1b[?25h\x1b[?1004l\x1b[?2004l\x1b>\x1b[?1l\x1b[>4m\x1b[?1049l\x1b[m"),
    "more keys": (b"\x1b[>1u\x1b[>4;1m", b"\x1b[>4m\x1b[<u\x1b[m"),
    "more keys and their end": (b"\x1b[>1u\x1b[>4;1m\x1b[<u\x1b[>4;0m", b""),
    "questions": (b"\x1b[>c\x1b[>0q\x1b[?u\x1b[?1049$p", b""),
    "vim and its end": (VIM + VIM_ENDS, b""),
    "the mouse, all at once": (b"\x1b[?1000;1006h", b"\x1b[?1006l\x1b[?1000l\x1b[m"),
    "no wrap": (b"\x1b[?7l", b"\x1b[?7h\x1b[m"),
    "a reset": (VIM + b"\x1bc", b""),
    "a mode that nobody knows": (b"\x1b[?4242h", b""),
    "as at the beginning": (b"\x1b[?25h\x1b[?7h\x1b[?1049l\x1b>", b""),
}


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def drain(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("shown", "undone"), SHOWN.values(), ids=SHOWN)
def test_what_was_switched_on_is_switched_off(
    shown: bytes, undone: bytes, size: int, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    screen = Screen(syscalls, writing)
    for start in range(0, len(shown), size):
        piece = shown[start : start + size]
        if start % 2:
            assert screen.writev(writing, [piece[:1], memoryview(piece)[1:]]) == len(piece)
        else:
            assert screen.write(writing, memoryview(piece)) == len(piece)
    assert drain(reading) == shown
    screen.undo()
    screen.undo()
    assert drain(reading) == undone
    screen.redo()
    screen.redo()
    again = drain(reading)
    other = Screen(syscalls, writing)
    other.see(again)
    screen.undo()
    assert drain(reading) == undone
    other.undo()
    assert drain(reading) == undone


def test_what_a_terminal_did_not_take_was_not_shown(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    screen = Screen(syscalls, writing)
    taken = screen.write(writing, b"\x1b[?1049h" + bytes(1 << 20) + b"\x1b[?25l")
    assert taken < 1 << 20
    with pytest.raises(BlockingIOError):
        screen.write(writing, b"\x1b[?25l")
    while drain(reading):
        pass
    screen.undo()
    assert drain(reading) == b"\x1b[?1049l\x1b[m"


async def test_a_user_who_leaves_in_the_middle_is_back_on_the_first_screen() -> None:
    master, slave = os.openpty()
    far = FarEnd(master)
    tty.setraw(slave)
    async with asyncio.timeout(10), attach_terminal(slave) as streams:
        source, sink = os.pipe()
        reader, writer = await _piped(source)
        running = asyncio.ensure_future(relay((reader, writer), streams))
        content = pattern(100_000).replace(b"\x1b", b" ")
        os.write(sink, VIM)
        assert await far.recv_exactly(len(VIM)) == VIM
        os.set_blocking(sink, False)
        os.write(sink, content[:50_000])
        assert await far.recv_exactly(50_000) == content[:50_000]
        await far.send(b"\x1d.")
        result = await running
        assert result.a_to_b.bytes == len(VIM) + 50_000
    undone = SHOWN["vim"][1]
    assert await far.recv_exactly(len(undone)) == undone
    os.close(sink)
    far.close()
    os.close(slave)


async def _piped(source: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    from fdtransport import open_fd

    return await open_fd(source)
