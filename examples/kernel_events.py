"""Descriptors that tell of events, each in a few lines: signals, the end of a process, the kernel's log, and
the pressure that a machine is under.

Records that are read go to a protocol (signalfd, /dev/kmsg); what is only to be waited for (pidfd) goes to
one that has ``read_ready``. See ``timer`` for timerfd.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import itertools
import os
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from fdtransport import (
    PacketStream,
    PacketTransport,
    connect_fd,
    connect_packet_fd,
    open_packet_fd,
)

from . import between, run_command

SIGNALFD_SIZE = 128  # of struct signalfd_siginfo
FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class Caught(NamedTuple):
    """A signal, and who sent it: signalfd(2)."""

    number: signal.Signals
    pid: int
    uid: int


class _Signals(asyncio.DatagramProtocol):
    def __init__(self, on_signal: Callable[[Caught], object]) -> None:
        self.on_signal = on_signal

    def datagram_received(self, data: bytes, addr: Any) -> None:
        # One read gives all kinds of signals that are pending.
        for at in range(0, len(data), SIGNALFD_SIZE):
            number, pid, uid = struct.unpack_from("=I8xII", data, at)
            self.on_signal(Caught(signal.Signals(number), pid, uid))


async def connect_signals(
    numbers: Iterable[signal.Signals], on_signal: Callable[[Caught], object]
) -> PacketTransport:
    """Call *on_signal* for each of these signals, until the transport is closed.

    They have to be blocked in every thread (``signal.pthread_sigmask``, before there are threads).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.create_string_buffer(128)
    libc.sigemptyset(mask)
    for number in numbers:
        libc.sigaddset(mask, int(number))
    fd = libc.signalfd(-1, mask, FLAGS)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        transport, _ = await connect_packet_fd(lambda: _Signals(on_signal), fd, max_size=16 * SIGNALFD_SIZE)
    except BaseException:
        os.close(fd)
        raise
    return transport


class _Ready(asyncio.Protocol):
    """For a descriptor that cannot be read: it is told of readiness."""

    def __init__(self, ready: asyncio.Event) -> None:
        self.ready = ready

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def read_ready(self) -> None:
        self.transport.close()  # a pidfd stays ready for ever
        self.ready.set()


async def wait_for_process(pid: int) -> None:
    """Return when the process, which may be anybody's, has ended: pidfd_open(2).

    :raises ProcessLookupError: there is no such process.
    """
    ended = asyncio.Event()
    fd = os.pidfd_open(pid)
    try:
        transport, _ = await connect_fd(lambda: _Ready(ended), fd)
    except BaseException:
        os.close(fd)
        raise
    try:
        await ended.wait()
    finally:
        await transport.aclose()


@contextlib.contextmanager
def pressure(
    resource: str, stalled: float, window: float, on_stall: Callable[[], object]
) -> Iterator[None]:
    """Meanwhile, call *on_stall* when tasks have waited *stalled* seconds of *window* for a resource.

    *resource*: ``cpu``, ``memory`` or ``io``. ``Documentation/accounting/psi.rst``: *window* is 0.5 to 10
    seconds; without CAP_SYS_RESOURCE, a multiple of 2. The kernel tells it as POLLPRI, which no event loop
    waits for: an epoll does, and that one the loop can watch. Looking takes the event away, so whoever else
    looked at the descriptor (a transport's watch for hang-ups) would be told in its place.
    """
    loop = asyncio.get_running_loop()
    trigger = os.open(f"/proc/pressure/{resource}", os.O_RDWR | FLAGS)
    try:
        os.write(trigger, b"some %d %d\0" % (stalled * 1e6, window * 1e6))
        with select.epoll() as poller:
            poller.register(trigger, select.EPOLLPRI)

            def told() -> None:
                poller.poll(0)  # finds nothing any more, and so waits for the next one
                on_stall()

            loop.add_reader(poller.fileno(), told)
            try:
                yield
            finally:
                loop.remove_reader(poller.fileno())
    finally:
        os.close(trigger)


async def open_kernel_log(*, from_now: bool = True) -> PacketStream:
    """The records of the kernel's log, ``priority,number,microseconds,flags;text``: dev-kmsg of the kernel's
    ``Documentation/ABI/testing``.

    :raises OSError: from ``recv``, EPIPE: records were overwritten before they were read, and it has ended.
    """
    fd = os.open("/dev/kmsg", os.O_RDONLY | FLAGS)
    try:
        os.lseek(fd, 0, os.SEEK_END if from_now else os.SEEK_SET)
        return await open_packet_fd(fd, max_size=8192)  # a record that does not fit would be lost
    except BaseException:
        os.close(fd)
        raise


async def run(seconds: float) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    caught: asyncio.Queue[Caught] = asyncio.Queue()
    signals = await connect_signals([signal.SIGUSR1], caught.put_nowait)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        came = await caught.get()
    finally:
        await signals.aclose()
    print(f"{came.number.name} from process {came.pid}")

    child = await asyncio.create_subprocess_exec("sleep", "0.05")
    await wait_for_process(child.pid)
    await child.wait()
    print("a process has ended")

    try:
        async with await open_kernel_log(from_now=False) as log:
            words = (await log.recv()).split(b";")[1].split(b"\n")[0].decode()
    except OSError as exc:
        words = str(exc)
    print("the kernel's first words:", words)

    stalls = itertools.count()
    try:
        with pressure("cpu", 0.02, 2, lambda: next(stalls)):
            await asyncio.sleep(seconds)
        print(f"within {seconds:g} s, tasks waited too long for a processor {next(stalls)} times")
    except (PermissionError, FileNotFoundError) as exc:
        print(f"pressure: {exc}")


def main() -> int:
    text = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m examples.kernel_events", description=text)
    parser.add_argument(
        "--seconds",
        type=between(float, 0.01, 1e6),
        default=0.5,
        metavar="S",
        help="to watch the pressure on the processors (default 0.5)",
    )
    return run_command(run(parser.parse_args().seconds))


if __name__ == "__main__":
    sys.exit(main())
