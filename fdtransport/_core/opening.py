"""The one way in which helpers make a transport: all of it, or nothing and the descriptor as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from .base import BaseTransport

__all__ = ["open_transport"]

T = TypeVar("T", bound=BaseTransport)
P = TypeVar("P", bound=asyncio.BaseProtocol)


async def open_transport(
    make: Callable[..., T], protocol_factory: Callable[[], P], file: Any, **options: Any
) -> tuple[T, P]:
    """Call ``make(loop, file, protocol, waiter, **options)`` and wait for ``connection_made``.

    When this raises, also when it is cancelled, *file* is the caller's, open and in its former mode.
    """
    loop = asyncio.get_running_loop()
    protocol = protocol_factory()
    waiter: asyncio.Future[None] = loop.create_future()
    transport = make(loop, file, protocol, waiter, **options)
    transport._held = True  # were it closed before a cancel comes, it would be nobody's to close again
    try:
        await waiter
    except BaseException:
        transport._give_back()
        raise
    finally:
        transport._let_end()
    return transport, protocol
