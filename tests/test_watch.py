"""Watched trees: what is told, to whom, and what is told of what cannot be watched."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from storm import exchange, flood
from test_inotify import in_a_user_namespace, touch
from tree_oracle import Replay, differ, walked

from fdtransport import InotifyMask, WatchKind, watch, watcher
from fdtransport._core.inotify_limits import watch_numbers
from fdtransport._core.watch_files import Files
from fdtransport.testing import sweep
from fdtransport.testing.observe import LoopTurns, idle_cost, turns, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")

K = WatchKind
SOON = 10


async def told(w, root: Path | None = None):
    """Everything that is told until nothing more is coming, as (kind, path below *root*)."""
    await w.ready()
    subscription = aiter(w)
    events = []
    while subscription._queue:
        events.append(await subscription.get())
    return events if root is None else [short(event, root) for event in events]


def short(event, root):
    def below(path):
        return os.path.relpath(os.fsdecode(path), root)

    if event.kind in (K.OVERFLOW, K.RESCANNED):
        return (event.kind.value,)
    if event.kind is K.MOVED:
        return event.kind.value, below(event.old_path), below(event.path)
    return event.kind.value, below(event.path)


# -- what is told ----------------------------------------------------------------------------------


async def test_everything_that_comes_changes_moves_and_goes_is_told_under_its_path(tmp_path):
    async with watch(tmp_path) as w:
        (tmp_path / "d").mkdir()
        assert await told(w, tmp_path) == [("created", "d")]
        (tmp_path / "d" / "f").write_text("x")
        assert await told(w, tmp_path) == [("created", "d/f"), ("modified", "d/f"), ("written", "d/f")]
        (tmp_path / "d").rename(tmp_path / "e")
        assert await told(w, tmp_path) == [("moved", "d", "e")]
        (tmp_path / "e" / "f").rename(tmp_path / "g")
        assert await told(w, tmp_path) == [("moved", "e/f", "g")]
        (tmp_path / "g").unlink()
        (tmp_path / "e").rmdir()
        assert await told(w, tmp_path) == [("deleted", "g"), ("deleted", "e")]


async def test_an_event_says_what_it_is_about(tmp_path):
    (tmp_path / "old").mkdir()
    async with watch(tmp_path) as w:
        (tmp_path / "old").rename(tmp_path / "new")
        (event,) = await told(w)
    assert (event.directory, event.name) == (str(tmp_path), "new")
    assert (event.path, event.old_path) == (str(tmp_path / "new"), str(tmp_path / "old"))
    assert (event.is_dir, event.synthetic, event.replaced, event.error) == (True, False, False, None)
    assert event.cookie


async def test_what_is_in_a_directory_that_was_just_made_is_told(tmp_path):
    async with watch(tmp_path) as w:
        os.makedirs(tmp_path / "a" / "b" / "c")
        touch(tmp_path / "a" / "b" / "c" / "f")
        events = await told(w)
    assert [short(event, tmp_path) for event in events if event.kind is K.CREATED] == [
        ("created", "a"), ("created", "a/b"), ("created", "a/b/c"), ("created", "a/b/c/f"),
    ]  # fmt: skip
    assert not events[0].synthetic


async def test_a_tree_that_moves_in_is_told_whole_and_one_that_moves_out_as_one(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    os.makedirs(outside / "t" / "u")
    touch(outside / "t" / "u" / "f")
    root.mkdir()
    async with watch(root) as w:
        (outside / "t").rename(root / "t")
        assert await told(w, root) == [("created", "t"), ("created", "t/u"), ("created", "t/u/f")]
        touch(root / "t" / "u" / "g")
        assert ("created", "t/u/g") in await told(w, root)
        (root / "t").rename(outside / "t")
        assert await told(w, root) == [("moved out", "t")]
        assert len(w._engine.tree.by_wd) == 1
        touch(outside / "t" / "u" / "h")
        assert await told(w, root) == []


async def test_a_file_renamed_over_another_is_told_as_one_move(tmp_path):
    touch(tmp_path / "file")
    touch(tmp_path / "file.tmp")
    async with watch(tmp_path) as w:
        (tmp_path / "file.tmp").replace(tmp_path / "file")
        (event,) = await told(w)
        assert short(event, tmp_path) == ("moved", "file.tmp", "file")
        assert event.replaced


async def test_directories_that_change_places_are_both_watched_where_they_are(tmp_path):
    os.makedirs(tmp_path / "a" / "x")
    os.makedirs(tmp_path / "b" / "y")
    async with watch(tmp_path, initial=True) as w:
        replay = Replay()
        exchange(str(tmp_path / "a"), str(tmp_path / "b"))
        touch(tmp_path / "a" / "y" / "f")
        touch(tmp_path / "b" / "x" / "g")
        replay.apply(await told(w))
        assert replay.paths == walked(str(tmp_path)) == w.snapshot()
        assert replay.faults == []


async def test_a_directory_that_is_deleted_and_made_again_at_once_is_watched(tmp_path):
    async with watch(tmp_path) as w:
        for _ in range(50):
            (tmp_path / "d").mkdir()
            (tmp_path / "d").rmdir()
        (tmp_path / "d").mkdir()
        await told(w)
        touch(tmp_path / "d" / "f")
        assert ("created", "d/f") in await told(w, tmp_path)


async def test_only_the_contents_that_were_asked_for_are_told(tmp_path):
    touch(tmp_path / "f")
    async with watch(tmp_path, mask=InotifyMask.ATTRIB) as w:
        (tmp_path / "f").write_text("x")
        (tmp_path / "f").chmod(0o600)
        assert await told(w, tmp_path) == [("attributes", "f")]
    with pytest.raises(ValueError, match="ALL_EVENTS"):
        watch(tmp_path, mask=InotifyMask.ONESHOT | InotifyMask.CREATE)


async def test_without_recursion_only_what_is_directly_there_is_told(tmp_path):
    os.makedirs(tmp_path / "d" / "e")
    async with watch(tmp_path, recursive=False) as w:
        touch(tmp_path / "d" / "f")
        (tmp_path / "d").rename(tmp_path / "g")
        (tmp_path / "h").mkdir()
        touch(tmp_path / "i")
        assert await told(w, tmp_path) == [
            ("moved", "d", "g"), ("created", "h"), ("created", "i"), ("written", "i"),
        ]  # fmt: skip
        root = str(tmp_path)
        assert set(w.snapshot()) == {root, *(f"{root}/{name}" for name in "ghi")}
        shutil.rmtree(tmp_path / "g")
        assert await told(w, tmp_path) == [("deleted", "g")]


async def test_initial_tells_what_is_there_at_first(tmp_path):
    os.makedirs(tmp_path / "d")
    touch(tmp_path / "d" / "f")
    async with watch(tmp_path, initial=True) as w:
        events = await told(w)
    assert [short(event, tmp_path) for event in events] == [
        ("created", "."), ("created", "d"), ("created", "d/f"),
    ]  # fmt: skip
    assert all(event.synthetic for event in events)


async def test_roots_of_bytes_give_paths_of_bytes(tmp_path):
    async with watch(os.fsencode(tmp_path)) as w:
        touch(os.fsencode(tmp_path) + b"/\xff")
        event = (await told(w))[0]
        assert event.path == os.fsencode(tmp_path) + b"/\xff"
        assert event.name == b"\xff"
        assert w.snapshot()[event.path] is False
        assert w.roots == (os.fsencode(tmp_path),)
        with pytest.raises(TypeError, match="all str or all bytes"):
            await w.add("text")


async def test_paths_are_as_the_root_was_given_and_stay_true_when_the_process_goes_elsewhere(
    tmp_path, monkeypatch
):
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    async with watch("root/") as w:
        monkeypatch.chdir("/")
        os.makedirs(tmp_path / "root" / "d")
        touch(tmp_path / "root" / "d" / "f")
        assert "root/d/f" in [event.path for event in await told(w)]


async def test_a_link_is_told_as_what_it_is_and_not_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    async with watch(root) as w:
        (root / "link").symlink_to(outside)
        touch(outside / "f")
        (event,) = await told(w)
        assert (short(event, root), event.is_dir) == (("created", "link"), False)


# -- ignore ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ignore", [".git", [".git", "*.o"], ["sub/.git", ".git*"], lambda path, is_dir: is_dir and ".git" in path]
)
async def test_what_is_ignored_is_not_even_watched(ignore, tmp_path):
    os.makedirs(tmp_path / ".git" / "objects")
    async with watch(tmp_path, ignore=ignore) as w:
        touch(tmp_path / ".git" / "index")
        os.makedirs(tmp_path / "sub" / ".git")
        assert [event.path for event in await told(w)] == [str(tmp_path / "sub")]
        assert len(w._engine.tree.by_wd) == 2


async def test_a_pattern_with_a_slash_is_for_the_path_below_the_root(tmp_path):
    os.makedirs(tmp_path / "build")
    async with watch(tmp_path, ignore="build/out") as w:
        os.makedirs(tmp_path / "build" / "out" / "x")
        os.makedirs(tmp_path / "other" / "out")
        assert await told(w, tmp_path) == [("created", "other"), ("created", "other/out")]
        (tmp_path / "other").rename(tmp_path / "other2")
        (tmp_path / "build").rename(tmp_path / "released")  # and so its out is there now
        assert await told(w, tmp_path) == [
            ("moved", "other", "other2"), ("moved", "build", "released"),
            ("created", "released/out"), ("created", "released/out/x"),
        ]  # fmt: skip
        (tmp_path / "released").rename(tmp_path / "build")
        assert await told(w, tmp_path) == [
            ("moved", "released", "build"), ("deleted", "build/out/x"), ("deleted", "build/out"),
        ]  # fmt: skip


@pytest.mark.parametrize("quick", [True, False])
async def test_what_changes_places_with_something_ignored_is_watched(quick, tmp_path):
    for name in ("d", "ignored"):
        os.makedirs(tmp_path / name / f"in {name}")
        touch(tmp_path / f"{name}.txt")
    async with watch(tmp_path, ignore="ignored*") as w:
        for turn in range(4):
            for end in ("", ".txt"):
                pair = str(tmp_path / f"ignored{end}"), str(tmp_path / f"d{end}")
                exchange(*pair[:: 1 if turn % 2 else -1])
                if not quick:
                    await w.ready()
            await w.ready()
            there = {path: d for path, d in walked(str(tmp_path)).items() if "/ignored" not in path}
            assert differ(there, w.snapshot()) == ""
        touch(tmp_path / "d" / "f")
        assert ("created", "d/f") in await told(w, tmp_path)


async def test_what_is_ignored_by_its_path_is_so_after_moves_that_were_not_told(tmp_path):
    os.makedirs(tmp_path / "a" / "b" / "x" / "deep")
    os.makedirs(tmp_path / "a" / "b" / "y")
    async with watch(tmp_path, ignore=["a/b/x", "new/a/b/y"]) as w:
        os.mkdir(tmp_path / "new")
        (tmp_path / "a").rename(tmp_path / "new" / "a")  # found by the listing of new
        await w.ready()
        below = sorted(path[len(str(tmp_path)) :].lstrip("/") for path in w.snapshot())
        assert below == ["", "new", "new/a", "new/a/b", "new/a/b/x", "new/a/b/x/deep"]


async def test_what_is_renamed_to_an_ignored_name_moves_out_and_back_in(tmp_path):
    os.makedirs(tmp_path / "d" / "e")
    touch(tmp_path / "f")
    async with watch(tmp_path, ignore="ign*") as w:
        (tmp_path / "d").rename(tmp_path / "ignored")
        (tmp_path / "f").rename(tmp_path / "ign")
        assert await told(w, tmp_path) == [("moved out", "d"), ("moved out", "f")]
        (tmp_path / "ignored").rename(tmp_path / "d")
        (tmp_path / "ign").rename(tmp_path / "f")
        assert await told(w, tmp_path) == [("created", "d"), ("created", "d/e"), ("created", "f")]


def test_what_is_no_pattern_is_refused():
    with pytest.raises(TypeError, match="a pattern to ignore is a str"):
        watch("/tmp", ignore=[b"x"])


# -- consumers -------------------------------------------------------------------------------------


async def test_iteration_gives_what_happened_since_it_was_entered_and_cancelling_it_loses_nothing(tmp_path):
    async with watch(tmp_path) as w:
        touch(tmp_path / "first")
        async for event in w:
            assert event.name == "first"
            break
        await w.ready()
        assert (await aiter(w).get()).kind is K.WRITTEN
        waiting = asyncio.ensure_future(aiter(w).get())
        await turns()
        waiting.cancel()
        touch(tmp_path / "second")
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await aiter(w).get()).name == "second"


async def test_closing_ends_the_iteration_of_everybody(tmp_path):
    async with watch(tmp_path) as w:

        async def all_of(events):
            return [event.name async for event in events]

        other = w.subscribe(settle=0.001)
        listening = [asyncio.ensure_future(all_of(events)) for events in (w, other)]
        touch(tmp_path / "f")
        await w.ready()
        await w.aclose()
        assert await listening[0] == ["f", "f"]
        await listening[1]
        await w.aclose()
        with pytest.raises(OSError, match="closed"):
            w.snapshot()


async def test_a_consumer_that_is_slow_costs_itself_an_overflow_and_is_repaired(tmp_path):
    (tmp_path / "d").mkdir()
    for n in range(10):
        touch(tmp_path / "d" / f"f{n}")
    async with watch(tmp_path) as w:
        slow = w.subscribe(maxsize=2)
        touch(tmp_path / "a")
        touch(tmp_path / "comes and goes")
        os.unlink(tmp_path / "comes and goes")
        (tmp_path / "d" / "f0").write_text("x")
        (tmp_path / "d" / "f1").unlink()
        (tmp_path / "d").rename(tmp_path / "e")
        (tmp_path / "e" / "f0").replace(tmp_path / "a")
        everything = await told(w, tmp_path)
        assert ("overflow",) not in everything
        events = []
        while slow._queue or slow._missed:
            events.append(short(await slow.get(), tmp_path))
        gone = [("deleted", f"d/f{n}") for n in reversed(range(10))]
        assert events == [
            ("created", "a"), ("written", "a"), ("overflow",), *gone, ("deleted", "d"), ("modified", "a"),
            ("created", "e"), *(("created", f"e/f{n}") for n in range(2, 10)), ("rescanned",),
        ]  # fmt: skip
        touch(tmp_path / "next")
        await w.ready()
        assert short(await slow.get(), tmp_path) == ("created", "next")


async def test_a_consumer_that_is_closed_costs_nothing_any_more_and_ends_after_what_had_come(tmp_path):
    async with watch(tmp_path) as w:
        full, waiting = w.subscribe(maxsize=1), w.subscribe()
        ending = asyncio.ensure_future(waiting.get())
        await turns()
        waiting.close()
        with pytest.raises(EOFError):
            await ending
        for name in "ab":
            (tmp_path / name).mkdir()
        await w.ready()
        full.close()
        full.close()
        (tmp_path / "c").mkdir()
        assert await told(w, tmp_path) == [("created", "a"), ("created", "b"), ("created", "c")]
        assert [short(event, tmp_path) async for event in full] == [("created", "a")]
        assert w._subscriptions == [aiter(w)]


async def test_a_batch_has_all_that_have_come(tmp_path):
    async with watch(tmp_path, batch=True) as w:
        for n in range(20):
            (tmp_path / str(n)).mkdir()
        await w.ready()
        async for events in w:
            assert [event.name for event in events] == [str(n) for n in range(20)]
            break


async def test_after_a_time_of_quiet_only_what_counts_is_told(tmp_path):
    touch(tmp_path / "changed")
    async with watch(tmp_path, settle=0.05, batch=True) as w:
        for n in range(5):
            (tmp_path / "changed").write_text(str(n))
            (tmp_path / "temporary").write_text("x")
            (tmp_path / "temporary").unlink()
        os.makedirs(tmp_path / "d")
        events = await aiter(w).get()
        assert [short(event, tmp_path) for event in events] == [
            ("modified", "changed"), ("written", "changed"), ("created", "d"),
        ]  # fmt: skip


async def test_quiet_that_never_comes_is_not_waited_for_without_end(tmp_path):
    async with watch(tmp_path, settle=0.02) as w:
        done = False

        async def noise():
            while not done:
                touch(tmp_path / "f")
                await asyncio.sleep(0.001)

        making = asyncio.ensure_future(noise())
        async with asyncio.timeout(5):
            assert (await aiter(w).get()).name == "f"
        done = True
        await making


async def test_nonsense_is_refused_before_anything_is_opened(tmp_path):
    for options in ({"maxsize": 0}, {"settle": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            watch(tmp_path, **options)
    for root in ("", "a\0b"):
        with pytest.raises(ValueError, match=r"empty|null"):
            watch(root)
    with pytest.raises(RuntimeError, match="entered first"):
        aiter(watch(tmp_path))


async def test_a_watcher_that_has_nothing_to_do_does_nothing(tmp_path):
    os.makedirs(tmp_path / "a" / "b")
    async with watch(tmp_path) as w:
        touch(tmp_path / "a" / "b" / "f")
        os.rename(tmp_path / "a" / "b", tmp_path.parent / "gone")
        await told(w)
        idle = await idle_cost(0.3)
        assert idle.is_idle(0.1, 2), str(idle)
    shutil.rmtree(tmp_path.parent / "gone")


# -- roots -----------------------------------------------------------------------------------------


async def test_roots_can_be_added_and_removed(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    os.makedirs(one / "d")
    os.makedirs(two / "e")
    async with watch(one) as w:
        await w.add(two)
        assert w.roots == (str(one), str(two))
        (one / "d").rename(two / "d")
        assert await told(w, tmp_path) == [("moved", "one/d", "two/d")]
        await w.remove(one)
        touch(one / "f")
        touch(two / "e" / "f")
        assert await told(w, tmp_path) == [
            ("unwatched", "one"),
            ("created", "two/e/f"),
            ("written", "two/e/f"),
        ]
        with pytest.raises(ValueError, match="not watched"):
            await w.remove(one)
        assert w.snapshot() == walked(str(two))


async def test_what_moves_to_a_root_that_is_being_added_is_told_to_have_moved(tmp_path):
    os.makedirs(tmp_path / "r" / "d" / "e")
    os.makedirs(tmp_path / "s" / "inner")
    async with watch(tmp_path / "r") as w:
        (tmp_path / "r" / "d").rename(tmp_path / "s" / "d")
        await w.add(tmp_path / "s")
        assert await told(w, tmp_path) == [("moved", "r/d", "s/d")]
        assert w.snapshot().keys() == walked(*w.roots).keys()


async def test_roots_in_each_other_are_refused(tmp_path):
    os.makedirs(tmp_path / "a" / "b")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    async with watch(tmp_path / "a") as w:
        for root in ("a", "a/b", "link", "."):
            with pytest.raises(ValueError, match="watched already"):
                await w.add(tmp_path / root)
        assert w.roots == (str(tmp_path / "a"),)


async def test_a_root_that_is_missing_or_no_directory_says_so(tmp_path):
    touch(tmp_path / "file")
    with pytest.raises(FileNotFoundError) as caught:
        async with watch(tmp_path / "nothing"):
            pass
    assert caught.value.filename == str(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError, match="watch the directory that it is in"):
        async with watch(tmp_path / "file"):
            pass


async def test_a_root_may_be_a_link(tmp_path):
    os.makedirs(tmp_path / "real" / "d")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    async with watch(tmp_path / "link") as w:
        touch(tmp_path / "real" / "d" / "f")
        assert ("created", "link/d/f") in await told(w, tmp_path)


async def test_when_the_last_root_has_gone_iteration_ends(tmp_path):
    """And not before: Twisted closes everything with the first."""
    one, two = tmp_path / "one", tmp_path / "two"
    os.makedirs(one / "d")
    two.mkdir()
    async with watch(one, two) as w:
        shutil.rmtree(one)
        assert await told(w, tmp_path) == [("deleted", "one/d"), ("deleted", "one")]
        two.rename(tmp_path / "three")
        assert [short(event, tmp_path) async for event in w] == [("moved out", "two")]


async def test_a_root_that_is_followed_may_come_go_and_come_again(tmp_path):
    root = tmp_path / "a" / "b" / "root"
    async with watch(root, follow_root=True) as w:
        assert w.roots == ()
        os.makedirs(root / "d")
        assert await told(w, root) == [("created", "."), ("created", "d")]
        shutil.rmtree(tmp_path / "a")
        assert await told(w, root) == [("deleted", "d"), ("deleted", ".")]
        (tmp_path / "a").mkdir()
        assert await told(w, root) == []
        os.makedirs(tmp_path / "new" / "d2")
        (tmp_path / "a" / "b").mkdir()
        (tmp_path / "new").rename(root)
        assert await told(w, root) == [("created", "."), ("created", "d2")]
        root.rename(tmp_path / "elsewhere")
        assert await told(w, root) == [("moved out", ".")]
        touch(tmp_path / "elsewhere" / "d2" / "f")
        root.mkdir()
        assert await told(w, root) == [("created", ".")]
        touch(root / "f")
        assert ("created", "f") in await told(w, root)


# -- when it goes wrong ----------------------------------------------------------------------------


async def test_roots_that_are_followed_may_change_places_and_move_into_each_other(tmp_path):
    one, other = str(tmp_path / "one"), str(tmp_path / "x" / "other")
    os.makedirs(one + "/a")
    os.makedirs(other + "/b")
    async with watch(one, other, follow_root=True, initial=True) as w:
        replay = Replay()

        async def check():
            await w.ready()
            while aiter(w)._queue:
                replay.one(await aiter(w).get())
            assert differ(walked(one, other), w.snapshot()) == ""
            assert differ(walked(one, other), replay.paths) == ""
            assert replay.faults == []

        exchange(one, other)
        await check()
        os.rename(one, other + "/inner")
        os.mkdir(one)
        await check()
        os.rename(other + "/inner", one)  # over the empty one
        await check()
        touch(one + "/f")
        os.rename(one, other + "/inner")
        await check()
        os.rename(other + "/inner", one)
        await check()


async def test_an_overflow_of_the_kernel_is_told_with_what_it_hid(tmp_path):
    (tmp_path / "d").mkdir()
    async with watch(tmp_path, maxsize=100_000) as w:
        flood(str(tmp_path), 18000)
        os.makedirs(tmp_path / "new" / "e")
        (tmp_path / "d").rename(tmp_path / "new" / "d")
        events = await told(w)
        names = [short(event, tmp_path) for event in events if event.name != "flood"]
        assert names == [
            ("overflow",), ("created", "new"), ("moved", "d", "new/d"), ("created", "new/e"), ("rescanned",),
        ] or names == [
            ("overflow",), ("created", "new"), ("created", "new/e"), ("moved", "d", "new/d"), ("rescanned",),
        ]  # fmt: skip
        assert all(event.synthetic for event in events[-4:-1])


async def test_listing_a_large_tree_lets_others_work(tmp_path, monkeypatch):
    for n in range(40):
        os.makedirs(tmp_path / str(n) / "d")
        for m in range(50):
            touch(tmp_path / str(n) / f"f{m}")
    monkeypatch.setattr(watcher, "SLICE", 0.0002)
    with LoopTurns() as loop:
        async with watch(tmp_path) as w:
            assert loop.count > 8
            assert len(w.snapshot()) == 40 * 52 + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become nobody")
async def test_what_cannot_be_read_is_told_once_and_has_only_moved_when_it_moves(tmp_path, monkeypatch):
    for name in ("locked", "once"):
        os.makedirs(tmp_path / "a" / name)
    watcher_ = watch(tmp_path)
    opened, closed = Files.open_in, ["locked"]

    def open_in(self, directory, name):
        if name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return opened(self, directory, name)

    monkeypatch.setattr(Files, "open_in", open_in)
    async with watcher_ as w:
        assert await told(w, tmp_path) == [("error", "a/locked")]
        closed += ["other", "once", "twice"]
        (tmp_path / "a" / "locked").rename(tmp_path / "other")
        (tmp_path / "a" / "once").rename(tmp_path / "twice")
        assert await told(w, tmp_path) == [("moved", "a/locked", "other"), ("moved", "a/once", "twice")]
        touch(tmp_path / "twice" / "f")  # it was opened before, and is watched still
        assert ("created", "twice/f") in await told(w, tmp_path)
        assert w.snapshot() == walked(str(tmp_path))


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path):
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(0o755)
    os.makedirs(tmp_path / "closed" / "inner")
    os.makedirs(tmp_path / "open")
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "closed").chmod(0o700)
    program = f"""
