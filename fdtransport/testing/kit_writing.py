"""Promises 23 to 25, 28 and 29: writing, its end, and its failure."""

from __future__ import annotations

import array
import asyncio
import errno
import random
from collections.abc import Iterator
from typing import Any

from .observe import chunks, expect, pattern, turns, until
from .promises import promise
from .recording import RecordingProtocol
from .trial import Trial

#: What writing to nobody gives: pipes and sockets the first two, terminals the last.
GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO)


@promise(23, "writing", "writable")
async def write_takes_bytes_like_objects_and_counts_bytes(trial: Trial) -> None:
    pair = await trial.open()
    words = array.array("I", range(1000))
    doubles = array.array("d", [1.5] * 100)
    table = memoryview(bytes(range(12))).cast("B", (3, 4))
    offered: list[Any] = [
        b"bytes", bytearray(b"bytearray"), memoryview(b"view"), memoryview(bytearray(b"view of bytearray")),
        memoryview(words), memoryview(doubles), table, b"", bytearray(), memoryview(b""), b"end",
    ]  # fmt: skip
    expected = b"".join(bytes(data) for data in offered)
    for data in offered:
        pair.transport.write(data)
    pair.transport.writelines(offered)
    expect(
        await pair.far.recv_exactly(len(expected) * 2) == expected * 2, "what arrived is not what was written"
    )
    # The same, when nothing can be sent at once; a view longer than the kernel's buffers, too.
    written = await pair.fill()
    size = pair.transport.get_write_buffer_size()
    for data in offered:
        pair.transport.write(data)
    big = memoryview(array.array("I", range(500_000)))
    pair.transport.write(big)
    added = pair.transport.get_write_buffer_size() - size
    expect(added == len(expected) + big.nbytes, f"{len(expected) + big.nbytes} bytes count as {added}", 26)
    await pair.far.recv_exactly(written)
    got = await pair.far.recv_exactly(added)
    expect(got == expected + bytes(big), "what arrived after a backlog is not what was written")


@promise(23, "writing", "writable")
async def anything_else_is_a_type_error_before_anything_else_is_looked_at(trial: Trial) -> None:
    wrong: list[Any] = [
        "text",
        5,
        None,
        [1, 2],
        array.array("B", b"array"),
        memoryview(b"abcdef")[::2],
        object(),
    ]
    pair = await trial.open()

    def offer(when: str) -> None:
        for data in wrong:
            for method, argument in (("write", data), ("writelines", [b"x", data])):
                try:
                    getattr(pair.transport, method)(argument)
                except TypeError:
                    continue
                expect(False, f"{method} of {data!r} {when} raised no TypeError")

    offer("while open")
    if trial.features.half_close:
        pair.transport.write_eof()
        offer("after write_eof()")
    pair.transport.close()
    offer("after close()")
    await pair.until_lost()
    offer("after the loss")
    expect(await pair.far.recv_to_end() == b"", "something was sent all the same", 24)


@promise(23, "writing", "writable")
async def changing_a_buffer_after_write_changes_nothing_that_is_sent(trial: Trial) -> None:
    def views(buffer: bytearray) -> list[Any]:
        return [buffer, memoryview(buffer), memoryview(buffer)[1000:]]

    # More than the kernel holds: it takes a part at once and the rest has to wait.
    much = min(2 * await (await trial.open()).fill(), 8 * 1024 * 1024)
    for backlog in (False, True):
        for which in range(3):
            for method in ("write", "writelines"):
                pair = await trial.open()
                written = await pair.fill() if backlog else 0
                buffer = bytearray(pattern(much if not backlog else 100_000))
                view = views(buffer)[which]
                expected = bytes(view)
                getattr(pair.transport, method)(view if method == "write" else [view])
                if isinstance(view, memoryview):
                    view.release()
                buffer[:] = bytes(len(buffer))
                del view
                try:
                    buffer.clear()
                except BufferError:
                    expect(False, f"{method}() holds on to the buffer of its caller")
                await pair.far.recv_exactly(written)
                got = await pair.far.recv_exactly(len(expected))
                expect(got == expected, f"{method}(), backlog {backlog}: the later contents were sent")
                pair.transport.abort()
                pair.far.close()


