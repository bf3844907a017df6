"""Connected pairs of descriptors, in the kinds that the workloads use."""

from __future__ import annotations

import contextlib
import os
import socket
import tty
from dataclasses import dataclass


@dataclass
class End:
    """One end of a connection: a socket, one or both of (read end, write end) of pipes, or a terminal."""

    kind: str
    reader: int | None = None
    writer: int | None = None
    sock: socket.socket | None = None

    @classmethod
    def of_socket(cls, kind: str, sock: socket.socket) -> End:
        return cls(kind, sock.fileno(), sock.fileno(), sock)

    @property
    def file(self) -> object:
        """What a helper such as `connect_fd` takes: a socket, a descriptor, or a pair of descriptors."""
        if self.sock is not None:
            return self.sock
        if self.reader is not None and self.writer is not None:
            return self.reader, self.writer
        return self.writer if self.reader is None else self.reader

    @property
    def path(self) -> str:
        """Of a terminal."""
        assert self.reader is not None
        return os.ttyname(self.reader)

    @property
    def fds(self) -> list[int]:
        """Reader, then writer; once, where they are the same."""
        return [fd for fd in dict.fromkeys((self.reader, self.writer)) if fd is not None]

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
        else:
            for fd in self.fds:
                with contextlib.suppress(OSError):
                    os.close(fd)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends with TCP_NODELAY, as asyncio and uvloop set it on theirs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def udp_pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets that are connected to each other."""
    near, far = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    near.bind(("127.0.0.1", 0))
    far.bind(("127.0.0.1", 0))
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    return near, far


def pair(kind: str, flow: str) -> tuple[End, End]:
    """A (near, far) pair; `flow` says what the near end does: "in", "out" or "both" (pipes differ)."""
    if kind == "serial":
        master, terminal = os.openpty()
        tty.setraw(terminal)
        return End(kind, terminal, terminal), End(kind, master, master)
    if kind == "pty":
        master, slave = os.openpty()
        tty.setraw(slave)
        # Near is the master. Who only reads there gets no writer.
        return End(kind, master, None if flow == "in" else master), End(kind, slave, slave)
    if kind != "pipe":
        near, far = {"tcp": tcp_pair, "udp": udp_pair}.get(kind, socket.socketpair)()
        return End.of_socket(kind, near), End.of_socket(kind, far)
    here, there = End(kind), End(kind)
    if flow != "out":
        here.reader, there.writer = os.pipe()
    if flow != "in":
        there.reader, here.writer = os.pipe()
    return here, there
