"""Figures as text: per case a block of columns with ratios and their spread, and the gates."""

from __future__ import annotations

import os
import platform
import statistics
import sysconfig
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib import metadata

from benchmarks.cases import BY_NAME, Case
from benchmarks.gates import Gate, Limit
from benchmarks.harness import Samples

PEERS = (
    "fdtransport", "uvloop", "twisted", "trio", "anyio", "pyserial-asyncio", "pyserial-asyncio-fast",
    "serialx",
)  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """anchor / subject over interleaved rounds: more than 1 means that the subject is better."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, anchor: list[float], subject: list[float]) -> Ratio:
        ratios = [one / max(other, 1e-9) for one, other in zip(anchor, subject, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.middle:.2f}x [{self.least:.2f}-{self.most:.2f}]"


def header() -> list[str]:
    """What ran where: versions and how this Python was built."""
    versions = []
    for name in PEERS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    flags = sysconfig.get_config_var("CONFIG_ARGS") or "unknown"
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    lines = [
        f"CPython {platform.python_version()}, built with {flags}",
        f"{platform.system()} {platform.release()}, {processors} processors, load {load:.1f}",
        ", ".join(versions),
    ]
    if load > 0.4 * processors:
        lines.append(
            "others are using this machine: rows 1 to 6 and 10 to 15 need two processors of their own"
        )
    return lines


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(lines: list[list[str]], left: Collection[int] = (0,)) -> list[str]:
    """Columns aligned to the right, except those named in `left`."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        cells = [
            text.ljust(width) if number in left else text.rjust(width)
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append("  " + "  ".join(cells).rstrip())
    return shown


def block(case: Case, samples: Samples) -> list[str]:
    """The columns of one case, for each metric."""
    rows = ", ".join(map(str, case.rows))
    lines = []
    for metric in case.metrics:
        what = "bytes" if metric == "bytes" else f"us {metric}"
        rounds = max((len(values[metric]) for values in samples.values()), default=0)
        lines += ["", f"row {rows}: {case.title} ({case.name}): {what} per {case.unit}, {rounds} rounds"]
        anchors = [anchor for anchor in case.anchors if anchor in samples]
        table = [["", "median", *(f"vs {anchor}" for anchor in anchors)]]
        for name, values in samples.items():
            mine = values[metric]
            ratios = [
                "1" if anchor == name else str(Ratio.of(samples[anchor][metric], mine)) for anchor in anchors
            ]
            table.append([name, _figure(statistics.median(mine)), *ratios])
        lines += _table(table)
    return lines


def counts(case: Case, tool: str, figures: dict[str, dict[str, float]]) -> list[str]:
    """What was counted per unit, for each library."""
    lines = ["", f"row {', '.join(map(str, case.rows))}: {case.title} ({case.name}): {tool} per {case.unit}"]
    for name, by_name in figures.items():
        total = sum(by_name.values())
        parts = ", ".join(f"{call} {value:.3g}" for call, value in by_name.items() if call != tool)
        shown = f"{total:.0f}" if tool == "instructions" else f"{total:.3f}"
        lines.append(f"  {name:<15} {shown:>8}   {parts}".rstrip())
    return lines


@dataclass(frozen=True)
class Verdict:
    """One gate or limit against what was measured."""

    row: int
    text: str
    reached: str
    wanted: str
    outcome: str

    @property
    def passed(self) -> bool:
        return self.outcome.startswith("PASS")


def judge_gate(gate: Gate, samples: Samples) -> Verdict:
    text = f"{gate.subject} vs {gate.anchor}, {gate.metric}: {gate.case}"
    wanted = f">= {gate.least:g}x"
    missing = [name for name in (gate.subject, gate.anchor) if name not in samples]
    if missing:
        return Verdict(gate.row, text, "-", wanted, f"no figures for {' and '.join(missing)}")
    ratio = Ratio.of(samples[gate.anchor][gate.metric], samples[gate.subject][gate.metric])
    short = 1 - ratio.middle / gate.least
    outcome = f"short by {short:.0%}" if short > 0 else "PASS"
    if gate.aim is not None and ratio.middle >= gate.aim:
        outcome += f", and the aim of {gate.aim:g}x"
    return Verdict(gate.row, text, str(ratio), wanted, outcome)


def judge_limit(limit: Limit, samples: Samples, calls: dict[str, float] | None) -> Verdict:
    unit = BY_NAME[limit.case].unit
    text = f"{limit.subject}, {limit.what} per {unit}: {limit.case}"
    wanted = f"<= {limit.most:g}"
    if limit.subject in samples and limit.what in samples[limit.subject]:
        value = statistics.median(samples[limit.subject][limit.what])
    elif calls is None:
        return Verdict(limit.row, text, "-", wanted, f"no figures for {limit.subject}")
    else:
        names = limit.what.split("+")
        value = sum(count for name, count in calls.items() if name in names or limit.what == "syscalls")
    over = value / limit.most - 1
    return Verdict(limit.row, text, _figure(value), wanted, f"short by {over:.0%}" if over > 0 else "PASS")


def verdicts(results: Iterable[Verdict]) -> list[str]:
    ordered = sorted(results, key=lambda verdict: verdict.row)
    passed = sum(verdict.passed for verdict in ordered)
    table = [["row", "what", "reached", "gate", ""]]
    table += [[str(one.row), one.text, one.reached, one.wanted, one.outcome] for one in ordered]
    return ["", f"Gates: {passed} of {len(ordered)} reached", *_table(table, left=(1, 4))]
