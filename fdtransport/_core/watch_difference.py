"""What has become different since somebody stopped listening to the changes of a watched tree.

Kept by path, and only for what was touched: never more than the tree had then and has now.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from .watch_tree import Change, Kind, Node, Tree, joined

__all__ = ["Difference", "compacted"]

_NOTHING, _FILE, _DIRECTORY = 0, 1, 2
_GOES = (Kind.DELETED, Kind.MOVED_OUT, Kind.UNWATCHED)
_CONTENTS = (Kind.MODIFIED, Kind.WRITTEN, Kind.ATTRIBUTES, Kind.READ)


class Difference:
    """From the moment at which it is made; every change from then on goes to ``note``."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._was: dict[str, int] = {}
        self._touched: set[str] = set()

    def note(self, change: Change, node: Node | None) -> None:
        kind, path = change.kind, change.path
        if kind is Kind.CREATED:
            self._came(path)
        elif kind in _GOES:
            self._went(path, change.is_dir)
            if node is not None:
                for inner, entry in node.below(path):
                    self._went(inner, entry is not None)
        elif kind is Kind.MOVED:
            self._went(change.old_path, change.is_dir)
            self._came(path, _FILE if change.replaced else _NOTHING)
            if node is not None:
                for inner, entry in node.below(""):
                    self._went(joined(change.old_path, inner), entry is not None)
                    self._came(joined(path, inner))
        elif kind in _CONTENTS:
            self._was.setdefault(path, _DIRECTORY if change.is_dir else _FILE)
            self._touched.add(path)

    def _came(self, path: str, was: int = _NOTHING) -> None:
        if self._was.setdefault(path, was):
            self._touched.add(path)  # perhaps it is another one now

    def _went(self, path: str, is_dir: bool) -> None:
        self._touched.discard(path)
        if not self._was.setdefault(path, _DIRECTORY if is_dir else _FILE):
            del self._was[path]  # it came and went

    def changes(self) -> list[Change]:
        """What leads from the tree as it was then to the tree as it is now."""
        gone: list[Change] = []
        come: list[Change] = []
        for path in sorted(self._was):
            was, now = self._was[path], self._now(path)
            if was == now:
                if now and path in self._touched:
                    come.append(self._change(Kind.MODIFIED, path, now))
                continue
            if was:
                gone.append(self._change(Kind.DELETED, path, was))
            if now:
                come.append(self._change(Kind.CREATED, path, now))
        return [*reversed(gone), *come]

    def _change(self, kind: Kind, path: str, what: int) -> Change:
        directory, name = ("", path) if path in self._tree.roots else os.path.split(path)
        return Change(kind, directory, name, what == _DIRECTORY, 0, True)

    def _now(self, path: str) -> int:
        found = self._tree.find(path)
        return _NOTHING if found is None else _FILE if found is True else _DIRECTORY


def compacted(changes: Iterable[Change]) -> list[Change]:
    """The same changes, without those of a file that came and went, and each content told once."""
    kept: dict[int, Change] = {}
    created: dict[str, list[int]] = {}  # of files that came: the places of all that was told of them
    told: set[tuple[Kind, str]] = set()
    for place, change in enumerate(changes):
        kind, path = change.kind, change.path
        if kind in _CONTENTS:
            if (kind, path) in told:
                continue
            told.add((kind, path))
            if path in created:
                created[path].append(place)
        else:
            told -= {(each, path) for each in _CONTENTS}
            if kind is Kind.CREATED and not change.is_dir:
                created[path] = [place]
            elif kind is Kind.DELETED and path in created:
                for earlier in created.pop(path):
                    del kept[earlier]
                continue
            elif kind is Kind.MOVED and change.is_dir:
                created.clear()  # known by other paths now
            else:
                created.pop(path, None)
                created.pop(change.old_path, None)
        kept[place] = change
    return list(kept.values())
