"""Promises 26, 27, 30 and 31: the size of the backlog, its water marks, its limit, its end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from typing import Any

from .observe import expect, pattern, turns, until
from .promises import promise
from .recording import RecordingProtocol
from .trial import Trial


@promise(26, "flow", "writable", "abort_keeps")
async def the_write_buffer_size_is_what_abort_drops(trial: Trial) -> None:
    pair = await trial.open()
    expect(pair.transport.get_write_buffer_size() == 0, "a new transport has bytes queued")
    written = await pair.fill()
    for extra in (b"x", b"yz" * 5000):
        pair.transport.write(extra)
        written += len(extra)
    await turns(5)
    size = pair.transport.get_write_buffer_size()
    pair.transport.abort()
    got = await pair.far.recv_to_end()
    expect(len(got) == written - size, f"{written} written, {size} queued, {len(got)} arrived")


@promise(26, "flow", "writable")
async def the_write_buffer_size_comes_back_to_zero(trial: Trial) -> None:
    pair = await trial.open()
    written = await pair.fill()
    await pair.far.recv_exactly(written)
    await until(
        lambda: pair.transport.get_write_buffer_size() == 0, "the size was 0 after everything arrived"
    )


@promise(26, "flow", "writable")
async def limits_default_and_validate_as_asyncios_do(trial: Trial) -> None:
    transport = (await trial.open()).transport
    limits: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (16384, 65536)),
        ({"high": 1000}, (250, 1000)),
        ({"low": 1000}, (1000, 4000)),
        ({"high": 10, "low": 3}, (3, 10)),
        ({"high": 0}, (0, 0)),
        ({"high": 5, "low": 5}, (5, 5)),
        ({}, (16384, 65536)),
    ]
    got = transport.get_write_buffer_limits()
    expect(got == (16384, 65536), f"the limits (low, high) of a new transport are {got}")
    for arguments, expected in limits:
        transport.set_write_buffer_limits(**arguments)
        got = transport.get_write_buffer_limits()
        expect(got == expected, f"after set_write_buffer_limits({arguments}) the limits are {got}")
    for arguments in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}, {"high": 10, "low": -1}):
        try:
            transport.set_write_buffer_limits(**arguments)
        except ValueError:
            continue
        expect(False, f"set_write_buffer_limits({arguments}) raised no ValueError")
    expect(transport.get_write_buffer_limits() == (16384, 65536), "refused limits were set all the same")


@promise(27, "flow", "writable")
async def pause_comes_above_high_and_not_at_it(trial: Trial) -> None:
    pair = await trial.open()
    transport = pair.transport
    transport.set_write_buffer_limits(high=1 << 30)
    await pair.fill()
    high = transport.get_write_buffer_size() + 10_000
    transport.set_write_buffer_limits(high=high, low=high // 2)
    transport.write(bytes(high - transport.get_write_buffer_size()))
    expect(transport.get_write_buffer_size() == high, "the size is not what was written", 26)
    expect(not pair.protocol.paused, "pause_writing was called at the high mark, not above it")
    transport.write(b"x")
    await turns(2)
    expect(pair.protocol.paused, "pause_writing was not called above the high mark")


@promise(27, "flow", "writable")
async def resume_comes_at_the_low_mark_or_below(trial: Trial) -> None:
    sizes: list[int] = []
    pair = await trial.open(
        RecordingProtocol(resumed=lambda p: sizes.append(p.transport.get_write_buffer_size()))
    )
    low = 30_000
    pair.transport.set_write_buffer_limits(high=100_000, low=low)
    written = await pair.fill()
    expect(pair.protocol.paused, "pause_writing was not called")
    got = 0
    while not sizes and got < written:
        got += len(await pair.far.recv(4096))
        await turns(2)
        if not sizes:
            size = pair.transport.get_write_buffer_size()
            expect(size > low or got >= written, f"resume_writing did not come at {size} bytes")
    expect(sizes and sizes[0] <= low, f"resume_writing came at {sizes} bytes, the low mark is {low}")


@promise(27, "flow", "writable")
async def pause_and_resume_alternate_strictly(trial: Trial) -> None:
    extra = 0

    def refill(p: RecordingProtocol) -> None:
        nonlocal extra
        while p.count("resumed") < 5 and not p.paused:
            p.transport.write(bytes(50_000))
            extra += 50_000

    pair = await trial.open(RecordingProtocol(resumed=refill))
    written = await pair.fill()
    # Above the mark already: each of these must keep quiet.
    for _ in range(3):
        pair.transport.write(b"more")
        pair.transport.writelines([b"and", b"more"])
        pair.transport.set_write_buffer_limits()
        written += 11
    got = 0
    while got < written + extra or pair.protocol.count("resumed") < 5:
        got += len(await pair.far.recv())
    await turns(5)
    flow = [name for name in pair.protocol.names if name in ("paused", "resumed")]
    expect(flow == ["paused", "resumed"] * 5, f"the flow callbacks were {flow}")


@promise(27, "flow", "writable")
async def lowering_the_high_mark_below_the_backlog_pauses(trial: Trial) -> None:
    pair = await trial.open()
    pair.transport.set_write_buffer_limits(high=1 << 30)
    await pair.fill()
    expect(not pair.protocol.paused, "pause_writing was called below the high mark")
    pair.transport.set_write_buffer_limits(high=1000)
    await turns(2)
    expect(pair.protocol.paused, "pause_writing was not called for a backlog above the new mark")


@promise(27, "flow", "writable")
async def methods_may_be_called_from_inside_the_flow_callbacks(trial: Trial) -> None:
    for place, (name, arguments) in itertools.product(
        ("paused", "resumed"),
        {
            "write": (b"from inside",),
            "writelines": ([b"from", b" inside"],),
            "close": (),
            "abort": (),
        }.items(),
    ):

        def inside(p: RecordingProtocol, name: str = name, arguments: tuple[Any, ...] = arguments) -> None:
            getattr(p.transport, name)(*arguments)

        pair = await trial.open(RecordingProtocol(**{place: inside}))
        written = await pair.fill()
        if place == "paused" and name == "abort":
            await pair.until_lost()
        elif name.startswith("write"):
            got = await pair.far.recv_exactly(written + 11)
            expect(b"from inside" in got, f"{name}() inside {place}: it was not sent")
            await pair.until_seen("resumed")
            expect(not pair.protocol.lost, f"{name}() inside {place} ended the transport")
        else:
            got = await pair.far.recv_to_end()
            expect(got == pattern(len(got)), f"{name}() inside {place}: other bytes arrived")
            await pair.until_lost()
            expect(pair.protocol.reason is None, f"{name}() inside {place} told {pair.protocol.reason!r}", 4)


@promise(30, "flow", "writable", "extended")
async def passing_the_hard_limit_ends_the_transport(trial: Trial) -> None:
    from ..errors import BufferLimitError

    for method in ("write", "writelines"):
        pair = await trial.open(RecordingProtocol(keep_open=True))
        hard = 1 << 20
        pair.transport.set_write_buffer_limits(hard=hard)
        most = 0
        for n in range(1024):
            piece = pattern(65536, 65536 * n)
            getattr(pair.transport, method)(piece if method == "write" else [piece])
            most = max(most, pair.transport.get_write_buffer_size())
            if pair.transport.is_closing():
                break
        expect(pair.transport.is_closing(), f"64 MiB by {method}() did not end the transport")
        expect(most <= hard + 65536, f"{most} bytes were queued, the hard limit is {hard}")
        await pair.until_lost()
        reason = pair.protocol.reason
        expect(isinstance(reason, BufferLimitError), f"connection_lost was told {reason!r}")
    for hard in (-1, 10):
        try:
            (await trial.open()).transport.set_write_buffer_limits(hard=hard)
        except ValueError:
            continue
        expect(False, f"a hard limit of {hard} below the high mark raised no ValueError")


@promise(31, "flow", "writable", "extended")
async def flushed_returns_when_the_kernel_has_everything(trial: Trial) -> None:
    pair = await trial.open()
    await pair.transport.flushed()
    pair.transport.write(b"small")
    await pair.transport.flushed()
    expect(pair.far.recv_now() == b"small", "flushed() returned before the kernel had the bytes")
    written = await pair.fill()
    waiting = asyncio.ensure_future(pair.transport.flushed())
    cancelled = asyncio.ensure_future(pair.transport.flushed())
    await turns(5)
    expect(not waiting.done(), "flushed() returned with a backlog")
    cancelled.cancel()
    await pair.far.recv_exactly(written)
    await until(waiting.done, "flushed() returned")
    waiting.result()
    expect(pair.transport.get_write_buffer_size() == 0, "bytes are queued after flushed()")


@promise(31, "flow", "writable", "extended")
async def flushed_ends_with_the_transport(trial: Trial) -> None:
    pair = await trial.open()
    await pair.fill()
    waiting = asyncio.ensure_future(pair.transport.flushed())
    await turns(3)
    pair.transport.abort()
    await pair.until_lost()
    await until(waiting.done, "flushed() returned after the loss")
    expect(isinstance(waiting.exception(), OSError), "flushed() returned as if all had been sent")


@promise(7, "flow", "writable", "extended")
async def aclose_is_bounded(trial: Trial) -> None:
    pair = await trial.open()
    await pair.fill()
    start = time.monotonic()
    await asyncio.wait_for(pair.transport.aclose(timeout=0.05), 2)
    took = time.monotonic() - start
    expect(took >= 0.04, f"aclose(timeout=0.05) gave up after {took * 1000:.0f} ms")
    await pair.until_lost()


@promise(7, "flow", "writable", "extended")
async def aclose_flushes_and_returns_after_the_loss(trial: Trial) -> None:
    for timeout in (None, 5):
        pair = await trial.open()
        written = await pair.fill()
        closing = asyncio.ensure_future(pair.transport.aclose(timeout=timeout))
        await turns(5)
        expect(not closing.done(), "aclose() returned with a backlog")
        got = await pair.far.recv_to_end()
        expect(got == pattern(written), f"{len(got)} of {written} bytes arrived", 5)
        await asyncio.wait_for(closing, 2)
        expect(pair.protocol.lost, "aclose() returned before connection_lost")
        await pair.transport.aclose()


@promise(8, "flow", "writable", "readable", "socket", "tcp", "extended")
async def abort_with_reset_makes_the_peer_see_a_reset(trial: Trial) -> None:
    pair = await trial.open()
    pair.transport.abort(reset=True)
    await pair.until_lost()
    try:
        data = await pair.far.recv()
    except ConnectionResetError:
        return
    expect(False, f"the far end saw {data!r} and no reset")


@promise(25, "flow", "writable", "extended")
async def bytes_held_for_the_end_of_the_turn_are_not_lost(trial: Trial) -> None:
    for end in ("close", "abort", "write_eof"):
        if end == "write_eof" and not (trial.features.half_close or not trial.features.readable):
            continue
        if end == "abort" and not trial.features.abort_keeps:
            continue
        pair = await trial.open()
        for n in range(100):
            pair.transport.write(b"%3d" % n)
        getattr(pair.transport, end)()
        got = await pair.far.recv_to_end()
        expect(got == b"".join(b"%3d" % n for n in range(100)), f"{end}(): {len(got)} of 300 bytes arrived")
    gc.collect()
