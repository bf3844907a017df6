"""The server: many connections, few descriptors, bad factories, and every way to end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import gc
import json
import os
import socket
import subprocess
import sys
import textwrap
import weakref

import pytest

import fdtransport
from fdtransport import CloseReason, DescriptorInUseError, SocketTransport
from fdtransport._core import accept, syscalls
from fdtransport._core.accept import Server
from fdtransport.testing import FaultPlan, RecordingProtocol
from fdtransport.testing.observe import idle_cost, until

CLIENTS = 200


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as sock:
        yield sock


class Guests:
    """A protocol factory that keeps the protocols."""

    def __init__(self):
        self.all = []

    def __call__(self):
        self.all.append(RecordingProtocol())
        return self.all[-1]

    def lost(self):
        return sum(guest.lost for guest in self.all)

    def made(self):
        return sum(guest.transport is not None for guest in self.all)


def serve(listener, factory, *, start=True, make=SocketTransport, **options):
    server = Server(asyncio.get_running_loop(), [listener], make, factory, CLIENTS, **options)
    if start:
        server._begin()
    return server


def dial(listener, count=1):
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


def hang_up(clients):
    for client in clients:
        client.close()


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def failing_accepts(monkeypatch, *numbers):
    """The next accepts fail with these errnos, then it works; returns the list of what is left."""
    left, real = list(numbers), syscalls.accept

    def failing(sock):
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return real(sock)

    monkeypatch.setattr(syscalls, "accept", failing)
    return left


# -- accepting --------------------------------------------------------------------------------------


async def test_every_connection_that_waits_gets_a_transport_and_a_protocol(listener):
    guests = Guests()
    clients = dial(listener, CLIENTS)
    async with serve(listener, guests):
        await until(lambda: guests.made() == CLIENTS, "all were accepted")
        names = {guest.transport.get_extra_info("peername") for guest in guests.all}
        assert names == {client.getsockname() for client in clients}
        hang_up(clients)


async def test_a_wake_up_accepts_a_bounded_number(listener, monkeypatch):
    counts, real = [], accept._Listener.accept

    def counted(self):
        before = len(guests.all)
        real(self)
        counts.append(len(guests.all) - before)

    monkeypatch.setattr(accept._Listener, "accept", counted)
    guests = Guests()
    clients = dial(listener, CLIENTS)
    async with serve(listener, guests):
        await until(lambda: guests.made() == CLIENTS, "all were accepted")
        assert max(counts) == accept.ACCEPTS
        hang_up(clients)


async def test_an_accepted_descriptor_is_non_blocking_and_close_on_exec(listener):
    guests = Guests()
    async with serve(listener, guests):
        clients = dial(listener)
        await until(guests.made, "it was accepted")
        fd = guests.all[0].transport.fileno()
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        hang_up(clients)


async def test_a_listening_socket_with_a_timeout_does_not_hold_the_loop(listener):
    listener.settimeout(30)
    guests = Guests()
    async with serve(listener, guests):
        clients = dial(listener)
        await until(guests.made, "it was accepted")
        await turns()
        hang_up(clients)


async def test_a_connection_that_ends_is_forgotten(listener):
    guests = Guests()
    async with serve(listener, guests) as server:
        clients = dial(listener, 10)
        await until(lambda: guests.made() == 10, "all were accepted")
        hang_up(clients)
        await until(lambda: guests.lost() == 10, "all have gone")
        gone = weakref.ref(guests.all[0].transport)
        guests.all.clear()
        await turns()
        gc.collect()
        assert gone() is None
        assert not server._clients
        assert not server._connections


# -- what goes wrong --------------------------------------------------------------------------------


async def test_a_factory_that_raises_ends_that_connection_only(listener, reports):
    guests, error = Guests(), LookupError("no protocol today")

    def factory():
        if not reports:
            raise error
        return guests()

    async with serve(listener, factory):
        first, second = dial(listener, 2)
        await until(guests.made, "the second was accepted")
        assert first.recv(1) == b""
        assert [context["exception"] for context in reports] == [error]
        hang_up([first, second])


async def test_a_transport_that_cannot_be_made_ends_that_connection_only(listener, reports):
    guests = Guests()

    def make(*args):
        if not reports:
            raise OSError(errno.ENOSPC, "no more epoll watches")
        return SocketTransport(*args)

    async with serve(listener, guests, make=make):
        first, second = dial(listener, 2)
        await until(guests.made, "the second was accepted")
        assert first.recv(1) == b""
        assert reports[0]["exception"].errno == errno.ENOSPC
        hang_up([first, second])


def test_a_factory_that_wants_to_exit_is_let_through(listener, loop):
    def factory():
        raise SystemExit(3)

    async def main():
        server = serve(listener, factory)
        try:
            await asyncio.sleep(5)
        finally:
            server.close()

    clients = dial(listener)
    with pytest.raises(SystemExit):
        loop.run_until_complete(main())
    for task in asyncio.all_tasks(loop):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
    assert clients[0].recv(1) == b""
    hang_up(clients)


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN])
async def test_a_connection_that_went_before_it_was_accepted_is_skipped(listener, monkeypatch, number):
    left = failing_accepts(monkeypatch, number, number)
    guests = Guests()
    async with serve(listener, guests):
        clients = dial(listener)
        await until(guests.made, "the next was accepted")
        assert not left
        hang_up(clients)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_a_shortage_is_reported_once_and_accepting_goes_on_after_it(
    listener, monkeypatch, reports, number
):
    monkeypatch.setattr(accept, "RETRY", 0.005)
    left = failing_accepts(monkeypatch, *[number] * 20)
    guests = Guests()
    async with serve(listener, guests) as server:
        clients = dial(listener)
        await until(guests.made, "it was accepted in the end")
        assert not left
        assert [context["exception"].errno for context in reports] == [number]
        assert server.is_serving()
        hang_up(clients)


async def test_a_poller_that_has_no_room_is_asked_again(listener, monkeypatch, reports):
    monkeypatch.setattr(accept, "RETRY", 0.005)
    failing_accepts(monkeypatch, errno.EMFILE)
    guests, refusals, real = Guests(), [], accept._Listener.start

    def start(self):
        if reports and len(refusals) < 3:
            refusals.append(1)
            raise OSError(errno.ENOSPC, "no more epoll watches")
        real(self)

    monkeypatch.setattr(accept._Listener, "start", start)
    async with serve(listener, guests):
        clients = dial(listener)
        await until(guests.made, "it was accepted in the end")
        assert len(refusals) == 3
        hang_up(clients)


async def test_a_poller_that_refuses_at_the_start_is_told_and_nothing_is_served(listener, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = Server(asyncio.get_running_loop(), [listener, other], SocketTransport, Guests())
        real = accept._Listener.start

        def start(self):
            if self.sock is other:
                raise OSError(errno.ENOSPC, "no more epoll watches")
            real(self)

        with monkeypatch.context() as patch:
            patch.setattr(accept._Listener, "start", start)
            with pytest.raises(OSError, match="no more epoll watches"):
                await server.start_serving()
        assert not server.is_serving()
        await server.start_serving()
        server.close()


async def test_a_listening_socket_closed_by_somebody_else_does_not_keep_the_others(listener, reports):
    other = socket.create_server(("127.0.0.1", 0))
    server = Server(asyncio.get_running_loop(), [other, listener], SocketTransport, Guests())
    os.close(other.fileno())
    server.close()
    assert listener.fileno() == -1
    assert [context["exception"].errno for context in reports] == [errno.EBADF]


async def test_what_a_factory_sets_in_its_context_is_there_for_its_connection_only(listener):
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Looker(asyncio.Protocol):
        def connection_made(self, transport):
            seen.append(("made", variable.get()))
            transport.abort()

    def factory():
        seen.append(("factory", variable.get()))
        variable.set("set")
        return Looker()

    async with serve(listener, factory):
        clients = dial(listener, 2)
        await until(lambda: len(seen) == 4, "both were made")
        hang_up(clients)
    assert sorted(seen) == [("factory", "unset")] * 2 + [("made", "set")] * 2


async def test_a_server_can_be_closed_during_a_shortage(listener, monkeypatch, reports):
    failing_accepts(monkeypatch, *[errno.EMFILE] * 1000)
    server = serve(listener, Guests())
    clients = dial(listener)
    await until(lambda: reports, "it was reported")
    server.close()
    await server.wait_closed()
    hang_up(clients)


async def test_an_unexpected_error_is_reported_once_and_does_not_spin(listener, monkeypatch, reports):
    left = failing_accepts(monkeypatch, *[errno.EINVAL] * 1000)
    async with serve(listener, Guests()):
        clients = dial(listener)
        await until(lambda: reports, "it was reported")
        await turns(50)
        assert len(left) == 999
        assert [context["exception"].errno for context in reports] == [errno.EINVAL]
        hang_up(clients)


LIMITED = """
    import asyncio, errno, json, resource, socket, sys
    from fdtransport import create_server

    async def main():
        loop, reports, greeted = asyncio.get_running_loop(), [], []
        loop.set_exception_handler(lambda _, context: reports.append(context["exception"].errno))

        class Greeter(asyncio.Protocol):
            def connection_made(self, transport):
                greeted.append(transport)
                transport.write(b"hello")

        server = await create_server(Greeter, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        first = socket.create_connection(address)
        while not greeted:
            await asyncio.sleep(0)
        greeted.clear()
        clients = [socket.socket() for _ in range(10)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        # Four more descriptors than now: a new one has the lowest number that is free.
        resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 5, 4096))
        while len(greeted) < 4 or not reports:
            await asyncio.sleep(0.01)
        served_at_first = len(greeted)
        await asyncio.sleep(0.5)
        reports_at_first = len(reports)
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        while len(greeted) < 10:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        said = [client.recv(5).decode() for client in clients]
        server.abort_clients()
        server.close()
        await server.wait_closed()
        print(json.dumps([served_at_first, reports_at_first, sorted(set(reports)), said]))

    if sys.argv[1] == "uvloop":
        import uvloop as loops
    else:
        loops = asyncio
    with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
        runner.run(main())
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_clients_that_found_no_descriptor_left_are_served_when_there_are_some(kind):
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), kind]
    output = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    served, reported, numbers, said = json.loads(output)
    assert served == 4
    assert reported == 1
    assert numbers == [errno.EMFILE]
    assert said == ["hello"] * 10


