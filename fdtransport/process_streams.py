"""Programs with any descriptors, to be awaited: asyncio's ``create_subprocess_exec``, with a map of them."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ._core.child import LADDER, Ending
from ._core.child_fds import UNSET, Descriptors, descriptor_map
from ._core.lifecycle import CloseReason
from ._core.spawn import StrOrBytesPath
from .errors import OutputLimitError
from .popen_words import SAME, check_words
from .process_pipes import nobody_reads
from .process_transport import ProcessTransport
from .processes import open_process, shell_words
from .streams import DEFAULT_LIMIT, StreamReader, StreamReaderProtocol, stream_writer

__all__ = ["Process", "create_subprocess_exec", "create_subprocess_shell"]

#: Options of `ProcessTransport`.
_OURS = SAME | {"linger", "pipe_size"}
#: Bytes that ``communicate`` asks for at once.
PIECE = 64 * 1024


class _Input(StreamReaderProtocol):
    """Of a descriptor that is only written to."""

    def connection_lost(self, exc: Exception | None) -> None:
        reader, gone = self._stream_reader, self._transport.close_reason is CloseReason.PEER  # type: ignore[attr-defined]
        super().connection_lost(exc)
        if gone and exc is None:
            # The process has let go of it before anything was written in vain. drain() is to say the same
            # as it does after that.
            reader.set_exception(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))


class _Both(StreamReaderProtocol):
    """Of a socket."""

    def eof_received(self) -> bool:
        return bool(super().eof_received()) and not nobody_reads(self._transport)


class _Streams(asyncio.SubprocessProtocol):
    """The protocol of a process whose descriptors have streams; the transport holds it, and it them."""

    stdin: asyncio.StreamWriter | None = None
    stdout: StreamReader | None = None
    stderr: StreamReader | None = None

    def __init__(self, modes: Mapping[int, object], limit: int, loop: asyncio.AbstractEventLoop) -> None:
        if limit <= 0:
            raise ValueError(f"limit ({limit!r}) must be > 0")
        self._modes, self._limit, self._loop = modes, limit, loop
        self._sides: dict[int, tuple[StreamReader, StreamReaderProtocol]] = {}
        self.fds: dict[int, Any] = {}

    def pipe_protocol(self, _process: ProcessTransport, number: int) -> asyncio.BaseProtocol:
        reader = StreamReader(self._limit, self._loop)
        kind = {"r": StreamReaderProtocol, "w": _Input, "rw": _Both}[str(self._modes[number])]
        protocol = kind(reader, loop=self._loop)
        self._sides[number] = reader, protocol
        return protocol

    def connection_made(self, transport: Any) -> None:
        for number, (reader, protocol) in sorted(self._sides.items()):
            mode = self._modes[number]
            if mode != "r":
                pipe = transport.get_pipe_transport(number)
                writer = stream_writer(pipe, protocol, reader, self._loop)
            self.fds[number] = reader if mode == "r" else writer if mode == "w" else (reader, writer)
            if number == 0 and mode != "r":
                self.stdin = writer
            elif number == 1 and mode != "w":
                self.stdout = reader
            elif number == 2 and mode != "w":
                self.stderr = reader


class Process(asyncio.subprocess.Process):
    """A process with a stream on each of its descriptors. Made by ``create_subprocess_exec``.

    asyncio's ``Process``, with its attributes (``stdin``, ``stdout``, ``stderr``, ``pid``, ``returncode``)
    and methods. As an async context manager it ends with ``aclose()``.
    """

    _transport: ProcessTransport
    _loop: asyncio.AbstractEventLoop

    def __init__(
        self, transport: ProcessTransport, protocol: _Streams, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(transport, protocol, loop)
        #: What is on the child's descriptors: a reader, a writer, or a pair of both for ``"rw"``.
        self.fds: dict[int, Any] = protocol.fds
        self._output: dict[int, list[bytes]] = {}

    @property
    def transport(self) -> ProcessTransport:
        """The transport of the process."""
        return self._transport

    @property
    def status_known(self) -> bool:
        """False when somebody else took the status of the process: ``returncode`` is 255 then."""
        return self._transport.status_known

    async def wait(self) -> int:
        """The return code, as soon as the process has ended.

        That alone: also when output is unread, or a process in the background holds the descriptors.
        Cancelling is safe.
        """
        return await self._transport.wait()

    async def wait_closed(self) -> None:
        """Return when the process has ended and every descriptor of it as well. Cancelling is safe."""
        await self._transport.wait_closed()

    async def aclose(self, timeout: float | None = None) -> None:
        """Kill the process if it runs, close its descriptors, and return when that is done."""
        await self._transport.aclose(timeout)

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def terminate(self, ladder: Sequence[int] = LADDER, grace: float = 5.0) -> Ending:  # type: ignore[override]
        """Send SIGTERM, or the first signal of *ladder*. Nothing, if the process has ended.

        Awaiting the result goes on with the next signal, by default SIGKILL, whenever *grace* seconds were
        not enough, and gives the return code.

        ::

            code = await process.terminate(grace=1.0)

        :raises PermissionError: as kill(2). :raises ValueError: *ladder* is empty, *grace* negative.
        """
        return self._transport.terminate(ladder, grace)

    async def communicate(  # type: ignore[override]
        self,
        input: bytes | bytearray | memoryview | None = None,
        *,
        limit: int | None = None,
        linger: float | None = None,
    ) -> tuple[bytes | None, bytes | None]:
        """Send *input*, close ``stdin``, read ``stdout`` and ``stderr`` to their ends, wait for the process.

        Returns what came from both; None for one that is not read. *limit*: bytes of each that are taken
        at most. *linger*: seconds that output is waited for after the process has ended, when somebody else
        still holds it (a process in the background); then it is closed. None: until they let go.

        A process that ends without reading all of *input* is no error. Cancelling is safe: the process runs
        on, and what was read is given by the next call.

        :raises OutputLimitError: there is more than *limit*. The process runs on: kill it, or call again
            for the rest, with a higher limit. :raises OSError: reading failed.

        ::

            async with await create_subprocess_exec("du", "-s", "/", fds={1: "r", 2: 2}) as process:
                output, _ = await process.communicate(limit=1 << 20, linger=0.1)
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit ({limit!r}) must be >= 0")
        if linger is not None and not linger >= 0:
            raise ValueError(f"linger ({linger!r}) must be >= 0 seconds, or None")
        readers = {number: one for number, one in ((1, self.stdout), (2, self.stderr)) if one is not None}
        work = [self._read_to_end(number, reader, limit) for number, reader in readers.items()]
        if self.stdin is not None:
            work.append(self._send(input))
        elif input is not None:
            raise ValueError("there is input, and stdin is no pipe of this side's")
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            if linger is not None:
                await self._wait_and_linger(tasks, linger)
            else:
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for number in readers:
            self._transport.get_pipe_transport(number).close()
        await self.wait()
        taken = {number: b"".join(self._output.pop(number, ())) for number in readers}
        return taken.get(1), taken.get(2)

    async def _wait_and_linger(self, tasks: Sequence[asyncio.Future[None]], linger: float) -> None:
        if tasks:
            work = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION))
            ended = asyncio.ensure_future(self.wait())
            try:
                await asyncio.wait([work, ended], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait([work], timeout=linger)
            finally:
                ended.cancel()
                work.cancel()
        for task in tasks:
            if task.done():
                task.result()
        if self.stdin is not None:
            self._transport.get_pipe_transport(0).abort()  # whoever has it now does not read

    async def _send(self, data: bytes | bytearray | memoryview | None) -> None:
        writer = self.stdin
        assert writer is not None
        try:
            if data and not writer.is_closing():
                writer.write(data)
                await writer.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it did not want all of it
        writer.close()

    async def _read_to_end(self, number: int, reader: Any, limit: int | None) -> None:
        pieces = self._output.setdefault(number, [])
        size = sum(map(len, pieces))
        while limit is None or size <= limit:
            piece = await reader.read(PIECE)
            if not piece:
                return
            pieces.append(piece)
            size += len(piece)
        raise OutputLimitError(number, limit)


async def create_subprocess_exec(
    program: StrOrBytesPath,
    *args: StrOrBytesPath,
    stdin: Any = UNSET,
    stdout: Any = UNSET,
    stderr: Any = UNSET,
    limit: int = DEFAULT_LIMIT,
    fds: Descriptors | None = None,
    **options: Any,
) -> Process:
    """Start a program, with a stream on each descriptor of it that is asked for.

    As asyncio's, on every loop and in every thread. *stdin*, *stdout*, *stderr*: None to inherit (the
    default), PIPE, DEVNULL or STDOUT of ``asyncio.subprocess``, a descriptor or an open file. *fds* in their
    place: the whole map of the child's descriptors, ``{number: what}``, and no others; see
    ``subprocess_exec``. Both may be given, for different numbers. *limit*: bytes that ``readline`` and
    ``readuntil`` accept at most. *options*: *cwd*, *env*, *user* and the others of ``subprocess_exec``. There
    is no shell in between.

    ``process.fds[n]`` is the reader of the child's descriptor *n*, the writer, or a pair of both for
    ``"rw"``. Of 0 to 2 they are ``stdin``, ``stdout`` and ``stderr`` as well.

    Cancelling is safe: the process is killed.

    :raises OSError: the program or *cwd* cannot be used (with its ``filename``), a descriptor is closed.
    :raises ValueError, TypeError: of what is wrong with the arguments. No process was started then.

    ::

        process = await create_subprocess_exec("sort", fds={0: "w", 1: "r", 2: 2})
        output, _ = await process.communicate(b"b\\na\\n")

    See ``subprocess_exec`` for how it is started and how its end is seen.
    """
    check_words("create_subprocess_exec", {name: options.pop(name) for name in _others(options)})
    return await _open([program, *args], fds, stdin, stdout, stderr, limit, options)


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: Any = UNSET,
    stdout: Any = UNSET,
    stderr: Any = UNSET,
    limit: int = DEFAULT_LIMIT,
    fds: Descriptors | None = None,
    **options: Any,
) -> Process:
    """Have ``/bin/sh`` run the command line *cmd*; the rest is as with ``create_subprocess_exec``.

    :raises TypeError: *cmd* is not one string.
    """
    check_words("create_subprocess_shell", {name: options.pop(name) for name in _others(options)})
    return await _open(shell_words(cmd), fds, stdin, stdout, stderr, limit, options)


def _others(options: Mapping[str, Any]) -> list[str]:
    return [name for name in options if name not in _OURS and name != "pass_fds"]


async def _open(
    argv: Sequence[StrOrBytesPath],
    fds: Descriptors | None,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    limit: int,
    options: dict[str, Any],
) -> Process:
    loop = asyncio.get_running_loop()
    modes = descriptor_map(fds, None, options.pop("pass_fds", ()), stdin=stdin, stdout=stdout, stderr=stderr)
    streams = _Streams(modes, limit, loop)
    transport, _ = await open_process(
        lambda: streams, argv, modes, pipe_protocol=streams.pipe_protocol, **options
    )
    return Process(transport, streams, loop)
