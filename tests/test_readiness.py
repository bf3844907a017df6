"""Files that no poller takes, and the watch for hang-ups: neither spins, both let go."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import os
import socket
import weakref

import pytest

from fdtransport import StreamTransport, connect_fd
from fdtransport._core import readiness, syscalls
from fdtransport._core.readiness import HangupWatch, Pump, hangup_watch

marker = contextvars.ContextVar("marker", default="outside")


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Ledger:
    """A loop that keeps a list of who is registered."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.readers, self.writers = loop, set(), set()

    def __getattr__(self, name):
        return getattr(self.loop, name)

    def add_reader(self, fd, *call):
        self.loop.add_reader(fd, *call)
        self.readers.add(fd)

    def add_writer(self, fd, *call):
        self.loop.add_writer(fd, *call)
        self.writers.add(fd)

    def remove_reader(self, fd):
        self.readers.discard(fd)
        return self.loop.remove_reader(fd)

    def remove_writer(self, fd):
        self.writers.discard(fd)
        return self.loop.remove_writer(fd)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 100)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def epolls(monkeypatch):
    """The private epolls that were made, in order."""
    made, make = [], syscalls.epoll

    def epoll():
        made.append(make())
        return made[-1]

    monkeypatch.setattr(syscalls, "epoll", epoll)
    return made


# -- the pump -------------------------------------------------------------------------------------


async def test_the_pump_calls_once_per_turn_and_never_after_removal(file):
    pump, calls = Pump(asyncio.get_running_loop()), []
    pump.add_reader(file, calls.append, "read")
    pump.add_writer(file, calls.append, "write")
    await turns(10)
    assert 8 <= calls.count("read") <= 12
    assert 8 <= calls.count("write") <= 12
    assert pump.remove_writer(file) is True
    assert pump.remove_reader(file) is True
    calls.clear()
    await turns(10)
    assert calls == []
    assert pump.remove_reader(file) is False
    assert pump.remove_writer(file) is False


async def test_the_pump_does_not_call_from_inside_add(file):
    pump, calls = Pump(asyncio.get_running_loop()), []
    pump.add_reader(file, calls.append, 1)
    assert calls == []
    pump.remove_reader(file)


async def test_adding_again_replaces_the_callback_and_does_not_double_it(file):
    pump, calls = Pump(asyncio.get_running_loop()), []
    pump.add_reader(file, calls.append, "old")
    pump.add_reader(file, calls.append, "new")
    await turns(10)
    pump.remove_reader(file)
    assert set(calls) == {"new"}
    assert len(calls) <= 12


async def test_a_callback_of_the_pump_may_remove_and_add_itself(file):
    pump, calls = Pump(asyncio.get_running_loop()), []

    def once() -> None:
        calls.append("once")
        pump.remove_reader(file)
        if len(calls) == 1:
            pump.add_reader(file, once)

    pump.add_reader(file, once)
    await turns(10)
    assert calls == ["once", "once"]


async def test_what_is_not_in_memory_is_requested_and_looked_for_again_without_spinning(file, monkeypatch):
    loop = asyncio.get_running_loop()
    misses, asked, advised, delays = 4, [], [], []
    preadv, call_later = syscalls.preadv, loop.call_later

    def miss(fd, buffers, offset, flags):
        asked.append((fd, offset, flags))
        if len(asked) <= misses:
            raise BlockingIOError(errno.EAGAIN, "on the disk")
        return preadv(fd, buffers, offset, flags)

    class Loop:
        call_soon = staticmethod(loop.call_soon)

        def call_later(self, delay, *args):
            delays.append(delay)
            return call_later(delay, *args)

    monkeypatch.setattr(syscalls, "preadv", miss)
    monkeypatch.setattr(syscalls, "posix_fadvise", lambda *args: advised.append(args))
    os.lseek(file, 30, os.SEEK_SET)
    done = loop.create_future()
    pump = Pump(Loop())
    pump.add_reader(file, lambda: done.done() or done.set_result(len(asked)))
    assert await asyncio.wait_for(done, 5) == misses + 1
    pump.remove_reader(file)
    assert asked[0] == (file, 30, syscalls.RWF_NOWAIT)
    assert delays[:4] == [0.001, 0.002, 0.004, 0.008]
    assert advised == [(file, 30, 1 << 18, os.POSIX_FADV_WILLNEED)] * misses


