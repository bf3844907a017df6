"""A program started by posix_spawn(3): never a fork, however large this process is, from any thread.

    pid = spawn(["cat", "-"], fds={0: reading_end, 1: writing_end, 2: 2})
    pid = spawn(["bash"], terminal=slave, new_session=True, env={...}, cwd="/")

The child has the descriptors of *fds* and no other one, whatever is inheritable here: ``{its number:
ours}``, in any order and permutation; ours stay open here, and close-on-exec as they were. What is not in
*fds* is closed in it. *terminal* is the path of a terminal's slave, or our descriptor on it: with
*new_session* it becomes the controlling terminal (the leader of a session that opens one without O_NOCTTY
acquires it, tty_ioctl(4)), and is descriptor 0, 1 and 2, except those that *fds* gives otherwise. Its size
must have been set before. The slave may be closed here as soon as ``spawn`` has returned: the program has
started by then.

Whatever is wrong raises here, and there is no child: OSError as execve(2) and chdir(2) have it, with the
program or the directory as its ``filename``. With *user*, *group* or *extra_groups*, which posix_spawn
cannot set, it is setpriv(1) of util-linux that starts the program, in the same process: what its file's and
directories' modes do not let that user execute raises here as well, and what else may go wrong (a security
module, the interpreter of a script) ends with setpriv's message on descriptor 2 and status 126 or 127.

SIGPIPE and SIGXFSZ, which Python ignores, have their defaults in the child, and no signal is blocked. With a
*terminal*, so have the signals of terminals: what nohup(1) or a shell that starts this process in the
background ignores here is not to be ignored by all who run on a terminal of their own.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from . import syscalls
from .credentials import LARGEST, Credentials, credentials_of

__all__ = ["StrOrBytesPath", "spawn"]

StrOrBytesPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def _numbers(*names: str) -> list[int]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


_PYTHON_IGNORES = _numbers("SIGPIPE", "SIGXFSZ")
_OF_TERMINALS = _numbers(
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT", "SIGWINCH"
)  # fmt: skip
#: Up to this number of the child's, every one that is not asked for is closed, be it open here or not.
_GAPS = 256


def spawn(
    argv: Sequence[StrOrBytesPath],
    *,
    executable: StrOrBytesPath | None = None,
    fds: Mapping[int, int] = {},
    terminal: str | int | None = None,
    new_session: bool = False,
    process_group: int | None = None,
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    cwd: StrOrBytesPath | None = None,
    user: str | int | None = None,
    group: str | int | None = None,
    extra_groups: Iterable[str | int] | None = None,
) -> int:
    """Start ``argv[0]``, which is looked for on the PATH of *env* unless it has a slash; its process number.

    See the module's first lines. *executable*: what is started in place of ``argv[0]``. *env*: the whole
    environment, None for this process's. *cwd*: as subprocess, also what has a slash is relative to it.
    *process_group*: of the child; 0 makes a new one.

    :raises OSError: the program, *cwd* or a descriptor of ours. :raises ValueError: a NUL in a string, an
        unknown user, a number that is none. :raises TypeError: of the wrong type.
    """
    words = [_encoded("an argument", word) for word in argv]
    if not words:
        raise ValueError("no program to start")
    settings = _environment(env)
    directory = None if cwd is None else _encoded("cwd", cwd)
    actions = _file_actions(fds, terminal)
    if directory is not None:
        if not syscalls.has_spawn_action("chdir_np"):
            raise OSError(errno.ENOSYS, "cwd needs a C library whose posix_spawn can change the directory")
        actions.append(("chdir_np", directory))
    name = words[0] if executable is None else _encoded("executable", executable)
    credentials = None
    if not (user is None and group is None and extra_groups is None):
        credentials = credentials_of(user, group, extra_groups)
    sys.audit("os.posix_spawn", name, words, env)
    program = _find(name, env, directory)
    path = program
    if credentials is not None:
        _check_executable(program, directory, credentials)
        path = os.fsencode(_setpriv())
        words = [b"setpriv", *credentials.options(), b"--", program, *words[1:]]
    try:
        return syscalls.posix_spawn(
            path,
            words,
            settings,
            actions,
            session=new_session,
            process_group=process_group,
            defaults=_PYTHON_IGNORES if terminal is None else [*_PYTHON_IGNORES, *_OF_TERMINALS],
        )
    except OSError as exc:
        number = exc.errno or errno.EINVAL
        if directory is not None and number in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            wrong = _not_a_directory(directory)
            if wrong:
                raise OSError(wrong, os.strerror(wrong), cwd) from None
        raise OSError(number, os.strerror(number), os.fsdecode(program)) from None


# -- the descriptors ---------------------------------------------------------------------------


def _file_actions(fds: Mapping[int, int], terminal: str | int | None) -> list[tuple[Any, ...]]:
    """What the child does with its descriptors, in order, so that none is overwritten before it is used."""
    numbers = [(_number("of the child", child), _number("of ours", ours)) for child, ours in fds.items()]
    targets = {child for child, _ in numbers}
    taken = targets | {ours for _, ours in numbers}
    limit = syscalls.descriptor_limit()
    for child, ours in numbers:
        if child >= limit:
            what = f"{child} of the child is over the limit of open files, {limit} (RLIMIT_NOFILE)"
            raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}: {what}")
        _check_open(ours, f"descriptor {ours}, which was to be {child} of the child,")
    if terminal is not None:
        targets |= {0, 1, 2}
        taken |= targets
        if isinstance(terminal, int):
            taken.add(_number("of the terminal", terminal))
            _check_open(terminal, f"descriptor {terminal}, which was to be the terminal,")
    # Whatever else has such a number in the child is closed there anyhow.
    free = iter(number for number in range(len(taken) * 2 + 2) if number not in taken)
    used: list[int] = []
    actions: list[tuple[Any, ...]] = []

    def lift() -> int:
        used.append(next(free))
        return used[-1]

    slave = -1
    if terminal is not None:
        # First, while the number in a /proc/self/fd path is still what it is here.
        slave = lift()
        path = f"/proc/self/fd/{terminal}" if isinstance(terminal, int) else terminal
        actions.append(("open", slave, _encoded("terminal", path), os.O_RDWR, 0))
    lifted: dict[int, int] = {}
    for _, ours in numbers:
        # One that keeps its number is lifted as well: dup2 onto itself would leave it close-on-exec.
        if ours in targets and ours not in lifted:
            lifted[ours] = lift()
            actions.append(("dup2", ours, lifted[ours]))
    if terminal is not None:
        actions += [("dup2", slave, number) for number in (0, 1, 2) if number not in fds]
    actions += [("dup2", lifted.get(ours, ours), child) for child, ours in numbers]
    end = max(targets, default=-1) + 1
    whatever_is_open = syscalls.has_spawn_action("closefrom_np") and end <= _GAPS
    # What is not inheritable (PEP 446: nearly all) is closed by execve: the others must be looked for.
    others = range(end) if whatever_is_open else sorted({*used, *_inheritable()})
    actions += [("close", number) for number in others if number not in targets]
    if whatever_is_open:
        actions.append(("closefrom_np", end))
    return actions


def _number(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a descriptor {what} is a number, not {value!r}")
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{value} is no descriptor {what}")
    return value


def _check_open(fd: int, what: str) -> None:
    try:
        syscalls.fstat(fd)
    except OSError as exc:
        raise OSError(exc.errno, f"{os.strerror(exc.errno or 0)}: {what} is not open") from None


def _inheritable() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                yield int(name)
        except OSError:
            pass  # the one that listed the directory


# -- the program -------------------------------------------------------------------------------


def _encoded(what: str, value: StrOrBytesPath) -> bytes:
    try:
        encoded = os.fsencode(value)
    except TypeError:
        raise TypeError(f"{what} is a str, bytes or a path, not {value!r}") from None
    if b"\0" in encoded:
        raise ValueError(f"{what} has a NUL (embedded null byte): {value!r}")
    return encoded


def _environment(env: Mapping[Any, Any] | None) -> list[bytes]:
    if not isinstance(env, Mapping | None):
        raise TypeError(f"env is a map of names and values, not {env!r}")
    if env is None:
        return [name + b"=" + value for name, value in os.environb.items()]
    try:
        # In one piece, as nearly every environment can be: one name after the other takes as long as the
        # kernel takes for the start.
        text = "\0".join([name + "=" + value for name, value in env.items()])
        settings = os.fsencode(text).split(b"\0") if text else []
        if len(settings) == len(env) and all(env) and "=" not in "".join(env):
            return settings
    except TypeError:
        pass  # bytes, or what is wrong is named below
    settings = []
    for key, value in env.items():
        name = _encoded("a name in env", key)
        if not name or b"=" in name:
            raise ValueError(f"illegal environment variable name: {key!r}")
        settings.append(name + b"=" + _encoded(f"env[{key!r}]", value))
    return settings


def _find(name: bytes, env: Mapping[Any, Any] | None, directory: bytes | None) -> bytes:
    """The path of the program. The PATH is that of the child, as with subprocess."""
    if b"/" in name:
        return name
    found = errno.ENOENT
    for place in _places(env):
        path = os.path.join(place, name)
        here = path if directory is None else os.path.join(directory, path)
        if os.path.isfile(here):
            if os.access(here, os.X_OK):
                return path
            found = errno.EACCES
    raise OSError(found, os.strerror(found), os.fsdecode(name))


def _places(env: Mapping[Any, Any] | None) -> list[bytes]:
    # Not os.get_exec_path(): it switches warnings off and on again meanwhile, for all threads.
    settings: Mapping[Any, Any] = os.environ if env is None else env
    of_bytes = isinstance(next(iter(settings), ""), bytes)
    path = settings.get(b"PATH" if of_bytes else "PATH", os.defpath)
    return os.fsencode(path).split(os.fsencode(os.pathsep))


def _check_executable(program: bytes, directory: bytes | None, credentials: Credentials) -> None:
    """Raise what can be known of a *program* that somebody else starts."""
    path = program if directory is None else os.path.join(directory, program)
    if not os.path.exists(path):
        wrong = directory is not None and _not_a_directory(directory)
        raise OSError(wrong or errno.ENOENT, os.strerror(wrong or errno.ENOENT), os.fsdecode(path))
    if not (os.path.isfile(path) and os.access(path, os.X_OK)) or not credentials.may_execute(
        program, directory or b"."
    ):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))


def _not_a_directory(path: bytes) -> int:
    """What is wrong with *path* as the directory to start in; 0 for nothing."""
    if not path:
        return errno.ENOENT
    try:
        syscalls.stat(os.path.join(path, b"."))
    except OSError as exc:
        return exc.errno or errno.ENOENT
    return 0 if os.access(path, os.X_OK) else errno.EACCES


def _setpriv() -> str:
    path = shutil.which("setpriv", path=os.defpath + ":/usr/sbin:/sbin")
    if path is None:
        raise OSError(errno.ENOSYS, "user, group and extra_groups need setpriv(1) of util-linux")
    return path
