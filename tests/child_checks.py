"""What the tests of processes look at: the children of this process, and whether any was left."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

__all__ = ["QUIET", "children", "no_child_is_left", "until"]

#: The environment of a Python that is not to say how long its callbacks take.
QUIET = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONASYNCIODEBUG", "PYTHONDEVMODE")
}


def children() -> set[int]:
    """The numbers of all children of this process, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Fail the test that leaves a child, running or as a zombie; for modules that import this."""
    before = children()
    yield
    assert children() <= before


async def until(condition: Callable[[], object]) -> None:
    """Wait for *condition*, which must come within ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
