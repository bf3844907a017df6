"""The only door to the kernel.

Every read, write, splice, open, close, ioctl and fcntl of the library is one of these plain
functions, called as ``syscalls.NAME(...)`` at the moment of use: replacing a name in this module
puts a fault in front of the kernel (see ``fdtransport.testing.FaultPlan``). No policy lives here.

A name that the platform lacks is a function that raises ``OSError(ENOSYS)`` when it is called, so
that everything imports everywhere.
"""

from __future__ import annotations

import array
import errno
import functools
import os
import select
import signal
import socket
import stat as _stat
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

try:
    import fcntl as _fcntl
    import termios
except ImportError:  # Windows
    _fcntl = termios = None  # type: ignore[assignment]


def _missing(name: str) -> Callable[..., Any]:
    def unavailable(*_args: object, **_kwargs: object) -> Any:
        raise OSError(errno.ENOSYS, f"{name} is not available on this platform")

    return unavailable


# Bytes in and out. The built-in functions themselves: a Python function around each would cost
# as much as a tenth of a small read.
read = os.read
write = os.write
readv: Callable[..., int] = getattr(os, "readv", _missing("readv"))
writev: Callable[..., int] = getattr(os, "writev", _missing("writev"))
preadv: Callable[..., int] = getattr(os, "preadv", _missing("preadv"))
pwritev: Callable[..., int] = getattr(os, "pwritev", _missing("pwritev"))
splice: Callable[..., int] = getattr(os, "splice", _missing("splice"))
sendfile: Callable[..., int] = getattr(os, "sendfile", _missing("sendfile"))

# Records of a socket, with addresses: methods of the socket class, to be called with the socket first.
recvfrom: Callable[..., tuple[bytes, Any]] = socket.socket.recvfrom
send: Callable[..., int] = socket.socket.send
sendto: Callable[..., int] = socket.socket.sendto

# Descriptors come and go.
open = os.open
close = os.close
dup2 = os.dup2
pipe: Callable[[int], tuple[int, int]] = getattr(os, "pipe2", _missing("pipe2"))

# What is at a path.
stat = os.stat
mkfifo: Callable[..., None] = getattr(os, "mkfifo", _missing("mkfifo"))
unlink = os.unlink
scandir = os.scandir
readlink: Callable[..., str] = getattr(os, "readlink", _missing("readlink"))
lstat = os.lstat
symlink = os.symlink
chmod = os.chmod
chown: Callable[..., None] = getattr(os, "chown", _missing("chown"))

# What a descriptor is.
fstat = os.fstat
isatty = os.isatty
lseek = os.lseek
get_blocking: Callable[[int], bool] = getattr(os, "get_blocking", _missing("get_blocking"))
set_blocking: Callable[[int, bool], None] = getattr(os, "set_blocking", _missing("set_blocking"))
fcntl: Callable[..., Any] = _fcntl.fcntl if _fcntl else _missing("fcntl")
ioctl: Callable[..., Any] = _fcntl.ioctl if _fcntl else _missing("ioctl")
posix_fadvise: Callable[..., None] = getattr(os, "posix_fadvise", _missing("posix_fadvise"))

# Terminals: attributes as the termios module has them, the job in the foreground.
tcgetattr: Callable[[int], list[Any]] = termios.tcgetattr if termios else _missing("tcgetattr")
tcsetattr: Callable[[int, int, list[Any]], None] = termios.tcsetattr if termios else _missing("tcsetattr")
tcflush: Callable[[int, int], None] = termios.tcflush if termios else _missing("tcflush")
tcgetpgrp: Callable[[int], int] = getattr(os, "tcgetpgrp", _missing("tcgetpgrp"))

# Processes, by a descriptor that names one whatever becomes of its number: pidfd_open(2).
pidfd_open: Callable[..., int] = getattr(os, "pidfd_open", _missing("pidfd_open"))
pidfd_send_signal: Callable[..., None] = getattr(signal, "pidfd_send_signal", _missing("pidfd_send_signal"))
waitid: Callable[..., Any] = getattr(os, "waitid", _missing("waitid"))

# Readiness outside the loop.
epoll: Callable[..., Any] = getattr(select, "epoll", _missing("epoll"))

RWF_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0x8)
SPLICE_F_MOVE = 1
SPLICE_F_NONBLOCK = 2
SPLICE_F_MORE = 4


