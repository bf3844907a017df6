"""Terminals for the tests of serial ports, and the end of what was opened on them."""

from __future__ import annotations

import contextlib
import os
import socket
import termios
import tty
from collections.abc import Iterator
from typing import Any

__all__ = ["Terminal", "end", "terminal", "unaccepting"]


class Terminal:
    """A pair of terminals: ``path`` is a port, and this is the device behind it."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        self.path = os.ttyname(slave)
        tty.setraw(self.master)
        os.close(slave)
        os.set_blocking(self.master, False)

    def close(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1

    def send(self, data: bytes) -> None:
        assert os.write(self.master, data) == len(data)

    def received(self) -> bytes:
        """What has come; nothing is b''."""
        with contextlib.suppress(BlockingIOError, OSError):
            return os.read(self.master, 65536)
        return b""

    def modes(self) -> list[object]:
        return termios.tcgetattr(self.master)


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def unaccepting() -> Iterator[str]:
    """A socket:// that nobody accepts: the queue of the listening socket is full, and connecting goes on."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        for _ in range(3):  # more than the queue holds
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(server.getsockname())
        yield "socket://{}:{}".format(*server.getsockname())


async def end(*transports: Any) -> None:
    for transport in transports:
        await transport.aclose(timeout=1)
