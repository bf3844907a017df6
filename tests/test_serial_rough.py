"""A serial port whose program, device or machine does what nobody would."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serial_ends import end, terminal

from fdtransport import ReconnectingSerial, SerialError, connect_serial, serial_reconnect
from fdtransport._core import serial_line, syscalls
from fdtransport.serial import RS485, Characters, connection_for_serial
from fdtransport.testing import (
    FaultPlan,
    RecordingBufferedProtocol,
    RecordingProtocol,
    SerialPair,
    serial_pair,
)
from fdtransport.testing.observe import until


class Gate:
    """Holds the threads that make a certain call of the kernel until the test lets them go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        call = getattr(serial_line, name)

        def wait(*args: Any, **options: Any) -> Any:
            self.reached.set()
            assert self._open.wait(5)
            return call(*args, **options)

        monkeypatch.setattr(serial_line, name, wait)

    def open(self) -> None:
        self._open.set()

    async def wait_until_reached(self) -> None:
        await until(self.reached.is_set, "the call is made")


# -- waiting for a device --------------------------------------------------------------------------------


async def test_a_port_that_is_busy_for_a_very_long_time_is_still_waited_for() -> None:
    waits: list[SerialError] = []
    with terminal() as device:
        other, _ = await connect_serial(RecordingProtocol, device.path)
        port = ReconnectingSerial(device.path, first=1e-6, most=1e-6, on_wait=waits.append)
        port._failures = 1022  # 85 minutes of it, with the usual pauses
        waiting = asyncio.ensure_future(port.connect(RecordingProtocol))
        await until(lambda: len(waits) > 10 or waiting.done(), "it was tried often")
        await end(other)
        await waiting
        await port.aclose()


