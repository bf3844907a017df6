"""A shell for everybody who comes to a UNIX socket: a terminal each, of the size of the client's window.

    python -m examples.shell_server --listen /tmp/shells
    python -m examples.shell_server --connect /tmp/shells        # in another terminal; Ctrl-] leaves

Without arguments it shows itself: a server, and clients that type by themselves. (The socket has mode 0600.)

Both sides send frames: one byte for what it is, two for the length, then the bytes. The client sends the size
of its window, at first and when it changes, and what is typed; the server what is printed, and the status.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import struct
import sys
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import fdtransport

from . import between, run_command

HEAD, WINDOW = struct.Struct("!cH"), struct.Struct("!4H")


async def frames(reader: StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    with suppress(asyncio.IncompleteReadError, ConnectionError):  # whoever has gone says no more
        while True:
            kind, size = HEAD.unpack(await reader.readexactly(HEAD.size))
            yield kind, await reader.readexactly(size)


def send(writer: StreamWriter, kind: bytes, data: bytes) -> None:
    writer.write(HEAD.pack(kind, len(data)) + data)


async def copy(reader: StreamReader, writer: StreamWriter, kind: bytes) -> None:
    """Send what *reader* has until its end, in frames."""
    with suppress(ConnectionError):
        while data := await reader.read(0xFFFF):
            send(writer, kind, data)
            await writer.drain()  # a client that reads slowly has its shell wait


async def serve(client: StreamReader, answers: StreamWriter) -> None:
    """One client, and its shell: whichever ends first, the other does."""
    asked = frames(client)
    kind, window = await anext(asked, (b"", b""))
    if kind != b"w":
        return answers.close()  # it has thought better of it
    shell = os.environ.get("SHELL", "/bin/sh")
    screen, keys = await fdtransport.open_pty_process(shell, size=WINDOW.unpack(window))
    terminal: Any = keys.transport
    showing = asyncio.create_task(show(screen, answers, terminal))
    try:
        async for kind, data in asked:
            with suppress(OSError):  # the shell has ended; or a line is too long for a terminal
                if kind == b"w":
                    terminal.resize(*WINDOW.unpack(data))
                else:
                    keys.write(data)
                    await keys.drain()
    finally:
        await terminal.finish(grace=1.0)  # hung up, as by a window that is closed; and then firmer
        await showing
        answers.close()


async def show(screen: StreamReader, answers: StreamWriter, terminal: Any) -> None:
    await copy(screen, answers, b"o")
    code = await terminal.wait()
    send(answers, b"s", bytes([code if code >= 0 else 128 - code]))
    answers.write_eof()


async def listen(path: str, clients: int) -> None:
    server = await fdtransport.start_unix_server(serve, path, max_connections=clients)
    print(f"python -m examples.shell_server --connect {path}", flush=True)
    try:
        await asyncio.Event().wait()  # Ctrl-C
    finally:
        await server.aclose(timeout=1)  # the clients are told, and their shells are hung up


async def connect(path: str) -> int:
    """This terminal is the screen and the keyboard of a shell there, whose exit status is returned."""
    reader, writer = await fdtransport.open_unix_connection(path)

    def tell(size: Iterable[int]) -> None:
        send(writer, b"w", WINDOW.pack(*map(max, size, (1, 1, 0, 0))))

    async with fdtransport.attach_terminal(on_resize=tell) as (keys, screen):
        tell(screen.transport.get_extra_info("window_size"))
        typing = asyncio.create_task(copy(keys, writer, b"k"))
        typing.add_done_callback(lambda _: writer.close())  # the user leaves
        async for kind, data in frames(reader):
            if kind == b"s":
                return int(data[0])
            screen.write(data)
            await screen.drain()
    return 0


async def show_itself(clients: int) -> None:
    """A server, and clients that type by themselves."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/shells"
        async with await fdtransport.start_unix_server(serve, path, max_connections=clients):
            print(f"exit statuses: {await asyncio.gather(*(visit(path, number) for number in range(3)))}")


async def visit(path: str, number: int) -> int:
    reader, writer = await fdtransport.open_unix_connection(path)
    send(writer, b"w", WINDOW.pack(20 + number, 80, 0, 0))
    send(writer, b"k", b"stty -echo; echo; stty size; read x; stty size; exit %d\n" % number)
    said, waits = b"", True
    async for kind, data in frames(reader):
        said += data if kind == b"o" else b""
        if waits and b" 80\r\n" in said:  # it is pulled larger, and Return is pressed
            waits = False
            send(writer, b"w", WINDOW.pack(40 + number, 132, 0, 0))
            send(writer, b"k", b"\n")
    writer.close()
    sizes = re.findall(r"[0-9]+ [0-9]+(?=\r)", said.decode())
    print(f"client {number}: a window of {', and then of '.join(sizes)}", flush=True)
    return data[0]


def main() -> int:
    parser = argparse.ArgumentParser("python -m examples.shell_server", None, __doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--listen", metavar="PATH", help="serve there")
    which.add_argument("--connect", metavar="PATH", help="have a shell here")
    parser.add_argument("--clients", type=between(int, 1, 10**6), default=100, metavar="N", help="at once")
    args = parser.parse_args()
    if args.connect:
        return run_command(connect(args.connect))
    return run_command(listen(args.listen, args.clients) if args.listen else show_itself(args.clients))


if __name__ == "__main__":
    sys.exit(main())
