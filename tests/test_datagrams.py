"""Datagram endpoints: asyncio's function, side by side with it, and what it has not."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import stat
import weakref
from contextlib import asynccontextmanager

import pytest
from datagram_makers import udp_pair

from fdtransport import (
    CloseReason,
    DatagramTransport,
    connect_packet_fd,
    create_datagram_endpoint,
    open_datagram_endpoint,
)
from fdtransport._core import endpoint_socket
from fdtransport.testing import FaultPlan, RecordingDatagramProtocol, idle_cost
from fdtransport.testing.observe import turns, until

LOCAL = ("127.0.0.1", 0)


async def lost(*protocols):
    for protocol in protocols:
        await until(lambda p=protocol: p.lost, "the transport has ended")
        assert not protocol.breaches
    await turns(2)


@asynccontextmanager
async def endpoint(*args, protocol=RecordingDatagramProtocol, **options):
    """``(transport, protocol)`` of an endpoint that is gone at the end."""
    transport, made = await create_datagram_endpoint(protocol, *args, **options)
    try:
        async with asyncio.timeout(20):
            yield transport, made
    finally:
        transport.abort()
        await lost(made)


def name_of(transport):
    return transport.get_extra_info("sockname")


@pytest.fixture
def plain():
    """A UDP socket of the test."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(LOCAL)
        sock.settimeout(5)
        yield sock


async def answer(sock, size=65536):
    return await asyncio.to_thread(sock.recvfrom, size)


# -- as asyncio's ------------------------------------------------------------------------------------


async def by_asyncio(*args, **options):
    return await asyncio.get_running_loop().create_datagram_endpoint(
        RecordingDatagramProtocol, *args, **options
    )


async def by_us(*args, **options):
    return await create_datagram_endpoint(RecordingDatagramProtocol, *args, **options)


WRONG = [
    ({}, ValueError, "unexpected address family"),
    ({"local_addr": "localhost"}, TypeError, "2-tuple is expected"),
    ({"local_addr": ("localhost", 1, 2)}, TypeError, "2-tuple is expected"),
    (
        {"remote_addr": ("127.0.0.1", 1), "local_addr": ("::1", 0)},
        ValueError,
        "can not get address information",
    ),
    ({"local_addr": 5, "family": socket.AF_UNIX}, TypeError, "string is expected"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=[str(row[0]) for row in WRONG])
async def test_wrong_arguments_are_refused_as_by_asyncio(options, error, message):
    with pytest.raises(error, match=message):
        await by_us(**options)
    if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        with pytest.raises(error, match=message):
            await by_asyncio(**options)


async def test_a_socket_is_given_alone():
    makers = [by_us]
    if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):  # uvloop has words of its own
        makers.append(by_asyncio)
    for make in makers:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError, match=r"can not be used when sock is specified. \(local_addr="):
                await make(LOCAL, sock=sock)
            assert sock.fileno() >= 0
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with stream, pytest.raises(ValueError, match="ocket was expected"):
            await make(sock=stream)


@pytest.mark.parametrize("make", [by_us, by_asyncio])
async def test_a_connected_endpoint_takes_no_other_address(make, plain):
    transport, protocol = await make(remote_addr=plain.getsockname())
    transport.sendto(b"one")
    transport.sendto(b"two", plain.getsockname())
    with pytest.raises(ValueError, match="Invalid address: must be None or"):
        transport.sendto(b"three", ("127.0.0.1", 9))
    assert [(await answer(plain))[0] for _ in range(2)] == [b"one", b"two"]
    assert transport.get_extra_info("peername") == plain.getsockname()
    plain.sendto(b"back", transport.get_extra_info("sockname"))
    await until(lambda: protocol.records, "the answer came")
    assert protocol.records == [b"back"]
    transport.close()
    await lost(protocol)


@pytest.mark.parametrize("make", [by_us, by_asyncio])
async def test_an_unconnected_endpoint_answers_whoever_asked(make, plain):
    class Echo(RecordingDatagramProtocol):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.sendto(data.upper(), addr)

    loop = asyncio.get_running_loop()
    function = loop.create_datagram_endpoint if make is by_asyncio else create_datagram_endpoint
    transport, protocol = await function(Echo, LOCAL)
    plain.sendto(b"question", transport.get_extra_info("sockname"))
    assert await answer(plain) == (b"QUESTION", transport.get_extra_info("sockname"))
    transport.close()
    await lost(protocol)


