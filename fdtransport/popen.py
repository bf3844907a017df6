"""Processes of the drop-in loop: ``subprocess.Popen``'s arguments, and asyncio's order of what is told.

What Popen can and this library cannot is left to asyncio: ``preexec_fn``, which is Python code between a fork
and the program, and what the system lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ._core.child import LADDER, Child, Ending
from ._core.child_fds import descriptor_map
from .popen_words import NOTHING, SAME
from .process_transport import Phase, ProcessTransport
from .processes import SHELL

__all__ = ["AsPopen", "PopenTransport", "popen_transport"]


class AsPopen:
    """What ``get_extra_info("subprocess")`` gives: a process, with the methods of subprocess.Popen."""

    stdin = stdout = stderr = None  # they are under transports

    def __init__(self, child: Child, args: Any) -> None:
        self._child = child
        self.args: Any = args

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """None until its end was looked for, here or by the loop."""
        return self._child.returncode

    def poll(self) -> int | None:
        """The return code, if it has ended."""
        return self._child.poll()

    def wait(self, timeout: float | None = None) -> int:
        """The return code. This holds the thread, and so the loop, until it has ended.

        :raises subprocess.TimeoutExpired: it has not within *timeout* seconds.
        """
        if not self._child.wait_here(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(sig)

    def terminate(self) -> None:
        """Send SIGTERM, if it has not ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, if it has not ended."""
        self.send_signal(signal.SIGKILL)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} returncode={self.returncode} args={self.args!r}>"


class PopenTransport(ProcessTransport):
    """A process as programs know it from asyncio: ``process_exited`` comes with its end, whoever else still
    has its descriptors. Extra info: also ``subprocess``, an `AsPopen`.
    """

    _exit_first = True
    _told: int | None = None

    def __init__(self, loop: Any, argv: Any, *args: Any, **options: Any) -> None:
        super().__init__(loop, argv, *args, **options)
        self._extra["subprocess"] = AsPopen(self._child, argv)  # type: ignore[attr-defined]

    def _exited(self) -> None:
        self._told = self._child.returncode
        super()._exited()

    def get_returncode(self) -> int | None:
        """None until the loop has told the end; minus the number of the signal that ended it."""
        return self._told

    # As asyncio's, these know of the end when everything else has ended too: no error before that.

    def send_signal(self, signal: int) -> None:
        """Send a signal, if it has not ended. :raises ProcessLookupError: after ``connection_lost``."""
        self._check_there()
        self.get_extra_info("subprocess").send_signal(signal)

    def terminate(self, ladder: Sequence[int] = LADDER, grace: float = 5.0) -> Ending:  # type: ignore[override]
        """As that of `ProcessTransport`. :raises ProcessLookupError: after ``connection_lost``."""
        self._check_there()
        return super().terminate(ladder, grace)

    def kill(self) -> None:
        """Send SIGKILL, if it has not ended. :raises ProcessLookupError: after ``connection_lost``."""
        self._check_there()
        self.get_extra_info("subprocess").kill()

    def _check_there(self) -> None:
        if self._phase is Phase.CLOSED:
            raise ProcessLookupError(errno.ESRCH, f"process {self._child.pid} has ended")


async def popen_transport(
    loop: asyncio.AbstractEventLoop,
    protocol: asyncio.BaseProtocol,
    args: Any,
    shell: bool,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    extra: dict[str, Any] | None,
    options: dict[str, Any],
) -> PopenTransport | None:
    """Start it, and return after ``connection_made``. None: only Popen can."""
    pass_fds = options.get("pass_fds", ())
    ours = {name: value for name, value in options.items() if name in SAME}
    others = {name: value for name, value in options.items() if name not in SAME and name != "pass_fds"}
    if sys.platform != "linux" or any(
        name not in NOTHING or value != NOTHING[name] for name, value in others.items()
    ):
        return None
    if ours.get("process_group") == -1:  # Popen's word for none
        del ours["process_group"]
    argv = [args] if isinstance(args, str | bytes) or hasattr(args, "__fspath__") else list(args)
    if shell:
        argv = [ours.pop("executable", None) or SHELL, "-c", *argv]
    fds = descriptor_map(None, None, stdin=stdin, stdout=stdout, stderr=stderr)
    fds.update({number: number for number in pass_fds if number not in fds})
    waiter: asyncio.Future[None] = loop.create_future()
    new_session = bool(ours.pop("start_new_session", False))
    try:
        transport = PopenTransport(loop, argv, fds, protocol, waiter, extra, new_session=new_session, **ours)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        return None  # an old kernel or C library, or no setpriv(1): nothing was started
    transport.get_extra_info("subprocess").args = args
    try:
        await waiter
    except BaseException:
        transport.close()
        with contextlib.suppress(BaseException):
            await transport.wait_closed()
        raise
    return transport
