"""A live view of a directory tree: what is there, brought up to date by events alone.

Without a directory it shows one of its own, in which it makes changes, and compares the result with a walk.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path

from fdtransport import WatchEvent, WatchKind, watch

from . import between, run_command


class View:
    """Paths and whether they are directories; it knows nothing but the events."""

    def __init__(self) -> None:
        self.paths: dict[str, bool] = {}

    def apply(self, event: WatchEvent) -> None:
        if event.kind is WatchKind.CREATED:
            self.paths[event.path] = event.is_dir
        elif event.kind is WatchKind.MOVED:
            for path, is_dir in self._taken(event.old_path).items():
                self.paths[event.path + path[len(event.old_path) :]] = is_dir
        elif event.kind in (WatchKind.DELETED, WatchKind.MOVED_OUT):
            self._taken(event.path)

    def _taken(self, top: str) -> dict[str, bool]:
        below = top + "/"
        found = {path: is_dir for path, is_dir in self.paths.items() if f"{path}/".startswith(below)}
        for path in found:
            del self.paths[path]
        return found

    def lines(self, root: str) -> list[str]:
        found = []
        for path in sorted(self.paths, key=lambda path: path.split("/")):
            depth = path[len(root) :].count("/")
            found.append("  " * depth + os.path.basename(path) + ("/" if self.paths[path] else ""))
        return found


def change(root: Path, changes: int) -> None:
    """Make, move and delete things at random."""
    rng = random.Random(changes)
    for number in range(changes):
        places = [root, *(path for path in root.rglob("*") if path.is_dir())]
        path = rng.choice(places) / f"{'abc'[rng.randrange(3)]}{number}"
        things = list(root.rglob("*"))
        what = rng.choice(["directory", "file", "move", "delete"])
        if what == "directory" or not things:
            path.mkdir()
        elif what == "file":
            path.touch()
        elif what == "move":
            thing = rng.choice(things)
            if not path.is_relative_to(thing):
                thing.rename(path)
        else:
            thing = rng.choice(things)
            if not thing.is_dir():
                thing.unlink()


async def show(root: str, changes: int | None) -> int:
    view = View()
    async with watch(root, initial=True, mask=0, batch=True) as watcher:
        if changes is not None:
            changing = asyncio.get_running_loop().run_in_executor(None, change, Path(root), changes)
            await changing
            await watcher.ready()
        async for events in watcher:
            for event in events:
                view.apply(event)
            if sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            print("\n".join(view.lines(root)))
            if changes is not None:
                break
            print(f"-- {len(view.paths)} paths, {len(events)} events --", flush=True)
    return 0 if changes is None else compare(root, view)


def compare(root: str, view: View) -> int:
    there = {str(path) for path in Path(root).rglob("*")}
    wrong = there ^ (view.paths.keys() - {root})
    print(f"{len(there)} paths, {len(wrong)} of them wrong")
    return bool(wrong)


async def run(directory: str | None, changes: int) -> int:
    if directory is not None:
        return await show(directory.rstrip("/") or "/", None)
    with tempfile.TemporaryDirectory() as root:
        return await show(root, changes)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.tree_view", description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", help="shown until Ctrl-C (default: one of its own)")
    parser.add_argument(
        "--changes", type=between(int, 1, 10**6), default=100, metavar="N",
        help="made in its own directory (default 100)",
    )  # fmt: skip
    args = parser.parse_args()
    return run_command(run(args.directory, args.changes))


if __name__ == "__main__":
    sys.exit(main())
