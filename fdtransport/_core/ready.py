"""Byte streams for protocols that do their own reading and writing: await-based streams, and the relay.

They are told of readiness and move the bytes by a call, with no callback, buffer and wake-up per piece.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import Meaning, meaning
from . import syscalls
from .file_sending import concerns_sink
from .reading import ByteReading

__all__ = ["ReadyProtocol", "ReadyTransport"]


class ReadyProtocol(Protocol):
    """A protocol that does its own reading: it is told of readiness and asks for the bytes.

    For await-based streams and the relay. Beside these it has the callbacks of
    ``asyncio.BaseProtocol`` and ``eof_received``.
    """

    def read_ready(self) -> None:
        """There is something to read, or the end: call ``read_now`` or one of its kin."""

    def peer_gone(self) -> None:
        """The hang-up watch saw the other side go while reading was paused. May be left out."""

    def write_ready(self) -> bool:
        """What ``want_write`` asked for; true to be called again. May be left out by one that never asks."""


class ReadyTransport(ByteReading):
    """The part of a byte stream that a `ReadyProtocol` uses."""

    __slots__ = ()

    # -- reading -------------------------------------------------------------------------------

    @property
    def can_read(self) -> bool:
        """Whether the descriptor has a read side."""
        return self._rfd >= 0

    def read_paused(self) -> None:
        """After ``pause_reading()`` in ``read_ready``: stop the poller, watch for a hang-up only."""
        self._readable_but_paused()

    def read_now(self, size: int) -> bytes | None:
        """Up to *size* bytes if there are any; None when there are none now, or none any more.

        End of file goes to ``eof_received()``, an error to ``connection_lost()``.
        """
        if not self._state.reads:
            return None
        self._burst = 0
        try:
            data: bytes = self._sys.read(self._rfd, size)
        except OSError as exc:
            self._read_failed(exc)
            return None
        if data:
            return data
        self._read_nothing()
        return None

    def readinto_now(self, buffer: bytearray | memoryview) -> int:
        """As ``read_now``, into *buffer*; 0 when there is nothing."""
        return self._take(self._sys.readv, self._rfd, [buffer])

    def splice_out(self, pipe: int, size: int) -> int:
        """Move up to *size* bytes from here into the write end of a pipe, without copying them.

        Returns the bytes moved; 0 as ``read_now`` gives None, or when the pipe is full.

        :raises OSError: EINVAL, this descriptor cannot be spliced from (splice(2)).
        """
        args = (self._rfd, pipe, size, None, None, syscalls.SPLICE_F_NONBLOCK)
        return self._take(self._sys.splice, *args, may_refuse=True)

    def _take(self, call: Callable[..., int], *args: Any, may_refuse: bool = False) -> int:
        if not self._state.reads:
            return 0
        try:
            count = call(*args)
        except OSError as exc:
            if exc.errno == errno.EINVAL and may_refuse:
                raise
            self._read_failed(exc)
            return 0
        if not count:
            self._read_nothing()
        return count

    # -- writing -------------------------------------------------------------------------------

    def _check_unseen(self) -> None:
        """Raise OSError (EINVAL) if bytes must not go out now that this transport has not looked at."""

    def splice_in(self, pipe: int, size: int) -> int | None:
        """Move up to *size* bytes from the read end of a pipe to here, without copying them.

        The pipe must hold some, and the queue of this transport must be empty. Returns the bytes
        moved; None when the kernel takes none now: `want_write` then tells when to go on, or the
        loss when it was an error.

        :raises OSError: EINVAL, this descriptor cannot be spliced to (a file opened with O_APPEND).
        """
        if not self._state.writes:
            return None
        try:
            self._check_unseen()
            moved: int = self._sys.splice(pipe, self._wfd, size, None, None, syscalls.SPLICE_F_NONBLOCK)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise
            self._not_taken(exc)
            return None
        self._tries = 0
        return moved

    def sendfile_in(self, file: int, size: int) -> int | None:
        """Move up to *size* bytes of the regular file *file*, from its position on, to here.

        As ``splice_in``, without a pipe: the queue must be empty, and None means "not now, or never
        again". 0 is the end of the file.

        :raises OSError: the kernel cannot, or *file* cannot be read.
        """
        if not self._state.writes:
            return None
        try:
            self._check_unseen()
            moved: int = self._sys.sendfile(self._wfd, file, None, size)
        except OSError as exc:
            if meaning(exc, self._WRITE_ERRORS) is Meaning.FATAL and not concerns_sink(exc):
                raise
            self._not_taken(exc)
            return None
        self._tries = 0
        return moved

    def _not_taken(self, exc: OSError) -> None:
        verdict = meaning(exc, self._WRITE_ERRORS)
        if verdict is Meaning.LATER:
            self._breathe(exc)
        elif verdict is Meaning.FATAL:
            self._write_failed(exc)

    def want_write(self) -> None:
        """Have ``protocol.write_ready()`` called when the kernel takes more and nothing is queued, until it
        returns something false.
        """
        if self._state.writes:
            self._add_writer()
