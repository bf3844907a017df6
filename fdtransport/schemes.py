"""The table of endpoints: one row for each scheme, and how what it names is opened."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ._core.opening import open_transport
from ._core.plain_file import opened_file
from ._core.socket_file import unix_family
from ._core.stream import StreamTransport
from .attach import ESCAPE, connect_terminal
from .datagrams import create_datagram_endpoint
from .errors import EndpointError
from .exec import connect_exec
from .fd import connect_fd
from .fifo import connect_fifo
from .follow import connect_follow
from .processes import shell_words
from .pty_port import connect_pty
from .pty_process import spawn_pty
from .serial_connect import connect_serial
from .sessions import create_datagram_server
from .sockets import Server, listening_socket, serve
from .stdio import connect_stdio
from .tcp import create_connection, create_server
from .tls import client_context, server_context
from .tuntap import connect_tuntap
from .unix import create_unix_connection, create_unix_server
from .url_options import (
    Option,
    choice,
    directory,
    file,
    flag,
    group,
    hardware_address,
    host_name,
    interface_addresses,
    key,
    name,
    names,
    namespace,
    networks,
    permissions,
    seconds,
    whole,
    window,
)
from .urls import (
    Address,
    Url,
    address,
    command_line,
    descriptor,
    descriptors,
    interface,
    listening_address,
    nothing,
    path,
    socket_path,
    words,
)
from .watch_lines import connect_watch

__all__ = ["OF_NO_USE", "SCHEMES", "Factory", "Scheme"]

Factory = Callable[[], asyncio.BaseProtocol]
#: (protocol factory, target, mode, options) -> (transport, protocol)
Connect = Callable[[Factory, Any, str, dict[str, Any]], Awaitable[tuple[Any, Any]]]
#: (protocol factory, target, options) -> server
Listen = Callable[[Factory, Any, dict[str, Any]], Awaitable[Server]]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A row of the table."""

    form: str
    """How it is written."""
    target: Callable[[Url], Any]
    """Reads what comes between scheme and options."""
    connect: Connect | None
    options: Mapping[str, Option] = field(default_factory=dict)
    modes: tuple[str, ...] = ("rw", "r", "w")
    """Directions in which it can be opened, the natural one first."""
    once: bool = False
    """Whether it is there once in a process, and cannot be opened again for the next connection."""
    listen: Listen | None = None
    records: bool = False
    """Whether it carries records, and no bytes."""
    begins: bool = False
    """Whether opening it has something begin, which is not to be in vain."""
    check: Callable[[str, Mapping[str, Any]], None] = lambda _url, _options: None
    """Raises for options that do not go together."""


