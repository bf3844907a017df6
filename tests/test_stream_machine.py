"""Random lives of a byte stream against a plain model, on every pair of ends and on both loops.

The model knows what was written, what the far end took and what it sent; the kernel tells what is
on the way (FIONREAD). From these four, every byte is accounted for after every step. Callbacks are
made to do things on their own, and to fail. ``--hypothesis-profile=more`` looks further.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import struct
import termios
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fdtransport import BufferLimitError, CloseReason, StreamTransport
from fdtransport._core.readiness import hangup_watch

PERIOD = bytes(range(251)) * 3000


def pattern(start: int, size: int) -> bytes:
    """A piece of the one stream that everybody sends; any offset can be recognised."""
    start %= 251
    return (PERIOD * (1 + (start + size) // len(PERIOD)))[start : start + size]


def waiting(fd: int) -> int:
    """Bytes that can be read from *fd* now."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


class Bug(Exception):
    """What a callback raises on purpose."""


class Ends:
    """The far end, and the file for the near one."""

    def __init__(self, kind: str, narrow: bool) -> None:
        self.kind = kind
        self.reading = self.writing = -1
        self.sock: socket.socket | None = None
        self.near: Any
        if kind in ("socket", "fd"):
            near, self.sock = socket.socketpair()
            if narrow:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            self.sock.setblocking(False)
            self.reading = self.writing = self.sock.fileno()
            self.near = near if kind == "socket" else near.detach()
            return
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
        for end in (*pipes[0], *pipes[1]):
            if narrow:
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 4096)
        (near_reading, self.writing), (self.reading, near_writing) = pipes
        os.set_blocking(self.writing, False)
        os.set_blocking(self.reading, False)
        if kind == "pair":
            self.near = (near_reading, near_writing)
        elif kind == "read":
            self.near = near_reading
            os.close(near_writing)
            self.stop_reading()
        else:
            self.near = near_writing
            os.close(near_reading)
            self.end_writing()

    @property
    def gone(self) -> bool:
        return self.reading == self.writing == -1

    def stop_reading(self) -> None:
        if self.reading >= 0:
            os.close(self.reading)
            self.reading = -1

    def end_writing(self) -> None:
        if self.writing >= 0:
            if self.sock is None:
                os.close(self.writing)
            else:
                self.sock.shutdown(socket.SHUT_WR)
            self.writing = -1

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.reading = self.writing = -1
        self.stop_reading()
        self.end_writing()

    def take(self, size: int) -> bytes:
        try:
            return os.read(self.reading, size)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def send(self, data: bytes) -> int:
        try:
            return os.write(self.writing, data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return 0


class Plain(asyncio.Protocol):
    def __init__(self, life: Life) -> None:
        self.life = life

    def connection_made(self, transport) -> None:
        self.life.told("made")

    def data_received(self, data) -> None:
        self.life.got(data)

    def eof_received(self) -> bool:
        self.life.told("eof")
        return self.life.keep_open

    def pause_writing(self) -> None:
        self.life.told("pause")

    def resume_writing(self) -> None:
        self.life.told("resume")

    def connection_lost(self, exc) -> None:
        self.life.exception = exc
        self.life.told("lost")


class Buffered(Plain, asyncio.BufferedProtocol):
    def __init__(self, life: Life) -> None:
        super().__init__(life)
        self.buffer = bytearray(3000)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, count) -> None:
        self.life.got(self.buffer[:count])


class Push:
    def __init__(self, life: Life) -> None:
        self.life, self.paused, self.stopped = life, False, 0

    def pause_producing(self) -> None:
        self.life.check(not self.paused and not self.stopped, "a producer was paused twice, or after its end")
        self.paused = True

    def resume_producing(self) -> None:
        self.life.check(self.paused and not self.stopped, "a producer was resumed that was not paused")
        self.paused = False

    def stop_producing(self) -> None:
        self.life.check(not self.life.lost, "a producer was stopped after the loss")
        self.stopped += 1
        self.life.producer = None


class Pull(Push):
    def __init__(self, life: Life, pieces: int) -> None:
        super().__init__(life)
        self.pieces = pieces

    def pause_producing(self) -> None:
        self.life.check(False, "a pull producer was paused")

    def resume_producing(self) -> None:
        self.life.check(self.life.queued == 0, "a pull producer was asked while something was queued")
        self.pieces -= 1
        if self.pieces < 0:
            self.life.unregister_producer()
        else:
            self.life.write(700 * (1 + self.pieces), 0)


