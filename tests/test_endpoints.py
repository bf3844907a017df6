"""Endpoint strings: the grammar, which touches nothing, and each kind that they open."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import sys
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fdtransport.endpoints import connect_url, listen_url, open_url, parse_url
from fdtransport.errors import EndpointError
from fdtransport.schemes import SCHEMES
from fdtransport.testing import FarEnd, RecordingProtocol, descriptors, pattern
from fdtransport.testing.observe import until
from fdtransport.urls import Address

# -- the grammar -------------------------------------------------------------------------------------

GOOD = [
    ("-", "rw", None, {}),
    ("stdio:", "rw", None, {}),
    ("-?raw", "rw", None, {"raw": True}),
    ("stdio:?raw=yes&escape=0x1d", "rw", None, {"raw": True, "escape": b"\x1d"}),
    ("-?raw&escape=^]", "rw", None, {"raw": True, "escape": b"\x1d"}),
    ("-?escape=^a&raw", "rw", None, {"raw": True, "escape": b"\x01"}),
    ("-?raw&escape=%5E%3F", "rw", None, {"raw": True, "escape": b"\x7f"}),
    ("-?raw&escape=none", "rw", None, {"raw": True, "escape": None}),
    ("fd:3", "rw", 3, {}),
    ("fd:3,4", "rw", (3, 4), {}),
    ("tcp://localhost:80", "rw", Address("localhost", 80), {}),
    ("TCP://localhost:80/", "rw", Address("localhost", 80), {}),
    ("tcp://127.0.0.1:65535", "rw", Address("127.0.0.1", 65535), {}),
    ("tcp://[::1]:80", "rw", Address("::1", 80), {}),
    ("tcp://[fe80::1%25eth0]:80", "rw", Address("fe80::1%eth0", 80), {}),
    ("tcp://b%C3%BCcher.example:80", "rw", Address("bücher.example", 80), {}),
    ("tcp://h:1?timeout=2.5&keepalive=30", "rw", Address("h", 1), {"timeout": 2.5, "keepalive": 30}),
    ("tcp+listen://:0", "rw", Address("", 0), {}),
    ("tcp+listen://127.0.0.1:7000?backlog=5", "rw", Address("127.0.0.1", 7000), {"backlog": 5}),
    ("unix:/run/app.sock", "rw", "/run/app.sock", {}),
    ("unix:///run/app.sock", "rw", "/run/app.sock", {}),
    ("unix:app.sock?timeout=1", "rw", "app.sock", {"timeout": 1.0}),
    ("unix:@name", "rw", "\0name", {}),
    ("unix:%40name", "rw", "@name", {}),
    ("unix+listen:/run/app.sock?mode=660", "rw", "/run/app.sock", {"mode": 0o660}),
    ("unix+listen:@name?backlog=1", "rw", "\0name", {"backlog": 1}),
    (
        "udp://h:53?ttl=3&broadcast&loopback=no&interface=eth0",
        "rw",
        Address("h", 53),
        {"ttl": 3, "broadcast": True, "loopback": False, "interface": "eth0"},
    ),
    (
        "udp+listen://:0?idle=5&sessions=9&join=239.1.2.3",
        "rw",
        Address("", 0),
        {"idle": 5.0, "sessions": 9, "join": "239.1.2.3"},
    ),
    ("unix:/x?type=seqpacket", "rw", "/x", {"type": "seqpacket"}),
    ("unix+listen:/x?type=datagram&idle=1", "rw", "/x", {"type": "datagram", "idle": 1.0}),
    ("fifo:requests", "r", "requests", {}),
    ("pty:/run/ttyV0?mode=660", "rw", "/run/ttyV0", {"mode": 0o660}),
    ("exec:/bin/bash -i?pty", "rw", ["/bin/bash", "-i"], {"pty": True}),
    (
        "exec:sort '-t%3F' \"a b\"?stderr=null&cwd=/tmp/a%26b",
        "rw",
        ["sort", "-t?", "a b"],
        {"stderr": "null", "cwd": "/tmp/a&b"},
    ),
    ("exec:top?pty=yes&size=40x120", "rw", ["top"], {"pty": True, "size": (40, 120)}),
    ("shell:ls *.py | wc -l", "rw", "ls *.py | wc -l", {}),
    ("fifo:/run/requests?eof=reopen&create=0600", "r", "/run/requests", {"eof": "reopen", "create": 0o600}),
    ("file:/etc/hosts", "r", "/etc/hosts", {}),
    ("file:/a%20b%3Fc%25%23", "r", "/a b?c%#", {}),
    ("file:/a+b", "r", "/a+b", {}),
    ("file:/caf%C3%A9", "r", "/café", {}),
    ("file:/caf%E9", "r", "/caf\udce9", {}),
    ("file:/caf\udce9", "r", "/caf\udce9", {}),
    ("file:/x?", "r", "/x", {}),
    ("tun:", "rw", None, {}),
    ("tap:vpn0?up=no&hwaddr=02:00:00:00:00:01", "rw", "vpn0", {"up": False, "hwaddr": "02:00:00:00:00:01"}),
    (
        "tun:vpn%25d?addr=10.9.0.1/24,fd00::1/64&mtu=1400&up&netns=/run/netns/blue&route=10.0.0.0/8&persist",
        "rw",
        "vpn%d",
        {
            "addr": ["10.9.0.1/24", "fd00::1/64"], "mtu": 1400, "up": True, "netns": "/run/netns/blue",
            "route": ["10.0.0.0/8"], "persist": True,
        },
    ),
    ("tun:x?netns=77", "rw", "x", {"netns": 77}),
]


@pytest.mark.parametrize(("url", "mode", "target", "options"), GOOD, ids=[ascii(row[0]) for row in GOOD])
def test_an_endpoint_is_understood(url, mode, target, options):
    endpoint = parse_url(url)
    assert (endpoint.mode, endpoint.target, endpoint.options) == (mode, target, options)
    assert str(endpoint) == url


BAD = [
    ("", "file:/path"),
    ("/etc/hosts", "file:/path"),
    (" tcp://h:1", "tcp://host:port"),
    ("tcp", "tcp://host:port"),
    ("://h:1", "tcp://host:port"),
    ("http://h:80", "tcp://host:port"),
    ("tcp+serve://h:80", "tcp://host:port"),
    ("fifo+listen:/x", r"unix\+listen:/path"),
    ("-?x", "unknown option"),
    ("stdio:x", "nothing comes after"),
    ("-?rare", "allowed here: raw, escape"),
    ("-x", "is no endpoint"),
    ("-?escape=none", "'escape' is of use with 'raw' only"),
    ("-?raw=no&escape=^a", "'escape' is of use with 'raw' only"),
    ("-?raw&escape", "a key, as"),
    ("-?raw&escape=q", "a key, as"),
    ("-?raw&escape=0x100", "a key, as"),
    ("-?raw&listen", "unknown scheme"),
    ("fd:", "fd:N"),
    ("fd:x", "fd:N"),
    ("fd:-1", "fd:N"),
    ("fd:1,2,3", "fd:N"),
    ("fd://3", "fd:N"),
    ("fd:\u0663", "fd:N"),
    ("tun:a/b", "the name of an interface, as in tun:name"),
    ("tap:/b", "the name of an interface, as in tap:name"),
    ("tun://b", "the name of an interface, as in tun:name"),
    ("tun:sixteen-letters-", "15 bytes at most"),
    ("tun:a b", "15 bytes at most"),
    ("tun:x?addr=10.9.0.1/33", "an address of an interface, as 10.9.0.1/24"),
    ("tun:x?addr=", "an address of an interface, as 10.9.0.1/24"),
    ("tun:x?mtu=67", "from 68 to 65535"),
    ("tun:x?hwaddr=02:00:00:00:00:01", "allowed here: addr, mtu"),
    ("tap:x?hwaddr=01:00:00:00:00:01", "a hardware address, as 02:"),
    ("tun:x?route=10.0.0.1/8", "a network, as 10.0.0.0/8"),
    ("tun:x?netns=", "a network namespace: a path"),
    ("tcp://h", "tcp://host:port"),
    ("tcp:h:80", "tcp://host:port"),
    ("tcp://:80", "host is missing"),
    ("tcp://h:", "tcp://host:port"),
    ("tcp://h:0", "1 to 65535"),
    ("tcp://h:65536", "0 to 65535"),
    ("tcp://h:-1", "tcp://host:port"),
    ("tcp://h:80/path", "tcp://host:port"),
    ("tcp://user@h:80", "tcp://host:port"),
    ("tcp://::1:80", r"\[::1\]"),
    ("tcp://[::1:80", "IPv6"),
    ("tcp://[::g]:80", "IPv6|not permitted|Only hex"),
    ("tcp://[v1.x]:80", "."),
    ("tcp://a..b:80", "label"),
    ("tcp+listen://h", r"tcp\+listen://host:port"),
    ("tcp://h:1?timeout=", "seconds above 0"),
    ("tcp://h:1?timeout=0", "seconds above 0"),
    ("tcp://h:1?timeout=nan", "seconds above 0"),
    ("tcp://h:1?timeout=-1", "seconds above 0"),
    ("tcp://h:1?keepalive=0", "from 1 to 32767"),
    ("tcp://h:1?keepalive=1&keepalive=2", "given twice"),
    ("tcp://h:1?backlog=1", "keepalive, timeout"),
    ("tcp://h:1?a&&b", "keepalive, timeout"),
    ("udp://h:0", "1 to 65535"),
    ("udp://h:1?idle=1", "broadcast, timeout"),
    ("udp://h:1?ttl=256", "from 0 to 255"),
    ("udp://h:1?interface=a/b", "name of an interface"),
    ("udp+listen://h:1?join=127.0.0.1", "multicast address"),
    ("udp+listen://h:1?sessions=0", "from 1 to"),
    ("unix:/x?type=raw", "stream or datagram or seqpacket"),
    ("unix+listen:/x?idle=1", "no use with this type"),
    ("unix+listen:/x?type=datagram&backlog=1", "no use with this type"),
    ("unix:", "path is missing"),
    ("unix:@", "abstract name is missing"),
    ("unix://host/x", "no host"),
    ("unix:/x%00y", "NUL"),
    ("unix:/x\0y", "control characters"),
    ("unix:/x\ny", "%0A"),
    ("unix:/x%y", "%25"),
    ("unix:/x#y", "%23"),
    ("unix+listen:/x?mode=999", "octal"),
    ("unix+listen:/x?mode=7777", "octal"),
    ("fifo:/x?eof=maybe", "close or event or reopen"),
    ("file:", "path is missing"),
    ("file:/x?append", "no use for reading"),
    ("file:/x?exec=/bin/sh", "append, create"),
    ("file:/\ud800", "half a character"),
    ("exec:", "command is missing, as in exec:PROGRAM ARGUMENTS"),
    ("shell:%20", "command is missing"),
    ("exec://host/ls", "a command and no host"),
    ("exec:'' x", "no name"),
    ("exec:echo 'a", "no closing quotation"),
    ("exec:echo a\\", "no escaped character"),
    ("exec:date +%s", "%25"),
    ("exec:x%00y", "NUL"),
    ("exec:echo #", "%23"),
    ("exec:x?bogus", r"pty, size, cwd, stderr \(a \? of the command itself is written %3F\)"),
    ("exec:echo what?", "no options follow; a . of the command itself is written %3F"),
    ("shell:ls *.?", "no options follow"),
    ("exec:x?size=24x80", "'size' is of a terminal"),
    ("exec:x?pty=no&size=24x80", "'size' is of a terminal"),
    ("exec:x?pty&size=0x80", "as in 24x80, not '0x80'"),
    ("exec:x?pty&size=24x65536", "as in 24x80"),
    ("exec:x?pty&size=80", "as in 24x80"),
    ("exec:x?pty&stderr=null", "everything goes to the terminal"),
    ("exec:x?stderr=2", "inherit or stdout or null"),
    ("exec:x?cwd=", "path of a directory"),
    ("exec+listen:x", r"unix\+listen:/path"),
]


@pytest.mark.parametrize(("url", "says"), BAD, ids=[ascii(row[0]) for row in BAD])
def test_what_is_no_endpoint_is_refused_in_one_line_that_names_what_is_allowed(url, says):
    with pytest.raises(EndpointError, match=says) as caught:
        parse_url(url)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.errno == errno.EINVAL
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("wrong", [None, 3, b"tcp://h:1", ["-"]])
def test_an_endpoint_is_a_string(wrong):
    with pytest.raises(TypeError, match="an endpoint is a string"):
        parse_url(wrong)


@pytest.mark.parametrize(
    ("url", "mode"), [("fifo:/x", "rw"), ("file:/x", "rw"), ("file:/x", "a"), ("-", "x")]
)
def test_a_mode_that_the_kind_has_not_is_refused(url, mode):
    with pytest.raises(EndpointError, match="cannot be opened with mode"):
        parse_url(url, mode)


def test_options_for_writing_are_understood_when_writing():
    assert parse_url("file:/x?append&create=new", "w").options == {"append": True, "create": "new"}
    assert parse_url("file:/x?append=no", "w").options == {"append": False}
    with pytest.raises(EndpointError, match="no use for writing"):
        parse_url("fifo:/x?eof=close", "w")


_touched: list[str] = []
_watching = False


def _audit(event: str, _args: object) -> None:
    if _watching and event.split(".")[0] in ("open", "os", "socket", "subprocess", "shutil", "import"):
        _touched.append(event)


sys.addaudithook(_audit)

_pieces = st.sampled_from(
    [
        *SCHEMES, *"-:/?&=#%@[],+.\0\n \ud800é", "//", "+listen", "://", "[::1]", "localhost", "80", "0", "3",
        "%00", "%2e%2e", "..", "/etc/passwd", "/tmp/x", "append", "create=new", "mode=600", "timeout=1",
        "user@", "eof=close", "exec:/bin/sh", "pty", "size=24x80", "'", '"', "\\",
        "$(id)", "`id`", "|id", "file:/x", "99999", "keepalive=1",
        "backlog=1",
    ]
)  # fmt: skip


@given(
    st.one_of(
        st.text(st.characters(codec=None)),
        st.lists(_pieces, max_size=10).map("".join),
        st.tuples(st.sampled_from([f"{name}:" for name in SCHEMES]), st.text()).map("".join),
    ),
    st.sampled_from([None, "r", "w", "rw"]),
)
@example("tcp://[::1]]:80", None)
@example("tcp://\u2100:80", None)
def test_understanding_raises_nothing_else_and_touches_nothing(url, mode):
    global _watching
    _touched.clear()
    said = ""
    _watching = True
    try:
        parse_url(url, mode)
    except EndpointError as exc:
        said = str(exc)
    finally:
        _watching = False
    assert len(said.splitlines()) <= 1
    assert not _touched


# -- what they open ----------------------------------------------------------------------------------


async def exchange(transport, protocol, far):
    """Bytes both ways between a transport and its far end, and the end."""
    transport.write(b"there")
    assert await far.recv_exactly(5) == b"there"
    await far.send(b"back")
    far.shutdown_write()
    await until(lambda: protocol.lost, "the end has passed through")
    assert b"".join(data for name, data in protocol.events if name == "data") == b"back"


async def accepted(listener):
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    sock, _ = await loop.sock_accept(listener)
    return FarEnd(sock)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_tcp_connects(host):
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with socket.create_server((host.strip("[]"), 0), family=family) as listener:
        port = listener.getsockname()[1]
        transport, protocol = await connect_url(
            RecordingProtocol, f"tcp://{host}:{port}?keepalive=77&timeout=5"
        )
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with await accepted(listener) as far:
            await exchange(transport, protocol, far)


@pytest.mark.parametrize("abstract", [False, True])
async def test_unix_connects(tmp_path, abstract):
    name = f"\0fdtransport-{os.getpid()}" if abstract else str(tmp_path / "a b.sock")
    url = f"unix:@{name[1:]}" if abstract else f"unix:{name.replace(' ', '%20')}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        transport, protocol = await connect_url(RecordingProtocol, url)
        with await accepted(listener) as far:
            await exchange(transport, protocol, far)


async def test_fd_takes_a_descriptor_over():
    ours, other = socket.socketpair()
    with FarEnd(other) as far:
        transport, protocol = await connect_url(RecordingProtocol, f"fd:{ours.detach()}")
        await exchange(transport, protocol, far)


async def test_fd_takes_a_pair_over():
    near_read, far_write = os.pipe()
    far_read, near_write = os.pipe()
    with FarEnd((far_read, far_write)) as far:
        transport, protocol = await connect_url(RecordingProtocol, f"fd:{near_read},{near_write}")
        await exchange(transport, protocol, far)


async def test_a_virtual_serial_port_is_opened_by_its_link(tmp_path):
    link = tmp_path / "ttyV0"
    reader, writer = await open_url(f"pty:{link}?mode=600")
    port = os.open(link, os.O_RDWR | os.O_NOCTTY)
    os.write(port, b"AT\r")
    assert await reader.readuntil(b"\r") == b"AT\r"
    writer.write(b"OK\r")
    assert os.read(port, 10) == b"OK\r"
    os.close(port)
    writer.close()
    await writer.wait_closed()
    assert not link.is_symlink()


async def test_a_fifo_is_read_and_written(tmp_path):
    path = tmp_path / "fifo"
    reader, writer = await open_url(f"fifo:{path}?create=600")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    _, other = await open_url(f"fifo:{path}", mode="w")
    other.write(b"request\n")
    other.close()
    assert await reader.read() == b"request\n"
    writer.close()
    await asyncio.gather(writer.wait_closed(), other.wait_closed())


async def test_a_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(pattern(300_000))
    reader, writer = await open_url(f"file:{tmp_path}/file")
    assert await reader.read() == pattern(300_000)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("before", "options", "after"),
    [
        (None, "", b"new"),
        (b"longer before", "", b"new"),
        (b"old", "?append", b"oldnew"),
        (None, "?append", b"new"),
        (b"old", "?create=no", b"new"),
        (None, "?create=new", b"new"),
        (None, "?create=no", FileNotFoundError),
        (b"old", "?create=new", FileExistsError),
        (b"old", "?append&create=new", FileExistsError),
    ],
)
async def test_a_file_is_written(tmp_path, before, options, after):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    url = f"file:{path}{options}"
    if isinstance(after, type):
        with pytest.raises(after):
            await open_url(url, mode="w")
        assert (path.read_bytes() if path.exists() else None) == before
        return
    _, writer = await open_url(url, mode="w")
    writer.write(b"new")
    writer.close()
    await writer.wait_closed()
    assert path.read_bytes() == after


def refuses():
    raise LookupError("no protocol today")


@pytest.mark.parametrize("cancel", [False, True], ids=["the factory fails", "cancelled"])
@pytest.mark.parametrize(
    ("options", "before", "after"),
    [("", None, None), ("?create=new", None, None), ("?append", b"old", b"old"), ("", b"", b"")],
)
async def test_only_a_new_file_goes_again_when_nothing_becomes_of_it(
    tmp_path, options, before, after, cancel
):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    open_before = descriptors()
    opening = connect_url(asyncio.Protocol if cancel else refuses, f"file:{path}{options}", mode="w")
    if cancel:
        task = asyncio.ensure_future(opening)
        await asyncio.sleep(0)
        assert path.exists()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(LookupError):
            await opening
    assert (path.read_bytes() if path.exists() else None) == after
    assert descriptors() == open_before


async def test_a_file_that_has_taken_the_place_of_a_new_one_stays(tmp_path):
    path = tmp_path / "file"

    def replaces():
        path.unlink()
        path.write_bytes(b"somebody's")
        refuses()

    with pytest.raises(LookupError):
        await connect_url(replaces, f"file:{path}", mode="w")
    assert path.read_bytes() == b"somebody's"


async def test_a_link_that_leads_nowhere_yet_leads_to_a_new_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    _, writer = await open_url(f"file:{tmp_path}/link", mode="w")
    writer.write(b"new")
    writer.close()
    await writer.wait_closed()
    assert (tmp_path / "file").read_bytes() == b"new"


async def test_a_directory_is_no_file(tmp_path):
    for mode in ("r", "w"):
        with pytest.raises(IsADirectoryError):
            await connect_url(asyncio.Protocol, f"file:{tmp_path}", mode=mode)


async def test_stdio_is_opened_as_far_as_it_is_wanted(monkeypatch):
    for mode, wanted in (("rw", (0, 1)), ("r", (0, None)), ("w", (None, 1))):
        asked = []

        async def connect_stdio(factory, *files, asked=asked):
            asked.append(files)
            return None, factory()

        monkeypatch.setattr("fdtransport.schemes.connect_stdio", connect_stdio)
        await connect_url(asyncio.Protocol, "-", mode=mode)
        assert asked == [wanted]


async def test_nobody_there_is_an_error_and_leaves_nothing(tmp_path):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and nobody listens
        port = deaf.getsockname()[1]
        for url in (f"tcp://127.0.0.1:{port}", f"unix:{tmp_path}/none", f"fifo:{tmp_path}/none", "fd:987654"):
            with pytest.raises(OSError, match=r".") as caught:
                await connect_url(asyncio.Protocol, url)
            assert not isinstance(caught.value, EndpointError)


async def test_timeout_bounds_a_connect(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "busy"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "busy"))  # the backlog is full now
            with pytest.raises(TimeoutError) as caught:
                await connect_url(asyncio.Protocol, f"unix:{tmp_path}/busy?timeout=0.05")
    assert caught.value.errno == errno.ETIMEDOUT


async def test_cancelling_a_connect_leaves_nothing(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    task = asyncio.ensure_future(connect_url(asyncio.Protocol, f"fifo:{tmp_path}/fifo", mode="w"))
    await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_reader_cannot_go_on_after_an_end():
    with pytest.raises(EndpointError, match="close or reopen"):
        await open_url("fifo:/x?eof=event")


# -- listening ---------------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def echoed(url):
    reader, writer = await open_url(url)
    writer.write(b"hello")
    writer.write_eof()
    assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()


async def test_tcp_listens_and_what_it_accepts_is_kept_alive():
    made = []

    class Kept(Echo):
        def connection_made(self, transport):
            super().connection_made(transport)
            sock = transport.get_extra_info("socket")
            made.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
            made.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    async with await listen_url(Kept, "tcp+listen://127.0.0.1:0?keepalive=55&backlog=3") as server:
        await echoed(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert made == [55, 1]


async def test_tcp_listens_on_every_interface_without_a_host():
    async with await listen_url(Echo, "tcp+listen://:0") as server:
        for sock in server.sockets:
            port = sock.getsockname()[1]
            await echoed(f"tcp://{'[::1]' if sock.family == socket.AF_INET6 else '127.0.0.1'}:{port}")


async def test_unix_listens_with_the_permissions_that_are_wanted(tmp_path):
    async with await listen_url(Echo, f"unix+listen:{tmp_path}/sock?mode=666"):
        assert stat.S_IMODE(os.stat(tmp_path / "sock").st_mode) == 0o666
        await echoed(f"unix:{tmp_path}/sock")
    assert not (tmp_path / "sock").exists()
    async with await listen_url(Echo, f"unix+listen:{tmp_path}/sock"):
        assert stat.S_IMODE(os.stat(tmp_path / "sock").st_mode) == 0o600
    async with await listen_url(Echo, f"unix+listen:@fdtransport-{os.getpid()}-listen"):
        await echoed(f"unix:@fdtransport-{os.getpid()}-listen")


async def test_what_listens_is_not_connected_to_and_the_other_way_round():
    with pytest.raises(EndpointError, match="without \\+listen"):
        await connect_url(asyncio.Protocol, "tcp+listen://127.0.0.1:0")
    with pytest.raises(EndpointError, match=r"tcp\+listen://.* or udp\+listen://.* or unix\+listen:/path"):
        await listen_url(asyncio.Protocol, "tcp://127.0.0.1:1")
