"""A terminal that is attached: what is typed comes as it is, and then the terminal is as it was."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import struct
import termios
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fcntl import ioctl
from typing import Any

import pytest

from fdtransport import CloseReason, PtyTransport, attach_terminal, connect_terminal, relay, spawn_pty
from fdtransport._core import syscalls
from fdtransport._core.escape import spelled
from fdtransport._core.opening import open_transport
from fdtransport.attach import TerminalTransport
from fdtransport.testing import FarEnd, RecordingProtocol, descriptors, idle_cost
from fdtransport.testing.observe import turns, until

#: What is heard while a terminal is attached.
SIGNALS = [getattr(signal, f"SIG{name}") for name in ("HUP", "INT", "QUIT", "TERM", "TSTP", "CONT", "WINCH")]


class Terminal:
    """A terminal and its user, who types at *far* and sees what comes there."""

    def __init__(self) -> None:
        master, self.fd = os.openpty()
        self.far = FarEnd(master)

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.fd)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window. It is nobody's controlling terminal here, so that the kernel tells nobody."""
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        signal.raise_signal(signal.SIGWINCH)

    def close(self) -> None:
        self.far.close()
        os.close(self.fd)


@pytest.fixture
def terminal() -> Any:
    """It must be as before at the end, and so must everything else that was changed meanwhile."""
    terminal = Terminal()
    before = terminal.modes, os.get_blocking(terminal.fd), [signal.getsignal(number) for number in SIGNALS]
    yield terminal
    after = terminal.modes, os.get_blocking(terminal.fd), [signal.getsignal(number) for number in SIGNALS]
    terminal.close()
    assert after == before


@asynccontextmanager
async def attached(
    terminal: Terminal, **options: Any
) -> AsyncIterator[tuple[TerminalTransport, RecordingProtocol]]:
    transport, protocol = await connect_terminal(RecordingProtocol, terminal.fd, **options)
    try:
        async with asyncio.timeout(10):
            yield transport, protocol
    finally:
        transport.abort()
        await until(lambda: protocol.lost, "it ended")


async def until_received(protocol: RecordingProtocol, data: bytes) -> None:
    await until(lambda: protocol.received == data, lambda: f"{data!r} came, not {protocol.received!r}", 10)


async def test_keys_come_as_they_are_typed_and_nothing_is_echoed(terminal: Terminal) -> None:
    async with attached(terminal) as (transport, protocol):
        keys = bytes(set(range(256)) - {0x1D})
        await terminal.far.send(keys)
        await until_received(protocol, keys)
        transport.write(b"line\n")
        assert await terminal.far.recv_exactly(5) == b"line\n"
        assert terminal.far.recv_now() is None
        assert os.get_blocking(terminal.fd)
        assert not transport.can_write_eof()


async def test_an_attached_terminal_is_idle_when_nobody_types(terminal: Terminal) -> None:
    async with attached(terminal):
        await turns(20)
        cost = await idle_cost()
        assert cost.is_idle(0.1, 5), str(cost)


async def test_modes_are_back_as_soon_as_it_is_aborted(terminal: Terminal) -> None:
    before = terminal.modes
    async with attached(terminal) as (transport, _):
        assert terminal.modes != before
        transport.abort()
        assert terminal.modes == before


