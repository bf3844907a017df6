"""A watched tree compared with what is there: directories are watched first and listed second.

Whatever happens after a directory is watched is in the kernel's queue, and what happened before is in the
listing; nothing can fall between. Some is in both, and records that are older than the listing come after
it. Three rules make the end right however they are mixed:

* The last record about a name, or else the listing, says whether it is there.
* A record that does not fit what is there (a file for a directory) is older than the listing.
* A directory is known by its watch and not by its path: the kernel gives the same number for the same
  directory. One that turns up in a second place has moved, and the record of it is still to come.

A path leads where it should only if every move above it is known. What is opened is therefore asked for its
number; where that is not the expected one the directory is noted as unsure, and looked at again.

Everything here that can take long is a generator, which yields wherever it may be left for a while.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Generator

from .watch_files import Files
from .watch_pairs import Leaving, Pairs
from .watch_tree import Kind, Node, Tree

__all__ = ["Steps", "TreeScan"]

Steps = Generator[None, None, None]

#: Directories that are open at once, each within the one before: descriptors are not ours alone.
DEPTH = 60
#: Entries of a listing between two chances to stop.
ENTRIES = 64
#: What an open or a watch tells when there is no room now; when the name has gone, or is something else.
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)


class TreeScan:
    """See the module's first lines. *ignored*: (path of the directory, name, whether it is one) -> bool."""

    def __init__(
        self, tree: Tree, files: Files, recursive: bool, ignored: Callable[[str, str, bool], bool] | None
    ) -> None:
        self.tree = tree
        self.files = files
        self.recursive = recursive
        self.ignored = ignored
        self.pairs: Pairs = Pairs()
        #: Directories that may not be as they were told, and since when.
        self.unsure: dict[Node, float] = {}
        #: Too deep for the scan that found them, or moved; and whether to look at all that is below.
        self._later: list[tuple[Node, bool]] = []
        self.round: int = 0  # of looking at everything; what was not listed in it is not sure
        #: Paths of roots that were found to have moved: something else may be there now.
        self.vacant: list[str] = []
        self._refused = 0  # the errno of the last watch that was refused
        #: The errno of a directory that is perhaps where it should be, and could not be opened.
        self.obstacle: int = 0
        self.clock: Callable[[], float] = time.monotonic

    def begin_round(self) -> None:
        """From now on every directory is to be listed once more."""
        self.round += 1

    # -- one directory ------------------------------------------------------------------------

    def open(self, node: Node) -> int | None:
        """*node*, opened; None where its path leads somewhere else, or nowhere."""
        self.obstacle = 0
        try:
            fd = self.files.open(self.tree.path(node), follow=node.parent is None)
        except OSError as exc:
            if exc.errno not in _GONE:
                self.obstacle = exc.errno or -1
            return None
        try:
            number = self.files.watch(fd)
        except OSError:
            number = -1
        if number == node.wd >= 0:
            return fd
        self.files.close(fd)
        if number >= 0 and number not in self.tree.by_wd:
            self.tree.orphans.add(number)
        return None

    def is_there(self, node: Node) -> bool:
        """Whether *node* is where it is thought to be, at this moment."""
        fd = self.open(node)
        if fd is None:
            return False
        self.files.close(fd)
        return True

    def doubt(self, node: Node) -> None:
        self.unsure.setdefault(node, self.clock())

    def open_entry(
        self, directory: int, parent: Node, name: str, known: bool = False
    ) -> tuple[int, int] | None:
        """*name* in the opened *directory* as descriptor and number of its watch; None if that cannot be.

        Why it cannot is told, unless it has gone, or is *known* from where it was before.
        """
        fd = -1
        try:
            fd = self.files.open_in(directory, name)
            number = self.files.watch(fd)
        except OSError as exc:
            if fd >= 0:
                self.files.close(fd)
            if exc.errno in SCARCE:
                self.doubt(parent)  # not now
            elif exc.errno not in _GONE and not known:
                self._cannot(parent, name, exc)
            return None
        self._refused = 0
        return fd, number

    def _cannot(self, parent: Node, name: str, exc: OSError) -> None:
        """A directory that cannot be watched: it has a place, and what is in it is not known."""
        entry = parent.entries.get(name, parent)
        if entry is parent or entry is None:
            self.vacate(parent, name)
            node = self.tree.add_dir(parent, name, -1, 0, True)
        elif entry.wd >= 0:
            return  # it could once, and is watched still
        else:
            node = entry
            if node.refused == exc.errno:
                return
        node.refused = exc.errno or -1
        if exc.errno == errno.ENOSPC and self._refused == errno.ENOSPC:
            return  # one of many
        self._refused = exc.errno or 0
        self.tree.say(Kind.ERROR, parent, name, True, 0, True, error=exc, node=node)

    def vacate(self, parent: Node, name: str) -> None:
        """Whatever is *name* in *parent* is there no more: something else is."""
        if name in parent.entries:
            leaving = self.pairs.at(parent, name)
            if leaving is not None:
                self.give_up(leaving)
            else:
                self.tree.remove(parent, name, Kind.DELETED, 0, True)

    def left(self, leaving: Leaving) -> None:
        """It is not where the kernel said that it went: wait for it to turn up, unless it is still there.

        Of two directories that were exchanged by one rename, the first takes the place of the second; what
        is said then about that place is about the second.
        """
        assert leaving.node is not None
        if not self.is_there(leaving.node):
            self.pairs.add(leaving.parent, leaving.name, self.clock())

    def has_left(self, parent: Node, name: str) -> bool:
        """Whether what is *name* in *parent* has left, now that something else is said to be there."""
        leaving = self.pairs.at(parent, name)
        if leaving is None:
            return False
        if leaving.node is not None and self.is_there(leaving.node):
            self.pairs.drop(leaving)  # what is said is older
            return False
        return True

    def give_up(self, leaving: Leaving) -> None:
        """What has left is nowhere else in the tree."""
        self.pairs.drop(leaving)
        if leaving.holds:
            out = leaving.key > 0
            kind = Kind.MOVED_OUT if out else Kind.DELETED
            cookie = leaving.key if out else 0
            self.tree.remove(leaving.parent, leaving.name, kind, cookie, not out)

    def claim(
        self,
        parent: Node,
        name: str,
        number: int,
        synthetic: bool = True,
        cookie: int = 0,
        leaving: Leaving | None = None,
    ) -> Node | None:
        """The directory with the watch *number* was seen as *name* in *parent*.

        *leaving*: what the kernel says to have moved there. Returns the node if it is new, and is to be
        listed.
        """
        tree = self.tree
        entry = parent.entries.get(name, parent)
        node = tree.by_wd.get(number)
        if leaving is not None and leaving.node is not node:
            # That was somewhere else already when it was moved, or something else is here by now.
            self.left(leaving)
        if node is not None and node is entry:
            here = self.pairs.at(parent, name)
            if here is not None:
                self.pairs.drop(here)
            return None
        if node is not None and node.parent is None:
            if self.is_there(node) or parent.is_below(node):
                self._second(parent, name)
                return None
            self.root_has_moved(node)
            node = None
        if node is not None:
            if parent.is_below(node):
                self._second(parent, name)
                return None
            assert node.parent is not None
            told = leaving is not None and leaving.node is node
            waits = self.pairs.at(node.parent, node.name)
            if not told and waits is None and self.is_there(node):
                self._second(parent, name)
                return None
            self.vacate(parent, name)
            if node.alive:  # and not in what was here before
                former = node.parent
                if waits is not None:
                    self.pairs.drop(waits)
                elif not told:
                    self.doubt(former)
                tree.move(former, node.name, parent, name, cookie, not told)
                return None
        elif entry is not None and entry is not parent and entry.wd < 0:
            waits = self.pairs.at(parent, name)
            if waits is None:
                tree.watched(entry, number)  # it could not be watched before
                entry.refused = 0
                return entry
        self.vacate(parent, name)
        return tree.add_dir(parent, name, number, cookie, synthetic)

    def root_has_moved(self, root: Node) -> None:
        """A root was seen elsewhere, before the record of its move."""
        self.vacant.append(root.name)
        self.tree.remove_root(root, Kind.MOVED_OUT, True)

    def _obstructed(self, node: Node, number: int) -> None:
        """A directory that is watched cannot be looked at any more."""
        if node.refused != number:
            node.refused = number
            error = OSError(number, os.strerror(number), self.tree.path(node))
            self.tree.say(Kind.ERROR, node.parent, node.name, True, 0, True, error=error, node=node)

    def _second(self, parent: Node, name: str) -> None:
        """A directory that is at another place as well: it is mounted there, or it moves while we look."""
        entry = parent.entries.get(name)
        if entry is None or entry.refused != errno.EXDEV:
            self.doubt(parent)
            self.vacate(parent, name)
            node = self.tree.add_dir(parent, name, -1, 0, True)
            node.refused = errno.EXDEV
            self._mount(node)

    def _mount(self, node: Node) -> None:
        node.mount = True
        self.tree.say(Kind.MOUNT, node.parent, node.name, True, 0, True, node=node)

    # -- a directory and what is below --------------------------------------------------------

    def scan(self, node: Node, fd: int, every: bool = False) -> Steps:
        """List *node*, opened as *fd*, and every directory in it that is new, or *every* one."""
        files = self.files
        device = files.device(fd)
        stack: list[tuple[Node, int, int, list[str]]] = []
        try:
            names: list[str] = []
            yield from self._list(node, fd, names)
            stack.append((node, fd, device, names))
            fd = -1
            while stack:
                node, directory, device, names = stack[-1]
                if not names or not node.alive or not self.recursive:
                    stack.pop()
                    files.close(directory)
                    continue
                name = names.pop()
                opened = self.open_entry(directory, node, name)
                if opened is None:
                    yield
                    continue
                fd, number = opened
                yield
                known = self.tree.by_wd.get(number)
                before = known and (known.parent, known.name)
                fresh = self.claim(node, name, number)
                entry = fresh or node.entries.get(name)
                if known and known is entry and before != (node, name) and self.ignored is not None:
                    self._later.append((entry, True))  # that may depend on the path
                if entry is None or entry.wd != number or not (fresh or every):
                    files.close(fd)
                    fd = -1
                    continue
                inner = files.device(fd)
                if -1 != inner != device != -1 and not entry.mount:
                    self._mount(entry)
                if len(stack) >= DEPTH:
                    self._later.append((entry, every))
                    files.close(fd)
                    fd = -1
                    continue
                names = []
                yield from self._list(entry, fd, names)
                stack.append((entry, fd, inner, names))
                fd = -1
        finally:
            if fd >= 0:
                files.close(fd)
            for _, fd, _, _ in stack:
                files.close(fd)
        while self._later:
            yield from self.look(*self._later.pop())

    def look(self, node: Node, every: bool = False) -> Steps:
        """As ``scan``, by the path of *node*; if that does not lead to it, it stays unsure."""
        if not node.alive or node.wd < 0:
            self.unsure.pop(node, None)
            return
        fd = self.open(node)
        if fd is None:
            if self.obstacle and self.obstacle not in SCARCE:
                self.unsure.pop(node, None)
                self._obstructed(node, self.obstacle)
            else:
                self.doubt(node)
            return
        self.unsure.pop(node, None)
        yield from self.scan(node, fd, every)

    def _list(self, node: Node, fd: int, directories: list[str]) -> Steps:
        """Have the entries of *node* be what the listing of *fd* says; its directories go to the list."""
        tree, entries, ignored = self.tree, node.entries, self.ignored
        node.round = self.round
        seen: set[str] = set()
        hidden: set[str] = set()
        since = 0
        try:
            with self.files.list(fd) as listing:
                for item in listing:
                    name = item.name
                    is_dir = item.is_dir(follow_symlinks=False)
                    since += 1
                    if not since % ENTRIES:
                        yield
                    if ignored is not None and ignored(tree.path(node), name, is_dir):
                        hidden.add(name)
                        continue
                    seen.add(name)
                    entry = entries.get(name, node)
                    if is_dir:
                        directories.append(name)
                        if not self.recursive and (entry is node or entry is None):
                            self.vacate(node, name)
                            tree.add_dir(node, name, -1, 0, True)
                    elif entry is node:
                        tree.add(node, name, 0, True)
                    elif entry is not None:
                        self.vacate(node, name)
                        tree.add(node, name, 0, True)
        except OSError as exc:
            if exc.errno not in _GONE:
                self.tree.say(Kind.ERROR, node.parent, node.name, True, 0, True, error=exc, node=node)
            return
        for name in [name for name in entries if name not in seen]:
            since += 1
            if not since % ENTRIES:
                yield
            if name in hidden:
                self.vacate(node, name)
            elif self.pairs.at(node, name) is None:
                if entries[name] is None or not self.recursive:
                    tree.remove(node, name, Kind.DELETED, 0, True)
                else:
                    self.pairs.add(node, name, self.clock())
