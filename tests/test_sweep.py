"""Every system call of a transport's life fails once, and for good, with each of ten errnos.

Whatever fails and whenever: no hang, no descriptor left open, one loss with the errno that the kernel
gave, and nothing that was acknowledged is missing at the other end. Descriptors that somebody holds are
here, by callbacks and by await, and records; pipes and sockets are swept in test_contract_pipes and
test_contract_sockets, the relay in test_ways.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import record_life
from one_life import CUTS, DATA, SWEPT, any_call_may_fail, large_buffer, narrow, short_calls_are_invisible

from fdtransport import open_fd, open_pipe
from fdtransport._core import backpressure
from fdtransport._core.opening import open_transport
from fdtransport.pipes import PacketPipeTransport
from fdtransport.testing import (
    FOREVER,
    FarEnd,
    Features,
    Outcome,
    PairMaker,
    fd_pair_maker,
    packet_pair_maker,
    read_pipe_maker,
    socket_pair_maker,
    sweep,
    tcp_maker,
    write_pipe_maker,
)

try:
    from fcntl import F_SETPIPE_SZ, fcntl
except ImportError:  # not Linux
    fcntl = None

KINDS: dict[str, PairMaker] = {
    "socket fd": socket_pair_maker(),
    "tcp fd": tcp_maker(),
    "fd pair": fd_pair_maker(),
    "read fd": read_pipe_maker(),
    "write fd": write_pipe_maker(),
}


def packet_pipe(*, reading: bool) -> tuple[int, int]:
    """Both ends, the transport's first, of a pipe that holds one record."""
    source, sink = os.pipe2(os.O_DIRECT)
    fcntl(source, F_SETPIPE_SZ, 4096)
    return (source, sink) if reading else (sink, source)


def packet_pipe_maker(*, reading: bool) -> PairMaker:
    async def connect(protocol_factory: Any, fd: int) -> Any:
        half = (fd, None) if reading else (None, fd)
        return await open_transport(PacketPipeTransport, protocol_factory, half)

    features = Features(readable=reading, writable=not reading, half_close=False, records=True)
    return PairMaker(partial(packet_pipe, reading=reading), features, connect)


RECORDS: dict[str, PairMaker] = {
    "seqpacket": packet_pair_maker(),
    "datagram": packet_pair_maker(kind=socket.SOCK_DGRAM),
    "packet pipe to read": packet_pipe_maker(reading=True),
    "packet pipe to write": packet_pipe_maker(reading=False),
}


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
async def test_any_call_may_fail(
    make: PairMaker, times: int, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    await any_call_may_fail(make, times, monkeypatch)
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("kind", ["socket fd", "fd pair", "read fd"])
async def test_any_call_for_a_buffered_protocol_may_fail(
    kind: str, times: int, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    await any_call_may_fail(KINDS[kind], times, monkeypatch, large_buffer)
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("make", RECORDS.values(), ids=RECORDS)
async def test_any_call_for_records_may_fail(
    make: PairMaker, times: int, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    await record_life.any_call_may_fail(make, times, monkeypatch)
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}


@pytest.mark.parametrize("n", [251, 997])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
async def test_short_reads_and_writes_are_invisible(make: PairMaker, n: int) -> None:
    await short_calls_are_invisible(make, n)


async def over_a_socket() -> tuple[bytes, bytes]:
    """Send and receive by await, over a socket; what arrived there and here."""
    near, other = socket.socketpair()
    with FarEnd(other) as far, near:
        reader, writer = await open_fd(near)
        narrow(writer.transport.fileno())
        far_side = asyncio.gather(far.recv_to_end(), send_and_end(far), return_exceptions=True)
        try:
            received, _ = await asyncio.gather(receive(reader), send(writer))
        finally:
            try:
                await end(writer)
            finally:
                arrived, _ = await far_side
        return arrived, received


async def over_a_pipe() -> tuple[bytes, bytes]:
    """Send by await what is received by await, over a pipe."""
    reader, writer = await open_pipe()
    try:
        received, _ = await asyncio.gather(receive(reader), send(writer))
    finally:
        await end(writer)  # which ends the reader, if nothing did before
    return DATA, received


async def receive(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(len(DATA) // 2) + await reader.read()


async def send(writer: asyncio.StreamWriter) -> None:
    for start, stop in pairwise(CUTS):
        writer.write(DATA[start:stop])
        await writer.drain()
    writer.write_eof()


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()  # tells a loss that drain() has not told


async def send_and_end(far: FarEnd) -> None:
    await far.send(DATA)
    far.shutdown_write()


def check_streams(outcome: Outcome) -> None:
    what = str(outcome)
    assert not outcome.hung, what
    assert not outcome.leaked, what
    if isinstance(outcome.error, OSError):
        # None: what asyncio's drain() raises after a loss has no number.
        assert outcome.error.errno in (None, outcome.errno, errno.EPIPE, errno.ECONNRESET), what
    elif outcome.error is not None:
        assert isinstance(outcome.error, asyncio.IncompleteReadError), what
    else:  # nobody was told of a loss: then nothing is lost
        assert outcome.result == (DATA, DATA), what
    if not outcome.reached or outcome.transient:
        assert outcome.error is None, what


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("scenario", [over_a_socket, over_a_pipe])
async def test_any_call_of_streams_may_fail(
    scenario: Any, times: int, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backpressure, "BREATH", 0.0)
    async for outcome in sweep(scenario, errnos=SWEPT, times=(times,)):
        check_streams(outcome)
    assert {report["message"] for report in reports} <= {"closing the descriptor failed"}
