"""Promises 12 and 13: what happens to exceptions in callbacks, and the context callbacks run in."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context
from typing import Any

from .apart import run_apart
from .observe import expect, turns, until
from .promises import promise
from .recording import RecordingBufferedProtocol, RecordingProtocol
from .trial import Pair, Trial


class _OnPurpose(Exception):
    pass


def _raise(*_: Any) -> None:
    raise _OnPurpose("raised in a callback, on purpose")


class _BadGetBuffer(RecordingBufferedProtocol):
    def get_buffer(self, sizehint: int) -> memoryview:
        raise _OnPurpose("raised in get_buffer, on purpose")


@promise(12, "errors", "readable")
async def an_exception_in_a_reading_callback_is_reported_once_and_ends_the_transport(trial: Trial) -> None:
    for name, protocol in (
        ("data_received", RecordingProtocol(data=_raise)),
        ("buffer_updated", RecordingBufferedProtocol(data=_raise)),
        ("get_buffer", _BadGetBuffer()),
        ("eof_received", RecordingProtocol(eof=_raise)),
    ):
        if name == "eof_received" and not trial.features.end_of_file:
            continue
        pair = await trial.open(protocol)
        if name == "eof_received":
            pair.far.close()
        else:
            # More than one read takes: no second callback may come.
            while pair.far.send_now(bytes(65536)):
                pass
        await pair.until_lost()
        expect(protocol.count("data") <= 1, f"{name}: {protocol.summary()}", 2)
        reports = trial.take_reports()
        told = [report.get("exception") for report in reports]
        expect(len(told) == 1 and isinstance(told[0], _OnPurpose), f"{name}: the loop was told {told}")
        lacking = {"message", "exception", "transport", "protocol"} - reports[0].keys()
        expect(not lacking, f"{name}: the report lacks {sorted(lacking)}")
        expect(reports[0]["transport"] is pair.transport, f"{name}: the report names another transport")
        expect(reports[0]["protocol"] is protocol, f"{name}: the report names another protocol")
        expect(protocol.reason is told[0], f"{name}: connection_lost was told {protocol.reason!r}")


@promise(12, "errors")
async def an_exception_in_connection_made_is_reported_and_the_transport_lives(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(made=_raise))
    await turns(3)
    await _lives(trial, pair, "connection_made")


@promise(12, "errors", "writable")
async def an_exception_in_a_flow_callback_is_reported_and_the_transport_lives(trial: Trial) -> None:
    for name in ("paused", "resumed"):
        pair = await trial.open(RecordingProtocol(**{name: _raise}))
        written = await pair.fill()
        await pair.far.recv_exactly(written)
        await pair.until_seen("resumed")
        await _lives(trial, pair, name)


async def _lives(trial: Trial, pair: Pair, name: str) -> None:
    told = [report.get("exception") for report in trial.take_reports()]
    expect(len(told) == 1 and isinstance(told[0], _OnPurpose), f"{name}: the loop was told {told}")
    expect(not pair.transport.is_closing(), f"an exception in {name} closed the transport")
    if trial.features.readable:
        pair.far.send_now(b"still there")
        await pair.until_received(11)
    if trial.features.writable:
        pair.transport.write(b"still here")
        expect(await pair.far.recv_exactly(10) == b"still here", f"after {name}: what was written is lost")


@promise(12, "errors", "readable", "own_loop")
async def system_exit_and_keyboard_interrupt_pass_through(trial: Trial) -> None:
    for kind in (SystemExit, KeyboardInterrupt):

        def interrupt(_: RecordingProtocol, __: bytes, kind: type[BaseException] = kind) -> None:
            raise kind

        async def main(interrupt: Any = interrupt) -> None:
            transport, far = await trial.make(lambda: RecordingProtocol(data=interrupt))
            try:
                far.send_now(b"data")
                await asyncio.sleep(1)
            finally:
                transport.abort()
                far.close()
                await turns(5)

        try:
            run_apart(trial.loop, main)
        except kind:
            continue
        expect(False, f"{kind.__name__} in data_received did not pass through")


_who: ContextVar[str] = ContextVar("_who", default="nobody")


@promise(13, "errors")
async def callbacks_run_in_the_context_of_the_creation(trial: Trial) -> None:
    seen: dict[str, str] = {}

    def note(name: str) -> Any:
        return lambda *_: seen.setdefault(name, _who.get())

    names = ["made", "lost"]
    names += ["data"] if trial.features.readable else []
    names += ["eof"] if trial.features.readable and trial.features.end_of_file else []
    names += ["paused", "resumed"] if trial.features.writable else []
    _who.set("the creator")
    pair = await trial.open(RecordingProtocol(keep_open=True, **{name: note(name) for name in names}))

    async def somebody_else() -> None:
        _who.set("somebody else")
        if trial.features.writable:
            written = await pair.fill()
            await pair.far.recv_exactly(written)
            await pair.until_seen("resumed")
        if trial.features.readable:
            pair.transport.pause_reading()
            pair.far.send_now(b"data")
            await turns(5)
            pair.transport.resume_reading()
            await pair.until_received(4)
        if "eof" in names:
            pair.far.close()
            await pair.until_seen("eof")
        pair.transport.close()
        await pair.until_lost()

    await asyncio.create_task(somebody_else(), context=copy_context())
    wrong = {name: who for name, who in seen.items() if who != "the creator"}
    expect(not wrong, f"these callbacks ran in another context: {wrong}")
    expect(set(names) == seen.keys(), f"only {sorted(seen)} were called")


@promise(13, "errors", "readable")
async def callbacks_share_one_context(trial: Trial) -> None:
    seen: list[str] = []

    def note(p: RecordingProtocol, data: bytes) -> None:
        seen.append(_who.get())
        _who.set(f"callback {len(seen)}")

    pair = await trial.open(RecordingProtocol(made=lambda p: _who.set("connection_made"), data=note))
    for n in range(1, 4):
        pair.transport.pause_reading()
        pair.far.send_now(b"x")
        await turns(3)
        pair.transport.resume_reading()
        await until(lambda n=n: len(seen) == n, "data came")  # type: ignore[misc]
    expect(seen == ["connection_made", "callback 1", "callback 2"], f"the callbacks saw {seen}")
