"""Figures that do not depend on the clock: system calls by strace, instructions by cachegrind.

Both are slopes: two runs of different sizes, the difference of the counts by the difference of the sizes,
so that starting the interpreter and the library cancels out.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.cases import Case

STRACE_LINE = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)
CACHEGRIND_LINE = re.compile(r"^summary: (\d+)", re.MULTILINE)


def available(tool: str) -> bool:
    return shutil.which(tool) is not None


def _run(case: Case, library: str, size: int, prefix: list[str]) -> None:
    """One round under a tool; the load generators stay outside of it."""
    order = json.dumps({"case": case.name, "size": size, "check": False})
    with harness.load_generators(case.loads) as numbers:
        done = subprocess.run(
            [*prefix, *harness.command(library, numbers), "--once", order],
            pass_fds=numbers, env=harness.environment(case), timeout=300, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    if done.returncode:
        raise harness.CellError(done.stdout.strip().splitlines()[-1])


def _slope(sizes: tuple[int, int], unit: str, counts: list[dict[str, int]]) -> dict[str, float]:
    """Count per unit and name, largest first; what rounds to nothing is left out."""
    units = (sizes[1] - sizes[0]) / (1e6 if unit == "MB" else 1)
    small, large = counts
    per_unit = {name: (large[name] - small.get(name, 0)) / units for name in large}
    floor = 0.1 if unit == "MB" else 0.0005
    kept = {name: value for name, value in per_unit.items() if abs(value) >= floor}
    return dict(sorted(kept.items(), key=lambda item: -item[1]))


def syscalls(case: Case, library: str) -> dict[str, float]:
    """System calls per unit, by name. Raises CellError."""
    assert case.strace is not None
    counts = []
    for size in case.strace:
        with tempfile.NamedTemporaryFile() as out:
            _run(case, library, size, ["strace", "-c", "-f", "-o", out.name])
            text = Path(out.name).read_text()
        counts.append({name: int(calls) for calls, name in STRACE_LINE.findall(text) if name != "total"})
    return _slope(case.strace, case.unit, counts)


def instructions(case: Case, library: str) -> dict[str, float]:
    """Instructions per unit. Raises CellError."""
    assert case.valgrind is not None
    counts = []
    for size in case.valgrind:
        with tempfile.NamedTemporaryFile() as out:
            options = ["--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={out.name}"]
            _run(case, library, size, ["valgrind", "-q", *options])
            found = CACHEGRIND_LINE.search(Path(out.name).read_text())
        if found is None:
            raise harness.CellError("cachegrind wrote no summary")
        counts.append({"instructions": int(found[1])})
    return _slope(case.valgrind, case.unit, counts)
