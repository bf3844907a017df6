"""Promises 42, 43, 45 and 46: what is done to descriptors, and what asyncio's users expect."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import tempfile
import weakref
from typing import Any

from .observe import Broken, expect, pattern, turns, until
from .promises import promise
from .trial import Pair, Trial


@promise(42, "descriptors records")
async def every_descriptor_is_close_on_exec(trial: Trial) -> None:
    pair = await trial.open()
    wrong = [fd for fd in pair.fds if os.get_inheritable(fd)]
    expect(not wrong, f"descriptors {wrong} would be inherited by child processes")


@promise(42, "descriptors records", "given_blocking")
async def the_blocking_mode_is_put_back_on_close(trial: Trial) -> None:
    features = trial.features
    lost_by_itself = features.readable and features.ends and not features.records
    for end in ("close", "abort", "far end"):
        pair = await trial.open()
        if end == "far end" and not lost_by_itself:
            continue
        duplicates = [os.dup(fd) for fd in pair.fds]
        try:
            if end == "far end":
                pair.far.close()
            else:
                getattr(pair.transport, end)()
            await pair.until_lost()
            await until(lambda p=pair: not any(map(_is_open, p.fds)), "the descriptor was closed")  # type: ignore[misc]
            expect(all(map(os.get_blocking, duplicates)), f"the files are non-blocking after {end}")
        finally:
            for fd in duplicates:
                os.close(fd)


@promise(42, "descriptors", "extended")
async def detach_gives_the_descriptors_back_as_they_were(trial: Trial) -> None:
    pair = await trial.open()
    if trial.features.readable:
        pair.transport.pause_reading()
    written = await pair.fill() if trial.features.writable else 0
    detached = pair.transport.detach()
    await turns(5)
    try:
        expect(all(map(_is_open, pair.fds)), "detach() closed a descriptor", 43)
        if trial.features.given_blocking:
            expect(all(map(os.get_blocking, pair.fds)), "the files are non-blocking after detach()")
        if trial.features.readable:
            pair.far.send_now(b"not for the transport")
            await turns(5)
            expect(not pair.protocol.received, "the transport reads on after detach()")
        if trial.features.writable:
            unsent = len(detached.unsent)
            got = await pair.far.recv_exactly(written - unsent)
            expect(got + detached.unsent == pattern(written), "sent and unsent is not what was written")
        pair.transport.write(b"dropped")
        pair.transport.close()
        pair.transport.abort()
        await turns(5)
        expect(all(map(_is_open, pair.fds)), "close() after detach() closed a descriptor", 43)
    finally:
        for part in detached.file if isinstance(detached.file, tuple) else (detached.file,):
            if isinstance(part, int):
                os.close(part)
            else:
                part.close()


@promise(43, "descriptors records")
async def a_number_that_is_not_owned_any_more_is_left_alone(trial: Trial) -> None:
    for end in ("close", "abort"):
        pair = await trial.open()
        getattr(pair.transport, end)()
        await pair.until_lost()
        await until(lambda p=pair: not any(map(_is_open, p.fds)), "the descriptor was closed")  # type: ignore[misc]
        reading, writing = os.pipe()
        # Somebody else gets the numbers.
        victims = [os.dup2(writing, fd) for fd in pair.fds if fd not in (reading, writing)]
        os.set_blocking(reading, False)
        try:
            await _call_everything(trial, pair)
            pair.transport = pair.protocol = None
            trial.forget()
            gc.collect()
            await turns(5)
            expect(all(map(_is_open, [*victims, writing])), f"a number was closed again after {end}()")
            expect(os.get_blocking(writing), f"the mode of another file was changed after {end}()")
            try:
                data = os.read(reading, 1000)
            except BlockingIOError:
                continue
            expect(False, f"{data!r} was written to a number that belongs to somebody else")
        finally:
            for fd in {reading, writing, *victims}:
                if _is_open(fd):
                    os.close(fd)


async def _call_everything(trial: Trial, pair: Pair) -> None:
    transport = pair.transport
    if trial.features.records:
        transport.sendto(b"SECRET")
    else:
        transport.write(b"SECRET")
        transport.writelines([b"SECRET"])
    if trial.features.readable:
        transport.pause_reading()
        transport.resume_reading()
    transport.set_write_buffer_limits(high=0)
    transport.close()
    transport.abort()
    await turns(5)


@promise(45, "descriptors", "read_only")
async def a_read_only_transport_says_that_it_cannot_write(trial: Trial) -> None:
    pair = await trial.open()
    expect(not pair.transport.can_write_eof(), "can_write_eof() is true", 28)
    for method, arguments in {"write": (b"x",), "writelines": ([b"x"],), "write_eof": ()}.items():
        try:
            getattr(pair.transport, method)(*arguments)
        except (OSError, NotImplementedError):
            continue
        expect(False, f"{method}() on a read-only transport raised nothing")
    expect(not pair.transport.is_closing(), "the refused write closed the transport")
    pair.far.send_now(b"still reading")
    await pair.until_received(13)


@promise(46, "drop-in")
async def it_is_an_instance_of_asyncios_classes(trial: Trial) -> None:
    transport = (await trial.open()).transport
    kinds = [asyncio.BaseTransport]
    kinds += [asyncio.ReadTransport] if trial.features.readable else []
    kinds += [asyncio.WriteTransport] if trial.features.writable else []
    kinds += [asyncio.Transport] if trial.features.readable and trial.features.writable else []
    lacking = [kind.__name__ for kind in kinds if not isinstance(transport, kind)]
    expect(not lacking, f"it is no instance of {lacking}")
    expect({transport: 1}[transport] == 1, "it cannot be hashed")
    expect(weakref.ref(transport)() is transport, "it cannot be referred to weakly")


@promise(46, "drop-in")
async def extra_info_has_asyncios_keys(trial: Trial) -> None:
    pair = await trial.open()
    info = pair.transport.get_extra_info
    if trial.features.socket:
        sock: Any = info("socket")
        if sock is None or sock.fileno() not in pair.fds:
            raise Broken(f"socket is {sock!r}")
        expect(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM, "socket.getsockopt()"
        )
        expect(info("sockname") == sock.getsockname(), f"sockname is {info('sockname')!r}")
        expect(info("peername") == sock.getpeername(), f"peername is {info('peername')!r}")
    if trial.features.extended:
        numbers = info("fd")
        numbers = numbers if isinstance(numbers, tuple) else (numbers,)
        expect(set(numbers) <= set(pair.fds), f"fd is {info('fd')!r}, the descriptors are {pair.fds}")
        expect(pair.transport.fileno() in pair.fds, f"fileno() is {pair.transport.fileno()!r}")
    expect(info("no such key") is None and info("no such key", 5) == 5, "the default is not honoured")


@promise(46, "drop-in", "readable", "writable")
async def asyncios_streams_work_on_it(trial: Trial) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=16384)
    protocol = asyncio.StreamReaderProtocol(reader)
    pair = await trial.open(protocol)
    writer = asyncio.StreamWriter(pair.transport, protocol, reader, loop)
    data = pattern(1 << 20)

    async def echo() -> None:
        received = 0
        while received < len(data):
            piece = await pair.far.recv()
            received += len(piece)
            await pair.far.send(piece)

    async def write() -> None:
        for start in range(0, len(data), 50_000):
            writer.write(data[start : start + 50_000])
            await writer.drain()

    echoing, writing = asyncio.ensure_future(echo()), asyncio.ensure_future(write())
    try:
        got = await reader.readexactly(len(data))
        expect(got == data, "the echo is not what was written")
        await asyncio.gather(echoing, writing)
    finally:
        echoing.cancel()
        writing.cancel()
    if trial.features.half_close:
        writer.write_eof()
        expect(await pair.far.recv() == b"", "the far end saw no end of file", 28)
    writer.close()
    await asyncio.wait_for(writer.wait_closed(), 2)


@promise(46, "drop-in", "writable", "socket")
async def loop_sendfile_works_on_it(trial: Trial) -> None:
    loop = asyncio.get_running_loop()
    pair = await trial.open()
    with tempfile.TemporaryFile() as file:
        file.write(pattern(1 << 20))
        file.seek(0)
        pair.transport.write(b"before ")
        sending = asyncio.ensure_future(loop.sendfile(pair.transport, file))
        try:
            try:
                done, _ = await asyncio.wait([sending], timeout=0)
                if done:
                    sending.result()
            except NotImplementedError:  # uvloop has none
                return
            got = asyncio.ensure_future(pair.far.recv_exactly((1 << 20) + 7))
            await asyncio.wait([got, sending], return_when=asyncio.FIRST_EXCEPTION)
            if sending.done() and isinstance(sending.exception(), NotImplementedError):
                got.cancel()
                return
            sending.result()
            expect(await got == b"before " + pattern(1 << 20), "what arrived is not the file")
        finally:
            sending.cancel()
    pair.transport.write(b" after")
    expect(await pair.far.recv_exactly(6) == b" after", "the transport cannot write after sendfile()")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
