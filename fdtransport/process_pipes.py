"""One descriptor of a process: its transport, its place in the process, and who is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from ._core.stream import StreamTransport
from .pipes import PipeTransport
from .sockets import UnixTransport

__all__ = ["PipeProtocol", "Place", "connecting"]


class Process(Protocol):
    """What a descriptor needs of its process."""

    _protocol: Any

    def _pipe_opened(self, number: int) -> None: ...
    def _pipe_lost(self, number: int) -> None: ...
    def _pause_writing(self, number: int) -> None: ...
    def _resume_writing(self, number: int) -> None: ...


class Place:
    """A descriptor's place in its process: what the core tells a transport's server, it tells the process."""

    __slots__ = ("_number", "_process")

    def __init__(self, process: Process, number: int) -> None:
        self._process, self._number = process, number

    def _attach(self, _transport: object = None) -> None:
        self._process._pipe_opened(self._number)

    def _detach(self, _transport: object = None) -> None:
        self._process._pipe_lost(self._number)


class PipeProtocol(asyncio.Protocol):
    """Tells the process's protocol what happens to one descriptor."""

    def __init__(self, process: Process, number: int) -> None:
        self._process, self._number = process, number

    def data_received(self, data: bytes) -> None:
        self._process._protocol.pipe_data_received(self._number, data)

    def eof_received(self) -> bool | None:
        told = getattr(self._process._protocol, "pipe_eof_received", None)
        return None if told is None else bool(told(self._number))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._process._protocol is not None:
            self._process._protocol.pipe_connection_lost(self._number, exc)

    def pause_writing(self) -> None:
        told = getattr(self._process._protocol, "pipe_pause_writing", None)
        if told is not None:
            told(self._number)
        else:
            self._process._pause_writing(self._number)

    def resume_writing(self) -> None:
        told = getattr(self._process._protocol, "pipe_resume_writing", None)
        if told is not None:
            told(self._number)
        else:
            self._process._resume_writing(self._number)


def connecting(mode: Any, end: Any, pipe_size: int | None) -> Callable[..., StreamTransport]:
    """What makes the transport of our *end*: called with the loop, the protocol and the place."""

    def connect(loop: Any, protocol: Any, place: Any) -> StreamTransport:
        if mode == "rw":
            return UnixTransport(loop, end, protocol, None, None, place)
        pair = (end, None) if mode == "r" else (None, end)
        return PipeTransport(loop, pair, protocol, None, None, place, pipe_size=pipe_size)

    return connect