async def test_extra_info_is_asyncios(plain):
    async with endpoint(LOCAL) as (transport, _):
        assert isinstance(transport, asyncio.DatagramTransport)
        assert transport.get_extra_info("socket").type == socket.SOCK_DGRAM
        assert name_of(transport)[0] == "127.0.0.1"
        assert transport.get_extra_info("peername") is None
        assert transport.get_extra_info("fd") == transport.fileno()
    assert transport.get_extra_info("peername", 5) in (None, 5)


async def test_a_transport_is_made_as_the_loops_own_factory_makes_it(plain):
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    waiter, protocol, extra = loop.create_future(), RecordingDatagramProtocol(), {"mark": 5}
    transport = DatagramTransport(loop, sock, protocol, waiter, extra, address=plain.getsockname())
    assert not protocol.events
    await waiter
    transport.sendto(b"to the address that it was made with")
    assert (await answer(plain))[0] == b"to the address that it was made with"
    with pytest.raises(ValueError, match="Invalid address"):
        transport.sendto(b"x", ("127.0.0.1", 9))
    assert transport.get_extra_info("mark") == 5
    transport.close()
    await lost(protocol)


async def test_broadcast_needs_its_option(plain):
    port = plain.getsockname()[1]
    async with endpoint(remote_addr=("127.255.255.255", port), allow_broadcast=True) as (transport, protocol):
        transport.sendto(b"to all")
        await turns(3)
        assert not protocol.errors
    async with endpoint(LOCAL) as (transport, protocol):
        transport.sendto(b"to all", ("127.255.255.255", port))
        assert [error.errno for error in protocol.errors] == [errno.EACCES]
        assert not transport.is_closing()


async def test_several_share_a_port_with_reuse_port():
    async with endpoint(LOCAL, reuse_port=True) as (transport, _):
        async with endpoint(name_of(transport), reuse_port=True) as (other, _):
            assert name_of(other) == name_of(transport)
        with pytest.raises(OSError, match="cannot bind") as caught:
            await by_us(name_of(transport))
        assert caught.value.errno == errno.EADDRINUSE


async def test_the_first_address_that_works_is_taken(monkeypatch):
    async def resolve(*_args):
        return [(socket.AF_INET, socket.SOCK_DGRAM, proto, "", (host, 0))
                for proto, host in ((17, "192.0.2.77"), (0, "127.0.0.1"))]  # fmt: skip

    monkeypatch.setattr(endpoint_socket, "resolve", resolve)
    async with endpoint(("two.example", 0)) as (transport, _):
        assert name_of(transport)[0] == "127.0.0.1"


# -- records -----------------------------------------------------------------------------------------


async def test_an_empty_datagram_is_sent_and_received(plain):
    async with endpoint(remote_addr=plain.getsockname()) as (transport, protocol):
        transport.sendto(b"")
        assert (await answer(plain))[0] == b""
        plain.sendto(b"", name_of(transport))
        plain.sendto(b"after", name_of(transport))
        await until(lambda: len(protocol.records) == 2, "both came")
        assert protocol.records == [b"", b"after"]


async def test_the_largest_datagram_passes_and_a_larger_one_is_told(plain):
    async with endpoint(remote_addr=plain.getsockname()) as (transport, protocol):
        transport.sendto(bytes(65507))
        assert len((await answer(plain))[0]) == 65507
        transport.sendto(bytes(65508))
        assert [error.errno for error in protocol.errors] == [errno.EMSGSIZE]
        plain.sendto(bytes(65507), name_of(transport))
        await until(lambda: protocol.records, "it came")
        assert len(protocol.records[0]) == 65507


def _pairs():
    yield "udp", udp_pair()
    for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        yield kind.name, socket.socketpair(socket.AF_UNIX, kind)


async def test_a_record_above_max_size_is_told_and_never_cut():
    for name, (near, far) in _pairs():
        with far:
            async with endpoint(sock=near, max_size=100) as (_, protocol):
                far.send(bytes(100))
                far.send(bytes(101))
                far.send(b"next")
                await until(lambda p=protocol: len(p.records) == 2, f"{name}: the others came")
                assert protocol.records == [bytes(100), b"next"], name
                [error] = protocol.errors
                assert error.errno == errno.EMSGSIZE, name
                assert "101 bytes" in str(error), name
                assert "max_size (100)" in str(error), name


