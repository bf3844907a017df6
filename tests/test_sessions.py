"""Servers of records: a session for each peer, with a transport of its own."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from contextlib import asynccontextmanager

import pytest

from fdtransport import CloseReason, connect_url, create_datagram_server, listen_url, open_packet_url
from fdtransport.sessions import INBOX_RECORDS
from fdtransport.testing import FarEnd, FaultPlan, RecordingDatagramProtocol
from fdtransport.testing.observe import turns, until

LOCAL = ("127.0.0.1", 0)


class Echo(RecordingDatagramProtocol):
    def datagram_received(self, data, addr):
        super().datagram_received(data, addr)
        self.transport.sendto(data.upper())


class Serving:
    """A server and the protocols that it made."""

    def __init__(self, make):
        self.make = make
        self.protocols = []

    def __call__(self):
        self.protocols.append(self.make())
        return self.protocols[-1]


@asynccontextmanager
async def serving(local=LOCAL, make=Echo, **options):
    sessions = Serving(make)
    server = await create_datagram_server(sessions, local, **options)
    sessions.server = server
    try:
        async with asyncio.timeout(20):
            yield server, sessions.protocols
    finally:
        server.close()
        server.abort_clients()
        await server.wait_closed()


def client(address, family=socket.AF_INET):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_UNIX:
        sock.bind("")
    sock.connect(address)
    return FarEnd(sock)


def address_of(server):
    return server.sockets[0].getsockname()


@pytest.fixture(params=["udp", "unix"])
def place(request, tmp_path):
    """``(local address, options)``"""
    if request.param == "udp":
        return LOCAL, {}
    return str(tmp_path / "server"), {"family": socket.AF_UNIX}


async def test_each_peer_is_a_session_and_gets_its_own_answers(place):
    local, options = place
    async with serving(local, **options) as (server, protocols):
        clients = [client(address_of(server), options.get("family", socket.AF_INET)) for _ in range(5)]
        for n, far in enumerate(clients):
            await far.send(b"hello %d" % n)
        for n, far in enumerate(clients):
            assert await far.recv() == b"HELLO %d" % n
        assert len(protocols) == 5
        await clients[0].send(b"again")
        assert await clients[0].recv() == b"AGAIN"
        assert len(protocols) == 5
        assert sorted(p.records[0] for p in protocols) == [b"hello %d" % n for n in range(5)]
        assert all(p.names[:2] == ["made", "data"] for p in protocols)
        assert {p.transport.get_extra_info("sockname") for p in protocols} == {address_of(server)}
        assert len({p.transport.get_extra_info("peername") for p in protocols}) == 5
        for far in clients:
            far.close()


async def test_a_session_ends_when_it_was_quiet_and_its_peer_may_come_back():
    async with serving(idle=0.1) as (server, protocols):
        with client(address_of(server)) as far:
            for n in range(1, 3):
                await far.send(b"x")
                assert await far.recv() == b"X"
                await until(lambda n=n: protocols[n - 1].lost, "the session ended")
                assert protocols[-1].reason is None
                assert protocols[-1].transport.close_reason is CloseReason.PEER
            assert len(protocols) == 2


async def test_a_session_that_talks_does_not_end():
    async with serving(idle=0.2) as (server, protocols):
        with client(address_of(server)) as far:
            for _ in range(10):
                await far.send(b"x")
                assert await far.recv() == b"X"
                await asyncio.sleep(0.05)
        assert len(protocols) == 1
        assert not protocols[0].lost


class AnswersOnce(Echo):
    def datagram_received(self, data, addr):
        super().datagram_received(data, addr)
        self.transport.close()


async def test_what_comes_after_close_begins_a_new_session(place):
    local, options = place
    async with serving(local, AnswersOnce, **options) as (server, protocols):
        with client(address_of(server), options.get("family", socket.AF_INET)) as far:
            await far.send(b"one")
            await until(lambda: protocols and protocols[0].records, "the first one is answered")
            hub = server._listeners[0]
            # In the same wake-up, before the first session's connection_lost().
            hub.packets_received([(b"two", protocols[0].transport._address)])
            assert [await far.recv(), await far.recv()] == [b"ONE", b"TWO"]
            await until(lambda: len(protocols) == 2 and all(p.lost for p in protocols), "both have ended")
            await far.send(b"three")
            assert await far.recv() == b"THREE"
        await until(lambda: all(p.lost for p in protocols), "all have ended")
        assert not any(p.breaches for p in protocols)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_after_an_interrupt_the_other_records_of_a_session_are_delivered(loop, exception):
    class Interrupted(RecordingDatagramProtocol):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if data == b"1":
                raise exception

    async def start():
        return await create_datagram_server(sessions, LOCAL)

    sessions = Serving(Interrupted)
    server = loop.run_until_complete(start())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.connect(address_of(server))
        far.send(b"0")  # the next wake-up asks for two
        begun = until(lambda: sessions.protocols and sessions.protocols[0].records, "the first came")
        loop.run_until_complete(begun)
        far.send(b"1")
        far.send(b"2")
        with pytest.raises(exception):
            loop.run_until_complete(asyncio.sleep(10))
        [protocol] = sessions.protocols
        loop.run_until_complete(until(lambda: protocol.records == [b"0", b"1", b"2"], "the rest came"))
    loop.run_until_complete(server.aclose())


@pytest.mark.usefixtures("reports")
async def test_there_are_at_most_so_many_sessions_at_once():
    async with serving(sessions=2) as (server, protocols):
        clients = [client(address_of(server)) for _ in range(4)]
        for far in clients:
            await far.send(b"x")
        await until(lambda: server.refused == 2, "two were refused")
        assert len(protocols) == 2
        protocols[0].transport.abort()
        await until(lambda: protocols[0].lost, "a place is free")
        await clients[3].send(b"y")
        assert await clients[3].recv() == b"Y"
        for far in clients:
            far.close()


async def test_what_a_paused_session_does_not_take_waits_and_the_rest_is_dropped_and_told():
    class Paused(RecordingDatagramProtocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async with serving(make=Paused) as (server, protocols):
        with client(address_of(server)) as far, client(address_of(server)) as other:
            for n in range(INBOX_RECORDS + 44):
                await far.send(b"%d" % n)
                if n % 20 == 0:
                    await turns(2)
            await until(lambda: protocols and protocols[0].transport.dropped == 44, "44 were dropped")
            assert [error.errno for error in protocols[0].errors] == [errno.ENOBUFS]
            await other.send(b"not held up")
            await until(lambda: len(protocols) == 2, "others come")
            protocols[0].transport.resume_reading()
            await until(lambda: len(protocols[0].records) == INBOX_RECORDS, "what waited came")
            assert protocols[0].records == [b"%d" % n for n in range(INBOX_RECORDS)]


async def test_eagain_on_the_shared_socket_queues_for_each_session():
    async with serving(make=RecordingDatagramProtocol) as (server, protocols):
        clients = [client(address_of(server)) for _ in range(2)]
        for n, far in enumerate(clients):
            await far.send(b"x")
            await until(lambda n=n: len(protocols) > n and protocols[n].records, "a session")
        with FaultPlan() as plan:
            plan.fail("sendto", 1, errno.EAGAIN, times=4)
            for protocol in protocols:
                for n in range(5):
                    protocol.transport.sendto(b"%d" % n)
            assert [p.transport.get_write_buffer_size() for p in protocols] == [5, 5]
            for protocol in protocols:
                await protocol.transport.flushed()
        for far in clients:
            assert [await far.recv() for _ in range(5)] == [b"%d" % n for n in range(5)]
            far.close()


async def test_a_slow_unix_peer_holds_only_itself_up(tmp_path):
    async with serving(str(tmp_path / "x"), family=socket.AF_UNIX, make=RecordingDatagramProtocol) as (
        server,
        protocols,
    ):
        slow, quick = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        for n, sock in enumerate((slow, quick)):
            sock.settimeout(5)
            sock.bind("")
            sock.sendto(b"x", address_of(server))
            await until(lambda n=n: len(protocols) > n and protocols[n].records, "a session")
        to_slow, to_quick = (protocol.transport for protocol in protocols)
        for n in range(200):
            to_slow.sendto(b"%d" % n)
        assert to_slow.get_write_buffer_size()
        to_quick.sendto(b"at once")
        assert quick.recv(100) == b"at once"
        got = [await asyncio.to_thread(slow.recv, 100) for _ in range(200)]
        assert got == [b"%d" % n for n in range(200)]
        slow.close()
        quick.close()


async def test_close_lets_the_sessions_live_and_wait_closed_waits_for_them():
    async with serving() as (server, protocols):
        address = address_of(server)
        with client(address) as far, client(address) as late:
            await far.send(b"x")
            assert await far.recv() == b"X"
            server.close()
            assert server.sockets == ()
            assert not server.is_serving()
            await late.send(b"too late")
            await far.send(b"y")
            assert await far.recv() == b"Y"
            waiting = asyncio.ensure_future(server.wait_closed())
            await turns(5)
            assert not waiting.done()
            assert len(protocols) == 1
            server.close_clients()
            await waiting
            assert protocols[0].lost
            assert protocols[0].transport.fileno() == -1


async def test_a_session_is_not_detached_and_has_a_repr_at_any_time():
    async with serving() as (server, protocols):
        with client(address_of(server)) as far:
            await far.send(b"x")
            await far.recv()
            transport = protocols[0].transport
            with pytest.raises(OSError, match="shares the socket") as caught:
                transport.detach()
            assert caught.value.errno == errno.EOPNOTSUPP
            with pytest.raises(ValueError, match="Invalid address"):
                transport.sendto(b"x", ("127.0.0.1", 9))
            assert "SessionTransport open" in repr(transport)
            await transport.aclose()
            assert "SessionTransport closed" in repr(transport)


async def test_a_factory_that_raises_ends_that_session_only(reports):
    calls = []

    def factory():
        calls.append(None)
        if len(calls) == 1:
            raise RuntimeError("on purpose")
        return Echo()

    async with serving(make=factory) as (server, _):
        with client(address_of(server)) as far:
            await far.send(b"x")
            await until(lambda: reports, "it was reported")
            await far.send(b"y")
            assert await far.recv() == b"Y"
    assert [str(report["exception"]) for report in reports] == ["on purpose"]


async def test_the_servers_file_is_as_that_of_every_server(tmp_path):
    path = tmp_path / "x"
    async with serving(str(path), family=socket.AF_UNIX, mode=0o660):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with pytest.raises(OSError, match="in use"):
            await create_datagram_server(Echo, str(path), family=socket.AF_UNIX)
    assert not path.exists()


async def test_it_serves_when_it_is_told_to():
    async with serving(start_serving=False) as (server, protocols):
        with client(address_of(server)) as far:
            await far.send(b"early")
            await turns(5)
            assert not protocols
            await server.start_serving()
            assert await far.recv() == b"EARLY"


async def test_a_socket_that_is_given_is_served():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(LOCAL)
    async with serving(None, sock=sock) as (server, _):
        with client(address_of(server)) as far:
            await far.send(b"x")
            assert await far.recv() == b"X"
    assert sock.fileno() == -1


BAD = [
    ((LOCAL,), {"idle": 0}, "idle"),
    ((LOCAL,), {"sessions": 0}, "at least 1"),
    ((), {}, "Neither local_addr nor sock"),
]


@pytest.mark.parametrize(("args", "options", "message"), BAD)
async def test_wrong_arguments_are_refused(args, options, message):
    with pytest.raises(ValueError, match=message):
        await create_datagram_server(Echo, *args, **options)


async def test_every_address_of_a_host_is_bound():
    async with serving(("", 0)) as (server, _):
        assert {sock.family for sock in server.sockets} == {socket.AF_INET, socket.AF_INET6}


# -- SOCK_SEQPACKET and URLs -------------------------------------------------------------------------


async def test_seqpacket_connections_are_accepted(tmp_path):
    path = str(tmp_path / "x")
    async with serving(path, family=socket.AF_UNIX, type=socket.SOCK_SEQPACKET) as (_, protocols):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)
            with FarEnd(sock) as far:
                for n in range(50):
                    await far.send(b"record %d" % n)
                assert [await far.recv() for _ in range(50)] == [b"RECORD %d" % n for n in range(50)]
                assert protocols[0].transport.get_extra_info("peercred")[0] == os.getpid()
            await until(lambda: protocols[0].lost, "the end was told")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["udp", "datagram", "seqpacket"])
async def test_the_same_strings_listen_and_connect(kind, tmp_path):
    listens = "udp+listen://127.0.0.1:0" if kind == "udp" else f"unix+listen:{tmp_path}/x?type={kind}"
    server = await listen_url(Echo, listens)
    there = f"udp://127.0.0.1:{address_of(server)[1]}" if kind == "udp" else f"unix:{tmp_path}/x?type={kind}"
    try:
        async with asyncio.timeout(10), await open_packet_url(there) as packets:
            await packets.send(b"hello")
            assert await packets.recv() == b"HELLO"
        transport, protocol = await connect_url(RecordingDatagramProtocol, there)
        transport.sendto(b"again")
        await until(lambda: protocol.records, "the answer came")
        assert protocol.records == [b"AGAIN"]
        transport.abort()
        await until(lambda: protocol.lost, "it ended")
    finally:
        server.close()
        server.abort_clients()
        await server.wait_closed()
