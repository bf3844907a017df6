"""A user's terminal, with job control: however the program that was attached to it ends, it is as before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from real_programs import executable

from fdtransport import PtyProcessTransport, open_unix_connection, spawn_pty
from fdtransport.testing.observe import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfds")

LEADER = str(Path(__file__).with_name("terminal_session.py"))
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("PYTHONASYNCIODEBUG", "TERM")},
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "TERM": "dumb",
}
PATIENCE = 20

#: What each job begins with; ``run`` takes the loop that the test has.
PRELUDE = """
import asyncio, os, signal, sys
from fdtransport import attach_terminal, connect_terminal

def tell(*words):
    os.write(3, (" ".join(map(str, words)) + "\\n").encode())

def run(main):
    if sys.argv[1] == "uvloop":
        import uvloop as source
    else:
        import asyncio as source
    with asyncio.Runner(loop_factory=source.new_event_loop) as runner:
        runner.get_loop().slow_callback_duration = 60  # a busy machine is not this program's fault
        runner.run(main())
"""

#: Attached until a key is typed, or something happens.
ATTACHED = """
async def main():
    async with attach_terminal(on_resize=lambda size: tell("size", *size[:2])) as (reader, writer):
        tell("attached", os.get_blocking(0))
        key = await reader.read(100)
        tell("key", key, os.get_blocking(0))
        {ending}
run(main)
"""


class Session(asyncio.Protocol):
    """A terminal with a session that has one job, and what is told of that."""

    def __init__(self) -> None:
        self.shown = b""
        self.over = False
        self.terminal: PtyProcessTransport
        self.told: asyncio.StreamReader
        self.orders: asyncio.StreamWriter
        self.pid = 0

    def data_received(self, data: bytes) -> None:
        self.shown += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True

    async def hears(self, words: str) -> None:
        line = (await self.told.readline()).decode().strip()
        assert line == words, f"{line!r}, and on the terminal: {self.shown.decode()}"

    def order(self, word: str) -> None:
        self.orders.write(word.encode() + b"\n")

    def type(self, keys: bytes) -> None:
        self.terminal.write(keys)

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    async def until_shown(self, text: bytes) -> None:
        await until(lambda: text in self.shown, lambda: f"{text!r} was shown: {self.shown!r}", PATIENCE)

    @property
    def is_raw(self) -> bool:
        return not (self.terminal.canonical or self.terminal.echo)


@asynccontextmanager
async def session(*job: str, where: str = "fg", **options: Any) -> AsyncIterator[Session]:
    """*job* as the only one of a session, on a terminal of its own."""
    ours, theirs = socket.socketpair()
    command = (sys.executable, "-I", "-S", LEADER, where, *job)
    with theirs:
        terminal, one = await spawn_pty(
            Session, *command, fds={3: theirs.fileno()}, env=ENVIRONMENT, **options
        )
    one.terminal = terminal
    one.told, one.orders = await open_unix_connection(sock=ours)
    try:
        async with asyncio.timeout(PATIENCE):
            word, pid = (await one.told.readline()).split()
            assert word == b"started"
            one.pid = int(pid)
            yield one
            await terminal.wait()
    finally:
        if terminal.returncode is None:
            terminal.kill()
            if one.pid:
                os.kill(one.pid, signal.SIGKILL)
        one.orders.close()
        await one.orders.wait_closed()
        terminal.abort()
        await until(lambda: one.over, "the terminal ended")


def _loop_name() -> str:
    """That of the test's loop: what it starts has one of the same kind."""
    return "uvloop" if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else "asyncio"


def job(program: str, **options: Any) -> Any:
    """As ``session``, of a Python program."""
    python = (sys.executable, "-X", "dev", "-W", "error", "-c")
    return session(*python, PRELUDE + program, _loop_name(), **options)


