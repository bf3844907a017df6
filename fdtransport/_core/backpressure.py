"""The queue of what waits to be written, who is told of its size, and who fills it."""

from __future__ import annotations

import errno
import logging
from typing import Any

from ..errors import BufferLimitError, bad_descriptor
from .flow import Flow, Producer
from .interest import Interest
from .lifecycle import CloseReason, Event, State
from .root import NEVER, NO_FLOW, NO_QUEUE

__all__ = ["Backpressure"]

_log = logging.getLogger("fdtransport")

#: From this many writes after the loss on, each is warned of, as asyncio does.
WARN_FROM_LOST_WRITE = 5
#: After ENOBUFS: seconds until the next try, and tries until it counts as an error.
BREATH, BREATHS = 0.01, 100


class Backpressure(Interest):
    """See the module's first lines."""

    __slots__ = ()

    # -- writing -------------------------------------------------------------------------------

    def _own_queue(self) -> Any:
        if self._queue is NO_QUEUE:
            self._queue = type(self)._new_queue()
        return self._queue

    def _own_flow(self) -> Flow:
        if self._flow is NO_FLOW:
            self._flow = Flow()
        return self._flow

    def get_write_buffer_size(self) -> int:
        """Bytes that were written and that the kernel did not take."""
        self._offer_cork()
        return int(self._queue.size)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """``(low, high)`` in bytes."""
        return (self._flow.low, self._flow.high)

    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None, *, hard: int | None = None
    ) -> None:
        """Set the water marks in bytes, as asyncio does, and a hard limit (default: none).

        Above *high* the protocol's ``pause_writing()`` is called, at *low* or below
        ``resume_writing()``. Above *hard* the transport ends with ``BufferLimitError``.

        :raises ValueError: unless ``hard >= high >= low >= 0``.
        """
        flow = self._own_flow()
        flow.set_limits(high, low, hard)
        if self._mark != NEVER or flow.paused:
            self._mark = flow.high
            self._queue.grant(0)
            self._offer_cork()
            self._check_flow()

    @property
    def _protocol_paused(self) -> bool:
        # asyncio's sendfile fallback and TLS look at it.
        return self._flow.paused

    def _check_flow(self) -> None:
        """Pause the protocol and the producer if the queue is above its mark."""
        flow, size = self._flow, self._queue.size
        if size <= flow.high and not flow.paused:
            self._mark = flow.high
            return
        flow = self._own_flow()
        if flow.over_hard_limit(size):
            self._step(Event.READ_ERROR, BufferLimitError(size, flow.hard or 0))
            return
        paused = flow.must_pause(size)
        self._mark = NEVER if flow.hard is None else flow.hard
        if paused:
            if flow.push is not None:
                self._guard("producer.pause_producing() failed", flow.push.pause_producing)
            self._call("pause_writing")

    def _shrunk(self) -> None:
        """After the kernel took something: resume, tell an empty queue."""
        queue, flow = self._queue, self._flow
        if flow.paused and flow.must_resume(queue.size):
            self._mark = flow.high
            if flow.push is not None:
                self._guard("producer.resume_producing() failed", flow.push.resume_producing)
            self._call("resume_writing")
        if not queue.size:
            if self._waiters:
                self._wake("flushed")
            if flow.pull is not None:
                # Not from here: its answer may empty the queue again, and so on without end.
                self._loop.call_soon(self._ask_producer, context=self._context)
            self._maybe_flushed()

    async def flushed(self) -> None:
        """Return when the kernel has everything that was written. Cancelling is safe.

        :raises OSError: the transport ended before; the loss's own exception where it had one.
        """
        self._offer_cork()
        while self._queue.size:
            await self._add_waiter("flushed")
        if self._close_reason in (CloseReason.ERROR, CloseReason.ABORT):
            raise self._cut_off()

    def register_producer(self, producer: Producer, streaming: bool = True) -> None:
        """Make *producer* (an object with ``pause_producing``, ``resume_producing`` and
        ``stop_producing``) the source of what is written here, and obey the water marks through it.

        *streaming*: True for a push producer, paused and resumed exactly as the protocol is; False
        for a pull producer, asked by ``resume_producing()`` now and each time the queue empties; if that
        raises, it is reported and the producer is forgotten.
        Another transport is a push producer. On a transport that is closing or lost the producer
        is stopped at once.

        :raises RuntimeError: another producer is registered.
        """
        if self._state.closing:
            producer.stop_producing()
            return
        flow = self._own_flow()
        flow.register(producer, streaming)
        if isinstance(producer, Backpressure):
            producer._add_waiter("lost").add_done_callback(lambda _: self._producer_lost(producer))
        if not streaming:
            self._hold(True)
            self._ask_producer()
        elif flow.paused:
            self._guard("producer.pause_producing() failed", producer.pause_producing)

    def _ask_producer(self) -> None:
        """Ask a pull producer for more."""
        producer = self._flow.pull
        if producer is None or self._queue.size or not self._state.writes:
            return
        if not self._guard("producer.resume_producing() failed", producer.resume_producing):
            # It has written nothing, so nothing would ever ask it again, and close() waits for it.
            self._producer_lost(producer)

    def unregister_producer(self) -> None:
        """Forget the producer, without stopping it. Without one it does nothing."""
        if self._flow.producer is not None:
            self._flow.unregister()
            self._hold(False)
            self._maybe_flushed()

    def _producer_lost(self, producer: Producer) -> None:
        if self._flow.producer is producer:
            self.unregister_producer()

    def _write_failed(self, exc: OSError) -> None:
        exc.__traceback__ = None  # it would keep frames, and so this transport, alive
        if exc.errno in (errno.EPIPE, errno.ECONNRESET):
            self._note_hangup()
        self._step(Event.WRITE_ERROR, exc)

    def _breathe(self, exc: OSError) -> None:
        """The kernel has no buffers. The poller would call at once and again: wait a little."""
        self._tries += 1
        if self._tries > BREATHS:
            self._write_failed(exc)
            return
        if self._writer_on:
            self._write_events.remove_writer(self._wfd)
        self._writer_on = True
        self._loop.call_later(BREATH, self._after_breath, context=self._context)

    def _after_breath(self) -> None:
        if self._writer_on and self._wfd >= 0:
            self._remove_writer()
            self._flush()  # an empty queue is told as `want_write` asks for

    def _refuse_write(self, size: int) -> None:
        """``write()`` in a state in which nothing can be sent."""
        state = self._state
        if state is State.READ_ONLY:
            raise bad_descriptor("this transport's descriptor is read-only")
        if state.ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        if size:
            self._tries += 1
            if self._tries >= WARN_FROM_LOST_WRITE:
                _log.warning("write() on a transport that has ended: %r", self)

    def _cut_off(self) -> BaseException:
        return self._exception or ConnectionResetError(
            errno.ECONNRESET, "the transport ended before everything was sent"
        )

    def _maybe_flushed(self) -> None:
        if not self._state.flushing or self._queue.size:
            return
        producer = self._flow.producer
        # A transport that does not read any more has nothing to produce.
        if producer is None or (isinstance(producer, Backpressure) and not producer._state.reads):
            self._step(Event.FLUSHED)
