"""Who a process is to be: numbers of a user and groups, from names or numbers, and what these may execute."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Any, NamedTuple

from . import syscalls

try:
    import grp
    import pwd
except ImportError:  # Windows
    grp = pwd = None  # type: ignore[assignment]

__all__ = ["LARGEST", "Credentials", "credentials_of"]

#: Numbers of a user or group are C ints.
LARGEST = 2**31 - 1


class Credentials(NamedTuple):
    """What is to change; None for what stays as it is here."""

    user: int | None
    group: int | None
    extra_groups: tuple[int, ...] | None

    def options(self) -> list[bytes]:
        """The options with which setpriv(1) becomes this."""
        options = []
        if self.user is not None:
            options.append(f"--reuid={self.user}")
        if self.group is not None:
            options.append(f"--regid={self.group}")
        if self.extra_groups is not None:
            more = ",".join(map(str, self.extra_groups))
            options.append(f"--groups={more}" if more else "--clear-groups")
        elif self.group is not None:
            options.append("--keep-groups")  # setpriv insists on being told
        return [option.encode() for option in options]

    def may_execute(self, program: bytes, directory: bytes) -> bool:
        """Whether modes let it: of the file, and of the directories to it (path_resolution(7)).

        *directory* is where it is looked for, should it be relative. True where modes do not have the last
        word: there is an access control list, or something cannot be looked at from here.
        """
        try:
            here, start = os.path.realpath(os.path.join(directory, program)), os.path.realpath(directory)
            if os.path.isabs(program) or os.path.commonpath([here, start]) != start:
                start = b"/"
            while self._may_pass(here):
                if here == start:
                    return True
                here = os.path.dirname(here)
        except OSError:
            return True
        return False

    def _may_pass(self, path: bytes) -> bool:
        status = syscalls.stat(path)
        user = os.geteuid() if self.user is None else self.user
        if not user:  # root needs one of the bits, and for a directory none
            return bool(stat.S_ISDIR(status.st_mode) or status.st_mode & 0o111)
        if status.st_uid == user:
            return bool(status.st_mode & stat.S_IXUSR)
        if _has_list(path):
            return True
        groups = set(os.getgroups() if self.extra_groups is None else self.extra_groups)
        groups.add(os.getegid() if self.group is None else self.group)
        bit = stat.S_IXGRP if status.st_gid in groups else stat.S_IXOTH
        return bool(status.st_mode & bit)


def _has_list(path: bytes) -> bool:
    try:
        os.getxattr(path, b"system.posix_acl_access")  # acl(5)
    except OSError:
        return False
    return True


def credentials_of(
    user: str | int | None, group: str | int | None, extra_groups: Iterable[str | int] | None
) -> Credentials:
    """As subprocess: *user* alone leaves the groups alone, *group* alone the user.

    :raises ValueError, TypeError: it is nobody. :raises PermissionError: this process may not become that.
    """
    if isinstance(extra_groups, str):
        raise TypeError(f"extra_groups is a list, not {extra_groups!r}")
    credentials = Credentials(
        None if user is None else _user(user),
        None if group is None else _group(group),
        None if extra_groups is None else tuple(_group(one) for one in extra_groups),
    )
    _check_allowed(*credentials)
    return credentials


def _user(user: str | int) -> int:
    return _identifier("user", user, lambda name: pwd.getpwnam(name).pw_uid)


def _group(group: str | int) -> int:
    return _identifier("group", group, lambda name: grp.getgrnam(name).gr_gid)


def _identifier(what: str, value: str | int, look_up: Any) -> int:
    if isinstance(value, str):
        try:
            return int(look_up(value))
        except KeyError:
            raise ValueError(f"unknown {what}: {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is a name or a number, not {value!r}")
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{value} is no number of a {what}")
    return value


def _check_allowed(user: int | None, group: int | None, extra_groups: object) -> None:
    """Raise here what would otherwise be told by setpriv, as text."""
    try:
        with open("/proc/self/status") as status:
            held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    except OSError:
        return  # no /proc
    may_set_groups, may_set_users = held >> 6 & 1, held >> 7 & 1  # CAP_SETGID, CAP_SETUID
    if user is not None and user not in (os.getuid(), os.geteuid()) and not may_set_users:
        raise PermissionError(errno.EPERM, f"this process may not become user {user}")
    other_group = group is not None and group not in (os.getgid(), os.getegid())
    if (other_group or extra_groups is not None) and not may_set_groups:
        raise PermissionError(errno.EPERM, "this process may not change its groups")