async def test_a_changed_buffer_changes_nothing_that_waits():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    far.settimeout(5)
    with far:
        async with endpoint(sock=near) as (transport, _):
            count = 0
            while not transport.get_write_buffer_size():
                transport.sendto(b"%4d" % count)
                count += 1
            buffer = bytearray(b"before")
            transport.sendto(buffer)
            transport.sendto(memoryview(buffer))
            buffer[:] = b"after!"
            size = transport.get_write_buffer_size()
            assert size == 4 + 6 + 6
            got = [await asyncio.to_thread(far.recv, 100) for _ in range(count + 2)]
            assert got[-2:] == [b"before", b"before"]
            await transport.flushed()
            assert transport.get_write_buffer_size() == 0


async def test_seqpacket_records_all_arrive_at_a_peer_that_was_blocked():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.settimeout(5)
    with far:
        async with endpoint(sock=near) as (transport, protocol):
            records = [b"%6d" % n + bytes(2000) for n in range(200)]
            for record in records:
                transport.sendto(record)
            assert transport.get_write_buffer_size()
            assert [await asyncio.to_thread(far.recv, 4096) for _ in records] == records
            assert not protocol.errors
            assert transport.dropped == 0


async def test_eagain_queues_on_udp_as_well(plain):
    async with endpoint(remote_addr=plain.getsockname()) as (transport, protocol):
        with FaultPlan() as plan:
            plan.fail("send", 1, errno.EAGAIN, times=3, fd=transport.fileno())
            for n in range(10):
                transport.sendto(b"%d" % n)
            assert transport.get_write_buffer_size() == 10
            await transport.flushed()
        assert [(await answer(plain))[0] for _ in range(10)] == [b"%d" % n for n in range(10)]
        assert not protocol.errors


async def test_an_unconnected_unix_sender_waits_for_a_slow_receiver_without_spinning(tmp_path):
    path = str(tmp_path / "slow")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
        slow.bind(path)
        slow.settimeout(5)
        async with endpoint(family=socket.AF_UNIX) as (transport, protocol):
            for n in range(100):
                transport.sendto(b"%d" % n, path)
            assert transport.get_write_buffer_size()
            cost = await idle_cost(0.5)  # asked less and less often
            assert cost.is_idle(0.15, 30), cost
            assert [await asyncio.to_thread(slow.recv, 100) for n in range(100)] == [
                b"%d" % n for n in range(100)
            ]
            await transport.flushed()
            assert not protocol.errors


# -- errors ------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_told_and_the_endpoint_lives(plain):
    address = plain.getsockname()
    plain.close()
    async with endpoint(remote_addr=address) as (transport, protocol):
        for n in range(1, 4):
            transport.sendto(b"anybody there?")
            await until(lambda n=n: len(protocol.errors) >= n, "the refusal was told")
        assert {error.errno for error in protocol.errors} == {errno.ECONNREFUSED}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(address)
            again.sendto(b"now there is", name_of(transport))
            await until(lambda: protocol.records, "the endpoint still reads")
            again.settimeout(5)
            transport.sendto(b"good")
            assert (await answer(again))[0] == b"good"
        assert not transport.is_closing()


async def test_a_unix_receiver_that_is_not_there_is_told(tmp_path):
    async with endpoint(family=socket.AF_UNIX) as (transport, protocol):
        transport.sendto(b"x", str(tmp_path / "nobody"))
        transport.sendto(b"x")
        assert [error.errno for error in protocol.errors] == [errno.ENOENT, errno.ENOTCONN]
        assert not transport.is_closing()


async def test_a_datagram_without_a_destination_is_told():
    async with endpoint(LOCAL) as (transport, protocol):
        transport.sendto(b"where to?")
        assert [error.errno for error in protocol.errors] == [errno.EDESTADDRREQ]
        assert not transport.is_closing()


async def test_an_address_of_the_wrong_form_is_the_callers_also_when_it_has_to_wait(plain):
    async with endpoint(LOCAL) as (transport, protocol):
        with pytest.raises(TypeError):
            transport.sendto(b"x", "somewhere")
        with pytest.raises(OverflowError):
            transport.sendto(b"x", ("127.0.0.1", 70000))
        with FaultPlan() as plan:
            plan.fail("sendto", 1, errno.EAGAIN, fd=transport.fileno())
            transport.sendto(b"first", plain.getsockname())
            transport.sendto(b"x", "somewhere")
            transport.sendto(b"last", plain.getsockname())
            await transport.flushed()
        assert [(await answer(plain))[0] for _ in range(2)] == [b"first", b"last"]
        assert [type(error) for error in protocol.errors] == [TypeError]


