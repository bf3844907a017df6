"""A user's terminal, with job control: however the program that was attached to it ends, it is as before."""

from __future__ import annotations

import signal
import sys

import pytest
from terminal_jobs import ATTACHED, PATIENCE, PRELUDE, job, loop_name, shell

from fdtransport.testing.observe import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfds")


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
    async with shell(sys.executable, "-c", PRELUDE + program, loop_name()) as one:
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
