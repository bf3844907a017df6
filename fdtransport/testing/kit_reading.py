"""Promises 15 to 20: reading, its end, and what must still be delivered before it."""

from __future__ import annotations

import asyncio

from .observe import LoopTurns, expect, pattern, turns, until
from .promises import promise
from .recording import RecordingBufferedProtocol, RecordingProtocol
from .trial import CHUNK, Pair, Trial


@promise(15, "reading", "readable")
async def pause_and_resume_are_idempotent_and_never_raise(trial: Trial) -> None:
    pair = await trial.open()
    transport = pair.transport
    for n in range(3):
        transport.pause_reading()
        transport.pause_reading()
        pair.far.send_now(b"data")
        await _nothing_comes(pair, "while paused")
        transport.resume_reading()
        transport.resume_reading()
        await pair.until_received(4 * n + 4)
    transport.close()
    transport.pause_reading()
    transport.resume_reading()
    await pair.until_lost()
    transport.pause_reading()
    transport.resume_reading()


@promise(15, "reading", "readable")
async def pausing_and_resuming_in_one_turn_loses_and_doubles_nothing(trial: Trial) -> None:
    def toggle(p: RecordingProtocol, data: bytes) -> None:
        for _ in range(3):
            p.transport.pause_reading()
            p.transport.resume_reading()

    data = pattern(CHUNK)
    for protocol in (RecordingProtocol(data=toggle), RecordingBufferedProtocol(5000, data=toggle)):
        pair = await trial.open(protocol)
        sending = asyncio.ensure_future(pair.far.send(data))
        try:
            expect(await pair.until_received(len(data)) == data, "the data that arrived is not what was sent")
        finally:
            sending.cancel()
        await _nothing_comes(pair, "after all data")


@promise(16, "reading", "readable")
async def is_reading_is_always_right(trial: Trial) -> None:
    seen: dict[str, bool] = {}

    def look(when: str) -> None:
        seen[when] = pair.transport.is_reading()

    pair = await trial.open()
    look("new")
    pair.transport.pause_reading()
    look("paused")
    pair.transport.resume_reading()
    look("resumed")
    pair.transport.close()
    look("closing")
    pair.transport.resume_reading()
    look("closing and resumed")
    await pair.until_lost()
    look("lost")
    pair.transport.resume_reading()
    look("lost and resumed")
    wrong = {when: answer for when, answer in seen.items() if answer is not (when in ("new", "resumed"))}
    expect(not wrong, f"is_reading() is {wrong}")


@promise(15, "reading", "readable")
async def a_pause_inside_connection_made_holds(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(made=lambda p: p.transport.pause_reading()), early=b"data")
    expect(not pair.transport.is_reading(), "is_reading() is true")
    if not pair.protocol.received:
        pair.far.send_now(b"")
    await _nothing_comes(pair, "after a pause in connection_made")
    pair.transport.resume_reading()
    pair.far.send_now(b"more")
    await pair.until_received(4)


@promise(15, "reading", "readable")
async def no_data_comes_after_a_pause_even_when_the_loop_knows_of_it(trial: Trial) -> None:
    pair = await trial.open()
    for attempt in range(1, 11):
        pair.far.send_now(b"data")
        # One turn: the loop has seen that the descriptor is ready, the callback may be queued already.
        await asyncio.sleep(0)
        told = len(pair.protocol.events)
        pair.transport.pause_reading()
        await turns(4)
        expect(len(pair.protocol.events) == told, f"after pause_reading(): {pair.protocol.names[told:]}")
        pair.transport.resume_reading()
        expect(len(pair.protocol.events) == told, "data came inside resume_reading()")
        await pair.until_received(4 * attempt)


@promise(15, "reading", "readable")
async def a_pause_inside_a_data_callback_holds(trial: Trial) -> None:
    data = pattern(CHUNK)
    for protocol in (
        RecordingProtocol(data=lambda p, data: p.transport.pause_reading()),
        RecordingBufferedProtocol(4096, data=lambda p, data: p.transport.pause_reading()),
    ):
        pair = await trial.open(protocol)
        sending = asyncio.ensure_future(pair.far.send(data))
        try:
            arrived = 0
            while arrived < len(data):
                told = protocol.count("data")
                await pair.until_seen("data", told + 1)
                await turns(4)
                expect(protocol.count("data") == told + 1, "data came while reading was paused")
                arrived = len(protocol.received)
                if told > 20:
                    protocol.hooks.clear()
                    pair.transport.resume_reading()
                    break
                pair.transport.resume_reading()
            expect(
                await pair.until_received(len(data)) == data, "the data that arrived is not what was sent", 18
            )
        finally:
            sending.cancel()


@promise(16, "reading", "write_only")
async def a_transport_without_a_read_side_refuses_to_pause(trial: Trial) -> None:
    pair = await trial.open()
    expect(pair.transport.is_reading() is False, "is_reading() is not False")
    for name in ("pause_reading", "resume_reading"):
        try:
            getattr(pair.transport, name)()
        except NotImplementedError:
            continue
        expect(False, f"{name}() did not raise NotImplementedError")


