"""What a workload sees of its round, and the table of who carries out which workload how."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cases import Case
from benchmarks.ends import End, pair

Round = Callable[["Job"], Any]

SHAPES: dict[tuple[str, str], Round] = {}


def carries_out(workload: str, shape: str) -> Callable[[Round], Round]:
    """Register the decorated function for every library of this shape (see `libraries`)."""

    def register(run: Round) -> Round:
        SHAPES[workload, shape] = run
        return run

    return register


@dataclass
class Job:
    """One round of one case with one library: makes its ends, times it, and keeps what to compare."""

    case: Case
    library: Any
    size: int
    check: bool
    loads: list[socket.socket]
    measured: dict[str, float] = field(default_factory=dict)
    moved: list[tuple[int, str]] = field(default_factory=list)
    _waiting: list[tuple[End, str, int]] = field(default_factory=list)
    _near: list[End] = field(default_factory=list)
    _files: list[Any] = field(default_factory=list)
    _digest: Any = None

    def end(self, order: str, kind: str = "", size: int = 0) -> End:
        """The near end of a new pair. A load generator gets the far end and `order` as the clock starts."""
        kind = kind or self.case.kind
        near, far = pair(kind, {"sink": "out", "source": "in"}.get(order, "both"))
        self._near.append(near)
        self._waiting.append((far, order, size or self.size))
        return near

    def file(self) -> Any:
        """An open file of ``size`` bytes that has just been written, and so is in memory."""
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed in the end)
        self._files.append(file)
        data = random.Random(3).randbytes(self.size if self.check else 1 << 20)
        if not self.check:
            data = (data * (self.size // len(data) + 1))[: self.size]
        self.moved.append((len(data), hashlib.sha256(data).hexdigest()))
        view = memoryview(data)
        while view:
            view = view[os.write(file.fileno(), view) :]
        file.seek(0)
        return file

    def source(self) -> Any:
        """An open file for a program to read: ``file()`` in a byte-exact round, else one without an end."""
        if self.check:
            return self.file()
        zeros = open("/dev/zero", "rb", 0)  # noqa: SIM115 (closed in the end)
        self._files.append(zeros)
        return zeros

    def pair(self) -> tuple[End, End]:
        """A pair that this process keeps both ends of."""
        ends = pair(self.case.kind, "both")
        self._near.extend(ends)
        return ends

    @contextlib.contextmanager
    def clock(self, **more: str) -> Iterator[None]:
        """Measures its body, in microseconds per unit of the case. *more* goes to the load generators."""
        gc.collect()
        for control, (far, order, size) in zip(self.loads, self._waiting, strict=False):
            message = json.dumps({"do": order, "size": size, "check": self.check, **more}).encode()
            socket.send_fds(control, [message], far.fds)
            far.close()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        spent = time.process_time() - cpu, time.perf_counter() - wall
        units = self.size / 1e6 if self.case.unit == "MB" else self.size
        self.measured = dict(zip(("cpu", "wall"), (1e6 * value / units for value in spent), strict=True))

    def batches(self) -> Iterable[tuple[bytes, ...]]:
        """What to write: `batch` pieces of `piece` bytes, flow control after each batch."""
        piece, batch = self.case.options["piece"], self.case.options["batch"]
        share = {"MB": piece * batch, "write": batch, "tick": 1}[self.case.unit]
        random_bytes = random.Random(2).randbytes
        if not self.check:
            return itertools.repeat(tuple(random_bytes(piece) for _ in range(batch)), self.size // share)
        made = [tuple(random_bytes(piece) for _ in range(batch)) for _ in range(self.size // share)]
        sent = b"".join(itertools.chain.from_iterable(made))
        self.moved.append((len(sent), hashlib.sha256(sent).hexdigest()))
        return made

    def taker(self) -> Callable[[bytes], Any]:
        """What a reader hands its bytes to: the digest in a byte-exact round, else nothing at all."""
        self._digest = hashlib.sha256()
        return self._digest.update if self.check else len

    def took(self, count: int) -> None:
        """How many bytes were read in all."""
        self.moved.append((count, self._digest.hexdigest()))

    def finish(self) -> None:
        """Close what is left and compare what was sent with what arrived, by count and by digest."""
        for end in (*self._near, *self._files):
            end.close()
        for control, _ in zip(self.loads, self._waiting, strict=False):
            self.moved += [tuple(entry) for entry in json.loads(control.recv(4096))]
        if not self.check:
            self.moved = [(count, "") for count, _ in self.moved]
        if len(set(self.moved)) > 1:
            raise ValueError(f"what was sent and what arrived differ: {self.moved}")
