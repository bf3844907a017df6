"""TCP and UNIX sockets: the same as asyncio where asyncio is right, and what it has not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import ssl
import struct
import sys
import weakref
from asyncio.trsock import TransportSocket

import pytest

import fdtransport
from fdtransport import CloseReason, DescriptorInUseError, StreamTransport
from fdtransport.sockets import SocketTransport
from fdtransport.testing import RecordingProtocol, descriptors
from fdtransport.testing.observe import until

LOOPBACK = "127.0.0.1"
BULK = bytes(range(256)) * 8192


@pytest.fixture
def listener():
    with socket.create_server((LOOPBACK, 0)) as sock:
        yield sock


@pytest.fixture
def pair():
    """Two connected UNIX sockets."""
    near, far = socket.socketpair()
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def tcp_pair(listener):
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    yield near, far
    near.close()
    far.close()


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def connect(sock, **hooks):
    transport, protocol = await fdtransport.create_connection(lambda: RecordingProtocol(**hooks), sock=sock)
    return transport, protocol


# -- the same as asyncio ----------------------------------------------------------------------------


class Stock:
    """asyncio's own functions, under the names of ours."""

    def __init__(self):
        loop = asyncio.get_running_loop()
        self.create_connection = loop.create_connection
        self.create_server = loop.create_server
        self.create_unix_connection = loop.create_unix_connection
        self.create_unix_server = loop.create_unix_server
        self.open_connection = asyncio.open_connection
        self.start_server = asyncio.start_server
        self.open_unix_connection = asyncio.open_unix_connection
        self.start_unix_server = asyncio.start_unix_server


class Ends:
    """A server and clients of either side's functions, and one log of all that happens."""

    def __init__(self, functions, family, directory):
        self.functions = functions
        self.unix = family == "unix"
        self.path = str(directory / f"{type(functions).__name__}")
        self.log = []
        self.guests = []

    def protocol(self, name, **hooks):
        log, ends = self.log, self

        class Logged(RecordingProtocol):
            def connection_made(self, transport):
                log.append((name, "made", transport.is_closing()))
                super().connection_made(transport)

            def eof_received(self):
                log.append((name, "eof"))
                return super().eof_received()

            def connection_lost(self, exc):
                log.append((name, "lost", type(exc), getattr(exc, "errno", None)))
                log.append((name, "received", len(self.received), hash(self.received)))
                super().connection_lost(exc)

        protocol = Logged(**hooks)
        if name == "server":
            ends.guests.append(protocol)
        return protocol

    async def serve(self, **hooks):
        def factory():
            return self.protocol("server", **hooks)

        if self.unix:
            return await self.functions.create_unix_server(factory, self.path)
        return await self.functions.create_server(factory, LOOPBACK, 0)

    async def dial(self, server, **hooks):
        def factory():
            return self.protocol("client", **hooks)

        accepted = len(self.guests) + 1
        if self.unix:
            made = await self.functions.create_unix_connection(factory, self.path)
        else:
            made = await self.functions.create_connection(factory, *server.sockets[0].getsockname())
        await until(lambda: len(self.guests) >= accepted and self.guests[-1].count("made"), "it was accepted")
        return made

    async def end(self, server, *protocols):
        """Wait for the end of everything."""
        server.close()
        for protocol in (*protocols, *self.guests):
            await until(lambda protocol=protocol: protocol.lost, "all ends were lost")
        await server.wait_closed()
        # Which side is told first is chance.
        return sorted(self.log, key=repr)


async def echo_until_half_close(ends):
    def answer(protocol, data):
        protocol.transport.write(data)

    server = await ends.serve(data=answer, keep_open=True, eof=lambda p: p.transport.write_eof() or True)
    transport, protocol = await ends.dial(server, keep_open=True)
    transport.write(BULK)
    transport.writelines([b"and", bytearray(b"some"), memoryview(b"more")])
    ends.log.append(("can_write_eof", transport.can_write_eof()))
    transport.write_eof()
    await until(lambda: protocol.count("eof"), "the echo ended", 10)
    ends.log.append(("closing", transport.is_closing()))
    with pytest.raises(RuntimeError):
        transport.write(b"too late")
    transport.close()
    ends.guests[0].transport.close()
    return await ends.end(server, protocol)