@promise(24, "writing", "writable")
async def writelines_takes_any_iterable_and_keeps_order(trial: Trial) -> None:
    pair = await trial.open()
    pieces = [pattern(n % 50, n) for n in range(3000)]

    def generate() -> Iterator[bytes]:
        yield from pieces

    given: list[Any] = [pieces, tuple(pieces), generate(), iter(pieces), [], iter(())]
    expected = b"".join(pieces) * 4
    for item in given:
        pair.transport.writelines(item)
    expect(await pair.far.recv_exactly(len(expected)) == expected, "what arrived is not what was written")


@promise(24, "writing", "writable")
async def writelines_checks_everything_before_it_queues_anything(trial: Trial) -> None:
    pair = await trial.open()
    good: Any = [b"never", b"sent" * 10_000]
    for bad in ([*good, "text"], iter([*good, None])):
        try:
            pair.transport.writelines(bad)
        except TypeError:
            continue
        expect(False, "writelines() raised no TypeError for a bad item")
    pair.transport.write(b"only this")
    pair.transport.close()
    got = await pair.far.recv_to_end()
    expect(got == b"only this", f"{len(got)} bytes arrived: a part of the refused ones")


@promise(24, "writing", "writable")
async def writelines_obeys_flow_control(trial: Trial) -> None:
    pair = await trial.open()
    pieces = [pattern(65536, 65536 * n) for n in range(256)]
    pair.transport.writelines(pieces)
    await turns(3)
    expect(pair.protocol.paused, "16 MiB were queued and pause_writing was not called")
    got = await pair.far.recv_exactly(65536 * 256)
    expect(got == b"".join(pieces), "what arrived is not what was written", 25)
    await pair.until_seen("resumed")


