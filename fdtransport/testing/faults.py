"""Faults in front of the kernel: the Nth read, write, close... fails, is short, or finds the end.

::

    with FaultPlan() as plan:
        plan.fail("read", nth=3, errno=errno.EIO)
        plan.short("write", n=1)
        ...
    assert plan.count("write") > 1

The library makes every system call through one module, by the name of the call; a plan replaces
those names while its block runs. It sees nothing else: not the loop's own calls, not the far end's.
Not for use from several threads.
"""

from __future__ import annotations

import asyncio
import errno as _errno
import inspect
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, TypeAlias

from .._core import syscalls
from .observe import descriptors, newcomers, turns

__all__ = ["ERRNOS", "FOREVER", "TRANSIENT", "Call", "FaultPlan", "Outcome", "sweep"]

Fds: TypeAlias = "int | Iterable[int] | None"

#: For ``times``: from the nth call on, for good.
FOREVER: Final = sys.maxsize

#: Errnos that say "nothing happened, try again".
TRANSIENT: Final = frozenset({_errno.EAGAIN, _errno.EINTR})

#: What a sweep injects unless it is told otherwise.
ERRNOS: Final = (
    _errno.EAGAIN, _errno.EINTR, _errno.EIO, _errno.ENOMEM, _errno.EPIPE,
    _errno.ECONNRESET, _errno.ENOSPC, _errno.ENOBUFS, _errno.EBADF, _errno.EINVAL,
)  # fmt: skip

#: Calls that move bytes: only for them does a transient errno mean "later".
_MOVERS = frozenset({
    "read", "write", "readv", "writev", "preadv", "pwritev", "splice", "sendfile", "sendmsg", "recvmsg",
    "recvmsg_into", "recvfrom", "send", "sendto",
})  # fmt: skip
#: Calls with a second descriptor, and where it stands.
_TWO_FDS = {"splice": 1, "sendfile": 1, "dup2": 1}


@dataclass(frozen=True)
class Call:
    """One system call that went through the seam."""

    name: str
    fd: int
    #: The OSError that came out of it, injected or real; None when it returned.
    error: OSError | None
    injected: bool


@dataclass
class _Rule:
    name: str
    nth: int
    times: int
    fds: frozenset[int] | None
    act: Callable[[Callable[..., Any], tuple[Any, ...]], Any]
    seen: int = 0

    def applies(self, name: str, fds: Collection[int]) -> bool:
        """Count a call that matches, and say whether it is one of those that are to go wrong."""
        if name != self.name or (self.fds is not None and self.fds.isdisjoint(fds)):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


