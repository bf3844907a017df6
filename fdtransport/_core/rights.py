"""Descriptors that travel with the bytes of a UNIX stream socket: SCM_RIGHTS of unix(7).

The kernel ties descriptors to one byte of the stream. So do we: a set that has to wait is kept with
the place in the queue of the byte that it belongs to, and no write goes past that place without it.
"""

from __future__ import annotations

import array
import errno
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import WRITING, Meaning, bad_descriptor
from . import syscalls
from .handle import FileLike, fileno_of
from .identity import Checked
from .socket_object import Borrowed
from .stream import BytesLike, StreamTransport, as_buffer

__all__ = ["SCM_MAX_FD", "PassesDescriptors"]

#: What the kernel takes in one message.
SCM_MAX_FD = 253
#: A control message with one descriptor: that of the sender's process, where SO_PASSPIDFD is set.
_SCM_PIDFD = 4


class Rights:
    """What moves the bytes of a transport once it passes descriptors; in place of *below*, by which it
    does so.

    ``tell`` is called with the descriptors that came, and answers whether their bytes are still
    wanted. Without it the kernel drops what comes.
    """

    __slots__ = ("_marks", "_sent", "_sock", "below", "tell")

    def __init__(self, fd: int, below: Any) -> None:
        self.below = below
        # An object of our own: the caller's may have a timeout, for which Python would wait.
        self._sock = Borrowed(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        self._sock.setblocking(False)
        self._marks: deque[tuple[int, list[int]]] = deque()
        self._sent = 0  # while there are marks; their places are counted from the same start
        self.tell: Callable[[list[int]], bool] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)  # splice and all else that no descriptor travels with

    def add(self, ahead: int, fds: list[int]) -> None:
        """Have *fds* leave with the byte that *ahead* bytes of the queue come before."""
        self._marks.append((self._sent + ahead, fds))

    def drop(self) -> None:
        """The queue has been dropped: close what waited with it."""
        while self._marks:
            _close(self._marks.popleft()[1])

    def write(self, fd: int, data: Any) -> int:
        sent: int = self.writev(fd, [data]) if self._marks else self.below.write(fd, data)
        return sent

    def writev(self, fd: int, buffers: Sequence[Any]) -> int:
        marks = self._marks
        if not marks:
            sent: int = self.below.writev(fd, buffers)
            return sent
        place, fds = marks[0]
        if place > self._sent:
            sent = self.below.writev(fd, _first(buffers, place - self._sent))
        else:
            if len(marks) > 1:
                buffers = _first(buffers, marks[1][0] - place)
            sent = self.below.sendmsg(self._sock, buffers, fds)
            # They left with the first byte; the rest of the message is bytes like others.
            marks.popleft()
            _close(fds)
        self._sent += sent
        return sent

    def read(self, fd: int, size: int) -> bytes:
        if self.tell is None:
            data: bytes = self.below.read(fd, size)
            return data
        data, control, flags = self.below.recvmsg(self._sock, size)
        if control or flags & socket.MSG_CTRUNC:
            self._came(control, flags)
        return data

    def readv(self, fd: int, buffers: Sequence[Any]) -> int:
        if self.tell is None:
            count: int = self.below.readv(fd, buffers)
            return count
        count, control, flags = self.below.recvmsg_into(self._sock, buffers)
        if control or flags & socket.MSG_CTRUNC:
            self._came(control, flags)
        return count

    def _came(self, control: Iterable[tuple[int, int, bytes]], flags: int) -> None:
        fds = array.array("i")
        for level, kind, value in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(value)
            elif level == socket.SOL_SOCKET and kind == _SCM_PIDFD:
                _close(array.array("i", value))
        if flags & socket.MSG_CTRUNC:
            _close(fds)
            raise OSError(
                errno.EMFILE,
                f"Too many open files: {len(fds)} of the descriptors that the peer sent could be had, and "
                f"the others are lost (MSG_CTRUNC of recvmsg(2))",
            )
        if fds and self.tell is not None and not self.tell(fds.tolist()):
            raise BlockingIOError(errno.EAGAIN, "closed by fds_received()")


#: The user has as many descriptors in flight as a process may have open: unix(7).
_WRITING = {**WRITING, errno.ETOOMANYREFS: Meaning.LATER}


