"""What a program does with a serial port does not hold the loop, whatever the driver takes its time for."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from serial_stalls import MOST, SITUATIONS, Quiet, full, least, opened
from terminal_pair import port

from fdtransport import serial
from fdtransport._core import syscalls
from fdtransport.testing import serial_pair
from fdtransport.testing.observe import until


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_the_loop_is_not_held(situation: str) -> None:
    seconds = await least(situation, serial, enough=MOST, runs=50)
    assert seconds <= MOST


#: Calls of ioctl_tty(2) for which a driver may talk to its device, or wait for the line.
SLOW = {
    0x5409: "TCSBRK", 0x5425: "TCSBRKP", 0x5427: "TIOCSBRK", 0x5428: "TIOCCBRK", 0x5403: "TCSETSW",
    0x5404: "TCSETSF", 0x402C542B: "TCSETS2", 0x402C542C: "TCSETSW2", 0x402C542D: "TCSETSF2",
    0x5415: "TIOCMGET", 0x5416: "TIOCMBIS", 0x5417: "TIOCMBIC", 0x5418: "TIOCMSET", 0x545C: "TIOCMIWAIT",
    0x542F: "TIOCSRS485", 0x541F: "TIOCSSERIAL",
}  # fmt: skip


@contextmanager
def calls_on_the_loop() -> Iterator[list[str]]:
    """The calls that may take their time, as far as they are made in the loop's thread within the block."""
    here, seen = threading.get_ident(), []

    def watched(name: str, is_slow: Any) -> None:
        function = getattr(syscalls, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if (what := is_slow(*args)) and threading.get_ident() == here:
                seen.append(what)
            return function(*args, **kwargs)

        patch.setattr(syscalls, name, call)

    with pytest.MonkeyPatch.context() as patch:
        watched("open", lambda path, *_: f"open({path})" if str(path).startswith("/dev/") else "")
        watched("close", lambda fd: "close" if os.isatty(fd) else "")
        watched("tcsetattr", lambda *_: "tcsetattr")
        watched("ioctl", lambda _fd, request, *_: SLOW.get(request, ""))
        yield seen


async def test_opening_writing_and_closing_call_nothing_that_may_block() -> None:
    for end in ("close", "abort"):
        with port() as one, calls_on_the_loop() as seen:
            transport, protocol = await opened(serial, one.path)
            transport.write(b"hello")
            await transport.flushed()
            getattr(transport, end)()
            await protocol.lost
            assert seen == []
        with port() as one, calls_on_the_loop() as seen:
            transport, protocol = await full(serial, one)
            transport.flush()
            transport.write(b"hello")
            transport.abort()
            await protocol.lost
            assert seen == []


async def test_what_concerns_the_line_calls_nothing_that_may_block() -> None:
    async with serial_pair() as pair:
        transport, protocol = await opened(serial, pair.a.path)
        with calls_on_the_loop() as seen:
            await transport.set_modem_lines(dtr=False, rts=True)
            assert not (await transport.modem_lines()).dtr
            changes = transport.modem_changes("cts")
            pair.a.set_line("cts", True)
            assert (await anext(changes)).edges
            await transport.reconfigure(baudrate=19200, parity="E")
            await transport.send_break(0.01)
            await transport.drain_wire()
            assert seen == []
        transport.close()
        await protocol.lost


async def test_nor_does_the_direction_of_rs485_by_hand() -> None:
    async with serial_pair() as pair:
        transport, protocol = await serial.connect_serial(Quiet, pair.a.path, rs485=serial.RS485())
        with calls_on_the_loop() as seen:
            transport.write(b"hello")
            await transport.drain_wire()
            await until(lambda: "rts" not in pair.a.lines, "it listens again")
            assert seen == []
        transport.close()
        await protocol.lost


def test_the_watch_sees_what_is_called_here() -> None:
    with port() as one, calls_on_the_loop() as seen:
        syscalls.ioctl(one.kept, 0x5425, 0)
        with pytest.raises(OSError, match="ioctl"):
            syscalls.ioctl(one.kept, 0x5415, struct.pack("i", 0))
        syscalls.close(syscalls.open(one.path, os.O_RDWR | os.O_NOCTTY))
        assert seen == ["TCSBRKP", "TIOCMGET", f"open({one.path})", "close"]