import asyncio, ctypes, os, sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
from fdtransport import *
async def main():
    os.setgid(65534)
    os.setuid(65534)
    async with watch({str(tmp_path)!r}) as w:
        os.mkdir({str(tmp_path)!r} + "/open/d")
        open({str(tmp_path)!r} + "/open/d/f", "w").close()
        for _ in range(3):
            event = await aiter(w).get()
            print(event.kind.value, event.name, event.error and event.error.errno)
        await w.rescan()
        await w.ready()
        print([event.kind for event in aiter(w)._queue if event.error])
        print("closed" in [os.path.basename(path) for path in w.snapshot()])
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.splitlines() == [
        f"error closed {errno.EACCES}", "created d None", "created f None", "[]", "True",
    ], done.stderr  # fmt: skip


def test_when_watches_run_out_it_is_told_once_and_what_is_watched_goes_on(tmp_path):
    for n in range(20):
        (tmp_path / f"{n:02}").mkdir()
    out = in_a_user_namespace(
        """\
limit("max_inotify_watches", 10)
async with watch(directory) as w:
    error = await aiter(w).get()
    print(error.kind.value, type(error.error).__name__, error.error.limit, error.error.value)
    print(str(error.error).endswith(error.error.remedy))
    watched = [node for node in w._engine.tree.by_wd.values() if node.parent]
    print(len(watched), len(w.snapshot()))
    open(f"{directory}/{watched[-1].name}/file", "w").close()
    os.mkdir(f"{directory}/another")
    print((await aiter(w).get()).name, aiter(w)._queue)
    await w.ready()
    aiter(w)._queue.clear()
    limit("max_inotify_watches", 100)
    await w.rescan()
    print(len(w._engine.tree.by_wd))
try:
    limit("max_inotify_watches", 0)
    async with watch(directory):
        pass
except InotifyLimitError as exc:
    print(exc.filename == directory, exc)
""",
        tmp_path,
    ).splitlines()
    assert out[0] == "error InotifyLimitError user.max_inotify_watches 10"
    assert out.pop(1) == "True", "it ends with the remedy"
    assert out[1] == "9 21"
    assert out[2].startswith("file ")
    assert out[3] == "22"
    assert out[4].startswith("True [Errno 28] No space left on device: the user's limit of inotify watches")


