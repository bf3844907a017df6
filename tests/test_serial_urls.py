"""Serial ports by URL, and those that threads serve."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import os
import socket
import sys
import threading
from typing import Any

import pytest
from serial_ends import terminal

from fdtransport import SerialError, connect_fd, connect_serial, connect_url, relay, serial
from fdtransport.testing import RecordingProtocol
from fdtransport.testing.observe import descriptors, turns, until

pyserial = pytest.importorskip("serial")


async def end(transport: Any, protocol: Any) -> None:
    transport.close()
    await until(lambda: protocol.lost, "the loss came", 5)


async def test_a_socket_is_a_port_that_cannot_be_set_up() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        url = f"socket://127.0.0.1:{server.sockets[0].getsockname()[1]}?logging=debug"
        transport, protocol = await connect_serial(RecordingProtocol, url, 115200)
        transport.serial.rts = False
        transport.serial.baudrate = 300
        assert (transport.serial.cts, transport.settings.baudrate) == (True, 300)
        await transport.reconfigure(baudrate=1200)
        assert transport.settings.baudrate == 1200
        with pytest.raises(SerialError):
            await transport.modem_lines()
        transport.write(b"ping")
        await until(lambda: protocol.lost, "the loss came")
        assert protocol.received == b"ping"
        assert protocol.reason.errno == errno.ECONNRESET


async def test_a_loop_is_served_in_threads() -> None:
    before = threading.active_count()
    transport, protocol = await connect_serial(RecordingProtocol, "loop://", 115200)
    assert isinstance(transport.serial, pyserial.SerialBase)
    transport.write(b"round")
    await until(lambda: protocol.received == b"round", "it came back")
    await transport.set_modem_lines(rts=False)
    assert not (await transport.modem_lines()).cts
    assert (await transport.reconfigure(baudrate=300)).baudrate == 300
    for ask in (transport.modem_changes, transport.counters):
        with pytest.raises(SerialError, match="served by pyserial"):
            ask()
    await transport.drain_wire()
    await transport.send_break(0.001)
    with pytest.raises(SerialError) as caught:
        transport.detach()
    assert caught.value.errno == errno.EOPNOTSUPP
    await end(transport, protocol)
    assert protocol.reason is None
    names = [thread.name for thread in threading.enumerate()]
    assert "fdtransport.serial" not in names, (before, names)


def serve_rfc2217(listener: socket.socket) -> None:
    """One client of a port that gives back what it gets, by pyserial's own half of a server."""
    rfc2217 = importlib.import_module("serial.rfc2217")
    port = pyserial.serial_for_url("loop://", timeout=0.01)
    sock, _ = listener.accept()
    sock.settimeout(0.01)

    class Connection:
        def write(self, data: bytes) -> None:
            sock.sendall(data)

    manager = rfc2217.PortManager(port, Connection())
    with sock, contextlib.suppress(OSError):
        while True:
            try:
                data = sock.recv(1024)
            except TimeoutError:
                data = None
            if data == b"":
                break
            if data:
                port.write(b"".join(manager.filter(data)))
            back = port.read(port.in_waiting)
            if back:
                sock.sendall(b"".join(manager.escape(back)))
    port.close()


@pytest.mark.filterwarnings("ignore:set(Daemon|Name)")
async def test_a_port_of_another_machine_is_served_by_rfc2217() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve_rfc2217, args=(listener,))
        server.start()
        url = f"rfc2217://127.0.0.1:{listener.getsockname()[1]}"
        transport, protocol = await connect_serial(RecordingProtocol, url, 19200, exclusive=False)
        data = bytes(range(256)) * 20
        transport.write(data)
        await until(lambda: len(protocol.received) == len(data), "it came back", 10)
        assert protocol.received == data
        assert (await transport.modem_lines()).cts
        assert (await transport.reconfigure(baudrate=2400)).baudrate == 2400
        transport.write(b"the end")
        await until(lambda: protocol.received.endswith(b"the end"), "it came back", 10)
        await end(transport, protocol)
        assert protocol.reason is None
        await asyncio.to_thread(server.join)


