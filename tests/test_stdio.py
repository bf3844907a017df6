"""Standard streams: whatever they are, they work, and they are left as they were found."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest
from waiting import lost, until

from fdtransport import CloseReason, DescriptorInUseError
from fdtransport._core import syscalls
from fdtransport.stdio import StdioTransport, connect_stdio, open_stdio
from fdtransport.testing import (
    FarEnd,
    RecordingBufferedProtocol,
    RecordingProtocol,
    descriptors,
    idle_cost,
    pattern,
)

LIMIT = 20.0

#: What each child begins with. ``Upper`` answers in capitals; ``run`` takes the loop that the test names.
PRELUDE = """
import asyncio, os, sys, threading
from fdtransport.stdio import connect_stdio, open_stdio

class Upper(asyncio.Protocol):
    keep_open = False
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
        self.ended, self.lost = asyncio.Event(), asyncio.get_running_loop().create_future()
    def data_received(self, data):
        self.data += data
        self.transport.write(data.upper())
    def eof_received(self):
        self.ended.set()
        return self.keep_open
    def connection_lost(self, exc):
        self.lost.set_result(exc)

def tell(*words):
    print(*words, file=sys.stderr, flush=True)

def run(main):
    if sys.argv[1] == "uvloop":
        import uvloop as source
    else:
        import asyncio as source
    with asyncio.Runner(loop_factory=source.new_event_loop) as runner:
        runner.get_loop().slow_callback_duration = 60  # a busy machine is not this program's fault
        runner.run(main())
"""

UPPER = """
async def main():
    transport, protocol = await connect_stdio(Upper)
    exc = await protocol.lost
    assert exc is None, exc
    assert threading.active_count() == 1
    print("after", flush=True)
run(main)
"""

#: Tells that it runs, and then answers for as long as it lives.
READY = """
async def main():
    transport, protocol = await connect_stdio(Upper)
    transport.write(bytes(1 << 20) if "full" in sys.argv else b"READY")
    await asyncio.sleep(0.02)
    tell("ready")
    await protocol.lost
run(main)
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def spawn(request):
    """Start a child with a program and standard streams; whatever is left of it is killed at the end."""
    children = []

    def start(program, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options):
        if request.param == "uvloop":
            pytest.importorskip("uvloop")
        command = [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error",
            "-c",
            PRELUDE + program,
            request.param,
            *arguments,
        ]
        options.setdefault("stderr", subprocess.PIPE)
        child = subprocess.Popen(command, stdin=stdin, stdout=stdout, **options)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def finish(child):
    """What it wrote to a pipe, and that it ended well."""
    out, err = child.communicate(timeout=LIMIT)
    assert not err, err.decode()
    assert child.returncode == 0
    return out


def say(child, word):
    """Wait until the child has told this on its standard error."""
    line = child.stderr.readline()
    assert line == word + b"\n", line + child.stderr.read()


def read_until(fd, wanted):
    """Read until these bytes have come; blocking or not."""
    data = b""
    deadline = time.monotonic() + LIMIT
    while wanted not in data:
        assert select.select([fd], [], [], deadline - time.monotonic())[0], data
        more = os.read(fd, 65536)
        assert more, data
        data += more
    return data


def read_to_end(fd):
    data = b""
    while more := os.read(fd, 65536):
        data += more
    return data


@contextmanager
def source(kind, tmp_path, data=None):
    """A standard input of a kind: (what the child gets, what writes to it); *data* is there already."""
    with ExitStack() as stack:

        def owned(fd):
            stack.callback(close_quietly, fd)
            return fd

        if kind == "pipe":
            read, write = map(owned, os.pipe())
        elif kind == "fifo":
            os.mkfifo(tmp_path / "in")
            read = owned(os.open(tmp_path / "in", os.O_RDONLY | os.O_NONBLOCK))
            os.set_blocking(read, True)
            write = owned(os.open(tmp_path / "in", os.O_WRONLY))
        elif kind == "socket":
            read, write = (owned(one.detach()) for one in socket.socketpair())
        elif kind == "terminal":
            write, read = map(owned, pty.openpty())
        elif kind == "file":
            read = owned(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
            os.write(read, data)
            os.lseek(read, 0, os.SEEK_SET)
            write = None
        elif kind == "null":
            read, write = owned(os.open(os.devnull, os.O_RDONLY)), None
        if data and write is not None:
            os.write(write, data)
            if kind != "terminal":
                os.close(write)
        yield read, write


def close_quietly(fd):
    try:
        os.close(fd)
    except OSError:
        pass


def nonblocking(fd):
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)


