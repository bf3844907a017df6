"""The examples run, as a user would run them, and the README's programs do what they say."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")
#: What debug mode says of a callback that took long: on a busy machine, that is not the program's fault.
SLOW = re.compile(rb"^Executing <.*> took [0-9.]+ seconds\n", re.MULTILINE)
QUICK = {"tour": ["--size", "1"]}


def run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-X", "dev", "-W", "error", *arguments]
    result = subprocess.run(command, input=given, capture_output=True, timeout=50, cwd=ROOT, check=False)
    result.stderr = SLOW.sub(b"", result.stderr)
    return result


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_without_arguments_and_ends(name: str) -> None:
    result = run("-m", f"examples.{name}", *QUICK.get(name, []))
    assert (result.returncode, result.stderr) == (0, b""), result
    assert result.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_tells_what_it_is_for(name: str) -> None:
    result = run("-m", f"examples.{name}", "--help")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"usage: python -m examples." in result.stdout


def test_the_tour_moves_every_byte_through_every_kind() -> None:
    lines = run("-m", "examples.tour", "--size", "1").stdout.decode().splitlines()
    assert lines[-1] == "every byte arrived"
    assert all(" ok " in line for line in lines[1:-1])
    assert len(lines) >= 12


PROGRAMS = re.findall(r"```python\n(import.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_readme_runs(program: str) -> None:
    result = run("-c", program, given=b"abc\n")
    assert (result.returncode, result.stderr) == (0, b""), result


def test_the_readme_has_its_recipes() -> None:
    assert len(PROGRAMS) >= 4


def test_a_new_kind_of_descriptor_is_one_small_file() -> None:
    assert len((ROOT / "examples" / "timer.py").read_text().splitlines()) < 120


async def test_the_timer_of_the_example_ticks_and_closes() -> None:
    from examples.timer import connect_timer

    ticked = asyncio.Event()
    transport = await connect_timer(0.001, lambda expirations: ticked.set() if expirations else None)
    await asyncio.wait_for(ticked.wait(), 10)
    await transport.aclose()
    assert transport.fileno() == -1