def test_what_is_mounted_inside_is_told_and_watched_and_its_end_too(tmp_path):
    (tmp_path / "m").mkdir()
    out = in_a_user_namespace(
        """\
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "none", f"{directory}/m"], check=True)
os.makedirs(f"{directory}/m/inner")
async with watch(directory) as w:
    async def told():
        await w.ready()
        events = []
        while aiter(w)._queue:
            event = await aiter(w).get()
            events.append((event.kind.value, event.name))
        return events
    print(await told())
    open(f"{directory}/m/inner/f", "w").close()
    print(await told())
    subprocess.run(["umount", f"{directory}/m"], check=True)
    print(await told())
    os.mkdir(f"{directory}/m/below")
    print(await told())
""",
        tmp_path,
    ).splitlines()
    assert out[0] == "[('mount', 'm')]"
    assert out[1] == "[('created', 'f'), ('written', 'f')]"
    assert out[2] == "[('unmounted', 'm'), ('deleted', 'f'), ('deleted', 'inner')]"
    assert out[3] == "[('created', 'below')]"


def test_a_directory_that_is_mounted_at_a_second_place_is_told_and_watched_at_the_first(tmp_path):
    os.makedirs(tmp_path / "a" / "b")
    os.makedirs(tmp_path / "z")
    out = in_a_user_namespace(
        """\
import subprocess
subprocess.run(["mount", "--bind", directory, f"{directory}/a/b"], check=True)
subprocess.run(["mount", "--bind", f"{directory}/a", f"{directory}/z"], check=True)
async with watch(directory) as w:
    await w.ready()
    while aiter(w)._queue:
        event = await aiter(w).get()
        print(event.kind.value, os.path.relpath(event.path, directory))
    print(len(w._engine.tree.by_wd), len(w.snapshot()))
""",
        tmp_path,
    ).splitlines()
    assert out[:-1] == ["mount a/b", "mount z"] or len(out) == 3
    assert out[-1] == "2 4"


