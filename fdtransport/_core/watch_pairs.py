"""What has left its place in a watched tree, and is not known yet to be anywhere else.

A rename is two records, which may be far apart: the first half waits here for the second, under the cookie
that both have. So does a directory that a scan did not find any more: it may turn up somewhere else. Until
then it keeps its place in the tree.
"""

from __future__ import annotations

from collections.abc import Iterator

from .watch_tree import Node

__all__ = ["Leaving", "Pairs"]


class Leaving:
    """What has left: *name* in *parent*, which was *node*, or None for what is no directory."""

    __slots__ = ("key", "name", "node", "parent", "perhaps", "since")

    def __init__(self, key: int, parent: Node, name: str, node: Node | None, since: float) -> None:
        #: The cookie; below 0 for what has none.
        self.key: int = key
        self.parent: Node = parent
        self.name: str = name
        self.node: Node | None = node
        self.since: float = since
        #: Whether something of that name may be there nevertheless.
        self.perhaps: bool = False

    @property
    def holds(self) -> bool:
        """Whether the place is still as it was."""
        nothing = self.parent  # never an entry of itself
        return self.parent.alive and self.parent.entries.get(self.name, nothing) is self.node


class Pairs:
    """All of them, by key and by place."""

    def __init__(self) -> None:
        self._by_key: dict[int, Leaving] = {}
        self._by_place: dict[tuple[Node, str], Leaving] = {}
        self._next = 0

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __iter__(self) -> Iterator[Leaving]:
        return iter(list(self._by_key.values()))

    def add(self, parent: Node, name: str, since: float, cookie: int = 0) -> Leaving:
        """*name* in *parent* has left; *cookie* 0: a scan did not find it."""
        earlier = self._by_place.get((parent, name))
        if earlier is not None:
            self.drop(earlier)
        if not cookie:
            self._next -= 1
            cookie = self._next
        leaving = Leaving(cookie, parent, name, parent.entries[name], since)
        self._by_key[cookie] = self._by_place[parent, name] = leaving
        return leaving

    def at(self, parent: Node, name: str) -> Leaving | None:
        """What has left from there, and is still thought to be there."""
        leaving = self._by_place.get((parent, name))
        if leaving is not None and not leaving.holds:
            self.drop(leaving)
            return None
        return leaving

    def take(self, cookie: int) -> Leaving | None:
        """The first half of the rename *cookie*, which waits no longer."""
        leaving = self._by_key.get(cookie)
        if leaving is None:
            return None
        self.drop(leaving)
        return leaving if leaving.holds else None

    def drop(self, leaving: Leaving) -> None:
        if self._by_key.get(leaving.key) is leaving:
            del self._by_key[leaving.key]
        place = leaving.parent, leaving.name
        if self._by_place.get(place) is leaving:
            del self._by_place[place]
