"""Starting programs: exactly the descriptors asked for, and every mistake an error of the caller."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import pytest
from child_checks import no_child_is_left  # noqa: F401

from fdtransport._core import syscalls
from fdtransport._core.spawn import spawn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="posix_spawn with a directory is Linux's")

#: Writes the number and the file of each of its descriptors, but the one that lists them, to number 9.
LIST = [
    sys.executable,
    "-ISc",
    "import os\n"
    "for n in sorted(os.listdir('/proc/self/fd'), key=int):\n"
    "    try: os.write(9, f'{n} {os.readlink(f\"/proc/self/fd/{n}\")}\\n'.encode())\n"
    "    except OSError: pass\n",
]


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(argv, number=1, **options):
    """The status of a program and what it wrote to descriptor *number*."""
    read, write = os.pipe()
    try:
        fds = {number: write, 2: 2} | options.pop("fds", {})
        pid = spawn(argv, fds=fds, **options)
        os.close(write)
        write = -1
        with open(read, "rb", closefd=False) as file:
            out = file.read()
        return wait(pid), out
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


@pytest.fixture
def files(tmp_path):
    """Five open files of the names a to e, on successive descriptors."""
    fds = {name: os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in "abcde"}
    yield fds
    for fd in fds.values():
        os.close(fd)


def listing(fds, **options):
    """The child's descriptors ``{number: name of the file}``, but for the one that it lists them to."""
    status, out = run(LIST, 9, fds=fds, **options)
    assert status == 0
    found = dict(re.findall(r"(\d+) (.*)", out.decode()))
    assert found.pop("9").startswith("pipe:")
    return {int(number): os.path.basename(path) for number, path in found.items()}


def names_of(fds):
    return {number: os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) for number, fd in fds.items()}


# -- descriptors


def test_the_child_has_the_descriptors_asked_for_and_no_other(files):
    os.set_inheritable(files["e"], True)
    wanted = {0: files["a"], 2: files["b"], 5: files["c"], 31: files["c"]}
    assert listing(wanted) == {0: "a", 2: "b", 5: "c", 31: "c"}


def test_any_permutation_of_numbers_arrives(files):
    a, b, c, d, e = files.values()
    for wanted in ({a: b, b: a}, {a: b, b: c, c: d, d: a}, {a: a, b: b}, {e: a, d: a, a: e, 0: b}):
        assert listing(wanted | {2: 2}) == names_of(wanted | {2: 2})


def test_the_callers_descriptors_stay_as_they_were(files):
    before = {fd: (os.get_inheritable(fd), os.get_blocking(fd)) for fd in files.values()}
    listing(dict(enumerate(files.values())))
    assert {fd: (os.get_inheritable(fd), os.get_blocking(fd)) for fd in files.values()} == before


def test_a_c_library_that_cannot_close_what_is_left_is_told_each_number(files, monkeypatch):
    os.set_inheritable(files["e"], True)
    monkeypatch.setattr(syscalls, "has_spawn_action", lambda name: name != "closefrom_np")
    a, b = files["a"], files["b"]
    assert listing({a: b, b: a, 2: 2}) == {a: "b", b: "a", 2: names_of({2: 2})[2]}


@pytest.mark.parametrize(
    ("fds", "error"),
    [
        ({0: 987654}, OSError),
        ({-1: 0}, ValueError),
        ({0: -1}, ValueError),
        ({2**31: 0}, ValueError),
        ({True: 0}, TypeError),
        ({"1": 0}, TypeError),
        ({1: "x"}, TypeError),
    ],
)
def test_a_bad_descriptor_is_an_error_of_the_caller(fds, error):
    with pytest.raises(error) as caught:
        spawn(["true"], fds=fds)
    if error is OSError:
        assert caught.value.errno == errno.EBADF


def test_a_number_over_the_limit_of_open_files_is_an_error_of_the_caller():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with pytest.raises(OSError, match=f"{limit}") as caught:
        spawn(["true"], fds={limit: 0})
    assert caught.value.errno == errno.EMFILE


