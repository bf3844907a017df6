"""Internet addresses: names to addresses, addresses to sockets that are connected or bound."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from aiohappyeyeballs import start_connection

__all__ = ["AddressInfo", "bind", "bind_all", "dial", "is_tcp", "resolve", "set_nodelay"]

#: What getaddrinfo gives: family, type, protocol, canonical name, address.
AddressInfo = tuple[int, int, int, str, Any]


def is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto in (0, socket.IPPROTO_TCP)


def set_nodelay(sock: socket.socket) -> None:
    """TCP_NODELAY where there is one; a transport gathers small writes by itself."""
    if is_tcp(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def resolve(
    host: Any, port: Any, family: int, proto: int, flags: int, kind: int = socket.SOCK_STREAM
) -> Sequence[AddressInfo]:
    """The addresses of a host for this kind of socket, by the loop's resolver; a numeric one at once.

    :raises OverflowError: the port is not in 0 to 65535. :raises OSError: there are none.
    """
    _check_port(port)
    numeric = flags | socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        return socket.getaddrinfo(host, port, family, kind, proto, numeric)
    except socket.gaierror:
        pass  # a name: looking it up may take time, and so a thread
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, family=family, type=kind, proto=proto, flags=flags)
    if not infos:
        raise OSError(f"getaddrinfo({host!r}) returned empty list")
    return infos


def _check_port(port: Any) -> None:
    try:
        number = int(port)
    except (TypeError, ValueError):
        return  # the name of a service, or None
    if not 0 <= number <= 65535:
        raise OverflowError("port must be 0-65535")  # getaddrinfo(3) would take the low 16 bits


class _Recorder:
    """The part of a loop that ``start_connection`` needs; keeps the error of each address."""

    def __init__(self) -> None:
        self.errors: list[OSError] = []

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError as exc:
            self.errors.append(exc)
            raise


async def dial(
    remote: Sequence[AddressInfo],
    local: Sequence[AddressInfo] | None,
    happy_eyeballs_delay: float | None,
    interleave: int | None,
    all_errors: bool,
) -> socket.socket:
    """A socket that is connected to the first of the addresses that can be reached.

    :raises OSError: none can; :raises ExceptionGroup: the same, one per address, with *all_errors*.
    """
    recorder: Any = _Recorder()
    try:
        return await start_connection(
            remote,
            local_addr_infos=local,
            happy_eyeballs_delay=happy_eyeballs_delay,
            interleave=interleave,
            loop=recorder,
        )
    except OSError as exc:
        if not all_errors:
            raise
        if len(recorder.errors) < len(remote) and exc not in recorder.errors:
            recorder.errors.append(exc)  # an address that could not even be tried
        raise ExceptionGroup("create_connection failed", recorder.errors) from None
    finally:
        recorder.errors = []  # their tracebacks lead back here


def bind_all(
    infos: Iterable[AddressInfo], reuse_address: bool | None, reuse_port: bool | None, keep_alive: bool | None
) -> list[socket.socket]:
    """A socket bound to each address that this machine has; nothing stays open when this raises.

    :raises OSError: as bind(2); it has none of them. :raises ValueError: *reuse_port*, and the platform
        has none.
    """
    sockets: list[socket.socket] = []
    missing: list[OSError] = []
    try:
        for info in infos:
            try:
                sockets.append(bind(info, reuse_address, reuse_port, keep_alive))
            except OSError as exc:
                if exc.errno not in _MISSING:
                    raise
                missing.append(exc)
        if not sockets:
            raise _unbound([info[4] for info in infos], missing)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    finally:
        missing.clear()  # their tracebacks lead back here
    return sockets


#: Of an address that this machine does not have, or of whose family it has no sockets.
_MISSING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)


def _unbound(addresses: Sequence[Any], missing: Sequence[OSError]) -> OSError:
    what = f"could not bind on any address out of {addresses!r}"
    if not missing:
        return OSError(what)
    number = missing[0].errno or 0
    return OSError(number, f"{what}: {os.strerror(number)}")


def bind(
    info: AddressInfo, reuse_address: bool | None, reuse_port: bool | None, keep_alive: bool | None
) -> socket.socket:
    """A socket bound to an address.

    :raises OSError: as socket(2) and bind(2). :raises ValueError: *reuse_port*, and the platform has none.
    """
    family, kind, proto, _, address = info
    sock = socket.socket(family, kind, proto)
    try:
        if reuse_address or (reuse_address is None and os.name == "posix" and sys.platform != "cygwin"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        if reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise ValueError("reuse_port not supported by socket module")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
        if keep_alive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
        if family == socket.AF_INET6:
            # Else it would take the IPv4 port as well, for which there is a socket of its own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
        sock.bind(address)
    except BaseException as exc:
        sock.close()
        if not isinstance(exc, OSError):
            raise
        what = f"error while attempting to bind on address {address!r}: {str(exc).lower()}"
        raise OSError(exc.errno, what) from None
    return sock
