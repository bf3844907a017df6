"""The examples run, as a user would run them, and the README's programs do what they say."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from network import why_not

import fdtransport
from fdtransport.command_line import endpoints_of, options_of
from fdtransport.testing.observe import until

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")
#: What debug mode says of a callback that took long: on a busy machine, that is not the program's fault.
SLOW = re.compile(rb"^Executing <.*> took [0-9.]+ seconds\n", re.MULTILINE)
QUICK = {
    "tour": ["--size", "1"],
    "serial_ip": ["--selftest", "--size", "0.05"],
    "tap_switch": ["--selftest"],
    "tun_pcap": ["--selftest"],
    "tun_ping": ["--selftest"],
    "vpn": ["--selftest", "--size", "1"],
}


def run(
    *arguments: str, given: bytes = b"", cwd: Path = ROOT, under: Sequence[str] = ()
) -> subprocess.CompletedProcess[bytes]:
    command = [*under, sys.executable, "-X", "dev", "-W", "error", *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    unbuffered = {"PYTHONUNBUFFERED": "1"}  # as at a terminal: in order with what programs of theirs print
    result = subprocess.run(
        command, input=given, capture_output=True, timeout=50, cwd=cwd, check=False,
        env={**os.environ, **unbuffered, "PYTHONPATH": path},
    )  # fmt: skip
    result.stderr = SLOW.sub(b"", result.stderr)
    return result


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_without_arguments_and_ends(name: str) -> None:
    result = run("-m", f"examples.{name}", *QUICK.get(name, []))
    assert (result.returncode, result.stderr) == (0, b""), result
    assert result.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_tells_what_it_is_for(name: str) -> None:
    result = run("-m", f"examples.{name}", "--help")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"usage: python -m examples." in result.stdout


def test_the_tour_moves_every_byte_through_every_kind() -> None:
    lines = run("-m", "examples.tour", "--size", "1").stdout.decode().splitlines()
    assert lines[-1] == "every byte arrived"
    told = [line for line in lines[1:-1] if " ok " not in line]
    absent = ["tls", "start_tls"] if shutil.which("openssl") is None else []
    absent += ["tun"] if why_not() else []
    assert [line.split()[0] for line in told] == absent
    assert all(" not available here: " in line for line in told)
    assert len(lines) >= 20


README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(import.*?)```", README, re.DOTALL)
COMMANDS = re.findall(
    r"(?<=python -m fdtransport )\S.*$", "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.M
)


#: What each of them prints.
PRINTED = [
    rb"b'through the kernel\\n'",
    rb"b'HELLO\\n'",
    rb"cba",
    rb"RelayResult\(a_to_b=Moved\(bytes=5, engine='splice'\), b_to_a=.*, error=None, .*\)\nb'hello'",
    rb"b'STARTTLS\\n'\nb'go ahead\\n'\nb'a secret\\n'",
    rb"b'a question' b'an answer'",
    rb'"""Anything .*"""',
    rb"\(b'LOUD', None\)\nb'ready\? yes\\n' 0",
    rb"b'Enter passphrase .*: '\nb'.*again: '\nb'\\r\\n' 0",
    rb"TerminalEvent.OPENED\n(TerminalEvent.CHANGED\n)+"
    rb"b'AT\\n' at \(115200, 115200\)\nthe modem says OK(\nTerminalEvent.CLOSED)?",
    rb"b'21.5 C\\r\\n'\nModemLines\(dtr=True, rts=True, cts=True, dsr=True, ri=False, cd=True\)\n"
    rb"\[Errno 5\] .*/ttyA: .*the device has gone: unplugged.*",
    rb"moved tree/book\ncreated tree/book/chapter\nmodified tree/book/chapter\nwritten tree/book/chapter\n"
    rb"\{'tree': True, 'tree/book': True, 'tree/book/chapter': False\}",
    rb"demo0 1500 b'anybody there\?'",
    rb"[0-9]+ promises kept",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they run, with the certificate that the README has its reader make."""
    folder = tmp_path_factory.mktemp("readme")
    if shutil.which("openssl") is not None:
        (command,) = re.findall(r"```sh\n(openssl.*?)```", README, re.DOTALL)
        subprocess.run(["sh", "-c", command], cwd=folder, check=True, capture_output=True, timeout=50)
    return folder