@promise(25, "writing", "writable")
async def order_is_kept_under_back_pressure(trial: Trial) -> None:
    pair = await trial.open()
    rng = random.Random(5)
    data = pattern(3 * 1024 * 1024)
    sent = 0
    receiving = asyncio.ensure_future(_receive_raggedly(pair.far, len(data), rng))
    try:
        while sent < len(data):
            size = rng.choice((1, 7, 100, 1460, 8191, 8192, 65537, 300_000))
            piece = data[sent : sent + size]
            if rng.random() < 0.3:
                pair.transport.writelines(chunks(piece, 1 + size // 3))
            else:
                pair.transport.write(piece)
            sent += len(piece)
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        expect(await receiving == data, "what arrived is not what was written")
    finally:
        receiving.cancel()


async def _receive_raggedly(far: Any, n: int, rng: random.Random) -> bytes:
    got = bytearray()
    while len(got) < n:
        got += await far.recv(rng.choice((1000, 4096, 65536, 262144)))
        if rng.random() < 0.3:
            await turns(rng.randrange(5))
    return bytes(got)


@promise(28, "half-close", "writable")
async def can_write_eof_is_truthful(trial: Trial) -> None:
    pair = await trial.open()
    can = pair.transport.can_write_eof()
    expect(isinstance(can, bool), f"can_write_eof() is {can!r}")
    if trial.features.half_close:
        expect(can, "can_write_eof() is false on a kind with half-close")
    if can:
        pair.transport.write_eof()
    else:
        try:
            pair.transport.write_eof()
        except NotImplementedError:
            pass
        else:
            expect(False, "can_write_eof() is false, and write_eof() raised no NotImplementedError")


@promise(28, "half-close", "writable", "half_close")
async def write_eof_ends_the_write_side_after_the_flush(trial: Trial) -> None:
    for backlog in (False, True):
        pair = await trial.open(RecordingProtocol(keep_open=True))
        written = await pair.fill() if backlog else 0
        pair.transport.write_eof()
        pair.transport.write_eof()
        got = await pair.far.recv_to_end()
        expect(got == pattern(written), f"{len(got)} of {written} bytes arrived before the end of file")
        expect(not pair.protocol.lost, "connection_lost came although the read side is open")
        expect(not pair.transport.is_closing(), "is_closing() is true although the read side is open")
        if trial.features.readable:
            await pair.far.send(b"an answer")
            expect(await pair.until_received(9) == b"an answer", "the read side is gone")
        pair.transport.write_eof()
        pair.transport.close()
        await pair.until_lost()
        pair.transport.write_eof()
        expect(pair.protocol.reason is None, f"connection_lost was told {pair.protocol.reason!r}", 4)


@promise(28, "half-close", "writable", "half_close")
async def write_eof_inside_connection_made_comes_after_what_was_written(trial: Trial) -> None:
    def speak(p: RecordingProtocol) -> None:
        p.transport.write(b"first ")
        p.transport.writelines([b"and", b" last"])
        p.transport.write_eof()

    pair = await trial.open(RecordingProtocol(made=speak, keep_open=True))
    got = await pair.far.recv_to_end()
    expect(got == b"first and last", f"the far end got {got!r}")
    expect(not pair.protocol.lost, f"events: {pair.protocol.summary()}")


@promise(28, "half-close", "write_only")
async def write_eof_on_a_write_only_transport_is_close(trial: Trial) -> None:
    pair = await trial.open()
    written = await pair.fill()
    pair.transport.write_eof()
    got = await pair.far.recv_to_end()
    expect(got == pattern(written), f"{len(got)} of {written} bytes arrived before the end of file")
    await pair.until_lost()
    expect(pair.protocol.reason is None, f"connection_lost was told {pair.protocol.reason!r}", 4)


@promise(28, "half-close", "writable", "half_close")
async def a_write_after_write_eof_is_a_runtime_error(trial: Trial) -> None:
    for backlog in (False, True):
        pair = await trial.open()
        if backlog:
            await pair.fill()
        pair.transport.write_eof()
        for method, argument in (("write", b"late"), ("writelines", [b"late"])):
            try:
                getattr(pair.transport, method)(argument)
            except RuntimeError:
                continue
            expect(False, f"{method}() after write_eof() raised no RuntimeError")


@promise(28, "half-close", "readable", "writable", "half_close")
async def the_end_of_both_sides_ends_the_transport(trial: Trial) -> None:
    for first in ("ours", "theirs"):
        pair = await trial.open(RecordingProtocol(keep_open=first == "theirs"))
        if first == "ours":
            pair.transport.write_eof()
            expect(await pair.far.recv() == b"", "the far end saw no end of file")
        pair.far.shutdown_write()
        await pair.until_seen("eof")
        if first == "theirs":
            pair.transport.write(b"last words")
            pair.transport.write_eof()
            expect(
                await pair.far.recv_to_end() == b"last words", "what was written before write_eof() is lost"
            )
            pair.transport.close()
        await pair.until_lost()
        expect(pair.protocol.reason is None, f"connection_lost was told {pair.protocol.reason!r}", 4)


@promise(29, "writing", "writable", "ends")
async def a_write_error_is_told_once_with_its_errno(trial: Trial) -> None:
    for backlog in (False, True):
        pair = await trial.open(RecordingProtocol(keep_open=True))
        if backlog:
            await pair.fill()
        pair.far.close()
        if not backlog:
            # At once, before the loop had a chance to see that the far end has gone.
            for _ in range(3):
                pair.transport.write(b"to nobody")
        if trial.features.tcp and not backlog:
            # The first write only provokes the reset that the next one sees.
            await turns(5)
            pair.transport.write(b"to nobody")
        await pair.until_lost()
        reason = pair.protocol.reason
        expect(
            isinstance(reason, OSError) and reason.errno in GONE,
            f"backlog {backlog}: connection_lost was told {reason!r}, no errno of a peer that has gone",
        )
        expect(pair.transport.get_write_buffer_size() == 0, "bytes stay queued after the loss", 26)


@promise(29, "writing", "readable", "writable", "ends", "end_of_file")
async def what_was_readable_is_delivered_before_a_write_error(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    # No more than TCP has delivered by now: a reset discards what is still under way.
    sent = pair.far.send_now(pattern(10_000))
    await turns(1)
    pair.far.close()
    for _ in range(3):
        pair.transport.write(b"to nobody")
    await until(
        lambda: pair.protocol.lost or len(pair.protocol.received) == sent, "all data or the loss came"
    )
    expect(
        pair.protocol.received == pattern(sent),
        f"{len(pair.protocol.received)} of {sent} bytes were delivered",
    )


@promise(29, "hang-up", "write_only", "ends")
async def an_idle_write_only_transport_notices_that_its_reader_has_gone(trial: Trial) -> None:
    pair = await trial.open()
    await turns(5)
    pair.far.close()
    await pair.until_lost()
    reason = pair.protocol.reason
    expect(
        reason is None or (isinstance(reason, OSError) and reason.errno in GONE),
        f"connection_lost was told {reason!r}",
        4,
    )
