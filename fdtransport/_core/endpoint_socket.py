"""Sockets for records: named, bound and connected as a datagram endpoint wants them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .addresses import resolve
from .multicast import Group, configure, is_multicast, join
from .socket_file import bind_unix, dial_unix, remover

__all__ = ["Endpoint", "Made", "check_records", "make_socket", "make_sockets"]

_UNIX = getattr(socket, "AF_UNIX", -1)
Pair = tuple[int, int, Any, Any]  # family, protocol, local address, remote address


@dataclass(frozen=True)
class Endpoint:
    """What is wanted of a socket."""

    local_addr: Any = None
    remote_addr: Any = None
    family: int = 0
    proto: int = 0
    flags: int = 0
    type: int = socket.SOCK_DGRAM
    reuse_port: bool | None = None
    allow_broadcast: bool | None = None
    mode: int = 0o600
    join: tuple[Group, ...] = ()
    ttl: int | None = None
    loopback: bool | None = None
    interface: str | int | None = None


class Made(NamedTuple):
    sock: socket.socket
    address: Any
    """Where what is sent goes; None when every record needs an address of its own."""
    remove: Callable[[], None] | None
    """Removes the socket file."""

    def undo(self) -> None:
        if self.remove is not None:
            self.remove()
        self.sock.close()


def check_records(sock: socket.socket) -> None:
    """Refuse what carries no records.

    :raises ValueError: a stream socket, or one that listens.
    """
    if sock.type == socket.SOCK_STREAM:
        raise ValueError(f"A datagram socket was expected, got {sock!r}")
    if sock.type == socket.SOCK_SEQPACKET and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(f"a connected socket was expected, and this one listens: {sock!r}")


async def make_socket(wanted: Endpoint) -> Made:
    """A socket that is bound and connected as *wanted*; nothing stays open when this raises.

    :raises OSError: the first failure, when no pair of addresses works.
    """
    failures: list[OSError] = []
    for pair in await _pairs(wanted):
        try:
            return await _try(wanted, *pair)
        except OSError as exc:
            failures.append(exc)
    try:
        raise failures[0]
    finally:
        failures.clear()  # a circle with this frame


async def make_sockets(wanted: Endpoint) -> list[Made]:
    """A socket for each local address that this machine has; nothing stays open when this raises.

    :raises OSError: an address is taken, or there is none.
    """
    all_made: list[Made] = []
    missing: OSError | None = None
    try:
        for pair in await _pairs(wanted):
            try:
                all_made.append(await _try(wanted, *pair, alone=True))
            except OSError as exc:
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc
        if missing is not None and not all_made:
            raise missing
    except BaseException:
        for made in all_made:
            made.undo()
        raise
    finally:
        missing = None  # a circle with this frame
    return all_made


async def _pairs(wanted: Endpoint) -> list[Pair]:
    """The addresses to try, each with its family."""
    local, remote = wanted.local_addr, wanted.remote_addr
    if not (local or remote):
        if wanted.family == 0:
            raise ValueError("unexpected address family")
        return [(wanted.family, wanted.proto, None, None)]
    if wanted.family == _UNIX:
        for addr in (local, remote):
            if addr is not None and not isinstance(addr, str | bytes | os.PathLike):
                raise TypeError("string is expected")
        return [(wanted.family, wanted.proto, _path(local), _path(remote))]
    if wanted.family not in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
        return [(wanted.family, wanted.proto, local, remote)]  # its addresses need no lookup
    found: dict[tuple[int, int], list[Any]] = {}
    for place, addr in enumerate((local, remote)):
        if addr is None:
            continue
        if not (isinstance(addr, tuple) and len(addr) == 2):
            raise TypeError("2-tuple is expected")
        host, port = addr
        infos = await resolve(host or None, port, wanted.family, wanted.proto, wanted.flags, wanted.type)
        for family, _, proto, _, address in infos:
            found.setdefault((family, proto), [None, None])[place] = address
    pairs = [
        (*key, *pair)
        for key, pair in found.items()
        if not ((local and pair[0] is None) or (remote and pair[1] is None))
    ]
    if not pairs:
        raise ValueError("can not get address information")
    return pairs


def _path(addr: Any) -> Any:
    return addr if addr is None else os.fspath(addr)


async def _try(
    wanted: Endpoint, family: int, proto: int, local: Any, remote: Any, *, alone: bool = False
) -> Made:
    sock = _new_socket(family, wanted.type, proto)
    made = Made(sock, None, None)
    try:
        sock.setblocking(False)
        if wanted.reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise ValueError("reuse_port not supported by socket module")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if wanted.allow_broadcast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if alone and family == socket.AF_INET6:
            # Else it would take the IPv4 port as well, for which there is a socket of its own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        configure(sock, wanted.ttl, wanted.loopback, wanted.interface)
        if local or (local == "" and family == _UNIX):
            made = made._replace(remove=await _bind(sock, local, wanted.mode))
        for group in wanted.join:
            join(sock, *((group, wanted.interface) if isinstance(group, str) else group))
        if remote:
            if not wanted.allow_broadcast:
                await _connect(sock, remote)
            made = made._replace(address=remote)
    except BaseException:
        made.undo()
        raise
    return made


def _new_socket(family: int, kind: int, proto: int) -> socket.socket:
    try:
        return socket.socket(family, kind, proto)
    except OSError as exc:
        names = [_name(family, socket.AddressFamily), _name(kind, socket.SocketKind)]
        what = f"{exc.strerror}: this kernel has no {' '.join(names)} sockets" + (
            f" of protocol {proto}" if proto else ""
        )
        raise OSError(exc.errno, what) from None


def _name(value: int, names: Any) -> str:
    try:
        return str(names(value).name)
    except ValueError:
        return str(value)


async def _bind(sock: socket.socket, local: Any, mode: int) -> Callable[[], None] | None:
    if sock.family == _UNIX:
        await bind_unix(sock, local, mode)
        return remover(local)
    if sock.family in (socket.AF_INET, socket.AF_INET6) and is_multicast(local[0]):
        # Everybody who listens to a group on this machine binds its address. No datagram that is
        # meant for one of them alone comes there, so nothing can be stolen.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(local)
    except OSError as exc:
        raise OSError(exc.errno, f"{exc.strerror}: cannot bind to {local!r}") from None
    return None


async def _connect(sock: socket.socket, remote: Any) -> None:
    if sock.family == _UNIX:
        await dial_unix(sock, remote)
    else:
        await asyncio.get_running_loop().sock_connect(sock, remote)
