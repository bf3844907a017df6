"""The contract kit: it sees what is broken, it passes what is not, and it does so on any transport."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from functools import partial

import broken_writers  # noqa: F401 (enters its cases)
import pytest
from broken_transports import CASES, LEAKED, Packet, Stream

from fdtransport import testing
from fdtransport._core.opening import open_transport
from fdtransport.testing import (
    ContractViolation,
    FarEnd,
    Features,
    RecordingBufferedProtocol,
    RecordingDatagramProtocol,
    RecordingProtocol,
    apart,
    check_half_close,
    check_packet_transport,
    check_producers,
    check_run_exit,
    check_stream_transport,
    detect_features,
    idle_cost,
    memory_pair,
    packet_promises,
    pattern,
    stream_promises,
)
from fdtransport.testing.observe import LoopTurns, until


def maker(kind: str, transport: type | None = None):
    connect = None if transport is None else partial(open_transport, transport)
    if kind == "tcp_drop_in":
        return testing.tcp_maker(connect, drop_in=True)
    return getattr(testing, f"{kind}_maker")(connect)


def suspects(make, numbers):
    found = packet_promises(make.features) if make.features.records else stream_promises(make.features)
    return [promise for promise in found if promise.number in numbers]


async def first_breach(make, numbers):
    """The first violation of one of these promises."""
    for promise in suspects(make, numbers):
        try:
            await promise.run(make, timeout=1.2)
        except ContractViolation as violation:
            if violation.numbers & numbers:
                return violation
    return None


@pytest.fixture
def leaked():
    LEAKED.clear()
    yield LEAKED
    for fd in LEAKED:
        os.close(fd)


@pytest.mark.parametrize(("broken", "numbers", "kind"), CASES, ids=lambda v: getattr(v, "__name__", ""))
async def test_it_sees_a_transport_that(broken, numbers, kind, leaked):
    violation = await first_breach(maker(kind, broken), numbers)
    assert violation is not None, f"nobody saw {broken.__name__}"
    assert all(breach.seen and breach.name for breach in violation.breaches)


@pytest.mark.parametrize("kind", ["socket_pair", "read_pipe", "write_pipe"])
async def test_it_passes_the_transport_that_is_not_broken(kind):
    make = maker(kind)
    kept = await check_stream_transport(make)
    assert {promise.number for promise in kept} >= {1, 3, 4, 5, 9, 10, 11, 12, 13, 14, 22, 42, 43, 44, 46}
    assert kept == stream_promises(make.features)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_it_passes_the_packet_transport_that_is_not_broken(kind):
    make = testing.packet_pair_maker(kind=kind)
    kept = await check_packet_transport(make)
    assert {promise.number for promise in kept} >= {1, 3, 5, 12, 22, 38, 39, 40, 41, 43, 46}
    assert kept == packet_promises(make.features)


@pytest.mark.parametrize(
    ("transport", "kind", "check"),
    [(Stream, "socket_pair", check_stream_transport), (Packet, "packet_pair", check_packet_transport)],
    ids=["stream", "packet"],
)
async def test_meddling_alone_breaks_nothing(transport, kind, check):
    # 10: these hold their protocol by design. 22: takes long, and is not meddled with.
    await check(maker(kind, transport), skip=(10, 22))


async def test_every_number_of_the_contract_that_one_transport_can_keep_has_a_check():
    checked = {promise.number for promise in stream_promises() + packet_promises()}
    assert checked == set(range(1, 47))
    assert {number for _, numbers, _ in CASES for number in numbers} >= checked - {14, 44}
    names = [str(promise) for promise in stream_promises() + packet_promises()]
    assert all(name[:2].isdigit() for name in names)


#: What asyncio's own socket transports promise too, on every version.
KEPT_BY_ASYNCIO = [
    "connection_made_comes_first_and_before_the_helper_returns",
    "close_and_abort_tell_none",
    "end_of_file_tells_none",
    "a_reset_tells_its_errno",
    "abort_drops_and_ends",
    "close_stops_reading_at_once",
    "pause_and_resume_are_idempotent_and_never_raise",
    "is_reading_is_always_right",
    "no_data_comes_after_a_pause_even_when_the_loop_knows_of_it",
    "a_false_answer_to_end_of_file_closes",
    "a_true_answer_to_end_of_file_keeps_the_write_side",
    "a_buffered_protocol_receives_everything",
    "set_protocol_switches_the_kind_of_protocol_in_mid_stream",
    "a_busy_descriptor_does_not_starve_the_loop",
    "limits_default_and_validate_as_asyncios_do",
    "pause_comes_above_high_and_not_at_it",
    "resume_comes_at_the_low_mark_or_below",
    "a_write_after_write_eof_is_a_runtime_error",
    "the_end_of_both_sides_ends_the_transport",
    "asyncios_streams_work_on_it",
    "loop_sendfile_works_on_it",
    "a_fresh_transport_does_not_spin",
]


@pytest.mark.parametrize("name", KEPT_BY_ASYNCIO)
async def test_it_is_fair_to_asyncios_own_transport(name):
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return  # what uvloop keeps is another list

    async def make(protocol_factory):
        near, other = socket.socketpair()
        far = FarEnd(other)
        near.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(protocol_factory, near)
        return transport, far

    features = (await detect_features(make)).but(extended=False, seam=False, socket=True)
    [promise] = [promise for promise in stream_promises(features) if promise.name == name]
    assert await promise.run(make, features)


async def test_one_violation_lists_every_broken_promise():
    async def make(protocol_factory):
        transport, far = await testing.socket_pair_maker()(protocol_factory)
        transport.get_protocol().connection_made(transport)
        return transport, far

    with pytest.raises(ContractViolation) as raised:
        await check_half_close(make, features=Features())
    violation = raised.value
    assert isinstance(violation, AssertionError)
    assert 1 in violation.numbers
    assert len(violation.breaches) >= sum("half-close" in p.groups for p in stream_promises(Features()))
    for breach in violation.breaches:
        assert f"{breach.number}. {breach.name}: {breach.seen}" in str(violation)


async def test_a_hang_is_a_violation_that_tells_the_state():
    async def make(protocol_factory):
        await asyncio.sleep(60)

    [promise, *_] = stream_promises(Features())
    with pytest.raises(ContractViolation, match=r"hung for 0\.05 s"):
        await promise.run(make, Features(), timeout=0.05)


async def test_what_a_maker_raises_is_a_violation_with_its_cause():
    async def make(protocol_factory):
        raise ZeroDivisionError("no maker")

    [promise, *_] = stream_promises(Features())
    with pytest.raises(ContractViolation, match="no maker") as raised:
        await promise.run(make, Features())
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


async def test_a_promise_that_does_not_apply_is_not_checked():
    make = testing.read_pipe_maker()
    [promise] = [p for p in stream_promises() if p.name == "close_flushes_and_then_ends"]
    assert not await promise.run(make)
    assert promise not in stream_promises(make.features)
    kept = await check_producers(make)
    assert kept == []


async def test_promises_can_be_skipped_by_number_and_by_name():
    kept = await check_half_close(
        testing.socket_pair_maker(), skip=(28, "end_of_file_is_told_once_after_all_data")
    )
    assert kept
    assert 28 not in {promise.number for promise in kept}
    assert "end_of_file_is_told_once_after_all_data" not in {promise.name for promise in kept}


async def test_a_failing_promise_leaves_the_loop_as_it_was():
    loop = asyncio.get_running_loop()
    handler, hook = loop.get_exception_handler(), sys.unraisablehook

    async def make(protocol_factory):
        loop.call_exception_handler({"message": "out of the blue"})
        return await testing.socket_pair_maker()(protocol_factory)

    [promise, *_] = stream_promises(Features())
    with pytest.raises(ContractViolation, match="out of the blue"):
        await promise.run(make, Features())
    assert loop.get_exception_handler() is handler
    assert sys.unraisablehook is hook


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("socket_pair", {"resets": True}),
        ("tcp", {"resets": True, "tcp": True}),
        ("fd_pair", {}),
        ("read_pipe", {"writable": False, "half_close": False}),
        ("write_pipe", {"readable": False, "half_close": False}),
        ("packet_pair", {"records": True}),
    ],
)
async def test_features_are_found_by_looking_at_the_far_end(kind, expected):
    make = maker(kind)

    async def undeclared(protocol_factory):
        return await make(protocol_factory)

    assert await detect_features(undeclared) == Features().but(**expected)
    assert await detect_features(make) is make.features
    assert make.features == Features(given_blocking=True, tidy_maker=True).but(**expected)


def test_the_run_of_a_program_is_checked_from_outside(loop):
    check_run_exit(testing.read_pipe_maker(), type(loop))

    async def leaking(protocol_factory):
        pair = await testing.read_pipe_maker()(protocol_factory)
        leaked.append(os.open("/dev/zero", os.O_RDONLY))
        return pair

    leaked: list[int] = []
    with pytest.raises(ContractViolation, match="left open") as raised:
        check_run_exit(leaking, type(loop))
    assert raised.value.numbers == {9}
    for fd in leaked:
        os.close(fd)


# The far end


def ends(kind):
    """Two far ends, connected with each other."""
    near, other = maker(kind).open_files()
    return FarEnd(near, timeout=0.2), FarEnd(other, timeout=0.2)


@pytest.mark.parametrize("kind", ["socket_pair", "tcp", "fd_pair"])
async def test_far_ends_talk_to_each_other(kind):
    near, far = ends(kind)
    with near, far:
        data = pattern(3_000_000)
        _, got = await asyncio.gather(near.send(data), far.recv_exactly(len(data)))
        assert got == data
        assert far.recv_now() is None
        await far.send(bytearray(b"answer"))
        assert await near.recv(3) == b"ans"
        far.shutdown_write()
        assert await near.recv_to_end() == b"wer"
        await near.send(b"half-closed")
        near.close()
        assert await far.recv_to_end() == b"half-closed"
        assert (near.filenos(), near.can_send, near.can_receive) == ((), True, True)


async def test_a_far_end_knows_what_it_can_do():
    reading, writing = ends("read_pipe")
    with reading, writing:
        assert (reading.can_receive, reading.can_send) == (True, False)
        assert (writing.can_receive, writing.can_send, writing.can_shutdown_write) == (False, True, True)
        for method in (reading.shutdown_write, writing.reset):
            with pytest.raises(OSError, match="this end cannot"):
                method()
        with pytest.raises(ValueError, match="does not go in that direction"):
            writing.recv_now()
        await writing.send(b"x")
        writing.shutdown_write()
        assert await reading.recv_to_end() == b"x"


async def test_a_far_end_gives_up_in_time():
    near, far = ends("socket_pair")
    with near, far:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            await near.recv()
        with pytest.raises(TimeoutError):
            await near.send(bytes(100_000_000))
        assert time.monotonic() - start < 2
        far.close()
        with pytest.raises(BrokenPipeError):
            await near.send(b"x")


async def test_recv_exactly_tells_a_short_stream():
    near, far = ends("fd_pair")
    with near, far:
        await near.send(b"short")
        near.close()
        with pytest.raises(asyncio.IncompleteReadError) as raised:
            await far.recv_exactly(6)
        assert raised.value.partial == b"short"


@pytest.mark.parametrize("kind", ["socket_pair", "tcp"])
async def test_a_far_end_can_reset(kind):
    near, far = ends(kind)
    with near, far:
        await near.send(b"never read")
        await asyncio.sleep(0)
        far.reset()
        with pytest.raises(ConnectionResetError):
            await near.recv()


async def test_far_ends_keep_records_apart():
    near, far = (FarEnd(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    with near, far:
        for record in (b"one", b"", b"three"):
            await near.send(record)
        assert [await far.recv() for _ in range(3)] == [b"one", b"", b"three"]


async def test_a_far_end_owns_what_it_is_given(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    end = FarEnd(path.open("rb"))
    assert await end.recv_to_end() == b"contents"
    end.close()
    end.close()


# Recording


def test_a_recording_protocol_knows_the_order_of_callbacks():
    protocol = RecordingProtocol()
    protocol.data_received(b"early")
    protocol.connection_made(transport=asyncio.Transport())
    protocol.eof_received()
    protocol.eof_received()
    protocol.data_received(b"after the end")
    protocol.resume_writing()
    protocol.pause_writing()
    protocol.pause_writing()
    protocol.connection_lost(None)
    protocol.connection_lost(OSError("again"))
    assert [number for number, _ in protocol.breaches] == [2, 1, 17, 17, 27, 27, 3]
    assert protocol.summary() == (
        "data (5 B) made eof*2 data (13 B) resumed paused*2 lost(None) lost(OSError('again'))"
    )


def test_hooks_run_inside_the_callback_and_answer_for_it():
    seen = []
    protocol = RecordingProtocol(
        eof=lambda p: seen.append(p.names) or True, data=lambda p, data: seen.append(data)
    )
    protocol.connection_made(asyncio.Transport())
    protocol.data_received(b"x")
    assert protocol.eof_received() is True
    assert seen == [b"x", ["made", "data", "eof"]]
    with pytest.raises(TypeError, match="unknown hooks: date"):
        RecordingProtocol(date=print)


@pytest.mark.parametrize("kind", [RecordingProtocol, RecordingBufferedProtocol, RecordingDatagramProtocol])
def test_a_loss_inside_a_method_is_seen(kind):
    class Hasty(asyncio.Transport):
        def close(self):
            protocol.connection_lost(None)

    protocol = kind()
    transport = Hasty()
    protocol.connection_made(transport)
    transport.close()
    assert protocol.breaches == [(3, "connection_lost ran inside close() of the transport")]
    assert (protocol.lost, protocol.reason, protocol.count("lost")) == (True, None, 1)


# Memory, and what the checks look at


async def test_a_memory_pair_connects_two_protocols():
    (client, one), (server, two) = await memory_pair(
        RecordingProtocol, partial(RecordingBufferedProtocol, 10)
    )
    client.write(b"question")
    client.write_eof()
    server.write(b"answer")
    await until(lambda: one.lost and two.lost, "both were lost")
    assert (one.received, two.received) == (b"answer", b"question")
    assert one.names[0] == two.names[0] == "made"


async def test_a_memory_pair_whose_factory_raises_leaves_nothing_behind():
    for factories in ((RecordingProtocol, lambda: 1 / 0), (lambda: 1 / 0, RecordingProtocol)):
        with pytest.raises(ZeroDivisionError):
            await memory_pair(*factories)
        for _ in range(5):
            await asyncio.sleep(0)


async def test_idleness_is_measured():
    costs = [await idle_cost(0.1) for _ in range(3)]
    assert any(cost.is_idle(0.02, 2) for cost in costs)
    with LoopTurns() as turns:
        cost = await idle_cost(0.2)
    assert turns.count > 100
    assert not cost.is_idle(0.05, 4)
    assert "wake-ups" in str(cost)


def test_the_pattern_shows_what_is_missing():
    assert pattern(100_000, 70_000) == pattern(170_000)[70_000:]
    assert pattern(100, 0) != pattern(100, 100)
    assert pattern(0) == b""


async def test_programs_that_each_end_in_time_are_not_called_a_hang_on_a_slow_machine(monkeypatch):
    def slowly(before, settled=apart._settled):
        time.sleep(0.1)
        return settled(before)

    monkeypatch.setattr(apart, "_settled", slowly)
    (promise,) = (promise for promise in stream_promises() if "middle_of_anything" in promise.name)
    assert await promise.run(maker("socket_pair"), timeout=0.3)
