"""The same storm for several watchers: a table of what each of them knows afterwards.

    python tests/watchers_side_by_side.py [--operations N] [--seeds N] [--peers NAME,NAME]

Each watches the same empty directory, in a process of its own, while the same storm goes over it. When all
is quiet, what its events say is there is compared with what is there; then a file is made in every directory,
and counted if it is reported under its path. ``blocked``: its process is stopped during the storm, in which
more happens than the kernel's queue holds. All names are text: others end aionotify and watchfiles.

What a peer does not do by itself (watch what is new, tell what is in it) is not done for it; an exception
of a peer ends it, and is noted. The adapters are ours: a set of paths, to which a peer's events are applied
in the order in which they come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from storm import TEXT, Storm, flood  # noqa: E402
from tree_oracle import Replay, walked  # noqa: E402

#: Seconds without an event after which a peer is asked what it knows, and for one that tells nothing.
QUIET, PATIENCE = 2.0, 60.0


class Known:
    """What the events of a peer say: the paths that are there."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.probes: set[str] = set()
        self.latest = time.monotonic()
        self.note = ""

    def stir(self) -> None:
        self.latest = time.monotonic()

    def came(self, path: str) -> None:
        self.stir()
        self.paths.add(path)
        if os.path.basename(path) == "probe-1":
            self.probes.add(path)

    def went(self, path: str) -> None:
        self.stir()
        below = path + "/"
        self.paths = {each for each in self.paths if each != path and not each.startswith(below)}

    def moved(self, old: str, new: str) -> None:
        self.stir()
        below, n = old + "/", len(old)
        taken = {each for each in self.paths if each == old or each.startswith(below)}
        self.paths -= taken
        self.paths |= {new + each[n:] for each in taken} | {new}


async def _fdtransport(root: str, known: Known, started: Callable[[], None]) -> None:
    from fdtransport import watch

    replay = Replay()
    async with watch(root, initial=True) as watcher:
        started()
        async for event in watcher:
            replay.one(event)
            known.stir()
            known.paths = replay.paths.keys() - {root}  # type: ignore[assignment]
            known.probes = {path for path in replay.probes if path.endswith("/probe-1")}


async def _asyncinotify(root: str, known: Known, started: Callable[[], None]) -> None:
    from asyncinotify import Mask, RecursiveInotify

    with RecursiveInotify() as inotify:
        inotify.add_recursive_watch(Path(root), Mask.CREATE | Mask.DELETE | Mask.MOVE)
        started()
        async for event in inotify:
            if event.path is None or event.name is None:
                known.note = "told of the overflow" if event.mask & Mask.Q_OVERFLOW else known.note
            elif event.mask & (Mask.CREATE | Mask.MOVED_TO):
                known.came(str(event.path))
            elif event.mask & (Mask.DELETE | Mask.MOVED_FROM):
                known.went(str(event.path))


async def _aionotify(root: str, known: Known, started: Callable[[], None]) -> None:
    """It has no recursion: the recipe of its users, a watch for each directory that is reported."""
    import aionotify

    flags = aionotify.Flags
    mask = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
    watcher = aionotify.Watcher()
    watcher.watch(root, mask, alias=root)
    await watcher.setup()
    started()
    while True:
        event = await watcher.get_event()
        path = os.path.join(event.alias, event.name)
        if event.flags & (flags.CREATE | flags.MOVED_TO):
            known.came(path)
            if event.flags & flags.ISDIR and path not in watcher.requests:
                watcher.watch(path, mask, alias=path)
        elif event.flags & (flags.DELETE | flags.MOVED_FROM):
            known.went(path)


def _twisted(root: str, known: Known, started: Callable[[], None]) -> None:
    from twisted.internet import inotify, reactor
    from twisted.python.filepath import FilePath

    came, went = inotify.IN_CREATE | inotify.IN_MOVED_TO, inotify.IN_DELETE | inotify.IN_MOVED_FROM

    def told(_: Any, path: Any, mask: int) -> None:
        if mask & came:
            known.came(os.fsdecode(path.path))
        elif mask & went:
            known.went(os.fsdecode(path.path))

    class Notifier(inotify.INotify):
        def connectionLost(self, reason: Any) -> None:
            known.note = f"closed itself: {reason.value!r}"
            super().connectionLost(reason)

    notifier = Notifier()
    notifier.startReading()
    notifier.watch(
        FilePath(os.fsencode(root)), mask=came | went, autoAdd=True, callbacks=[told], recursive=True
    )
    reactor.callWhenRunning(started)  # type: ignore[attr-defined]
    reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined]


