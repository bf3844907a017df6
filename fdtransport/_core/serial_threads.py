"""Ports that have no descriptor, or whose own methods are wanted: two threads move their bytes.

They stand at the far end of a pair of sockets, whose near end a transport has: flow control, order and the
end are those of every descriptor. The instance's methods wait there as they like.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from typing import Any

__all__ = ["PumpedPort"]

#: Bytes that are asked for, and that wait in the pair of sockets, at most.
PIECE = 16 * 1024
#: Seconds between two looks whether what is unsent is wanted no more.
LOOK = 0.02


class PumpedPort:
    """An open instance of a pyserial class, as a file for a transport.

    ``error`` is what ended it, if it was not this side. :raises OSError: no descriptors are left.
    """

    def __init__(self, instance: Any) -> None:
        self.instance = instance
        self.error: BaseException | None = None
        self._stopping = False
        self._unwanted = False
        self._near, self._far = socket.socketpair()
        for end in (self._near, self._far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
        self._threads: list[threading.Thread] = []

    def fileno(self) -> int:
        return self._near.fileno()

    def start(self) -> None:
        """Begin, unless it has ended already."""
        if self._near.fileno() >= 0 and not self._threads:
            for work in (self._write, self._read):
                thread = threading.Thread(target=work, name="fdtransport.serial", daemon=True)
                self._threads.append(thread)
                thread.start()

    # -- in the threads --------------------------------------------------------------------------------

    def _read(self) -> None:
        instance = self.instance
        try:
            if instance.timeout is not None:
                instance.timeout = None
            while not self._stopping:
                data = instance.read(max(1, min(instance.in_waiting, PIECE)))
                if data:
                    self._far.sendall(data)
        except BaseException as exc:
            self._failed(exc)

    def _write(self) -> None:
        try:
            while data := self._far.recv(PIECE):
                while data and not self._unwanted:
                    count = self.instance.write(data)
                    data = data[len(data) if count is None else count :]
                    if count == 0:
                        time.sleep(LOOK)
        except BaseException as exc:
            self._failed(exc)

    def _failed(self, exc: BaseException) -> None:
        """Have the transport find the end, and the reason here."""
        if not self._stopping:
            self.error = self.error or exc
            with contextlib.suppress(OSError):
                self._far.shutdown(socket.SHUT_RDWR)

    # -- in the thread that closes -----------------------------------------------------------------------

    def drain(self, hurry: threading.Event, patience: float | None) -> bool:
        """Wait until the instance has been given everything, or *hurry* is set; False if that takes longer
        than *patience* seconds."""
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_WR)
        deadline = math.inf if patience is None else time.monotonic() + patience
        for thread in self._threads[:1]:
            while thread.is_alive() and not hurry.is_set():
                if time.monotonic() > deadline:
                    return False
                thread.join(LOOK)
        if hurry.is_set():
            self._unwanted = True
            self._try("reset_output_buffer")
            self._try("cancel_write")
        return True

    def close(self) -> None:
        """Close the instance, and let the threads end."""
        self._stopping = self._unwanted = True
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RDWR)
        self._near.close()
        if hasattr(self.instance, "cancel_read"):
            self._try("cancel_read")
            for thread in self._threads:
                thread.join(1.0)
        try:
            self.instance.close()
        finally:
            for thread in self._threads:
                thread.join(1.0)
            self._far.close()

    def dispose(self) -> None:
        """Forget about the instance, which is somebody else's; it has not begun yet."""
        self._near.close()
        self._far.close()

    def _try(self, name: str) -> None:
        with contextlib.suppress(Exception):
            getattr(self.instance, name)()
