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
import socket
import stat as _stat
from collections.abc import Callable, Sequence
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
tcgetpgrp: Callable[[int], int] = getattr(os, "tcgetpgrp", _missing("tcgetpgrp"))

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


def dup(fd: int) -> int:
    """A close-on-exec copy of *fd* under a new number, on the same open file description."""
    return int(fcntl(fd, _fcntl.F_DUPFD_CLOEXEC, 3))


def poll_now(fd: int, events: int) -> int:
    """What poll(2) reports for *fd* at this moment, without waiting; 0 when nothing."""
    poller = select.poll()
    poller.register(fd, events)
    ready = poller.poll(0)
    return ready[0][1] if ready else 0


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


IN_OPEN = 0x20


@functools.cache
def _libc(name: str, *arguments: str) -> Callable[..., int]:
    """The C library's function *name*, which Python's os has not, as one that raises OSError."""
    import ctypes

    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library called None
        return _missing(name)
    function.argtypes = [getattr(ctypes, argument) for argument in arguments]

    def call(*args: Any) -> int:
        result = int(function(*args))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

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
