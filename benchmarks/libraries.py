"""The columns: how each library runs a workload and turns an `End` into its own transport or stream.

A workload is written once per *shape*, not once per library: "protocol" (callbacks, with asyncio's names;
Twisted's are made aliases of them), "stream" (await receive and send), "blocking" and "splice" (no loop),
"relay" (the library's own relay), "expect" (pexpect's calls).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.ends import End

#: Baud, which means nothing to a terminal.
RATE = 115_200

Main = Callable[[], Awaitable[None]]


class Endpoint(asyncio.Protocol):
    """A protocol that asyncio's transports and Twisted's drive alike."""

    dataReceived = asyncio.Protocol.data_received
    connectionLost = asyncio.Protocol.connection_lost
    pauseProducing = asyncio.Protocol.pause_writing
    resumeProducing = asyncio.Protocol.resume_writing

    def __init_subclass__(cls) -> None:
        cls.dataReceived = cls.data_received
        cls.connectionLost = cls.connection_lost
        cls.pauseProducing = cls.pause_writing
        cls.resumeProducing = cls.resume_writing

    def makeConnection(self, transport: Any) -> None:
        self.connection_made(transport)

    def stopProducing(self) -> None:
        """The loss is told by connection_lost."""


class Output(asyncio.Protocol):
    """Keeps what comes, and tells the end."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.lost = asyncio.get_running_loop().create_future()
        self.data_received = self.pieces.append  # type: ignore[assignment, method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


class Stream(NamedTuple):
    """Await-based access to one end; `receive` takes a size and raises one of `ends` or returns b""."""

    receive: Callable[[int], Awaitable[bytes]]
    send: Callable[[bytes], Awaitable[Any]]
    close: Callable[[], Awaitable[Any]]
    ends: tuple[type[Exception], ...] = ()


