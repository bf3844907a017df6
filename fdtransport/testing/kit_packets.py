"""Promises of records (datagrams, packets, events): 38 to 41, and the life that they share with streams."""

from __future__ import annotations

import asyncio
import errno
import itertools
from typing import Any

from .ends import FarEnd
from .kit_idle import stays_idle
from .observe import LoopTurns, expect, turns, until
from .promises import promise
from .recording import RecordingDatagramProtocol
from .trial import Pair, Trial

GROUP = "records"
#: More than any socket's queue holds of records of one kilobyte.
MANY = 5000


def _record(n: int, size: int = 1000) -> bytes:
    return b"%6d" % n + bytes([n % 251]) * (size - 6)


async def _open(trial: Trial, **options: Any) -> Pair:
    return await trial.open(RecordingDatagramProtocol(**options))


async def _block(pair: Pair) -> int:
    """Send numbered records until they queue up and stay queued; return how many."""
    sent = 0
    for _ in range(3):
        while pair.transport.get_write_buffer_size() < 20_000:
            expect(sent < MANY, f"{MANY} records were sent to a peer that reads none: no backlog", 40)
            pair.transport.sendto(_record(sent))
            sent += 1
        await turns(5)
    return sent


async def _take(far: FarEnd, n: int) -> list[bytes]:
    return [await far.recv() for _ in range(n)]


@promise(1, GROUP)
async def connection_made_comes_first_and_before_the_record_helper_returns(trial: Trial) -> None:
    pair = await _open(trial)
    expect(pair.protocol.names[:1] == ["made"], f"the helper returned; events: {pair.protocol.summary()}")
    expect(pair.protocol.transport is pair.transport, "connection_made was given another transport")
    expect(pair.transport.get_protocol() is pair.protocol, "get_protocol() is not the protocol")


@promise(5, GROUP)
async def a_record_transport_ends_once_in_any_order_of_close_and_abort(trial: Trial) -> None:
    for methods in itertools.product(("close", "abort"), repeat=2):
        pair = await _open(trial)
        for method in methods:
            getattr(pair.transport, method)()
            expect(pair.transport.is_closing(), f"is_closing() is false after {method}()")
        expect(not pair.protocol.lost, f"connection_lost came inside {methods}", 3)
        await pair.until_lost()
        for method in methods:
            getattr(pair.transport, method)()
        await turns(5)
        expect(pair.protocol.count("lost") == 1, f"after {methods}: {pair.protocol.summary()}", 3)
        expect(pair.protocol.reason is None, f"{methods} told {pair.protocol.reason!r}", 4)


@promise(5, GROUP, "writable", "waits")
async def close_sends_the_queued_records_and_abort_drops_them(trial: Trial) -> None:
    for end in ("close", "abort"):
        pair = await _open(trial)
        sent = await _block(pair)
        getattr(pair.transport, end)()
        await turns(5)
        expect(pair.protocol.lost == (end == "abort"), f"after {end}(): {pair.protocol.summary()}")
        got: list[bytes] = []
        while not pair.protocol.lost or len(got) < sent:
            data = pair.far.recv_now()
            if data:
                got.append(data)
            elif pair.protocol.lost:
                break
            else:
                await asyncio.sleep(0)
        expected = [_record(n) for n in range(sent)]
        if end == "close":
            expect(got == expected, f"{len(got)} of {sent} records arrived")
        else:
            expect(len(got) < sent and got == expected[: len(got)], f"{len(got)} of {sent} records arrived")
        await pair.until_lost()


@promise(12, GROUP, "readable")
async def an_exception_in_a_record_callback_is_reported_once(trial: Trial) -> None:
    wrong = RuntimeError("raised in datagram_received, on purpose")

    def fail(_: Any, data: bytes) -> None:
        raise wrong

    pair = await _open(trial, data=fail)
    await pair.far.send(b"record")
    await until(lambda: trial.reports, "the exception was reported")
    await turns(5)
    told = [report.get("exception") for report in trial.take_reports()]
    expect(told == [wrong], f"the loop was told {told}")


@promise(15, GROUP, "readable")
async def no_record_comes_while_reading_is_paused(trial: Trial) -> None:
    pair = await _open(trial)
    if not hasattr(pair.transport, "pause_reading"):
        return
    for n in range(1, 6):
        await pair.far.send(b"record")
        await asyncio.sleep(0)
        told = len(pair.protocol.events)
        pair.transport.pause_reading()
        await turns(5)
        expect(len(pair.protocol.events) == told, f"while paused: {pair.protocol.names[told:]}")
        pair.transport.resume_reading()
        await pair.until_seen("data", n)