@promise(17, "half-close", "readable", "end_of_file")
async def end_of_file_is_told_once_after_all_data(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    data = pattern(CHUNK)
    sending = asyncio.ensure_future(pair.far.send(data))
    await pair.until_received(len(data))
    await sending
    _end(pair)
    await pair.until_seen("eof")
    await turns(10)
    expect(pair.protocol.received == data, "the data that arrived is not what was sent", 18)
    expect(pair.protocol.count("eof") == 1, f"events: {pair.protocol.summary()}")


@promise(17, "half-close", "readable", "half_close")
async def end_of_file_is_told_once_across_pause_and_resume(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.far.shutdown_write()
    await pair.until_seen("eof")
    for _ in range(3):
        pair.transport.pause_reading()
        await turns(3)
        pair.transport.resume_reading()
        await turns(5)
    expect(pair.protocol.count("eof") == 1, f"events: {pair.protocol.summary()}")
    expect(not pair.protocol.lost, "the transport ended although eof_received was true")


@promise(17, "half-close", "readable", "end_of_file")
async def end_of_file_waits_while_reading_is_paused(trial: Trial) -> None:
    pair = await trial.open()
    pair.transport.pause_reading()
    pair.far.send_now(b"before the end")
    _end(pair)
    await _nothing_comes(pair, "while paused")
    pair.transport.resume_reading()
    await pair.until_seen("eof")
    expect(pair.protocol.received == b"before the end", f"events: {pair.protocol.summary()}", 18)


@promise(17, "half-close", "readable", "ends", "end_of_file")
async def a_false_answer_to_end_of_file_closes(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=False))
    _end(pair)
    await pair.until_lost()
    expect(pair.protocol.names == ["made", "eof", "lost"], f"events: {pair.protocol.summary()}")
    expect(pair.protocol.reason is None, f"connection_lost was told {pair.protocol.reason!r}", 4)


@promise(17, "half-close", "readable", "writable", "half_close")
async def a_false_answer_to_end_of_file_flushes_before_it_closes(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=False))
    written = await pair.fill()
    pair.far.shutdown_write()
    await pair.until_seen("eof")
    got = await pair.far.recv_to_end()
    expect(got == pattern(written), f"{len(got)} of {written} bytes arrived", 5)
    await pair.until_lost()


