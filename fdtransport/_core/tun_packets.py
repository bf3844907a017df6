"""What the packets of a TUN or TAP interface are: how short, how large, and what stands before them.

``Documentation/networking/tuntap.rst`` of the kernel.
"""

from __future__ import annotations

from typing import Any

from . import tun_device
from .packet import RECORD_BYTES, PacketTransport
from .segmentation import HEADER_SIZE
from .stream import BytesLike
from .tun_device import Device

__all__ = ["ETHERNET", "IP_HEADER", "LARGEST", "PI", "TunPackets"]

#: Bytes of the largest packet: what the length field of IPv4 can tell (RFC 791).
LARGEST = 65535
#: Bytes of the shortest one, which is a header alone.
IP_HEADER = 20
#: Bytes of an Ethernet header with one VLAN tag.
ETHERNET = 18
PI = 4  # struct tun_pi: flags, protocol


class TunPackets(PacketTransport):
    """See the module's first lines."""

    __slots__ = (
        "_address",
        "_as_it_is",
        "_device",
        "_largest",
        "_least",
        "_together",
        "_vnet_hdr",
        "_with_pi",
    )  # fmt: skip

    #: Where packets come from: a named tuple that begins with the name of the interface and its queue.
    _address: Any

    def __init__(self, *args: Any, address: Any, device: Device | None, vnet_hdr: str | None) -> None:
        self._address = address
        self._device: Any = device
        self._vnet_hdr = vnet_hdr
        self._with_pi = False
        self._as_it_is = False  # whether a record is what a program is given, and gives
        self._least = self._largest = 0
        self._together = 1  # packets that are surely no more than RECORD_BYTES
        super().__init__(*args, max_size=LARGEST + ETHERNET + max(PI, HEADER_SIZE))

    def _check_kind(self) -> None:
        handle = self._reading_handle
        if handle is None or handle is not self._writing_handle:
            raise ValueError("the descriptor of a TUN or TAP interface is one for both directions")
        if self._device is None:
            self._device = tun_device.device_of(handle.fd)
        if bool(self._device.flags & tun_device.VNET_HDR) != (self._vnet_hdr is not None):
            what = "has a header before each packet: vnet_hdr is 'raw' or 'split'"
            lacks = "has no header before a packet: vnet_hdr is None"
            raise ValueError(f"this descriptor {lacks if self._vnet_hdr else what}")
        self._with_pi = not self._device.flags & tun_device.NO_PI
        self._as_it_is = self._vnet_hdr != "split" and not self._with_pi
        self._address = self._address._replace(name=self._device.name)
        if not self._device.tap:
            self._least = IP_HEADER + (HEADER_SIZE if self._vnet_hdr == "raw" else 0)
        self._note_mtu(LARGEST)

    def _note_mtu(self, mtu: int) -> None:
        if self._vnet_hdr == "raw":
            mtu = LARGEST + HEADER_SIZE  # what is larger than the MTU is to be segmented
        self._largest = mtu + (ETHERNET if self._device.tap else 0)
        self._together = RECORD_BYTES // self._largest or 1
        self._queue.grant(0)  # sendto() is to look at the size again

    def _no_packet(self, data: BytesLike) -> str:
        """Why the kernel does not take it."""
        raw = self._vnet_hdr == "raw"
        packet = data[HEADER_SIZE:] if raw else data
        if not len(packet):
            return "an empty packet"
        if self._device.tap:
            return "an Ethernet frame has 14 bytes at least"
        if packet[0] >> 4 not in (4, 6):
            return f"a packet of IP version {packet[0] >> 4}, which is not 4 or 6"
        if len(packet) < IP_HEADER:
            return f"a packet of {len(packet)} bytes, and its header alone has {IP_HEADER} or more"
        return "the header before the packet does not fit it" if raw else "the packet is none"
