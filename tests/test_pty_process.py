"""Programs on terminals: nothing of the last output is lost, the end is told once, with the status."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from child_checks import QUIET

from fdtransport import open_unix_connection, relay
from fdtransport.pty import TerminalEvent
from fdtransport.pty_process import open_pty_process, spawn_pty
from fdtransport.testing import RecordingProtocol, descriptors, idle_cost, pattern
from fdtransport.testing.observe import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfds")


async def run(script: str, **options: Any) -> RecordingProtocol:
    """A shell script on a terminal, to its end; the protocol notes the status that it saw then."""
    protocol = RecordingProtocol(lost=lambda *_: seen.append(transport.returncode))
    seen: list[int | None] = []
    transport, _ = await spawn_pty(lambda: protocol, "sh", "-c", script, **options)
    await until(lambda: protocol.lost, "connection_lost came", 20)
    protocol.status = seen[0]
    assert protocol.names[-2:] == ["eof", "lost"]
    assert protocol.reason is None
    return protocol


#: As many per scene; ``FDTRANSPORT_TERMINALS=1000`` for what is promised.
TERMINALS = int(os.environ.get("FDTRANSPORT_TERMINALS", 100))
SHORT = {
    "alone": "printf %s\\\\n first; seq 300; exit 7",
    "with a background process that holds the terminal": "sleep 5 & seq 300; exit 7",
    "with a grandchild in a session of its own": "setsid sleep 0.3 & seq 300; exit 7",
}


@pytest.mark.timeout(60 + TERMINALS / 5)
@pytest.mark.parametrize("script", SHORT.values(), ids=SHORT)
async def test_short_lived_programs_lose_nothing(script: str) -> None:
    wanted = b"".join(b"%d\r\n" % n for n in range(1, 301))
    for _ in range(TERMINALS // 10):
        for protocol in await asyncio.gather(*(run(script) for _ in range(10))):
            assert protocol.received.removeprefix(b"first\r\n") == wanted
            assert protocol.status == 7


async def test_a_large_last_output_arrives_whole() -> None:
    protocol = await run("head -c 300000 /dev/zero | tr '\\0' x; kill -9 $$")
    assert protocol.received == b"x" * 300_000
    assert protocol.status == -signal.SIGKILL


@pytest.mark.parametrize(("linger", "wanted"), [(0.0, b""), (None, b"late\r\n"), (5.0, b"late\r\n")])
async def test_linger_listens_to_who_is_left(linger: float | None, wanted: bytes) -> None:
    protocol = await run("trap '' HUP; (sleep 0.1; echo late) & exit 3", linger=linger)
    assert (protocol.received, protocol.status) == (wanted, 3)


async def test_a_reader_that_pauses_gets_the_rest_and_the_end_later() -> None:
    protocol = RecordingProtocol(made=lambda made: made.transport.pause_reading())
    transport, _ = await spawn_pty(lambda: protocol, "sh", "-c", "seq 500; exit 4")
    assert await transport.wait() == 4
    assert not protocol.names.count("eof")
    transport.resume_reading()
    await until(lambda: protocol.lost, "connection_lost came")
    assert protocol.received.split()[-1] == b"500"
    assert protocol.names[-2:] == ["eof", "lost"]


async def test_a_reader_and_a_writer_see_the_end() -> None:
    reader, writer = await open_pty_process("sh", "-c", "read x; echo got $x; exit 5", echo=False)
    writer.write(b"this\n")
    assert await reader.read() == b"got this\r\n"
    assert await writer.transport.wait() == 5
    writer.close()
    await writer.wait_closed()


async def test_a_program_that_closes_its_terminal_has_not_ended() -> None:
    script = "exec 3<>/dev/tty <&- >&- 2>&-; exec 3>&-; sleep 0.1; echo back > /dev/tty; exit 6"
    protocol = await run(script)
    assert protocol.received == b"back\r\n"
    assert protocol.status == 6


async def test_a_program_has_gone_after_the_block() -> None:
    reader, writer = await open_pty_process("sh", "-c", "echo ready; sleep 60")

    async def use() -> None:
        async with writer.transport as transport:
            assert transport is writer.transport
            assert await reader.readline() == b"ready\r\n"
            raise LookupError

    with pytest.raises(LookupError):
        await use()
    assert writer.transport.returncode == -signal.SIGHUP
    assert writer.transport.is_closing()


async def test_what_a_program_did_not_read_is_no_error_of_its_end() -> None:
    protocol = RecordingProtocol()
    transport, _ = await spawn_pty(lambda: protocol, "sh", "-c", "sleep 0.1; exit 8", raw=True)
    transport.write(bytes(500_000))
    await until(lambda: protocol.lost, "connection_lost came")
    assert protocol.reason is None
    assert transport.returncode == 8


async def test_the_terminal_is_its_own_and_has_a_size() -> None:
    protocol = await run(
        "ps -o pid=,sid=,tpgid= -p $$; stty size; tty; ls -l /proc/$$/fd | wc -l; : </dev/tty"
    )
    ids, size, name, _ = protocol.received.split(b"\r\n", 3)
    assert len(set(ids.split())) == 1
    assert size == b"24 80"
    assert name.startswith(b"/dev/pts/")


async def test_the_program_has_nothing_but_its_terminal() -> None:
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        protocol = await run("cd /proc/$$/fd; echo *")
    finally:
        os.close(inherited)
    # 3 is the shell's own copy of the directory at most
    assert protocol.received.split()[:3] == [b"0", b"1", b"2"]
    assert len(protocol.received.split()) <= 4


async def test_size_environment_and_directory() -> None:
    os.environ["COLUMNS"] = "7"
    try:
        protocol = await run("stty size; pwd; echo [$COLUMNS]", size=(50, 132), cwd="/usr")
    finally:
        del os.environ["COLUMNS"]
    assert protocol.received == b"50 132\r\n/usr\r\n[]\r\n"
    assert (await run("echo $ONLY", env={"ONLY": "this"})).received == b"this\r\n"


async def test_resize_reaches_the_program() -> None:
    reader, writer = await open_pty_process("bash", "--norc", "-i", env={"PS1": "$ ", "PATH": os.defpath})
    transport = writer.transport
    await reader.readuntil(b"$ ")
    transport.resize(30, 99, 640, 480)
    assert transport.window_size == (30, 99, 640, 480)
    writer.write(b"stty size\n")
    await reader.readuntil(b"30 99\r\n")
    writer.write(b"exit 9\n")
    await reader.read()
    assert await transport.wait() == 9
    writer.close()


async def test_only_another_size_is_told_to_the_program() -> None:
    script = "trap 'echo changed' WINCH; echo ready; while :; do read x && echo $x; done"
    reader, writer = await open_pty_process("sh", "-c", script, echo=False)

    async def said(*size: int) -> bytes:
        """All that comes of a resize, until the next line was read."""
        writer.transport.resize(*size)
        writer.write(b"next\n")
        return await reader.readuntil(b"next\r\n")

    async with asyncio.timeout(10):
        await reader.readuntil(b"ready\r\n")
        assert await said(24, 80) == b"next\r\n"
        assert (await said(30, 90)).startswith(b"changed\r\n")
        assert await said(30, 90) == b"next\r\n"
        assert (await said(30, 90, 900, 600)).startswith(b"changed\r\n")  # pixels count
        assert await said(30, 90, 900, 600) == b"next\r\n"
    writer.transport.kill()
    assert await writer.transport.wait() == -signal.SIGKILL
    writer.close()


async def test_modes_that_a_terminal_has_not_are_refused() -> None:
    transport, _ = await spawn_pty(RecordingProtocol, "sleep", "100")
    modes = transport.termios
    modes[2] |= termios.PARENB
    with pytest.raises(OSError, match="Invalid argument"):
        transport.termios = modes
    transport.kill()
    await transport.wait()


def test_no_terminal_becomes_that_of_this_process() -> None:
    """The leader of a session without one acquires each terminal that it opens without O_NOCTTY."""
    code = (
        "import asyncio, os\n"
        "from fdtransport import open_pty, open_pty_process\n"
        "async def main():\n"
        "    reader, writer = await open_pty_process('echo', 'its own')\n"
        "    assert await reader.read() == b'its own\\r\\n'\n"
        "    reader, port = await open_pty()\n"
        "    port.write(b'waits')\n"
        "    port.transport.abort()\n"
        "    try: os.open('/dev/tty', os.O_RDWR)\n"
        "    except OSError as exc: print(os.strerror(exc.errno))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, start_new_session=True, env=QUIET
    )
    assert (done.stdout, done.stderr) == (b"No such device or address\n", b"")


def program(pid: int | None) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def test_job_control_of_bash() -> None:
    reader, writer = await open_pty_process(
        "bash", "--norc", "--noediting", "-i", env={"PS1": "@ ", "PATH": os.defpath}
    )
    transport = writer.transport
    async with asyncio.timeout(10):
        text = await reader.readuntil(b"@ ")
        assert b"no job control" not in text
        shell = transport.foreground_pgid
        assert shell == transport.pid

        async def started() -> None:
            # The shell's child has the terminal before it is the program, and ignores signals until then.
            await until(lambda: program(transport.foreground_pgid) == "sleep", "sleep has the terminal")

        writer.write(b"sleep 100\n")
        await started()
        writer.write(b"\x1a")  # Ctrl-Z
        assert b"Stopped" in await reader.readuntil(b"Stopped")
        await until(lambda: transport.foreground_pgid == shell, "the shell has it again")
        writer.write(b"fg\n")
        await started()
        writer.write(b"\x03")  # Ctrl-C
        await until(lambda: transport.foreground_pgid == shell, "the shell has it again")
        writer.write(b"echo status $?\n")
        await reader.readuntil(b"status 130\r\n")
        writer.write(b"sleep 100\n")
        await started()
        transport.send_signal(signal.SIGINT, "foreground")
        await until(lambda: transport.foreground_pgid == shell, "the shell has it again")
        writer.write(b"sleep 100 & echo started\n")
        await reader.readuntil(b"started\r\n")
        transport.send_signal(signal.SIGKILL, "session")
        assert await transport.wait() == -signal.SIGKILL
        await reader.read()
        writer.close()


async def test_ten_mebibytes_are_pasted_into_cat() -> None:
    size = 10 * 1024 * 1024
    data = pattern(size)
    reader, writer = await open_pty_process("cat", raw=True)

    async def paste() -> None:
        for start in range(0, size, 65536):
            writer.write(data[start : start + 65536])
            await writer.drain()

    async with asyncio.timeout(30):
        pasting = asyncio.ensure_future(paste())
        assert await reader.readexactly(size) == data
        await pasting
    writer.transport.kill()
    assert await writer.transport.wait() == -signal.SIGKILL
    writer.close()


async def test_end_of_file_is_typed() -> None:
    reader, writer = await open_pty_process("cat", echo=False)
    assert writer.can_write_eof()
    writer.write(b"unfinished")
    writer.write_eof()
    assert await reader.read() == b"unfinished"
    assert await writer.transport.wait() == 0
    with pytest.raises(RuntimeError):
        writer.write(b"more")
    writer.close()


async def test_send_eof_ends_one_read_only() -> None:
    reader, writer = await open_pty_process("sh", "-c", "cat; cat; exit 2", echo=False)
    writer.write(b"one\n")
    writer.transport.send_eof()
    writer.write(b"two\nand")
    writer.transport.send_eof()
    assert await reader.read() == b"one\r\ntwo\r\nand"
    assert await writer.transport.wait() == 2
    writer.close()


async def test_a_password_is_asked_for() -> None:
    reader, writer = await open_pty_process(
        "sh", "-c", "stty -echo; printf ?; read x; stty echo; echo got $x"
    )
    async with asyncio.timeout(5):
        await writer.transport.wait_noecho()
        await reader.readuntil(b"?")
        writer.write(b"secret\n")
        assert await reader.read() == b"got secret\r\n"
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.transport.wait_noecho()


async def test_a_line_that_would_be_cut_is_an_error() -> None:
    reader, writer = await open_pty_process("cat", echo=False)
    transport = writer.transport
    with pytest.raises(OSError, match="4095") as caught:
        writer.write(b"x" * 4096 + b"\n")
    assert caught.value.errno == 90
    writer.write(b"y" * 4095 + b"\n")
    assert await reader.readexactly(4097) == b"y" * 4095 + b"\r\n"
    writer.write(b"z" * 4000)
    with pytest.raises(OSError, match="4100"):
        writer.writelines([b"z" * 50, b"z" * 50])
    writer.write(b"\n")
    assert await reader.readexactly(4002) == b"z" * 4000 + b"\r\n"
    transport.raw()
    writer.write(b"w" * 6000)
    assert await reader.readexactly(6000) == b"w" * 6000
    transport.terminate()
    assert await transport.wait() == -signal.SIGHUP
    writer.close()


async def test_a_file_and_a_relay_do_not_pass_a_line_that_would_be_cut(tmp_path: Path) -> None:
    long = b"z" * 5000 + b"\n"
    with (tmp_path / "lines").open("w+b") as file:
        file.write(long)
        reader, writer = await open_pty_process("cat", echo=False)
        with pytest.raises(OSError, match="5000") as caught:
            await writer.transport.sendfile(file)
        assert caught.value.errno == errno.EMSGSIZE
        writer.transport.raw()
        assert await writer.transport.sendfile(file) == len(long)
        assert await reader.readexactly(len(long)) == long
        writer.transport.kill()
        assert await writer.transport.wait() == -signal.SIGKILL
        writer.close()
    near, far = socket.socketpair()
    with far:
        far.sendall(b"short\n")
        other = await open_unix_connection(sock=near)
        reader, writer = await open_pty_process("cat", echo=False)
        relaying = asyncio.ensure_future(relay(other, (reader, writer)))
        far.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            assert await loop.sock_recv(far, 100) == b"short\r\n"
            far.sendall(long)
            result = await relaying
        assert await writer.transport.wait() == -signal.SIGHUP
        assert result.a_to_b.bytes == len(b"short\n")
        assert isinstance(result.error, OSError)
        assert (result.error.errno, result.failed) == (errno.EMSGSIZE, "b")


async def test_flow_control_and_flushes_are_told() -> None:
    heard: list[TerminalEvent] = []
    reader, writer = await open_pty_process("cat", on_event=heard.append)
    waiting = asyncio.ensure_future(reader.read())
    for typed, event in (
        (b"\x13", TerminalEvent.STOPPED),
        (b"\x11", TerminalEvent.STARTED),
        (b"\x03", TerminalEvent.INPUT_FLUSHED),
    ):
        writer.write(typed)
        await until(lambda event=event: event in heard, f"{event} was told")
    assert await writer.transport.wait() == -signal.SIGINT
    assert await waiting == b"^C"
    writer.close()


def test_threads_spawn_at_once() -> None:
    """Each in a loop of its own; warnings are errors here."""

    async def several() -> list[RecordingProtocol]:
        return await asyncio.gather(*(run("seq 300; exit 7") for _ in range(5)))

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(asyncio.run, several()) for _ in range(8)]
        ended = [protocol for result in results for protocol in result.result(30)]
    assert len(ended) == 40
    assert {(protocol.status, len(protocol.received.split())) for protocol in ended} == {(7, 300)}


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another user")
async def test_a_program_of_another_user_owns_its_terminal() -> None:
    protocol = await run("id -u; : < $(tty) && : < /dev/tty && echo opened", user=65534, group=65534, cwd="/")
    assert protocol.received == b"65534\r\nopened\r\n"


async def test_a_program_that_somebody_else_reaps_ends_and_the_status_is_flagged() -> None:
    protocol = RecordingProtocol()
    transport, _ = await spawn_pty(lambda: protocol, "sh", "-c", "read x; exit 7", echo=False)
    transport.write(b"\n")
    os.waitpid(transport.pid, 0)  # noqa: ASYNC222
    assert await transport.wait() == 255
    assert not transport.status_known
    await until(lambda: protocol.lost, "connection_lost came")
    assert protocol.reason is None


async def test_closing_hangs_up() -> None:
    protocol = RecordingProtocol()
    transport, _ = await spawn_pty(lambda: protocol, "sleep", "100")
    transport.close()
    assert await transport.wait() == -signal.SIGHUP
    assert protocol.lost
    with pytest.raises(ProcessLookupError):
        transport.send_signal(signal.SIGTERM)
    with pytest.raises(OSError):  # noqa: PT011
        _ = transport.window_size


async def test_terminate_climbs_to_what_cannot_be_refused() -> None:
    reader, writer = await open_pty_process(
        "sh", "-c", "trap '' HUP TERM; echo ready; while :; do sleep 1; done"
    )
    await reader.readuntil(b"ready")
    assert await writer.transport.terminate(grace=0.05) == -signal.SIGKILL
    writer.close()


async def test_idle_terminals_cost_nothing() -> None:
    transports = [(await spawn_pty(RecordingProtocol, "sleep", "100"))[0] for _ in range(5)]
    cost = await idle_cost(0.3)
    for transport in transports:
        transport.kill()
        await transport.wait()
        transport.abort()
    assert cost.is_idle(0.05, 3), str(cost)


def no_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


async def test_a_cancelled_start_leaves_nothing() -> None:
    before = descriptors()
    task = asyncio.ensure_future(spawn_pty(RecordingProtocol, "sleep", "100"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: descriptors() == before, "all is closed")
    await until(no_children, "nobody is left")


async def test_signals_that_are_none() -> None:
    transport, _ = await spawn_pty(RecordingProtocol, "sleep", "100")
    with pytest.raises(ValueError, match="foreground"):
        transport.send_signal(signal.SIGTERM, "everybody")
    with pytest.raises(ValueError, match="4711"):
        transport.send_signal(4711)
    transport.kill()
    await transport.wait()