KINDS = ("socket", "fd", "pair", "read", "write")
CALLBACKS = ("made", "data", "eof", "pause", "resume", "lost")
DEEDS = ("write a little", "write much", "pause", "resume", "switch", "limits")
LAST_DEEDS = ("raise", "close", "abort", "write_eof", "detach")
DOES = st.sampled_from(DEEDS * 2 + LAST_DEEDS)
SIZES = st.sampled_from([1, 2, 60, 700, 4096, 8192, 30_000, 100_000, 300_000])
MARKS = st.sampled_from([0, 1, 100, 5000, 65536])


class Life(RuleBasedStateMachine):
    """One transport from its making to its end."""

    loop: asyncio.AbstractEventLoop
    transport: StreamTransport

    # -- the model ----------------------------------------------------------------------------

    @initialize(
        kind=st.sampled_from(KINDS),
        narrow=st.booleans(),
        keep_open=st.booleans(),
        buffered=st.booleans(),
        deed=st.none() | DOES,
    )
    def make(self, kind, narrow, keep_open, buffered, deed) -> None:
        self.before = len(os.listdir("/proc/self/fd"))
        self.ends, self.kind, self.keep_open = Ends(kind, narrow), kind, keep_open
        self.reads, self.writes = kind != "write", kind != "read"
        self.written = self.taken = self.acknowledged = 0  # towards the far end
        self.sent = self.received = 0  # from the far end
        self.made = self.lost = self.eof = self.held = self.paused = False
        self.locally_ended = self.write_ended = self.limits_moved = self.resuming = False
        self.exception: BaseException | None = None
        self.wrong: list[str] = []
        self.bugs = 0
        self.producer: Push | None = None
        self.detached: Any = None
        self.deeds: dict[str, str] = {} if deed is None else {"made": deed}
        self.flushing: list[asyncio.Task[None]] = []
        self.watching: list[asyncio.Task[None]] = []
        self.closing: list[asyncio.Task[None]] = []
        self.reports: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.reports.append(context))
        self.transport = StreamTransport(self.loop, self.ends.near, (Buffered if buffered else Plain)(self))

    def check(self, right: bool, otherwise: str) -> None:
        """For callbacks, whose exceptions the transport takes."""
        if not right:
            self.wrong.append(otherwise)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return self.flushing + self.watching + self.closing

    @property
    def queued(self) -> int:
        return self.transport._queue.size

    @property
    def marks(self) -> tuple[int, int]:
        """Low and high."""
        return self.transport.get_write_buffer_limits()

    @property
    def cut(self) -> bool:
        """Whether the end was not graceful: bytes may be dropped."""
        return self.transport.close_reason in (CloseReason.ABORT, CloseReason.ERROR)

    def told(self, what: str) -> None:
        self.check(self.made or what == "made", f"{what} came before connection_made")
        self.check(not self.lost, f"{what} came after the loss")
        if what in ("data", "eof"):
            self.check(not self.paused, f"{what} came while reading was paused")
            self.check(not self.eof, f"{what} came after the end of file")
            self.check(self.detached is None, f"{what} came after detach()")
        if what == "made":
            self.check(not self.made, "connection_made came twice")
            self.made = True
        elif what == "eof":
            self.eof = True
            self.check(self.received == self.sent, f"{self.sent - self.received} bytes were lost at the end")
        elif what == "pause":
            self.check(not self.held, "paused twice")
            self.check(self.queued > self.marks[1], "paused though not above the high mark")
            self.held, self.limits_moved = True, False
        elif what == "resume":
            self.check(self.held, "resumed without a pause")
            self.check(self.queued <= self.marks[0], "resumed above the low mark")
            self.held = False
        elif what == "lost":
            self.lost = True
            ours = self.locally_ended or isinstance(self.exception, BufferLimitError)
            if self.reads and not ours and self.ends.writing < 0:
                self.check(
                    self.received == self.sent, f"{self.sent - self.received} bytes were lost at the loss"
                )
        deed = self.deeds.pop(what, None)
        if deed == "raise":
            self.bugs += 1
            self.locally_ended |= what in ("data", "eof")
            raise Bug(what)
        if deed is not None:
            self.resuming = what == "resume"  # a flush that close() began is not over yet
            self.do(deed)
            self.resuming = False

    def got(self, data) -> None:
        self.check(bytes(data) == pattern(self.received, len(data)), "wrong bytes")
        self.check(bool(data), "no bytes")
        self.received += len(data)
        self.told("data")

    def do(self, deed: str) -> None:
        if deed.startswith("write") and not self.writes:
            return
        if deed == "close":
            self.close()
        elif deed == "abort":
            self.abort()
        elif deed == "write a little":
            self.write(10, 0)
        elif deed == "write much":
            self.write(200_000, 1)
        elif deed == "pause":
            self.pause_reading()
        elif deed == "resume":
            self.resume_reading()
        elif deed == "write_eof":
            self.write_eof()
        elif deed == "switch":
            self.set_protocol(True)
        elif deed == "detach":
            self.detach()
        elif deed == "limits":
            self.set_limits(1, 0, None)

    def turn(self, count: int) -> None:
        async def turns() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    # -- what is done to the transport --------------------------------------------------------

    @precondition(lambda self: self.writes)
    @rule(size=SIZES, kind=st.integers(0, 3))
    def write(self, size: int, kind: int) -> None:
        transport, data = self.transport, pattern(self.written, size)
        goes_out = not (
            self.lost
            or self.cut
            or self.write_ended
            or self.detached
            or (transport.is_closing() and not (self.queued or self.producer or self.resuming))
        )
        must_raise = self.write_ended and not transport.is_closing()
        if goes_out:
            self.written += size
        mutable = bytearray(data)
        try:
            if kind == 0:
                transport.write(data)
            elif kind == 1:
                transport.write(mutable)
            elif kind == 2:
                transport.write(memoryview(mutable))
            else:
                third = size // 3
                transport.writelines(iter([data[:third], mutable[third : 2 * third], b"", data[2 * third :]]))
        except RuntimeError:
            self.check(self.write_ended, "write() raised without write_eof()")
        else:
            self.check(not must_raise, "write() after write_eof() did not raise")
        mutable[:] = bytes(size)

    @precondition(lambda self: self.writes)
    @rule(count=st.integers(2, 40), size=st.sampled_from([1, 64, 700, 5000]))
    def write_a_burst(self, count: int, size: int) -> None:
        for _ in range(count):
            self.write(size, 0)

    @precondition(lambda self: not self.writes)
    @rule()
    def write_to_a_read_only_one(self) -> None:
        with suppress(OSError):
            self.transport.write(b"data")
            self.check(self.transport.is_closing(), "a read-only transport took a write")

    @rule(how=st.sampled_from(["pause", "resume", "resume"]))
    def pause_or_resume_reading(self, how: str) -> None:
        self.do(how)

    def pause_reading(self) -> None:
        if not self.reads:
            with suppress(NotImplementedError):
                self.transport.pause_reading()
            return
        self.transport.pause_reading()
        self.paused = True

    def resume_reading(self) -> None:
        if not self.reads:
            with suppress(NotImplementedError):
                self.transport.resume_reading()
            return
        self.paused = False
        self.transport.resume_reading()

    @rule(high=MARKS, low=MARKS, over=st.none() | st.sampled_from([0, 50_000, 200_000]))
    def set_limits(self, high: int, low: int, over: int | None) -> None:
        high, low = max(high, low), min(high, low)
        self.limits_moved = True
        hard = None if over is None else high + over
        self.transport.set_write_buffer_limits(high, low, hard=hard)

    @rule(cork=st.sampled_from([0, 1, 4]))
    def set_cork(self, cork: int) -> None:
        self.transport.cork = cork

    @rule(buffered=st.booleans())
    def set_protocol(self, buffered: bool) -> None:
        if not self.lost:
            self.transport.set_protocol((Buffered if buffered else Plain)(self))

    def write_eof(self) -> None:
        if self.writes and not self.detached:
            if not self.transport.is_closing():
                self.write_ended = True
                self.locally_ended |= not self.reads
            self.transport.write_eof()

    def close(self) -> None:
        self.locally_ended = True
        self.transport.close()

    def abort(self) -> None:
        self.locally_ended = True
        self.transport.abort()

    @precondition(lambda self: self.writes)
    @rule(streaming=st.booleans(), pieces=st.integers(0, 6))
    def register_or_unregister_a_producer(self, streaming: bool, pieces: int) -> None:
        if self.producer is not None:
            self.unregister_producer()
        else:
            closing = self.transport.is_closing()
            self.producer = producer = Push(self) if streaming else Pull(self, pieces)
            if closing and self.lost:
                producer.stopped = -1  # to be stopped after the loss, once
                self.producer = None
                return
            self.transport.register_producer(producer, streaming)
            if closing:
                self.check(producer.stopped == 1, "a transport that is closing kept a producer")

    def unregister_producer(self) -> None:
        self.producer = None
        self.transport.unregister_producer()

    def detach(self) -> None:
        if self.detached or self.transport.fileno() < 0:
            return
        far_open = self.ends.reading >= 0
        try:
            given_back = self.transport.detach()
        except OSError:
            self.check(self.transport.is_closing(), "an open transport could not be detached")
            return
        self.locally_ended = True
        self.detached = given_back
        if self.cut:
            return
        self.check(given_back.unread == b"", "bytes were read and not delivered")
        if self.writes and far_open:
            gone = self.taken + waiting(self.ends.reading)
            self.check(
                given_back.unsent == pattern(gone, self.written - gone), "unsent is not what was not sent"
            )

    @rule()
    def wait(self) -> None:
        """For whatever can be waited for; `settle` sees whether it returns."""

        async def until_flushed() -> None:
            with suppress(OSError, Bug):
                await self.transport.flushed()
                if self.writes and not self.detached:
                    self.acknowledged = self.written

        async def for_a_hang_up() -> None:
            await self.transport.wait_hangup()
            gone = self.ends.writing < 0 or self.ends.reading < 0
            self.check(gone or self.lost, "a hang-up was told and nobody had gone")

        if not self.detached and not self.lost:
            self.flushing.append(self.loop.create_task(until_flushed()))
            self.watching.append(self.loop.create_task(for_a_hang_up()))

    async def aclose(self) -> None:
        await self.transport.aclose()
        self.check(self.lost, "aclose() returned before the loss")

    @rule(callback=st.sampled_from(CALLBACKS), deed=DOES)
    def have_a_callback_do(self, callback: str, deed: str) -> None:
        self.deeds[callback] = deed

    # -- what the far end does ----------------------------------------------------------------

    @precondition(lambda self: self.ends.reading >= 0)
    @rule(size=SIZES)
    def far_read(self, size: int) -> None:
        data = self.ends.take(size)
        assert data == pattern(self.taken, len(data)), "the far end read wrong bytes"
        self.taken += len(data)

    @precondition(lambda self: self.ends.writing >= 0)
    @rule(size=SIZES)
    def far_write(self, size: int) -> None:
        self.sent += self.ends.send(pattern(self.sent, size))

    @precondition(lambda self: self.ends.reading >= 0)
    @rule()
    def far_read_everything(self) -> None:
        for _ in range(3000):
            self.far_read(1 << 19)
            self.rest()
            if not waiting(self.ends.reading):
                break
        assert not self.queued, "data is queued though the far end took everything"

    # -- the end, from either side ------------------------------------------------------------

    @rule(how=st.sampled_from(["closes", "ends writing", "ends reading"]))
    def far_end(self, how: str) -> None:
        if how == "closes":
            self.ends.close()
        elif how == "ends writing":
            self.ends.end_writing()
        elif self.kind == "pair":
            self.ends.stop_reading()

    @rule(how=st.sampled_from(["close", "abort", "detach", "write_eof", "aclose"]), now=st.booleans())
    def end(self, how: str, now: bool) -> None:
        if not now:
            return  # or lives would be too short
        if how == "aclose":
            self.locally_ended = True
            self.closing.append(self.loop.create_task(self.aclose()))
        else:
            getattr(self, how)()

    # -- the loop -----------------------------------------------------------------------------

    @rule(count=st.integers(1, 3))
    def some_turns(self, count: int) -> None:
        self.turn(count)

    @rule()
    def settle(self) -> None:
        """Turn the loop until nothing moves, and see that nothing is stuck."""
        self.rest()
        if self.lost or self.detached:
            assert self.lost, "the loss after detach() did not come"
            return
        assert self.made, "connection_made did not come"
        transport, ends = self.transport, self.ends
        assert self.queued or all(task.done() for task in self.flushing), "flushed() does not return"
        assert not transport.hung_up or all(task.done() for task in self.watching), "nor wait_hangup()"
        if self.reads and not self.paused and not transport.is_closing() and not self.eof:
            assert self.received == self.sent, "data is not delivered"
            assert ends.writing >= 0, "the end of file is not told"
        if self.queued and ends.reading >= 0:
            assert waiting(ends.reading), "data is queued though the kernel has room"
        if self.paused and self.reads and not self.eof and not transport.is_closing():
            assert transport.hung_up == (ends.writing < 0), "a hang-up is not noticed while reading is paused"
        if not self.reads:
            assert ends.reading >= 0 or self.producer, "the end of the reader is not told"
        if transport.is_closing():
            assert self.queued or self.producer or (self.paused and self.cut), "the loss does not come"
        elif self.eof and ends.gone:
            assert self.write_ended, "the end of the reader is not told while half-closed"

    def rest(self) -> None:
        still, last = 0, None
        for _ in range(1000):
            self.turn(1)
            now = (self.received, self.queued, self.made, self.lost, self.eof, repr(self.transport))
            still, last = (still + 1 if now == last else 0), now
            if still == 6:
                return
        raise AssertionError(f"it does not come to rest: {self.transport!r}")

    # -- what always holds --------------------------------------------------------------------

    @invariant()
    def nothing_went_wrong_in_a_callback(self) -> None:
        assert not self.wrong, self.wrong
        unexpected = [report for report in self.reports if not isinstance(report.get("exception"), Bug)]
        assert not unexpected, unexpected
        assert len(self.reports) == self.bugs
        for task in self.tasks:
            if task.done():
                task.result()

    @invariant()
    def every_written_byte_is_accounted_for(self) -> None:
        if self.ends.reading < 0 or not self.writes:
            return
        out = self.taken + waiting(self.ends.reading)
        assert out >= self.acknowledged, "what flushed() acknowledged was lost"
        if self.cut or self.detached:
            assert out <= self.written
        else:
            assert out + self.queued == self.written, (out, self.queued, self.written)

    @invariant()
    def every_read_byte_was_sent(self) -> None:
        assert self.received <= self.sent

    @invariant()
    def back_pressure_is_as_the_marks_say(self) -> None:
        transport = self.transport
        low, high = self.marks
        assert transport._flow.paused == self.held
        if isinstance(self.producer, Push) and not isinstance(self.producer, Pull):
            assert self.producer.paused == self.held
        if self.made and not transport.is_closing():
            assert self.held or self.queued <= high
            assert not self.held or self.queued > low or self.limits_moved

    @invariant()
    def is_reading_tells_the_truth(self) -> None:
        reading = self.reads and not (self.paused or self.eof or self.transport.is_closing())
        assert self.transport.is_reading() == reading

    @invariant()
    def the_reason_is_known_when_it_is_closing(self) -> None:
        transport = self.transport
        assert (transport.close_reason is not None) == transport.is_closing()
        if self.lost:
            assert transport.is_closing()
            assert (self.exception is not None) == (transport.close_reason is CloseReason.ERROR)
            assert isinstance(self.exception, OSError | Bug | None)
            if isinstance(self.exception, OSError) and not isinstance(self.exception, BufferLimitError):
                assert self.exception.errno
                assert self.ends.reading < 0 or self.ends.writing < 0, "an error and nobody has gone"

    def teardown(self) -> None:
        if not hasattr(self, "transport"):
            return
        try:
            self.finish()
        finally:
            self.transport.abort()
            for task in self.tasks:
                task.cancel()
            self.turn(5)
            files = self.detached.file if self.detached else ()
            for file in files if isinstance(files, tuple) else (files,):
                os.close(file) if isinstance(file, int) else file.close()
            self.ends.close()
        assert len(os.listdir("/proc/self/fd")) == self.before, "a descriptor was left open"

    def finish(self) -> None:
        """Close, take whatever comes at the far end, and see that all of it ends well."""
        self.deeds.clear()
        self.unregister_producer()
        self.close()
        for _ in range(5000):  # a narrow socket takes 4 KiB a time
            if self.lost:
                break
            if self.ends.reading >= 0:
                self.far_read(1 << 19)
            self.turn(1)
        assert self.lost, f"the end does not come: {self.transport!r}"
        self.turn(2)  # for those who waited for it
        self.nothing_went_wrong_in_a_callback()
        self.every_written_byte_is_accounted_for()
        self.the_reason_is_known_when_it_is_closing()
        assert all(task.done() for task in self.tasks), "somebody still waits after the loss"
        assert self.transport.fileno() == -1
        assert hangup_watch(self.loop)._epoll is None, "a watch was left armed"
        if self.ends.reading >= 0:
            while waiting(self.ends.reading):
                self.far_read(1 << 19)
            assert self.taken == self.written or not self.writes or self.cut or self.detached


@pytest.mark.timeout(0)
def test_random_lives(loop, caplog):
    caplog.set_level(logging.CRITICAL, "fdtransport")  # writes after the end, and many of them
    profile = settings.default
    assert profile is not None
    lives = profile.max_examples * (2 if loop.get_debug() else 3)  # debugging is slow
    run_state_machine_as_test(
        type("Life", (Life,), {"loop": loop}), settings=settings(profile, max_examples=lives)
    )
