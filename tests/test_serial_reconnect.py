"""A serial port that comes and goes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import time
from typing import Any

import pytest
from serial_ends import Terminal, terminal

from fdtransport import ReconnectingSerial, SerialError, connect_serial, list_ports
from fdtransport.testing import FaultPlan, RecordingProtocol, serial_pair
from fdtransport.testing.observe import until


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
        assert all(
            pause >= least for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.08, 0.08), strict=True)
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


def test_ports_are_listed_with_what_is_known_of_them() -> None:
    pytest.importorskip("serial")
    for port in asyncio.run(list_ports()):
        assert port.path.startswith("/dev/")
        assert port.by_id is None or os.path.realpath(port.by_id) == os.path.realpath(port.path)
