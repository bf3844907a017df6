"""Relays in which an end has records."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from contextlib import asynccontextmanager, suppress

import pytest
from datagram_makers import udp_pair
from hypothesis import given
from hypothesis import strategies as st
from relay_ends import Quiet, end_of, lost

from fdtransport import connect_packet_fd, open_packet_fd
from fdtransport.records import LONGEST, Lengths, Pieces
from fdtransport.relay import relay
from fdtransport.testing import FarEnd
from fdtransport.testing.observe import turns, until

KINDS = {
    "udp": udp_pair,
    "datagram": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "seqpacket": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
}


async def record_end(kind):
    """``(transport, far end)``, silent so far."""
    near, other = KINDS[kind]()
    far = FarEnd(other)
    transport, _ = await connect_packet_fd(Quiet, near)
    return transport, far


@asynccontextmanager
async def between(a, b, **options):
    """``(task, far end of a, far end of b)`` of a running relay."""
    one, far_one = await (record_end(a) if a in KINDS else end_of(a))
    other, far_other = await (record_end(b) if b in KINDS else end_of(b))
    with far_one, far_other:
        task = asyncio.ensure_future(relay(one, other, **options))
        try:
            async with asyncio.timeout(20):
                await turns(3)
                yield task, far_one, far_other
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await lost(one, other)


def record(n):
    return b"%6d" % n + bytes((n * 37) % 1500)


@pytest.mark.parametrize("a", KINDS)
@pytest.mark.parametrize("b", KINDS)
async def test_a_record_stays_one_record(a, b):
    async with between(a, b) as (task, one, other):
        for source, sink in ((one, other), (other, one)):
            for n in range(100):
                await source.send(record(n))
                if n % 10 == 9:
                    assert [await sink.recv() for _ in range(10)] == [record(m) for m in range(n - 9, n + 1)]
        assert not task.done()


async def test_a_slow_reader_holds_its_source_back_and_nothing_is_lost():
    async with between("seqpacket", "seqpacket") as (_, one, other):
        sent = quiet = 0
        while quiet < 50:
            if one.send_now(record(sent)):
                sent, quiet = sent + 1, 0
            else:
                quiet += 1
            await asyncio.sleep(0)
        assert sent < 2000
        assert [await other.recv() for _ in range(sent)] == [record(n) for n in range(sent)]


async def test_an_empty_record_is_passed_on():
    async with between("datagram", "udp") as (_, one, other):
        await one.send(b"")
        await one.send(b"after")
        assert [await other.recv(), await other.recv()] == [b"", b"after"]


async def test_a_record_that_is_refused_is_counted_and_the_relay_goes_on():
    async with between("datagram", "udp", linger=0) as (task, one, other):
        await one.send(bytes(65_508))  # more than UDP has
        await one.send(b"the next one")
        assert await other.recv() == b"the next one"
        other.close()
        for _ in range(2):
            await one.send(b"to nobody")
            await turns(10)
        assert not task.done()
        task.cancel()


async def test_refusals_are_in_the_result():
    async with between("unix", "udp", linger=0) as (task, one, other):
        other.close()
        for _ in range(2):
            await one.send(b"to nobody")
            await turns(10)
        one.shutdown_write()
        result = await task
    assert result.error is None
    assert result.a_to_b.engine == result.b_to_a.engine == "records"
    assert result.a_to_b.records == 2
    assert result.a_to_b.refused >= 1
    assert result.a_to_b.refusal.errno == errno.ECONNREFUSED
    assert repr(result.b_to_a) == "Moved(bytes=0, engine='records', records=0)"
    assert "records=2, refused=" in repr(result.a_to_b)
    assert "refusal=ConnectionRefusedError(" in repr(result.a_to_b)


async def test_bytes_become_records_of_a_size_and_records_become_their_bytes():
    async with between("unix", "udp", record_size=100) as (_, one, other):
        await one.send(bytes(250))
        assert [len(await other.recv()) for _ in range(3)] == [100, 100, 50]
        await other.send(b"one,")
        await other.send(b"")
        await other.send(b"two")
        assert await one.recv_exactly(7) == b"one,two"


@pytest.mark.parametrize("width", [2, 4])
async def test_lengths_keep_the_boundaries_in_a_stream(width):
    async with between("tcp", "seqpacket", frame=width) as (task, one, other):
        records = [record(n) for n in range(50)]
        framed = b"".join(len(r).to_bytes(width, "big") + r for r in records)
        for at in range(0, len(framed), 777):
            await one.send(framed[at : at + 777])
        assert [await other.recv() for _ in records] == records
        for r in records:
            await other.send(r)
        assert await one.recv_exactly(len(framed)) == framed
        one.shutdown_write()
        assert await other.recv() == b""
        other.close()
        assert (await task).error is None


async def test_a_stream_that_is_not_framed_ends_with_a_clear_error():
    async with between("unix", "udp", frame=4) as (task, one, _other):
        await one.send(b"GET / HTTP/1.1\r\n")
        result = await task
    assert result.failed == "a"
    assert result.error.errno == errno.EPROTO
    assert "is it framed?" in str(result.error)


async def test_a_stream_that_ends_inside_of_a_frame_is_an_error():
    async with between("unix", "udp", frame=2, linger=0) as (task, one, _other):
        await one.send(b"\x00\x05abc")
        one.shutdown_write()
        result = await task
    assert result.error.errno == errno.EPROTO
    assert "5 bytes are left over" in str(result.error)


@pytest.mark.parametrize("a", ["unix", "seqpacket"])
async def test_the_end_of_a_peer_is_passed_on_and_the_answer_comes_back(a):
    async with between(a, "seqpacket") as (task, one, other):
        await one.send(b"question")
        one.shutdown_write()
        assert await other.recv() == b"question"
        assert await other.recv() == b""
        await other.send(b"answer")
        other.close()
        assert await one.recv() == b"answer"
        assert await one.recv() == b""
        assert (await task).error is None


async def test_a_datagram_socket_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(sys.modules["fdtransport.records"], "SILENCE", 0.05)
    async with between("unix", "udp") as (task, one, other):
        await one.send(b"question")
        one.shutdown_write()
        assert await other.recv() == b"question"
        await other.send(b"answer")
        assert await one.recv() == b"answer"
        assert (await task).error is None
        assert await one.recv() == b""


async def test_what_a_packet_stream_has_received_goes_first():
    near, other = KINDS["seqpacket"]()
    stream = await open_packet_fd(near)
    sink, server = await end_of("unix")
    with FarEnd(other) as far, server:
        await far.send(b"early ")
        await until(lambda: stream._received, "it came")
        task = asyncio.ensure_future(relay(stream, sink))
        await far.send(b"late")
        far.close()
        assert await server.recv_to_end() == b"early late"
        server.close()
        await task


async def test_one_way_drops_what_comes_the_other_way():
    async with between("unix", "udp", one_way=True) as (task, one, other):
        for _ in range(10):
            await other.send(bytes(1000))
        await one.send(b"x")
        one.shutdown_write()
        assert await other.recv() == b"x"
        assert (await task).b_to_a.records == 0


async def test_options_that_do_not_fit_are_refused():
    one, client = await end_of("unix")
    other, server = await end_of("unix")
    with client, server:
        for options, message in (
            ({"frame": 2}, "a byte stream at one end and records at the other"),
            ({"frame": 3}, "2 or 4 bytes"),
            ({"record_size": 0}, "must be 1 to"),
            ({"record_size": LONGEST + 1}, "must be 1 to"),
        ):
            with pytest.raises(ValueError, match=message):
                await relay(one, other, **options)
        await lost(one, other)


# -- framings ----------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=20), st.sampled_from([2, 4]), st.integers(1, 50))
def test_lengths_give_back_what_was_joined_however_it_is_cut(records, width, step):
    data = b"".join(map(Lengths(width).join, records))
    framing = Lengths(width)
    found = [r for at in range(0, len(data), step) for r in framing.cut(data[at : at + step])]
    assert found == records
    assert framing.rest() == 0


@given(st.binary(max_size=1000), st.integers(1, 300))
def test_pieces_lose_nothing(data, size):
    pieces = list(Pieces(size).cut(data))
    assert b"".join(pieces) == data
    assert all(1 <= len(piece) <= size for piece in pieces)


def test_a_record_that_no_length_can_tell_is_an_error():
    with pytest.raises(OSError, match="65536 bytes, and a frame has 65535 at most") as caught:
        Lengths(2).join(bytes(1 << 16))
    assert caught.value.errno == errno.EMSGSIZE
