"""Move real bytes through every adapter, on this machine, and check that all of them arrive.

For each kind of descriptor a stream of random bytes goes in at one end and is compared at the
other. One line per kind: how much, the check sum, the rate; or why it is not available here.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import fdtransport

from . import between, run_command
from .selftest import Namespace

MIB = 1024 * 1024
#: A reader and a writer; or what has as many of their methods as the tour needs.
Ends = tuple[Any, Any]


class Lane(AsyncExitStack):
    """One way to go. What was opened for it ends with it, however that ends."""

    def keep(self, end: Any) -> Any:
        """A transport, or what has one."""
        self.callback(getattr(end, "transport", end).abort)
        return end

    def meanwhile(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do *work* at the same time. It has to come to its end, unless the lane fails."""
        task = asyncio.create_task(work)

        async def finish(failed: type[BaseException] | None, *_: Any) -> None:
            if failed:
                task.cancel()
                await asyncio.wait([task])
            else:
                await task

        self.push_async_exit(finish)
        return task

    async def child(self, kind: str, **streams: Any) -> asyncio.subprocess.Process:
        """This program, as the other end."""
        command = [sys.executable, "-m", "examples.tour", f"--echo={kind}"]
        child = await asyncio.create_subprocess_exec(*command, **streams)

        async def finish(failed: type[BaseException] | None, *_: Any) -> None:
            if failed and child.returncode is None:
                child.kill()
            await child.wait()

        self.push_async_exit(finish)
        return child

    def pair(self, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair(socket.AF_UNIX, kind)

        async def close() -> None:
            await asyncio.sleep(0)  # transports on them have just been aborted, and close them
            for sock in pair:
                sock.close()

        self.push_async_callback(close)
        return pair

    def folder(self) -> Path:
        return Path(self.enter_context(tempfile.TemporaryDirectory()))

    def file(self) -> Any:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it ends with the lane
        return self.enter_context(file)

    async def accepted(self, server_of: Callable[[Callable[..., None]], Any]) -> tuple[Any, Any]:
        """The address of a server, and a future for its one connection."""
        arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        server = await server_of(lambda reader, writer: arrived.set_result((reader, writer)))
        self.callback(server.abort_clients)
        self.callback(server.close)
        return server.sockets[0].getsockname(), arrived


Open = Callable[[Lane], Awaitable[Ends]]
lanes: list[tuple[str, str, Open]] = []


def lane(name: str, what: str) -> Callable[[Open], Open]:
    """A function that opens ``(reader, writer)``: what is written comes out of the reader."""

    def add(function: Open) -> Open:
        lanes.append((name, what, function))
        return function

    return add


@lane("fd", "a descriptor: one end of a socket pair")
async def by_fd(lane: Lane) -> Ends:
    ours, theirs = lane.pair()
    _, writer = await fdtransport.open_fd(ours)
    reader, other = await fdtransport.open_fd(theirs)
    lane.keep(other)
    return reader, writer


@lane("fd pair", "a read descriptor and a write descriptor as one stream")
async def by_fd_pair(lane: Lane) -> Ends:
    there, back = os.pipe(), os.pipe()
    lane.meanwhile(copy(*await fdtransport.open_fd((there[0], back[1]))))
    return await fdtransport.open_fd((back[0], there[1]))


@lane("pipe", "a new pipe with a buffer of 1 MiB")
async def by_pipe(_: Lane) -> Ends:
    return await fdtransport.open_pipe(pipe_size=MIB)


@lane("fifo", "a named pipe in the file system")
async def by_fifo(lane: Lane) -> Ends:
    path = lane.folder() / "fifo"
    os.mkfifo(path)
    (reader, other), (_, writer) = await asyncio.gather(
        fdtransport.open_fifo(path, "r"), fdtransport.open_fifo(path, "w")
    )
    lane.keep(other)
    return reader, writer


@lane("stdio", "standard input and output of a child process")
async def by_stdio(lane: Lane) -> Ends:
    into, out_of = os.pipe(), os.pipe()
    await lane.child("stdio", stdin=into[0], stdout=out_of[1])
    os.close(into[0])
    os.close(out_of[1])
    reader, writer = await fdtransport.open_fd((out_of[0], into[1]))
    lane.keep(writer).write(b"?")  # its answer tells that the child has started, which is not to be timed
    await reader.readexactly(1)
    return reader, writer


@lane("file", "a regular file, written and read back without stopping the loop")
async def by_file(lane: Lane) -> Ends:
    file = lane.file()
    _, writer = await fdtransport.open_fd(os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY))
    reader = asyncio.StreamReader()

    async def read_back() -> None:
        await writer.wait_closed()
        source, _ = await fdtransport.open_fd(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY))
        while data := await source.read(MIB):
            reader.feed_data(data)

    lane.meanwhile(read_back())
    return reader, writer


