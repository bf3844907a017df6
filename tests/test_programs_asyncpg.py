"""asyncpg on the drop-in loop, against a PostgreSQL of the test's own."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_programs import executable, folder_of, needed, server_process

asyncpg = needed("asyncpg")

ROWS = 40_000


@pytest.fixture(scope="module")
def addresses(certificate: tuple[Path, Path]) -> Iterator[dict[str, dict[str, Any]]]:
    """A server on new and empty data, at a UNIX socket, and at a TCP port with TLS."""
    places = {"package": "postgresql", "folders": "/usr/lib/postgresql/*/bin"}
    initdb, postgres = executable("initdb", **places), executable("postgres", **places)
    # The server refuses to be root.
    user = "nobody" if os.geteuid() == 0 else None
    identity = {"user": user, "extra_groups": []} if user else {}
    with folder_of(user) as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        data = folder / "data"
        subprocess.run(
            [initdb, "-D", data, "-A", "trust", "-U", "somebody", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True, capture_output=True, cwd=folder, **identity,
        )  # fmt: skip
        chain, key = (shutil.copy(file, folder) for file in certificate)
        os.chmod(key, 0o600)
        if user:
            shutil.chown(key, user)
        settings = {
            "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off",
            "ssl": "on", "ssl_cert_file": chain, "ssl_key_file": key, "logging_collector": "off",
        }  # fmt: skip
        command = [postgres, "-D", str(data), *(f"--{name}={value}" for name, value in settings.items())]
        with server_process(command, "ready to accept connections", cwd=folder, **identity):
            yield {"unix": {"host": str(folder), "port": port}, "tcp": {"host": "127.0.0.1", "port": port}}


@pytest.fixture(params=["unix", "tcp", "tls"])
def options(request, addresses, trusting):
    """What connects to it: ``asyncpg.connect(**options)``."""
    common = {"user": "somebody", "database": "postgres", "timeout": 20}
    if request.param == "unix":
        return {**addresses["unix"], **common}
    return {**addresses["tcp"], **common, "ssl": trusting if request.param == "tls" else False}


def test_queries_and_large_values(program, options):
    big = bytes(range(256)) * 16 * 1024

    async def main():
        connection = await asyncpg.connect(**options)
        try:
            assert await connection.fetchval("SELECT $1::int + 1", 41) == 42
            assert await connection.fetchval("SELECT $1::bytea", big) == big
            rows = await connection.fetch("SELECT n, n::text FROM generate_series(1, $1) n", ROWS)
            assert [tuple(row) for row in rows] == [(n, str(n)) for n in range(1, ROWS + 1)]
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("SELECT 1 / 0")
            secure = await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert secure == bool(options.get("ssl"))
        finally:
            await connection.close()

    program.run(main())
    assert program.ours.total() == 1


def test_copy_in_and_out(program, options):
    lines = b"".join(b"%d\t%s\n" % (n, b"x" * 100) for n in range(ROWS))

    async def pieces():
        for start in range(0, len(lines), 100_000):
            yield lines[start : start + 100_000]

    async def main():
        connection = await asyncpg.connect(**options)
        try:
            await connection.execute("CREATE TEMPORARY TABLE t (n int, text text)")
            assert await connection.copy_to_table("t", source=pieces()) == f"COPY {ROWS}"
            out = io.BytesIO()
            assert await connection.copy_from_table("t", output=out) == f"COPY {ROWS}"
            assert out.getvalue() == lines
            collected = []

            async def take(data):
                await asyncio.sleep(0)
                collected.append(data)

            await connection.copy_from_query("SELECT * FROM t", output=take)
            assert b"".join(collected) == lines
        finally:
            await connection.close()

    program.run(main())


def test_a_cursor_takes_a_part_at_a_time(program, options):
    async def main():
        connection = await asyncpg.connect(**options)
        try:
            async with connection.transaction():
                query = connection.cursor("SELECT generate_series(1, $1)", ROWS, prefetch=500)
                assert sum([row[0] async for row in query]) == ROWS * (ROWS + 1) // 2
        finally:
            await connection.close()

    program.run(main())


def test_notices_of_another_connection_arrive(program, options):
    async def main():
        got = asyncio.Queue()
        listener, teller = await asyncpg.connect(**options), await asyncpg.connect(**options)
        try:
            await listener.add_listener("news", lambda *event: got.put_nowait(event[1:]))
            for number in range(100):
                await teller.execute("SELECT pg_notify('news', $1)", str(number))
            for number in range(100):
                news = await asyncio.wait_for(got.get(), 10)
                assert news == (teller.get_server_pid(), "news", str(number))
        finally:
            await listener.close()
            await teller.close()

    program.run(main())


def test_a_long_query_is_cancelled_and_the_connection_stays(program, options):
    async def main():
        connection = await asyncpg.connect(**options)
        try:
            with pytest.raises(asyncio.TimeoutError):
                await connection.execute("SELECT pg_sleep(60)", timeout=0.1)
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            await asyncio.sleep(0)
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            assert await connection.fetchval("SELECT 1") == 1
        finally:
            await connection.close()

    program.run(main())
    assert program.ours.total() >= 2  # PostgreSQL takes a cancellation on another connection


def test_a_pool_shares_its_connections_among_many(program, options):
    async def main():
        async with asyncpg.create_pool(**options, min_size=2, max_size=6) as pool:
            numbers = await asyncio.gather(*(pool.fetchval("SELECT $1::int", n) for n in range(300)))
            assert numbers == list(range(300))

    program.run(main())
    assert 2 <= program.ours.total() <= 6


def test_a_connection_that_the_server_ends_is_noticed(program, options):
    async def main():
        victim, other = await asyncpg.connect(**options), await asyncpg.connect(**options)
        try:
            query = asyncio.create_task(victim.execute("SELECT pg_sleep(60)"))
            await asyncio.sleep(0)
            assert await other.fetchval("SELECT pg_terminate_backend($1, 10000)", victim.get_server_pid())
            with pytest.raises(asyncpg.ConnectionDoesNotExistError):
                await query
            with pytest.raises(asyncpg.InterfaceError):
                await victim.execute("SELECT 1")
            assert victim.is_closed()
        finally:
            victim.terminate()
            await other.close()

    program.run(main())
