"""One direction of a relay, and the protocol that a transport has while it is an end of one.

The engines of a direction are here; ``relay`` says what they are and when.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ._core import syscalls
from ._core.readiness import in_memory
from ._core.reading import READ_SIZE
from ._core.spare import SIZE, TCP_SIZE, Pipe, Stock
from ._core.stream import StreamTransport

__all__ = ["Moved", "Side", "Way"]

#: Seconds of silence after which an end under TLS, which cannot be told of the other's end, is closed.
TLS_SILENCE = 10.0
#: Moves per wake-up, so that one relay cannot starve the others.
MOVES = 4


@dataclass(slots=True)
class Moved:
    """What went one way."""

    bytes: int = 0
    """Handed to the other end."""
    engine: str = ""
    """``sendfile``, ``splice``, ``copy``, ``callbacks`` or ``records``; empty for no such direction."""
    records: int = 0
    """Records handed to the other end, where one of the ends has records."""
    refused: int = 0
    """Errors of single records that the other end has told."""
    refusal: Exception | None = None
    """The last of them."""

    def __repr__(self) -> str:
        told = ["bytes", "engine"]
        told += ["records"] if self.records or self.engine == "records" else []
        told += ["refused", "refusal"] if self.refused else []
        return f"Moved({', '.join(f'{name}={getattr(self, name)!r}' for name in told)})"


class Owner(Protocol):
    """The relay, as its ways and sides see it."""

    stock: Stock

    def way_over(self, way: Way) -> None: ...
    def side_lost(self) -> None: ...
    def failed(self, side: Side, exc: BaseException) -> None: ...
    def stop(self) -> None: ...


class Side(asyncio.Protocol):
    """One transport of a relay, and its protocol meanwhile (a `ReadyProtocol` where it is ours)."""

    def __init__(self, relay: Owner, name: str, transport: Any) -> None:
        self.relay = relay
        self.name = name
        self.transport = transport
        self.ours: bool = isinstance(transport, StreamTransport)
        self.former: Any = transport.get_protocol()
        self.lost: bool = self.former is None
        self.stream: Any = None  # the StreamReader that it had
        self.onward: Way | None = None  # where what is read here goes
        self.inward: Way | None = None  # where what is written here comes from
        self._was_paused = bool(
            getattr(transport, "_protocol_paused", False) or getattr(self.former, "_paused", False)
        )

    # -- what it is ---------------------------------------------------------------------------

    def can_read(self) -> bool:
        """Whether it has a read side; if so, reading is on afterwards."""
        return self._can(self.transport.resume_reading)

    def can_write(self) -> bool:
        return self._can(lambda: self.transport.write(b""))

    def _can(self, method: Callable[[], object]) -> bool:
        """Try what does nothing. Not every library's transports have the classes that would tell."""
        if self.lost:
            return True  # it could; that it is over shows soon enough
        try:
            method()
        except (AttributeError, NotImplementedError, OSError, RuntimeError):
            return False
        return True

    def at_end(self) -> bool:
        """Whether nothing more can be read, and that was told before the relay began."""
        return self.lost or (self.ours and not self.transport._state.reads)

    def is_tcp(self) -> bool:
        try:
            sock = socket.socket(fileno=self.transport.fileno())
        except (OSError, ValueError):  # no socket; or lost already
            return False
        family = sock.family
        sock.detach()
        return family in (socket.AF_INET, socket.AF_INET6)

    def is_file(self) -> bool:
        try:
            return stat.S_ISREG(syscalls.fstat(self.transport.fileno()).st_mode)
        except OSError:
            return False

    def sends_files(self) -> bool:
        """Whether it is a socket, and free to use sendfile(2). (A pipe takes twice as long as by splice.)"""
        try:
            mode = syscalls.fstat(self.transport._wfd).st_mode
        except OSError:  # lost already
            return False
        return stat.S_ISSOCK(mode) and hasattr(self.transport._sys, "sendfile")

    # -- what the relay does with it ----------------------------------------------------------

    def take_over(self) -> None:
        """Become the protocol of the transport."""
        if self.lost:
            return
        self.transport.set_protocol(self)
        if self.ours:
            self.transport.cork = 0
            if self.inward is not None:
                # pause_writing() as soon as anything is queued, resume_writing() when all is sent.
                self.transport.set_write_buffer_limits(high=0)
        if self.inward is not None and self._was_paused:
            self.inward.block()

    def unread(self) -> tuple[bytes, bool]:
        """What the StreamReader holds, and whether nothing comes after that."""
        stream = self.stream
        if stream is None:
            return b"", False
        if hasattr(stream, "_merge"):
            stream._merge()
        data = bytes(stream._buffer)
        stream._buffer.clear()
        exc = stream.exception()
        if exc is not None:
            self.relay.failed(self, exc)
        return data, stream._eof or exc is not None

    def pause(self) -> None:
        if self.ours or not (self.lost or self.transport.is_closing()):
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.ours or not (self.lost or self.transport.is_closing()):
            self.transport.resume_reading()

    def end(self) -> float | None:
        """Pass an end of file on, where there is a way to; else seconds of silence until all is over.

        Under TLS it would end both directions.
        """
        try:
            if not self.transport.is_closing() and self.transport.can_write_eof():
                self.transport.write_eof()
        except OSError as exc:
            self.relay.failed(self, exc)
            self.transport.abort()
        return TLS_SILENCE if self._is_tls() else None

    def _is_tls(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    def gone(self) -> None:
        """The transport is lost, now or since before the relay began."""
        if self.inward is not None and (self.inward.broken or not self.inward.over):
            self.inward.drop()
            if self.inward.undelivered:
                gone = BrokenPipeError(errno.EPIPE, "the other side went away before it took everything")
                self.relay.failed(self, gone)
            self.relay.stop()  # nothing can be answered any more
        if self.onward is not None:
            self.onward.source_ended()
        self.relay.side_lost()

    # -- protocol -----------------------------------------------------------------------------

    def read_ready(self) -> None:
        if self.onward is not None and not self.onward.over:
            self.onward.pump()
        else:
            self.transport.read_now(READ_SIZE)  # and drop it

    def peer_gone(self) -> None:
        # Reading is paused. When a write has failed, the loss waits until what is here is read, for
        # which the other end may first have to get rid of what it sends: that goes nowhere now.
        if self.transport.is_closing() and self.inward is not None:
            self.inward.drop()

    def data_received(self, data: bytes) -> None:
        if self.onward is not None and not self.onward.over:
            self.onward.write(data)

    def eof_received(self) -> bool:
        if self.onward is not None:
            self.onward.source_ended()
        # TLS has no half-close, and asyncio's warns of a true answer.
        return not self._is_tls()

    def pause_writing(self) -> None:
        if self.inward is not None:
            self.inward.block()

    def resume_writing(self) -> None:
        if self._was_paused:
            self._was_paused = False
            self.former.resume_writing()
        if self.inward is not None:
            self.inward.go_on()

    def write_ready(self) -> bool:
        if self.inward is None:
            return False
        self.inward.go_on()
        return self.inward.blocked and not self.inward.over

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        if exc is not None:
            self.relay.failed(self, exc)
        self.gone()
        former, self.former = self.former, None
        former.connection_lost(exc)


class Way:
    """One direction of a relay.

    ``held`` bytes are in ``pipe``: moved out of the source, and not yet into the sink. While the way
    is ``blocked``, because the sink takes nothing now, the source is not read.
    """

    def __init__(self, relay: Owner, source: Side, sink: Side, moved: Moved) -> None:
        self.relay = relay
        self.source = source
        self.sink = sink
        self.moved = moved
        self.held: int = 0
        self.pipe: Pipe | None = None
        self.size: int = SIZE
        self.moves: int = MOVES
        self.at_hand: int = 0  # bytes of a file to send without another look at its disk
        self.blocked: bool = False
        self.ended: bool = False  # nothing more comes from the source
        self.over: bool = False  # and nothing more goes to the sink
        self.broken: bool = False  # because that takes no more
        self.undelivered: bool = False  # and did not take all that was read for it
        self.pump: Callable[[], None]
        source.onward = sink.inward = self

    def choose_engine(self, splices: bool) -> None:
        if not self.source.ours:
            self.moved.engine, self.pump = "callbacks", self._nothing
            return
        if self.source.is_file():
            # The next piece may have to come from its disk: readiness looks after that.
            self.moves = 1
        if not self.sink.ours:
            self.moved.engine, self.pump = "copy", self._copy_bytes
        elif splices and self.source.is_file() and self.sink.sends_files():
            self.moved.engine, self.pump = "sendfile", self._send_file
            self.size = TCP_SIZE
        elif splices:
            self.moved.engine, self.pump = "splice", self._splice
            if self.source.is_tcp() or self.sink.is_tcp():
                self.size = TCP_SIZE
        else:
            self.moved.engine, self.pump = "copy", self._copy
            self.size = SIZE

    def start(self) -> None:
        unread, ended = self.source.unread()
        if unread:
            self.write(unread)
        if ended or self.source.at_end():
            self.source_ended()
        elif self.blocked or self.over:
            self.source.pause()
        else:
            self.source.resume()

    # -- engines ------------------------------------------------------------------------------

    def _splice(self) -> None:
        source, stock = self.source.transport, self.relay.stock
        try:
            pipe = self.pipe = self.pipe or stock.take()
        except OSError:  # no descriptors left
            self._copy_instead()
            return
        for _ in range(self.moves):
            # Only ever into an empty pipe, so that it is never the pipe that says "not now".
            try:
                count = source.splice_out(pipe.entry, self.size)
            except OSError:  # EINVAL: not from this one
                self._release()
                self._copy_instead()
                return
            if not count:
                break
            self.held = count
            if not self._deliver():
                return
        self._release()

    def _deliver(self) -> bool:
        """Move what is held into the sink; False when it does not take it all now."""
        if not self.held:
            return True
        sink, pipe = self.sink.transport, self.pipe
        assert pipe is not None
        try:
            count = sink.splice_in(pipe.exit, self.held) or 0
        except OSError:  # EINVAL: not into this one
            return self._deliver_copy(pipe)
        if self.over:
            return False  # the write failed, and with it this way, whose pipe is not ours any more
        self.held -= count
        self.moved.bytes += count
        if not self.held:
            return True
        if sink.is_closing():
            self.drop()
        else:
            # Not even tried again: a sink that takes a part is full.
            self.block()
            sink.want_write()
        return False

    def _deliver_copy(self, pipe: Pipe) -> bool:
        try:
            data = pipe.drain(self.held)
        except OSError as exc:
            self.relay.failed(self.sink, exc)
            self.sink.transport.abort()
            self.drop()
            return False
        self.held = 0
        self.choose_engine(splices=False)
        self.write(data)
        return not (self.blocked or self.over)

    def _send_file(self) -> None:
        source, sink = self.source.transport, self.sink.transport
        try:
            count = sink.sendfile_in(source.fileno(), self.size)
        except OSError:  # EINVAL: not into this one; or the file cannot be read, which reading it tells
            self._copy_instead()
            return
        if count == 0:
            # The end. (A file of /proc may have more, and only for reading.)
            data = source.read_now(READ_SIZE)
            if data:
                self.write(data)
            return
        self.moved.bytes += count or 0
        self.at_hand -= count or 0
        if sink.is_closing():
            self.drop()
        elif (count or 0) < self.size:
            self.block()
            sink.want_write()

    def _copy_instead(self) -> None:
        self.choose_engine(splices=False)
        self.pump()

    def _copy(self) -> None:
        source, sink = self.source.transport, self.sink.transport
        buffer = self.relay.stock.buffer[: self.size]
        for _ in range(self.moves):
            try:
                count = source.readinto_now(buffer)
            except OSError as exc:
                self.relay.failed(self.source, exc)
                source.abort()
                return
            if not count:
                return
            self.write(buffer[:count])
            if self.blocked:
                # What it does not take has to be kept in a copy: offer what it took, next time.
                self.size = max(count - sink.get_write_buffer_size(), READ_SIZE)
            elif count == self.size:
                self.size = min(2 * count, SIZE)
            if self.blocked or self.over or count < len(buffer):
                return

    def _copy_bytes(self) -> None:
        # Other libraries keep what they could not send by reference, so it must never change.
        for _ in range(self.moves):
            data = self.source.transport.read_now(READ_SIZE)
            if not data:
                return
            self.write(data)
            if self.blocked or self.over or len(data) < READ_SIZE:
                return

    def _nothing(self) -> None:
        """The callbacks engine: ``data_received`` has it all."""

    def write(self, data: bytes | memoryview) -> None:
        self.sink.transport.write(data)
        if self.sink.transport.is_closing():
            self.drop()
        else:
            self.moved.bytes += len(data)

    # -- flow and end -------------------------------------------------------------------------

    def block(self) -> None:
        """The sink takes nothing now."""
        if not (self.blocked or self.over):
            self.blocked = True
            self.source.pause()

    def go_on(self) -> None:
        """The sink takes more."""
        if self.over or not self.blocked:
            return
        self.blocked = False
        if not self._deliver():
            return
        self._release()
        if self.ended:
            self._finish()
        elif self.moved.engine == "sendfile" and self._at_hand():
            self.pump()  # at the sink's pace: a turn of the source would be one more for each piece
            if not (self.blocked or self.over):
                self.source.resume()
        else:
            self.source.resume()
            if self.moves > 1:
                self.pump()

    def _at_hand(self) -> bool:
        """Whether the next bytes of the file need not wait for its disk; looked at once in a while."""
        if self.at_hand <= 0 and in_memory(self.source.transport.fileno()):
            self.at_hand = self.size
        return self.at_hand > 0

    def source_ended(self) -> None:
        """Nothing more comes. What is held still goes."""
        if not (self.ended or self.over):
            self.ended = True
            if not (self.held or self.blocked):
                self._finish()

    def stop(self) -> None:
        """Have it end here."""
        if not (self.ended or self.over):
            self.source.pause()
            self.source_ended()

    def drop(self) -> None:
        """The sink takes nothing any more."""
        if not self.over:
            self.broken = True
            # What a peer would still have sent nobody knows; what a file still has is there.
            self.undelivered = bool(self.held or self.blocked or (self.source.is_file() and not self.ended))
            back = self.source.inward
            self._finish()
            if back is None or back.over:
                self.source.pause()
            else:
                # It may have to get rid of what it sends before it takes what still goes the other way.
                self.source.resume()

    def cut(self) -> None:
        """The time is over."""
        if not self.over:
            self.source.pause()
            if self.held or self.blocked:
                late = TimeoutError(errno.ETIMEDOUT, "the other side did not take everything in time")
                self.relay.failed(self.sink, late)
                self.sink.transport.abort()
            self._finish()

    def forget(self) -> None:
        """Drop everything, and tell nobody."""
        self.over = True
        self._release()

    def _finish(self) -> None:
        self.forget()
        self.relay.way_over(self)

    def _release(self) -> None:
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            empty, self.held = not self.held, 0
            self.relay.stock.give(pipe, empty=empty)