async def test_setting_modes_goes_on_after_a_stop(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the kernel says of tcsetattr(3) that was stopped in the background and continued.
    set_modes, interrupted = syscalls.tcsetattr, []

    def interrupt(*args: Any) -> None:
        if len(interrupted) < 2:
            interrupted.append(args)
            raise termios.error(errno.EINTR, "Interrupted system call")
        set_modes(*args)

    monkeypatch.setattr(syscalls, "tcsetattr", interrupt)
    before = terminal.modes
    async with attached(terminal):
        assert terminal.modes != before
        assert len(interrupted) == 2


async def test_modes_are_back_when_it_is_detached(terminal: Terminal) -> None:
    before = terminal.modes
    async with attached(terminal) as (transport, _):
        files = transport.detach().file
        assert terminal.modes == before
        for fd in files:
            assert os.ttyname(fd) == os.ttyname(terminal.fd)
            os.close(fd)


# -- leaving -------------------------------------------------------------------------------------------

TYPED = {
    "before it, and alone": ([b"ls\n\x1d"], b"ls\n", True),
    "and then another key": ([b"ls\n\x1dx"], b"ls\n", True),
    "in pieces": ([b"ls\n", b"\x1d", b"x"], b"ls\n", True),
    "twice": ([b"ls\x1d\x1d\n"], b"ls\x1d\n", False),
    "twice in pieces": ([b"ls\x1d", b"\x1d\n"], b"ls\x1d\n", False),
    "three times": ([b"ls\x1d\x1d\x1d"], b"ls\x1d", True),
    "four times": ([b"\x1d\x1d", b"\x1d\x1d"], b"\x1d\x1d", False),
}


@pytest.mark.parametrize(("pieces", "sent", "leaves"), TYPED.values(), ids=TYPED)
async def test_the_escape_byte_leaves_and_twice_it_is_sent(
    pieces: list[bytes], sent: bytes, leaves: bool, terminal: Terminal
) -> None:
    async with attached(terminal) as (transport, protocol):
        for piece in pieces:
            await terminal.far.send(piece)
            await until(lambda: not syscalls.bytes_readable(transport.fileno()), "it was read")
            await turns(10)
        if leaves:
            await until(lambda: protocol.lost, "it ended", 5)
            assert protocol.reason is None
            assert transport.close_reason is CloseReason.PEER
        else:
            await until_received(protocol, sent)
            await terminal.far.send(b"more")
            sent += b"more"
            await until_received(protocol, sent)
        assert protocol.received == sent
        assert transport.escaped == leaves


async def test_nothing_leaves_without_an_escape_byte(terminal: Terminal) -> None:
    async with attached(terminal, escape=None) as (transport, protocol):
        await terminal.far.send(b"\x1d.")
        await until_received(protocol, b"\x1d.")
        assert transport.how_to_leave == "no key leaves; this ends with the other side"


async def test_the_escape_byte_is_another_if_wanted(terminal: Terminal) -> None:
    async with attached(terminal, escape=b"~") as (transport, protocol):
        assert transport.how_to_leave == "~ leaves; typed twice, it is sent"
        await terminal.far.send(b"\x1d~~~.")
        await until(lambda: protocol.lost, "it ended")
        assert protocol.received == b"\x1d~"


def test_keys_are_called_what_is_on_them() -> None:
    names = [spelled(bytes([number])) for number in (0, 1, 0x1B, 0x1D, 0x20, 0x41, 0x7F, 0xFF)]
    assert names == ["Ctrl-@", "Ctrl-A", "Ctrl-[", "Ctrl-]", "0x20", "A", "Ctrl-?", "0xff"]


async def test_the_user_can_leave_though_the_screen_takes_nothing(terminal: Terminal) -> None:
    async with attached(terminal) as (transport, protocol):
        transport.write(bytes(1 << 20))
        await terminal.far.send(b"\x1d.")
        await until(lambda: protocol.lost, "it ended", 5)
        assert protocol.reason is None


@pytest.mark.parametrize("buffer", [bytearray(3), bytearray(100)])
async def test_escapes_are_seen_by_protocols_with_buffers_of_their_own(
    buffer: bytearray, terminal: Terminal
) -> None:
    received = b""

    class Buffered(asyncio.BufferedProtocol):
        lost = False

        def get_buffer(self, _hint: int) -> bytearray:
            return buffer

        def buffer_updated(self, count: int) -> None:
            nonlocal received
            received += buffer[:count]

        def connection_lost(self, _exc: Exception | None) -> None:
            self.lost = True

    _, protocol = await connect_terminal(Buffered, terminal.fd)
    await terminal.far.send(b"ab\x1d\x1dcdefg\x1d.")
    await until(lambda: protocol.lost, "it ended")
    assert received == b"ab\x1dcdefg"


# -- the window ----------------------------------------------------------------------------------------


async def test_a_new_size_of_the_window_is_told_once(terminal: Terminal) -> None:
    told: list[Any] = []
    others: list[int] = []
    former = signal.signal(signal.SIGWINCH, lambda number, _frame: others.append(number))
    try:
        terminal.resize(24, 80)
        async with attached(terminal, on_resize=told.append) as (transport, _):
            assert transport.window_size == (24, 80, 0, 0)
            assert transport.get_extra_info("window_size") == (24, 80, 0, 0)
            terminal.resize(24, 80)
            terminal.resize(40, 132)
            await until(lambda: told, "it was told")
            await turns(5)
            assert told == [(40, 132, 0, 0)]
        with pytest.raises(OSError, match="has ended"):
            _ = transport.window_size
        terminal.resize(24, 80)
        assert len(told) == 1
        assert len(others) == 4  # who heard them before still does
    finally:
        signal.signal(signal.SIGWINCH, former)


async def test_an_error_in_on_resize_is_reported_and_ends_nothing(
    terminal: Terminal, reports: list[dict[str, Any]]
) -> None:
    def fail(_size: object) -> None:
        raise ZeroDivisionError

    async with attached(terminal, on_resize=fail) as (_, protocol):
        terminal.resize(40, 132)
        await until(lambda: reports, "it was reported")
        await terminal.far.send(b"x")
        await until_received(protocol, b"x")
    assert [report["message"] for report in reports] == ["on_resize() failed"]


async def test_the_size_is_forwarded_until_the_other_window_has_ended(terminal: Terminal) -> None:
    master, slave = os.openpty()
    other, protocol = await open_transport(PtyTransport, RecordingProtocol, master)
    async with attached(terminal) as (transport, _):
        transport.forward_size(other)
        assert other.window_size == (0, 0, 0, 0)  # nobody has told this one either
        terminal.resize(40, 132)
        await until(lambda: other.window_size == (40, 132, 0, 0), "it was forwarded")
        other.abort()
        await until(lambda: protocol.lost, "the other ended")
        terminal.resize(24, 80)
        await turns(5)
        transport.forward_size(other)
    os.close(slave)


async def test_a_relay_to_a_program_forwards_the_size(terminal: Terminal) -> None:
    terminal.resize(33, 77)
    script = "while read line; do stty size; done"
    program, _ = await spawn_pty(asyncio.Protocol, "sh", "-c", script, size=(5, 5), echo=False)
    async with asyncio.timeout(20), attach_terminal(terminal.fd) as streams:
        running = asyncio.ensure_future(relay(streams, program))
        await terminal.far.send(b"\n")
        assert await terminal.far.recv_exactly(7) == b"33 77\r\n"
        terminal.resize(40, 132)
        await until(lambda: program.window_size == (40, 132, 0, 0), "it was forwarded")
        await terminal.far.send(b"\n")
        assert await terminal.far.recv_exactly(8) == b"40 132\r\n"
        await terminal.far.send(b"\x1d.")
        result = await running
        assert result.error is None
        assert streams[1].transport.escaped
    await program.wait()


async def test_the_end_of_the_other_end_of_a_relay_is_the_end(terminal: Terminal) -> None:
    near, other = socket.socketpair()
    with other:
        async with asyncio.timeout(10), attach_terminal(terminal.fd) as streams:
            reader, writer = await asyncio.open_connection(sock=near)
            running = asyncio.ensure_future(relay(streams, (reader, writer)))
            other.sendall(b"bye\r\n")
            other.shutdown(socket.SHUT_WR)
            result = await running
            assert await terminal.far.recv() == b"bye\r\n"
            assert result.error is None


# -- streams -------------------------------------------------------------------------------------------


async def test_a_reader_is_at_its_end_when_the_user_has_left(terminal: Terminal) -> None:
    before = terminal.modes
    async with attach_terminal(terminal.fd, limit=10) as (reader, writer):
        writer.write(b"name? ")
        await writer.drain()
        assert await terminal.far.recv() == b"name? "
        await terminal.far.send(b"me\rmore\x1d.")
        assert await reader.readuntil(b"\r") == b"me\r"
        assert await reader.read() == b"more"
        assert writer.transport.escaped
    assert terminal.modes == before


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, KeyboardInterrupt])
async def test_a_block_that_raises_leaves_the_terminal_as_it_was(
    error: type[BaseException], terminal: Terminal
) -> None:
    before, opened = terminal.modes, descriptors()

    async def work() -> None:
        async with attach_terminal(terminal.fd) as (_, writer):
            writer.write(bytes(1 << 20))
            raise error

    with pytest.raises(error):
        await work()
    assert terminal.modes == before
    assert descriptors() == opened


