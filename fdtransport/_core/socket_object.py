"""The socket object of a transport: found for a bare descriptor, and what it tells about itself."""

from __future__ import annotations

import socket
import struct
from asyncio.trsock import TransportSocket
from typing import Any

from .handle import FileLike, fileno_of

__all__ = ["Borrowed", "known_of"]


class Borrowed(socket.socket):
    """A socket object for a bare descriptor: it closes it when it is told to, and never by itself."""

    __slots__ = ()

    @classmethod
    def of(cls, file: FileLike) -> Borrowed:
        """:raises OSError: ENOTSOCK, *file* is no socket; or it is closed."""
        try:
            return cls(fileno=fileno_of(file))
        except OSError as exc:
            raise OSError(exc.errno, f"{exc.strerror}: {file!r}") from None

    def __del__(self) -> None:
        self.detach()


def known_of(sock: Any, name: str) -> Any:
    """Extra info that every socket has: ``socket``, ``sockname``, ``peername``, and ``peercred`` on a
    UNIX socket of Linux (process id, user id, group id). None where there is none."""
    try:
        if name == "socket":
            return TransportSocket(sock)
        if name == "sockname":
            return sock.getsockname()
        if name == "peername":
            return sock.getpeername()
        if name == "peercred" and sock.family == socket.AF_UNIX:
            return struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (OSError, AttributeError):
        pass  # not connected any more, or not on this system
    return None
