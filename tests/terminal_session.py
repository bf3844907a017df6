"""Run as the leader of a session at a terminal: what a shell does for a job, and nothing more.

The arguments are the job, *fg* or *bg* before them. What becomes of it is told on descriptor 3, a line
each time, with whether the terminal is as it was before the job (``same``) or not (``changed``): unlike a
shell, this leader never puts it right. Orders come there as well:

    fg, bg    continue it in the foreground, or in the background
    noecho    change the modes of the terminal, as stty does; ``same`` means these from now on
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Iterator
from typing import Any

#: Ignored by the leader (SIGPIPE), or since the tests were started in the background of a script.
DEFAULT = [signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP]


def state() -> tuple[Any, ...]:
    return termios.tcgetattr(0), [os.get_blocking(fd) for fd in (0, 1, 2)]


def tell(*words: object) -> None:
    os.write(3, (" ".join(map(str, words)) + "\n").encode())


def give_terminal_to(group: int) -> None:
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    os.tcsetpgrp(0, group)
    signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def orders() -> Iterator[str]:
    with open(3) as lines:
        for line in lines:
            yield line.strip()


def main(where: str, command: list[str]) -> None:
    before = state()
    pid = os.posix_spawn(command[0], command, os.environ, setpgroup=0, setsigdef=DEFAULT)
    tell("started", pid)
    if where == "fg":
        give_terminal_to(pid)
        os.kill(pid, signal.SIGCONT)  # should it have been faster
    given = orders()
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        kept = "same" if state() == before else "changed"
        if not os.WIFSTOPPED(status):
            code = os.waitstatus_to_exitcode(status)
            tell(*(("exited", code) if code >= 0 else ("killed", signal.Signals(-code).name)), kept)
            return
        give_terminal_to(os.getpgrp())
        tell("stopped", signal.Signals(os.WSTOPSIG(status)).name, kept)
        for order in given:
            if order == "noecho":
                modes = termios.tcgetattr(0)
                modes[3] &= ~termios.ECHO
                termios.tcsetattr(0, termios.TCSANOW, modes)
                before = state()
            else:
                if order == "fg":
                    give_terminal_to(pid)
                os.killpg(pid, signal.SIGCONT)
                break


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
