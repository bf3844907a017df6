"""Bare terminals: a virtual serial port, which any program opens as it would open a real one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

from ._core import syscalls, terminal
from ._core.handle import Handle
from ._core.opening import open_transport
from ._core.terminal_events import TerminalEvent, events_in, openings
from .pty import OnEvent, PtyTransport
from .streams import DEFAULT_LIMIT, StreamReader, stream_protocol, stream_writer
from .writer import StreamWriter

__all__ = ["PtyPortTransport", "TerminalEvent", "connect_pty", "open_pty"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
StrPath = str | os.PathLike[str]


class PtyPortTransport(PtyTransport):
    """The device behind a virtual serial port. Made by ``connect_pty``.

    Programs open and close the port as they like; it stays until it is closed here. What is written while
    nobody has it waits for the next one who opens it: the kernel takes some 10 KB, and then this transport
    holds its writer back. Extra info: also ``link``.
    """

    __slots__ = ("_before", "_link", "_openings", "_present", "_watch_number")

    #: Whether somebody has the port, as far as was told.
    _present: bool
    #: Speeds and modes, as far as was told.
    _before: Any

    def __init__(self, *args: Any, link: Link | None, **kwargs: Any) -> None:
        self._link: Link | None = link
        self._present = False
        self._watch_number = -1
        super().__init__(*args, **kwargs)

    def _check_kind(self) -> None:
        super()._check_kind()
        self._hear_events()
        self._before = self._settings()
        self._openings = openings(self._loop)
        self._watch_number = self._openings.watch(terminal.slave_path(self._rfd), self._port_opened)

    def _find_extra(self, name: str) -> Any:
        if name == "link":
            return self._link and self._link.path
        return super()._find_extra(name)

    @property
    def is_opened(self) -> bool:
        """Whether somebody has the port open."""
        return self._present

    # -- events ---------------------------------------------------------------------------------

    def _port_opened(self) -> None:
        if self._rfd < 0 or (self._nobody_there() and not syscalls.bytes_readable(self._rfd)):
            return  # gone again, and without a word
        self._note_presence()
        if self.is_reading() and not self._reader_on:
            self._add_reader()
        if self._queue.size and self._state.writes:
            self._add_writer()

    def _note_presence(self) -> None:
        if not self._present:
            self._present = True
            self._tell(TerminalEvent.OPENED)

    def _settings(self) -> tuple[Any, ...]:
        return terminal.modes_of(self._rfd), terminal.speed_of(self._rfd)

    def _tell_status(self, status: int) -> bool:
        paused = self._paused
        for event in events_in(status):
            if event is TerminalEvent.CHANGED:
                modes, speed = self._settings()
                if not terminal.has_external(modes):
                    # A program has put back modes from before: without it nothing would be told any more.
                    terminal.set_modes(self._rfd, terminal.set_external(modes))
                    modes = terminal.modes_of(self._rfd)
                before, self._before = self._before, (modes, speed)
                if before == self._before:
                    continue  # by ourselves, or to what it was
            self._note_presence()
            self._tell(event)
            if self._rfd < 0:
                return False
        if not status:
            self._note_presence()  # before the bytes that follow, should inotify be slower
        return self._goes_on_reading(paused)

    def _set_modes(self, fd: int, modes: list[Any]) -> None:
        super()._set_modes(fd, terminal.set_external(modes))
        self._before = self._settings()

    # -- reading and writing, with nobody there at times -------------------------------------------

    def _is_end(self) -> bool:
        return False

    def _read_failed(self, exc: OSError) -> None:
        if exc.errno != errno.EIO:
            super()._read_failed(exc)
        elif self._nobody_there():
            self._remove_reader()  # that is readable for ever; who opens the port next is told by inotify
            if self._present:
                self._present = False
                self._tell(TerminalEvent.CLOSED)

    def _hangup(self) -> None:
        """Reading will tell."""

    def _is_over(self) -> bool:
        return False

    def _add_writer(self) -> None:
        if self._nobody_there() and not self._state.closing:
            self._remove_writer()  # that is writable for ever
        else:
            super()._add_writer()

    def _let_go(self, how: Callable[[Handle], Any]) -> Any:
        link, self._link = self._link, None
        if link is not None:
            link.remove()
        number, self._watch_number = self._watch_number, -1
        if number >= 0:
            self._openings.forget(number)
        return super()._let_go(how)


class Link:
    """A symbolic link to a port; removed again unless it is somebody else's by then."""

    def __init__(self, path: StrPath, target: str) -> None:
        self.path: str = os.path.abspath(os.fsdecode(path))  # the same after os.chdir()
        self._target = target
        try:
            syscalls.symlink(target, self.path)
        except FileExistsError as exc:
            if not self._is_left_over():
                raise _in_the_way(exc, self.path) from None
            syscalls.unlink(self.path)
            syscalls.symlink(target, self.path)
        self._made = syscalls.lstat(self.path)

    def _is_left_over(self) -> bool:
        """Whether what is there was left by a process that was killed: a link that leads nowhere, or to the
        port that is new now, since the kernel gives the lowest number that is free."""
        if not os.path.islink(self.path):
            return False
        return syscalls.readlink(self.path) == self._target or not os.path.exists(self.path)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            found = syscalls.lstat(self.path)
            # The number of a file that was removed may be given to the next one at once.
            if os.path.samestat(self._made, found) and os.readlink(self.path) == self._target:
                syscalls.unlink(self.path)