@lane("tcp", "a TCP connection over the loopback")
async def by_tcp(lane: Lane) -> Ends:
    address, arrived = await lane.accepted(lambda each: fdtransport.start_server(each, "127.0.0.1", 0))
    _, writer = await fdtransport.open_connection(*address)
    reader, _ = await arrived
    return reader, writer


@lane("unix", "a UNIX socket in the file system")
async def by_unix(lane: Lane) -> Ends:
    path = lane.folder() / "socket"
    _, arrived = await lane.accepted(lambda each: fdtransport.start_unix_server(each, path))
    _, writer = await fdtransport.open_unix_connection(path)
    reader, _ = await arrived
    return reader, writer


@lane("relay", "socket to socket through relay(), spliced by the kernel")
async def by_relay(lane: Lane) -> Ends:
    near, a = lane.pair()
    b, far = lane.pair()
    left, _ = await fdtransport.connect_fd(asyncio.Protocol, a)
    right, _ = await fdtransport.connect_fd(asyncio.Protocol, b)
    lane.meanwhile(fdtransport.relay(left, right))
    _, writer = await fdtransport.open_fd(near)
    reader, other = await fdtransport.open_fd(far)
    lane.keep(other)
    return reader, writer


# -- TLS, files, descriptors, another loop -----------------------------------------------------------


def tls_contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's, of a certificate that is made here."""
    if shutil.which("openssl") is None:
        raise NotImplementedError("the program openssl, which makes a certificate, is not installed")
    chain, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost -days 2 -out"
    subprocess.run([*command.split(), chain, "-keyout", key], check=True, capture_output=True)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(chain, key)
    return ssl.create_default_context(cafile=chain), server


@lane("tls", "TLS over a TCP connection, the certificate verified")
async def by_tls(lane: Lane) -> Ends:
    ours, theirs = await asyncio.to_thread(tls_contexts, lane.folder())
    address, arrived = await lane.accepted(
        lambda each: fdtransport.start_server(each, "127.0.0.1", 0, ssl=theirs)
    )
    _, writer = await fdtransport.open_connection(*address, ssl=ours, server_hostname="localhost")
    reader, other = await arrived
    lane.keep(other)
    return reader, writer


@lane("start_tls", "a UNIX connection that becomes TLS in the middle")
async def by_start_tls(lane: Lane) -> Ends:
    ours, theirs = await asyncio.to_thread(tls_contexts, lane.folder())
    path = lane.folder() / "socket"
    _, arrived = await lane.accepted(lambda each: fdtransport.start_unix_server(each, path))
    _, writer = await fdtransport.open_unix_connection(path)
    reader, other = await arrived
    await asyncio.gather(other.start_tls(theirs), writer.start_tls(ours, server_hostname="localhost"))
    lane.keep(other)
    return reader, writer


class Writer:
    """As much of a StreamWriter as the tour needs, for what is none."""

    def __init__(self, transport: Any, send: Callable[[bytes], Awaitable[object]]) -> None:
        self.transport, self.send = transport, send

    def write(self, data: bytes) -> None:
        self.data = data

    async def drain(self) -> None:
        await self.send(self.data)

    def close(self) -> None:
        self.transport.close()

    async def wait_closed(self) -> None:
        await self.transport.aclose()


@lane("sendfile", "a file into a TCP connection by sendfile(2)")
async def by_sendfile(lane: Lane) -> Ends:
    file = lane.file()
    reader, writer = await by_tcp(lane)

    async def send(data: bytes) -> None:
        file.seek(0)
        file.write(data)
        await fdtransport.sendfile(writer, file, 0, len(data))

    return reader, Writer(writer.transport, send)


@lane("send_fds", "files whose descriptors travel over a UNIX socket")
async def by_descriptors(lane: Lane) -> Ends:
    reader = asyncio.StreamReader()

    class Receiver(asyncio.Protocol):
        def fds_received(self, fds: list[int]) -> None:
            for fd in fds:
                with open(fd, "rb") as file:
                    file.seek(0)
                    reader.feed_data(file.read())

    ours, theirs = lane.pair()
    sender, _ = await fdtransport.create_unix_connection(asyncio.Protocol, sock=ours)
    lane.keep((await fdtransport.create_unix_connection(Receiver, sock=theirs))[0])

    async def send(data: bytes) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            sender.send_fds(b"a file", [file])
            await sender.flushed()

    return reader, Writer(sender, send)


