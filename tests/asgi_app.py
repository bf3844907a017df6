"""A small ASGI application, for uvicorn: in the loop of a test, or in a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

#: What the lifespan went through.
LIFE: list[str] = []


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await {"lifespan": _lifespan, "http": _http, "websocket": _websocket}[scope["type"]](scope, receive, send)


async def _lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    for event in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{event}"
        LIFE.append(event)
        await send({"type": f"lifespan.{event}.complete"})


async def _http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """``/loop``: what serves, the loop and its transports. ``/digest``: SHA-256 of the
    body. Else: the body back in pieces."""
    digest, pieces, more = hashlib.sha256(), [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        pieces.append(message.get("body", b""))
        digest.update(pieces[-1])
        more = message.get("more_body", False)
    if scope["path"] == "/loop":
        loop: Any = asyncio.get_running_loop()
        pieces = [
            " ".join(sorted({str(type(thing)) for thing in (loop, *loop._transports.values())})).encode()
        ]
    elif scope["path"] == "/digest":
        pieces = [digest.hexdigest().encode()]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def _websocket(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Every message back; ``bye`` ends it with code 4001."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "bye":
            await send({"type": "websocket.close", "code": 4001, "reason": "as you like"})
            return
        await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})
