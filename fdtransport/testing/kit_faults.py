"""Promises 3, 4, 12, 25 and 29 under faults: what the kernel can answer, put in its place."""

from __future__ import annotations

import asyncio
import errno
import time

from .faults import FaultPlan
from .observe import chunks, expect, pattern, turns
from .promises import promise
from .recording import RecordingBufferedProtocol, RecordingProtocol
from .trial import Pair, Trial

READS = ("read", "readv", "recvmsg", "recvmsg_into")
WRITES = ("write", "writev")
TRANSIENT = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS)


@promise(25, "faults", "writable", "seam")
async def short_writes_and_transient_errors_are_invisible(trial: Trial) -> None:
    for fault in ("short", *TRANSIENT):
        pair = await trial.open()
        data = pattern(4000)
        with FaultPlan() as plan:
            for name in WRITES:
                if fault == "short":
                    plan.short(name, 7, fd=pair.fds)
                else:
                    plan.fail(name, 2, int(fault), 3, fd=pair.fds)
                    plan.short(name, 177, fd=pair.fds)
            for piece in chunks(data[:2000], 100):
                pair.transport.write(piece)
            pair.transport.writelines(chunks(data[2000:], 100))
            got = await pair.far.recv_exactly(len(data))
        name = fault if fault == "short" else errno.errorcode[int(fault)]
        expect(got == data, f"{name}: what arrived is not what was written")
        expect(pair.protocol.names == ["made"], f"{name}: events: {pair.protocol.summary()}")
        expect(plan.injected > 1, f"{name}: no write went through the seam")


@promise(25, "faults", "readable", "seam")
async def short_reads_and_transient_errors_are_invisible(trial: Trial) -> None:
    for fault in ("short", errno.EAGAIN, errno.EINTR):
        for protocol in (RecordingProtocol(keep_open=True), RecordingBufferedProtocol(100, keep_open=True)):
            pair = await trial.open(protocol)
            data = pattern(2000)
            with FaultPlan() as plan:
                for name in READS:
                    if fault == "short":
                        plan.short(name, 1, fd=pair.fds)
                    else:
                        plan.fail(name, 1, int(fault), 3, fd=pair.fds)
                await pair.far.send(data)
                got = await pair.until_received(len(data))
                pair.far.close()
                await pair.until_seen("eof" if trial.features.end_of_file else "lost")
            expect(got == data, f"{fault}: what was delivered is not what was sent")
            expect(plan.injected > 1, f"{fault}: no read went through the seam")


@promise(25, "faults", "writable", "seam")
async def one_byte_per_write_takes_linear_time(trial: Trial) -> None:
    # Whoever copies the rest at each write moves 16 MiB per byte, far more than all that is honest.
    pair = await trial.open()
    spent: list[float] = []
    with FaultPlan() as plan:
        for name in WRITES:
            plan.short(name, 1, fd=pair.fds)
        for method, size in (("write", 16 << 20), ("writelines", 1 << 20)):
            data = pattern(size)
            getattr(pair.transport, method)(data if method == "write" else chunks(data, 100))
            start, calls = time.thread_time(), len(plan.calls)
            while len(plan.calls) < calls + 200:
                await pair.far.recv(1)
            spent.append((time.thread_time() - start) / (len(plan.calls) - calls))
    expect(max(spent) < 0.001, f"a write of one byte took {max(spent) * 1e6:.0f} us of processor")


@promise(4, "faults", "readable", "seam")
async def a_read_error_is_told_once_with_its_errno(trial: Trial) -> None:
    for number in (errno.EIO, errno.ENOMEM, errno.ECONNRESET):
        for protocol in (RecordingProtocol(keep_open=True), RecordingBufferedProtocol(keep_open=True)):
            pair = await trial.open(protocol)
            with FaultPlan() as plan:
                for name in READS:
                    plan.fail(name, 1, number, fd=pair.fds)
                pair.far.send_now(b"unread")
                await pair.until_lost()
            _expect_errno(pair, number)


