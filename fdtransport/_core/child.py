"""One child process, from its start to the end that its loop is told, by its pidfd.

    child = start_child(loop, exited, ["cat"], fds={0: reading_end, 1: writing_end, 2: 2})

`start_child` takes what ``spawn.spawn`` takes. ``exited()`` is called once, by the loop, when the process
has ended; ``child.returncode`` has its status then. There is no handler of SIGCHLD, no thread and no
polling, and every loop of every thread will do: a pidfd is readable from the end of its process on
(pidfd_open(2)), and ``waitid(P_PIDFD)`` takes the status of exactly this process. When somebody else has
taken it (``os.wait()`` elsewhere, SIGCHLD ignored), the end comes all the same: ``returncode`` is then 255,
as with asyncio, and ``status_known`` is false.

The loop keeps a child until it has ended, so one that nobody holds any more leaves no zombie. A child that
outlives its loop is reaped when it is collected, or, if it runs then, at the first ``start_child`` after
its end. What becomes of a running process that is let go is for the transport to decide: see
``kill_and_forget``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

from . import syscalls
from .spawn import StrOrBytesPath, spawn

__all__ = ["LADDER", "STATUS_UNKNOWN", "Child", "Ending", "start_child"]

#: The return code of a process whose status somebody else has taken; asyncio's number.
STATUS_UNKNOWN = 255
#: The signals that end a process, one after the other: a request, then what it cannot refuse.
LADDER: tuple[int, ...] = (signal.SIGTERM, getattr(signal, "SIGKILL", 9))
#: Seconds that the collection of a killed child waits for its end: as a rule it needs a thousandth.
PATIENCE = 0.1

_P_PIDFD: int = getattr(os, "P_PIDFD", 3)
_OPTIONS: int = getattr(os, "WEXITED", 4) | getattr(os, "WNOHANG", 1)

#: pidfds of processes whose loops have gone. A deque: its ends are safe from all threads.
_left: deque[int] = deque()


def start_child(
    loop: asyncio.AbstractEventLoop,
    exited: Callable[[], object],
    argv: Sequence[StrOrBytesPath],
    **options: Any,
) -> Child:
    """Start a process with ``spawn(argv, **options)`` and watch for its end on *loop*.

    :raises OSError, ValueError, TypeError: as ``spawn``; also ENOSYS where there are no pidfds (Linux before
        5.4, other systems). :raises RuntimeError: the loop is closed. There is no child then.
    """
    if loop.is_closed():
        raise RuntimeError("Event loop is closed")
    _check_pidfds()
    _reap_left()
    pid = spawn(argv, **options)
    try:
        return Child(loop, pid, exited)
    except BaseException:
        # No descriptors are left. (Somebody else may have its status, also where SIGCHLD is ignored.)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise


class Child:
    """A child process of this one; see the module's first lines."""

    __slots__ = (
        "__weakref__", "_exited", "_loop", "_parent", "_pidfd", "_waiting",
        "dies", "pid", "returncode", "status_known",
    )  # fmt: skip

    pid: int
    returncode: int | None
    """None while it runs; as ``subprocess``: minus the number of the signal that ended it."""
    status_known: bool
    dies: bool
    """Whether it is killed when this is collected while it runs. That the transport sees to it is not enough:
    of a cycle any member may be finalized first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pid: int, exited: Callable[[], object]) -> None:
        self._pidfd = -1
        self._loop = loop
        self._exited: Callable[[], object] | None = exited
        self._waiting: list[asyncio.Future[None]] = []
        self._parent = os.getpid()
        self.pid = pid
        self.returncode = None
        self.status_known = True
        self.dies = False
        try:
            self._pidfd = syscalls.pidfd_open(pid)
        except ProcessLookupError:  # it has ended, and somebody has reaped it
            self._ended(STATUS_UNKNOWN, known=False)
            loop.call_soon(self._tell)
            return
        try:
            loop.add_reader(self._pidfd, self._ready)
        except BaseException:
            pidfd, self._pidfd = self._pidfd, -1
            syscalls.close(pidfd)
            raise

    @property
    def inherited(self) -> bool:
        """Whether it is the parent process that started it, before fork(2)."""
        return self._parent != os.getpid()

    def send_signal(self, number: int) -> None:
        """Send a signal to this process, and never to another one that has its number by now.

        :raises ProcessLookupError: it has ended. :raises PermissionError: as kill(2).
        """
        if self._pidfd < 0:
            raise ProcessLookupError(errno.ESRCH, f"process {self.pid} has ended")
        syscalls.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """The return code, as soon as the process has ended. Cancelling is safe."""
        while self.returncode is None:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(future)
            try:
                await future
            finally:
                if self.returncode is None:
                    self._waiting.remove(future)
        return self.returncode

    def end(self, ladder: Sequence[int] = LADDER, grace: float = 5.0) -> Ending:
        """Send the first signal of *ladder* now; see `Ending`."""
        return Ending(self.send_signal, self.wait, ladder, grace)

    def poll(self) -> int | None:
        """The return code, if it has ended by now, though the loop has not told so yet."""
        if self.returncode is None and self._pidfd >= 0:
            status = _status(self._pidfd)
            if status is not None:
                self._ended(*status)
                if not self._loop.is_closed():
                    self._loop.call_soon(self._tell)
        return self.returncode

    def wait_here(self, seconds: float | None) -> bool:
        """Hold this thread until it has ended; false when it has not within *seconds*."""
        return self._pidfd < 0 or syscalls.wait_readable(self._pidfd, seconds)

    def kill_and_forget(self) -> None:
        """End it with SIGKILL, tell nobody, leave no zombie. For a transport that is dropped."""
        self._exited = None
        if self._pidfd >= 0:
            try:
                syscalls.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except OSError:
                pass  # it has ended, or is another user's now
            if self._loop.is_closed():
                syscalls.wait_readable(self._pidfd, PATIENCE)
                self._leave()

    def _ready(self) -> None:
        status = _status(self._pidfd)
        if status is not None:
            self._ended(*status)
            self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        exited, self._exited = self._exited, None
        if exited is not None:
            exited()

    def _ended(self, returncode: int, known: bool) -> None:
        self.returncode, self.status_known = returncode, known
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(pidfd)
            _close(pidfd)

    def _leave(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            _left.append(pidfd)
            _reap_left()

    def __del__(self) -> None:
        try:
            if self.dies and not self.inherited:
                self.kill_and_forget()
            self._leave()
        except AttributeError:
            pass  # its constructor failed before it had anything

    def __repr__(self) -> str:
        how = "running" if self.returncode is None else f"returncode={self.returncode}"
        return f"<Child pid={self.pid} {how}{'' if self.status_known else ' (unknown)'}>"


class Ending:
    """The end of a process, as far as signals bring it about.

    The first signal of the ladder has been sent when this is made. Awaiting it sends the next one whenever
    *grace* seconds were not enough for the one before, and gives the return code. Not awaited, the first
    signal is all. Cancelling is safe, and stops the climb.

    :raises ValueError: *ladder* is empty, or *grace* is negative.
    """

    __slots__ = ("_grace", "_left", "_send", "_wait")

    def __init__(
        self,
        send: Callable[[int], object],
        wait: Callable[[], Awaitable[int]],
        ladder: Sequence[int] = LADDER,
        grace: float = 5.0,
    ) -> None:
        if not ladder:
            raise ValueError("the ladder of signals is empty")
        if not grace >= 0:
            raise ValueError(f"grace ({grace!r}) must be >= 0")
        self._send, self._wait, self._grace = send, wait, grace
        first, *self._left = ladder
        self._step(first)

    def _step(self, number: int) -> None:
        try:
            self._send(number)
        except ProcessLookupError:
            pass  # it has ended, which is what is wanted

    async def _climb(self) -> int:
        while self._left:
            left = len(self._left)
            try:
                async with asyncio.timeout(self._grace):
                    return await self._wait()
            except TimeoutError:
                if len(self._left) == left:  # else another one who awaits this has sent the next
                    self._step(self._left.pop(0))
        return await self._wait()

    def __await__(self) -> Generator[Any, None, int]:
        return self._climb().__await__()


def _status(pidfd: int) -> tuple[int, bool] | None:
    """The return code and whether it is known; None while the process runs. It is reaped by this."""
    try:
        result = syscalls.waitid(_P_PIDFD, pidfd, _OPTIONS)
    except OSError:
        # ECHILD: reaped by somebody else; or, for a pidfd that came here by a fork, the parent's child.
        # Whatever else there may be: the pidfd would be readable for ever, and nobody hear of the end.
        return STATUS_UNKNOWN, False
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return result.si_status, True
    return -result.si_status, True


def _reap_left() -> None:
    for _ in range(len(_left)):
        try:
            pidfd = _left.popleft()
        except IndexError:
            return  # another thread has them
        if _status(pidfd) is None:
            _left.append(pidfd)
        else:
            _close(pidfd)


def _close(pidfd: int) -> None:
    try:
        syscalls.close(pidfd)
    except OSError:
        pass  # it is closed all the same (close(2)), and an end is being told


@functools.cache
def _check_pidfds() -> None:
    """Raise before there is a child of which nobody could tell the end."""
    pidfd = syscalls.pidfd_open(os.getpid())
    try:
        syscalls.waitid(_P_PIDFD, pidfd, _OPTIONS)
    except ChildProcessError:
        pass  # the answer to this question: it knows what a pidfd is
    except OSError:
        raise OSError(errno.ENOSYS, "processes need waitid(P_PIDFD) of Linux 5.4") from None
    finally:
        syscalls.close(pidfd)
