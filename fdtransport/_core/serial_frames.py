"""Frames that end with a silence: what came together is told together.

Modbus RTU and many protocols of its age have no other mark between two messages than a pause. The time counts
from when the bytes were read here, so that a busy loop can only ever join frames, and never cut one.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any, NamedTuple

from . import syscalls
from .lifecycle import State
from .reading import READ_SIZE
from .serial_settings import SerialSettings
from .stream import StreamTransport

__all__ = ["Characters", "FrameReading"]

#: A frame that grows longer is told in parts.
MOST = 64 * 1024


class Characters(NamedTuple):
    """A silence as long as *number* characters take, at the speed that the port has, and not below *least*
    seconds. ``Characters(3.5, least=0.00175)`` is that of Modbus RTU."""

    number: float
    least: float = 0.0

    def seconds(self, settings: SerialSettings) -> float:
        return max(self.number * settings.character_time, self.least)


class FrameReading(StreamTransport):
    """The part of a `SerialTransport` that gathers frames. ``_gap`` is 0 where it does not."""

    __slots__ = ("_frame", "_gap", "_last", "_silence", "_wanted_gap")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._gap = 0.0
        self._wanted_gap: float | Characters = 0.0
        self._frame = bytearray()
        self._last = 0.0
        self._silence: asyncio.TimerHandle | None = None
        super().__init__(*args, **kwargs)

    def gather_frames(self, gap: float | Characters, settings: SerialSettings) -> None:
        """From now on, one ``data_received`` for what came without a silence of *gap* seconds."""
        self._wanted_gap = gap
        self._measure_gap(settings)
        if self._reader_on:
            self._add_reader()

    def _measure_gap(self, settings: SerialSettings) -> None:
        gap = self._wanted_gap
        self._gap = gap.seconds(settings) if isinstance(gap, Characters) else gap

    def _reader(self) -> Callable[[], object]:
        return self._gather if self._gap and _takes_bytes(self._protocol) else super()._reader()

    def _gather(self) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        self._burst = 0
        try:
            data: bytes = self._sys.read(self._rfd, READ_SIZE)
        except OSError as exc:
            self._read_failed(exc)
            return
        if not data:
            self._read_nothing()
            return
        self._frame += data
        if len(self._frame) >= MOST:
            self._tell_frame()
            return
        self._last = self._loop.time()
        if self._silence is None:
            self._silence = self._loop.call_later(self._gap, self._look_for_silence, context=self._context)

    def _look_for_silence(self) -> None:
        self._silence = None
        rest = self._last + self._gap - self._loop.time()
        if rest <= 0 and self._is_waiting():
            rest = self._gap  # it came while the loop was busy
        if rest > 0:
            self._silence = self._loop.call_later(rest, self._look_for_silence, context=self._context)
        else:
            self._tell_frame()

    def _is_waiting(self) -> bool:
        try:
            return self._reader_on and bool(syscalls.poll_now(self._rfd, select.POLLIN) & select.POLLIN)
        except OSError:
            return False  # reading will tell

    def _tell_frame(self) -> None:
        """Tell what was gathered, unless nothing may be told now."""
        if not self._frame or self._paused or not self._state.reads:
            return
        frame, self._frame = bytes(self._frame), bytearray()
        try:
            if hasattr(self._protocol, "data_received"):
                self._protocol.data_received(frame)
            else:
                self._fill_buffers(frame)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.data_received() call failed.", exc)

    def _fill_buffers(self, frame: bytes) -> None:
        """The same for a BufferedProtocol, in as many parts as its buffers are large."""
        protocol = self._protocol
        while frame and self._protocol is protocol and not self._paused and self._state.reads:
            view = memoryview(protocol.get_buffer(len(frame))).cast("B")
            if not len(view):
                raise RuntimeError("get_buffer() returned an empty buffer")
            count = min(len(view), len(frame))
            view[:count] = frame[:count]
            frame = frame[count:]
            protocol.buffer_updated(count)
        self._frame[:0] = frame  # for later
        if frame and self._silence is None and not self._paused and self._state.reads:
            self._silence = self._loop.call_later(0, self._look_for_silence, context=self._context)

    def _read_failed(self, exc: OSError) -> None:
        again = isinstance(exc, BlockingIOError | InterruptedError)
        if not again or self._state is State.WRITE_FAILED:
            self._tell_frame()  # nothing comes after it any more
        super()._read_failed(exc)

    def resume_reading(self) -> None:
        held = self._paused and self._frame
        super().resume_reading()
        if held and self._silence is None:
            # Not from here: no callback comes from inside of a method.
            self._silence = self._loop.call_later(0, self._look_for_silence, context=self._context)

    def _unread(self) -> bytes:
        frame, self._frame = bytes(self._frame), bytearray()
        return frame + super()._unread()

    def _stop_gathering(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None


def _takes_bytes(protocol: Any) -> bool:
    """Whether it does not do its own reading."""
    return hasattr(protocol, "data_received") or hasattr(protocol, "get_buffer")
