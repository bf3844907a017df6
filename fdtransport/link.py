"""The settings of a network interface: state, MTU, addresses, routes, by rtnetlink(7).

What the ``ip`` command does, for one interface, with nothing but the standard library. The kernel answers
within the call, so none of these methods waits.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ._core import netlink, syscalls
from ._core.namespaces import Namespace, OpenNamespace, in_namespace
from ._core.netlink import Address, Interface, LinkState, Message, Network, Request, Route
from ._core.opening import open_transport
from ._core.packet import PacketTransport

__all__ = ["Link", "LinkState", "Route", "address_of", "hwaddr_of"]

T = TypeVar("T")

_NETLINK, _ROUTE = getattr(socket, "AF_NETLINK", 16), 0
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
#: SIOCGSKNS of <linux/sockios.h>: the network namespace of a socket.
_NAMESPACE_OF = 0x894C
#: Bytes of an answer that are read at once; the kernel never makes one datagram of a dump larger.
_ANSWER = 1 << 16
_HWADDR = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")


class Link:
    """A network interface, in the network namespace that it was found in.

    *name* may be the name or the number of an interface; *netns* is as in ``connect_tuntap``. It holds a
    descriptor until ``close()``; it can be used in a ``with``.

    ::

        with Link("lo") as link:
            link.set(up=True)
            print(link.state().mtu)

    Several threads may use it. Changes take CAP_NET_ADMIN. When the interface has been deleted, or moved to
    another namespace, what is asked of it raises OSError (ENODEV).

    :raises ValueError, TypeError: *name* is none. :raises OSError: ENODEV, there is no such interface; EPERM.
    """

    def __init__(self, name: str | int, netns: Namespace | None = None) -> None:
        self._elsewhere = netns is not None
        self._sequence = 0
        self._lock = threading.Lock()  # an answer is for whoever asked
        self._holders = 1
        self._sock: socket.socket = in_namespace(netns, lambda: _route_socket(0))
        try:
            found = self.find(name)
        except BaseException:
            self._sock.close()
            raise
        self.index: int = found.ifindex
        self._name = found.name

    # -- life ----------------------------------------------------------------------------------

    def hold(self) -> Link:
        """One more for whom it stays open."""
        self._holders += 1
        return self

    def close(self) -> None:
        """Close the descriptor when everybody who holds it has closed it; the interface stays as it is."""
        self._holders -= 1
        if self._holders <= 0:
            self._sock.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Link {self.index}{' closed' if self._sock.fileno() < 0 else ''}>"

    # -- what it is ----------------------------------------------------------------------------

    def find(self, name: str | int) -> LinkState:
        """The state of any interface here, by its name or number. :raises OSError: ENODEV."""
        if isinstance(name, str):
            check_name(name)
        else:
            number_of("the number of an interface", name, most=(1 << 31) - 1)
        try:
            answers = self._ask(netlink.link_request(name))
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                raise OSError(exc.errno, f"{exc.strerror}: there is no interface {name!r} here") from None
            raise
        return netlink.read_link(answers[0])

    def state(self) -> LinkState:
        """What the kernel tells of it now: name, up, running, mtu, hwaddr, statistics..."""
        return netlink.read_link(self._ask_of_it(netlink.link_request(self.index))[0])

    def addresses(self) -> list[Interface]:
        """Its IPv4 and IPv6 addresses with their prefixes, as ``ipaddress.ip_interface`` has them."""
        return [address.interface for address in self._addresses()]

    def is_settled(self) -> bool:
        """Whether all of its addresses can be used. After an IPv6 address was added, or the interface was
        switched on, the kernel takes a moment for it, or a second or two if it has to ask (*check*)."""
        return not any(address.tentative for address in self._addresses())

    def _addresses(self) -> list[Address]:
        found = map(netlink.read_address, self._ask(netlink.addresses_request()))
        return [address for address in found if address.ifindex == self.index] or self._none()

    def routes(self) -> list[Route]:
        """The routes that go through it."""
        found = map(netlink.read_route, self._ask(netlink.routes_request()))
        ours = [route for route in found if route is not None and route.ifindex == self.index]
        return ours or self._none()

    def _none(self) -> list[Any]:
        """No addresses, or routes: the kernel has none to tell of one that has gone, either."""
        self.state()
        return []

    # -- changes -------------------------------------------------------------------------------

    def set(
        self,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        txqueuelen: int | None = None,
        hwaddr: str | None = None,
        name: str | None = None,
        link_local: bool | None = None,
    ) -> None:
        """Change what is given, all of it in one call to the kernel.

        *mtu*: bytes. *txqueuelen*: packets. *hwaddr*: ``02:00:00:00:00:01``. *name*: another name.
        *link_local*: whether it is to have an IPv6 address by itself as soon as it is up.

        :raises ValueError: *hwaddr* or *name* is none, or a number is out of range. :raises OSError: EPERM;
            EINVAL, the kind of interface cannot have that.
        """
        packed = None if hwaddr is None else hwaddr_of(hwaddr)
        if name is not None:
            check_name(name)
        for what, value in (("mtu", mtu), ("txqueuelen", txqueuelen)):
            if value is not None:
                number_of(what, value)
        self._ask_of_it(
            netlink.link_setting(
                self.index, up=up, mtu=mtu, txqueuelen=txqueuelen, hwaddr=packed, name=name,
                link_local=link_local,
            )
        )  # fmt: skip

    def add_address(self, address: str | Interface, peer: Any = None, *, check: bool = False) -> None:
        """Give it an address, as ``"10.9.0.1/24"`` or ``"fd00::1/64"``. One that it has is no error.

        *peer*: the address of the other end of a point-to-point link. *check*: let the kernel ask first
        whether somebody else has this IPv6 address, which takes a second or two until it can be used.

        :raises ValueError: it is no address. :raises OSError: EPERM...
        """
        self._change_address(address, peer, add=True, check=check)

    def remove_address(self, address: str | Interface, peer: Any = None) -> None:
        """Take an address away. :raises OSError: EADDRNOTAVAIL, it does not have it."""
        self._change_address(address, peer, add=False)

    def _change_address(self, address: str | Interface, peer: Any, *, add: bool, check: bool = False) -> None:
        interface = address_of(address)
        other = None if peer is None else ipaddress.ip_address(peer)
        if other is not None and other.version != interface.version:
            raise ValueError(f"{interface} and its peer {other} are of different families")
        try:
            self._ask_of_it(netlink.address_request(self.index, interface, other, add=add, check=check))
        except FileExistsError:
            pass  # it is there
        except OSError as exc:
            what = f"{exc.strerror} (address {interface})"
            raise OSError(exc.errno, what) from None

    def add_route(
        self,
        destination: str | Network,
        gateway: Any = None,
        *,
        metric: int | None = None,
        table: int = 254,
        source: Any = None,
    ) -> None:
        """Send what is for *destination*, a network as ``"10.0.0.0/8"`` or ``"default"``, through it.

        *gateway*: the next hop, if there is one. *source*: the address that packets of this machine get.
        The interface has to be up. Without an address family of its own, ``"default"`` is IPv4, or that
        of *gateway*.

        :raises ValueError: a network or address does not parse. :raises OSError: EEXIST, it is there;
            ENETUNREACH, the gateway cannot be reached; ENETDOWN; EPERM.
        """
        self._change_route(destination, gateway, add=True, metric=metric, table=table, source=source)

    def remove_route(
        self, destination: str | Network, gateway: Any = None, *, metric: int | None = None, table: int = 254
    ) -> None:
        """Take a route away. :raises OSError: ESRCH, there is none."""
        self._change_route(destination, gateway, add=False, metric=metric, table=table)

    def _change_route(self, destination: Any, gateway: Any, *, add: bool, **options: Any) -> None:
        for what in ("metric", "table"):
            if options.get(what) is not None:
                number_of(what, options[what])
        hop = None if gateway is None else ipaddress.ip_address(gateway)
        if destination == "default":
            destination = "::/0" if hop is not None and hop.version == 6 else "0.0.0.0/0"
        network = ipaddress.ip_network(destination)
        if options.get("source") is not None:
            options["source"] = ipaddress.ip_address(options["source"])
        for other in (hop, options.get("source")):
            if other is not None and other.version != network.version:
                raise ValueError(f"{network} and {other} are of different families")
        try:
            self._ask_of_it(netlink.route_request(self.index, network, hop, add=add, **options))
        except OSError as exc:
            raise OSError(exc.errno, f"{exc.strerror} (route to {network})") from None

    def delete(self) -> None:
        """Remove the interface itself. :raises OSError: EPERM; EOPNOTSUPP, it is not a virtual one."""
        self._ask_of_it(netlink.link_deletion(self.index))

    # -- events --------------------------------------------------------------------------------

    async def watch(self, on_change: Callable[[LinkState | None], object]) -> PacketTransport:
        """Call *on_change* with the state whenever it changes, and with None when the interface is gone.

        Returns the transport of the events; close it when they are not wanted any more. After an overrun
        of the kernel's queue the present state is told.

        :raises OSError: it is in another network namespace, and may not be watched from here.
        """
        sock = self._here(lambda: _route_socket(netlink.GROUP_LINK))
        try:
            transport, _ = await open_transport(PacketTransport, lambda: _Watch(self, on_change), sock)
        except BaseException:
            sock.close()
            raise
        return transport

    def _here(self, function: Callable[[], T]) -> T:
        """Call *function* in the namespace of this interface."""
        if not self._elsewhere:
            return function()
        namespace = int(syscalls.ioctl(self._sock.fileno(), _NAMESPACE_OF))
        try:
            return in_namespace(OpenNamespace(namespace), function)
        finally:
            syscalls.close(namespace)

    # -- talking to the kernel -----------------------------------------------------------------

    def _ask_of_it(self, request: Request) -> list[Message]:
        """As ``_ask``, what concerns this interface. Why it is gone, the kernel does not tell from here."""
        try:
            return self._ask(request)
        except OSError as exc:
            # Of one whose MTU is too small for IPv6 the kernel says the same, when that is asked for.
            if exc.errno != errno.ENODEV or self._is_here():
                raise
            what = f"there is no interface {self._name!r} (number {self.index}) here any more"
            why = "it was deleted, or is in another network namespace, where Link(name, netns) finds it"
            raise OSError(exc.errno, f"{os.strerror(errno.ENODEV)}: {what}: {why}") from None

    def _is_here(self) -> bool:
        try:
            return bool(self._ask(netlink.link_request(self.index)))
        except OSError:
            return False

    def _ask(self, request: Request) -> list[Message]:
        """Send a request, and return the answers to it."""
        if self._sock.fileno() < 0:
            raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: the link was closed")
        with self._lock:
            return self._answers(request)

    def _answers(self, request: Request) -> list[Message]:
        self._sequence += 1
        syscalls.send(self._sock, request.numbered(self._sequence))
        answers: list[Message] = []
        while True:
            data, _ = syscalls.recvfrom(self._sock, _ANSWER)
            for message in netlink.messages(data):
                if message.sequence != self._sequence:
                    continue  # of a request that was interrupted
                if message.kind == netlink.ERROR:
                    number, told = netlink.read_error(message)
                    if number:
                        raise OSError(number, f"{os.strerror(number)}{_hint(number)}{told and f': {told}'}")
                    return answers
                if message.kind == netlink.DONE:
                    return answers
                answers.append(message)
            if answers and not request.flags & (netlink.ACK | netlink.DUMP):
                return answers


def _hint(number: int) -> str:
    return " (it takes CAP_NET_ADMIN)" if number == errno.EPERM else ""


def _route_socket(groups: int) -> socket.socket:
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.ENOSYS, "network interfaces are set by rtnetlink(7), which only Linux has")
    sock = socket.socket(_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ROUTE)
    try:
        sock.bind((0, groups))
        sock.setblocking(False)  # whatever is asked, the answer is there when send() returns
        for option in (_CAP_ACK, _EXT_ACK):
            sock.setsockopt(_SOL_NETLINK, option, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class _Watch(asyncio.DatagramProtocol):
    def __init__(self, link: Link, on_change: Callable[[LinkState | None], object]) -> None:
        self._link = link
        self._on_change = on_change

    def datagram_received(self, data: bytes, addr: Any) -> None:
        for message in netlink.messages(data):
            if message.kind not in (netlink.NEWLINK, netlink.DELLINK):
                continue
            state = netlink.read_link(message)
            if state.ifindex == self._link.index:
                self._on_change(None if netlink.deletes_link(message) else state)

    def error_received(self, exc: Exception) -> None:
        # ENOBUFS: the kernel's queue overran, and a change was lost with it.
        try:
            state = self._link.state()
        except OSError:
            self._on_change(None)
        else:
            self._on_change(state)


# -- what the caller wrote ---------------------------------------------------------------------------


def check_name(name: str, template: bool = False) -> None:
    """Raise for what the kernel would refuse as the name of an interface, or would cut.

    :raises ValueError: it is none. *template*: a ``%d`` in it stands for the lowest number that is free.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of an interface is a str, not {name!r}")
    rest = name.replace("%d", "", 1) if template else name
    try:
        size = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} is no name of an interface: it cannot be encoded") from None
    if not name or name in (".", "..") or re.search(r"[/:\s%\0]", rest):
        what = "has no slash, colon, % or white space" + (", but one %d" if template else "")
        raise ValueError(f"{name!r} is no name of an interface: it {what}")
    if size > 15:
        raise ValueError(f"{name!r} is {size} bytes long, and the name of an interface has 15 at most")


def number_of(what: str, value: Any, least: int = 0, most: int = (1 << 32) - 1) -> int:
    """:raises TypeError: *value* is no whole number. :raises ValueError: it is out of range."""
    if not isinstance(value, int):
        raise TypeError(f"{what} is a whole number, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{what} ({value!r}) is a number from {least} to {most}")
    return value


def address_of(address: str | Interface) -> Interface:
    """:raises ValueError: *address* is none with a prefix, as ``10.9.0.1/24``."""
    try:
        return ipaddress.ip_interface(address)
    except ValueError:
        form = "one is written as 10.9.0.1/24 or fd00::1/64"
        raise ValueError(f"{address!r} is no address of an interface; {form}") from None


def hwaddr_of(address: str) -> bytes:
    """:raises ValueError: *address* is no hardware address, as ``02:00:00:00:00:01``."""
    if not isinstance(address, str) or not _HWADDR.fullmatch(address):
        form = "one is written as 02:00:00:00:00:01"
        raise ValueError(f"{address!r} is no hardware address; {form}")
    packed = bytes.fromhex(re.sub("[:-]", "", address))
    if packed[0] & 1:
        raise ValueError(f"{address!r} is the address of a group: the first byte of one interface's is even")
    return packed
