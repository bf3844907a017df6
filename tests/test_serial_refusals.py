"""What cannot be opened says why, with the errno of the kernel and one line of what would be right; nothing
stays open (conftest looks), and what is there already is left as it was.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal_pair import port

from fdtransport.serial import (
    SerialError,
    connect_serial,
    create_serial_connection,
    open_serial,
    open_serial_connection,
)

serial = pytest.importorskip("serial")


async def modern(url: Any, *args: Any, **options: Any) -> None:
    await connect_serial(asyncio.Protocol, url, *args, **options)


async def stream(url: Any, *args: Any, **options: Any) -> None:
    await open_serial(url, *args, **options)


async def drop_in(url: Any, *args: Any, **options: Any) -> None:
    await create_serial_connection(asyncio.get_running_loop(), asyncio.Protocol, url, *args, **options)


async def drop_in_stream(url: Any, *args: Any, **options: Any) -> None:
    if args:
        options["baudrate"] = args[0]
    await open_serial_connection(url=url, **options)


WAYS = (modern, stream, drop_in, drop_in_stream)
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


async def refused(
    way: Callable[..., Any], number: int | None, *words: str, of: tuple[Any, ...], **options: Any
) -> Exception:
    with pytest.raises((SerialError, ValueError)) as caught:
        await way(*of, **options)
    exc = caught.value
    if number is not None:
        assert isinstance(exc, SerialError), repr(exc)
        assert exc.errno == number, repr(exc)
        assert isinstance(exc, OSError)
        assert isinstance(exc, serial.SerialException)
    text = str(exc)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return exc


@every_way
async def test_no_such_device(way: Any) -> None:
    exc = await refused(way, errno.ENOENT, "/dev/ttyNONE7", "list", of=("/dev/ttyNONE7",))
    assert isinstance(exc, FileNotFoundError)


@every_way
async def test_what_is_no_serial_port(way: Any, tmp_path: Path) -> None:
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    file.write_bytes(b"kept")
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        for path in (file, fifo, tmp_path / "socket", tmp_path, Path("/dev/null")):
            await refused(way, errno.ENOTTY, str(path), of=(str(path),))
    assert file.read_bytes() == b"kept"


@every_way
async def test_what_is_no_path(way: Any) -> None:
    await refused(way, errno.ENOENT, of=("/dev/tty\0",))
    await refused(way, None, of=("",))


@every_way
async def test_a_port_that_another_process_has(way: Any) -> None:
    with port() as one:
        fcntl.flock(one.kept, fcntl.LOCK_EX)
        await refused(way, errno.EBUSY, one.path, "in use", of=(one.path,), exclusive=True)


@every_way
async def test_a_port_that_this_process_has(way: Any) -> None:
    with port() as one:
        transport, protocol = await connect_serial(Kept, one.path)
        await refused(way, errno.EBUSY, one.path, of=(one.path,), exclusive=True)
        os.write(one.far, b"x")
        await protocol.heard  # it goes on as it was
        transport.close()
        await protocol.lost
        assert protocol.lost.result() is None


class Kept(asyncio.Protocol):
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.heard, self.lost = loop.create_future(), loop.create_future()

    def data_received(self, data: bytes) -> None:
        self.heard.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def test_a_port_that_is_locked_against_other_users() -> None:
    """TIOCEXCL: the errno is the kernel's, and root is not asked."""
    with port() as one:
        transport, protocol = await connect_serial(Kept, one.path)
        with another_user(one.path):
            await refused(modern, errno.EBUSY, one.path, of=(one.path,), exclusive=False)
        transport.close()
        await protocol.lost


@every_way
async def test_a_port_of_somebody_else(way: Any) -> None:
    with port() as one:
        os.chmod(one.path, 0o600)
        with another_user():
            exc = await refused(way, errno.EACCES, one.path, "group", of=(one.path,))
        assert isinstance(exc, PermissionError)


class another_user:
    """Nobody in particular, within the block; *path* is theirs."""

    def __init__(self, path: str | None = None) -> None:
        self._path = path

    def __enter__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can become somebody else")
        if self._path:
            os.chmod(self._path, 0o666)
        os.seteuid(65534)

    def __exit__(self, *exc: object) -> None:
        os.seteuid(0)


