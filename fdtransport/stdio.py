"""The standard streams of this process, whatever they are, as one transport.

Files, pipes, terminals, sockets, /dev/null, here-documents: all work, and all are left as they were found,
also when this process is killed (see ``_core/borrowed.py`` for how).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ._core import syscalls
from ._core.borrowed import Loan, Nowait, borrow
from ._core.handle import FileLike, Handle, fileno_of
from ._core.lifecycle import Event, State
from ._core.opening import open_transport
from ._core.readiness import forgets_after_error
from ._core.stream import StreamTransport
from .errors import bad_descriptor
from .streams import DEFAULT_LIMIT, StreamReader, open_streams
from .writer import StreamWriter

__all__ = ["StdioTransport", "connect_stdio", "open_stdio"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


class StdioTransport(StreamTransport):
    """Reads standard input and writes to standard output; both stay open when it ends.

    *file*: ``(input, output)``, usually ``(0, 1)``; None for one that is not wanted. They are borrowed:
    ``print()`` works beside it and after it, and O_NONBLOCK of what other processes share is not
    touched. ``write_eof()`` lets the reader of a pipe or socket see the end of our output; later prints
    go to /dev/null then.

    :raises OSError: one of the two is not open (EBADF), or a directory.
    :raises DescriptorInUseError: one is under a transport already.
    """

    __slots__ = ("_files", "_loans", "_output", "_stay_blocking")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: tuple[FileLike | None, FileLike | None],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if not isinstance(file, tuple) or len(file) != 2:
            raise TypeError(f"a pair (input, output) is needed, not {file!r}")
        self._files = file
        self._loans: list[Loan] = []
        try:
            source = self._borrow(file[0], to_read=True)
            self._output = self._borrow(file[1], to_read=False)
            self._stay_blocking = {loan.handle.fd for loan in self._loans if loan.stays_blocking}
            pair: Any = (source and source.handle, self._output and self._output.handle)
            super().__init__(loop, pair, *args, **kwargs)
        except BaseException:
            self._return_all()
            raise

    def _borrow(self, file: FileLike | None, *, to_read: bool) -> Loan | None:
        if file is None:
            return None
        fd = fileno_of(file)
        if fd < 3 and (sys.__stdin__, sys.__stdout__, sys.__stderr__)[fd] is None:
            # Python found it closed; by now the number may be the loop's own.
            raise bad_descriptor(f"standard stream {fd} was not open when this program began")
        loan = borrow(file, to_read=to_read)
        self._loans.append(loan)
        return loan

    def _return_all(self) -> None:
        with contextlib.ExitStack() as stack:  # all of them, whatever one raises
            while self._loans:
                stack.callback(self._loans.pop(0).end)

    def _check_kind(self) -> None:
        super()._check_kind()
        if self._stay_blocking:
            self._sys = Nowait(self._stay_blocking)

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        self._rfd = self._wfd = -1
        self._reading_handle = self._writing_handle = None
        self._return_all()
        files, self._files = self._files, (None, None)
        return files

    def _add_reader(self) -> None:
        super()._add_reader()
        self._keep_mode()

    def _add_writer(self) -> None:
        super()._add_writer()
        self._keep_mode()

    def _keep_mode(self) -> None:
        # libuv makes what it polls non-blocking.
        if self._stay_blocking and forgets_after_error(self._loop):
            for fd in self._stay_blocking:
                with contextlib.suppress(OSError):
                    syscalls.set_blocking(fd, True)

    def _end_writing(self) -> None:
        loan, self._output = self._output, None
        if loan is None:
            return
        self._part_with_writing()
        try:
            _end_output(loan)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN and self._state is not State.LOSING:
                self._step(Event.READ_ERROR, exc)


def _end_output(loan: Loan) -> None:
    """Let the reader see the end: it does when nobody holds the pipe, neither we nor the standard output."""
    standard = loan.claim.fd
    mode = syscalls.fstat(standard).st_mode
    if stat.S_ISSOCK(mode):
        syscalls.shutdown_write(standard)
    loan.handle.close()
    if not (stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if stream.fileno() == standard:
                stream.flush()  # what was printed before; what is printed later goes nowhere
    null = syscalls.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        syscalls.dup2(null, standard)
    finally:
        syscalls.close(null)


async def connect_stdio(
    protocol_factory: Callable[[], P], stdin: FileLike | None = 0, stdout: FileLike | None = 1
) -> tuple[StdioTransport, P]:
    """Put one transport on this process's standard input and output.

    *stdin*, *stdout*: other descriptors or file objects in their place; None leaves one out. Returns
    ``(transport, protocol)`` after ``connection_made``. Cancelling is safe.

    End of file, also a terminal's Ctrl-D, is ``eof_received``; if that returns true, output goes on.
    Closing leaves both descriptors open and as they were. What ``sys.stdin`` has buffered is not seen
    here, and what ``print`` has buffered comes later: do not mix them without a flush.

    :raises OSError: one of them is not open (EBADF), not open in that direction, or a directory.
    :raises DescriptorInUseError: one of them is under a transport already.

    ::

        transport, protocol = await connect_stdio(asyncio.Protocol)
        transport.write(b"hello\\n")

    See open(2) for O_NONBLOCK, proc(5) for /proc/self/fd, preadv2(2) for RWF_NOWAIT.
    """
    return await open_transport(StdioTransport, protocol_factory, (stdin, stdout))


async def open_stdio(
    stdin: FileLike | None = 0, stdout: FileLike | None = 1, *, limit: int = DEFAULT_LIMIT
) -> tuple[StreamReader, StreamWriter[StdioTransport]]:
    """A reader of this process's standard input and a writer to its standard output.

    As ``connect_stdio``. *limit*: bytes that ``readline`` and ``readuntil`` accept at most.

    ::

        reader, writer = await open_stdio()
        async for line in reader:
            writer.write(line.upper())
            await writer.drain()
    """
    return await open_streams(StdioTransport, (stdin, stdout), limit=limit)
