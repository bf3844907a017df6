"""The command, run as users run it: in a process of its own, between real files and servers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pty
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from importlib.metadata import version

import pytest

from fdtransport.__main__ import main
from fdtransport.testing import pattern

MIB = 1 << 20
PATIENCE = 30
COMMAND = [sys.executable, "-W", "error", "-m", "fdtransport"]
#: Not in asyncio's debug mode, which tells on stderr of every callback that a busy machine makes slow.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in ("PYTHONASYNCIODEBUG", "PYTHONDEVMODE")
}


def start(*arguments, **options):
    """The command as a child; what it prints is collected unless *options* say otherwise."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {"env": ENVIRONMENT, **streams, **options}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **options)


@contextlib.contextmanager
def running(*arguments, **options):
    """As ``start``, ended at the end."""
    with start(*arguments, **options) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def run(*arguments, data=None, **options):
    """``(status, output, errors)`` of a finished command."""
    if data is not None:
        options["stdin"] = subprocess.PIPE
    with running(*arguments, **options) as child:
        output, errors = child.communicate(data, timeout=PATIENCE)
        return child.returncode, output, (errors or b"").decode()


class Server:
    """A server of the test: *serve* is called with each connection, in a thread of its own."""

    def __init__(self, serve, family=socket.AF_INET, address=("127.0.0.1", 0)):
        self._serve = serve
        self.sock = socket.socket(family)
        self.sock.bind(address)
        self.sock.listen(256)
        name = self.sock.getsockname()
        self.url = f"unix:{name}" if isinstance(name, str) else f"tcp://127.0.0.1:{name[1]}"
        self.served = 0
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            self.served += 1
            self._threads.append(threading.Thread(target=self._one, args=(sock,)))
            self._threads[-1].start()

    def _one(self, sock):
        sock.settimeout(PATIENCE)
        with sock, contextlib.suppress(OSError):
            self._serve(sock)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.over.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def read_all(sock):
    pieces = []
    while piece := sock.recv(MIB):
        pieces.append(piece)
    return b"".join(pieces)


def send_all(sock, data):
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def digest_of_all(sock):
    """Answer with size and check sum of everything, after its end."""
    data = read_all(sock)
    sock.sendall(f"{len(data)} {hashlib.sha1(data).hexdigest()}".encode())


def echo(sock):
    while data := sock.recv(65536):
        sock.sendall(data)


@pytest.fixture
def digests():
    with Server(digest_of_all) as server:
        yield server


@pytest.fixture
def echoes(tmp_path):
    with Server(echo, socket.AF_UNIX, str(tmp_path / "app.sock")) as server:
        yield server


def port_of(child):
    """The port that a listener with port 0 says it got."""
    ready, _, _ = select.select([child.stderr], [], [], PATIENCE)
    assert ready
    line = child.stderr.readline().decode()
    assert "listening on port" in line
    return int(line.split()[-1])


@contextlib.contextmanager
def listening(b, *options, **keywords):
    """``(child, port)`` of a relay from a port of its choice to *b*."""
    with running(*options, "tcp+listen://127.0.0.1:0", b, **keywords) as child:
        yield child, port_of(child)


def ask(port, question):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(question)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def wait_until_listening(path):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.connect(str(path))
            return
        time.sleep(0.01)
    raise TimeoutError(path)


# -- the three of the manual -------------------------------------------------------------------------


def test_big_standard_input_goes_to_a_server_and_its_answer_comes_back(digests, tmp_path):
    (tmp_path / "big").write_bytes(pattern(64 * MIB))
    with (
        subprocess.Popen(["cat", tmp_path / "big"], stdout=subprocess.PIPE) as cat,
        running("--stats", "-", digests.url, stdin=cat.stdout) as child,
    ):
        output, errors = child.communicate(timeout=PATIENCE)
    expected = f"{64 * MIB} {hashlib.sha1(pattern(64 * MIB)).hexdigest()}".encode()
    assert (child.returncode, output) == (0, expected)
    there, back = errors.decode().splitlines()
    assert f"- > {digests.url}: {64 * MIB} bytes in " in there
    assert there.endswith(", splice")
    assert f"{digests.url} > -: {len(expected)} bytes in " in back
    assert back.endswith(", splice")


