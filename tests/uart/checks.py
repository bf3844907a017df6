"""What is checked on real ports. Each check may ask the host for something, and returns what it saw.

ttyS1 and ttyS2 are two 16550A with a cable between them, ttyUSB0 is an FTDI that gives back what it gets and
can be unplugged, ttyACM0 is a modem of USB whose other side, ttyGS0, is here too: its carrier is on for as
long as that is open.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from loop_stalls import Longest

from fdtransport import serial
from fdtransport.testing.observe import idle_cost, pattern, until

if TYPE_CHECKING:
    from .guest import Host

ONE, OTHER, USB, MODEM, GADGET = "/dev/ttyS1", "/dev/ttyS2", "/dev/ttyUSB0", "/dev/ttyACM0", "/dev/ttyGS0"
#: Of ioctl_tty(2); termios has no name for the second.
DTR, RTS, CTS, LOOP = termios.TIOCM_DTR, termios.TIOCM_RTS, termios.TIOCM_CTS, 0x8000

Check = Callable[["Host"], Awaitable[str | None]]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__.removeprefix("_")] = function
    return function


class Log(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


async def opened(path: str, baudrate: int = 115200, **options: Any) -> tuple[Any, Log]:
    return await serial.connect_serial(Log, path, baudrate, **options)


async def closed(transport: Any, log: Log) -> None:
    transport.close()
    await until(lambda: log.lost, "the port was closed", 10)
    assert log.lost == [None], log.lost


@asynccontextmanager
async def cable(**options: Any) -> AsyncIterator[tuple[Any, Log, Any, Log]]:
    """The two ports that a cable joins; *options* are the first one's."""
    one, its_log = await opened(ONE, **options)
    other, other_log = await opened(OTHER)
    yield one, its_log, other, other_log
    await closed(one, its_log)
    await closed(other, other_log)


@contextmanager
def beside(path: str) -> Iterator[int]:
    """A descriptor of our own, to see what the library does to the port; opening it raises DTR and RTS."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def lines(fd: int) -> int:
    answer = array.array("i", [0])
    fcntl.ioctl(fd, termios.TIOCMGET, answer)
    return answer[0]


def set_lines(fd: int, request: int, which: int) -> None:
    fcntl.ioctl(fd, request, array.array("i", [which]))


@check
async def settings_are_read_back_from_the_driver(host: Host) -> str:
    with beside(ONE) as fd:
        before = termios.tcgetattr(fd)
        transport, log = await opened(ONE, 19200, bytesize=7, parity="E", stopbits=2)
        cflag, speed = termios.tcgetattr(fd)[2], termios.tcgetattr(fd)[5]
        assert cflag & termios.CSIZE == termios.CS7
        assert cflag & termios.PARENB
        assert not cflag & termios.PARODD
        assert cflag & termios.CSTOPB
        assert speed == termios.B19200
        its = transport.serial
        assert (its.baudrate, its.bytesize, its.parity, its.stopbits) == (19200, 7, "E", 2)
        its.parity, its.baudrate = "O", 9600
        assert termios.tcgetattr(fd)[2] & termios.PARODD
        await closed(transport, log)
        assert termios.tcgetattr(fd) == before, "the settings were not put back"
    return "19200 7E2, then 9600 7O2, then as before"


@check
async def every_framing_that_the_chip_has(host: Host) -> str:
    seen = 0
    for parity in "NEOMS":
        for bytesize in (5, 6, 7, 8):
            transport, log = await opened(ONE, bytesize=bytesize, parity=parity)
            assert (transport.serial.bytesize, transport.serial.parity) == (bytesize, parity)
            await closed(transport, log)
            seen += 1
    return f"{seen} framings"


@check
async def a_rate_that_the_driver_rounds(host: Host) -> str:
    said = None
    try:
        await opened(ONE, 250_000)
    except serial.SerialError as exc:
        said = exc
    assert said is not None, "250000 baud were accepted, which the chip has not"
    assert said.errno == errno.EINVAL
    loop = asyncio.get_running_loop()
    transport, log = await serial.create_serial_connection(loop, Log, ONE, baudrate=250_000)
    with beside(ONE) as fd:
        named = {getattr(termios, name): int(name[1:]) for name in dir(termios) if name[1:].isdigit()}
        actual = named[termios.tcgetattr(fd)[5]]
    assert transport.serial.baudrate == actual != 250_000, transport.serial.baudrate
    await closed(transport, log)
    transport, log = await opened(USB, 250_000)
    assert transport.serial.baudrate == 250_000
    await closed(transport, log)
    return str(said)


@check
async def bytes_go_both_ways_over_a_cable(host: Host) -> str:
    async with cable() as (one, its_log, other, other_log):
        there, back = pattern(20_000), pattern(20_000, 7)
        began = time.monotonic()
        one.write(there)
        other.write(back)
        await until(lambda: len(other_log.data) >= 20_000 and len(its_log.data) >= 20_000, "all came", 30)
        seconds = time.monotonic() - began
        assert bytes(other_log.data) == there
        assert bytes(its_log.data) == back
    return f"20 kB each way in {seconds:.1f} s"


@check
async def all_bytes_are_data(host: Host) -> str:
    async with cable() as (one, _, _, other_log):
        every = bytes(range(256))
        one.write(every)
        await until(lambda: len(other_log.data) >= 256, "all came", 10)
        assert bytes(other_log.data) == every
    return "256 of 256 unchanged"


@check
async def lines_at_the_opening(host: Host) -> str:
    states = ((None, None), (True, False), (False, True), (False, False))
    for path in (ONE, USB, MODEM):
        for dtr, rts in states:
            transport, log = await opened(path, dtr=dtr, rts=rts)
            now = lines(transport.serial.fileno())
            assert bool(now & DTR) == (dtr is not False), (path, dtr, rts, hex(now))
            assert bool(now & RTS) == (rts is not False), (path, dtr, rts, hex(now))
            await closed(transport, log)
    return f"{len(states)} states of three drivers"


@check
async def lines_are_set_and_seen(host: Host) -> str:
    transport, log = await opened(ONE)
    its = transport.serial
    set_lines(its.fileno(), termios.TIOCMBIS, LOOP)  # the chip looks at what it says itself: CTS is its RTS
    try:
        for on in (True, False, True):
            its.rts = its.dtr = on
            assert its.cts is on
            assert its.dsr is on
            assert bool(lines(its.fileno()) & RTS) is on
    finally:
        set_lines(its.fileno(), termios.TIOCMBIC, LOOP)
    await closed(transport, log)
    return "CTS follows RTS, and DSR follows DTR"


@check
async def hanging_up_is_as_asked_for(host: Host) -> str:
    for hupcl in (True, False):
        transport, log = await opened(ONE, hupcl=hupcl)
        await closed(transport, log)
        assert bool(dtr_of(ONE)) is not hupcl, hupcl
    transport, log = await opened(ONE, hupcl=True)
    await closed(transport, log)
    return "DTR falls with it and stays without"


def dtr_of(path: str) -> int:
    """DTR of a port that nobody has open: opening it would raise the line, so this is the driver's word."""
    number = path.removeprefix("/dev/ttyS")
    with open("/proc/tty/driver/serial") as told:
        line = next(line for line in told if line.startswith(f"{number}:"))
    return "DTR" in line


