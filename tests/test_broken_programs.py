"""Programs whose start, life or end goes wrong in ways that are rare and happen."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from child_checks import QUIET, no_child_is_left, until  # noqa: F401

from fdtransport import TerminalEvent, create_subprocess_exec, open_exec, open_pty_process, spawn_pty
from fdtransport._core.readiness import HangupWatch
from fdtransport.testing import FaultPlan, RecordingProtocol

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")

DEAF = """
import signal, time
for number in 1, 15:
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *args],
        capture_output=True, text=True, timeout=30, check=False, env=QUIET,
    )  # fmt: skip


# -- an interrupt inside a callback


INTERRUPTED = """
    import asyncio, sys, fdtransport

    class Interrupted(asyncio.SubprocessProtocol):
        def connection_lost(self, exc):
            print("lost", exc)

    def interrupt(*_):
        raise SystemExit(7)

    setattr(Interrupted, sys.argv[1], interrupt)

    async def main():
        transport = None
        try:
            transport, _ = await start(Interrupted)
            transport.kill()
            await transport.wait_closed()
        finally:
            if transport is not None:
                await transport.wait_closed()

    if sys.argv[2] == "own":
        start = lambda factory: fdtransport.subprocess_exec(factory, "sleep", "60")
        asyncio.run(main())
    else:
        start = lambda factory: asyncio.get_running_loop().subprocess_exec(factory, "sleep", "60")
        with asyncio.Runner(loop_factory=fdtransport.EventLoop) as runner:
            runner.run(main())
"""


@pytest.mark.parametrize("kind", ["own", "drop-in"])
@pytest.mark.parametrize("where", ["connection_made", "process_exited"])
def test_an_interrupt_in_a_callback_does_not_hold_up_the_end(where: str, kind: str) -> None:
    done = run(INTERRUPTED, where, kind)
    assert (done.returncode, done.stdout, done.stderr) == (7, "lost None\n", "")


# -- several who end it at once


async def test_several_may_await_one_ladder_and_it_is_climbed_once() -> None:
    async with await create_subprocess_exec(sys.executable, "-c", DEAF, stdout=subprocess.PIPE) as process:
        assert await process.stdout.readline()
        ending = process.terminate((signal.SIGHUP, signal.SIGTERM, signal.SIGKILL), grace=0.2)
        begun = time.monotonic()

        async def wait() -> int:
            return await ending

        assert await asyncio.gather(wait(), wait(), wait()) == [-signal.SIGKILL] * 3
        assert time.monotonic() - begun >= 0.4


# -- a fork


FORKS = """
    import asyncio, os, sys, fdtransport

    async def main():
        transport, _ = await fdtransport.subprocess_exec(asyncio.SubprocessProtocol, "sleep", "60", fds={})
        child = os.fork()
        if child == 0:
            if sys.argv[1] == "collected":
                transport.__del__()
                os._exit(0)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        transport.send_signal(15)
        assert await transport.wait() == -15, transport
        await transport.aclose()

    asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["collected", "exit"])
def test_a_forked_copy_of_a_process_does_not_end_it(how: str) -> None:
    done = run(FORKS, how)
    assert (done.returncode, done.stderr) == (0, "")


# -- no descriptors, and nobody's status


async def test_no_descriptors_are_left_is_what_is_told_also_where_sigchld_is_ignored() -> None:
    assert await (await create_subprocess_exec("true")).wait() == 0  # that pidfds are there is known now
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with FaultPlan() as plan:
            plan.fail("pidfd_open", 1, errno.EMFILE)
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)) as caught:
                await create_subprocess_exec("true")
        assert caught.value.errno == errno.EMFILE
    finally:
        signal.signal(signal.SIGCHLD, before)


# -- a session of which one process is another user's


async def test_a_process_that_may_not_be_signalled_does_not_spare_the_rest_of_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fdtransport._core import syscalls

    transport, _ = await spawn_pty(asyncio.Protocol, "sh", "-c", "sleep 60 & sleep 60 & wait")
    send, asked = syscalls.pidfd_send_signal, []

    def refuse_the_first(pidfd: int, number: int) -> None:
        asked.append(pidfd)
        if len(asked) == 1:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        send(pidfd, number)

    def refuse(pidfd: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    session = f"/proc/{transport.pid}/task/{transport.pid}/children"
    await until(lambda: len(Path(session).read_text().split()) == 2)
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "pidfd_send_signal", refuse)
        with pytest.raises(PermissionError):
            transport.send_signal(signal.SIGCONT, "session")
        patch.setattr(syscalls, "pidfd_send_signal", refuse_the_first)
        transport.send_signal(signal.SIGCONT, "session")
    assert len(asked) == 3
    await transport.finish()


# -- where this process is


def test_a_directory_that_has_gone_is_no_reason_for_not_becoming_another_user() -> None:
    if os.geteuid():
        pytest.skip("only root becomes another user")
    done = run(
        """
        import asyncio, os, tempfile, fdtransport

        async def main():
            process = await fdtransport.create_subprocess_exec("/bin/echo", "here", user="nobody")
            return await process.wait()

        place = tempfile.mkdtemp()
        os.chdir(place)
        os.rmdir(place)
        raise SystemExit(asyncio.run(main()))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")


