"""The command: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import counters, harness, report
from benchmarks.cases import CASES, Case
from benchmarks.gates import GATES, LIMITS

Counter = Callable[[Case, str], dict[str, float]]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure fdtransport beside its peers, in interleaved rounds, and print ratios.",
    )
    parser.add_argument("--rows", type=_numbers, metavar="N,N", help="only these rows")
    parser.add_argument("--libraries", type=_names, metavar="NAME,NAME", help="only these columns")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="timed rounds (9)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, a third of the size")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="size of a round (1.0)")
    parser.add_argument("--gate", action="store_true", help="compare with the gates; status 1 when short")
    parser.add_argument("--syscalls", action="store_true", help="count system calls (strace) instead")
    parser.add_argument("--instructions", action="store_true", help="count instructions (valgrind) instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.scale = min(options.rounds, 3), options.scale / 3
    return options


def _numbers(text: str) -> set[int]:
    return {int(part) for part in text.split(",")}


def _names(text: str) -> list[str]:
    return text.split(",")


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)


def chosen(case: Case, present: list[str], gated: bool) -> list[str]:
    """The columns of a case: all that are here, or only those that its gates speak of."""
    names = set(case.libraries)
    if gated:
        gates = [gate for gate in GATES if gate.case == case.name]
        names = {name for gate in gates for name in (gate.anchor, gate.subject)}
        names |= {limit.subject for limit in LIMITS if limit.case == case.name}
    return [name for name in present if name in names]


def count(tool: str, counter: Counter, cases: list[Case], present: list[str]) -> dict[str, Any]:
    """System calls or instructions of every case that has sizes for it, printed as they come."""
    figures: dict[str, Any] = {}
    for case in cases:
        here: dict[str, dict[str, float]] = {}
        for name in chosen(case, present, gated=False):
            try:
                here[name] = counter(case, name)
            except harness.CellError as error:
                tell(f"{case.name}: {name} left out: {error}")
        figures[case.name] = here
        show(report.counts(case, tool, here))
    return figures


def syscalls_if_possible(case: Case, library: str) -> dict[str, float] | None:
    if not counters.available("strace"):
        tell("strace is not installed: limits on system calls are not checked")
        return None
    try:
        return counters.syscalls(case, library)
    except harness.CellError as error:
        tell(f"{case.name}: no system calls counted: {error}")
        return None


def judge(cases: list[Case], samples: dict[str, harness.Samples]) -> bool:
    """Print the verdict of each gate; True when all are reached."""
    by_name = {case.name: case for case in cases}
    results = [report.judge_gate(gate, samples[gate.case]) for gate in GATES if gate.case in by_name]
    counted: dict[tuple[str, str], dict[str, float] | None] = {}
    for limit in LIMITS:
        case = by_name.get(limit.case)
        if case is None:
            continue
        key = limit.case, limit.subject
        if key not in counted:
            counted[key] = None
            if case.strace and limit.subject in samples[case.name]:
                counted[key] = syscalls_if_possible(case, limit.subject)
        results.append(report.judge_limit(limit, samples[limit.case], counted[key]))
    show(report.verdicts(results))
    return all(result.passed for result in results)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    began = time.monotonic()
    cases = [case for case in CASES if options.rows is None or options.rows & set(case.rows)]
    present, absent = harness.installed()
    if options.libraries:
        present = [name for name in present if name in options.libraries]
    show([*report.header(), *absent])
    reached = True
    result: dict[str, Any] = {"header": report.header()}
    if options.syscalls or options.instructions:
        if options.syscalls:
            sized = [case for case in cases if case.strace]
            result["syscalls"] = count("syscalls", counters.syscalls, sized, present)
        if options.instructions:
            sized = [case for case in cases if case.valgrind]
            result["instructions"] = count("instructions", counters.instructions, sized, present)
    else:
        samples: dict[str, harness.Samples] = {}
        for case in cases:
            names = chosen(case, present, options.gate)
            if names:
                samples[case.name] = harness.measure(case, names, options.rounds, options.scale, tell)
                show(report.block(case, samples[case.name]))
        result["samples"] = samples
        if options.gate:
            reached = judge([case for case in cases if case.name in samples], samples)
    show(["", f"done in {time.monotonic() - began:.0f} s"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