@pytest.mark.parametrize("number", [errno.EPERM, errno.ECONNABORTED])
async def test_one_connection_less_is_no_reason_to_wait_for_the_next(listener, number):
    guests = Guests()
    clients = dial(listener, 3)
    with FaultPlan() as plan:
        plan.fail("accept", nth=2, errno=number)
        async with serve(listener, guests):
            await until(lambda: guests.made() == 3, "all that are left were accepted")
            hang_up(clients)
    assert plan.injected == 1


# -- as many as there may be ------------------------------------------------------------------------


async def test_further_connections_wait_until_one_ends(listener):
    guests = Guests()
    clients = dial(listener, 10)
    async with serve(listener, guests, max_connections=4):
        for ended in range(7):
            await until(lambda ended=ended: guests.made() == 4 + min(ended, 6), "as many as may be")
            await turns(20)
            assert guests.made() - guests.lost() == 4 - max(0, ended - 6)
            guests.all[ended].transport.abort()
        await until(lambda: guests.lost() == 7, "seven have gone")
        assert guests.made() == 10
        hang_up(clients)


async def test_at_the_limit_the_loop_sleeps(listener):
    guests = Guests()
    clients = dial(listener, 5)
    async with serve(listener, guests, max_connections=1):
        await until(guests.made, "one was accepted")
        assert (await idle_cost(0.1)).is_idle(cpu=0.03, wakeups=5)
        assert guests.made() == 1
        hang_up(clients)
        await until(lambda: guests.lost() == 5, "each had its turn")


