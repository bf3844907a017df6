"""Descriptors of TUN and TAP interfaces: how they are opened, asked and set, and why that fails.

``Documentation/networking/tuntap.rst`` and ``<linux/if_tun.h>`` of the kernel.
"""

from __future__ import annotations

import array
import errno
import os
import struct
import sys
from typing import NamedTuple

from . import syscalls

__all__ = [
    "EBADFD",
    "MULTI_QUEUE",
    "NO_CARRIER",
    "NO_PI",
    "OFFLOADS",
    "PERSIST",
    "TAP",
    "TUN",
    "VNET_HDR",
    "Device",
    "choose_offloads",
    "described_flags",
    "device_of",
    "header_size",
    "namespace_of",
    "open_device",
    "set_carrier",
    "set_group",
    "set_header_size",
    "set_owner",
    "set_persist",
    "set_queue",
    "set_sndbuf",
    "sndbuf",
]

#: What the kernel says of a descriptor without an interface; not the EBADF of a closed one.
EBADFD: int = getattr(errno, "EBADFD", 77)
#: The node that makes interfaces.
NODE = "/dev/net/tun"

# IFF_* of <linux/if_tun.h>.
TUN, TAP, NO_CARRIER = 0x0001, 0x0002, 0x0040
MULTI_QUEUE, PERSIST, NO_PI, VNET_HDR = 0x0100, 0x0800, 0x1000, 0x4000
ATTACH, DETACH = 0x0200, 0x0400

#: What the program takes off the kernel's hands (TUN_F_*), the most first: unfinished checksums, TCP
#: segments of IPv4, of IPv6, with ECN, and UDP segments (from Linux 6.2 on).
OFFLOADS = (0x6F, 0x0F, 0x07, 0x01)

# Where the direction of an ioctl stands differs between processors: <asm/ioctl.h>.
_MACHINE = os.uname().machine if hasattr(os, "uname") else ""
_SWAPPED = _MACHINE.startswith(("ppc", "powerpc", "sparc", "mips", "alpha", "parisc"))
_WRITES, _READS = (0x80000000, 0x40000000) if _SWAPPED else (0x40000000, 0x80000000)


def _request(number: int, direction: int) -> int:
    return direction | 4 << 16 | ord("T") << 8 | number


_SETIFF, _SETPERSIST, _SETOWNER = (_request(n, _WRITES) for n in (202, 203, 204))
_SETGROUP, _SETOFFLOAD, _SETSNDBUF = (_request(n, _WRITES) for n in (206, 208, 212))
_SETVNETHDRSZ, _SETQUEUE, _SETCARRIER = (_request(n, _WRITES) for n in (216, 217, 226))
_GETIFF, _GETSNDBUF, _GETVNETHDRSZ = (_request(n, _READS) for n in (210, 211, 215))
_GETDEVNETNS = (0x20000000 if _SWAPPED else 0) | ord("T") << 8 | 227
_IFREQ = struct.Struct("16sH22x")


class Device(NamedTuple):
    """What a descriptor of an interface is attached to."""

    name: str
    flags: int

    @property
    def tap(self) -> bool:
        return bool(self.flags & TAP)

    @property
    def mode(self) -> str:
        return "tap" if self.tap else "tun"


def open_device(name: str, flags: int) -> tuple[int, Device]:
    """A new descriptor, attached to the interface *name*, which is made if it is not there.

    ``%d`` in *name* stands for the lowest number that is free.

    :raises OSError: with the way out of it.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "TUN and TAP interfaces of this library are those of Linux")
    try:
        fd = syscalls.open(NODE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise _cannot_open(exc) from None
    try:
        try:
            answer = syscalls.ioctl(fd, _SETIFF, _IFREQ.pack(os.fsencode(name), flags))
        except OSError as exc:
            raise _cannot_attach(exc, name, flags) from None
        return fd, _device(answer)
    except BaseException:
        syscalls.close(fd)
        raise


def device_of(fd: int) -> Device:
    """What *fd* is attached to. TUNGETIFF always tells NO_PI, also where it is not so.

    :raises OSError: EBADFD, *fd* is attached to no interface; ENOTTY, it is something else.
    """
    try:
        answer = syscalls.ioctl(fd, _GETIFF, bytes(_IFREQ.size))
    except OSError as exc:
        what = f"{fd} is no descriptor of a TUN or TAP interface"
        if exc.errno == EBADFD:
            what = f"{fd} is attached to no interface: TUNSETIFF has not been called, or it was deleted"
        raise OSError(exc.errno, f"{os.strerror(exc.errno or 0)}: {what}") from None
    return _device(answer)


def _device(answer: bytes) -> Device:
    name, flags = _IFREQ.unpack(answer)
    return Device(os.fsdecode(name.rstrip(b"\0")), flags)


def namespace_of(fd: int) -> int:
    """A descriptor of the network namespace in which the interface is. :raises OSError: EPERM."""
    return int(syscalls.ioctl(fd, _GETDEVNETNS))


def choose_offloads(fd: int) -> int:
    """Take as much off the kernel's hands as it lets go (see ``OFFLOADS``)."""
    for offloads in OFFLOADS:
        try:
            syscalls.ioctl(fd, _SETOFFLOAD, offloads)
        except OSError:
            continue
        return offloads
    return 0