async def test_the_last_output_is_shown_before_the_block_ends(terminal: Terminal) -> None:
    async with attach_terminal(terminal.fd) as (_, writer):
        writer.write(b"x" * 100_000)
        reading = asyncio.ensure_future(terminal.far.recv_exactly(100_000))
    assert await reading == b"x" * 100_000


async def test_a_hang_up_is_the_end(terminal: Terminal) -> None:
    async with attach_terminal(terminal.fd) as (reader, writer):
        terminal.far.close()
        assert await reader.read() == b""
        await until(writer.transport.is_closing, "it ended")
        assert not writer.transport.escaped
    # What hangs up gets the modes that it began with: nothing to look at.
    terminal.close()
    terminal.__init__()


async def test_a_path_and_a_pair_are_terminals_as_well(terminal: Terminal) -> None:
    out, shown = os.pipe()
    for files in (os.ttyname(terminal.fd), (terminal.fd, None), (terminal.fd, shown)):
        async with attach_terminal(files) as (reader, writer):
            await terminal.far.send(b"key")
            assert await reader.readexactly(3) == b"key"
            if files == (terminal.fd, shown):
                writer.write(b"shown")
    os.close(shown)
    assert os.read(out, 100) == b"shown"
    os.close(out)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socket", "null", "file"])