async def test_the_limit_is_that_of_all_sockets_together(listener):
    guests = Guests()
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = Server(
            asyncio.get_running_loop(), [listener, other], SocketTransport, guests, max_connections=2
        )
        clients = [*dial(listener, 2), *dial(other, 2)]
        async with server:
            await server.start_serving()
            await until(lambda: guests.made() == 2, "two were accepted")
            await turns(20)
            assert guests.made() == 2
            hang_up(clients)
            await until(lambda: guests.lost() == 4, "each had its turn")


async def test_a_connection_that_makes_no_transport_takes_no_place(listener, reports):
    made = []

    def factory():
        made.append(1)
        if len(made) <= 3:
            raise LookupError("not today")
        return RecordingProtocol()

    clients = dial(listener, 5)
    async with serve(listener, factory, max_connections=1):
        await until(lambda: len(made) == 4, "those that failed made room")
        await turns(20)
        assert len(made) == 4
        hang_up(clients)
        await until(lambda: len(made) == 5, "the last had its turn")
    assert len(reports) == 3


async def test_a_shortage_at_the_limit_does_not_go_past_it(listener, monkeypatch, reports):
    monkeypatch.setattr(accept, "RETRY", 0.001)
    failing_accepts(monkeypatch, errno.EMFILE)
    guests = Guests()
    async with serve(listener, guests, max_connections=1):
        clients = dial(listener, 3)
        await until(guests.made, "one was accepted")
        await asyncio.sleep(0.02)
        assert guests.made() == 1
        hang_up(clients)
        await until(lambda: guests.lost() == 3, "each had its turn")
    assert len(reports) == 1


