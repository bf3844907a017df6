"""Promises 32 to 37: producers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from .observe import expect, pattern, turns, until
from .promises import promise
from .recording import RecordingProtocol
from .trial import CHUNK, Trial

MUCH = 16 * 1024 * 1024


class RecordingProducer:
    """A producer that writes down what it is told: "pause", "resume", "stop".

    ``write`` bytes go to the ``consumer`` each time that it is resumed, if it is given one.
    """

    def __init__(self, consumer: Any = None, write: bytes = b"", times: int = 0) -> None:
        self.calls: list[str] = []
        self.consumer: Any = consumer
        self.write: bytes = write
        self.times: int = times

    def pause_producing(self) -> None:
        self.calls.append("pause")

    def resume_producing(self) -> None:
        self.calls.append("resume")
        if self.consumer is not None:
            if self.times:
                self.times -= 1
                self.consumer.write(self.write)
            else:
                self.consumer.unregister_producer()

    def stop_producing(self) -> None:
        self.calls.append("stop")


@promise(32, "producers", "writable", "extended")
async def a_second_producer_is_a_runtime_error_that_names_both(trial: Trial) -> None:
    transport = (await trial.open()).transport
    first, second = RecordingProducer(), RecordingProducer()
    for streaming in (True, False):
        transport.register_producer(first, streaming)
        try:
            transport.register_producer(second)
        except RuntimeError as exc:
            text = str(exc)
            expect(repr(first) in text and repr(second) in text, f"the error names not both: {text}")
        else:
            expect(False, "a second register_producer() raised nothing")
        expect(not second.calls, f"the refused producer was told {second.calls}")
        transport.unregister_producer()
        transport.unregister_producer()
        first.calls.clear()
    transport.register_producer(second)
    transport.unregister_producer()


@promise(33, "producers", "writable", "extended")
async def a_closing_or_lost_transport_stops_a_new_producer_at_once(trial: Trial) -> None:
    for when in ("closing", "aborting", "lost"):
        pair = await trial.open()
        if when == "closing":
            await pair.fill()
            pair.transport.close()
        else:
            pair.transport.abort()
            if when == "lost":
                await pair.until_lost()
        producers = RecordingProducer(), RecordingProducer()
        for streaming, producer in zip((True, False), producers, strict=True):
            pair.transport.register_producer(producer, streaming)
            expect(producer.calls == ["stop"], f"{when}: the producer was told {producer.calls}")
        pair.transport.abort()
        await pair.until_lost()
        for producer in producers:
            expect(
                producer.calls == ["stop"], f"{when}: after the loss the producer was told {producer.calls}"
            )


@promise(34, "producers", "writable", "extended")
async def a_push_producer_is_paused_and_resumed_as_the_protocol_is(trial: Trial) -> None:
    pair = await trial.open()
    producer = RecordingProducer()
    pair.transport.register_producer(producer)
    expect(producer.calls == [], f"an idle transport told its producer {producer.calls}")
    for n in (1, 2):
        written = await pair.fill()
        expect(producer.calls == ["pause", "resume"] * (n - 1) + ["pause"], f"it was told {producer.calls}")
        await pair.far.recv_exactly(written)
        await pair.until_seen("resumed", n)
        expect(producer.calls == ["pause", "resume"] * n, f"it was told {producer.calls}")
    flow = {"paused": "pause", "resumed": "resume"}
    told = [flow[name] for name in pair.protocol.names if name in flow]
    expect(told == producer.calls, f"the producer was told {producer.calls}, the protocol {told}")
    pair.transport.unregister_producer()
    await pair.fill()
    expect(producer.calls == ["pause", "resume"] * 2, "it was told more after unregister_producer()")


@promise(34, "producers", "writable", "extended")
async def registering_above_the_high_mark_pauses_at_once(trial: Trial) -> None:
    pair = await trial.open()
    written = await pair.fill()
    producer = RecordingProducer()
    pair.transport.register_producer(producer)
    expect(producer.calls == ["pause"], f"it was told {producer.calls}")
    # The next one must not be told of a pause that was another's.
    pair.transport.unregister_producer()
    await pair.far.recv_exactly(written)
    await pair.until_seen("resumed")
    second = RecordingProducer()
    pair.transport.register_producer(second)
    await turns(5)
    expect(
        second.calls == [] and producer.calls == ["pause"], f"they were told {producer.calls}, {second.calls}"
    )
    pair.transport.unregister_producer()


@promise(34, "producers", "writable", "extended")
async def write_from_obeys_flow_control_and_sends_everything(trial: Trial) -> None:
    pair = await trial.open()
    asked = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal asked
        for n in range(MUCH // 65536):
            asked += 65536
            yield pattern(65536, 65536 * n)

    writing = asyncio.ensure_future(pair.transport.write_from(source()))
    try:
        await pair.until_seen("paused")
        await turns(20)
        before = asked
        await turns(50)
        expect(asked == before, "the source was asked for more while writing was paused")
        expect(pair.transport.get_write_buffer_size() < 1 << 20, "more than 1 MiB was queued")
        got = await pair.far.recv_exactly(MUCH)
        expect(got == pattern(MUCH), "what arrived is not what the source gave")
        expect(await writing == MUCH, f"write_from() returned {writing.result()}")
    finally:
        writing.cancel()


@promise(35, "producers", "writable", "extended")
async def a_pull_producer_is_asked_once_per_empty_buffer_and_never_paused(trial: Trial) -> None:
    pair = await trial.open()
    piece = pattern(CHUNK * 4)
    producer = RecordingProducer(pair.transport, piece, 6)
    pair.transport.register_producer(producer, False)
    expect(producer.calls == ["resume"], f"at the registration it was told {producer.calls}")
    got = 0
    while got < 6 * len(piece):
        size = pair.transport.get_write_buffer_size()
        expect(size <= len(piece), f"{size} bytes are queued: it was asked before the buffer was empty")
        got += len(await pair.far.recv())
    await until(lambda: len(producer.calls) == 7, f"it was told {producer.calls}")
    await turns(5)
    expect(producer.calls == ["resume"] * 7, f"it was told {producer.calls}")


@promise(35, "producers", "writable", "extended")
async def a_pull_producer_of_small_pieces_is_asked_without_end(trial: Trial) -> None:
    pair = await trial.open()
    producer = RecordingProducer(pair.transport, b"small piece", 200)
    pair.transport.register_producer(producer, False)
    got = await pair.far.recv_exactly(200 * 11)
    expect(got == b"small piece" * 200, "what arrived is not what it wrote")
    await until(lambda: len(producer.calls) == 201, "it was asked once more, and unregistered")
    expect(set(producer.calls) == {"resume"}, f"it was told {set(producer.calls)}")


@promise(36, "producers", "writable", "extended")
async def close_waits_until_the_producer_has_unregistered(trial: Trial) -> None:
    pair = await trial.open()
    producer = RecordingProducer()
    pair.transport.register_producer(producer)
    pair.transport.write(b"first, ")
    pair.transport.close()
    await turns(20)
    expect(not pair.protocol.lost, "connection_lost came although a producer was registered")
    pair.transport.write(b"second")
    pair.transport.unregister_producer()
    expect(await pair.far.recv_to_end() == b"first, second", "what the producer wrote after close() is lost")
    await pair.until_lost()
    expect("stop" not in producer.calls, f"it had unregistered, and was told {producer.calls}")


@promise(36, "producers", "writable", "extended")
async def the_loss_stops_the_producer_once_and_before_connection_lost(trial: Trial) -> None:
    for streaming in (True, False):
        order: list[str] = []
        pair = await trial.open(
            RecordingProtocol(lost=lambda p, exc, order=order: order.append("lost"), keep_open=True)
        )

        class Producer(RecordingProducer):
            def stop_producing(self, order: list[str] = order, transport: Any = pair.transport) -> None:
                super().stop_producing()
                order.append("stop")
                transport.unregister_producer()

        producer = Producer()
        pair.transport.register_producer(producer, streaming)
        pair.transport.abort()
        await pair.until_lost()
        expect(order == ["stop", "lost"], f"streaming={streaming}: the order was {order}")
        expect(producer.calls.count("stop") == 1, f"it was told {producer.calls}")


@promise(37, "producers", "readable", "writable", "extended")
async def a_transport_is_the_producer_of_another(trial: Trial) -> None:
    target = await trial.open()
    source = await trial.open(
        RecordingProtocol(keep_open=True, data=lambda p, data: target.transport.write(data))
    )
    target.transport.register_producer(source.transport)
    sending = asyncio.ensure_future(source.far.send(pattern(MUCH)))
    try:
        await until(lambda: not source.transport.is_reading(), "the slow reader stopped the fast writer")
        most = target.transport.get_write_buffer_size()
        expect(most < 1 << 20, f"{most} bytes are queued between the two")
        got = bytearray()
        while len(got) < MUCH:
            got += await target.far.recv(65536)
            most = max(most, target.transport.get_write_buffer_size())
        expect(got == pattern(MUCH), "what arrived is not what was sent")
        expect(most < 1 << 20, f"{most} bytes were queued between the two")
        await sending
    finally:
        sending.cancel()
    await until(source.transport.is_reading, "reading was resumed")
    # The loss of the consumer stops the producer.
    target.transport.abort()
    await target.until_lost()
    await source.until_lost()


__all__ = ["RecordingProducer"]
