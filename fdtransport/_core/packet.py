"""Records: one read of the kernel is one callback, and boundaries are kept in both directions.

Datagrams, packets, events. An error that concerns one record is told and the transport lives.
"""

from __future__ import annotations

import asyncio
import errno
import operator
import os
import stat
from collections.abc import Callable
from typing import Any, ClassVar

from ..errors import COMMON, WRITING, BufferLimitError, ErrnoTable, Meaning, UnpollableFileError, meaning
from . import syscalls
from .base import BaseTransport, Detached
from .flow import Flow
from .lifecycle import Event, State
from .queues import PacketQueue
from .readiness import Pump, forgets_after_error
from .stream import BytesLike, as_buffer

__all__ = ["PacketTransport"]

#: Records and bytes per wake-up: with one record per wake-up the loop costs more than the records.
RECORDS, RECORD_BYTES = 64, 256 * 1024
#: What the queue holds at most unless told otherwise; a datagram protocol need not know of pauses.
HARD_LIMIT = 4 * 1024 * 1024

# What concerns one record: the network's answer to an earlier one (ip(7), udp(7)); a firewall's or a
# socket's to this one, whose peer may have gone.
_ANSWERS = (
    errno.EACCES, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EMSGSIZE,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPROTO,
)  # fmt: skip
_REFUSALS = (*_ANSWERS, errno.EDESTADDRREQ, errno.EINVAL, errno.ENOTCONN, errno.EPERM)

_READING_RECORDS: ErrnoTable = {
    **COMMON,
    **dict.fromkeys(_ANSWERS, Meaning.RECORD),
    errno.ENOBUFS: Meaning.RECORD,  # the queue of the kernel overran (netlink(7))
}
_WRITING_RECORDS: ErrnoTable = {**WRITING, **dict.fromkeys(_REFUSALS, Meaning.RECORD)}


