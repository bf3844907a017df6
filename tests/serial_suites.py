"""The own tests of pyserial-asyncio and of pyserial-asyncio-fast, run on `fdtransport.serial`.

    python tests/serial_suites.py

Their source distributions come from the package index: the wheels have no tests. Each test runs in a
process of its own, on asyncio's loop and on uvloop's, on ``socket://`` and on a terminal that gives back what
it gets, as their documentation asks for. What imports their module gets ours.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import unittest
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

HERE = Path(__file__).resolve()
#: Distribution and the module that it has.
SUITES = {"pyserial-asyncio==0.6": "serial_asyncio", "pyserial-asyncio-fast==0.16": "serial_asyncio_fast"}
PORTS, LOOPS = ("socket", "terminal"), ("asyncio", "uvloop")
#: Seconds for the download, and for one test.
DOWNLOAD_TIME, TEST_TIME = 60, 40


class Unavailable(Exception):
    """Their tests are not to be had here, and why."""


def their_tests(distribution: str, folder: Path) -> Path:
    """The file of their tests, downloaded into *folder*."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest",
        str(folder), distribution,
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIME)
    except (OSError, subprocess.SubprocessError) as exc:
        said = (getattr(exc, "stderr", None) or str(exc)).strip().splitlines()
        raise Unavailable(f"pip download {distribution}: {said[-1]}") from exc
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (found,) = folder.glob("*/test/test_asyncio.py")
    return found


def run(module: str, tests: Path) -> Iterator[tuple[str, str, str]]:
    """Port, loop, and what went wrong (nothing: an empty string) of each run."""
    for port in PORTS:
        for loop in LOOPS:
            if importlib.util.find_spec(loop) is None:
                continue
            command = [sys.executable, str(HERE), "--in-child", module, str(tests), port, loop]
            environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TEST_TIME,
                    check=False, env=environment,
                )  # fmt: skip
            except subprocess.TimeoutExpired as exc:
                yield port, loop, f"it hangs: {exc.stderr!r}"
            else:
                yield port, loop, f"{done.stdout}{done.stderr}" if done.returncode else ""


def _run_in_child(module: str, tests: str, port: str, loop: str) -> bool:
    sys.modules[module] = importlib.import_module("fdtransport.serial")
    spec = importlib.util.spec_from_file_location("their_tests", tests)
    assert spec is not None
    assert spec.loader is not None
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    if loop == "uvloop":
        import uvloop

        asyncio.set_event_loop(uvloop.new_event_loop())
    else:
        asyncio.set_event_loop(asyncio.new_event_loop())
    from terminal_pair import loop_back

    with loop_back() if port == "terminal" else nullcontext() as path:
        if path is None:  # a number of our own, for theirs may be taken
            with closing(socket.create_server((suite.HOST, 0))) as taken:
                suite._PORT = taken.getsockname()[1]
            suite.PORT = f"socket://{suite.HOST}:{suite._PORT}"
        else:
            suite.PORT = path
        result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromModule(suite))
        return bool(result.testsRun) and result.wasSuccessful() and not result.skipped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--in-child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_child:
        return not _run_in_child(*options.in_child)
    bad = 0
    for distribution, module in SUITES.items():
        with tempfile.TemporaryDirectory() as folder:
            for port, loop, trouble in run(module, their_tests(distribution, Path(folder))):
                bad += bool(trouble)
                print(f"{distribution}, {port}, {loop}: {trouble or 'passed'}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
