"""What a serial line has besides its bytes, over a pair of virtual ports."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from typing import Any

import pytest
from serial_ends import end, terminal

from fdtransport import SerialError, connect_serial, open_serial
from fdtransport._core import serial_line, syscalls
from fdtransport._core.serial_rs485 import rs485_of
from fdtransport.serial import RS485, Characters, LineError, SerialSettings
from fdtransport.testing import (
    FaultPlan,
    RecordingBufferedProtocol,
    RecordingProtocol,
    SerialPair,
    VirtualPort,
    serial_pair,
)
from fdtransport.testing.observe import until

# -- settings ------------------------------------------------------------------------------------------------


async def test_settings_are_those_that_the_port_has(pair: SerialPair) -> None:
    transport, _ = await connect_serial(
        RecordingProtocol, pair.a.path, 250000, bytesize=7, parity="M", stopbits=2, xonxoff=True
    )
    wanted = SerialSettings(baudrate=250000, bytesize=7, parity="M", stopbits=2, xonxoff=True)
    assert transport.settings == wanted
    assert wanted.bits == 11
    assert await transport.reconfigure(baudrate=300, parity="N") == SerialSettings(
        baudrate=300, bytesize=7, stopbits=2, xonxoff=True
    )
    with pytest.raises(ValueError, match="stopbits"):
        await transport.reconfigure(stopbits=3)
    await end(transport)


async def test_reconfiguring_keeps_what_has_come_and_what_goes_and_the_lines(pair: SerialPair) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, pair.a.path, dtr=False)
    far, received = await connect_serial(RecordingProtocol, pair.b.path)
    transport.pause_reading()
    pair.a.receive(b"in")
    transport.write(b"out")
    before = dict(pair.b.uart.counts)
    await transport.reconfigure(baudrate=115200, bytesize=7)
    assert pair.a.lines >= {"rts"}
    assert {name: pair.b.uart.counts[name] for name in ("cts", "dsr")} == {
        name: before[name] for name in ("cts", "dsr")
    }, "a line has moved"
    transport.resume_reading()
    await until(lambda: (protocol.received, received.received) == (b"in", b"out"), "all has come")
    await end(transport, far)


async def test_a_setting_that_the_driver_has_not_changes_nothing() -> None:
    with terminal() as port:
        transport, _ = await connect_serial(RecordingProtocol, port.path, 9600)
        with pytest.raises(SerialError) as caught:
            await transport.reconfigure(baudrate=300, parity="E")
        assert caught.value.errno == errno.EINVAL
        assert transport.settings.baudrate == 9600
        assert serial_line.attributes_of(transport.fileno()).ospeed == 9600
        await end(transport)


async def test_a_rate_that_the_driver_rounds_is_told_as_it_is(pair: SerialPair) -> None:
    rounds = {100_000: 98_000, 250_000: 9600}

    def rounded(fd: int, request: int, argument: Any = 0) -> Any:
        answer = original(fd, request, argument)
        now = pair.a.uart.attributes
        pair.a.uart.attributes = now._replace(ospeed=rounds.get(now.ospeed, now.ospeed))
        return answer

    original, syscalls.ioctl = syscalls.ioctl, rounded
    try:
        transport, _ = await connect_serial(RecordingProtocol, pair.a.path, 100_000)
        assert transport.settings.baudrate == 98_000
        with pytest.raises(SerialError, match=r"250000 baud \(it has 9600\)"):
            await transport.reconfigure(baudrate=250_000)
        await end(transport)
    finally:
        syscalls.ioctl = original


async def test_low_latency_is_asked_of_the_driver(pair: SerialPair) -> None:
    transport, _ = await connect_serial(RecordingProtocol, pair.a.path, low_latency=True)
    assert serial_line.has_low_latency(transport.fileno())
    transport.serial.set_low_latency_mode(False)
    assert not serial_line.has_low_latency(transport.fileno())
    transport.serial.set_low_latency_mode(True)
    await end(transport)
    other, _ = await connect_serial(RecordingProtocol, pair.a.path)
    assert not serial_line.has_low_latency(other.fileno()), "it was not put back"
    await end(other)


# -- modem lines ---------------------------------------------------------------------------------------------


async def test_modem_lines_are_set_here_and_seen_there(pair: SerialPair) -> None:
    near, _ = await connect_serial(RecordingProtocol, pair.a.path, dtr=False, rts=False)
    far, _ = await connect_serial(RecordingProtocol, pair.b.path)
    assert (await near.modem_lines())[:2] == (False, False)
    lines = await far.modem_lines()
    assert (lines.dtr, lines.rts, lines.cts, lines.dsr, lines.cd, lines.ri) == (True, True, *[False] * 4)
    await near.set_modem_lines(rts=True)
    assert (await far.modem_lines()).cts
    assert not (await far.modem_lines()).dsr
    await near.set_modem_lines(dtr=True, rts=False)
    lines = await far.modem_lines()
    assert (lines.cts, lines.dsr, lines.cd) == (False, True, True)
    assert (near.serial.dtr, near.serial.rts) == (True, False)
    await end(near, far)
    with pytest.raises(SerialError):
        await near.modem_lines()


async def test_no_edge_of_a_line_is_lost(pair: SerialPair) -> None:
    transport, _ = await connect_serial(RecordingProtocol, pair.a.path)
    changes = transport.modem_changes()
    for _ in range(3):
        pair.a.set_line("cts", True)
        pair.a.set_line("cts", False)
    pair.a.set_line("cd", True)
    change = await anext(changes)
    assert dict(change.edges) == {"cts": 6, "cd": 1}
    assert (change.lines.cts, change.lines.cd) == (False, True)
    waiting = asyncio.ensure_future(anext(changes))
    only = transport.modem_changes("ri", "dsr")
    pair.a.set_line("ri", True)
    pair.a.set_line("ri", False)
    assert dict((await waiting).edges) == {"ri": 1}
    pair.a.set_line("cts", True)
    pair.a.set_line("dsr", True)
    assert dict((await anext(only)).edges) == {"ri": 1, "dsr": 1}
    with pytest.raises(ValueError, match="cts, dsr, ri, cd"):
        transport.modem_changes("rts")
    pair.a.unplug()
    assert [dict(change.edges) async for change in changes] in ([], [{"cts": 1, "dsr": 1}])


async def test_changes_are_seen_without_a_driver_that_counts(pair: SerialPair) -> None:
    with FaultPlan() as plan:
        transport, _ = await connect_serial(RecordingProtocol, pair.a.path)
        plan.fail("ioctl", errno=errno.ENOTTY)  # TIOCGICOUNT
        changes = transport.modem_changes()
        waiting = asyncio.ensure_future(anext(changes))
        await until(lambda: changes._bits is not None, "it has looked")
        pair.a.set_line("dsr", True)
        assert dict((await waiting).edges) == {"dsr": 1}
        await end(transport)


async def test_a_port_without_lines_says_so() -> None:
    with terminal() as port:
        transport, _ = await connect_serial(RecordingProtocol, port.path)
        with pytest.raises(SerialError) as caught:
            transport.counters()
        assert caught.value.errno == errno.ENOTTY
        for asking in (
            anext(transport.modem_changes()), transport.modem_lines(), transport.set_modem_lines(rts=True)
        ):  # fmt: skip
            with pytest.raises(SerialError, match=f"{port.path}.* no modem lines") as caught:
                await asking
            assert caught.value.errno == errno.ENOTTY
        with pytest.raises(SerialError, match=f"{port.path}.* no modem lines"):
            transport.serial.rts = False
        with pytest.raises(SerialError, match=f"{port.path}.* no modem lines"):
            _ = transport.serial.cts
        with pytest.raises(ValueError, match="no RS-485"):
            transport.serial.rs485_mode = None
        transport.serial.baudrate = 4800  # nothing stays of what was refused
        await end(transport)


# -- errors of the line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RecordingProtocol, RecordingBufferedProtocol])
async def test_breaks_and_damaged_characters_are_told_at_their_place(pair: SerialPair, kind: Any) -> None:
    errors: list[LineError] = []
    transport, protocol = await connect_serial(kind, pair.a.path, parity="E", on_line_error=errors.append)
    pair.a.receive(b"a\xff\0")
    pair.a.receive_break()
    pair.a.receive_damaged(ord("b"))
    pair.a.receive_damaged(0xFF, "frame")
    pair.a.receive(b"c")
    await until(lambda: protocol.received == b"a\xff\0b\xffc", "all has come")
    assert errors == [("break", 3, None), ("damaged", 3, ord("b")), ("damaged", 4, 0xFF)]
    counts = transport.counters()
    assert (counts.rx, counts.brk, counts.parity, counts.frame) == (6, 1, 1, 1)
    await end(transport)


async def test_a_break_alone_is_told(pair: SerialPair) -> None:
    errors: list[LineError] = []
    near, protocol = await connect_serial(RecordingProtocol, pair.a.path, on_line_error=errors.append)
    far, _ = await connect_serial(RecordingProtocol, pair.b.path)
    await far.send_break(0.001)
    await until(lambda: errors == [("break", 0, None)], "it was told")
    assert protocol.names == ["made"]
    await end(near, far)


async def test_marks_pass_a_real_terminal() -> None:
    with terminal() as port:
        transport, protocol = await connect_serial(RecordingProtocol, port.path, on_line_error=print)
        port.send(bytes(range(256)) * 4)
        await until(lambda: len(protocol.received) >= 1024, "all has come")
        assert protocol.received == bytes(range(256)) * 4
        await end(transport)


async def test_a_callback_for_errors_that_raises_is_reported(pair: SerialPair, reports: list[Any]) -> None:
    def wrong(error: LineError) -> None:
        raise RuntimeError("on purpose")

    transport, protocol = await connect_serial(RecordingProtocol, pair.a.path, on_line_error=wrong)
    pair.a.receive_break()
    pair.a.receive(b"x")
    await until(lambda: protocol.received == b"x", "it goes on")
    assert [str(report["exception"]) for report in reports] == ["on purpose"]
    await end(transport)


# -- frames --------------------------------------------------------------------------------------------------


async def test_each_frame_is_one_callback(pair: SerialPair) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, pair.a.path, read_gap=0.02)
    for frame in (b"\x01\x03\x00", bytes(3000), b"\x02"):
        before = protocol.count("data")
        for at in range(0, len(frame), 1000):
            pair.a.receive(frame[at : at + 1000])
            await asyncio.sleep(0)
        await until(lambda n=before: protocol.count("data") > n, "a frame came")
        assert protocol.events[-1] == ("data", frame)
    await end(transport)


async def test_a_silence_in_characters_follows_the_speed(pair: SerialPair) -> None:
    transport, _ = await connect_serial(RecordingProtocol, pair.a.path, 1200, read_gap=Characters(12))
    assert transport._gap == pytest.approx(0.1)
    await transport.reconfigure(baudrate=12000)
    assert transport._gap == pytest.approx(0.01)
    await end(transport)


async def test_a_frame_is_held_while_reading_is_paused_and_told_before_the_loss(pair: SerialPair) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, pair.a.path, read_gap=0.02)
    pair.a.receive(b"frame")
    await until(lambda: transport._frame, "it was read")
    transport.pause_reading()
    await asyncio.sleep(0.05)
    assert protocol.names == ["made"]
    transport.resume_reading()
    await until(lambda: protocol.received == b"frame", "it was told")
    pair.a.receive(b"last")
    await until(lambda: transport._frame, "it was read")
    pair.a.unplug()
    await until(lambda: protocol.lost, "the loss came")
    assert protocol.names == ["made", "data", "data", "lost"]
    assert protocol.received == b"framelast"


async def test_a_frame_that_never_ends_is_told_in_parts(pair: SerialPair) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, pair.a.path, read_gap=30)
    sent = 0
    while not protocol.received:
        pair.a.receive(bytes(1024))
        sent += 1024
        await asyncio.sleep(0)
    assert len(protocol.received) >= 65536
    detached = transport.detach()
    os.close(detached.file.fileno()) if isinstance(detached.file, int) else detached.file.close()
    await until(lambda: protocol.lost, "the loss came")


async def test_the_silence_can_be_given_in_characters() -> None:
    settings = SerialSettings(baudrate=9600)
    assert Characters(3.5).seconds(settings) == pytest.approx(3.5 * 10 / 9600)
    assert Characters(3.5, least=0.00175).seconds(SerialSettings(baudrate=115200)) == 0.00175
    with pytest.raises(ValueError, match="no frames"):
        await open_serial("/dev/null", read_gap=Characters(3.5))


# -- the wire ------------------------------------------------------------------------------------------------


async def test_draining_takes_as_long_as_the_line_does() -> None:
    async with serial_pair(speed=True) as pair:
        near, _ = await connect_serial(RecordingProtocol, pair.a.path, 9600)
        far, protocol = await connect_serial(RecordingProtocol, pair.b.path, 9600)
        loop = asyncio.get_running_loop()
        started = loop.time()
        near.write(bytes(48))  # 50 ms
        await near.flushed()
        done = await near.drain_wire()
        assert done - started >= 0.049
        assert near.serial.out_waiting == 0
        await until(lambda: len(protocol.received) == 48, "it came")
        near.write(bytes(4800))
        draining = asyncio.ensure_future(near.drain_wire())
        await asyncio.sleep(0.01)
        near.abort()
        with pytest.raises(OSError, match=r"."):
            await draining
        await end(near, far)


# -- RS-485 --------------------------------------------------------------------------------------------------


async def test_the_driver_is_told_of_rs485_and_put_back() -> None:
    async with serial_pair(rs485=True) as pair:
        wanted = RS485(delay_before_send=0.0021, rts_after_send=True, receive_while_sending=True)
        transport, _ = await connect_serial(RecordingProtocol, pair.a.path, rs485=wanted)
        assert rs485_of(transport.fileno()) == replace(wanted, delay_before_send=0.002)
        await end(transport)
        transport, _ = await connect_serial(RecordingProtocol, pair.a.path)
        assert rs485_of(transport.fileno()) is None
        await end(transport)
    with pytest.raises(ValueError, match="0 to 0"):
        RS485(delay_after_send=11)


async def test_what_the_driver_leaves_out_of_rs485_is_told() -> None:
    async with serial_pair(rs485=True) as pair:
        original, syscalls.ioctl = syscalls.ioctl, without_termination(syscalls.ioctl)
        try:
            with pytest.raises(SerialError, match=r"terminate=True.*terminate=False"):
                await connect_serial(RecordingProtocol, pair.a.path, rs485=RS485(terminate=True))
            assert rs485_of(pair.a.uart._slave) is None
        finally:
            syscalls.ioctl = original


def without_termination(ioctl: Any) -> Any:
    def call(fd: int, request: int, argument: Any = 0) -> Any:
        if request == 0x542F:
            argument[0] &= ~32
        return ioctl(fd, request, argument)

    return call


@pytest.mark.parametrize("delay", [0.0, 0.005])
async def test_rts_is_set_by_hand_around_what_is_sent(delay: float) -> None:
    async with serial_pair(speed=True) as pair:
        wanted = RS485(delay_before_send=delay, delay_after_send=delay)
        near, _ = await connect_serial(RecordingProtocol, pair.a.path, 460800, rs485=wanted)
        far, protocol = await connect_serial(RecordingProtocol, pair.b.path, 460800)
        assert "rts" not in pair.a.lines
        for n in range(1, 3):
            edges = pair.b.uart.counts["cts"]
            near.write(b"request")
            near.writelines([b" and", bytes(20000 if n == 1 else 10)])
            await until(lambda: "rts" in pair.a.lines, "RTS is on")
            if n == 1:
                near.flush()
            await until(lambda: "rts" not in pair.a.lines, "RTS is off", 10)
            assert pair.a.uart.unsent() == 0
            assert pair.b.uart.counts["cts"] == edges + 2
        await until(lambda: protocol.received.endswith(b"request and" + bytes(10)), "all has come")
        await end(near, far)


async def test_a_port_that_is_closed_while_it_sends_lets_the_line_go_afterwards() -> None:
    async with serial_pair(speed=True) as pair:
        near, _ = await connect_serial(RecordingProtocol, pair.a.path, 38400, rs485=RS485(), hupcl=False)
        far, protocol = await connect_serial(RecordingProtocol, pair.b.path, 38400)
        near.write(bytes(200))
        near.close()
        await near.aclose()
        assert "rts" not in pair.a.lines
        await until(lambda: len(protocol.received) == 200, "all has come")
        near, _ = await connect_serial(RecordingProtocol, pair.a.path, 38400, rs485=RS485(), hupcl=False)
        near.write(bytes(200))
        near.abort()
        await near.aclose()
        assert "rts" not in pair.a.lines
        await end(far)


async def test_a_break_that_is_cancelled_ends(pair: SerialPair) -> None:
    errors: list[LineError] = []
    near, _ = await connect_serial(RecordingProtocol, pair.a.path)
    far, _ = await connect_serial(RecordingProtocol, pair.b.path, on_line_error=errors.append)
    for _ in range(2):
        sending = asyncio.ensure_future(near.send_break(30))
        await until(lambda: pair.a.uart._break, "it has begun")
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not pair.a.uart._break
    await until(lambda: len(errors) == 2, "they were told")
    await end(near, far)


def test_a_virtual_port_tells_what_it_is() -> None:
    assert repr(VirtualPort("/dev/ttyX", speed=False, rs485=False)) == "<VirtualPort /dev/ttyX unplugged>"