@pytest.mark.parametrize(
    ("program", "printed"), list(zip(PROGRAMS, PRINTED, strict=True)), ids=range(len(PRINTED))
)
def test_a_program_of_the_readme_does_what_it_says(program: str, printed: bytes, folder: Path) -> None:
    if "cert.pem" in program and not (folder / "cert.pem").exists():
        pytest.skip("the program openssl is not installed")
    if "ssh-keygen" in program and shutil.which("ssh-keygen") is None:
        pytest.skip("the program ssh-keygen is not installed")
    private: list[str] = []
    if "open_tuntap" in program:
        private = ["unshare", "--map-root-user", "--net"]  # as it tells its reader
        if subprocess.run([*private, "test", "-w", "/dev/net/tun"], capture_output=True).returncode:
            pytest.skip("no private network, or no TUN in it")
    result = run("-c", program, given=b"abc\n", cwd=folder, under=private)
    assert (result.returncode, result.stderr) == (0, b""), result
    assert re.fullmatch(printed + rb"\n", result.stdout), result.stdout


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_is_understood(line: str) -> None:
    assert len(endpoints_of(options_of(shlex.split(line)))) == 2


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 4


def test_a_new_kind_of_descriptor_is_one_small_file() -> None:
    assert len((ROOT / "examples" / "timer.py").read_text().splitlines()) < 120


async def test_the_timer_of_the_example_ticks_and_closes() -> None:
    from examples.timer import connect_timer

    ticked = asyncio.Event()
    transport = await connect_timer(0.001, lambda expirations: ticked.set() if expirations else None)
    await asyncio.wait_for(ticked.wait(), 10)
    await transport.aclose()
    assert transport.fileno() == -1


def test_the_view_of_the_example_is_the_tree_and_the_log_arrives_whole() -> None:
    assert run("-m", "examples.tree_view").stdout.decode().endswith(" paths, 0 of them wrong\n")
    lines = run("-m", "examples.tail_logs", "--lines", "450").stdout.decode().splitlines()
    assert lines == [
        "450 lines were written, and the file was rotated 4 times",
        "455 lines arrived, each in its place",
    ]


#: The number that each of them takes.
OPTION = {
    "activated": "--idle",
    "echo_server": "--lines",
    "kernel_events": "--seconds",
    "modbus_poll": "--times",
    "serial_bridge": "--baud",
    "serial_logger": "--baud",
    "serial_terminal": "--baud",
    "pump": "--pieces",
    "session_log": "--speed",
    "shell_server": "--clients",
    "supervisor": "--pause",
    "serial_ip": "--size",
    "tap_switch": "--ports",
    "timer": "--interval",
    "tour": "--size",
    "tun_pcap": "--count",
    "tun_ping": "--count",
    "vpn": "--size",
    "on_change": "--settle",
    "tail_logs": "--lines",
    "tree_view": "--changes",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_refuses_a_number_that_makes_no_sense_in_one_line(name: str) -> None:
    result = run("-c", REFUSED, f"examples.{name}", OPTION[name])
    assert result.returncode == 0, result.stderr
    complaints = [line for line in result.stderr.splitlines() if b"is needed, not" in line]
    assert len(complaints) == int(result.stdout) == 6
    assert b"Traceback" not in result.stderr


#: Runs a module as ``-m`` does, with one value after the other; tells how many ended with status 2.
REFUSED = """\
import runpy, sys

_, module, option = sys.argv
refused = 0
for value in ("0", "-1", "nan", "inf", "x", "1e30"):
    sys.argv[1:] = [f"{option}={value}"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        refused += end.code == 2
print(refused)
"""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_ends_when_nobody_can_be_told(name: str) -> None:
    command = [sys.executable, "-W", "default", "-m", f"examples.{name}", *QUICK.get(name, [])]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=50, cwd=ROOT)
    assert result.returncode == 1
    told = SLOW.sub(b"", result.stderr).splitlines()
    assert told == [name.encode() + b".py: [Errno 28] No space left on device"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_ends_quietly_when_its_reader_has_enough(name: str) -> None:
    command = [sys.executable, "-W", "default", "-u", "-m", f"examples.{name}", *QUICK.get(name, [])]
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=50, cwd=ROOT)
    os.close(write)
    assert (result.returncode, SLOW.sub(b"", result.stderr)) == (1, b"")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_ends_quietly_after_ctrl_c(name: str) -> None:
    much = {
        "activated": ["--idle=100000"],
        "echo_server": ["--lines=100000000"],
        "kernel_events": ["--seconds=1000000"],
        "modbus_poll": ["--times=100000000"],
        "serial_bridge": [],
        "serial_logger": [],
        "serial_terminal": [],
        "pump": ["--pieces=100000000"],
        "session_log": [],
        "shell_server": [],
        "supervisor": [],
        "timer": ["--ticks=1000000"],
        "tour": ["--size=100000"],
        "serial_ip": ["--selftest", "--size=1000"],
        "vpn": ["--selftest", "--size=1000"],
        **{name: ["--selftest"] for name in ("tap_switch", "tun_pcap", "tun_ping")},
        "on_change": ["--settle=10"],
        "tail_logs": ["--lines=10000000"],
        "tree_view": ["--changes=1000000"],
    }
    command = [sys.executable, "-c", INTERRUPTED, f"examples.{name}", *much[name]]
    result = subprocess.run(command, capture_output=True, timeout=50, cwd=ROOT)
    assert (result.returncode, result.stderr) == (130, b"")


