"""The roots of a watched tree: added, removed, lost, and waited for where they are not.

A root is known by its path. The kernel tells when the directory itself is deleted or moved, and nothing of
what is above it. One that is waited for is looked for whenever something happens in the deepest directory of
its path that is there, its *gate*.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from .inotify_records import InotifyMask
from .watch_scan import SCARCE, Steps, TreeScan
from .watch_tree import Kind, Node

__all__ = ["ROOT", "TreeRoots"]

_M = InotifyMask
#: What is asked for of roots and gates besides.
ROOT = int(_M.DELETE_SELF | _M.MOVE_SELF)
#: What may make a root appear, or a gate disappear.
_STIRS = int(_M.CREATE | _M.MOVED_TO | _M.IGNORED) | ROOT


class TreeRoots(TreeScan):
    """See the module's first lines."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.follow: set[str] = set()  # roots that are waited for when they are not there
        self._bereft = False  # of the last root, and nobody has removed it
        #: By their watches: the roots that may appear there, and what their paths lack first.
        self._gates: dict[int, dict[str, str]] = {}

    @property
    def over(self) -> bool:
        """Whether the last root has gone, and none is waited for."""
        return self._bereft and not (self.tree.roots or self.follow)

    def add_root(self, path: str, follow: bool) -> Steps:
        """Watch *path* and what is below.

        :raises OSError: it is not there, or cannot be watched. :raises ValueError: it is watched already.
        """
        tree = self.tree
        if path in tree.roots or path in self.follow:
            raise ValueError(f"{path!r} is watched already")
        real = os.path.realpath(self.files.absolute(path))
        for root in tree.roots:
            other = os.path.realpath(self.files.absolute(root))
            if os.path.commonpath([real, other]) in (real, other):
                raise ValueError(f"{path!r} and {root!r}, which is watched already, are in each other")
        self._bereft = False
        if follow:
            self.follow.add(path)
        try:
            yield from self._open_root(path, synthetic=True)
        except OSError:
            if not follow:
                raise
            yield from self._await(path)

    def _open_root(self, path: str, synthetic: bool) -> Steps:
        fd = self.files.open(path, follow=True)
        try:
            number = self.files.watch(fd, ROOT)
            known = self.tree.by_wd.get(number)
            if known is not None:
                if self.is_there(known):
                    raise ValueError(f"{path!r} is watched already, as {self.tree.path(known)!r}")
                self._has_moved(known)
            root = self.tree.add_root(path, number, synthetic)
        except BaseException:
            self.files.close(fd)
            raise
        try:
            yield from self.scan(root, fd, every=True)
        except Exception:  # of the function that says what is ignored
            self.tree.remove_root(root, Kind.UNWATCHED)
            raise

    def _has_moved(self, node: Node) -> None:
        """What was in a tree, or a root, is at the path of a root now; the record of that is to come."""
        if node.parent is None:
            self.root_has_moved(node)
            return
        leaving = self.pairs.at(node.parent, node.name)
        if leaving is not None:
            self.give_up(leaving)
        else:
            self.doubt(node.parent)
            self.tree.remove(node.parent, node.name, Kind.MOVED_OUT, 0, True)

    def await_vacant(self) -> Steps:
        """See what is where roots were that moved."""
        while self.vacant:
            path = self.vacant.pop()
            if path in self.follow:
                if path not in self.tree.roots:
                    yield from self._await(path)
            else:
                self._bereft = not self.tree.roots

    def remove_root(self, path: str) -> None:
        """:raises ValueError: it is no root."""
        if path not in self.tree.roots and path not in self.follow:
            raise ValueError(f"{path!r} is not watched; what is: {', '.join(self.tree.roots) or 'nothing'}")
        self.follow.discard(path)
        self._close_gates(path)
        root = self.tree.roots.get(path)
        if root is not None:
            self.tree.remove_root(root, Kind.UNWATCHED)

    def _check_root(self, root: Node, kind: Kind, every: bool = False) -> Steps:
        """See whether *root* is still at its path."""
        self.obstacle = 0
        fd = self.open(root) if root.wd >= 0 else None
        if fd is not None:
            self.unsure.pop(root, None)
            yield from self.scan(root, fd, every)
            return
        if self.obstacle:
            if self.obstacle in SCARCE:
                self.doubt(root)
            else:
                self._obstructed(root, self.obstacle)
            return
        self.unsure.pop(root, None)
        path = root.name
        self.tree.remove_root(root, kind)
        self._bereft = not self.tree.roots
        if path in self.follow:
            yield from self._await(path)

    def _await(self, path: str) -> Steps:
        """Watch *path* if it is there, or else what it would appear in."""
        self._close_gates(path)
        while True:
            try:
                yield from self._open_root(path, synthetic=False)
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                    self.tree.say(Kind.ERROR, None, path, True, 0, True, error=exc)
                    return
            except ValueError:
                pass  # it is in another tree as well
            else:
                self._close_gates(path)
                return
            opened = self._open_gate(path)
            if not opened:
                return
            yield

    def _open_gate(self, path: str) -> bool:
        """Watch the directory in which the next part of *path* is missing; false if that was done before."""
        place = os.path.normpath(self.files.absolute(path))
        while True:
            above = os.path.dirname(place)
            try:
                fd = self.files.open(above, follow=True)
            except OSError:
                if above == place:
                    return False
                place = above
                continue
            break
        try:
            number = self.files.watch_for(fd, _STIRS & ~int(_M.IGNORED))
        except OSError as exc:
            self.tree.say(Kind.ERROR, None, path, True, 0, True, error=exc)
            return False
        finally:
            self.files.close(fd)
        if path in self._gates.get(number, ()):
            return False
        self._close_gates(path)
        self._gates.setdefault(number, {})[path] = os.path.basename(place)
        self.tree.orphans.discard(number)
        return True  # and it may have appeared meanwhile

    def _close_gates(self, path: str) -> None:
        for number, paths in list(self._gates.items()):
            paths.pop(path, None)
            if not paths:
                del self._gates[number]
                if number not in self.tree.by_wd:
                    self.tree.orphans.add(number)

    def _at_gate(self, number: int, mask: int, name: str) -> Steps:
        if mask & _STIRS:
            for path, part in list(self._gates.get(number, {}).items()):
                if name and name != part:
                    continue
                if mask & _M.IGNORED:
                    self._gates.pop(number, None)
                yield from self._await(path)