class PassesDescriptors(StreamTransport):
    """The part of a transport on a UNIX stream socket that sends and receives descriptors."""

    __slots__ = ()

    _WRITE_ERRORS = _WRITING

    def send_fds(self, data: BytesLike, fds: Iterable[FileLike]) -> None:
        """Send *data* as ``write`` does, and copies of descriptors along with its first byte.

        *fds*: 1 to 253 descriptors, or objects with ``fileno()``. They are duplicated now and may be
        closed right after the call. All of them or none arrive, in order with what is written before
        and after. What is dropped when the transport ends before it was sent, and what ``detach()``
        finds unsent, takes its descriptors along: they are closed.

        A descriptor in the queue is an open descriptor of this process; see ``pause_writing()`` and
        ``flushed()``. While the user has more in flight than RLIMIT_NOFILE allows one process to have
        open, and no privilege (unix(7), ETOOMANYREFS), sending waits.

        :raises TypeError: *data* is not bytes-like, or an item of *fds* is no descriptor.
        :raises ValueError: *data* is empty, or *fds* are none or more than 253.
        :raises OSError: EBADF, one is not open; EMFILE, it cannot be duplicated. Nothing is sent then.
        :raises RuntimeError: after ``write_eof()``; a file is being sent.

        ::

            with open("/etc/hostname", "rb") as file:
                transport.send_fds(b"a file\\n", [file])
        """
        data = bytes(as_buffer(data))
        if not data:
            raise ValueError("descriptors travel with at least one byte of data, and there is none")
        numbers = [fileno_of(file) for file in fds]
        if not 1 <= len(numbers) <= SCM_MAX_FD:
            raise ValueError(f"1 to {SCM_MAX_FD} descriptors travel at once (SCM_MAX_FD), not {len(numbers)}")
        self._offer_cork()
        if not self._state.writes:
            self._refuse_write(len(data))
            return
        rights = self._own_rights()
        copies = _copies(numbers)
        queue = self._own_queue()
        ahead = queue.size
        try:
            queue.append(data)
        except BaseException:  # RuntimeError: a file is being sent
            _close(copies)
            raise
        rights.add(ahead, copies)
        self._queue_grew()

    def _own_rights(self) -> Rights:
        if not isinstance(self._sys, Rights):
            self._sys = Rights(self._wfd, self._sys)
        return self._sys

    def _check_identity(self) -> None:
        if isinstance(self._sys, Rights):
            self._sys.below = Checked(self._sys.below, self._wfd)
        else:
            super()._check_identity()

    def _set_protocol(self, protocol: Any) -> None:
        super()._set_protocol(protocol)
        if hasattr(protocol, "fds_received"):
            self._own_rights().tell = self._fds_came
        elif isinstance(self._sys, Rights):
            self._sys.tell = None

    def _fds_came(self, fds: list[int]) -> bool:
        try:
            self._protocol.fds_received(fds)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._callback_failed("Fatal error: protocol.fds_received() call failed.", exc)
        return self._state.reads

    def _breathe(self, exc: OSError) -> None:
        if exc.errno == errno.ETOOMANYREFS:
            self._tries = 0  # it is the peer who takes its time, and that is no error
        super()._breathe(exc)

    def _drain(self) -> None:
        if isinstance(self._sys, Rights):
            self._sys.drop()  # a write failed, and reading may go on for long
        super()._drain()

    def _let_go(self, how: Callable[..., Any]) -> Any:
        if isinstance(self._sys, Rights):
            self._sys.drop()
            self._sys = self._sys.below
        return super()._let_go(how)


def _copies(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(syscalls.dup(fd))
        closed = set(fds).intersection(copies)
        if closed:  # a copy of one before it has got the number, and was copied in its place
            raise bad_descriptor(f"{min(closed)} is not open")
    except BaseException:
        _close(copies)
        raise
    return copies


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        try:
            syscalls.close(fd)
        except OSError:
            pass  # it is closed all the same


def _first(buffers: Iterable[Any], size: int) -> list[memoryview]:
    """The first *size* bytes of *buffers*, or as many as there are; not copied."""
    views: list[memoryview] = []
    for buffer in buffers:
        views.append(memoryview(buffer)[:size])
        size -= len(views[-1])
        if not size:
            break
    return views