async def test_a_directory_that_appears_while_the_watch_is_set_up_is_seen(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = serial_reconnect.file_events
    directory = tmp_path / "by-id"
    waits: list[SerialError] = []

    @contextlib.contextmanager
    def late(places: Any) -> Iterator[Any]:
        directory.mkdir(exist_ok=True)  # after it was looked for, and before anybody watches
        with watch(places) as events:
            yield events

    monkeypatch.setattr(serial_reconnect, "file_events", late)
    with terminal() as device:
        port = ReconnectingSerial(directory / "device", on_wait=waits.append)
        waiting = asyncio.ensure_future(port.connect(RecordingProtocol))
        await until(lambda: waits, "it was looked for")
        os.symlink(device.path, directory / "device")
        async with asyncio.timeout(3):
            await waiting
        await port.aclose()


async def test_a_directory_that_was_renamed_and_made_anew_is_watched(tmp_path: Any) -> None:
    directory = tmp_path / "by-id"
    directory.mkdir()
    waits: list[SerialError] = []
    with terminal() as device:
        port = ReconnectingSerial(directory / "device", on_wait=waits.append)
        waiting = asyncio.ensure_future(port.connect(RecordingProtocol))
        await until(lambda: waits, "it was looked for")
        directory.rename(tmp_path / "former")
        directory.mkdir()
        os.symlink(device.path, directory / "device")
        async with asyncio.timeout(3):
            await waiting
        await port.aclose()


# -- cancelled at the wrong moment -----------------------------------------------------------------------


async def test_an_edge_is_told_to_the_next_who_waits_if_the_first_was_cancelled(
    pair: SerialPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _ = await connect_serial(RecordingProtocol, pair.a.path)
    changes = transport.modem_changes("cts")
    gate = Gate(monkeypatch, "modem_lines")
    pair.a.set_line("cts", True)
    waiting = asyncio.ensure_future(changes.__anext__())
    await gate.wait_until_reached()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.open()
    async with asyncio.timeout(3):
        change = await changes.__anext__()
    assert change.lines.cts
    assert change.edges == {"cts": 1}
    await end(transport)


async def test_a_break_ends_however_often_it_is_cancelled(
    pair: SerialPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _ = await connect_serial(RecordingProtocol, pair.a.path)
    uart = pair.a.uart
    gate = Gate(monkeypatch, "set_break")
    sending = asyncio.ensure_future(transport.send_break(30))
    await gate.wait_until_reached()
    for _ in range(3):
        sending.cancel()
        await asyncio.sleep(0)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await end(transport)
    assert uart is not None
    assert not uart._break


async def test_a_port_that_is_closed_during_a_break_ends_it(pair: SerialPair) -> None:
    transport, _ = await connect_serial(RecordingProtocol, pair.a.path)
    uart = pair.a.uart
    assert uart is not None
    sending = asyncio.ensure_future(transport.send_break(30))
    await until(lambda: uart._break, "it has begun")
    await end(transport)
    assert not uart._break
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_two_who_reconfigure_at_once_both_have_their_way(pair: SerialPair) -> None:
    transport, _ = await connect_serial(RecordingProtocol, pair.a.path)
    for rate in (300, 600, 1200, 2400, 4800):
        parity = "E" if transport.settings.parity == "N" else "N"
        await asyncio.gather(
            transport.reconfigure(baudrate=rate, drain=False),
            transport.reconfigure(parity=parity, drain=False),
        )
        assert (transport.settings.baudrate, transport.settings.parity) == (rate, parity)
    await end(transport)


async def test_what_is_reconfigured_while_the_port_is_closed_is_put_back_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal() as device:
        kept = os.open(device.path, os.O_RDWR | os.O_NOCTTY)
        before = termios.tcgetattr(kept)
        transport, protocol = await connect_serial(RecordingProtocol, device.path, 300)
        gate = Gate(monkeypatch, "configured")
        changing = asyncio.ensure_future(transport.reconfigure(baudrate=115200))
        await gate.wait_until_reached()
        transport.abort()
        await asyncio.sleep(0.05)  # in which the port would be closed
        gate.open()
        await asyncio.gather(changing, return_exceptions=True)
        await until(lambda: protocol.lost, "the loss came")
        assert termios.tcgetattr(kept) == before
        os.close(kept)


async def test_a_port_with_its_direction_by_hand_is_closed_by_the_only_thread_that_there_is(
    pair: SerialPair,
) -> None:
    with ThreadPoolExecutor(1) as only:
        asyncio.get_running_loop().set_default_executor(only)
        for turns in range(30):  # whichever question is being asked then
            transport, protocol = await connect_serial(RecordingProtocol, pair.a.path, rs485=RS485())
            transport.write(bytes(200))
            for _ in range(turns):
                await asyncio.sleep(0)
            transport.close()
            await until(lambda protocol=protocol: protocol.lost, "the loss came")


# -- put back --------------------------------------------------------------------------------------------


async def test_a_call_that_fails_while_a_port_is_put_back_leaves_the_others() -> None:
    with terminal() as device:
        kept = os.open(device.path, os.O_RDWR | os.O_NOCTTY)
        before = termios.tcgetattr(kept)
        transport, _ = await connect_serial(RecordingProtocol, device.path, 300)
        with FaultPlan() as plan:
            plan.fail("ioctl", errno=errno.EINVAL)
            transport.abort()
            await transport.aclose()
        assert termios.tcgetattr(kept) == before
        os.close(kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_copy_of_the_process_leaves_the_port_of_the_first_one_alone() -> None:
    with terminal() as device:
        transport, _ = await connect_serial(RecordingProtocol, device.path, 300)
        before = serial_line.attributes_of(transport.fileno())
        pid = os.fork()
        if not pid:
            transport.__del__()
            os._exit(0)
        await asyncio.to_thread(os.waitpid, pid, 0)
        assert serial_line.attributes_of(transport.fileno()) == before
        with pytest.raises(SerialError):  # it is still exclusive
            await connect_serial(RecordingProtocol, device.path)
        await end(transport)


async def test_a_close_of_somebody_elses_that_raises_anything_is_told_and_is_the_end(
    reports: list[dict[str, Any]],
) -> None:
    serial = pytest.importorskip("serial")

    class Odd(serial.serial_for_url("loop://").__class__):  # type: ignore[misc]
        def close(self) -> None:
            super().close()
            raise KeyError("on purpose")

    odd = Odd("loop://")
    transport, protocol = await connection_for_serial(asyncio.get_running_loop(), RecordingProtocol, odd)
    transport.close()
    await until(lambda: protocol.lost, "the loss came")
    (report,) = reports
    assert report["message"] == "closing the descriptor failed"
    assert isinstance(report["exception"], KeyError)


async def test_a_driver_that_answers_einval_is_told_so_and_asked_in_the_other_way() -> None:
    with terminal() as device:
        transport, _ = await connect_serial(RecordingProtocol, device.path)
        with FaultPlan() as plan:
            plan.fail("ioctl", nth=2, errno=errno.EINVAL, fd=transport.fileno())  # after TCGETS2
            transport.serial.baudrate = 300
        assert transport.settings.baudrate == 300
        await end(transport)


# -- frames ----------------------------------------------------------------------------------------------


async def test_a_frame_that_is_being_gathered_goes_to_a_new_protocol_of_the_other_kind(
    pair: SerialPair,
) -> None:
    transport, _ = await connect_serial(RecordingProtocol, pair.a.path, read_gap=0.1)
    pair.a.receive(b"one")
    await until(lambda: transport._frame, "it is being gathered")
    new = RecordingBufferedProtocol()
    transport.set_protocol(new)
    pair.a.receive(b"two")
    await until(lambda: len(new.received) >= 6 or transport.is_closing(), "all came")
    assert new.received == b"onetwo"
    await end(transport)


NAN = float("nan")


@pytest.mark.parametrize(
    "option",
    [
        {"close_timeout": NAN}, {"close_timeout": -1}, {"close_timeout": "soon"},
        {"read_gap": NAN}, {"read_gap": -1}, {"read_gap": "soon"},
        {"read_gap": Characters(NAN)}, {"read_gap": Characters("x")}, {"read_gap": Characters(-1)},  # type: ignore[arg-type]
        {"rs485": 5}, {"on_line_error": 5},
    ],
    ids=str,
)  # fmt: skip
async def test_what_is_no_such_thing_is_refused(pair: SerialPair, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=name):
        await connect_serial(RecordingProtocol, pair.a.path, **option)


async def test_a_path_may_be_bytes(pair: SerialPair) -> None:
    transport, _ = await connect_serial(RecordingProtocol, os.fsencode(pair.a.path))  # type: ignore[arg-type]
    await end(transport)


async def test_an_expression_for_a_port_may_have_brackets() -> None:
    with pytest.raises(SerialError) as caught:
        await connect_serial(RecordingProtocol, "hwgrep://[Nn]o such [device]")
    assert caught.value.errno == errno.ENODEV


# -- virtual ports ---------------------------------------------------------------------------------------


async def test_all_ports_can_be_unplugged_while_a_fault_plan_holds() -> None:
    before = syscalls.ioctl
    async with serial_pair() as pair:
        with FaultPlan():
            pair.a.unplug()
            pair.b.unplug()
        pair.a.plug()
    assert syscalls.ioctl is before


async def test_a_virtual_port_whose_link_was_deleted_can_be_unplugged() -> None:
    before = syscalls.ioctl
    async with serial_pair() as pair:
        os.unlink(pair.a.path)
    assert syscalls.ioctl is before
