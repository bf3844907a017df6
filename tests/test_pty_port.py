"""Virtual serial ports: programs open, set and close them, and the device behind hears of it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
import termios
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdtransport import connect_fd, relay
from fdtransport._core import syscalls
from fdtransport.pty_port import PtyPortTransport, TerminalEvent, connect_pty, open_pty
from fdtransport.testing import (
    FarEnd,
    Features,
    Promise,
    RecordingProtocol,
    descriptors,
    idle_cost,
    pattern,
    stream_promises,
)
from fdtransport.testing.observe import turns, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pts(4) and inotify(7)")
OPENED, CLOSED, CHANGED = TerminalEvent.OPENED, TerminalEvent.CLOSED, TerminalEvent.CHANGED


class PortMaker:
    """A port that somebody has open. Nobody's going away ends it, so the kit does not ask for that."""

    features = Features(half_close=False, ends=False, hangup=False)

    async def __call__(self, protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
        transport, _ = await connect_pty(protocol_factory)
        return transport, FarEnd(opened(transport), timeout=20)  # a megabyte takes seconds in debug mode


def opened(transport: PtyPortTransport) -> int:
    return os.open(transport.get_extra_info("slave_name"), os.O_RDWR | os.O_NOCTTY)


#: What is no promise of a port, and why.
NOT_FOR_PORTS = {
    "a_read_error_is_told_once_with_its_errno": "EIO says that nobody has it, and it lives on",
    "an_exception_in_a_reading_callback_is_reported_once_and_ends_the_transport": "waits for an end of file",
    "callbacks_run_in_the_context_of_the_creation": "waits for an end of file",
    "end_of_file_is_told_once_after_all_data": "there is none",
    "end_of_file_waits_while_reading_is_paused": "there is none",
    "what_the_kernel_holds_when_the_far_end_goes_is_delivered": "waits for an end of file",
    "close_and_abort_work_in_any_order_from_any_callback": "once it is closed nobody can be its far end",
    "detach_gives_the_descriptors_back_as_they_were": "takes the inotify instance for one of its own",
    "short_reads_and_transient_errors_are_invisible": "reads one byte, which is the one of packet mode",
}
PROMISES = [promise for promise in stream_promises(PortMaker.features) if promise.name not in NOT_FOR_PORTS]


@pytest.mark.parametrize("promise", PROMISES, ids=str)
async def test_contract(promise: Promise) -> None:
    assert await promise.run(PortMaker(), timeout=20)


async def port(**options: Any) -> tuple[PtyPortTransport, list[Any]]:
    """A port, and what happened to it: events and bytes in their order."""
    seen: list[Any] = []
    transport, _ = await connect_pty(
        lambda: RecordingProtocol(data=lambda _, data: seen.append(data)), on_event=seen.append, **options
    )
    return transport, seen


async def test_who_opens_and_closes_it_is_told_with_the_bytes_in_between() -> None:
    transport, seen = await port()
    assert not transport.is_opened
    for text in (b"first", b"second"):
        seen.clear()
        program = opened(transport)
        await until(lambda: seen == [OPENED], "it was opened")
        assert transport.is_opened
        other = opened(transport)
        os.write(program, text)
        os.close(program)
        await until(lambda: seen[1:], "the bytes came")
        await turns(5)
        os.close(other)
        await until(lambda: CLOSED in seen, "it was closed")
        assert seen == [OPENED, text, CLOSED]
    # All of it before the loop looks:
    seen.clear()
    program = opened(transport)
    os.write(program, b"in a hurry")
    os.close(program)
    await until(lambda: CLOSED in seen, "it was closed")
    assert seen == [OPENED, b"in a hurry", CLOSED]
    transport.abort()


async def test_a_protocol_hears_as_well() -> None:
    class Modem(RecordingProtocol):
        heard: TerminalEvent | None = None

        def terminal_event(self, event: TerminalEvent) -> None:
            self.heard = event

    transport, protocol = await connect_pty(Modem)
    program = opened(transport)
    await until(lambda: protocol.heard is OPENED, "it was opened")
    os.close(program)
    await until(lambda: protocol.heard is CLOSED, "it was closed")
    transport.abort()


async def test_another_speed_is_told() -> None:
    transport, seen = await port()
    program = opened(transport)
    for name in ("B9600", "B115200", "B19200"):
        modes = termios.tcgetattr(program)
        modes[4] = modes[5] = getattr(termios, name)
        seen.clear()
        termios.tcsetattr(program, termios.TCSANOW, modes)
        await until(lambda: CHANGED in seen, "it was changed")
        assert transport.speed == (int(name[1:]), int(name[1:]))
    tty.setraw(program)
    os.write(program, b"bytes")
    await until(lambda: b"bytes" in seen, "the bytes came")
    # Setting what is set already, here or there, is no change.
    seen.clear()
    transport.raw()
    termios.tcsetattr(program, termios.TCSANOW, termios.tcgetattr(program))
    os.write(program, b"more")
    await until(lambda: b"more" in seen, "the bytes came")
    assert seen == [b"more"]
    termios.tcflush(program, termios.TCIFLUSH)
    await until(lambda: TerminalEvent.INPUT_FLUSHED in seen, "it was flushed")
    os.close(program)
    transport.abort()


async def test_changes_are_told_after_a_program_has_put_old_modes_back() -> None:
    transport, seen = await port()
    program = opened(transport)
    modes = termios.tcgetattr(program)
    modes[3] &= ~0o200000
    for speed in (termios.B4800, termios.B2400):
        modes[4] = modes[5] = speed
        seen.clear()
        termios.tcsetattr(program, termios.TCSANOW, modes)
        await until(lambda: CHANGED in seen, "it was changed")
    assert transport.speed == (2400, 2400)
    os.close(program)
    transport.abort()


async def test_stty_speaks_to_it() -> None:
    transport, _ = await port()
    program = opened(transport)
    name = transport.get_extra_info("slave_name")
    stty = await asyncio.create_subprocess_exec("stty", "-F", name, "57600", "raw")
    assert await stty.wait() == 0
    await until(lambda: transport.speed == (57600, 57600), "it has the speed")
    os.close(program)
    transport.abort()


async def test_what_is_written_waits_for_somebody() -> None:
    transport, _seen = await port()
    size = 300_000
    transport.write(pattern(size))
    assert transport.get_write_buffer_size()
    far = FarEnd(opened(transport))
    assert await far.recv_exactly(size) == pattern(size)
    far.close()
    await until(lambda: not transport.is_opened, "it was closed")
    transport.write(pattern(size))
    cost = await idle_cost(0.2)
    assert cost.is_idle(0.05, 8), str(cost)
    with FarEnd(opened(transport)) as far:
        assert await far.recv_exactly(size) == pattern(size)
    transport.abort()


@pytest.mark.parametrize("before", ["never opened", "closed again", "closed while paused"])
async def test_nobody_there_costs_nothing(before: str) -> None:
    transport, seen = await port()
    if before == "closed while paused":
        transport.pause_reading()
    if before != "never opened":
        os.close(opened(transport))
        await turns(10)
    cost = await idle_cost(0.2)
    assert cost.is_idle(0.05, 8), str(cost)
    if before == "closed while paused":
        transport.resume_reading()
    with FarEnd(opened(transport)) as far:
        await far.send(b"hello")
        await until(lambda: b"hello" in seen, "it was opened again")
    transport.abort()


async def test_closing_with_nobody_there_does_not_wait() -> None:
    protocol = RecordingProtocol()
    transport, _ = await connect_pty(lambda: protocol)
    os.close(opened(transport))
    await turns(5)
    transport.write(bytes(100_000))
    transport.close()
    await until(lambda: protocol.lost, "connection_lost came")
    assert isinstance(protocol.reason, OSError)


async def test_a_program_that_reads_gets_what_was_written_before_the_close() -> None:
    transport, _ = await port()
    far = FarEnd(opened(transport))
    transport.write(pattern(50_000))
    transport.close()
    assert await far.recv_to_end() == pattern(50_000)
    far.close()


async def test_the_link_has_mode_and_is_removed(tmp_path: Path) -> None:
    link = tmp_path / "ttyV0"
    link.symlink_to("/dev/pts/there-is-none")  # left by somebody who was killed
    transport, _ = await port(link=link, mode=0o660, owner=os.getuid(), group=os.getgid())
    name = transport.get_extra_info("slave_name")
    assert os.readlink(link) == name
    assert transport.get_extra_info("link") == str(link)
    assert stat.S_IMODE(os.stat(link).st_mode) == 0o660
    with pytest.raises(FileExistsError):
        await connect_pty(RecordingProtocol, link=link)
    assert os.readlink(link) == name
    await transport.aclose()
    assert not link.is_symlink()


async def test_the_link_of_a_killed_process_is_replaced_when_its_number_is_given_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "ttyV0"
    new = syscalls.open_terminal()  # another process may get the number, so it is had before
    monkeypatch.setattr(syscalls, "open_terminal", lambda: new)
    link.symlink_to(new[1])
    transport, _ = await port(link=link)
    assert os.readlink(link) == transport.get_extra_info("slave_name") == new[1]
    await transport.aclose()
    assert not link.is_symlink()


async def test_a_link_of_bytes_or_relative_is_removed_from_wherever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for link in ("relative", os.fsencode(tmp_path / "bytes")):
        transport, _ = await port(link=link)
        assert len(os.listdir(tmp_path)) == 1
        monkeypatch.chdir("/")
        await transport.aclose()
        assert os.listdir(tmp_path) == []


async def test_the_link_to_a_terminal_that_is_there_stays(tmp_path: Path) -> None:
    link = tmp_path / "ttyV0"
    master, slave = os.openpty()
    link.symlink_to(os.ttyname(slave))
    with pytest.raises(FileExistsError, match=f"leads to {os.ttyname(slave)}; remove it if nobody"):
        await connect_pty(RecordingProtocol, link=link)
    assert os.readlink(link) == os.ttyname(slave)
    os.close(master)
    os.close(slave)


async def test_the_link_of_somebody_else_stays(tmp_path: Path) -> None:
    link = tmp_path / "ttyV0"
    transport, _ = await port(link=link)
    link.unlink()
    link.symlink_to("/dev/null")
    await transport.aclose()
    assert os.readlink(link) == "/dev/null"


async def test_a_reader_and_a_writer() -> None:
    heard: list[TerminalEvent] = []
    reader, writer = await open_pty(on_event=heard.append)
    with FarEnd(opened(writer.transport)) as far:
        await far.send(b"AT\r\n")
        assert await reader.readline() == b"AT\r\n"
        writer.write(b"OK\r\n")
        assert await far.recv_exactly(4) == b"OK\r\n"
    waiting = asyncio.ensure_future(reader.readline())
    await until(lambda: CLOSED in heard, "it was closed")
    with FarEnd(opened(writer.transport)) as far:
        await far.send(b"again\n")
        assert await waiting == b"again\n"
    assert heard[:3] == [OPENED, CLOSED, OPENED]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"link": "/no/such/directory/tty"}, FileNotFoundError),
        ({"link": "/etc/passwd"}, FileExistsError),
        ({"link": "a\0b"}, ValueError),
        ({"mode": -1}, ValueError),
        ({"mode": 0o70660}, ValueError),
        ({"mode": "rw"}, TypeError),
        ({"owner": "somebody"}, TypeError),
    ],
    ids=str,
)
async def test_bad_input_is_the_callers_and_leaves_nothing(options: dict[str, Any], error: type) -> None:
    before = descriptors()
    with pytest.raises(error):
        await connect_pty(RecordingProtocol, **options)
    assert descriptors() == before


async def test_a_relay_joins_a_port_and_a_socket() -> None:
    transport, _ = await connect_pty(asyncio.Protocol)
    near, other = socket.socketpair()
    joined, _ = await connect_fd(asyncio.Protocol, near)
    relaying = asyncio.ensure_future(relay(transport, joined))
    with FarEnd(other) as far, FarEnd(opened(transport)) as program:
        sending = asyncio.ensure_future(far.send(pattern(200_000)))
        assert await program.recv_exactly(200_000) == pattern(200_000)
        await sending
        await program.send(b"answer")
        assert await far.recv_exactly(6) == b"answer"
        transport.abort()
        await relaying
