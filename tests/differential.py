"""What users have run into, asked of this library and of its peers: the table of the README.

    python tests/differential.py [--readme]

Each question is put to each peer in a process of its own, so that one that hangs or dies is an answer too.
``--readme`` writes the table into README.md; a test looks that our own columns have no "no".
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from differential_cases import CASES, Peer

HERE = Path(__file__).resolve()
README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- differential: begin -->\n", "<!-- differential: end -->\n"
#: Seconds for one answer.
PATIENCE = 30

PEERS = ("fdtransport", "fdtransport on uvloop", "asyncio", "uvloop")
OURS = PEERS[:2]


def theirs() -> Peer:
    """What the running loop has itself."""
    loop = asyncio.get_running_loop()

    async def read_pipe(factory: Any, fd: int) -> Any:
        return (await loop.connect_read_pipe(factory, os.fdopen(fd, "rb", 0)))[0]

    async def write_pipe(factory: Any, fd: int) -> Any:
        return (await loop.connect_write_pipe(factory, os.fdopen(fd, "wb", 0)))[0]

    async def stream(factory: Any, sock: Any) -> Any:
        return (await loop.create_connection(factory, sock=sock))[0]

    async def records(factory: Any, sock: Any) -> Any:
        if sock.type == sock.type.SOCK_SEQPACKET:  # the nearest thing that they have
            return await write_pipe(factory, sock.detach())
        return (await loop.create_datagram_endpoint(factory, sock=sock))[0]

    async def unix_server(factory: Any, path: str) -> Any:
        return await loop.create_unix_server(factory, path)

    async def tcp_server(factory: Any) -> Any:
        server = await loop.create_server(factory, "127.0.0.1", 0)
        KEPT.append(server)
        return server.sockets[0].getsockname()

    return Peer(read_pipe, write_pipe, stream, records, read_pipe, unix_server, tcp_server)


def ours() -> Peer:
    """What this library has, on whatever loop runs."""
    import fdtransport

    def first(function: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return (await function(*args, **kwargs))[0]

        return call

    async def unix_server(factory: Any, path: str) -> Any:
        server = await fdtransport.create_unix_server(factory, path)
        KEPT.append(server)
        return server

    async def tcp_server(factory: Any) -> Any:
        server = await fdtransport.create_server(factory, "127.0.0.1", 0)
        KEPT.append(server)
        return server.sockets[0].getsockname()

    async def stream(factory: Any, sock: Any) -> Any:
        return (await fdtransport.create_connection(factory, sock=sock))[0]

    async def standard_input(factory: Any, fd: int) -> Any:
        return (await fdtransport.connect_stdio(factory, fd, None))[0]

    return Peer(
        first(fdtransport.connect_read_pipe), first(fdtransport.connect_write_pipe), stream,
        first(fdtransport.connect_packet_fd), standard_input, unix_server, tcp_server,
    )  # fmt: skip


KEPT: list[Any] = []


def answer(peer: str, question: str) -> str:
    """``yes``, or what was seen instead."""
    command = [sys.executable, str(HERE), "--ask", peer, question]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
            check=False, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "no: it hangs"
    if done.returncode < 0:
        return f"no: the process dies of {signal.Signals(-done.returncode).name}"
    lines = done.stdout.splitlines()
    return lines[-1].removesuffix(": ") if lines else f"no answer: {done.stderr[-300:]!r}"


def ask_here(peer: str, question: str) -> None:
    """In the child: run one case and print the answer."""
    factory: Any = None
    if peer.endswith("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop

    async def main() -> str:
        try:
            await asyncio.wait_for(CASES[question](ours() if peer in OURS else theirs()), PATIENCE - 5)
        except TimeoutError:
            return "no: it is never told"
        except BaseException as exc:
            return f"no: {exc}" if isinstance(exc, AssertionError) else f"no: {type(exc).__name__}"
        return "yes"

    runner = asyncio.Runner(loop_factory=factory)
    said = runner.run(main())
    print(f"\n{said.splitlines()[0][:80]}", flush=True)
    os._exit(0)  # what the case left open is of no interest any more


def table(answers: dict[tuple[str, str], str]) -> str:
    rows = [f"| | {' | '.join(PEERS)} |", "|---" * (len(PEERS) + 1) + "|"]
    for question in CASES:
        rows.append(f"| {question} | {' | '.join(answers[peer, question] for peer in PEERS)} |")
    return "\n".join(rows) + "\n"


def versions() -> str:
    import uvloop

    python = "{}.{}.{}".format(*sys.version_info[:3])
    return f"From a run of `python tests/differential.py`, CPython {python}, uvloop {uvloop.__version__}:\n\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask_here(*options.ask)
    pairs = [(peer, question) for question in CASES for peer in PEERS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = dict(zip(pairs, pool.map(lambda pair: answer(*pair), pairs), strict=True))
    made = versions() + table(answers)
    print(made)
    if options.readme:
        text = README.read_text()
        part = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
        README.write_text(part.sub(lambda _: BEGIN + made + END, text))
    return any(answers[peer, question] != "yes" for peer in OURS for question in CASES)


if __name__ == "__main__":
    sys.exit(main())
