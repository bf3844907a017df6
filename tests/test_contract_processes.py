"""The contract kit over the pipes and sockets of a process."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from one_life import short_calls_are_invisible
from process_makers import DESCRIPTORS

from fdtransport.testing import Promise, check_run_exit, stream_promises

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")

CASES = [
    pytest.param(make, promise, id=f"{name}-{promise}")
    for name, make in DESCRIPTORS.items()
    for promise in stream_promises(make.features)
]


@pytest.mark.parametrize(("make", "promise"), CASES)
async def test_contract(make: Any, promise: Promise) -> None:
    assert await promise.run(make)


@pytest.mark.parametrize("make", DESCRIPTORS.values(), ids=DESCRIPTORS)
async def test_short_reads_and_writes_are_invisible(make: Any) -> None:
    await short_calls_are_invisible(make, 997)


@pytest.mark.parametrize("make", DESCRIPTORS.values(), ids=DESCRIPTORS)
def test_a_run_that_ends_in_the_middle_leaves_nothing(make: Any) -> None:
    check_run_exit(make)
