"""inotify as a transport: events as the kernel tells them, and exactly which watches there are."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import subprocess
import sys
import textwrap
import weakref
from itertools import groupby
from pathlib import Path

import pytest
from storm import flood

from fdtransport import InotifyMask, InotifyProtocol, InotifyTransport, WatchEnd, connect_inotify
from fdtransport.errors import InotifyLimitError
from fdtransport.testing.observe import idle_cost, turns, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")

M = InotifyMask


class Seen(InotifyProtocol):
    """Writes down what it is told."""

    def __init__(self, on_event=None):
        self.events = []
        self.ends = []
        self.overflows = 0
        self.lost = None
        self.on_event = on_event

    def event_received(self, event):
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)

    def overflow_received(self):
        self.overflows += 1

    def watch_removed(self, watch, reason):
        self.ends.append((watch, reason))

    def connection_lost(self, exc):
        self.lost = [exc]

    @property
    def told(self):
        return [(str(event.flags), event.name) for event in self.events]


class Batches(Seen):
    def __init__(self):
        super().__init__()
        self.batches = []

    def events_received(self, events):
        self.batches.append(events)
        self.events += events


@pytest.fixture
async def seen():
    transport, protocol = await connect_inotify(Seen)
    protocol.transport = transport
    yield protocol
    transport.abort()
    await transport.aclose()


def touch(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


async def test_events_come_with_watch_mask_cookie_and_name(seen, tmp_path):
    watch = seen.transport.add_watch(tmp_path, M.CREATE | M.MOVE)
    touch(tmp_path / "a")
    os.rename(tmp_path / "a", tmp_path / "b")
    (tmp_path / "d").mkdir()
    await until(lambda: len(seen.events) == 4, lambda: str(seen.told))
    created, left, arrived, made = seen.events
    assert seen.told == [("CREATE", "a"), ("MOVED_FROM", "a"), ("MOVED_TO", "b"), ("CREATE|ISDIR", "d")]
    assert {event.watch for event in seen.events} == {watch}
    assert created.mask == M.CREATE
    assert created.flags is M.CREATE
    assert created.path == os.path.join(tmp_path, "a")
    assert created.as_path == tmp_path / "a"
    assert (created.cookie, created.is_dir, made.is_dir) == (0, False, True)
    assert left.cookie == arrived.cookie != 0


async def test_names_that_are_no_text_keep_their_bytes_and_bytes_give_bytes(seen, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    seen.transport.add_watch(tmp_path, M.CREATE)
    seen.transport.add_watch(os.fsencode(inner), M.CREATE)
    touch(os.fsencode(tmp_path) + b"/\xff")
    touch(os.fsencode(inner) + b"/\xff")
    await until(lambda: len(seen.events) == 2, "both")
    assert seen.events[0].path == os.path.join(tmp_path, "\udcff")
    assert seen.events[1].path == os.fsencode(inner) + b"/\xff"
    assert seen.events[1].as_path == inner / "\udcff"


async def test_a_protocol_with_events_received_gets_a_list_per_wakeup(tmp_path):
    transport, protocol = await connect_inotify(Batches)
    transport.add_watch(tmp_path, M.CREATE)
    for n in range(300):
        touch(tmp_path / str(n))
    await until(lambda: len(protocol.events) == 300, "all")
    assert len(protocol.batches) == 1
    transport.close()
    await transport.aclose()


async def test_the_descriptor_is_close_on_exec_and_waits_for_nobody(seen):
    fd = seen.transport.get_extra_info("fd")
    assert not os.get_inheritable(fd)
    assert not os.get_blocking(fd)


async def test_extra_info_tells_watches_limits_and_what_is_queued(seen, tmp_path):
    watch = seen.transport.add_watch(tmp_path, M.CREATE)
    assert seen.transport.get_extra_info("watches") == (watch,)
    limits = seen.transport.get_extra_info("limits")
    assert limits.max_queued_events > 0
    assert limits.max_user_watches > 0
    assert seen.transport.get_extra_info("queued_bytes") == 0
    touch(tmp_path / "a")
    assert seen.transport.get_extra_info("queued_bytes") == 32


# -- watches ---------------------------------------------------------------------------------------


async def test_a_removed_watch_tells_nothing_more_and_then_that_it_ended(seen, tmp_path):
    watch = seen.transport.add_watch(tmp_path, M.CREATE)
    touch(tmp_path / "a")
    watch.remove()
    watch.remove()
    assert not watch.active
    assert not seen.ends  # not from within the call
    await until(lambda: seen.ends, "the end")
    await turns()
    assert seen.ends == [(watch, WatchEnd.REMOVED)]
    assert not seen.events


async def test_a_watch_that_dies_ends_only_itself(seen, tmp_path):
    """Twisted closes them all."""
    gone, stays = tmp_path / "gone", tmp_path / "stays"
    gone.mkdir()
    stays.mkdir()
    dead = seen.transport.add_watch(gone, M.CREATE)
    living = seen.transport.add_watch(stays, M.CREATE)
    gone.rmdir()
    await until(lambda: seen.ends, "the end")
    assert seen.ends == [(dead, WatchEnd.DELETED)]
    touch(stays / "a")
    await until(lambda: seen.events, "an event of the other")
    assert seen.events[0].watch is living
    assert seen.transport.get_extra_info("watches") == (living,)


async def test_a_watched_thing_that_moves_ends_its_watch_because_the_path_is_not_true_any_more(
    seen, tmp_path
):
    old = tmp_path / "old"
    old.mkdir()
    watch = seen.transport.add_watch(old, M.CREATE)
    old.rename(tmp_path / "new")
    touch(tmp_path / "new" / "a")
    await until(lambda: seen.ends, "the end")
    assert seen.ends == [(watch, WatchEnd.MOVED)]
    assert not seen.events


async def test_a_watch_that_was_told_to_keep_to_what_moves_does(seen, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    watch = seen.transport.add_watch(old, M.CREATE | M.MOVE_SELF, keep_moved=True)
    old.rename(tmp_path / "new")
    touch(tmp_path / "new" / "a")
    await until(lambda: len(seen.events) == 2, "both")
    assert seen.told == [("MOVE_SELF", ""), ("CREATE", "a")]
    assert watch.active


async def test_a_watch_for_one_event_ends_after_it(seen, tmp_path):
    watch = seen.transport.add_watch(tmp_path, M.CREATE | M.ONESHOT)
    touch(tmp_path / "a")
    touch(tmp_path / "b")
    await until(lambda: seen.ends, "the end")
    assert seen.told == [("CREATE", "a")]
    assert seen.ends == [(watch, WatchEnd.ONCE)]


async def test_what_is_watched_already_is_never_silently_watched_in_another_way(seen, tmp_path):
    """By the kernel alone the new mask would replace the old one; Twisted ignores the new one."""
    watch = seen.transport.add_watch(tmp_path, M.CREATE)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for path in (tmp_path, link):
        with pytest.raises(FileExistsError, match="watched already") as caught:
            seen.transport.add_watch(path, M.DELETE)
        assert caught.value.errno == errno.EEXIST
        assert caught.value.filename == os.fspath(path)
    assert seen.transport.add_watch(link, M.DELETE | M.MASK_ADD) is watch
    assert watch.mask == M.CREATE | M.DELETE
    touch(tmp_path / "a")
    os.unlink(tmp_path / "a")
    await until(lambda: len(seen.events) == 3, "all of both masks")
    assert seen.told == [("CREATE", "link"), ("CREATE", "a"), ("DELETE", "a")]


async def test_what_cannot_be_watched_says_why(seen, tmp_path):
    touch(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path)
    add = seen.transport.add_watch
    with pytest.raises(FileNotFoundError) as caught:
        add(tmp_path / "nothing", M.CREATE)
    assert caught.value.filename == str(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError):
        add(tmp_path / "file", M.CREATE | M.ONLYDIR)
    with pytest.raises(NotADirectoryError):
        add(tmp_path / "link", M.CREATE | M.ONLYDIR | M.DONT_FOLLOW)
    with pytest.raises(ValueError, match="at least one event"):
        add(tmp_path, M.ONLYDIR)
    with pytest.raises(ValueError, match="embedded null"):
        add("a\0b", M.CREATE)
    seen.transport.close()
    with pytest.raises(OSError, match="has ended") as caught:
        add(tmp_path, M.CREATE)
    assert caught.value.errno == errno.EBADF


async def test_an_unlinked_file_that_is_open_is_watched_until_it_is_closed(seen, tmp_path):
    path = tmp_path / "file"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    watch = seen.transport.add_watch(path, M.MODIFY | M.DELETE_SELF | M.ATTRIB)
    path.unlink()
    os.write(fd, b"x")
    await until(lambda: len(seen.events) == 2, "the link count, the write")
    assert watch.active
    os.close(fd)
    await until(lambda: seen.ends, "the end")
    assert seen.told == [("ATTRIB", ""), ("MODIFY", ""), ("DELETE_SELF", "")]
    assert seen.ends == [(watch, WatchEnd.DELETED)]


# -- the queue -------------------------------------------------------------------------------------


async def test_an_overflow_is_told_and_the_watches_that_ended_meanwhile_are_found(seen, tmp_path):
    """The record of the end may be among those that were lost. Twisted drops the overflow itself."""
    gone = tmp_path / "gone"
    gone.mkdir()
    hot = seen.transport.add_watch(tmp_path, M.CREATE | M.DELETE)
    watch = seen.transport.add_watch(gone, M.CREATE)
    flood(str(tmp_path), 18000)
    gone.rmdir()
    await until(lambda: seen.ends, "the end", 20)
    assert seen.overflows == 1
    assert seen.ends == [(watch, WatchEnd.DELETED)]
    assert len(seen.events) == seen.transport.get_extra_info("limits").max_queued_events
    touch(tmp_path / "after")
    await until(lambda: seen.events[-1].name == "after", "that it goes on")
    assert hot.active


async def test_a_pause_holds_from_the_next_event_on_and_none_is_lost(tmp_path):
    protocol = Seen(lambda event: protocol.transport.pause_reading())
    protocol.transport, _ = await connect_inotify(lambda: protocol)
    watch = protocol.transport.add_watch(tmp_path, M.CREATE)
    for n in range(5):
        touch(tmp_path / str(n))
    for n in range(5):
        await until(lambda n=n: len(protocol.events) > n, "one more")
        await turns(5)
        assert protocol.told[n:] == [("CREATE", str(n))]
        if n == 3:
            watch.remove()  # what was read and not told is not told any more
            touch(tmp_path / "last")
            protocol.transport.resume_reading()
            await turns(5)
            break
        protocol.transport.resume_reading()
    assert len(protocol.events) == 4
    protocol.transport.close()
    await protocol.transport.aclose()


async def test_closing_in_the_midst_of_events_ends_them(tmp_path):
    protocol = Seen(lambda event: protocol.transport.close())
    protocol.transport, _ = await connect_inotify(lambda: protocol)
    protocol.transport.add_watch(tmp_path, M.CREATE)
    for n in range(5):
        touch(tmp_path / str(n))
    await until(lambda: protocol.lost, "the loss")
    assert protocol.told == [("CREATE", "0")]
    assert protocol.lost == [None]


async def test_an_exception_in_a_callback_is_reported_and_ends_the_transport_with_it(tmp_path, reports):
    def fail(_event):
        raise ZeroDivisionError

    protocol = Seen(fail)
    transport, _ = await connect_inotify(lambda: protocol)
    transport.add_watch(tmp_path, M.CREATE)
    touch(tmp_path / "a")
    touch(tmp_path / "b")
    await until(lambda: protocol.lost, "the loss")
    assert isinstance(protocol.lost[0], ZeroDivisionError)
    assert len(reports) == len(protocol.events) == 1
    assert reports[0]["transport"] is transport


async def test_an_exception_in_what_tells_of_a_watch_is_reported_and_the_transport_lives(
    seen, tmp_path, reports
):
    def fail(_watch, _reason):
        raise ZeroDivisionError

    seen.watch_removed = fail
    seen.transport.add_watch(tmp_path, M.CREATE).remove()
    await until(lambda: reports, "the report")
    assert not seen.transport.is_closing()


async def test_after_the_loss_it_lets_go_of_everything(tmp_path):
    transport, protocol = await connect_inotify(Seen)
    watch = transport.add_watch(tmp_path, M.CREATE)
    transport.close()
    await transport.aclose()
    assert not watch.active
    watch.remove()
    reference = weakref.ref(protocol)
    gc.disable()
    try:
        del protocol
        assert reference() is None
    finally:
        gc.enable()


async def test_detaching_gives_the_instance_back_with_its_watches(seen, tmp_path):
    transport, protocol = await connect_inotify(Seen)
    transport.add_watch(tmp_path, M.CREATE)
    fd = transport.detach().file
    touch(tmp_path / "a")
    assert len(os.read(fd, 4096)) == 32
    os.close(fd)
    await until(lambda: protocol.lost, "the loss")


async def test_what_is_no_instance_of_inotify_and_a_protocol_without_callbacks_are_refused():
    loop = asyncio.get_running_loop()
    read, write = os.pipe()
    with pytest.raises(ValueError, match="an inotify instance was expected"):
        InotifyTransport(loop, read, Seen())
    os.close(read)
    os.close(write)
    with pytest.raises(TypeError, match="event_received"):
        await connect_inotify(asyncio.Protocol)


# -- against inotifywait ---------------------------------------------------------------------------


def various(path: Path) -> None:
    """All that the kernel has a name for."""
    file = path / "file"
    file.write_text("text")
    file.write_text("another")
    file.read_text()
    file.chmod(0o600)
    os.utime(file)
    os.link(file, path / "hard")
    (path / "soft").symlink_to("file")
    file.rename(path / "renamed")
    (path / "renamed").replace(path / "hard2")
    (path / "directory").mkdir()
    touch(path / "directory" / "inner")
    (path / "directory").chmod(0o700)
    (path / "directory").rename(path / "dir2")
    list((path / "dir2").iterdir())
    (path / "hard").rename(path / "dir2" / "hard")
    (path / "dir2" / "hard").rename(path / "back")
    os.truncate(path / "back", 1)
    (path / "soft").unlink()
    shutil.rmtree(path / "dir2")
    (path / "back").unlink()
    list(path.iterdir())
    path.chmod(0o755)
    (path / "end").mkdir()


@pytest.mark.skipif(not shutil.which("inotifywait"), reason="needs inotifywait of inotify-tools")
async def test_a_watch_tells_what_inotifywait_tells(seen, tmp_path):
    process = await asyncio.create_subprocess_exec(
        "inotifywait", "-m", "--format", "%e\t%f", tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while b"Watches established" not in await process.stderr.readline():
        pass
    seen.transport.add_watch(tmp_path, M.ALL_EVENTS, keep_moved=True)
    various(tmp_path)
    lines = []
    while not lines or not lines[-1].endswith("\tend\n"):
        lines.append((await process.stdout.readline()).decode())
    process.terminate()
    await process.communicate()
    # It adds the name of the group CLOSE.
    theirs = [(e.split(","), n.rstrip("\n")) for e, n in (line.split("\t") for line in lines)]
    theirs = [({name for name in names if name != "CLOSE"}, name) for names, name in theirs]
    await until(lambda: seen.events[-1].name == "end", "the last")
    ours = [
        ({"CLOSE_NOWRITE" if f is M.CLOSE_NOWRITE else f.name for f in event.flags}, event.name)
        for event in seen.events
    ]
    # Equal ones are one as long as nobody has read the first.
    ours, theirs = ([each for each, _ in groupby(events)] for events in (ours, theirs))
    assert ours == theirs
    assert len(ours) > 35


# -- limits ----------------------------------------------------------------------------------------

LIMITED = """
import asyncio, os, sys
sys.path[:0] = {path!r}
from fdtransport import *
M = InotifyMask

