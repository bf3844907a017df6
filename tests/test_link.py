"""rtnetlink: the bytes of the requests, and what the kernel makes of them."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from network import Namespace, needs_tuntap

from fdtransport import Link
from fdtransport._core import netlink
from fdtransport._core.netlink import Message
from fdtransport._core.tun_device import NO_PI, TAP, TUN, open_device
from fdtransport.testing import FaultPlan
from fdtransport.testing.observe import until

# -- bytes --------------------------------------------------------------------------------------------


def test_a_request_has_the_form_that_the_kernel_documents() -> None:
    request = netlink.link_setting(7, up=True, mtu=1400)
    assert request.numbered(5) == (
        struct.pack("=IHHII", 16 + 16 + 8, 16, 0x5, 5, 0)  # RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK
        + struct.pack("=BxHiII", 0, 0, 7, 1, 1)
        + struct.pack("=HHI", 8, 4, 1400)
    )


def test_an_attribute_ends_at_a_multiple_of_four() -> None:
    assert netlink.attribute(3, b"abc") == struct.pack("=HH", 7, 3) + b"abc\0"
    assert netlink.attribute(3, b"abcd") == struct.pack("=HH", 8, 3) + b"abcd"
    found = netlink.attributes(netlink.attribute(3, b"abc") + netlink.attribute(0x8004, b"nested"))
    assert found == {3: b"abc", 4: b"nested"}


def test_messages_are_taken_apart() -> None:
    data = b"".join(netlink.routes_request().numbered(n) for n in (1, 2))
    assert [message.sequence for message in netlink.messages(data)] == [1, 2]


@pytest.mark.parametrize("size", [15, 17])
def test_a_message_of_the_wrong_length_is_refused(size: int) -> None:
    data = struct.pack("=IHHII", size, 3, 0, 0, 0)
    with pytest.raises(ValueError, match="a netlink message of"):
        list(netlink.messages(data))


def test_an_attribute_of_the_wrong_length_is_refused() -> None:
    for data in (struct.pack("=HH", 3, 1), struct.pack("=HH", 9, 1) + b"four"):
        with pytest.raises(ValueError, match="a netlink attribute of"):
            netlink.attributes(data)


def test_an_error_comes_with_what_the_kernel_says() -> None:
    body = struct.pack("=i", -errno.EINVAL) + struct.pack("=IHHII", 16, 16, 0, 1, 0)
    assert netlink.read_error(Message(2, 0, 1, body)) == (errno.EINVAL, "")
    told = body + netlink.attribute(1, b"mtu less than device minimum\0")
    assert netlink.read_error(Message(2, 0x300, 1, told)) == (errno.EINVAL, "mtu less than device minimum")


def test_an_address_is_read_back_from_its_own_request() -> None:
    for text in ("10.9.0.1/24", "fd00::1/64"):
        request = netlink.address_request(4, ip_interface(text), add=True)
        message = Message(request.kind, 0, 1, request.body)
        assert netlink.read_address(message) == (4, ip_interface(text), False)
    request = netlink.address_request(4, ip_interface("10.9.0.1/32"), ip_address("10.9.0.2"), add=True)
    message = Message(20, 0, 1, request.body)
    assert netlink.read_address(message) == (4, ip_interface("10.9.0.1/32"), False)


def test_a_route_is_read_back_from_its_own_request() -> None:
    hop = ip_address("10.9.0.2")
    request = netlink.route_request(4, ip_network("10.0.0.0/8"), hop, add=True, metric=7, table=1000)
    route = netlink.read_route(Message(request.kind, 0, 1, request.body))
    assert route == netlink.Route(ip_network("10.0.0.0/8"), hop, 4, 7, 1000)


def test_whatever_is_made_of_an_answer_is_read_or_refused_with_one_error() -> None:
    dice = random.Random(7)
    address = netlink.address_request(4, ip_interface("10.9.0.1/24"), add=True)
    route = netlink.route_request(4, ip_network("10.0.0.0/8"), ip_address("10.9.0.2"), add=True)
    link = netlink.link_setting("dev", up=True, mtu=1400, hwaddr=bytes(6))
    refusal = struct.pack("=iIHHII", -1, 16, 16, 0, 1, 0) + netlink.attribute(1, b"no")
    error = netlink.Request(2, 0x200, refusal)
    reads = netlink.read_link, netlink.read_address, netlink.read_route, netlink.read_error
    refused = 0
    for _ in range(4000):
        data = bytearray(dice.choice((address, route, link, error)).numbered(1))
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(16, len(data)) if len(data) > 16 else 0
            if dice.random() < 0.7:
                data[at : at + 1] = bytes([dice.choice((0, 1, 4, 255, dice.randrange(256)))])
            else:
                del data[at : at + dice.randrange(9)]
        message = Message(data[4], data[6], 1, bytes(data[16:]))
        for read in reads:
            try:
                read(message)  # type: ignore[operator]
            except ValueError:
                refused += 1
    assert 1000 < refused < 15000


# -- the kernel ---------------------------------------------------------------------------------------


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace() as space:
        yield space


Make = Callable[..., Link]


@pytest.fixture
def make(space: Namespace) -> Iterator[Make]:
    """Makes interfaces in the namespace: the link of one."""
    fds: list[int] = []
    links: list[Link] = []

    def make(name: str = "dev", flags: int = TUN) -> Link:
        fd, device = space.inside(lambda: open_device(name, flags | NO_PI))
        fds.append(fd)
        links.append(Link(device.name, space))
        return links[-1]

    yield make
    for link in links:
        link.close()
    for fd in fds:
        os.close(fd)


def ip(space: Namespace, *arguments: str) -> Any:
    if shutil.which("ip") is None:
        pytest.skip("the ip command is not here")
    out = space.run("ip", "-j", *arguments)
    return json.loads(out) if out.strip() else []


@needs_tuntap
def test_what_is_set_is_what_the_ip_command_shows(space: Namespace, make: Make) -> None:
    link = make(flags=TAP)
    link.set(up=True, mtu=1334, txqueuelen=99, hwaddr="02:00:00:00:00:09")
    link.add_address("10.1.1.1/24")
    link.add_address("10.1.1.1/24")  # it is there
    link.add_address("fd00::1/64")
    link.add_route("10.2.0.0/16", "10.1.1.7", metric=50)
    link.add_route("default", "10.1.1.8", source="10.1.1.1")
    link.add_route("fd02::/16", "fd00::7")
    link.add_route("10.3.0.0/16", table=1000)
    (told,) = ip(space, "addr", "show", "dev", "dev")
    assert (told["mtu"], told["txqlen"], told["address"]) == (1334, 99, "02:00:00:00:00:09")
    assert {"10.1.1.1", "fd00::1"} <= {address["local"] for address in told["addr_info"]}
    assert [str(address) for address in link.addresses()][:2] == ["10.1.1.1/24", "fd00::1/64"]
    routes = {route["dst"]: route for route in ip(space, "route") + ip(space, "-6", "route")}
    assert (routes["10.2.0.0/16"]["gateway"], routes["10.2.0.0/16"]["metric"]) == ("10.1.1.7", 50)
    assert (routes["default"]["gateway"], routes["default"]["prefsrc"]) == ("10.1.1.8", "10.1.1.1")
    assert routes["fd02::/16"]["gateway"] == "fd00::7"
    assert ip(space, "route", "show", "table", "1000")[0]["dst"] == "10.3.0.0/16"
    ours = {str(route.destination): route for route in link.routes()}
    assert (str(ours["10.2.0.0/16"].gateway), ours["10.2.0.0/16"].metric) == ("10.1.1.7", 50)
    assert ours["10.3.0.0/16"].table == 1000
    link.remove_route("10.2.0.0/16")
    link.remove_route("default")
    link.remove_route("fd02::/16", "fd00::7")
    link.remove_route("10.3.0.0/16", table=1000)
    link.remove_address("10.1.1.1/24")
    assert [route["dst"] for route in ip(space, "route")] == []
    assert "10.1.1.1/24" not in map(str, link.addresses())


@needs_tuntap
async def test_an_address_that_is_checked_takes_its_time(make: Make) -> None:
    link = make(flags=TAP)
    link.set(up=True, link_local=False)
    link.add_address("fd00::1/64")
    # On a busy machine the kernel tells itself of a new carrier up to a second later.
    await until(link.is_settled, "an address that is not checked can be used", 10)
    link.add_address("fd00::2/64", check=True)
    assert not link.is_settled()


@needs_tuntap
def test_the_state_is_what_the_kernel_says(make: Make) -> None:
    link = make("one%d")
    state = link.state()
    assert (state.name, state.up, state.running) == ("one0", False, False)
    assert (state.hwaddr, state.mtu) == (None, 1500)
    assert (state.txqueuelen, state.kind) == (500, "tun")
    link.set(up=True)
    assert (link.state().up, link.state().carrier) == (True, True)
    link.set(up=False, name="other")
    assert link.state().name == "other"
    assert link.find("other").ifindex == link.index
    assert link.find("lo").hwaddr == "00:00:00:00:00:00"


@needs_tuntap
@pytest.mark.parametrize(
    ("change", "number", "match"),
    [
        (lambda link: link.set(mtu=1), errno.EINVAL, "mtu less than device minimum"),
        (lambda link: link.remove_address("10.5.0.1/24"), errno.EADDRNOTAVAIL, "10.5.0.1/24"),
        (lambda link: link.remove_route("10.5.0.0/16"), errno.ESRCH, "route to 10.5.0.0/16"),
        (lambda link: link.add_route("10.5.0.0/16"), errno.ENETDOWN, "route to 10.5.0.0/16"),
        (lambda link: link.find("nobody"), errno.ENODEV, "there is no interface 'nobody'"),
        (lambda link: link.find(999), errno.ENODEV, "there is no interface 999"),
    ],
)
def test_what_the_kernel_refuses_is_told_with_its_reason(
    make: Make, change: Callable[[Link], object], number: int, match: str
) -> None:
    with pytest.raises(OSError, match=match) as told:
        change(make())
    assert told.value.errno == number


@needs_tuntap
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda link: link.set(mtu=-1), "mtu .-1. is a number from 0"),
        (lambda link: link.set(hwaddr="x"), "no hardware address"),
        (lambda link: link.set(name="a/b"), "no name of an interface"),
        (lambda link: link.add_address("10.5.0.1/44"), "no address of an interface"),
        (lambda link: link.add_address("10.5.0.1/32", "fd00::1"), "different families"),
        (lambda link: link.add_route("10.5.0.1/8"), "host bits set"),
        (lambda link: link.add_route("10.5.0.0/16", "fd00::1"), "different families"),
    ],
)
def test_what_cannot_be_is_not_asked_for(make: Make, change: Callable[[Link], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        change(make())


@needs_tuntap
def test_a_link_that_was_closed_says_so(make: Make, space: Namespace) -> None:
    make()
    with Link("dev", space) as link:
        held = link.hold()
    assert held.state().name == "dev"  # for whom it was held
    held.close()
    with pytest.raises(OSError, match="the link was closed"):
        link.state()
    assert repr(link) == f"<Link {link.index} closed>"


QUESTIONS: list[Callable[[Link], object]] = [
    lambda link: link.state(),
    lambda link: link.addresses(),
    lambda link: link.is_settled(),
    lambda link: link.routes(),
    lambda link: link.set(up=True),
    lambda link: link.add_address("10.5.0.1/24"),
    lambda link: link.remove_address("fd00::1/64"),
    lambda link: link.add_route("10.5.0.0/16"),
    lambda link: link.delete(),
]


def moved(link: Link) -> None:
    with Namespace() as other:
        request = netlink.link_setting(link.index)
        there = netlink.attribute(28, struct.pack("=I", other.fileno()))  # IFLA_NET_NS_FD
        link._ask(request._replace(body=request.body + there))


@needs_tuntap
@pytest.mark.parametrize("leave", [Link.delete, moved])
def test_whatever_is_asked_of_an_interface_that_has_gone_says_so(
    make: Make, leave: Callable[[Link], None]
) -> None:
    link = make()
    leave(link)
    match = rf"no interface 'dev' \(number {link.index}\) here any more: it was deleted, or is in another"
    for ask in QUESTIONS:
        with pytest.raises(OSError, match=match) as told:
            ask(link)
        assert told.value.errno == errno.ENODEV


@needs_tuntap
def test_an_interface_that_has_no_ipv6_is_not_said_to_have_gone(make: Make) -> None:
    link = make()
    link.set(up=True, mtu=1000)
    with pytest.raises(OSError, match=r"No such device \(route to fd00::/16\)") as told:
        link.add_route("fd00::/16")
    assert told.value.errno == errno.ENODEV


@needs_tuntap
@pytest.mark.parametrize(
    ("namespace", "error", "match"),
    [
        ("of-nobody", FileNotFoundError, "no network namespace '/run/netns/of-nobody'"),
        (2**30, FileNotFoundError, "no network namespace '/proc/1073741824/ns/net'"),
        (0, ValueError, "no id of a process"),
        ("", ValueError, "names no network namespace"),
        ("/dev/null", OSError, "is no network namespace"),
        (None.__class__, TypeError, "a path, a name or the id of a process"),
    ],
)
def test_what_is_no_namespace_is_told(namespace: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Link("lo", namespace)


def test_a_namespace_of_somebody_else_is_not_told_to_be_absent() -> None:
    with FaultPlan() as plan:
        plan.fail("open", errno=errno.EACCES)
        with pytest.raises(PermissionError, match="about the network namespace '/proc/1/ns/net'"):
            Link("lo", 1)


@needs_tuntap
async def test_changes_are_told_and_the_end(make: Make) -> None:
    link = make()
    states: list[Any] = []
    transport = await link.watch(states.append)
    link.set(up=True)
    await until(lambda: states and states[-1].up, "it was told that it is up")
    link.set(mtu=1300)
    await until(lambda: states[-1].mtu == 1300, "it was told of the MTU")
    link.delete()
    await until(lambda: states[-1] is None, "it was told that it is gone")
    await transport.aclose()


@needs_tuntap
async def test_after_an_overrun_of_the_queue_the_present_state_is_told(make: Make) -> None:
    link = make()
    states: list[Any] = []
    transport = await link.watch(states.append)
    sock = socket.socket(fileno=transport.fileno())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.detach()
    for number in range(50):
        link.set(mtu=1300 + number)
    await until(lambda: states and states[-1].mtu == 1349, "the last one was told")
    assert len(states) < 50
    assert not transport.is_closing()
    await transport.aclose()


@needs_tuntap
def test_an_answer_to_an_interrupted_request_is_not_taken_for_that_to_the_next(space: Namespace) -> None:
    with Link("lo", space) as link, FaultPlan() as plan:
        plan.fail("recvfrom", errno=errno.ENOMEM)
        with pytest.raises(OSError, match="Cannot allocate"):
            link.addresses()
        assert link.state().name == "lo"
        assert link.routes() == []


@needs_tuntap
def test_a_link_can_be_asked_by_several_threads(space: Namespace) -> None:
    with Link("lo", space) as link, ThreadPoolExecutor(4) as threads:
        states = list(threads.map(lambda _: (link.state().name, link.addresses()), range(200)))
    assert states == [("lo", [])] * 200


@pytest.mark.parametrize(
    ("name", "error"), [("lo\0x", ValueError), ("", ValueError), (b"lo", TypeError), (1 << 40, ValueError)]
)
def test_what_is_no_name_of_an_interface_is_not_looked_for(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="of an interface"):
        Link(name)


@needs_tuntap
@pytest.mark.parametrize("options", [{"metric": -1}, {"metric": 1 << 32}, {"table": -1}, {"table": 1 << 33}])
def test_a_number_of_a_route_that_cannot_be_is_named(make: Make, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} .* is a number from 0"):
        make().add_route("10.0.0.0/8", **options)
