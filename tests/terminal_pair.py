"""Two terminals with a cable between them, and one whose far end is in the test's hands."""

from __future__ import annotations

import os
import select
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Port(NamedTuple):
    """A terminal for a library to open by its path. The test keeps both of its ends open."""

    path: str
    far: int
    """The master: what is written here arrives there."""
    kept: int
    """The terminal itself, so that the last close of a library does not hang it up."""


@contextmanager
def port() -> Iterator[Port]:
    """A terminal in raw mode, closed afterwards unless the test did it."""
    far, kept = os.openpty()
    tty.setraw(kept)
    made = Port(os.ttyname(kept), far, kept)
    held = {fd: os.fstat(fd).st_rdev for fd in (far, kept)}
    try:
        yield made
    finally:
        for fd in (far, kept):
            try:
                if os.fstat(fd).st_rdev == held[fd]:
                    os.close(fd)
            except OSError:  # the test closed it: to be unplugged
                continue


@contextmanager
def cable() -> Iterator[tuple[str, str]]:
    """The paths of two terminals: what goes into one comes out of the other."""
    with port() as one, port() as other, _thread_between({one.far: other.far, other.far: one.far}):
        yield one.path, other.path


@contextmanager
def loop_back() -> Iterator[str]:
    """The path of a terminal that gives back what it gets."""
    with port() as one, _thread_between({one.far: one.far}):
        yield one.path


@contextmanager
def _thread_between(ways: dict[int, int]) -> Iterator[None]:
    ended, ending = os.pipe()

    def carry() -> None:
        while True:
            ready, _, _ = select.select([*ways, ended], [], [])
            if ended in ready:
                return
            for source in ready:
                rest = os.read(source, 65536)
                while rest:
                    rest = rest[os.write(ways[source], rest) :]

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield
    finally:
        os.close(ending)
        thread.join()
        os.close(ended)
