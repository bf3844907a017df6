"""Programs as byte streams: what is written goes to standard input, and standard output is read.

For one more end of a relay, and for filters. What has more than these two descriptors, or is to be told of
more, is for ``subprocess_exec``; what wants a terminal, for ``spawn_pty``.
"""

from __future__ import annotations

import asyncio
import errno
import select
from collections.abc import Callable, Iterable, Mapping
from subprocess import DEVNULL, PIPE
from typing import Any, TypeVar

from ._core import syscalls
from ._core.child import Child, start_child
from ._core.child_fds import close_ends, descriptor_map, open_ends
from ._core.handle import FileLike
from ._core.spawn import StrOrBytesPath
from .pipes import PipeTransport
from .program import ProgramTransport
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .writer import StreamWriter

__all__ = ["ExecTransport", "connect_exec", "open_exec"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


class ExecTransport(ProgramTransport, PipeTransport):
    """A program's standard input and output, as the two directions of one stream. Made by ``connect_exec``.

    ``write_eof()`` is the end of its input, and its output goes on. What it does not want of its input is
    dropped, and no error: its end is told in any case, by ``eof_received`` and ``connection_lost(None)``.
    Extra info: ``pid``, ``pipe``, ``pipe_size``, ``fd``.
    """

    __slots__ = ("_child", "_dropped", "_last", "_linger", "_output_over", "_start")

    #: Whether it has nothing more to say, of itself.
    _output_over: bool

    def _check_kind(self) -> None:
        super()._check_kind()
        self._output_over = self._rfd < 0
        self._begin_program()

    async def finish(self, grace: float = 5.0) -> int:
        """Close both directions and return the return code, as soon as the program has ended.

        As a shell does, it waits for a program that has ended its output, or has none here, however long
        that is. Any other has lost its reader: it gets SIGTERM after *grace* seconds, and SIGKILL after as
        many again. Cancelling is safe, and leaves the program as it is then.
        """
        self.close()
        if not self._output_over:
            try:
                async with asyncio.timeout(grace):
                    return await self.wait()
            except TimeoutError:
                return await self.terminate(grace=grace)
        return await self.wait()

    def _read_eof(self) -> None:
        self._output_over = True
        super()._read_eof()

    def _write_failed(self, exc: OSError) -> None:
        if exc.errno == errno.EPIPE:
            self._unsent()
        else:
            super()._write_failed(exc)

    def _add_writer(self) -> None:
        # Without a reader a pipe counts as writable, for ever, to a poller.
        if syscalls.poll_now(self._wfd, 0) & select.POLLERR:
            self._unsent()
        else:
            super()._add_writer()


async def connect_exec(
    protocol_factory: Callable[[], P],
    program: StrOrBytesPath,
    *args: StrOrBytesPath,
    mode: str = "rw",
    stderr: FileLike | int | None = None,
    linger: float | None = 0.0,
    executable: StrOrBytesPath | None = None,
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    cwd: StrOrBytesPath | None = None,
    user: str | int | None = None,
    group: str | int | None = None,
    extra_groups: Iterable[str | int] | None = None,
) -> tuple[ExecTransport, P]:
    """Start *program* with its standard input and output on one new transport. There is no shell in between.

    *mode*: ``"rw"``; with ``"w"`` its output goes where this process's goes, as with popen(3), and with
    ``"r"`` its input is /dev/null. *stderr*: None for this process's, DEVNULL, STDOUT, a descriptor or an
    open file. *linger*: seconds, after the end of the program, for which others that have its output (a
    process in the background) are listened to; None: until they have gone. *executable*, *env*, *cwd*,
    *user*, *group*, *extra_groups*: as ``subprocess.Popen``.

    Returns ``(transport, protocol)`` after ``connection_made``. ``transport.returncode`` and
    ``await transport.wait()`` tell of the process; ``close()`` ends its input and takes its output no more,
    ``await transport.finish()`` sees to its end as well. When this raises or is cancelled, there is no
    program.

    :raises OSError: no such program, not executable, *cwd*; no descriptors are left.
    :raises ValueError: *mode*, an unknown user, a NUL.

    ::

        transport, protocol = await connect_exec(Lines, "sort", "-n")
        transport.write(b"10\\n9\\n")
        transport.write_eof()

    See pipe(7); how a program is started is with ``subprocess_exec``.
    """
    if mode not in ("r", "w", "rw"):
        raise ValueError(f"mode must be 'r', 'w' or 'rw', not {mode!r}")
    if stderr == PIPE or isinstance(stderr, str):
        raise ValueError("stderr is None, DEVNULL, STDOUT, a descriptor or an open file here, and no PIPE")
    if linger is not None and not linger >= 0:
        raise ValueError(f"linger ({linger!r}) must be >= 0, or None")
    source, sink = PIPE if "w" in mode else DEVNULL, PIPE if "r" in mode else None
    wanted = descriptor_map(None, None, stdin=source, stdout=sink, stderr=stderr)
    loop = asyncio.get_running_loop()
    protocol = protocol_factory()
    waiter: asyncio.Future[None] = loop.create_future()
    with open_ends(wanted) as (theirs, ours):

        def start(loop: asyncio.AbstractEventLoop, exited: Callable[[], object]) -> Child:
            return start_child(
                loop, exited, [program, *args], executable=executable, fds=theirs, env=env, cwd=cwd,
                user=user, group=group, extra_groups=extra_groups,
            )  # fmt: skip

        pair = (ours.get(1), ours.get(0))
        try:
            transport = ExecTransport(loop, pair, protocol, waiter, start=start, linger=linger)
        except BaseException:
            close_ends(ours)
            raise
    try:
        await waiter
    except BaseException:
        transport._child.kill_and_forget()
        transport._give_back()
        close_ends(ours)
        raise
    return transport, protocol


async def open_exec(
    program: StrOrBytesPath, *args: StrOrBytesPath, limit: int = DEFAULT_LIMIT, **options: Any
) -> tuple[StreamReader, StreamWriter[ExecTransport]]:
    """A reader of *program*'s standard output, and a writer to its standard input.

    As ``connect_exec``, with its options. ``writer.transport`` is the `ExecTransport`. *limit*: bytes that
    ``readline`` and ``readuntil`` accept at most.

    ::

        reader, writer = await open_exec("tr", "a-z", "A-Z")
        writer.write(b"hello\\n")
        writer.write_eof()
        print(await reader.read(), await writer.transport.wait())
    """
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await connect_exec(lambda: protocol, program, *args, **options)
    return reader, stream_writer(transport, protocol, reader, loop)
