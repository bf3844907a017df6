"""Names to addresses, addresses to sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from fdtransport import create_connection, create_server
from fdtransport._core import addresses
from fdtransport._core.addresses import bind, bind_all, dial, resolve

LOOPBACK = "127.0.0.1"


@pytest.fixture
def listener():
    with socket.create_server((LOOPBACK, 0)) as sock:
        yield sock


@pytest.fixture
def nowhere():
    """An address that refuses."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        yield sock.getsockname()


def info(address, family=socket.AF_INET):
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)


@pytest.fixture
def names(monkeypatch):
    """What the loop's resolver is asked, and what it is to answer."""
    asked, answers = [], []

    async def getaddrinfo(host, port, *, family=0, type=0, proto=0, flags=0):
        asked.append((host, port, family, type, proto, flags))
        return answers

    class Loop:
        def __init__(self, loop):
            self._loop = loop

        def __getattr__(self, name):
            return getaddrinfo if name == "getaddrinfo" else getattr(self._loop, name)

    real = asyncio.get_running_loop
    monkeypatch.setattr(addresses.asyncio, "get_running_loop", lambda: Loop(real()))
    return asked, answers


# -- resolve ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [LOOPBACK, b"127.0.0.1", "::1", None])
@pytest.mark.parametrize("port", [80, "80", None])
async def test_a_numeric_address_needs_no_resolver(names, host, port):
    if host is None and port is None:
        return
    asked, _ = names
    found = await resolve(host, port, 0, 0, 0)
    assert not asked
    assert {kind for _, kind, *_ in found} == {socket.SOCK_STREAM}
    assert {address[1] for *_, address in found} == {80 if port else 0}


async def test_a_name_is_asked_of_the_loop(names):
    asked, answers = names
    answers.append(info(("192.0.2.1", 80)))
    found = await resolve("example.invalid", 80, socket.AF_INET, 6, socket.AI_PASSIVE)
    assert found == answers
    assert asked == [("example.invalid", 80, socket.AF_INET, socket.SOCK_STREAM, 6, socket.AI_PASSIVE)]


async def test_the_name_of_a_service_is_asked_of_the_loop(names):
    asked, answers = names
    answers.append(info((LOOPBACK, 80)))
    await resolve(LOOPBACK, "http", 0, 0, 0)
    assert asked[0][1] == "http"


async def test_a_name_without_addresses_is_an_error(names):
    with pytest.raises(OSError, match="empty list"):
        await resolve("example.invalid", 80, 0, 0, 0)


async def test_a_name_that_does_not_exist_is_an_error():
    with pytest.raises(socket.gaierror):
        await create_connection(asyncio.Protocol, "no.such.host.invalid", 80, flags=socket.AI_NUMERICHOST)


@pytest.mark.parametrize("port", [-1, 65536, 70000, "70000"])
@pytest.mark.parametrize("host", [LOOPBACK, "localhost", None])
async def test_a_port_out_of_range_is_refused(port, host):
    with pytest.raises(OverflowError, match="port must be 0-65535"):
        await create_connection(asyncio.Protocol, host, port)
    with pytest.raises(OverflowError, match="port must be 0-65535"):
        await create_server(asyncio.Protocol, host, port)


# -- dial -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [None, 0.01])
async def test_the_first_address_that_answers_is_taken(listener, nowhere, delay):
    sock = await dial([info(nowhere), info(listener.getsockname())], None, delay, None, False)
    assert sock.getpeername() == listener.getsockname()
    sock.close()


