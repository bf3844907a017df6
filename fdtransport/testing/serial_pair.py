"""Two virtual serial ports with a null modem cable between them, for tests of programs that use some."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator

from .faults import FaultPlan
from .uart import Uart, emulation

__all__ = ["SerialPair", "VirtualPort", "serial_pair"]


class VirtualPort:
    """One end of a `SerialPair`."""

    def __init__(self, link: str, *, speed: bool, rs485: bool) -> None:
        self.path: str = link
        """Where a program finds it."""
        self._speed = speed
        self._rs485 = rs485
        self._other: VirtualPort = self
        self.uart: Uart | None = None
        """What is there; None while it is unplugged."""

    def plug(self) -> None:
        """Put the device there (again): it is a new one, with nothing of the former one's state."""
        assert self.uart is None, f"{self.path} is there"
        uart = self.uart = Uart(asyncio.get_running_loop(), speed=self._speed, rs485=self._rs485)
        other = self._other.uart
        uart.peer = uart if other is None else other
        if other is not None:
            other.peer = uart
        os.symlink(uart.path, self.path)
        uart.start()

    def unplug(self) -> None:
        """Take the device away: whoever has it open is hung up."""
        uart, self.uart = self.uart, None
        if uart is not None:
            with contextlib.suppress(FileNotFoundError):  # the test has removed it
                os.unlink(self.path)
            uart.close()

    def _there(self) -> Uart:
        assert self.uart is not None, f"{self.path} is unplugged"
        return self.uart

    @property
    def lines(self) -> frozenset[str]:
        """The names of the lines that are on, of dtr, rts, cts, dsr, ri and cd."""
        bits = self._there().lines
        names = {"dtr": 0x002, "rts": 0x004, "cts": 0x020, "cd": 0x040, "ri": 0x080, "dsr": 0x100}
        return frozenset(name for name, bit in names.items() if bits & bit)

    def set_line(self, name: str, on: bool) -> None:
        """Set ``"cts"``, ``"dsr"``, ``"ri"`` or ``"cd"`` of this port, as a device at the other end would."""
        self._there().set_input(name, on)

    def receive(self, data: bytes) -> None:
        """Have *data* come over the line, at once."""
        self._there().receive(data)

    def receive_break(self) -> None:
        """Have a break come over the line."""
        self._there().receive_break()

    def receive_damaged(self, byte: int, kind: str = "parity") -> None:
        """Have a character come with the wrong ``"parity"``, or without a stop bit (``"frame"``)."""
        self._there().damage(byte, kind)

    def __repr__(self) -> str:
        return f"<VirtualPort {self.path}{'' if self.uart else ' unplugged'}>"


class SerialPair:
    """``a`` and ``b`` are the ends: what one sends the other receives, RTS of one is CTS of the other, and
    DTR of one is DSR and CD of the other."""

    def __init__(self, directory: str, *, speed: bool, rs485: bool) -> None:
        self.a: VirtualPort = VirtualPort(os.path.join(directory, "ttyA"), speed=speed, rs485=rs485)
        self.b: VirtualPort = VirtualPort(os.path.join(directory, "ttyB"), speed=speed, rs485=rs485)
        self.a._other, self.b._other = self.b, self.a


@contextlib.asynccontextmanager
async def serial_pair(
    *, speed: bool = False, rs485: bool = False, faults: FaultPlan | None = None
) -> AsyncIterator[SerialPair]:
    """Two virtual serial ports that are connected to each other, for as long as the block runs.

    Bytes go through terminals of the kernel (pty(7)). Attributes, modem lines, counts, breaks and damaged
    characters are emulated, for this library only: another program sees a terminal. *speed*: have bytes take
    the time that they would take at the baud rate of the port. *rs485*: the driver has an RS-485 mode.
    *faults*: a `FaultPlan` that holds meanwhile.

    :raises OSError: no terminals or descriptors are left.

    ::

        async with serial_pair() as pair:
            reader, writer = await open_serial(pair.a.path, 115200)
            device = await connect_serial(MyDevice, pair.b.path, 115200)
            pair.b.set_line("cts", False)
            pair.a.unplug()
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="serial-"))
        stack.enter_context(emulation())
        pair = SerialPair(directory, speed=speed, rs485=rs485)
        for port in (pair.a, pair.b):
            stack.callback(port.unplug)
            port.plug()
        if faults is not None:
            stack.enter_context(faults)
        yield pair
