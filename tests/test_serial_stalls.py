"""What a program does with a serial port does not hold the loop, whatever the driver takes its time for."""

from __future__ import annotations

import os
import struct
import threading
from typing import Any

import pytest
from serial_stalls import MOST, SITUATIONS, full, least, opened
from terminal_pair import port

from fdtransport import serial
from fdtransport._core import syscalls


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_the_loop_is_not_held(situation: str) -> None:
    seconds = await least(situation, serial, enough=MOST, runs=50)
    assert seconds <= MOST


#: Calls of ioctl_tty(2) for which a driver may talk to its device, or wait for the line, and the caller with it.
SLOW = {
    0x5409: "TCSBRK", 0x5425: "TCSBRKP", 0x5427: "TIOCSBRK", 0x5428: "TIOCCBRK", 0x5403: "TCSETSW",
    0x5404: "TCSETSF", 0x402C542B: "TCSETS2", 0x402C542C: "TCSETSW2", 0x402C542D: "TCSETSF2",
    0x5415: "TIOCMGET", 0x5416: "TIOCMBIS", 0x5417: "TIOCMBIC", 0x5418: "TIOCMSET", 0x545C: "TIOCMIWAIT",
    0x542F: "TIOCSRS485", 0x541F: "TIOCSSERIAL",
}  # fmt: skip


@pytest.fixture
def on_the_loop(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that may take their time, as far as they were made in the loop's thread."""
    here, seen = threading.get_ident(), []

    def note(name: str) -> None:
        if threading.get_ident() == here:
            seen.append(name)

    def watched(name: str, is_slow: Any) -> None:
        function = getattr(syscalls, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if what := is_slow(*args):
                note(what)
            return function(*args, **kwargs)

        monkeypatch.setattr(syscalls, name, call)

    watched("open", lambda path, *_: f"open({path})" if str(path).startswith("/dev/") else "")
    watched("close", lambda fd: "close" if os.isatty(fd) else "")
    watched("tcsetattr", lambda *_: "tcsetattr")
    watched("ioctl", lambda _fd, request, *_: SLOW.get(request, ""))
    return seen


async def test_nothing_that_a_driver_may_block_on_is_called_on_the_loop(on_the_loop: list[str]) -> None:
    for end in ("close", "abort"):
        with port() as one:
            transport, protocol = await opened(serial, one.path)
            transport.write(b"hello")
            await transport.flushed()
            getattr(transport, end)()
            await protocol.lost
        with port() as one:
            transport, protocol = await full(serial, one)
            transport.flush()
            transport.write(b"hello")
            transport.abort()
            await protocol.lost
    assert on_the_loop == []


def test_the_watch_sees_what_is_called_here(on_the_loop: list[str]) -> None:
    with port() as one:
        syscalls.ioctl(one.kept, 0x5425, 0)
        with pytest.raises(OSError, match="ioctl"):
            syscalls.ioctl(one.kept, 0x5415, struct.pack("i", 0))
        syscalls.close(syscalls.open(one.path, os.O_RDWR | os.O_NOCTTY))
        assert on_the_loop == ["TCSBRKP", "TIOCMGET", f"open({one.path})", "close"]
