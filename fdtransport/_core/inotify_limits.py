"""The limits of inotify(7): what they are, what uses them up, and an error that says so."""

from __future__ import annotations

import errno
import os
import time
from typing import NamedTuple

from ..errors import InotifyLimitError
from . import syscalls

__all__ = ["InotifyLimits", "as_limit_error", "limits", "watch_numbers"]

#: Seconds for a look at what other processes of this user have: an error's text is worth no more.
_LOOK = 0.05
_QUEUE, _INSTANCES, _WATCHES = "max_queued_events", "max_user_instances", "max_user_watches"
#: Each of the last two has a second name, for the user namespace that this process is in.
_NAMES = {
    _QUEUE: ("fs.inotify.max_queued_events",),
    _INSTANCES: ("fs.inotify.max_user_instances", "user.max_inotify_instances"),
    _WATCHES: ("fs.inotify.max_user_watches", "user.max_inotify_watches"),
}


class InotifyLimits(NamedTuple):
    """What the kernel allows; -1 where it does not tell."""

    max_queued_events: int
    """Events that wait in one instance before the queue runs over."""
    max_user_instances: int
    """Instances of one user."""
    max_user_watches: int
    """Watches of one user, over all instances."""


def _in_force(name: str) -> tuple[int, str]:
    """The lowest value that a limit has, and the sysctl that sets it."""
    found = []
    for sysctl in _NAMES[name]:
        text = _text("/proc/sys/" + sysctl.replace(".", "/"))
        if text.strip().isdigit():
            found.append((int(text), sysctl))
    return min(found, default=(-1, _NAMES[name][0]))


def limits() -> InotifyLimits:
    """The limits of this moment, from /proc/sys."""
    return InotifyLimits(*(_in_force(name)[0] for name in (_QUEUE, _INSTANCES, _WATCHES)))


def _text(path: str) -> str:
    try:
        fd = syscalls.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        pieces = []
        while piece := syscalls.read(fd, 65536):
            pieces.append(piece)
        return b"".join(pieces).decode(errors="replace")
    except OSError:
        return ""
    finally:
        syscalls.close(fd)


def watch_numbers(fd: int, process: str = "self") -> set[int]:
    """The numbers of the watches that the instance *fd* has now: /proc/PID/fdinfo of proc(5)."""
    lines = _text(f"/proc/{process}/fdinfo/{fd}").splitlines()
    return {int(line.split(" ", 2)[1][3:], 16) for line in lines if line.startswith("inotify wd:")}


def _names(directory: str) -> list[str]:
    with syscalls.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _use() -> tuple[dict[str, list[int]], bool]:
    """Instances and watches of each process of this user, and whether there was time to see them all."""
    found: dict[str, list[int]] = {}
    deadline, me = time.monotonic() + _LOOK, os.getuid()
    processes = [name for name in _names("/proc") if name.isdigit()]
    processes.sort(key=lambda name: name != str(os.getpid()))  # this one first
    for process in processes:
        try:
            if syscalls.stat(f"/proc/{process}").st_uid != me:
                continue
            for fd in _names(f"/proc/{process}/fd"):
                if syscalls.readlink(f"/proc/{process}/fd/{fd}") == "anon_inode:inotify":
                    use = found.setdefault(process, [0, 0])
                    use[0] += 1
                    use[1] += _text(f"/proc/{process}/fdinfo/{fd}").count("inotify wd:")
                if time.monotonic() > deadline:
                    return found, False
        except OSError:
            continue  # it has ended, or is none of ours
    return found, True


def as_limit_error(exc: OSError) -> OSError:
    """What to raise for *exc*, which making an instance or a watch gave: a limit by its name."""
    if exc.errno == errno.ENOSPC:
        name, place = _WATCHES, 1
    elif exc.errno == errno.EMFILE:
        if _out_of_descriptors():
            return OSError(
                exc.errno,
                f"{exc.strerror}: this process's limit of descriptors (RLIMIT_NOFILE of getrlimit(2)) is "
                f"{syscalls.descriptor_limit()}; ulimit -n raises it",
            )
        name, place = _INSTANCES, 0
    else:
        return exc
    value, sysctl = _in_force(name)
    what = "watches" if place else "instances"
    use, complete = _use()
    used = sum(each[place] for each in use.values())
    mine = use.get(str(os.getpid()), [0, 0])[place]
    remedy = f"sysctl {sysctl}={max(2 * value, 524288 if place else 1024)}"
    most = sorted(((each[place], process) for process, each in use.items()), reverse=True)[:3]
    others = "; ".join(f"{count} by {_name(process)}, process {process}" for count, process in most if count)
    text = (
        f"{exc.strerror}: the user's limit of inotify {what}, {sysctl}, is {value}; in use are "
        f"{'' if complete else 'at least '}{used}, {mine} of them here"
        f"{f' ({others})' if others else ''}; to raise it: {remedy}"
    )
    error = InotifyLimitError(exc.errno, text, limit=sysctl, value=value, used=used, remedy=remedy)
    if exc.filename is not None:  # set to None, it is told as ": None"
        error.filename = exc.filename
    return error


def _name(process: str) -> str:
    return _text(f"/proc/{process}/comm").strip() or "?"


def _out_of_descriptors() -> bool:
    try:
        fd = syscalls.open("/proc/self", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        return exc.errno == errno.EMFILE
    syscalls.close(fd)
    return False
