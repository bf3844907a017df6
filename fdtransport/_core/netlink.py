"""The language of rtnetlink(7), as far as a network interface needs it: links, addresses, routes.

No descriptor, no loop: functions that make the bytes of a request, and read those of an answer.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterator
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "GROUP_LINK",
    "Address",
    "LinkState",
    "Message",
    "Request",
    "Route",
    "address_request",
    "addresses_request",
    "deletes_link",
    "link_deletion",
    "link_request",
    "link_setting",
    "messages",
    "read_address",
    "read_error",
    "read_link",
    "read_route",
    "route_request",
    "routes_request",
]

T = TypeVar("T")

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# From <linux/netlink.h> and <linux/rtnetlink.h>.
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
EXCL, CREATE = 0x200, 0x400
ACK_TLVS = 0x200
NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
#: The group to bind to for changes of links (RTMGRP_LINK).
GROUP_LINK = 1

IPV4, IPV6 = 2, 10  # AF_INET and AF_INET6 of Linux, on whatever system this is imported
IFF_UP, IFF_RUNNING = 0x1, 0x40
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_TXQLEN = 1, 3, 4, 13
_IFLA_LINKINFO, _IFLA_STATS64, _IFLA_AF_SPEC, _IFLA_CARRIER = 18, 23, 26, 33
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_INET6_ADDR_GEN_MODE = 8
_GEN_MODE_NONE, _GEN_MODE_EUI64 = 1, 0
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD, _IFA_F_TENTATIVE = 0x02, 0x40
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 6, 7, 15
_RTPROT_STATIC, _RT_TABLE_MAIN, _RT_SCOPE_LINK, _RTN_UNICAST = 4, 254, 253, 1
_STATISTICS = (
    "rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped",
)  # fmt: skip

_HEADER = struct.Struct("=LHHLL")  # nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # rtattr
_IFINFO = struct.Struct("=BxHiII")  # ifinfomsg
_IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg
_RTMSG = struct.Struct("=8BI")


class Message(NamedTuple):
    kind: int
    flags: int
    sequence: int
    body: bytes


class Request(NamedTuple):
    """A message that is to be sent; what is still missing is a number for it."""

    kind: int
    flags: int
    body: bytes

    def numbered(self, sequence: int) -> bytes:
        size = _HEADER.size + len(self.body)
        return _HEADER.pack(size, self.kind, self.flags | REQUEST, sequence, 0) + self.body


class LinkState(NamedTuple):
    """What the kernel tells of an interface."""

    ifindex: int
    name: str
    up: bool
    """Whether it was switched on (IFF_UP)."""
    carrier: bool
    """Whether the cable is plugged in."""
    running: bool
    """Whether it is up and has a carrier: packets pass (IFF_RUNNING). The kernel may take a second for it."""
    mtu: int
    hwaddr: str | None
    """The hardware address, ``02:00:00:00:00:01``; None where there is none."""
    txqueuelen: int
    kind: str
    """The kind of a virtual interface: ``tun`` (for TAP too), ``veth``..., or an empty string."""
    statistics: dict[str, int]
    """The kernel's counters, seen from the kernel: what a TUN's program reads was transmitted (``tx``)."""
    device: dict[int, bytes]
    """What only this kind of interface has, as the kernel encodes it."""


class Route(NamedTuple):
    """A row of the routing table."""

    destination: Network
    gateway: Any
    """An IPv4Address or IPv6Address; None for what is reached directly."""
    ifindex: int
    """The number of the interface; 0 when the row has none."""
    metric: int
    table: int


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= size <= len(data) - at:
            raise ValueError(f"a netlink message of {size} bytes in {len(data) - at}")
        yield Message(kind, flags, sequence, data[at + _HEADER.size : at + size])
        at += size + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes from *at* on; of several of a kind, the last."""
    found = {}
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= size <= len(data) - at:
            raise ValueError(f"a netlink attribute of {size} bytes in {len(data) - at}")
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + size]  # without NLA_F_NESTED and its kin
        at += size + 3 & ~3
    return found