async def test_who_comes_after_another_has_gone_has_not_its_context(listener):
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Setter(RecordingProtocol):
        def connection_made(self, transport):
            seen.append(variable.get())
            variable.set("set")
            super().connection_made(transport)

    async with serve(listener, Setter, max_connections=1):
        clients = dial(listener, 3)
        for count in range(3):
            await until(lambda count=count: len(seen) == count + 1, "the next was accepted")
            clients[count].close()
    assert seen == ["unset"] * 3


async def test_a_server_at_its_limit_can_be_closed(listener):
    guests = Guests()
    clients = dial(listener, 3)
    server = serve(listener, guests, max_connections=1)
    await until(guests.made, "one was accepted")
    server.close()
    guests.all[0].transport.abort()
    await server.wait_closed()
    assert guests.made() == 1
    hang_up(clients)


def test_a_connection_that_outlives_the_loop_makes_room_for_nobody(listener, loop):
    class Guest(asyncio.Protocol):
        def connection_made(self, transport):
            made.append(transport)

    made = []
    clients = dial(listener, 2)

    async def main():
        server = serve(listener, Guest, max_connections=1)
        await until(lambda: made, "one was accepted")
        return server

    server = loop.run_until_complete(main())
    loop.close()

    def forget():
        made.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        forget()
    server.close()
    hang_up(clients)


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_refused_and_the_socket_left(listener, limit, tmp_path):
    with pytest.raises(ValueError, match=r"max_connections .* must be >= 1"):
        serve(listener, Guests(), max_connections=limit)
    with pytest.raises(ValueError, match="max_connections"):
        await fdtransport.create_unix_server(Guests(), tmp_path / "socket", max_connections=limit)
    assert list(tmp_path.iterdir()) == []
    hang_up([*dial(listener), listener.accept()[0]])


@pytest.mark.parametrize("kind", ["create_server", "start_server", "create_unix_server", "start_unix_server"])
async def test_every_server_function_has_the_limit(kind, tmp_path):
    function = getattr(fdtransport, kind)
    clients = []

    async def stay(reader, writer):
        await reader.read()
        writer.close()

    where = [tmp_path / "socket"] if "unix" in kind else ["127.0.0.1", 0]
    server = await function(stay if "start" in kind else Guests(), *where, max_connections=2)
    async with server:
        address = server.sockets[0].getsockname()
        for _ in range(3):
            sock = socket.socket(server.sockets[0].family)
            sock.connect(address)
            clients.append(sock)
        await until(lambda: server._connections == 2, "two were accepted")
        await turns(20)
        assert server._connections == 2
        hang_up(clients)


# -- the end ----------------------------------------------------------------------------------------