class Library:
    name = ""
    shapes: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Import what is needed; ImportError means that this column is left out."""


class Blocking(Library):
    """The limit: system calls in a plain loop."""

    name = "blocking"
    shapes: tuple[str, ...] = ("blocking",)

    def run(self, main: Callable[[], None]) -> None:
        main()

    def on_terminal(self, words: Sequence[str]) -> tuple[bytes, int]:
        """Run a program on a terminal of its own; what it wrote there, and its status."""
        return self.end_on_terminal(self.start_on_terminal(words))

    def start_on_terminal(self, words: Sequence[str]) -> Any:
        master, slave = os.openpty()
        opening = (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0)
        copies = [(os.POSIX_SPAWN_DUP2, 0, number) for number in (1, 2)]
        pid = os.posix_spawn(words[0], list(words), os.environ, file_actions=[opening, *copies], setsid=True)
        os.close(slave)
        return pid, master

    def end_on_terminal(self, process: Any) -> tuple[bytes, int]:
        pid, master = process
        output = b""
        with contextlib.suppress(OSError):
            while data := os.read(master, 65_536):
                output += data
        os.close(master)
        return output, os.waitpid(pid, 0)[1]


class PyTun(Blocking):
    """python-pytun, whose calls wait."""

    name = "pytun"
    shapes = ("pytun",)

    def prepare(self) -> None:
        import pytun  # noqa: F401 (an ImportError says that it is not here)


class Splice(Blocking):
    """The limit of a relay: os.splice in a plain loop."""

    name = "splice"
    shapes = ("splice",)


class Asyncio(Library):
    name = "asyncio"
    shapes: tuple[str, ...] = ("protocol", "stream")

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def run(self, main: Main) -> None:
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            runner.run(main())  # type: ignore[arg-type]

    def signal(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def turn(self) -> Awaitable[None]:
        return asyncio.sleep(0)

    async def connect(self, protocol: asyncio.BaseProtocol, end: End) -> Any:
        """The transport of this end (of its write side, where there are two)."""
        loop = asyncio.get_running_loop()
        transport: Any = None
        if end.sock is not None:
            create = loop.create_connection if end.kind == "tcp" else loop.create_unix_connection
            transport, _ = await create(lambda: protocol, sock=end.sock)
        if end.sock is None and end.reader is not None:
            file = os.fdopen(end.reader, "rb", 0)
            transport, _ = await loop.connect_read_pipe(lambda: protocol, file)
        if end.sock is None and end.writer is not None:
            # Of a terminal, each transport needs a descriptor of its own.
            file = os.fdopen(os.dup(end.writer) if end.writer == end.reader else end.writer, "wb", 0)
            transport, _ = await loop.connect_write_pipe(lambda: protocol, file)
        return transport

    async def stream(self, end: End) -> Stream:
        opened = asyncio.open_connection if end.kind == "tcp" else asyncio.open_unix_connection
        reader, writer = await opened(sock=end.sock)
        return _of_streams(reader, writer)

    async def connect_socket(self, protocol: asyncio.BaseProtocol, sock: Any) -> Any:
        """As `connect`, by the function that asyncio has for it."""
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: protocol, sock=sock)
        return transport

    async def datagrams(self, protocol: asyncio.BaseProtocol, sock: Any) -> Any:
        """A datagram transport on a connected socket."""
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: protocol, sock=sock)  # type: ignore[type-var]
        return transport

    async def serve(self, factory: Callable[[], Any], sock: Any) -> Any:
        return await asyncio.get_running_loop().create_server(factory, sock=sock, backlog=1024)

    async def sendfile(self, transport: Any, file: Any, flow: Any) -> None:
        await asyncio.get_running_loop().sendfile(transport, file, fallback=False)

    async def on_terminal(self, words: Sequence[str]) -> tuple[bytes, int]:
        """As those that block. The terminal does not control the session here."""
        master, slave = os.openpty()
        file = os.fdopen(master, "rb", 0)
        transport, output = await asyncio.get_running_loop().connect_read_pipe(Output, file)
        process = await asyncio.create_subprocess_exec(
            *words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        await output.lost
        transport.close()
        return b"".join(output.pieces), await process.wait()

    async def on_pipe(self, words: Sequence[str]) -> tuple[bytes, int]:
        """Run a program with a pipe for its output."""
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return output, await process.wait()

    async def with_output(self, words: Sequence[str], stdin: Any, pipe_size: int | None) -> Any:
        """A process that reads *stdin* and has a pipe for its output."""
        return await asyncio.create_subprocess_exec(*words, stdin=stdin, stdout=asyncio.subprocess.PIPE)

    async def connect_tls(self, protocol: asyncio.BaseProtocol, end: End, trust: Any) -> Any:
        options: Any = {"sock": end.sock, "ssl": trust, "server_hostname": "localhost"}
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, **options)
        return transport

    async def stream_tls(self, end: End, trust: Any) -> Stream:
        options: Any = {"sock": end.sock, "ssl": trust, "server_hostname": "localhost"}
        return _of_streams(*await asyncio.open_connection(**options))


def _of_streams(reader: Any, writer: Any) -> Stream:
    async def send(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    async def close() -> None:
        writer.close()
        await writer.wait_closed()

    return Stream(reader.read, send, close)


class Asyncio64k(Asyncio):
    """asyncio, reading 64 KiB at a time: without the mmap and munmap that 256 KiB cost for each read."""

    name = "asyncio-64k"

    def prepare(self) -> None:
        from asyncio import selector_events, unix_events

        selector_events._SelectorSocketTransport.max_size = 65_536  # type: ignore[attr-defined]
        selector_events._SelectorDatagramTransport.max_size = 65_536  # type: ignore[attr-defined]
        unix_events._UnixReadPipeTransport.max_size = 65_536  # type: ignore[attr-defined]


class Uvloop(Asyncio):
    name = "uvloop"

    def prepare(self) -> None:
        import uvloop

        self._uvloop = uvloop

    def new_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._uvloop.new_event_loop()
        return loop

    async def sendfile(self, transport: Any, file: Any, flow: Any) -> None:
        while data := file.read(262_144):  # its loop.sendfile raises NotImplementedError
            transport.write(data)
            if flow.resumed is not None:
                await flow.resumed


class Fdtransport(Asyncio):
    name = "fdtransport"
    shapes = ("ours", "relay", "protocol", "stream")
    #: Of the interfaces, where the medium is a TUN.
    tun_mtu = 1500
    tun_offload: str | None = None

    def prepare(self) -> None:
        import fdtransport

        if not hasattr(fdtransport, "connect_fd"):
            raise ImportError("fdtransport has no connect_fd")
        self._fdtransport: Any = fdtransport

    async def connect(self, protocol: asyncio.BaseProtocol, end: End) -> Any:
        if end.kind == "serial":
            from fdtransport.serial import connect_serial

            return (await connect_serial(lambda: protocol, end.path, RATE))[0]
        if end.kind == "pty":
            loop = asyncio.get_running_loop()
            made = loop.create_future()
            terminal = self._fdtransport.PtyTransport(loop, end.reader, protocol, made)
            await made
            return terminal
        transport, _ = await self._fdtransport.connect_fd(lambda: protocol, end.file)
        return transport

    async def on_terminal(self, words: Sequence[str]) -> tuple[bytes, int]:
        transport, output = await self._fdtransport.spawn_pty(Output, *words)
        await output.lost
        return b"".join(output.pieces), transport.returncode

    async def on_pipe(self, words: Sequence[str]) -> tuple[bytes, int]:
        process = await self._fdtransport.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return output, process.returncode

    async def with_output(self, words: Sequence[str], stdin: Any, pipe_size: int | None) -> Any:
        return await self._fdtransport.create_subprocess_exec(
            *words, stdin=stdin, stdout=asyncio.subprocess.PIPE, pipe_size=pipe_size
        )

    async def connect_socket(self, protocol: asyncio.BaseProtocol, sock: Any) -> Any:
        transport, _ = await self._fdtransport.create_unix_connection(lambda: protocol, sock=sock)
        return transport

    async def stream(self, end: End) -> Stream:
        return _of_streams(*await self._fdtransport.open_fd(end.file))

    async def datagrams(self, protocol: asyncio.BaseProtocol, sock: Any) -> Any:
        transport, _ = await self._fdtransport.create_datagram_endpoint(lambda: protocol, sock=sock)
        return transport

    async def serve(self, factory: Callable[[], Any], sock: Any) -> Any:
        return await self._fdtransport.create_server(factory, sock=sock, backlog=1024)

    async def sendfile(self, transport: Any, file: Any, flow: Any) -> None:
        await self._fdtransport.sendfile(transport, file, fallback=False)

    async def connect_tls(self, protocol: asyncio.BaseProtocol, end: End, trust: Any) -> Any:
        options: Any = {"sock": end.sock, "ssl": trust, "server_hostname": "localhost"}
        transport, _ = await self._fdtransport.create_connection(lambda: protocol, **options)
        return transport

    async def stream_tls(self, end: End, trust: Any) -> Stream:
        options: Any = {"sock": end.sock, "ssl": trust, "server_hostname": "localhost"}
        return _of_streams(*await self._fdtransport.open_connection(**options))

    async def relay(self, one: Any, other: Any, copy: bool) -> None:
        from fdtransport.relay import relay

        (await relay(one, other, copy=copy)).raise_for_error()

    def with_pipe_size(self, end: End, size: int) -> None:
        for fd in end.fds:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)


class Fdtransport9000(Fdtransport):
    """With packets of that size, where the medium carries them."""

    name = "fdtransport-9000"
    tun_mtu = 9000


class FdtransportRaw(Fdtransport):
    """With large packets that are passed on as they are."""

    name = "fdtransport-raw"
    tun_offload = "raw"


class FdtransportSplit(Fdtransport):
    """With large packets that are cut into such of the MTU."""

    name = "fdtransport-split"
    tun_offload = "split"


class FdtransportUv(Fdtransport, Uvloop):
    """Our transports on uvloop's loop."""

    name = "fdtransport-uv"

    def prepare(self) -> None:
        Fdtransport.prepare(self)
        Uvloop.prepare(self)


