"""tls: and tls+listen: endpoints, in programs and in the command."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import subprocess
import sys

import pytest
from certificates import Files, issued, serving, trusting
from test_command import PATIENCE, Server, run, running

from fdtransport import (
    EndpointError,
    connect_fd,
    connect_url,
    listen_url,
    open_connection,
    open_url,
    relay,
    start_server,
)
from fdtransport.testing import FarEnd, RecordingProtocol, TlsEnd, pattern
from fdtransport.testing.observe import until

LOOPBACK = "127.0.0.1"
BULK = pattern(4 << 20)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


async def echo(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def tls_server(context=None):
    async with await start_server(echo, LOOPBACK, 0, ssl=context or serving()) as server:
        yield server.sockets[0].getsockname()[1]
        await until(lambda: not server._connections, "nothing is left of the connections")


async def test_a_url_is_a_verified_connection(files):
    async with tls_server() as port:
        reader, writer = await open_url(f"tls://localhost:{port}?ca={files.ca}&timeout=5&keepalive=60")
        assert writer.get_extra_info("peercert")
        assert writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()


async def test_a_listening_url_serves_tls(files):
    url = f"tls+listen://{LOOPBACK}:0?cert={files.cert}&key={files.key}"
    async with await listen_url(RecordingProtocol, url) as server:
        port = server.sockets[0].getsockname()[1]
        transport, protocol = await connect_url(RecordingProtocol, f"tls://{LOOPBACK}:{port}?ca={files.ca}")
        transport.close()
        await until(lambda: protocol.lost and not server._connections, "both have gone")


async def test_clients_are_asked_for_certificates_of_the_authority(files):
    cert, key = files.of(issued("client@example.org"), "client")
    url = f"tls+listen://{LOOPBACK}:0?cert={files.cert}&key={files.key}&ca={files.ca}"
    async with await listen_url(RecordingProtocol, url) as server:
        address = f"tls://{LOOPBACK}:{server.sockets[0].getsockname()[1]}?ca={files.ca}"
        transport, protocol = await connect_url(RecordingProtocol, f"{address}&cert={cert}&key={key}")
        transport.close()
        await until(lambda: protocol.lost, "it has gone")
        assert protocol.reason is None
        transport, protocol = await connect_url(RecordingProtocol, address)
        await until(lambda: protocol.lost, "the server has ended it")  # TLS 1.3 tells after the handshake
        assert isinstance(protocol.reason, ssl.SSLError)
        assert "CERTIFICATE_REQUIRED" in str(protocol.reason)
        await until(lambda: not server._connections, "both have gone")


async def test_the_name_to_verify_may_be_another_than_the_host(files):
    async with tls_server(serving(issued("example.org"))) as port:
        url = f"tls://{LOOPBACK}:{port}?ca={files.ca}"
        transport, protocol = await connect_url(RecordingProtocol, f"{url}&sni=example.org")
        transport.close()
        await until(lambda: protocol.lost, "it has gone")
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            await connect_url(RecordingProtocol, url)


async def test_only_the_named_option_turns_verification_off_and_it_warns(files, caplog):
    async with tls_server() as port:
        url = f"tls://{LOOPBACK}:{port}"
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
            await connect_url(RecordingProtocol, url)
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect_url(RecordingProtocol, f"{url}?insecure=no")
        assert not caplog.records
        with caplog.at_level(logging.WARNING):
            transport, protocol = await connect_url(RecordingProtocol, f"{url}?insecure")
        assert "takes any certificate" in caplog.text
        transport.close()
        await until(lambda: protocol.lost, "it has gone")


WRONG = [
    ("tls://localhost:1?ca=", "'ca' is the path of a PEM file"),
    ("tls://localhost:1?sni=", "'sni' is a host name"),
    ("tls://localhost:1?verify=no", "unknown option 'verify'"),
    ("tls://localhost", "takes a host and a port"),
    ("tls+listen://localhost:1", "option 'cert' is missing"),
    ("tls+listen://localhost:1?cert=x", "option 'key' is missing"),
    ("tls+listen://localhost:1?insecure", "unknown option 'insecure'"),
    ("tls://localhost:1?cert={cert}", "takes both options, 'cert' and 'key'"),
    ("tls://localhost:1?ca={ca}&insecure", "so that 'ca' is of no use"),
    ("tls://localhost:1?ca={key}", "no certificate in PEM form in '.*server.key'"),
    ("tls://localhost:1?ca={here}", "option 'ca': Is a directory"),
    ("tls://localhost:1?ca={here}/none", "option 'ca': No such file or directory: '.*none'"),
    ("tls+listen://localhost:0?cert={cert}&key={here}/none", "option 'key': No such file or directory"),
    ("tls+listen://localhost:0?cert={cert}&key={other}", "the key in '.*other.key' is not that of"),
    ("tls+listen://localhost:0?cert={ca}&key={ca}", "a certificate and its key in PEM form are wanted in"),
    ("tls+listen://localhost:0?cert={cert}&key={locked}", "the key in '.*locked.key' is encrypted"),
]


def encrypted(key):
    locked = key.with_name("locked.key")
    command = ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked]
    subprocess.run(command, check=True)
    return locked


@pytest.mark.parametrize(("url", "error"), WRONG)
async def test_what_is_wrong_is_told_in_one_line(files, url, error):
    _, other = files.of(issued("example.org"), "other")
    locked = encrypted(files.key)
    names = {"cert": files.cert, "key": files.key, "ca": files.ca, "other": other, "locked": locked}
    url = url.format(here=files.directory, **names)
    opening = listen_url if "+listen" in url else connect_url
    with pytest.raises((EndpointError, OSError), match=error) as caught:
        await opening(asyncio.Protocol, url)
    assert "\n" not in str(caught.value)
    assert caught.value.errno


# -- relay -------------------------------------------------------------------------------------------


async def test_a_relay_between_tcp_and_tls_loses_nothing_in_either_direction(monkeypatch):
    monkeypatch.setattr(
        sys.modules["fdtransport.sides"], "SILENCE", 0.2
    )  # until the TLS side learns of the other's end
    async with tls_server() as port:

        async def serve(reader, writer):
            upstream = await connect(port)
            results.append(await relay((reader, writer), upstream))

        async def connect(port):
            return await open_connection(LOOPBACK, port, ssl=trusting(), server_hostname="localhost")

        results = []
        async with await start_server(serve, LOOPBACK, 0) as server:
            with FarEnd(socket.create_connection(server.sockets[0].getsockname()), timeout=20) as far:
                sending = asyncio.ensure_future(far.send(BULK))
                assert await far.recv_exactly(len(BULK)) == BULK
                await sending
            await until(lambda: results, "the relay is over", 10)
        (result,) = results
        assert result.error is None
        assert (result.a_to_b.engine, result.b_to_a.engine) == ("copy", "callbacks")
        assert (result.a_to_b.bytes, result.b_to_a.bytes) == (len(BULK), len(BULK))


async def test_a_tls_goodbye_ends_the_relay_after_everything_that_came_before(files):
    """TLS has no half-close: the end of one direction is that of both."""
    near, other = socket.socketpair()
    url = f"tls+listen://{LOOPBACK}:0?cert={files.cert}&key={files.key}"
    made = asyncio.get_running_loop().create_future()

    class Quiet(asyncio.Protocol):
        def connection_made(self, transport):
            transport.pause_reading()
            made.set_result(transport)

    async with await listen_url(Quiet, url) as server:
        far = TlsEnd(socket.create_connection(server.sockets[0].getsockname()), trusting(), "localhost")
        await far.handshake()
        plain, _ = await connect_fd(asyncio.Protocol, near.detach())
        running = asyncio.ensure_future(relay(await made, plain))
        with FarEnd(other, timeout=20) as sink:
            sending = asyncio.ensure_future(far.send(BULK))
            assert await sink.recv_exactly(len(BULK)) == BULK
            await sending
            far.close()
            assert await sink.recv() == b""
            result = await running
    assert result.error is None
    assert result.a_to_b.bytes == len(BULK)


# -- the command -------------------------------------------------------------------------------------


@pytest.fixture
def tls_echo():
    """Blocking code: the ssl module's own sockets."""

    def serve(sock):
        with serving().wrap_socket(sock, server_side=True) as secure:
            while data := secure.recv(65536):
                secure.sendall(data)

    with Server(serve) as server:
        yield server