@check
async def the_usb_port_gives_back(host: Host) -> str:
    transport, log = await opened(USB)
    every = bytes(range(256)) * 4
    transport.write(every)
    await until(lambda: len(log.data) >= len(every), lambda: f"all came: {len(log.data)}", 10)
    assert bytes(log.data) == every
    await closed(transport, log)
    return f"{len(every)} bytes"


@check
async def the_driver_counts(host: Host) -> str:
    async with cable() as (one, _, other, other_log):
        before, other_before = one.counters(), other.counters()
        one.write(bytes(1000))
        await until(lambda: len(other_log.data) >= 1000, "all came", 10)
        await one.drain_wire()
        assert one.counters().tx - before.tx == 1000
        assert other.counters().rx - other_before.rx == 1000
        assert other.counters().overrun == other_before.overrun
    return "tx 1000 here, rx 1000 there"


@check
async def a_break_is_told_between_the_bytes(host: Host) -> str:
    errors: list[Any] = []
    async with cable(on_line_error=errors.append) as (one, log, other, _):
        before = one.counters()
        every = bytes(range(256))
        other.write(every)
        await until(lambda: len(log.data) >= 256, "all came", 10)
        await host.ask("break", port="pair1")
        await until(lambda: errors, "the break was told", 10)
        other.write(b"after")
        await until(lambda: len(log.data) >= 261, "the rest came", 10)
        assert bytes(log.data) == every + b"after", "marks are no data, and FF is data"
        assert errors == [serial.LineError("break", 256, None)], errors
        assert one.counters().brk - before.brk == 1
    return f"{errors[0]}, and the driver counted it"


@check
async def a_break_that_nobody_asked_about_is_a_zero(host: Host) -> str:
    one, log = await opened(ONE)
    await host.ask("break", port="pair1")
    await until(lambda: log.data, "it came", 10)
    assert bytes(log.data) == b"\0"
    await closed(one, log)
    return "b'\\x00', as pyserial has it"


