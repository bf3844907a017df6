"""What a TUN or TAP interface is asked to be: the options, which are looked at first, and opening it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypedDict

from ._core import syscalls
from ._core import tun_device as device_calls
from ._core.namespaces import Namespace, in_namespace
from ._core.netlink import Interface, Network
from ._core.segmentation import HEADER_SIZE
from ._core.tun_device import Device
from .link import Link, address_of, check_name, hwaddr_of, number_of

__all__ = ["PI", "Opened", "Settings", "TunTapOptions", "open_interface", "open_queue"]


class TunTapOptions(TypedDict, total=False):
    """The options of ``connect_tuntap`` and its kin, which tells what they mean."""

    mode: Literal["tun", "tap"]
    addresses: str | Iterable[str | Interface]
    peer: str | None
    routes: Iterable[str]
    mtu: int | None
    up: bool
    link_local: bool
    hwaddr: str | None
    txqueuelen: int | None
    sndbuf: int | None
    pi: bool
    vnet_hdr: Literal["raw", "split"] | None
    carrier: bool
    persist: bool | None
    owner: int | str | None
    group: int | str | None
    netns: Namespace | None


class Settings:
    """The options, looked at before anything is opened."""

    def __init__(self, name: str | None, queues: int, options: dict[str, Any]) -> None:
        unknown = set(options) - set(TunTapOptions.__annotations__)
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        get = options.get
        self.mode: str = get("mode", "tun")
        self.vnet_hdr: str | None = get("vnet_hdr")
        if self.mode not in ("tun", "tap"):
            raise ValueError(f"mode is 'tun' or 'tap', not {self.mode!r}")
        if self.vnet_hdr not in (None, "raw", "split"):
            raise ValueError(f"vnet_hdr is None, 'raw' or 'split', not {self.vnet_hdr!r}")
        if get("pi") and self.vnet_hdr:
            raise ValueError("a packet has the header of pi or that of vnet_hdr before it, and not both")
        self.name: str = f"{self.mode}%d" if name is None else name
        check_name(self.name, template=True)
        self.addresses: list[Interface] = [address_of(address) for address in _several(get("addresses"))]
        peer: Any = get("peer")
        self.peer: Any = None if peer is None else ipaddress.ip_address(peer)
        if self.peer is not None and self.peer.version not in {a.version for a in self.addresses}:
            raise ValueError(f"the peer {self.peer} goes with an address of its family, and there is none")
        self.routes: list[Network] = [ipaddress.ip_network(route) for route in _several(get("routes"))]
        self.hwaddr: str | None = get("hwaddr")
        if self.hwaddr is not None:
            hwaddr_of(self.hwaddr)
            if self.mode == "tun":
                raise ValueError("a TUN interface has no hardware address; one of mode 'tap' has")
        self.mtu: int | None = get("mtu")
        for name, least, most in _NUMBERS:
            if get(name) is not None:
                number_of(name, get(name), least, most)
        if self.mtu is not None and self.mtu < 1280 and any(a.version == 6 for a in self.addresses):
            raise ValueError(f"IPv6 takes an MTU of 1280 bytes or more (RFC 8200), not {self.mtu!r}")
        self.up: bool = get("up", True)
        if self.routes and not self.up:
            raise ValueError("routes can be set once the interface is up, and up is False")
        self.link_local: bool = get("link_local", True)
        self.txqueuelen: int | None = get("txqueuelen")
        self.sndbuf: int | None = get("sndbuf")
        self.persist: bool | None = get("persist")
        self.owner: int | None = _number_of(get("owner"), _user, "user")
        self.group: int | None = _number_of(get("group"), _group, "group")
        self.netns: Namespace | None = get("netns")
        self.flags: int = device_calls.TAP if self.mode == "tap" else device_calls.TUN
        if not get("pi"):
            self.flags |= device_calls.NO_PI
        if self.vnet_hdr:
            self.flags |= device_calls.VNET_HDR
        if queues > 1:
            self.flags |= device_calls.MULTI_QUEUE
        if not get("carrier", True):
            self.flags |= device_calls.NO_CARRIER

    def apply(self, fd: int, link: Link) -> None:
        """Set what was asked for, in the order in which the kernel can take it."""
        if self.sndbuf is not None:
            device_calls.set_sndbuf(fd, self.sndbuf)
        if self.owner is not None:
            device_calls.set_owner(fd, self.owner)
        if self.group is not None:
            device_calls.set_group(fd, self.group)
        changes: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("mtu", "txqueuelen", "hwaddr")
            if getattr(self, name) is not None
        }
        if not self.link_local:
            try:
                link.set(link_local=False)
            except OSError as exc:
                if exc.errno != errno.EAFNOSUPPORT:  # no IPv6 here, and so no address
                    raise
        if changes:
            link.set(**changes)
        for address in self.addresses:
            peer = self.peer if self.peer is not None and self.peer.version == address.version else None
            link.add_address(address, peer)
        if self.up and not link.state().up:  # whose owner may use it may still not change it
            link.set(up=True)
        for route in self.routes:
            link.add_route(route)
        if self.persist is not None:  # last: what could not be set up is not to stay
            device_calls.set_persist(fd, self.persist)


#: The largest number of a user that TUNSETOWNER takes, and the options that are a number.
_LARGEST_ID = (1 << 31) - 1
_NUMBERS = (("mtu", 68, 65535), ("txqueuelen", 0, (1 << 32) - 1), ("sndbuf", 1, (1 << 31) - 1))


def _several(value: Any) -> Iterable[Any]:
    return () if value is None else (value,) if isinstance(value, str) else value


def _user(name: str) -> int:
    import pwd

    return pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    import grp

    return grp.getgrnam(name).gr_gid


def _number_of(value: int | str | None, find: Callable[[str], int], what: str) -> int | None:
    if not isinstance(value, str):
        return None if value is None else number_of(what, value, 0, _LARGEST_ID)
    try:
        return find(value)
    except KeyError:
        raise ValueError(f"there is no {what} {value!r}") from None


class Opened(NamedTuple):
    """A descriptor, and what a transport has to know of it."""

    fd: int
    device: Device
    link: Link
    offloads: int
    settles: bool
    """Whether it has addresses that take a moment."""
    made_to_stay: bool
    """Whether it is persistent, and was not before."""

    def discard(self) -> None:
        """Close a descriptor of which nothing came. An interface that was made for it goes."""
        if self.made_to_stay:
            with contextlib.suppress(OSError):
                device_calls.set_persist(self.fd, False)
        syscalls.close(self.fd)


def open_interface(settings: Settings) -> Opened:
    """Make the interface, or attach to it, and set it."""
    fd, device, offloads = open_queue(settings, settings.name)
    link = None
    try:
        link = Link(device.name, settings.netns)
        stayed = settings.persist and device_calls.device_of(fd).flags & device_calls.PERSIST
        settings.apply(fd, link)
    except BaseException:
        syscalls.close(fd)
        if link is not None:
            link.close()
        raise
    settles = settings.up and any(address.version == 6 for address in settings.addresses)
    return Opened(fd, device, link, offloads, settles, bool(settings.persist) and not stayed)


def open_queue(settings: Settings, name: str) -> tuple[int, Device, int]:
    try:
        fd, device = in_namespace(settings.netns, lambda: device_calls.open_device(name, settings.flags))
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            raise _mismatch(exc, name, settings) from None
        raise
    try:
        offloads = 0
        if settings.vnet_hdr:
            device_calls.set_header_size(fd, HEADER_SIZE)
            offloads = device_calls.choose_offloads(fd)
    except BaseException:
        syscalls.close(fd)
        raise
    return fd, device, offloads


#: Attributes of the kernel's tun links: IFLA_TUN_TYPE, _PI, _MULTI_QUEUE of <linux/if_link.h>.
_TYPE, PI, _MULTI_QUEUE = 3, 4, 7


def _mismatch(exc: OSError, name: str, settings: Settings) -> OSError:
    """The kernel says EINVAL, and no more: tell what is there."""
    try:
        with Link(name, settings.netns) as link:
            state = link.state()
    except OSError:
        return exc
    if state.kind != "tun":
        there = f"is no TUN or TAP interface, but {state.kind or 'a device'}"
    else:
        mode, several = state.device.get(_TYPE, b"\1")[0], state.device.get(_MULTI_QUEUE, b"\0")[0]
        there = f"is {device_calls.described_flags(mode, bool(several))}"
    wanted = device_calls.described_flags(settings.flags & 3, bool(settings.flags & device_calls.MULTI_QUEUE))
    what = f"interface {name!r} {there}, and {wanted} was asked for"
    return OSError(exc.errno, f"{os.strerror(exc.errno or 0)}: {what}")
