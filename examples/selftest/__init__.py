"""What the self-tests of the network examples share: network namespaces, and traffic inside of them.

Each namespace is made for the test and goes with it. Nothing is changed in the machine's own.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fdtransport import Link

__all__ = ["Namespace", "run_selftest", "transfer"]

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


def _call_in_thread(function: Callable[[], T]) -> T:
    """A namespace is a thread's: what enters one has a thread of its own."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return results[0]


def _libc(name: str, *args: int) -> None:
    # os.setns and os.unshare are there from Python 3.12 on.
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*args):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """A new network namespace, in which nothing is but a loopback interface that is down."""

    def __init__(self) -> None:
        def make() -> int:
            _libc("unshare", CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        self._fd = _call_in_thread(make)

    def fileno(self) -> int:
        """For ``netns=``."""
        return self._fd

    def inside(self, function: Callable[[], T]) -> T:
        """What *function* returns, called in here. A socket stays in the namespace that it was made in."""

        def run() -> T:
            _libc("setns", self._fd, CLONE_NEWNET)
            return function()

        return _call_in_thread(run)

    def socket(self, *args: Any) -> socket.socket:
        sock = self.inside(lambda: socket.socket(*args))
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


async def transfer(source: Namespace, sink: Namespace, address: str, megabytes: float) -> float:
    """Send by TCP from one namespace to *address* in the other; Gbit/s.

    :raises AssertionError: what came is not what was sent.
    """
    size = int(megabytes * 1e6)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = sink.inside(lambda: socket.create_server((address, 7000), family=family))

    def receive() -> str:
        connection, _ = listener.accept()
        digest = hashlib.sha256()
        with connection:
            connection.settimeout(30)
            while data := connection.recv(1 << 20):
                digest.update(data)
        return digest.hexdigest()

    def send() -> str:
        digest, left, block = hashlib.sha256(), size, os.urandom(1 << 18)
        with source.inside(lambda: socket.create_connection((address, 7000), timeout=30)) as connection:
            while left:
                piece = block[:left]
                connection.sendall(piece)
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()

    loop = asyncio.get_running_loop()
    with listener:
        listener.settimeout(30)
        began = loop.time()
        sent, received = await asyncio.gather(asyncio.to_thread(send), asyncio.to_thread(receive))
        seconds = loop.time() - began
    assert sent == received, f"{size} bytes: the checksums differ"
    return size * 8 / seconds / 1e9


async def run_selftest(test: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run *test* if namespaces can be made here and have TUN and TAP; say so otherwise."""
    try:
        Namespace().close()
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as exc:
        print(f"not tested: neither root nor inside of `unshare -rn`, or without /dev/net/tun ({exc})")
        return 0
    with Link("lo") as loopback:
        if not loopback.state().up:  # as in a namespace that `unshare -rn` has just made
            loopback.set(up=True)
    await asyncio.wait_for(test(), 300)
    print("passed")
    return 0