# -- every kind of input and output


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket", "file"])
def test_input_of_every_kind_is_read_to_its_end(kind, spawn, tmp_path):
    with source(kind, tmp_path, b"hello") as (stdin, _):
        assert finish(spawn(UPPER, stdin=stdin)) == b"HELLOafter\n"
        assert not nonblocking(stdin)


def test_dev_null_as_input_is_at_its_end(spawn):
    assert finish(spawn(UPPER)) == b"after\n"


def test_a_here_document_is_read(spawn):
    program = """
import subprocess
script = 'exec "$0" -X dev -W error -c "$1" "$2" <<END\\none\\ntwo\\nEND\\n'
sys.exit(subprocess.run(["sh", "-c", script, sys.executable, sys.argv[2], sys.argv[1]]).returncode)
"""
    assert finish(spawn(program, PRELUDE + UPPER)) == b"ONE\nTWO\nafter\n"


@pytest.mark.parametrize("append", [False, True], ids=["> file", ">> file"])
def test_output_to_a_file_is_complete_and_in_order(append, spawn, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"before\n")
    with open(path, "ab" if append else "wb") as file:
        child = spawn(UPPER, stdin=subprocess.PIPE, stdout=file)
        child.stdin.write(b"hello" * 100_000)
        finish(child)
        assert not nonblocking(file.fileno())
    assert path.read_bytes() == (b"before\n" if append else b"") + b"HELLO" * 100_000 + b"after\n"


async def test_what_is_not_read_of_a_file_is_for_whoever_reads_it_next():
    with tempfile.TemporaryFile() as file:
        file.write(pattern(1_000_000))
        file.seek(0)
        _, protocol = await connect_stdio(
            lambda: RecordingProtocol(data=lambda protocol, _: protocol.transport.abort()), file, None
        )
        await lost(protocol)
        assert 0 < len(protocol.received) < 1_000_000
        assert protocol.received + file.read() == pattern(1_000_000)