@promise(17, "half-close", "readable", "writable", "half_close")
async def a_true_answer_to_end_of_file_keeps_the_write_side(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.far.shutdown_write()
    await pair.until_seen("eof")
    await turns(10)
    expect(not pair.protocol.lost, "connection_lost came although eof_received was true")
    expect(not pair.transport.is_closing(), "is_closing() is true although eof_received was true")
    pair.transport.write(b"still here")
    expect(await pair.far.recv_exactly(10) == b"still here", "the write side is gone")
    pair.transport.close()
    expect(await pair.far.recv() == b"", "the far end saw no end of file after close()", 5)
    await pair.until_lost()


@promise(17, "half-close", "readable", "writable", "resets")
async def a_reset_is_never_told_as_an_end_of_file(trial: Trial) -> None:
    # The kernel tells a reset once. When a write has been told, the next read finds an end that is none:
    # what the far end sent last may be missing before it.
    for protocol in (RecordingProtocol(keep_open=True), RecordingBufferedProtocol(keep_open=True)):
        pair = await trial.open(protocol)
        pair.transport.write(b"never read")
        await turns(3)
        pair.far.send_now(b"data")
        pair.far.reset()
        pair.transport.write(b"to nobody")
        await pair.until_lost()
        expect("eof" not in protocol.names, f"events: {protocol.summary()}")
        expect(isinstance(protocol.reason, OSError), f"connection_lost was told {protocol.reason!r}", 4)


@promise(18, "reading", "readable", "end_of_file")
async def what_the_kernel_holds_when_the_far_end_goes_is_delivered(trial: Trial) -> None:
    for protocol in (RecordingProtocol(), RecordingBufferedProtocol(1000)):
        pair = await trial.open(protocol)
        pair.transport.pause_reading()
        data = _send_all_the_kernel_takes(pair)
        pair.far.close()
        # The watch for hang-ups, where there is one, has its say first.
        await turns(10)
        pair.transport.resume_reading()
        await pair.until_seen("eof")
        expect(protocol.received == data, f"{len(protocol.received)} of {len(data)} bytes were delivered")


@promise(18, "reading", "readable", "writable", "reset_keeps_data")
async def what_the_kernel_holds_is_delivered_before_a_reset(trial: Trial) -> None:
    for protocol in (RecordingProtocol(keep_open=True), RecordingBufferedProtocol(1000, keep_open=True)):
        pair = await trial.open(protocol)
        pair.transport.write(b"never read")
        await turns(3)
        pair.transport.pause_reading()
        data = _send_all_the_kernel_takes(pair)
        pair.far.reset()
        await turns(10)
        pair.transport.resume_reading()
        await pair.until_lost()
        expect(protocol.received == data, f"{len(protocol.received)} of {len(data)} bytes were delivered")
        expect(
            isinstance(protocol.reason, ConnectionResetError),
            f"connection_lost was told {protocol.reason!r}",
            4,
        )


@promise(19, "reading", "readable")
async def a_buffered_protocol_receives_everything(trial: Trial) -> None:
    data = pattern(CHUNK)
    for size in (1000, 65536):
        pair = await trial.open(RecordingBufferedProtocol(size))
        sending = asyncio.ensure_future(pair.far.send(data))
        try:
            expect(await pair.until_received(len(data)) == data, "the data that arrived is not what was sent")
        finally:
            sending.cancel()


@promise(19, "reading", "readable")
async def an_empty_buffer_is_an_error(trial: Trial) -> None:
    protocol = RecordingBufferedProtocol(0)
    pair = await trial.open(protocol)
    pair.far.send_now(b"data")
    await pair.until_lost()
    expect(isinstance(protocol.reason, RuntimeError), f"connection_lost was told {protocol.reason!r}")
    told = [report.get("exception") for report in trial.take_reports()]
    expect(told == [protocol.reason], f"the loop was told {told}")


@promise(19, "reading", "readable")
async def set_protocol_switches_the_kind_of_protocol_in_mid_stream(trial: Trial) -> None:
    pair = await trial.open()
    transport, seen = pair.transport, pair.protocol.events[:1]
    for text in (b"one", b"two", b"three", b"four"):
        for protocol in (RecordingProtocol(), RecordingBufferedProtocol(2)):
            # As if this one had been told of the connection: that is the caller's business.
            protocol.events += seen
            protocol.transport = transport
            transport.set_protocol(protocol)
            expect(transport.get_protocol() is protocol, "get_protocol() is not what was set")
            pair.protocol = protocol
            pair.far.send_now(text)
            expect(await pair.until_received(len(text)) == text, f"events: {protocol.summary()}")
    expect("made" not in pair.protocol.names[1:], "set_protocol called connection_made")


@promise(19, "reading", "readable")
async def set_protocol_inside_a_data_callback_takes_effect_for_the_next(trial: Trial) -> None:
    second = RecordingBufferedProtocol(7)
    second.events.append(("made", None))

    def switch(p: RecordingProtocol, data: bytes) -> None:
        second.transport = p.transport
        p.transport.set_protocol(second)

    first = RecordingProtocol(data=switch)
    pair = await trial.open(first)
    sent = b""
    # More than one read takes.
    while len(sent) < CHUNK and (n := pair.far.send_now(pattern(16384, len(sent)))):
        sent += pattern(n, len(sent))
    pair.protocol = second
    await until(lambda: first.received, "the first data came")
    await pair.until_received(len(sent) - len(first.received))
    expect(first.received + second.received == sent, "the data of both protocols is not what was sent", 18)
    expect(first.count("data") == 1, "the old protocol went on receiving")


@promise(20, "reading", "readable")
async def a_busy_descriptor_does_not_starve_the_loop(trial: Trial) -> None:
    last = 0
    in_turn = longest = 0
    bytes_in_turn = most = 0
    with LoopTurns() as loop_turns:

        def refill(p: RecordingProtocol, data: bytes) -> None:
            nonlocal last, in_turn, longest, bytes_in_turn, most
            if loop_turns.count != last:
                last, in_turn, bytes_in_turn = loop_turns.count, 0, 0
            in_turn += 1
            bytes_in_turn += len(data)
            longest, most = max(longest, in_turn), max(most, bytes_in_turn)
            if p.count("data") < 400:
                pair.far.send_now(block)

        block = bytes(65536)
        for kind in (RecordingProtocol, RecordingBufferedProtocol):
            last = in_turn = bytes_in_turn = 0
            pair = await trial.open(kind(data=refill))
            pair.far.send_now(block)
            await pair.until_seen("data", 400)
            expect(
                longest <= 64 and most <= 4 * 1024 * 1024,
                f"{longest} callbacks with {most} bytes came in one turn of the loop",
            )


def _end(pair: Pair) -> None:
    """End of file from the far end, by half-close where it has one."""
    if pair.far.can_shutdown_write:
        pair.far.shutdown_write()
    else:
        pair.far.close()


def _send_all_the_kernel_takes(pair: Pair) -> bytes:
    sent = 0
    while sent < 16 * CHUNK and (n := pair.far.send_now(pattern(CHUNK, sent))):
        sent += n
    return pattern(sent)


async def _nothing_comes(pair: Pair, when: str) -> None:
    told = len(pair.protocol.events)
    await turns(10)
    expect(len(pair.protocol.events) == told, f"{when}: {pair.protocol.names[told:]}")
