"""The rows: every workload with its sizes, who runs it, and what it is compared with. All of it is data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OURS = ("fdtransport", "fdtransport-uv")
#: Those that have serial ports.
SERIAL = ("pyserial-asyncio", "pyserial-asyncio-fast", "serialx")
LOOPS = (*OURS, "asyncio", "asyncio-64k", "uvloop")
MB = 1_000_000


@dataclass(frozen=True)
class Case:
    """One workload at one setting.

    `size` counts operations (or bytes, where the unit is MB) of one timed round; `check` is the size of
    the byte-exact run that comes before timing. `anchors` are the columns that ratios are made to.
    `loads` are the load generators, `together` says that they share one processor with what they load;
    not `pinned`, the process under test, and with it the programs that it starts, may run on all of them.
    With `new_heap` blocks of 128 KiB and more are mapped and unmapped each time, as glibc does it until
    a program has freed one that was that large all its life (M_MMAP_THRESHOLD of mallopt(3)).
    With `fresh` each round has a process of its own, because the layout of a heap stays, and tells.
    `strace` and `valgrind` are pairs of sizes for the counters.
    """

    name: str
    rows: tuple[int, ...]
    title: str
    workload: str
    unit: str
    size: int
    check: int
    libraries: tuple[str, ...]
    anchors: tuple[str, ...]
    metrics: tuple[str, ...] = ("cpu",)
    kind: str = "unix"
    loads: int = 1
    together: bool = False
    pinned: bool = True
    fresh: bool = False
    new_heap: bool = False
    options: Mapping[str, int] = field(default_factory=dict)
    strace: tuple[int, int] | None = None
    valgrind: tuple[int, int] | None = None


def _writes() -> list[Case]:
    cases = []
    for row, kind in enumerate(("unix", "pipe", "tcp"), 1):
        anyio = () if kind == "pipe" else ("anyio",)
        cases.append(
            Case(
                f"writes-{kind}", (row,), f"64 B writes, flow control every 64, {kind}", "writes", "write",
                20_480, 4_096, (*OURS, "asyncio", "uvloop", "twisted", "trio", *anyio, "blocking"),
                ("uvloop", "asyncio"), kind=kind, options={"piece": 64, "batch": 64},
                strace=(8_192, 32_768),
            )
        )  # fmt: skip
    for k, ticks in ((1, 4_000), (8, 1_500), (64, 300)):
        cases.append(
            Case(
                f"ticks-{k}", (6,) if k == 1 else (5,), f"{k} writes of 64 B per turn of the loop, unix",
                "ticks", "tick", ticks, 50, (*OURS, "asyncio-64k", "uvloop", "twisted"),
                ("asyncio-64k", "uvloop"), options={"piece": 64, "batch": k}, strace=(500, 2_000),
            )
        )  # fmt: skip
    return cases


def _reads() -> list[Case]:
    everyone = (*LOOPS, "twisted", "trio", "blocking")
    cases = [
        Case(
            "event", (7, 8), "one read event of 64 B, one thread, unix", "event", "event", 5_000, 200,
            everyone, ("asyncio", "asyncio-64k", "uvloop"), loads=0, strace=(2_000, 8_000),
            valgrind=(1_000, 4_000),
        )
    ]  # fmt: skip
    for kind in ("unix", "tcp", "pipe"):
        anyio = () if kind == "pipe" else ("anyio",)
        cases.append(
            Case(
                f"ping-{kind}", (9,), f"ping-pong of 64 B, {kind}", "ping", "round trip", 1_500, 200,
                (*LOOPS, "twisted", "trio", *anyio, "blocking"), ("asyncio-64k", "uvloop"), kind=kind,
                together=True, strace=(500, 2_000),
            )
        )  # fmt: skip
    for kind in ("unix", "tcp"):
        cases.append(
            Case(
                f"streams-{kind}", (10,), f"await-based bulk read, {kind}", "streams", "MB", 48 * MB, MB,
                (*OURS, "asyncio", "uvloop", "anyio", "trio", "blocking"), ("asyncio", "uvloop", "anyio"),
                ("wall", "cpu"), kind=kind, strace=(16 * MB, 64 * MB),
            )
        )  # fmt: skip
    for kind in ("unix", "tcp"):
        for workload, word in (("reads", "read"), ("writes", "write")):
            cases.append(
                Case(
                    f"bulk-{word}-{kind}", (11,), f"bulk {word} by a protocol, {kind}", workload, "MB",
                    96 * MB, MB, everyone, ("uvloop", "blocking", "asyncio"),
                    ("wall", "cpu") if kind == "tcp" else ("cpu",), kind, together=kind == "tcp",
                    options={"piece": 65_536, "batch": 1}, strace=(16 * MB, 64 * MB),
                )
            )  # fmt: skip
    for workload, word in (("reads", "read"), ("writes", "write")):
        cases.append(
            Case(
                f"pipe-{word}", (12,), f"bulk {word}, pipe; ours with its 1 MiB pipe option", workload, "MB",
                96 * MB, MB, everyone, ("asyncio", "uvloop"), ("wall", "cpu"), kind="pipe",
                options={"piece": 65_536, "batch": 1, "our_pipe_size": 1 << 20},
            )
        )  # fmt: skip
    for idle in (0, 2_900):
        cases.append(
            Case(
                f"ready-{idle}", (20,), f"100 ready at once, {idle} more idle, one thread", "ready", "event",
                10_000, 1_000, (*LOOPS, "twisted", "blocking"), ("asyncio", "asyncio-64k", "uvloop"), loads=0,
                options={"idle": idle},
            )
        )  # fmt: skip
    return cases


def _serials() -> list[Case]:
    everyone = (*OURS, *SERIAL, "blocking")
    bulk = {"piece": 4_096, "batch": 1}
    return [
        Case(
            "serial-small", (4,), "64 B writes, flow control every 64, terminal", "writes", "write", 20_480,
            4_096, everyone, SERIAL, kind="serial", options={"piece": 64, "batch": 64},
            strace=(8_192, 32_768),
        ),
        Case(
            "serial-read", (22,), "bulk read by a protocol, terminal, heap as of a new program",
            "serial-reads", "MB", 16 * MB, MB, everyone, (*SERIAL, "blocking"), kind="serial", new_heap=True,
        ),
        Case(
            "serial-read-later", (22,), "the same after large blocks were freed",
            "serial-reads", "MB", 16 * MB, MB, everyone, (*SERIAL, "blocking"), kind="serial",
        ),
        Case(
            "serial-write", (22,), "bulk write by a protocol, terminal", "writes", "MB", 16_384_000,
            1_024_000, everyone, (*SERIAL, "blocking"), kind="serial", options=bulk,
        ),
        Case(
            "serial-ping", (22,), "ping-pong of 64 B, terminal", "ping", "round trip", 1_500, 200, everyone,
            (*SERIAL, "blocking"), kind="serial", together=True,
        ),
    ]  # fmt: skip


def _relays() -> list[Case]:
    everyone = (*LOOPS, "twisted", "trio", "blocking", "splice")
    cases = []
    for kind, row in (("unix>pipe", 13), ("unix>unix", 14), ("tcp>tcp", 14)):
        cases.append(
            Case(
                f"relay-{kind}", (row,), f"relay {kind}", "relay", "MB", 96 * MB, MB, everyone,
                ("uvloop", "asyncio", "splice"), ("wall", "cpu"), kind=kind, loads=2,
                together=row == 14 and "tcp" in kind, strace=(32 * MB, 96 * MB),
            )
        )  # fmt: skip
    cases.append(
        Case(
            "relay-copied", (15,), "relay unix>unix without splice", "relay", "MB", 96 * MB, MB,
            everyone[:-1], ("asyncio", "uvloop"), kind="unix>unix", loads=2, options={"copied": 1},
            strace=(32 * MB, 96 * MB),
        )
    )  # fmt: skip
    return cases


def _files() -> list[Case]:
    cases = []
    for kind in ("tcp", "unix"):
        cases.append(
            Case(
                f"sendfile-{kind}", (25,), f"a file in memory, {kind}; uvloop reads and writes it",
                "sendfile", "MB", 128 * MB, MB, (*OURS, "asyncio", "uvloop", "blocking"),
                ("asyncio", "uvloop", "blocking"), ("wall", "cpu"), kind=kind, together=kind == "tcp",
                strace=(32 * MB, 96 * MB),
            )
        )  # fmt: skip
        cases.append(
            Case(
                f"relay-file>{kind}", (26,), f"relay file>{kind}", "relay", "MB", 128 * MB, MB,
                (*OURS, "blocking", "splice"), ("blocking", "splice"), ("wall", "cpu"), kind=f"file>{kind}",
                together=kind == "tcp", strace=(32 * MB, 96 * MB),
            )
        )  # fmt: skip
    return cases


def _encrypted() -> list[Case]:
    everyone = (*LOOPS, "blocking")
    anchors = ("asyncio", "asyncio-64k", "uvloop")
    cases = [
        Case(
            "tls-ping", (27,), "ping-pong of 64 B, TLS", "tls-ping", "round trip", 1_500, 200, everyone,
            anchors, kind="tcp", together=True,
        )
    ]  # fmt: skip
    for workload, word in (("reads", "read"), ("writes", "write"), ("streams", "await-based read")):
        cases.append(
            Case(
                f"tls-{workload}", (27,), f"bulk {word}, TLS", f"tls-{workload}", "MB", 48 * MB, MB, everyone,
                anchors, ("wall", "cpu"), kind="tcp", options={"piece": 65_536, "batch": 1},
            )
        )  # fmt: skip
    return cases


def _programs() -> list[Case]:
    cases = []
    for small, resident in (("", 0), ("-1g", 1 << 30)):
        size = ", 1 GiB resident" if resident else ""
        slow = 10 if resident else 1  # the copy of the page tables that a fork makes
        on_terminals = (*OURS, "asyncio", "ptyprocess", "pexpect", "blocking")
        on_pipes = (*OURS, "asyncio", "uvloop")
        for kind, libraries, anchors in (
            ("pty", on_terminals, ("asyncio", "ptyprocess", "pexpect", "blocking")),
            ("pipe", on_pipes, ("asyncio", "uvloop")),
        ):
            where = "on a terminal" if kind == "pty" else "with a pipe"
            options = {"resident": resident}
            cases.append(
                Case(
                    f"spawn-{kind}{small}", (30,), f"/bin/true {where}, start to end{size}", "spawns",
                    "program", 300 // slow, 10, libraries, anchors, ("wall", "cpu"), kind=kind, loads=0,
                    pinned=False, options=options,
                )
            )  # fmt: skip
            cases.append(
                Case(
                    f"stall-{kind}{small}", (31,), f"the loop while /bin/true starts {where}{size}",
                    "stalls", "start", 150 // slow, 10, libraries, anchors, ("stall", "worst"), kind=kind,
                    loads=0, pinned=False, options=options,
                )
            )  # fmt: skip
    readers = (*LOOPS, "pexpect", "blocking")
    anchors = ("asyncio", "uvloop", "pexpect", "blocking")
    cases += [
        Case(
            "pty-read", (32,), "bulk read of a raw terminal", "reads", "MB", 12 * MB, MB, readers, anchors,
            ("wall", "cpu"), kind="pty", together=True, strace=(4 * MB, 16 * MB),
        ),
        Case(
            "ping-pty", (32,), "ping-pong of 64 B, raw terminal", "ping", "round trip", 1_500, 200, readers,
            anchors, kind="pty", together=True, strace=(500, 2_000),
        ),
    ]  # fmt: skip
    cases += [
        Case(
            f"output-{name}", (33,), f"output of a program, await-based{title}", "output", "MB", 192 * MB, MB,
            (*OURS, "asyncio", "uvloop", "blocking"), ("asyncio", "uvloop", "blocking"), ("wall", "cpu"),
            kind="pipe", loads=0, pinned=False, options=options,
        )
        for name, title, options in (
            ("64k", "", {}),
            ("1m", "; ours through a pipe of 1 MiB", {"pipe_size": 1 << 20}),
        )
    ]  # fmt: skip
    return cases

WATCHERS = ("inotify_simple", "asyncinotify", "aionotify", "twisted")

CASES = (
    *_writes(),
    *_reads(),
    *_serials(),
    *_relays(),
    *_files(),
    *_encrypted(),
    *_programs(),
    Case(
        "memory", (19,), "memory of one idle transport, fresh process", "memory", "transport", 3_500, 200,
        (*LOOPS, "twisted"), ("asyncio", "uvloop"), ("bytes",), loads=0, fresh=True,
    ),
    Case(
        "memory-socket", (19,), "the same; ours by create_unix_connection", "memory", "transport", 3_500, 200,
        (*OURS, "asyncio", "uvloop"), ("asyncio", "uvloop"), ("bytes",), loads=0, fresh=True,
        options={"as_asyncio": 1},
    ),
    Case(
        "accept", (21,), "accept, connection_made, abort; 900 queued, tcp", "accept", "connection", 900, 50,
        (*LOOPS, "twisted", "trio", "blocking"), ("asyncio", "uvloop"), loads=0, strace=(200, 800),
        valgrind=(200, 800),
    ),
    *(
        Case(
            f"udp-{word}-{piece}", (23,), f"{title}, {piece} B, one thread", f"udp-{word}", "record", 20_480,
            1_024, (*LOOPS, "blocking"), ("asyncio", "asyncio-64k", "uvloop"), loads=0,
            options={"piece": piece},
        )
        for word, title in (("receive", "UDP receive, 64 waiting"), ("send", "UDP send, 64 a turn"))
        for piece in (64, 1_400)
    ),
    *(
        Case(
            f"tun-{word}-{piece}", (17,), f"TUN, {title}, {piece} B", f"tun-{word}", "packet", 61_440, 2_100,
            (*OURS, "blocking", "pytun"), ("blocking", "pytun"), kind="tun", loads=0, fresh=True,
            options={"piece": piece},
        )
        for word, title in (
            ("read", "2048 packets that wait, read"), ("write", "packets written, 64 a turn"),
            ("write-list", "the same, ours by send_packets"),
        )
        for piece in (64, 1_400)
    ),
    Case(
        "tun-relay", (18,), "TCP through a relay of two TUNs; plain, MTU 9000, offload", "tun-relay", "MB",
        64 * MB, MB, ("fdtransport", "fdtransport-9000", "fdtransport-raw", "fdtransport-split"),
        ("fdtransport",), ("wall", "cpu"), kind="tun", loads=2,
    ),
    *(
        Case(
            name, (16,), f"8,000 CREATE and DELETE of inotify waiting, {title}", name, "event", 8_000, 400,
            (*OURS, *WATCHERS, "blocking"), (*WATCHERS, "blocking"), ("cpu", "wall"), loads=0,
        )
        for name, title in (("events", "ours by connect_inotify"), ("tree-events", "ours by watch"))
    ),
    Case(
        "udp-echo", (23,), "UDP echo of 64 B, one at a time", "udp-echo", "round trip", 3_000, 200, LOOPS,
        ("asyncio", "asyncio-64k", "uvloop"), kind="udp", together=True,
    ),
)  # fmt: skip

BY_NAME = {case.name: case for case in CASES}