async def test_the_wait_for_a_slow_disk_is_bounded_and_can_be_given_up(file, monkeypatch):
    def miss(*_args):
        raise BlockingIOError(errno.EAGAIN, "on the disk")

    delays: list[float] = []

    class Loop:
        """Counts, and turns at once: no test waits for a clock."""

        def call_soon(self, function, *args):
            return loop.call_soon(function, *args)

        def call_later(self, delay, function, *args):
            delays.append(delay)
            return loop.call_soon(function, *args)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(syscalls, "preadv", miss)
    pump = Pump(Loop())
    pump.add_reader(file, pytest.fail, "nothing is in memory")
    await turns(20)
    assert max(delays) == 0.016
    assert delays == sorted(delays)
    pump.remove_reader(file)
    count = len(delays)
    await turns(5)
    assert len(delays) == count


async def test_a_file_without_a_position_or_that_flag_counts_as_ready(pair, file, monkeypatch):
    assert readiness.in_memory(pair[0].fileno())  # ESPIPE
    monkeypatch.setattr(syscalls, "RWF_NOWAIT", 1 << 30)
    assert readiness.in_memory(file)  # EOPNOTSUPP


def test_looking_into_memory_moves_no_position(file):
    os.lseek(file, 17, os.SEEK_SET)
    assert readiness.in_memory(file)
    assert os.lseek(file, 0, os.SEEK_CUR) == 17


def test_a_disk_is_asked_for_the_bytes_at_a_position_without_a_look_at_the_files_own(file, monkeypatch):
    asked, advised = [], []

    def miss(fd, buffers, offset, flags):
        asked.append(offset)
        raise BlockingIOError(errno.EAGAIN, "on the disk")

    monkeypatch.setattr(syscalls, "preadv", miss)
    monkeypatch.setattr(syscalls, "posix_fadvise", lambda *args: advised.append(args))
    monkeypatch.setattr(syscalls, "lseek", pytest.fail)
    assert not readiness.in_memory(file, 40, 1000)
    assert asked == [40]
    assert advised == [(file, 40, 1000, os.POSIX_FADV_WILLNEED)]


class Collect(asyncio.Protocol):
    def __init__(self) -> None:
        self.data, self.seen, self.ended = b"", [], asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.seen.append(marker.get())

    def data_received(self, data) -> None:
        self.data += data
        self.seen.append(marker.get())

    def eof_received(self) -> None:
        self.seen.append(marker.get())

    def connection_lost(self, exc) -> None:
        self.seen.append(marker.get())
        self.ended.set_result(exc)


async def test_a_file_is_pumped_to_its_end_in_one_context(file, monkeypatch):
    token = marker.set("creator")
    missed = []

    def miss_once(fd, buffers, offset, flags):
        if not missed:
            missed.append(offset)
            raise BlockingIOError(errno.EAGAIN, "on the disk")
        return os.preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(syscalls, "preadv", miss_once)
    transport, protocol = await connect_fd(Collect, os.dup(file))
    marker.reset(token)
    transport.pause_reading()
    contextvars.Context().run(transport.resume_reading)
    assert await protocol.ended is None
    assert protocol.data == b"0123456789" * 100
    assert missed == [0]
    assert set(protocol.seen) == {"creator"}


async def test_a_paused_file_costs_no_turn(file, monkeypatch):
    class Paused(Collect):
        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    pumped, turn = [], Pump._turn
    monkeypatch.setattr(Pump, "_turn", lambda self, *args: (pumped.append(args), turn(self, *args)))
    transport, protocol = await connect_fd(Paused, os.dup(file))
    await turns(20)
    assert len(pumped) <= 1
    assert protocol.data == b""
    transport.resume_reading()
    await protocol.ended
    assert protocol.data == b"0123456789" * 100


