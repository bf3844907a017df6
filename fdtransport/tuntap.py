"""TUN and TAP: network interfaces whose packets this program reads and writes.

A TUN interface carries IP packets, a TAP interface Ethernet frames. Their addresses, MTU and routes are set
without the ``ip`` command: see ``link``.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar, Unpack

from ._core import syscalls
from ._core import tun_device as device_calls
from ._core.handle import FileLike, fileno_of
from ._core.namespaces import OpenNamespace
from ._core.opening import open_transport
from ._core.segmentation import HEADER_SIZE
from ._core.tun_device import Device
from .link import Link
from .packets import PacketStream
from .tuntap_settings import PI, Opened, Settings, TunTapOptions, open_interface, open_queue
from .tuntap_transport import TunTapTransport

__all__ = [
    "OpeningTunTap",
    "TunTapGroup",
    "TunTapOptions",
    "TunTapStream",
    "connect_tuntap",
    "connect_tuntap_queues",
    "open_tuntap",
]

P = TypeVar("P", bound=asyncio.BaseProtocol)


#: Milliseconds at most that are waited for addresses.
SETTLING = 3000
#: What has to be known of a descriptor that is attached already.
_OF_ADOPTED = {"vnet_hdr", "pi"}


async def connect_tuntap(
    protocol_factory: Callable[[], P],
    name: str | None = None,
    *,
    fd: FileLike | None = None,
    **options: Unpack[TunTapOptions],
) -> tuple[TunTapTransport, P]:
    """Make a network interface, or attach to one, and get its packets as datagrams.

    *name*: up to 15 bytes; a ``%d`` in it stands for the lowest number that is free. Default: ``tun%d`` or
    ``tap%d``. *fd*: a descriptor that is attached to an interface already (from another process, from
    systemd) instead; of the options only *vnet_hdr* and *pi* are taken then, which have to be right.

    ===============  ===================================================================================
    *mode*           ``"tun"`` (default): IP packets. ``"tap"``: Ethernet frames
    *addresses*      of this machine on the interface, as ``["10.9.0.1/24", "fd00::1/64"]``
    *peer*           the address of the other end, for an address without a network of its own
    *routes*         networks that are reached by it, as ``["10.0.0.0/8"]``; ``link.add_route`` can more
    *mtu*            bytes of the largest IP packet, 68 to 65535 (1500)
    *up*             switch it on (default)
    *link_local*     whether it gets an IPv6 address by itself (default). It then sends packets that nobody
                     asked for: router solicitations, multicast reports
    *hwaddr*         its hardware address, as ``"02:00:00:00:00:01"`` (tap)
    *txqueuelen*     packets that the kernel keeps until they are read (500); more are dropped
    *sndbuf*         bytes of sent packets on their way through the kernel until ``sendto`` queues (no limit)
    *pi*             the protocol number of each packet is told, and can be given: see `TunTapAddress`
    *vnet_hdr*       offload. ``"raw"``: packets of up to 64 KiB, each with a header of 10 bytes that tells
                     how to cut them and which checksum is missing (``struct virtio_net_hdr``), to be passed
                     on to another such interface as they are: many times the speed. ``"split"``: the same
                     from the kernel, cut here into packets of the MTU, with right checksums. The kernel can
                     do that faster: leave *vnet_hdr* alone where only packets of the MTU are wanted
    *carrier*        False: as if no cable were plugged in, until ``transport.set_carrier(True)``
    *persist*        whether the interface stays when this ends; default: as it is, which is no for a new one
    *owner, group*   number or name of who may attach to it without privilege
    *netns*          the network namespace it is made in, and stays in: a path, a name of ip-netns(8) or
                     the id of a process. The program itself stays where it is
    ===============  ===================================================================================

    Returns ``(transport, protocol)`` after ``connection_made``. Cancelling is safe. The protocol is an
    ``asyncio.DatagramProtocol``, and may have two callbacks more: ``packets_received(records)`` with the
    list of ``(packet, address)`` of a wake-up, and ``link_changed(state)`` with the `LinkState` whenever it
    changes. ``transport.link`` has the settings.

    Reading can be paused, but a network does not wait: the kernel keeps *txqueuelen* packets, and drops the
    others, which ``transport.missed`` counts.

    The kernel takes some 20 ms to take an interface down, in a thread: its name is free again when
    ``connection_lost`` has come, or ``aclose()`` has returned.

    :raises ValueError, TypeError: an option, an address or the name cannot be; nothing was opened.
    :raises OSError: EPERM or EACCES, no privilege for it (CAP_NET_ADMIN, or ``unshare -rn``); ENOENT, no
        ``/dev/net/tun``; EBUSY, the interface is in use; EINVAL, it is there and of another kind.

    ::

        transport, protocol = await connect_tuntap(
            MyDatagramProtocol, "vpn0", addresses=["10.9.0.1/24", "fd00::1/64"], mtu=1400
        )

    See ``Documentation/networking/tuntap.rst`` of the kernel, and rtnetlink(7).
    """
    if fd is not None:
        return await _adopt(protocol_factory, fd, name, options)
    opened = open_interface(Settings(name, 1, dict(options)))
    try:
        return await _connect(protocol_factory, opened, options.get("vnet_hdr"))
    finally:
        opened.link.close()  # the transport holds it


async def _connect(
    protocol_factory: Callable[[], P], opened: Opened, vnet_hdr: str | None, queue: int = 0
) -> tuple[TunTapTransport, P]:
    try:
        if opened.settles:
            await _settled(opened.link)
        transport, protocol = await open_transport(
            TunTapTransport, protocol_factory, opened.fd, device=opened.device, link=opened.link, queue=queue,
            vnet_hdr=vnet_hdr, offloads=opened.offloads,
        )  # fmt: skip
    except BaseException:
        opened.discard()
        raise
    if hasattr(protocol, "link_changed"):
        try:
            await transport._watch_link()
        except BaseException:
            _undo(transport, opened)
            raise
    return transport, protocol


def _undo(transport: TunTapTransport, opened: Opened) -> None:
    """Have nothing there any more when the helper raises; closing it properly would be over later."""
    fd = transport.fileno()
    if fd >= 0:
        transport._give_back()
        opened._replace(fd=fd).discard()


async def _settled(link: Link) -> None:
    """Wait for the moment that the kernel takes until IPv6 addresses can be used."""
    for _ in range(SETTLING):
        if link.is_settled() or not link.state().carrier:
            return
        await asyncio.sleep(0.001)


async def _adopt(
    protocol_factory: Callable[[], P], file: FileLike, name: str | None, options: TunTapOptions
) -> tuple[TunTapTransport, P]:
    refused = ", ".join(sorted(set(options) - _OF_ADOPTED | ({"name"} if name is not None else set())))
    if refused:
        raise ValueError(f"the descriptor is of an interface that is set already: {refused} cannot be given")
    device = device_calls.device_of(fileno_of(file))
    vnet_hdr = options.get("vnet_hdr")
    if vnet_hdr and device.flags & device_calls.VNET_HDR:
        size = device_calls.header_size(fileno_of(file))
        if size != HEADER_SIZE:
            raise ValueError(f"this descriptor has headers of {size} bytes, and {HEADER_SIZE} are known here")
    link = _link_of(fileno_of(file), device)
    told = None if link is None else link.state().device.get(PI)
    if options.get("pi", told is not None and told[0] != 0):
        device = device._replace(flags=device.flags & ~device_calls.NO_PI)
    try:
        transport, protocol = await open_transport(
            TunTapTransport, protocol_factory, file, device=device, link=link, vnet_hdr=vnet_hdr
        )
    finally:
        if link is not None:
            link.close()
    if hasattr(protocol, "link_changed") and link is not None:
        try:
            await transport._watch_link()
        except BaseException:
            transport._give_back()
            raise
    return transport, protocol


def _link_of(fd: int, device: Device) -> Link | None:
    """The settings of the interface behind a descriptor; None when they cannot be reached."""
    try:
        namespace = device_calls.namespace_of(fd)
        try:
            return Link(device.name, OpenNamespace(namespace))
        finally:
            syscalls.close(namespace)
    except OSError:
        return None  # no privilege in the namespace of the interface


class TunTapGroup(Generic[P]):
    """The queues of one interface: a transport and a protocol for each, made by ``connect_tuntap_queues``.

    The kernel sends all packets of a connection by the same queue. It can be used in an ``async with``, and
    iterated over.
    """

    def __init__(self, members: list[tuple[TunTapTransport, P]]) -> None:
        self._members = members

    @property
    def transports(self) -> list[TunTapTransport]:
        """By their numbers."""
        return [transport for transport, _ in self._members]

    @property
    def protocols(self) -> list[P]:
        """Those of ``transports``."""
        return [protocol for _, protocol in self._members]

    @property
    def link(self) -> Link:
        """The settings of the interface. :raises OSError: all transports have ended."""
        open_ones = [transport for transport in self.transports if transport.fileno() >= 0]
        return (open_ones or self.transports)[0].link

    @property
    def name(self) -> str:
        """The name of the interface."""
        return self.transports[0].name

    def __iter__(self) -> Iterator[tuple[TunTapTransport, P]]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def close(self) -> None:
        """Close all of them."""
        for transport in self.transports:
            transport.close()

    async def aclose(self, timeout: float | None = None) -> None:
        """Close all of them and wait for it; see the transport's ``aclose``."""
        self.close()
        await asyncio.gather(*(transport.aclose(timeout) for transport in self.transports))

    async def __aenter__(self) -> TunTapGroup[P]:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<TunTapGroup {self.name} of {len(self)} queues>"


