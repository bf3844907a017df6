"""Run as a program: the contract kit over this process's own descriptors 0 and 1.

The argument names the loop. What was kept goes to standard error, and what was not.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from fdtransport._core.handle import Handle
from fdtransport._core.opening import open_transport
from fdtransport.stdio import StdioTransport
from fdtransport.testing import FarEnd, Features, check_stream_transport

#: They look at numbers: 0 and 1 are never closed, are inherited by children, and are given back by detach()
#: where the kit expects the descriptor that was read.
SKIP = (
    "the_descriptor_is_closed_when_connection_lost_has_returned",
    "every_descriptor_is_close_on_exec",
    "detach_gives_the_descriptors_back_as_they_were",
    "a_number_that_is_not_owned_any_more_is_left_alone",
)
NULL = os.open(os.devnull, os.O_RDWR)


class Process(StdioTransport):
    """Lets the far end see the end of the transport, as the end of the process would."""

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        files = self._files
        try:
            return super()._let_go(how)
        finally:
            if how is Handle.close:
                leave(files)


def leave(files: tuple[Any, ...]) -> None:
    for fd in files:
        if fd in (0, 1):
            os.dup2(NULL, fd)
        elif fd is not None:
            os.close(fd)


async def make(protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
    """A pair whose near side is 0 and 1, or other descriptors while these are in use."""
    stdin, far_write = os.pipe()
    far_read, stdout = os.pipe()
    far = FarEnd((far_read, far_write))
    files = (stdin, stdout)
    if os.readlink("/proc/self/fd/0") == os.devnull:
        for fd, standard in zip(files, (0, 1), strict=True):
            os.dup2(fd, standard)
            os.close(fd)
        files = (0, 1)
    try:
        transport, _ = await open_transport(Process, protocol_factory, files)
    except BaseException:
        far.close()
        leave(files)
        raise
    return transport, far


async def main() -> None:
    leave((0, 1))
    kept = await check_stream_transport(make, features=Features(), skip=SKIP)
    print(len(kept), "promises kept", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop as loops
    else:
        loops = asyncio
    with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
        runner.run(main())
