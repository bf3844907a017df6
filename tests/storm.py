"""A storm over directory trees: what a watcher is to keep up with, in a process that waits for nobody.

    python storm.py SEED OPERATIONS OUTSIDE ROOT...

The same seed and arguments give the same storm. Directories and files are made, deep ones too, renamed,
over others, across the trees, exchanged, deleted one by one and as trees, moved to OUTSIDE and back. Names
are few, so that each is used again before long. It never sleeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import sys
from typing import ClassVar

TEXT = [*"abcdefghij", "sub.d", "a name"]
NAMES = [*TEXT, "t\udcff"]
_libc = ctypes.CDLL(None, use_errno=True)
RENAME_EXCHANGE = 2


def exchange(one: str, other: str) -> None:
    arguments = (-100, os.fsencode(one), -100, os.fsencode(other), RENAME_EXCHANGE)
    if _libc.renameat2(*arguments):
        raise OSError(ctypes.get_errno(), "renameat2")


class Storm:
    def __init__(self, seed: int, outside: str, roots: list[str], names: list[str] = NAMES) -> None:
        self.names = names
        self.random = random.Random(seed)
        self.outside = outside
        self.roots = roots
        self.directories = list(roots)
        self.files: list[str] = []
        self.away: list[str] = []
        self.count = 0

    def look(self) -> None:
        """What is there by now: others may be at it as well."""
        self.directories, self.files = list(self.roots), []
        for root in self.roots:
            for path, directories, files in os.walk(root):
                self.directories += [os.path.join(path, name) for name in directories]
                self.files += [os.path.join(path, name) for name in files]

    def name(self) -> str:
        name = self.random.choice(self.names)
        return name if self.random.random() < 0.8 else f"{name}{self.random.randrange(1000)}"

    def place(self) -> str:
        return os.path.join(self.random.choice(self.directories), self.name())

    def some(self, what: list[str], roots: bool = False) -> str:
        path = self.random.choice(what)
        if path in self.roots and not roots:
            raise FileNotFoundError
        return path

    def forget(self, path: str) -> None:
        inside = path + "/"
        self.directories = [d for d in self.directories if d != path and not d.startswith(inside)]
        self.files = [f for f in self.files if f != path and not f.startswith(inside)]

    def moved(self, old: str, new: str) -> None:
        inside, n = old + "/", len(old)
        for paths in (self.directories, self.files):
            for i, path in enumerate(paths):
                if path == old or path.startswith(inside):
                    paths[i] = new + path[n:]

    # -- what can happen ------------------------------------------------------------------------

    def make(self) -> None:
        path = self.place()
        os.mkdir(path)
        self.directories.append(path)

    def make_deep(self) -> None:
        path = self.random.choice(self.directories)
        if path.count("/") > 40:
            raise FileNotFoundError
        for _ in range(self.random.randint(2, 5)):
            path = os.path.join(path, self.name())
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
                self.directories.append(path)
            self.put(os.path.join(path, self.name()))

    def create(self) -> None:
        self.put(self.place())

    def put(self, path: str) -> None:
        new = not os.path.lexists(path)
        with open(path, "w") as file:
            file.write("x")
        if new:
            self.files.append(path)

    def link(self) -> None:
        path = self.place()
        os.symlink(self.random.choice(self.directories), path)
        self.files.append(path)

    def rename_file(self) -> None:
        self.rename(self.some(self.files), self.place())

    def rename_over(self) -> None:
        self.rename(self.some(self.files), self.some(self.files))

    def rename_directory(self) -> None:
        self.rename(self.some(self.directories), self.place())

    def rename_over_directory(self) -> None:
        self.rename(self.some(self.directories), self.some(self.directories))

    def rename(self, old: str, new: str) -> None:
        if old == new or new.startswith(old + "/") or new in self.roots:
            raise FileNotFoundError
        os.rename(old, new)
        self.forget(new)
        self.moved(old, new)

    def exchange(self) -> None:
        kinds = self.directories, self.files
        one, other = (self.some(self.random.choice(kinds)) for _ in range(2))
        if f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
            raise FileNotFoundError
        exchange(one, other)
        self.moved(one, "\0")
        self.moved(other, one)
        self.moved("\0", other)

    def move_back_and_forth(self) -> None:
        path, place = self.some(self.directories), self.place()
        self.rename(path, place)
        self.rename(place, path)

    def replace(self) -> None:
        """A directory goes, and another one has its name at once."""
        path, place = self.some(self.directories), self.place()
        self.rename(path, place)
        os.mkdir(path)
        self.directories.append(path)
        self.put(os.path.join(path, self.name()))

    def delete(self) -> None:
        path = self.some(self.files)
        os.unlink(path)
        self.forget(path)

    def delete_tree(self) -> None:
        path = self.some(self.directories)
        if self.random.random() < 0.5:
            path = max((self.some(self.directories) for _ in range(4)), key=len)  # rather a small one
        shutil.rmtree(path)
        self.forget(path)

    def move_out(self) -> None:
        path = self.some(self.directories if self.random.random() < 0.5 else self.files)
        self.count += 1
        place = os.path.join(self.outside, str(self.count))
        os.rename(path, place)
        self.forget(path)
        self.away.append(place)

    def move_in(self) -> None:
        if not self.away:
            raise FileNotFoundError
        path, place = self.away.pop(self.random.randrange(len(self.away))), self.place()
        os.rename(path, place)
        self.forget(place)
        if os.path.isdir(place) and not os.path.islink(place):
            self.directories.append(place)
            for where, directories, files in os.walk(place):
                self.directories += [os.path.join(where, name) for name in directories]
                self.files += [os.path.join(where, name) for name in files]
        else:
            self.files.append(place)

    WEIGHTS: ClassVar = {
        make: 14, make_deep: 12, create: 22, link: 1, rename_file: 10, rename_over: 4, rename_directory: 12,
        rename_over_directory: 3, exchange: 4, move_back_and_forth: 2, replace: 3, delete: 12, delete_tree: 4,
        move_out: 4, move_in: 4,
    }  # fmt: skip

    def run(self, operations: int) -> int:
        choices, weights = list(self.WEIGHTS), list(self.WEIGHTS.values())
        done = 0
        for what in self.random.choices(choices, weights, k=operations):
            # IndexError: there is none. OSError: there is something else of that name, or it is not empty.
            with contextlib.suppress(OSError, IndexError):
                what(self)
                done += 1
        return done


def flood(directory: str, count: int) -> None:
    """More events than a queue holds."""
    path = os.path.join(directory, "flood")
    for _ in range(count // 2):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.unlink(path)


if __name__ == "__main__":
    storm = Storm(int(sys.argv[1]), sys.argv[3], sys.argv[4:])
    storm.look()
    print(storm.run(int(sys.argv[2])))