async def _stdio(factory: Factory, _target: None, mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    files = 0 if "r" in mode else None, 1 if "w" in mode else None
    if options.get("raw") and "r" in mode:
        return await connect_terminal(factory, files, escape=options.get("escape", ESCAPE))
    return await connect_stdio(factory, *files)


async def _fd(
    factory: Factory, target: int | tuple[int, int], _mode: str, _options: dict[str, Any]
) -> tuple[Any, Any]:
    return await connect_fd(factory, target)


async def _fd_server(factory: Factory, target: int, options: dict[str, Any]) -> Server:
    sock = listening_socket(target)
    try:
        return serve(factory, [sock], None, options.get("backlog"), True)
    except BaseException:
        sock.detach()
        raise


async def _tcp(factory: Factory, target: Address, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    async with _within(options):
        transport, protocol = await create_connection(factory, *target)
    _keep_alive(transport.get_extra_info("socket"), options)
    return transport, protocol


async def _tcp_server(factory: Factory, target: Address, options: dict[str, Any]) -> Server:
    server = await create_server(factory, target.host, target.port, backlog=options.get("backlog", 100))
    for sock in server.sockets:
        _keep_alive(sock, options)  # what is accepted inherits it: tcp(7)
    return server


async def _tls(factory: Factory, target: Address, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    if "context" not in options:  # made once for all connections of an endpoint
        files = {name: options.get(name) for name in ("ca", "cert", "key")}
        options["context"] = client_context(**files, insecure=options.get("insecure", False))
    name = options.get("sni", target.host)
    async with _within(options):
        connecting = create_connection(factory, *target, ssl=options["context"], server_hostname=name)
        transport, protocol = await connecting
    _keep_alive(transport.get_extra_info("socket"), options)
    return transport, protocol


async def _tls_server(factory: Factory, target: Address, options: dict[str, Any]) -> Server:
    context = server_context(options["cert"], options["key"], options.get("ca"))
    return await create_server(factory, *target, ssl=context, backlog=options.get("backlog", 100))


async def _udp(factory: Factory, target: Address, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    sending = _without(options, "timeout", "broadcast")
    async with _within(options):
        return await create_datagram_endpoint(
            factory, remote_addr=tuple(target), allow_broadcast=options.get("broadcast"), **sending
        )


async def _udp_server(factory: Factory, target: Address, options: dict[str, Any]) -> Server:
    return await create_datagram_server(factory, tuple(target), **options)


async def _unix(factory: Factory, target: str, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    kind = options.get("type", "stream")
    async with _within(options):
        if kind == "stream":
            return await create_unix_connection(factory, target)
        # What has no name cannot be answered: the kernel finds an abstract one (autobind of unix(7)).
        local = "" if kind == "datagram" else None
        return await create_datagram_endpoint(factory, local, target, family=unix_family(), type=_KINDS[kind])


async def _unix_server(factory: Factory, target: str, options: dict[str, Any]) -> Server:
    kind = options.get("type", "stream")
    if kind == "stream":
        return await create_unix_server(
            factory, target, backlog=options.get("backlog", 100), mode=options.get("mode", 0o600)
        )
    serving = _without(options, "type")
    return await create_datagram_server(factory, target, family=unix_family(), type=_KINDS[kind], **serving)


def _without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


async def _fifo(factory: Factory, target: str, mode: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    return await connect_fifo(factory, target, mode, **options)


async def _pty(factory: Factory, target: str, mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    return await connect_pty(factory, link=target, **options)


async def _serial(factory: Factory, target: str, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    settings = {_SERIAL.get(name, name): value for name, value in options.items()}
    return await connect_serial(factory, target, **settings)


async def _exec(factory: Factory, target: list[str], mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    cwd = options.get("cwd")
    try:
        if options.get("pty"):
            return await spawn_pty(factory, *target, size=options.get("size", (24, 80)), cwd=cwd)
        stderr = _STDERR[options.get("stderr", "inherit")]
        return await connect_exec(factory, *target, mode=mode, stderr=stderr, cwd=cwd)
    except OSError as exc:
        if exc.filename is None:
            raise
        what = "the directory" if exc.filename == cwd else "the program"
        raise OSError(exc.errno, f"{exc.strerror}: {what} {exc.filename!r}") from None


async def _shell(factory: Factory, target: str, mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    return await _exec(factory, [str(word) for word in shell_words(target)], mode, options)


def _check_exec(url: str, options: Mapping[str, Any]) -> None:
    if options.get("pty") and "stderr" in options:
        raise EndpointError(f"{url!r}: with 'pty', everything goes to the terminal, 'stderr' too")
    if "size" in options and not options.get("pty"):
        raise EndpointError(f"{url!r}: option 'size' is of a terminal, which 'pty' asks for")


async def _tuntap(
    factory: Factory, target: str | None, _mode: str, options: dict[str, Any], *, tap: bool = False
) -> tuple[Any, Any]:
    named: Any = {_TUNTAP_NAMES.get(name, name): value for name, value in options.items()}
    return await connect_tuntap(factory, target, mode="tap" if tap else "tun", **named)


async def _file(factory: Factory, target: str, mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    if options.get("follow"):
        return await connect_follow(factory, target, from_end=options.get("from") == "end")
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if mode == "r":
        flags |= os.O_RDONLY
    else:
        flags |= os.O_WRONLY | (os.O_APPEND if options.get("append") else os.O_TRUNC)
    with opened_file(target, flags, "no" if mode == "r" else options.get("create", "yes")) as fd:
        return await open_transport(StreamTransport, factory, fd)


async def _watch(factory: Factory, target: str, _mode: str, options: dict[str, Any]) -> tuple[Any, Any]:
    given = _without(options, "ignore", "follow")
    ignore = options["ignore"].split(",") if "ignore" in options else None
    return await connect_watch(
        factory, target, ignore=ignore, follow_root=options.get("follow", False), **given
    )


@contextlib.asynccontextmanager
async def _within(options: dict[str, Any]) -> AsyncIterator[None]:
    """Bound a connect by the option ``timeout``."""
    try:
        async with asyncio.timeout(options.get("timeout")):
            yield
    except TimeoutError as exc:
        raise TimeoutError(exc.errno or errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None


def _keep_alive(sock: Any, options: dict[str, Any]) -> None:
    if "keepalive" in options:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, options["keepalive"])
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, options["keepalive"])


#: The options of a serial port that have longer names elsewhere.
_SERIAL = {"baud": "baudrate", "bits": "bytesize", "stop": "stopbits"}
_ALIVE = whole(1, 32767)  # what tcp(7) takes
_BACKLOG = whole(1, 65535)
_WRITING = ("w",)
_READING = ("r", "rw")
_TUNTAP_NAMES = {"addr": "addresses", "route": "routes"}
_TUNTAP = {
    "addr": interface_addresses(),
    "mtu": whole(68, 65535),
    "up": flag(),
    "route": networks(),
    "netns": namespace(),
    "txqueuelen": whole(1, 1_000_000),
    "persist": flag(),
}
_CERTIFICATES = file("certificates of authorities")
_CERTIFICATE = file("a certificate and its chain")
_KEY = file("a key")
_MULTICAST = {"ttl": whole(0, 255), "loopback": flag(), "interface": name()}
_SESSIONS = {"idle": seconds(), "sessions": whole(1, 1_000_000)}
_KINDS = {
    "datagram": socket.SOCK_DGRAM,
    "seqpacket": socket.SOCK_SEQPACKET if hasattr(socket, "SOCK_SEQPACKET") else 5,
}
_KIND = choice("stream", *_KINDS)
_STDERR = {"inherit": None, "stdout": subprocess.STDOUT, "null": subprocess.DEVNULL}
_EXEC = {"pty": flag(), "size": window(), "cwd": directory(), "stderr": choice(*_STDERR)}
#: Options of a listening UNIX socket that a type of it has no use for.
OF_NO_USE: dict[str, tuple[str, ...]] = {
    "stream": ("idle", "sessions"),
    "seqpacket": ("idle", "sessions"),
    "datagram": ("backlog",),
}

SCHEMES: dict[str, Scheme] = {
    "stdio": Scheme(
        "- (or stdio:)",
        nothing,
        _stdio,
        {
            "raw": replace(flag(), modes=_READING),
            "escape": replace(key(), modes=_READING, needs="raw"),
        },
        once=True,
    ),
    "fd": Scheme("fd:N", descriptors, _fd, once=True),
    "tcp": Scheme("tcp://host:port", address, _tcp, {"keepalive": _ALIVE, "timeout": seconds()}),
    "tcp+listen": Scheme(
        "tcp+listen://host:port",
        listening_address,
        None,
        {"backlog": _BACKLOG, "keepalive": _ALIVE},
        listen=_tcp_server,
    ),
    "tls": Scheme(
        "tls://host:port",
        address,
        _tls,
        {
            "ca": _CERTIFICATES,
            "cert": _CERTIFICATE,
            "key": _KEY,
            "sni": host_name(),
            "insecure": flag(),
            "keepalive": _ALIVE,
            "timeout": seconds(),
        },
    ),
    "tls+listen": Scheme(
        "tls+listen://host:port",
        listening_address,
        None,
        {
            "cert": replace(_CERTIFICATE, required=True),
            "key": replace(_KEY, required=True),
            "ca": _CERTIFICATES,
            "backlog": _BACKLOG,
        },
        listen=_tls_server,
    ),
    "udp": Scheme(
        "udp://host:port",
        address,
        _udp,
        {"broadcast": flag(), "timeout": seconds(), **_MULTICAST},
        records=True,
    ),
    "udp+listen": Scheme(
        "udp+listen://host:port",
        listening_address,
        None,
        {"join": group(), **_SESSIONS, **_MULTICAST},
        listen=_udp_server,
        records=True,
    ),
    "unix": Scheme("unix:/path", socket_path, _unix, {"timeout": seconds(), "type": _KIND}),
    "unix+listen": Scheme(
        "unix+listen:/path",
        socket_path,
        None,
        {"backlog": _BACKLOG, "mode": permissions(), "type": _KIND, **_SESSIONS},
        listen=_unix_server,
    ),
    "fd+listen": Scheme("fd+listen:N", descriptor, None, {"backlog": _BACKLOG}, listen=_fd_server),
    "fifo": Scheme(
        "fifo:/path",
        path,
        _fifo,
        {"create": permissions(), "eof": replace(choice("close", "event", "reopen"), modes=("r",))},
        modes=("r", "w"),
    ),
    "pty": Scheme("pty:/link", path, _pty, {"mode": permissions()}),
    "serial": Scheme(
        "serial:/dev/path",
        path,
        _serial,
        {
            "baud": whole(1, 999_999_999),
            "bits": whole(5, 8),
            "parity": choice("N", "E", "O", "M", "S"),
            "stop": whole(1, 2),
            "xonxoff": flag(),
            "rtscts": flag(),
            "exclusive": flag(),
            "dtr": flag(),
            "rts": flag(),
        },
    ),
    "exec": Scheme("exec:PROGRAM ARGUMENTS", words, _exec, _EXEC, begins=True, check=_check_exec),
    "shell": Scheme("shell:COMMAND LINE", command_line, _shell, _EXEC, begins=True, check=_check_exec),
    "tun": Scheme("tun:name", interface, _tuntap, _TUNTAP, records=True),
    "tap": Scheme(
        "tap:name",
        interface,
        partial(_tuntap, tap=True),
        {**_TUNTAP, "hwaddr": hardware_address()},
        records=True,
    ),
    "file": Scheme(
        "file:/path",
        path,
        _file,
        {
            "append": replace(flag(), modes=_WRITING),
            "create": replace(choice("yes", "no", "new"), modes=_WRITING),
            "follow": replace(flag(), modes=("r",)),
            "from": replace(choice("start", "end"), modes=("r",), needs="follow"),
        },
        modes=("r", "w"),
    ),
    "watch": Scheme(
        "watch:/directory",
        path,
        _watch,
        {
            "recursive": flag(),
            "initial": flag(),
            "follow": flag(),
            "settle": seconds(),
            "ignore": names(),
        },
        modes=("r",),
    ),
}