def of(server, host="localhost"):
    return f"tls://{host}:{server.sock.getsockname()[1]}"


def test_the_command_sends_standard_input_through_tls(files, tls_echo):
    status, output, errors = run(
        "--linger", "2", "--stats", "-", f"{of(tls_echo)}?ca={files.ca}", data=BULK[: 1 << 20]
    )
    assert output == BULK[: 1 << 20]
    assert status == 0, errors
    assert "copy" in errors
    assert "callbacks" in errors


def test_the_command_takes_tls_off_in_front_of_a_server(files):
    def serve(sock):
        while data := sock.recv(65536):
            sock.sendall(data)

    listener = f"tls+listen://{LOOPBACK}:0?cert={files.cert}&key={files.key}"
    with Server(serve) as server, running("--one", listener, server.url) as child:
        port = int(child.stderr.readline().rsplit(maxsplit=1)[1])
        with socket.create_connection((LOOPBACK, port)) as sock:
            sock.settimeout(PATIENCE)
            with trusting().wrap_socket(sock, server_hostname="localhost") as secure:
                for _ in range(20):
                    secure.sendall(BULK[:100_000])
                    got = b""
                    while len(got) < 100_000:
                        got += secure.recv(65536)
                    assert got == BULK[:100_000]
                secure.unwrap().close()
        assert child.wait(PATIENCE) == 0
        assert child.stderr.read() == b""