def status_flags(fd: int) -> int:
    """Access mode, O_NONBLOCK and the other file status flags: F_GETFL of fcntl(2)."""
    return int(fcntl(fd, _fcntl.F_GETFL))


def shutdown_write(fd: int) -> None:
    """End the write side of a socket: shutdown(2) with SHUT_WR."""
    sock = socket.socket(fileno=fd)
    try:
        sock.shutdown(socket.SHUT_WR)
    finally:
        sock.detach()


def socket_error(fd: int) -> int:
    """The errno that a socket keeps, 0 for none; reading it clears it: SO_ERROR of socket(7)."""
    sock = socket.socket(fileno=fd)
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    finally:
        sock.detach()


def listens(fd: int) -> bool:
    """Whether *fd* is a socket that accepts connections: SO_ACCEPTCONN of socket(7)."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False  # no socket
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    finally:
        sock.detach()


#: These have such a queue. Others take the flag for nothing, and would give a record instead.
_KEEPING_ERRORS = (socket.IPPROTO_UDP, socket.IPPROTO_ICMP, getattr(socket, "IPPROTO_ICMPV6", 58))


def drop_kept_errors(fd: int) -> int:
    """Empty the queue of errors of an Internet datagram socket (MSG_ERRQUEUE of recv(2)); how many there
    were. 0 for whatever has no such queue."""
    flag = getattr(socket, "MSG_ERRQUEUE", 0)
    if not flag or not poll_now(fd, 0) & select.POLLERR:
        return 0
    count = 0
    sock = None
    try:
        sock = socket.socket(fileno=fd)
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto in _KEEPING_ERRORS:
            while True:
                sock.recvmsg(1, 0, flag | socket.MSG_DONTWAIT)
                count += 1
    except OSError:
        pass  # no socket, or no more
    finally:
        if sock is not None:
            sock.detach()
    return count


def accept(sock: socket.socket) -> tuple[int, Any]:
    """The descriptor of the next connection, close-on-exec, and the peer's address: accept4(2)."""
    fd, address = sock._accept()  # type: ignore[attr-defined]
    return fd, address


#: Room for every descriptor that one message can carry, and for credentials if somebody asked for them.
_CONTROL = 2048


def sendmsg(sock: socket.socket, buffers: Sequence[Any], fds: Sequence[int]) -> int:
    """Send bytes, and descriptors along with the first of them: SCM_RIGHTS of unix(7)."""
    return sock.sendmsg(buffers, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def recvmsg(sock: socket.socket, size: int) -> tuple[bytes, list[Any], int]:
    """Bytes, the control messages that came with them, and flags; what they carry is close-on-exec."""
    data, control, flags, _ = sock.recvmsg(size, _CONTROL, socket.MSG_CMSG_CLOEXEC)
    return data, control, flags


def recvmsg_into(sock: socket.socket, buffers: Sequence[Any]) -> tuple[int, list[Any], int]:
    """As ``recvmsg``, into *buffers*; the number of bytes comes first."""
    count, control, flags, _ = sock.recvmsg_into(buffers, _CONTROL, socket.MSG_CMSG_CLOEXEC)
    return count, control, flags


def lock(fd: int) -> None:
    """Hold an exclusive flock(2) on the file *fd* until it is closed, or raise BlockingIOError at once."""
    _fcntl.flock(fd, _fcntl.LOCK_EX | _fcntl.LOCK_NB)


def unlock(fd: int) -> None:
    """Let go of what ``lock`` took."""
    _fcntl.flock(fd, _fcntl.LOCK_UN)


def descriptor_limit() -> int:
    """The number that every descriptor is below: RLIMIT_NOFILE of getrlimit(2)."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def dup(fd: int) -> int:
    """A close-on-exec copy of *fd* under a new number, on the same open file description."""
    return int(fcntl(fd, _fcntl.F_DUPFD_CLOEXEC, 3))


def poll_now(fd: int, events: int) -> int:
    """What poll(2) reports for *fd* at this moment, without waiting; 0 when nothing."""
    poller = select.poll()
    poller.register(fd, events)
    ready = poller.poll(0)
    return ready[0][1] if ready else 0


def wait_readable(fd: int, seconds: float | None) -> bool:
    """Wait, and hold this thread, until *fd* is readable; false when it was not within *seconds*."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    # (A negative number of milliseconds would mean for ever.)
    return bool(poller.poll(None if seconds is None else max(0, seconds * 1000)))


def has_hung_up(fd: int) -> bool:
    """Whether the other side has gone or has ended its direction (POLLHUP, POLLRDHUP of poll(2))."""
    return bool(poll_now(fd, select.POLLRDHUP) & (select.POLLHUP | select.POLLRDHUP))


def bytes_readable(fd: int) -> int:
    """Bytes that could be read now: FIONREAD of tty_ioctl(4), unix(7), pipe(7)."""
    answer = array.array("i", [0])
    ioctl(fd, termios.FIONREAD, answer)
    return answer[0]


#: F_SETPIPE_SZ and F_GETPIPE_SZ of fcntl(2); Python's names for them are newer.
_SETPIPE_SZ, _GETPIPE_SZ = 1031, 1032


def set_pipe_size(fd: int, size: int) -> None:
    """Ask for *size* bytes of room in the pipe *fd*; the kernel rounds up. F_SETPIPE_SZ of fcntl(2)."""
    fcntl(fd, _SETPIPE_SZ, size)


def pipe_size(fd: int) -> int:
    """Bytes that the pipe *fd* holds at most: F_GETPIPE_SZ of fcntl(2)."""
    return int(fcntl(fd, _GETPIPE_SZ))


#: Of ioctl_tty(2); the termios module knows none of them.
_TIOCGPTN, _TIOCSPTLCK, _TIOCGPTPEER = 0x80045430, 0x40045431, 0x5441


def open_terminal() -> tuple[int, str]:
    """The master of a new pair of terminals, non-blocking, and the path of its slave: pts(4).

    Not openpty(3): its descriptors are inherited by whatever another thread starts at that moment.
    """
    if not _fcntl or not hasattr(os, "O_CLOEXEC"):
        raise OSError(errno.ENOSYS, "terminals are not available on this platform")
    master = open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        ioctl(master, _TIOCSPTLCK, array.array("i", [0]))
        number = array.array("i", [0])
        ioctl(master, _TIOCGPTN, number)
    except BaseException:
        close(master)
        raise
    return master, f"/dev/pts/{number[0]}"


def open_slave(master: int) -> int:
    """The other end of a terminal's *master*, which does not become anybody's controlling terminal."""
    return int(ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))