async def test_the_tree_and_the_walk_agree_about_names_of_any_kind(tmp_path):
    async with watch(tmp_path) as w:
        for name in (b"\xff\xfe", "ü".encode(), b"new\nline", b"-", b" ", b"a" * 255, b"%s"):
            os.mkdir(os.fsencode(tmp_path) + b"/" + name)
            touch(os.fsencode(tmp_path) + b"/" + name + b"/" + name)
        await told(w)
        assert not differ(walked(str(tmp_path)), w.snapshot())


async def test_a_path_longer_than_the_kernel_takes_is_told_and_the_rest_goes_on(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    name = "n" * 250
    for _ in range(20):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        async with watch(tmp_path) as w:
            assert len(w._engine.tree.by_wd) == 21
            touch(tmp_path / "f")
            assert ("created", "f") in await told(w, tmp_path)
    finally:
        shutil.rmtree(tmp_path / name)


async def test_a_watcher_can_be_entered_once(tmp_path):
    w = watch(tmp_path)
    async with w:
        pass
    with pytest.raises(RuntimeError, match="once"):
        await w.__aenter__()


async def test_cancelling_while_a_tree_is_listed_leaves_nothing_behind(tmp_path):
    for n in range(500):
        (tmp_path / str(n)).mkdir()
    entering = asyncio.ensure_future(watch(tmp_path).__aenter__())
    await turns(3)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering


async def test_cancelling_twice_leaves_nothing_behind(tmp_path):
    for n in range(2000):
        (tmp_path / str(n)).mkdir()
    w = watch(tmp_path)

    async def hold():
        async with w:
            entered.set()
            await asyncio.sleep(SOON)

    entered = asyncio.Event()
    holding = asyncio.ensure_future(hold())
    await entered.wait()
    holding.cancel()
    await turns(1)
    holding.cancel()  # while the watches are taken away
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert w._transport.is_closing()
    await turns(3)


async def test_closing_twice_at_once_touches_no_descriptor_that_is_closed(tmp_path, monkeypatch):
    for n in range(1000):
        (tmp_path / str(n)).mkdir()
    w = await watch(tmp_path).__aenter__()
    unwatch, late = w._engine.files.unwatch, []

    def unwatch_(number):
        late.extend([number] if w._transport.is_closing() else [])
        unwatch(number)

    monkeypatch.setattr(w._engine.files, "unwatch", unwatch_)
    monkeypatch.setattr(watcher, "SLICE", 0)
    closing = [asyncio.ensure_future(w.aclose())]
    await turns(100)
    closing.append(asyncio.ensure_future(w.aclose()))
    await asyncio.gather(*closing)
    assert not late


async def test_what_the_function_of_the_program_raises_comes_where_it_can_be_caught(tmp_path, reports):
    def ignore(path, is_dir):
        if wrong:
            raise KeyError(path)

    wrong = True
    os.makedirs(tmp_path / "r" / "d")
    os.makedirs(tmp_path / "s" / "d")
    with pytest.raises(KeyError):
        await watch(tmp_path / "r", ignore=ignore).__aenter__()
    wrong = False
    async with watch(tmp_path / "r", ignore=ignore) as w:
        wrong = True
        with pytest.raises(KeyError):
            await w.add(tmp_path / "s")
        assert w.roots == (str(tmp_path / "r"),)
        with pytest.raises(KeyError):
            await w.rescan()
        wrong = False
        touch(tmp_path / "r" / "f")
        assert ("created", "f") in await told(w, tmp_path / "r")
    assert reports == []


async def test_closing_ends_what_is_waited_for(tmp_path):
    for n in range(300):
        os.makedirs(tmp_path / "more" / str(n))
    (tmp_path / "root").mkdir()
    async with watch(tmp_path / "root") as w:
        os.rename(tmp_path / "more" / "0", tmp_path / "root" / "0")
        os.rename(tmp_path / "root" / "0", tmp_path / "more" / "0")
        waiting = [asyncio.ensure_future(each) for each in (w.ready(), w.add(tmp_path / "more"), w.rescan())]
        await turns(1)
        await w.aclose()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert any(isinstance(result, OSError) for result in results)
        assert all(result is None or result.errno == errno.EBADF for result in results)
        with pytest.raises(OSError, match="closed"):
            await w.add(tmp_path)


async def test_asking_for_readiness_can_be_cancelled(tmp_path):
    async with watch(tmp_path) as w:
        touch(tmp_path / "f")
        os.rename(tmp_path / "f", tmp_path.parent / "away")
        waiting = asyncio.ensure_future(w.ready())
        await turns()
        waiting.cancel()
        assert await told(w, tmp_path) == [("created", "f"), ("written", "f"), ("moved out", "f")]
    os.unlink(tmp_path.parent / "away")


async def test_a_failing_system_call_neither_hangs_nor_leaks_nor_ends_in_a_riddle(tmp_path, reports):
    number = 0

    async def scenario():
        nonlocal number
        number += 1
        root = tmp_path / str(number)
        os.makedirs(root / "a" / "b")
        async with watch(root, initial=True) as w:
            os.makedirs(root / "c" / "d")
            touch(root / "c" / "d" / "f")
            os.rename(root / "a" / "b", root / "b")
            await w.ready()
            replay = Replay()
            errors = []
            while aiter(w)._queue:
                event = await aiter(w).get()
                replay.one(event)
                if event.kind is K.ERROR:
                    errors.append(event.error)
            assert errors or replay.paths == walked(str(root))
            assert replay.faults == []

    errnos = (errno.EINTR, errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.EACCES)
    names = ("inotify_init1", "inotify_add_watch", "open", "scandir", "fstat", "ioctl", "read")
    async for outcome in sweep(scenario, names, errnos, timeout=10, at_most=5):
        assert not outcome.hung, str(outcome)
        assert not outcome.leaked, str(outcome)
        assert outcome.error is None or isinstance(outcome.error, OSError), str(outcome)
    assert not [report for report in reports if not isinstance(report["exception"], OSError)]


async def test_many_directories_are_unwatched_when_they_leave(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for n in range(300):
        os.makedirs(root / "t" / str(n))
    outside.mkdir()
    async with watch(root) as w:
        (root / "t").rename(outside / "t")
        await told(w)
        assert len(watch_numbers(w._transport.get_extra_info("fd"))) == 1
        await until(lambda: w._engine.settled, "the end of work")


async def test_a_very_deep_tree_that_moves_is_watched_under_its_new_path(tmp_path):
    depth = 1200
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    try:
        async with watch(tmp_path) as w:
            assert len(w._engine.tree.by_wd) == depth + 1
            (tmp_path / "d").rename(tmp_path / "e")
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
            created = [event for event in await told(w) if event.kind is K.CREATED]
            assert [event.path for event in created] == [f"{tmp_path}/e{'/d' * (depth - 1)}/f"]
    finally:
        os.close(here)
        subprocess.run(["rm", "-r", str(tmp_path / "e")], check=True)  # noqa: ASYNC221
