"""The process under test: one library, rounds on request.

`python -m benchmarks.worker LIBRARY FD,FD` reads a JSON order a line from standard input and answers with
one; the descriptors are the control sockets of its load generators. `--once ORDER` does one round and ends.
"""

from __future__ import annotations

import argparse
import inspect
import json
import resource
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks import (
    accepts,
    datagrams,
    encrypted,
    events,
    files,
    idle,
    programs,
    reads,
    relays,
    serials,
    tunnels,
    writes,
)
from benchmarks.cases import BY_NAME
from benchmarks.job import SHAPES, Job
from benchmarks.libraries import LIBRARIES

__all__ = [
    "accepts", "datagrams", "encrypted", "events", "files", "idle", "programs", "reads",
    "relays", "serials", "tunnels", "writes",
]  # fmt: skip


def one_round(library: Any, loads: list[socket.socket], order: dict[str, Any]) -> dict[str, float]:
    """Carry out one round and return what was measured; raises ValueError when bytes went astray."""
    case = BY_NAME[order["case"]]
    run = next(SHAPES[case.workload, shape] for shape in library.shapes if (case.workload, shape) in SHAPES)
    job = Job(case, library, order["size"], order["check"], loads)

    def main() -> Any:
        return run(job)

    async def awaited() -> None:
        await run(job)

    library.run(awaited if inspect.iscoroutinefunction(run) else main)
    job.finish()
    return job.measured


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("loads", help="descriptor numbers, or - for none")
    parser.add_argument("--once", metavar="ORDER")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    library = LIBRARIES[options.library]
    library.prepare()
    numbers = [] if options.loads == "-" else options.loads.split(",")
    loads = [socket.socket(fileno=int(number)) for number in numbers]
    if options.once:
        one_round(library, loads, json.loads(options.once))
        return 0
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = one_round(library, loads, json.loads(line))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            answer = {"error": text}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
