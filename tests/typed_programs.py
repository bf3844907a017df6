"""What the library tells type checkers of its answers; ``test_types.py`` has them read this."""

from __future__ import annotations

from typing import assert_type

from fdtransport import (
    PtyProcessTransport,
    SerialTransport,
    Watcher,
    WatchEvent,
    WatchSubscription,
    open_pty_process,
    open_serial,
    watch,
)


async def events() -> None:
    async with watch("tree") as changes:
        assert_type(changes, Watcher[WatchEvent])
        watcher: Watcher = changes  # without a word of what it gives, it gives events
        assert_type(watcher.subscribe(), WatchSubscription[WatchEvent])
        async for event in changes:
            assert_type(event, WatchEvent)
        async for batch in changes.subscribe(batch=True):
            assert_type(batch, list[WatchEvent])
        assert_type(await changes.subscribe(maxsize=7).get(), WatchEvent)


async def batches() -> None:
    async with watch(b"one", b"two", initial=True, batch=True) as changes:
        async for batch in changes:
            assert_type(batch, list[WatchEvent])


async def whichever(many: bool) -> None:
    async with watch("tree", batch=many) as changes:
        async for found in changes:
            assert_type(found, WatchEvent | list[WatchEvent])


async def writers() -> None:
    _, terminal = await open_pty_process("sh")
    assert_type(terminal.transport, PtyProcessTransport)
    _, line = await open_serial("/dev/ttyS0")
    assert_type(line.transport, SerialTransport)