# -- the hang-up watch ----------------------------------------------------------------------------


async def until(condition, limit: float = 5.0) -> None:
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0)


async def test_a_hang_up_is_told_once_and_does_not_spin(pair, epolls):
    near, far = pair
    watch, told = HangupWatch(asyncio.get_running_loop()), []
    assert watch.arm(near.fileno(), lambda: told.append("gone"), reading=True)
    wakeups, ready = [], watch._ready
    loop = asyncio.get_running_loop()
    loop.add_reader(epolls[0].fileno(), lambda: (wakeups.append(1), ready()))
    far.close()
    await until(lambda: told)
    await turns(20)
    assert told == ["gone"]
    assert len(wakeups) == 1
    watch.disarm(near.fileno())


async def test_data_and_writability_are_not_told(pair):
    near, far = pair
    watch, told = HangupWatch(asyncio.get_running_loop()), []
    watch.arm(near.fileno(), lambda: told.append("gone"), reading=True)
    far.send(b"data")
    await turns(10)
    assert told == []
    far.shutdown(socket.SHUT_WR)
    await until(lambda: told)
    assert near.recv(10) == b"data"
    watch.disarm(near.fileno())


async def test_the_end_of_one_direction_is_told_only_to_those_who_read(pair):
    near, far = pair
    watch, told = HangupWatch(asyncio.get_running_loop()), []
    watch.arm(near.fileno(), lambda: told.append("gone"), reading=False)
    far.shutdown(socket.SHUT_WR)
    await turns(10)
    assert told == []
    far.close()
    await until(lambda: told)
    watch.disarm(near.fileno())


async def test_a_watch_can_be_armed_anew_and_tells_again(pair):
    near, far = pair
    watch, told = HangupWatch(asyncio.get_running_loop()), []
    watch.arm(near.fileno(), lambda: told.append(1), reading=True)
    far.close()
    await until(lambda: told)
    watch.arm(near.fileno(), lambda: told.append(2), reading=True)
    await until(lambda: len(told) == 2)
    assert told == [1, 2]
    watch.disarm(near.fileno())


async def test_what_is_disarmed_is_not_told(pair):
    near, far = pair
    watch = HangupWatch(asyncio.get_running_loop())
    watch.arm(near.fileno(), lambda: pytest.fail("told after disarm"), reading=True)
    far.close()
    watch.disarm(near.fileno())
    watch.disarm(near.fileno())
    await turns(10)


async def test_one_that_is_disarmed_by_another_in_the_same_report_is_not_told():
    pairs = [socket.socketpair() for _ in range(3)]
    watch, told = HangupWatch(asyncio.get_running_loop()), []
    fds = [near.fileno() for near, _ in pairs]

    def gone(fd: int) -> None:
        told.append(fd)
        for other in fds:
            watch.disarm(other)

    for fd in fds:
        watch.arm(fd, lambda fd=fd: gone(fd), reading=True)
    for _, far in pairs:
        far.close()
    await until(lambda: told)
    await turns(10)
    assert len(told) == 1
    for near, _ in pairs:
        near.close()


async def test_the_epoll_exists_only_while_something_is_armed(pair, epolls):
    loop = asyncio.get_running_loop()
    watch = HangupWatch(loop)
    assert epolls == []
    for number in (1, 2):
        watch.arm(pair[0].fileno(), print, reading=True)
        watch.arm(pair[1].fileno(), print, reading=False)
        assert len(epolls) == number
        watch.disarm(pair[0].fileno())
        assert not epolls[-1].closed
        watch.disarm(pair[1].fileno())
        assert epolls[-1].closed


async def test_the_loop_forgets_the_epoll_before_it_is_closed(pair, epolls):
    order = []

    class Seen(Ledger):
        def remove_reader(self, fd):
            order.append(epolls[0].closed)
            return super().remove_reader(fd)

    loop = Seen(asyncio.get_running_loop())
    watch = HangupWatch(loop)
    watch.arm(pair[0].fileno(), print, reading=True)
    assert loop.readers == {epolls[0].fileno()}
    watch.disarm(pair[0].fileno())
    assert order == [False]
    assert loop.readers == set()
    assert epolls[0].closed