async def connect_tuntap_queues(
    protocol_factory: Callable[[], P],
    name: str | None = None,
    *,
    queues: int,
    **options: Unpack[TunTapOptions],
) -> TunTapGroup[P]:
    """As ``connect_tuntap``, for an interface with several queues: a transport for each.

    *queues*: 1 to 256.

    ::

        async with await connect_tuntap_queues(MyDatagramProtocol, "tun0", queues=4) as group:
            ...
    """
    if not 1 <= operator.index(queues) <= 256:
        raise ValueError(f"an interface has 1 to 256 queues, not {queues!r}")
    settings = Settings(name, max(queues, 2), dict(options))
    opened = open_interface(settings)
    link = opened.link
    members: list[tuple[TunTapTransport, P]] = []
    try:
        for number in range(queues):
            if number:
                opened = opened._replace(fd=open_queue(settings, opened.device.name)[0])
            members.append(await _connect(protocol_factory, opened, settings.vnet_hdr, number))
    except BaseException:
        for transport, _ in members:
            _undo(transport, opened)
        raise
    finally:
        link.close()  # the transports hold it
    return TunTapGroup(members)


class TunTapStream(PacketStream):
    """Packets by ``await``: ``recv``, ``send``, ``async for``; made by ``open_tuntap``."""

    transport: TunTapTransport

    @property
    def link(self) -> Link:
        """The settings of the interface."""
        return self.transport.link

    @property
    def name(self) -> str:
        """The name of the interface."""
        return self.transport.name


