"""A watched tree that follows the kernel's records, and finds its way back when some were lost.

``watch_scan`` says how records and listings go together. Nothing here waits or reads: records are given to
`Engine.feed`, and ``work`` does what there is to do, a little at a time.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from .inotify_records import InotifyMask, unpacked
from .watch_files import Files
from .watch_pairs import Leaving
from .watch_roots import TreeRoots
from .watch_scan import Steps
from .watch_tree import Kind, Node, Teller, Tree

__all__ = ["PATIENCE", "STRUCTURE", "Engine"]

#: Seconds that the second half of a rename may take after the queue is empty: both are put there by one
#: rename(2), which may be interrupted in between.
PATIENCE = 0.05
#: Seconds of silence after which a directory that is not where it should be is given up.
DESPAIR = 5.0
#: Renames over a file that are remembered: the four records of an exchange come closely together.
EXCHANGES = 64
#: Records between two chances to stop.
RECORDS = 32

_M = InotifyMask
#: What is always asked for.
STRUCTURE = int(_M.CREATE | _M.DELETE | _M.MOVE)
_CREATE, _DELETE, _FROM, _TO = int(_M.CREATE), int(_M.DELETE), int(_M.MOVED_FROM), int(_M.MOVED_TO)
_ISDIR, _IGNORED, _OVERFLOW, _UNMOUNT = int(_M.ISDIR), int(_M.IGNORED), int(_M.Q_OVERFLOW), int(_M.UNMOUNT)
_MOVE_SELF, _DELETE_SELF = int(_M.MOVE_SELF), int(_M.DELETE_SELF)
#: What is about the contents of something that stays where it is.
_CONTENTS = (
    (int(_M.MODIFY), Kind.MODIFIED),
    (int(_M.CLOSE_WRITE), Kind.WRITTEN),
    (int(_M.ATTRIB), Kind.ATTRIBUTES),
    (int(_M.ACCESS | _M.OPEN | _M.CLOSE_NOWRITE), Kind.READ),
)
_CONTENT = sum(bits for bits, _ in _CONTENTS)


class Engine(TreeRoots):
    """See the module's first lines. *tell* is given every change, in order."""

    def __init__(
        self,
        files: Files,
        tell: Teller,
        *,
        recursive: bool = True,
        ignored: Callable[[str, str, bool], bool] | None = None,
    ) -> None:
        super().__init__(Tree(tell), files, recursive, ignored)
        self._records: deque[bytes] = deque()
        #: Bytes of records that were fed and not looked at yet.
        self.backlog: int = 0
        self._heard = self.clock()
        self._fed = self._done = 0  # bytes of records so far
        self._recovering = False  # from an overflow
        #: After one: the records up to this byte may have gaps.
        self._doubtful: int | None = None
        #: What is to be done between two records, each a function that gives the steps.
        self.tasks: deque[Callable[[], Steps]] = deque()
        # Places to which a file was moved where one was. If it leaves at once, two files may have been
        # exchanged by one rename: then what was told of the first is told of the second as well, and that
        # is where the first was.
        self._replaced: dict[tuple[Node, str], bool] = {}

    # -- what the one who drives it uses ------------------------------------------------------

    def feed(self, data: bytes) -> None:
        self._records.append(data)
        self.backlog += len(data)
        self._fed += len(data)
        self._heard = self.clock()

    @property
    def busy(self) -> bool:
        """Whether ``work`` has something to do now."""
        return bool(self._records or self.tasks)

    @property
    def settled(self) -> bool:
        """Whether nothing is open about the records that were fed."""
        open_questions = self.pairs or self.unsure or self.vacant or self.tree.orphans or self._recovering
        return not (self._records or self.tasks or open_questions)

    def work(self) -> Steps:
        """Do what there is to do; yields often."""
        while self.busy:
            if self.tasks:
                yield from self.tasks.popleft()()
            else:
                data = self._records.popleft()
                self.backlog -= len(data)
                yield from self._apply(data)
                self._done += len(data)
                if self._doubtful is not None and self._done >= self._doubtful:
                    yield from self._recover()
        if not self.settled and not self.files.queued():
            if self._doubtful is not None:
                yield from self._recover()
            yield from self._settle()

    # -- records ------------------------------------------------------------------------------

    def _apply(self, data: bytes) -> Steps:
        by_wd, tree = self.tree.by_wd, self.tree
        for count, (number, mask, cookie, name) in enumerate(unpacked(data), 1):
            if not count % RECORDS:
                yield
            if number in self._gates:
                yield from self._at_gate(number, mask, name)
            node = by_wd.get(number)
            if node is None:
                if mask & _OVERFLOW:
                    self._overflow()
                elif mask & _IGNORED:
                    tree.orphans.discard(number)
            elif not name:
                yield from self._of_itself(node, mask)
            elif mask & _CONTENT:
                is_dir = bool(mask & _ISDIR)
                entry = node.entries.get(name, node)  # itself: nothing
                if entry is not node and (entry is not None) is is_dir:  # and no older one of its name
                    kind = next(kind for bits, kind in _CONTENTS if mask & bits)
                    tree.say(kind, node, name, is_dir)
                    if kind is Kind.ATTRIBUTES and mask & _ISDIR:
                        yield from self._attributes_of(node, name)
            elif self.ignored is not None and self.ignored(tree.path(node), name, bool(mask & _ISDIR)):
                if mask & _TO:  # it has a name now that is ignored
                    leaving = self.pairs.take(cookie)
                    if leaving is not None:
                        self._hide(leaving)
            elif mask & _ISDIR:
                yield from self._directory(node, mask, cookie, name)
            else:
                self._file(node, mask, cookie, name)

    def _file(self, node: Node, mask: int, cookie: int, name: str) -> None:
        tree = self.tree
        entry = node.entries.get(name, node)  # itself: nothing
        if mask & _CREATE:
            if entry is not node and self.has_left(node, name):
                self.vacate(node, name)
                entry = node
            if entry is node:
                tree.add(node, name)
        elif mask & _DELETE:
            if entry is None:
                leaving = self.pairs.at(node, name)
                if leaving is not None:
                    self.pairs.drop(leaving)
                tree.remove(node, name)
        elif mask & _FROM:
            if entry is None:
                leaving = self.pairs.add(node, name, self.clock(), cookie)
                leaving.perhaps = self._replaced.pop((node, name), False)
        elif mask & _TO:
            leaving = self.pairs.take(cookie)
            if leaving is not None and leaving.node is not None:
                self.doubt(leaving.parent)  # a directory is there by now
                leaving = None
            if entry is None or node in self.unsure:
                self._replaced[node, name] = True
                if len(self._replaced) > EXCHANGES:
                    del self._replaced[next(iter(self._replaced))]
            if entry is not node and self.has_left(node, name):
                self.vacate(node, name)
                entry = node
                if leaving is not None and not leaving.holds:
                    leaving = None  # it was in what had left from here
            if entry is not node and entry is not None:
                # There is a directory by now and this file has gone meanwhile; or they were exchanged.
                self.doubt(node)
                if leaving is not None:
                    tree.remove(leaving.parent, leaving.name)
            elif leaving is not None:
                if leaving.perhaps:
                    self.doubt(leaving.parent)
                if leaving.parent is not node or leaving.name != name:
                    tree.move(leaving.parent, leaving.name, node, name, cookie)
            elif entry is node:
                tree.add(node, name, cookie)
            else:
                tree.say(Kind.MODIFIED, node, name, False, cookie)  # another file, from outside

    def _directory(self, node: Node, mask: int, cookie: int, name: str) -> Steps:
        tree = self.tree
        entry = node.entries.get(name, node)
        if mask & (_CREATE | _TO):
            leaving = self.pairs.take(cookie) if mask & _TO else None
            if leaving is not None and leaving.node is None:
                self.doubt(leaving.parent)  # a file is there by now
                leaving = None
            if mask & _CREATE and entry is not node:
                if self.has_left(node, name):
                    self.vacate(node, name)
                elif entry is None or entry.wd >= 0:
                    return  # it was found by a listing
                entry = node.entries.get(name, node)
            if self.recursive:
                yield from self._arrived(node, name, cookie, leaving)
            elif leaving is not None:
                self._place(leaving, node, name, cookie)
            elif entry is node or entry is None:
                self.vacate(node, name)
                tree.add_dir(node, name, -1, cookie)
        elif mask & _DELETE:
            if entry is node or entry is None:
                return
            if entry.entries and entry.wd >= 0 and self.is_there(entry):
                return  # the record is older than the listing that found it
            leaving = self.pairs.at(node, name)
            if leaving is not None:
                self.pairs.drop(leaving)
            tree.remove(node, name)
        elif entry is not node and entry is not None:  # MOVED_FROM
            self.pairs.add(node, name, self.clock(), cookie)

    def _arrived(self, parent: Node, name: str, cookie: int, leaving: Leaving | None) -> Steps:
        """A directory was made, or has moved, to *name* in *parent*: watch it and see what is in it."""
        directory = self.open(parent)
        opened = None
        if directory is None:
            self.doubt(parent)
        else:
            try:
                known = leaving is not None and leaving.holds
                opened = self.open_entry(directory, parent, name, known)
            finally:
                self.files.close(directory)
        if opened is None:
            if leaving is not None and leaving.holds:
                self._place(leaving, parent, name, cookie)
            return
        fd, number = opened
        fresh = None
        try:
            fresh = self.claim(parent, name, number, False, cookie, leaving)
        finally:
            if fresh is None:
                self.files.close(fd)
        if fresh is not None:
            yield from self.scan(fresh, fd)
        elif self.ignored is not None:
            yield from self._ignore_anew(parent, name)

    def _ignore_anew(self, parent: Node, name: str) -> Steps:
        """What is ignored may depend on the path, and that is another one now."""
        node = parent.entries.get(name)
        if node is not None:
            yield from self.look(node, every=True)

    def _place(self, leaving: Leaving, parent: Node, name: str, cookie: int) -> None:
        """A directory that cannot be looked at has moved to *name* in *parent*, says the kernel."""
        node = leaving.node
        assert node is not None
        if parent.entries.get(name, parent) is node:
            return
        self.doubt(parent)
        self.doubt(leaving.parent)
        if self.is_there(node):
            return
        if parent.is_below(node):  # as things were told so far
            self.pairs.add(leaving.parent, leaving.name, self.clock())
            return
        self.vacate(parent, name)
        if node.alive:
            self.tree.move(leaving.parent, leaving.name, parent, name, cookie)

    def _of_itself(self, node: Node, mask: int) -> Steps:
        """A record about the watched directory, and not about what is in it."""
        if mask & _IGNORED:
            number = node.wd
            self.tree.unwatched(node)
            self.tree.orphans.discard(number)
        if mask & _UNMOUNT and node.mount:
            node.mount = False
            self.tree.say(Kind.UNMOUNTED, node.parent, node.name, True, node=node)
        if node.parent is None:
            if mask & (_IGNORED | _MOVE_SELF | _DELETE_SELF):
                kind = Kind.MOVED_OUT if mask & _MOVE_SELF else Kind.DELETED
                yield from self._check_root(node, kind)
        elif mask & _IGNORED:
            self.doubt(node.parent)

    def _attributes_of(self, parent: Node, name: str) -> Steps:
        node = parent.entries[name]
        if node is not None and node.wd < 0 and node.refused:
            yield from self._arrived(parent, name, 0, None)

    # -- when records were lost ---------------------------------------------------------------

    def _overflow(self) -> None:
        """Records were lost; and more may be, after this one and without another word, until it is read.

        The kernel has this record once in its queue, and tells the next overflow only when it has gone. So
        everything is looked at when what was queued until then is behind us.
        """
        self.tree.say(Kind.OVERFLOW, None, "", False)
        self._recovering = True
        self._doubtful = self._fed + self.files.queued()

    def _recover(self) -> Steps:
        self._doubtful = None
        yield from self.rescan()
        for leaving in self.pairs:
            self._end(leaving)

    def rescan(self) -> Steps:
        """Look at everything."""
        self.begin_round()
        for path in list(self.follow):
            if path not in self.tree.roots:
                yield from self._await(path)
        for root in list(self.tree.roots.values()):
            if root.alive:
                yield from self._check_root(root, Kind.DELETED, every=True)
        for count, node in enumerate(list(self.tree.by_wd.values()), 1):
            if node.round != self.round:
                self.doubt(node)  # it moved meanwhile, from where we had not been to where we had
            if not count % RECORDS:
                yield

    # -- when the queue is empty --------------------------------------------------------------

    def _settle(self) -> Steps:
        yield from self.await_vacant()
        for node, since in list(self.unsure.items()):
            if node.alive and self.clock() - max(since, self._heard) > DESPAIR:
                del self.unsure[node]
                self._obstructed(node, errno.ESTALE)
                continue
            yield from self.look(node)
            if self.busy:
                return
            if node in self.unsure and node.alive:
                # It is not where it should be: what it is in knows where it went.
                if node.parent is not None:
                    self.doubt(node.parent)
                else:
                    yield from self._check_root(node, Kind.DELETED)
        now = self.clock()
        for leaving in self.pairs:
            if now - leaving.since >= PATIENCE:
                self._end(leaving)
                yield
        if not self.pairs and not self.unsure:
            while self.tree.orphans and not self.busy:
                number = self.tree.orphans.pop()
                if number not in self._gates:
                    self.files.unwatch(number)
                yield
            if self._recovering and not self.busy:
                self._recovering = False
                self.tree.say(Kind.RESCANNED, None, "", False)

    def _end(self, leaving: Leaving) -> None:
        """Nothing was heard of it. It has gone, unless it never left: see where it was."""
        stays = self._stays(leaving) if leaving.holds else None
        if stays:
            self.pairs.drop(leaving)
        elif stays is None and leaving.holds and self.clock() - max(leaving.since, self._heard) < DESPAIR:
            self.doubt(leaving.parent)  # that is where it was, but not where it is thought to be
        else:
            self.give_up(leaving)

    def _hide(self, leaving: Leaving) -> None:
        """It has a name now that is ignored; if two were exchanged, what had that name is in its place."""
        stays = self._stays(leaving)
        if stays and (leaving.node is not None or leaving.perhaps):
            return
        self.give_up(leaving)
        if stays is None:
            self.doubt(leaving.parent)

    def _stays(self, leaving: Leaving) -> bool | None:
        """Whether it, or a file for a file, is still where it was; None if nobody can look."""
        directory = self.open(leaving.parent)
        if directory is None:
            return None
        try:
            if leaving.node is None:
                return self.files.has_file(directory, leaving.name)
            return leaving.node.wd >= 0 and self.is_there(leaving.node)
        finally:
            self.files.close(directory)
