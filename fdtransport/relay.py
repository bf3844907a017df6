"""Two ends: what one sends goes to the other, both ways, with back pressure and ends passed on.

Each direction has one engine, chosen once:

    sendfile    a regular file into a socket: its pages go there by themselves (sendfile(2))
    splice      both ends are byte streams of this library: the kernel moves pages through a pipe,
                and no byte enters the process (splice(2))
    copy        the kernel refuses both for one of them, or what is written to is a transport of
                another library: read into one buffer, written from it
    callbacks   what is read from is a transport of another library (TLS, for instance): what it
                delivers is written
    records     an end has records (see ``records``)

A slow reader holds its writer back: one pipe or one buffer of bytes at most is between the two.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ._core.packet import PacketTransport
from ._core.spare import Stock, stock_of
from .packets import PacketStream
from .records import PIECE, Framing, Lengths, Pieces, RecordSide, RecordWay
from .sides import Moved, Side
from .ways import Way

__all__ = ["Moved", "Relay", "RelayResult", "relay"]


@dataclass(slots=True)
class RelayResult:
    """What a relay has done; kept up to date while it runs."""

    a_to_b: Moved = field(default_factory=Moved)
    b_to_a: Moved = field(default_factory=Moved)
    seconds: float = 0.0
    """How long it took; 0 while it runs."""
    error: BaseException | None = None
    """The first failure: an end was lost with an error, or did not take all that was read for it.
    None when everything came to a regular end."""
    failed: str = ""
    """Which end that was: ``"a"`` or ``"b"``."""

    def raise_for_error(self) -> None:
        """Raise ``error``, if there is one."""
        if self.error is not None:
            raise self.error


async def relay(
    a: Any,
    b: Any,
    *,
    linger: float | None = None,
    copy: bool = False,
    one_way: bool = False,
    record_size: int = PIECE,
    frame: int | None = None,
) -> RelayResult:
    """Send what comes from *a* to *b*, and what comes from *b* to *a*, until both have ended.

    *a* and *b*: transports or (reader, writer) pairs, of this library or of another, a reader or a writer
    alone for one direction, and this library's transports of records and `PacketStream` objects. They are
    the relay's from now on, and it closes them at the end. What a reader holds goes first, after what still
    waits to be written. Their protocols get no more data, and are told of the loss. (What came before is
    theirs: a protocol that wants none of it pauses reading in ``connection_made``.)

    An end of file is passed on, after all that came before it, by ``write_eof()`` where the other
    end has that; the other direction goes on. When both directions have ended, both ends are closed,
    with everything sent. When an end is lost, what was read from it is still delivered to the other.

    Where one end is the user's terminal (see ``attach_terminal``) and the other a terminal with a program,
    that window gets the size of this one, and follows it. The end of the other end is that of the user's
    terminal as well.

    TLS has no half-close. When it is what an end of file should be passed on to, the other direction
    goes on until nothing has come for 10 seconds; when TLS says goodbye, both directions end. A serial line
    has none either: it is given 1 second of silence.

    A program at an end (`ExecTransport`, `PtyProcessTransport`) is not ended by the relay, which only closes
    what leads to it: ``await transport.finish()`` does that. A terminal is told of an end by Ctrl-D, which
    its program may take for something else: it is hung up when it has been silent for 10 seconds since. When
    the other end is lost, a program gets what is left for it as long as it takes some every 10 seconds.

    *linger*: seconds that the second direction may go on after the first has ended; None: as long as
    it wants. What the other end has not taken by then is dropped.
    *copy*: never splice.
    *one_way*: from *a* to *b* only. What *b* sends is read and dropped then, as it is where *a* has
    no write side.

    *record_size*: bytes of the largest record that is made of what a byte stream sends: 1400, which fits
    into one packet of most networks. What is read from it at once becomes records of that size and a
    shorter one; what a record holds is written to it as it is.
    *frame*: 2 or 4: in the byte stream each record comes after its length, a big-endian number of so many
    bytes, and keeps its boundaries. Packets of a TUN or TAP always have one, of 2 unless told otherwise.

    Between two ends with records, each record stays one, and a full queue of the one pauses the other. An
    error that concerns one record is counted and no end. An end of file cannot be told to a datagram
    socket: without *linger*, its answers are waited for one second then.

    Returns a `RelayResult`: bytes and engine each way, seconds, and the error if an end failed. The
    error is returned rather than raised because a peer that resets is daily bread to a relay; call
    ``raise_for_error()`` where it is not. `Relay` shows the counts while they grow.

    Cancelling aborts both ends: what was read and not written yet is lost. No descriptor is.

    :raises TypeError: an end is no transport, or another library's one of records.
    :raises ValueError: the ends are the same, no bytes can go between them, or options do not fit them.

    ::

        async def serve(reader, writer):
            result = await relay((reader, writer), await open_connection("127.0.0.1", 80))
            print(result.a_to_b.bytes, result.b_to_a.bytes)

        await relay(one_process.stdout, another.stdin)
        await relay((process.stdout, process.stdin), (reader, writer))
    """
    made = Relay(a, b, linger=linger, copy=copy, one_way=one_way, record_size=record_size, frame=frame)
    return await made.run()


class Relay:
    """A relay with its counts in view: ``relay(...)`` is ``Relay(...).run()``.

    ``result`` is kept up to date while it runs, and ``stop()`` ends it.
    """

    def __init__(
        self,
        a: Any,
        b: Any,
        *,
        linger: float | None = None,
        copy: bool = False,
        one_way: bool = False,
        record_size: int = PIECE,
        frame: int | None = None,
    ) -> None:
        self._framing: Callable[[], Framing] = (
            partial(Pieces, record_size) if frame is None else partial(Lengths, frame)
        )
        self._framing()  # tells what is wrong
        self._framed = frame is not None
        self.result: RelayResult = RelayResult()
        self._ends = (a, b)
        self._linger = linger
        self._splices = not copy and hasattr(os, "splice")
        self._one_way = one_way
        self._sides: dict[int, Side] = {}
        self._ways: list[Way] = []
        self._timer: asyncio.TimerHandle | None = None
        self.stock: Stock

    async def run(self) -> RelayResult:
        """Relay until it has ended, as ``relay()`` tells. To be called once."""
        started = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._find_ways()
        self.stock = stock_of(self._loop)
        self.stock.users += 1
        try:
            self._start()
            await self._done
        except BaseException:
            for way in self._ways:
                way.forget()
            for side in self._sides.values():
                side.transport.abort()
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self.stock.leave()
            self.result.seconds = time.monotonic() - started
        return self.result

    def stop(self) -> None:
        """Read no more. What was read still goes out, and then both ends are closed.

        A program gets it as long as it takes some of it every 10 seconds.
        """
        for way in self._ways:
            way.stop()
        self.nobody_waits()

    def _find_ways(self) -> None:
        a_source, a_sink = self._sides_of("a", self._ends[0])
        b_source, b_sink = self._sides_of("b", self._ends[1])
        if {a_source, a_sink} & {b_source, b_sink} - {None}:
            raise ValueError(f"both ends of the relay are {self._ends[0]!r}")
        if a_source and b_sink:
            self._ways.append(self._way(a_source, b_sink, self.result.a_to_b))
        if b_source and a_sink and not self._one_way:
            self._ways.append(self._way(b_source, a_sink, self.result.b_to_a))
        if not self._ways:
            raise ValueError("no bytes can go from {!r} to {!r}".format(*self._ends))

    def _way(self, source: Side, sink: Side, moved: Moved) -> Way:
        with_records = isinstance(source, RecordSide) + isinstance(sink, RecordSide)
        if self._framed and with_records != 1:
            raise ValueError("frame is for a byte stream at one end and records at the other")
        if not with_records:
            return Way(self, source, sink, moved)
        framing = self._framing()
        if with_records == 1 and not self._framed:
            records: Any = source if isinstance(source, RecordSide) else sink
            if records.transport._FRAME:  # its records are of no use without their boundaries
                framing = Lengths(records.transport._FRAME)
        return RecordWay(self, source, sink, moved, framing)

    def _sides_of(self, name: str, end: Any) -> tuple[Side | None, Side | None]:
        """Where *end* is read and where it is written: often the same, None where there is none."""
        reader, writer = end if isinstance(end, tuple) and len(end) == 2 else (end, end)
        reads, writes = not isinstance(end, asyncio.StreamWriter), not isinstance(end, asyncio.StreamReader)
        stream = None
        if isinstance(end, PacketStream):
            reader = writer = end.transport
        if isinstance(reader, asyncio.StreamReader):
            stream, reader = reader, reader._transport  # type: ignore[attr-defined]
        if isinstance(writer, asyncio.StreamWriter):
            writer = writer.transport
        source = self._side(name, reader if reads else writer)
        sink = self._side(name, writer if writes else reader)
        source.stream = stream
        return (
            source if reads and source.can_read() else None,
            sink if writes and sink.can_write() else None,
        )

    def _side(self, name: str, transport: Any) -> Side:
        has_records = isinstance(transport, PacketTransport)
        if not hasattr(transport, "set_protocol") or (hasattr(transport, "sendto") and not has_records):
            # Datagram transports of others cannot pause.
            what = "a relay is between byte streams, and this library's transports of records"
            hint = "; its (stdout, stdin) are" if hasattr(transport, "stdin") else ""
            raise TypeError(f"{what}, which {transport!r} is not{hint}")
        make = RecordSide if has_records else Side
        return self._sides.setdefault(id(transport), make(self, name, transport))

    def _start(self) -> None:
        for way in self._ways:
            way.choose_engine(self._splices)
        for side in self._sides.values():
            side.take_over()
        for way in self._ways:
            way.source.show_size(way.sink.transport)
        for way in self._ways:
            way.start()
        for side in self._sides.values():
            if side.lost:
                side.gone()
            elif side.onward is None:
                side.can_read()  # so that what comes can be dropped

    # -- what ways and sides tell -------------------------------------------------------------

    def way_over(self, way: Way) -> None:
        """Nothing more goes this way."""
        if all(way.over for way in self._ways):
            for side in self._sides.values():
                if not side.lost:
                    side.transport.close()
            self.side_lost()
        elif not way.broken:
            silence = way.sink.end()
            if self._timer is not None:
                return
            if self._linger is not None:
                self._timer = self._loop.call_later(self._linger, self._expire)
            elif silence is not None:
                self._expire_after_silence(silence, -1)

    def nobody_waits(self) -> None:
        """Whoever would have the answers has gone: a program is not waited for without end."""
        patience = [way.sink.patience() for way in self._ways if not way.over]
        if self._timer is None and any(patience):
            self._expire_after_silence(max(filter(None, patience)), -1)

    def _expire(self) -> None:
        for way in self._ways:
            way.cut()

    def _expire_after_silence(self, silence: float, before: int) -> None:
        moved = self.result.a_to_b.bytes + self.result.b_to_a.bytes
        if moved == before:
            self._expire()
        else:
            self._timer = self._loop.call_later(silence, self._expire_after_silence, silence, moved)

    def side_lost(self) -> None:
        """A transport has ended, or nothing is left to do."""
        if all(side.lost for side in self._sides.values()) and not self._done.done():
            self._done.set_result(None)

    def failed(self, side: Side, exc: BaseException) -> None:
        """The first failure is the relay's."""
        if self.result.error is None:
            self.result.error, self.result.failed = exc, side.name