async def test_aclose_lets_connections_send_what_is_queued(listener):
    guests = Guests()
    server = serve(listener, guests)
    clients = dial(listener, 3)
    await until(lambda: guests.made() == 3, "all were accepted")
    for guest in guests.all:
        guest.transport.write(b"x" * (8 << 20))
    ending = asyncio.ensure_future(server.aclose(timeout=20))
    await turns()
    assert not server.is_serving()
    assert not ending.done()
    received = 0
    for client in clients:
        client.setblocking(False)
    while not ending.done():
        for client in clients:
            with contextlib.suppress(BlockingIOError):
                received += len(client.recv(1 << 20))
        await asyncio.sleep(0)
    for client in clients:
        client.settimeout(10)
        while data := client.recv(1 << 20):
            received += len(data)
    await ending
    assert received == 3 * (8 << 20)
    assert [guest.transport.close_reason for guest in guests.all] == [CloseReason.LOCAL] * 3
    hang_up(clients)


async def test_aclose_aborts_at_the_deadline_who_has_not_ended(listener):
    guests = Guests()
    server = serve(listener, guests)
    clients = dial(listener, 3)
    await until(lambda: guests.made() == 3, "all were accepted")
    for guest in guests.all[:2]:
        guest.transport.write(b"x" * (16 << 20))
    await server.aclose(timeout=0.02)
    assert [guest.transport.close_reason for guest in guests.all] == [
        CloseReason.ABORT, CloseReason.ABORT, CloseReason.LOCAL,
    ]  # fmt: skip
    assert guests.lost() == 3
    await server.aclose()
    hang_up(clients)


async def test_a_cancelled_aclose_leaves_a_server_that_goes_on_closing(listener):
    guests = Guests()
    server = serve(listener, guests)
    clients = dial(listener)
    await until(guests.made, "it was accepted")
    guests.all[0].transport.write(b"x" * (16 << 20))
    ending = asyncio.ensure_future(server.aclose(timeout=60))
    await turns()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert not guests.lost()
    assert guests.all[0].transport.is_closing()
    hang_up(clients)
    await server.aclose()
    assert guests.lost() == 1


async def test_aclose_without_connections_returns(listener):
    server = serve(listener, Guests(), start=False)
    await server.aclose()
    assert listener.fileno() == -1


async def test_close_closes_the_sockets_and_leaves_the_connections(listener):
    guests = Guests()
    server = serve(listener, guests)
    clients = dial(listener)
    await until(guests.made, "it was accepted")
    address = listener.getsockname()
    server.close()
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    assert listener.fileno() == -1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    guests.all[0].transport.write(b"still here")
    assert clients[0].recv(20) == b"still here"
    hang_up(clients)
    await server.wait_closed()


async def test_wait_closed_waits_for_the_last_connection(listener):
    guests = Guests()
    server = serve(listener, guests)
    clients = dial(listener, 2)
    await until(lambda: guests.made() == 2, "all were accepted")
    waiting = asyncio.ensure_future(server.wait_closed())
    await turns()
    assert not waiting.done()
    server.close()
    await turns()
    assert not waiting.done()
    guests.all[0].transport.abort()
    await turns()
    assert not waiting.done()
    guests.all[1].transport.abort()
    await waiting
    await server.wait_closed()
    hang_up(clients)


async def test_wait_closed_waits_for_close_even_without_connections(listener):
    server = serve(listener, Guests())
    waiting = asyncio.ensure_future(server.wait_closed())
    await turns()
    assert not waiting.done()
    server.close()
    await waiting


