"""One direction of a relay: what comes from one side and goes to the other.

The engines of a direction are here; ``relay`` says what they are and when.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from ._core.readiness import in_memory
from ._core.reading import READ_SIZE
from ._core.spare import SIZE, TCP_SIZE, Pipe
from .sides import Moved, Owner, Side

__all__ = ["Way"]

#: Moves per wake-up, so that one relay cannot starve the others.
MOVES = 4


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
        try:
            self.sink.transport.write(data)
        except OSError as exc:  # a line that the terminal would cut
            self.relay.failed(self.sink, exc)
            self.sink.transport.abort()
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
