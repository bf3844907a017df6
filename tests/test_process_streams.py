"""Processes to be awaited: as asyncio's where it has them, and what it has not."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import tempfile
import threading
import warnings
from asyncio.subprocess import DEVNULL, PIPE, STDOUT

import pytest
from child_checks import children, no_child_is_left, until  # noqa: F401
from conftest import LOOPS

import fdtransport
from fdtransport import (
    OutputLimitError,
    Process,
    create_subprocess_exec,
    create_subprocess_shell,
    subprocess_exec,
)
from fdtransport.testing import pattern

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")


# -- side by side with asyncio: each tells what came of it


async def output_and_errors(library):
    process = await library.create_subprocess_exec("sh", "-c", "cat; echo oh >&2; exit 3", stdin=PIPE,
                                                   stdout=PIPE, stderr=PIPE)  # fmt: skip
    return await process.communicate(b"in"), process.returncode


async def errors_among_the_output(library):
    process = await library.create_subprocess_exec(
        "sh", "-c", "echo a; echo b >&2", stdout=PIPE, stderr=STDOUT
    )
    return await process.communicate(), process.stdin, process.stderr


async def nothing_to_read(library):
    process = await library.create_subprocess_exec("cat", stdin=DEVNULL, stdout=DEVNULL, stderr=None)
    return await process.communicate(), process.returncode


async def a_shell(library):
    process = await library.create_subprocess_shell("echo $((6 * 7)); exit 7", stdout=PIPE)
    return await process.stdout.readline(), await process.stdout.read(), await process.wait()


async def where_and_with_what(library):
    process = await library.create_subprocess_exec(
        "sh", "-c", "pwd; echo $A", stdout=PIPE, cwd="/usr", env={"A": "b", "PATH": os.defpath}
    )
    return await process.communicate()


async def line_by_line(library):
    process = await library.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    lines = []
    for number in range(3):
        process.stdin.write(b"line %d\n" % number)
        await process.stdin.drain()
        lines.append(await process.stdout.readline())
    process.stdin.close()
    await process.stdin.wait_closed()
    return lines, await process.stdout.read(), await process.wait()


async def more_than_a_line_may_have(library):
    process = await library.create_subprocess_exec("printf", "%080d\nrest", "1", stdout=PIPE, limit=40)
    try:
        await process.stdout.readline()
    except ValueError as exc:
        error = type(exc)
    return error, await process.wait(), len(await process.stdout.read()) in (0, 4, 85)


async def input_that_nobody_wants(library):
    process = await library.create_subprocess_exec("true", stdin=PIPE)
    return await process.communicate(bytes(1 << 20)), process.returncode


async def signals(library):
    codes = []
    for send in (
        lambda process: process.terminate(),
        lambda process: process.kill(),
        lambda process: process.send_signal(signal.SIGHUP),
    ):
        process = await library.create_subprocess_exec("sleep", "60")
        assert process.returncode is None
        send(process)
        codes.append((await process.wait(), process.returncode, await process.wait()))
    return codes


async def what_cannot_be_started(library):
    seen = []
    for argv, options in [
        (["/no/such"], {}),
        (["no-such-program"], {}),
        (["/etc/passwd"], {}),
        (["true"], {"cwd": "/no/such"}),
        (["true"], {"cwd": "/etc/passwd"}),
        (["a\0b"], {}),
        (["true"], {"env": {"a=b": ""}}),
        (["true", None], {}),
    ]:
        try:
            await library.create_subprocess_exec(*argv, **options)
        except (OSError, ValueError, TypeError) as exc:
            seen.append((type(exc), getattr(exc, "errno", 0), getattr(exc, "filename", None)))
    return seen


async def a_descriptor_of_the_callers(library):
    read, write = os.pipe()
    process = await library.create_subprocess_exec("echo", "here", stdout=write)
    os.close(write)
    await process.wait()
    with open(read, "rb") as file:  # noqa: ASYNC230
        return file.read(), process.stdout


async def another_program_under_the_name(library):
    process = await library.create_subprocess_exec("me", "-c", "echo $0", executable="/bin/sh", stdout=PIPE)
    return await process.communicate()


async def a_session_of_its_own(library):
    process = await library.create_subprocess_exec("cat", stdin=PIPE, start_new_session=True)
    leads = os.getsid(process.pid) == process.pid == os.getpgid(process.pid)
    await process.communicate(b"")
    return leads


SCENES = [
    output_and_errors, errors_among_the_output, nothing_to_read, a_shell, where_and_with_what, line_by_line,
    more_than_a_line_may_have, input_that_nobody_wants, signals, what_cannot_be_started,
    a_descriptor_of_the_callers, another_program_under_the_name, a_session_of_its_own,
]  # fmt: skip


def on_asyncio(scene):
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(scene(asyncio))


@pytest.mark.parametrize("scene", SCENES)
async def test_side_by_side_with_asyncio(scene):
    async with asyncio.timeout(20):
        theirs = await asyncio.to_thread(on_asyncio, scene)  # uvloop's differ in errors and names
        ours = await scene(fdtransport)
    assert ours == theirs


async def test_a_process_is_one_of_asyncios():
    async with await create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE) as process:
        assert isinstance(process, Process)
        assert isinstance(process, asyncio.subprocess.Process)
        assert isinstance(process.stdin, asyncio.StreamWriter)
        assert isinstance(process.stdout, asyncio.StreamReader)
        assert process.stderr is None
        assert process.fds == {0: process.stdin, 1: process.stdout}
        assert process.transport.get_pid() == process.pid
        assert str(process.pid) in repr(process)


# -- waiting


async def test_wait_returns_though_output_is_unread_and_more_than_the_limits():
    process = await create_subprocess_exec("yes", stdout=PIPE)
    await process.stdout.readline()
    await asyncio.sleep(0.05)
    process.kill()
    async with asyncio.timeout(5):
        assert await process.wait() == -signal.SIGKILL
    assert (await process.stdout.read()).startswith(b"y\n")
    await process.wait_closed()


async def test_wait_does_not_wait_for_a_background_process_that_holds_the_output():
    async with await create_subprocess_shell(
        "exec 7<&0; cat <&7 & exit 4", stdin=PIPE, stdout=PIPE
    ) as process:
        async with asyncio.timeout(5):
            assert await process.wait() == 4
        process.stdin.write(b"still here\n")
        assert await process.stdout.readline() == b"still here\n"


async def test_output_that_nobody_reads_ends_by_itself():
    process = await create_subprocess_exec("echo", "hello", stdout=PIPE)
    async with asyncio.timeout(5):
        await process.wait_closed()
    assert await process.stdout.read() == b"hello\n"


async def test_a_process_that_nobody_holds_is_reaped_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process = await create_subprocess_exec("sh", "-c", "echo hello; read line", stdin=PIPE, stdout=PIPE)
        process.stdin.write(b"\n")
        pid = process.pid
        del process
        gc.collect()
        await until(lambda: pid not in children())
        await asyncio.sleep(0)
        gc.collect()


async def test_a_status_that_somebody_else_took_is_flagged():
    process = await create_subprocess_exec("sh", "-c", "read line; exit 3", stdin=PIPE)
    process.stdin.write(b"\n")
    os.waitpid(process.pid, 0)  # noqa: ASYNC222
    async with asyncio.timeout(5):
        assert await process.wait() == 255
    assert not process.status_known


async def test_the_ladder_ends_what_does_not_listen():
    process = await create_subprocess_exec(
        "bash", "-c", "trap '' TERM; echo; while :; do sleep 0.01; done", stdout=PIPE
    )
    await process.stdout.readline()
    async with asyncio.timeout(10):
        assert await process.terminate(grace=0.05) == -signal.SIGKILL
        assert await process.terminate() == -signal.SIGKILL
        await process.wait_closed()


# -- communicate


async def test_communicate_lingers_no_longer_than_asked_for():
    read, write = os.pipe()  # a background process lives until this is closed
    try:
        process = await create_subprocess_exec(
            "bash", "-c", "cat <&3 & echo said", fds={0: "w", 1: "r", 2: 2, 3: read}
        )
        async with asyncio.timeout(5):
            assert await process.communicate(linger=0.05) == (b"said\n", None)
            await process.wait_closed()
        process = await create_subprocess_exec(
            "bash", "-c", "cat <&3 & echo said", fds={0: "w", 1: "r", 2: 2, 3: read}
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await process.communicate()
        os.close(write)
        write = -1
        async with asyncio.timeout(5):
            assert await process.communicate() == (b"said\n", None)
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


async def test_communicate_takes_no_more_than_the_limit():
    process = await create_subprocess_exec("head", "-c", "100000", "/dev/zero", stdout=PIPE, stderr=PIPE)
    with pytest.raises(OutputLimitError, match="99999 bytes came from descriptor 1"):
        await process.communicate(limit=99_999)
    assert await process.communicate(limit=100_000) == (bytes(100_000), b"")
    async with await create_subprocess_exec("yes", stdout=PIPE) as process:
        with pytest.raises(OutputLimitError):
            await process.communicate(limit=1 << 20, linger=0)
        assert process.returncode is None


async def test_communicate_may_be_cancelled_and_called_again():
    async with await create_subprocess_exec(
        "sh", "-c", "echo one; read line; echo $line", stdin=PIPE, stdout=PIPE
    ) as process:
        first = asyncio.ensure_future(process.communicate(linger=1))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        reading = asyncio.ensure_future(process._read_to_end(1, process.stdout, None))
        await until(lambda: process._output.get(1))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async with asyncio.timeout(5):
            assert await process.communicate(b"two\n") == (b"one\ntwo\n", None)


@pytest.mark.parametrize("linger", [None, 0.0])
async def test_64_mib_go_through_cat(linger):
    data = pattern(64 << 20)
    process = await create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    async with asyncio.timeout(30):
        output, _ = await process.communicate(memoryview(data), linger=linger)
    assert output == data


async def test_communicate_refuses_what_makes_no_sense():
    async with await create_subprocess_exec("true") as process:
        with pytest.raises(ValueError, match="stdin"):
            await process.communicate(b"x")
        with pytest.raises(ValueError, match="limit"):
            await process.communicate(limit=-1)
        with pytest.raises(ValueError, match="linger"):
            await process.communicate(linger=-1)
        assert await process.communicate() == (None, None)


# -- descriptors


async def test_any_descriptor_has_streams_that_end_on_their_own():
    script = "cat <&0 >&1; exec >&-; cat <&3 >&3; exec 3>&-; cat <&4 >&5"
    process = await create_subprocess_exec(
        "sh", "-c", script, fds={0: "w", 1: "r", 2: 2, 3: "rw", 4: "w", 5: "r"}
    )
    async with asyncio.timeout(10):
        reader, writer = process.fds[3]
        writer.write(b"both ways\n")  # waits in the kernel for its turn
        process.stdin.write(b"in and out")
        process.stdin.close()
        assert await process.stdout.read() == b"in and out"
        assert await reader.readline() == b"both ways\n"
        writer.write_eof()
        assert await reader.read() == b""
        process.fds[4].write(b"last")
        process.fds[4].write_eof()
        assert await process.fds[5].read() == b"last"
        assert await process.wait() == 0
        await process.wait_closed()


async def test_a_socket_ends_with_its_process_whichever_side_ended_first():
    ends_first = "import socket, sys; s = socket.socket(fileno=0); s.shutdown(1); s.recv(9); sys.exit(5)"
    for argv in (["cat"], [sys.executable, "-c", ends_first]):
        for wait_for_the_end in (True, False):
            process = await create_subprocess_exec(*argv, fds={0: "rw", 1: DEVNULL, 2: 2})
            async with asyncio.timeout(10):
                reader, writer = process.fds[0]
                if wait_for_the_end and len(argv) > 1:
                    assert await reader.read() == b""
                writer.write_eof()
                await process.wait_closed()
                assert await reader.read() == b""


async def test_writing_to_a_process_that_has_gone_is_a_broken_pipe():
    for unread in (0, 1 << 20):
        process = await create_subprocess_exec("sh", "-c", "read line", stdin=PIPE)
        process.stdin.write(b"\n" + bytes(unread))
        async with asyncio.timeout(5):
            await process.wait_closed()
        with pytest.raises(BrokenPipeError):
            await process.stdin.drain()
        process.stdin.write(b"more")
        with pytest.raises(BrokenPipeError):
            await process.stdin.drain()


async def test_options_reach_the_process(tmp_path):
    process = await create_subprocess_exec(
        "pwd", stdout=PIPE, cwd=tmp_path, process_group=0, pipe_size=1 << 17
    )
    assert (await process.communicate())[0] == os.fsencode(tmp_path) + b"\n"
    with pytest.raises(ValueError, match="limit"):
        await create_subprocess_exec("true", limit=0)
    with pytest.raises(ValueError, match="twice"):
        await create_subprocess_exec("true", stdin=PIPE, fds={0: "w"})
    with pytest.raises(TypeError, match="separate"):
        await create_subprocess_shell(["true"])


#: What asyncio's functions take and do nothing with.
IDLE = {
    "bufsize": 0, "close_fds": True, "encoding": None, "errors": None, "pipesize": -1, "preexec_fn": None,
    "restore_signals": True, "text": False, "umask": -1, "universal_newlines": False, "shell": False,
}  # fmt: skip


async def test_what_programs_say_to_asyncio_without_need_may_be_said_here():
    process = await create_subprocess_exec("true", **IDLE)
    assert await process.wait() == 0
    transport, _ = await subprocess_exec(asyncio.SubprocessProtocol, "true", **IDLE)
    await transport.wait_closed()


@pytest.mark.parametrize(
    ("option", "value", "error", "match"),
    [
        ("preexec_fn", print, ValueError, "cannot have preexec_fn=.*: nothing is forked"),
        ("text", True, ValueError, "cannot have text=True: streams are of bytes"),
        ("close_fds", False, ValueError, "descriptors of fds"),
        ("pipesize", 4096, ValueError, "pipe_size"),
        ("check", True, TypeError, "unexpected keyword argument 'check'"),
    ],
)
async def test_what_cannot_be_had_is_told_by_the_function_that_was_called(option, value, error, match):
    options = {option: value}
    with pytest.raises(error, match=rf"^create_subprocess_exec\(\) .*{match}"):
        await create_subprocess_exec("true", **options)
    with pytest.raises(error, match=rf"^create_subprocess_shell\(\) .*{match}"):
        await create_subprocess_shell("true", **options)
    with pytest.raises(error, match=rf"^subprocess_exec\(\) .*{match}"):
        await subprocess_exec(asyncio.SubprocessProtocol, "true", **options)


async def test_a_descriptor_is_passed_under_its_own_number():
    with tempfile.TemporaryFile() as file:
        number = file.fileno()
        line = f"echo told >/proc/self/fd/{number}"
        process = await create_subprocess_exec("sh", "-c", line, pass_fds=[number])
        assert await process.wait() == 0
        file.seek(0)
        assert file.read() == b"told\n"


@pytest.mark.parametrize("kind", LOOPS)
def test_processes_in_threads_are_independent(kind):
    failed = []

    async def several(name):
        for turn in range(5):
            data = b"%d %d" % (name, turn) * 1000
            process = await create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
            assert await process.communicate(data) == (data, None)

    def work(name):
        try:
            with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
                runner.run(several(name))
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