def test_a_fifo_goes_to_standard_output(tmp_path):
    os.mkfifo(tmp_path / "requests")
    with running("fifo:requests", "-", cwd=tmp_path) as child:
        with open(tmp_path / "requests", "wb") as fifo:
            fifo.write(b"request\n" * 10_000)
        output, errors = child.communicate(timeout=PATIENCE)
    assert (child.returncode, output, errors) == (0, b"request\n" * 10_000, b"")


def test_a_tcp_listener_serves_a_unix_socket_with_half_closes_passed_through(echoes):
    with listening(echoes.url) as (child, port):
        for size in (0, 1, 100_000, 3 * MIB):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
                sender = threading.Thread(target=send_all, args=(sock, pattern(size)))
                sender.start()
                assert read_all(sock) == pattern(size)
                sender.join()
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
        assert child.stderr.read() == b""


# -- standard streams --------------------------------------------------------------------------------


def test_files_are_redirected_in_and_out(tmp_path):
    (tmp_path / "in").write_bytes(pattern(2 * MIB))
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
        assert run("-", "-", stdin=source, stdout=sink) == (0, None, "")
    assert (tmp_path / "out").read_bytes() == pattern(2 * MIB)


def test_output_is_appended_where_the_shell_says_so(tmp_path, digests):
    (tmp_path / "log").write_bytes(b"earlier\n")
    (tmp_path / "in").write_bytes(pattern(2 * MIB))
    with open(tmp_path / "log", "ab") as log:
        status, _, errors = run("--stats", f"file:{tmp_path}/in", stdout=log)
    assert status == 0
    assert errors.endswith(", copy\n")
    assert (tmp_path / "log").read_bytes() == b"earlier\n" + pattern(2 * MIB)


def test_standard_input_from_dev_null_is_an_end(digests):
    status, output, errors = run("-", digests.url)
    assert (status, errors) == (0, "")
    assert output.startswith(b"0 ")


def test_standard_input_is_left_alone_where_nothing_can_take_it(tmp_path):
    (tmp_path / "file").write_bytes(b"from the file")
    reading, writing = os.pipe()
    os.write(writing, b"for somebody else")
    with open(reading, "rb", 0) as source:
        assert run(f"file:{tmp_path}/file", stdin=source)[:2] == (0, b"from the file")
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
        assert run(f"fd:{descriptor}", stdin=source, pass_fds=[descriptor])[:2] == (0, b"from the file")
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert run("-", f"fd:{descriptor}", stdin=source, pass_fds=[descriptor])[:2] == (0, b"from the file")
        os.close(descriptor)
        os.close(writing)
        assert source.read() == b"for somebody else"


def test_a_reader_that_leaves_is_no_error(tmp_path):
    (tmp_path / "big").write_bytes(bytes(4 * MIB))
    reading, writing = os.pipe()
    with running(f"file:{tmp_path}/big", "-", stdout=writing) as child:
        os.close(writing)
        assert os.read(reading, 10) == bytes(10)
        os.close(reading)
        assert child.wait(PATIENCE) == 0
        assert child.stderr.read() == b""


def test_a_terminal_is_left_as_it_was(echoes):
    master, slave = pty.openpty()
    before = os.get_blocking(slave), termios.tcgetattr(slave)
    with running("-", echoes.url, stdin=slave, stdout=slave) as child:
        os.write(master, b"hello\n")
        got = b""
        while got.count(b"hello") < 2:
            got += os.read(master, 1000)
        os.write(master, b"\x04")  # Ctrl-D
        assert child.wait(PATIENCE) == 0
        assert child.stderr.read() == b""
    assert (os.get_blocking(slave), termios.tcgetattr(slave)) == before
    os.close(master)
    os.close(slave)


def test_the_mode_of_standard_streams_is_left_alone_also_when_killed(echoes):
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours, theirs:
        for stdin in (theirs, reading):
            with running("-", echoes.url, stdin=stdin, stdout=writing) as child:
                (ours.sendall if stdin is theirs else lambda data: os.write(writing, data))(b"x")
                assert os.read(reading, 1) == b"x"
                child.kill()
                child.wait(PATIENCE)
            assert os.get_blocking(reading)
            assert os.get_blocking(writing)
            assert theirs.getblocking()
    os.close(reading)
    os.close(writing)


# -- ends and options --------------------------------------------------------------------------------


