"""Runs cells (one library on one case, each in its own process) in interleaved rounds."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.libraries import LIBRARIES

LOAD = Path(__file__).with_name("load.py")
PATIENCE = 60.0

Samples = dict[str, dict[str, list[float]]]


def processors(count: int, together: bool) -> list[set[int]]:
    """Where to keep the process under test, and each of `count` load generators.

    Apart, so that each has a processor; together where the kernel would otherwise do the work of one
    in the time of the other, now more, now less (loopback TCP, wake-ups of ping-pong).
    """
    usable = sorted(os.sched_getaffinity(0))
    others = [] if together else usable[1:]
    return [{usable[0]}, *({(others or usable)[number % (len(others) or 1)]} for number in range(count))]


class CellError(Exception):
    """A round failed; the text says why."""


def environment(case: Case) -> dict[str, str]:
    heap = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)} if case.new_heap else {}
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(LOAD.parent.parent), **heap}


@contextlib.contextmanager
def load_generators(count: int, places: list[set[int]] | None = None) -> Iterator[list[int]]:
    """Start `count` of them and yield the descriptors of their control sockets."""
    with contextlib.ExitStack() as stack:
        numbers = []
        for number in range(count):
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, "-ISE", str(LOAD), str(there.fileno())]
            load = stack.enter_context(subprocess.Popen(command, pass_fds=[there.fileno()]))
            stack.callback(load.kill)  # after a failed round it may wait for what never comes
            if places:
                os.sched_setaffinity(load.pid, places[number])
            there.close()
            stack.enter_context(here)
            numbers.append(here.fileno())
        yield numbers


def command(library: str, numbers: list[int]) -> list[str]:
    loads = ",".join(map(str, numbers)) or "-"
    return [sys.executable, "-m", "benchmarks.worker", library, loads]


class Cell:
    """A worker process and its load generators, alive for all rounds of a case (or for one, if fresh)."""

    def __init__(self, case: Case, library: str) -> None:
        self.case, self.library = case, library
        self._stack = contextlib.ExitStack()
        self._pinned = False
        self._start()

    def _start(self) -> None:
        self._here, *places = processors(self.case.loads, self.case.together)
        numbers = self._stack.enter_context(load_generators(self.case.loads, places))
        self._worker = subprocess.Popen(
            command(self.library, numbers), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            pass_fds=numbers, env=environment(self.case), bufsize=1,
        )  # fmt: skip
        self._stack.callback(self._stop)
        if self._pinned:
            self._pin()

    def pin(self) -> None:
        """Keep the worker on its processor; before that it may start on any."""
        self._pinned = True
        self._pin()

    def _pin(self) -> None:
        os.sched_setaffinity(self._worker.pid, self._here)

    def _stop(self) -> None:
        worker = self._worker
        assert worker.stdin is not None
        assert worker.stdout is not None
        with contextlib.suppress(OSError):
            worker.stdin.close()
        try:
            worker.wait(5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        worker.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._worker.stdout is not None
        ready, _, _ = select.select([self._worker.stdout], [], [], PATIENCE)
        line = self._worker.stdout.readline() if ready else ""
        if not line:
            self._worker.kill()
            raise CellError("ended early" if ready else f"no answer in {PATIENCE:.0f} s")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CellError(answer["error"])
        return answer

    def round(self, size: int, check: bool = False) -> dict[str, float]:
        """One round: what it measured, per metric. Raises CellError."""
        if self.case.fresh and not check:
            self.close()
            self._start()
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps({"case": self.case.name, "size": size, "check": check}) + "\n")
        return self._answer()

    def close(self) -> None:
        self._stack.close()


def measure(
    case: Case, libraries: list[str], rounds: int, scale: float, tell: Callable[[str], None]
) -> Samples:
    """All rounds of one case, interleaved: byte-exact first, then timed, in turning order."""
    samples: Samples = {}
    with contextlib.ExitStack() as stack:
        cells = [stack.enter_context(contextlib.closing(Cell(case, library))) for library in libraries]
        for cell in tuple(cells):
            try:
                cell.round(case.check, check=True)
            except CellError as error:
                tell(f"{case.name}: {cell.library} left out: {error}")
                cells.remove(cell)
            else:
                if case.pinned:
                    cell.pin()
        size = case.size if case.metrics == ("bytes",) else max(case.check, int(case.size * scale))
        for number in range(min(rounds, 3) if case.metrics == ("bytes",) else rounds):
            shift = number % max(len(cells), 1)
            for cell in cells[shift:] + cells[:shift]:
                try:
                    measured = cell.round(size)
                except CellError as error:
                    tell(f"{case.name}: {cell.library} failed in round {number + 1}: {error}")
                    cells.remove(cell)
                    samples.pop(cell.library, None)
                    continue
                for metric, value in measured.items():
                    samples.setdefault(cell.library, {}).setdefault(metric, []).append(value)
    return samples


def installed() -> tuple[list[str], list[str]]:
    """The columns that can run here, and one line for each that cannot."""
    present, absent = [], []
    for name, library in LIBRARIES.items():
        try:
            library.prepare()
        except ImportError as error:
            absent.append(f"{name} is left out: {error}")
        else:
            present.append(name)
    return present, absent