def limit(name, value):
    with open(f"/proc/sys/user/{{name}}", "w") as file:
        file.write(str(value))

async def main():
    directory = {directory!r}
{body}

asyncio.run(main())
"""


def in_a_user_namespace(body: str, directory: Path) -> str:
    """Run *body* where limits can be set without touching the machine's."""
    program = LIMITED.format(
        path=[str(Path(__file__).parents[1])], directory=str(directory), body=textwrap.indent(body, "    ")
    )
    unshare = ["unshare", "-Urm", sys.executable, "-c", program]
    done = subprocess.run(unshare, capture_output=True, text=True, timeout=50, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_limit_of_watches_is_told_by_name_with_the_way_out_and_the_rest_goes_on(tmp_path):
    for n in range(6):
        (tmp_path / str(n)).mkdir()
    out = in_a_user_namespace(
        """\
limit("max_inotify_watches", 5)
class P(InotifyProtocol):
    def event_received(self, event):
        done.set_result(event.name)
done = asyncio.get_running_loop().create_future()
transport, _ = await connect_inotify(P)
watches = [transport.add_watch(f"{directory}/{n}", M.CREATE) for n in range(5)]
try:
    transport.add_watch(f"{directory}/5", M.CREATE)
except InotifyLimitError as exc:
    print(exc.errno, exc.limit, exc.value, exc.used, exc.filename, exc.remedy)
    print(exc)
watches[0].remove()
transport.add_watch(f"{directory}/5", M.CREATE)
open(f"{directory}/5/file", "w").close()
print(await done)
await transport.aclose()
""",
        tmp_path,
    )
    numbers, text, name = out.splitlines()
    assert numbers == (
        f"{errno.ENOSPC} user.max_inotify_watches 5 5 {tmp_path}/5 sysctl user.max_inotify_watches=524288"
    )
    assert "user.max_inotify_watches, is 5; in use are 5, 5 of them here" in text
    assert "to raise it: sysctl user.max_inotify_watches=524288" in text
    assert name == "file"


def test_the_limit_of_instances_is_told_by_name_with_the_way_out(tmp_path):
    out = in_a_user_namespace(
        """\
limit("max_inotify_instances", 2)
made = [await connect_inotify(InotifyProtocol) for _ in range(2)]
for make in (lambda: connect_inotify(InotifyProtocol), watch(directory).__aenter__):
    try:
        await make()
    except InotifyLimitError as exc:
        print(exc.errno, exc.limit, exc.value, exc.used)
for transport, _ in made:
    await transport.aclose()
async with watch(directory) as w:
    print(len(w.snapshot()))
""",
        tmp_path,
    )
    assert out.splitlines() == [f"{errno.EMFILE} user.max_inotify_instances 2 2"] * 2 + ["1"]


def test_no_descriptors_left_is_not_mistaken_for_the_limit_of_instances(tmp_path):
    out = in_a_user_namespace(
        """\
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
held = []
try:
    while True:
        held.append(os.open("/", os.O_RDONLY))
except OSError:
    pass
try:
    await connect_inotify(InotifyProtocol)
except OSError as exc:
    print(type(exc).__name__, exc)
for fd in held:
    os.close(fd)
""",
        tmp_path,
    )
    assert "RLIMIT_NOFILE" in out
    assert "is 30; ulimit -n raises it" in out


def test_an_unmounted_file_system_ends_the_watches_on_it(tmp_path):
    out = in_a_user_namespace(
        """\
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
ends = asyncio.Queue()
class P(InotifyProtocol):
    def watch_removed(self, watch, reason):
        ends.put_nowait(reason)
transport, _ = await connect_inotify(P)
transport.add_watch(directory, M.CREATE)
subprocess.run(["umount", directory], check=True)
print(await ends.get(), transport.is_closing(), transport.get_extra_info("watches"))
await transport.aclose()
""",
        tmp_path,
    )
    assert out == "WatchEnd.UNMOUNTED False ()\n"


def test_the_error_of_a_limit_can_be_pickled():
    import pickle

    exc = InotifyLimitError(errno.ENOSPC, "text", limit="name", value=5, used=5, remedy="sysctl")
    copy = pickle.loads(pickle.dumps(exc))
    assert (copy.errno, str(copy)) == (exc.errno, str(exc))


async def test_an_instance_with_nothing_to_tell_costs_nothing_and_one_that_is_forgotten_warns(tmp_path):
    transport, protocol = await connect_inotify(Seen)
    transport.add_watch(tmp_path, M.CREATE)
    transport.pause_reading()
    touch(tmp_path / "a")
    await turns()
    idle = await idle_cost(0.2)
    assert idle.is_idle(0.1, 2), str(idle)
    assert not protocol.events
    held = [transport, protocol]
    del transport, protocol

    def forget():
        held.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport <InotifyTransport"):
        forget()


async def test_cancelling_at_any_moment_leaves_nothing_behind():
    for moment in range(4):
        opening = asyncio.ensure_future(connect_inotify(Seen))
        await turns(moment)
        opening.cancel()
        done = (await asyncio.gather(opening, return_exceptions=True))[0]
        if not isinstance(done, asyncio.CancelledError):
            done[0].close()
            await done[0].aclose()