@lane("loop", "an echo server on nothing but asyncio, in a process with the drop-in loop")
async def by_loop(lane: Lane) -> Ends:
    child = await lane.child("loop", stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    return await fdtransport.open_connection("127.0.0.1", int(await child.stdout.readline()))


# -- records -----------------------------------------------------------------------------------------


def records(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 8192] for at in range(0, len(data), 8192))


def writer_of(packets: fdtransport.PacketStream) -> Writer:
    async def send(data: bytes) -> None:
        for record in records(data):
            await packets.send(record)

    return Writer(packets.transport, send)


class Unpacking(asyncio.DatagramProtocol):
    """The bytes of the records that come."""

    def __init__(self, reader: asyncio.StreamReader, answer: bytes = b"") -> None:
        self.reader, self.answer = reader, answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.reader.feed_data(data)
        if self.answer:
            self.transport.sendto(self.answer)


@lane("process", "a program that copies its standard input to its standard output")
async def by_process(lane: Lane) -> Ends:
    child = await fdtransport.create_subprocess_exec("cat", fds={0: "w", 1: "r"})

    async def finish(failed: type[BaseException] | None, *_: Any) -> None:
        if failed and child.returncode is None:
            child.kill()
        await child.wait()

    lane.push_async_exit(finish)
    return child.stdout, child.stdin


@lane("terminal", "a program on a terminal of its own, in raw mode")
async def by_terminal(lane: Lane) -> Ends:
    reader, keyboard = await fdtransport.open_pty_process("cat", raw=True)
    transport: Any = keyboard.transport
    lane.push_async_callback(transport.finish)

    class Typist(Writer):
        def can_write_eof(self) -> bool:
            return True

        def write_eof(self) -> None:
            """A raw terminal has no end of file. It is hung up when all that was typed has come back."""

    async def send(data: bytes) -> None:
        keyboard.write(data)
        await keyboard.drain()

    return reader, Typist(transport, send)


@lane("serial", "a serial port, a virtual one at whose other end this program is too")
async def by_serial(lane: Lane) -> Ends:
    path = lane.folder() / "port"
    reader, device = await fdtransport.open_pty(link=path)
    lane.keep(device)
    _, port = await fdtransport.open_serial(path, 921600)
    return reader, port


@lane("inotify", "files, each read when the kernel tells that it has come")
async def by_inotify(lane: Lane) -> Ends:
    elsewhere, watched = lane.folder(), lane.folder()
    reader, taken = asyncio.StreamReader(), asyncio.Event()

    class Taking(fdtransport.InotifyProtocol):
        def event_received(self, event: fdtransport.InotifyEvent) -> None:
            reader.feed_data(event.as_path.read_bytes())
            taken.set()

    transport, _ = await fdtransport.connect_inotify(Taking)
    transport.add_watch(watched, fdtransport.InotifyMask.MOVED_TO)

    async def send(data: bytes) -> None:
        (elsewhere / "file").write_bytes(data)
        taken.clear()
        (elsewhere / "file").rename(watched / "file")
        await taken.wait()

    return reader, Writer(transport, send)


@lane("packet fd", "a descriptor with records: one write is one read")
async def by_packet_fd(lane: Lane) -> Ends:
    ours, theirs = lane.pair(socket.SOCK_SEQPACKET)
    reader = asyncio.StreamReader()
    receiver, _ = await fdtransport.connect_packet_fd(lambda: Unpacking(reader), theirs)
    lane.keep(receiver)
    return reader, writer_of(await fdtransport.open_packet_fd(ours))


@lane("udp", "UDP over the loopback, to a server with a session for each peer")
async def by_udp(lane: Lane) -> Ends:
    reader = asyncio.StreamReader()
    server = await fdtransport.create_datagram_server(lambda: Unpacking(reader, b"taken"), ("127.0.0.1", 0))
    lane.push_async_callback(server.aclose, timeout=1)
    packets = await fdtransport.open_datagram_endpoint(remote_addr=server.sockets[0].getsockname())

    async def send(data: bytes) -> None:
        on_the_way = 0  # nothing else holds a sender back: the kernel drops what finds no room
        for record in records(data):
            if on_the_way == 8:
                await packets.recv()
            else:
                on_the_way += 1
            await packets.send(record)
        for _ in range(on_the_way):
            await packets.recv()

    return reader, Writer(packets.transport, send)


@lane("datagram", "UNIX datagrams")
async def by_datagrams(lane: Lane) -> Ends:
    path, reader = str(lane.folder() / "socket"), asyncio.StreamReader()
    receiver, _ = await fdtransport.create_datagram_endpoint(
        lambda: Unpacking(reader), path, family=socket.AF_UNIX
    )
    lane.keep(receiver)
    return reader, writer_of(
        await fdtransport.open_datagram_endpoint(remote_addr=path, family=socket.AF_UNIX)
    )