ENDINGS = {
    "the end of the block": ("pass", "exited 0"),
    "an exception": ("raise ZeroDivisionError", "exited 1"),
    "exit": ("raise SystemExit(3)", "exited 3"),
    "a cancellation": ("asyncio.current_task().cancel(); await asyncio.sleep(60)", "exited 1"),
    "a timeout": ("async with asyncio.timeout(0): await asyncio.sleep(60)", "exited 1"),
    "an abort": ("writer.transport.abort()", "exited 0"),
    "an end of the loop": ("asyncio.get_running_loop().stop(); await asyncio.sleep(60)", "exited 1"),
    "a signal with a handler": (
        "asyncio.get_running_loop().add_signal_handler(15, asyncio.current_task().cancel);"
        " os.kill(os.getpid(), 15); await asyncio.sleep(60)",
        "exited 1",
    ),
}


@pytest.mark.parametrize(("ending", "told"), ENDINGS.values(), ids=ENDINGS)
async def test_the_terminal_is_as_before_after(ending: str, told: str) -> None:
    async with job(ATTACHED.format(ending=ending)) as one:
        await one.hears("attached True")
        assert one.is_raw
        one.type(b"\x03")
        await one.hears("key b'\\x03' True")
        await one.hears(f"{told} same")


UNFINISHED = """
async def main():
    keep.append(await connect_terminal(asyncio.Protocol))
    tell("attached")
keep = []
run(main)
{ending}
"""


UNENDED = {
    "at exit": "",
    "at exit, in use": """
def hold(_kept):
    while True:
        asyncio.run(asyncio.sleep(60))
import threading; threading.Thread(target=hold, args=keep, daemon=True).start()""",
    "after an exception": "raise ZeroDivisionError",
    "collected": "del keep[:]",
}


@pytest.mark.parametrize("ending", UNENDED.values(), ids=UNENDED)
async def test_the_terminal_is_as_before_after_a_program_that_did_not_close_it(ending: str) -> None:
    async with job(UNFINISHED.format(ending=ending)) as one:
        await one.hears("attached")
        await one.hears(f"exited {1 if 'raise' in ending else 0} same")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
async def test_a_signal_ends_it_as_it_should_and_the_terminal_is_as_before(name: str) -> None:
    async with job(ATTACHED.format(ending="")) as one:
        await one.hears("attached True")
        assert one.is_raw
        one.kill(getattr(signal, name))
        await one.hears(f"killed {name} same")


async def test_signals_are_as_before_when_it_is_over() -> None:
    program = """
numbers = [signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH]
def handlers():
    return [signal.getsignal(number) for number in numbers]
async def main():
    before = handlers()
    async with attach_terminal():
        tell("attached", before == handlers())
    tell("over", before == handlers())
run(main)
"""
    async with job(program) as one:
        await one.hears("attached False")
        await one.hears("over True")
        await one.hears("exited 0 same")


async def test_an_ignored_signal_stays_ignored() -> None:
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ATTACHED.format(ending="")
    async with job(program) as one:
        await one.hears("attached True")
        one.kill(signal.SIGTERM)
        one.type(b"k")
        await one.hears("key b'k' True")
        await one.hears("exited 0 same")


async def test_a_stop_puts_the_terminal_back_and_going_on_makes_it_raw_again() -> None:
    async with job(ATTACHED.format(ending=""), size=(24, 80)) as one:
        await one.hears("attached True")
        for size in (40, 41):
            one.kill(signal.SIGTSTP)
            await one.hears("stopped SIGTSTP same")
            one.terminal.resize(size, 100)
            one.order("fg")
            await one.hears(f"size {size} 100")
            await until(lambda: one.is_raw, "it was raw again")
        one.type(b"k")
        await one.hears("key b'k' True")
        await one.hears("exited 0 same")


async def test_it_goes_on_where_nobody_could_continue_it() -> None:
    # The leader of a session is an orphan to job control: stops have no effect on it.
    program = """
async def main():
    async with attach_terminal(on_resize=lambda size: os.write(1, b"size %d" % size[0])) as (reader, _):
        os.write(1, b"attached")
        await reader.read(1)
run(main)
"""
    async with shell(sys.executable, "-c", PRELUDE + program, _loop_name()) as one:
        await one.until_shown(b"attached")
        one.terminal.send_signal(signal.SIGTSTP)
        one.terminal.resize(40, 132)  # Python handles the smaller number first
        await one.until_shown(b"size 40")
        assert one.is_raw
        one.type(b"k")
        assert await one.terminal.wait() == 0


