"""The events of watched trees as lines of JSON, one for each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from ._core.watch_tree import Change
from .feeding import FedTransport, Sink, connect_fed
from .watcher import Watcher, watch

__all__ = ["as_line", "connect_watch"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


def as_line(event: Change) -> bytes:
    """*event* as one line of JSON: ``kind``, ``path``, and what else it has.

    A name that is no text has its bytes as JSON's escapes of lone surrogates, as ``os.fsdecode`` makes them.
    """
    told: dict[str, object] = {"kind": event.kind.value}
    if event.path:
        told["path"] = event.path
        told["directory"] = event.is_dir
    if event.old_path is not None:
        told["from"] = event.old_path
    if event.synthetic:
        told["found"] = True
    if event.error is not None:
        told["error"] = str(event.error)
    return json.dumps(told).encode() + b"\n"


async def connect_watch(
    protocol_factory: Callable[[], P], *roots: str, **options: Any
) -> tuple[FedTransport, P]:
    """The events of ``watch(*roots, **options)`` as bytes: lines of JSON, see ``as_line``.

    A reader that is slow costs itself an overflow, as of ``watch``. The end comes when the last root has
    gone. Errors as of ``watch``.
    """
    watcher: Watcher[list[Change]] = watch(*roots, batch=True, **options)
    await watcher.__aenter__()

    async def feed(sink: Sink) -> None:
        try:
            async for events in watcher:
                await sink.write(b"".join(map(as_line, events)))
        finally:
            await watcher.aclose()

    try:
        return await connect_fed(protocol_factory, feed)
    except BaseException:
        await watcher.aclose()
        raise