class PyserialAsyncio(Asyncio):
    """Serial ports, as those who came before have them."""

    name = "pyserial-asyncio"
    shapes = ("protocol",)
    module = "serial_asyncio"

    def prepare(self) -> None:
        self._module = importlib.import_module(self.module)

    async def connect(self, protocol: asyncio.BaseProtocol, end: End) -> Any:
        create, loop = self._module.create_serial_connection, asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)  # -fast reports at each turn of the loop
        return (await create(loop, lambda: protocol, end.path, baudrate=RATE))[0]


class PyserialAsyncioFast(PyserialAsyncio):
    name = "pyserial-asyncio-fast"
    module = "serial_asyncio_fast"


class Serialx(PyserialAsyncio):
    name = "serialx"
    module = "serialx"


class Twisted(Library):
    """The epoll reactor, its own connection and pipe classes; asyncio's names are class-level aliases."""

    name = "twisted"
    shapes = ("protocol", "twisted")

    def prepare(self) -> None:
        from twisted.internet import defer, epollreactor, process, task, tcp

        self._defer, self._task = defer, task
        self._new_reactor: Any = epollreactor.EPollReactor

        class Aliases:
            logstr = "benchmark"

            def close(self) -> None:
                self.unregisterProducer()  # type: ignore[attr-defined]
                self.loseConnection()  # type: ignore[attr-defined]

        class Connection(Aliases, tcp.Connection):
            pause_reading = tcp.Connection.pauseProducing
            resume_reading = tcp.Connection.resumeProducing
            abort = tcp.Connection.abortConnection

        tcp.Server.abort = tcp.Server.abortConnection  # type: ignore[attr-defined]

        class Reader(Aliases, process.ProcessReader):
            pause_reading = process.ProcessReader.pauseProducing
            resume_reading = process.ProcessReader.resumeProducing

        class Writer(Aliases, process.ProcessWriter):
            pass

        self._connection: Any = Connection
        self._pipe_reader: Any = Reader
        self._pipe_writer: Any = Writer

    def run(self, main: Main) -> None:
        self._reactor = reactor = self._new_reactor()
        ended: Any = self._defer.Deferred()

        def start() -> None:
            self._defer.ensureDeferred(main()).chainDeferred(ended)
            ended.addBoth(keep)

        def keep(result: Any) -> None:
            self._result = result
            reactor.stop()

        reactor.callWhenRunning(start)
        reactor.run(installSignalHandlers=False)
        if self._result is not None:
            self._result.raiseException()

    def signal(self) -> Any:
        return _Signal(self._defer.Deferred())

    def turn(self) -> Any:
        return self._task.deferLater(self._reactor, 0)

    async def connect(self, protocol: Any, end: End) -> Any:
        if end.sock is not None:
            transport = self._connection(end.sock, protocol, self._reactor)
            transport.connected = 1
            transport.startReading()
            transport.registerProducer(protocol, True)
            protocol.makeConnection(transport)
            return transport
        child, transport = _Child(protocol), None
        if end.reader is not None:
            transport = self._pipe_reader(self._reactor, child, "in", end.reader)
        if end.writer is not None:
            transport = self._pipe_writer(self._reactor, child, "out", end.writer)
            transport.registerProducer(protocol, True)
        protocol.makeConnection(transport)
        return transport

    async def serve(self, factory: Callable[[], Any], sock: Any) -> Any:
        from twisted.internet import protocol

        sock.setblocking(False)
        made: Any = protocol.Factory()
        made.buildProtocol = lambda _: factory()
        port = self._reactor.adoptStreamPort(sock.fileno(), sock.family, made)
        port.close = port.stopListening
        return port


