"""Thousands of programs: no zombie, no descriptor left, and none in a program that was not asked for.

``FDTRANSPORT_SPAWNS=10000`` has as many started on each loop; 300 are without it.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from child_checks import QUIET, children, no_child_is_left  # noqa: F401

from fdtransport import create_subprocess_exec, spawn_pty
from fdtransport.testing import RecordingProtocol, descriptors
from fdtransport.testing.observe import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")

SPAWNS = int(os.environ.get("FDTRANSPORT_SPAWNS", 300))
LISTING = ("ls", "-ln", "/proc/self/fd")
DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT


@pytest.fixture
def loose(tmp_path: Path) -> Iterator[int]:
    """A file that whatever is started would inherit, under a number that nobody asks for."""
    fd = os.open(tmp_path / "loose", os.O_RDWR | os.O_CREAT)
    os.dup2(fd, 777, inheritable=True)
    os.set_inheritable(fd, True)
    yield fd
    os.close(777)
    os.close(fd)


def listed(output: bytes) -> dict[int, str]:
    """What ``ls`` had open: number and kind of file, but for the directory that it listed."""
    found = {int(number): target for number, target in re.findall(r" (\d+) -> (\S+)", output.decode())}
    directories = [number for number, target in found.items() if re.fullmatch(r"/proc/\d+/fd", target)]
    assert len(directories) == 1, output
    del found[directories[0]]
    name = re.compile(r"(:|(?<=/dev/pts/)).*|.*(?=/loose)")
    return {number: name.sub("", target) for number, target in found.items()}


async def with_pipes(_loose: int) -> None:
    process = await create_subprocess_exec(*LISTING, fds={0: DEVNULL, 1: "r", 2: STDOUT})
    output, _ = await process.communicate()
    assert listed(output) == {0: "/dev/null", 1: "pipe", 2: "pipe"}
    assert process.returncode == 0


async def with_a_map(loose: int) -> None:
    fds = {0: "w", 1: "r", 2: loose, 5: "rw", 9: "w", 31: loose}
    async with await create_subprocess_exec(*LISTING, fds=fds) as process:
        output = await process.stdout.read()
        assert listed(output) == {0: "pipe", 1: "pipe", 2: "/loose", 5: "socket", 9: "pipe", 31: "/loose"}
        assert await process.wait() == 0


async def on_a_terminal(loose: int) -> None:
    protocol = RecordingProtocol()
    transport, _ = await spawn_pty(lambda: protocol, *LISTING, size=(24, 200), fds={4: loose})
    await until(lambda: protocol.lost, "connection_lost came", 20)
    assert listed(protocol.received) == {0: "/dev/pts/", 1: "/dev/pts/", 2: "/dev/pts/", 4: "/loose"}
    assert transport.returncode == 0


async def and_nothing_is_started(_loose: int) -> None:
    with pytest.raises(FileNotFoundError):
        await create_subprocess_exec("/no/such", stdout=PIPE)
    with pytest.raises(FileNotFoundError):
        await spawn_pty(RecordingProtocol, "/no/such")


WAYS: tuple[Callable[[int], Awaitable[None]], ...] = (
    with_pipes, with_a_map, on_a_terminal, on_a_terminal, and_nothing_is_started
)  # fmt: skip


@pytest.mark.timeout(60 + SPAWNS / 20)
async def test_many_leave_no_zombie_and_no_descriptor_and_have_what_was_asked_for(loose: int) -> None:
    await with_pipes(loose)
    before = descriptors()
    left = iter(range(SPAWNS))

    async def one_after_the_other() -> None:
        for number in left:
            await WAYS[number % len(WAYS)](loose)

    await asyncio.gather(*(one_after_the_other() for _ in range(8)))
    assert not children()
    assert descriptors() == before


THREADS = """
import asyncio, sys, threading
from fdtransport import create_subprocess_exec, spawn_pty

class Output(asyncio.Protocol):
    def __init__(self):
        self.data, self.lost = b"", asyncio.get_running_loop().create_future()
    def data_received(self, data):
        self.data += data
    def connection_lost(self, exc):
        self.lost.set_result(exc)

async def one(word):
    process = await create_subprocess_exec("echo", word, stdout=-1)
    assert await process.communicate() == (word.encode() + b"\\n", None)
    transport, output = await spawn_pty(Output, "echo", word)
    assert await output.lost is None
    assert (output.data, transport.returncode) == (word.encode() + b"\\r\\n", 0)

async def several(number):
    for turn in range(5):
        await asyncio.gather(*(one(f"{number}-{turn}-{other}") for other in range(3)))
    done.append(number)

done = []
threads = [threading.Thread(target=asyncio.run, args=(several(number),)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(done))
"""


def test_eight_threads_spawn_with_warnings_as_errors() -> None:
    words = [sys.executable, "-W", "error", "-c", THREADS]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60, env=QUIET)
    assert (done.stdout, done.stderr, done.returncode) == (b"8\n", b"", 0)