def set_header_size(fd: int, size: int) -> None:
    """Bytes of the header before each packet: ``struct virtio_net_hdr`` has 10."""
    syscalls.ioctl(fd, _SETVNETHDRSZ, array.array("i", [size]))


def header_size(fd: int) -> int:
    answer = array.array("i", [0])
    syscalls.ioctl(fd, _GETVNETHDRSZ, answer)
    return answer[0]


def set_sndbuf(fd: int, size: int) -> None:
    """Bytes of what was written that may be on their way through the kernel; then a write waits."""
    syscalls.ioctl(fd, _SETSNDBUF, array.array("i", [size]))


def sndbuf(fd: int) -> int:
    answer = array.array("i", [0])
    syscalls.ioctl(fd, _GETSNDBUF, answer)
    return answer[0]


def set_carrier(fd: int, on: bool) -> None:
    syscalls.ioctl(fd, _SETCARRIER, array.array("i", [on]))


def set_persist(fd: int, on: bool) -> None:
    syscalls.ioctl(fd, _SETPERSIST, int(on))


def set_owner(fd: int, uid: int) -> None:
    syscalls.ioctl(fd, _SETOWNER, uid)


def set_group(fd: int, gid: int) -> None:
    syscalls.ioctl(fd, _SETGROUP, gid)


def set_queue(fd: int, attached: bool) -> None:
    """Have a queue of several take part in the traffic, or not."""
    syscalls.ioctl(fd, _SETQUEUE, _IFREQ.pack(b"", ATTACH if attached else DETACH))


# -- what to do about it -----------------------------------------------------------------------------

_PRIVILEGE = (
    "making a TUN or TAP interface takes CAP_NET_ADMIN in the user namespace of the network namespace: run as"
    " root, in `unshare -rn`, or attach to one that was made for you (`ip tuntap add ... user NAME`)"
)


def _cannot_open(exc: OSError) -> OSError:
    number = exc.errno or 0
    what = {
        errno.ENOENT: f"there is no {NODE}: load the module (`modprobe tun`) or make the node (`mkdir -p "
        f"/dev/net; mknod {NODE} c 10 200`); a container has to be given it (`--device {NODE}`)",
        errno.ENODEV: f"{NODE} has no driver behind it: load the module (`modprobe tun`)",
        errno.ENXIO: f"{NODE} has no driver behind it: load the module (`modprobe tun`)",
        errno.EACCES: f"{NODE} may not be opened by this user: `chmod 0666 {NODE}` lets everybody use the "
        "interfaces that are theirs, which is what distributions do",
        errno.EPERM: f"{NODE} may not be opened here: the device has to be allowed to the container "
        f"(`--device {NODE}`)",
    }.get(number, f"{NODE} cannot be opened")
    return OSError(number, f"{os.strerror(number)}: {what}")


def _cannot_attach(exc: OSError, name: str, flags: int) -> OSError:
    number = exc.errno or 0
    what = f"interface {name!r}"
    if number == errno.EPERM:
        what += f": {_PRIVILEGE}"
    elif number == errno.EBUSY:
        what += " is in use by another descriptor, or has as many queues as it was made for"
        if not flags & MULTI_QUEUE:
            what += "; several descriptors need one that was made with several queues"
    elif number == errno.EINVAL:
        what += f" is there already and is something else than {_described(flags)}, or its name is none"
    elif number == errno.E2BIG:
        what += " has no room for one more queue"
    return OSError(number, f"{os.strerror(number)}: {what}")


def _described(flags: int) -> str:
    kind = "a TAP" if flags & TAP else "a TUN"
    queues = "several queues" if flags & MULTI_QUEUE else "one queue"
    return f"{kind} with {queues}"


def described_flags(mode: int, several: bool) -> str:
    """As in the error of a mismatch, of what is there."""
    return _described((TAP if mode == TAP else TUN) | (MULTI_QUEUE if several else 0))
