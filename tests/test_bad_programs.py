"""What cannot be started is an error of whoever asked for it: no program, no descriptor, no terminal left."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from child_checks import children, no_child_is_left  # noqa: F401

from fdtransport import create_subprocess_exec, open_pty_process, spawn_pty, subprocess_exec
from fdtransport.testing import RecordingProtocol, descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")

Start = Callable[..., Awaitable[Any]]
Case = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


async def with_protocol(*words: Any, **options: Any) -> None:
    await subprocess_exec(asyncio.SubprocessProtocol, *words, **options)


async def with_streams(*words: Any, **options: Any) -> None:
    await create_subprocess_exec(*words, **options)


async def on_terminal(*words: Any, **options: Any) -> None:
    await spawn_pty(RecordingProtocol, *words, **options)


async def on_terminal_with_streams(*words: Any, **options: Any) -> None:
    await open_pty_process(*words, **options)


PIPES: tuple[Start, ...] = (with_protocol, with_streams)
TERMINALS: tuple[Start, ...] = (on_terminal, on_terminal_with_streams)

EVERYWHERE: dict[str, Case] = {
    "no such program": (("/no/such",), {}, FileNotFoundError, "/no/such"),
    "not on the path": (("no-such-program-anywhere",), {}, FileNotFoundError, "no-such-program-anywhere"),
    "an empty name": (("",), {}, FileNotFoundError, "No such file"),
    "not executable": (("/etc/passwd",), {}, PermissionError, "/etc/passwd"),
    "a directory": (("/usr",), {}, PermissionError, "/usr"),
    "below a file": (("/etc/passwd/sh",), {}, NotADirectoryError, "/etc/passwd/sh"),
    "a name that is too long": (("/" + "x" * 300,), {}, OSError, "too long"),
    "arguments that are too long": (("true", "x" * (4 << 20)), {}, OSError, "too long"),
    "a script without an interpreter": (("{script}",), {}, OSError, "Exec format"),
    "a number for an argument": (("true", 5), {}, TypeError, "5"),
    "no such cwd": (("true",), {"cwd": "/no/such"}, FileNotFoundError, "/no/such"),
    "cwd is a file": (("true",), {"cwd": "/etc/passwd"}, NotADirectoryError, "/etc/passwd"),
    "unknown user": (("true",), {"user": "nobody-has-this-name"}, ValueError, "nobody-has-this-name"),
    "unknown group": (("true",), {"group": "nobody-has-this-name"}, ValueError, "nobody-has-this-name"),
    "unknown extra group": (("true",), {"extra_groups": ["no-such"]}, ValueError, "no-such"),
    "negative user": (("true",), {"user": -5}, ValueError, "-5"),
    "NUL in the program": (("tr\0ue",), {}, ValueError, "NUL"),
    "NUL in an argument": (("true", "a\0b"), {}, ValueError, "NUL"),
    "NUL in cwd": (("true",), {"cwd": "/\0"}, ValueError, "NUL"),
    "NUL in env": (("true",), {"env": {"A": "b\0"}}, ValueError, "NUL"),
    "NUL in a name in env": (("true",), {"env": {"A\0": "b"}}, ValueError, "NUL"),
    "= in a name in env": (("true",), {"env": {"A=B": "c"}}, ValueError, "A=B"),
    "a list for env": (("true",), {"env": [("A", "1")]}, TypeError, "env is a map"),
    "bytes among strings in env": (("true",), {"env": {"A": b"b\0"}}, ValueError, "NUL"),
    "NUL in executable": (("true",), {"executable": "/bin/\0"}, ValueError, "NUL"),
    "a closed descriptor": (("true",), {"fds": {5: 987654}}, OSError, "987654"),
    "a closed file": (("true",), {"fds": {5: "{closed}"}}, OSError, "closed"),
    "a negative number of the child": (("true",), {"fds": {-1: 0}}, ValueError, "-1"),
    "a number over the limit": (("true",), {"fds": {1 << 30: 0}}, OSError, "limit"),
    "a name for a number": (("true",), {"fds": {"3": 0}}, TypeError, "3"),
    "a negative descriptor": (("true",), {"fds": {5: -7}}, ValueError, "-7"),
    "a negative linger": (("true",), {"linger": -1}, ValueError, "linger"),
    "no option": (("true",), {"colour": True}, TypeError, "colour"),
}
WITH_PIPES: dict[str, Case] = {
    "a shell": (("true",), {"shell": True}, ValueError, "shell"),
    "twice the same number": (("true",), {"fds": {1: "r"}, "stdout": -1}, ValueError, "twice"),
    "no such direction": (("true",), {"fds": {3: "x"}}, ValueError, "'x'"),
    "where 1 goes, without 1": (("true",), {"fds": {2: -2}}, ValueError, "no 1"),
    "no room in a pipe": (("true",), {"pipe_size": 0}, ValueError, "pipe_size"),
}
SIZES: dict[str, tuple[Any, type[Exception]]] = {
    "no rows": ((0, 80), ValueError),
    "no columns": ((24, 0), ValueError),
    "negative": ((24, -1), ValueError),
    "too wide": ((24, 65536), ValueError),
    "too many pixels": ((24, 80, 65536, 1), ValueError),
    "half a size": ((24,), TypeError),
    "too much of a size": ((24, 80, 1, 1, 1), TypeError),
    "a float": ((24.0, 80), ValueError),
    "strings": (("24", "80"), ValueError),
    "no size": (None, TypeError),
    "a truth": ((True, 80), ValueError),
}


def cases() -> Iterator[Any]:
    for starts, table in (((*PIPES, *TERMINALS), EVERYWHERE), (PIPES, WITH_PIPES)):
        for name, case in table.items():
            for start in starts:
                yield pytest.param(start, *case, id=f"{start.__name__}-{name}")
    for name, (size, error) in SIZES.items():
        for start in TERMINALS:
            case = ("true",), {"size": size}, error, "window"
            yield pytest.param(start, *case, id=f"{start.__name__}-{name}")


@pytest.mark.parametrize(("start", "words", "options", "error", "match"), list(cases()))
async def test_bad_input_is_the_callers_and_leaves_nothing(
    start: Start, words: Any, options: dict[str, Any], error: Any, match: str, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("true\n")
    script.chmod(0o755)
    if words == ("{script}",):
        words = (str(script),)
    if options.get("fds") == {5: "{closed}"}:
        closed = script.open("rb")
        closed.close()
        options = {"fds": {5: closed}}
    before = descriptors()
    with pytest.raises(error, match=match):
        await start(*words, **options)
    assert descriptors() == before
    assert not children()
