"""Makers for the contract kit over pipes, FIFOs and standard streams."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from fdtransport._core.handle import Handle
from fdtransport._core.opening import open_transport
from fdtransport.fifo import connect_fifo
from fdtransport.pipes import connect_read_pipe, connect_write_pipe
from fdtransport.stdio import StdioTransport
from fdtransport.testing import FarEnd, Features, PairMaker, read_pipe_maker, write_pipe_maker

#: Directories come and go faster where there is no disk.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


class FifoMaker:
    """A FIFO, its far end opened first; its path is gone once it is connected."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.features = Features(readable=mode == "r", writable=mode == "w", half_close=False)

    async def __call__(self, protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
        with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
            path = os.path.join(directory, "fifo")
            os.mkfifo(path)
            reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            if self.mode == "r":
                far = FarEnd(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            else:
                far = FarEnd(os.dup(reading))
            try:
                transport, _ = await connect_fifo(protocol_factory, path, self.mode)
            except BaseException:
                far.close()
                raise
            finally:
                os.close(reading)
        return transport, far


class Process(StdioTransport):
    """Standard streams that are closed after the transport, as the end of the process does it."""

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        files = self._files
        try:
            return super()._let_go(how)
        finally:
            if how is Handle.close:
                for fd in files:
                    if fd is not None:
                        os.close(fd)


connect_process = partial(open_transport, Process)


def standard_pipes() -> tuple[Any, Any]:
    stdin, far_write = os.pipe()
    far_read, stdout = os.pipe()
    return (stdin, stdout), (far_read, far_write)


def standard_sockets() -> tuple[Any, Any]:
    near, other = socket.socketpair()
    copy = os.dup(near.fileno())
    return (near.detach(), copy), other


STREAMS: dict[str, Any] = {
    "read pipe": read_pipe_maker(connect_read_pipe),
    "write pipe": write_pipe_maker(connect_write_pipe),
    "fifo to read": FifoMaker("r"),
    "fifo to write": FifoMaker("w"),
    "stdio on pipes": PairMaker(standard_pipes, Features(), connect_process),
    # Not through read and write, but through preadv and pwritev, which the fault plans do not know.
    "stdio on a socket": PairMaker(standard_sockets, Features(resets=True, seam=False), connect_process),
}
