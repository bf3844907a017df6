"""CPython's own tests of asyncio, run on `fdtransport.EventLoop`.

    python tests/asyncio_suite.py [MODULE ...] [--all]

Each module of ``test.test_asyncio`` runs in a process of its own, with our loop in the place of asyncio's.
A test that fails there is run once more, on asyncio's loop: if it fails there too, it says nothing about
ours. What is left must be listed in asyncio_suite.toml, with the reason, and what is listed must fail:
a test that has come to pass is to be taken off the list.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve()
LIST = HERE.with_suffix(".toml")

#: The modules that have to do with transports, servers and loops.
MODULES = (
    "test_streams", "test_server", "test_events", "test_sendfile", "test_subprocess", "test_ssl",
    "test_sslproto", "test_buffered_proto", "test_sock_lowlevel", "test_base_events", "test_unix_events",
)  # fmt: skip
#: Seconds for one module, and for one test of it.
MODULE_TIME, TEST_TIME = 400, 60


@dataclass
class Outcome:
    """What became of one module."""

    module: str
    passed: int = 0
    skipped: int = 0
    known: dict[str, str] = field(default_factory=dict)
    """Failed as listed: test and reason."""
    elsewhere: list[str] = field(default_factory=list)
    """Failed on asyncio's own loop too."""
    failed: dict[str, str] = field(default_factory=dict)
    """Failed on ours only: test and traceback."""
    mended: list[str] = field(default_factory=list)
    """Listed, and passed."""
    trouble: str = ""
    """The run itself failed."""

    @property
    def good(self) -> bool:
        return bool(self.passed) and not (self.failed or self.mended or self.trouble)

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {self.skipped} skipped, {len(self.known)} as listed"
        lines = [f"{self.module}: {counts}, {len(self.elsewhere)} fail on asyncio's loop too"]
        lines += [f"    FAILED {test}\n{text}" for test, text in self.failed.items()]
        lines += [f"    PASSED, though listed: {test}" for test in self.mended]
        return "\n".join([*lines, self.trouble] if self.trouble else lines)


def listed() -> dict[str, str]:
    """Pattern of test ids -> reason, for this Python."""
    version = "{}.{}".format(*sys.version_info[:2])
    entries = tomllib.loads(LIST.read_text()).get("exception", [])
    return {
        test: entry["reason"]
        for entry in entries
        if version in entry.get("pythons", [version])
        for test in entry["tests"]
    }


def run(module: str) -> Outcome:
    """Run one module and judge it."""
    outcome = Outcome(module)
    try:
        ours = _child(module, "ours")
        bad = [test for test, (how, _) in ours.items() if how == "failed"]
        theirs = _child(module, "asyncio", bad) if bad else {}
    except (subprocess.SubprocessError, json.JSONDecodeError, OSError) as exc:
        outcome.trouble = f"{exc}\n{getattr(exc, 'stderr', '') or ''}"[-4000:]
        return outcome
    exceptions = listed()
    for test, (how, text) in ours.items():
        reason = next((why for known, why in exceptions.items() if fnmatch.fnmatchcase(test, known)), None)
        if how == "skipped":
            outcome.skipped += 1
        elif how == "passed":
            outcome.passed += 1
            if reason is not None:
                outcome.mended.append(test)
        elif reason is not None:
            outcome.known[test] = reason
        elif theirs.get(test, ("failed", ""))[0] == "failed":
            outcome.elsewhere.append(test)
        else:
            outcome.failed[test] = text
    return outcome


def _child(module: str, loop: str, tests: list[str] | None = None) -> dict[str, tuple[str, str]]:
    """Outcome and text of each test, by its id, from a process of its own."""
    command = [sys.executable, str(HERE), "--in-child", loop, module]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    for name in ("PYTHONWARNINGS", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE"):
        environment.pop(name, None)  # these tests see to such things themselves
    done = subprocess.run(
        command, input=json.dumps(tests), capture_output=True, text=True, timeout=MODULE_TIME,
        check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# -- in the child ------------------------------------------------------------------------------------


def _use_our_loop() -> None:
    import asyncio
    from asyncio import unix_events

    from fdtransport import EventLoop

    policy = getattr(unix_events, "_UnixDefaultEventLoopPolicy")  # noqa: B009 - a name of its own per version
    policy._loop_factory = EventLoop
    asyncio.SelectorEventLoop = asyncio.EventLoop = EventLoop
    unix_events.SelectorEventLoop = unix_events._UnixSelectorEventLoop = EventLoop


def _run_in_child(module: str, loop: str) -> None:
    import signal
    import unittest

    wanted = json.loads(sys.stdin.read())
    if loop == "ours":
        _use_our_loop()
    outcomes: dict[str, tuple[str, str]] = {}

    class Result(unittest.TestResult):
        def startTest(self, test):
            super().startTest(test)
            signal.alarm(TEST_TIME)

        def stopTest(self, test):
            signal.alarm(0)
            super().stopTest(test)
            outcomes.setdefault(test.id(), ("passed", ""))

        def _note(self, test, how, text):
            if outcomes.get(test.id(), ("",))[0] != "failed":
                outcomes[test.id()] = (how, text)

        def addSuccess(self, test):
            self._note(test, "passed", "")

        def addError(self, test, err):
            self._note(test, "failed", self._exc_info_to_string(err, test))

        addFailure = addError

        def addSubTest(self, test, subtest, err):
            if err is not None:
                self._note(test, "failed", self._exc_info_to_string(err, test))

        def addSkip(self, test, reason):
            self._note(test, "skipped", reason)

        def addExpectedFailure(self, test, err):
            self._note(test, "passed", "")

        def addUnexpectedSuccess(self, test):
            self._note(test, "failed", "unexpected success")

    def too_long(_number, _frame):
        raise TimeoutError(f"a test took more than {TEST_TIME} s")

    signal.signal(signal.SIGALRM, too_long)
    whole = unittest.defaultTestLoader.loadTestsFromName(f"test.test_asyncio.{module}")
    chosen = unittest.TestSuite(
        test for test in _flat(whole) if wanted is None or test.id() in wanted
    )
    sys.stdout.flush()
    result = os.dup(1)
    os.dup2(2, 1)  # whatever the tests print
    chosen.run(Result())
    sys.stdout.flush()
    with open(result, "w") as out:
        out.write("\n" + json.dumps(outcomes) + "\n")


def _flat(suite):
    import unittest

    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="MODULE")
    parser.add_argument("--in-child", choices=("ours", "asyncio"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_child:
        _run_in_child(options.modules[0], options.in_child)
        return 0
    outcomes = [run(module) for module in options.modules]
    print(*outcomes, sep="\n")
    for reason in sorted({why for outcome in outcomes for why in outcome.known.values()}):
        print(f"listed: {reason}")
    return not all(outcome.good for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
