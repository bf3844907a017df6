"""What pyserial-asyncio's documentation tells its users to write: open, then `loop.run_forever()`.

The protocol stops the loop in the end. Should it come to that while `run_until_complete` is still at work,
then the two stops are one, and `run_forever` runs for ever: nothing may be read before that has returned.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from terminal_pair import port

from fdtransport import connect_serial
from fdtransport.serial import SerialTransport, connection_for_serial, create_serial_connection

serial = pytest.importorskip("serial")


class Output(asyncio.Protocol):
    """Hears one line, closes, and stops the loop."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.told.append("data")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.transport.loop.stop()


Open = Callable[[asyncio.AbstractEventLoop], Awaitable[tuple[Any, Output]]]


@contextmanager
def a_terminal() -> Iterator[Open]:
    with port() as one:
        os.write(one.far, b"hello\n")
        yield lambda loop: create_serial_connection(loop, Output, one.path)


@contextmanager
def an_open_port() -> Iterator[Open]:
    with port() as one:
        opened = serial.serial_for_url(one.path)
        os.write(one.far, b"hello\n")
        yield lambda loop: connection_for_serial(loop, Output, opened)


@contextmanager
def a_socket() -> Iterator[Open]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted = []

        async def opened(loop: asyncio.AbstractEventLoop) -> tuple[Any, Output]:
            def factory() -> Output:
                sock, _ = server.accept()
                sock.send(b"hello\n")
                accepted.append(sock)
                return Output()

            return await create_serial_connection(
                loop, factory, "socket://{}:{}".format(*server.getsockname())
            )

        try:
            yield opened
        finally:
            for sock in accepted:
                sock.close()


@pytest.mark.parametrize("kind", [a_terminal, an_open_port, a_socket], ids=lambda kind: kind.__name__)
def test_nothing_is_read_before_the_coroutine_has_returned(
    loop: asyncio.AbstractEventLoop, kind: Any
) -> None:
    with kind() as opened:
        _, protocol = loop.run_until_complete(opened(loop))
        assert protocol.told == ["made"]
        loop.call_later(10, loop.stop)
        loop.run_forever()
        assert protocol.told == ["made", "data", "lost"]
        loop.run_until_complete(loop.shutdown_default_executor())


def test_what_is_made_by_hand_is_not_read_in_the_turn_of_connection_made(
    loop: asyncio.AbstractEventLoop,
) -> None:
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("libuv looks at descriptors at the end of that turn, for pyserial-asyncio's as well")

    async def make() -> None:
        SerialTransport(loop, protocol, opened)

    protocol = Output()
    with port() as one:
        opened = serial.serial_for_url(one.path)
        os.write(one.far, b"hello\n")
        assert select.select([one.kept], [], [], 5)[0]
        loop.run_until_complete(make())
        assert protocol.told == ["made"]
        loop.call_later(10, loop.stop)
        loop.run_forever()
        assert protocol.told == ["made", "data", "lost"]
        loop.run_until_complete(loop.shutdown_default_executor())


async def test_what_is_not_of_pyserial_asyncio_reads_from_the_beginning() -> None:
    with port() as one:
        transport, _ = await connect_serial(asyncio.Protocol, one.path)
        assert "read=polling" in repr(transport)
        await transport.aclose()
