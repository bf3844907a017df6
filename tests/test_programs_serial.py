"""Users of pyserial-asyncio and pyserial-asyncio-fast, unchanged, with our module in its place."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from modbus_polls import polled, speaking_by
from real_programs import missing, needed
from serial_suites import DOWNLOAD_TIME, SUITES, TEST_TIME, Unavailable, run, their_tests
from terminal_pair import cable, port

from fdtransport.testing.observe import until

needed("serial")
ours = needed("fdtransport.serial")
#: The names under which users import what ours takes the place of.
NAMES = ("serial_asyncio", "serial_asyncio_fast")
TRANSACTIONS = 1000


@pytest.fixture(autouse=True)
def in_their_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ours under both names; a program that was imported meanwhile is forgotten afterwards."""
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, ours)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("rflink", "dsmr_parser"):
            del sys.modules[name]


@pytest.mark.timeout(DOWNLOAD_TIME + 4 * TEST_TIME)
@pytest.mark.parametrize("distribution", SUITES)
def test_their_own_tests_pass(distribution: str, tmp_path: Path) -> None:
    try:
        tests = their_tests(distribution, tmp_path)
    except Unavailable as exc:
        missing(str(exc))
    troubles = [" ".join(outcome) for outcome in run(SUITES[distribution], tests) if outcome[-1]]
    assert not troubles, "\n".join(troubles)


# -- pymodbus ----------------------------------------------------------------------------------------


async def test_pymodbus_polls_its_own_server() -> None:
    needed("pymodbus")
    opened: list[str] = []

    async def create(loop: Any, factory: Any, url: str, **settings: Any) -> Any:
        opened.append(url)
        return await ours.create_serial_connection(loop, factory, url, **settings)

    with cable() as (one, other), speaking_by(create):
        await polled(one, other, TRANSACTIONS)
        assert sorted(opened) == sorted((one, other))


# -- rflink ------------------------------------------------------------------------------------------


async def test_rflink_hears_and_commands() -> None:
    needed("rflink")
    from rflink.protocol import RflinkProtocol, create_rflink_connection

    events: list[dict[str, Any]] = []
    lost: list[Exception | None] = []
    with port() as (path, far, _):
        transport, protocol = await create_rflink_connection(
            port=path,
            baud=57600,
            loop=asyncio.get_running_loop(),
            protocol=RflinkProtocol,
            event_callback=events.append,
            disconnect_callback=lost.append,
        )
        assert isinstance(transport, ours.SerialTransport)
        os.write(far, b"20;00;Nodo RadioFrequencyLink - RFLink Gateway V1.1 - R45;\r\n")
        os.write(far, b"20;2D;UPM/Esic;ID=0001;TEMP=00cf;HUM=16;BAT=OK;\r\n")
        await until(lambda: any(event.get("sensor") == "temperature" for event in events), "it heard")
        temperature = next(event for event in events if event.get("sensor") == "temperature")
        assert temperature["value"] == 20.7
        commanded = asyncio.ensure_future(protocol.send_command_ack("newkaku_0000c6c2_1", "on"))
        os.set_blocking(far, False)
        asked = b""

        def has_come() -> bool:
            nonlocal asked
            try:
                asked += os.read(far, 100)
            except BlockingIOError:
                pass
            return asked.endswith(b"\r\n")

        await until(has_come, "the command came")
        assert asked == b"10;newkaku;0000c6c2;1;on;\r\n"
        os.write(far, b"20;07;OK;\r\n")
        assert await commanded
        transport.close()
        await until(lambda: lost, "it was told")
        assert lost == [None]


# -- dsmr-parser -------------------------------------------------------------------------------------

TELEGRAM = (
    "/ISK5\\2M550T-1012\r\n\r\n"
    "1-3:0.2.8(50)\r\n"
    "0-0:1.0.0(261126021500W)\r\n"
    "0-0:96.1.1(4530303434303037)\r\n"
    "1-0:1.8.1(000051.775*kWh)\r\n"
    "1-0:1.8.2(000000.000*kWh)\r\n"
    "0-0:96.14.0(0001)\r\n"
    "1-0:1.7.0(00.335*kW)\r\n"
    "1-0:32.7.0(229.0*V)\r\n"
    "!"
)


def telegram() -> bytes:
    from dsmr_parser.parsers import TelegramParser

    return f"{TELEGRAM}{TelegramParser.crc16(TELEGRAM):04X}\r\n".encode()


async def test_dsmr_parser_reads_telegrams_by_its_protocol() -> None:
    needed("dsmr_parser")
    from dsmr_parser.clients.protocol import create_dsmr_reader

    loop = asyncio.get_running_loop()
    told: asyncio.Queue[Any] = asyncio.Queue()
    with port() as (path, far, _):
        transport, protocol = await create_dsmr_reader(path, "5", told.put_nowait, loop=loop)
        assert isinstance(transport, ours.SerialTransport)
        whole = telegram()
        os.write(far, whole[150:] + whole)  # as one plugs it in: in the middle of one
        async with asyncio.timeout(10):
            heard = await told.get()
        assert float(heard.CURRENT_ELECTRICITY_USAGE.value) == 0.335
        transport.close()
        async with asyncio.timeout(10):
            await protocol.wait_closed()


async def test_dsmr_parser_reads_telegrams_by_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    needed("dsmr_parser")
    from dsmr_parser import telegram_specifications
    from dsmr_parser.clients import SERIAL_SETTINGS_V5, AsyncSerialReader

    opened: list[asyncio.StreamWriter] = []
    open_serial_connection = ours.open_serial_connection

    async def noting(**settings: Any) -> Any:
        reader, writer = await open_serial_connection(**settings)
        opened.append(writer)  # which the program never closes
        return reader, writer

    monkeypatch.setattr(ours, "open_serial_connection", noting)
    told: asyncio.Queue[Any] = asyncio.Queue()
    with port() as (path, far, _):
        reading = AsyncSerialReader(path, dict(SERIAL_SETTINGS_V5), telegram_specifications.V5)
        task = asyncio.ensure_future(reading.read(told))
        await until(lambda: opened, lambda: f"it opened the port: {task}")
        os.write(far, telegram())
        async with asyncio.timeout(10):
            assert await told.get()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        opened[0].close()
        await opened[0].wait_closed()
