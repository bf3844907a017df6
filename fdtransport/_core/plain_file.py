"""Files at a path: opened, and gone again if they are new and nothing became of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from . import syscalls

__all__ = ["opened_file"]


@contextlib.contextmanager
def opened_file(path: str, flags: int, create: str) -> Iterator[int]:
    """The descriptor of the file at *path*, by open(2) with *flags*; closed if the block raises.

    *create*: ``"yes"``, ``"no"`` or ``"new"`` (it must not be there). A file that is new here is then
    removed as well, if it is still the one at *path*.

    :raises OSError: as open(2).
    """
    new = create != "no"
    if new:
        try:
            # Only so does the kernel tell whether the file is new.
            fd = syscalls.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if create == "new":
                raise
            new = False
            # Still to be created: a link that leads nowhere yet, or for what fs.protected_regular forbids.
            fd = syscalls.open(path, flags | os.O_CREAT, 0o666)
    else:
        fd = syscalls.open(path, flags, 0o666)
    try:
        yield fd
    except BaseException:
        with contextlib.suppress(OSError):
            if new and os.path.samestat(syscalls.fstat(fd), syscalls.stat(path)):
                syscalls.unlink(path)
        syscalls.close(fd)
        raise