@dataclass
class FaultPlan:
    """Which system calls of the library go wrong while the block runs.

    The rules may be added before or inside the block; they count the calls that match them from then
    on. ``fd`` narrows a rule to one descriptor (or to some). The first rule that applies to a call wins.

    :raises ValueError: a name is no system call of the library, or nth or times is below 1.
    """

    #: What went through the seam, in order.
    calls: list[Call] = field(default_factory=list)
    seam: ModuleType = syscalls

    def __post_init__(self) -> None:
        self._rules: list[_Rule] = []
        self._originals: dict[str, Callable[..., Any]] = {}

    # Rules

    def fail(
        self, name: str, nth: int = 1, errno: int = _errno.EIO, times: int = 1, *, fd: Fds = None
    ) -> None:
        """The ``nth`` call of ``name`` raises ``OSError(errno)``, and ``times - 1`` further ones.

        Nothing happens in the kernel then, with one exception that is the kernel's own: ``close`` closes
        the descriptor although it tells an error (close(2)).
        """

        def act(original: Callable[..., Any], args: tuple[Any, ...]) -> Any:
            if name == "close":
                original(*args)
            raise OSError(errno, os.strerror(errno))

        self._add(name, nth, times, fd, act)

    def short(self, name: str, n: int = 1, nth: int = 1, times: int = FOREVER, *, fd: Fds = None) -> None:
        """From the ``nth`` call on, ``name`` moves at most ``n`` bytes.

        For read, readv, write, writev, preadv, pwritev, splice, sendfile, sendmsg, recvmsg and
        recvmsg_into.
        """
        if name not in _SHORTENED:
            raise ValueError(f"{name} cannot be short, only {', '.join(sorted(_SHORTENED))} can")
        shorten = _SHORTENED[name]
        self._add(name, nth, times, fd, lambda original, args: original(*shorten(args, n)))

    def eof(self, name: str, nth: int = 1, times: int = FOREVER, *, fd: Fds = None) -> None:
        """From the ``nth`` call on, ``name`` finds the end: read, readv, preadv, splice, sendfile."""
        if name not in ("read", "readv", "preadv", "splice", "sendfile"):
            raise ValueError(f"{name} finds no end of file")
        self._add(name, nth, times, fd, lambda original, args: b"" if name == "read" else 0)

    def _add(self, name: str, nth: int, times: int, fd: Fds, act: Any) -> None:
        if name not in self._names():
            raise ValueError(f"{name} is no system call of the library")
        if nth < 1 or times < 1:
            raise ValueError(f"nth ({nth}) and times ({times}) count from 1")
        fds = None if fd is None else frozenset((fd,) if isinstance(fd, int) else fd)
        self._rules.append(_Rule(name, nth, times, fds, act))

    # What happened

    def count(self, name: str, fd: int | None = None) -> int:
        """How many calls of ``name`` there were, on ``fd`` if given."""
        return sum(1 for call in self.calls if call.name == name and (fd is None or call.fd == fd))

    def counts(self) -> Counter[str]:
        """How many calls there were of each name."""
        return Counter(call.name for call in self.calls)

    @property
    def injected(self) -> int:
        """How many calls a rule has changed."""
        return sum(call.injected for call in self.calls)

    # The seam

    def _names(self) -> list[str]:
        return [
            name
            for name, value in vars(self.seam).items()
            if not name.startswith("_") and (name in self._originals or _is_call(value))
        ]

    def __enter__(self) -> FaultPlan:
        if self._originals:
            raise RuntimeError("this plan is at work already")
        for name in self._names():
            self._originals[name] = getattr(self.seam, name)
            setattr(self.seam, name, self._watched(name, self._originals[name]))
        return self

    def __exit__(self, *exc: object) -> None:
        for name, original in self._originals.items():
            setattr(self.seam, name, original)
        self._originals.clear()

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        second = _TWO_FDS.get(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = [args[i] for i in ((0,) if second is None else (0, second)) if i < len(args)]
            fds = [fd.fileno() if isinstance(fd, socket.socket) else fd for fd in given]
            fds = [fd for fd in fds if isinstance(fd, int)]
            fd = fds[0] if fds else -1
            rules = [rule for rule in self._rules if rule.applies(name, fds)]
            rule = rules[0] if rules else None
            try:
                result = rule.act(original, args) if rule is not None else original(*args, **kwargs)
            except OSError as exc:
                self.calls.append(Call(name, fd, exc, rule is not None))
                raise
            self.calls.append(Call(name, fd, None, rule is not None))
            return result

        return call


def _is_call(value: Any) -> bool:
    # Functions that the module imported from elsewhere for its own use have no place in a plan, but
    # those of os do; a class (select.epoll is one) would lose its methods.
    return inspect.isroutine(value)


def _first_bytes(buffers: Iterable[Any], n: int) -> list[memoryview]:
    first: list[memoryview] = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")[:n]
        if len(view):
            first.append(view)
            n -= len(view)
        if not n:
            break
    return first


#: Arguments -> arguments that move at most n bytes.
_SHORTENED: dict[str, Callable[[tuple[Any, ...], int], tuple[Any, ...]]] = {
    "read": lambda args, n: (args[0], min(args[1], n)),
    "write": lambda args, n: (args[0], memoryview(args[1]).cast("B")[:n]),
    "readv": lambda args, n: (args[0], _first_bytes(args[1], n), *args[2:]),
    "writev": lambda args, n: (args[0], _first_bytes(args[1], n), *args[2:]),
    "preadv": lambda args, n: (args[0], _first_bytes(args[1], n), *args[2:]),
    "pwritev": lambda args, n: (args[0], _first_bytes(args[1], n), *args[2:]),
    "splice": lambda args, n: (*args[:2], min(args[2], n), *args[3:]),
    "sendfile": lambda args, n: (*args[:3], min(args[3], n), *args[4:]),
    "sendmsg": lambda args, n: (args[0], _first_bytes(args[1], n), *args[2:]),
    "recvmsg": lambda args, n: (args[0], min(args[1], n)),
    "recvmsg_into": lambda args, n: (args[0], _first_bytes(args[1], n)),
}


@dataclass(frozen=True)
class Outcome:
    """What came of one run of a scenario in a ``sweep``."""

    #: The call that was made to fail; "" in the first run, which has no fault.
    name: str
    nth: int
    errno: int
    #: 1, or FOREVER.
    times: int
    #: What the scenario returned, or raised.
    result: Any
    error: BaseException | None
    #: Whether it had to be given up.
    hung: bool
    #: Descriptors that were open afterwards and not before.
    leaked: dict[int, str]
    #: Whether the run came as far as the fault.
    reached: bool

    @property
    def transient(self) -> bool:
        """Whether the fault is one that nobody may notice: EAGAIN or EINTR, once, in a read or write."""
        return self.errno in TRANSIENT and self.times == 1 and self.name in _MOVERS

    def __str__(self) -> str:
        if not self.name:
            fault = "no fault"
        else:
            error = _errno.errorcode.get(self.errno, str(self.errno))
            fault = f"{self.name} #{self.nth} fails {'once' if self.times == 1 else 'for good'} with {error}"
        what = f"raised {self.error!r}" if self.error else f"returned {self.result!r:.200}"
        if self.hung:
            what = "hung"
        return f"{fault}: {what}" + (f", left open {self.leaked}" if self.leaked else "")


async def sweep(
    scenario: Callable[[], Awaitable[Any]],
    names: Collection[str] | None = None,
    errnos: Collection[int] = ERRNOS,
    *,
    times: Collection[int] = (1,),
    timeout: float = 5.0,
    at_most: int | None = None,
) -> AsyncIterator[Outcome]:
    """Run ``scenario()`` once to learn its system calls, then again for each of them with each errno.

    Yields an `Outcome` per run, the one without a fault first; if that one fails, the sweep ends with
    it. ``names`` narrows the calls (default: every one that was made). With ``times`` = (1, FOREVER) each
    fault comes once and then for good. ``at_most`` so many calls of each name are tried, spread over the
    whole scenario. A transient errno for good is left out: whoever tries again then is right.

    The scenario makes its own transports and far ends and must end them, also when it raises.

    ::

        async for outcome in sweep(scenario):
            assert not outcome.hung and not outcome.leaked, str(outcome)
            if outcome.transient:
                assert outcome.error is None and outcome.result == expected, str(outcome)
    """
    plan = FaultPlan()
    first = await _run(plan, scenario, "", 0, 0, 1, timeout)
    yield first
    if first.error is not None or first.hung:
        return
    for name, calls in sorted(plan.counts().items()):
        if names is not None and name not in names:
            continue
        for nth in _spread(calls, at_most):
            for errno in errnos:
                for often in times:
                    if errno in TRANSIENT and often != 1:
                        continue
                    plan = FaultPlan()
                    plan.fail(name, nth, errno, often)
                    yield await _run(plan, scenario, name, nth, errno, often, timeout)


def _spread(calls: int, at_most: int | None) -> list[int]:
    if at_most is None or calls <= at_most:
        return list(range(1, calls + 1))
    if at_most == 1:
        return [1]
    return sorted({1 + round(i * (calls - 1) / (at_most - 1)) for i in range(at_most)})


async def _run(
    plan: FaultPlan,
    scenario: Callable[[], Awaitable[Any]],
    name: str,
    nth: int,
    errno: int,
    times: int,
    timeout: float,
) -> Outcome:
    before = descriptors()
    result: Any = None
    error: BaseException | None = None
    hung = False
    with plan:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                result = await scenario()
        except Exception as exc:
            error, hung = exc, limit.expired()
        for _ in range(20):
            await turns(1)
            if not newcomers(before):
                break
    if error is not None:
        error.__traceback__ = None  # it would keep the frames of the scenario, and their files, alive
    return Outcome(name, nth, errno, times, result, error, hung, newcomers(before), plan.injected > 0)
