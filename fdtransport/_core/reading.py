"""Byte streams: the hot path of reading.

The loop calls a bound method of this class with no hop between. 64 KiB per read; a larger buffer
makes glibc map and unmap memory for each small read, at three times the cost per event.
"""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Callable
from typing import ClassVar

from ..errors import Meaning, meaning
from .base import BaseTransport
from .lifecycle import Event, State
from .readiness import Pump, events_of

__all__ = ["MORE_SIZE", "READ_SIZE", "ByteReading"]

READ_SIZE = 64 * 1024
#: After a full read: as much as glibc still has at hand, just under where it starts to map memory.
MORE_SIZE = 124 * 1024
#: Reads per wake-up, so that a fast sender cannot starve the others.
READS = 8


class ByteReading(BaseTransport):
    """The read side of a byte stream. See the module's first lines."""

    __slots__ = ("_burst",)

    #: Writes in this turn of the loop; each read event begins it anew, so that an answer does not wait.
    _burst: int

    #: So many bytes that more may be there, though a read asked for more and did not get it.
    _plenty: ClassVar[int] = sys.maxsize
    #: Reads per wake-up at most.
    _most_reads: ClassVar[int] = READS

    # -- what an adapter may override ---------------------------------------------------------

    def _is_end(self) -> bool:
        """Whether an empty read means end of file."""
        return True

    # -- reading ------------------------------------------------------------------------------

    def _reader(self) -> Callable[[], object]:
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            return self._read_into
        if hasattr(protocol, "read_ready"):
            return self._tell_ready
        return self._read

    # Both end in a call of themselves rather than in a loop: nearly always one read is all there is.

    def _read(self, reads: int = 1, size: int = READ_SIZE) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        self._burst = 0  # a request was read: its answer does not wait
        try:
            data = self._sys.read(self._rfd, size)
        except OSError as exc:
            self._read_failed(exc)
            return
        if not data:
            self._read_nothing()
            return
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.data_received() call failed.", exc)
            return
        full = len(data) == size or len(data) >= self._plenty
        del data  # not one buffer per call, but the same one again
        if full and reads < self._most_reads and self._goes_on(ByteReading._read):
            self._read(reads + 1, MORE_SIZE)

    def _read_into(self, reads: int = 1) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        self._burst = 0
        protocol = self._protocol
        try:
            buffer = protocol.get_buffer(-1)
            size = memoryview(buffer).nbytes
            if not size:
                raise RuntimeError("get_buffer() returned an empty buffer")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.get_buffer() call failed.", exc)
            return
        if self._paused or not self._state.reads or self._protocol is not protocol:
            return  # get_buffer() saw to that
        try:
            count = self._sys.readv(self._rfd, [buffer])
        except OSError as exc:
            self._read_failed(exc)
            return
        except BufferError as exc:  # read-only, or with gaps
            self._callback_failed("Fatal error: protocol.get_buffer() call failed.", exc)
            return
        if not count:
            self._read_nothing()
            return
        try:
            protocol.buffer_updated(count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.buffer_updated() call failed.", exc)
            return
        full = count == size or count >= self._plenty
        if full and reads < self._most_reads and self._goes_on(ByteReading._read_into):
            self._read_into(reads + 1)

    def _tell_ready(self) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        self._burst = 0
        self._guard("protocol.read_ready() failed", self._protocol.read_ready)

    def _goes_on(self, method: Callable[..., object]) -> bool:
        """After a callback: whether the same way of reading may go on in this wake-up."""
        if self._paused or not self._state.reads:
            return False
        return getattr(self._reader(), "__func__", None) is method

    # -- the end of reading -------------------------------------------------------------------

    def _read_failed(self, exc: OSError) -> None:
        verdict = meaning(exc, self._READ_ERRORS)
        if verdict is Meaning.AGAIN:
            if self._state is State.WRITE_FAILED:
                self._step(Event.DRAINED)
            elif isinstance(self._read_events, Pump) and self._reader_on:
                # Not at its end after all: back to the poller.
                self._remove_reader()
                self._read_events = events_of(self._loop)
                self._add_reader()
            return
        if verdict is Meaning.END:
            self._read_eof()
            return
        exc.__traceback__ = None  # it would keep frames, and so this transport, alive
        self._note_hangup()
        self._step(Event.READ_ERROR, exc)

    def _read_nothing(self) -> None:
        try:
            end = self._is_end()
        except OSError as exc:
            self._read_failed(exc)
            return
        if end:
            self._read_eof()

    def _read_eof(self) -> None:
        self._note_hangup()
        if self._state is State.WRITE_FAILED and getattr(self._exception, "errno", 0) == errno.ECONNRESET:
            self._step(Event.DRAINED)  # the write took the error; for the read nothing is left but b""
            return
        try:
            keep = bool(self._protocol.eof_received())
        except (SystemExit, KeyboardInterrupt):
            self._step(Event.EOF_CLOSE)  # it is told once
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.eof_received() call failed.", exc)
            return
        self._step(Event.EOF_KEEP if keep else Event.EOF_CLOSE)

    def _hangup(self) -> None:
        super()._hangup()
        if self._paused and self._state.reads and hasattr(self._protocol, "peer_gone"):
            self._guard("protocol.peer_gone() failed", self._protocol.peer_gone)

    def _read_the_rest(self) -> None:
        # Finite, and ends with end of file or an error: no poller is needed for it.
        if not isinstance(self._read_events, Pump):
            self._read_events = Pump(self._loop)
        self._add_reader()

    def _drain(self) -> None:
        # A write failed. Reading goes on until it would wait; while it is paused, the loss waits.
        # A protocol that does its own reading is told, and resumes when it sees fit.
        if self._paused and hasattr(self._protocol, "peer_gone"):
            self._guard("protocol.peer_gone() failed", self._protocol.peer_gone)
        elif not self._paused and self._state is State.WRITE_FAILED:
            self._remove_reader()
            self._read_the_rest()
