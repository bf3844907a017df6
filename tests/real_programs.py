"""Programs that know nothing of this library, run on its drop-in loop, and the servers that they talk to."""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import subprocess
import tempfile
import threading
from asyncio import selector_events
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

import fdtransport
from fdtransport._core.base import BaseTransport

T = TypeVar("T")


class Program:
    """Runs a coroutine as README says, and knows what transports were made meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, report: Callable[[dict[str, Any]], object]) -> None:
        self.ours: Counter[str] = Counter()
        self.asyncios: Counter[str] = Counter()
        self._report = report
        from asyncio import unix_events  # not on Windows, where no test asks for a program

        self._count(monkeypatch, BaseTransport, self.ours)
        for kind in (
            selector_events._SelectorTransport,
            unix_events._UnixReadPipeTransport,
            unix_events._UnixWritePipeTransport,
        ):
            self._count(monkeypatch, kind, self.asyncios)

    @staticmethod
    def _count(monkeypatch: pytest.MonkeyPatch, kind: Any, counter: Counter[str]) -> None:
        make = kind.__init__

        def counted(self: Any, *args: Any, **kwargs: Any) -> None:
            counter[type(self).__name__] += 1
            make(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", counted)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=fdtransport.new_event_loop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, fdtransport.EventLoop)
            loop.set_exception_handler(lambda _loop, context: self._report(context))
            return runner.run(main)

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.ours.items()))


def needed(module: str) -> Any:
    """The module of a program; without it the tests of a file are skipped, though not in CI."""
    try:
        return importlib.import_module(module)
    except ImportError:
        missing(f"{module} is not installed: python -m pip install -e '.[programs]'")


def executable(name: str, package: str, folders: str = "") -> str:
    """Where a program of the system is; without it the test is skipped, though not in CI."""
    places = [str(path) for path in sorted(Path("/").glob(folders.lstrip("/")))] if folders else []
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", os.defpath)]))
    return found or missing(f"{name} is not there: apt-get install {package}")


def missing(reason: str) -> NoReturn:
    """Skip what needs something that is not here; in CI it must be."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)


@contextmanager
def server_process(command: list[str], ready: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A server that says *ready* when it serves; ended by a signal to this one process."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **options,
    )  # fmt: skip
    log: list[str] = []
    said = threading.Event()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if ready in line:
                said.set()
        said.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        if not said.wait(30) or process.poll() is not None or ready not in "".join(log):
            pytest.fail(f"{command[0]} does not serve:\n{''.join(log)}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        listener.join()
        process.wait()
        process.stdout.close()


@contextmanager
def folder_of(user: str | None) -> Iterator[Path]:
    """A folder with a short path that belongs to *user*: pytest's are closed to others, and too deep
    for the path of a UNIX socket."""
    with tempfile.TemporaryDirectory(prefix="fdtransport-", ignore_cleanup_errors=True) as name:
        if user is not None:
            shutil.chown(name, user)
        yield Path(name)
