"""RS-485: one pair of wires for both directions, and who drives them when.

Where the driver can, it switches by itself (TIOCSRS485 of the kernel's serial-rs485 documentation). Elsewhere
RTS, which adapters take as the direction, is set by hand: before the first byte, and after the last stop bit.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from . import serial_line, syscalls
from .off_loop import run_off_loop
from .serial_sending import LOOK, Sending

__all__ = ["RS485", "HandDriven", "clear_rs485", "in_milliseconds", "rs485_of", "set_rs485"]

T = TypeVar("T")

_TIOCGRS485, _TIOCSRS485 = 0x542E, 0x542F
_DELAYS = ("delay_before_send", "delay_after_send")
_ENABLED, _ON_SEND, _AFTER_SEND, _RX_DURING_TX, _TERMINATE = 1, 2, 4, 16, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RS485:
    """How the direction of an RS-485 line is switched.

    :raises ValueError: a delay that is not 0 to 0.5 s. (Drivers take up to 0.1 s.)
    """

    rts_on_send: bool = True
    """RTS while this side sends."""
    rts_after_send: bool = False
    """RTS otherwise."""
    delay_before_send: float = 0.0
    """Seconds between the switch and the first byte; whole milliseconds."""
    delay_after_send: float = 0.0
    """Seconds between the last byte and the switch back; whole milliseconds."""
    receive_while_sending: bool = False
    """Receive what is sent here, too; by hand that is for the adapter to say."""
    terminate: bool = False
    """Switch the terminating resistor on, where there is one."""

    def __post_init__(self) -> None:
        for name in _DELAYS:
            if not 0 <= getattr(self, name) <= 0.5:
                raise ValueError(f"{name} is 0 to 0.5 seconds, not {getattr(self, name)!r}")


def in_milliseconds(wanted: RS485) -> RS485:
    """*wanted* with the delays that the kernel can be told."""
    delays = {name: round(1000 * getattr(wanted, name)) / 1000 for name in _DELAYS}
    return replace(wanted, **delays)


def set_rs485(fd: int, wanted: RS485) -> None:
    """:raises OSError: ENOTTY and its kin, the driver cannot."""
    flags = _ENABLED
    flags |= _ON_SEND if wanted.rts_on_send else 0
    flags |= _AFTER_SEND if wanted.rts_after_send else 0
    flags |= _RX_DURING_TX if wanted.receive_while_sending else 0
    flags |= _TERMINATE if wanted.terminate else 0
    delays = (round(1000 * wanted.delay_before_send), round(1000 * wanted.delay_after_send))
    syscalls.ioctl(fd, _TIOCSRS485, array.array("I", [flags, *delays, *[0] * 5]))


def clear_rs485(fd: int) -> None:
    syscalls.ioctl(fd, _TIOCSRS485, array.array("I", [0] * 8))


def rs485_of(fd: int) -> RS485 | None:
    """What the driver does; None when it does nothing of the kind."""
    answer = array.array("I", [0] * 8)
    syscalls.ioctl(fd, _TIOCGRS485, answer)
    flags, before, after = answer[:3]
    if not flags & _ENABLED:
        return None
    return RS485(
        rts_on_send=bool(flags & _ON_SEND),
        rts_after_send=bool(flags & _AFTER_SEND),
        delay_before_send=before / 1000,
        delay_after_send=after / 1000,
        receive_while_sending=bool(flags & _RX_DURING_TX),
        terminate=bool(flags & _TERMINATE),
    )


class HandDriven:
    """The functions that move the bytes of a port, with RTS around what is written.

    The port is asked and set in threads: at the end of a USB it may take its time. What is written meanwhile
    is refused as when the kernel is out of buffers, so that a transport keeps it; *go_on* has it try again.
    *queued* tells how much that is. Both are bound methods of the transport, which is not kept alive.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        below: Any,
        port: Any,
        wanted: RS485,
        queued: Callable[[], int],
        go_on: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._below = below
        self._port = port  # which knows its descriptor and its settings
        self._wanted = wanted
        self._queued = weakref.WeakMethod(queued)
        self._go_on = weakref.WeakMethod(go_on)
        self._rts_lock = threading.Lock()
        self._lock = threading.Lock()
        self._asked = 0
        self._idle = threading.Event()
        self._idle.set()
        self._rts = wanted.rts_after_send
        self._switching = False
        self._sending = self._stopped = False
        self._ready_at = math.inf
        self._looking = Sending(port.settings)
        self._writes = 0
        self._timer: asyncio.Handle | None = None

    # -- in threads ----------------------------------------------------------------------------------------

    def _ask(self, call: Callable[[int], T], then: Callable[[T | None], object]) -> None:
        """``call(fd)`` in a thread, with a copy of the descriptor; in the loop, ``then(answer)``, with None
        when the port has gone."""
        fd = self._port.fileno()
        if fd < 0 or self._stopped:
            return
        try:
            copy = syscalls.dup(fd)
        except OSError:  # no descriptors are left: here and now, then
            self._loop.call_soon(then, _answer(call, fd))
            return
        with self._lock:
            self._asked += 1
            self._idle.clear()

        def run() -> None:
            answer = None
            try:
                answer = _answer(call, copy)
            finally:
                syscalls.close(copy)
                with self._lock:
                    self._asked -= 1
                    if not self._asked:
                        self._idle.set()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(then, answer)

        run_off_loop(self._loop, run)

    def _set_rts(self, fd: int) -> bool:
        """As it is wanted by now."""
        with self._rts_lock:
            rts = self._rts
            serial_line.set_modem_lines(fd, *((serial_line.RTS, 0) if rts else (0, serial_line.RTS)))
            return rts

    def end(self, fd: int) -> None:
        """In a thread: everything has been sent, and *fd* is about to be closed."""
        self._rts = self._wanted.rts_after_send
        self._idle.wait()
        self._set_rts(fd)

    # -- the direction -------------------------------------------------------------------------------------

    def _switch(self, rts: bool) -> None:
        self._rts = rts
        if not self._switching:
            self._switching = True
            self._ask(self._set_rts, self._switched)

    def _switched(self, rts: bool | None) -> None:
        self._switching = False
        if rts is None:
            return
        if rts is not self._rts:
            self._switch(self._rts)
        elif self._sending:
            self._ready_at = time.monotonic() + self._wanted.delay_before_send
            self._timer = self._loop.call_later(self._wanted.delay_before_send, self._begin_to_send)

    def _begin_to_send(self) -> None:
        self._ready_at = 0.0
        go_on = self._go_on()
        if go_on is not None:
            go_on()
        self._sent()  # should nothing be there any more, it is over

    def _check(self) -> None:
        """Raise unless the line is ours now."""
        if not self._sending:
            self._sending = True
            self._ready_at = math.inf
            self._switch(self._wanted.rts_on_send)
        if time.monotonic() < self._ready_at:
            raise OSError(errno.ENOBUFS, "the line is being switched")

    def _sent(self) -> None:
        """Something has gone to the driver: look when it has left."""
        self._writes += 1
        self._looking = Sending(self._port.settings)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._timer = None
        writes = self._writes
        self._ask(self._looking.look, lambda step: self._looked(step, writes))

    def _looked(self, step: tuple[int, float] | None, writes: int) -> None:
        if writes != self._writes:
            return  # more was written meanwhile, and is looked after
        queued = self._queued()
        if step is None and queued is not None and queued():
            step = 0, LOOK  # the driver will get more
        if step is None:
            self._timer = self._loop.call_later(self._wanted.delay_after_send, self._end)
        else:
            self._timer = self._loop.call_later(step[1], self._look)

    def _end(self) -> None:
        self._timer = None
        self._sending = False
        self._switch(self._wanted.rts_after_send)

    def stop(self) -> None:
        """Leave it to ``end()``. Nothing is asked any more: it would wait for the thread that waits for it,
        should the executor have but one."""
        self._stopped = True
        self._writes += 1
        if self._timer is not None:
            self._timer.cancel()

    # -- the functions ------------------------------------------------------------------------------------

    def write(self, fd: int, data: Any) -> int:
        self._check()
        count: int = self._below.write(fd, data)
        self._sent()
        return count

    def writev(self, fd: int, pieces: list[Any]) -> int:
        self._check()
        count: int = self._below.writev(fd, pieces)
        self._sent()
        return count

    def splice(self, source: int, target: int, *args: Any) -> int:
        if target == self._port.fileno():
            raise OSError(errno.EINVAL, "RTS is set by hand around what is written")
        return int(self._below.splice(source, target, *args))

    def sendfile(self, *_args: Any) -> int:
        raise OSError(errno.EINVAL, "RTS is set by hand around what is written")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


def _answer(call: Callable[[int], T], fd: int) -> T | None:
    try:
        return call(fd)
    except OSError:
        return None  # unplugged: reading and writing will tell
