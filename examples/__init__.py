"""Programs that show the library, ``python -m examples.NAME``, and what they share as commands."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["between", "run_command"]


def between(kind: Callable[[str], Any], least: float, most: float) -> Callable[[str], Any]:
    """For argparse: an int or a float (*kind*) from *least* to *most*."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"a number from {least:g} to {most:g} is needed, not {text!r}")
        return value

    return read


def run_command(
    main: Coroutine[Any, Any, int | None],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run *main* and return the exit status: its own, 130 after Ctrl-C, 1 and one line for an OSError."""
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            status = runner.run(main)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except OSError as exc:
        if not isinstance(exc, BrokenPipeError):  # that is "| head": whoever read this has enough
            print(f"{os.path.basename(sys.argv[0])}: {exc}", file=sys.stderr)
        # The interpreter flushes once more at its end, and would tell it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return status or 0
