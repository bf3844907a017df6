"""IP over a serial line: a TUN interface, and a serial port or a virtual one that programs find by a link.

    python -m examples.serial_ip --port /dev/ttyUSB0 --speed 115200 --address 10.9.0.1/24
    python -m examples.serial_ip --link /run/modem --address 10.9.0.2/24     # the port is /run/modem

Packets are framed as SLIP has it (RFC 1055). Three adapters in one program: TUN, terminal pair, serial line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import termios
import tty
from typing import Any

from fdtransport import TunTapTransport, connect_fd, connect_pty, connect_tuntap

from . import between, run_command
from .selftest import Namespace, run_selftest, transfer

END, ESC, ESC_END, ESC_ESC = b"\xc0", b"\xdb", b"\xdb\xdc", b"\xdb\xdd"
#: Bytes; a packet holds the line for a tenth of a second at 57600 bit/s then. RFC 1055 has 1006.
MTU = 576


def framed(packet: bytes) -> bytes:
    # The END before it ends what noise on the line may have begun.
    return END + packet.replace(ESC, ESC_ESC).replace(END, ESC_END) + END


def unframed(frame: bytes) -> bytes:
    return frame.replace(ESC_END, END).replace(ESC_ESC, ESC)


class Interface(asyncio.DatagramProtocol):
    """What is sent to the network goes down the line."""

    line: Line | None = None
    transport: TunTapTransport

    def __init__(self) -> None:
        self.refused = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        if self.line is None:
            return  # a network loses what comes before the line is there
        self.line.transport.write(b"".join(framed(packet) for packet, _ in records))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.line is not None:
            self.line.transport.abort()  # the interface was deleted: nothing is left to do

    def error_received(self, exc: Exception) -> None:
        self.refused += 1  # noise looks like packets now and then


class Line(asyncio.Protocol):
    """What comes by the line goes to the network. While it is full, the kernel keeps the packets, or drops
    them, as a network may."""

    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self.rest = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.interface.line = self
        transport.set_write_buffer_limits(high=2 * MTU)  # what waits here is late already

    def data_received(self, data: bytes) -> None:
        *frames, self.rest = (self.rest + data).split(END)
        for frame in frames:
            if frame:
                self.interface.transport.sendto(unframed(frame))
        self.rest = self.rest[: 4 * MTU]  # noise without an end is no packet

    async def end(self) -> None:
        self.transport.abort()
        await self.interface.transport.aclose()

    def pause_writing(self) -> None:
        self.interface.transport.pause_reading()

    def resume_writing(self) -> None:
        self.interface.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


def open_port(path: str, speed: int) -> int:
    """A serial port that passes bytes as they are."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        tty.setraw(fd)
        modes = termios.tcgetattr(fd)
        modes[4] = modes[5] = getattr(termios, f"B{speed}")
        termios.tcsetattr(fd, termios.TCSANOW, modes)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def join(addresses: list[str], port: str | None, link: str | None, speed: int, **options: Any) -> Line:
    """A TUN interface and a line: a port that is there, or a virtual one."""
    _, interface = await connect_tuntap(Interface, addresses=addresses, mtu=MTU, link_local=False, **options)
    try:
        if port is None:
            _, line = await connect_pty(lambda: Line(interface), link=link)
        else:
            _, line = await connect_fd(lambda: Line(interface), open_port(port, speed))
    except BaseException:
        interface.transport.abort()
        raise
    return line


async def run(args: argparse.Namespace) -> None:
    line = await join(args.address or ["10.9.0.1/24"], args.port, args.link, args.speed)
    try:
        port = args.port or line.transport.get_extra_info("slave_name")
        print(f"{line.interface.transport.name} is on {port}", flush=True)
        await line.lost.wait()
    finally:
        await line.end()


async def selftest(megabytes: float) -> None:
    """A virtual port and whoever opens it, each with an interface in a namespace of its own."""
    lines: list[Line] = []
    with Namespace() as here, Namespace() as there:
        try:
            lines.append(await join(["10.9.0.1/24"], None, None, 115200, netns=here))
            port = lines[0].transport.get_extra_info("slave_name")
            lines.append(await join(["10.9.0.2/24"], port, None, 115200, netns=there))
            await send_the_hardest(here, there)
            rate = await transfer(there, here, "10.9.0.1", megabytes)
            print(f"{megabytes:g} MB by TCP over the line, checksums equal, {1000 * rate:.1f} Mbit/s")
            assert not any(line.interface.refused for line in lines)
        finally:
            for line in lines:
                await line.end()


async def send_the_hardest(here: Namespace, there: Namespace) -> None:
    """A datagram full of what has a meaning in the frames."""
    kind = socket.AF_INET, socket.SOCK_DGRAM
    with here.socket(*kind) as one, there.socket(*kind) as other:
        other.bind(("10.9.0.2", 5000))
        hardest = bytes(range(256)) + 100 * (END + ESC)
        one.sendto(hardest, ("10.9.0.2", 5000))
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(other, 1000), 5) == hardest


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.serial_ip",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--port", metavar="PATH", help="a serial port; without one, a virtual port is made")
    add("--link", metavar="PATH", help="where programs find the virtual port")
    add("--speed", type=int, default=115200, help="bits per second (default 115200)")
    add("--address", action="append", metavar="ADDRESS/PREFIX", help="10.9.0.1/24 by default")
    add("--selftest", action="store_true", help="with two network namespaces of its own")
    add("--size", type=between(float, 0.001, 1e6), default=0.2, metavar="MB", help="of its transfer")
    args = parser.parse_args()
    if not hasattr(termios, f"B{args.speed}"):
        parser.error(f"{args.speed} is no speed of a serial port")
    return run_command(run_selftest(lambda: selftest(args.size)) if args.selftest else run(args))


if __name__ == "__main__":
    sys.exit(main())
