"""What a watched tree looks like, as far as it was told: directories by identity, names under them.

No descriptor, no loop. A path is never kept as the truth: it is put together from the nodes, which is why
a directory that moves takes everything below it along. Whatever changes here is told at that moment, so
the changes that were told, applied to an empty set, give the tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple, Protocol

__all__ = ["Change", "Kind", "Node", "Tree"]


class Kind(Enum):
    """What an event of ``watch`` says."""

    CREATED = "created"
    """It is there now."""
    DELETED = "deleted"
    """It is no more."""
    MOVED = "moved"
    """It has another path now, and with it everything below; what had that path before is no more."""
    MOVED_OUT = "moved out"
    """It has left what is watched, and with it everything below."""
    MODIFIED = "modified"
    """What is in the file was changed."""
    WRITTEN = "written"
    """The file was closed by one that could write to it."""
    ATTRIBUTES = "attributes"
    """Its owner, mode, times or the like were changed."""
    READ = "read"
    """It was opened, read, or closed by one that could not write to it."""
    OVERFLOW = "overflow"
    """Events were lost. What differs from what was told follows, and then RESCANNED."""
    RESCANNED = "rescanned"
    """What was told and what is there are the same again. What was written meanwhile is not known."""
    MOUNT = "mount"
    """Another file system begins at this directory, or one that is watched elsewhere."""
    UNMOUNTED = "unmounted"
    """The file system that began at this directory has gone."""
    ERROR = "error"
    """This directory cannot be watched: see ``error``. Everything else is."""
    UNWATCHED = "unwatched"
    """This root was removed by the program: nothing more of it and what is below is told."""


class Node:
    """A directory. ``entries`` has its directories as nodes, and None for everything else."""

    __slots__ = ("_moves", "_path", "alive", "entries", "mount", "name", "parent", "refused", "round", "wd")

    def __init__(self, parent: Node | None, name: str, wd: int = -1) -> None:
        #: None: a root, whose name is its path.
        self.parent: Node | None = parent
        self.name: str = name
        #: The number of its watch; -1: it is not watched, and what is in it is not known.
        self.wd: int = wd
        self.entries: dict[str, Node | None] = {}
        self.alive: bool = True
        self.mount: bool = False
        #: The errno of the watch that it did not get.
        self.refused: int = 0
        #: Of looking at everything: the one in which it was listed last.
        self.round: int = -1
        self._path = ""
        self._moves = -1

    def is_below(self, other: Node) -> bool:
        """Whether it is *other*, or somewhere in it."""
        node: Node | None = self
        while node is not None:
            if node is other:
                return True
            node = node.parent
        return False

    def below(self, path: str) -> Iterator[tuple[str, Node | None]]:
        """Everything in it, parents first, each under its path if its own is *path*."""
        stack = [(self, path)]
        while stack:
            node, path = stack.pop()
            for name, entry in node.entries.items():
                inner = joined(path, name)
                yield inner, entry
                if entry is not None:
                    stack.append((entry, inner))

    def __repr__(self) -> str:
        return f"<Node {self.name!r} {self.wd}{'' if self.alive else ' gone'}>"


class Change(NamedTuple):
    """One event of ``watch``."""

    kind: Kind
    """What happened."""
    directory: Any
    """The path of the directory that it happened in, as str, or bytes if the roots were; "" for a root."""
    name: Any
    """The name there; a root's path for a root."""
    is_dir: bool
    """Whether it is about a directory."""
    cookie: int = 0
    """The kernel's number of a rename; otherwise 0."""
    synthetic: bool = False
    """Whether it was found by looking, and not told by the kernel."""
    old_path: Any = None
    """The former path of what has moved."""
    error: OSError | None = None
    """Why a directory cannot be watched."""
    replaced: bool = False
    """Whether something else had the path to which it has moved."""

    @property
    def path(self) -> Any:
        """Where it is now."""
        return joined(self.directory, self.name)


def joined(directory: Any, name: Any) -> Any:
    return os.path.join(directory, name) if directory else name


class Teller(Protocol):
    def __call__(self, change: Change, node: Node | None, /) -> object: ...


_new = tuple.__new__


