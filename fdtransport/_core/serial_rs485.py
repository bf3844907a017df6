"""RS-485: one pair of wires for both directions, and who drives them when.

Where the driver can, it switches by itself (TIOCSRS485 of the kernel's serial-rs485 documentation). Elsewhere
RTS, which adapters take as the direction, is set by hand: before the first byte, and after the last stop bit.
"""

from __future__ import annotations

import array
import asyncio
import errno
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import serial_line, syscalls
from .serial_sending import LOOK, steps_until_sent

__all__ = ["RS485", "HandDriven", "clear_rs485", "rs485_of", "set_rs485"]

_TIOCGRS485, _TIOCSRS485 = 0x542E, 0x542F
_ENABLED, _ON_SEND, _AFTER_SEND, _RX_DURING_TX, _TERMINATE = 1, 2, 4, 16, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RS485:
    """How the direction of an RS-485 line is switched.

    :raises ValueError: a delay that is negative or above 10 s.
    """

    rts_on_send: bool = True
    """RTS while this side sends."""
    rts_after_send: bool = False
    """RTS otherwise."""
    delay_before_send: float = 0.0
    """Seconds between the switch and the first byte; whole milliseconds. By hand: rounded up to 10 ms."""
    delay_after_send: float = 0.0
    """Seconds between the last byte and the switch back; whole milliseconds."""
    receive_while_sending: bool = False
    """Receive what is sent here, too; by hand that is for the adapter to say."""
    terminate: bool = False
    """Switch the terminating resistor on, where there is one."""

    def __post_init__(self) -> None:
        for name in ("delay_before_send", "delay_after_send"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(f"{name} is 0 to 10 seconds, not {getattr(self, name)!r}")


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
    """The functions that move the bytes of a port, with RTS around what is written."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        below: Any,
        fd: int,
        port: Any,
        wanted: RS485,
        queued: Callable[[], int],
    ) -> None:
        self._loop = weakref.ref(loop)
        self._below = below
        self._fd = fd
        self._queued = weakref.WeakMethod(queued)  # that of the transport that has this
        self._wanted = wanted
        self._ready_at: float | None = None  # while it sends
        self._steps: Iterator[tuple[int, float]] | None = None
        self._timer: asyncio.Handle | None = None
        self._port = port  # which knows its settings

    def _switch(self, on: bool) -> None:
        serial_line.set_modem_lines(self._fd, *((serial_line.RTS, 0) if on else (0, serial_line.RTS)))

    def _begin(self) -> None:
        if self._ready_at is None:
            self._switch(self._wanted.rts_on_send)
            self._ready_at = time.monotonic() + self._wanted.delay_before_send
            loop = self._loop()
            if loop is not None and self._wanted.delay_before_send:
                # Should it come to nothing: what is queued may be thrown away meanwhile.
                self._timer = loop.call_later(self._wanted.delay_before_send, self._look)
        if time.monotonic() < self._ready_at:
            # What a transport does on this errno is what is wanted: keep it all, and try again soon.
            raise OSError(errno.ENOBUFS, "the line is being switched")

    def _sent(self) -> None:
        """Something has gone to the driver: look when it has left."""
        loop = self._loop()
        self._steps = None
        if self._timer is not None:
            self._timer.cancel()
        if loop is not None and not loop.is_closed():
            self._timer = loop.call_soon(self._look)

    def _look(self) -> None:
        self._timer = None
        loop = self._loop()
        if loop is None:
            return
        try:
            if self._steps is None:
                self._steps = steps_until_sent(self._fd, self._port.settings)
            _, pause = next(self._steps, (0, None))
            queued = self._queued()
            if pause is None and queued is not None and queued():
                self._steps, pause = None, LOOK  # the driver will get more
        except OSError:
            return  # unplugged: reading and writing will tell
        if pause is None:
            self._timer = loop.call_later(self._wanted.delay_after_send, self.end)
        else:
            self._timer = loop.call_later(pause, self._look)

    def end(self) -> None:
        """Everything has been sent."""
        self._timer = self._ready_at = None
        try:
            self._switch(self._wanted.rts_after_send)
        except OSError:
            pass  # unplugged

    def stop(self) -> None:
        """Leave it to somebody else to call ``end()``."""
        if self._timer is not None:
            self._timer.cancel()

    def write(self, fd: int, data: Any) -> int:
        self._begin()
        count: int = self._below.write(fd, data)
        self._sent()
        return count

    def writev(self, fd: int, pieces: list[Any]) -> int:
        self._begin()
        count: int = self._below.writev(fd, pieces)
        self._sent()
        return count

    def splice(self, source: int, target: int, *args: Any) -> int:
        if target == self._fd:
            raise OSError(errno.EINVAL, "RTS is set by hand around what is written")
        return int(self._below.splice(source, target, *args))

    def sendfile(self, *_args: Any) -> int:
        raise OSError(errno.EINVAL, "RTS is set by hand around what is written")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)
