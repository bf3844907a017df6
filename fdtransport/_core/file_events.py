"""An event that is set when something happens to files: inotify(7), for who waits in one place only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Iterable, Iterator

from . import syscalls

__all__ = ["Watched", "file_events"]

#: A path, a mask of inotify_add_watch(2), and, of a directory, the one name in it that matters.
Watched = tuple[str | bytes, int, str | None]


@contextlib.contextmanager
def file_events(watched: Iterable[Watched]) -> Iterator[tuple[asyncio.Event, bool]]:
    """An event that is set each time something of what is asked for happens; whether all of it is watched."""
    happened = asyncio.Event()
    loop = asyncio.get_running_loop()
    names: dict[int, set[bytes | None]] = {}

    def tell() -> None:
        try:
            data = syscalls.read(watch, 65536)
        except BlockingIOError:
            return
        except OSError:
            loop.remove_reader(watch)  # it would be called for ever; whoever waits has a timer as well
            happened.set()
            return
        if any(_matters(names, number, name) for number, name in _events(data)):
            happened.set()

    try:
        watch = syscalls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield happened, False  # not here, or no more instances for this user
        return
    try:
        complete = True
        for path, mask, name in watched:
            try:
                number = syscalls.inotify_add_watch(watch, os.fsencode(path), mask)
            except OSError:
                complete = False
            else:
                names.setdefault(number, set()).add(None if name is None else os.fsencode(name))
        loop.add_reader(watch, tell)
        yield happened, complete
    finally:
        loop.remove_reader(watch)
        with contextlib.suppress(OSError):
            syscalls.close(watch)


def _events(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        number, _mask, _cookie, length = struct.unpack_from("iIII", data)
        yield number, data[16 : 16 + length].rstrip(b"\0")
        data = data[16 + length :]


def _matters(names: dict[int, set[bytes | None]], number: int, name: bytes) -> bool:
    wanted = names.get(number)  # -1: the queue ran over, and it may have been any of them
    return wanted is None or None in wanted or name in wanted or not name