class Tree:
    """The roots and what is below them."""

    def __init__(self, tell: Teller) -> None:
        self.roots: dict[str, Node] = {}
        self.by_wd: dict[int, Node] = {}
        #: Watches of directories that are not in the tree any more, which the kernel may still have.
        self.orphans: set[int] = set()
        self._tell = tell
        self._moves = 0  # paths that were put together before the last move are not true any more

    # -- looking ------------------------------------------------------------------------------

    def path(self, node: Node) -> str:
        if node._moves == self._moves:
            return node._path
        stale: list[Node] = []
        here: Node | None = node
        while here is not None and here._moves != self._moves:
            stale.append(here)
            here = here.parent
        path = "" if here is None else here._path
        for each in reversed(stale):
            each._path = path = joined(path, each.name)
            each._moves = self._moves
        return path

    def find(self, path: str) -> Node | bool | None:
        """What is at *path*: a node, True for what is no directory, None for nothing."""
        for root, node in self.roots.items():
            if path == root:
                return node
            if path.startswith(root) and (root[-1] == "/" or path[len(root)] == "/"):
                found: Node | None = node
                for name in path[len(root) :].strip("/").split("/"):
                    if found is None or name not in found.entries:
                        return None
                    found = found.entries[name]
                return True if found is None else found
        return None

    # -- changing -----------------------------------------------------------------------------

    def say(
        self,
        kind: Kind,
        parent: Node | None,
        name: str,
        is_dir: bool,
        cookie: int = 0,
        synthetic: bool = False,
        old: str | None = None,
        error: OSError | None = None,
        replaced: bool = False,
        node: Node | None = None,
    ) -> None:
        """Tell something; by itself it changes nothing here."""
        where = "" if parent is None else self.path(parent)
        self._tell(_new(Change, (kind, where, name, is_dir, cookie, synthetic, old, error, replaced)), node)

    def add_root(self, path: str, wd: int, synthetic: bool) -> Node:
        node = self.roots[path] = Node(None, path)
        self.watched(node, wd)
        self.say(Kind.CREATED, None, path, True, 0, synthetic, node=node)
        return node

    def add(self, parent: Node, name: str, cookie: int = 0, synthetic: bool = False) -> None:
        """Something that is no directory has come."""
        parent.entries[name] = None
        self.say(Kind.CREATED, parent, name, False, cookie, synthetic)

    def add_dir(self, parent: Node, name: str, wd: int, cookie: int = 0, synthetic: bool = False) -> Node:
        """A directory has come; *wd* -1: it is not watched."""
        node = parent.entries[name] = Node(parent, name)
        if wd >= 0:
            self.watched(node, wd)
        self.say(Kind.CREATED, parent, name, True, cookie, synthetic, node=node)
        return node

    def move(
        self, parent: Node, name: str, to: Node, new_name: str, cookie: int = 0, synthetic: bool = False
    ) -> None:
        """What is *name* in *parent* becomes *new_name* in *to*, where nothing is, or a file for a file."""
        old = joined(self.path(parent), name)
        node = parent.entries.pop(name)
        replaced = new_name in to.entries
        to.entries[new_name] = node
        if node is not None:
            node.parent, node.name = to, new_name
            self._moves += 1
        self.say(Kind.MOVED, to, new_name, node is not None, cookie, synthetic, old, None, replaced, node)

    def remove(
        self, parent: Node, name: str, kind: Kind = Kind.DELETED, cookie: int = 0, synthetic: bool = False
    ) -> None:
        """Something has gone. Of a directory that was deleted, everything in it is told before."""
        node = parent.entries[name]
        if node is not None and kind is Kind.DELETED:
            self._empty(node)
        del parent.entries[name]
        self.say(kind, parent, name, node is not None, cookie, synthetic, node=node)
        if node is not None:
            self._forget(node)

    def remove_root(self, root: Node, kind: Kind, synthetic: bool = False) -> None:
        if kind is Kind.DELETED:
            self._empty(root)
        del self.roots[root.name]
        self.say(kind, None, root.name, True, 0, synthetic, node=root)
        self._forget(root)

    def _empty(self, top: Node) -> None:
        """Remove what is in *top*, the deepest first."""
        nodes = [top]
        for node in nodes:
            nodes.extend(entry for entry in node.entries.values() if entry is not None)
        for node in reversed(nodes):
            for name in [name for name, entry in node.entries.items() if entry is None]:
                del node.entries[name]
                self.say(Kind.DELETED, node, name, False, 0, True)
            if node is not top:
                assert node.parent is not None
                del node.parent.entries[node.name]
                self.say(Kind.DELETED, node.parent, node.name, True, 0, True, node=node)
                self._forget(node)

    def _forget(self, top: Node) -> None:
        """*top* and what is below are not in the tree any more."""
        stack = [top]
        while stack:
            node = stack.pop()
            node.alive = False
            self.unwatched(node)
            stack.extend(entry for entry in node.entries.values() if entry is not None)

    # -- watches ------------------------------------------------------------------------------

    def watched(self, node: Node, wd: int) -> None:
        """*node* has the watch *wd* now, which no other has."""
        self.unwatched(node)
        self.orphans.discard(wd)
        node.wd = wd
        self.by_wd[wd] = node

    def unwatched(self, node: Node) -> None:
        """*node* has no watch any more; the kernel may still have it."""
        if node.wd >= 0:
            del self.by_wd[node.wd]
            self.orphans.add(node.wd)
            node.wd = -1
