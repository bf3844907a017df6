"""A switch: TAP interfaces, each like a network card, and frames between them, as an Ethernet switch has it.

    python -m examples.tap_switch --netns red --netns blue      # namespaces of `ip netns`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import socket
import sys
from typing import Any

from fdtransport import TunTapTransport, connect_tuntap

from . import between, run_command
from .selftest import Namespace, run_selftest

#: Seconds for which a card is remembered behind its port; IEEE 802.1D has 300.
AGE = 300.0
#: Of so many: whoever makes addresses up is not to fill the memory.
CARDS = 8192


class Switch:
    """Learns from the sender's address of each frame which port it is behind."""

    def __init__(self) -> None:
        self.ports: list[Port] = []
        self.known: dict[bytes, tuple[Port, float]] = {}
        self.flooded = 0

    def passed(self, frame: bytes, port: Port, now: float) -> None:
        to, sender = frame[:6], frame[6:12]
        if not sender[0] & 1:  # a group sends nothing
            self.known.pop(sender, None)
            self.known[sender] = (port, now)
            if len(self.known) > CARDS:
                del self.known[next(iter(self.known))]  # the one that has been silent for longest
        known = self.known.get(to)
        if known is not None and now - known[1] < AGE:
            if known[0] is not port:
                known[0].transport.sendto(frame)
            return
        self.flooded += 1
        for other in self.ports:
            if other is not port:
                other.transport.sendto(frame)

    async def end(self) -> None:
        for port in list(self.ports):
            await port.transport.aclose()

    def unplugged(self, port: Port) -> None:
        self.ports.remove(port)
        self.known = {card: entry for card, entry in self.known.items() if entry[0] is not port}


class Port(asyncio.DatagramProtocol):
    """One interface of the switch. All frames of a wake-up come in one call."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def connection_made(self, transport: Any) -> None:
        self.transport: TunTapTransport = transport
        self.loop = asyncio.get_running_loop()
        self.switch.ports.append(self)

    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        now = self.loop.time()
        for frame, _ in records:
            self.switch.passed(frame, self, now)

    def error_received(self, exc: Exception) -> None:
        """A frame for an interface that is down is lost, as it is when a cable is out."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.switch.unplugged(self)


async def plug(switch: Switch, number: int, **options: Any) -> Port:
    _, port = await connect_tuntap(lambda: Port(switch), mode="tap", **options)
    print(f"port {number}: {port.transport.name}, {port.transport.get_extra_info('hwaddr')}")
    return port


async def run(count: int, spaces: list[str]) -> None:
    switch = Switch()
    try:
        for number in range(max(count, len(spaces))):
            await plug(switch, number, netns=spaces[number] if number < len(spaces) else None)
        print("Ctrl-C ends it", flush=True)
        await asyncio.Event().wait()
    finally:
        await switch.end()


async def selftest() -> None:
    """Every card sends to every other one, and once they are known nothing is flooded."""
    switch = Switch()
    with contextlib.ExitStack() as stack:
        spaces = [stack.enter_context(Namespace()) for _ in range(4)]
        try:
            for number, space in enumerate(spaces):
                options: dict[str, Any] = {"addresses": f"10.9.0.{number + 1}/24", "link_local": False}
                await plug(switch, number, netns=space, **options)
            kind = socket.AF_INET, socket.SOCK_DGRAM
            await talk(switch, [stack.enter_context(space.socket(*kind)) for space in spaces])
            assert len(switch.known) == 4
        finally:
            await switch.end()
    assert not switch.known


async def talk(switch: Switch, socks: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    for number, sock in enumerate(socks):
        sock.bind((f"10.9.0.{number + 1}", 5000))
    for round_number in range(2):
        before = switch.flooded
        for one, other in itertools.permutations(range(4), 2):
            socks[one].sendto(b"from %d" % one, (f"10.9.0.{other + 1}", 5000))
            assert await asyncio.wait_for(loop.sock_recv(socks[other], 100), 5) == b"from %d" % one
        print(f"12 datagrams arrived, {switch.flooded - before} frames went to every port")
        if round_number:
            assert switch.flooded == before, "a card was forgotten"


def main() -> int:
    text = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m examples.tap_switch", description=text)
    ports = between(int, 2, 256)
    parser.add_argument("--ports", type=ports, default=2, metavar="N", help="how many (default 2)")
    parser.add_argument(
        "--netns", action="append", default=[], help="a network namespace for a port; may be repeated"
    )
    parser.add_argument("--selftest", action="store_true", help="with four network namespaces of its own")
    args = parser.parse_args()
    if args.selftest:
        return run_command(run_selftest(selftest))
    return run_command(run(args.ports, args.netns))


if __name__ == "__main__":
    sys.exit(main())