async def test_a_peer_that_went_does_not_end_a_socket_without_connections():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    async with endpoint(sock=near) as (transport, protocol):
        transport.sendto(b"never read")
        far.close()
        await turns(3)
        for _ in range(2):
            transport.sendto(b"to nobody")
        # The kernel has taken the connection apart when it told the first.
        assert [error.errno for error in protocol.errors] == [errno.ECONNREFUSED, errno.ENOTCONN]
        assert not transport.is_closing()


async def test_the_end_of_a_seqpacket_peer_ends_the_transport():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with endpoint(sock=near) as (transport, protocol):
        far.send(b"last words")
        far.close()
        await lost(protocol)
        assert protocol.records == [b"last words"]
        assert protocol.reason is None
        assert transport.close_reason is CloseReason.PEER


async def test_eof_received_may_keep_the_write_side_of_a_seqpacket_socket():
    class Asking(RecordingDatagramProtocol):
        ended = False

        def eof_received(self):
            self.ended = True
            return True

    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.settimeout(5)
    with far:
        async with endpoint(sock=near, protocol=Asking) as (transport, protocol):
            far.send(b"question")
            far.shutdown(socket.SHUT_WR)
            await until(lambda: protocol.ended, "the end was told")
            transport.sendto(b"answer")
            assert await asyncio.to_thread(far.recv, 100) == b"answer"
            assert not transport.is_closing()
            far.close()
            await lost(protocol)


@pytest.mark.parametrize("family", [socket.AF_CAN, socket.AF_X25], ids=["can", "x25"])
async def test_a_family_that_the_kernel_lacks_is_named(family):
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
    except OSError:
        pass
    else:
        pytest.skip("this kernel has it")
    with pytest.raises(OSError, match=f"this kernel has no {family.name} SOCK_DGRAM sockets") as caught:
        await by_us(family=family)
    assert caught.value.errno == errno.EAFNOSUPPORT


# -- what is given -----------------------------------------------------------------------------------


class DetachesInTheBatch(RecordingDatagramProtocol):
    batches = 0
    file = None

    def packets_received(self, records):
        self.batches += 1
        if records == [(b"", None)]:
            self.file = self.transport.detach().file


async def test_detach_from_a_batch_of_empty_records():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        _, protocol = await create_datagram_endpoint(DetachesInTheBatch, sock=near)
        far.send(b"x")  # the next wake-up asks for two
        await until(lambda: protocol.batches, "a record has come")
        far.send(b"")
        await lost(protocol)
        assert protocol.file is near


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_the_end_is_told_once_also_when_it_is_interrupted(loop, exception):
    class Interrupted(RecordingDatagramProtocol):
        ends = 0

        def eof_received(self):
            self.ends += 1
            raise exception

    async def open_one():
        return await create_datagram_endpoint(Interrupted, sock=near)

    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near:
        transport, protocol = loop.run_until_complete(open_one())
        far.close()
        with pytest.raises(exception):
            loop.run_until_complete(asyncio.sleep(10))
        loop.run_until_complete(transport.aclose())
        assert protocol.ends == 1
        assert transport.close_reason is CloseReason.PEER


class EndsInTheBatch(RecordingDatagramProtocol):
    ends = 0
    how = "close"

    def packets_received(self, records):
        if self.how == "raise":
            raise LookupError("no use for it")
        getattr(self.transport, self.how)()

    def eof_received(self):
        self.ends += 1


@pytest.mark.parametrize("how", ["close", "abort", "detach", "raise"])
async def test_no_end_is_told_after_the_batch_in_which_the_transport_ended(how, reports):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        _, protocol = await create_datagram_endpoint(EndsInTheBatch, sock=near)
        protocol.how = "pause_reading"
        far.send(b"x")  # the next wake-up asks for two
        await until(lambda: not protocol.transport.is_reading(), "a record has come")
        protocol.how = how
        far.send(b"y")
        far.close()
        protocol.transport.resume_reading()
        await lost(protocol)
        assert protocol.ends == 0
    assert len(reports) == (how == "raise")


@pytest.mark.parametrize("timeout", [None, 0, 5])
async def test_detach_gives_the_socket_back_in_its_former_mode(timeout):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.settimeout(timeout)
    with near, far:
        transport, protocol = await create_datagram_endpoint(RecordingDatagramProtocol, sock=near)
        assert near.gettimeout() == 0
        detached = transport.detach()
        await lost(protocol)
        assert detached.file is near
        assert near.gettimeout() == timeout
        assert os.get_blocking(near.fileno()) == (timeout is None)