def test_high_numbers_do_not_let_others_in(files):
    os.set_inheritable(files["e"], True)
    assert listing({700: files["a"], 2: files["b"]}) == {700: "a", 2: "b"}


# -- the program


def test_the_program_is_found_on_the_path_of_the_environment_it_gets(tmp_path):
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho $0 $1 $PATH\n")
    program.chmod(0o755)
    path = f"/nowhere:{tmp_path}:/bin"
    assert run(["only-here", "x"], env={"PATH": path}) == (0, f"{program} x {path}\n".encode())
    in_bytes = {b"PATH": os.fsencode(path)}
    assert run(["only-here", "x"], env=in_bytes) == (0, f"{program} x {path}\n".encode())
    assert run(["echo", "by default"], env={})[1] == b"by default\n"
    with pytest.raises(FileNotFoundError, match="only-here"):
        spawn(["only-here"])


def test_arguments_and_environment_arrive_byte_for_byte():
    words = ["", " a  b ", "$HOME", b"\xff\xfe", "\udcff", "ü", "-n"]
    show = "import os,sys; print(list(map(os.fsencode, sys.argv[1:])))"
    status, out = run([sys.executable, "-c", show, *words])
    assert (status, eval(out)) == (0, [os.fsencode(word) for word in words])
    assert run(["env"], env={"A": "1=2", "B": ""}) == (0, b"A=1=2\nB=\n")
    assert run(["/usr/bin/env"], env={b"\xff": b"\xfe"}) == (0, b"\xff=\xfe\n")
    assert run(["/usr/bin/env"], env={}) == (0, b"")


def test_another_executable_may_be_started_under_the_name():
    assert run(["called", "-c", "echo $0"], executable="/bin/sh") == (0, b"called\n")


def test_the_directory_is_the_childs_alone(tmp_path):
    here = os.getcwd()
    assert run(["pwd"], cwd=tmp_path) == (0, os.fsencode(tmp_path) + b"\n")
    (tmp_path / "mine").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "mine").chmod(0o755)
    assert run(["./mine"], cwd=tmp_path) == (0, b"mine\n")
    assert run(["mine"], cwd=tmp_path, env={"PATH": "."}) == (0, b"mine\n")
    assert os.getcwd() == here


def test_a_c_library_that_cannot_change_the_directory_says_so(monkeypatch):
    monkeypatch.setattr(syscalls, "has_spawn_action", lambda name: name == "closefrom_np")
    with pytest.raises(OSError, match="change the directory") as caught:
        spawn(["true"], cwd="/")
    assert caught.value.errno == errno.ENOSYS