def test_the_command_tells_in_one_line_what_is_wrong_with_the_other_side(files, tls_echo):
    expired = issued("localhost", expired=True)

    def with_expired(sock):
        serving(expired).wrap_socket(sock, server_side=True)

    def plain(sock):
        sock.sendall(b"220 hello, I am a plain server\r\n" * 10)
        sock.recv(10_000)

    def mute(sock):
        sock.recv(10_000)
        sock.recv(10_000)

    def leaves(sock):
        sock.recv(10)

    trust = f"ca={files.ca}"
    with Server(with_expired) as old, Server(plain) as bare, Server(mute) as silent, Server(leaves) as gone:
        cases = [
            (of(tls_echo), "the certificate does not verify: unable to get local issuer certificate"),
            (
                f"{of(tls_echo)}?{trust}&sni=example.org",
                "the certificate does not verify: Hostname mismatch, certificate is not valid for",
            ),
            (f"{of(old)}?{trust}", "the certificate does not verify: certificate has expired"),
            (f"{of(bare)}?{trust}", "the other side does not speak TLS"),
            (f"{of(silent)}?{trust}&timeout=0.3", "Connection timed out"),
            (f"{of(gone)}?{trust}", "Connection reset by peer"),
            (f"{of(tls_echo)}?ca={files.directory}/none", "option 'ca': No such file or directory: "),
        ]
        for url, message in cases:
            status, output, errors = run("-", url)
            assert (status, output) == (1, b"")
            assert errors.startswith(f"fdtransport: cannot open {url}: {message}")
            assert errors.count("\n") == 1


def test_the_command_takes_a_wrong_tls_url_for_a_wrong_command_line():
    status, _, errors = run("tls+listen://localhost:0", "-")
    assert status == 2
    assert errors.count("\n") == 1
    assert "option 'cert' is missing" in errors


def test_the_command_tells_of_a_connection_that_was_cut_short(files):
    def cutting(sock):
        secure = serving().wrap_socket(sock, server_side=True)
        secure.sendall(b"pay 100")
        socket.socket(fileno=secure.detach()).close()

    with Server(cutting) as server:
        status, output, errors = run("-U", "-", f"{of(server)}?ca={files.ca}")
    assert output == b"pay 100"
    assert status == 1
    assert "cut off without TLS's goodbye" in errors
