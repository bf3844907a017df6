"""Promises 1 to 6 and 10: how a transport begins and ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import logging
import os
import weakref
from typing import Any

from .observe import expect, pattern, turns, until
from .promises import SilentProtocol, promise
from .recording import RecordingBufferedProtocol, RecordingProtocol
from .trial import Pair, Trial


@promise(1, "life")
async def connection_made_comes_first_and_before_the_helper_returns(trial: Trial) -> None:
    pair = await trial.open()
    expect(pair.protocol.names[:1] == ["made"], f"the helper returned; events: {pair.protocol.summary()}")
    expect(pair.protocol.transport is pair.transport, "connection_made was given another transport")
    expect(pair.transport.get_protocol() is pair.protocol, "get_protocol() is not the protocol")


@promise(2, "life", "readable")
async def no_data_comes_before_connection_made_has_returned(trial: Trial) -> None:
    pair = await trial.open(
        RecordingProtocol(made=lambda p: (p.transport.pause_reading(), p.transport.resume_reading())),
        early=b"early",
    )
    if not pair.protocol.received:
        pair.far.send_now(b"later")
    await pair.until_seen("data")


@promise(2, "life", "writable")
async def no_flow_callback_comes_before_connection_made_has_returned(trial: Trial) -> None:
    much = pattern(16 * 1024 * 1024)

    def write_much(p: RecordingProtocol) -> None:
        p.transport.set_write_buffer_limits(high=0)
        p.transport.write(much)

    pair = await trial.open(RecordingProtocol(made=write_much))
    await pair.until_seen("paused")
    expect(await pair.far.recv_exactly(len(much)) == much, "what connection_made wrote did not arrive", 25)


@promise(3, "life records")
async def connection_lost_comes_once_and_last(trial: Trial) -> None:
    for end in ("close", "abort"):
        pair = await trial.open()
        getattr(pair.transport, end)()
        expect(not pair.protocol.lost, f"connection_lost came inside {end}()")
        await pair.until_lost()
        for again in ("close", "abort"):
            getattr(pair.transport, again)()
        await turns(5)
        expect(pair.protocol.count("lost") == 1, f"after {end}(): {pair.protocol.summary()}")


@promise(3, "life", "writable")
async def connection_lost_never_comes_inside_a_write(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.far.close()
    for _ in range(3):
        pair.transport.write(bytes(1000))
        pair.transport.writelines([bytes(1000), bytes(1000)])
    expect(not pair.protocol.lost, "connection_lost came inside write()")
    pair.transport.abort()
    expect(not pair.protocol.lost, "connection_lost came inside abort()")
    await pair.until_lost()


@promise(3, "life records")
async def the_descriptor_is_closed_when_connection_lost_has_returned(trial: Trial) -> None:
    for end, raises in itertools.product(("close", "abort"), (False, True)):
        wrong = RuntimeError("raised in connection_lost, on purpose")
        watch = _Watch(wrong if raises else None)
        pair = await trial.open(trial.recorder(lost=watch))
        watch.fds = pair.fds
        getattr(pair.transport, end)()
        await pair.until_lost()
        if trial.features.open_in_lost:
            expect(watch.open, f"after {end}() the descriptor was closed before connection_lost")
        await until(
            lambda fds=pair.fds: not any(map(_is_open, fds)),  # type: ignore[misc]
            f"the descriptor was closed after {end}() (connection_lost raised: {raises})",
            1.0,
        )
        if raises:
            told = [report.get("exception") for report in trial.take_reports()]
            expect(told == [wrong], f"an exception in connection_lost: the loop was told {told}", 12)


class _Watch:
    """A hook for ``connection_lost``: looks whether the descriptors are open, and raises if it is told to."""

    def __init__(self, exc: Exception | None) -> None:
        self.exc = exc
        self.fds: tuple[int, ...] = ()
        self.open = False

    def __call__(self, *_: Any) -> None:
        self.open = all(map(_is_open, self.fds))
        if self.exc is not None:
            raise self.exc


@promise(4, "life records")
async def close_and_abort_tell_none(trial: Trial) -> None:
    for end in ("close", "abort"):
        pair = await trial.open()
        getattr(pair.transport, end)()
        await pair.until_lost()
        expect(pair.protocol.reason is None, f"{end}() told {pair.protocol.reason!r}")


@promise(4, "life", "readable", "ends", "end_of_file")
async def end_of_file_tells_none(trial: Trial) -> None:
    pair = await trial.open()
    pair.far.close()
    await pair.until_lost()
    expect(pair.protocol.reason is None, f"the end of file told {pair.protocol.reason!r}")


@promise(4, "life", "readable", "writable", "resets")
async def a_reset_tells_its_errno(trial: Trial) -> None:
    pair = await trial.open(RecordingProtocol(keep_open=True))
    pair.transport.write(b"never read")
    await turns(5)
    pair.far.reset()
    await pair.until_lost()
    _expect_errno(pair, errno.ECONNRESET)


@promise(4, "life", "extended", "ends")
async def close_reason_tells_local_peer_and_abort_apart(trial: Trial) -> None:
    expected = {"close": "LOCAL", "abort": "ABORT"}
    if trial.features.readable:
        expected["far end"] = "PEER" if trial.features.end_of_file else "ERROR"
    for cause, reason in expected.items():
        inside: list[str] = []
        pair = await trial.open(
            RecordingProtocol(lost=lambda p, exc, inside=inside: inside.append(_close_reason(p.transport)))
        )
        expect(pair.transport.close_reason is None, f"it is {pair.transport.close_reason} while open")
        if cause == "far end":
            pair.far.close()
        else:
            getattr(pair.transport, cause)()
        await pair.until_lost()
        inside.append(_close_reason(pair.transport))
        expect(inside == [reason] * 2, f"{cause}: close_reason in and after connection_lost is {inside}")


@promise(4, "life", "readable", "extended")
async def close_reason_tells_error(trial: Trial) -> None:
    def wrong(p: RecordingProtocol, data: bytes) -> None:
        raise RuntimeError("on purpose")

    pair = await trial.open(RecordingProtocol(data=wrong))
    pair.far.send_now(b"x")
    await pair.until_lost()
    trial.take_reports()
    expect(_close_reason(pair.transport) == "ERROR", f"close_reason is {pair.transport.close_reason}")


@promise(5, "life", "writable")
async def close_flushes_and_then_ends(trial: Trial) -> None:
    pair = await trial.open()
    written = await pair.fill()
    pair.transport.close()
    expect(pair.transport.is_closing(), "is_closing() is false after close()")
    await turns(5)
    expect(not pair.protocol.lost, "connection_lost came while bytes were still queued")
    got = await pair.far.recv_exactly(written)
    expect(got == pattern(written), "the bytes that arrived are not those that were written", 25)
    await pair.until_lost()
    expect(await pair.far.recv() == b"", "the far end saw no end of file")


@promise(5, "life", "readable")
async def close_stops_reading_at_once(trial: Trial) -> None:
    for _ in range(5):
        pair = await trial.open()
        pair.far.send_now(b"too late")
        # In the turn after this one the loop knows of the bytes, and may have queued the callback.
        await asyncio.sleep(0)
        told = len(pair.protocol.events)
        pair.transport.close()
        expect(not pair.transport.is_reading(), "is_reading() is true after close()")
        await pair.until_lost()
        expect(pair.protocol.names[told:] == ["lost"], f"after close(): {pair.protocol.names[told:]}")


@promise(5, "life", "readable")
async def no_data_comes_after_a_close_inside_a_data_callback(trial: Trial) -> None:
    for method in ("close", "abort"):

        def end(p: RecordingProtocol, data: bytes, method: str = method) -> None:
            getattr(p.transport, method)()

        for protocol in (RecordingProtocol(data=end), RecordingBufferedProtocol(1000, data=end)):
            pair = await trial.open(protocol)
            # More than one read takes, all of it there at once.
            while pair.far.send_now(bytes(65536)):
                pass
            await pair.until_lost()
            expect(protocol.names == ["made", "data", "lost"], f"{method}(): {protocol.summary()}")


@promise(5, "life", "readable", "writable")
async def close_with_a_backlog_stops_reading_at_once(trial: Trial) -> None:
    pair = await trial.open()
    await pair.fill()
    pair.transport.close()
    told = len(pair.protocol.events)
    pair.far.send_now(b"too late")
    await turns(20)
    expect(len(pair.protocol.events) == told, f"after close(): {pair.protocol.names[told:]}")


@promise(5, "life", "writable")
async def abort_drops_and_ends(trial: Trial) -> None:
    pair = await trial.open()
    written = await pair.fill()
    pair.transport.abort()
    expect(pair.transport.is_closing(), "is_closing() is false after abort()")
    await pair.until_lost(1.0)
    expect(pair.protocol.reason is None, f"abort() told {pair.protocol.reason!r}", 4)
    got = await pair.far.recv_to_end()
    expect(len(got) < written, f"all of the {written} bytes arrived: the backlog was sent, not dropped")
    expect(got == pattern(len(got)), "the bytes that arrived are not those that were written", 25)


@promise(5, "life")
async def close_and_abort_work_in_any_order_from_any_callback(trial: Trial) -> None:
    features = trial.features
    places = ["outside", "made", "lost"]
    if features.readable:
        places += ["data", "eof"] if features.end_of_file else ["data"]
    if features.writable:
        places += ["paused", "resumed"]
    for place, methods in itertools.product(places, _ORDERS):
        await _end_from(trial, place, methods)


_ORDERS = [("close",), ("abort",), *itertools.product(("close", "abort"), repeat=2)]


async def _end_from(trial: Trial, place: str, methods: tuple[str, ...]) -> None:
    def end(p: RecordingProtocol, *_: object) -> None:
        for method in methods:
            getattr(p.transport, method)()

    where = f"{' and '.join(methods)} from {place}"
    protocol = trial.recorder() if place == "outside" else trial.recorder(**{place: end})
    pair = await trial.open(protocol)
    if place in ("outside", "lost"):
        end(protocol)
    elif place == "data":
        await pair.far.send(b"x")
    elif place == "eof":
        pair.far.close()
    elif place in ("paused", "resumed"):
        await pair.fill()
        if place == "resumed":
            await until(lambda: protocol.lost or pair.far.recv_now() == b"", f"{where}: connection_lost came")
    if "abort" not in methods and trial.features.writable and place != "eof":
        # A graceful close waits for the peer to take what is queued.
        await until(lambda: protocol.lost or pair.far.recv_now() == b"", f"{where}: connection_lost came")
    await pair.until_lost()
    end(protocol)
    await turns(3)
    expect(protocol.count("lost") == 1, f"{where}: {protocol.summary()}", 3)
    expect(protocol.reason is None, f"{where} told {protocol.reason!r}", 4)
    pair.far.close()


@promise(6, "life", "writable")
async def a_write_after_close_is_sent_while_the_flush_is_under_way(trial: Trial) -> None:
    pair = await trial.open()
    written = await pair.fill()
    pair.transport.close()
    pair.transport.write(b"and this")
    pair.transport.writelines([b", and", b" that"])
    got = await pair.far.recv_to_end()
    expect(got[written:] == b"and this, and that", f"after the backlog came {got[written:][:40]!r}")
    expect(got[:written] == pattern(written), "the bytes that arrived are not those that were written", 25)


@promise(6, "life", "writable")
async def writes_after_the_loss_are_dropped_with_a_warning_from_the_fifth_on(trial: Trial) -> None:
    pair = await trial.open()
    pair.transport.abort()
    await pair.until_lost()
    warned = []
    for _ in range(7):
        with _Warnings() as warnings:
            pair.transport.write(b"dropped")
        warned.append(warnings.count > 0)
    expect(warned == [False] * 4 + [True] * 3, f"seven writes after the loss warned: {warned}")
    with _Warnings():
        pair.transport.writelines([b"dropped"])
    expect(pair.transport.get_write_buffer_size() == 0, "what was dropped counts as queued", 26)


@promise(10, "life records")
async def the_protocol_is_let_go_after_the_loss(trial: Trial) -> None:
    class Plain(SilentProtocol):
        lost = False

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost = True

    pair = await trial.open(Plain())
    transport = pair.transport
    reference = weakref.ref(pair.protocol)
    transport.close()
    await pair.until_lost()
    pair.protocol = None
    enabled = gc.isenabled()
    gc.disable()
    try:
        # The maker's own frames may hold it a little longer.
        await turns(3)
        expect(reference() is None, "the protocol lives on, held by its lost transport")
    finally:
        if enabled:
            gc.enable()
    expect(isinstance(repr(transport), str), "repr() after the loss")


@promise(10, "life records")
async def extra_info_stays_readable_after_the_loss(trial: Trial) -> None:
    pair = await trial.open()
    info = pair.transport.get_extra_info
    before: dict[str, Any] = {name: info(name) for name in ("peername", "sockname", "sslcontext")}
    pair.transport.abort()
    await pair.until_lost()
    for name in before:
        expect(info(name) == before[name], f"{name} was {before[name]!r}, and is {info(name)!r}")
    # The file itself is let go; asking for it must not raise.
    for name in ("socket", "pipe", "fd", "subprocess"):
        info(name)
    expect(info("no such name", 42) == 42, "get_extra_info() forgets its default")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _expect_errno(pair: Pair, *numbers: int) -> None:
    reason = pair.protocol.reason
    names = " or ".join(errno.errorcode[number] for number in numbers)
    expect(
        isinstance(reason, OSError) and reason.errno in numbers,
        f"connection_lost was told {reason!r}, not an OSError with {names}",
    )


def _close_reason(transport: Any) -> str:
    reason = transport.close_reason
    return str(getattr(reason, "name", reason))


class _Warnings(logging.Handler):
    """Counts the warnings that are logged while the block runs, and keeps them from the console."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1

    def __enter__(self) -> _Warnings:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger().removeHandler(self)
