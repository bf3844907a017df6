"""What every transport on a socket has: the socket object, and what it tells about itself."""

from __future__ import annotations

import socket
import struct
from asyncio.trsock import TransportSocket
from typing import Any, NamedTuple

from .handle import FileLike, fileno_of
from .root import Root

__all__ = ["Borrowed", "OnSocket", "PeerCredentials"]


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


class PeerCredentials(NamedTuple):
    """Who made the other end of a UNIX connection: SO_PEERCRED of unix(7). Extra info ``peercred``."""

    pid: int
    uid: int
    gid: int


class OnSocket(Root):
    """A part of a transport. Extra info: ``socket``, ``sockname``, ``peername``, ``fd`` and, on a UNIX
    socket of Linux, ``peercred`` (a `PeerCredentials`)."""

    __slots__ = ()

    def _take_socket(self, kind: str) -> Any:
        """The socket object, made for a bare descriptor; the peer's name is kept."""
        handle = self._reading_handle
        if handle is None or handle is not self._writing_handle:
            raise ValueError(f"a {kind} socket is one descriptor for both directions")
        if not isinstance(handle.file, socket.socket):
            handle.file = Borrowed.of(handle.file)
        return handle.file

    def _keep_peer(self) -> None:
        """A reset takes the peer's name away: know it before."""
        if self._extra is None:
            self._extra = {}
        if "peername" not in self._extra:
            self._extra["peername"] = self._find_extra("peername")

    def _find_extra(self, name: str) -> Any:
        if self._reading_handle is None:
            return None
        sock: Any = self._reading_handle.file
        value: Any = None
        try:
            if name == "socket":
                value = TransportSocket(sock)
            elif name == "sockname":
                value = sock.getsockname()
            elif name == "peername":
                value = sock.getpeername()
            elif name == "peercred" and sock.family == socket.AF_UNIX:
                packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                value = PeerCredentials(*struct.unpack("iII", packed))
        except (OSError, AttributeError):
            return None  # not connected any more, or not on this system
        if value is not None and self._extra is not None:
            self._extra[name] = value
        return value

    def _keep_extra(self) -> None:
        handle: Any = self._reading_handle
        if handle is not None and self._extra is not None and "sockname" not in self._extra:
            try:
                self._extra["sockname"] = handle.file.getsockname()
            except OSError:
                pass  # closed behind our back

    def detach(self) -> Any:
        """As on every transport; a bare descriptor comes back as the number that it was."""
        detached = super().detach()  # type: ignore[misc]
        if isinstance(detached.file, Borrowed):
            return detached._replace(file=detached.file.detach())
        return detached
