"""aiohttp on the drop-in loop, as server and as client."""

from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from real_programs import needed

from fdtransport.testing.observe import Broken, until

aiohttp = needed("aiohttp")
web = needed("aiohttp.web")

LOOPBACK = "127.0.0.1"
MIB = 1024 * 1024
BODY = bytes(range(256)) * (8 * MIB // 256)
Handler = Callable[[Any], Awaitable[Any]]


@asynccontextmanager
async def serving(site: Callable[[Any], Any], **handlers: Handler) -> AsyncIterator[Any]:
    """An aiohttp server whose paths are the names of *handlers*; gives the address that it listens at."""
    app = web.Application(client_max_size=64 * MIB)
    for name, handler in handlers.items():
        app.router.add_route("*", f"/{name}", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await site(runner).start()
        yield runner.addresses[0]
    finally:
        await runner.cleanup()


def tcp(runner: Any, **options: Any) -> Any:
    return web.TCPSite(runner, LOOPBACK, 0, **options)


def talking(address: Any, trusting: Any = None, *, limit: int = 100, **options: Any) -> Any:
    """A client of that address, over TLS if it is to trust a certificate."""
    scheme, tls = ("http", True) if trusting is None else ("https", trusting)
    host, port = address
    connector = aiohttp.TCPConnector(limit=limit, ssl=tls)
    return aiohttp.ClientSession(f"{scheme}://{host}:{port}", connector=connector, **options)


async def echo(request: Any) -> Any:
    peer = str(request.transport.get_extra_info("peername"))
    return web.Response(body=await request.read(), headers={"X-Peer": peer})


async def streamed_echo(request: Any) -> Any:
    """The body back in chunks, while it still comes in."""
    response = web.StreamResponse()
    await response.prepare(request)
    async for data in request.content.iter_any():
        await response.write(data)
    await response.write_eof()
    return response


def test_requests_share_a_connection_that_is_kept_alive(program):
    async def main():
        peers = set()
        async with (
            serving(tcp, echo=echo) as address,
            talking(address) as session,
        ):
            for number in range(100):
                async with session.post("/echo", data=b"%d" % number) as response:
                    assert (response.status, await response.read()) == (200, b"%d" % number)
                    peers.add(response.headers["X-Peer"])
        assert len(peers) == 1

    program.run(main())
    assert program.ours == {"SocketTransport": 2}


def test_large_bodies_go_both_ways_whole(program):
    async def main():
        async with (
            serving(tcp, echo=echo, streamed=streamed_echo) as address,
            talking(address) as session,
        ):
            for path in ("/echo", "/streamed"):
                async with session.post(path, data=io.BytesIO(BODY)) as response:
                    assert await response.read() == BODY

    program.run(main())


def test_many_connections_at_once(program):
    async def main():
        async with (
            serving(tcp, echo=echo) as address,
            talking(address, limit=50) as session,
        ):

            async def ask(number):
                async with session.post("/echo", data=b"%d" % number * 1000) as response:
                    return await response.read() == b"%d" % number * 1000

            assert all(await asyncio.gather(*map(ask, range(500))))

    program.run(main())
    assert program.ours == {"SocketTransport": 100}


def test_a_reader_that_pauses_holds_the_server_back(program):
    async def main():
        sent = 0

        async def endless(request):
            nonlocal sent
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(len(BODY) * 4 // MIB):
                await response.write(BODY[:MIB])
                sent += MIB
            return response

        async with (
            serving(tcp, endless=endless) as address,
            talking(address) as session,
            session.get("/endless") as response,
        ):
            await until(lambda: sent, "it began")
            with pytest.raises(Broken):
                await until(lambda: sent == len(BODY) * 4, "all was sent", 0.2)
            received = 0
            async for data in response.content.iter_any():
                received += len(data)
            assert received == len(BODY) * 4

    program.run(main())


def test_a_client_that_leaves_ends_the_handler(program):
    async def main():
        left = asyncio.Event()

        async def wait(request):
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        async with serving(tcp, wait=wait) as address:
            async with talking(address) as session:
                with pytest.raises(asyncio.TimeoutError):
                    await session.get("/wait", timeout=aiohttp.ClientTimeout(total=0.1))
            await asyncio.wait_for(left.wait(), 10)

    program.run(main())


def test_tls(program, served, trusting):
    async def main():
        ciphers = []

        async def cipher(request):
            ciphers.append(request.transport.get_extra_info("cipher"))
            return await echo(request)

        async with (
            serving(lambda runner: tcp(runner, ssl_context=served), cipher=cipher) as address,
            talking(address, trusting) as session,
        ):
            for _ in range(3):
                async with session.post("/cipher", data=io.BytesIO(BODY)) as response:
                    assert await response.read() == BODY
        assert len(ciphers) == 3
        assert all(ciphers)

    program.run(main())
    assert program.ours == {"SocketTransport": 2}


def test_tls_is_refused_to_a_client_that_does_not_trust_the_certificate(program, served, reports):
    async def main():
        async with (
            serving(lambda runner: tcp(runner, ssl_context=served), echo=echo) as address,
            talking(address, True) as session,
        ):
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get("/echo")

    program.run(main())
    # asyncio reports a failed handshake of a server in debug mode, and only then.
    assert all("incoming connection" in report["message"] for report in reports)


def test_tls_starts_in_mid_stream_behind_a_proxy(program, served, trusting):
    async def proxy(reader, writer):
        method, address, _ = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
        assert method == b"CONNECT"
        host, _, port = address.decode().rpartition(":")
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source, sink):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, onward_writer), pump(onward_reader, writer))

    async def main():
        async with (
            serving(lambda runner: tcp(runner, ssl_context=served), echo=echo) as address,
            await asyncio.start_server(proxy, LOOPBACK, 0) as middle,
            talking(address, trusting) as session,
        ):
            by = "http://{}:{}".format(*middle.sockets[0].getsockname())
            async with session.post("/echo", data=io.BytesIO(BODY), proxy=by) as response:
                assert await response.read() == BODY

    program.run(main())
    assert program.ours == {"SocketTransport": 4}


