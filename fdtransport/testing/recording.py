"""Protocols that write down what a transport tells them, and check the order while they do.

::

    protocol = RecordingProtocol(data=lambda p, data: p.transport.close())
    transport, _ = await connect_fd(lambda: protocol, fd)
    ...
    assert protocol.names == ["made", "data", "lost"]

Every keyword is a hook that runs inside the callback, after the event was noted: ``made(protocol)``,
``data(protocol, data)``, ``eof(protocol)`` whose answer becomes the answer of ``eof_received``,
``paused(protocol)``, ``resumed(protocol)``, ``lost(protocol, exc)``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

__all__ = [
    "RecordingBufferedProtocol",
    "RecordingDatagramProtocol",
    "RecordingProtocol",
]

Hook = Callable[..., Any]

#: Methods in which ``connection_lost`` must not run: the caller may be in the middle of something.
_METHODS = frozenset(
    (
        "__init__", "write", "writelines", "write_eof", "sendto", "close", "abort", "aclose", "detach",
        "pause_reading", "resume_reading", "set_protocol", "set_write_buffer_limits",
        "register_producer", "unregister_producer", "pause_producing", "resume_producing", "stop_producing",
    )
)  # fmt: skip


class Recorder(asyncio.BaseProtocol):
    """What the three kinds of protocol share: the log, the hooks and the grammar of the callbacks."""

    def __init__(self, *, keep_open: Any = False, **hooks: Hook) -> None:
        unknown = hooks.keys() - {"made", "data", "eof", "paused", "resumed", "lost", "error"}
        if unknown:
            raise TypeError(f"unknown hooks: {', '.join(sorted(unknown))}")
        self.keep_open = keep_open
        self.hooks = hooks
        #: What happened, in order: (name, argument). Names are those of the hooks.
        self.events: list[tuple[str, Any]] = []
        #: Rules of the order that were broken: (number of the promise, what was seen).
        self.breaches: list[tuple[int, str]] = []
        self.transport: Any = None
        #: True between ``pause_writing`` and ``resume_writing``.
        self.paused: bool = False
        #: Whether ``connection_lost`` has come, and its argument.
        self.lost: bool = False
        self.reason: Exception | None = None
        self._ended = False
        self._in_made = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.summary()}>"

    @property
    def names(self) -> list[str]:
        """The names of the events, in order."""
        return [name for name, _ in self.events]

    def count(self, name: str) -> int:
        """How often ``name`` happened."""
        return sum(1 for event, _ in self.events if event == name)

    def summary(self) -> str:
        """The events on one line, repetitions counted: ``made data*3 (1500 B) eof lost(None)``."""
        words: list[str] = []
        runs: list[list[Any]] = []
        for name, argument in self.events:
            size = len(argument) if name == "data" else 0
            if runs and runs[-1][0] == name and name != "lost":
                runs[-1][1] += 1
                runs[-1][2] += size
            else:
                runs.append([name, 1, size, argument])
        for name, times, size, argument in runs:
            word = str(name) if times == 1 else f"{name}*{times}"
            if name == "data":
                word += f" ({size} B)"
            elif name in ("lost", "error"):
                word += f"({argument!r})"
            words.append(word)
        return " ".join(words[-30:]) or "nothing"

    # The callbacks that all kinds have

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.events:
            self._breach(1, f"connection_made came after {self.summary()}")
        self.transport = transport
        method = _method_on_stack(transport)
        if method is not None:
            self._breach(1, f"connection_made ran inside {method}() of the transport")
        self.events.append(("made", None))
        self._in_made = True
        try:
            self._hook("made")
        finally:
            self._in_made = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._check("connection_lost", 3)
        method = _method_on_stack(self.transport)
        if method is not None:
            self._breach(3, f"connection_lost ran inside {method}() of the transport")
        self.events.append(("lost", exc))
        self.lost = True
        self.reason = exc
        self._hook("lost", exc)

    def pause_writing(self) -> None:
        self._check("pause_writing", 2)
        if self.paused:
            self._breach(27, "pause_writing came twice without resume_writing between")
        self.paused = True
        self.events.append(("paused", None))
        self._hook("paused")

    def resume_writing(self) -> None:
        self._check("resume_writing", 2)
        if not self.paused:
            self._breach(27, "resume_writing came without pause_writing before")
        self.paused = False
        self.events.append(("resumed", None))
        self._hook("resumed")

    def _hook(self, name: str, *arguments: Any) -> Any:
        hook = self.hooks.get(name)
        return hook(self, *arguments) if hook is not None else None

    def _breach(self, number: int, seen: str) -> None:
        self.breaches.append((number, seen))

    def _check(self, callback: str, number: int) -> None:
        """Note it when ``callback`` comes before, inside or after what it must not."""
        if not self.events:
            self._breach(2, f"{callback} came before connection_made")
        elif self._in_made:
            self._breach(2, f"{callback} came before connection_made had returned")
        if self.lost:
            self._breach(number, f"{callback} came after connection_lost")


class StreamRecorder(Recorder):
    @property
    def received(self) -> bytes:
        """All data so far, joined."""
        return b"".join(argument for name, argument in self.events if name == "data")

    def _note_data(self, data: bytes, callback: str) -> None:
        self._check(callback, 2)
        if self._ended:
            self._breach(17, f"{callback} came after eof_received")
        if not data:
            self._breach(17, f"{callback} came with no data")
        self.events.append(("data", data))
        self._hook("data", data)

    def eof_received(self) -> bool:
        self._check("eof_received", 2)
        if self._ended:
            self._breach(17, "eof_received came twice")
        self._ended = True
        self.events.append(("eof", None))
        return bool(self._hook("eof")) if "eof" in self.hooks else bool(self.keep_open)


class RecordingProtocol(StreamRecorder, asyncio.Protocol):
    """An ``asyncio.Protocol`` that records; ``keep_open`` is what ``eof_received`` answers."""

    def data_received(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            self._breach(46, f"data_received got {type(data).__name__}, not bytes")
        self._note_data(bytes(data), "data_received")


class RecordingBufferedProtocol(StreamRecorder, asyncio.BufferedProtocol):
    """An ``asyncio.BufferedProtocol`` that records, with one buffer of ``size`` bytes."""

    def __init__(self, size: int = 4096, *, keep_open: Any = False, **hooks: Hook) -> None:
        super().__init__(keep_open=keep_open, **hooks)
        self.buffer: bytearray = bytearray(size)

    def get_buffer(self, sizehint: int) -> memoryview:
        self._check("get_buffer", 2)
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self._note_data(bytes(self.buffer[:nbytes]), "buffer_updated")


class RecordingDatagramProtocol(Recorder, asyncio.DatagramProtocol):
    """An ``asyncio.DatagramProtocol`` that records; one "data" event per record."""

    @property
    def records(self) -> list[bytes]:
        """The payloads that came, in order."""
        return [argument for name, argument in self.events if name == "data"]

    @property
    def errors(self) -> list[Exception]:
        """What ``error_received`` was told, in order."""
        return [argument for name, argument in self.events if name == "error"]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._check("datagram_received", 2)
        self.events.append(("data", bytes(data)))
        self._hook("data", data)

    def error_received(self, exc: Exception) -> None:
        self._check("error_received", 2)
        self.events.append(("error", exc))
        self._hook("error", exc)


def _method_on_stack(transport: Any) -> str | None:
    """The name of the transport's method that is running below us, if one is."""
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if (
            code.co_name in _METHODS
            and code.co_argcount
            and frame.f_locals.get(code.co_varnames[0]) is transport
        ):
            return code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return None
