"""Programs on a terminal of their own: shells with job control, ssh, top, whatever asks isatty(3)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ._core import syscalls, terminal
from ._core.child import Child, start_child
from ._core.handle import FileLike, Handle, fileno_of
from ._core.opening import open_transport
from ._core.spawn import StrOrBytesPath
from .program import ProgramTransport
from .pty import OnEvent, PtyTransport
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .writer import StreamWriter

__all__ = ["PtyProcessTransport", "open_pty_process", "spawn_pty"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Size = tuple[int, int] | tuple[int, int, int, int]

#: The signals that end a program at a terminal: what a hang-up sends, and then ever more of them.
LADDER = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGCONT", "SIGTERM", "SIGKILL") if hasattr(signal, name)
)


class PtyProcessTransport(ProgramTransport, PtyTransport):
    """A `PtyTransport` with the program on its terminal. Made by ``spawn_pty``.

    The end comes in one order: everything that the program wrote, ``eof_received``, ``connection_lost``;
    ``returncode`` is set before the last two. A program that closes its terminal and goes on has not ended.
    Extra info: also ``pid``.
    """

    __slots__ = ("_child", "_dropped", "_last", "_linger", "_slave", "_start")

    _LADDER = LADDER
    #: A program takes Ctrl-D for an end only if it likes.
    _EOF_SILENCE = 10.0

    #: The other end, held while the program runs: without anybody there, the terminal counts as hung up.
    _slave: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._slave = -1
        super().__init__(*args, **kwargs)

    def _check_kind(self) -> None:
        super()._check_kind()
        if self._on_event is not None:
            self._hear_events()
        self._slave = syscalls.open_slave(self._rfd)
        self._dropped = True  # one that was hung up takes what comes until the loop tells of the end
        self._begin_program()

    async def finish(self, grace: float = 5.0) -> int:
        """Hang the terminal up and return the return code, as soon as the program has ended.

        Whatever does not end by that gets the other signals of ``terminate``, one every *grace* seconds.
        Cancelling is safe, and leaves the program with the signals that it got.
        """
        self.close()
        return await self.terminate(grace=grace)

    def _signal_child(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    # -- the end --------------------------------------------------------------------------------

    def _exited(self) -> None:
        self._close_slave()
        super()._exited()

    def _read_eof(self) -> None:
        if self._child.poll() is None:
            # The kernel hangs the terminal up a moment before it tells of the end; that looks again here.
            self._remove_reader()
        else:
            super()._read_eof()

    def _close_slave(self) -> None:
        slave, self._slave = self._slave, -1
        if slave >= 0:
            with contextlib.suppress(OSError):
                syscalls.close(slave)

    def _is_over(self) -> bool:
        return self._slave < 0 and super()._is_over()

    def _is_unread(self) -> bool:
        return False  # closing hangs it up at once, as the user of a terminal who leaves

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        self._close_slave()
        return super()._let_go(how)


async def spawn_pty(
    protocol_factory: Callable[[], P],
    program: StrOrBytesPath,
    *args: StrOrBytesPath,
    size: Size = (24, 80),
    echo: bool = True,
    raw: bool = False,
    linger: float | None = 0.0,
    on_event: OnEvent | None = None,
    executable: StrOrBytesPath | None = None,
    fds: Mapping[int, FileLike] = {},
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    cwd: StrOrBytesPath | None = None,
    user: str | int | None = None,
    group: str | int | None = None,
    extra_groups: Iterable[str | int] | None = None,
) -> tuple[PtyProcessTransport, P]:
    """Start *program* on a new terminal, which controls its session: Ctrl-C and job control work.

    *size*: rows and columns, and pixels if they matter; set before the program starts. *echo*, *raw*: how
    the terminal begins; programs change it as they like. *env*: the whole environment; None for this
    process's without LINES and COLUMNS, which would contradict *size*. *fds*: further descriptors,
    ``{number in the program: ours}``, 0 to 2 among them; ours (or open files) stay open here.

    *linger*: seconds, after the end of the program, for which others that still have the terminal are
    listened to. None: until they have gone. With 0 its own last output is all that is waited for.

    *on_event* is called with a `TerminalEvent` when input or output was thrown away, or output is held back
    and goes on again (Ctrl-C, Ctrl-S, Ctrl-Q). *user*: the terminal is given to that user as well.

    Nothing is forked, however large this process is (posix_spawn(3)); nothing is inherited but what was asked
    for. Returns ``(transport, protocol)`` after ``connection_made``; ``close()`` hangs the terminal up, which
    ends most programs. When this raises or is cancelled, there is no program and no terminal.

    :raises OSError: no such program, not executable, *cwd*; no descriptors or terminals are left.
    :raises ValueError: *size*, an unknown user, a NUL.

    ::

        transport, protocol = await spawn_pty(Screen, "bash", "-l", size=(40, 120), env=env)
        transport.write(b"make\\n")

    See pty(7), setsid(2), credentials(7).
    """
    wanted = terminal.checked_size(size)
    if linger is not None and not linger >= 0:
        raise ValueError(f"linger ({linger!r}) must be >= 0, or None")
    if env is None:
        env = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
    ours = {number: one if isinstance(one, int) else fileno_of(one) for number, one in fds.items()}
    master, path = syscalls.open_terminal()

    def start(loop: asyncio.AbstractEventLoop, exited: Callable[[], object]) -> Child:
        return start_child(
            loop, exited, [program, *args], executable=executable, fds=ours, terminal=path, new_session=True,
            env=env, cwd=cwd, user=user, group=group, extra_groups=extra_groups,
        )  # fmt: skip

    made: list[PtyProcessTransport] = []

    def make(*args: Any) -> PtyProcessTransport:
        made.append(PtyProcessTransport(*args, start=start, linger=linger, on_event=on_event))
        return made[0]

    try:
        terminal.set_window_size(master, wanted)
        _set_modes(master, echo, raw)
        if user is not None:
            _give_to(path, user)
        return await open_transport(make, protocol_factory, master)
    except BaseException:
        if made:
            made[0]._child.kill_and_forget()
        syscalls.close(master)
        raise


def _give_to(path: str, user: str | int) -> None:
    """As login(1) does, so that who runs there can open the terminal by its name."""
    if isinstance(user, str):
        import pwd

        try:
            user = pwd.getpwnam(user).pw_uid
        except KeyError:
            return  # the start of the program tells
    if isinstance(user, int) and user >= 0:
        syscalls.chown(path, user, -1)


def _set_modes(master: int, echo: bool, raw: bool) -> None:
    modes = terminal.modes_of(master)
    if raw:
        modes = terminal.raw(modes)
    elif not echo:
        modes = terminal.set_echo(modes, False)
    else:
        return
    terminal.set_modes(master, modes)


async def open_pty_process(
    program: StrOrBytesPath, *args: StrOrBytesPath, limit: int = DEFAULT_LIMIT, **options: Any
) -> tuple[StreamReader, StreamWriter[PtyProcessTransport]]:
    """A reader of what *program* writes to a new terminal, and a writer to type there.

    As ``spawn_pty``, with its options. ``writer.transport`` is the `PtyProcessTransport`: ``resize``,
    ``send_signal``, ``returncode``, ``await writer.transport.wait()``. *limit*: bytes that ``readline`` and
    ``readuntil`` accept at most.

    ::

        reader, writer = await open_pty_process("python3", "-q", echo=False)
        writer.write(b"6 * 7\\n")
        await reader.readuntil(b"42\\r\\n")
    """
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await spawn_pty(lambda: protocol, program, *args, **options)
    return reader, stream_writer(transport, protocol, reader, loop)
