"""The ssl options of the socket functions, and asyncio's TLS on our transports."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl

import pytest
from certificates import issued, serving, trusting

from fdtransport import (
    create_connection,
    create_server,
    create_unix_connection,
    create_unix_server,
    open_connection,
    open_unix_connection,
    sendfile,
    start_server,
    start_unix_server,
)
from fdtransport.testing import FarEnd, RecordingProtocol, TlsEnd
from fdtransport.testing.observe import turns, until

LOOPBACK = "127.0.0.1"
BULK = bytes(range(256)) * 4096


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


async def test_a_file_goes_through_tls_in_its_place(served, trusting, tmp_path):
    (tmp_path / "file").write_bytes(BULK)
    sent = []

    async def send(reader, writer):
        writer.write(b"before")
        with (tmp_path / "file").open("rb") as file:
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await sendfile(writer, file, fallback=False)
            sent.append(await sendfile(writer, file, 10))
            sent.append(file.tell())
        writer.write(b"after")
        writer.close()
        await writer.wait_closed()

    async with await start_server(send, LOOPBACK, 0, ssl=served) as server:
        reader, writer = await open_connection(*server.sockets[0].getsockname(), ssl=trusting)
        assert await reader.read() == b"before" + BULK[10:] + b"after"
        assert sent == [len(BULK) - 10, len(BULK)]
        writer.close()
        await writer.wait_closed()


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


# -- the handshake -------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def beside(connect, far):
    """Run *connect*, and the handshake of the far end beside it; the far end is closed at the end."""
    shaking = asyncio.ensure_future(far.handshake())
    try:
        yield await connect
    finally:
        shaking.cancel()
        await asyncio.gather(shaking, return_exceptions=True)
        far.close()
        await turns(5)


def pair(context=None):
    with socket.create_server((LOOPBACK, 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, TlsEnd(listener.accept()[0], context or serving())


def connecting(near, protocol=None, context=None, **options):
    options = {"ssl": context or trusting(), "server_hostname": "localhost", **options}
    return create_connection(lambda: protocol or RecordingProtocol(), sock=near, **options)


async def test_the_handshake_is_over_although_the_protocol_pauses_reading_at_once():
    near, far = pair()
    protocol = RecordingProtocol(made=lambda p: p.transport.pause_reading())
    async with beside(connecting(near, protocol), far) as (transport, _):
        await far.send(b"data")
        await far.handshake()
        assert not protocol.received
        transport.resume_reading()
        await until(lambda: protocol.received == b"data", "it came")
        transport.abort()


async def test_the_peer_is_told_why_the_handshake_failed():
    near, far = pair(serving(issued("example.org")))
    shaking = asyncio.ensure_future(far.handshake())
    with pytest.raises(ssl.SSLCertVerificationError):
        await connecting(near)
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_CERTIFICATE"):
        await shaking
    far.close()


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_a_peer_that_goes_in_the_handshake(how):
    near, far = pair()
    task = asyncio.ensure_future(connecting(near))
    await turns(3)
    getattr(far, how)()
    with pytest.raises(ConnectionResetError) as caught:
        await task
    assert caught.value.errno == errno.ECONNRESET


async def test_a_peer_that_speaks_no_tls():
    near, far = pair()
    far._sock.send(b"220 hello, I am a plain server\r\n")
    with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
        await connecting(near)
    far.cut()


async def test_clients_that_fail_the_handshake_leave_nothing_in_the_server(reports):
    async with await create_server(RecordingProtocol, LOOPBACK, 0, ssl=serving()) as server:
        clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(10)]
        await until(lambda: server._connections == 10, "all were accepted")
        for number, client in enumerate(clients):
            if number % 2:
                client.send(b"GET / HTTP/1.0\r\n\r\n")
            client.close()
        await until(lambda: not server._connections, "nothing is left")
    assert not reports


async def test_a_client_that_says_nothing_is_dropped_by_the_server_in_time(reports):
    options = {"ssl": serving(), "ssl_handshake_timeout": 0.05}
    async with await create_server(RecordingProtocol, LOOPBACK, 0, **options) as server:
        with FarEnd(socket.create_connection(server.sockets[0].getsockname())) as far:
            assert await far.recv_to_end() == b""
        await until(lambda: not server._connections, "nothing is left")
    assert not reports


# -- the end -------------------------------------------------------------------------------------------


async def test_an_end_without_a_goodbye_is_an_error():
    """Else somebody on the way could cut a message short, and nobody would know."""
    near, far = pair()
    protocol = RecordingProtocol()
    async with beside(connecting(near, protocol), far):
        await far.send(b"pay 100")
        far.cut()
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.received == b"pay 100"
        assert isinstance(protocol.reason, ssl.SSLEOFError)
        assert not protocol.count("eof")


async def test_an_end_without_a_goodbye_is_an_error_to_a_reader_after_what_came():
    near, far = pair()
    opening = open_connection(sock=near, ssl=trusting(), server_hostname="localhost")
    async with beside(opening, far) as (reader, writer):
        await far.send(b"pay 100")
        far.cut()
        assert await reader.readexactly(7) == b"pay 100"
        with pytest.raises(ssl.SSLEOFError):
            await reader.read()
        with pytest.raises(ssl.SSLEOFError):
            await writer.wait_closed()


async def test_an_end_without_a_goodbye_while_reading_is_paused_comes_after_the_data():
    near, far = pair()
    protocol = RecordingProtocol(made=lambda p: p.transport.pause_reading())
    async with beside(connecting(near, protocol), far) as (transport, _):
        await far.handshake()
        await far.send(BULK[:100_000])
        far.cut()
        await turns(20)
        assert protocol.names == ["made"]
        transport.resume_reading()
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.received == BULK[:100_000]
        assert isinstance(protocol.reason, ssl.SSLEOFError)


async def test_openssls_own_option_takes_it_for_an_ordinary_end():
    near, far = pair()
    context = trusting()
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    protocol = RecordingProtocol()
    async with beside(connecting(near, protocol, context), far):
        await far.send(b"pay 100")
        far.cut()
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.received == b"pay 100"
        assert protocol.reason is None


async def test_a_peer_that_says_goodbye_and_closes_at_once_has_ended_in_good_order():
    near, far = pair()
    protocol = RecordingProtocol()
    async with beside(connecting(near, protocol), far) as (transport, _):
        peer = transport.get_extra_info("peername")
        await far.send(b"bye")
        far.close()
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.names == ["made", "data", "eof", "lost"]
        assert protocol.reason is None
        assert transport.get_extra_info("peername") == peer


async def test_what_comes_after_close_is_dropped_and_is_no_error():
    near, far = pair()
    protocol = RecordingProtocol()
    async with beside(connecting(near, protocol), far) as (transport, _):
        await far.handshake()
        far.send_now(BULK[:100_000])
        transport.close()
        far.send_now(BULK[:100_000])
        assert await far.recv() == b""
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.reason is None


async def test_a_peer_that_never_answers_the_goodbye_is_waited_for_no_longer_than_asked():
    near, far = pair()
    protocol = RecordingProtocol()
    async with beside(connecting(near, protocol, ssl_shutdown_timeout=0.05), far) as (transport, _):
        await far.handshake()
        transport.close()
        await until(lambda: protocol.lost, "it was lost")
        assert isinstance(protocol.reason, TimeoutError)


async def test_closing_while_reading_is_paused_still_hears_the_goodbye():
    near, far = pair()
    protocol = RecordingProtocol()
    async with beside(connecting(near, protocol), far) as (transport, _):
        await far.handshake()
        transport.pause_reading()
        await far.send(b"unread")
        transport.close()
        assert await far.recv() == b""
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.reason is None


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
async def test_a_reset_in_the_middle_is_told_with_its_errno(paused):
    near, far = pair()
    protocol = RecordingProtocol()
    async with beside(connecting(near, protocol), far) as (transport, _):
        await far.handshake()
        if paused:
            transport.pause_reading()
        far.reset()
        await turns(5)
        transport.resume_reading()
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.reason.errno == errno.ECONNRESET


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