def _watchdog(root: str, known: Known, started: Callable[[], None]) -> None:
    from watchdog.events import FileSystemEventHandler
    from watchdog.observers import Observer

    class Handler(FileSystemEventHandler):
        def on_created(self, event: Any) -> None:
            known.came(os.fsdecode(event.src_path))

        def on_deleted(self, event: Any) -> None:
            known.went(os.fsdecode(event.src_path))

        def on_moved(self, event: Any) -> None:
            known.moved(os.fsdecode(event.src_path), os.fsdecode(event.dest_path))

    observer = Observer()
    observer.schedule(Handler(), root, recursive=True)
    observer.start()
    started()
    observer.join()


async def _watchfiles(root: str, known: Known, started: Callable[[], None]) -> None:
    """Its sets have no order: what came is applied before what went."""
    from watchfiles import Change, awatch

    watching = awatch(root, watch_filter=None, rust_timeout=100, yield_on_timeout=True)
    async for changes in watching:
        started()
        for change, path in sorted(changes):
            known.came(path) if change is Change.added else None
        for change, path in changes:
            known.went(path) if change is Change.deleted else None


PEERS: dict[str, Callable[..., Any]] = {
    "fdtransport": _fdtransport, "asyncinotify": _asyncinotify, "aionotify": _aionotify, "twisted": _twisted,
    "watchdog": _watchdog, "watchfiles": _watchfiles,
}  # fmt: skip


def as_peer(name: str, root: str, quiet: float) -> None:
    """The process of a peer: answers each line from standard input with what it knows when all is quiet."""
    known = Known()
    ready = threading.Event()

    def answer() -> None:
        ready.wait()
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            known.stir()
            began = time.monotonic()
            while time.monotonic() - known.latest < quiet and time.monotonic() - began < PATIENCE:
                time.sleep(0.05)
            told = {"paths": sorted(known.paths), "probes": sorted(known.probes), "note": known.note}
            print(json.dumps(told), flush=True)
        os._exit(0)

    threading.Thread(target=answer).start()
    run = PEERS[name]
    try:
        if asyncio.iscoroutinefunction(run):
            asyncio.run(run(root, known, ready.set))
        else:
            run(root, known, ready.set)
    except ImportError as exc:
        print(json.dumps({"missing": str(exc)}), flush=True)
        os._exit(0)
    except BaseException as exc:
        known.note = f"ended by {type(exc).__name__}: {exc}"
        ready.set()


def _ask(process: subprocess.Popen[str], order: str | None) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    if order is not None:
        process.stdin.write(order + "\n")
        process.stdin.flush()
    answers: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: answers.put(process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
    try:
        line = answers.get(timeout=PATIENCE + 30)
    except queue.Empty:
        return {"paths": [], "probes": [], "note": "no answer"}
    return json.loads(line) if line else {"paths": [], "probes": [], "note": "died"}


def compare(
    peer: str, seed: int, operations: int, blocked: bool, quiet: float = QUIET
) -> dict[str, Any] | None:
    """One storm for one peer; None if it is not installed."""
    top = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    root, outside = f"{top}/root", f"{top}/outside"
    os.mkdir(root)
    os.mkdir(outside)
    process = subprocess.Popen(
        [sys.executable, str(HERE), "--as", peer, root, str(quiet)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        if "missing" in _ask(process, None):
            return None
        if blocked:
            process.send_signal(signal.SIGSTOP)
            flood(root, 18000)
        Storm(seed, outside, [root], TEXT).run(operations)
        process.send_signal(signal.SIGCONT)
        told = _ask(process, "paths")
        truth = walked(root)
        directories = [path for path, is_dir in truth.items() if is_dir]
        there = truth.keys() - {root}
        seen = set(told["paths"])
        for path in directories:
            os.close(os.open(f"{path}/probe-1", os.O_CREAT | os.O_WRONLY))
        probed = _ask(process, "probes")
        probes = {f"{path}/probe-1" for path in directories}
        return {
            "there": len(there), "missing": len(there - seen), "ghosts": len(seen - there),
            "probes": len(probes & set(probed["probes"])), "directories": len(probes), "note": probed["note"],
        }  # fmt: skip
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(top)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--as", nargs=3, dest="peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        name, root, quiet = options.peer
        as_peer(name, root, float(quiet))
        return
    print(
        "| watcher | storm | there | missing | ghosts | probes told | note |\n|---|---|---|---|---|---|---|"
    )
    for peer in options.peers.split(","):
        for seed in range(options.seeds + 1):
            blocked = seed == options.seeds
            row = compare(peer, seed, options.operations, blocked)
            if row is None:
                print(f"| {peer} | not installed | | | | | |")
                break
            storm = f"{seed}{', blocked' if blocked else ''}"
            print(
                f"| {peer} | {storm} | {row['there']} | {row['missing']} | {row['ghosts']} "
                f"| {row['probes']} of {row['directories']} | {row['note'][:60]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
