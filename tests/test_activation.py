"""Sockets that somebody else opened: systemd's, and any descriptor that listens."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fdtransport
from fdtransport import EndpointError, activation, activation_sockets, listen_url
from fdtransport.testing import RecordingProtocol, descriptors
from fdtransport.testing.observe import until

ROOT = Path(__file__).parent.parent
VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Passed:
    """Descriptors in a row, from a number on that nobody else uses, as systemd passes them."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.first = fcntl.fcntl(0, fcntl.F_DUPFD, 700)
        os.close(self.first)
        self.count = 0
        monkeypatch.setattr(activation, "FIRST", self.first)
        for variable in VARIABLES:
            monkeypatch.delenv(variable, raising=False)

    def add(self, file):
        os.dup2(file.fileno() if hasattr(file, "fileno") else file, self.first + self.count, inheritable=True)
        self.count += 1

    def tell(self, **variables):
        for variable, value in {"FDS": self.count, "PID": os.getpid(), **variables}.items():
            self.monkeypatch.setenv(f"LISTEN_{variable}", str(value))

    def close(self):
        for fd in range(self.first, self.first + self.count):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def passed(monkeypatch):
    passed = Passed(monkeypatch)
    yield passed
    passed.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def unix_listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        yield sock


# -- systemd's --------------------------------------------------------------------------------------


def test_they_come_in_order_with_their_names_and_are_ours_alone(passed, listener, unix_listener):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for sock in (listener, unix_listener, datagrams):
            passed.add(sock)
        passed.tell(FDNAMES="web:control:web")
        found = activation_sockets()
    assert [name for name, _ in found] == ["web", "control", "web"]
    assert [sock.fileno() for _, sock in found] == [passed.first + number for number in range(3)]
    assert [sock.family for _, sock in found] == [socket.AF_INET, socket.AF_UNIX, socket.AF_INET]
    assert found[2].sock.type == socket.SOCK_DGRAM
    assert not any(sock.get_inheritable() for _, sock in found)
    assert not any(variable in os.environ for variable in VARIABLES)
    assert activation_sockets() == []
    for _, sock in found:
        sock.close()


def test_without_names_they_are_unknown(passed, listener):
    passed.add(listener)
    passed.tell()
    ((name, sock),) = activation_sockets()
    assert name == "unknown"
    sock.close()


def test_without_any_there_are_none(passed):
    assert activation_sockets() == []
    passed.tell(FDNAMES="")
    assert activation_sockets() == []


