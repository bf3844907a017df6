"""The load generator: a separate process that reads, writes or asks through descriptors that it is sent.

It is plain blocking code and takes one order at a time from a SOCK_SEQPACKET socket: `python load.py FD`.
It runs by path and imports nothing of this package, so that it starts fast and stays small.
"""

from __future__ import annotations

import array
import errno
import hashlib
import json
import os
import random
import select
import socket
import sys
from typing import Any

BLOCK = 256 * 1024


def sink(fds: list[int], order: dict[str, int]) -> list[tuple[int, str]]:
    """Read until the end."""
    room, total, digest = bytearray(BLOCK), 0, hashlib.sha256()
    view = memoryview(room)
    while count := _read(fds[0], room):
        total += count
        if order["check"]:
            digest.update(view[:count])
    return [(total, digest.hexdigest())]


def _read(fd: int, room: bytearray) -> int:
    """As readv(2); a terminal says with an error that nobody has its other end open."""
    try:
        return os.readv(fd, [room])
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return 0


def source(fds: list[int], order: dict[str, int]) -> list[tuple[int, str]]:
    """Write `size` bytes, then close."""
    size, digest = order["size"], hashlib.sha256()
    data = random.Random(1).randbytes(size if order["check"] else BLOCK)
    if order["check"]:
        digest.update(data)
    view, sent = memoryview(data), 0
    while sent < size:
        start = sent % len(data)
        sent += os.write(fds[-1], view[start : start + min(BLOCK, size - sent)])
    return [(sent, digest.hexdigest())]


def serial_source(fds: list[int], order: dict[str, int]) -> list[tuple[int, str]]:
    """As source, for the master of a terminal: closing it throws away what nobody has read, so that the
    reader has to close first."""
    moved = source(fds, order)
    poller = select.poll()
    poller.register(fds[-1], 0)
    poller.poll()
    return moved


def client(fds: list[int], order: dict[str, int]) -> list[tuple[int, str]]:
    """Ask `size` times with 64 bytes and wait for each answer."""
    asked, heard, count = hashlib.sha256(), hashlib.sha256(), 0
    question = bytes(range(64))
    for number in range(order["size"]):
        if order["check"]:
            question = number.to_bytes(64, "big")
            asked.update(question)
        os.write(fds[-1], question)
        answer = os.read(fds[0], 64)
        while len(answer) < 64 and (more := os.read(fds[0], 64 - len(answer))):
            answer += more
        if order["check"]:
            heard.update(answer)
        count += len(answer)
    return [(64 * order["size"], asked.hexdigest()), (count, heard.hexdigest())]


def secured(fds: list[int], order: dict[str, Any]) -> Any:
    """Speak TLS, as the server."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(order["certificate"])
    return context.wrap_socket(socket.socket(fileno=os.dup(fds[0])), server_side=True)


def tls_sink(fds: list[int], order: dict[str, Any]) -> list[tuple[int, str]]:
    """As sink, through TLS."""
    total, digest = 0, hashlib.sha256()
    with secured(fds, order) as sock:
        while data := sock.recv(BLOCK):
            total += len(data)
            if order["check"]:
                digest.update(data)
        sock.unwrap().close()
    return [(total, digest.hexdigest())]


def tls_source(fds: list[int], order: dict[str, Any]) -> list[tuple[int, str]]:
    """As source, through TLS."""
    size, digest = order["size"], hashlib.sha256()
    data = random.Random(1).randbytes(size if order["check"] else BLOCK)
    if order["check"]:
        digest.update(data)
    view, sent = memoryview(data), 0
    with secured(fds, order) as sock:
        while sent < size:
            start = sent % len(data)
            sent += sock.send(view[start : start + min(BLOCK, size - sent)])
        sock.unwrap().close()
    return [(sent, digest.hexdigest())]


def tls_client(fds: list[int], order: dict[str, Any]) -> list[tuple[int, str]]:
    """As client, through TLS (whose server it is)."""
    asked, heard, count = hashlib.sha256(), hashlib.sha256(), 0
    question = bytes(range(64))
    with secured(fds, order) as sock:
        for number in range(order["size"]):
            if order["check"]:
                question = number.to_bytes(64, "big")
                asked.update(question)
            sock.sendall(question)
            answer = sock.recv(64)
            while len(answer) < 64 and (more := sock.recv(64 - len(answer))):
                answer += more
            if order["check"]:
                heard.update(answer)
            count += len(answer)
        sock.unwrap().close()
    return [(64 * order["size"], asked.hexdigest()), (count, heard.hexdigest())]


ORDERS = {
    "sink": sink, "source": source, "client": client, "serial_source": serial_source,
    "tls_sink": tls_sink, "tls_source": tls_source, "tls_client": tls_client,
}  # fmt: skip


def main(control: socket.socket) -> None:
    while True:
        try:
            message, ancillary, _, _ = control.recvmsg(4096, socket.CMSG_SPACE(2 * 4))
        except ConnectionResetError:  # the process under test ended without reading our last answer
            return
        if not message:
            return
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        order = json.loads(message)
        try:
            moved = ORDERS[order["do"]](list(fds), order)
        except OSError as error:
            moved = [(-1, str(error))]
        for fd in fds:
            os.close(fd)
        control.send(json.dumps(moved).encode())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