@lane("seqpacket", "SOCK_SEQPACKET: a connection with records, in the file system")
async def by_seqpacket(lane: Lane) -> Ends:
    kind: Any = {"family": socket.AF_UNIX, "type": socket.SOCK_SEQPACKET}
    path, reader = str(lane.folder() / "socket"), asyncio.StreamReader()
    server = await fdtransport.create_datagram_server(lambda: Unpacking(reader), path, **kind)
    lane.push_async_callback(server.aclose, timeout=1)
    return reader, writer_of(await fdtransport.open_datagram_endpoint(remote_addr=path, **kind))


@lane("tun", "UDP through a network interface, to hosts that this program plays")
async def by_tun(lane: Lane) -> Ends:
    try:
        space = lane.enter_context(Namespace())
        addresses, mtu = ["10.9.0.1/24"], 9000
        opening = fdtransport.open_tuntap(netns=space, addresses=addresses, mtu=mtu, link_local=False)
        tun = await lane.enter_async_context(opening)
    except OSError as exc:
        text = f"neither root nor inside of `unshare -rn`, or without /dev/net/tun ({exc})"
        raise NotImplementedError(text) from None
    sock = space.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("10.9.0.7", 7))
    packets = await fdtransport.open_datagram_endpoint(sock=sock)
    reader = asyncio.StreamReader()

    async def send(data: bytes) -> None:
        for record in records(data):
            await packets.send(record)
            packet = await tun.recv()  # IPv4 and UDP: the answer has their addresses and ports swapped
            addresses, ports = packet[16:20] + packet[12:16], packet[22:24] + packet[20:22]
            await tun.send(packet[:12] + addresses + ports + packet[24:])
            reader.feed_data(await packets.recv())

    return reader, Writer(packets.transport, send)


# -- the tour ----------------------------------------------------------------------------------------


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    finally:
        writer.transport.abort()


async def move(lane: Lane, reader: Any, writer: Any, size: int) -> tuple[str, float]:
    """Send *size* random bytes; return the check sum that arrived, and the seconds it took."""
    lane.keep(writer)
    block = random.Random(size).randbytes(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()
    count = 0

    async def send() -> None:
        left = size
        while left:
            data = block[: min(left, len(block))]
            sent.update(data)
            writer.write(data)
            await writer.drain()
            left -= len(data)
        if hasattr(writer, "can_write_eof") and writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()

    start = time.perf_counter()
    sending = lane.meanwhile(send())
    while count < size and (data := await reader.read(65536)):
        received.update(data)
        count += len(data)
    await sending
    seconds = time.perf_counter() - start
    writer.close()
    await writer.wait_closed()
    if count != size or sent.digest() != received.digest():
        raise RuntimeError(f"{count} bytes of {size} arrived, or others than were sent")
    return received.hexdigest(), seconds


async def tour(size: int) -> int:
    """Returns the exit status."""
    version = sys.version.split()[0]
    print(f"fdtransport on Python {version}, {sys.platform}: {len(lanes)} kinds, check sums compared")
    failed = 0
    for name, what, open_lane in lanes:
        try:
            async with asyncio.timeout(60), Lane() as lane:
                digest, seconds = await move(lane, *await open_lane(lane), size)
        except NotImplementedError as exc:
            print(f"{name:9} not available here: {exc}")
        except Exception as exc:
            failed += 1
            print(f"{name:9} FAILED: {exc or type(exc).__name__}")
        else:
            rate = size / MIB / seconds
            print(f"{name:9} {size / MIB:g} MiB  sha256 {digest[:12]} ok  {rate:6.0f} MiB/s  {what}")
    print(f"{len(lanes) - failed} of {len(lanes)} kinds moved every byte" if failed else "every byte arrived")
    return 1 if failed else 0


async def echo_stdio() -> None:
    await copy(*await fdtransport.open_stdio())


async def echo_loop() -> None:
    """No word of this library: its loop is all there is of it."""
    ended = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await copy(reader, writer)
        ended.set()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await ended.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.tour", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size",
        type=between(float, 0.01, 1e6),
        default=32,
        metavar="MIB",
        help="how much per kind (default 32)",
    )
    parser.add_argument("--echo", choices=["stdio", "loop"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.echo == "loop":
        return run_command(echo_loop(), fdtransport.new_event_loop)
    return run_command(echo_stdio() if args.echo else tour(int(args.size * MIB)))


if __name__ == "__main__":
    sys.exit(main())
