"""What is really there, and what somebody who only has the events thinks is there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from fdtransport import WatchEvent, WatchKind

__all__ = ["Replay", "differ", "walked"]


def walked(*roots: str) -> dict[str, bool]:
    """Every path at and below *roots*, and whether it is a directory."""
    found: dict[str, bool] = {}
    for root in roots:
        if not os.path.isdir(root):
            continue
        found[root] = True
        for path, directories, files in os.walk(root):
            for name in directories:
                inner = os.path.join(path, name)
                found[inner] = not os.path.islink(inner)
            for name in files:
                found[os.path.join(path, name)] = False
    return found


def differ(truth: dict[str, bool], view: dict[str, bool]) -> str:
    """How *view* is wrong, in words; "" if it is not."""
    missing = sorted(truth.keys() - view.keys())
    ghosts = sorted(view.keys() - truth.keys())
    wrong = sorted(path for path in truth.keys() & view.keys() if truth[path] is not view[path])
    if not (missing or ghosts or wrong):
        return ""
    return (
        f"{len(truth)} are there; {len(missing)} missing {missing[:3]}, {len(ghosts)} ghosts {ghosts[:3]}, "
        f"{len(wrong)} of the wrong kind {wrong[:3]}"
    )


class Replay:
    """A set that events are applied to, one by one."""

    def __init__(self) -> None:
        self.paths: dict[str, bool] = {}
        self.faults: list[str] = []
        self.overflows = self.rescans = 0
        self.lost = False
        self.probes: set[str] = set()

    def apply(self, events: Iterable[WatchEvent]) -> None:
        for event in events:
            self.one(event)

    def one(self, event: WatchEvent) -> None:
        kind, path = event.kind, event.path
        if kind is WatchKind.CREATED:
            if path in self.paths:
                self.faults.append(f"{path} is there already: {event}")
            self.paths[path] = event.is_dir
            if event.name.startswith("probe-"):
                self.probes.add(path)
        elif kind is WatchKind.MOVED:
            self._take(event, path, replaced=True)
            moved = self._take(event, event.old_path)
            self.paths.update(
                {path + inner[len(event.old_path) :]: is_dir for inner, is_dir in moved.items()}
            )
        elif kind in (WatchKind.DELETED, WatchKind.MOVED_OUT, WatchKind.UNWATCHED):
            taken = self._take(event, path)
            if kind is WatchKind.DELETED and len(taken) > 1:
                self.faults.append(f"{path} is not empty: {event}")
        elif kind is WatchKind.OVERFLOW:
            self.overflows += 1
            self.lost = True
        elif kind is WatchKind.RESCANNED:
            self.rescans += 1
            self.lost = False
        elif event.name and path not in self.paths:
            self.faults.append(f"{path} is not there: {event}")

    def _take(self, event: Any, path: str, replaced: bool = False) -> dict[str, bool]:
        if event.is_dir:
            inside = path + "/"
            taken = {
                each: is_dir for each, is_dir in self.paths.items() if each == path or each.startswith(inside)
            }
        else:
            taken = {path: self.paths[path]} if path in self.paths else {}
        for each in taken:
            del self.paths[each]
        if replaced:
            if bool(taken) is not event.replaced or any(taken.values()):
                self.faults.append(f"{path} was there: {bool(taken)}: {event}")
        elif path not in taken or taken[path] is not event.is_dir:
            self.faults.append(f"{path} was not there, or of another kind: {event}")
        return taken