def _in_the_way(exc: OSError, path: str) -> OSError:
    what = "it is no symbolic link, and stays"
    if os.path.islink(path):
        what = f"it leads to {os.path.realpath(path)}; remove it if nobody uses it"
    return FileExistsError(exc.errno, f"{os.strerror(errno.EEXIST)}: {what}", path)


async def connect_pty(
    protocol_factory: Callable[[], P],
    *,
    link: StrPath | None = None,
    mode: int | None = None,
    owner: int = -1,
    group: int = -1,
    on_event: OnEvent | None = None,
) -> tuple[PtyPortTransport, P]:
    """Make a virtual serial port, and be the device behind it.

    Programs find it at ``transport.get_extra_info("slave_name")``, and at *link*, a symbolic link that is
    removed at the end unless it is somebody else's by then; one that leads nowhere, or to this port, was left
    by a process that was killed and is replaced. *mode*, *owner*, *group*: permission bits and numeric ids of
    the port itself (0o620 and this user by default).

    *on_event*, or else the protocol's ``terminal_event`` if it has one, is called with a `TerminalEvent`: the
    port was opened, closed, set to another speed (``transport.speed``)... Two programs that have it at once
    are one; whoever only opens and closes it may pass unnoticed.

    The port is in raw mode, and bytes pass as they are whatever mode a program sets: its line mode is not
    done by the kernel (EXTPROC of termios(3), which is what tells of changes). Parity, 5 to 7 bits and modem
    lines do not exist (pty(7)). Returns ``(transport, protocol)`` after ``connection_made``. When this raises
    or is cancelled, nothing stays.

    :raises FileExistsError: something is at *link*. :raises ValueError: *mode* is no permission bits.
    :raises OSError: no terminals, descriptors or inotify instances are left; *mode*, *owner* are refused.

    ::

        transport, protocol = await connect_pty(Modem, link="/run/app/ttyV0", mode=0o660)
    """
    if mode is not None and not isinstance(mode, int):
        raise TypeError(f"mode is permission bits, as 0o660, not {mode!r}")
    if mode is not None and not 0 <= mode <= 0o777:
        raise ValueError(f"mode is permission bits, 0 to 0o777, not {mode:#o}")
    master, path = syscalls.open_terminal()
    made: Link | None = None
    try:
        terminal.set_modes(master, terminal.set_external(terminal.raw(terminal.modes_of(master))))
        if mode is not None:
            syscalls.chmod(path, mode)
        if (owner, group) != (-1, -1):
            syscalls.chown(path, owner, group)
        made = None if link is None else Link(link, path)

        def make(*args: Any) -> PtyPortTransport:
            return PtyPortTransport(*args, link=made, on_event=on_event)

        return await open_transport(make, protocol_factory, master)
    except BaseException:
        if made is not None:
            made.remove()
        syscalls.close(master)
        raise


async def open_pty(
    *, limit: int = DEFAULT_LIMIT, **options: Any
) -> tuple[StreamReader, StreamWriter[PtyPortTransport]]:
    """A reader of what programs write to a new virtual serial port, and a writer to it.

    As ``connect_pty``, with its options. ``writer.transport`` is the `PtyPortTransport`. *limit*: bytes that
    ``readline`` and ``readuntil`` accept at most.

    ::

        reader, writer = await open_pty(link="/run/app/ttyV0", on_event=print)
        async for line in reader:
            writer.write(b"OK\\r\\n")
    """
    loop = asyncio.get_running_loop()
    reader, protocol = stream_protocol(limit, loop)
    transport, _ = await connect_pty(lambda: protocol, **options)
    return reader, stream_writer(transport, protocol, reader, loop)