def test_a_unix_socket(program, tmp_path):
    path = str(tmp_path / "socket")

    async def main():
        async with (
            serving(lambda runner: web.UnixSite(runner, path), echo=echo) as address,
            aiohttp.ClientSession("http://local", connector=aiohttp.UnixConnector(path)) as session,
            session.post("/echo", data=io.BytesIO(BODY)) as response,
        ):
            assert address == path
            assert await response.read() == BODY

    program.run(main())
    assert program.ours == {"UnixTransport": 2}


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_websocket(program, served, trusting, secure):
    async def chat(request):
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.data == "bye":
                await socket.close(code=4001, message=b"as you like")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data.upper())
            else:
                await socket.send_bytes(message.data)
        return socket

    async def main():
        options = {"ssl_context": served} if secure else {}
        async with (
            serving(lambda runner: tcp(runner, **options), chat=chat) as address,
            talking(address, trusting if secure else None) as session,
            session.ws_connect("/chat", max_msg_size=0, autoping=False) as socket,
        ):
            for number in range(100):
                await socket.send_str(f"message {number}")
            for number in range(100):
                assert await socket.receive_str() == f"MESSAGE {number}"
            await socket.send_bytes(BODY)
            assert await socket.receive_bytes() == BODY
            await socket.ping(b"there?")
            pong = await socket.receive()
            assert (pong.type, bytes(pong.data)) == (aiohttp.WSMsgType.PONG, b"there?")
            await socket.send_str("bye")
            end = await socket.receive()
            assert (end.type, end.data, end.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "as you like")

    program.run(main())


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_file_is_sent_byte_for_byte(program, served, trusting, secure, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(BODY[:5_000_001])

    async def main():
        options = {"ssl_context": served} if secure else {}

        async def give(request):
            return web.FileResponse(path)

        async with (
            serving(lambda runner: tcp(runner, **options), file=give) as address,
            talking(address, trusting if secure else None) as session,
        ):
            for _ in range(2):  # the connection is as good as before afterwards
                async with session.get("/file") as response:
                    assert await response.read() == path.read_bytes()
            part = {"Range": "bytes=1000000-3000000"}
            async with session.get("/file", headers=part) as response:
                assert response.status == 206
                assert await response.read() == path.read_bytes()[1_000_000:3_000_001]

    program.run(main())
    assert program.ours == {"SocketTransport": 2}


def test_a_compressed_answer(program):
    async def squeeze(request):
        response = web.Response(body=BODY)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async def main():
        async with (
            serving(tcp, squeeze=squeeze) as address,
            talking(address, auto_decompress=False) as session,
            session.get("/squeeze") as response,
        ):
            assert gzip.decompress(await response.read()) == BODY

    program.run(main())
