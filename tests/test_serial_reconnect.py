"""A serial port that comes and goes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import time
from typing import Any

import pytest
from serial_ends import Terminal, terminal

from fdtransport import ReconnectingSerial, SerialError, connect_serial, list_ports, serial_urls
from fdtransport.testing import FaultPlan, RecordingProtocol, SerialPair, serial_pair
from fdtransport.testing.observe import turns, until


async def lost(protocol: Any) -> None:
    await until(lambda: protocol.lost, "the loss came")


async def test_a_device_that_was_unplugged_is_opened_again_as_it_was() -> None:
    async with serial_pair() as pair, ReconnectingSerial(pair.a.path, 9600, dtr=False) as port:
        assert port.transport is None
        transport, protocol = await port.connect(RecordingProtocol)
        assert port.connected
        with pytest.raises(RuntimeError, match="open already"):
            await port.connect(RecordingProtocol)
        await transport.reconfigure(baudrate=115200, parity="E")
        await transport.set_modem_lines(rts=False)
        pair.a.unplug()
        await lost(protocol)
        assert not port.connected
        waiting = asyncio.ensure_future(port.connect(RecordingProtocol))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        plugged = time.monotonic()
        pair.a.plug()
        transport, protocol = await waiting
        assert time.monotonic() - plugged < 1.0
        assert (transport.settings.baudrate, transport.settings.parity) == (115200, "E")
        assert not pair.a.lines & {"dtr", "rts"}
        assert port.transport is transport


async def test_a_device_is_waited_for_without_a_look(tmp_path: Any) -> None:
    path = tmp_path / "by-id" / "device"
    waits: list[SerialError] = []
    async with ReconnectingSerial(path, on_wait=waits.append) as port:
        waiting = asyncio.ensure_future(port.connect(RecordingProtocol))
        await until(lambda: waits, "it waits")
        with FaultPlan() as plan:
            await asyncio.sleep(0.2)
            assert not plan.calls, "something was looked at"
        path.parent.mkdir()
        await until(lambda: len(waits) > 1, "it looks at the new directory")
        with terminal() as device:
            path.symlink_to(device.path)
            transport, protocol = await waiting
            assert {exc.errno for exc in waits} == {errno.ENOENT}
            device.send(b"hello")
            await until(lambda: protocol.received == b"hello", "it works")
            transport.close()
            await lost(protocol)


async def test_a_loop_over_it_has_a_reader_and_a_writer_each_time() -> None:
    lines: list[bytes] = []
    times = 0
    async with serial_pair() as pair, ReconnectingSerial(pair.a.path, first=0.001) as port:
        async for reader, writer in port:
            times += 1
            pair.a.receive(b"%d\n" % times)
            lines.append(await reader.readline())
            writer.write(b"noted")
            if times == 3:
                break
            pair.a.unplug()
            with pytest.raises(SerialError):
                await reader.read(1)
            pair.a.plug()
    assert lines == [b"1\n", b"2\n", b"3\n"]


async def test_a_port_that_somebody_else_has_is_tried_again_ever_more_rarely() -> None:
    waits: list[float] = []
    loop = asyncio.get_running_loop()
    with terminal() as device:
        other, protocol = await connect_serial(RecordingProtocol, device.path)
        port = ReconnectingSerial(
            device.path, first=0.01, most=0.08, on_wait=lambda exc: waits.append(loop.time())
        )
        waiting = asyncio.ensure_future(port.connect(RecordingProtocol))
        await until(lambda: len(waits) == 6, "it was tried six times")
        pauses = [after - before for before, after in itertools.pairwise(waits)]
        # uvloop's clock has whole milliseconds.
        assert all(
            pause > least - 0.001 for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.08, 0.08), strict=True)
        )
        other.close()
        await lost(protocol)
        await waiting
        await port.aclose()


async def test_what_waiting_does_not_change_is_raised(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SerialError) as caught:
        await ReconnectingSerial(tmp_path / "file").connect(RecordingProtocol)
    assert caught.value.errno == errno.ENOTTY
    with terminal() as device, pytest.raises(SerialError) as caught:
        await ReconnectingSerial(device.path, parity="E").connect(RecordingProtocol)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="first"):
        ReconnectingSerial("/dev/ttyS0", first=2, most=1)


async def test_cancelling_the_wait_leaves_nothing(tmp_path: Any) -> None:
    port = ReconnectingSerial(tmp_path / "device")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await port.connect(RecordingProtocol)
    device = Terminal()
    os.symlink(device.path, tmp_path / "device")
    _, writer = await port.open()
    writer.close()
    await writer.wait_closed()
    device.close()


async def test_it_works_where_nobody_can_be_told_of_files(tmp_path: Any) -> None:
    with FaultPlan() as plan, terminal() as device:
        plan.fail("inotify_init1", errno=errno.EMFILE, times=100)
        port = ReconnectingSerial(tmp_path / "device", first=0.001, most=0.01)
        waiting = asyncio.ensure_future(port.connect(RecordingProtocol))
        await asyncio.sleep(0.02)
        os.symlink(device.path, tmp_path / "device")
        await waiting
        await port.aclose()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
async def test_a_shortage_of_descriptors_or_memory_is_waited_out(number: int) -> None:
    waits: list[SerialError] = []
    with FaultPlan() as plan, terminal() as device:
        plan.fail("inotify_init1", errno=number, times=3)
        plan.fail("open", errno=number, times=3)
        async with ReconnectingSerial(device.path, first=0.001, on_wait=waits.append) as port:
            await port.connect(RecordingProtocol)
    assert [exc.errno for exc in waits] == [number] * 3


@pytest.mark.parametrize(
    "number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNRESET, socket.EAI_AGAIN]
)
async def test_a_network_that_is_down_is_waited_for(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[SerialError] = []
    dial = serial_urls.dial

    async def dialled(*arguments: Any) -> Any:
        if len(waits) < 3:
            raise OSError(number, "on purpose")
        return await dial(*arguments)

    monkeypatch.setattr(serial_urls, "dial", dialled)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = "socket://{}:{}".format(*server.getsockname())
        async with ReconnectingSerial(url, first=0.001, on_wait=waits.append) as port:
            await port.connect(RecordingProtocol)
    assert [exc.errno for exc in waits] == [number] * 3


# -- closed while it is waited for -----------------------------------------------------------------------


async def by_being_absent(port: ReconnectingSerial, pair: SerialPair) -> None:
    pair.a.unplug()


async def by_being_busy(port: ReconnectingSerial, pair: SerialPair) -> Any:
    other, _ = await connect_serial(RecordingProtocol, pair.a.path)
    return other


async def by_a_short_life(port: ReconnectingSerial, pair: SerialPair) -> None:
    transport, _ = await port.connect(RecordingProtocol)
    await transport.aclose()


@pytest.mark.parametrize("held_up", [by_being_absent, by_being_busy, by_a_short_life])
async def test_closing_ends_who_waits_with_one_error(held_up: Any) -> None:
    waits: list[SerialError] = []
    async with serial_pair() as pair:
        port = ReconnectingSerial(pair.a.path, first=30, most=30, on_wait=waits.append)
        other = await held_up(port, pair)
        waiting = asyncio.ensure_future(port.connect(RecordingProtocol))
        await until(lambda: waits or held_up is by_a_short_life, "it has failed")
        await turns()
        with pytest.raises(RuntimeError, match="another task waits"):
            await port.connect(RecordingProtocol)
        async with asyncio.timeout(3):
            await asyncio.gather(port.aclose(), port.aclose())
        assert waiting.done()
        with pytest.raises(SerialError, match=f"{pair.a.path} was closed while") as caught:
            await waiting
        assert caught.value.errno == errno.EBADF
        if other is not None:
            await other.aclose()
        if held_up is by_being_absent:
            pair.a.plug()
        port._first = port._most = 0.001
        await port.connect(RecordingProtocol)  # it can be used again
        await port.aclose()
        assert not port.connected


async def test_a_task_goes_on_after_the_error_as_if_it_had_not_been_cancelled(tmp_path: Any) -> None:
    port = ReconnectingSerial(tmp_path / "device")

    async def wait() -> int:
        with pytest.raises(SerialError):
            await port.open()
        await asyncio.sleep(0)
        current = asyncio.current_task()
        assert current is not None
        return current.cancelling()

    waiting = asyncio.ensure_future(wait())
    await until(lambda: port._waiting, "it waits")
    await port.aclose()
    assert await waiting == 0


async def test_a_wait_that_is_cancelled_and_closed_at_once_is_cancelled(tmp_path: Any) -> None:
    port = ReconnectingSerial(tmp_path / "device")
    waiting = asyncio.ensure_future(port.open())
    await until(lambda: port._waiting, "it waits")
    closing = asyncio.ensure_future(port.aclose())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await closing


@pytest.fixture
def closing_as_it_opens(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Task[None]]:
    """Every ``ReconnectingSerial`` is closed by another task in the turn in which its transport is there."""
    closing: list[asyncio.Task[None]] = []
    appear = ReconnectingSerial._appear

    async def closed(port: ReconnectingSerial, factory: Any) -> Any:
        def make() -> Any:
            protocol = factory()
            made = protocol.connection_made

            def also_close(transport: Any) -> None:
                made(transport)
                closing.append(asyncio.ensure_future(port.aclose()))

            protocol.connection_made = also_close
            return protocol

        return await appear(port, make)

    monkeypatch.setattr(ReconnectingSerial, "_appear", closed)
    return closing


async def test_a_device_that_comes_as_the_port_is_closed_is_closed_as_well(
    closing_as_it_opens: list[asyncio.Task[None]],
) -> None:
    with terminal() as device:
        port = ReconnectingSerial(device.path)
        await port.connect(RecordingProtocol)
        await closing_as_it_opens.pop()
        assert not port.connected
        other, _ = await connect_serial(RecordingProtocol, device.path)  # nobody has it
        await other.aclose()


async def test_a_loop_that_is_closed_as_the_device_comes_has_no_turn(
    closing_as_it_opens: list[asyncio.Task[None]],
) -> None:
    with terminal() as device:
        port = ReconnectingSerial(device.path)
        async for _ in port:
            pytest.fail("it was closed")
        await closing_as_it_opens.pop()
        assert not port.connected


async def test_closing_ends_a_loop_over_it_and_another_loop_opens_it_again() -> None:
    async def count(port: ReconnectingSerial) -> int:
        times = 0
        async for reader, _ in port:
            times += 1
            with pytest.raises(SerialError):
                await reader.read(1)
        return times

    async with serial_pair() as pair:
        port = ReconnectingSerial(pair.a.path, first=0.001)
        for _ in range(2):
            counting = asyncio.ensure_future(count(port))
            await until(lambda: port.connected, "it is open")
            pair.a.unplug()
            await until(lambda: port._waiting, "it waits")
            await port.aclose()
            assert await counting == 1
            pair.a.plug()


async def test_closing_in_the_body_of_a_loop_ends_it() -> None:
    with terminal() as device:
        times = 0
        async with ReconnectingSerial(device.path) as port:
            async for _ in port:
                times += 1
                await port.aclose()
    assert times == 1


def test_ports_are_listed_with_what_is_known_of_them() -> None:
    pytest.importorskip("serial")
    for port in asyncio.run(list_ports()):
        assert port.path.startswith("/dev/")
        assert port.by_id is None or os.path.realpath(port.by_id) == os.path.realpath(port.path)


async def test_a_reader_has_no_frames_here_either() -> None:
    port = ReconnectingSerial("/dev/ttyNONE", read_gap=0.01)
    with pytest.raises(ValueError, match="a reader has no frames"):
        await port.open()
    with pytest.raises(ValueError, match="a reader has no frames"):
        await anext(aiter(port))


async def test_a_loop_that_is_in_its_body_while_the_port_is_closed_does_not_take_the_next_one() -> None:
    with terminal() as one:
        port = ReconnectingSerial(one.path, first=0.01)
        looping, go_on = asyncio.Event(), asyncio.Event()

        async def loop() -> None:
            async for _reader, _writer in port:
                looping.set()
                await go_on.wait()

        task = asyncio.ensure_future(loop())
        await looping.wait()
        await port.aclose()
        _, writer = await port.open()
        go_on.set()
        await task
        assert not writer.transport.is_closing()
        await port.aclose()