def test_one_way_to_b_ends_with_a_and_prints_nothing(digests):
    status, output, errors = run("-u", "-", digests.url, data=b"data")
    assert (status, output, errors) == (0, b"", "")


def test_one_way_to_a_leaves_standard_input_alone():
    with Server(lambda sock: sock.sendall(b"banner")) as server:
        assert run("-U", "-", server.url, data=b"never sent")[:2] == (0, b"banner")


def test_linger_bounds_the_answer():
    with Server(lambda sock: (read_all(sock), server.over.wait(PATIENCE))) as server:
        begin = time.monotonic()
        assert run("--linger", "0.1", "-", server.url, data=b"data") == (0, b"", "")
        assert time.monotonic() - begin < PATIENCE / 2


def test_copy_never_splices(digests):
    status, _, errors = run("--copy", "--stats", "-", digests.url, data=pattern(MIB))
    assert status == 0
    assert [line.rsplit(", ", 1)[1] for line in errors.splitlines()] == ["copy", "copy"]


def test_progress_is_shown_while_it_moves(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    status, _, errors = run("--progress", f"file:{tmp_path}/file", f"file:{tmp_path}/copy")
    assert status == 0
    assert "> 3.0 MiB, < 0 B" in errors


def test_progress_is_a_plain_line_without_tqdm(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    (tmp_path / "tqdm.py").write_text("raise ImportError")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    status, _, errors = run("--progress", f"file:{tmp_path}/file", f"file:{tmp_path}/copy", env=environment)
    assert status == 0
    assert errors.startswith("\r> 3.0 MiB, < 0 B, ")


def test_uvloop_does_the_same(digests):
    pytest.importorskip("uvloop")
    status, output, errors = run("--loop", "uvloop", "-", digests.url, data=pattern(MIB))
    assert (status, errors) == (0, "")
    assert output.startswith(b"%d " % MIB)


def test_a_file_can_be_written(tmp_path):
    assert run("-", f"file:{tmp_path}/new?create=new", data=b"text")[0] == 0
    assert (tmp_path / "new").read_bytes() == b"text"


def test_its_version_can_be_asked_for(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fdtransport {version('fdtransport')}\n"


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "arguments are required: A"),
        (["--bogus", "-"], "the options are -h -u -U --linger"),
        (["-u", "-U", "-"], "not allowed with"),
        (["--linger", "-1", "-"], "--linger: a number of seconds is needed, not '-1'"),
        (["--linger", "soon", "-"], "--linger: a number of seconds is needed, not 'soon'"),
        (["--max", "0", "tcp+listen://:1", "-"], "--max: a whole number above 0 is needed, not '0'"),
        (["--record", "2000000", "udp://h:1"], "--record: a number of bytes from 1 to 1048576 is needed"),
        (["--loop", "other", "-"], "--loop"),
        (["a", "b", "c"], "unrecognized arguments: c"),
        (["http://h", "file:{new}"], "there are - (or stdio:), fd:N, tcp://host:port"),
        (["file:{new}", "tcp://h"], "it takes a host and a port"),
        (["file:/x?append", "-"], "no use for reading"),
        (["-", "file:{new}?bogus"], "allowed here: append, create"),
        (["tcp+listen://:1", "unix+listen:{new}"], "both listen"),
        (["--one", "-", "file:{new}"], "for a listener"),
        (["--max", "3", "-", "file:{new}"], "for a listener"),
        (["-U", "fifo:/x?eof=close", "file:{new}"], "no use for writing"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line_and_opens_nothing(arguments, says, tmp_path, capsys):
    new = tmp_path / "new"
    try:
        status = main([argument.format(new=new) for argument in arguments])
    except SystemExit as exc:
        status = exc.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert printed.err.startswith("fdtransport: ")
    assert says in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not new.exists()


def test_a_standard_stream_that_is_closed_is_named():
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "-", "-"]
    closed = subprocess.run(command, capture_output=True, env=ENVIRONMENT)
    assert closed.returncode == 1
    assert closed.stderr == (
        b"fdtransport: cannot open -: standard stream 0 was not open when this program began\n"
    )


def test_an_endpoint_that_cannot_be_opened_is_told_in_one_line(tmp_path):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and nobody listens
        for url, reason in (
            (f"file:{tmp_path}/none", os.strerror(errno.ENOENT)),
            (f"unix:{tmp_path}/none", os.strerror(errno.ENOENT)),
            (f"tcp://127.0.0.1:{deaf.getsockname()[1]}", os.strerror(errno.ECONNREFUSED)),
            (f"file:{tmp_path}", os.strerror(errno.EISDIR)),
            ("fd:99", "99 is not open"),
            ("fd:99?listen", "99 is not open"),
            ("fd:0?listen", f"{os.strerror(errno.ENOTSOCK)}: descriptor 0"),
            ("udp://127.0.0.1:9?interface=none", f"{os.strerror(errno.ENODEV)}: interface 'none'"),
            (f"unix+listen:{tmp_path}/none/sock", os.strerror(errno.ENOENT)),
        ):
            assert run(url, "-") == (1, b"", f"fdtransport: cannot open {url}: {reason}\n")
    reason = "file descriptor 1 is already under a transport; close or detach that one first"
    assert run("fd:1", "fd:1") == (1, b"", f"fdtransport: cannot open fd:1: {reason}\n")


def test_a_target_is_not_emptied_when_the_source_cannot_be_opened(tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    assert run(f"file:{tmp_path}/none", f"file:{tmp_path}/target")[0] == 1
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_ends_that_have_nothing_for_each_other_are_told(tmp_path):
    (tmp_path / "one").touch()
    one, other = (os.open(tmp_path / "one", os.O_RDONLY) for _ in range(2))
    status, _, errors = run(f"fd:{one}", f"fd:{other}", pass_fds=[one, other])
    assert (status, errors) == (1, f"fdtransport: no bytes can go from fd:{one} to fd:{other}\n")
    os.close(one)
    os.close(other)


def test_a_peer_that_resets_is_told_in_one_line():
    def reset(sock):
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with Server(reset) as server:
        status, _, errors = run("-", server.url, data=b"x")
    assert (status, errors) == (1, f"fdtransport: {server.url}: {os.strerror(errno.ECONNRESET)}\n")


# -- signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_ends_it_quietly_with_130(echoes, loop):
    pytest.importorskip(loop)
    with listening(echoes.url, "--loop", loop) as (child, port):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            child.send_signal(signal.SIGINT)
            assert child.wait(PATIENCE) == 130
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        assert child.stderr.read() == b""


def test_ctrl_c_while_it_waits_for_a_reader(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with running("--progress", "-", f"fifo:{tmp_path}/fifo", stdin=subprocess.PIPE) as child:
        child.stderr.read(1)  # it has begun
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 130


def test_sigterm_delivers_what_was_read(echoes):
    with listening(echoes.url, "--stats") as (child, port):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(b"last words")
            assert sock.recv(10, socket.MSG_WAITALL) == b"last words"
            child.send_signal(signal.SIGTERM)
            assert sock.recv(1) == b""
            assert child.wait(PATIENCE) == 0
        assert b"1 connections, 0 failed" in child.stderr.read()


def test_a_second_sigterm_does_not_wait_for_who_never_reads():
    with Server(lambda sock: sock.sendall(bytes(64 * MIB))) as server, listening(server.url) as (child, port):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
            while not server.served:
                time.sleep(0.01)
            time.sleep(0.2)  # until everything is full
            child.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.3)
            child.send_signal(signal.SIGTERM)
            assert child.wait(PATIENCE) == 143
        assert child.stderr.read() == b""


# -- listeners ---------------------------------------------------------------------------------------


def test_two_hundred_connections_of_which_some_fail(tmp_path):
    def serve(sock):
        data = sock.recv(65536)
        if data.startswith(b"reset"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        sock.sendall(data)
        echo(sock)

    wrong, failed, choice = [], [], random.Random(5)

    def client(port, number):
        try:
            if number % 5 == 0:
                failed.append(number)
                with contextlib.suppress(ConnectionResetError):
                    assert ask(port, b"reset") == b""
            elif number % 5 == 1:
                with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
                    sock.sendall(pattern(choice.randrange(MIB)))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                data = pattern(10_000 + number)
                assert ask(port, data) == data
        except BaseException as exc:
            wrong.append((number, exc))

    with (
        Server(serve, socket.AF_UNIX, str(tmp_path / "sock")) as server,
        listening(server.url) as (child, port),
    ):
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(child.stderr))
        reader.start()
        clients = [threading.Thread(target=client, args=(port, number)) for number in range(200)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(PATIENCE)
        assert not wrong
        assert server.served >= 160
        assert ask(port, b"still there") == b"still there"
        open_now = os.listdir(f"/proc/{child.pid}/fd")
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
        reader.join(PATIENCE)
    assert len(open_now) < 30
    assert len(lines) >= len(failed)
    assert all(line.startswith(b"fdtransport: ") for line in lines)


def test_a_connection_for_which_b_cannot_be_opened_does_not_end_the_others(tmp_path):
    path = tmp_path / "late.sock"
    with listening(f"unix:{path}") as (child, port):
        assert ask(port, b"") == b""
        assert child.stderr.readline().decode() == (
            f"fdtransport: cannot open unix:{path}: {os.strerror(errno.ENOENT)}\n"
        )
        with Server(echo, socket.AF_UNIX, str(path)):
            assert ask(port, b"hello") == b"hello"


def test_b_can_be_the_listener(echoes, tmp_path):
    with running(echoes.url, f"unix+listen:{tmp_path}/front") as child:
        wait_until_listening(tmp_path / "front")
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(str(tmp_path / "front"))
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b"hello"
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
    assert not (tmp_path / "front").exists()


def test_one_serves_one_connection_and_ends(echoes):
    with listening(echoes.url, "--one") as (child, port):
        assert ask(port, b"hello") == b"hello"
        assert child.wait(PATIENCE) == 0


def test_standard_streams_serve_one_connection():
    with listening("-", stdin=subprocess.PIPE) as (child, port):
        child.stdin.write(b"answer")
        child.stdin.close()
        assert ask(port, b"question") == b"answer"
        assert child.wait(PATIENCE) == 0
        assert child.stdout.read() == b"question"


def test_max_has_further_connections_wait(echoes):
    with listening(echoes.url, "--max", "2") as (child, port):
        socks = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(3)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
        for number, sock in enumerate(socks[:2]):
            assert sock.recv(1) == b"%d" % number
        socks[2].settimeout(0.2)
        with pytest.raises(TimeoutError):
            socks[2].recv(1)
        assert echoes.served == 2
        socks[0].close()
        socks[2].settimeout(PATIENCE)
        assert socks[2].recv(1) == b"2"
        for sock in socks:
            sock.close()
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0


# -- beside other programs ---------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("socat") is None, reason="the program socat is not installed")
def test_socat_at_both_sides(tmp_path):
    data = pattern(8 * MIB)
    with subprocess.Popen(["socat", "-u", f"UNIX-LISTEN:{tmp_path}/sink", f"CREATE:{tmp_path}/out"]) as sink:
        while not (tmp_path / "sink").exists():
            time.sleep(0.01)
        with listening(f"unix:{tmp_path}/sink", "--one") as (child, port):
            subprocess.run(
                ["socat", "-u", "-", f"TCP:127.0.0.1:{port}"], input=data, check=True, timeout=PATIENCE
            )
            assert child.wait(PATIENCE) == 0
        assert sink.wait(PATIENCE) == 0
    assert (tmp_path / "out").read_bytes() == data


def test_help_names_every_scheme(capsys):
    from fdtransport.schemes import SCHEMES

    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in SCHEMES:
        assert name == "stdio" or f"  {name}:" in shown


# -- records -----------------------------------------------------------------------------------------


@pytest.fixture
def udp_echo():
    """The port of a UDP server that answers in capitals."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve():
            while (request := sock.recvfrom(65536))[0] != b"stop":
                sock.sendto(request[0].upper(), request[1])

        thread = threading.Thread(target=serve)
        thread.start()
        yield sock.getsockname()[1]
        sock.sendto(b"stop", sock.getsockname())
        thread.join(PATIENCE)


def test_standard_input_goes_to_udp_and_the_answer_comes_back(udp_echo):
    status, output, errors = run("-", f"udp://127.0.0.1:{udp_echo}", "--stats", data=b"hello")
    assert (status, output) == (0, b"HELLO")
    assert "5 bytes" in errors
    assert "records" in errors


def test_each_address_that_sends_to_a_udp_listener_is_a_connection(udp_echo):
    with running("udp+listen://127.0.0.1:0?idle=5", f"udp://127.0.0.1:{udp_echo}", "--stats") as child:
        port = port_of(child)
        for _ in range(3):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(PATIENCE)
                client.connect(("127.0.0.1", port))
                for record in (b"one", b"", b"three"):
                    client.send(record)
                    assert client.recv(100) == record.upper()
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0
        assert b"3 connections, 0 failed" in errors


def test_seqpacket_records_become_bytes_and_the_end_ends_it(tmp_path):
    path, out = tmp_path / "x.sock", tmp_path / "out"
    with running(f"unix+listen:{path}?type=seqpacket", f"file:{out}", "-u", "--one", "--frame", 2) as child:
        deadline = time.monotonic() + PATIENCE
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            while client.connect_ex(str(path)) and time.monotonic() < deadline:
                time.sleep(0.01)
            client.send(b"one")
            client.send(b"three")
        assert child.wait(PATIENCE) == 0
    assert out.read_bytes() == b"\x00\x03one\x00\x05three"
    assert not path.exists()


def test_records_that_are_refused_are_told():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    status, _, errors = run("-", f"udp://127.0.0.1:{port}", "--linger", "0.2", data=b"hello")
    assert status == 0
    assert f"udp://127.0.0.1:{port}: 1 records refused, the last: Connection refused" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "udp://h:1?idle=3"], "unknown option 'idle'"),
        (["tcp://h:1", "fd:0", "--frame", "2"], "records at the other"),
        (["-", "udp://h:1", "--record", "0"], "argument --record"),
    ],
)
def test_wrong_options_of_records_are_refused(arguments, message):
    status, _, errors = run(*arguments)
    assert status == 2
    assert message in errors


# -- programs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "a", "b", "status"),
    [
        ("asyncio", "-", 'exec:sh -c "exit 3"', 3),
        ("uvloop", "shell:kill -9 $$", "-", 128 + signal.SIGKILL),
        ("asyncio", 'exec:sh -c "exit 3"?pty', "-", 3),
        ("uvloop", "-", "shell:kill -TERM $$?pty", 128 + signal.SIGTERM),
    ],
)
def test_the_exit_status_is_that_of_the_program(loop, a, b, status):
    pytest.importorskip(loop)
    assert run("--loop", loop, a, b) == (status, b"", "")


def test_a_program_is_a_filter_for_standard_input():
    data = pattern(3 * MIB)
    assert run("-", "exec:cat", data=data) == (0, data, "")


def test_a_program_that_does_not_want_all_of_its_input_is_no_error():
    assert run("-", "shell:head -c 3; exit 5", data=bytes(4 * MIB)) == (5, bytes(3), "")


def test_a_program_whose_reader_leaves_ends_as_in_a_pipeline():
    with running("exec:yes", stdout=subprocess.PIPE) as child:
        assert child.stdout.read(2) == b"y\n"
        child.stdout.close()
        assert child.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert child.stderr.read() == b""


def test_of_two_programs_the_last_that_failed_has_the_status(tmp_path):
    assert run("shell:echo hello; exit 3", f"shell:cat >{tmp_path}/out; exit 4")[0] == 4
    assert run("shell:echo hello; exit 3", f"shell:cat >{tmp_path}/out")[0] == 3
    assert (tmp_path / "out").read_bytes() == b"hello\n"


def test_what_a_program_prints_that_is_only_written_to_goes_where_ours_goes(tmp_path):
    (tmp_path / "file").write_bytes(b"1\n2\n3\n")
    assert run(f"file:{tmp_path}/file", "exec:wc -l") == (0, b"3\n", "")


def test_a_program_reads_nothing_of_ours_that_is_only_read_from(tmp_path):
    assert run("exec:cat", f"file:{tmp_path}/out", data=b"not for it") == (0, b"", "")
    assert (tmp_path / "out").read_bytes() == b""


def test_errors_of_a_program_go_where_they_are_to():
    assert run("shell:echo error >&2", "shell:cat; echo other >&2?stderr=null") == (0, b"", "error\n")
    assert run("-", "shell:echo error >&2?stderr=stdout") == (0, b"error\n", "")


def test_each_connection_has_a_program_of_its_own():
    with listening("shell:read name; echo hello $name, I am $$; exit 3") as (child, port):
        answers = {ask(port, b"%d\n" % number) for number in range(5)}
        assert len(answers) == 5
        assert {answer[:7] for answer in answers} == {b"hello %d" % number for number in range(5)}
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
        assert child.stderr.read() == b""


def test_one_connection_has_the_status_of_its_program():
    with listening("shell:read name; exit $name", "--one") as (child, port):
        assert ask(port, b"6\n") == b""
        assert child.wait(PATIENCE) == 6


def test_a_shell_on_a_terminal_is_shared_over_tcp():
    with listening("exec:bash --norc --noediting -i?pty&size=30x100") as (child, port):
        shells = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(2)]
        for number, sock in enumerate(shells):
            sock.sendall(b"stty size; tty; sleep 100 & jobs; echo $((%d+40))\n" % number)
        for number, sock in enumerate(shells):
            said = b""
            while b"\n%d\r\n" % (number + 40) not in said:
                said += sock.recv(1000)
            assert b"30 100\r\n/dev/pts/" in said
            assert b"[1]+  Running                 sleep 100 &" in said
        running_now = children_of(child.pid)
        assert len(running_now) == 2
        for sock in shells:  # one that is lost is hung up at once, with all of its jobs
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        wait_until(lambda: not children_of(child.pid))
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0


def test_a_program_is_ended_with_the_command():
    with (
        listening("exec:sleep 100") as (child, port),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE),
    ):
        wait_until(lambda: children_of(child.pid))
        (program,) = children_of(child.pid)
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 130
    assert not os.path.exists(f"/proc/{program}")


def test_a_program_that_has_what_it_needs_of_its_input_is_waited_for(tmp_path):
    with running("-", f"shell:exec >&-; cat >{tmp_path}/in; read x <{tmp_path}/go; exit 7",
                 stdin=subprocess.PIPE) as child:  # fmt: skip
        os.mkfifo(tmp_path / "go")
        child.stdin.write(b"data")
        child.stdin.close()
        wait_until(lambda: (tmp_path / "in").exists() and (tmp_path / "in").read_bytes() == b"data")
        (tmp_path / "go").write_bytes(b"\n")
        assert child.wait(PATIENCE) == 7


def test_a_line_that_a_terminal_would_cut_is_an_error():
    status, output, errors = run("-", "exec:cat?pty", data=b"x" * 5000)
    assert (status, output) == (1, b"")
    assert errors.startswith(
        "fdtransport: exec:cat?pty: Message too long: a line of 5000 bytes for a terminal"
    )


def test_a_terminal_is_hung_up_some_time_after_the_end_of_its_input():
    status, output, _ = run("--linger", "2", "-", "shell:stty raw -echo; echo ready; cat?pty", data=b"")
    assert status == 128 + signal.SIGHUP
    assert output.startswith(b"ready\n")  # and then Ctrl-D, if it was typed before that


def test_nothing_is_started_when_the_other_end_cannot_be_had(tmp_path):
    assert run(f"exec:touch {tmp_path}/new", f"file:{tmp_path}/none/x")[0] == 1
    assert not (tmp_path / "new").exists()


def test_a_program_that_cannot_be_started_is_told_in_one_line(tmp_path):
    for url, says in (
        ("exec:/no/such/program", "the program '/no/such/program'"),
        (f"exec:cat?cwd={tmp_path}/none", f"the directory '{tmp_path}/none'"),
    ):
        assert run("-", url) == (
            1,
            b"",
            f"fdtransport: cannot open {url}: {os.strerror(errno.ENOENT)}: {says}\n",
        )


def test_options_that_do_not_go_together_and_what_cannot_be_watched_are_told(tmp_path):
    file = tmp_path / "file"
    file.touch()
    says = "'from' is of use with 'follow' only"
    url = f"file:{file}?from=end"
    assert run("-u", url, "-") == (2, b"", f"fdtransport: '{url}': option {says}\n")
    says = f"{os.strerror(errno.ENOTDIR)}: to watch a file, watch the directory that it is in"
    assert run(f"watch:{file}", "-") == (1, b"", f"fdtransport: cannot open watch:{file}: {says}\n")


def test_what_a_serial_port_says_goes_to_a_file(tmp_path):
    device, line = pty.openpty()
    with os.fdopen(device, "wb", buffering=0) as device, os.fdopen(line):
        url = f"serial:{os.ttyname(line)}?baud=115200"
        with running(url, f"file:{tmp_path}/log") as command:
            while not (tmp_path / "log").exists():
                assert command.poll() is None
                time.sleep(0.01)
            device.write(b"measured\n")
            while (tmp_path / "log").read_bytes() != b"measured\n":
                assert command.poll() is None
                time.sleep(0.01)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