async def test_what_was_changed_while_it_was_stopped_is_kept() -> None:
    async with job(ATTACHED.format(ending="")) as one:
        await one.hears("attached True")
        one.kill(signal.SIGTSTP)
        await one.hears("stopped SIGTSTP same")
        one.order("noecho")
        one.order("fg")
        await until(lambda: one.is_raw, "it was raw again", PATIENCE)
        one.type(b"k")
        await one.hears("key b'k' True")
        await one.hears("exited 0 same")


async def test_a_stop_that_cannot_be_caught_ends_in_raw_mode_again() -> None:
    async with job(ATTACHED.format(ending="")) as one:
        await one.hears("attached True")
        one.kill(signal.SIGSTOP)
        await one.hears("stopped SIGSTOP changed")
        one.order("noecho")  # a shell puts modes of its own
        one.terminal.cooked()
        one.order("fg")
        await until(lambda: one.is_raw, "it was raw again", PATIENCE)
        one.type(b"k")
        await one.hears("key b'k' True")
        one.kill(signal.SIGCONT)


async def test_in_the_background_it_is_stopped_until_it_is_in_the_foreground() -> None:
    async with job(ATTACHED.format(ending=""), where="bg") as one:
        for _ in range(2):
            await one.hears("stopped SIGTTOU same")
            one.order("bg")
        await one.hears("stopped SIGTTOU same")
        one.order("noecho")
        one.order("fg")
        await one.hears("attached True")
        assert one.is_raw
        one.kill(signal.SIGTSTP)
        await one.hears("stopped SIGTSTP same")
        one.order("bg")
        await one.hears("stopped SIGTTOU same")
        one.order("fg")
        await until(lambda: one.is_raw, "it was raw again", PATIENCE)
        one.kill(signal.SIGTERM)
        await one.hears("killed SIGTERM same")


async def test_a_job_that_is_killed_in_the_background_leaves_the_terminal_to_its_shell() -> None:
    async with job(ATTACHED.format(ending="")) as one:
        await one.hears("attached True")
        one.kill(signal.SIGSTOP)
        await one.hears("stopped SIGSTOP changed")
        one.terminal.cooked()
        one.order("noecho")
        one.kill(signal.SIGTERM)
        one.order("bg")
        await one.hears("killed SIGTERM same")


async def test_the_end_is_not_held_up_when_the_foreground_is_lost_at_that_moment() -> None:
    program = """
from fdtransport._core import terminal
async def main():
    async with attach_terminal() as (reader, _):
        terminal.in_foreground = lambda fd: True
        tell("attached")
        await reader.read(1)
run(main)
"""
    async with job(program) as one:
        await one.hears("attached")
        one.kill(signal.SIGSTOP)
        await one.hears("stopped SIGSTOP changed")
        one.kill(signal.SIGTERM)
        one.order("bg")
        await one.hears("killed SIGTERM same")


async def test_in_the_background_it_is_an_error_for_whoever_ignores_being_stopped() -> None:
    program = """
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
async def main():
    try:
        async with attach_terminal():
            tell("attached")
    except OSError as exc:
        tell(exc)
run(main)
"""
    async with job(program, where="bg") as one:
        wanted = "the terminal is another job's, and this one is in the background"
        await one.hears(f"[Errno 5] Input/output error: {wanted}")
        await one.hears("exited 0 same")


async def test_a_signal_from_outside_in_the_middle_of_a_stop_ends_it() -> None:
    async with job(ATTACHED.format(ending="")) as one:
        await one.hears("attached True")
        one.kill(signal.SIGTSTP)
        await one.hears("stopped SIGTSTP same")
        one.kill(signal.SIGTERM)
        one.order("noecho")
        one.order("fg")
        await one.hears("killed SIGTERM same")


#: As after su: the terminal is another user's, and cannot be opened anew.
NOT_OPENED_ANEW = """
from fdtransport._core import syscalls
really = syscalls.open
def refuse(path, flags):
    if str(path).startswith("/proc/self/fd"):
        raise PermissionError(13, "as after su")
    return really(path, flags)
syscalls.open = refuse
"""