async def test_a_descriptor_comes_back_as_the_number_that_it_was():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        transport, protocol = await connect_packet_fd(RecordingDatagramProtocol, near.fileno())
        assert isinstance(transport, DatagramTransport)
        detached = transport.detach()
        await lost(protocol)
        assert detached.file == near.fileno()
        assert os.get_blocking(near.fileno())


async def test_a_listening_socket_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "x"))
        listener.listen()
        with pytest.raises(ValueError, match="this one listens"):
            await by_us(sock=listener)
        assert os.get_blocking(listener.fileno())


async def test_a_cancelled_call_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x"
    for steps in range(6):
        task = asyncio.ensure_future(by_us(str(path), family=socket.AF_UNIX))
        await turns(steps)
        task.cancel()
        try:
            transport, protocol = await task
        except asyncio.CancelledError:
            assert not path.exists()
        else:
            transport.abort()
            await lost(protocol)


async def test_an_ended_transport_lets_go_of_its_protocol_and_socket():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with far:
        transport, protocol = await create_datagram_endpoint(RecordingDatagramProtocol, sock=near)
        transport.close()
        await lost(protocol)
        references = weakref.ref(protocol), weakref.ref(near)
        protocol.transport = None
        gc.disable()
        try:
            del protocol, near
            assert [reference() for reference in references] == [None, None]
        finally:
            gc.enable()
        assert transport.get_protocol() is None
        with pytest.raises(OSError, match="ended"):
            transport.join_group("239.1.2.3")


# -- UNIX paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_a_socket_file_has_the_mode_that_was_asked_for(tmp_path, umask):
    before = os.umask(umask)
    try:
        for mode in (0o600, 0o666):
            path = tmp_path / f"{mode:o}"
            async with endpoint(path, family=socket.AF_UNIX, mode=mode):
                assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


async def test_the_file_of_a_living_socket_is_never_taken_and_a_stale_one_is(tmp_path):
    path = tmp_path / "x"
    async with endpoint(path, family=socket.AF_UNIX) as (_, protocol):
        with pytest.raises(OSError, match="in use") as caught:
            await by_us(path, family=socket.AF_UNIX)
        assert caught.value.errno == errno.EADDRINUSE
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"still there", str(path))
        await until(lambda: protocol.records, "it still receives")
    assert not path.exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))
    async with endpoint(path, family=socket.AF_UNIX):
        assert path.is_socket()
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        await by_us(path, family=socket.AF_UNIX)
    assert path.read_text() == "precious"


async def test_the_file_is_removed_at_the_end_only_if_it_is_still_ours(tmp_path):
    path = tmp_path / "x"
    async with endpoint(path, family=socket.AF_UNIX):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    async with endpoint(tmp_path / "y", family=socket.AF_UNIX) as (transport, _):
        with transport.detach().file:
            assert (tmp_path / "y").is_socket()


async def test_an_abstract_name_leaves_no_file(tmp_path):
    name = f"\0fdtransport-{os.getpid()}-{id(tmp_path)}"
    unix = {"family": socket.AF_UNIX}
    async with endpoint(name, **unix) as (_, protocol), endpoint(remote_addr=name, **unix) as (client, _):
        client.sendto(b"hello")
        await until(lambda: protocol.records == [b"hello"], "it came")


async def test_a_path_that_is_too_long_or_a_directory_is_one_clear_error(tmp_path):
    for path in (tmp_path, tmp_path / ("x" * 200)):
        with pytest.raises(OSError, match=r"in use|too long") as caught:
            await by_us(str(path), family=socket.AF_UNIX)
        assert "\n" not in str(caught.value)


# -- await-based -------------------------------------------------------------------------------------


async def test_records_by_await(plain):
    async with await open_datagram_endpoint(remote_addr=plain.getsockname()) as packets:
        for n in range(3):
            await packets.send(b"%d" % n)
        assert [(await answer(plain))[0] for _ in range(3)] == [b"0", b"1", b"2"]
        here = packets.transport.get_extra_info("sockname")
        plain.sendto(b"a", here)
        plain.sendto(b"", here)
        assert await packets.recv_from() == (b"a", plain.getsockname())
        assert await packets.recv() == b""
        plain.sendto(b"b", here)
        async for data in packets:
            assert data == b"b"
            break
        await packets.drain()