async def test_what_is_no_terminal_is_refused_and_left_as_it_was(kind: str, tmp_path: Any) -> None:
    fds = {
        "pipe": lambda: os.pipe(),
        "socket": lambda: tuple(one.detach() for one in socket.socketpair()),
        "null": lambda: (os.open(os.devnull, os.O_RDWR), os.open(os.devnull, os.O_RDWR)),
        "file": lambda: (
            os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT),
            os.open(tmp_path / "x", os.O_RDWR),
        ),
    }[kind]()
    before = descriptors()
    for files in (fds, (fds[0], None)):
        with pytest.raises(OSError, match="a terminal is needed to read what is typed") as caught:
            await connect_terminal(asyncio.Protocol, files)
        assert caught.value.errno == errno.ENOTTY
        assert all(map(os.get_blocking, fds))
        assert descriptors() == before
    for fd in fds:
        os.close(fd)


async def test_a_terminal_for_output_only_is_refused(terminal: Terminal) -> None:
    with pytest.raises(OSError, match="to read what is typed"):
        await connect_terminal(asyncio.Protocol, (None, terminal.fd))


async def test_a_terminal_is_attached_once(terminal: Terminal) -> None:
    async with attached(terminal) as (_, protocol):
        for again in (terminal.fd, os.ttyname(terminal.fd)):
            with pytest.raises(OSError, match="attached already"):
                await connect_terminal(asyncio.Protocol, again)
        await terminal.far.send(b"still")
        await until_received(protocol, b"still")


async def test_two_terminals_end_in_any_order(terminal: Terminal) -> None:
    for order in ((0, 1), (1, 0)):
        other = Terminal()
        before = terminal.modes, other.modes
        made = [await connect_terminal(RecordingProtocol, one.fd) for one in (terminal, other)]
        for n in order:
            transport, protocol = made[n]
            transport.abort()
            await until(lambda protocol=protocol: protocol.lost, "it ended")
            assert (terminal, other)[n].modes == before[n]
        assert (terminal.modes, other.modes) == before
        other.close()


async def test_one_that_ends_in_another_thread_is_put_back_and_signals_are_as_before_later(
    terminal: Terminal,
) -> None:
    # Collected there, for instance; Python lets only the main thread set handlers.
    before, handlers = terminal.modes, [signal.getsignal(number) for number in SIGNALS]
    transport, protocol = await connect_terminal(RecordingProtocol, terminal.fd)
    thread = threading.Thread(target=transport._raw.leave)
    thread.start()
    thread.join()
    assert terminal.modes == before
    transport.abort()
    await until(lambda: protocol.lost, "it ended")
    async with attached(terminal):
        assert terminal.modes != before
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_another_thread_than_the_main_one_is_refused(terminal: Terminal) -> None:
    before, opened = terminal.modes, descriptors()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(connect_terminal(asyncio.Protocol, terminal.fd))
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [type(exc) for exc in raised] == [RuntimeError]
    assert "main thread" in str(raised[0])
    assert (terminal.modes, descriptors()) == (before, opened)


@pytest.mark.parametrize(
    ("escape", "error"), [("~", TypeError), (0x1D, TypeError), (b"", ValueError), (b"~.", ValueError)]
)
async def test_an_escape_that_is_not_one_byte_is_refused(
    escape: Any, error: type[Exception], terminal: Terminal
) -> None:
    before = descriptors()
    with pytest.raises(error, match="one byte"):
        await connect_terminal(asyncio.Protocol, terminal.fd, escape=escape)
    assert descriptors() == before


async def test_cancelling_before_it_is_connected_leaves_everything_as_it_was(terminal: Terminal) -> None:
    before, opened = terminal.modes, descriptors()
    task = asyncio.ensure_future(connect_terminal(asyncio.Protocol, terminal.fd))
    await asyncio.sleep(0)
    assert terminal.modes != before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (terminal.modes, descriptors()) == (before, opened)
