"""Questions put to several libraries, each in a process of its own: the machinery of the README's tables.

A script that has one makes a `Table` and calls its `main`; with ``--readme`` the table is written between the
marks that carry its name. One that hangs or dies is an answer too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
README = PROJECT / "README.md"
KEPT: list[Any] = []


@dataclass(frozen=True)
class Table:
    """What is asked, of whom, and how a library takes part."""

    name: str
    script: Path
    cases: dict[str, Callable[[Any], Awaitable[None]]]
    peers: tuple[str, ...]
    make: Callable[[str], Any]
    """From the name of a peer, in a running loop, what the cases are given."""
    ours: tuple[str, ...]
    """Those that must answer yes to everything."""
    heading: Callable[[], str]
    patience: float = 30
    """Seconds for one answer."""

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}: begin -->\n"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}: end -->\n"

    def answer(self, peer: str, question: str) -> str:
        """``yes``, or what was seen instead."""
        command = [sys.executable, str(self.script), "--ask", peer, question]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "ignore"}
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.patience,
                check=False, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "no: it hangs"
        if done.returncode < 0:
            return f"no: the process dies of {signal.Signals(-done.returncode).name}"
        lines = done.stdout.splitlines()
        return lines[-1].removesuffix(": ") if lines else f"no answer: {done.stderr[-300:]!r}"

    def answers(self, peer: str) -> dict[str, str]:
        """Those that are not ``yes``, of all questions in one process: quick, if nothing hangs or dies."""
        command = [sys.executable, str(self.script), "--ask", peer, "*"]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=self.patience * 4, env=environment,
        )  # fmt: skip
        said = dict(zip(self.cases, [line for line in done.stdout.splitlines() if line], strict=False))
        missing = {question: done.stderr[-300:] for question in self.cases if question not in said}
        return {**{question: text for question, text in said.items() if text != "yes"}, **missing}

    def ask_here(self, peer: str, question: str) -> None:
        """In the child: run one case, or all of them, and print the answer."""
        for asked in self.cases if question == "*" else (question,):
            print(f"\n{self._ask(peer, asked).splitlines()[0][:80]}", flush=True)
        os._exit(0)  # what the cases left open is of no interest any more

    def _ask(self, peer: str, question: str) -> str:
        factory: Any = None
        if peer.endswith("uvloop"):
            import uvloop

            factory = uvloop.new_event_loop

        async def main() -> str:
            try:
                await asyncio.wait_for(self.cases[question](self.make(peer)), self.patience - 5)
            except TimeoutError:
                return "no: it is never told"
            except BaseException as exc:
                return f"no: {exc}" if isinstance(exc, AssertionError) else f"no: {type(exc).__name__}"
            return "yes"

        runner = asyncio.Runner(loop_factory=factory)
        KEPT.append(runner)  # a loop that is closed would put an end to what the case left open
        return runner.run(main())

    def text(self, answers: dict[tuple[str, str], str]) -> str:
        rows = [f"| | {' | '.join(self.peers)} |", "|---" * (len(self.peers) + 1) + "|"]
        for question in self.cases:
            rows.append(f"| {question} | {' | '.join(answers[peer, question] for peer in self.peers)} |")
        return "\n".join(rows) + "\n"

    def questions_in_readme(self) -> list[str]:
        """The first column of the table that the README has."""
        table = README.read_text().partition(self.begin)[2].partition(self.end)[0]
        return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[4:]]

    def main(self) -> int:
        parser = argparse.ArgumentParser()
        parser.add_argument("--readme", action="store_true", help="write the table into README.md")
        parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
        options = parser.parse_args()
        if options.ask:
            self.ask_here(*options.ask)
        pairs = [(peer, question) for question in self.cases for peer in self.peers]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            answers = dict(zip(pairs, pool.map(lambda pair: self.answer(*pair), pairs), strict=True))
        made = f"{self.heading()}\n\n{self.text(answers)}"
        print(made)
        if options.readme:
            text = README.read_text()
            part = re.compile(re.escape(self.begin) + ".*?" + re.escape(self.end), re.DOTALL)
            README.write_text(part.sub(lambda _: self.begin + made + self.end, text))
        return any(answers[peer, question] != "yes" for peer in self.ours for question in self.cases)