@pytest.mark.parametrize("ending", ["a key", "SIGTERM"])
async def test_the_blocking_mode_of_a_terminal_that_is_shared_is_put_back(ending: str) -> None:
    async with job(NOT_OPENED_ANEW + ATTACHED.format(ending="")) as one:
        await one.hears("attached False")
        one.kill(signal.SIGTSTP)
        await one.hears("stopped SIGTSTP same")
        one.order("fg")
        await until(lambda: one.is_raw, "it was raw again", PATIENCE)
        if ending == "a key":
            one.type(b"k")
            await one.hears("key b'k' False")
            await one.hears("exited 0 same")
        else:
            one.kill(signal.SIGTERM)
            await one.hears("killed SIGTERM same")


async def test_a_process_that_was_forked_leaves_the_terminal_alone() -> None:
    ending = """
        for number in (0, 15):
            pid = os.fork()
            if not pid:
                if number:
                    os.kill(os.getpid(), number)
                os._exit(0)
            tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        tell("forked")
        await reader.read(1)
"""
    program = "import warnings; warnings.simplefilter('ignore')\n" + ATTACHED.format(ending=ending.lstrip())
    async with job(program) as one:
        await one.hears("attached True")
        one.type(b"k")
        await one.hears("key b'k' True")
        await one.hears("0")
        await one.hears("-15")
        await one.hears("forked")
        assert one.is_raw
        one.type(b"k")
        await one.hears("exited 0 same")


async def test_a_hang_up_of_the_terminal_ends_it() -> None:
    for ignored in (False, True):
        ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" if ignored else ""
        async with job(ignore + ATTACHED.format(ending="")) as one:
            await one.hears("attached True")
            one.terminal.abort()
            if ignored:
                await one.hears("key b'' True")


async def test_another_window_follows_this_one() -> None:
    program = """
from fdtransport import relay, spawn_pty
async def main():
    program, _ = await spawn_pty(asyncio.Protocol, "cat")
    async with attach_terminal() as streams:
        running = asyncio.ensure_future(relay(streams, program))
        while program.window_size[:2] != (33, 77):
            await asyncio.sleep(0.001)
        tell("attached")
        while program.window_size != (40, 132, 5, 6):
            await asyncio.sleep(0.001)
        tell("resized")
        await running
    tell(await program.wait())
run(main)
"""
    async with job(program, size=(33, 77)) as one:
        await one.hears("attached")
        one.terminal.resize(40, 132, 5, 6)
        await one.hears("resized")
        one.type(b"\x1d.")
        await one.hears("-1")  # hung up
        await one.hears("exited 0 same")


# -- the command ---------------------------------------------------------------------------------------