async def test_a_cancelled_wait_closed_does_not_disturb_another(listener):
    server = serve(listener, Guests())
    first, second = (asyncio.ensure_future(server.wait_closed()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    server.close()
    await second
    assert first.cancelled()


async def test_leaving_async_with_closes_and_waits(listener):
    async with serve(listener, Guests()) as server:
        assert server.is_serving()
    assert not server.is_serving()


@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
async def test_all_clients_can_be_ended_at_once(listener, how):
    guests = Guests()
    server = serve(listener, guests)
    clients = dial(listener, 5)
    await until(lambda: guests.made() == 5, "all were accepted")
    for guest in guests.all:
        guest.transport.write(b"x" * (16 << 20))
    getattr(server, how)()
    if how == "abort_clients":
        await until(lambda: guests.lost() == 5, "all have gone")
        assert [guest.reason for guest in guests.all] == [None] * 5
    else:
        assert all(guest.transport.is_closing() for guest in guests.all)
        await turns(20)
        assert not guests.lost()  # nobody has read what is queued
        server.abort_clients()
    server.close()
    await server.wait_closed()
    hang_up(clients)


async def test_serve_forever_ends_with_everything_closed_when_it_is_cancelled(listener):
    guests = Guests()
    server = serve(listener, guests, start=False)
    serving = asyncio.ensure_future(server.serve_forever())
    clients = dial(listener)
    await until(guests.made, "it was accepted")
    with pytest.raises(RuntimeError, match="already being awaited"):
        await server.serve_forever()
    serving.cancel()
    await turns()
    assert not server.is_serving()
    assert not serving.done()  # a connection is left
    guests.all[0].transport.abort()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(RuntimeError, match="is closed"):
        await server.serve_forever()
    with pytest.raises(RuntimeError, match="is closed"):
        await server.start_serving()
    hang_up(clients)


async def test_close_ends_serve_forever(listener):
    server = serve(listener, Guests())
    serving = asyncio.ensure_future(server.serve_forever())
    await turns()
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_nothing_is_accepted_before_the_start(listener):
    guests = Guests()
    async with serve(listener, guests, start=False) as server:
        assert not server.is_serving()
        clients = dial(listener)
        await turns(20)
        assert not guests.all
        await server.start_serving()
        await server.start_serving()
        assert server.is_serving()
        await until(guests.made, "it was accepted")
        hang_up(clients)


async def test_the_server_can_be_closed_by_a_factory_and_by_a_callback(listener):
    class Closer(asyncio.Protocol):
        def connection_made(self, transport):
            server.close()
            transport.abort()

    made = []

    def factory():
        made.append(1)
        if len(made) == 2:
            server.close()
        return asyncio.Protocol() if len(made) == 1 else Closer()

    server = serve(listener, factory)
    clients = dial(listener, 5)
    await until(lambda: not server.is_serving(), "it was closed")
    await turns()
    assert len(made) == 2
    server.abort_clients()
    await server.wait_closed()
    hang_up(clients)


async def test_a_server_that_is_collected_warns_and_closes_its_sockets(listener):
    servers = [serve(listener, Guests(), start=False)]

    def forget():
        servers.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed server"):
        forget()
    assert listener.fileno() == -1


def test_a_server_that_outlives_its_loop_frees_the_numbers_of_its_sockets(listener, loop):
    async def main():
        return serve(listener, Guests())

    fd = listener.fileno()
    server = loop.run_until_complete(main())
    loop.close()
    server.close()
    with socket.socket() as other:
        assert other.fileno() == fd
        accept.Handle(other).release()


# -- what it is given -------------------------------------------------------------------------------


async def test_it_is_a_server_as_asyncio_knows_it(listener):
    async with serve(listener, Guests()) as server:
        assert isinstance(server, asyncio.AbstractServer)
        assert server.get_loop() is asyncio.get_running_loop()
        assert [sock.getsockname() for sock in server.sockets] == [listener.getsockname()]
        assert "Server sockets=" in repr(server)


async def test_a_socket_that_is_served_already_is_refused_and_the_others_given_back(listener):
    async with serve(listener, Guests()):
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.settimeout(7)
            with pytest.raises(DescriptorInUseError):
                Server(asyncio.get_running_loop(), [other, listener], SocketTransport, Guests())
            assert other.gettimeout() == 7
            async with serve(other, Guests()):
                pass


async def test_a_shared_listening_socket_gets_its_mode_back(listener):
    copy = listener.dup()
    server = serve(listener, Guests())
    assert not os.get_blocking(copy.fileno())
    server.close()
    assert os.get_blocking(copy.fileno())
    copy.close()


async def test_a_server_that_gives_back_leaves_the_sockets_as_they_were(listener):
    server = serve(listener, Guests())
    server._give_back()
    assert listener.gettimeout() is None
    assert os.get_blocking(listener.fileno())
    clients = dial(listener)
    hang_up([*clients, listener.accept()[0]])


async def test_what_is_to_be_done_on_close_is_done_once_and_before_the_sockets_close(listener):
    seen = []
    server = serve(listener, Guests(), on_close=lambda: seen.append(listener.fileno() >= 0))
    server.close()
    server.close()
    assert seen == [True]