@promise(29, "faults", "writable", "seam")
async def a_failed_write_is_told_once_with_its_errno(trial: Trial) -> None:
    for number in (errno.EPIPE, errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.ECONNRESET):
        for method in ("write", "writelines", "later"):
            pair = await trial.open()
            if method == "later":
                await pair.fill()
            with FaultPlan() as plan:
                for name in WRITES:
                    plan.fail(name, 1, number, fd=pair.fds)
                if method == "later":
                    while not pair.transport.is_closing():
                        await pair.far.recv()
                else:
                    getattr(pair.transport, method)(b"lost" if method == "write" else [b"l", b"o" * 10_000])
                    expect(not pair.protocol.lost, f"connection_lost came inside {method}()", 3)
                await pair.until_lost()
            _expect_errno(pair, number)
            expect(pair.transport.get_write_buffer_size() == 0, "bytes stay queued after the loss", 26)


@promise(29, "faults", "readable", "writable", "seam")
async def what_is_readable_is_delivered_before_a_failed_write_is_told(trial: Trial) -> None:
    for protocol in (RecordingProtocol(keep_open=True), RecordingBufferedProtocol(1000, keep_open=True)):
        pair = await trial.open(protocol)
        sent = pair.far.send_now(pattern(100_000))
        with FaultPlan() as plan:
            for name in WRITES:
                plan.fail(name, 1, errno.EPIPE, fd=pair.fds)
            pair.transport.write(b"lost")
            await pair.until_lost()
        got = protocol.received
        expect(got == pattern(sent), f"{len(got)} of {sent} bytes were delivered")
        _expect_errno(pair, errno.EPIPE)


@promise(3, "faults", "seam")
async def a_failed_close_is_no_excuse(trial: Trial) -> None:
    for number in (errno.EIO, errno.EINTR, errno.ENOSPC):
        pair = await trial.open()
        with FaultPlan() as plan:
            plan.fail("close", 1, number, len(pair.fds), fd=pair.fds)
            pair.transport.close()
            await pair.until_lost()
            await turns(5)
            expect(all(plan.count("close", fd) <= 1 for fd in pair.fds), "a descriptor was closed twice", 43)
        expect(pair.protocol.reason is None, f"connection_lost was told {pair.protocol.reason!r}", 4)
        trial.take_reports()


@promise(44, "faults", "seam", "tidy_maker")
async def a_helper_that_fails_leaves_nothing_behind(trial: Trial) -> None:
    with FaultPlan() as plan:
        pair = await trial.open()
        calls = plan.counts()
        pair.transport.abort()
        await pair.until_lost()
    pair.far.close()
    names = sorted(set(calls) - {"close", "poll_now"})
    for name in names:
        for nth in range(1, calls[name] + 1):
            before = await _quiet()
            with FaultPlan() as plan:
                plan.fail(name, nth, errno.ENOMEM)
                try:
                    transport, far = await trial.make(RecordingProtocol)
                except OSError as exc:
                    expect(exc.errno == errno.ENOMEM, f"{name} #{nth}: not ENOMEM came out, but {exc!r}", 4)
                else:
                    transport.abort()
                    far.close()
                    await turns(5)
            trial.close_ends()
            left = await trial.left_open(before)
            expect(not left, f"{name} #{nth} failed: descriptors were left open: {left}")
    await asyncio.sleep(0)


async def _quiet() -> dict[int, str]:
    from .observe import descriptors

    await turns(3)
    return descriptors()


def _expect_errno(pair: Pair, number: int) -> None:
    reason = pair.protocol.reason
    expect(
        isinstance(reason, OSError) and reason.errno == number,
        f"the kernel said {errno.errorcode[number]}, connection_lost was told {reason!r}",
        4,
    )
    expect(pair.protocol.count("lost") == 1, f"events: {pair.protocol.summary()}", 3)