@promise(15, GROUP, "readable")
async def a_pause_inside_a_record_callback_holds(trial: Trial) -> None:
    pair = await _open(trial, data=lambda p, data: p.transport.pause_reading())
    if not hasattr(pair.transport, "pause_reading"):
        return
    for n in range(5):
        await pair.far.send(_record(n))
    for n in range(1, 6):
        await pair.until_seen("data", n)
        await turns(5)
        expect(pair.protocol.count("data") == n, f"while paused: {pair.protocol.summary()}")
        pair.transport.resume_reading()
    expect(pair.protocol.records == [_record(n) for n in range(5)], "other records came", 38)


@promise(22, GROUP)
async def no_state_of_a_record_transport_spins(trial: Trial) -> None:
    states = ["fresh"]
    states += ["paused with an unread record", "far end gone"] if trial.features.readable else []
    states += ["backlog"] if trial.features.writable and trial.features.waits else []
    for state in states:
        pair = await _open(trial)
        if state == "paused with an unread record":
            if not hasattr(pair.transport, "pause_reading"):
                continue
            pair.transport.pause_reading()
            await pair.far.send(b"unread")
        elif state == "far end gone":
            pair.far.close()
        elif state == "backlog":
            await _block(pair)
        await stays_idle(pair, state)


@promise(38, GROUP, "readable")
async def one_record_is_one_callback(trial: Trial) -> None:
    pair = await _open(trial)
    records = [_record(n, 6 + (n * 37) % 2000) for n in range(300)]
    for record in records:
        await pair.far.send(record)
    await pair.until_seen("data", len(records))
    await turns(5)
    expect(pair.protocol.records == records, "the records that came are not those that were sent")


@promise(38, GROUP, "writable")
async def one_call_of_sendto_is_one_record(trial: Trial) -> None:
    pair = await _open(trial)
    records = [_record(n, 6 + (n * 37) % 2000) for n in range(300)]
    for record in records:
        pair.transport.sendto(record)
    expect(
        await _take(pair.far, len(records)) == records,
        "the records that arrived are not those that were sent",
    )


@promise(38, GROUP, "readable", "writable", "empty_records")
async def an_empty_record_is_delivered_and_is_no_end_of_file(trial: Trial) -> None:
    pair = await _open(trial)
    for record in (b"", b"after", b""):
        await pair.far.send(record)
        pair.transport.sendto(record)
    await pair.until_seen("data", 3)
    expect(
        pair.protocol.records == [b"", b"after", b""], f"the records that came are {pair.protocol.records}"
    )
    got = await _take(pair.far, 3)
    expect(got == [b"", b"after", b""], f"the records that arrived are {got}")
    expect(not pair.transport.is_closing(), "an empty record ended the transport")


@promise(18, GROUP, "readable")
async def records_that_the_kernel_holds_when_the_far_end_goes_are_delivered(trial: Trial) -> None:
    pair = await _open(trial)
    for n in range(5):
        await pair.far.send(_record(n))
    pair.far.close()
    await pair.until_seen("data", 5)
    expect(pair.protocol.records == [_record(n) for n in range(5)], "other records came")


@promise(23, GROUP, "writable")
async def sendto_takes_bytes_like_objects_and_nothing_else(trial: Trial) -> None:
    pair = await _open(trial)
    for bad in ("text", 5, None, [1]):
        try:
            pair.transport.sendto(bad)
        except TypeError:
            continue
        expect(False, f"sendto({bad!r}) raised no TypeError")
    if trial.features.waits:
        await _block(pair)
    buffer = bytearray(_record(1_000))
    pair.transport.sendto(buffer)
    buffer[:] = bytes(len(buffer))
    pair.transport.sendto(memoryview(b"view"))
    got: list[bytes] = []
    while not got or got[-1] != b"view":
        got.append(await pair.far.recv())
    expect(got[-2] == _record(1_000), "the later contents of a changed buffer were sent")


@promise(39, GROUP, "writable")
async def an_error_of_one_record_is_told_and_the_transport_lives(trial: Trial) -> None:
    pair = await _open(trial)
    for n in (1, 2):
        pair.transport.sendto(bytes(16 * 1024 * 1024))
        await pair.until_seen("error", n)
        error = pair.protocol.errors[-1]
        expect(
            isinstance(error, OSError) and error.errno in (errno.EMSGSIZE, errno.ENOBUFS),
            f"error_received was told {error!r}",
        )
        pair.transport.sendto(b"the next one")
        expect(await pair.far.recv() == b"the next one", "the next record was lost")
    expect(not pair.transport.is_closing(), "the transport is closing")


