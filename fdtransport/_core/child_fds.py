"""The descriptors that a child is to have: what the caller says, and the pipes and sockets for it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import syscalls
from .handle import FileLike, fileno_of

__all__ = ["UNSET", "Descriptors", "close_ends", "descriptor_map", "open_ends"]

#: ``{number of the child: "r", "w" or "rw", DEVNULL, STDOUT, a descriptor or an open file}``.
Descriptors = Mapping[int, "str | FileLike"]

#: An argument that was not given.
UNSET: Any = type("UNSET", (), {"__repr__": lambda _: "UNSET"})()
_WORDS = {subprocess.PIPE: "PIPE", subprocess.STDOUT: "STDOUT", subprocess.DEVNULL: "DEVNULL"}
_NAMES = ("stdin", "stdout", "stderr")


def descriptor_map(
    fds: Descriptors | None, default: int | None, passed: Iterable[int] = (), **standard: Any
) -> dict[int, str | FileLike]:
    """*fds* together with what ``stdin``, ``stdout`` and ``stderr`` say, in asyncio's words.

    Without *fds*, those that are not given are *default*. *passed*: descriptors that keep their numbers.

    :raises ValueError, TypeError: a descriptor is given twice, or is of no use.
    """
    result: dict[int, Any] = {}
    if not isinstance(fds, Mapping | None):
        raise TypeError(f"fds is a map of the child's descriptors, as {{0: 'w', 1: 'r', 2: 2}}, not {fds!r}")
    for number, given in (fds or {}).items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"a descriptor of the child is a number, not {number!r}")
        result[number] = _wanted(number, given, f"fds[{number}]")
    for number, name in enumerate(_NAMES):
        value: Any = standard.pop(name)
        if value is UNSET:
            if fds is not None:
                continue
            value = default
        elif number in result:
            raise ValueError(f"descriptor {number} of the child is given twice: {name} and fds[{number}]")
        if value is None:
            if _is_open(number):
                result[number] = number
        else:
            result[number] = _wanted(number, value, name)
    for number in passed:
        if result.setdefault(number, number) != number:
            raise ValueError(
                f"descriptor {number} of the child is given twice: fds or its name, and pass_fds"
            )
    for number, value in result.items():
        if type(value) is int and value == subprocess.STDOUT and 1 not in result:
            raise ValueError(f"descriptor {number} of the child is to go where 1 goes, and there is no 1")
    return result


def _wanted(number: int, value: Any, name: str) -> str | FileLike:
    if value in ("r", "w", "rw"):
        return str(value)
    if type(value) is int:
        if value == subprocess.PIPE and number < 3:
            return "r" if number else "w"
        if value >= 0 or value == subprocess.DEVNULL or (value == subprocess.STDOUT and number != 1):
            return value
    elif hasattr(value, "fileno"):
        return value  # type: ignore[no-any-return]
    right = "'r', 'w' or 'rw' (what this side does), DEVNULL, a descriptor or an open file"
    if name in _NAMES:
        right = "PIPE, DEVNULL, STDOUT (stderr alone), None, a descriptor or an open file"
    told = _WORDS.get(value, repr(value)) if type(value) is int else repr(value)
    if value is None:
        told += f"; {{{number}: {number}}} has it inherited"
    raise (ValueError if isinstance(value, int | str) else TypeError)(f"{name} is {right}, not {told}")


def _is_open(fd: int) -> bool:
    try:
        syscalls.fstat(fd)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def open_ends(fds: Descriptors) -> Iterator[tuple[dict[int, int], dict[int, Any]]]:
    """The child's ends by its numbers, closed here afterwards; and ours, which are whoever's takes them."""
    theirs: dict[int, int] = {}
    ours: dict[int, Any] = {}
    with contextlib.ExitStack() as temporary:
        with contextlib.ExitStack() as undo:
            undo.callback(close_ends, ours)
            for number, value in fds.items():
                if isinstance(value, str):
                    end, other = _pair(value)
                    temporary.callback(_close, other)
                    ours[number], theirs[number] = end, other
                elif type(value) is int and value == subprocess.DEVNULL:
                    theirs[number] = syscalls.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    temporary.callback(_close, theirs[number])
                elif type(value) is not int or value >= 0:
                    theirs[number] = fileno_of(value)
            for number in fds.keys() - theirs.keys():
                theirs[number] = theirs[1]  # STDOUT
            undo.pop_all()
        yield theirs, ours


def _pair(mode: str) -> tuple[Any, int]:
    """Our end and the child's."""
    if mode == "rw":
        near, far = socket.socketpair()
        return near, far.detach()
    reading, writing = syscalls.pipe(os.O_CLOEXEC)
    return (reading, writing) if mode == "r" else (writing, reading)


def close_ends(ends: Mapping[int, Any]) -> None:
    """Close what is left of our ends."""
    for end in ends.values():
        if isinstance(end, int):
            _close(end)
        else:
            end.close()


def _close(fd: int) -> None:
    try:
        syscalls.close(fd)
    except OSError:
        pass  # it is closed all the same (close(2)), and the process runs
