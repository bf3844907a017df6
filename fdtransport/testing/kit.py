"""The contract kit's front door: every promise that applies, in one call."""

from __future__ import annotations

from collections.abc import Collection

from . import (
    apart,
    kit_descriptors,
    kit_errors,
    kit_faults,
    kit_flow,
    kit_hangup,
    kit_idle,
    kit_life,
    kit_packets,
    kit_producers,
    kit_reading,
    kit_writing,
)
from .promises import Breach, ContractViolation, Features, Maker, Promise, detect_features, promises

__all__ = [
    "check_half_close",
    "check_packet_transport",
    "check_producers",
    "check_stream_transport",
    "packet_promises",
    "stream_promises",
]

#: The modules that hold the promises; importing them is what fills the table.
ROOMS = (
    apart, kit_descriptors, kit_errors, kit_faults, kit_flow, kit_hangup,
    kit_idle, kit_life, kit_packets, kit_producers, kit_reading, kit_writing,
)  # fmt: skip

_STREAM = (
    "life", "apart", "errors", "reading", "half-close", "hang-up", "writing",
    "flow", "faults", "producers", "idle", "descriptors", "drop-in",
)  # fmt: skip


def stream_promises(features: Features | None = None) -> list[Promise]:
    """What a byte-stream transport promises, by number; with ``features``, only what applies to it.

    ::

        @pytest.mark.parametrize("promise", stream_promises(make.features), ids=str)
        async def test_contract(promise):
            await promise.run(make)
    """
    return _applying(promises(*_STREAM), features)


def packet_promises(features: Features | None = None) -> list[Promise]:
    """What a record transport promises, by number; with ``features``, only what applies to it."""
    return _applying(promises("records"), features)


def _applying(found: list[Promise], features: Features | None) -> list[Promise]:
    return found if features is None else [promise for promise in found if promise.applies_to(features)]


async def check_stream_transport(
    make: Maker, *, features: Features | None = None, skip: Collection[int | str] = (), timeout: float = 5.0
) -> list[Promise]:
    """Check every promise of a byte stream that applies to what ``make`` makes, on the running loop.

    ``make(protocol_factory)`` is awaited for a pair of (transport, far end) as often as needed. What
    applies follows from ``features``; they are detected when they are not given (see `Features`). ``skip``
    names promises that are knowingly not kept, by number or name. Each has ``timeout`` seconds.

    Returns the promises that were kept.

    :raises ContractViolation: some were not; it lists all of them.
    """
    return await _check(make, promises(*_STREAM), features, skip, timeout)


async def check_half_close(
    make: Maker, *, features: Features | None = None, skip: Collection[int | str] = (), timeout: float = 5.0
) -> list[Promise]:
    """As ``check_stream_transport``, but only how each direction ends."""
    return await _check(make, promises("half-close"), features, skip, timeout)


async def check_producers(
    make: Maker, *, features: Features | None = None, skip: Collection[int | str] = (), timeout: float = 5.0
) -> list[Promise]:
    """As ``check_stream_transport``, but only producers and chained transports."""
    return await _check(make, promises("producers"), features, skip, timeout)


async def check_packet_transport(
    make: Maker, *, features: Features | None = None, skip: Collection[int | str] = (), timeout: float = 5.0
) -> list[Promise]:
    """As ``check_stream_transport``, for a transport of records: datagrams, packets, events."""
    return await _check(make, promises("records"), features, skip, timeout)


async def _check(
    make: Maker,
    found: list[Promise],
    features: Features | None,
    skip: Collection[int | str],
    timeout: float,
) -> list[Promise]:
    if features is None:
        features = await detect_features(make)
    kept: list[Promise] = []
    breaches: list[Breach] = []
    for promise in found:
        if promise.number in skip or promise.name in skip:
            continue
        try:
            if await promise.run(make, features, timeout=timeout):
                kept.append(promise)
        except ContractViolation as violation:
            breaches += violation.breaches
    if breaches:
        raise ContractViolation(breaches)
    return kept
