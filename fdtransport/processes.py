"""Programs with any descriptors: one transport for the process, and one for each descriptor of it.

``subprocess_exec`` is asyncio's, for every loop and every thread, with a map of descriptors in place of
the three. `create_subprocess_exec` (``process_streams``) is the same to be awaited.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ._core.child_fds import UNSET, Descriptors, descriptor_map
from ._core.spawn import StrOrBytesPath
from .popen_words import check_words
from .process_transport import ProcessTransport

__all__ = ["open_process", "shell_words", "subprocess_exec", "subprocess_shell"]

P = TypeVar("P", bound=asyncio.BaseProtocol)

SHELL = "/bin/sh"


async def open_process(
    protocol_factory: Callable[[], P],
    argv: Sequence[StrOrBytesPath],
    fds: Descriptors,
    *,
    start_new_session: bool = False,
    **options: Any,
) -> tuple[ProcessTransport, P]:
    """Start it, and wait for ``connection_made``. Cancelled meanwhile, the process is killed."""
    loop = asyncio.get_running_loop()
    protocol = protocol_factory()
    waiter: asyncio.Future[None] = loop.create_future()
    transport = ProcessTransport(loop, argv, fds, protocol, waiter, new_session=start_new_session, **options)
    try:
        await waiter
    except BaseException:
        transport.abort()
        await transport.wait_closed()
        raise
    return transport, protocol


async def subprocess_exec(
    protocol_factory: Callable[[], P],
    program: StrOrBytesPath,
    *args: StrOrBytesPath,
    stdin: Any = UNSET,
    stdout: Any = UNSET,
    stderr: Any = UNSET,
    fds: Descriptors | None = None,
    linger: float | None = None,
    pipe_size: int | None = None,
    cwd: StrOrBytesPath | None = None,
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    executable: StrOrBytesPath | None = None,
    user: str | int | None = None,
    group: str | int | None = None,
    extra_groups: Iterable[str | int] | None = None,
    start_new_session: bool = False,
    process_group: int | None = None,
    pass_fds: Iterable[int] = (),
    **words: Any,
) -> tuple[ProcessTransport, P]:
    """Start a program, with a transport on each descriptor of it that is asked for.

    *fds*: the descriptors that the child has, ``{number: what}``, and no others: ``"r"`` (this side
    reads), ``"w"``, ``"rw"`` (a UNIX socket), DEVNULL, or a descriptor or open file of yours, which stays
    yours. By default ``{0: "w", 1: "r", 2: "r"}``. *stdin*, *stdout* and *stderr* are other names for 0 to
    2, in asyncio's words (PIPE, DEVNULL and STDOUT of ``asyncio.subprocess``, None to inherit, a file).
    *pass_fds*: descriptors that the child has under the numbers that they have here. *words*: what else
    ``subprocess.Popen`` has may be given as long as it asks for nothing (``close_fds=True``).

    The protocol is an ``asyncio.SubprocessProtocol``. It may also have ``early_exit(returncode)``, called
    as soon as the process has ended; ``pipe_eof_received(fd)``, which may return true to go on writing to
    an ``"rw"`` descriptor; and ``pipe_pause_writing(fd)`` and ``pipe_resume_writing(fd)``, called in place
    of ``pause_writing()`` and ``resume_writing()``, which are for all descriptors together.

    *linger*: seconds after the end of the process that descriptors are kept which somebody else still
    holds (a background process, for instance); what came before is read then. None: until they let go.
    *pipe_size*: as for `PipeTransport`. *cwd*, *env*, *executable*, *user*, *group*, *extra_groups*,
    *start_new_session* and *process_group*: as ``subprocess.Popen``. There is no shell in between.

    Returns ``(transport, protocol)`` after ``connection_made``. Cancelling is safe: the process is killed.

    :raises OSError: the program or *cwd* cannot be used (with its ``filename``), a descriptor is closed.
    :raises ValueError, TypeError: of what is wrong with the arguments. No process was started then.

    ::

        transport, protocol = await subprocess_exec(Protocol, "gpg", "--status-fd", "3",
                                                    fds={0: "w", 1: "r", 2: 2, 3: "r"})
        transport.get_pipe_transport(0).write_eof()

    The process is started by posix_spawn(3), never by a fork, and its end is seen by pidfd_open(2): no
    handler of SIGCHLD, no thread. With *user* or groups it is setpriv(1) that starts the program.
    """
    check_words("subprocess_exec", words)
    wanted = descriptor_map(fds, subprocess.PIPE, pass_fds, stdin=stdin, stdout=stdout, stderr=stderr)
    return await open_process(
        protocol_factory,
        [program, *args],
        wanted,
        linger=linger,
        pipe_size=pipe_size,
        cwd=cwd,
        env=env,
        executable=executable,
        user=user,
        group=group,
        extra_groups=extra_groups,
        start_new_session=start_new_session,
        process_group=process_group,
    )


async def subprocess_shell(
    protocol_factory: Callable[[], P], cmd: str | bytes, **options: Any
) -> tuple[ProcessTransport, P]:
    """Have ``/bin/sh`` run the command line *cmd*; the rest is as with ``subprocess_exec``.

    :raises TypeError: *cmd* is not one string.
    """
    return await subprocess_exec(protocol_factory, *shell_words(cmd), **options)


def shell_words(cmd: str | bytes) -> list[str | bytes]:
    """The program and arguments that run a command line."""
    if not isinstance(cmd, str | bytes):
        raise TypeError(f"cmd is a str or bytes, not {cmd!r}; ..._exec takes separate arguments")
    return [SHELL, "-c", cmd]
