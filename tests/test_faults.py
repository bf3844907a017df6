"""Faults in front of the kernel, and a sweep of them over every call of a scenario."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from fdtransport._core import syscalls
from fdtransport.testing import (
    ERRNOS,
    FOREVER,
    TRANSIENT,
    FarEnd,
    FaultPlan,
    sweep,
)


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            pass


def test_a_plan_puts_everything_back():
    before = dict(vars(syscalls))
    with FaultPlan() as plan:
        plan.fail("read")
        assert syscalls.read is not before["read"]
    assert dict(vars(syscalls)) == before
    with pytest.raises(ZeroDivisionError), FaultPlan():
        raise ZeroDivisionError
    assert dict(vars(syscalls)) == before


def test_a_plan_at_work_cannot_be_entered_again():
    with FaultPlan() as plan, pytest.raises(RuntimeError, match="at work"):
        plan.__enter__()


def test_the_nth_call_fails_and_only_that(pipe):
    reading, writing = pipe
    with FaultPlan() as plan:
        plan.fail("write", nth=2, errno=errno.ENOSPC)
        assert syscalls.write(writing, b"one") == 3
        with pytest.raises(OSError, match="No space left") as raised:
            syscalls.write(writing, b"two")
        assert raised.value.errno == errno.ENOSPC
        assert syscalls.write(writing, b"three") == 5
        assert syscalls.read(reading, 100) == b"onethree"
    assert plan.count("write") == plan.count("write", writing) == 3
    assert (plan.count("read"), plan.count("read", writing), plan.injected) == (1, 0, 1)
    assert plan.counts() == {"write": 3, "read": 1}
    assert [call.error is not None for call in plan.calls] == [False, True, False, False]
    assert [call.injected for call in plan.calls] == [False, True, False, False]


def test_a_fault_can_last(pipe):
    with FaultPlan() as plan:
        plan.fail("read", nth=1, errno=errno.EIO, times=2)
        plan.fail("write", nth=1, errno=errno.EIO, times=FOREVER)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                syscalls.read(pipe[0], 1)
        with pytest.raises(BlockingIOError):
            syscalls.read(pipe[0], 1)
        for _ in range(10):
            with pytest.raises(OSError, match="Input/output"):
                syscalls.write(pipe[1], b"x")
    assert isinstance(plan.calls[2].error, BlockingIOError)
    assert not plan.calls[2].injected


def test_a_rule_can_be_for_some_descriptors_only(pipe):
    reading, writing = pipe
    with FaultPlan() as plan:
        plan.fail("close", errno=errno.EIO, fd=(writing, 999))
        syscalls.close(reading)
        with pytest.raises(OSError, match="Input/output"):
            syscalls.close(writing)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(writing)


def test_a_close_that_fails_has_closed(pipe):
    with FaultPlan() as plan:
        plan.fail("close", errno=errno.EINTR)
        with pytest.raises(InterruptedError):
            syscalls.close(pipe[0])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(pipe[0])


def test_io_can_be_short(pipe):
    reading, writing = pipe
    with FaultPlan() as plan:
        plan.short("write", 2)
        plan.short("writev", 4)
        plan.short("read", 3)
        plan.short("readv", 3)
        assert syscalls.write(writing, memoryview(b"abcdef")) == 2
        assert syscalls.writev(writing, [b"", b"cd", b"efgh"]) == 4
        assert syscalls.read(reading, 100) == b"abc"
        first, second = bytearray(2), bytearray(50)
        assert syscalls.readv(reading, [first, second]) == 3
        assert bytes(first + second[:1]) == b"def"


def test_a_splice_can_be_short_and_find_the_end(pipe):
    reading, writing = pipe
    other_read, other_write = os.pipe()
    os.write(writing, b"abcdef")
    try:
        with FaultPlan() as plan:
            plan.short("splice", 4, times=1)
            plan.eof("splice", nth=2)
            assert syscalls.splice(reading, other_write, 100) == 4
            assert syscalls.splice(reading, other_write, 100) == 0
        assert os.read(other_read, 100) == b"abcd"
    finally:
        os.close(other_read)
        os.close(other_write)


def test_reads_can_find_the_end(pipe):
    reading, writing = pipe
    os.write(writing, b"abcdef")
    with FaultPlan() as plan:
        plan.eof("read", nth=2)
        plan.eof("readv")
        assert syscalls.read(reading, 1) == b"a"
        assert syscalls.read(reading, 1) == b""
        assert syscalls.readv(reading, [bytearray(1)]) == 0


@pytest.mark.parametrize(
    "rule",
    [
        lambda plan: plan.fail("reed"),
        lambda plan: plan.fail("RWF_NOWAIT"),
        lambda plan: plan.fail("_missing"),
        lambda plan: plan.fail("read", nth=0),
        lambda plan: plan.fail("read", times=0),
        lambda plan: plan.short("close"),
        lambda plan: plan.eof("write"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule):
    with pytest.raises(ValueError, match=r"."):
        rule(FaultPlan())


# Sweeps


async def test_a_sweep_tells_what_came_of_each_fault():
    async def scenario():
        fds = syscalls.pipe(os.O_CLOEXEC)
        try:
            return syscalls.write(fds[1], b"data")
        finally:
            for fd in fds:
                syscalls.close(fd)

    outcomes = [outcome async for outcome in sweep(scenario, errnos=(errno.EIO, errno.EAGAIN))]
    assert [(o.name, o.nth, o.errno) for o in outcomes] == [
        ("", 0, 0),
        ("close", 1, errno.EIO),
        ("close", 1, errno.EAGAIN),
        ("close", 2, errno.EIO),
        ("close", 2, errno.EAGAIN),
        ("pipe", 1, errno.EIO),
        ("pipe", 1, errno.EAGAIN),
        ("write", 1, errno.EIO),
        ("write", 1, errno.EAGAIN),
    ]
    assert (outcomes[0].result, outcomes[0].error) == (4, None)
    assert [outcome.reached for outcome in outcomes] == [False] + [True] * 8
    assert [outcome.transient for outcome in outcomes] == [False] * 8 + [True]
    # The first close failed, and so the second was never made.
    assert [bool(outcome.leaked) for outcome in outcomes] == [False, True, True] + [False] * 6
    assert all(isinstance(outcome.error, OSError) for outcome in outcomes[1:])
    assert str(outcomes[0]) == "no fault: returned 4"
    assert str(outcomes[3]) == "close #2 fails once with EIO: raised OSError(5, 'Input/output error')"
    assert "left open" in str(outcomes[1])
    for outcome in outcomes:
        for fd in outcome.leaked:
            os.close(fd)


async def test_a_sweep_is_narrowed_by_name_and_number():
    async def scenario():
        for _ in range(9):
            syscalls.get_blocking(0)
            syscalls.fstat(0)

    sweeps = sweep(scenario, ["fstat"], [errno.EIO], times=(1, FOREVER), at_most=3)
    found = [(outcome.nth, outcome.times) async for outcome in sweeps if outcome.name == "fstat"]
    assert found == [(nth, times) for nth in (1, 5, 9) for times in (1, FOREVER)]
    sweeps = sweep(scenario, ["fstat"], [errno.EIO], at_most=1)
    assert [outcome.nth async for outcome in sweeps] == [0, 1]


async def test_a_sweep_reports_a_hang():
    async def scenario():
        try:
            syscalls.fstat(0)
        except OSError:
            await asyncio.sleep(60)

    outcomes = [outcome async for outcome in sweep(scenario, errnos=[errno.EIO], timeout=0.05)]
    assert [outcome.hung for outcome in outcomes] == [False, True]
    assert str(outcomes[1]) == "fstat #1 fails once with EIO: hung"


async def test_a_sweep_of_a_scenario_that_fails_by_itself_ends_at_once():
    async def scenario():
        syscalls.fstat(0)
        raise ZeroDivisionError

    [outcome] = [outcome async for outcome in sweep(scenario)]
    assert isinstance(outcome.error, ZeroDivisionError)


def test_transient_is_what_the_next_try_may_cure():
    assert {errno.EAGAIN, errno.EINTR} == TRANSIENT
    assert set(ERRNOS) >= TRANSIENT
    assert len(ERRNOS) == 10


async def test_the_far_end_is_out_of_the_plans_reach():
    near, other = os.pipe()
    far, receiver = FarEnd(other), FarEnd(near)
    with FaultPlan() as plan, far, receiver:
        plan.fail("write", times=FOREVER)
        plan.fail("read", times=FOREVER)
        await far.send(b"data")
        assert await receiver.recv() == b"data"
    assert plan.calls == []
