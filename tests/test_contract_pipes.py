"""The contract kit, and faults of the kernel, over pipes, FIFOs and standard streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from one_life import any_call_may_fail, short_calls_are_invisible
from pipe_makers import STREAMS

from fdtransport.testing import FOREVER, Promise, check_run_exit, stream_promises

#: What is detached is the standard stream, and not the descriptor that stood in for it.
NOT_FOR_STDIO = "detach_gives_the_descriptors_back_as_they_were"

CASES = [
    pytest.param(make, promise, id=f"{name}-{promise}")
    for name, make in STREAMS.items()
    for promise in stream_promises(make.features)
    if not (name == "stdio on pipes" and promise.name == NOT_FOR_STDIO)
]


@pytest.mark.parametrize(("make", "promise"), CASES)
async def test_contract(make: Any, promise: Promise) -> None:
    assert await promise.run(make)


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_run_that_ends_in_the_middle_leaves_nothing(make: Any) -> None:
    check_run_exit(make)


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
async def test_any_call_may_fail(
    make: Any, times: int, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    await any_call_may_fail(make, times, monkeypatch)
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
async def test_short_reads_and_writes_are_invisible(make: Any) -> None:
    await short_calls_are_invisible(make, 997)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_contract_of_the_standard_streams_of_a_child(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("stdio_child.py")), loop]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=110, check=False)
    assert child.returncode == 0, child.stderr.decode()
    assert child.stderr.endswith(b" promises kept\n")
