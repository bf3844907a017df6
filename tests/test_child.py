"""The end of a child: told once, on whichever loop started it, whoever reaps it; and no zombie."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import sys
import threading

import pytest
from child_checks import children, no_child_is_left, until  # noqa: F401
from conftest import LOOPS

from fdtransport._core import child as room
from fdtransport._core import syscalls
from fdtransport._core.child import STATUS_UNKNOWN, Child, start_child
from fdtransport.testing import idle_cost

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")


def start(argv, **options):
    """A child on the running loop, and what its callback saw."""
    told = []
    child = start_child(
        asyncio.get_running_loop(), lambda: told.append(child.returncode), argv, fds={2: 2}, **options
    )
    return child, told


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM),
        (["sh", "-c", "kill -SEGV $$"], -signal.SIGSEGV),
    ],
)
async def test_the_end_is_told_once_with_the_status(argv, status):
    child, told = start(argv)
    assert child.returncode is None
    await until(lambda: told)
    await asyncio.sleep(0)
    assert told == [status]
    assert child.status_known
    assert child.pid not in children()


async def test_poll_knows_before_the_loop_does_and_the_loop_still_tells():
    child, told = start(["true"])
    async with asyncio.timeout(10):
        while child.poll() is None:
            await asyncio.to_thread(os.sched_yield)
            if told:
                break
    assert child.returncode == 0
    await until(lambda: told)
    assert told == [0]
    assert child.poll() == 0


async def test_signals_go_to_the_process_until_its_end():
    child, told = start(["sleep", "60"])
    child.send_signal(0)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    await until(lambda: told)
    assert told == [-signal.SIGTERM]
    with pytest.raises(ProcessLookupError, match=str(child.pid)):
        child.send_signal(signal.SIGTERM)


async def test_a_child_that_somebody_else_reaps_ends_and_says_that_its_status_is_unknown():
    child, told = start(["sh", "-c", "exit 3"])
    os.waitpid(child.pid, 0)  # noqa: ASYNC222
    await until(lambda: told)
    assert told == [STATUS_UNKNOWN]
    assert not child.status_known
    assert "unknown" in repr(child)


async def test_a_child_that_is_reaped_before_it_can_be_watched_ends_too(monkeypatch):
    def too_late(pid):
        os.waitpid(pid, 0)
        raise ProcessLookupError(errno.ESRCH, "no such process")

    room._check_pidfds()
    monkeypatch.setattr(syscalls, "pidfd_open", too_late)
    child, told = start(["true"])
    assert told == []
    await until(lambda: told)
    assert told == [STATUS_UNKNOWN]
    assert not child.status_known


async def test_children_end_while_sigchld_is_ignored():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        child, told = start(["true"])
        await until(lambda: told)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert child.returncode == STATUS_UNKNOWN


async def test_no_handler_no_thread_and_no_wakeup_is_needed():
    handler, threads = signal.getsignal(signal.SIGCHLD), threading.active_count()
    child, told = start(["sleep", "60"])
    assert signal.getsignal(signal.SIGCHLD) is handler
    assert threading.active_count() == threads
    assert (await idle_cost(0.1)).is_idle(0.03, 4)
    child.send_signal(signal.SIGKILL)
    await until(lambda: told)


@pytest.mark.parametrize("kind", LOOPS)
def test_loops_of_any_thread_hear_of_their_own_children(kind):
    seen, failed = {}, []

    async def several(name):
        mine = [start(["sh", "-c", f"exit {name}"]) for _ in range(10)]
        await until(lambda: all(told for _, told in mine))
        seen[name] = [told for _, told in mine]

    def work(name):
        loop = LOOPS[kind]()
        try:
            loop.run_until_complete(several(name))
        except BaseException as exc:
            failed.append(exc)
        finally:
            loop.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert seen == {name: [[name]] * 10 for name in range(4)}


async def test_a_child_that_nobody_holds_is_still_reaped():
    child, _ = start(["cat"])  # its descriptor 0 is closed: it ends by itself
    pid = child.pid
    del child
    gc.collect()
    await until(lambda: pid not in children())


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
def test_a_child_that_outlives_its_loop_leaves_no_zombie(loop, ended):
    child = start_child(loop, lambda: None, ["true"] if ended else ["sleep", "60"], fds={})
    pid = child.pid
    if ended:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    loop.close()
    if not ended:
        child.kill_and_forget()
    del child
    gc.collect()
    assert pid not in children()


def test_one_that_runs_on_after_its_loop_is_reaped_with_the_next_start(loop):
    child = start_child(loop, lambda: None, ["sleep", "60"], fds={})
    pid = child.pid
    loop.close()
    del child
    gc.collect()
    assert pid in children()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    room._reap_left()
    assert pid not in children()


async def test_a_child_that_cannot_be_watched_is_not_left_to_run(monkeypatch):
    def full(_pid):
        raise OSError(errno.EMFILE, "no descriptors")

    room._check_pidfds()
    monkeypatch.setattr(syscalls, "pidfd_open", full)
    with pytest.raises(OSError, match="no descriptors"):
        start(["sleep", "60"])


def test_nothing_is_started_for_a_closed_loop(loop):
    loop.close()
    with pytest.raises(RuntimeError):
        start_child(loop, lambda: None, ["sleep", "60"], fds={})


async def test_a_system_without_pidfds_says_so_before_there_is_a_child(monkeypatch):
    room._check_pidfds.cache_clear()
    monkeypatch.setattr(syscalls, "pidfd_open", syscalls._missing("pidfd_open"))
    with pytest.raises(OSError, match="pidfd_open") as caught:
        start(["sleep", "60"])
    assert caught.value.errno == errno.ENOSYS


async def test_one_that_failed_to_be_made_can_be_collected():
    child = Child.__new__(Child)
    del child
    gc.collect()
