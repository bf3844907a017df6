"""The words of ``subprocess.Popen`` that asyncio takes: which are ours as well, and which ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["NOTHING", "SAME", "check_words"]

#: Arguments of Popen that are ours as well.
SAME = {
    "cwd", "env", "executable", "extra_groups", "group", "process_group", "start_new_session", "user",
}  # fmt: skip

#: Those that ours has nothing for, and the values with which they ask for nothing.
NOTHING: Mapping[str, Any] = {
    "close_fds": True, "creationflags": 0, "pipesize": -1, "preexec_fn": None, "restore_signals": True,
    "startupinfo": None, "umask": -1,
}  # fmt: skip
#: Those for which asyncio itself takes no other value.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "bufsize": (0,), "encoding": (None,), "errors": (None,), "shell": (False,), "text": (None, False),
    "universal_newlines": (False, None),
}  # fmt: skip
_BYTES = "streams are of bytes; what comes is to be decoded"
_WINDOWS = "it is of Windows"
_WHY: Mapping[str, str] = {
    "bufsize": "streams have limit, and transports set_write_buffer_limits",
    "close_fds": "a child has the descriptors of fds, and no others",
    "creationflags": _WINDOWS,
    "encoding": _BYTES,
    "errors": _BYTES,
    "pipesize": "it is pipe_size here",
    "preexec_fn": "nothing is forked, so no code of Python runs before the program",
    "restore_signals": "what Python ignores, a child does not",
    "shell": "the functions of shells always have one, and the others none",
    "startupinfo": _WINDOWS,
    "text": _BYTES,
    "umask": "sh -c 'umask 077; exec \"$@\"' sh PROGRAM sets it",
    "universal_newlines": _BYTES,
}


def check_words(function: str, words: Mapping[str, Any]) -> None:
    """See that *words* ask for nothing, which programs that come from asyncio may do.

    :raises TypeError: one is unknown. :raises ValueError: one asks for what cannot be had.
    """
    for name, value in words.items():
        if name not in _WHY:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        if value not in _FIXED.get(name, (NOTHING.get(name),)):
            raise ValueError(f"{function}() cannot have {name}={value!r}: {_WHY[name]}")
