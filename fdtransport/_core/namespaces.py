"""Network namespaces: do something inside of another one, and be back where one was.

A namespace belongs to a thread (setns(2)). The thread that runs the loop stays in its own; what is
opened in another one works from everywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from . import syscalls
from .handle import HasFileno

__all__ = ["Namespace", "OpenNamespace", "in_namespace"]

#: A process whose namespace is meant, the path of one, the name of one (ip-netns(8)), or one that is open.
Namespace = int | str | os.PathLike[str] | HasFileno

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
#: Where ip-netns(8) keeps those that have a name.
NAMED = "/run/netns"


class OpenNamespace:
    """A descriptor of a namespace; its number alone would be taken for a process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


def in_namespace(namespace: Namespace | None, function: Callable[[], T]) -> T:
    """What *function* returns when it is called inside of *namespace*; None is the one of this thread.

    It runs in a thread that ends with it, and this one waits: it should not take long.

    :raises OSError: there is no such namespace, or it cannot be entered. :raises TypeError, ValueError:
        *namespace* is none.
    """
    if namespace is None:
        return function()
    with _opened(namespace) as fd:
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                syscalls.setns(fd, _CLONE_NEWNET)
            except OSError as exc:
                errors.append(OSError(exc.errno, f"{os.strerror(exc.errno or 0)}: {_why(exc, namespace)}"))
                return
            try:
                results.append(function())
            except BaseException as exc:
                errors.append(exc)

        thread = threading.Thread(target=run, name="fdtransport-netns")
        thread.start()
        thread.join()
    if errors:
        raise errors.pop()
    return results[0]


def _why(exc: OSError, namespace: object) -> str:
    if exc.errno == errno.EPERM:
        return f"entering the network namespace {namespace!r} takes CAP_SYS_ADMIN in its user namespace"
    return f"{namespace!r} is no network namespace"


@contextlib.contextmanager
def _opened(namespace: Namespace) -> Iterator[int]:
    if not isinstance(namespace, (int, str, os.PathLike)):
        if not hasattr(namespace, "fileno"):
            what = "a network namespace is a path, a name or the id of a process"
            raise TypeError(f"{what}, not {namespace!r}")
        yield namespace.fileno()
        return
    path = _path(namespace)
    try:
        fd = syscalls.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as exc:
        absent = exc.errno in (errno.ENOENT, errno.ESRCH)
        what = "there is no network namespace" if absent else "it is about the network namespace"
        raise OSError(exc.errno, f"{exc.strerror}: {what} {path!r}") from None
    try:
        yield fd
    finally:
        syscalls.close(fd)


def _path(namespace: int | str | os.PathLike[str]) -> str:
    if isinstance(namespace, int):
        if namespace < 1:
            raise ValueError(f"{namespace} is no id of a process")
        return f"/proc/{namespace}/ns/net"
    path = os.fspath(namespace)
    if not path:
        raise ValueError("an empty string names no network namespace")
    return path if "/" in path else f"{NAMED}/{path}"