#: Masks of inotify(7).
IN_ATTRIB, IN_OPEN, IN_MOVED_TO, IN_CREATE, IN_MOVE_SELF = 0x4, 0x20, 0x80, 0x100, 0x800


def _of_libc(name: str, arguments: tuple[str, ...]) -> Any:
    """The C library's function *name*, which Python's os has not; None where it has not either."""
    import ctypes

    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library called None
        return None
    function.argtypes = [getattr(ctypes, argument) for argument in arguments]
    return function


@functools.cache
def _libc(name: str, *arguments: str) -> Callable[..., int]:
    """The C library's function *name* as one that raises OSError, of those that keep it in errno."""
    import ctypes

    function = _of_libc(name, arguments)
    if function is None:
        return _missing(name)

    def call(*args: Any) -> int:
        result = int(function(*args))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    return call


def _libc_spawning(name: str, *arguments: str) -> Callable[..., None]:
    """The same, of the family of posix_spawn(3), which returns the number of the error."""
    function = _of_libc(name, arguments)
    if function is None:
        return _missing(name)

    def call(*args: Any) -> None:
        number = int(function(*args))
        if number:
            raise OSError(number, os.strerror(number))

    return call


def inotify_init1(flags: int) -> int:
    """A new inotify instance; *flags* are O_CLOEXEC and O_NONBLOCK of open(2). inotify_init(2)."""
    return _libc("inotify_init1", "c_int")(flags)


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """Watch what is at *path* now for the events of *mask*; the number of the watch. inotify(7)."""
    return _libc("inotify_add_watch", "c_int", "c_char_p", "c_uint32")(fd, path, mask)


def inotify_rm_watch(fd: int, watch: int) -> None:
    """End a watch. inotify_rm_watch(2)."""
    _libc("inotify_rm_watch", "c_int", "c_int")(fd, watch)


#: What a child can be told to do before the program starts: posix_spawn_file_actions_addopen(3) and its kin.
_ACTIONS = {
    "open": ("c_int", "c_char_p", "c_int", "c_uint"),
    "dup2": ("c_int", "c_int"),
    "close": ("c_int",),
    "chdir_np": ("c_char_p",),
    "closefrom_np": ("c_int",),
}
#: posix_spawnattr_setflags(3), and POSIX_SPAWN_SETSID, which is newer.
_SETPGROUP, _SETSIGDEF, _SETSIGMASK, _SETSID = 2, 4, 8, 0x80
#: Room for each of the opaque structures of <spawn.h>; the largest has 336 bytes.
_OPAQUE = 1024