def reader(read: Callable[[Message], T]) -> Callable[[Message], T]:
    """*read*, which raises ValueError for whatever has not the form that is documented."""

    @functools.wraps(read)
    def checked(message: Message) -> T:
        try:
            return read(message)
        except (struct.error, KeyError) as exc:
            what = f"a netlink message of kind {message.kind} that cannot be read"
            raise ValueError(f"{what}: {message.body[:64].hex()}") from exc

    return checked


@reader
def read_error(message: Message) -> tuple[int, str]:
    """``(errno, what the kernel says of it)`` of an answer of the kind ERROR; errno 0 is a plain yes."""
    (number,) = struct.unpack_from("=i", message.body)
    told = ""
    if message.flags & ACK_TLVS:
        size = _HEADER.unpack_from(message.body, 4)[0] if not message.flags & 0x100 else _HEADER.size
        text = attributes(message.body, 4 + (size + 3 & ~3)).get(1, b"")
        told = text.rstrip(b"\0").decode("utf-8", "replace")
    return -number, told


# -- links -------------------------------------------------------------------------------------------


def link_request(link: int | str) -> Request:
    """Ask for the `LinkState` of the interface with this number or name."""
    return Request(GETLINK, 0, _IFINFO.pack(0, 0, 0 if isinstance(link, str) else link, 0, 0) + _named(link))


def link_setting(
    link: int | str,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    txqueuelen: int | None = None,
    hwaddr: bytes | None = None,
    name: str | None = None,
    link_local: bool | None = None,
) -> Request:
    """Change what is not None. *link_local*: whether it is to get an IPv6 address by itself."""
    index = 0 if isinstance(link, str) else link
    flags, change = (0 if up is None else IFF_UP * up, 0 if up is None else IFF_UP)
    parts = [_IFINFO.pack(0, 0, index, flags, change), _named(link)]
    if mtu is not None:
        parts.append(attribute(_IFLA_MTU, struct.pack("=I", mtu)))
    if txqueuelen is not None:
        parts.append(attribute(_IFLA_TXQLEN, struct.pack("=I", txqueuelen)))
    if hwaddr is not None:
        parts.append(attribute(_IFLA_ADDRESS, hwaddr))
    if name is not None:
        parts.append(attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0"))
    if link_local is not None:
        mode = _GEN_MODE_EUI64 if link_local else _GEN_MODE_NONE
        mode_of = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([mode]))
        parts.append(attribute(_IFLA_AF_SPEC, attribute(IPV6, mode_of)))
    return Request(NEWLINK, ACK, b"".join(parts))


def link_deletion(index: int) -> Request:
    return Request(DELLINK, ACK, _IFINFO.pack(0, 0, index, 0, 0))


def _named(link: int | str) -> bytes:
    return attribute(_IFLA_IFNAME, os.fsencode(link) + b"\0") if isinstance(link, str) else b""


def deletes_link(message: Message) -> bool:
    return message.kind == DELLINK


