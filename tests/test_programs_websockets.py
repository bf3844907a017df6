"""websockets on the drop-in loop, as server and as client."""

from __future__ import annotations

import asyncio

import pytest
from real_programs import needed

websockets = needed("websockets")
serve = needed("websockets.asyncio.server").serve

MIB = 1024 * 1024
LOOPBACK = "127.0.0.1"


async def echo(socket):
    async for message in socket:
        await socket.send(message)


def at(server, scheme="ws"):
    host, port = server.sockets[0].getsockname()
    return f"{scheme}://{host}:{port}"


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_big_messages_both_ways(program, compression):
    big = bytes(range(256)) * (16 * MIB // 256)

    async def main():
        options = {"max_size": None, "compression": compression}
        async with (
            serve(echo, LOOPBACK, 0, **options) as server,
            websockets.connect(at(server), **options) as socket,
        ):
            for message in (big, "text", b"", "ä" * MIB):
                await socket.send(message)
                assert await socket.recv() == message
            await socket.send(big[i : i + MIB] for i in range(0, len(big), MIB))  # in fragments
            assert await socket.recv() == big

    program.run(main())
    assert program.ours == {"SocketTransport": 2}


def test_over_tls(program, served, trusting):
    async def main():
        async with (
            serve(echo, LOOPBACK, 0, ssl=served) as server,
            websockets.connect(at(server, "wss"), ssl=trusting) as socket,
        ):
            for number in range(200):
                await socket.send(f"message {number}")
            for number in range(200):
                assert await socket.recv() == f"message {number}"

    program.run(main())


def test_pings_are_answered(program):
    async def main():
        async with serve(echo, LOOPBACK, 0) as server, websockets.connect(at(server)) as socket:
            for _ in range(20):
                assert 0 <= await (await socket.ping()) < 10

    program.run(main())


@pytest.mark.parametrize("closes", ["client", "server"])
def test_the_other_side_gets_code_and_reason_of_the_close(program, closes):
    async def main():
        ends = asyncio.Queue()

        async def close(socket):
            await socket.close(4002, "enough")

        async def wait(socket):
            with pytest.raises(websockets.ConnectionClosedError) as ended:
                await socket.recv()
            await ends.put((ended.value.rcvd.code, ended.value.rcvd.reason))

        handler, client = (close, wait) if closes == "server" else (wait, close)
        async with serve(handler, LOOPBACK, 0) as server, websockets.connect(at(server)) as socket:
            await client(socket)
            assert await asyncio.wait_for(ends.get(), 10) == (4002, "enough")

    program.run(main())


def test_a_connection_that_is_cut_ends_without_a_close_frame(program):
    async def main():
        async def cut(socket):
            socket.transport.abort()

        async with serve(cut, LOOPBACK, 0) as server, websockets.connect(at(server)) as socket:
            with pytest.raises(websockets.ConnectionClosedError) as ended:
                await socket.recv()
            assert ended.value.rcvd is None

    program.run(main())


def test_a_client_that_does_not_read_holds_the_server_back(program):
    count, size = 400, 128 * 1024

    async def main():
        sent, transports = [], []

        async def flood(socket):
            transports.append(socket.transport)
            for number in range(count):
                await socket.send(number.to_bytes(4, "big") * (size // 4))
                sent.append(number)

        async with (
            serve(flood, LOOPBACK, 0, compression=None) as server,
            websockets.connect(at(server), compression=None, max_queue=2) as socket,
        ):
            assert await socket.recv() == bytes(size)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(socket.wait_closed(), 0.3)
            assert len(sent) < count, "nothing held the server back"
            assert transports[0].get_write_buffer_size() < 2 * size
            for number in range(1, count):
                assert await socket.recv() == number.to_bytes(4, "big") * (size // 4)

    program.run(main())


def test_a_unix_socket(program, tmp_path):
    path = str(tmp_path / "socket")
    unix_serve, unix_connect = needed("websockets").unix_serve, needed("websockets").unix_connect

    async def main():
        async with unix_serve(echo, path), unix_connect(path) as socket:
            await socket.send("over a path")
            assert await socket.recv() == "over a path"

    program.run(main())