class _Signal:
    """A Deferred with a future's method names."""

    def __init__(self, deferred: Any) -> None:
        self._deferred = deferred
        self.set_result = deferred.callback

    def __await__(self) -> Any:
        return self._deferred.__await__()

    def done(self) -> bool:
        return bool(self._deferred.called)


class _Child:
    """What Twisted's pipe ends report to."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def childDataReceived(self, name: str, data: bytes) -> None:
        self._protocol.data_received(data)

    def childConnectionLost(self, name: str, reason: Any) -> None:
        self._protocol.connection_lost(None)


class Trio(Library):
    name = "trio"
    shapes = ("stream",)

    def prepare(self) -> None:
        import trio

        self._trio = trio

    def run(self, main: Main) -> None:
        self._trio.run(main)

    async def stream(self, end: End) -> Stream:
        trio = self._trio
        if end.sock is not None:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(end.sock))
            return Stream(stream.receive_some, stream.send_all, stream.aclose)
        streams = [trio.lowlevel.FdStream(fd) for fd in end.fds]

        async def close() -> None:
            for stream in streams:
                await stream.aclose()

        return Stream(streams[0].receive_some, streams[-1].send_all, close)

    async def accept(self, sock: Any, count: int) -> None:
        listener = self._trio.SocketListener(self._trio.socket.from_stdlib_socket(sock))
        for _ in range(count):
            await self._trio.aclose_forcefully(await listener.accept())


class Anyio(Library):
    """Socket streams, on asyncio."""

    name = "anyio"
    shapes = ("stream",)

    def prepare(self) -> None:
        import anyio
        import anyio.abc

        self._anyio = anyio

    def run(self, main: Main) -> None:
        self._anyio.run(main)

    async def stream(self, end: End) -> Stream:
        kinds: dict[str, Any] = {
            "tcp": self._anyio.abc.SocketStream,
            "unix": self._anyio.abc.UNIXSocketStream,
        }
        stream = await kinds[end.kind].from_socket(end.sock)
        return Stream(stream.receive, stream.send, stream.aclose, (self._anyio.EndOfStream,))


class Ptyprocess(Blocking):
    """Programs on terminals, by a fork."""

    name = "ptyprocess"

    def prepare(self) -> None:
        import ptyprocess  # type: ignore[import-untyped]

        self._spawn: Any = ptyprocess.PtyProcess.spawn

    def start_on_terminal(self, words: Sequence[str]) -> Any:
        process = self._spawn(list(words))
        process.delayafterclose = 0  # it would sleep
        return process

    def end_on_terminal(self, process: Any) -> tuple[bytes, int]:
        output = b""
        with contextlib.suppress(EOFError):
            while True:
                output += process.read(65_536)
        status = process.wait()
        process.close()
        return output, status


class Pexpect(Blocking):
    """ptyprocess with patterns on top."""

    name = "pexpect"
    shapes = ("expect", "blocking")

    def prepare(self) -> None:
        import pexpect  # type: ignore[import-untyped]
        import pexpect.fdpexpect  # type: ignore[import-untyped]

        self._pexpect: Any = pexpect
        self.end: Any = pexpect.EOF

    def start_on_terminal(self, words: Sequence[str]) -> Any:
        process = self._pexpect.spawn(words[0], list(words[1:]), timeout=None)
        process.ptyproc.delayafterclose = 0
        return process

    def end_on_terminal(self, process: Any) -> tuple[bytes, int]:
        output, status = process.read(), process.wait()
        process.close()
        return output, status

    def expect(self, end: End) -> Any:
        """What it makes of a descriptor."""
        child = self._pexpect.fdpexpect.fdspawn(end.reader, timeout=None)
        child.delaybeforesend = None  # it would sleep
        return child


class InotifySimple(Blocking):
    name = "inotify_simple"
    shapes = ("inotify_simple",)

    def prepare(self) -> None:
        import inotify_simple

        self.module: Any = inotify_simple


class Asyncinotify(Asyncio):
    name = "asyncinotify"
    shapes = ("asyncinotify",)

    def prepare(self) -> None:
        import asyncinotify

        self.module: Any = asyncinotify


class Aionotify(Asyncio):
    name = "aionotify"
    shapes = ("aionotify",)

    def prepare(self) -> None:
        import aionotify

        self.module: Any = aionotify


COLUMNS = (
    Fdtransport(), FdtransportUv(), Asyncio(), Asyncio64k(), Uvloop(), Twisted(), Trio(), Anyio(), Blocking(),
    Splice(), Ptyprocess(), Pexpect(), PyserialAsyncio(), PyserialAsyncioFast(), Serialx(),
    PyTun(), Fdtransport9000(), FdtransportRaw(), FdtransportSplit(),
    InotifySimple(), Asyncinotify(), Aionotify(),
)  # fmt: skip
LIBRARIES: dict[str, Any] = {library.name: library for library in COLUMNS}