class OpeningTunTap:
    """What ``open_tuntap`` returns: to be awaited, or used in an ``async with``."""

    def __init__(self, name: str | None, limit: int, fd: FileLike | None, options: dict[str, Any]) -> None:
        self._name = name
        self._limit = limit
        self._fd = fd
        self._options = options
        self._stream: TunTapStream | None = None

    async def _open(self) -> TunTapStream:
        loop = asyncio.get_running_loop()

        def factory() -> TunTapStream:
            return TunTapStream(loop, self._limit)

        _, stream = await connect_tuntap(factory, self._name, fd=self._fd, **self._options)
        return stream

    def __await__(self) -> Generator[Any, None, TunTapStream]:
        return self._open().__await__()

    async def __aenter__(self) -> TunTapStream:
        self._stream = await self._open()
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            await self._stream.aclose()


def open_tuntap(
    name: str | None = None, *, limit: int = 256, fd: FileLike | None = None, **options: Unpack[TunTapOptions]
) -> OpeningTunTap:
    """Packets by ``await``; otherwise as ``connect_tuntap``.

    *limit*: packets that wait for ``recv`` before the kernel's own queue has to hold them.

    ::

        async with open_tuntap("tun0", addresses=["10.9.0.1/24"]) as tun:
            async for packet in tun:
                await tun.send(answer(packet))
    """
    if limit < 1:
        raise ValueError(f"limit ({limit!r}) must be at least 1 packet")
    return OpeningTunTap(name, limit, fd, dict(options))