# -- lines that a terminal would cut


@pytest.mark.parametrize(
    ("modes", "lines"),
    [
        ([], [b"x" * 4000 + b"\x16\n" + b"y" * 4000 + b"\n"]),
        ([], [b"x" * 4000 + b"\x16", b"\x04" + b"y" * 4000 + b"\n"]),
        ([], [b"\x16\x04" * 4096 + b"\n"]),
        (["inlcr"], [b"x" * 4000 + b"\n" + b"y" * 4000]),
        (["igncr", "icrnl"], [b"x" * 4000 + b"\r" + b"y" * 4000 + b"\n"]),
        (["parmrk"], [b"\xff" * 2100 + b"\n"]),
    ],
    ids=["quoted", "quoted in two writes", "all quoted", "inlcr", "igncr", "parmrk"],
)
async def test_a_line_that_would_be_cut_is_an_error_also_where_its_end_is_none(
    modes: list[str], lines: list[bytes]
) -> None:
    _, writer = await open_pty_process("sleep", "60", echo=False)
    terminal = writer.transport
    stty = await create_subprocess_exec("stty", "-F", terminal.get_extra_info("slave_name"), *modes)
    assert await stty.wait() == 0
    for line in lines[:-1]:
        writer.write(line)
    with pytest.raises(OSError, match="4095") as caught:
        writer.write(lines[-1])
    assert caught.value.errno == errno.EMSGSIZE
    writer.close()
    await terminal.finish()


async def test_a_quoted_character_counts_as_one() -> None:
    reader, writer = await open_pty_process("cat", echo=False)
    for _ in range(4095):
        writer.write(b"\x16")
        writer.write(b"\x04")
    writer.write(b"\n")
    assert await reader.readexactly(4097) == b"\x04" * 4095 + b"\r\n"
    writer.close()
    await writer.transport.finish()


# -- events and the last output


HOLDS_BACK = """
import os, termios
os.write(1, b"a" * 100)
termios.tcflow(0, termios.TCOOFF)
termios.tcflow(0, termios.TCOON)
os.write(1, b"b" * 1000)
"""


async def test_whoever_pauses_at_an_event_gets_the_last_output_later() -> None:
    class Takes(asyncio.Protocol):
        got = b""
        at_end = -1
        transport: Any

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.got += data

        def eof_received(self) -> None:
            self.at_end = len(self.got)

    events = []
    protocol = Takes()

    def pause(event: TerminalEvent) -> None:
        events.append(event)
        protocol.transport.pause_reading()
        asyncio.get_running_loop().call_later(0.01, protocol.transport.resume_reading)

    transport, _ = await spawn_pty(lambda: protocol, sys.executable, "-c", HOLDS_BACK, on_event=pause)
    transport.pause_reading()
    await transport.wait()
    transport.resume_reading()
    await until(lambda: protocol.at_end >= 0)
    assert TerminalEvent.STARTED in events
    assert protocol.got == b"a" * 100 + b"b" * 1000
    assert protocol.at_end == 1100


