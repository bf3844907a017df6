"""Serial ports: opening, pyserial-asyncio's names, the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import inspect
import os
import pickle
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serial_ends import Terminal, terminal

from fdtransport import SerialError, SerialTransport, connect_serial, open_serial, serial
from fdtransport.testing import FaultPlan, RecordingBufferedProtocol, RecordingProtocol, serial_pair
from fdtransport.testing.observe import descriptors, until


@pytest.fixture
def port() -> Iterator[Terminal]:
    with terminal() as made:
        yield made


async def lost(protocol: Any) -> None:
    await until(lambda: protocol.lost, "the loss came")


# -- pyserial-asyncio's names ------------------------------------------------------------------------------


async def test_the_three_functions_have_their_signatures(port: Terminal) -> None:
    assert list(inspect.signature(serial.create_serial_connection).parameters) == [
        "loop", "protocol_factory", "args", "kwargs"
    ]  # fmt: skip
    assert list(inspect.signature(serial.connection_for_serial).parameters) == [
        "loop", "protocol_factory", "serial_instance"
    ]  # fmt: skip
    assert list(inspect.signature(serial.open_serial_connection).parameters) == ["loop", "limit", "kwargs"]
    assert list(inspect.signature(serial.SerialTransport).parameters)[:3] == [
        "loop", "protocol", "serial_instance"
    ]  # fmt: skip


async def test_create_serial_connection_takes_pyserials_arguments(port: Terminal) -> None:
    loop = asyncio.get_running_loop()
    port.send(b"before")  # what has come before is not thrown away
    transport, protocol = await serial.create_serial_connection(
        loop, RecordingProtocol, port.path, 19200, 7, "E", 2, 1, False, False, 1, False, None,
        exclusive=True, writeTimeout=3, interCharTimeout=4,
    )  # fmt: skip
    assert protocol.names[0] == "made"
    assert isinstance(transport, asyncio.Transport)
    assert transport.loop is loop
    assert transport.serial is transport.get_extra_info("serial")
    assert (transport.serial.baudrate, transport.serial.parity) == (19200, "E")
    assert transport.serial.inter_byte_timeout == 4
    assert termios.tcgetattr(port.master)[5] == termios.B19200
    await until(lambda: protocol.received == b"before", "what came before was told")
    transport.write(b"out")
    await until(lambda: port.received() == b"out", "it came out")
    assert not transport.can_write_eof()
    with pytest.raises(NotImplementedError):
        transport.write_eof()
    transport.close()
    await lost(protocol)
    assert protocol.reason is None
    assert not transport.serial.is_open


async def test_what_pyserial_refuses_is_refused(port: Terminal) -> None:
    loop = asyncio.get_running_loop()
    for wrong in ({"parity": "X"}, {"bytesize": 9}, {"stopbits": 3}, {"baudrate": "fast"}, {"colour": 1}):
        with pytest.raises(ValueError, match=r"."):
            await serial.create_serial_connection(loop, RecordingProtocol, port.path, **wrong)
    with pytest.raises(SerialError):
        await serial.create_serial_connection(loop, RecordingProtocol, None)


async def test_streams_read_and_write_and_tell_the_loss(port: Terminal) -> None:
    reader, writer = await serial.open_serial_connection(url=port.path, baudrate=115200, limit=100)
    port.send(b"a line\n")
    assert await reader.readline() == b"a line\n"
    writer.write(b"answer")
    await writer.drain()
    await until(lambda: port.received() == b"answer", "it came out")
    port.close()
    with pytest.raises(SerialError) as caught:
        await reader.read(1)
    assert caught.value.errno == errno.EIO
    with pytest.raises(SerialError):
        await writer.wait_closed()


async def test_flush_throws_away_what_was_queued(port: Terminal) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, port.path)
    while not protocol.paused:
        transport.write(bytes(10000))
    taken = transport.get_write_buffer_size()
    assert taken > 65536
    transport.flush()
    assert transport.get_write_buffer_size() == 0
    assert not protocol.paused
    transport.write(b"the end")
    transport.close()
    received = bytearray()
    while not received.endswith(b"the end"):
        received += port.received()
        await asyncio.sleep(0)
    await lost(protocol)
    assert protocol.names == ["made", "paused", "resumed", "lost"]


async def test_a_buffered_protocol_is_read_into(port: Terminal) -> None:
    transport, protocol = await connect_serial(lambda: RecordingBufferedProtocol(100), port.path)
    port.send(b"into it")
    await until(lambda: protocol.received == b"into it", "it came")
    transport.abort()
    await lost(protocol)


async def test_the_port_of_a_transport_is_set_up_under_pyserials_names() -> None:
    loop = asyncio.get_running_loop()
    async with serial_pair() as pair:
        transport, protocol = await serial.create_serial_connection(
            loop, RecordingProtocol, url=pair.a.path, baudrate=9600, parity="O"
        )
        port = transport.serial
        assert pair.a.lines >= {"dtr", "rts"}
        port.rts = port.dtr = False
        assert (port.rts, port.dtr) == (False, False)
        assert not pair.a.lines & {"dtr", "rts"}
        pair.a.set_line("cts", True)
        assert (port.cts, port.dsr, port.ri, port.cd) == (True, False, False, False)
        port.baudrate = 38400
        port.apply_settings({"parity": "N", "stopbits": 2, "timeout": 3})
        assert {"baudrate": 38400, "parity": "N", "stopbits": 2}.items() <= port.get_settings().items()
        transport.pause_reading()
        pair.a.receive(b"12345")
        await until(lambda: port.in_waiting == 5, "it was counted")
        port.reset_input_buffer()
        assert port.inWaiting() == 0
        assert port.write(b"by this way") == 11
        assert (port.name, port.port, port.fileno()) == (pair.a.path, pair.a.path, port.fd)
        assert port.isOpen()
        assert "38400 baud 8N2" in repr(port)
        transport.write(b", and this")
        port.close()
        assert transport.is_closing()
        port.close()  # which is under way
        await lost(protocol)
        assert port.fd is None
        with pytest.raises(SerialError):
            port.rts = True


async def test_an_instance_of_pyserial_is_served_by_its_descriptor(port: Terminal) -> None:
    pyserial = pytest.importorskip("serial")
    instance = pyserial.Serial(port.path, 115200)
    loop = asyncio.get_running_loop()
    transport, protocol = await serial.connection_for_serial(loop, RecordingProtocol, instance)
    assert transport.serial is instance
    assert transport.fileno() == instance.fd
    instance.baudrate = 9600  # has a read of nothing give b"" from now on
    for n in range(3):
        port.send(b"%d" % n)
        await until(lambda n=n: len(protocol.received) == n + 1, "it came")
    transport.write(b"out")
    transport.close()
    await lost(protocol)
    assert (protocol.reason, port.received(), instance.is_open) == (None, b"out", False)
    with pytest.raises(pyserial.SerialException):
        await serial.connection_for_serial(loop, RecordingProtocol, instance)


async def test_a_class_with_its_own_read_and_write_is_served_by_them(port: Terminal) -> None:
    pyserial = pytest.importorskip("serial")

    class Louder(pyserial.Serial):
        def read(self, size: int = 1) -> bytes:
            return super().read(size).upper()

        def write(self, data: Any) -> Any:
            return super().write(bytes(data).upper())

    loop = asyncio.get_running_loop()
    transport, protocol = await serial.connection_for_serial(loop, RecordingProtocol, Louder(port.path))
    port.send(b"in")
    await until(lambda: protocol.received == b"IN", "it came")
    transport.write(b"out")
    transport.close()
    await lost(protocol)
    assert (protocol.reason, port.received()) == (None, b"OUT")


# -- opening ------------------------------------------------------------------------------------------------


async def refused(number: int, *words: str, **options: Any) -> None:
    before = descriptors()
    with pytest.raises(SerialError) as caught:
        await connect_serial(RecordingProtocol, **options)
    assert caught.value.errno == number
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert descriptors() == before
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.errno, str(again)) == (type(caught.value), number, str(caught.value))


async def test_what_cannot_be_opened_says_why(port: Terminal, tmp_path: Any) -> None:
    await refused(errno.ENOENT, "/dev/no such", "list_ports", url="/dev/no such")
    await refused(errno.ENOTTY, "is a directory", url=tmp_path)
    await refused(errno.ENOTTY, "no serial port", url="/dev/null")
    (tmp_path / "file").write_text("")
    await refused(errno.ENOTTY, "is a regular file", url=tmp_path / "file")
    await refused(errno.ENOENT, "no path", url="/dev/tty\0S0")
    await refused(errno.EINVAL, "parity 'E' (it has 'N')", "no parity", url=port.path, parity="E")
    await refused(errno.EINVAL, "bytesize 7", url=port.path, bytesize=7)
    await refused(errno.ENOTTY, "no lines DTR and RTS", url=port.path, dtr=True)
    await refused(errno.ENOTTY, "no low latency", url=port.path, low_latency=True)
    await refused(errno.ENOTTY, "neither an RS-485", url=port.path, rs485=serial.RS485())
    with pytest.raises(FileNotFoundError):
        await connect_serial(RecordingProtocol, "/dev/no such")
    wrong: dict[str, Any]
    for wrong in (
        {"baudrate": 0}, {"baudrate": "fast"}, {"baudrate": 9600.0}, {"parity": "X"}, {"parity": []},
        {"stopbits": True}, {"rtscts": 1}, {"bytesize": None}, {"read_gap": -1},
        {"read_gap": "3"}, {"read_gap": serial.Characters(0)}, {"close_timeout": -1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            await connect_serial(RecordingProtocol, port.path, **wrong)


async def test_no_permission_is_told_as_such(port: Terminal) -> None:
    with FaultPlan() as plan:
        plan.fail("open", errno=errno.EACCES)
        await refused(errno.EACCES, "must be in the group", url=port.path)
        plan.fail("open", errno=errno.EACCES)
        with pytest.raises(PermissionError):
            await connect_serial(RecordingProtocol, port.path)


async def test_a_rate_that_the_driver_refuses_is_told(port: Terminal) -> None:
    with FaultPlan() as plan:
        plan.fail("ioctl", nth=4, errno=errno.EINVAL)  # TIOCEXCL, twice TCGETS2, and then TCSETS2
        await refused(errno.EINVAL, "12345678 baud", url=port.path, baudrate=12345678)


async def test_any_rate_is_set_where_the_driver_has_it(port: Terminal) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, port.path, 31250)
    assert transport.settings.baudrate == 31250
    transport.close()
    await lost(protocol)


async def test_an_exclusive_port_is_nobody_elses(port: Terminal) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, port.path)
    modes = termios.tcgetattr(port.master)
    await refused(errno.EBUSY, "in use", url=port.path, baudrate=300)
    assert termios.tcgetattr(port.master) == modes, "the port of somebody else was set up"
    transport.close()
    await lost(protocol)
    again, protocol = await connect_serial(RecordingProtocol, port.path)
    # Who does not ask for it is let in, where the kernel does not keep root out.
    again.serial.exclusive = False
    other, second = await connect_serial(RecordingProtocol, port.path, exclusive=False)
    for transport in (again, other):
        transport.close()
    await lost(protocol)
    await lost(second)


async def test_a_port_is_put_back_as_it_was(port: Terminal) -> None:
    before = termios.tcgetattr(port.master)
    for finish in ("close", "abort"):
        transport, protocol = await connect_serial(RecordingProtocol, port.path, 57600, stopbits=2)
        assert termios.tcgetattr(port.master) != before
        getattr(transport, finish)()
        await lost(protocol)
        assert termios.tcgetattr(port.master) == before


async def test_a_port_that_somebody_else_has_set_up_since_is_left_so(port: Terminal) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, port.path, 57600)
    modes = termios.tcgetattr(port.master)
    modes[4] = modes[5] = termios.B1200
    termios.tcsetattr(port.master, termios.TCSANOW, modes)
    transport.close()
    await lost(protocol)
    assert termios.tcgetattr(port.master)[4] == termios.B1200


async def test_what_came_before_is_dropped_if_asked_for(port: Terminal) -> None:
    port.send(b"old")
    transport, protocol = await connect_serial(RecordingProtocol, port.path, discard_input=True)
    port.send(b"new")
    await until(lambda: protocol.received, "something came")
    assert protocol.received == b"new"
    transport.abort()
    await lost(protocol)


async def test_dtr_and_rts_are_set_at_open_and_lowered_at_close_as_asked() -> None:
    async with serial_pair() as pair:
        for dtr, rts, hupcl in ((False, False, None), (False, True, False), (None, None, True)):
            transport, protocol = await connect_serial(
                RecordingProtocol, pair.a.path, dtr=dtr, rts=rts, hupcl=hupcl
            )
            now = pair.a.lines & {"dtr", "rts"}
            assert now == {name for name, on in (("dtr", dtr), ("rts", rts)) if on is not False}
            transport.close()
            await lost(protocol)
            left = pair.a.lines & {"dtr", "rts"}
            assert left == (now if hupcl is False else set())


async def test_a_descriptor_above_1024_is_like_any_other(port: Terminal) -> None:
    filling = []
    try:
        while not filling or filling[-1] < 1100:
            filling.append(os.dup(port.master))
        transport, protocol = await connect_serial(RecordingProtocol, port.path)
        assert transport.fileno() > 1024
        port.send(b"in")
        await until(lambda: protocol.received == b"in", "it came")
        transport.close()
        await lost(protocol)
    finally:
        for fd in filling:
            os.close(fd)


# -- the end ------------------------------------------------------------------------------------------------


async def test_a_hang_up_is_an_error_that_says_what_has_gone(port: Terminal) -> None:
    transport, protocol = await connect_serial(RecordingProtocol, port.path)
    port.close()
    await lost(protocol)
    assert protocol.names == ["made", "lost"]
    assert isinstance(protocol.reason, SerialError)
    assert protocol.reason.errno == errno.EIO
    assert port.path in str(protocol.reason)
    assert "its other end was closed" in str(protocol.reason)
    assert "no such device any more" in str(protocol.reason)
    assert transport.close_reason.value == "error"


async def test_a_port_can_be_opened_again_from_inside_connection_lost(port: Terminal) -> None:
    opened: list[Any] = []

    def reopen(protocol: Any, exc: Exception | None) -> None:
        opened.append(asyncio.ensure_future(connect_serial(RecordingProtocol, port.path)))

    transport, protocol = await connect_serial(lambda: RecordingProtocol(lost=reopen), port.path)
    transport.close()
    await lost(protocol)
    second, protocol = await opened[0]
    second.close()
    await lost(protocol)


async def stalled(pair: Any) -> tuple[SerialTransport, Any]:
    """A transport with something that its line does not take."""
    transport, protocol = await connect_serial(RecordingProtocol, pair.a.path, rtscts=True)
    pair.a.set_line("cts", False)
    transport.write(b"for nobody")
    await until(lambda: transport.serial.out_waiting == 10, "the line has it")
    return transport, protocol


async def test_close_waits_for_the_line_off_the_loop_and_abort_cuts_that_short() -> None:
    async with serial_pair() as pair:
        transport, protocol = await stalled(pair)
        transport.close()
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.shield(transport.aclose())
        assert not protocol.lost
        await transport.aclose(timeout=0.05)  # its abort() throws away what is unsent
        assert time.monotonic() - started < 2
        assert (protocol.lost, protocol.reason) == (True, None)
        transport, protocol = await stalled(pair)
        transport.close()
        pair.a.set_line("cts", True)
        await lost(protocol)


async def test_a_line_that_takes_long_does_not_hold_the_threads_of_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fdtransport.serial_transport.BRIEFLY", 0.01)
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        async with serial_pair() as pair:
            transport, protocol = await stalled(pair)
            transport.close()
            async with asyncio.timeout(5):
                await loop.run_in_executor(None, int)
            assert not protocol.lost
            pair.a.set_line("cts", True)
            await lost(protocol)
            transport, protocol = await stalled(pair)
            transport.close_timeout = 0.05
            transport.close()
            await lost(protocol)
            assert protocol.reason is None


async def test_cancelling_an_opening_leaves_nothing_and_the_port_free(port: Terminal) -> None:
    before = descriptors()
    for n in range(60):
        task = asyncio.ensure_future(connect_serial(RecordingProtocol, port.path))
        for _ in range(n % 6):
            await asyncio.sleep(0)
        if n % 3 == 0:
            await asyncio.sleep(0.0005)
        task.cancel()
        try:
            transport, _ = await task
        except asyncio.CancelledError:
            pass
        else:
            transport.abort()
    transport, protocol = await connect_serial(RecordingProtocol, port.path)
    await until(lambda: len(descriptors()) == len(before) + 1, "only one is open")
    transport.close()
    await lost(protocol)


def test_a_program_that_returns_right_after_close_is_told_and_can_open_the_port_again(port: Terminal) -> None:
    protocols: list[Any] = []

    async def main(how: str) -> None:
        transport, protocol = await connect_serial(RecordingProtocol, port.path)
        protocols.append(protocol)
        transport.write(b"x")
        getattr(transport, how)()

    for n in range(60):
        asyncio.run(main(("close", "abort")[n % 2]))
    assert [protocol.names for protocol in protocols] == [["made", "lost"]] * 60


async def test_two_loops_can_have_a_port_in_turn(port: Terminal) -> None:
    async def once() -> None:
        _, writer = await open_serial(port.path)
        writer.close()
        await writer.wait_closed()

    await once()
    thread = threading.Thread(target=lambda: asyncio.run(once()))
    thread.start()
    await asyncio.to_thread(thread.join)
    await once()