def test_those_of_another_process_are_left_alone(passed, listener):
    passed.add(listener)
    passed.tell(PID=os.getppid())
    assert activation_sockets() == []
    assert os.get_inheritable(passed.first)


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"FDS": "x"}, "LISTEN_FDS='x' is no number"),
        ({"FDS": "-1"}, "LISTEN_FDS='-1' is no number"),
        ({"FDS": str(1 << 40)}, "LISTEN_FDS='1099511627776' is no number"),
        ({"PID": "me"}, "LISTEN_PID='me' is no number"),
        ({"FDNAMES": "a:b"}, "LISTEN_FDNAMES='a:b' has 2 names, and LISTEN_FDS=1"),
        ({"FDNAMES": ""}, "has 0 names"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(passed, listener, variables, what):
    passed.add(listener)
    passed.tell(**variables)
    with pytest.raises(ValueError, match=re.escape(what)):
        activation_sockets()
    assert os.get_inheritable(passed.first)


@pytest.mark.parametrize("kind", ["closed", "file"])
def test_what_is_no_socket_is_named_and_nothing_is_changed(passed, listener, kind):
    passed.add(listener)
    if kind == "file":
        with open(os.devnull, "rb") as file:
            passed.add(file)
    passed.tell(FDS=2, FDNAMES="web:odd")
    with pytest.raises(OSError, match=rf"descriptor {passed.first + 1} \('odd'\)") as caught:
        activation_sockets()
    assert caught.value.errno == (errno.ENOTSOCK if kind == "file" else errno.EBADF)
    assert "LISTEN_FDS" in os.environ
    assert os.get_inheritable(passed.first)


async def test_they_are_served_and_their_files_stay(passed, unix_listener, tmp_path):
    passed.add(unix_listener)
    passed.tell()
    ((_, sock),) = activation_sockets()
    server = await fdtransport.create_server(RecordingProtocol, sock=sock)
    transport, _ = await fdtransport.create_unix_connection(RecordingProtocol, tmp_path / "socket")
    await transport.aclose()
    await server.aclose()
    assert (tmp_path / "socket").exists()


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not here")
def test_the_example_is_started_by_systemd_s_own_tool(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
    path = tmp_path / "echo.sock"
    command = ["systemd-socket-activate", "-l", f"{address[0]}:{address[1]}", "-l", str(path), "--fdname=a:b"]
    command += [f"--setenv={name}" for name in ("PYTHONPATH", "PATH", "HOME") if name in os.environ]
    command += [sys.executable, "-W", "error", "-m", "examples.activated", "--idle=0.05"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            deadline = time.monotonic() + 20
            with socket.socket(socket.AF_UNIX) as first:
                first.settimeout(20)
                while first.connect_ex(str(path)):  # not there yet; or there, and nobody listens yet
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                first.sendall(b"one")
                assert first.recv(10) == b"one"
                with socket.create_connection(address, timeout=20) as second:
                    second.sendall(b"two")
                    assert second.recv(10) == b"two"
            output, errors = child.communicate(timeout=20)
        finally:
            child.kill()
    assert (child.returncode, output.decode().splitlines()[-1]) == (0, "done"), errors
    assert b"serving a: ('127.0.0.1', %d)" % address[1] in output
    assert b"serving b: " in output


# -- a descriptor that listens ----------------------------------------------------------------------


def number_of(listener):
    return os.dup(listener.fileno())


@pytest.mark.parametrize("form", ["fd:{}?listen", "fd+listen:{}", "fd:{}?listen&backlog=7"])
async def test_a_descriptor_that_listens_is_served(listener, form):
    fd = number_of(listener)
    accepted = []

    def factory():
        accepted.append(RecordingProtocol())
        return accepted[-1]

    async with await listen_url(factory, form.format(fd)) as server:
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"hello")
            await until(lambda: accepted and accepted[0].received == b"hello", "it was served")
            server.close_clients()
            await until(lambda: accepted[0].lost, "it has gone")
    assert fd not in descriptors()


async def test_a_unix_socket_that_listens_gives_transports_that_pass_descriptors(unix_listener, tmp_path):
    accepted = []

    def factory():
        accepted.append(RecordingProtocol())
        return accepted[-1]

    async with await listen_url(factory, f"fd:{number_of(unix_listener)}?listen") as server:
        transport, _ = await fdtransport.create_unix_connection(RecordingProtocol, tmp_path / "socket")
        await until(lambda: accepted and accepted[0].transport, "it was accepted")
        assert type(accepted[0].transport) is fdtransport.UnixTransport
        await transport.aclose()
        await server.aclose()
    assert (tmp_path / "socket").exists()


async def test_the_backlog_is_left_as_it_is(unix_listener, monkeypatch):
    calls = []

    class Counting(socket.socket):
        def listen(self, *arguments):
            calls.append(arguments)

    monkeypatch.setattr(socket, "socket", Counting)
    for form in ("fd:{}?listen", "fd:{}?listen&backlog=7"):
        (await listen_url(RecordingProtocol, form.format(number_of(unix_listener)))).close()
    assert calls == [(7,)]


@pytest.mark.parametrize(
    ("kind", "number", "what"),
    [
        ("connected", errno.EINVAL, "does not listen"),
        ("bound", errno.EINVAL, "does not listen"),
        ("datagram", errno.EINVAL, "does not listen"),
        ("records", errno.EINVAL, "listens for records"),
        ("pipe", errno.ENOTSOCK, "descriptor"),
        ("closed", errno.EBADF, "descriptor"),
    ],
)
async def test_what_does_not_listen_is_refused_and_stays_as_it_is(kind, number, what):
    with contextlib.ExitStack() as stack:
        if kind == "connected":
            near, far = socket.socketpair()
            stack.enter_context(far)
            fd = stack.enter_context(near).fileno()
        elif kind == "pipe":
            fd, other = os.pipe()
            stack.callback(os.close, fd)
            stack.callback(os.close, other)
        elif kind == "closed":
            fd = os.dup(0)
            os.close(fd)
        else:
            types = {"bound": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, types.get(kind, socket.SOCK_SEQPACKET)))
            sock.bind(f"\0fdtransport-activation-{os.getpid()}")
            fd = sock.fileno()
            if kind == "records":
                sock.listen()
        before = descriptors()
        with pytest.raises(OSError, match=what) as caught:
            await listen_url(RecordingProtocol, f"fd:{fd}?listen")
        assert caught.value.errno == number
        assert str(fd) in str(caught.value)
        assert descriptors() == before
        if kind != "closed":
            assert os.get_blocking(fd)


@pytest.mark.parametrize("url", ["fd:3,4?listen", "fd+listen:x", "fd:?listen"])
def test_one_descriptor_listens(url):
    with pytest.raises(EndpointError, match=r"fd:N|fd\+listen:N"):
        asyncio.run(listen_url(RecordingProtocol, url))


def test_every_kind_that_listens_can_say_so_by_an_option():
    from fdtransport.endpoints import parse_url

    assert parse_url("tcp://127.0.0.1:0?listen&backlog=3").listens
    assert parse_url("tcp://127.0.0.1:0?listen&backlog=3").options == {"backlog": 3}
    with pytest.raises(EndpointError, match=r"unknown scheme 'fifo\+listen'"):
        parse_url("fifo:/x?listen")
    with pytest.raises(EndpointError, match="unknown option 'listen'"):
        parse_url("tcp+listen://:0?listen")


def test_the_command_relays_what_a_listening_descriptor_accepts(listener):
    with socket.create_server(("127.0.0.1", 0)) as target:
        command = [sys.executable, "-m", "fdtransport", "--one", f"fd:{listener.fileno()}?listen"]
        command.append(f"tcp://127.0.0.1:{target.getsockname()[1]}")
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as child:
            try:
                with socket.create_connection(listener.getsockname(), timeout=20) as client:
                    target.settimeout(20)
                    far, _ = target.accept()
                    with far:
                        client.sendall(b"through")
                        assert far.recv(20) == b"through"
                assert child.wait(20) == 0
            finally:
                child.kill()