async def a_false_answer_to_the_end_closes(ends):
    server = await ends.serve()
    transport, protocol = await ends.dial(server)
    transport.write(b"last words")
    transport.write_eof()
    return await ends.end(server, protocol)


async def the_server_closes_after_writing_much(ends):
    def farewell(protocol):
        protocol.transport.write(BULK)
        protocol.transport.close()
        protocol.transport.close()

    server = await ends.serve(made=farewell)
    _, protocol = await ends.dial(server)
    return await ends.end(server, protocol)


async def the_server_aborts(ends):
    server = await ends.serve(made=lambda protocol: protocol.transport.abort())
    _, protocol = await ends.dial(server)
    return await ends.end(server, protocol)


async def reading_is_paused_from_the_start(ends):
    def pause(protocol):
        protocol.transport.pause_reading()
        protocol.transport.pause_reading()

    server = await ends.serve(made=pause)
    transport, protocol = await ends.dial(server)
    transport.write(b"hello")
    transport.write_eof()
    await turns(20)
    guest = ends.guests[0]
    ends.log.append(("paused", guest.received, guest.transport.is_reading()))
    guest.transport.resume_reading()
    guest.transport.resume_reading()
    return await ends.end(server, protocol)


async def an_exception_in_data_received_ends_it(ends):
    def fail(protocol, data):
        raise LookupError("a bug")

    server = await ends.serve(data=fail)
    transport, protocol = await ends.dial(server)
    transport.write(b"hello")
    return await ends.end(server, protocol)


async def writing_is_paused_and_resumed(ends):
    server = await ends.serve(made=lambda protocol: protocol.transport.pause_reading())
    transport, protocol = await ends.dial(server)
    transport.set_write_buffer_limits(high=100_000, low=10_000)
    ends.log.append(("limits", transport.get_write_buffer_limits()))
    for _ in range(64):
        transport.write(bytes(256 * 1024))
    ends.log.append(("paused", protocol.names, transport.get_write_buffer_size() > 100_000))
    ends.guests[0].transport.resume_reading()
    await until(lambda: "resumed" in protocol.names, "it was resumed", 10)
    transport.close()
    return await ends.end(server, protocol)


async def extra_info_is_there_and_stays(ends):
    server = await ends.serve()
    transport, protocol = await ends.dial(server)
    served = ends.guests[0].transport
    for mine, theirs in ((transport, served), (served, transport)):
        ends.log.append(mine.get_extra_info("sockname") == theirs.get_extra_info("peername"))
        ends.log.append(mine.get_extra_info("nothing", "default"))
        sock = mine.get_extra_info("socket")
        ends.log.append([type(sock), sock.family, sock.type, sock.gettimeout()])
        ends.log.append(sock.getsockname() == mine.get_extra_info("sockname"))
        if not ends.unix:
            ends.log.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    before = [transport.get_extra_info(name) for name in ("sockname", "peername", "socket")]
    transport.close()
    await until(lambda: protocol.lost and ends.guests[0].lost, "both were lost")
    ends.log.append(before == [transport.get_extra_info(name) for name in ("sockname", "peername", "socket")])
    ends.log.append(served.get_extra_info("sockname") is not None)
    ends.log.append(before[2].fileno())
    return await ends.end(server, protocol)


async def the_server_tells_its_state(ends):
    server = await ends.serve()
    log = [server.is_serving(), len(server.sockets), isinstance(server, asyncio.AbstractServer)]
    await server.start_serving()
    server.close()
    server.close()
    await server.wait_closed()
    return [*log, server.is_serving(), server.sockets]


async def many_clients_at_once(ends):
    server = await ends.serve(data=lambda protocol, data: protocol.transport.write(data))
    dialled = await asyncio.gather(*(ends.dial(server) for _ in range(50)))
    for number, (transport, _) in enumerate(dialled):
        transport.write(b"%d" % number)
    await until(lambda: all(protocol.received for _, protocol in dialled), "all were answered")
    for transport, _ in dialled:
        transport.close()
    return await ends.end(server, *(protocol for _, protocol in dialled))