async def test_an_error_in_a_thread_is_the_reason_of_the_loss() -> None:
    class Broken(pyserial.SerialBase):
        in_waiting = 0

        def __init__(self) -> None:
            super().__init__()
            self.told = threading.Event()

        def read(self, size: int = 1) -> bytes:
            self.told.wait(5)
            raise pyserial.SerialException("it fell off the table")

        def close(self) -> None:
            self.told.set()

    instance = Broken()
    loop = asyncio.get_running_loop()
    transport, protocol = await serial.connection_for_serial(loop, RecordingProtocol, instance)
    instance.told.set()
    await until(lambda: protocol.lost, "the loss came")
    assert "it fell off the table" in str(protocol.reason)
    assert isinstance(protocol.reason, pyserial.SerialException)
    assert transport.fileno() == -1


async def test_a_writer_that_waits_does_not_hold_the_loop_and_abort_ends_it() -> None:
    class Stuck(pyserial.SerialBase):
        in_waiting = 0

        def __init__(self) -> None:
            super().__init__()
            self.reading, self.writing = threading.Event(), threading.Event()

        def read(self, size: int = 1) -> bytes:
            self.reading.wait(5)
            return b""

        def cancel_read(self) -> None:
            self.reading.set()

        def write(self, data: bytes) -> int:
            self.writing.wait(5)
            return len(data)

        def cancel_write(self) -> None:
            self.writing.set()

        def close(self) -> None:
            pass

    loop = asyncio.get_running_loop()
    transport, protocol = await serial.connection_for_serial(loop, RecordingProtocol, Stuck())
    transport.write(bytes(1 << 20))
    transport.close()
    await asyncio.sleep(0.01)
    assert not protocol.lost
    transport.abort()
    await until(lambda: protocol.lost, "the loss came")


async def test_options_that_write_or_load_have_to_be_allowed(tmp_path: Any) -> None:
    with terminal() as port:
        file = tmp_path / "log"
        loop = asyncio.get_running_loop()
        for url, option in (
            (f"spy://{port.path}?file={file}", "file"),
            (f"alt://{port.path}?class=VTIMESerial", "class"),
        ):
            for connecting in (
                connect_serial(RecordingProtocol, url),
                serial.create_serial_connection(loop, RecordingProtocol, url),
            ):
                with pytest.raises(SerialError, match=rf"allow=\('{option}',\)") as caught:
                    await connecting
                assert caught.value.errno == errno.EPERM
        with pytest.raises(TypeError, match=r"allow is a collection of names, as \('file',\)"):
            await connect_serial(RecordingProtocol, f"spy://{port.path}?file={file}", allow="file")
        assert not file.exists()
        for url, allow in (
            (f"spy://{port.path}?file={file}", ["file"]),
            (f"alt://{port.path}?class=VTIMESerial", ["class"]),
            (f"alt://{port.path}", []),
        ):
            transport, protocol = await connect_serial(RecordingProtocol, url, allow=allow)
            transport.write(b"\xa5")
            await until(lambda: port.received() == b"\xa5", "it came out")
            port.send(b"in")
            await until(lambda p=protocol: p.received == b"in", "it came")
            await end(transport, protocol)
            if allow == ["file"]:
                transport.serial.formatter.output.close()
        assert "A5" in file.read_text()


async def refused(number: int, text: str, url: str, **options: Any) -> None:
    before = descriptors()
    with pytest.raises(SerialError, match=text) as caught:
        await connect_serial(RecordingProtocol, url, **options)
    assert caught.value.errno == number
    assert descriptors() == before