@reader
def read_link(message: Message) -> LinkState:
    """Of an answer to `link_request`, or of what the group of links is told."""
    _, _, index, flags, _ = _IFINFO.unpack_from(message.body)
    found = attributes(message.body, _IFINFO.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    hwaddr = found.get(_IFLA_ADDRESS)
    counters = struct.unpack_from("=8Q", found.get(_IFLA_STATS64, bytes(64)))
    return LinkState(
        index,
        found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape"),
        bool(flags & IFF_UP),
        found.get(_IFLA_CARRIER, b"\0") != b"\0",
        bool(flags & IFF_UP) and bool(flags & IFF_RUNNING),
        _number(found, _IFLA_MTU),
        hwaddr.hex(":") if hwaddr else None,
        _number(found, _IFLA_TXQLEN),
        info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(),
        dict(zip(_STATISTICS, counters, strict=True)),
        attributes(info.get(_IFLA_INFO_DATA, b"")),
    )


def _number(found: dict[int, bytes], kind: int) -> int:
    return int(struct.unpack_from("=I", found.get(kind, bytes(4)))[0])


# -- addresses ---------------------------------------------------------------------------------------


def address_request(
    index: int, address: Interface, peer: Any = None, *, add: bool, check: bool = False
) -> Request:
    """Add *address* to an interface, or remove it.

    *peer*: the address of the other end of a point-to-point link. *check*: ask first whether somebody
    else has an IPv6 address (RFC 4862); it cannot be used meanwhile.
    """
    family = IPV6 if address.version == 6 else IPV4
    local = address.ip.packed
    body = _IFADDR.pack(family, address.network.prefixlen, 0, 0, index)
    body += attribute(_IFA_LOCAL, local) + attribute(_IFA_ADDRESS, local if peer is None else peer.packed)
    if not add:
        return Request(DELADDR, ACK, body)
    if family == IPV6 and not check:
        body += attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
    return Request(NEWADDR, ACK | CREATE | EXCL, body)


def addresses_request() -> Request:
    """Ask for all addresses of all interfaces."""
    return Request(GETADDR, DUMP, _IFADDR.pack(0, 0, 0, 0, 0))


class Address(NamedTuple):
    ifindex: int
    interface: Interface
    """The address with its prefix."""
    tentative: bool
    """Whether it cannot be used yet: the kernel is not through with it."""


@reader
def read_address(message: Message) -> Address:
    _, prefix, _, _, index = _IFADDR.unpack_from(message.body)
    found = attributes(message.body, _IFADDR.size)
    packed = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    tentative = bool(_number(found, _IFA_FLAGS) & _IFA_F_TENTATIVE)
    return Address(index, ip_interface((ip_address(packed), prefix)), tentative)


# -- routes ------------------------------------------------------------------------------------------


def route_request(
    index: int,
    destination: Network,
    gateway: Any = None,
    *,
    add: bool,
    metric: int | None = None,
    table: int = _RT_TABLE_MAIN,
    source: Any = None,
) -> Request:
    """Add a route through an interface, or remove it."""
    family = IPV6 if destination.version == 6 else IPV4
    scope = _RT_SCOPE_LINK if add and gateway is None and family == IPV4 else 0
    protocol, kind = (_RTPROT_STATIC, _RTN_UNICAST) if add else (0, 0)
    short = table if table < 256 else 0
    body = _RTMSG.pack(family, destination.prefixlen, 0, 0, short, protocol, scope, kind, 0)
    body += attribute(_RTA_DST, destination.network_address.packed)
    body += attribute(_RTA_OIF, struct.pack("=I", index)) + attribute(_RTA_TABLE, struct.pack("=I", table))
    if gateway is not None:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    if metric is not None:
        body += attribute(_RTA_PRIORITY, struct.pack("=I", metric))
    if source is not None:
        body += attribute(_RTA_PREFSRC, source.packed)
    if not add:
        if family == IPV4:  # RT_SCOPE_NOWHERE: whatever scope the row has
            body = body[:6] + b"\xff" + body[7:]
        return Request(DELROUTE, ACK, body)
    return Request(NEWROUTE, ACK | CREATE | EXCL, body)


def routes_request() -> Request:
    """Ask for all routes of the main and the other tables."""
    return Request(GETROUTE, DUMP, _RTMSG.pack(*[0] * 9))


@reader
def read_route(message: Message) -> Route | None:
    """A route to somewhere else; None for the kernel's own rows (local addresses, multicast)."""
    family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(message.body)
    if family not in (IPV4, IPV6) or kind != _RTN_UNICAST:
        return None
    found = attributes(message.body, _RTMSG.size)
    packed = found.get(_RTA_DST, bytes(16 if family == IPV6 else 4))
    gateway = found.get(_RTA_GATEWAY)
    return Route(
        ip_network((ip_address(packed), prefix)),
        None if gateway is None else ip_address(gateway),
        _number(found, _RTA_OIF),
        _number(found, _RTA_PRIORITY),
        _number(found, _RTA_TABLE) or table,
    )
