"""Events of inotify: prefilled in the kernel's queue, then read by each library (row 16)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.job import Job, carries_out

CREATE, DELETE = 0x100, 0x200
MASK = CREATE | DELETE


class Directory:
    """A directory in which files come and go, and what was told of them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._temporary = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.path = self._temporary.name
        self.count = 0
        self._told: list[tuple[int, str]] = []

    def fill(self) -> None:
        expected = []
        for number in range(self._job.size // 2):
            name = f"f{number:06}"
            path = f"{self.path}/{name}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            os.unlink(path)
            expected += [(CREATE, name), (DELETE, name)]
        self._job.moved.append(self._digest(expected))

    def tell(self, mask: int, name: str) -> bool:
        """Take an event; whether it was the last."""
        if self._job.check:
            self._told.append((mask, name))
        self.count += 1
        return self.count == self._job.size

    def close(self) -> None:
        self._job.moved.append(self._digest(self._told) if self._job.check else (self.count, ""))
        self._temporary.cleanup()

    @staticmethod
    def _digest(told: list[tuple[int, str]]) -> tuple[int, str]:
        return len(told), hashlib.sha256(repr(told).encode()).hexdigest()


def _for_both(shape: str) -> Any:
    def register(run: Any) -> Any:
        carries_out("tree-events", shape)(run)
        return carries_out("events", shape)(run)

    return register


@_for_both("blocking")
def read_and_unpack(job: Job) -> None:
    """The limit: what a program would write that does nothing else."""
    from fdtransport._core import syscalls

    directory = Directory(job)
    fd = syscalls.inotify_init1(os.O_CLOEXEC)
    syscalls.inotify_add_watch(fd, os.fsencode(directory.path), MASK)
    directory.fill()
    unpack, tell = struct.Struct("iIII").unpack_from, directory.tell
    with job.clock():
        last = False
        while not last:
            data, at = os.read(fd, 65536), 0
            while at < len(data):
                _number, mask, _cookie, length = unpack(data, at)
                at += 16
                name = data[at : at + length].rstrip(b"\0").decode("utf-8", "surrogateescape")
                at += length
                last = tell(mask, name)
    os.close(fd)
    directory.close()


@carries_out("events", "ours")
async def by_transport(job: Job) -> None:
    import fdtransport

    directory = Directory(job)
    done = asyncio.get_running_loop().create_future()

    class Events(fdtransport.InotifyProtocol):
        def events_received(self, events: list[Any]) -> None:
            for event in events:
                if directory.tell(event.mask, event.name):
                    done.set_result(None)

    transport, _ = await fdtransport.connect_inotify(Events)
    transport.add_watch(directory.path, MASK)
    directory.fill()
    with job.clock():
        await done
    transport.abort()
    await transport.aclose()
    directory.close()


@carries_out("tree-events", "ours")
async def by_watch(job: Job) -> None:
    import fdtransport

    directory = Directory(job)
    masks = {fdtransport.WatchKind.CREATED: CREATE, fdtransport.WatchKind.DELETED: DELETE}
    async with fdtransport.watch(directory.path, mask=0) as watcher:
        directory.fill()
        with job.clock():
            async for event in watcher:
                if directory.tell(masks[event.kind], event.name):
                    break
    directory.close()


@_for_both("inotify_simple")
def by_inotify_simple(job: Job) -> None:
    directory = Directory(job)
    inotify = job.library.module.INotify()
    inotify.add_watch(directory.path, MASK)
    directory.fill()
    with job.clock():
        last = False
        while not last:
            for event in inotify.read():
                last = directory.tell(event.mask, event.name)
    inotify.close()
    directory.close()


@_for_both("asyncinotify")
async def by_asyncinotify(job: Job) -> None:
    module = job.library.module
    directory = Directory(job)
    with module.Inotify() as inotify:
        inotify.add_watch(directory.path, module.Mask.CREATE | module.Mask.DELETE)
        directory.fill()
        with job.clock():
            async for event in inotify:
                if directory.tell(int(event.mask), str(event.name)):
                    break
    directory.close()


@_for_both("aionotify")
async def by_aionotify(job: Job) -> None:
    module = job.library.module
    directory = Directory(job)
    watcher = module.Watcher()
    watcher.watch(directory.path, module.Flags.CREATE | module.Flags.DELETE)
    await watcher.setup()
    directory.fill()
    with job.clock():
        event = await watcher.get_event()
        while not directory.tell(event.flags, event.name):
            event = await watcher.get_event()
    watcher.close()
    directory.close()


@_for_both("twisted")
async def by_twisted(job: Job) -> None:
    from twisted.internet import inotify
    from twisted.python.filepath import FilePath

    directory = Directory(job)
    done = job.library.signal()

    def told(_: Any, path: Any, mask: int) -> None:
        if directory.tell(mask, os.fsdecode(path.basename())):
            done.set_result(None)

    notifier = inotify.INotify(job.library._reactor)
    notifier.startReading()
    notifier.watch(FilePath(directory.path), mask=MASK, callbacks=[told])
    directory.fill()
    with job.clock():
        await done
    notifier.loseConnection()
    await job.library.turn()
    directory.close()