async def test_a_slow_address_does_not_hold_the_next_one_up(listener):
    with socket.create_server((LOOPBACK, 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]  # connections beyond the backlog are not answered
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        targets = [info(full.getsockname()), info(listener.getsockname())]
        sock = await asyncio.wait_for(dial(targets, None, 0.01, 1, False), 5)
        assert sock.getpeername() == listener.getsockname()
        for one in (sock, *waiting):
            one.close()


async def test_a_local_address_is_used(listener):
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        local = free.getsockname()
    transport, _ = await create_connection(asyncio.Protocol, *listener.getsockname(), local_addr=local)
    assert transport.get_extra_info("sockname") == local
    await transport.aclose()


async def test_a_local_address_that_is_taken_is_an_error(listener, nowhere):
    with pytest.raises(OSError, match="bind") as caught:
        await create_connection(asyncio.Protocol, *listener.getsockname(), local_addr=nowhere)
    assert caught.value.errno == errno.EADDRINUSE


async def test_the_error_of_the_only_address_is_raised(nowhere):
    with pytest.raises(ConnectionRefusedError):
        await dial([info(nowhere)], None, None, None, False)


async def test_the_errors_of_several_addresses_become_one(nowhere):
    other = ("127.0.0.2", nowhere[1])
    with pytest.raises(OSError, match=r"refused|failed") as caught:
        await dial([info(nowhere), info(other)], None, None, None, False)
    assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.parametrize("delay", [None, 0.01])
async def test_all_errors_are_raised_when_that_is_asked_for(nowhere, delay):
    other = ("127.0.0.2", nowhere[1])
    with pytest.raises(ExceptionGroup, match="create_connection failed") as caught:
        await dial([info(nowhere), info(other)], None, delay, None, True)
    assert [exc.errno for exc in caught.value.exceptions] == [errno.ECONNREFUSED] * 2


async def test_all_errors_has_the_error_of_an_address_that_could_not_be_tried(listener, nowhere):
    with pytest.raises(ExceptionGroup) as caught:
        await dial([info(listener.getsockname())], [info(nowhere)], None, None, True)
    assert [exc.errno for exc in caught.value.exceptions] == [errno.EADDRINUSE]


# -- bind -------------------------------------------------------------------------------------------


def option(sock, level, name):
    return sock.getsockopt(level, name)


def test_a_bound_socket_has_the_options_that_were_asked_for():
    with bind(info((LOOPBACK, 0)), None, None, None) as sock:
        assert option(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not option(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert not option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    with bind(info((LOOPBACK, 0)), False, True, True) as sock:
        assert not option(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert option(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_an_ipv6_socket_leaves_the_ipv4_port_alone():
    with bind(info(("::1", 0), socket.AF_INET6), None, None, None) as sock:
        assert option(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


MISSING = info(("192.0.2.1", 0)), (socket.AF_INET, socket.SOCK_STREAM, 255, "", (LOOPBACK, 0))


def test_an_address_or_family_that_this_machine_lacks_is_skipped():
    [sock] = bind_all([*MISSING, info((LOOPBACK, 0))], None, None, None)
    with sock:
        assert sock.getsockname()[0] == LOOPBACK


@pytest.mark.parametrize(
    ("missing", "number"), [(MISSING[0], errno.EADDRNOTAVAIL), (MISSING[1], errno.EPROTONOSUPPORT)]
)
def test_where_there_is_no_other_one_the_kernel_s_reason_is_told(missing, number):
    with pytest.raises(OSError, match="could not bind on any address") as caught:
        bind_all([missing], None, None, None)
    assert caught.value.errno == number
    assert os.strerror(number) in str(caught.value)


def test_a_shortage_of_descriptors_is_told_and_nothing_stays_open(monkeypatch):
    made = []

    def one_more(*args):
        if made:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(real(*args))
        return made[0]

    real = socket.socket
    monkeypatch.setattr(socket, "socket", one_more)
    with pytest.raises(OSError, match="Too many open files"):
        bind_all([info((LOOPBACK, 0)), info(("127.0.0.2", 0))], None, None, None)
    assert made[0].fileno() == -1


def test_a_taken_address_is_an_error_that_names_it(listener):
    with pytest.raises(OSError, match=f"bind on address.*{listener.getsockname()[1]}") as caught:
        bind(info(listener.getsockname()), None, None, None)
    assert caught.value.errno == errno.EADDRINUSE


def test_reuse_port_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(ValueError, match="reuse_port not supported"):
        bind(info((LOOPBACK, 0)), None, True, None)


async def test_a_server_without_any_address_is_an_error():
    with pytest.raises(OSError, match="could not bind on any address") as caught:
        await create_server(asyncio.Protocol, "192.0.2.1", 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_a_server_binds_every_address_once():
    async with await create_server(asyncio.Protocol, [LOOPBACK, LOOPBACK, "127.0.0.2"], 0) as server:
        assert {sock.getsockname()[0] for sock in server.sockets} == {LOOPBACK, "127.0.0.2"}
    async with await create_server(asyncio.Protocol, "", 0) as server:
        found = {sock.getsockname()[0] for sock in server.sockets}
        assert "0.0.0.0" in found


async def test_a_server_that_cannot_bind_them_all_binds_none(listener):
    with pytest.raises(OSError, match="error while attempting to bind"):
        await create_server(asyncio.Protocol, ["127.0.0.2", LOOPBACK], listener.getsockname()[1])