async def test_a_file_that_cannot_be_watched_is_refused_and_nothing_is_kept(file, epolls):
    watch = HangupWatch(asyncio.get_running_loop())
    with pytest.raises(PermissionError):
        watch.arm(file, print, reading=True)
    assert epolls[0].closed
    watch.disarm(file)


async def test_a_refusal_leaves_what_is_armed_alone(file, pair, epolls):
    watch, told = HangupWatch(asyncio.get_running_loop()), []
    watch.arm(pair[0].fileno(), lambda: told.append(1), reading=True)
    with pytest.raises(PermissionError):
        watch.arm(file, print, reading=True)
    pair[1].close()
    await until(lambda: told)
    watch.disarm(pair[0].fileno())
    assert epolls[0].closed


async def test_without_epoll_nothing_is_armed(pair, monkeypatch):
    monkeypatch.setattr(readiness, "_ONESHOT", 0)
    watch = HangupWatch(asyncio.get_running_loop())
    assert watch.arm(pair[0].fileno(), print, reading=True) is False
    watch.disarm(pair[0].fileno())


async def test_there_is_one_watch_per_loop():
    loop = asyncio.get_running_loop()
    assert hangup_watch(loop) is hangup_watch(loop)


def test_a_watch_dies_with_its_loop_and_takes_the_epoll_along(loop, pair, epolls):
    other = type(loop)()
    watch = hangup_watch(other)
    watch.arm(pair[0].fileno(), print, reading=True)
    assert watch is not hangup_watch(loop)
    other.close()
    watch.disarm(pair[0].fileno())  # as a transport that outlives its loop does
    assert epolls[0].closed
    gone = weakref.ref(watch)
    del watch, other
    gc.collect()
    assert gone() is None


# -- what transports make of it -------------------------------------------------------------------


async def test_interest_is_removed_before_the_descriptor_is_closed(monkeypatch):
    loop = Ledger(asyncio.get_running_loop())
    at_close, close = [], os.close
    near, far = socket.socketpair()
    fd = near.detach()

    def look(number):
        if number == fd:
            at_close.append((fd in loop.readers, fd in loop.writers, fd in hangup_watch(loop)._armed))
        close(number)

    protocol = Collect()
    transport = StreamTransport(loop, fd, protocol)
    await turns(2)
    transport.pause_reading()
    far.send(b"unread")
    await turns(3)  # the watch is armed
    transport.resume_reading()
    transport.write(bytes(4 << 20))  # and a writer
    assert (loop.readers >= {fd}, loop.writers, fd in hangup_watch(loop)._armed) == (True, {fd}, True)
    monkeypatch.setattr(syscalls, "close", look)
    transport.abort()
    await protocol.ended
    assert at_close == [(False, False, False)]
    assert loop.readers == set()
    far.close()


# uvloop has the watch from the beginning.
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_relay_that_pauses_and_resumes_arms_no_watch(epolls):
    near, far = socket.socketpair()
    transport, protocol = await connect_fd(Collect, near)
    for _ in range(1000):
        transport.pause_reading()
        transport.resume_reading()
    far.send(b"data")
    await until(lambda: protocol.data)
    assert epolls == []
    transport.close()
    await protocol.ended
    far.close()


async def test_the_watch_survives_many_pauses_without_being_armed_again(monkeypatch):
    near, far = socket.socketpair()
    transport, protocol = await connect_fd(Collect, near)
    armed, arm = [], HangupWatch.arm

    def count(self, fd, callback, **how):
        armed.append(fd)
        return arm(self, fd, callback, **how)

    monkeypatch.setattr(HangupWatch, "arm", count)
    for number in range(1, 20):
        transport.pause_reading()
        far.send(b"x")
        await turns(3)
        transport.resume_reading()
        await until(lambda number=number: len(protocol.data) == number)
    assert len(armed) <= 1
    transport.close()
    await protocol.ended
    far.close()
