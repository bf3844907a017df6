"""The contract kit over every way to get a socket transport."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datagram_makers import Factory, Maker, Pair
from one_life import SWEPT, any_call_may_fail, check, live, short_calls_are_invisible

import fdtransport
from fdtransport._core import accept, backpressure
from fdtransport.testing import FOREVER, FarEnd, Features, Promise, stream_promises, sweep

TCP = Features(resets=True, tcp=True, socket=True)
UNIX = Features(resets=True, socket=True)


_numbers = itertools.count()


def _listen_tcp(_directory: Path) -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def _listen_unix(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / str(next(_numbers))))
    listener.listen()
    return listener


async def _dial(listener: socket.socket, protocol_factory: Factory) -> Pair:
    """A client transport to *listener*, and what *listener* accepts."""
    far: list[FarEnd] = []

    def factory() -> Any:
        far.append(FarEnd(listener.accept()[0]))
        return protocol_factory()

    with listener:
        try:
            if listener.family == socket.AF_UNIX:
                made = await fdtransport.create_unix_connection(factory, listener.getsockname())
            else:
                made = await fdtransport.create_connection(factory, *listener.getsockname())
        except BaseException:
            for end in far:
                end.close()
            raise
    return made[0], far[0]


async def connected_tcp(protocol_factory: Factory, directory: Path) -> Pair:
    return await _dial(_listen_tcp(directory), protocol_factory)


async def connected_unix(protocol_factory: Factory, directory: Path) -> Pair:
    return await _dial(_listen_unix(directory), protocol_factory)


async def _accept(
    server: fdtransport.Server, made: asyncio.Future[Any], connect: Callable[[], FarEnd]
) -> Pair:
    """What *server* makes of a connection; ECONNREFUSED when it tells the loop that it makes nothing."""
    loop = asyncio.get_running_loop()
    told = loop.get_exception_handler()
    shortages = itertools.count(1)

    def note(loop: Any, context: dict[str, Any]) -> None:
        short = context["message"] == "socket.accept() out of system resource"
        if not made.done() and not (short and next(shortages) < 3):
            made.set_exception(OSError(errno.ECONNREFUSED, context["message"]))
        if told is not None:
            told(loop, context)

    loop.set_exception_handler(note)
    far = connect()
    try:
        return await asyncio.wait_for(made, 5), far
    except BaseException:
        far.close()
        raise
    finally:
        loop.set_exception_handler(told)
        server.close()


class _Watcher:
    """A protocol factory that tells of the transport once connection_made has been called."""

    def __init__(self, protocol_factory: Factory) -> None:
        self.made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._protocol_factory = protocol_factory

    def __call__(self) -> Any:
        protocol = self._protocol_factory()
        told = protocol.connection_made

        def connection_made(transport: Any) -> None:
            del protocol.connection_made
            self.made.set_result(transport)
            told(transport)

        protocol.connection_made = connection_made
        return protocol


async def accepted_tcp(protocol_factory: Factory, directory: Path) -> Pair:
    watcher = _Watcher(protocol_factory)
    server = await fdtransport.create_server(watcher, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    return await _accept(server, watcher.made, lambda: FarEnd(socket.create_connection(address)))


async def accepted_unix(protocol_factory: Factory, directory: Path) -> Pair:
    watcher = _Watcher(protocol_factory)
    path = str(directory / str(next(_numbers)))
    server = await fdtransport.create_unix_server(watcher, path)

    def connect() -> FarEnd:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return FarEnd(sock)

    return await _accept(server, watcher.made, connect)


async def given_object(protocol_factory: Factory, directory: Path) -> Pair:
    near, other = socket.socketpair()
    far = FarEnd(other)
    try:
        transport, _ = await fdtransport.create_unix_connection(protocol_factory, sock=near)
    except BaseException:
        near.close()
        far.close()
        raise
    return transport, far


async def passing_descriptors(protocol_factory: Factory, directory: Path) -> Pair:
    """As ``given_object``, for a protocol that takes descriptors: all bytes come by recvmsg(2)."""

    def factory() -> Any:
        protocol = protocol_factory()
        protocol.fds_received = lambda fds: None
        return protocol

    return await given_object(factory, directory)


KINDS = {
    "connected-tcp": (connected_tcp, TCP),
    "connected-unix": (connected_unix, UNIX),
    "accepted-tcp": (accepted_tcp, TCP),
    "accepted-unix": (accepted_unix, UNIX),
    "given-object": (given_object, UNIX.but(given_blocking=True)),
    "passing-descriptors": (passing_descriptors, UNIX.but(given_blocking=True)),
}


#: What is promised of the helper that makes a transport; a server's are in test_accept.
OF_HELPERS = (14, 44)


def _cases() -> list[Any]:
    return [
        pytest.param(kind, promise, id=f"{kind}-{promise}")
        for kind, (_, features) in KINDS.items()
        for promise in stream_promises()
        if promise.applies_to(features) and not (kind.startswith("accepted") and promise.number in OF_HELPERS)
    ]


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize(("kind", "promise"), _cases())
async def test_contract(kind: str, promise: Promise, tmp_path: Path) -> None:
    make, features = KINDS[kind]
    assert await promise.run(Maker(make, features, tmp_path))


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("accepted")])
async def test_any_call_may_fail(
    kind: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, features = KINDS[kind]
    await any_call_may_fail(Maker(make, features, tmp_path), times, monkeypatch)


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("accepted")])
async def test_any_call_of_a_server_may_fail(
    kind: str, times: int, tmp_path: Path, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection that cannot be accepted is nobody's: the loop is told, and there is no life to look at.
    monkeypatch.setattr(backpressure, "BREATH", 0.0)
    monkeypatch.setattr(accept, "RETRY", 0.0)
    monkeypatch.setattr(accept, "REPORT", 0.0)
    make, features = KINDS[kind]
    maker = Maker(make, features, tmp_path)
    never = 0
    async for outcome in sweep(lambda: live(maker), errnos=SWEPT, times=(times,)):
        if outcome.error is None and outcome.result.refused == errno.ECONNREFUSED:
            assert outcome.name in ("accept", "fcntl", "status_flags"), str(outcome)
            assert not outcome.leaked, str(outcome)
            told = [getattr(report["exception"], "errno", None) for report in reports]
            assert set(told) == {outcome.errno}, str(outcome)
            never += 1
        else:
            check(outcome, maker)
        reports.clear()
    assert never > len(SWEPT)


@pytest.mark.parametrize("kind", KINDS)
async def test_short_reads_and_writes_are_invisible(kind: str, tmp_path: Path) -> None:
    make, features = KINDS[kind]
    await short_calls_are_invisible(Maker(make, features, tmp_path), 997)
