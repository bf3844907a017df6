"""The drop-in event loop: asyncio's own, with this library's transports under everything it opens.

Sockets, servers, datagrams, pipes, processes: a program that knows nothing of this library gets its
transports from ``loop.create_connection`` and its kin. asyncio makes every transport in one of six factory
methods; this loop overrides those and the one that sends a file.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
from asyncio import constants
from typing import Any, Self, TypeVar, cast

from ._core.base import BaseTransport
from ._core.readiness import EventSource
from ._core.tls import Tls
from .datagrams import DatagramTransport
from .pipes import PipeTransport
from .popen import popen_transport
from .sockets import SocketTransport, transport_class

__all__ = ["EventLoop", "new_event_loop"]

T = TypeVar("T", bound=BaseTransport)


class EventLoop(asyncio.SelectorEventLoop):
    """An ``asyncio.SelectorEventLoop`` whose transports are this library's.

    *selector*: as asyncio has it. Everything else, the whole API included, is asyncio's. A descriptor
    that is under a transport is refused by ``add_reader``, ``sock_recv`` and the like (RuntimeError).

    :raises NotImplementedError: asyncio of this Python makes its transports in another way.

    ::

        with asyncio.Runner(loop_factory=fdtransport.EventLoop) as runner:
            runner.run(main())
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        _check_asyncio()  # here, and not in __init__: asyncio's __del__ wants a loop that was built
        return super().__new__(cls)

    def __init__(self, selector: Any = None) -> None:
        super().__init__(selector)
        #: Where transports ask for readiness: past the public methods, which refuse what is under one.
        self._transport_events: EventSource = _Unguarded(self)

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> SocketTransport:
        make = _like_asyncios(transport_class(sock))
        transport = make(self, sock, protocol, waiter, extra, server)
        return self._registered(transport)

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        tls = Tls(sslcontext, server_side, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout)
        layer = tls.layer(self, protocol, waiter, strict=False)  # as programs know it from asyncio
        self._make_socket_transport(rawsock, layer, extra=extra, server=server)
        return layer._app_transport

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> DatagramTransport:
        make = _like_asyncios(DatagramTransport)
        return self._registered(make(self, sock, protocol, waiter, extra, address=address))

    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> PipeTransport:
        return self._make_pipe_transport((pipe, None), protocol, waiter, {"pipe": pipe, **(extra or {})})

    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> PipeTransport:
        return self._make_pipe_transport((None, pipe), protocol, waiter, {"pipe": pipe, **(extra or {})})

    def _make_pipe_transport(self, *args: Any) -> PipeTransport:
        # Not among asyncio's guards, as there: a program may add a reader for the other direction.
        return _like_asyncios(PipeTransport)(self, *args)

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.BaseProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        transport = await popen_transport(self, protocol, args, shell, stdin, stdout, stderr, extra, kwargs)
        if transport is not None:
            return transport
        make = super()._make_subprocess_transport  # type: ignore[misc]
        return await make(protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs)

    #: What transports on this loop answer to ``loop.sendfile``, which then asks the method below.
    _transport_sendfile = constants._SendfileMode.TRY_NATIVE

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        sent: int = await transp.sendfile(file, offset, count, fallback=False)
        return sent

    def _registered(self, transport: T) -> T:
        """Have asyncio's guards know that this transport has its descriptor."""
        self._transports[transport.fileno()] = transport  # type: ignore[attr-defined]
        return transport


def new_event_loop() -> EventLoop:
    """A new `EventLoop`: what ``loop_factory=`` of ``asyncio.Runner`` and ``asyncio.run`` takes.

    ::

        async def main():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)

        with asyncio.Runner(loop_factory=fdtransport.new_event_loop) as runner:
            runner.run(main())
    """
    return EventLoop()


#: asyncio's datagram transport is an ``asyncio.Transport`` as well, and isinstance() is to say so.
_BothKinds = type("DatagramTransport", (asyncio.DatagramTransport, asyncio.Transport), {"__slots__": ()})
_variants: dict[type, type] = {}


def _like_asyncios(kind: type[T]) -> type[T]:
    """*kind* with a ``__dict__``, as asyncio's transports have: programs put marks and mocks there."""
    if kind not in _variants:
        names: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        if issubclass(kind, DatagramTransport):
            names["__class__"] = property(lambda _: _BothKinds)
        _variants[kind] = type(kind.__name__, (kind,), names)
    return cast(type[T], _variants[kind])


class _Unguarded:
    """The registrations of asyncio's own transports, which do not ask whether a transport is there."""

    __slots__ = ("add_reader", "add_writer", "remove_reader", "remove_writer")

    def __init__(self, loop: Any) -> None:
        self.add_reader = loop._add_reader
        self.add_writer = loop._add_writer
        self.remove_reader = loop._remove_reader
        self.remove_writer = loop._remove_writer


#: Methods that asyncio calls; they are called with what theirs take.
_REACHED_FOR = (
    "_make_socket_transport",
    "_make_ssl_transport",
    "_make_datagram_transport",
    "_make_read_pipe_transport",
    "_make_write_pipe_transport",
    "_make_subprocess_transport",
    "_sendfile_native",
)


def _check_asyncio() -> None:
    """Raise where asyncio has factories that this module does not know, rather than half work."""
    for name in _REACHED_FOR:
        theirs = getattr(EventLoop.__base__, name, None)
        unknown = {name}
        if theirs is not None:
            known = inspect.signature(getattr(EventLoop, name)).parameters
            unknown = set(inspect.signature(theirs).parameters) - set(known)
        if unknown:
            raise NotImplementedError(
                f"asyncio of Python {sys.version.split()[0]} has changed: {name} is not as it was "
                f"({', '.join(sorted(unknown))}); use asyncio's or uvloop's loop, which need no such thing"
            )
