"""Processes of the drop-in loop: asyncio's API, this library's way to start and end them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from child_checks import no_child_is_left, until  # noqa: F401

import fdtransport
from fdtransport._core import syscalls
from fdtransport.popen import PopenTransport

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")

PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT


def run(main: Any) -> Any:
    with asyncio.Runner(loop_factory=fdtransport.new_event_loop) as runner:
        return runner.run(main)


class Events(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.data = b""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.data += data

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.events.append(f"lost {fd}")

    def process_exited(self) -> None:
        self.events.append("exited")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


async def output_of(*words: str, **options: Any) -> bytes:
    process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, **options)
    assert isinstance(process._transport, PopenTransport)  # type: ignore[attr-defined]
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


def test_neither_a_handler_nor_a_thread_nor_a_watcher_is_there() -> None:
    async def main() -> None:
        assert await output_of("echo", "hello") == b"hello\n"
        assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, None)
        assert signal.set_wakeup_fd(-1) == -1
        assert threading.active_count() == before

    before = threading.active_count()
    run(main())


def test_the_words_of_popen_are_understood(tmp_path: Path) -> None:
    async def main() -> None:
        assert await output_of("pwd", cwd=tmp_path) == os.fsencode(tmp_path) + b"\n"
        assert await output_of("sh", "-c", "echo $A", env={"A": "b"}) == b"b\n"
        assert await output_of("sh", "-c", "echo x >&2", stderr=STDOUT) == b"x\n"
        assert await output_of("cat", stdin=DEVNULL, stderr=DEVNULL) == b""
        assert await output_of("no such", "-c", "echo $0", executable="/bin/sh") == b"no such\n"
        code = "echo $(ps -o pid=,pgid=,sid= -p $$)"
        ids = (await output_of("sh", "-c", code, start_new_session=True)).split()
        assert len(set(ids)) == 1
        pid, group, session = (await output_of("sh", "-c", code, process_group=0)).split()
        assert pid == group != session
        shell = await asyncio.create_subprocess_shell("echo $0 $((6 * 7))", stdout=PIPE, executable="/bin/sh")
        assert await shell.communicate() == (b"/bin/sh 42\n", None)
        reading, writing = os.pipe()
        source = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE)
        os.pwrite(source, b"input", 0)
        await output_of("sh", "-c", f"cat > /proc/self/fd/{writing}", stdin=source, pass_fds=[writing])
        assert os.read(reading, 100) == b"input"
        for fd in (reading, writing, source):
            os.close(fd)

    run(main())


def test_what_only_a_fork_can_do_is_left_to_asyncio() -> None:
    async def main() -> None:
        only_popens = {"preexec_fn": int, "umask": 0o77, "close_fds": False, "restore_signals": False}
        for option in only_popens.items():
            process = await asyncio.create_subprocess_exec("true", **dict([option]))
            assert not isinstance(process._transport, PopenTransport)
            assert await process.wait() == 0
        with pytest.raises(TypeError, match="nonsense"):
            await asyncio.create_subprocess_exec("true", nonsense=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the fork
        run(main())


def test_what_the_system_lacks_is_left_to_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("pwd", stdout=PIPE, cwd="/usr")
        assert not isinstance(process._transport, PopenTransport)
        assert await process.communicate() == (b"/usr\n", None)

    monkeypatch.setattr(syscalls, "has_spawn_action", lambda name: name != "chdir_np")
    run(main())


def test_the_exit_is_told_though_somebody_else_has_the_output() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        script = f"(read x; echo late) < /proc/self/fd/{reading} & echo early"
        transport, protocol = await loop.subprocess_exec(
            Events, "sh", "-c", script, pass_fds=[reading], stdin=None, stderr=None
        )
        os.close(reading)
        await until(lambda: "exited" in protocol.events)
        assert protocol.events == ["exited"]
        assert transport.get_returncode() == 0
        os.write(writing, b"\n")
        os.close(writing)
        await protocol.lost
        assert protocol.events == ["exited", "lost 1"]
        assert protocol.data == b"early\nlate\n"

    run(main())


def test_wait_returns_though_output_is_unread() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("head", "-c", "1000000", "/dev/zero", stdout=PIPE)
        await asyncio.sleep(0)
        process.kill()
        async with asyncio.timeout(10):
            assert await process.wait() == -signal.SIGKILL
        assert process.stdout is not None
        assert not (await process.stdout.read()).strip(b"\0")

    run(main())


@pytest.mark.parametrize("make", [fdtransport.EventLoop, asyncio.SelectorEventLoop])
def test_signals_after_the_end_are_an_error_once_its_descriptors_have_ended_too(make: Any) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f"cat < /proc/self/fd/{reading} & exit 3", stdout=PIPE, pass_fds=[reading]
        )
        os.close(reading)
        signals = process.kill, process.terminate, partial(process.send_signal, signal.SIGUSR1)
        await until(lambda: process.returncode == 3)
        for send in signals:
            send()
        os.close(writing)
        assert process.stdout is not None
        assert await process.stdout.read() == b""

        def is_an_error(send: Any) -> bool:
            try:
                send()
            except ProcessLookupError:
                return True
            return False

        await until(lambda: all(map(is_an_error, signals)))

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())


def test_the_subprocess_of_the_extra_info_is_as_popen() -> None:
    async def main() -> None:
        transport, protocol = await asyncio.get_running_loop().subprocess_exec(Events, "sleep", "60")
        process = transport.get_extra_info("subprocess")
        assert (process.pid, process.poll()) == (transport.get_pid(), None)
        assert process.args == ("sleep", "60")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(-1)  # what was left of the time has passed
        process.terminate()
        assert process.wait(10) == process.poll() == process.returncode == -signal.SIGTERM
        assert transport.get_returncode() is None  # the loop has not told it yet
        process.kill()
        transport.close()
        await protocol.lost
        assert transport.get_returncode() == -signal.SIGTERM

    run(main())


@pytest.mark.parametrize("signal_of", ["terminate", "kill"])
def test_a_process_that_has_ended_takes_no_signal(signal_of: str) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()
        with pytest.raises(ProcessLookupError):
            getattr(process, signal_of)()

    run(main())


def test_what_cannot_be_started_is_the_callers_error() -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError, match="no/such"):
            await asyncio.create_subprocess_exec("/no/such", stdout=PIPE)
        with pytest.raises(NotADirectoryError):
            await asyncio.create_subprocess_exec("true", cwd="/etc/passwd", stdin=PIPE)
        with pytest.raises(ValueError, match="null byte"):
            await asyncio.create_subprocess_exec("true", "\0")

    run(main())