@functools.cache
def has_spawn_action(name: str) -> bool:
    """Whether the C library has the action *name* of ``posix_spawn``; those in ``_np`` are newer."""
    return _of_libc(f"posix_spawn_file_actions_add{name}", ()) is not None


@functools.lru_cache(64)
def _spawn_attributes(session: bool, process_group: int | None, defaults: tuple[int, ...]) -> Any:
    """The structure of posix_spawnattr_init(3), made once and only read from then on."""
    from ctypes import create_string_buffer

    attributes, no_signals, to_default = (create_string_buffer(_OPAQUE) for _ in range(3))
    flags = _SETSIGDEF | _SETSIGMASK | (_SETSID if session else 0)
    for signals in (no_signals, to_default):
        _libc("sigemptyset", "c_void_p")(signals)
    for number in defaults:
        _libc("sigaddset", "c_void_p", "c_int")(to_default, number)
    _libc_spawning("posix_spawnattr_init", "c_void_p")(attributes)
    _libc_spawning("posix_spawnattr_setsigmask", "c_void_p", "c_void_p")(attributes, no_signals)
    _libc_spawning("posix_spawnattr_setsigdefault", "c_void_p", "c_void_p")(attributes, to_default)
    if process_group is not None:
        flags |= _SETPGROUP
        _libc_spawning("posix_spawnattr_setpgroup", "c_void_p", "c_int")(attributes, process_group)
    _libc_spawning("posix_spawnattr_setflags", "c_void_p", "c_short")(attributes, flags)
    return attributes


def posix_spawn(
    path: bytes,
    argv: Sequence[bytes],
    env: Sequence[bytes],
    actions: Iterable[tuple[Any, ...]],
    *,
    session: bool = False,
    process_group: int | None = None,
    defaults: Iterable[int] = (),
) -> int:
    """Start the program at *path*, and return the number of its process.

    *actions*: ``(name, *arguments)`` with the names of ``_ACTIONS``, done in this order. *session*: in a
    session of its own, before the actions. *defaults*: signals that it must not find ignored. No signal
    is blocked in it. posix_spawn(3); what Python has of it can neither change the directory nor, before
    3.13, close what is left. The memory is shared until the program starts and not copied, however
    large it is; other threads go on meanwhile.
    """
    from ctypes import byref, c_char_p, c_int, create_string_buffer

    attributes = _spawn_attributes(session, process_group, tuple(defaults))
    functions = _spawn_functions()
    todo = create_string_buffer(_OPAQUE)
    functions["init"](todo)
    try:
        for name, *arguments in actions:
            functions[name](todo, *arguments)
        pid = c_int(-1)
        words, settings = (c_char_p * (len(argv) + 1))(*argv), (c_char_p * (len(env) + 1))(*env)
        functions["spawn"](byref(pid), path, todo, attributes, words, settings)
        return pid.value
    finally:
        functions["destroy"](todo)


@functools.cache
def _spawn_functions() -> dict[str, Callable[..., None]]:
    """Those of posix_spawn(3) by the short names of ``_ACTIONS``: looked for once, and not at each start."""
    family = "posix_spawn_file_actions"
    found = {name: _libc_spawning(f"{family}_add{name}", "c_void_p", *_ACTIONS[name]) for name in _ACTIONS}
    for name in ("init", "destroy"):
        found[name] = _libc_spawning(f"{family}_{name}", "c_void_p")
    found["spawn"] = _libc_spawning("posix_spawn", "c_void_p", "c_char_p", *["c_void_p"] * 4)
    return found


def setns(fd: int, kind: int) -> None:
    """Move this thread into the namespace *fd*; Python has it from 3.12 on. setns(2)."""
    _libc("setns", "c_int", "c_int")(fd, kind)


_KINDS = (
    (_stat.S_ISREG, "a regular file"),
    (_stat.S_ISDIR, "a directory"),
    (_stat.S_ISFIFO, "a pipe"),
    (_stat.S_ISSOCK, "a socket"),
    (_stat.S_ISCHR, "a character device"),
    (_stat.S_ISBLK, "a block device"),
)


def kind(mode: int) -> str:
    """The kind of file that an ``st_mode`` tells, in words for an error message."""
    return next((name for test, name in _KINDS if test(mode)), "an anonymous descriptor")