class PacketTransport(BaseTransport, asyncio.DatagramTransport):
    """Records on any descriptor that has them. A drop-in for asyncio's datagram transport.

    The protocol is an ``asyncio.DatagramProtocol``; one that has ``packets_received(records)``
    gets the list of ``(data, address)`` of a wake-up in one call instead of ``datagram_received``.

    *max_size*: the largest record in bytes; the kernel cuts longer ones.
    """

    __slots__ = ("_budget", "_max_size", "dropped")

    #: Bytes of the length before each record in a byte stream, for a kind whose records need one.
    _FRAME: ClassVar[int | None] = None
    _new_queue: ClassVar[Callable[[], PacketQueue]] = PacketQueue

    _READ_ERRORS = _READING_RECORDS
    _WRITE_ERRORS = _WRITING_RECORDS

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        *,
        max_size: int = 64 * 1024,
    ) -> None:
        if operator.index(max_size) < 1:
            raise ValueError(f"max_size ({max_size!r}) must be at least 1 byte")
        self._max_size = max_size
        self._budget = 1
        #: Records that the hard limit of the queue refused; each was told to ``error_received``.
        self.dropped: int = 0
        super().__init__(loop, file, protocol, waiter, extra, server)

    # -- what an adapter may override ---------------------------------------------------------

    def _receive(self) -> tuple[bytes, Any]:
        """One record and where it came from."""
        return self._sys.read(self._rfd, self._max_size), None

    def _send(self, data: BytesLike, addr: Any) -> None:
        """One record to the kernel."""
        if self._sys.write(self._wfd, data) < len(data):
            raise OSError(errno.EMSGSIZE, f"{os.strerror(errno.EMSGSIZE)}: a part of the record was sent")

    def _is_end(self) -> bool:
        """Whether an empty read means the end, and not an empty record."""
        if not stat.S_ISSOCK(syscalls.fstat(self._rfd).st_mode):
            return True
        # A connected SOCK_SEQPACKET has both. After the peer's end, what is not empty comes first.
        return syscalls.has_hung_up(self._rfd) and not syscalls.bytes_readable(self._rfd)

    def _cannot_poll(self, fd: int) -> None:
        kind = syscalls.kind(syscalls.fstat(fd).st_mode)
        raise UnpollableFileError(
            f"descriptor {fd} is {kind}, which has no records; use connect_fd for its bytes"
        )

    # -- reading ------------------------------------------------------------------------------

    def _reader(self) -> Callable[[], object]:
        return self._read

    def _read(self) -> None:
        if self._paused:
            self._readable_but_paused()
            return
        # Asking until the kernel says that there is no more costs one call too many for each lone
        # record, so the budget follows what comes.
        budget = self._budget
        batch: list[tuple[bytes, Any]] | None = [] if hasattr(self._protocol, "packets_received") else None
        left = RECORD_BYTES
        receive = self._receive
        for count in range(budget):
            try:
                data, addr = receive()
            except OSError as exc:
                self._budget = count or 1
                self._deliver(batch)
                if not count and isinstance(exc, BlockingIOError):
                    self._ready_for_nothing()
                if self._state.reads:
                    self._read_failed(exc)
                return
            if not data and self._is_end():
                self._deliver(batch)
                if not self._paused and self._state.reads:
                    self._note_hangup()
                    self._step(self._end_told())
                return
            if batch is not None:
                batch.append((data, addr))
            else:
                try:
                    self._protocol.datagram_received(data, addr)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:
                    self._data_failed("datagram_received", exc)
                    return
            left -= len(data)
            if left <= 0 or self._paused or not self._state.reads:
                break
        else:
            self._budget = min(2 * budget, RECORDS)
        self._deliver(batch)

    def _deliver(self, batch: list[tuple[bytes, Any]] | None) -> None:
        if batch:
            try:
                self._protocol.packets_received(batch)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._data_failed("packets_received", exc)

    def _end_told(self) -> Event:
        """A datagram protocol knows no ends. One that has ``eof_received`` may keep the write side, as of
        a byte stream."""
        told = getattr(self._protocol, "eof_received", None)
        keep = False
        if told is not None:
            try:
                keep = told()
            except (SystemExit, KeyboardInterrupt):
                self._step(Event.EOF_CLOSE)  # it is told once
                raise
            except BaseException as exc:
                self._data_failed("eof_received", exc)
        return Event.EOF_KEEP if keep else Event.EOF_CLOSE

    def _data_failed(self, name: str, exc: BaseException) -> None:
        self._callback_failed(f"Fatal error: protocol.{name}() call failed.", exc)

    def _read_failed(self, exc: OSError) -> None:
        verdict = meaning(exc, self._READ_ERRORS)
        if verdict is Meaning.END:
            self._note_hangup()
            self._step(Event.EOF_CLOSE)
        elif verdict is Meaning.FATAL:
            exc.__traceback__ = None
            self._note_hangup()
            # The kernel tells a reset before the records that came earlier: those are still there.
            self._step(Event.WRITE_ERROR if self._state is State.OPEN else Event.READ_ERROR, exc)
        else:
            if verdict is Meaning.RECORD:
                self._refused(exc)
            if self._state is State.WRITE_FAILED:
                self._step(Event.DRAINED)

    def _refused(self, exc: OSError) -> None:
        """The kernel told an error that concerns one record."""
        self._ask_anew()
        self._tell(exc)

    def _tell(self, exc: Exception) -> None:
        exc.__traceback__ = None
        self._guard("protocol.error_received() failed", self._protocol.error_received, exc)

    def _hangup(self) -> None:
        if not self._state.reads or syscalls.has_hung_up(self._rfd):
            super()._hangup()
            return
        # An error that concerns one record, which reading will tell: no end. While it is unread the
        # watch would only tell it again.
        self._unwatch()
        if not self._paused:
            self._ask_anew()
            self._watch_quietly(self._rfd, reading=True)

    def _ask_anew(self) -> None:
        """After an error: have a loop whose poller drops the descriptor then look at it once more."""
        if not forgets_after_error(self._loop) or isinstance(self._read_events, Pump):
            return
        reading, writing = self._reader_on, self._writer_on
        self._remove_reader()
        self._remove_writer()
        if reading:
            self._add_reader()
            self._unwatch()
            self._watch_quietly(self._rfd, reading=True)
        if writing:
            self._add_writer()

    def _ready_for_nothing(self) -> None:
        # A socket that keeps errors apart (IP_RECVERR of ip(7), time stamps) is ready for as long as it
        # does. The protocol was told of the error, and has had its chance to read more of it.
        if syscalls.drop_kept_errors(self._rfd):
            self._ask_anew()

    def _drain(self) -> None:
        # A send failed. Reading goes on until it would wait; while it is paused, the loss waits.
        if not self._paused and self._state is State.WRITE_FAILED:
            self._remove_reader()
            self._read_events = Pump(self._loop)
            self._add_reader()

    # -- writing ------------------------------------------------------------------------------

    def _own_flow(self) -> Flow:
        flow = super()._own_flow()
        if flow.hard is None:
            flow.hard = max(HARD_LIMIT, flow.high)
        return flow

    def sendto(self, data: BytesLike, addr: Any = None) -> None:
        """Send one record; never waits. An empty one is sent too.

        What the kernel cannot take now is queued with its boundaries, under the water marks. A
        record that it refuses, or that would pass the queue's hard limit, is told to the
        protocol's ``error_received``.

        :raises TypeError: *data* is not bytes-like. :raises ValueError: *addr* is not the one that is
            connected to. :raises OSError: EBADF, read-only descriptor.
        """
        data = as_buffer(data)
        if addr is not None:
            self._check_address(addr)
        if not self._state.writes:
            self._refuse_write(len(data) or 1)
            return
        if not self._queue.size:
            try:
                self._send(data, addr)
                return
            except OSError as exc:
                self._not_sent(exc, data, addr)
        else:
            self._keep(data, addr)
        if self._queue.size > self._mark:
            self._check_flow()

    def _not_sent(self, exc: OSError, data: BytesLike, addr: Any) -> None:
        """The kernel did not take a record at once."""
        verdict = meaning(exc, self._WRITE_ERRORS)
        if verdict is Meaning.RECORD:
            self._refused(exc)
        elif verdict is Meaning.FATAL:
            self._write_failed(exc)
        elif self._keep(data, addr):
            if verdict is Meaning.AGAIN:
                self._add_writer()
            else:
                self._breathe(exc)

    def _keep(self, data: BytesLike, addr: Any) -> bool:
        """Queue a record; False when it would pass the hard limit."""
        queue: PacketQueue = self._own_queue()
        size = queue.size + (len(data) or 1)
        if self._own_flow().over_hard_limit(size):
            self.dropped += 1
            self._tell(BufferLimitError(size, self._flow.hard or 0))
            return False
        queue.append(bytes(data), addr)
        return True

    def _check_address(self, addr: Any) -> None:
        """Raise for a destination, not None, that cannot be sent to."""
        raise ValueError(f"this descriptor has one peer only; the address must be None, not {addr!r}")

    def _flush(self) -> None:
        queue: PacketQueue = self._queue
        for _ in range(RECORDS):
            if not queue.size:
                break
            data, addr = queue.peek()
            try:
                self._send(data, addr)
            except OSError as exc:
                verdict = meaning(exc, self._WRITE_ERRORS)
                if verdict is Meaning.AGAIN:
                    break
                if verdict is Meaning.LATER:
                    self._breathe(exc)
                    return
                if verdict is Meaning.FATAL:
                    self._write_failed(exc)
                    return
                self._refused(exc)
            except (TypeError, ValueError, OverflowError) as exc:
                self._tell(exc)  # an address of the wrong form
            self._tries = 0
            if queue.size:  # error_received may have ended the transport
                queue.pop()
        if queue.size:
            self._add_writer()
        else:
            self._remove_writer()
        self._shrunk()

    def _offer_cork(self) -> None:
        """Records are never held back."""

    def detach(self) -> Detached:
        """As for byte streams; ``unsent`` is the list of records, each with its address."""
        self._own_queue()
        return super().detach()