#: Runs a module as ``-m`` does, and sends itself SIGINT in the first turn of its loop.
INTERRUPTED = """\
import asyncio, runpy, signal, sys

async def interrupted(main):
    asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
    return await main

really = asyncio.Runner.run
asyncio.Runner.run = lambda runner, main: really(runner, interrupted(main))
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_session_is_recorded_as_asciinema_does_and_played_back(tmp_path: Path) -> None:
    cast = tmp_path / "session.cast"
    printed = "printf 'caf\\303'; sleep 0.2; printf '\\251\\033[31m red\\n'; stty size; exit 4"
    recorded = run("-m", "examples.session_log", "--record", str(cast), "sh", "-c", printed)
    assert (recorded.returncode, recorded.stderr) == (4, b"")
    head, *events = map(json.loads, cast.read_text("utf-8").splitlines())
    assert (head["version"], head["width"], head["height"]) == (2, 80, 24)
    assert {kind for _, kind, _ in events} == {"o"}
    assert "".join(text for *_, text in events) == "café\x1b[31m red\r\n24 80\r\n"
    times = [at for at, *_ in events]
    assert times == sorted(times)
    assert times[-1] - times[0] >= 0.15
    played = run("-m", "examples.session_log", "--play", str(cast), "--speed", "100")
    assert (played.returncode, played.stdout, played.stderr) == (0, recorded.stdout, b"")
    cast.write_text('{"version": 1}\n')
    assert (
        b"is no asciicast: it is of another version"
        in run("-m", "examples.session_log", "--play", str(cast)).stderr
    )


async def test_the_client_of_the_shell_server_has_a_shell_of_the_size_of_its_window(tmp_path: Path) -> None:
    path = str(tmp_path / "shells")
    command = [sys.executable, "-m", "examples.shell_server"]
    env = {**os.environ, "SHELL": "/bin/sh", "PYTHONPATH": str(ROOT)}
    listening = await fdtransport.create_subprocess_exec(*command, "--listen", path, stdout=PIPE, env=env)
    async with asyncio.timeout(50), listening as server:
        assert server.stdout is not None
        assert (
            await server.stdout.readline() == f"python -m examples.shell_server --connect {path}\n".encode()
        )
        screen, keys = await fdtransport.open_pty_process(*command, "--connect", path, size=(31, 90), env=env)
        terminal: Any = keys.transport
        wait = b'while [ "$(stty size)" = "31 90" ]; do sleep 0.05; done'
        keys.write(b"stty -echo; echo; stty size; " + wait + b"; stty size; exit 7\r")
        await screen.readuntil(b"\n31 90\r\n")
        terminal.resize(32, 91)
        assert b"32 91\r\n" in await screen.read()
        assert await terminal.finish() == 7


def test_the_supervisor_starts_again_what_fails_and_ends_all_when_it_is_told_to() -> None:
    failing = "sh -c 'echo failing; exit 3'"
    stubborn = "sh -c 'trap \"echo bye\" TERM; echo pid $$; while :; do sleep 0.1; done'"
    command = [
        sys.executable,
        "-u",
        "-m",
        "examples.supervisor",
        "--pause=0.05",
        failing,
        stubborn,
        "true",
        "none",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        lines: list[bytes] = []
        while lines.count(b"sh   | failing\n") < 3 or not any(b"pid" in line for line in lines):
            lines.append(child.stdout.readline())
            assert lines[-1], lines
        child.send_signal(signal.SIGTERM)
        rest, errors = child.communicate(timeout=50)
    assert (child.returncode, errors) == (143, b"")
    assert b"sh   | failed with status 3, and is started again in 0.05 s\n" in lines
    assert b"sh   | failed with status 3, and is started again in 0.1 s\n" in lines
    assert b"true | has done its work\n" in lines
    assert b"none | cannot be started: [Errno 2] No such file or directory: 'none'\n" in lines
    assert b"sh 2 | bye\n" in rest.splitlines(keepends=True)
    (pid,) = re.findall(rb"pid ([0-9]+)", b"".join(lines))
    assert not os.path.exists(f"/proc/{int(pid)}")


def test_the_tour_ends_quietly_when_ctrl_c_comes_in_the_middle() -> None:
    # A shell that starts the tests in the background has them ignore the signal.
    program = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program += "; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-u", "-c", program, "examples.tour", "--size=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith(b"fdtransport on Python")
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=50)
    assert (child.returncode, SLOW.sub(b"", errors)) == (130, b"")


def test_what_the_capture_writes_is_read_by_other_programs(tmp_path: Path) -> None:
    from examples.tun_pcap import Recorder

    path = tmp_path / "dump.pcap"
    packets = [(b"\x45\0\0\x1d" + bytes(5) + b"\x11" + bytes(10) + b"\0\x09\0\x09\0\x09\0\0%d" % n, None)
               for n in range(5)]  # fmt: skip
    with path.open("wb") as file:
        recorder = Recorder(file, "tun", None)
        recorder.packets_received(packets[:2])
        recorder.packets_received(packets[2:])
    readers = 0
    if importlib.util.find_spec("scapy") is not None:
        from scapy.utils import rdpcap

        assert [bytes(packet) for packet in rdpcap(str(path))] == [data for data, _ in packets]
        readers += 1
    if shutil.which("tshark") is not None:
        done = subprocess.run(["tshark", "-r", path, "-T", "fields", "-e", "udp.payload"],
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout.split() == [str(n).encode().hex() for n in range(5)]
        readers += 1
    if not readers:
        pytest.skip("neither scapy nor tshark is here")


# -- descriptors that tell of events --------------------------------------------------------------------


async def test_signals_come_as_records_and_two_kinds_in_one_read() -> None:
    from examples.kernel_events import Caught, connect_signals

    kinds = [signal.SIGUSR1, signal.SIGUSR2]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kinds)
    try:
        caught: list[Caught] = []
        for number in kinds:
            signal.pthread_kill(threading.get_ident(), number)  # other threads have not blocked it
        transport = await connect_signals(kinds, caught.append)
        await until(lambda: len(caught) == 2, "both came")
        assert [(one.number, one.pid) for one in caught] == [(number, os.getpid()) for number in kinds]
        await transport.aclose()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_the_end_of_a_process_is_told_once_and_nothing_spins() -> None:
    from examples.kernel_events import wait_for_process

    child = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    waiting = asyncio.ensure_future(wait_for_process(child.pid))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert child.stdin is not None
    child.stdin.close()
    await asyncio.wait_for(waiting, 10)
    await child.wait()
    with pytest.raises(ProcessLookupError):
        await wait_for_process(child.pid)


async def test_records_of_the_kernels_log_are_whole() -> None:
    from examples.kernel_events import open_kernel_log

    try:
        log = await open_kernel_log(from_now=False)
    except OSError as exc:
        pytest.skip(f"the kernel's log may not be read: {exc}")
    async with log:
        for number in range(20):
            record = await asyncio.wait_for(log.recv(), 10)
            assert re.match(rb"[0-9]+,[0-9]+,[0-9]+,[^;]*;", record), (number, record)


async def test_pressure_is_told_as_it_comes() -> None:
    from examples.kernel_events import pressure

    stalls: list[float] = []
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(pressure("cpu", 0.001, 2, lambda: stalls.append(loop.time())))
        except OSError as exc:
            pytest.skip(f"no triggers of pressure here: {exc}")
        for _ in range(2 * (os.cpu_count() or 1) + 1):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # noqa: ASYNC220
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        await until(lambda: stalls, "tasks had to wait", 15)