def test_output_to_dev_null_is_taken(spawn):
    child = spawn(UPPER, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    child.stdin.write(bytes(300_000))
    finish(child)


def test_a_megabyte_passes_between_pipes(spawn):
    child = spawn(UPPER, stdin=subprocess.PIPE)
    out, err = child.communicate(b"x" * 1_000_000, timeout=LIMIT)
    assert err == b""
    assert out == b"X" * 1_000_000 + b"after\n"


def test_a_megabyte_passes_through_one_socket(spawn):
    near, other = socket.socketpair()
    with near, other:
        child = spawn(UPPER, stdin=other, stdout=other)
        near.setblocking(False)
        sent, got = 0, b""
        while len(got) < 1_000_000:
            can_read, can_write, _ = select.select([near], [near] if sent < 1_000_000 else [], [], LIMIT)
            if can_write:
                sent += near.send(b"x" * min(65536, 1_000_000 - sent))
            if can_read:
                got += near.recv(65536)
            assert can_read or can_write
        near.shutdown(socket.SHUT_WR)
        finish(child)
        assert not nonblocking(other.fileno())
        near.setblocking(True)
        assert got + near.recv(100) == b"X" * 1_000_000 + b"after\n"


# -- terminals


@contextmanager
def on_terminal(spawn, program, *arguments):
    master, slave = pty.openpty()
    with open(master, "rb", 0), open(slave, "rb", 0):
        yield spawn(program, *arguments, stdin=slave, stdout=slave, start_new_session=True), master, slave


def test_a_terminal_is_read_and_written_by_one_transport_and_ctrl_d_ends_it(spawn):
    with on_terminal(spawn, UPPER) as (child, master, slave):
        os.write(master, b"hello\n")
        assert b"HELLO" in read_until(master, b"HELLO")
        assert not nonblocking(slave)
        os.write(master, b"more\n\x04")
        assert b"MORE" in read_until(master, b"after")
        assert child.wait(LIMIT) == 0
        assert not nonblocking(slave)


def test_output_to_a_terminal_goes_on_while_nobody_types(spawn):
    program = """
async def main():
    reader, writer = await open_stdio()
    for number in range(20):
        writer.write(b"line %d\\n" % number)
        await writer.drain()
        print("print", number, flush=True)
    assert await reader.readline() == b"done\\n"
run(main)
"""
    with on_terminal(spawn, program) as (child, master, _):
        shown = read_until(master, b"line 19\r\n")  # writes of one turn of the loop leave together
        assert all(b"line %d\r\n" % n in shown and b"print %d\r\n" % n in shown for n in range(20))
        os.write(master, b"done\n")
        assert child.wait(LIMIT) == 0, child.stderr.read()


def test_a_terminal_is_not_made_the_controlling_one(spawn):
    program = """
async def main():
    transport, protocol = await connect_stdio(Upper)
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
        tell("controlling")
    except OSError:
        tell("none")
    transport.close()
    await protocol.lost
run(main)
"""
    with on_terminal(spawn, program) as (child, _, _):
        say(child, b"none")
        assert child.wait(LIMIT) == 0


# -- the mode of what is shared

KINDS = ["pipe", "fifo", "socket", "terminal"]


@pytest.mark.parametrize("end", ["at its end", "killed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mode_of_a_shared_input_is_never_changed(kind, end, spawn, tmp_path):
    with source(kind, tmp_path) as (stdin, far):
        child = spawn(READY, stdin=stdin, stdout=subprocess.PIPE)
        say(child, b"ready")
        assert not nonblocking(stdin)
        os.write(far, b"x\n")
        assert b"X" in read_until(child.stdout.fileno(), b"X")
        assert not nonblocking(stdin)
        if end == "killed":
            child.kill()
        elif kind == "terminal":
            os.write(far, b"\x04")
        else:
            os.close(far)
        assert child.wait(LIMIT) == (0 if end != "killed" else -signal.SIGKILL)
        assert not nonblocking(stdin)


@pytest.mark.parametrize("end", ["at its end", "killed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mode_of_a_shared_output_is_never_changed(kind, end, spawn, tmp_path):
    if kind == "fifo":
        os.mkfifo(tmp_path / "out")
        far = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
        stdout = os.open(tmp_path / "out", os.O_WRONLY)
    elif kind == "pipe":
        far, stdout = os.pipe()
    elif kind == "terminal":
        far, stdout = pty.openpty()
    else:
        far, stdout = (one.detach() for one in socket.socketpair())
    with open(far, "rb", 0), open(stdout, "rb" if kind == "terminal" else "wb", 0):
        child = spawn(READY, "full", stdin=subprocess.PIPE, stdout=stdout)
        say(child, b"ready")  # and its output is full
        assert not nonblocking(stdout)
        if end == "killed":
            child.kill()
            child.wait(LIMIT)
        else:
            os.set_blocking(far, True)
            got = 0
            while got < 1 << 20:
                got += len(os.read(far, 65536))
            child.stdin.close()
            assert child.wait(LIMIT) == 0, child.stderr.read()
        assert not nonblocking(stdout)


# -- the ends


def test_output_goes_on_after_the_end_of_input(spawn):
    program = """
Upper.keep_open = True
async def main():
    transport, protocol = await connect_stdio(Upper)
    await protocol.ended.wait()
    await asyncio.sleep(0.01)
    transport.write(b" late")
    transport.close()
    await protocol.lost
run(main)
"""
    child = spawn(program, stdin=subprocess.PIPE)
    child.stdin.write(b"early")
    assert finish(child) == b"EARLY late"


@pytest.mark.parametrize("kind", ["pipes", "a socket"])
def test_the_reader_sees_the_end_of_output_and_input_goes_on(kind, spawn):
    program = """
async def main():
    transport, protocol = await connect_stdio(Upper)
    while not protocol.data:
        await asyncio.sleep(0.001)
    print("printed")
    transport.write(b" end")
    Upper.data_received = lambda self, data: setattr(self, "data", self.data + data)
    transport.write_eof()
    while protocol.data != b"onetwo":
        await asyncio.sleep(0.001)
    print("to nobody", flush=True)
    tell("two")
    await protocol.lost
run(main)
"""
    if kind == "pipes":
        child = spawn(program, stdin=subprocess.PIPE)
        write, read, close = (
            child.stdin.fileno(),
            child.stdout.fileno(),
            partial(child.communicate, timeout=LIMIT),
        )
    else:
        near, other = socket.socketpair()
        with other:
            child = spawn(program, stdin=other, stdout=other)
        write = read = near.fileno()
        close = partial(near.shutdown, socket.SHUT_WR)
    os.write(write, b"one")
    assert read_to_end(read) in (b"ONE endprinted\n", b"ONEprinted\n end")
    assert child.poll() is None
    os.write(write, b"two")
    say(child, b"two")
    close()
    assert child.wait(LIMIT) == 0, child.stderr.read()
    if kind == "a socket":
        near.close()


def test_closing_leaves_both_open_and_a_new_transport_goes_on(spawn):
    program = """
async def main():
    for _ in range(3):
        transport, protocol = await connect_stdio(Upper)
        while not protocol.data:
            await asyncio.sleep(0.001)
        transport.close()
        await protocol.lost
        print("+", end="", flush=True)
    assert sys.stdin.read() == "rest"
run(main)
"""
    child = spawn(program, stdin=subprocess.PIPE)
    for expected in (b"A+", b"B+", b"C+"):
        os.write(child.stdin.fileno(), expected[:1].lower())
        assert read_until(child.stdout.fileno(), b"+") == expected
    child.stdin.write(b"rest")
    finish(child)


def test_a_reader_that_goes_is_a_broken_pipe_and_not_a_signal(spawn):
    program = """
async def main():
    transport, protocol = await connect_stdio(Upper)
    tell("ready")
    tell(repr(await protocol.lost))
    sys.stdout = None
run(main)
"""
    child = spawn(program, stdin=subprocess.PIPE)
    say(child, b"ready")
    child.stdout.close()
    os.write(child.stdin.fileno(), b"x")
    assert b"BrokenPipeError" in child.stderr.read()
    assert child.wait(LIMIT) == 0


def test_streams_read_lines_and_answer(spawn):
    program = """
async def main():
    reader, writer = await open_stdio()
    async for line in reader:
        writer.write(line[::-1].strip() + b"\\n")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
run(main)
"""
    child = spawn(program, stdin=subprocess.PIPE)
    child.stdin.write(b"abc\ndef\n")
    assert finish(child) == b"cba\nfed\n"


@pytest.mark.parametrize("end", ["returns", "raises"])
def test_a_loop_that_ends_in_the_middle_leaves_the_mode_as_it_was(end, spawn):
    program = """
import warnings
warnings.simplefilter("ignore", ResourceWarning)
async def main():
    await connect_stdio(Upper)
    tell("ready")
    if "raises" in sys.argv:
        sys.exit(3)
run(main)
"""
    near, other = socket.socketpair()
    with near, other:
        child = spawn(program, end, stdin=other, stdout=other)
        say(child, b"ready")
        assert child.wait(LIMIT) == (3 if end == "raises" else 0), child.stderr.read()
        assert not nonblocking(other.fileno())


# -- what is refused


@pytest.mark.parametrize("closed", [0, 1])
def test_a_standard_stream_that_is_not_open_is_told(closed, spawn):
    program = """
async def main():
    try:
        await connect_stdio(Upper)
    except OSError as exc:
        tell(exc.errno == 9, exc)
    os._exit(0)  # libuv aborts when it closes a descriptor of its own with such a low number
run(main)
"""
    child = spawn(program, preexec_fn=lambda: os.close(closed))
    assert (
        b"True [Errno 9] Bad file descriptor: standard stream %d was not open" % closed in child.stderr.read()
    )
    assert child.wait(LIMIT) == 0


async def test_the_wrong_direction_is_told_and_nothing_is_left():
    read, write = os.pipe()
    before = descriptors()
    for pair, word in (((write, None), "write-only"), ((None, read), "read-only")):
        with pytest.raises(OSError, match=word) as caught:
            await connect_stdio(RecordingProtocol, *pair)
        assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="not open") as caught:
        await connect_stdio(RecordingProtocol, read, 999)
    assert caught.value.errno == errno.EBADF
    assert descriptors() == before
    transport, _ = await connect_stdio(RecordingProtocol, read, write)  # both are free again
    await transport.aclose()
    os.close(read)
    os.close(write)


async def test_nothing_at_all_and_what_is_no_pair_are_refused():
    with pytest.raises(TypeError):
        await connect_stdio(RecordingProtocol, None, None)
    with pytest.raises(TypeError):
        StdioTransport(asyncio.get_running_loop(), 0, RecordingProtocol())
    with pytest.raises(TypeError):
        await connect_stdio(RecordingProtocol, "stdin")


async def test_a_directory_is_refused(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        await connect_stdio(RecordingProtocol, fd, None)
    assert not nonblocking(fd)
    os.close(fd)


@contextmanager
def pipes():
    """Standard streams for a transport in this process: (input, output, far end)."""
    stdin, far_write = os.pipe()
    far_read, stdout = os.pipe()
    with FarEnd((far_read, far_write)) as far:
        yield stdin, stdout, far
    os.close(stdin)
    close_quietly(stdout)


async def received(protocol, data):
    await until(lambda: protocol.received == data)


async def test_two_transports_on_one_standard_stream_are_refused():
    with pipes() as (stdin, stdout, _):
        transport, _ = await connect_stdio(RecordingProtocol, stdin, stdout)
        for pair in ((stdin, None), (None, stdout)):
            with pytest.raises(DescriptorInUseError):
                await connect_stdio(RecordingProtocol, *pair)
        await transport.aclose()


# -- its life, in this process


@pytest.mark.parametrize("protocol_class", [RecordingProtocol, RecordingBufferedProtocol])
async def test_bytes_go_both_ways_and_both_stay_open(protocol_class):
    with pipes() as (stdin, stdout, far):
        transport, protocol = await connect_stdio(protocol_class, stdin, stdout)
        await far.send(pattern(200_000))
        await received(protocol, pattern(200_000))
        transport.write(pattern(200_000))
        assert await far.recv_exactly(200_000) == pattern(200_000)
        assert not nonblocking(stdin)
        assert not nonblocking(stdout)
        transport.close()
        await lost(protocol)
        os.write(stdout, b"print")
        assert await far.recv_exactly(5) == b"print"
        await far.send(b"rest")
        assert os.read(stdin, 10) == b"rest"


async def test_what_was_written_before_closing_arrives():
    with pipes() as (stdin, stdout, far):
        transport, protocol = await connect_stdio(RecordingProtocol, stdin, stdout)
        transport.write(pattern(500_000))
        transport.close()
        assert await far.recv_exactly(500_000) == pattern(500_000)
        await lost(protocol)
        assert transport.close_reason is CloseReason.LOCAL


async def test_write_eof_before_everything_is_sent_ends_output_after_it():
    with pipes() as (stdin, stdout, far):
        transport, protocol = await connect_stdio(RecordingProtocol, stdin, stdout)
        assert transport.can_write_eof()
        transport.write(pattern(500_000))
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(RuntimeError):
            transport.write(b"more")
        assert await far.recv_to_end() == pattern(500_000)
        await far.send(b"still read")
        await received(protocol, b"still read")
        transport.close()
        await lost(protocol)
        os.write(stdout, b"goes nowhere")


async def test_write_eof_and_close_at_once_end_output_too():
    with pipes() as (stdin, stdout, far):
        transport, protocol = await connect_stdio(RecordingProtocol, stdin, stdout)
        transport.write(pattern(500_000))
        transport.write_eof()
        transport.close()
        assert await far.recv_to_end() == pattern(500_000)
        await lost(protocol)


async def test_write_eof_of_output_alone_is_its_end():
    with pipes() as (_, stdout, far):
        transport, protocol = await connect_stdio(RecordingProtocol, None, stdout)
        transport.write(b"all")
        transport.write_eof()
        assert await far.recv_to_end() == b"all"
        await lost(protocol)


async def test_a_terminal_goes_on_taking_prints_after_write_eof():
    master, slave = pty.openpty()
    with FarEnd(master) as far:
        transport, protocol = await connect_stdio(RecordingProtocol, None, slave)
        transport.write(b"one")
        transport.write_eof()
        await lost(protocol)
        os.write(slave, b"two")
        assert await far.recv_exactly(6) == b"onetwo"
    os.close(slave)


async def test_input_alone_and_output_alone_can_be_used():
    with pipes() as (stdin, stdout, far):
        reading, protocol = await connect_stdio(RecordingProtocol, stdin, None)
        with pytest.raises(OSError, match="read-only"):
            reading.write(b"x")
        writing, _ = await connect_stdio(RecordingProtocol, None, stdout)
        with pytest.raises(NotImplementedError):
            writing.pause_reading()
        await far.send(b"in")
        await received(protocol, b"in")
        await writing.aclose()
        await reading.aclose()


async def test_output_alone_notices_that_its_reader_has_gone():
    with pipes() as (_, stdout, far):
        _, protocol = await connect_stdio(RecordingProtocol, None, stdout)
        far.close()
        await lost(protocol)


async def test_the_end_of_a_fifo_whose_writer_has_left_is_seen(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    stdin = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    write = os.open(tmp_path / "fifo", os.O_WRONLY)
    os.set_blocking(stdin, True)
    os.write(write, b"left behind")
    os.close(write)
    transport, protocol = await connect_stdio(RecordingProtocol, stdin, None)
    await lost(protocol)
    assert protocol.received == b"left behind"
    assert protocol.names[-2:] == ["eof", "lost"]
    assert not nonblocking(stdin)
    os.close(stdin)
    assert transport.fileno() == -1


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_nothing_runs_while_nothing_happens(kind):
    with pipes() if kind == "pipe" else sockets() as (stdin, stdout, far):
        transport, _ = await connect_stdio(lambda: RecordingProtocol(keep_open=True), stdin, stdout)
        assert (await idle_cost(0.1)).is_idle(0.05, 20)
        transport.pause_reading()
        await far.send(b"x")
        assert (await idle_cost(0.1)).is_idle(0.05, 20)
        transport.resume_reading()
        far.shutdown_write()
        await asyncio.sleep(0.05)
        assert (await idle_cost(0.1)).is_idle(0.05, 20)
        transport.abort()
        await transport.aclose()


@contextmanager
def sockets():
    near, other = socket.socketpair()
    copy = os.dup(near.fileno())
    with near, FarEnd(other) as far:
        yield near.fileno(), copy, far
    os.close(copy)


async def test_a_socket_stays_blocking_under_load_and_at_its_end():
    with sockets() as (stdin, stdout, far):
        modes = []
        transport, protocol = await connect_stdio(
            lambda: RecordingProtocol(keep_open=True, data=lambda *_: modes.append(nonblocking(stdin))),
            stdin,
            stdout,
        )
        await far.send(pattern(500_000))
        await received(protocol, pattern(500_000))
        transport.writelines([pattern(200_000), b"x" * 200_000, b"y"])
        assert nonblocking(stdout) is False
        assert await far.recv_exactly(400_001) == pattern(200_000) + b"x" * 200_000 + b"y"
        far.shutdown_write()
        await until(lambda: protocol.names[-1] == "eof")
        transport.write(b"late")
        assert await far.recv_exactly(4) == b"late"
        transport.close()
        await lost(protocol)
        assert not any(modes)
        assert not nonblocking(stdin)


async def test_a_socket_that_was_non_blocking_stays_so():
    with sockets() as (stdin, stdout, far):
        os.set_blocking(stdin, False)
        transport, protocol = await connect_stdio(RecordingProtocol, stdin, stdout)
        await far.send(b"x")
        await received(protocol, b"x")
        assert nonblocking(stdin)
        await transport.aclose()
        assert nonblocking(stdin)


async def test_a_buffered_protocol_reads_a_socket():
    with sockets() as (stdin, stdout, far):
        transport, protocol = await connect_stdio(RecordingBufferedProtocol, stdin, stdout)
        await far.send(pattern(100_000))
        await received(protocol, pattern(100_000))
        await transport.aclose()


async def test_streams_on_a_socket():
    with sockets() as (stdin, stdout, far):
        reader, writer = await open_stdio(stdin, stdout)
        sending = asyncio.ensure_future(far.send(b"line\n" + pattern(300_000)))
        assert await reader.readline() == b"line\n"
        assert await reader.readexactly(300_000) == pattern(300_000)
        await sending
        writer.write(b"answer")
        assert await far.recv_exactly(6) == b"answer"
        writer.close()
        await writer.wait_closed()


# -- what cannot be opened anew


@pytest.fixture
def closed_proc(monkeypatch):
    """A kernel that opens nothing anew, as after su(1)."""
    real = syscalls.open

    def refuse(path, *args):
        if str(path).startswith("/proc/self/fd"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args)

    monkeypatch.setattr(syscalls, "open", refuse)


@pytest.mark.parametrize("end", ["close", "abort", "detach"])
async def test_where_nothing_can_be_opened_anew_the_mode_is_put_back(end, closed_proc):
    with pipes() as (stdin, stdout, far):
        transport, protocol = await connect_stdio(RecordingProtocol, stdin, stdout)
        await far.send(b"x")
        await received(protocol, b"x")
        assert nonblocking(stdin)
        assert nonblocking(stdout)
        getattr(transport, end)()
        await lost(protocol)
        assert not nonblocking(stdin)
        assert not nonblocking(stdout)
        os.write(stdout, b"y")


async def test_where_nothing_can_be_opened_anew_a_terminal_works_both_ways(closed_proc):
    master, slave = pty.openpty()
    copy = os.dup(slave)
    with FarEnd(master) as far:
        transport, protocol = await connect_stdio(RecordingProtocol, slave, copy)
        transport.write(b"out")
        assert await far.recv_exactly(3) == b"out"
        transport.write_eof()
        await asyncio.sleep(0)
        assert nonblocking(slave)  # it is still being read
        await far.send(b"in\n")
        await received(protocol, b"in\n")
        transport.close()
        await lost(protocol)
        assert not nonblocking(slave)
    os.close(slave)
    os.close(copy)


async def test_where_nothing_can_be_opened_anew_write_eof_puts_the_mode_back_first(closed_proc):
    with pipes() as (stdin, stdout, far):
        copy = os.dup(stdout)
        transport, _ = await connect_stdio(RecordingProtocol, stdin, stdout)
        transport.write(b"all")
        transport.write_eof()
        await asyncio.sleep(0)
        assert not nonblocking(copy)
        os.close(copy)
        assert await far.recv_to_end() == b"all"
        await transport.aclose()


def test_where_nothing_can_be_opened_anew_the_mode_is_put_back_at_exit(spawn):
    program = """
from fdtransport._core import syscalls
real = syscalls.open
def refuse(path, *args):
    if str(path).startswith("/proc/self/fd"):
        raise PermissionError(13, "Permission denied")
    return real(path, *args)
syscalls.open = refuse
kept = []
async def main():
    kept.append(await connect_stdio(Upper))
    tell("ready")
    await asyncio.Event().wait()
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sys.stderr.flush()
import warnings
warnings.simplefilter("ignore")
try:
    run(main)
finally:
    os.write(2, b"end\\n")
"""
    read, write = os.pipe()
    child = spawn(program, stdin=read)
    say(child, b"ready")
    assert nonblocking(read)
    child.terminate()
    child.wait(LIMIT)
    assert not nonblocking(read)
    os.close(read)
    os.close(write)


# -- nothing is left behind


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_detach_gives_the_standard_streams_back(kind):
    with pipes() if kind == "pipe" else sockets() as (stdin, stdout, far):
        before = descriptors()
        transport, protocol = await connect_stdio(RecordingProtocol, stdin, stdout)
        transport.write(b"sent")
        detached = transport.detach()
        assert detached.file == (stdin, stdout)
        await lost(protocol)
        assert await far.recv_exactly(4) == b"sent"
        assert descriptors() == before
        assert not nonblocking(stdin)


@pytest.mark.parametrize("steps", range(4))
async def test_cancelled_connecting_leaves_nothing(steps):
    with pipes() as (stdin, stdout, _):
        before = descriptors()
        task = asyncio.ensure_future(connect_stdio(RecordingProtocol, stdin, stdout))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            transport, _ = await task
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        else:
            await transport.aclose()
        assert descriptors() == before
        transport, _ = await connect_stdio(RecordingProtocol, stdin, stdout)
        await transport.aclose()


async def test_one_that_is_forgotten_warns_and_gives_everything_back():
    with pipes() as (stdin, stdout, _):
        before = descriptors()
        transport = StdioTransport(asyncio.get_running_loop(), (stdin, stdout), RecordingProtocol())
        await asyncio.sleep(0.01)
        transport._protocol = None
        transport._remove_interest()
        with pytest.warns(ResourceWarning, match="StdioTransport"):
            del transport
        assert descriptors() == before
        transport, _ = await connect_stdio(RecordingProtocol, stdin, stdout)
        await transport.aclose()


async def test_a_thousand_of_them_leave_no_descriptor():
    with pipes() as (stdin, stdout, _):
        before = descriptors()
        for _ in range(300):
            transport, _ = await connect_stdio(RecordingProtocol, stdin, stdout)
            transport.close()
            await transport.aclose()
        assert descriptors() == before


async def test_files_are_let_go_of_at_the_end():
    with tempfile.TemporaryFile() as file, warnings.catch_warnings():
        file.write(b"content")
        file.seek(0)
        transport, protocol = await connect_stdio(RecordingProtocol, file, None)
        await lost(protocol)
        assert protocol.received == b"content"
        assert not file.closed
        assert not nonblocking(file.fileno())
        assert transport._files == (None, None)
