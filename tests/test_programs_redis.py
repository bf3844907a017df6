"""redis-py on the drop-in loop, against a redis-server of the test's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager

import pytest
from real_programs import executable, folder_of, needed, server_process

redis = needed("redis.asyncio")
errors = needed("redis.exceptions")

BIG = bytes(range(256)) * 32 * 1024


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """A server that keeps nothing, at a UNIX socket and a TCP port."""
    binary = executable("redis-server", "redis-server")
    with folder_of(None) as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        path = folder / "redis"
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(path)]
        command += ["--dir", str(folder), "--save", "", "--appendonly", "no", "--daemonize", "no"]
        with server_process(command, "Ready to accept connections"):
            yield {"tcp": f"redis://127.0.0.1:{port}", "unix": f"unix://{path}"}


@pytest.fixture(params=["tcp", "unix"])
def client(request, addresses):
    """A context manager of a client of an empty database."""

    @asynccontextmanager
    async def client(**options):
        async with redis.from_url(addresses[request.param], **options) as client:
            await client.flushall()
            yield client

    return client


def test_commands_pipelines_and_large_values(program, client):
    async def main():
        async with client() as one:
            assert await one.set("key", "value")
            assert await one.get("key") == b"value"
            assert await one.set("big", BIG)
            assert await one.get("big") == BIG
            async with one.pipeline(transaction=False) as pipeline:
                for number in range(5000):
                    pipeline.incrby("sum", number)
                answers = await pipeline.execute()
            assert answers[-1] == sum(range(5000))
            with pytest.raises(errors.ResponseError):
                await one.incr("big")

    program.run(main())


def test_many_clients_at_once(program, client):
    async def main():
        async with client(max_connections=200) as one:
            await asyncio.gather(*(one.rpush("list", number) for number in range(200)))
            assert sorted(map(int, await one.lrange("list", 0, -1))) == list(range(200))

    program.run(main())
    assert program.ours.total() == 200


def test_a_blocked_client_is_woken_by_another(program, client):
    async def main():
        async with client() as one:
            waiting = asyncio.create_task(one.blpop("queue", timeout=20))
            while not (await one.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0)
            await one.rpush("queue", "job")
            assert await waiting == (b"queue", b"job")
            assert await one.blpop("queue", timeout=0.05) is None

    program.run(main())


def test_messages_are_published_to_subscribers(program, client):
    async def main():
        async with client() as one, one.pubsub() as listener:
            await listener.subscribe("news")
            assert (await listener.get_message(timeout=10))["type"] == "subscribe"
            for number in range(500):
                assert await one.publish("news", number) == 1
            for number in range(500):
                assert (await listener.get_message(timeout=10))["data"] == b"%d" % number

    program.run(main())


def test_a_transaction_sees_a_change_of_what_it_watches(program, client):
    async def main():
        async with client() as one:
            async with one.pipeline() as pipeline:
                await pipeline.watch("key")
                await one.set("key", "meanwhile")
                pipeline.multi()
                pipeline.set("key", "mine")
                with pytest.raises(errors.WatchError):
                    await pipeline.execute()
            assert await one.get("key") == b"meanwhile"

    program.run(main())


def test_a_connection_that_the_server_ends_is_noticed_and_made_anew(program, client):
    async def main():
        async with client(retry=None, retry_on_error=[]) as one, client() as other:
            async with one.client() as single:  # one connection, and no other
                await other.client_kill_filter(_id=await single.client_id())
                with pytest.raises(errors.ConnectionError):
                    await single.get("key")
            assert await one.ping()

    program.run(main())


def test_a_command_that_is_cancelled_leaves_the_others_alone(program, client):
    async def main():
        async with client() as one:
            waiting = asyncio.create_task(one.blpop("never", timeout=20))
            while not (await one.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            words = [b"%d" % number for number in range(20)]
            assert await asyncio.gather(*map(one.echo, words)) == words

    program.run(main())
