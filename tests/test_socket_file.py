"""Socket files: never stolen, never widened, and nobody else's is removed."""

# ruff: noqa: ASYNC240 - looking at a file takes no time here

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fdtransport import create_unix_connection, create_unix_server, open_unix_connection
from fdtransport._core import socket_file


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


def stale(path):
    """A socket file that nobody serves."""
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    return os.lstat(path).st_ino


async def answers(path):
    """Whether somebody serves there."""
    try:
        transport, _ = await create_unix_connection(asyncio.Protocol, path)
    except OSError:
        return False
    await transport.aclose()
    return True


async def refused(path, by="", **options):
    with pytest.raises(OSError, match="already in use") as caught:
        await create_unix_server(asyncio.Protocol, path, **options)
    assert caught.value.errno == errno.EADDRINUSE
    assert repr(path) in str(caught.value)
    assert by in str(caught.value)


# -- whose path it is -------------------------------------------------------------------------------


async def test_a_living_server_keeps_its_path(path):
    async with await create_unix_server(asyncio.Protocol, path):
        before = os.lstat(path)
        await refused(path, "by a server")
        assert os.path.samestat(os.lstat(path), before)
        assert await answers(path)


async def test_a_server_that_does_not_listen_yet_keeps_its_path(path):
    async with await create_unix_server(asyncio.Protocol, path, start_serving=False) as server:
        await refused(path)
        await server.start_serving()
        assert await answers(path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_a_foreign_socket_of_any_type_keeps_its_path(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as foreign:
        foreign.bind(path)
        await refused(path)


async def test_a_living_server_is_not_disturbed_by_the_question(path):
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(path)
        foreign.listen()
        foreign.setblocking(False)
        await refused(path)
        with pytest.raises(BlockingIOError):
            foreign.accept()


async def test_a_socket_file_that_nobody_serves_is_replaced(path):
    stale(path)
    async with await create_unix_server(asyncio.Protocol, path):
        assert await answers(path)
    assert not os.path.lexists(path)


async def test_a_symbolic_link_is_left_alone(path, tmp_path):
    target = str(tmp_path / "target")
    stale(target)
    os.symlink(target, path)
    await refused(path, "by a symbolic link")
    assert os.readlink(path) == target
    assert stat.S_ISSOCK(os.lstat(target).st_mode)


async def test_a_dangling_symbolic_link_is_left_alone(path, tmp_path):
    os.symlink(str(tmp_path / "nowhere"), path)
    await refused(path)
    assert os.path.islink(path)


async def test_a_regular_file_is_left_alone(path):
    Path(path).write_text("precious")
    await refused(path, "by a regular file")
    assert Path(path).read_text() == "precious"


async def test_a_directory_is_left_alone(path):
    Path(path).mkdir()
    await refused(path, "by a directory")
    assert Path(path).is_dir()


async def test_of_many_that_find_an_old_file_at_once_one_gets_the_path(path):
    stale(path)
    starting = (create_unix_server(asyncio.Protocol, path) for _ in range(20))
    results = await asyncio.gather(*starting, return_exceptions=True)
    servers = [result for result in results if not isinstance(result, BaseException)]
    assert len(servers) == 1
    assert {error.errno for error in results if isinstance(error, OSError)} == {errno.EADDRINUSE}
    assert await answers(path)
    servers[0].close()


RIVAL = """
    import asyncio, sys
    import fdtransport

    async def main(path):
        print("ready", flush=True)
        sys.stdin.read()
        try:
            server = await fdtransport.create_unix_server(asyncio.Protocol, path)
        except OSError as exc:
            print(exc.errno, flush=True)
        else:
            print("mine", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main(sys.argv[1]))
"""


def test_of_several_processes_that_find_an_old_file_at_once_one_gets_the_path(path):
    pipe = subprocess.PIPE
    stale(path)
    for _ in range(3):
        command = [sys.executable, "-c", textwrap.dedent(RIVAL), path]
        rivals = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
        try:
            for rival in rivals:
                assert rival.stdout.readline() == "ready\n"
            for rival in rivals:
                rival.stdin.close()
            said = sorted(rival.stdout.readline() for rival in rivals)
            assert said == [f"{errno.EADDRINUSE}\n"] * 3 + ["mine\n"]
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
        finally:
            for rival in rivals:  # the file of the one that served stays, for the next round
                rival.kill()
                rival.wait()
                rival.stdout.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can leave a file of another user")
async def test_an_old_file_of_another_user_is_left_alone(path):
    stale(path)
    os.chown(path, 65534, 65534)
    before = os.lstat(path)
    await refused(path, "by a socket file that user 65534 has left")
    assert os.path.samestat(os.lstat(path), before)


async def test_two_processes_cannot_replace_one_old_file(path):
    number = stale(path)
    async with socket_file._locked(os.path.dirname(path)):
        starting = asyncio.ensure_future(create_unix_server(asyncio.Protocol, path))
        for _ in range(20):
            await asyncio.sleep(0)
        assert os.lstat(path).st_ino == number
        assert not starting.done()
    (await starting).close()


async def test_cancelling_while_another_replaces_an_old_file_leaves_nothing_behind(path):
    number = stale(path)
    async with socket_file._locked(os.path.dirname(path)):
        starting = asyncio.ensure_future(create_unix_server(asyncio.Protocol, path))
        for _ in range(20):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert os.lstat(path).st_ino == number


async def test_a_lock_that_is_never_released_is_not_waited_for_for_ever(path, monkeypatch):
    monkeypatch.setattr(socket_file, "LOCK_TRIES", 2)
    stale(path)
    async with socket_file._locked(os.path.dirname(path)):
        (await create_unix_server(asyncio.Protocol, path)).close()


async def test_a_directory_that_cannot_be_locked_is_used_without(path, monkeypatch):
    def lock(fd):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(socket_file.syscalls, "lock", lock)
    stale(path)
    (await create_unix_server(asyncio.Protocol, path)).close()


async def test_a_directory_that_cannot_be_read_is_used_without_a_lock(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "not for you")

    monkeypatch.setattr(socket_file.syscalls, "open", refuse)
    stale(path)
    (await create_unix_server(asyncio.Protocol, path)).close()


async def test_a_file_whose_socket_is_just_being_bound_is_left_alone(path, monkeypatch):
    """bind(2) makes the file before the socket can be found by it."""
    stale(path)  # what it looks like meanwhile
    look = socket_file._owner

    def and_then_it_is_bound(name):
        answer = look(name)
        if newcomer.fileno() >= 0 and not newcomer.getsockname():
            os.unlink(name)
            newcomer.bind(name)
        return answer

    with socket.socket(socket.AF_UNIX) as newcomer:
        monkeypatch.setattr(socket_file, "_owner", and_then_it_is_bound)
        await refused(path, "by a server")
        assert stat.S_ISSOCK(os.lstat(path).st_mode)


@pytest.mark.parametrize("step", ["_try_bind", "_owner"], ids=["before the look", "after it"])
async def test_an_owner_who_leaves_in_the_middle_of_it_leaves_the_path_to_us(path, monkeypatch, step):
    before = getattr(socket_file, step)

    def and_then_it_leaves(*args):
        if step == "_owner":
            owner.close()  # and its file is removed next
        answer = before(*args)
        owner.close()
        os.unlink(path)
        monkeypatch.setattr(socket_file, step, before)
        return answer

    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(path)
        monkeypatch.setattr(socket_file, step, and_then_it_leaves)
        async with await create_unix_server(asyncio.Protocol, path):
            assert await answers(path)


async def test_a_stranger_who_takes_the_path_first_keeps_it(path, monkeypatch):
    stale(path)
    stranger = socket.socket(socket.AF_UNIX)

    def unlink(name):
        os.unlink(name)
        stranger.bind(name)

    with monkeypatch.context() as patch:
        patch.setattr(socket_file.syscalls, "unlink", unlink)
        await refused(path)
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    stranger.close()


async def test_a_platform_without_unix_sockets_says_so(path, monkeypatch):
    for function in (create_unix_server, create_unix_connection):
        with monkeypatch.context() as patch:
            patch.delattr(socket, "AF_UNIX")
            with pytest.raises(NotImplementedError, match="not available on this platform"):
                await function(asyncio.Protocol, path)


# -- mode -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [None, 0o600, 0o660, 0o666])
async def test_the_file_has_the_mode_that_was_asked_for(path, umask, mode):
    before = os.umask(umask)
    try:
        server = await create_unix_server(asyncio.Protocol, path, **({} if mode is None else {"mode": mode}))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(path).st_mode) == (0o600 if mode is None else mode)
    server.close()


async def test_the_file_never_has_more_than_the_mode_that_was_asked_for(path, monkeypatch):
    modes, real = [], os.lstat

    def lstat(path):
        modes.append(stat.S_IMODE(real(path).st_mode))
        return real(path)

    monkeypatch.setattr(os, "lstat", lstat)
    before = os.umask(0)
    try:
        (await create_unix_server(asyncio.Protocol, path, mode=0o600)).close()
    finally:
        os.umask(before)
    assert set(modes) == {0o600}


# -- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, os.fsencode, Path], ids=["str", "bytes", "path"])
async def test_a_path_may_be_text_bytes_or_a_path_object(path, kind):
    async with await create_unix_server(asyncio.Protocol, kind(path)):
        assert await answers(kind(path))
    assert not os.path.lexists(path)


@pytest.mark.parametrize("kind", [str, os.fsencode], ids=["str", "bytes"])
async def test_an_abstract_name_is_served_and_leaves_no_file(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = kind(f"\0fdtransport-{os.getpid()}")
    async with await create_unix_server(asyncio.Protocol, name):
        assert await answers(name)
        with pytest.raises(OSError, match="in use") as caught:
            await create_unix_server(asyncio.Protocol, name)
        assert caught.value.errno == errno.EADDRINUSE
    assert os.listdir(tmp_path) == []


async def test_a_null_byte_inside_a_path_is_refused(path):
    with pytest.raises(ValueError, match="null byte"):
        await create_unix_server(asyncio.Protocol, path + "\0more")
    assert not os.path.lexists(path)


async def test_a_path_that_is_too_long_or_nowhere_is_refused(path, tmp_path):
    nowhere = str(tmp_path / "nowhere" / "socket")
    for function in (create_unix_server, create_unix_connection):
        for long in ("/" + "x" * 107, "\0" + "x" * 108, b"/" + b"x" * 107, "/" + "\u00e9" * 54):
            with pytest.raises(OSError, match=r"too long: 10[89] bytes, and at most 10[78] fit") as caught:
                await function(asyncio.Protocol, long)
            assert caught.value.errno == errno.ENAMETOOLONG
            assert caught.value.filename == long
        with pytest.raises(FileNotFoundError, match="nowhere") as caught:
            await function(asyncio.Protocol, nowhere)
        assert caught.value.filename == nowhere
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 107, "\0fdtransport-" + str(os.getpid()) + "x" * 200])
async def test_a_path_of_the_greatest_length_is_served(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = name[:108]
    async with await create_unix_server(asyncio.Protocol, name):
        assert await answers(name)
    assert os.listdir(tmp_path) == []


async def test_a_directory_that_is_not_for_us_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    class Refusing(socket.socket):
        bind = refuse

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(PermissionError, match=r"Permission denied: .*/socket'"):
        await create_unix_server(asyncio.Protocol, str(tmp_path / "socket"))


# -- the end ----------------------------------------------------------------------------------------


async def test_the_file_is_removed_on_close_also_from_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = await create_unix_server(asyncio.Protocol, "socket")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    server.close()
    assert not (tmp_path / "socket").exists()


async def test_the_file_of_a_successor_is_left_alone(path):
    server = await create_unix_server(asyncio.Protocol, path)
    os.unlink(path)
    async with await create_unix_server(asyncio.Protocol, path):
        server.close()
        assert await answers(path)


async def test_a_file_that_has_gone_is_not_missed(path):
    server = await create_unix_server(asyncio.Protocol, path)
    os.unlink(path)
    server.close()


async def test_the_file_stays_when_that_is_asked_for(path):
    (await create_unix_server(asyncio.Protocol, path, cleanup_socket=False)).close()
    assert stat.S_ISSOCK(os.lstat(path).st_mode)


@pytest.mark.parametrize("cleanup", [True, False])
async def test_the_file_of_a_given_socket_is_treated_the_same(path, cleanup):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    async with await create_unix_server(asyncio.Protocol, sock=sock, cleanup_socket=cleanup):
        assert await answers(path)
    assert os.path.lexists(path) is not cleanup


async def test_a_given_socket_without_a_file_is_served(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    os.unlink(path)
    (await create_unix_server(asyncio.Protocol, sock=sock)).close()


async def test_a_server_that_cannot_start_leaves_no_file(path, monkeypatch):
    class Unwilling(socket.socket):
        def listen(self, backlog=0):
            raise OSError(errno.ENOBUFS, "not now")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Unwilling)
        with pytest.raises(OSError, match="not now"):
            await create_unix_server(asyncio.Protocol, path)
    assert not os.path.lexists(path)


# -- dialling ---------------------------------------------------------------------------------------


async def test_a_server_whose_backlog_is_full_is_waited_for(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first = await open_unix_connection(path)
        dialling = asyncio.ensure_future(open_unix_connection(path))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not dialling.done()
        accepted = [listener.accept()[0]]
        second = await dialling
        accepted.append(listener.accept()[0])
        second[1].write(b"hello")
        assert accepted[1].recv(10) == b"hello"
        for end in accepted:
            end.close()
        for _, writer in (first, second):
            writer.close()
            await writer.wait_closed()


async def test_waiting_for_a_full_backlog_can_be_cancelled(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        transport, _ = await create_unix_connection(asyncio.Protocol, path)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(create_unix_connection(asyncio.Protocol, path), 0.03)
        transport.abort()
        await transport.aclose()
