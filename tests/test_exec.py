"""Programs as byte streams: one transport on the standard input and output of each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from child_checks import children, no_child_is_left, until  # noqa: F401 - a fixture
from hypothesis import example, given
from hypothesis import strategies as st
from process_makers import descriptor_of
from relay_ends import Quiet

from fdtransport import (
    ExecTransport,
    PtyProcessTransport,
    connect_exec,
    connect_url,
    open_exec,
    open_url,
    relay,
)
from fdtransport.endpoints import parse_url
from fdtransport.testing import (
    FarEnd,
    Features,
    Promise,
    RecordingProtocol,
    check_run_exit,
    descriptors,
    stream_promises,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")
MIB = 1 << 20


# -- the contract ------------------------------------------------------------------------------------


class Streams:
    """The two pipes of a program that has gone and left their far ends here."""

    features = Features()

    async def __call__(self, protocol_factory: Callable[[], Any]) -> tuple[Any, FarEnd]:
        transport, _ = await connect_exec(protocol_factory, "sleep", "60", linger=None)
        far = FarEnd((descriptor_of(transport.pid, 0), descriptor_of(transport.pid, 1)))
        transport.kill()
        await transport.wait()
        return transport, far


#: Where a program differs: that it wants no more of its input is no error, and does not end its output.
OTHERWISE = {
    "a_write_error_is_told_once_with_its_errno",
    "a_failed_write_is_told_once_with_its_errno",
    "what_is_readable_is_delivered_before_a_failed_write_is_told",
}


@pytest.mark.parametrize(
    "promise", [one for one in stream_promises(Streams.features) if one.name not in OTHERWISE], ids=str
)
async def test_contract(promise: Promise) -> None:
    assert await promise.run(Streams())


def test_a_run_that_ends_in_the_middle_leaves_nothing() -> None:
    check_run_exit(Streams())


# -- both directions ---------------------------------------------------------------------------------


async def output_of(*command: str, **options: Any) -> tuple[bytes, int]:
    reader, writer = await open_exec(*command, **options)
    return await reader.read(), await writer.transport.finish()  # type: ignore[attr-defined]


async def test_what_is_written_is_its_input_and_what_it_prints_is_read() -> None:
    reader, writer = await open_exec("tr", "a-z", "A-Z")
    writer.write(b"hello")
    assert writer.can_write_eof()
    writer.write_eof()
    assert await reader.read() == b"HELLO"
    assert await writer.transport.finish() == 0  # type: ignore[attr-defined]


async def test_the_end_of_the_input_leaves_the_output_open() -> None:
    transport, protocol = await connect_exec(RecordingProtocol, "sh", "-c", "cat >&2; echo all; exit 3",
                                             stderr=subprocess.DEVNULL)  # fmt: skip
    transport.write_eof()
    await until(lambda: protocol.lost)
    assert protocol.events[1:] == [("data", b"all\n"), ("eof", None), ("lost", None)]
    assert await transport.wait() == transport.returncode == 3


async def test_input_that_it_does_not_want_is_no_error_and_its_output_goes_on() -> None:
    script = "trap 'echo late; exit 5' USR1; exec <&-; echo closed; while :; do sleep 0.05; done"
    reader, writer = await open_exec("sh", "-c", script)
    assert await reader.readline() == b"closed\n"
    for _ in range(10):
        writer.write(bytes(100_000))
        await writer.drain()
    os.kill(writer.transport.pid, signal.SIGUSR1)
    assert await reader.read() == b"late\n"
    assert await writer.transport.finish() == 5  # type: ignore[attr-defined]
    await writer.wait_closed()


async def test_what_is_queued_for_it_when_it_ends_holds_nobody() -> None:
    transport, protocol = await connect_exec(RecordingProtocol, "sh", "-c", "read x; exit 4")
    transport.write(b"x\n" + bytes(MIB))
    with contextlib.suppress(ConnectionResetError):  # not if it had ended before the rest was queued
        await transport.flushed()
    await until(lambda: protocol.lost)
    assert protocol.events[-1] == ("lost", None)
    assert transport.returncode == 4


async def test_it_may_end_its_output_and_read_on(tmp_path: Any) -> None:
    out = tmp_path / "out"
    reader, writer = await open_exec("sh", "-c", "exec >&-; cat >$0; exit 6", str(out))
    assert await reader.read() == b""
    writer.write(b"after the end")
    assert await writer.transport.finish(0.1) == 6  # type: ignore[attr-defined]
    assert out.read_bytes() == b"after the end"


async def test_a_process_in_the_background_does_not_hold_the_end_unless_asked_for() -> None:
    began = asyncio.get_running_loop().time()
    assert await output_of("sh", "-c", "sleep 30 & echo now; exit 7") == (b"now\n", 7)
    assert asyncio.get_running_loop().time() - began < 20
    late = "(exec sh -c 'while kill -0 $0; do :; done; echo late' $$ 2>&-) & echo now"
    assert await output_of("sh", "-c", late, linger=None) == (b"now\nlate\n", 0)


async def test_all_of_its_output_comes_before_its_end() -> None:
    output, code = await output_of("sh", "-c", f"head -c {3 * MIB} /dev/zero; exit 9")
    assert (len(output), code) == (3 * MIB, 9)


async def test_its_output_waits_while_reading_is_paused() -> None:
    class Paused(RecordingProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    transport, protocol = await connect_exec(Paused, "echo", "paused")
    assert await transport.wait() == 0
    await asyncio.sleep(0)
    assert [event for event, _ in protocol.events] == ["made"]
    transport.resume_reading()
    await until(lambda: protocol.lost)
    assert protocol.events[1] == ("data", b"paused\n")


# -- the program and its end -------------------------------------------------------------------------


async def test_a_program_that_loses_its_reader_is_ended_step_by_step() -> None:
    transport, protocol = await connect_exec(RecordingProtocol, "sh", "-c", "trap '' TERM; echo; read x; "
                                             "while :; do sleep 0.01; done")  # fmt: skip
    await until(lambda: len(protocol.events) > 1)
    assert await transport.finish(0.05) == -signal.SIGKILL
    transport, _ = await connect_exec(RecordingProtocol, "sleep", "60")
    assert await transport.finish(0.01) == -signal.SIGTERM
    assert repr(transport).startswith("<ExecTransport closed")


async def test_a_terminal_is_hung_up_first() -> None:
    transport, _ = await connect_url(RecordingProtocol, "exec:sleep 60?pty")
    assert await transport.finish() == -signal.SIGHUP


async def test_it_can_be_signalled_and_asked() -> None:
    transport, protocol = await connect_exec(RecordingProtocol, "sleep", "60")
    assert transport.get_extra_info("pid") == transport.pid > 0
    assert transport.returncode is None
    transport.kill()
    assert await transport.wait() == -signal.SIGKILL
    await until(lambda: protocol.lost)
    with pytest.raises(ProcessLookupError):
        transport.kill()
    assert await transport.terminate() == -signal.SIGKILL


async def test_one_direction_alone(tmp_path: Any) -> None:
    reader, writer = await open_exec("cat", mode="r")
    assert await reader.read() == b""
    assert await writer.transport.finish() == 0  # type: ignore[attr-defined]
    transport, _ = await connect_exec(asyncio.Protocol, "sh", "-c", "cat >$0; exit 2", str(tmp_path / "out"),
                                      mode="w")  # fmt: skip
    transport.write(b"there")
    with pytest.raises(NotImplementedError):
        transport.pause_reading()
    assert await transport.finish(0.01) == 2
    assert (tmp_path / "out").read_bytes() == b"there"


async def test_its_errors_go_where_they_are_to() -> None:
    command = ("sh", "-c", "echo out; echo error >&2")
    assert await output_of(*command, stderr=subprocess.STDOUT) == (b"out\nerror\n", 0)
    assert await output_of(*command, stderr=subprocess.DEVNULL) == (b"out\n", 0)
    reading, writing = os.pipe()
    assert await output_of(*command, stderr=writing) == (b"out\n", 0)
    assert os.read(reading, 100) == b"error\n"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("program", "options", "error"),
    [
        ("/no/such/program", {}, FileNotFoundError),
        ("/", {}, PermissionError),
        ("cat", {"cwd": "/no/such/directory"}, FileNotFoundError),
        ("cat", {"mode": "x"}, ValueError),
        ("cat", {"stderr": subprocess.PIPE}, ValueError),
        ("cat", {"stderr": "r"}, ValueError),
        ("cat", {"linger": -1}, ValueError),
        ("cat\0", {}, ValueError),
        ("cat", {"user": "no such user"}, ValueError),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_nothing(program: str, options: Any, error: Any) -> None:
    before = descriptors()
    with pytest.raises(error):
        await connect_exec(asyncio.Protocol, program, **options)
    assert descriptors() == before


async def test_cancelled_while_it_begins_it_leaves_nothing() -> None:
    none = children()
    task = asyncio.ensure_future(connect_exec(asyncio.Protocol, "sleep", "60"))
    await asyncio.sleep(0)  # it has started, and connection_made has not come
    assert children() > none
    before = descriptors()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: children() == none)
    assert len(descriptors()) == len(before) - 3  # two pipes and a pidfd


async def test_in_a_relay_it_is_spliced(tmp_path: Any) -> None:
    source, _ = await connect_exec(Quiet, "head", "-c", str(8 * MIB), "/dev/zero", mode="r")
    out = tmp_path / "out"
    sink, _ = await connect_exec(asyncio.Protocol, "sh", "-c", "wc -c >$0", str(out), mode="w")
    result = await relay(source, sink)
    assert (result.a_to_b.bytes, result.a_to_b.engine, result.error) == (8 * MIB, "splice", None)
    assert (await source.finish(), await sink.finish()) == (0, 0)
    assert int(out.read_text()) == 8 * MIB


# -- by URL ------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
@example(["a?b#c%d", "", "e f", "'\"\\'", "\n"])
def test_any_words_arrive_that_are_quoted_for_a_shell_and_then_for_a_url(words: list[str]) -> None:
    words = ["./" + words[0], *words[1:]]
    assert parse_url("exec:" + quote(shlex.join(words))).target == words


async def said(url: str) -> bytes:
    reader, writer = await open_url(url)
    output = await reader.read()
    assert await writer.transport.finish() == 0  # type: ignore[attr-defined]
    return output


async def test_a_question_mark_is_written_in_hexadecimal() -> None:
    assert await said("exec:echo 'what%3F' 100%25?stderr=null") == b"what? 100%\n"


async def test_there_is_no_shell_unless_it_is_asked_for() -> None:
    assert await said("exec:echo $HOME * | cat") == b"$HOME * | cat\n"
    assert await said("shell:echo $((6*7)) | cat") == b"42\n"


async def test_it_runs_in_the_directory_that_is_named(tmp_path: Any) -> None:
    assert await said(f"exec:pwd?cwd={quote(str(tmp_path))}") == os.fsencode(tmp_path.resolve()) + b"\n"


async def test_a_terminal_has_the_size_that_was_asked_for_and_another_one_later() -> None:
    reader, writer = await open_url("exec:sh -c 'stty size; read x; stty size'?pty&size=30x90")
    assert await reader.readline() == b"30 90\r\n"
    transport: Any = writer.transport
    assert isinstance(transport, PtyProcessTransport)
    transport.resize(31, 91)
    writer.write(b"\n")
    assert (await reader.read()).endswith(b"31 91\r\n")
    assert await transport.finish() == 0


async def test_what_cannot_be_started_is_named() -> None:
    for url, says in (
        ("exec:/no/such/program", "the program '/no/such/program'"),
        ("exec:cat?cwd=/no/such/place", "the directory '/no/such/place'"),
        ("exec:/no/such/program?pty", "the program '/no/such/program'"),
        ("exec:cat?pty&cwd=/no/such/place", "the directory '/no/such/place'"),
    ):
        with pytest.raises(FileNotFoundError, match=says):
            await connect_url(asyncio.Protocol, url)


async def test_by_url_it_is_an_exec_transport() -> None:
    transport, _ = await connect_url(asyncio.Protocol, "exec:cat")
    assert isinstance(transport, ExecTransport)
    assert await transport.finish() == 0


@pytest.mark.parametrize("how", ["exec <&-; sleep 0.2", "exit 0", "kill -9 $$"])
async def test_a_source_that_never_waits_ends_with_the_program_and_lets_the_loop_turn(how: str) -> None:
    async def source() -> Any:
        while True:
            yield bytes(1000)

    transport, protocol = await connect_exec(RecordingProtocol, "sh", "-c", how)
    with pytest.raises(ConnectionError):
        await transport.write_from(source())
    await until(lambda: protocol.lost)
    await transport.wait()


@pytest.mark.parametrize("how", ["exec <&-; sleep 0.2", "sleep 0.1; kill -9 $$"])
async def test_a_file_for_a_program_that_takes_no_more_ends_with_an_error(how: str, tmp_path: Any) -> None:
    with open(tmp_path / "file", "w+b") as file:  # noqa: ASYNC230
        file.truncate(8 << 20)
        transport, protocol = await connect_exec(RecordingProtocol, "sh", "-c", how)
        with pytest.raises(ConnectionError):
            await transport.sendfile(file)
        await until(lambda: protocol.lost)
        await transport.wait()