class Server:
    """The other end of the command, and what it was sent."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.url = f"tcp://127.0.0.1:{self.sock.getsockname()[1]}"
        self.peer: socket.socket

    async def accept(self) -> None:
        self.peer, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        self.peer.setblocking(False)

    async def receives(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        received = b""
        while len(received) < len(data):
            received += await loop.sock_recv(self.peer, 100)
        assert received == data

    async def is_left(self) -> None:
        """A reset is one way to leave: the command has not read everything."""
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(self.peer, 100) == b""

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.sock.close()
    if hasattr(server, "peer"):
        server.peer.close()


@asynccontextmanager
async def command(server: Server, url: str = "-?raw") -> AsyncIterator[Session]:
    """``python -m fdtransport URL`` of a server, connected and shown what the server says."""
    loop = ("--loop", "uvloop") if _loop_name() == "uvloop" else ()
    async with session(sys.executable, "-W", "error", "-m", "fdtransport", *loop, url, server.url) as one:
        await server.accept()
        server.peer.send(b"$ ")
        await one.until_shown(b"$ ")
        assert one.is_raw
        yield one


async def test_the_command_attaches_and_a_key_leaves(server: Server) -> None:
    async with command(server) as one:
        assert one.shown.startswith(b"fdtransport: Ctrl-] leaves; typed twice, it is sent\r\n")
        one.type(b"ls\r\x03\x1d\x1d")
        await server.receives(b"ls\r\x03\x1d")
        one.type(b"\x1d")
        await one.hears("exited 0 same")
        await one.until_shown(b"$ \r\nfdtransport: left\r\n")
        await server.is_left()


@pytest.mark.parametrize(
    ("url", "told", "keys"),
    [
        ("-?raw&escape=none", b"no key leaves", b"\x1d."),
        ("stdio:?raw&escape=^a", b"Ctrl-A leaves", b"\x1d.\x01\x01"),
    ],
)
async def test_the_command_takes_another_key(url: str, told: bytes, keys: bytes, server: Server) -> None:
    async with command(server, url) as one:
        assert told in one.shown
        one.type(keys)
        await server.receives(keys.replace(b"\x01\x01", b"\x01"))
        server.peer.shutdown(socket.SHUT_WR)
        await one.hears("exited 0 same")


async def test_the_command_ends_when_the_other_end_does(server: Server) -> None:
    async with command(server) as one:
        server.peer.send(b"bye\r\n")
        server.peer.shutdown(socket.SHUT_WR)
        await one.hears("exited 0 same")
        assert one.shown.endswith(b"$ bye\r\n")
        await server.is_left()


async def test_the_command_tells_of_an_error_of_the_other_end(server: Server) -> None:
    async with command(server) as one:
        server.reset()
        await one.hears("exited 1 same")
        await one.until_shown(f"fdtransport: {server.url}: Connection reset by peer\r\n".encode())


@pytest.mark.parametrize(
    ("name", "told"),
    [("SIGTERM", "exited 0"), ("SIGINT", "exited 130"), ("SIGHUP", "killed SIGHUP")],
)
async def test_the_command_leaves_the_terminal_as_it_was_at(name: str, told: str, server: Server) -> None:
    async with command(server) as one:
        one.kill(getattr(signal, name))
        await one.hears(f"{told} same")


async def test_the_command_needs_a_terminal(server: Server) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fdtransport", "-?raw", server.url,
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    _, errors = await process.communicate()
    await server.accept()
    needed = "a terminal is needed to read what is typed, and descriptor 0 is a character device"
    assert errors.decode() == f"fdtransport: cannot open stdio:?raw: {needed}\n"
    assert process.returncode == 1


# -- programs that nobody here wrote -------------------------------------------------------------------


@asynccontextmanager
async def shell(*command: str) -> AsyncIterator[Session]:
    terminal, one = await spawn_pty(Session, *command, env={**ENVIRONMENT, "PS1": "> "}, echo=False)
    one.terminal = terminal
    try:
        async with asyncio.timeout(PATIENCE):
            yield one
    finally:
        terminal.abort()
        await terminal.wait()
        await until(lambda: one.over, "the terminal ended")


async def test_a_shell_with_job_control_stops_it_and_continues_it(server: Server) -> None:
    executable("bash", "bash")
    async with shell("bash", "--norc", "--noediting", "-i") as one:
        attach = f"{sys.executable} -m fdtransport '-?raw' {server.url}"
        one.type(f"stty -g; {attach}; echo status $?\n".encode())
        await server.accept()
        server.peer.send(b"remote$ ")
        await one.until_shown(b"remote$ ")
        before = one.shown.partition(b"> ")[2].splitlines()[0]
        assert one.is_raw
        one.terminal.send_signal(signal.SIGTSTP, "foreground")
        await one.until_shown(b"Stopped")
        one.type(b"bg\n")
        await one.until_shown(b" &\r\n")
        one.shown = b""
        one.type(b'while [ -n "$(jobs -r)" ]; do sleep 0.02; done; jobs\n')
        await one.until_shown(b"Stopped")
        one.type(b"fg\n")
        await until(lambda: one.is_raw, "it was raw again", PATIENCE)
        server.peer.send(b"still there")
        await one.until_shown(b"still there")
        one.type(b"\x1d.")
        await one.until_shown(b"left\r\n")
        one.shown = b""
        one.type(b"stty -g; echo done\n")
        await one.until_shown(b"done")
        assert before in one.shown


async def test_it_works_inside_another_terminal_program(server: Server) -> None:
    executable("script", "bsdutils")
    attach = f"{sys.executable} -m fdtransport -?raw {server.url}"
    async with shell("script", "-qec", f"stty size; {attach}; echo status $?", "/dev/null") as one:
        await server.accept()
        server.peer.send(b"$ ")
        await one.until_shown(b"$ ")
        one.type(b"keys\x03")
        await server.receives(b"keys\x03")
        one.type(b"\x1d.")
        await one.until_shown(b"status 0\r\n")
