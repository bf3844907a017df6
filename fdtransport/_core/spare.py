"""What everything that relays on one loop shares: pipes that are empty, and one buffer.

A direction of a relay has a pipe only while it moves something or its sink takes nothing, so that
thousands of quiet relays need no descriptors beyond their ends.
"""

from __future__ import annotations

import asyncio
import os
import weakref

from . import syscalls

__all__ = ["SIZE", "TCP_SIZE", "Pipe", "Stock", "stock_of"]

#: What a direction moves at once, and the most that it holds of what its sink does not take.
SIZE = 256 * 1024
#: The same where TCP is spliced, which costs a third less in pieces of this size.
TCP_SIZE = 1024 * 1024
#: Empty pipes that are kept for the next direction that needs one.
SPARE_PIPES = 8


class Pipe:
    """A pipe for splice: what goes in at ``entry`` comes out at ``exit``.

    :raises OSError: EMFILE, there are no descriptors left.
    """

    __slots__ = ("entry", "exit")

    def __init__(self) -> None:
        self.exit: int
        self.entry: int
        self.exit, self.entry = syscalls.pipe(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            syscalls.set_pipe_size(self.entry, TCP_SIZE)
        except OSError:
            pass  # over the user's share (pipe(7)): what there is will do

    def drain(self, size: int) -> bytes:
        """The *size* bytes that are in it."""
        pieces = []
        while size:
            pieces.append(syscalls.read(self.exit, size))
            size -= len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        for fd in (self.entry, self.exit):
            try:
                syscalls.close(fd)
            except OSError:
                pass  # it is closed all the same, and nobody waits for what was in it


class Stock:
    """See the module's first lines."""

    def __init__(self) -> None:
        self.users: int = 0
        self.buffer: memoryview = memoryview(bytearray(SIZE))
        self._pipes: list[Pipe] = []

    def take(self) -> Pipe:
        """An empty pipe.

        :raises OSError: as `Pipe` does.
        """
        return self._pipes.pop() if self._pipes else Pipe()

    def give(self, pipe: Pipe, *, empty: bool) -> None:
        """The pipe is not needed any more."""
        if empty and self.users and len(self._pipes) < SPARE_PIPES:
            self._pipes.append(pipe)
        else:
            pipe.close()

    def leave(self) -> None:
        """One user less; the last one closes the pipes."""
        self.users -= 1
        while self._pipes and not self.users:
            self._pipes.pop().close()


_stocks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Stock] = weakref.WeakKeyDictionary()


def stock_of(loop: asyncio.AbstractEventLoop) -> Stock:
    """The one stock of *loop*. By loop, so that a forked process never shares a pipe with its parent."""
    stock = _stocks.get(loop)
    if stock is None:
        stock = _stocks[loop] = Stock()
    return stock
