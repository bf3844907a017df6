"""TLS in the middle of a connection, by start_tls of the module, of the writer and of the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl

import pytest
from certificates import issued, serving, trusting

import fdtransport
from fdtransport import connect_fd, open_connection, open_fd, start_server, start_tls
from fdtransport.testing import FarEnd, RecordingProtocol, TlsEnd
from fdtransport.testing.observe import pattern, turns, until

LOOPBACK = "127.0.0.1"
BULK = pattern(1 << 20)


@contextlib.asynccontextmanager
async def upgrading(protocol=None, context=None, **options):
    """A transport, a TLS server beyond it, and the start_tls that is under way between them."""
    near, other = socket.socketpair()
    far = TlsEnd(other, context or serving())
    protocol = protocol or RecordingProtocol()
    transport, _ = await connect_fd(lambda: protocol, near.detach())
    options = {"server_hostname": "localhost", **options}
    task = asyncio.ensure_future(start_tls(transport, protocol, trusting(), **options))
    try:
        yield transport, far, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        transport.abort()
        far.close()
        await until(lambda: protocol.lost, "the protocol was told of the loss")
        await turns(3)


async def test_the_protocol_gets_what_comes_decrypted_and_is_not_made_again():
    protocol = RecordingProtocol()
    async with upgrading(protocol) as (transport, far, task):
        await far.handshake()
        upper = await task
        assert isinstance(upper, asyncio.Transport)
        assert upper.get_extra_info("ssl_object").version().startswith("TLS")
        assert upper.get_extra_info("fd") == transport.fileno()
        upper.write(BULK)
        assert await far.recv_exactly(len(BULK)) == BULK
        await far.send(BULK)
        await until(lambda: protocol.received == BULK, "all of it came")
        upper.close()
        assert await far.recv() == b""
        assert not far.cut_short
        far.close()
        await until(lambda: protocol.lost, "it was lost")
        assert protocol.count("made") == 1
        assert protocol.reason is None


async def test_what_was_queued_leaves_as_plain_text_before_the_handshake():
    near, other = socket.socketpair()
    protocol = RecordingProtocol()
    transport, _ = await connect_fd(lambda: protocol, near.detach())
    far = FarEnd(other)
    transport.write(BULK)
    assert protocol.paused
    task = asyncio.ensure_future(start_tls(transport, protocol, trusting(), server_hostname="localhost"))
    await turns(3)
    assert not protocol.paused  # TLS has nothing queued
    assert await far.recv_exactly(len(BULK)) == BULK
    secret = TlsEnd(far._sock, serving())
    await secret.handshake()
    upper = await task
    upper.write(b"secret")
    assert await secret.recv_exactly(6) == b"secret"
    upper.abort()
    secret.close()
    await until(lambda: protocol.lost, "it was lost")


async def test_what_is_written_to_the_new_transport_in_the_handshake_is_encrypted():
    async def upgraded(reader, writer):
        await writer.start_tls(serving())
        writer.write(await reader.readexactly(6))
        await writer.drain()
        writer.close()

    async with await start_server(upgraded, LOOPBACK, 0) as server:
        reader, writer = await open_connection(*server.sockets[0].getsockname())
        task = asyncio.ensure_future(writer.start_tls(trusting(), server_hostname="localhost"))
        await turns(1)
        writer.write(b"secret")
        await task
        assert await reader.read() == b"secret"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("held", ["read ahead", "in the buffer", "both"])
async def test_what_a_reader_has_read_of_the_handshake_is_not_lost(held):
    """The client says hello in the same breath as its last plain line."""
    near, other = socket.socketpair()
    server, client = asyncio.Event(), TlsEnd(other, trusting(), "localhost")
    done = []

    async def serve(reader, writer):
        if held != "read ahead":
            assert await reader.readline() == b"STARTTLS\n"  # and more is in the buffer then
        if held != "in the buffer":
            await until(lambda: reader._ahead or reader._buffer, "it was read ahead")
        if held == "read ahead":
            assert await reader.readline() == b"STARTTLS\n"
        server.set()
        await writer.start_tls(serving())
        writer.write(await reader.readline())
        writer.close()
        await writer.wait_closed()
        done.append(True)

    client._shaken()  # encrypts the hello
    listener = socket.create_server((LOOPBACK, 0))
    near.close()
    client.close()
    async with await start_server(serve, sock=listener):
        sock = socket.create_connection(listener.getsockname())
        plain_and_hello = _Prefixed(sock, b"STARTTLS\n")
        await plain_and_hello.handshake()
        await plain_and_hello.send(b"secret\n")
        assert await plain_and_hello.recv_exactly(7) == b"secret\n"
        assert await plain_and_hello.recv() == b""
        plain_and_hello.close()
        await until(lambda: done, "the server is done")


class _Prefixed(TlsEnd):
    """A client whose first bytes are plain text."""

    def __init__(self, sock, plain):
        super().__init__(sock, trusting(), "localhost")
        self._unsent = plain


async def test_plain_text_after_the_last_plain_line_is_not_given_out_as_if_it_had_been_encrypted():
    """Somebody on the way cannot smuggle commands in front of the encrypted ones."""
    seen = []

    async def serve(reader, writer):
        seen.append(await reader.readline())
        await until(lambda: reader._ahead or reader._buffer, "the smuggled line is there")
        with pytest.raises(ssl.SSLError):
            await writer.start_tls(serving())
        seen.append(await asyncio.gather(reader.read(), return_exceptions=True))
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await start_server(serve, LOOPBACK, 0) as server:
        with FarEnd(socket.create_connection(server.sockets[0].getsockname())) as far:
            await far.send(b"STARTTLS\nRSET: smuggled\n" + bytes(100))
            await far.recv_to_end()
            await until(lambda: len(seen) == 2, "the server is done")
    assert seen[0] == b"STARTTLS\n"
    assert isinstance(seen[1][0], ssl.SSLError)


async def test_asyncios_own_reader_loses_nothing_either():
    near, other = socket.socketpair()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await connect_fd(lambda: protocol, near.detach())
    client = _Prefixed(other, b"STARTTLS\n")
    client._shaken()
    assert await reader.readline() == b"STARTTLS\n"
    assert reader._buffer
    task = asyncio.ensure_future(start_tls(transport, protocol, serving(), server_side=True))
    await client.handshake()
    upper = await task
    await client.send(b"secret\n")
    assert await reader.readline() == b"secret\n"
    upper.abort()
    client.close()
    await turns(5)


async def test_streams_go_on_over_tls_with_everything_that_they_have():
    async def echo(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(serving(), ssl_handshake_timeout=5, ssl_shutdown_timeout=5)
        assert writer.get_extra_info("ssl_object") is not None
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await start_server(echo, LOOPBACK, 0) as server:
        reader, writer = await open_connection(*server.sockets[0].getsockname())
        plain = writer.transport
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(trusting(), server_hostname="localhost")
        assert writer.transport is not plain
        assert reader._transport is writer.transport
        assert writer.get_extra_info("cipher")
        assert writer.get_extra_info("peername") == server.sockets[0].getsockname()
        assert not writer.can_write_eof()
        writing = asyncio.ensure_future(_write(writer, BULK))
        assert await reader.readexactly(len(BULK)) == BULK
        await writing
        writer.close()
        await writer.wait_closed()
        assert await reader.read() == b""


async def _write(writer, data):
    for start in range(0, len(data), 50_000):
        writer.write(data[start : start + 50_000])
        await writer.drain()


async def test_a_reader_that_does_not_read_holds_the_encrypted_sender_back():
    near, other = socket.socketpair()
    reader, writer = await open_fd(near.detach())
    far = TlsEnd(other, serving())
    task = asyncio.ensure_future(writer.start_tls(trusting(), server_hostname="localhost"))
    await far.handshake()
    await task
    sent = refused = 0
    while refused < 100:
        taken = far.send_now(pattern(8192, sent))
        sent += taken
        refused = 0 if taken else refused + 1
        await asyncio.sleep(0)
        assert sent < 8 << 20, "nobody held the sender back"
    assert len(reader._buffer) < 1 << 20
    got = b""
    while len(got) < sent:
        far._flush()
        got += await asyncio.wait_for(reader.read(65536), 5)
    assert got == pattern(sent)
    writer.transport.abort()
    far.close()
    await turns(5)


async def test_over_a_pair_of_pipes():
    (reading, their_writing), (their_reading, writing) = os.pipe(), os.pipe()
    reader, writer = await open_fd((reading, writing))
    far = TlsEnd((their_reading, their_writing), serving())
    task = asyncio.ensure_future(writer.start_tls(trusting(), server_hostname="localhost"))
    await far.handshake()
    await task
    writing_all = asyncio.ensure_future(_write(writer, BULK))
    assert await far.recv_exactly(len(BULK)) == BULK
    await writing_all
    sending = asyncio.ensure_future(far.send(BULK))
    assert await reader.readexactly(len(BULK)) == BULK
    await sending
    far.close()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_tls_in_tls():
    """As through a proxy that is itself spoken to by TLS."""
    protocol = RecordingProtocol()

    async def proxy(reader, writer):
        outer = TlsEnd(writer.get_extra_info("socket").dup(), serving())
        writer.transport.abort()
        inner = _Inside(outer)
        await inner.handshake()
        await inner.send(await inner.recv_exactly(5))
        inner.close()

    async with await start_server(proxy, LOOPBACK, 0) as server:
        address = server.sockets[0].getsockname()
        outer, _ = await fdtransport.create_connection(
            lambda: protocol, *address, ssl=trusting(), server_hostname="localhost"
        )
        inner = await start_tls(outer, protocol, trusting(), server_hostname="localhost")
        assert inner.get_extra_info("ssl_object") is not outer.get_extra_info("ssl_object")
        inner.write(b"inner")
        await until(lambda: protocol.received == b"inner", "it came back")
        inner.close()
        await until(lambda: protocol.lost, "it was lost")


class _Inside(TlsEnd):
    """A TLS server inside of another TLS end."""

    def __init__(self, outer):
        self._outer = outer
        super().__init__(os.open(os.devnull, os.O_RDWR), serving())

    def _take(self):
        data = self._outer.recv_now()
        if data:
            self._came.write(data)
        elif data is not None:
            self._came.write_eof()
        return data is not None

    def _flush(self):
        self._unsent += self._goes.read()
        while self._unsent:
            sent = self._outer.send_now(self._unsent)
            self._unsent = self._unsent[sent:]
            if not sent:
                return False
        return True

    def close(self):
        super().close()
        self._outer.close()


# -- what goes wrong ---------------------------------------------------------------------------------


async def test_cancelling_at_any_turn_aborts_and_tells_the_protocol_once():
    for steps in range(100):
        protocol = RecordingProtocol()
        async with upgrading(protocol) as (transport, far, task):
            for _ in range(steps):
                far._shaken()
                await asyncio.sleep(0)
            if task.done():
                break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if steps:
                assert transport.is_closing()
                await until(lambda protocol=protocol: protocol.lost, "the protocol was told")
                assert transport.fileno() == -1
    assert steps > 1
    assert protocol.names == ["made", "lost"]


async def test_a_handshake_that_takes_too_long_ends_and_the_protocol_is_told():
    protocol = RecordingProtocol()
    async with upgrading(protocol, ssl_handshake_timeout=0.05) as (transport, _far, task):
        with pytest.raises(ConnectionAbortedError, match=r"longer than 0\.05 seconds"):
            await task
        await until(lambda: protocol.lost, "the protocol was told")
        assert isinstance(protocol.reason, ConnectionAbortedError)
        assert protocol.names == ["made", "lost"]
        assert transport.fileno() == -1


async def test_the_writers_wait_closed_returns_after_a_handshake_that_took_too_long():
    near, other = socket.socketpair()
    reader, writer = await open_fd(near.detach())
    with FarEnd(other):
        with pytest.raises(ConnectionAbortedError):
            await writer.start_tls(trusting(), server_hostname="localhost", ssl_handshake_timeout=0.05)
        with pytest.raises(ConnectionAbortedError):
            await writer.wait_closed()
        with pytest.raises(ConnectionAbortedError):
            await reader.read()


async def test_a_certificate_that_does_not_verify():
    protocol = RecordingProtocol()
    async with upgrading(protocol, serving(issued("example.org"))) as (transport, far, task):
        with contextlib.suppress(ssl.SSLError):
            await far.handshake()
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await task
        await until(lambda: protocol.lost, "the protocol was told")
        assert isinstance(protocol.reason, ssl.SSLCertVerificationError)
        assert protocol.names == ["made", "lost"]
        assert transport.fileno() == -1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_peer_that_goes_in_the_handshake(how):
    protocol = RecordingProtocol()
    async with upgrading(protocol) as (transport, far, task):
        await turns(3)
        far.cut() if how == "close" else far.reset()
        with pytest.raises((ConnectionResetError, ConnectionAbortedError)) as caught:
            await task
        assert caught.value.errno
        await until(lambda: protocol.lost, "the protocol was told")
        assert transport.fileno() == -1


@pytest.mark.parametrize("method", ["close", "abort"])
async def test_a_transport_that_is_closed_in_the_handshake(method):
    async with upgrading() as (transport, _far, task):
        await turns(2)
        getattr(transport, method)()
        with pytest.raises(ConnectionAbortedError, match="closed during the TLS handshake"):
            await task


@pytest.mark.parametrize("how", ["closed", "lost", "ended by the peer"])
async def test_a_connection_that_has_ended_cannot_be_upgraded(how):
    near, other = socket.socketpair()
    protocol = RecordingProtocol(keep_open=True)
    transport, _ = await connect_fd(lambda: protocol, near.detach())
    with FarEnd(other) as far:
        if how == "ended by the peer":
            far.shutdown_write()
            await until(lambda: protocol.count("eof"), "the end was told")
        else:
            transport.close()
        if how == "lost":
            await until(lambda: protocol.lost, "it was lost")
        with pytest.raises(ConnectionResetError):
            await start_tls(transport, protocol, trusting(), server_hostname="localhost")
        await until(lambda: protocol.lost, "it was lost")


async def test_arguments_that_are_of_no_use_leave_the_transport_as_it_was():
    near, other = socket.socketpair()
    protocol = RecordingProtocol()
    transport, _ = await connect_fd(lambda: protocol, near.detach())
    wrong = [
        (TypeError, {"sslcontext": None}),
        (TypeError, {"sslcontext": True}),
        (TypeError, {"transport": asyncio.Transport()}),
        (ValueError, {"server_hostname": None}),
        (ValueError, {"ssl_handshake_timeout": 0}),
        (ValueError, {"ssl_shutdown_timeout": -1}),
    ]
    with FarEnd(other) as far:
        for error, change in wrong:
            options = {"sslcontext": trusting(), "server_hostname": "localhost", **change}
            options = {"transport": transport, **options}
            with pytest.raises(error):
                await start_tls(protocol=protocol, **options)
        assert transport.get_protocol() is protocol
        transport.write(b"plain")
        assert await far.recv_exactly(5) == b"plain"
        transport.write_eof()
        with pytest.raises(RuntimeError, match="write_eof"):
            await start_tls(transport, protocol, trusting(), server_hostname="localhost")
        transport.abort()
    await until(lambda: protocol.lost, "it was lost")


async def test_a_transport_with_one_direction_cannot_be_upgraded():
    reading, writing = os.pipe()
    with FarEnd(writing):
        transport, protocol = await connect_fd(RecordingProtocol, reading)
        with pytest.raises(TypeError, match="not supported by start_tls"):
            await start_tls(transport, protocol, trusting(), server_hostname="localhost")
        transport.abort()
        await until(lambda: protocol.lost, "it was lost")


async def test_loop_start_tls_takes_our_transports():
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return  # uvloop upgrades its own transports only
    near, other = socket.socketpair()
    transport, protocol = await connect_fd(RecordingProtocol, near.detach())
    far = TlsEnd(other, serving())
    task = asyncio.ensure_future(loop.start_tls(transport, protocol, trusting(), server_hostname="localhost"))
    await far.handshake()
    upper = await task
    upper.write(b"secret")
    assert await far.recv_exactly(6) == b"secret"
    upper.abort()
    far.close()
    await until(lambda: protocol.lost, "it was lost")
