"""Sockets that were opened before this program was started, by systemd or what does as it does.

The protocol is that of sd_listen_fds(3): descriptors from number 3 on, and their count, names and
receiver in the environment.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

__all__ = ["ActivationSocket", "activation_sockets"]

#: The first descriptor, SD_LISTEN_FDS_START.
FIRST = 3
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class ActivationSocket(NamedTuple):
    """A socket that was passed to this program."""

    name: str
    """``FileDescriptorName=`` of its unit, by default the unit's own name; ``unknown`` without one."""
    sock: socket.socket


def activation_sockets() -> list[ActivationSocket]:
    """The sockets that systemd's socket activation passed to this process, in the order of the unit.

    They are the caller's from now on, made close-on-exec, and of whatever type and family the unit
    says. ``create_server(sock=...)`` serves those that listen, UNIX ones too, whose files it leaves
    alone. The environment variables are removed, so that no child takes them for its own; a second
    call gives an empty list.

    None were passed, or to another process (LISTEN_PID): an empty list.

    :raises ValueError: the environment contradicts itself.
    :raises OSError: one of the descriptors is not open, or no socket. Then nothing has been changed.

    ::

        for name, sock in fdtransport.activation_sockets():
            server = await fdtransport.create_server(MyProtocol, sock=sock, backlog=socket.SOMAXCONN)
    """
    found: list[ActivationSocket] = []
    try:
        for fd, name in _passed():
            try:
                found.append(ActivationSocket(name, socket.socket(fileno=fd)))
            except OSError as exc:
                what = f"{exc.strerror}: descriptor {fd} ({name!r}), one of LISTEN_FDS"
                raise OSError(exc.errno, what) from None
    except BaseException:
        for _, sock in found:
            sock.detach()
        raise
    for _, sock in found:
        sock.set_inheritable(False)
    for variable in _VARIABLES:
        os.environ.pop(variable, None)
    return found


def _passed() -> list[tuple[int, str]]:
    """Numbers and names of the descriptors that are for this process."""
    if _number("LISTEN_PID", 1) != os.getpid():
        return []
    count = _number("LISTEN_FDS", 0)
    names = os.environ.get("LISTEN_FDNAMES")
    named = ["unknown"] * count if names is None else names.split(":") if names else []
    if len(named) != count:
        raise ValueError(f"LISTEN_FDNAMES={names!r} has {len(named)} names, and LISTEN_FDS={count}")
    return list(zip(range(FIRST, FIRST + count), named, strict=True))


def _number(variable: str, at_least: int) -> int:
    text = os.environ.get(variable)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and at_least <= int(text) < 1 << 31):
        raise ValueError(f"{variable}={text!r} is no number from {at_least} on")
    return int(text)