async def test_what_is_no_port_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    await refused(errno.EINVAL, "not known", "carrier-pigeon://roof")
    await refused(errno.EINVAL, "socket://host:port", "socket://host")
    await refused(errno.EINVAL, "socket://host:port", "socket://host:99999")
    await refused(errno.EINVAL, "unknown option 'x'", "socket://127.0.0.1:1?x=1")
    await refused(errno.EINVAL, ".", "loop://?x=1")
    await refused(errno.EINVAL, ".", "socket://[::1")
    await refused(errno.ECONNREFUSED, "cannot open socket", f"socket://127.0.0.1:{free}")
    await refused(errno.ECONNREFUSED, "cannot open rfc2217", f"rfc2217://127.0.0.1:{free}")
    await refused(errno.ENODEV, "no ports found", "hwgrep://no such device anywhere")
    await refused(errno.EINVAL, ".", "hwgrep://*")
    await refused(errno.EINVAL, "unknown option", "hwgrep://x&y=1")
    await refused(errno.EOPNOTSUPP, "leave low_latency out", "loop://", low_latency=True)
    await refused(errno.EOPNOTSUPP, "leave on_line_error out", "socket://h:1", on_line_error=print)


async def test_without_pyserial_paths_and_sockets_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    await refused(errno.EPROTONOSUPPORT, r"pip install fdtransport\[serial\]", "rfc2217://127.0.0.1:1")
    with terminal() as port:
        transport, protocol = await connect_serial(RecordingProtocol, port.path)
        await end(transport, protocol)


def test_the_library_is_imported_without_pyserial() -> None:
    import subprocess

    program = (
        "import sys; sys.modules['serial'] = None\n"
        "import fdtransport, fdtransport.serial\n"
        "assert issubclass(fdtransport.SerialError, OSError)\n"
        "print(fdtransport.SerialError.__mro__[1].__name__)"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout == "TransportError\n"


def test_the_exception_is_pyserials_too() -> None:
    assert issubclass(SerialError, pyserial.SerialException)


async def test_an_endpoint_names_a_port_and_its_settings() -> None:
    with terminal() as port:
        transport, protocol = await connect_url(
            RecordingProtocol, f"serial:{port.path}?baud=57600&stop=2&xonxoff&exclusive=no"
        )
        settings = transport.settings
        assert (settings.baudrate, settings.stopbits, settings.xonxoff) == (57600, 2, True)
        assert not transport.serial.exclusive
        await end(transport, protocol)
        for wrong in ("?baud=fast", "?parity=X", "?colour=1", "?bits=9"):
            with pytest.raises(ValueError, match=r"."):
                await connect_url(RecordingProtocol, f"serial:{port.path}{wrong}")


async def test_a_relay_gives_the_port_back_when_the_other_end_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serial.SerialTransport, "_EOF_SILENCE", 0.2)
    with terminal() as port:
        transport, _ = await connect_serial(RecordingProtocol, port.path)
        near, far = socket.socketpair()
        other, _ = await connect_fd(RecordingProtocol, near.detach())
        relaying = asyncio.ensure_future(relay(other, transport))
        await turns(3)  # what comes before it has begun is for the protocol
        far.sendall(b"ATZ\r")
        far.shutdown(socket.SHUT_WR)
        await until(lambda: port.received() == b"ATZ\r", "it came out")
        port.send(b"OK\r")
        result = await relaying
        assert (result.error, result.a_to_b.bytes, result.b_to_a.bytes) == (None, 4, 3)
        assert far.recv(10) == b"OK\r"
        far.close()
        again, protocol = await connect_serial(RecordingProtocol, port.path)
        await end(again, protocol)


async def test_where_ports_are_no_descriptors_the_transport_is_pyserial_asyncios(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serial_asyncio = pytest.importorskip("serial_asyncio")
    for module in ("serial", "serial_connect"):
        monkeypatch.setattr(f"fdtransport.{module}.WINDOWS", True)
    loop = asyncio.get_running_loop()
    with terminal() as port:
        for connecting in (
            connect_serial(RecordingProtocol, port.path, 115200),
            serial.create_serial_connection(loop, RecordingProtocol, port.path, baudrate=115200),
            serial.connection_for_serial(loop, RecordingProtocol, pyserial.Serial(port.path)),
        ):
            transport, protocol = await connecting
            assert type(transport) is serial_asyncio.SerialTransport
            port.send(b"in")
            await until(lambda p=protocol: p.received == b"in", "it came")
            await end(transport, protocol)
    monkeypatch.setitem(sys.modules, "serial_asyncio", None)
    with pytest.raises(SerialError, match="pyserial-asyncio"):
        await serial.connection_for_serial(loop, RecordingProtocol, None)
