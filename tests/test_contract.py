"""The whole contract, promise by promise, for descriptors that somebody holds."""

from __future__ import annotations

import socket

import pytest

from fdtransport.testing import (
    PairMaker,
    Promise,
    check_run_exit,
    fd_pair_maker,
    packet_pair_maker,
    packet_promises,
    read_pipe_maker,
    socket_pair_maker,
    stream_promises,
    tcp_maker,
    write_pipe_maker,
)

STREAMS: dict[str, PairMaker] = {
    "socket fd": socket_pair_maker(),
    "tcp fd": tcp_maker(),
    "fd pair": fd_pair_maker(),
    "read fd": read_pipe_maker(),
    "write fd": write_pipe_maker(),
}
RECORDS: dict[str, PairMaker] = {
    "seqpacket": packet_pair_maker(),
    "datagram": packet_pair_maker(kind=socket.SOCK_DGRAM),
}

CASES = [
    pytest.param(make, promise, id=f"{name}-{promise}")
    for name, make in STREAMS.items()
    for promise in stream_promises(make.features)
] + [
    pytest.param(make, promise, id=f"{name}-{promise}")
    for name, make in RECORDS.items()
    for promise in packet_promises(make.features)
]


@pytest.mark.parametrize(("make", "promise"), CASES)
async def test_contract(make: PairMaker, promise: Promise) -> None:
    assert await promise.run(make)


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_run_that_ends_in_the_middle_leaves_nothing(make: PairMaker) -> None:
    check_run_exit(make)