SCENARIOS = [
    echo_until_half_close,
    a_false_answer_to_the_end_closes,
    the_server_closes_after_writing_much,
    the_server_aborts,
    reading_is_paused_from_the_start,
    an_exception_in_data_received_ends_it,
    writing_is_paused_and_resumed,
    extra_info_is_there_and_stays,
    the_server_tells_its_state,
    many_clients_at_once,
]


def on_asyncio(scenario):
    """What the coroutine function gives on asyncio's own loop."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.get_loop().set_exception_handler(lambda *_: None)
        return runner.run(scenario())


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_program_sees_the_same_with_asyncios_functions_and_with_ours(scenario, family, loop, tmp_path):
    async def theirs():
        return await scenario(Ends(Stock(), family, tmp_path))

    assert loop.run_until_complete(scenario(Ends(fdtransport, family, tmp_path))) == on_asyncio(theirs)


async def line_by_line(functions, unix, path):
    log = []

    async def serve(reader, writer):
        kinds = isinstance(reader, asyncio.StreamReader), isinstance(writer, asyncio.StreamWriter)
        log.append(("server", kinds))
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        log.append(("server", reader.at_eof()))
        writer.write(b"bye")
        writer.close()
        await writer.wait_closed()
        log.append(("server", writer.is_closing()))

    if unix:
        server = await functions.start_unix_server(serve, path, limit=1000)
        reader, writer = await functions.open_unix_connection(path, limit=2000)
    else:
        server = await functions.start_server(serve, LOOPBACK, 0, limit=1000)
        reader, writer = await functions.open_connection(*server.sockets[0].getsockname(), limit=2000)
    writer.write(b"one\ntwo\nthree")
    log.append(await reader.readline())
    log.append(await reader.readuntil(b"O"))
    log.append(await reader.readexactly(1))
    writer.write_eof()
    log.append(await reader.read())
    log.append((reader.at_eof(), writer.can_write_eof(), writer.is_closing()))
    writer.close()
    await writer.wait_closed()
    log.append((writer.is_closing(), writer.get_extra_info("sockname") is not None))
    server.close()
    await server.wait_closed()
    return log


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_streams_see_the_same_with_asyncios_functions_and_with_ours(unix, loop, tmp_path):
    async def theirs():
        return await line_by_line(Stock(), unix, str(tmp_path / "theirs"))

    ours = loop.run_until_complete(line_by_line(fdtransport, unix, str(tmp_path / "ours")))
    assert sorted(ours, key=repr) == sorted(on_asyncio(theirs), key=repr)


async def test_an_exception_in_a_callback_for_clients_is_reported_and_closes(reports):
    async def fail(reader, writer):
        raise LookupError("a bug")

    async with await fdtransport.start_server(fail, LOOPBACK, 0) as server:
        reader, writer = await fdtransport.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    assert [type(context["exception"]) for context in reports] == [LookupError]


# -- bad input --------------------------------------------------------------------------------------


def _sockets():
    return {
        "datagram": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix datagram": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "packets": socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        "tcp": socket.socket(),
    }


BAD = [
    ("create_connection", (), {}),
    ("create_connection", (LOOPBACK, 1), {"sock": "tcp"}),
    ("create_connection", (), {"sock": "datagram"}),
    ("create_connection", (), {"sock": "packets"}),
    ("create_server", (), {}),
    ("create_server", (LOOPBACK, 0), {"sock": "tcp"}),
    ("create_server", (), {"sock": "datagram"}),
    ("create_unix_connection", (), {}),
    ("create_unix_connection", ("/nowhere",), {"sock": "tcp"}),
    ("create_unix_connection", (), {"sock": "tcp"}),
    ("create_unix_connection", (), {"sock": "unix datagram"}),
    ("create_unix_connection", ("/nowhere/at/all",), {}),
    ("create_unix_server", (), {}),
    ("create_unix_server", ("/nowhere",), {"sock": "tcp"}),
    ("create_unix_server", (), {"sock": "tcp"}),
    ("create_unix_server", ("/nowhere/at/all",), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), BAD)
def test_bad_input_gives_asyncios_error_and_touches_nothing(name, arguments, options, loop):
    made = []

    async def error(functions):
        mine = _sockets()
        chosen = {key: mine[value] for key, value in options.items()}
        with pytest.raises((ValueError, OSError)) as caught:
            await getattr(functions, name)(lambda: made.append(1), *arguments, **chosen)
        assert all(sock.fileno() >= 0 and os.get_blocking(sock.fileno()) for sock in mine.values())
        for sock in mine.values():
            sock.close()
        text = str(caught.value).split(", got")[0].removesuffix(": '/nowhere/at/all'")  # ours names the path
        return caught.type, getattr(caught.value, "errno", None), text

    async def theirs():
        return await error(Stock())

    assert loop.run_until_complete(error(fdtransport)) == on_asyncio(theirs)
    assert not made


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_sockets_that_are_there_already_can_be_given(family, listener, tmp_path):
    if family == "tcp":
        given, near = listener, socket.create_connection(listener.getsockname())
        server = await fdtransport.start_server(shout, sock=given)
        reader, writer = await fdtransport.open_connection(sock=near)
    else:
        given, near = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        given.bind(str(tmp_path / "socket"))
        server = await fdtransport.start_unix_server(shout, sock=given)
        near.connect(str(tmp_path / "socket"))
        reader, writer = await fdtransport.open_unix_connection(sock=near)
    writer.write(b"hello\n")
    assert await reader.read() == b"HELLO\n"
    writer.close()
    await writer.wait_closed()
    assert near.fileno() == -1
    server.close()
    assert given.fileno() == -1


async def shout(reader, writer):
    writer.write((await reader.readline()).upper())
    writer.close()


async def test_a_tls_socket_is_refused(tcp_pair):
    near, _ = tcp_pair
    context = ssl.create_default_context()
    wrapped = context.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
    for function in (fdtransport.create_connection, fdtransport.create_server):
        with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
            await function(asyncio.Protocol, sock=wrapped)
    wrapped.close()


async def test_a_listening_socket_is_no_connection(listener):
    with pytest.raises(ValueError, match="this one listens"):
        await fdtransport.create_connection(asyncio.Protocol, sock=listener)
    assert os.get_blocking(listener.fileno())


async def test_a_socket_that_is_under_a_transport_is_refused_and_stays_there(pair):
    near, far = pair
    transport, protocol = await connect(near)
    with pytest.raises(DescriptorInUseError):
        await fdtransport.create_connection(asyncio.Protocol, sock=near)
    far.send(b"still here")
    await until(lambda: protocol.received == b"still here", "it arrived")
    await transport.aclose()


async def test_a_closed_socket_is_refused(pair):
    near, _ = pair
    near.close()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await fdtransport.create_connection(asyncio.Protocol, sock=near)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_that_is_no_limit_is_refused(limit, listener):
    with pytest.raises(ValueError, match="Limit"):
        await fdtransport.open_connection(*listener.getsockname(), limit=limit)


async def test_a_factory_that_raises_leaves_a_given_socket_as_it_was(pair):
    near, far = pair

    def factory():
        raise LookupError("no protocol today")

    with pytest.raises(LookupError):
        await fdtransport.create_connection(factory, sock=near)
    far.send(b"untouched")
    assert near.recv(20) == b"untouched"


async def test_a_factory_that_raises_leaves_nothing_open(listener, tmp_path):
    def factory():
        raise LookupError("no protocol today")

    with pytest.raises(LookupError):
        await fdtransport.create_connection(factory, *listener.getsockname())
    async with await fdtransport.create_unix_server(asyncio.Protocol, tmp_path / "socket"):
        with pytest.raises(LookupError):
            await fdtransport.create_unix_connection(factory, tmp_path / "socket")


async def test_cancelling_with_a_given_socket_leaves_it_as_it_was(pair):
    near, far = pair
    task = asyncio.ensure_future(fdtransport.create_connection(asyncio.Protocol, sock=near))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert os.get_blocking(near.fileno())
    far.send(b"untouched")
    assert near.recv(20) == b"untouched"


def _cancelled_at(loop, make, step):
    """Run the coroutine of *make* for *step* turns, then cancel it; False when it was done by then."""

    async def main():
        task = asyncio.ensure_future(make())
        for _ in range(step):
            await asyncio.sleep(0)
            if task.done():
                transport, _ = task.result()
                transport.close()
                await turns()
                return False
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            transport, _ = await task  # it may have been done in this very turn
            transport.close()
        await turns()
        return True

    return loop.run_until_complete(main())


@pytest.mark.parametrize("way", ["tcp", "name", "happy eyeballs", "unix", "streams"])
def test_cancelling_at_any_turn_of_the_loop_leaves_nothing_open(way, listener, loop, tmp_path):
    host, port = listener.getsockname()
    path = str(tmp_path / "socket")
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen(200)

    async def streams():
        _, writer = await fdtransport.open_connection(host, port)
        return writer.transport, None

    makers = {
        "tcp": lambda: fdtransport.create_connection(asyncio.Protocol, host, port),
        "name": lambda: fdtransport.create_connection(
            asyncio.Protocol, "localhost", port, family=socket.AF_INET
        ),
        "happy eyeballs": lambda: fdtransport.create_connection(
            asyncio.Protocol, "localhost", port, happy_eyeballs_delay=0.001
        ),
        "unix": lambda: fdtransport.create_unix_connection(asyncio.Protocol, path),
        "streams": streams,
    }
    with unix:
        loop.run_until_complete(loop.getaddrinfo("localhost", port))  # the resolver's thread is there
        # A name takes as many turns as its thread takes time: some steps are enough for it.
        steps = range(30)
        before = descriptors()
        went_on = [step for step in steps if _cancelled_at(loop, makers[way], step)]
        gc.collect()
        assert descriptors() == before
        assert went_on
        loop.run_until_complete(loop.shutdown_default_executor())


# -- the transport ----------------------------------------------------------------------------------


async def test_a_bare_descriptor_is_as_good_as_a_socket_object(tcp_pair):
    near, far = tcp_pair
    fd = near.detach()
    loop = asyncio.get_running_loop()
    protocol = RecordingProtocol()
    transport = SocketTransport(loop, fd, protocol)
    await until(lambda: protocol.names == ["made"], "it was made")
    far.send(b"hello")
    await until(lambda: protocol.received == b"hello", "it arrived")
    assert transport.get_extra_info("peername") == far.getsockname()
    assert transport.get_extra_info("sockname") == far.getpeername()
    assert transport.get_extra_info("socket").fileno() == transport.get_extra_info("fd") == fd
    assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    transport.close()
    await until(lambda: protocol.lost, "it was lost")
    assert transport.get_extra_info("socket").fileno() == -1
    assert far.recv(1) == b""


async def test_a_bare_descriptor_comes_back_from_detach_as_a_number(pair):
    near, far = pair
    fd = near.detach()
    protocol = RecordingProtocol()
    transport = SocketTransport(asyncio.get_running_loop(), fd, protocol)
    assert transport.get_extra_info("socket").fileno() == fd
    await turns()
    transport.write(b"before")
    assert transport.detach() == (fd, b"", b"")
    await until(lambda: protocol.lost, "it was lost")
    del transport
    gc.collect()
    assert far.recv(10) == b"before"
    os.write(fd, b"after")
    assert far.recv(10) == b"after"
    assert os.get_blocking(fd)
    os.close(fd)


async def test_a_bare_descriptor_that_is_refused_stays_open():
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    read, write = os.pipe()
    for fd in (datagram.fileno(), read):
        with pytest.raises((ValueError, OSError)):
            SocketTransport(asyncio.get_running_loop(), fd, asyncio.Protocol())
        gc.collect()
        assert os.get_blocking(fd)
    datagram.close()
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("object_", [False, True], ids=["number", "object"])
async def test_what_is_no_socket_is_refused(object_):
    loop, protocol = asyncio.get_running_loop(), asyncio.Protocol()
    with open(os.open(os.devnull, os.O_RDWR), "rb", 0) as file:  # noqa: ASYNC230 - it does not wait
        with pytest.raises(OSError, match="Socket operation on non-socket") as caught:
            SocketTransport(loop, file if object_ else file.fileno(), protocol)
        assert caught.value.errno == errno.ENOTSOCK
        assert os.get_blocking(file.fileno())


async def test_a_pair_of_descriptors_is_refused(pair):
    near, far = pair
    with pytest.raises(ValueError, match="one descriptor for both directions"):
        SocketTransport(asyncio.get_running_loop(), (near, far), asyncio.Protocol())
    assert os.get_blocking(near.fileno())
    assert os.get_blocking(far.fileno())


async def test_a_transport_that_was_detached_has_no_socket_any_more(pair):
    near, _ = pair
    transport, protocol = await connect(near)
    transport.detach()
    assert transport.get_extra_info("socket") is None
    await until(lambda: protocol.lost, "it was lost")


async def test_a_socket_that_was_closed_by_somebody_else_does_not_hinder_the_loss(listener):
    near = socket.create_connection(listener.getsockname())
    transport, protocol = await connect(near)
    transport.pause_reading()
    near.close()
    transport.abort()
    await until(lambda: protocol.lost, "it was lost")
    assert transport.get_extra_info("peername") == listener.getsockname()


async def test_a_socket_object_comes_back_from_detach_as_it_was(pair):
    near, far = pair
    transport, protocol = await connect(near)
    far.send(b"unread")
    assert transport.detach().file is near
    await until(lambda: protocol.lost, "it was lost")
    assert near.recv(10) == b"unread"


async def test_a_lost_transport_lets_go_of_its_socket_object(listener):
    near = socket.create_connection(listener.getsockname())
    transport, protocol = await connect(near)
    gone = weakref.ref(near)
    del near
    transport.close()
    await until(lambda: protocol.lost, "it was lost")
    await turns()
    assert gone() is None
    assert transport.get_extra_info("peername") == listener.getsockname()
    assert transport.get_extra_info("sockname") is not None


async def test_addresses_stay_readable_after_a_reset(tcp_pair):
    near, far = tcp_pair
    peername, sockname = near.getpeername(), near.getsockname()
    transport, protocol = await connect(near)
    reset(far)
    await until(lambda: protocol.lost, "it was lost")
    assert type(protocol.reason) is ConnectionResetError
    assert transport.close_reason is CloseReason.ERROR
    assert transport.get_extra_info("peername") == peername
    assert transport.get_extra_info("sockname") == sockname


async def test_the_peer_sees_a_reset_when_that_is_asked_for(tcp_pair):
    near, far = tcp_pair
    transport, protocol = await connect(near)
    transport.abort(reset=True)
    await until(lambda: protocol.lost, "it was lost")
    assert protocol.reason is None
    with pytest.raises(ConnectionResetError):
        far.recv(1)


async def test_the_peer_sees_an_end_when_no_reset_is_asked_for(tcp_pair):
    near, far = tcp_pair
    transport, protocol = await connect(near)
    transport.abort()
    await until(lambda: protocol.lost, "it was lost")
    assert far.recv(1) == b""


async def test_a_reset_is_no_error_where_there_is_none(pair):
    near, far = pair
    transport, protocol = await connect(near)
    transport.abort(reset=True)
    transport.abort(reset=True)
    await until(lambda: protocol.lost, "it was lost")
    transport.abort(reset=True)
    assert far.recv(1) == b""


async def test_a_half_closed_transport_learns_of_a_reset_with_its_errno(tcp_pair):
    near, far = tcp_pair
    transport, protocol = await connect(near, keep_open=True)
    far.shutdown(socket.SHUT_WR)
    await until(lambda: protocol.count("eof"), "the end was told")
    reset(far)
    await until(lambda: protocol.lost, "it was lost")
    assert type(protocol.reason) is BrokenPipeError  # what Linux says of a reset after an end
    assert transport.close_reason is CloseReason.ERROR


async def test_an_unconnected_socket_is_lost_with_its_errno():
    _, protocol = await connect(socket.socket())
    await until(lambda: protocol.lost, "it was lost")
    assert protocol.reason.errno == errno.ENOTCONN


async def test_the_peer_of_a_unix_socket_can_be_known(tmp_path):
    path = str(tmp_path / "socket")
    guests = []

    def factory():
        guests.append(RecordingProtocol())
        return guests[-1]

    async with await fdtransport.create_unix_server(factory, path):
        transport, _ = await fdtransport.create_unix_connection(asyncio.Protocol, path)
        await until(lambda: guests and guests[0].transport, "it was accepted")
        assert guests[0].transport.get_extra_info("peercred") == (os.getpid(), os.getuid(), os.getgid())
        assert guests[0].transport.get_extra_info("sockname") == path
        assert transport.get_extra_info("peername") == path
        transport.close()


async def test_a_tcp_socket_has_no_peer_credentials(tcp_pair):
    transport, _ = await connect(tcp_pair[0])
    assert transport.get_extra_info("peercred") is None
    await transport.aclose()


async def test_what_a_server_accepts_sends_without_delay():
    guests = []

    def factory():
        guests.append(RecordingProtocol())
        return guests[-1]

    async with await fdtransport.create_server(factory, LOOPBACK, 0) as server:
        with socket.create_connection(server.sockets[0].getsockname()):
            await until(lambda: guests and guests[0].transport, "it was accepted")
            sock = guests[0].transport.get_extra_info("socket")
            assert isinstance(sock, TransportSocket)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_an_accepted_transport_that_was_paused_when_it_was_made_sees_a_hang_up():
    guests = []

    def factory():
        guests.append(RecordingProtocol(made=lambda protocol: protocol.transport.pause_reading()))
        return guests[-1]

    async with await fdtransport.create_server(factory, LOOPBACK, 0) as server:
        client = socket.create_connection(server.sockets[0].getsockname())
        client.send(b"last words")
        client.close()
        await until(lambda: guests and guests[0].transport and guests[0].transport.hung_up, "it was seen")
        guests[0].transport.resume_reading()
        await until(lambda: guests[0].lost, "it was lost")
        assert guests[0].received == b"last words"


async def test_a_registration_that_is_refused_is_told_to_the_accepted_protocol(monkeypatch):
    def refuse(self):
        raise OSError(errno.ENOSPC, "no more watches")

    guests = []

    def factory():
        guests.append(RecordingProtocol())
        return guests[-1]

    async with await fdtransport.create_server(factory, LOOPBACK, 0) as server:
        monkeypatch.setattr(StreamTransport, "_register", refuse)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            await until(lambda: guests and guests[0].lost, "it was lost")
            assert guests[0].reason.errno == errno.ENOSPC
            assert client.recv(1) == b""


@pytest.mark.parametrize("how", ["tcp", "unix", "accepted"])
async def test_a_thousand_connections_leave_no_descriptor(how, tmp_path):
    path = str(tmp_path / "socket")
    before = None
    servers = [
        await fdtransport.create_server(asyncio.Protocol, LOOPBACK, 0),
        await fdtransport.create_unix_server(asyncio.Protocol, path),
    ]
    address = servers[0].sockets[0].getsockname()

    def quiet():
        return not any(server._connections for server in servers)

    for number in range(100 if sys.flags.dev_mode else 1000):  # asyncio's debug mode makes them dear
        if number == 10:
            await until(quiet, "all have gone")
            before = descriptors()
        if how == "unix":
            transport, _ = await fdtransport.create_unix_connection(asyncio.Protocol, path)
        else:
            transport, _ = await fdtransport.create_connection(asyncio.Protocol, *address)
        if how == "accepted":
            servers[0].abort_clients()
            await transport.wait_hangup()
        # A reset leaves no port waiting behind.
        transport.abort(reset=True)
        await transport.aclose()
    await until(quiet, "all have gone")
    assert descriptors() == before
    for server in servers:
        server.close()


async def test_loop_sendfile_sends_a_file_in_order(tcp_pair, tmp_path):
    near, far = tcp_pair
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return  # uvloop has no sendfile for anybody
    (tmp_path / "file").write_bytes(BULK)
    transport, protocol = await connect(near)
    received = loop.run_in_executor(None, far.makefile("rb").read, len(BULK) + 11)
    transport.write(b"before")
    with (tmp_path / "file").open("rb") as file:
        assert await loop.sendfile(transport, file) == len(BULK)
    transport.write(b"after")
    assert await received == b"before" + BULK + b"after"
    assert transport.get_protocol() is protocol
    transport.close()
    await until(lambda: protocol.lost, "it was lost")
    await loop.shutdown_default_executor()


def test_a_program_that_returns_without_closing_anything_leaks_nothing(tmp_path, loop):
    async def main():
        server = await fdtransport.create_unix_server(asyncio.Protocol, tmp_path / "socket")
        transport, _ = await fdtransport.create_unix_connection(asyncio.Protocol, tmp_path / "socket")
        transport.close()
        server.abort_clients()
        server.close()

    loop.run_until_complete(main())
    # The fixtures see what is left open.