@every_way
@pytest.mark.parametrize("rate", [0, -9600, 1 << 32, "fast"])
async def test_a_rate_that_is_none(way: Any, rate: Any) -> None:
    with port() as one:
        before = termios.tcgetattr(one.kept)
        await refused(way, None, of=(one.path, rate))
        assert termios.tcgetattr(one.kept) == before


@pytest.mark.parametrize("way", [modern, stream], ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("setting", "word"),
    [({"bytesize": 7}, "bytesize 7"), ({"parity": "E"}, "parity 'E'"), ({"parity": "M"}, "parity 'M'")],
    ids=["7 bits", "even parity", "mark parity"],
)
async def test_settings_that_a_terminal_refuses(way: Any, setting: dict[str, Any], word: str) -> None:
    with port() as one:
        before = termios.tcgetattr(one.kept)
        await refused(way, errno.EINVAL, one.path, word, "8 data bits", of=(one.path,), **setting)
        assert termios.tcgetattr(one.kept) == before


@pytest.mark.parametrize("lines", [{"dtr": False}, {"rts": True}], ids=["dtr", "rts"])
async def test_lines_that_a_terminal_has_not(lines: dict[str, Any]) -> None:
    with port() as one:
        await refused(modern, errno.ENOTTY, one.path, "DTR and RTS", of=(one.path,), **lines)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"bytesize": 9}, ("bytesize", "5, 6, 7 or 8", "9")),
        ({"parity": "Q"}, ("parity", "'N'", "'Q'")),
        ({"stopbits": 3}, ("stopbits", "1, 1.5 or 2", "3")),
    ],
    ids=["bytesize", "parity", "stopbits"],
)
@every_way
async def test_settings_that_no_port_has(way: Any, setting: dict[str, Any], words: tuple[str, ...]) -> None:
    with port() as one:
        exc = await refused(way, None, *words, of=(one.path,), **setting)
        assert isinstance(exc, ValueError)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("socket://127.0.0.1:1?colour=red", ("colour", "logging")),
        ("socket://127.0.0.1", ("host:port",)),
        ("socket://127.0.0.1:high", ("host:port",)),
        ("socket://", ("host:port",)),
        ("gopher://127.0.0.1:1", ("gopher",)),
        ("alt://dev/ttyS9?colour=red", ("colour",)),
        ("rfc2217://127.0.0.1:1?colour=red", ("colour",)),
    ],
)
@every_way
async def test_a_url_with_something_unknown_in_it(way: Any, url: str, words: tuple[str, ...]) -> None:
    await refused(way, None, url, *words, of=(url,))


@every_way
async def test_a_url_may_write_no_file_and_load_no_class(way: Any, tmp_path: Path) -> None:
    record = tmp_path / "record"
    with port() as one:
        url = f"spy://{one.path}?file={record}"
        await refused(way, errno.EPERM, "'file'", "allow", of=(url,))
        url = f"alt://{one.path}?class=VTIMESerial"
        await refused(way, errno.EPERM, "'class'", "allow", of=(url,))
    assert not record.exists()


@every_way
async def test_a_socket_that_nobody_listens_on(way: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = "socket://{}:{}".format(*server.getsockname())
    await refused(way, errno.ECONNREFUSED, url, of=(url,))


@pytest.mark.parametrize("way", [drop_in, drop_in_stream], ids=lambda way: way.__name__)
async def test_an_argument_that_pyserial_does_not_have(way: Any) -> None:
    with port() as one:
        await refused(way, None, "colour", of=(one.path,), colour="red")


async def test_a_factory_that_raises_closes_the_port() -> None:
    def factory() -> Any:
        raise LookupError("no protocol")

    with port() as one:
        with pytest.raises(LookupError):
            await connect_serial(factory, one.path)
        transport, protocol = await connect_serial(Kept, one.path)
        transport.close()
        await protocol.lost


def test_without_pyserial_a_path_works_and_a_url_says_what_is_missing() -> None:
    code = """
import asyncio, os, sys
sys.modules["serial"] = None
from fdtransport.serial import SerialError, connect_serial
async def main():
    master, slave = os.openpty()
    transport, _ = await connect_serial(asyncio.Protocol, os.ttyname(slave), 115200)
    await transport.aclose()
    try:
        await connect_serial(asyncio.Protocol, "rfc2217://127.0.0.1:1")
    except SerialError as exc:
        print(exc)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr == ""
    assert "pip install fdtransport[serial]" in done.stdout
