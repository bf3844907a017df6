"""Processes and the order of what their protocols are told."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest
from child_checks import children, no_child_is_left, until  # noqa: F401
from conftest import LOOPS

from fdtransport import CloseReason, ProcessTransport, UnixTransport, subprocess_exec, subprocess_shell
from fdtransport.testing import FaultPlan, idle_cost, pattern

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")

DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT


class Events(asyncio.SubprocessProtocol):
    """What a protocol was told, data joined per descriptor."""

    def __init__(self):
        self.events = []
        self.data = {}
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("made")

    def pipe_data_received(self, fd, data):
        if fd not in self.data:
            self.events.append(f"data {fd}")
        self.data[fd] = self.data.get(fd, b"") + data

    def pipe_connection_lost(self, fd, exc):
        self.events.append(f"lost {fd}" if exc is None else f"lost {fd} {type(exc).__name__}")

    def process_exited(self):
        self.events.append("exited")

    def connection_lost(self, exc):
        self.events.append(f"lost {exc}")


class Early(Events):
    def early_exit(self, returncode):
        self.events.append(f"early {returncode}")


async def run(*argv, factory=Events, **options):
    transport, protocol = await subprocess_exec(factory, *argv, **options)
    async with asyncio.timeout(20):
        await transport.wait_closed()
    return transport, protocol


# -- what is told, in which order


async def test_data_then_ends_then_exit_then_loss():
    for _ in range(20):
        transport, protocol = await run("sh", "-c", "echo out; echo err >&2; echo three >&3; exit 5",
                                        fds={0: DEVNULL, 1: "r", 2: "r", 3: "r"})  # fmt: skip
        events = protocol.events
        assert protocol.data == {1: b"out\n", 2: b"err\n", 3: b"three\n"}
        assert events[0] == "made"
        assert events[-2:] == ["exited", "lost None"]
        assert sorted(events[1:-2]) == ["data 1", "data 2", "data 3", "lost 1", "lost 2", "lost 3"]
        assert all(events.index(f"data {n}") < events.index(f"lost {n}") for n in (1, 2, 3))
        assert transport.get_returncode() == 5
        assert transport.close_reason is CloseReason.PEER


async def test_the_exit_is_known_at_once_and_told_after_the_output():
    """A background process holds the output for as long as its input is open."""
    transport, protocol = await subprocess_exec(
        Early, "bash", "-c", "cat <&0 >&1 & echo one; exit 3", stderr=None
    )
    async with asyncio.timeout(10):
        assert await transport.wait() == 3
    await until(lambda: "early 3" in protocol.events)
    assert "exited" not in protocol.events
    assert transport.get_returncode() == 3
    transport.get_pipe_transport(0).write(b"two\n")
    transport.get_pipe_transport(0).write_eof()
    async with asyncio.timeout(10):
        await transport.wait_closed()
    assert protocol.data == {1: b"one\ntwo\n"}
    assert protocol.events[-3:] == ["lost 1", "exited", "lost None"]


@pytest.mark.parametrize("linger", [0, 0.02])
async def test_linger_ends_what_somebody_else_holds(linger):
    data = pattern(60_000)
    code = f"import os, sys; os.write(1, sys.stdin.buffer.read({len(data)})); os.fork() or os.read(5, 1)"
    read, write = os.pipe()
    try:
        fds = {0: "w", 1: "r", 2: 2, 5: read}
        transport, protocol = await subprocess_exec(
            Events, sys.executable, "-c", code, fds=fds, linger=linger
        )
        transport.get_pipe_transport(0).write(data)
        async with asyncio.timeout(10):
            await transport.wait_closed()
    finally:
        os.close(read)
        os.close(write)
    assert protocol.data == {1: data}
    assert protocol.events[-3:] in (["lost 0", "exited", "lost None"], ["lost 1", "exited", "lost None"])


async def test_a_paused_descriptor_holds_the_events_back_and_not_the_exit():
    class Pauses(Events):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.get_pipe_transport(1).pause_reading()

    transport, protocol = await subprocess_exec(Pauses, "echo", "hello", fds={1: "r"})
    async with asyncio.timeout(10):
        assert await transport.wait() == 0
    await asyncio.sleep(0.01)
    assert protocol.events == ["made"]
    transport.get_pipe_transport(1).resume_reading()
    await transport.wait_closed()
    assert protocol.events == ["made", "data 1", "lost 1", "exited", "lost None"]
    assert protocol.data == {1: b"hello\n"}


async def test_a_process_without_descriptors_of_ours_ends_too():
    transport, protocol = await run("true", fds={})
    assert protocol.events == ["made", "exited", "lost None"]
    assert transport.get_protocol() is None


async def test_a_callback_that_raises_is_reported_and_the_rest_is_told(reports):
    class Raises(Events):
        def process_exited(self):
            super().process_exited()
            raise RuntimeError("mine")

        def connection_made(self, transport):
            super().connection_made(transport)
            raise RuntimeError("mine")

    _, protocol = await run("true", fds={}, factory=Raises)
    assert protocol.events == ["made", "exited", "lost None"]
    assert [report["message"] for report in reports] == [
        "protocol.connection_made() failed", "protocol.process_exited() failed"
    ]  # fmt: skip


# -- descriptors


async def test_every_descriptor_has_a_transport_that_ends_on_its_own():
    script = "cat; echo - >&1; cat <&3 >&3; echo done >&4"
    transport, protocol = await subprocess_exec(
        Events, "sh", "-c", script, fds={0: "w", 1: "r", 2: 2, 3: "rw", 4: "r"}
    )
    assert transport.get_pipe_transport(2) is None
    assert isinstance(transport.get_pipe_transport(3), UnixTransport)
    transport.get_pipe_transport(0).write(b"first")
    transport.get_pipe_transport(0).write_eof()
    await until(lambda: protocol.data.get(1) == b"first-\n")
    assert "lost 0" in protocol.events
    transport.get_pipe_transport(3).write(b"second")
    transport.get_pipe_transport(3).write_eof()
    async with asyncio.timeout(10):
        await transport.wait_closed()
    assert protocol.data == {1: b"first-\n", 3: b"second", 4: b"done\n"}


async def test_a_socket_may_be_written_to_after_the_child_has_ended_its_direction():
    class Keeps(Events):
        def pipe_eof_received(self, fd):
            self.events.append(f"eof {fd}")
            return True

    code = "import os, socket; s = socket.socket(fileno=3); s.shutdown(1); os.write(1, s.recv(99))"
    transport, protocol = await subprocess_exec(
        Keeps, sys.executable, "-c", code, fds={1: "r", 2: 2, 3: "rw"}
    )
    await until(lambda: "eof 3" in protocol.events)
    transport.get_pipe_transport(3).write(b"late")
    async with asyncio.timeout(10):
        await transport.wait_closed()
    assert protocol.data == {1: b"late"}


async def test_the_child_has_what_was_asked_for_and_nothing_else():
    code = (
        "import os\n"
        "for n in sorted(os.listdir('/proc/self/fd'), key=int):\n"
        "    try: print(n, os.readlink(f'/proc/self/fd/{n}').partition(':')[0])\n"
        "    except OSError: pass\n"
    )
    loose = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(loose, True)
    try:
        fds = {0: DEVNULL, 1: "r", 2: STDOUT, 5: "rw", 9: loose, 12: "w"}
        _, protocol = await run(sys.executable, "-ISc", code, fds=fds)
    finally:
        os.close(loose)
    assert protocol.data[1].decode().splitlines() == [
        "0 /dev/null", "1 pipe", "2 pipe", "5 socket", "9 /dev/null", "12 pipe"
    ]  # fmt: skip


async def test_descriptors_of_the_callers_stay_the_callers(tmp_path):
    with open(tmp_path / "out", "w+b") as file:  # noqa: ASYNC230
        fd = file.fileno()
        before = os.get_blocking(fd), os.get_inheritable(fd)
        await run("sh", "-c", "echo a; echo b >&2", fds={1: file, 2: fd})
        assert (os.get_blocking(fd), os.get_inheritable(fd)) == before
        file.seek(0)
        assert file.read() == b"a\nb\n"


async def test_64_mib_go_through_cat_with_the_default_limits():
    size = 64 << 20
    data = memoryview(pattern(size))

    class Counts(Events):
        room = None
        most = size_seen = 0

        def connection_made(self, transport):
            super().connection_made(transport)
            self.room = asyncio.Event()
            self.room.set()

        def pause_writing(self):
            self.room.clear()

        def resume_writing(self):
            self.room.set()

        def pipe_data_received(self, fd, piece):
            assert piece == data[self.size_seen : self.size_seen + len(piece)]
            self.size_seen += len(piece)

    transport, protocol = await subprocess_exec(Counts, "cat", stderr=None)
    pipe = transport.get_pipe_transport(0)
    async with asyncio.timeout(30):
        for start in range(0, size, 1 << 18):
            await protocol.room.wait()
            pipe.write(data[start : start + (1 << 18)])
            assert pipe.get_write_buffer_size() <= (1 << 18) + (1 << 16)
        pipe.write_eof()
        await transport.wait_closed()
    assert protocol.size_seen == size
    assert transport.get_returncode() == 0


async def test_writing_is_paused_for_all_descriptors_together_or_for_each():
    class Together(Events):
        def pause_writing(self):
            self.events.append("pause")

        def resume_writing(self):
            self.events.append("resume")

    class Each(Together):
        def pipe_pause_writing(self, fd):
            self.events.append(f"pause {fd}")

        def pipe_resume_writing(self, fd):
            self.events.append(f"resume {fd}")

    for factory in (Together, Each):
        transport, protocol = await subprocess_exec(
            factory, "sh", "-c", "read line; cat <&3 >/dev/null & cat <&4 >/dev/null; wait",
            fds={0: "w", 3: "w", 4: "w", 2: 2},
        )  # fmt: skip
        for number in (3, 4):
            transport.get_pipe_transport(number).write(bytes(200_000))
        transport.get_pipe_transport(0).write(b"\n")
        for number in (3, 4):
            transport.get_pipe_transport(number).write_eof()
        async with asyncio.timeout(10):
            await transport.wait_closed()
        flow = [event for event in protocol.events if "pause" in event or "resume" in event]
        if factory is Together:
            assert flow == ["pause", "resume"]
        else:
            assert flow[:2] == ["pause 3", "pause 4"]
            assert sorted(flow[2:]) == ["resume 3", "resume 4"]


async def test_a_write_to_a_process_that_does_not_read_ends_that_descriptor_alone():
    transport, protocol = await subprocess_exec(
        Events, "sh", "-c", "exec <&-; echo closed; read line <&3; echo $line", fds={0: "w", 1: "r", 3: "w"}
    )
    await until(lambda: protocol.data)
    transport.get_pipe_transport(0).write(b"in vain")
    transport.get_pipe_transport(3).write(b"heard\n")
    async with asyncio.timeout(10):
        await transport.wait_closed()
    assert protocol.data == {1: b"closed\nheard\n"}
    assert protocol.events[-2:] == ["exited", "lost None"]


async def test_pipes_may_be_made_larger():
    transport, _ = await subprocess_exec(Events, "cat", pipe_size=1 << 18)
    assert transport.get_pipe_transport(1).get_extra_info("pipe_size") >= 1 << 18
    await transport.aclose()


# -- signals, ends


async def test_signals_and_statuses():
    for send, status in [
        (lambda transport: transport.terminate(), -signal.SIGTERM),
        (lambda transport: transport.kill(), -signal.SIGKILL),
        (lambda transport: transport.send_signal(signal.SIGUSR1), -signal.SIGUSR1),
    ]:
        transport, protocol = await subprocess_exec(Events, "sleep", "60", fds={})
        send(transport)
        async with asyncio.timeout(10):
            assert await transport.wait() == status
        await transport.wait_closed()
        assert protocol.events == ["made", "exited", "lost None"]
        with pytest.raises(ProcessLookupError):
            transport.kill()
        with pytest.raises(ProcessLookupError):
            transport.send_signal(signal.SIGUSR1)
        assert await transport.terminate() == status


async def test_the_ladder_is_climbed_until_the_process_ends():
    script = "trap 'echo int' INT; trap 'echo term' TERM; echo ready; while :; do sleep 0.01; done"
    transport, protocol = await subprocess_exec(Events, "bash", "-c", script, fds={1: "r"})
    await until(lambda: protocol.data)
    async with asyncio.timeout(10):
        code = await transport.terminate((signal.SIGINT, signal.SIGTERM, signal.SIGKILL), grace=0.1)
    assert code == -signal.SIGKILL
    await transport.wait_closed()
    assert protocol.data == {1: b"ready\nint\nterm\n"}


async def test_the_ladder_stops_where_the_process_does():
    transport, _ = await subprocess_exec(Events, "sleep", "60", fds={})
    async with asyncio.timeout(10):
        assert await transport.terminate(grace=60) == -signal.SIGTERM
    for ladder, grace in [((), 1), ((signal.SIGTERM,), -1)]:
        with pytest.raises(ValueError, match=r"ladder|grace"):
            transport.terminate(ladder, grace)


@pytest.mark.parametrize("how", ["close", "abort", "aclose"])
async def test_closing_kills_and_tells_the_end_once(how):
    transport, protocol = await subprocess_exec(Events, "cat", fds={0: "w", 1: "r"})
    for _ in range(3):
        if how == "aclose":
            await transport.aclose(10)
        else:
            getattr(transport, how)()
            assert transport.is_closing()
    transport.close()
    transport.abort()
    async with asyncio.timeout(10):
        await transport.wait_closed()
    assert transport.get_returncode() in (0, -signal.SIGKILL)  # cat may see its input end first
    assert protocol.events[0] == "made"
    assert sorted(protocol.events[1:3]) == ["lost 0", "lost 1"]
    assert protocol.events[3:] == ["exited", "lost None"]
    assert transport.close_reason is (CloseReason.ABORT if how == "abort" else CloseReason.LOCAL)


async def test_killing_does_not_wait_for_output_that_nobody_reads():
    transport, protocol = await subprocess_exec(Events, "yes", fds={1: "r"})
    await until(lambda: protocol.data)
    transport.get_pipe_transport(1).pause_reading()
    transport.kill()
    async with asyncio.timeout(10):
        assert await transport.wait() == -signal.SIGKILL
    await transport.aclose()


async def test_a_process_that_somebody_else_reaps_ends_and_the_status_is_flagged():
    transport, protocol = await subprocess_exec(Events, "sh", "-c", "read line; exit 3", fds={0: "w"})
    transport.get_pipe_transport(0).write(b"\n")
    os.waitpid(transport.get_pid(), 0)  # noqa: ASYNC222
    async with asyncio.timeout(10):
        await transport.wait_closed()
    assert transport.get_returncode() == 255
    assert not transport.status_known
    assert protocol.events == ["made", "lost 0", "exited", "lost None"]


async def test_waiting_may_be_cancelled_and_done_by_many():
    transport, _ = await subprocess_exec(Events, "cat", fds={0: "w", 1: DEVNULL})
    waiting = [asyncio.ensure_future(transport.wait()) for _ in range(3)]
    closing = [asyncio.ensure_future(transport.wait_closed()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    closing[1].cancel()
    transport.get_pipe_transport(0).write_eof()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*waiting, *closing, return_exceptions=True)
    assert [type(result) for result in results] == [
        int, asyncio.CancelledError, int, type(None), asyncio.CancelledError, type(None)
    ]  # fmt: skip


async def test_a_start_that_is_cancelled_leaves_no_process():
    before = children()
    started = asyncio.ensure_future(subprocess_exec(Events, "sleep", "60"))
    await asyncio.sleep(0)
    started.cancel()
    with pytest.raises(asyncio.CancelledError):
        await started
    assert children() == before


async def test_nothing_wakes_the_loop_while_a_process_has_nothing_to_say():
    transport, _ = await subprocess_exec(Events, "sleep", "60")
    cost = await idle_cost(0.1)
    assert cost.is_idle(0.05, 10), cost
    await transport.aclose()


def test_a_transport_that_outlives_its_loop_warns_kills_and_leaves_no_zombie(loop):
    async def start():
        return await subprocess_exec(Events, "sleep", "60", fds={})

    transport, _ = loop.run_until_complete(start())
    loop.close()
    del transport, _
    with pytest.warns(ResourceWarning, match="unclosed transport <ProcessTransport running"):
        gc.collect()


def test_a_run_that_ends_in_the_middle_leaves_no_process():
    async def start():
        transport, _ = await subprocess_exec(Events, "sleep", "60")
        transport.close()

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        asyncio.run(start())
        gc.collect()


# -- many, threads


async def test_a_thousand_children_leave_no_zombie_and_no_descriptor():
    before = children()

    async def one(number):
        async with room:
            _, protocol = await run("echo", str(number), fds={1: "r"})
            assert protocol.data == {1: b"%d\n" % number}
            assert protocol.events[-3:] == ["lost 1", "exited", "lost None"]

    room = asyncio.Semaphore(20)
    await asyncio.gather(*(one(number) for number in range(1000)))
    assert children() == before


@pytest.mark.parametrize("kind", LOOPS)
def test_loops_in_threads_start_processes_at_once_without_a_warning(kind):
    failed = []

    async def several(name):
        for turn in range(10):
            word = f"{name} {turn}"
            transport, protocol = await run("echo", word, fds={1: "r"}, cwd="/")
            assert protocol.data == {1: word.encode() + b"\n"}
            assert transport.get_returncode() == 0

    def work(name):
        loop = LOOPS[kind]()
        try:
            loop.run_until_complete(several(name))
        except BaseException as exc:
            failed.append(exc)
        finally:
            loop.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


# -- what is wrong


async def test_a_protocol_is_needed():
    with pytest.raises(TypeError, match="protocol"):
        await subprocess_exec(object, "true")


@pytest.mark.parametrize("name", ["pipe", "pidfd_open", "open", "fcntl", "set_blocking", "fstat"])
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_call_that_fails_at_the_start_is_the_callers_error_and_leaves_nothing(name, nth):
    before = children()
    with FaultPlan() as plan:
        plan.fail(name, nth, errno.EMFILE)
        try:
            transport, _ = await subprocess_exec(Events, "sleep", "60", stderr=DEVNULL)
        except OSError as exc:
            raised = exc.errno
        else:
            raised = errno.EMFILE  # it makes fewer such calls
            await transport.aclose()
    assert raised == errno.EMFILE
    await until(lambda: children() == before)


# -- shells


async def test_a_shell_runs_only_where_one_is_asked_for():
    _, protocol = await run("echo", "$HOME; exit 3")
    assert protocol.data == {1: b"$HOME; exit 3\n"}
    transport, protocol = await subprocess_shell(Events, "echo $((1 + 2)); exit 3")
    await transport.wait_closed()
    assert protocol.data == {1: b"3\n"}
    assert transport.get_returncode() == 3
    with pytest.raises(TypeError, match="separate arguments"):
        await subprocess_shell(Events, ["echo"])


async def test_the_transport_looks_like_asyncios():
    transport, protocol = await subprocess_exec(Events, "cat")
    assert isinstance(transport, asyncio.SubprocessTransport)
    assert isinstance(transport, ProcessTransport)
    assert transport.get_protocol() is protocol
    assert transport.get_returncode() is None
    assert str(transport.get_pid()) in repr(transport)
    other = Events()
    transport.set_protocol(other)
    transport.close_fd(0)
    with pytest.raises(ValueError, match="7"):
        transport.close_fd(7)
    async with asyncio.timeout(10):
        await transport.wait_closed()
    assert protocol.events == ["made"]
    assert other.events[-2:] == ["exited", "lost None"]