async def test_drain_waits_for_a_blocked_peer():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.settimeout(5)
    with far:
        async with await open_datagram_endpoint(sock=near) as packets:
            packets.transport.set_write_buffer_limits(high=0)

            async def send():
                for n in range(500):
                    await packets.send(b"%4d" % n + bytes(1000))

            sending = asyncio.ensure_future(send())
            await asyncio.sleep(0.05)
            assert not sending.done()
            assert packets.transport.get_write_buffer_size() < 2000
            got = [await asyncio.to_thread(far.recv, 4096) for _ in range(500)]
            await sending
            assert [int(data[:4]) for data in got] == list(range(500))


async def test_a_refusal_reaches_a_recv_that_waits_and_the_next_one_works(plain):
    address = plain.getsockname()
    plain.close()
    async with await open_datagram_endpoint(remote_addr=address) as packets:
        await packets.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            await packets.recv()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(address)
            again.sendto(b"y", packets.transport.get_extra_info("sockname"))
            assert await packets.recv() == b"y"


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_record_is_refused(limit):
    with pytest.raises(ValueError, match="at least 1 record"):
        await open_datagram_endpoint(LOCAL, limit=limit)


# -- multicast ---------------------------------------------------------------------------------------

GROUPS = [("239.77.1.2", "127.0.0.1"), ("239.77.1.3", "lo")]


@pytest.mark.parametrize(("group", "interface"), GROUPS)
async def test_a_group_is_joined_and_left(group, interface):
    async with endpoint(("0.0.0.0", 0)) as (receiver, protocol):
        receiver.join_group(group, interface)
        to = {"remote_addr": (group, name_of(receiver)[1]), "allow_broadcast": True}
        async with endpoint(**to, ttl=1, loopback=True, interface=interface) as (sender, sent):
            sender.sendto(b"to the group")
            await until(lambda: protocol.records, "it came")
            receiver.leave_group(group, interface)
            sender.sendto(b"to nobody")
            await turns(20)
            assert protocol.records == [b"to the group"]
            assert not sent.errors


@pytest.mark.parametrize(("group", "interface"), [*GROUPS, ("ff15::77", "lo"), ("ff15::78%lo", None)])
async def test_a_group_is_joined_once_and_left_once(group, interface):
    async with endpoint(("::1" if ":" in group else "127.0.0.1", 0)) as (receiver, _):
        receiver.join_group(group, interface)
        for method, number in (
            (receiver.join_group, errno.EADDRINUSE),
            (receiver.leave_group, 0),
            (receiver.leave_group, errno.EADDRNOTAVAIL),
        ):
            told = 0
            try:
                method(group, interface)
            except OSError as exc:
                told = exc.errno
            assert told == number


async def test_two_endpoints_share_the_address_of_a_group():
    group = "239.77.1.4"
    async with endpoint((group, 0), join=(group, "lo")) as (first, one):
        address = name_of(first)
        to = {"remote_addr": address, "interface": "lo", "allow_broadcast": True}
        async with endpoint(address, join=[(group, "lo")]) as (_, two), endpoint(**to) as (sender, _):
            sender.sendto(b"to both")
            await until(lambda: one.records and two.records, "it came to both")


@pytest.mark.parametrize("loopback", [False, True])
async def test_loopback_is_set_as_asked(loopback):
    async with endpoint(LOCAL, loopback=loopback) as (transport, _):
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == loopback


async def test_ttl_is_that_of_all_that_is_sent():
    async with endpoint(LOCAL, ttl=7) as (transport, _):
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 7
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 7
    async with endpoint(("::1", 0), ttl=0) as (transport, _):
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 0
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) > 0


BAD_GROUPS = [
    ({"join": "127.0.0.1"}, ValueError, "no multicast group, as 239"),
    ({"join": "nonsense"}, ValueError, "no multicast group"),
    ({"join": "ff15::1"}, ValueError, "not of the socket's family, AF_INET"),
    ({"join": ("239.1.2.3", "nope0")}, OSError, "interface 'nope0'"),
    ({"interface": "nope0"}, OSError, "interface 'nope0'"),
    ({"ttl": 256}, ValueError, "must be 0 to 255"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_GROUPS, ids=[str(row[0]) for row in BAD_GROUPS])
async def test_what_is_no_group_or_interface_is_one_clear_error(options, error, message):
    with pytest.raises(error, match=message):
        await by_us(LOCAL, **options)


async def test_multicast_is_for_udp(tmp_path):
    with pytest.raises(ValueError, match="for UDP, not for AF_UNIX"):
        await by_us(tmp_path / "x", family=socket.AF_UNIX, ttl=1)
    assert not (tmp_path / "x").exists()