@check
async def a_break_that_we_send_arrives(host: Host) -> str:
    errors: list[Any] = []
    modem, log = await opened(MODEM, on_line_error=errors.append)
    gadget, its_log = await opened(GADGET, 9600)  # it has no rate, and says so
    before = modem.counters().brk
    began = time.monotonic()
    await gadget.send_break(0.1)
    seconds = time.monotonic() - began
    await until(lambda: modem.counters().brk > before, "it was counted", 10)
    assert seconds >= 0.1
    await closed(gadget, its_log)
    await closed(modem, log)
    return f"{modem_break(errors)}, counted once, after {seconds:.2f} s"


def modem_break(errors: list[Any]) -> str:
    return str(errors[0]) if errors else "no mark (this driver has none)"


@check
async def low_latency_is_set_and_put_back(host: Host) -> str:
    for path in (ONE, USB):
        with beside(path) as fd:
            before = flags_of(fd)
            transport, log = await opened(path, low_latency=True)
            assert flags_of(fd) & LOW_LATENCY, hex(flags_of(fd))
            await closed(transport, log)
            assert flags_of(fd) == before, (hex(flags_of(fd)), hex(before))
    return "ASYNC_LOW_LATENCY on both, and as before after it"


LOW_LATENCY = 1 << 13


def flags_of(fd: int) -> int:
    """TIOCGSERIAL: the fifth number."""
    answer = array.array("i", [0] * 32)
    fcntl.ioctl(fd, termios.TIOCGSERIAL, answer)
    return answer[4]


@check
async def carrier_comes_and_goes(host: Host) -> str:
    transport, log = await opened(MODEM)
    assert not (await transport.modem_lines()).cd
    changes = transport.modem_changes("cd")
    other = asyncio.ensure_future(transport.modem_changes("cd", "dsr").__anext__())
    told = asyncio.ensure_future(changes.__anext__())
    await asyncio.sleep(0.1)
    assert not told.done()
    began = time.monotonic()
    with beside(GADGET):
        change = await asyncio.wait_for(told, 10)
        seconds = time.monotonic() - began
        assert change.lines.cd
        assert change.lines.dsr
        assert change.edges == {"cd": 1}, change
        assert (await asyncio.wait_for(other, 10)).edges == {"cd": 1, "dsr": 1}
    change = await asyncio.wait_for(changes.__anext__(), 10)
    assert not change.lines.cd
    for _ in range(3):  # while nobody looks
        with beside(GADGET):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.02)
    change = await asyncio.wait_for(changes.__anext__(), 10)
    assert not change.lines.cd
    edges = change.edges["cd"]
    assert edges == 6, change
    waiting = asyncio.ensure_future(changes.__anext__())
    await asyncio.sleep(0)
    await closed(transport, log)
    try:
        await asyncio.wait_for(waiting, 10)
    except StopAsyncIteration:
        pass
    else:
        raise AssertionError("it goes on after the transport")
    return f"told after {seconds * 1000:.0f} ms; {edges} edges that nobody waited for"


@check
async def modem_calls_leave_the_loop_alone(host: Host) -> str:
    seen = []
    for path in (ONE, USB, MODEM):
        transport, log = await opened(path)
        with Longest() as longest:
            for on in (False, True):
                await transport.set_modem_lines(dtr=on, rts=on)
                lines_now = await transport.modem_lines()
                assert lines_now.dtr is on
                assert lines_now.rts is on
            await transport.reconfigure(baudrate=19200)
            await transport.drain_wire()
        seen.append(f"{path} {longest.seconds * 1000:.1f} ms")
        await closed(transport, log)
    return ", ".join(seen)


@check
async def reconfiguring_keeps_the_lines_and_what_has_come(host: Host) -> str:
    async with cable(dtr=True, rts=False) as (one, log, other, _):
        one.pause_reading()
        other.write(b"before")
        await until(lambda: one.serial.in_waiting >= 6, "it came", 10)
        fd = one.serial.fileno()
        settings = await one.reconfigure(baudrate=57600, parity="O")
        assert (settings.baudrate, settings.parity) == (57600, "O")
        assert lines(fd) & DTR
        assert not lines(fd) & RTS
        one.resume_reading()
        await until(lambda: len(log.data) >= 6, "it is still there", 10)
        assert bytes(log.data) == b"before"
    return "57600 8O1 with DTR on, RTS off and six bytes"


@check
async def the_wire_is_drained(host: Host) -> str:
    async with cable() as (one, _, _, other_log):
        began = asyncio.get_running_loop().time()
        one.write(bytes(5000))
        left = await one.drain_wire() - began
        assert one.serial.out_waiting == 0
        await until(lambda: len(other_log.data) >= 5000, "all came", 10)
    return f"5000 bytes had left after {left:.2f} s"


