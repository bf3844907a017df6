"""The ssl options of the socket functions, and asyncio's TLS on our transports."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from certificates import serving, trusting

from fdtransport import (
    create_connection,
    create_server,
    create_unix_connection,
    create_unix_server,
    open_connection,
    open_unix_connection,
    start_server,
    start_unix_server,
)
from fdtransport.testing import RecordingProtocol
from fdtransport.testing.observe import until

LOOPBACK = "127.0.0.1"
BULK = bytes(range(256)) * 4096


@pytest.fixture
def served():
    return serving()


@pytest.fixture(name="trusting")
def trusting_context():
    return trusting()


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        pass


async def converse(reader, writer):
    """Send much, read it back, and end."""
    assert writer.get_extra_info("sslcontext") is not None
    assert writer.get_extra_info("peername") is not None
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.write(BULK)
    assert await reader.readexactly(len(BULK)) == BULK
    writer.close()
    await writer.wait_closed()


async def test_streams_over_tls_on_tcp(served, trusting):
    async with await start_server(echo, LOOPBACK, 0, ssl=served) as server:
        port = server.sockets[0].getsockname()[1]
        await converse(*await open_connection(LOOPBACK, port, ssl=trusting))


async def test_streams_over_tls_on_a_unix_socket(served, trusting, tmp_path):
    path = tmp_path / "socket"
    async with await start_unix_server(echo, path, ssl=served):
        await converse(*await open_unix_connection(path, ssl=trusting, server_hostname="localhost"))


@pytest.mark.parametrize("ours", ["client", "server"])
async def test_asyncios_own_end_understands_ours(served, trusting, ours):
    start, connect = (start_server, asyncio.open_connection)
    if ours == "client":
        start, connect = asyncio.start_server, open_connection
    async with await start(echo, LOOPBACK, 0, ssl=served) as server:
        port = server.sockets[0].getsockname()[1]
        await converse(*await connect(LOOPBACK, port, ssl=trusting))


async def test_callbacks_come_after_the_handshake(served, trusting):
    guests = []

    def factory():
        guests.append(RecordingProtocol())
        return guests[-1]

    async with await create_server(factory, LOOPBACK, 0, ssl=served) as server:
        port = server.sockets[0].getsockname()[1]
        transport, protocol = await create_connection(RecordingProtocol, LOOPBACK, port, ssl=trusting)
        assert protocol.names == ["made"]
        assert protocol.transport is transport
        assert transport.get_extra_info("cipher")
        transport.write(b"hello")
        await until(lambda: guests and guests[0].received == b"hello", "it arrived")
        transport.close()
        await until(lambda: guests[0].lost and protocol.lost, "both were lost")
        assert (guests[0].reason, protocol.reason) == (None, None)


async def test_a_certificate_that_is_not_trusted_ends_the_handshake_and_leaves_nothing_open(served, reports):
    async with await create_server(asyncio.Protocol, LOOPBACK, 0, ssl=served) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ssl.SSLCertVerificationError):
            await create_connection(asyncio.Protocol, LOOPBACK, port, ssl=True)
        await until(lambda: not server._connections, "the server's end has gone too")


async def test_a_handshake_that_takes_too_long_ends(trusting, reports):
    async with await create_server(asyncio.Protocol, LOOPBACK, 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionError):
            await create_connection(
                asyncio.Protocol, LOOPBACK, port, ssl=trusting, ssl_handshake_timeout=0.05
            )
        await until(lambda: not server._connections, "the server's end has gone too")


async def test_cancelling_a_handshake_leaves_nothing_open(trusting):
    async with await create_server(asyncio.Protocol, LOOPBACK, 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(create_connection(asyncio.Protocol, LOOPBACK, port, ssl=trusting), 0.05)
        await until(lambda: not server._connections, "the server's end has gone too")


async def test_loop_start_tls_upgrades_a_connection(served, trusting):
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return  # uvloop upgrades its own transports only

    async def upgraded(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(served)
        await echo(reader, writer)

    async with await start_server(upgraded, LOOPBACK, 0) as server:
        reader, writer = await open_connection(*server.sockets[0].getsockname())
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(trusting, server_hostname="localhost")
        await converse(reader, writer)


OPTIONS = [
    {"server_hostname": "x"},
    {"ssl_handshake_timeout": 1.0},
    {"ssl_shutdown_timeout": 1.0},
    {"ssl": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
async def test_options_that_make_no_sense_are_refused_as_by_asyncio(options, tmp_path):
    loop = asyncio.get_running_loop()
    pairs = [
        (loop.create_connection, create_connection, (asyncio.Protocol, "", 1)),
        (loop.create_unix_connection, create_unix_connection, (asyncio.Protocol, str(tmp_path / "socket"))),
        (loop.create_server, create_server, (asyncio.Protocol, LOOPBACK, 0)),
        (loop.create_unix_server, create_unix_server, (asyncio.Protocol, str(tmp_path / "socket"))),
    ]
    for theirs, ours, arguments in pairs:
        errors = []
        for function in (theirs, ours):
            if "server_hostname" in options and "server" in function.__name__:
                continue  # no option of a server
            with pytest.raises((ValueError, TypeError)) as caught:
                await function(*arguments, **options)
            errors.append((caught.type, str(caught.value)))
        if isinstance(loop, asyncio.SelectorEventLoop):
            assert len(set(errors)) <= 1
