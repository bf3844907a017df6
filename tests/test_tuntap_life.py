"""TUN and TAP that end in the middle of something: nothing stays, and nothing is closed twice."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from network import Namespace, needs_tuntap, own_namespace_unchanged, udp, udp_socket

from fdtransport import LinkState, connect_tuntap, connect_tuntap_queues
from fdtransport._core import syscalls
from fdtransport.testing import FaultPlan, RecordingDatagramProtocol, descriptors
from fdtransport.testing.observe import until

pytestmark = needs_tuntap


@pytest.fixture
def space() -> Iterator[Namespace]:
    with own_namespace_unchanged(), Namespace() as space:
        yield space


class Watching(RecordingDatagramProtocol):
    def link_changed(self, state: LinkState) -> None:
        """So that there is a watch to be closed as well."""


def names(space: Namespace) -> list[str]:
    return space.inside(lambda: sorted(name for _, name in socket.if_nameindex()))


async def closed(space: Namespace) -> None:
    await until(lambda: names(space) == ["lo"], lambda: f"the interface is gone: {names(space)}")


@pytest.mark.parametrize("persist", [None, True])
@pytest.mark.parametrize("queues", [1, 3])
async def test_cancelled_at_any_turn_it_leaves_no_interface(
    space: Namespace, queues: int, persist: bool | None
) -> None:
    before = descriptors()
    options: dict[str, Any] = {"netns": space, "addresses": "fd00::1/64", "persist": persist}
    for turns in range(12):
        made: Any = (
            connect_tuntap(Watching, "undone", **options)
            if queues == 1
            else connect_tuntap_queues(Watching, "undone", queues=queues, **options)
        )
        task = asyncio.ensure_future(made)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            done = await task
        except asyncio.CancelledError:
            assert names(space) == ["lo"], turns
            continue
        for transport in [done[0]] if queues == 1 else done.transports:
            if persist:
                transport.set_persist(False)
            await transport.aclose()
        await closed(space)
    gc.collect()
    await until(lambda: descriptors() == before, "all descriptors are closed")


async def test_a_persistent_interface_stays_when_attaching_to_it_fails(space: Namespace) -> None:
    transport, _ = await connect_tuntap(RecordingDatagramProtocol, "stays", netns=space, persist=True)
    await transport.aclose()
    attaching = asyncio.ensure_future(
        connect_tuntap(
            RecordingDatagramProtocol, "stays", netns=space, persist=True, addresses="fd00::1/64"
        )
    )
    await asyncio.sleep(0)
    attaching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attaching
    assert names(space) == ["lo", "stays"]


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_one_that_ends_itself_while_its_helper_is_cancelled_is_closed_once(
    space: Namespace, end: str
) -> None:
    closes: list[int] = []

    def close(fd: int) -> None:
        closes.append(fd)
        os.close(fd)

    class Fickle(RecordingDatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            getattr(transport, end)()
            task.cancel()

    with pytest.MonkeyPatch.context() as patch:
        task = asyncio.ensure_future(connect_tuntap(Fickle, "fickle", netns=space))
        await asyncio.sleep(0)
        patch.setattr(syscalls, "close", close)
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed(space)
    assert len(closes) == 1


async def test_a_number_of_queues_that_is_none_leaves_nothing(space: Namespace) -> None:
    before = descriptors()
    for queues in (2.0, "2"):
        with pytest.raises(TypeError):
            await connect_tuntap_queues(
                RecordingDatagramProtocol, "none", queues=queues, netns=space  # type: ignore[arg-type]
            )
    assert names(space) == ["lo"]
    assert descriptors() == before


async def test_any_call_that_fails_leaves_no_interface_with_everything_asked_for(space: Namespace) -> None:
    before = descriptors()
    calls = ("open", "ioctl", "setns", "send", "recvfrom")
    injected = 0
    for call in calls:
        for nth in range(1, 40):
            with FaultPlan() as plan:
                plan.fail(call, nth, errno.ENOMEM)
                try:
                    group = await connect_tuntap_queues(
                        Watching, "fails", queues=2, netns=space, mode="tap", mtu=1400,
                        hwaddr="02:00:00:00:00:01",
                        addresses=["10.9.0.1/24", "fd00::1/64"], routes=["10.7.0.0/16"], sndbuf=1 << 20,
                        persist=True, owner=0, group=0, link_local=False, txqueuelen=7,
                    )  # fmt: skip
                except OSError:
                    assert names(space) == ["lo"], (call, nth)
                    injected += 1
                    continue
            group.transports[0].set_persist(False)
            await group.aclose()
            await closed(space)
            if not plan.injected:
                break
    gc.collect()
    assert descriptors() == before
    assert injected > 30


async def test_one_that_is_moved_to_another_namespace_goes_on_there(space: Namespace) -> None:
    transport, protocol = await connect_tuntap(
        Watching, "moves", netns=space, addresses="10.9.0.1/24", link_local=False
    )
    with Namespace() as other:
        child = await asyncio.to_thread(other.inside, lambda: subprocess.Popen(["sleep", "60"]))
        try:
            space.run("ip", "link", "set", "moves", "netns", str(child.pid))
        finally:
            child.kill()
            child.wait()
        transport.sendto(udp(b"nobody is there yet"))
        transport.sendto(udp(bytes(3000)))
        assert [getattr(error, "errno", None) for error in protocol.errors] == [errno.EIO, errno.EMSGSIZE]
        other.run("ip", "addr", "add", "10.9.0.1/24", "dev", "moves")
        other.run("ip", "link", "set", "moves", "up")
        with udp_socket(other) as sock:
            transport.sendto(udp(b"moved"))
            assert sock.recv(100) == b"moved"
        assert transport.get_extra_info("mtu", "unknown") == "unknown"
        with pytest.raises(OSError, match="there is no interface"):
            transport.link.state()
        await transport.aclose()
        assert protocol.reason is None
