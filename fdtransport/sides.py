"""The ends of a relay: the protocol that a transport has meanwhile, and what it is asked to do."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ._core import syscalls
from ._core.reading import READ_SIZE
from ._core.spare import Stock
from ._core.stream import StreamTransport

__all__ = ["Course", "Moved", "Owner", "Side"]

#: Seconds of silence after which an end under TLS is closed, once the other has ended: TLS has no half-close.
SILENCE = 10.0


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


class Course(Protocol):
    """A direction of the relay (a `Way` of ``ways``), as its two sides see it."""

    pump: Callable[[], None]
    blocked: bool
    over: bool
    broken: bool
    undelivered: bool

    def write(self, data: bytes) -> None: ...
    def block(self) -> None: ...
    def go_on(self) -> None: ...
    def drop(self) -> None: ...
    def source_ended(self) -> None: ...


class Owner(Protocol):
    """The relay, as its ways and sides see it."""

    stock: Stock

    def way_over(self, way: Any) -> None: ...
    def side_lost(self) -> None: ...
    def failed(self, side: Side, exc: BaseException) -> None: ...
    def stop(self) -> None: ...
    def nobody_waits(self) -> None: ...


class Side(asyncio.Protocol):
    """One transport of a relay, and its protocol meanwhile (a `ReadyProtocol` where it is ours)."""

    def __init__(self, relay: Owner, name: str, transport: Any) -> None:
        self.relay = relay
        self.name = name
        self.transport = transport
        self.ours: bool = isinstance(transport, StreamTransport)
        # Where its class says what an end means to it. Another library's is a plain byte stream.
        self.kind: type[StreamTransport] = type(transport) if self.ours else StreamTransport
        self.former: Any = transport.get_protocol()
        self.lost: bool = self.former is None
        self.stream: Any = None  # the StreamReader that it had
        self.onward: Course | None = None  # where what is read here goes
        self.inward: Course | None = None  # where what is written here comes from
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

    def show_size(self, other: Any) -> None:
        """Where this tells the size of its window, and *other* has a window too, have that follow it."""
        if hasattr(self.transport, "forward_size") and hasattr(other, "resize") and not self.lost:
            self.transport.forward_size(other)

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
        """Pass an end of file on, where there is a way to.

        Returns seconds of silence after which all is over, where nobody may have heard of it. Under TLS it
        would end both directions.
        """
        if self.kind._EOF_CLOSES:
            self.transport.close()
            return None
        try:
            if not self.transport.is_closing() and self.transport.can_write_eof():
                self.transport.write_eof()
        except OSError as exc:
            self.relay.failed(self, exc)
            self.transport.abort()
        return SILENCE if self._is_tls() else self.kind._EOF_SILENCE

    def patience(self) -> float | None:
        """Seconds without progress in which it may take what it was sent, when nobody is left to wait."""
        return self.kind._PATIENCE

    def _is_hung_up(self) -> bool:
        """Whether the other side has ended both directions. (At the end of a pipe it is only this one.)"""
        fd = self.transport.fileno()
        return fd == self.transport._wfd >= 0 and bool(syscalls.poll_now(fd, 0) & select.POLLHUP)

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
        elif self.inward is not None and self._is_hung_up():
            self.relay.nobody_waits()

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
