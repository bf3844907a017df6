"""The command: `python tests/uart [CHECK ...]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from uart.machine import run  # noqa: E402
from uart.packages import Missing  # noqa: E402


def main() -> int:
    try:
        report = run(*sys.argv[1:], tell=lambda line: print(line, flush=True))
    except Missing as exc:
        print(f"no machine to be had here: {exc}")
        return 2
    print(report.trouble or report.summary)
    return not report.good


if __name__ == "__main__":
    sys.exit(main())