@check
async def rts_is_the_direction_where_the_driver_has_no_rs485(host: Host) -> str:
    direction = serial.RS485(delay_after_send=0.3)
    async with cable(rs485=direction) as (one, log, other, other_log):
        fd = one.serial.fileno()
        assert not lines(fd) & RTS, "it does not listen at first"
        one.write(b"question")
        await until(lambda: lines(fd) & RTS, "it sends", 5)
        await until(lambda: len(other_log.data) >= 8, "the question came", 10)
        await until(lambda: not lines(fd) & RTS, "it listens again", 5)
        other.write(b"answer")
        await until(lambda: len(log.data) >= 6, "the answer came", 10)
    return "RTS off, on for the question, off for the answer"


@check
async def a_frame_is_one_call(host: Host) -> str:
    calls: list[bytes] = []

    class Frames(Log):
        def data_received(self, data: bytes) -> None:
            calls.append(data)

    one, log = await serial.connect_serial(Frames, ONE, 115200, read_gap=0.2)
    other, other_log = await opened(OTHER)
    frames = [bytes([n]) * 200 for n in range(3)]
    for number, frame in enumerate(frames, 1):
        for byte in range(0, 200, 50):
            other.write(frame[byte : byte + 50])
            await asyncio.sleep(0.01)
        await until(lambda number=number: len(calls) >= number, "the frame came", 10)
    assert calls == frames
    await closed(one, log)
    await closed(other, other_log)
    return "3 frames of 4 writes each"


@check
async def unplugging_is_told(host: Host) -> str:
    transport, log = await opened(USB)
    transport.write(b"something")
    try:
        began = time.monotonic()
        await host.ask("unplug")
        await until(lambda: log.lost, "it was told", 10)
        seconds = time.monotonic() - began
        (exc,) = log.lost
        assert isinstance(exc, serial.SerialError), repr(exc)
        assert exc.errno in (errno.EIO, errno.ENXIO, errno.ENODEV), repr(exc)
        assert not transport.serial.is_open
        transport.write(b"more")
        transport.close()
        idle = await idle_cost(0.5)
        assert idle.cpu < 0.2, str(idle)
        assert len(log.lost) == 1
    finally:
        await plugged(host)
    return f"{exc} ({seconds * 1000:.0f} ms)"


@check
async def unplugging_while_closing(host: Host) -> str:
    transport, log = await opened(USB)
    transport.write(bytes(200_000))
    transport.close()
    try:
        await host.ask("unplug")
        await until(lambda: log.lost, "it was told", 10)
    finally:
        await plugged(host)
    again, its_log = await opened(USB)
    await closed(again, its_log)
    return f"connection_lost({log.lost[0]!r}), and it opens again"


async def plugged(host: Host) -> None:
    await host.ask("plug")
    await until(lambda: os.path.exists(USB), "the port is there again", 20)


@check
async def plugging_in_again_goes_on(host: Host) -> str:
    waits: list[Any] = []
    times: list[float] = []
    port = serial.ReconnectingSerial(USB, 115200, on_wait=waits.append)
    transport, log = await port.connect(Log)
    await transport.reconfigure(baudrate=57600, parity="E")
    await transport.set_modem_lines(rts=False)
    for _ in range(3):
        await asyncio.sleep(1.1)  # one that goes at once would be waited for
        await host.ask("unplug")
        await until(lambda log=log: log.lost, "it was told", 10)
        again = asyncio.ensure_future(port.connect(Log))
        await until(lambda: not os.path.exists(USB), "the port has gone", 10)
        await asyncio.sleep(0.3)
        idle = await idle_cost(0.5)
        assert idle.wakeups < 10, str(idle)
        assert not again.done()
        await host.ask("plug")
        await until(lambda: os.path.exists(USB), "the port is there again", 20)
        appeared = time.monotonic()
        transport, log = await asyncio.wait_for(again, 10)
        times.append(time.monotonic() - appeared)
        assert not (await transport.modem_lines()).rts
        modes = termios.tcgetattr(transport.serial.fileno())
        assert modes[5] == termios.B57600
        assert modes[2] & termios.PARENB
        transport.write(b"hello")
        await until(lambda log=log: bytes(log.data) == b"hello", "it goes on", 10)
    await port.aclose()
    assert not port.connected
    slowest = max(times)
    assert slowest < 1, times  # in emulation; a tenth of it elsewhere
    return f"open {slowest * 1000:.0f} ms after it was there, 57600 8E1 and RTS off as before; {waits[0]}"


@check
async def the_ports_are_listed(host: Host) -> str:
    ports = {port.path: port for port in await serial.list_ports()}
    assert (ports[USB].vid, ports[USB].pid) == (0x0403, 0x6001), ports[USB]
    assert ports[MODEM].vid is not None
    assert ports[ONE].vid is None
    return ", ".join(sorted(ports))
