"""Multicast options of a UDP socket, of IPv4 and of IPv6: ip(7), ipv6(7)."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from typing import Any

__all__ = ["Group", "Interface", "configure", "groups_of", "is_multicast", "join", "leave"]

#: A name (``"eth0"``), an index, or for IPv4 the address of the interface. None: the kernel chooses.
Interface = str | int | None
#: A group's address, or that and the interface to join it on.
Group = str | tuple[str, Interface]


def is_multicast(host: Any) -> bool:
    """Whether an address, as getaddrinfo gives it, is that of a group."""
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_multicast
    except ValueError:
        return False


def groups_of(join: Group | Iterable[Group], interface: Interface) -> list[tuple[str, Interface]]:
    """The option ``join`` as a list of (group, interface)."""
    if isinstance(join, str) or (isinstance(join, tuple) and len(join) == 2 and not _is_group(join[1])):
        join = [join]  # type: ignore[list-item]
    return [(group, interface) if isinstance(group, str) else group for group in join]  # type: ignore[misc]


def _is_group(value: Any) -> bool:
    return isinstance(value, tuple) or (isinstance(value, str) and is_multicast(value))


def join(sock: socket.socket, group: str, interface: Interface = None) -> None:
    """Receive what is sent to *group*. :raises ValueError: it is no group of the socket's family.
    :raises OSError: ENODEV, no such interface; EADDRINUSE, joined already."""
    _membership(sock, group, interface, "IP_ADD_MEMBERSHIP", "IPV6_JOIN_GROUP")


def leave(sock: socket.socket, group: str, interface: Interface = None) -> None:
    """Undo ``join``. :raises OSError: EADDRNOTAVAIL, it is not joined."""
    _membership(sock, group, interface, "IP_DROP_MEMBERSHIP", "IPV6_LEAVE_GROUP")


def _membership(sock: socket.socket, group: str, interface: Interface, four: str, six: str) -> None:
    if not is_multicast(group):
        raise ValueError(f"{group!r} is no multicast group, as 239.1.2.3 or ff15::7 is")
    try:
        packed = socket.inet_pton(sock.family, group.partition("%")[0])
    except (OSError, ValueError):
        raise ValueError(f"group {group!r} is not of the socket's family, {sock.family.name}") from None
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, four), packed + _mreqn(interface))
    else:
        index = struct.pack("I", _index(interface or group.partition("%")[2] or None))
        sock.setsockopt(socket.IPPROTO_IPV6, getattr(socket, six), packed + index)


def configure(sock: socket.socket, ttl: int | None, loopback: bool | None, interface: Interface) -> None:
    """Options of what is sent. *ttl* is for datagrams to one host as well (where 0 is no choice).

    :raises ValueError: they are given for a socket that has none; *ttl* is not in 0 to 255.
    :raises OSError: ENODEV, no such interface.
    """
    if ttl is loopback is interface is None:
        return
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(f"ttl, loopback, interface and join are for UDP, not for {sock.family.name}")
    if ttl is not None and not 0 <= ttl <= 255:
        raise ValueError(f"ttl ({ttl!r}) must be 0 to 255")
    six = sock.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    if ttl is not None:
        sock.setsockopt(level, socket.IPV6_MULTICAST_HOPS if six else socket.IP_MULTICAST_TTL, ttl)
        if ttl:
            sock.setsockopt(level, socket.IPV6_UNICAST_HOPS if six else socket.IP_TTL, ttl)
    if loopback is not None:
        sock.setsockopt(level, socket.IPV6_MULTICAST_LOOP if six else socket.IP_MULTICAST_LOOP, loopback)
    if interface is not None and six:
        sock.setsockopt(level, socket.IPV6_MULTICAST_IF, _index(interface))
    elif interface is not None:
        sock.setsockopt(level, socket.IP_MULTICAST_IF, bytes(4) + _mreqn(interface))


def _mreqn(interface: Interface) -> bytes:
    """Address and index, as the end of a struct ip_mreqn."""
    if isinstance(interface, str):
        try:
            return ipaddress.IPv4Address(interface).packed + bytes(4)
        except ValueError:
            pass  # a name
    return struct.pack("=4xi", _index(interface))


def _index(interface: Interface) -> int:
    if isinstance(interface, int):
        return interface
    try:
        return socket.if_nametoindex(interface) if interface else 0
    except OSError:
        raise OSError(errno.ENODEV, f"{os.strerror(errno.ENODEV)}: interface {interface!r}") from None
