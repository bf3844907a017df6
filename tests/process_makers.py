"""Makers for the contract kit over the descriptors of processes."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from typing import Any

from fdtransport.process_transport import ProcessTransport
from fdtransport.testing import FarEnd, Features

#: pidfd_getfd(2), the same number on all architectures.
_PIDFD_GETFD = 438


def descriptor_of(pid: int, number: int) -> int:
    """A copy of another process's descriptor."""
    pidfd = os.pidfd_open(pid)
    try:
        fd = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


class Descriptor:
    """One descriptor of a process that has gone and left the far end of it here."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        both = mode == "rw"
        self.features = Features(
            readable="r" in mode, writable="w" in mode, half_close=both, resets=both, socket=both
        )

    async def __call__(self, protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
        loop, protocol = asyncio.get_running_loop(), protocol_factory()
        process = ProcessTransport(
            loop,
            ["sleep", "60"],
            {4: self.mode},
            asyncio.SubprocessProtocol(),
            pipe_protocol=lambda *_: protocol,
        )
        far = FarEnd(descriptor_of(process.get_pid(), 4))
        process.kill()
        await process.wait()
        return process.get_pipe_transport(4), far


DESCRIPTORS = {
    "pipe from a process": Descriptor("r"),
    "pipe to a process": Descriptor("w"),
    "socket of a process": Descriptor("rw"),
}