async def test_a_reader_gets_the_last_output_after_an_event_that_came_while_nobody_read() -> None:
    events: list[TerminalEvent] = []
    reader, writer = await open_pty_process(sys.executable, "-c", HOLDS_BACK, on_event=events.append)
    await writer.transport.wait()
    assert await reader.read() == b"a" * 100 + b"b" * 1000
    assert TerminalEvent.STARTED in events
    writer.close()
    await writer.wait_closed()


# -- a run that ends


RUNS_ON = """
    import asyncio, sys, fdtransport

    async def main():
        if sys.argv[1] == "pty":
            words = "trap '' HUP; echo; exec sleep 60"
            reader, writer = await fdtransport.open_pty_process("sh", "-c", words)
        else:
            reader, writer = await fdtransport.open_exec("sh", "-c", "echo; exec sleep 60")
        await reader.readline()
        print(writer.transport.pid)

    asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["pty", "exec"])
def test_a_run_that_ends_in_the_middle_leaves_no_program(kind: str) -> None:
    done = run(RUNS_ON, kind)
    assert done.returncode == 0
    deadline = time.monotonic() + 10
    while Path("/proc", done.stdout.strip()).exists():  # as a zombie, until the one who has it now reaps it
        assert time.monotonic() < deadline
        time.sleep(0.001)


# -- what this process ignores


IGNORES = """
    import asyncio, signal, sys, fdtransport

    for name in "HUP", "INT", "QUIT", "TSTP":
        signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)

    async def main():
        # A shell cannot take back that a signal is ignored.
        reader, writer = await fdtransport.open_pty_process("sh", "-c", "echo; exec sleep 60")
        await reader.readline()
        if sys.argv[1] == "key":
            writer.write(b"\\x03")
            print(await writer.transport.wait())
            writer.close()
        else:
            print(await writer.transport.finish())

    asyncio.run(main())
"""


@pytest.mark.parametrize(("how", "status"), [("key", -signal.SIGINT), ("hang-up", -signal.SIGHUP)])
def test_what_nohup_ignores_for_this_process_is_not_ignored_on_a_terminal(how: str, status: int) -> None:
    done = run(IGNORES, how)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{status}\n", "")


@pytest.mark.parametrize("open_it", [create_subprocess_exec, open_pty_process])
async def test_no_directory_is_named_as_what_is_wrong(open_it: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await open_it("true", cwd="")
    assert caught.value.filename == ""


# -- a program that takes no more


@pytest.mark.parametrize("open_it", [open_exec, open_pty_process])
async def test_whoever_goes_on_writing_hears_that_the_program_has_gone(open_it: Any) -> None:
    reader, writer = await open_it("sh", "-c", "stty raw 2> /dev/null; echo; exec sleep 60")
    await reader.readline()
    writer.transport.kill()
    writes = 0
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(b"x" * 1000)
            await writer.drain()
            writes += 1
            assert writes < 1000
    assert await writer.transport.wait() == -signal.SIGKILL
    await writer.wait_closed()


async def test_the_end_is_told_when_the_hang_up_comes_before_what_was_queued_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transport, protocol = await spawn_pty(lambda: RecordingProtocol(keep_open=True), "sleep", "60", raw=True)
    transport.write(bytes(1_000_000))
    assert transport.get_write_buffer_size()
    arm = HangupWatch.arm

    def told_at_once(watch: HangupWatch, fd: int, callback: Any, **how: Any) -> bool:
        armed = arm(watch, fd, callback, **how)
        if protocol.count("eof"):
            watch.disarm(fd)
            callback.__self__._hangup()  # (in its context already)
        return armed

    # Which of the two the poller tells first is the kernel's choice.
    monkeypatch.setattr(HangupWatch, "arm", told_at_once)
    transport.kill()
    await until(lambda: protocol.lost)
    assert await transport.wait() == -signal.SIGKILL
