"""FIFOs: pipes with a name, which writers and readers open and leave as they like.

Two things set them apart from other pipes (fifo(7)). Opening one for writing fails while nobody reads it;
here that is waited for. And the end of file of one writer need not be the last word: *eof* says what it is.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from ._core import syscalls
from ._core.fifo_file import FLAGS, Path, opened_fifo
from ._core.lifecycle import Event
from ._core.opening import open_transport
from ._core.readiness import events_of, forgets_after_error
from .pipes import PipeTransport
from .streams import DEFAULT_LIMIT, StreamReader, open_streams
from .writer import StreamWriter

__all__ = ["FifoTransport", "connect_fifo", "open_fifo"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Mode = Literal["r", "w"]


class FifoTransport(PipeTransport):
    """One end of a FIFO. *eof*: see ``connect_fifo``; the rest is as with `PipeTransport`."""

    __slots__ = ("_eof",)

    def __init__(self, *args: Any, eof: str = "close", **kwargs: Any) -> None:
        self._eof = eof
        super().__init__(*args, **kwargs)

    def _is_end(self) -> bool:
        # Before the first writer a read gives nothing as well; then the FIFO has not hung up.
        return bool(syscalls.poll_now(self._rfd, select.POLLIN) & select.POLLHUP)

    def _read_eof(self) -> None:
        if self._eof != "event":
            super()._read_eof()
            return
        try:
            self._await_next_writer()
        except OSError as exc:
            self._step(Event.READ_ERROR, exc)
            return
        try:
            self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.eof_received() call failed.", exc)

    def _await_next_writer(self) -> None:
        """Have the descriptor be as if no writer had ever been there.

        A FIFO that the last writer has left counts as ready for ever; one that is newly opened does
        not. Opened anew by way of /proc it is the same one, wherever its path leads by now (proc(5)).
        """
        fresh = syscalls.open(f"/proc/self/fd/{self._rfd}", os.O_RDONLY | FLAGS)
        try:
            if syscalls.poll_now(self._rfd, select.POLLIN) & select.POLLIN:
                return  # the next one has been here already: what it left ends in the same way
            self._remove_interest()
            syscalls.dup2(fresh, self._rfd, False)
        finally:
            syscalls.close(fresh)
        self._hung_up = False
        self._read_events = events_of(self._loop)
        if forgets_after_error(self._loop):
            self._watch(self._rfd, reading=True)
        self._add_reader()


async def connect_fifo(
    protocol_factory: Callable[[], P],
    path: Path,
    mode: Mode = "r",
    *,
    eof: Literal["close", "event", "reopen"] = "close",
    create: int | None = None,
    pipe_size: int | None = None,
) -> tuple[FifoTransport, P]:
    """Read or write the FIFO at *path*.

    *mode*: ``"r"`` returns at once, whether anybody writes or not. ``"w"`` waits for a reader, without
    a thread; ``asyncio.timeout`` bounds the wait.

    *eof*: what a reader is told when the last writer leaves. ``"close"``: ``eof_received``, and then
    the loss, as with every pipe. ``"event"``: ``eof_received`` each time, and the transport waits for
    the next writer. ``"reopen"``: nothing; writers come and go unnoticed (it needs permission to write
    as well, because the FIFO is then held open for writing). With the last two only this side ends it,
    and ``hung_up`` stays false.

    *create*: permission bits with which the FIFO is made if nothing is there; the umask applies.
    *pipe_size*: see `PipeTransport`.

    Returns ``(transport, protocol)`` after ``connection_made``. When it raises or is cancelled nothing
    stays: no descriptor, and no FIFO that was made for it.

    :raises EndpointError: there is something else at *path*; it is not opened.
    :raises OSError: as open(2): FileNotFoundError, PermissionError...
    :raises ValueError: unknown *mode* or *eof*, or a NUL in *path*.

    ::

        transport, protocol = await connect_fifo(Requests, "/run/app/requests", eof="event", create=0o600)

    See fifo(7). A reader that itself waits in open(2), as a shell's does, is announced by nothing in the
    kernel: it is looked for up to every 0.1 s. Others are seen at once by inotify(7).
    """
    async with opened_fifo(path, mode, eof, create) as half:
        return await open_transport(FifoTransport, protocol_factory, half, eof=eof, pipe_size=pipe_size)


async def open_fifo(
    path: Path,
    mode: Mode = "r",
    *,
    eof: Literal["close", "reopen"] = "close",
    create: int | None = None,
    pipe_size: int | None = None,
    limit: int = DEFAULT_LIMIT,
) -> tuple[StreamReader, StreamWriter[FifoTransport]]:
    """A reader and a writer for the FIFO at *path*, of which the one that *mode* names can be used.

    As ``connect_fifo``. *limit*: bytes that ``readline`` and ``readuntil`` accept at most.

    :raises ValueError: also for ``eof="event"``: a reader that has ended cannot go on.

    ::

        reader, writer = await open_fifo("/run/app/requests", eof="reopen", create=0o600)
        async for line in reader: ...
    """
    if eof not in ("close", "reopen"):
        raise ValueError(f"eof must be 'close' or 'reopen' for a reader, not {eof!r}")
    async with opened_fifo(path, mode, eof, create) as half:
        return await open_streams(FifoTransport, half, limit=limit, eof=eof, pipe_size=pipe_size)
