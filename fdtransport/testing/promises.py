"""The table of promises: one small check per line of the contract, with its number and its needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from .ends import FarEnd

if TYPE_CHECKING:
    from .trial import Trial

__all__ = [
    "Breach",
    "ContractViolation",
    "Features",
    "Maker",
    "Promise",
    "detect_features",
    "promise",
    "promises",
]

#: What the kit is given: a coroutine function that makes a transport, with a protocol from the factory,
#: and the far end of it.
Maker: TypeAlias = Callable[[Callable[[], Any]], Awaitable[tuple[Any, FarEnd]]]


@dataclass(frozen=True)
class Features:
    """What a kind of transport can do, which decides the promises that apply to it.

    ``detect_features`` finds the first group by looking at the far end, never by asking the transport: one
    that is broken must not get out of a check by saying that it lacks the feature. Give your own where
    the far end cannot tell.
    """

    #: The transport has a read side: the far end can send.
    readable: bool = True
    #: The transport has a write side: the far end can receive.
    writable: bool = True
    #: Each direction can end alone.
    half_close: bool = True
    #: The far end is a stream socket, which can go away with ECONNRESET.
    resets: bool = False
    #: The far end is a TCP socket.
    tcp: bool = False
    #: It carries records, not a stream of bytes.
    records: bool = False
    #: A record can be empty.
    empty_records: bool = False
    #: A far end that reads nothing makes the sender wait; UDP drops records instead.
    waits: bool = True

    #: It stands in for asyncio's socket transports: extra info, sendfile, ``abort(reset=True)`` on TCP.
    socket: bool = False
    #: It has what asyncio's transports lack: producers, ``flushed``, ``aclose``, ``detach``...
    extended: bool = True
    #: Its system calls go through this library's seam, so that `FaultPlan` reaches them.
    seam: bool = True
    #: A hang-up of the far end is seen while nobody reads (needs epoll).
    hangup: bool = True
    #: The far end's going away ends the transport (not so for a FIFO that reopens).
    ends: bool = True
    #: That is told as an end of file, and what came before is still delivered. A serial port that goes is an
    #: error, and the kernel throws away what was unread.
    end_of_file: bool = True
    #: What the kernel has taken still leaves after ``abort()``. A serial port throws it away.
    abort_keeps: bool = True
    #: The descriptor is still open inside ``connection_lost``.
    open_in_lost: bool = True
    #: It is given its files, and they are blocking then.
    given_blocking: bool = False
    #: The maker makes everything anew, so that it also works in another loop in another thread.
    own_loop: bool = True
    #: The maker closes what it opened when the helper in it raises or is cancelled (``PairMaker`` does).
    tidy_maker: bool = False

    @property
    def read_only(self) -> bool:
        """It has no write side."""
        return self.readable and not self.writable

    @property
    def write_only(self) -> bool:
        """It has no read side."""
        return self.writable and not self.readable

    @property
    def reset_keeps_data(self) -> bool:
        """What was received before a reset can be read after it: on UNIX sockets always, on TCP not."""
        return self.resets and not self.tcp

    def lacking(self, needs: Collection[str]) -> list[str]:
        """Those of ``needs`` that are not there, sorted."""
        return sorted(name for name in needs if not getattr(self, name))

    def but(self, **changes: Any) -> Features:
        """A copy with some fields changed."""
        return replace(self, **changes)


_NAMES = frozenset(field.name for field in fields(Features)) | {"read_only", "write_only", "reset_keeps_data"}


class ContractViolation(AssertionError):
    """A transport broke its contract. ``breaches`` lists each promise that it broke and what was seen."""

    def __init__(self, breaches: Iterable[Breach]) -> None:
        self.breaches: tuple[Breach, ...] = tuple(breaches)
        super().__init__("\n".join(["the contract is broken:", *(f"  {b}" for b in self.breaches)]))

    @property
    def numbers(self) -> frozenset[int]:
        """The contract numbers of the broken promises."""
        return frozenset(breach.number for breach in self.breaches)


@dataclass(frozen=True)
class Breach:
    """One broken promise: its number in the contract, the check that saw it, and what it saw."""

    number: int
    name: str
    seen: str

    def __str__(self) -> str:
        return f"{self.number}. {self.name}: {self.seen}"


@dataclass(frozen=True)
class Promise:
    """One line of the contract as a check. ``str()`` of it is fit for the id of a test."""

    number: int
    name: str
    groups: frozenset[str]
    needs: frozenset[str]
    check: Callable[[Trial], Awaitable[None]]

    def __str__(self) -> str:
        return f"{self.number:02}-{self.name}"

    def applies_to(self, features: Features) -> bool:
        return not features.lacking(self.needs)

    async def run(self, make: Maker, features: Features | None = None, *, timeout: float = 5.0) -> bool:
        """Check this promise on the running loop.

        ``features`` are detected when they are not given. Returns False without checking when they lack
        what the promise needs.

        :raises ContractViolation: it is broken, it took longer than ``timeout`` seconds, or ``make`` raised.
        """
        from .trial import Trial

        if features is None:
            features = await detect_features(make)
        if not self.applies_to(features):
            return False
        trial = Trial(make, features, timeout=timeout)
        breaches = await trial.run(self)
        if breaches:
            raise ContractViolation(breaches) from trial.cause
        return True


class SilentProtocol(asyncio.Protocol, asyncio.DatagramProtocol):
    """A protocol for either kind of transport, that does nothing."""


async def detect_features(make: Maker) -> Features:
    """The features of what ``make`` makes.

    A maker that has an attribute ``features`` has said it; else one pair is made and its far end looked at.
    """
    declared = getattr(make, "features", None)
    if isinstance(declared, Features):
        return declared
    transport, far = await make(SilentProtocol)
    found = Features(
        readable=far.can_send,
        writable=far.can_receive,
        half_close=far.can_shutdown_write and far.can_receive,
        resets=far.can_reset and not far.is_record,
        tcp=far.is_tcp and not far.is_record,
        records=far.is_record,
        empty_records=far.is_datagram,
        waits=not (far.is_datagram and far.is_tcp),
    )
    transport.abort()
    for _ in range(5):
        await asyncio.sleep(0)
    far.close()
    return found


_table: list[Promise] = []


def promise(
    number: int, groups: str, *needs: str
) -> Callable[[Callable[[Trial], Awaitable[None]]], Callable[[Trial], Awaitable[None]]]:
    """Enter a check in the table: its contract number, its groups, the features that it needs."""
    unknown = set(needs) - _NAMES
    if unknown:
        raise ValueError(f"no such features: {sorted(unknown)}")

    def enter(check: Callable[[Trial], Awaitable[None]]) -> Callable[[Trial], Awaitable[None]]:
        _table.append(Promise(number, check.__name__, frozenset(groups.split()), frozenset(needs), check))
        return check

    return enter


def promises(*groups: str) -> list[Promise]:
    """The promises of these groups, by number."""
    return sorted((p for p in _table if not p.groups.isdisjoint(groups)), key=lambda p: p.number)
