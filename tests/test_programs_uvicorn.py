"""uvicorn on the drop-in loop: started in a running loop, and by its own command line."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asgi_app
import pytest
from real_programs import needed, server_process

from fdtransport.testing.observe import until

aiohttp = needed("aiohttp")
uvicorn = needed("uvicorn")
httpx = needed("httpx")
websockets = needed("websockets")

OURS = "<class 'fdtransport.loop.EventLoop'> <class 'fdtransport.sockets.{}'>"
BODY = bytes(range(256)) * 16 * 1024


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[str, int]]:
    """uvicorn in this loop; ended as a signal would."""
    config = uvicorn.Config(
        asgi_app.app, "127.0.0.1", 0, log_level="warning", ws="websockets-sansio", **options
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or serving.done(), "it serves", 10)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        await serving


def test_requests_and_bodies(program):
    asgi_app.LIFE.clear()

    async def main():
        async with (
            serving() as (host, port),
            httpx.AsyncClient(base_url=f"http://{host}:{port}") as client,
        ):
            assert (await client.get("/loop")).text == OURS.format("SocketTransport")
            for number in range(50):
                assert (await client.post("/echo", content=b"%d" % number)).content == b"%d" % number
            assert (await client.post("/echo", content=BODY)).content == BODY
            answer = await client.post("/digest", content=BODY)
            assert answer.text == hashlib.sha256(BODY).hexdigest()

    program.run(main())
    assert asgi_app.LIFE == ["startup", "shutdown"]
    assert program.ours == {"SocketTransport": 2}


def test_requests_in_parallel_over_tls(program, certificate, trusting):
    chain, key = certificate

    async def main():
        async with (
            serving(ssl_certfile=str(chain), ssl_keyfile=str(key)) as (host, port),
            httpx.AsyncClient(base_url=f"https://{host}:{port}", verify=trusting) as client,
        ):
            answers = await asyncio.gather(
                *(client.post("/echo", content=BODY[: 1000 * number]) for number in range(100))
            )
            assert [answer.content for answer in answers] == [BODY[: 1000 * number] for number in range(100)]

    program.run(main())


def test_a_websocket(program):
    async def main():
        async with (
            serving() as (host, port),
            websockets.connect(f"ws://{host}:{port}/", max_size=None) as socket,
        ):
            for message in ("text", b"bytes", BODY):
                await socket.send(message)
                assert await socket.recv() == message
            await (await socket.ping())
            await socket.send("bye")
            with pytest.raises(websockets.ConnectionClosed) as ended:
                await socket.recv()
            assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (4001, "as you like")

    program.run(main())


def test_the_command_line_takes_the_loop_and_ends_at_a_signal(program, tmp_path):
    path = str(tmp_path / "socket")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "uvicorn", "asgi_app:app", "--uds", path, "--app-dir", str(here)]
    command += ["--loop", "fdtransport:new_event_loop"]

    async def main():
        async with aiohttp.ClientSession("http://local", connector=aiohttp.UnixConnector(path)) as client:
            async with client.get("/loop") as response:
                assert await response.text() == OURS.format("UnixTransport")
            async with client.post("/echo", data=io.BytesIO(BODY)) as response:
                assert await response.read() == BODY

    with server_process(command, "running on", env={**os.environ, "PYTHONPATH": str(here.parent)}) as process:
        program.run(main())
        process.send_signal(signal.SIGINT)
        process.wait(10)
    assert process.returncode in (0, -signal.SIGINT)  # uvicorn ends as the signal would have ended it
