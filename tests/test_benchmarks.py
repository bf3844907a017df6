"""Every benchmark still runs: each library carries out each of its cases at a tiny size, byte-exact."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from network import why_not

from benchmarks import __main__ as command
from benchmarks import harness, report, worker  # noqa: F401 (fills the table of ways)
from benchmarks.cases import BY_NAME, CASES
from benchmarks.gates import GATES, LIMITS, Gate
from benchmarks.job import SHAPES, Job
from benchmarks.libraries import LIBRARIES


@pytest.fixture(params=LIBRARIES)
def cell(request: pytest.FixtureRequest) -> Iterator[harness.Cell]:
    """A worker of one library with two load generators, enough for every case."""
    try:
        LIBRARIES[request.param].prepare()
    except ImportError as error:
        pytest.skip(f"{request.param} is not installed: {error}")
    with contextlib.closing(harness.Cell(BY_NAME["relay-copied"], request.param)) as cell:
        yield cell


def test_every_case_moves_its_bytes_unchanged(cell: harness.Cell) -> None:
    tuntap = why_not() is None
    for case in CASES:
        if cell.library in case.libraries and (tuntap or case.kind != "tun"):
            cell.case = case
            measured = cell.round(case.check, check=True)
            assert set(case.metrics) <= set(measured), case.name


@pytest.mark.parametrize(
    ("check", "arrived", "noticed"),
    [
        (True, (64, "same"), False),
        (True, (64, "other"), True),
        (False, (64, "other"), False),
        (False, (63, "same"), True),
    ],
)
def test_lost_and_changed_bytes_are_noticed(check: bool, arrived: tuple[int, str], noticed: bool) -> None:
    job = Job(BY_NAME["writes-unix"], None, 1, check, [])
    job.moved = [(64, "same"), arrived]
    with pytest.raises(ValueError, match="differ") if noticed else contextlib.nullcontext():
        job.finish()


def test_every_column_has_a_way_to_carry_out_its_cases() -> None:
    for case in CASES:
        for name in case.libraries:
            ways = [(case.workload, shape) for shape in LIBRARIES[name].shapes]
            assert set(ways) & set(SHAPES), (case.name, name)


def test_gates_speak_of_what_is_measured() -> None:
    for gate in GATES:
        case = BY_NAME[gate.case]
        assert gate.row in case.rows
        assert gate.metric in case.metrics
        assert {gate.anchor, gate.subject} <= set(case.libraries)
    for limit in LIMITS:
        case = BY_NAME[limit.case]
        assert limit.row in case.rows
        assert case.strace or limit.what in case.metrics


def test_a_gate_says_by_how_much_it_is_short() -> None:
    samples = {"fdtransport": {"cpu": [2.0, 2.0, 1.0]}, "uvloop": {"cpu": [3.0, 3.0, 3.0]}}
    verdict = report.judge_gate(Gate(1, "writes-unix", "uvloop", 2.0), samples)
    assert (verdict.reached, verdict.outcome) == ("1.50x [1.50-3.00]", "short by 25%")
    assert report.judge_gate(Gate(1, "writes-unix", "uvloop", 1.5), samples).passed
    assert not report.judge_gate(Gate(1, "writes-unix", "trio", 1.5), samples).passed


def test_the_command_prints_ratios_and_writes_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.json"
    arguments = ["--rows", "7", "--libraries", "asyncio,blocking", "--rounds", "2", "--scale", "0.01"]
    assert command.main([*arguments, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "row 7, 8: one read event" in shown
    assert "vs asyncio" in shown
    samples = json.loads(out.read_text())["samples"]["event"]
    assert len(samples["asyncio"]["cpu"]) == len(samples["blocking"]["wall"]) == 2