@promise(39, GROUP, "seam")
async def any_errno_of_one_record_is_told_and_the_transport_lives(trial: Trial) -> None:
    from .faults import FaultPlan

    for writing in (True, False):
        if not (trial.features.writable if writing else trial.features.readable):
            continue
        pair = await _open(trial)
        with FaultPlan() as plan:
            for name in ("write", "writev", "send", "sendto") if writing else ("read", "readv", "recvfrom"):
                plan.fail(name, 1, errno.EMSGSIZE if writing else errno.ECONNREFUSED, fd=pair.fds)
            if writing:
                pair.transport.sendto(b"refused")
            else:
                await pair.far.send(b"record")
            await until(lambda p=pair: p.protocol.names[1:], "something was told")  # type: ignore[misc]
        if not plan.injected:
            return  # it has its own way to the kernel
        expect(pair.protocol.names[1] == "error", f"events: {pair.protocol.summary()}")
        expect(not pair.transport.is_closing(), "the transport is closing")


@promise(40, GROUP, "writable", "waits")
async def a_full_kernel_queues_records_and_nothing_is_dropped(trial: Trial) -> None:
    pair = await _open(trial)
    pair.transport.set_write_buffer_limits(high=50_000, low=10_000)
    sent = 0
    while not pair.protocol.paused:
        expect(
            sent < MANY,
            f"{MANY} records were sent to a peer that reads none, and pause_writing was not called",
        )
        pair.transport.sendto(_record(sent))
        sent += 1
        if sent % 10 == 0:
            await asyncio.sleep(0)
    size = pair.transport.get_write_buffer_size()
    expect(50_000 < size < 60_000, f"{size} bytes are queued, the high mark is 50000")
    got = await _take(pair.far, sent)
    expect(got == [_record(n) for n in range(sent)], "the records that arrived are not those that were sent")
    await pair.until_seen("resumed")
    expect(pair.transport.get_write_buffer_size() == 0, "bytes are queued after everything arrived", 26)


@promise(40, GROUP, "writable", "waits", "extended")
async def the_queue_is_bounded_and_what_it_refuses_is_told_and_counted(trial: Trial) -> None:
    pair = await _open(trial)
    for n in range(2000):
        pair.transport.sendto(_record(n, 16_000))
    size = pair.transport.get_write_buffer_size()
    expect(size <= 16 * 1024 * 1024, f"{size} bytes are queued")
    refused = pair.protocol.count("error")
    expect(refused > 0, "32 MB were sent to a peer that reads none, and no error was told")
    expect(
        pair.transport.dropped == refused, f"{pair.transport.dropped} count as dropped, {refused} were told"
    )
    expect(not pair.transport.is_closing(), "the transport is closing", 39)
    got = await _take(pair.far, 2000 - refused)
    expect(got == [_record(n, 16_000) for n in range(len(got))], "other records arrived")


class _Batches(RecordingDatagramProtocol):
    def packets_received(self, records: list[tuple[bytes, Any]]) -> None:
        self.events.append(("batch", len(records)))
        for data, addr in records:
            self.datagram_received(data, addr)


@promise(41, GROUP, "readable", "extended")
async def a_protocol_can_have_the_records_of_a_wake_up_in_one_call(trial: Trial) -> None:
    protocol = _Batches()
    pair = await trial.open(protocol)
    pair.transport.pause_reading()
    sent = 0
    while sent < 200 and pair.far.send_now(_record(sent, 100)):
        sent += 1
    pair.transport.resume_reading()
    await pair.until_seen("data", sent)
    batches = [size for name, size in protocol.events if name == "batch"]
    expect(sum(batches) == sent and max(batches) <= 64, f"{sent} records came in batches of {batches}")
    expect(len(batches) < sent, "each record came in a batch of its own")
    expect(protocol.records == [_record(n, 100) for n in range(sent)], "other records came", 38)


@promise(41, GROUP, "readable")
async def at_most_64_records_come_in_one_wake_up(trial: Trial) -> None:
    last = count = longest = 0
    with LoopTurns() as loop_turns:

        def refill(p: RecordingDatagramProtocol, data: bytes) -> None:
            nonlocal last, count, longest
            if loop_turns.count != last:
                last, count = loop_turns.count, 0
            count += 1
            longest = max(longest, count)
            if p.count("data") < 500:
                pair.far.send_now(b"record")

        pair = await _open(trial, data=refill)
        for _ in range(5):
            pair.far.send_now(b"record")
        await pair.until_seen("data", 500)
    expect(longest <= 64, f"{longest} records came in one turn of the loop")


@promise(46, GROUP)
async def it_is_an_instance_of_asyncios_datagram_transport(trial: Trial) -> None:
    pair = await _open(trial)
    expect(isinstance(pair.transport, asyncio.DatagramTransport), "it is no asyncio.DatagramTransport")
    expect(pair.transport.get_extra_info("no such key", 5) == 5, "the default is not honoured")
    expect(isinstance(repr(pair.transport), str), "repr()")
