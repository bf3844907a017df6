"""What every test gets: both loops, and a look at what it left behind.

Each async test runs twice, on asyncio's loop and on uvloop; its id says which. After each test, no
descriptor may be open that was not open before, no standard stream may have changed its mode, and
no loop's exception handler may have been called, unless the test asks for the ``reports``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import certificates
import pytest
from hypothesis import HealthCheck, settings
from real_programs import Program

from fdtransport.testing import SerialPair, serial_pair

try:
    import uvloop
except ImportError:
    uvloop = None

try:
    import resource
except ImportError:  # Windows
    resource = None

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
if uvloop is not None:
    LOOPS["uvloop"] = uvloop.new_event_loop

#: Descriptors that the tests may have open at once: the churn tests and the server tests hold many.
DESCRIPTORS = 16384

# A fixed set of examples, the same on every machine; `--hypothesis-profile=more` looks further.
settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "more",
    settings.get_profile("fixed"),
    derandomize=False,
    max_examples=5000,
    stateful_step_count=60,
    print_blob=True,
)
settings.load_profile("fixed")

#: The property of a test's report that says what transports a program made.
TRANSPORTS = "transports"

_reports: list[dict[str, Any]] = []


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """A loop of the kind *name* whose reports are collected; for tests that turn it themselves."""
    loop = LOOPS[name]()
    loop.set_exception_handler(lambda _loop, context: _reports.append(context))
    return loop


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "uart: needs a virtual machine; run only if asked for by -m uart")
    if sys.flags.dev_mode or os.environ.get("PYTHONASYNCIODEBUG"):
        config.option.asyncio_debug = True  # the plugin would switch it off otherwise
        # Debug mode notes where each handle comes from, which is most of its price: one frame will do.
        asyncio.constants.DEBUG_STACK_DEPTH = 1
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    for make in LOOPS.values():
        make().close()  # libuv keeps a pipe of its own from the first loop on


def pytest_collection_finish() -> None:
    # Thousands of collected tests, which live to the end: many tests collect the garbage, and each
    # collection would look at all of that.
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    return f"loops: {', '.join(LOOPS)}" + ("" if uvloop else " (uvloop is not installed)")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell what transports the real programs made."""
    made = [
        f"{report.nodeid.removeprefix('tests/')}: {text}"
        for report in terminalreporter.getreports("")  # of the teardowns
        for name, text in report.user_properties
        if name == TRANSPORTS
    ]
    if made:
        terminalreporter.section("transports of real programs on the drop-in loop")
        terminalreporter.write("\n".join(sorted(made)) + "\n")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {name: lambda name=name: new_loop(name) for name in LOOPS}


def open_descriptors() -> dict[int, str]:
    """Number and target of every open descriptor of this process."""
    found = {}
    try:
        numbers = os.listdir("/proc/self/fd")
    except FileNotFoundError:  # not Linux
        return found
    for number in map(int, numbers):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the one that listed the directory
    return found


def _modes() -> dict[int, bool]:
    return {fd: os.get_blocking(fd) for fd in (0, 1, 2)}


def _new(before: dict[int, str]) -> dict[int, str]:
    return {fd: target for fd, target in open_descriptors().items() if before.get(fd) != target}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaks a descriptor, changes a standard stream or causes a report."""
    before, modes = open_descriptors(), _modes()
    _reports.clear()
    yield
    leaked = _new(before)
    if leaked:
        gc.collect()
        leaked = _new(before)
    reports, unexpected = _reports.copy(), "reports" not in request.fixturenames
    _reports.clear()
    assert not leaked, f"descriptors left open: {leaked}"
    assert _modes() == modes, "a standard stream's O_NONBLOCK was changed"
    if unexpected and reports:
        pytest.fail("reported to the loop's exception handler:\n" + "\n".join(map(repr, reports)))


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    """The contexts that the loop's exception handler was called with, in order.

    A test that takes this fixture expects reports and checks them by itself.
    """
    return _reports


@pytest.fixture(params=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for a test that is no coroutine and turns the loop by itself; closed afterwards."""
    loop = new_loop(request.param)
    try:
        yield loop
    finally:
        loop.close()


@pytest.fixture
def program(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> Iterator[Program]:
    """Runs a program on the drop-in loop. Every transport that it makes must be this library's."""
    program = Program(monkeypatch, _reports.append)
    yield program
    record_property(TRANSPORTS, str(program))
    assert program.ours
    assert not program.asyncios


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a certificate of localhost and of its key."""
    files = certificates.Files(tmp_path_factory.mktemp("tls"))
    return files.cert, files.key


@pytest.fixture
def served() -> ssl.SSLContext:
    """The context of a server with a certificate of localhost."""
    return certificates.serving()


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """The context of a client that trusts the authority of that certificate, and nobody else."""
    return certificates.trusting()


@pytest.fixture
async def pair() -> AsyncIterator[SerialPair]:
    """Two virtual serial ports and the cable between them."""
    async with serial_pair() as made:
        yield made