def test_signals_are_as_a_program_expects_them():
    held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        status, out = run(["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    blocked, ignored = (int(line.split()[1], 16) for line in out.splitlines())
    assert status == 0
    assert blocked == 0
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_sessions_and_process_groups():
    ps = ["sh", "-c", "echo $(ps -o sid= -p $$) $(ps -o pgid= -p $$) $$"]
    session, group, pid = map(int, run(ps, new_session=True)[1].split())
    assert session == group == pid
    session, group, pid = map(int, run(ps, process_group=0)[1].split())
    assert group == pid
    assert session == os.getsid(0)
    assert int(run(ps)[1].split()[1]) == os.getpgid(0)


@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_a_terminal_becomes_the_controlling_terminal(by, files):
    master, slave = os.openpty()
    try:
        script = "echo $(tty) >/dev/tty; readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/5; ps -o tty= -p $$"
        path = os.ttyname(slave)
        terminal = path if by == "path" else slave
        fds = {5: files["a"], slave: files["b"], 2: files["c"]}
        pid = spawn(["sh", "-c", script], terminal=terminal, new_session=True, fds=fds)
        os.close(slave)
        slave = -1
        assert wait(pid) == 0
        a = os.readlink(f"/proc/self/fd/{files['a']}")
        said = b""
        with contextlib.suppress(OSError):  # EIO: the end of what a master brings
            while piece := os.read(master, 65536):
                said += piece
        assert said.decode().split() == [path, path, path, a, path.removeprefix("/dev/")]
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


# -- what is wrong


@pytest.mark.parametrize("identity", [{}, {"group": os.getgid()}], ids=["plain", "by setpriv"])
def test_what_cannot_be_started_is_the_callers_error(tmp_path, identity):
    plain = tmp_path / "plain"
    plain.write_text("true\n")
    directory = str(tmp_path)
    cases = [
        (["no-such-program"], {}, errno.ENOENT, "no-such-program"),
        (["/no/such/program"], {}, errno.ENOENT, "/no/such/program"),
        ([str(plain)], {}, errno.EACCES, str(plain)),
        (["plain"], {"env": {"PATH": directory}}, errno.EACCES, "plain"),
        ([directory], {}, errno.EACCES, directory),
    ]
    for argv, options, number, name in cases:
        with pytest.raises(OSError, match=re.escape(name)) as caught:
            spawn(argv, **options, **identity)
        assert (caught.value.errno, caught.value.filename) == (number, name)
    for cwd, number in [("/no/such", errno.ENOENT), (plain, errno.ENOTDIR)]:
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            spawn(["true"], cwd=cwd, **identity)
        assert (caught.value.errno, caught.value.filename) == (number, cwd)


def test_a_script_without_an_interpreter_is_an_error_as_with_subprocess(tmp_path):
    for text, number in [("true\n", errno.ENOEXEC), ("#!/no/such/interpreter\n", errno.ENOENT)]:
        script = tmp_path / "script"
        script.write_text(text)
        script.chmod(0o755)
        for start in (lambda argv: spawn(argv), lambda argv: subprocess.run(argv, check=False)):
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                start([str(script)])
            assert (caught.value.errno, caught.value.filename) == (number, str(script))


@pytest.mark.parametrize(
    ("argv", "options", "error", "match"),
    [
        ([], {}, ValueError, "no program"),
        (["a\0b"], {}, ValueError, "null byte"),
        (["true", b"a\0b"], {}, ValueError, "null byte"),
        (["true", 1], {}, TypeError, "argument"),
        (["true"], {"cwd": "a\0b"}, ValueError, "null byte"),
        (["true"], {"env": {"a=b": "c"}}, ValueError, "a=b"),
        (["true"], {"env": {"": "c"}}, ValueError, "illegal"),
        (["true"], {"env": {"a": "c\0"}}, ValueError, "null byte"),
        (["true"], {"env": {"a": 1}}, TypeError, "env"),
        (["true"], {"user": "no such user"}, ValueError, "unknown user: 'no such user'"),
        (["true"], {"group": "no such group"}, ValueError, "unknown group"),
        (["true"], {"user": -1}, ValueError, "user"),
        (["true"], {"user": True}, TypeError, "user"),
        (["true"], {"extra_groups": "wheel"}, TypeError, "list"),
        (["true"], {"terminal": "a\0b", "new_session": True}, ValueError, "null byte"),
        (["true"], {"terminal": 987654, "new_session": True}, OSError, "987654"),
        (["true"], {"terminal": "/no/such/tty", "new_session": True}, FileNotFoundError, "No such file"),
    ],
)
def test_bad_input_is_named_and_starts_nothing(argv, options, error, match):
    with pytest.raises(error, match=match):
        spawn(argv, **options)


# -- whose it is


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_another_user_and_group():
    nobody = pwd.getpwnam("nobody")
    status = ["grep", "-E", "^(Uid|Gid|Groups)", "/proc/self/status"]
    _, out = run(status, user="nobody", group=nobody.pw_gid, extra_groups=[])
    uids, gids, groups = (line.split()[1:] for line in out.decode().splitlines())
    assert set(map(int, uids)) == {nobody.pw_uid}
    assert set(map(int, gids)) == {nobody.pw_gid}
    assert not set(map(int, groups)) - {nobody.pw_gid}
    _, out = run(status, user=nobody.pw_uid)
    uids, gids, _ = (line.split()[1:] for line in out.decode().splitlines())
    assert set(map(int, uids)) == {nobody.pw_uid}
    assert set(map(int, gids)) == {os.getgid()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_the_number_of_the_process_is_the_programs_own_under_another_user():
    read, write = os.pipe()
    pid = spawn(["sh", "-c", "echo $$"], fds={1: write, 2: 2}, user="nobody")
    os.close(write)
    assert int(os.read(read, 100)) == pid
    os.close(read)
    assert wait(pid) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_what_the_other_user_may_not_execute_is_an_error_of_the_caller():
    """Of the file as of each directory to it; a relative path begins at the directory to start in."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for one user
        refusals(Path(folder) / "below" / "program")


def refusals(program):
    program.parent.mkdir()
    closed = program.parents[1]
    closed.chmod(0o755)
    program.write_text("#!/bin/sh\nexit 4\n")
    argv, nobody = [str(program)], pwd.getpwnam("nobody").pw_uid

    def refused(**identity):
        with pytest.raises(PermissionError) as caught:
            spawn(argv, **identity)
        assert caught.value.filename == str(program)
        return True

    program.chmod(0o700)
    assert refused(user=nobody)
    program.chmod(0o755)
    assert wait(spawn(argv, fds={2: 2}, user=nobody)) == 4
    program.chmod(0o654)
    os.chown(program, nobody, 12345)
    assert refused(user=nobody, group=12345)  # it is the owner's bit that counts
    os.chown(program, 0, 12345)
    assert refused(user=nobody, group=1)
    assert wait(spawn(argv, user=nobody, group=12345, fds={2: 2})) in (4, 126)  # the shell cannot read it
    program.chmod(0o755)
    os.chown(program, 0, 0)
    closed.chmod(0o700)
    assert refused(user=nobody)
    relative = {"cwd": program.parent, "user": nobody}
    assert wait(spawn(["./program"], fds={2: 2}, **relative)) == 4
    program.parent.chmod(0o700)
    with pytest.raises(PermissionError):
        spawn(["./program"], **relative)
    assert wait(spawn(argv, group=12345, fds={2: 2})) == 4  # still root


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give up being root")
def test_a_user_who_may_not_change_is_told_here():
    code = (
        "from fdtransport._core.spawn import spawn\n"
        "for change in ({'user': 0}, {'group': 0}, {'extra_groups': []}):\n"
        "    try: spawn(['true'], **change)\n"
        "    except PermissionError: print('refused')\n"
    )
    # The interpreter may lie where nobody else may look: it imports what it needs first.
    code = "import fdtransport._core.spawn, os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n" + code
    code = "from fdtransport._core.spawn import spawn; spawn(['true'])\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stdout.split() == [b"refused"] * 3, done.stderr


# -- threads, cost


def test_threads_spawn_at_once_without_warnings_or_crosstalk():
    failed = []

    def work(number):
        try:
            for turn in range(15):
                word = f"{number}-{turn}"
                assert run(["echo", word], cwd="/") == (0, word.encode() + b"\n")
        except BaseException as exc:
            failed.append(exc)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


def test_the_memory_of_the_process_is_not_copied():
    """A fork would write-protect every page, and each write afterwards would fault (getrusage(2))."""
    code = (
        "import os, resource\n"
        "from fdtransport._core.spawn import spawn\n"
        "block = bytearray(b'x') * (64 << 20)\n"
        "def faults_of(start):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    pid = start()\n"
        "    for at in range(0, len(block), 4096): block[at] = 1\n"
        "    os.waitpid(pid, 0)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults_of(lambda: spawn(['sleep', '0']))\n"
        "print(faults_of(lambda: spawn(['sleep', '0.2'])), faults_of(lambda: os.fork() or os._exit(0)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    ours, fork = map(int, out.split())
    assert ours < 500 < fork


def test_spawning_leaves_no_descriptor_and_changes_none():
    def all_of():
        return {
            fd: (os.readlink(f"/proc/self/fd/{fd}"), stat.S_IFMT(os.fstat(int(fd)).st_mode))
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        }

    before = all_of()
    for _ in range(20):
        assert run(["true"]) == (0, b"")
        with pytest.raises(FileNotFoundError):
            spawn(["/no/such"], cwd="/", fds={0: 0})
    assert all_of() == before
