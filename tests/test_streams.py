"""The await-based reader and writer: side by side with asyncio's own, and what only they promise."""

from __future__ import annotations

import asyncio
import errno
import gc
import inspect
import os
import socket
import weakref
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import turns, until

from fdtransport import StreamReader, connect_fd, open_fd
from fdtransport._core import syscalls
from fdtransport._core.reading import READ_SIZE
from fdtransport.streams import READS_PER_TURN, StreamReaderProtocol, stream_protocol, stream_writer
from fdtransport.testing import (
    FarEnd,
    RecordingProtocol,
    fd_pair_maker,
    idle_cost,
    pattern,
    read_pipe_maker,
    socket_pair_maker,
    tcp_maker,
    write_pipe_maker,
)

KINDS = {"socketpair": socket_pair_maker, "tcp": tcp_maker, "pipes": fd_pair_maker}
SOCKETS = ["socketpair", "tcp"]
LIMIT = 64 * 1024


@asynccontextmanager
async def streams(kind="socketpair", limit=LIMIT):
    """A reader and a writer of ours, and the far end of them."""
    near, other = KINDS[kind]().open_files()
    with FarEnd(other) as far:
        reader, writer = await open_fd(near, limit=limit)
        try:
            async with asyncio.timeout(20):
                yield reader, writer, far
        finally:
            await end(writer)


@asynccontextmanager
async def asyncio_streams(kind="socketpair", limit=LIMIT):
    """The same from asyncio (or uvloop)."""
    near, other = KINDS["tcp" if kind == "tcp" else "socketpair"]().open_files()
    with FarEnd(other) as far:
        reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=near), limit=limit)
        try:
            async with asyncio.timeout(20):
                yield reader, writer, far
        finally:
            await end(writer)


async def end(writer):
    writer.close()
    async with asyncio.timeout(5):
        with suppress(OSError):
            await writer.wait_closed()
    await turns()  # uvloop closes the descriptor after it has told


async def promptly(condition):
    """Within fifty turns and 50 ms."""
    await until(condition, 100)


async def told(call, *args):
    """What a call answers: its result, or all that its exception says."""
    try:
        result = call(*args)
        return await result if inspect.isawaitable(result) else result
    except Exception as exc:
        return type(exc), str(exc), getattr(exc, "partial", None), getattr(exc, "consumed", None)


async def play(script, reader, writer, far):
    """Carry out the steps of a script; the answers of reader, writer and far end, in order."""
    answers = []
    for name, *args in script:
        if name in ("send", "shutdown_write", "recv_to_end", "recv_exactly"):
            answers.append(await told(getattr(far, name), *args))
            await turns()
        elif name == "iterate":
            answers.append([line async for line in reader])
        else:
            answers.append(await told(getattr(reader if hasattr(reader, name) else writer, name), *args))
    return answers


async def side_by_side(script, kind="socketpair", limit=LIMIT):
    """Play a script on asyncio's streams and on ours; the answers must be the same."""
    async with asyncio_streams(kind, limit) as theirs:
        expected = await play(script, *theirs)
    async with streams(kind, limit) as ours:
        answers = await play(script, *ours)
    assert answers == expected
    return answers


# -- every method, as asyncio has it ------------------------------------------------------------

END = ("shutdown_write",)
AFTER_THE_END = [
    ("read",), ("read", 1), ("read", 0), ("readline",), ("readexactly", 0), ("readexactly", 1),
    ("readuntil", b"x"), ("iterate",), ("at_eof",), ("exception",),
]  # fmt: skip

SCRIPTS = {
    "read gives at most n": [
        ("send", b"hello world"), ("read", 5), ("read", 1), ("read", 100), END, ("read", 1)],
    "read of 0 bytes waits for nothing": [("read", 0), ("at_eof",), END, ("read", 0)],
    "read of everything": [
        ("send", b"a" * 1000), ("send", b"b" * 1000), END, ("read",), ("read",), ("at_eof",)],
    "read of everything after a part": [
        ("send", b"abcdef"), ("readexactly", 2), END, ("read", -1), *AFTER_THE_END],
    "readexactly": [("send", b"abc"), ("send", b"def"), ("readexactly", 5), ("readexactly", 1), ("at_eof",)],
    "readexactly refuses a negative size": [("readexactly", -1), ("readexactly", -5)],
    "readexactly at the end": [("send", b"abc"), END, ("readexactly", 5), *AFTER_THE_END],
    "readline": [
        ("send", b"one\ntwo\n\nrest"), *[("readline",)] * 3, END, ("at_eof",), ("readline",), ("at_eof",)],
    "readline in pieces": [
        ("send", b"on"), ("send", b"e"), ("send", b"\ntwo\n"), ("readline",), ("readline",)],
    "readuntil": [("send", b"a--b-c--d"), ("readuntil", b"--"), ("readuntil", b"--"), ("readexactly", 1)],
    "readuntil with a separator in pieces": [
        ("send", b"a\r"), ("send", b"\nb\r\n"), *[("readuntil", b"\r\n")] * 2],
    "readuntil refuses an empty separator": [("readuntil", b"")],
    "readuntil at the end": [("send", b"abc"), END, ("readuntil", b"x"), *AFTER_THE_END],
    "lines": [("send", b"one\ntwo\nthree"), END, ("iterate",), ("at_eof",)],
    "nothing but the end": [END, *AFTER_THE_END],
    "bytes fed by hand": [("feed_data", b"one\ntwo"), ("feed_data", b"\n"), ("feed_data", b""), ("readline",),
        ("send", b"three\n"), ("readline",), ("readline",), ("feed_eof",), *AFTER_THE_END],
    "bytes fed by hand come after those that came": [
        ("send", b"one\n"), ("feed_data", b"two\n"), ("readline",),
        ("readexactly", 1), ("feed_data", b"three"), ("readexactly", 8), ("feed_eof",), ("at_eof",)],
    "the end fed by hand": [
        ("send", b"one"), ("feed_eof",), ("at_eof",), ("read",), ("at_eof",), ("read", 1)],
    "an exception set by hand": [("set_exception", OSError(5, "told")), ("read", 1), ("read",), ("readline",),
        ("readexactly", 1), ("readuntil", b"x"), ("drain",)],
    "writing": [("write", b"one"), ("writelines", [b"two", bytearray(b"three")]), ("drain",),
        ("recv_exactly", 11), ("can_write_eof",), ("is_closing",)],
    "the end of writing": [
        ("can_write_eof",), ("write", b"last"), ("write_eof",), ("recv_to_end",), ("drain",),
        ("write", b"x"), ("write_eof",), ("is_closing",), ("send", b"answer\n"), ("readline",)],
    "the end of reading keeps the writer": [
        ("send", b"x"), END, ("read",), ("is_closing",), ("write", b"answer"),
        ("drain",), ("recv_exactly", 6), ("at_eof",)],
    "closing": [
        ("write", b"last"), ("is_closing",), ("close",), ("is_closing",), ("wait_closed",), ("close",),
        ("wait_closed",), ("recv_to_end",), ("read", 1), ("read",), ("at_eof",), ("exception",)],
    "draining after closing": [("close",), ("drain",)],
    "what came is read after closing": [("send", b"one\ntwo\n"), ("readline",), ("close",), ("wait_closed",),
        ("readline",), ("readline",)],
    "unknown extra info": [("get_extra_info", "nothing"), ("get_extra_info", "nothing", 5)],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", SCRIPTS)
async def test_answers_as_asyncio(script, kind):
    await side_by_side(SCRIPTS[script], kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_readuntil_takes_several_separators_as_asyncio(kind):
    script = [
        ("send", b"one\ntwo\r\nthree\rfour"),
        *[("readuntil", (b"\r", b"\n", b"\r\n"))] * 3,
        ("readuntil", ()),
        ("readuntil", (b"x", b"")),
        END,
        ("readuntil", (b"x", b"long")),
        ("at_eof",),
    ]
    await side_by_side(script, kind)  # before 3.13 it is a TypeError on both


OVERRUNS = {
    "no separator": [("send", b"a" * 100), ("readuntil", b"\n"), ("readuntil", b"\n"), ("read", 40),
        ("readexactly", 60), ("send", b"b\n"), ("readuntil", b"\n")],
    "a separator too late": [("send", b"a" * 50 + b"\nb\n"), ("readuntil", b"\n"), ("readexactly", 51),
        ("readuntil", b"\n")],
    "a line too long": [("send", b"a" * 50 + b"\nb\n"), ("readline",), ("readline",), ("exception",)],
    "a line too long without its end": [
        ("send", b"a" * 50), ("readline",), ("send", b"b\nc\n"), ("readline",),
        ("readline",)],
    "a line of the limit": [("send", b"a" * 16 + b"\nb\n"), ("readline",), ("readline",)],
    "the end after too much": [
        ("send", b"a" * 50), ("readuntil", b"\n"), END, ("readuntil", b"\n"), ("read",)],
    "more than the limit at once": [
        ("send", b"a" * 500), ("readexactly", 300), ("read", 500), END, ("read",)],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", OVERRUNS)
async def test_overruns_its_limit_as_asyncio(script, kind):
    await side_by_side(OVERRUNS[script], kind, limit=16)


def scripts():
    data = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"--", b"-"]), min_size=1, max_size=8).map(b"".join)
    reads = st.one_of(
        st.tuples(st.just("readexactly"), st.integers(0, 6)),
        st.tuples(st.just("readuntil"), st.sampled_from([b"--", b"-", b"a\n"])),
        st.just(("readline",)),
        st.just(("at_eof",)),
    )
    sends = st.lists(st.tuples(st.just("send"), data), max_size=4)
    return st.tuples(sends, st.lists(reads, max_size=12)).map(
        lambda parts: [*parts[0], END, *parts[1], *AFTER_THE_END]
    )


@given(scripts())
async def test_answers_random_reads_as_asyncio(script):
    await side_by_side(script)


async def test_is_an_asyncio_stream():
    async with streams() as (reader, writer, _far):
        assert isinstance(reader, asyncio.StreamReader)
        assert isinstance(writer, asyncio.StreamWriter)
        assert isinstance(writer.transport, asyncio.Transport)
        assert writer.get_extra_info("fd") == writer.transport.fileno()
        assert "StreamReader" in repr(reader)


@pytest.mark.parametrize("limit", [0, -1])
async def test_refuses_a_limit_as_asyncio(limit):
    near, other = socket.socketpair()
    with near, other:
        with pytest.raises(ValueError, match="Limit cannot be <= 0"):
            await open_fd(near, limit=limit)
        assert near.getblocking()


async def test_asyncios_own_reader_works_on_our_transport():
    near, other = socket.socketpair()
    with FarEnd(other) as far:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await connect_fd(lambda: protocol, near)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        writer.write(b"hello\n")
        sending = asyncio.create_task(far.send(await far.recv_exactly(6) * 100_000))
        assert await reader.readexactly(600_000) == b"hello\n" * 100_000
        await sending
        far.shutdown_write()
        assert await reader.read() == b""
        await end(writer)


async def test_our_reader_works_on_another_transport():
    near, other = socket.socketpair()
    with FarEnd(other) as far:
        loop = asyncio.get_running_loop()
        reader, protocol = stream_protocol(LIMIT, loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=near)
        writer = stream_writer(transport, protocol, reader, loop)
        data = pattern(600_000) + b"mark" + pattern(400_000)
        sending = asyncio.create_task(far.send(data))
        received = await reader.readexactly(10)
        received += await reader.read(READ_SIZE)
        received += await reader.readexactly(550_000 - len(received))
        received += await reader.readuntil(b"mark")
        assert received == data[:600_004]
        rest = asyncio.create_task(reader.read())
        await sending
        far.shutdown_write()
        assert await rest == data[600_004:]
        await end(writer)


async def test_our_reader_works_without_a_transport():
    for make in (asyncio.StreamReader, StreamReader):
        reader = make(limit=4)
        reader.feed_data(b"one\ntwo")
        assert [await reader.readline(), reader.at_eof(), await reader.read(2)] == [b"one\n", False, b"tw"]
        waiting = asyncio.create_task(reader.read(5))
        await turns()
        assert await reader.read(0) == b""
        reader.feed_data(b"three")
        assert await waiting == b"o"
        reader.feed_eof()
        assert [await reader.read(), reader.at_eof()] == [b"three", True]
        with pytest.raises(asyncio.IncompleteReadError, match="0 bytes read on a total of 1"):
            await reader.readexactly(1)


async def test_writing_after_the_end_is_told_by_drain():
    async with streams() as (_reader, writer, far):
        writer.close()
        await writer.wait_closed()
        writer.write(b"lost")
        with pytest.raises(ConnectionResetError, match="Connection lost"):
            await writer.drain()
        writer.write_eof()
        assert await far.recv_to_end() == b""


@pytest.mark.parametrize("wrong", ["text", None, 5, [b"x"]])
async def test_refuses_to_write_what_is_no_bytes(wrong):
    async with streams() as (_reader, writer, far):
        with pytest.raises(TypeError):
            writer.write(wrong)
        with pytest.raises(TypeError):
            writer.writelines([b"not sent", wrong])
        writer.write(b"sent")
        assert await far.recv_exactly(4) == b"sent"


# -- one way only -------------------------------------------------------------------------------


async def test_the_writer_of_a_read_only_descriptor_raises():
    near, other = read_pipe_maker().open_files()
    with FarEnd(other) as far:
        reader, writer = await open_fd(near)
        await far.send(b"one\ntwo")
        for call, *args in [(writer.write, b"x"), (writer.writelines, [b"x"]), (writer.write_eof,)]:
            with pytest.raises(OSError, match="read-only") as caught:
                call(*args)
            assert caught.value.errno == errno.EBADF
        assert not writer.can_write_eof()
        await writer.drain()
        assert await reader.readline() == b"one\n"
        far.close()
        assert await reader.read() == b"two"
        assert reader.at_eof()
        await writer.wait_closed()
        assert writer.is_closing()


async def test_the_reader_of_a_write_only_descriptor_is_at_its_end():
    near, other = write_pipe_maker().open_files()
    with FarEnd(other) as far:
        reader, writer = await open_fd(near)
        assert reader.at_eof()
        assert [await reader.read(), await reader.read(5), await reader.readline()] == [b"", b"", b""]
        with pytest.raises(asyncio.IncompleteReadError, match="0 bytes read on a total of 3"):
            await reader.readexactly(3)
        assert [line async for line in reader] == []
        writer.write(b"hello")
        await writer.drain()
        assert await far.recv_exactly(5) == b"hello"
        await end(writer)
        assert await far.recv_to_end() == b""


async def test_a_write_only_descriptor_tells_when_its_reader_goes():
    near, other = write_pipe_maker().open_files()
    far = FarEnd(other)
    _reader, writer = await open_fd(near)
    far.close()
    await promptly(writer.is_closing)
    await writer.wait_closed()
    with pytest.raises(ConnectionResetError):
        await writer.drain()


# -- what is noticed while nobody reads ---------------------------------------------------------


@pytest.mark.parametrize("open_streams", [asyncio_streams, streams])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_end_is_noticed_while_nobody_reads(kind, open_streams):
    async with open_streams(kind) as (reader, writer, far):
        await turns()
        far.shutdown_write()
        await promptly(reader.at_eof)
        assert not writer.is_closing()


@pytest.mark.parametrize("open_streams", [asyncio_streams, streams])
@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_end_after_unread_bytes_is_noticed_while_nobody_reads(kind, pieces, open_streams):
    async with open_streams(kind) as (reader, _writer, far):
        for _ in range(pieces):
            await far.send(b"x" * 1000)
            await turns()
        far.shutdown_write()
        await turns(50)
        assert not reader.at_eof()
        assert len(await reader.readexactly(1000 * pieces)) == 1000 * pieces
        await promptly(reader.at_eof)


async def reset(far, writer):
    """Have the peer reset the connection: of a UNIX socket, by going away with something unread."""
    writer.write(b"never read")
    await turns()
    far.reset()


@pytest.mark.parametrize("open_streams", [asyncio_streams, streams])
@pytest.mark.parametrize("unread", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", SOCKETS)
async def test_a_reset_is_noticed_while_nobody_reads(kind, unread, open_streams):
    async with open_streams(kind) as (reader, writer, far):
        for _ in range(unread):
            await far.send(b"x" * 1000)
            await turns()
        await reset(far, writer)
        await promptly(reader.exception)
        assert isinstance(reader.exception(), ConnectionResetError)
        assert writer.is_closing()
        with pytest.raises(ConnectionResetError):
            await writer.drain()
        with pytest.raises(ConnectionResetError):
            await writer.wait_closed()


@pytest.mark.parametrize("kind", SOCKETS)
@pytest.mark.parametrize("size", [READ_SIZE - 1, READ_SIZE, READ_SIZE + 1])
async def test_a_reset_right_behind_the_bytes_is_noticed_while_nobody_reads(kind, size):
    async with streams(kind) as (reader, writer, far):
        writer.write(b"never read")
        await turns()
        far.send_now(pattern(size))
        far.reset()  # both are there before the loop turns once
        await promptly(reader.exception)
        with pytest.raises(ConnectionResetError):
            await writer.wait_closed()


@pytest.mark.parametrize("kind", SOCKETS)
async def test_a_reset_is_noticed_after_a_reader_has_stopped_reading(kind):
    async with streams(kind) as (reader, writer, far):
        await far.send(pattern(100_000))
        await reader.readexactly(10)
        await turns()
        await far.send(b"x" * 1000)
        await turns()
        await reader.readexactly(10)
        await reset(far, writer)
        await promptly(reader.exception)
        assert (await reader.readexactly(100_980))[-1000:] == b"x" * 1000


@pytest.mark.parametrize("kind", KINDS)
async def test_the_end_is_noticed_though_more_than_twice_the_limit_was_unread(kind):
    async with streams(kind, limit=100) as (reader, _writer, far):
        data = pattern(2 * READ_SIZE) if kind != "pipes" else pattern(READ_SIZE)
        for start in range(0, len(data), READ_SIZE // 2):
            await far.send(data[start : start + READ_SIZE // 2])
            await turns()
        far.shutdown_write()
        await turns(20)
        assert not reader.at_eof()
        assert await reader.readexactly(len(data) - 10) == data[:-10]
        assert await reader.readexactly(10) == data[-10:]
        await promptly(reader.at_eof)


# What TCP has not transmitted yet when it resets is lost by TCP: no more than its first window there.
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("tcp", 1),
        ("tcp", READ_SIZE // 2),
        ("socketpair", 1),
        ("socketpair", READ_SIZE),
        ("socketpair", 2 * READ_SIZE),
    ],
)
async def test_bytes_before_a_reset_come_before_the_exception(kind, size):
    for read_all in [lambda reader: reader.readexactly(size), lambda reader: read_until_full(reader, size)]:
        async with streams(kind) as (reader, writer, far):
            writer.write(b"never read")
            await turns()
            sent = far.send_now(pattern(size))
            assert sent == size
            far.reset()
            assert await read_all(reader) == pattern(size)
            for call, *args in [
                (reader.read, 5),
                (reader.read,),
                (reader.readline,),
                (reader.readexactly, 1),
            ]:
                with pytest.raises(ConnectionResetError):
                    await call(*args)


async def read_until_full(reader, size):
    data = b""
    while len(data) < size:
        piece = await reader.read(size - len(data))
        assert piece
        data += piece
    return data


@pytest.mark.parametrize("kind", SOCKETS)
async def test_a_failed_read_leaves_the_bytes_before_the_exception(kind):
    for call, *args in [(StreamReader.read,), (StreamReader.readexactly, 100), (StreamReader.readline,)]:
        async with streams(kind) as (reader, writer, far):
            await far.send(b"one")
            waiting = asyncio.create_task(call(reader, *args))
            await turns()
            await far.send(b"two")
            await turns()
            await reset(far, writer)
            with pytest.raises(ConnectionResetError):
                await waiting
            assert await reader.read(100) == b"onetwo"
            with pytest.raises(ConnectionResetError):
                await reader.read(100)


async def test_a_failed_write_is_told_after_what_was_readable():
    async with streams() as (reader, writer, far):
        await far.send(pattern(100_000))
        far.close()
        writer.write(b"nobody there")
        await promptly(reader.exception)
        with pytest.raises(BrokenPipeError):
            await writer.drain()
        assert await reader.readexactly(100_000) == pattern(100_000)
        with pytest.raises(BrokenPipeError):
            await reader.read()


@pytest.mark.parametrize("held", [False, True])
async def test_a_failed_write_is_noticed_though_the_peer_goes_on_writing_and_nobody_reads(held):
    """Two pipes: what we write has no reader any more, what we could read never ends."""
    async with streams("pipes") as (reader, writer, far):
        if held:
            await far.send(b"one")
            await turns()
            await far.send(b"two")
            await turns()
        os.close(far._read_fd)
        far._read_fd = -1

        async def go_on():
            while True:
                far.send_now(bytes(READ_SIZE))
                await asyncio.sleep(0)

        going_on = asyncio.create_task(go_on())
        await turns()
        writer.write(b"nobody there")
        try:
            await promptly(reader.exception)
        finally:
            going_on.cancel()
        with pytest.raises(BrokenPipeError):
            await writer.drain()
        with pytest.raises(BrokenPipeError):
            await writer.wait_closed()
        assert len(await reader.read(1 << 20)) < 4 * READ_SIZE


async def test_an_error_after_the_end_is_raised_after_what_was_readable():
    async with streams("tcp") as (reader, writer, far):
        await far.send(b"last")
        far.shutdown_write()
        await turns()
        far.reset()
        writer.write(b"x")
        await promptly(reader.exception)
        assert await reader.read(100) == b"last"
        with pytest.raises(OSError):  # noqa: PT011 (ECONNRESET or EPIPE)
            await reader.read(100)


# -- back pressure ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_takes_one_piece_from_the_kernel_while_nobody_reads(kind):
    async with streams(kind) as (reader, writer, far):
        fd = writer.get_extra_info("fd")
        sent = 0
        for _ in range(100):
            sent += far.send_now(pattern(READ_SIZE, sent))
            await turns(2)
        assert sent - syscalls.bytes_readable(fd) <= READ_SIZE or kind == "tcp"
        taken = len(reader._buffer) + len(reader._ahead)
        assert 0 < taken <= READ_SIZE
        # ... and one more after a read, however small
        await reader.readexactly(1)
        await turns(20)
        assert len(reader._buffer) + len(reader._ahead) <= 2 * READ_SIZE
        receiving = asyncio.create_task(reader.readexactly(sent - 1))
        assert await receiving == pattern(sent)[1:]


async def test_an_idle_reader_costs_nothing_while_bytes_wait():
    async with streams() as (_reader, _writer, far):
        while far.send_now(bytes(READ_SIZE)):
            await turns(2)
        await turns(20)
        cost = await idle_cost(0.2)
        assert cost.cpu < 0.1, cost


@pytest.mark.parametrize("kind", KINDS)
async def test_drain_waits_for_a_slow_reader(kind):
    async with streams(kind) as (_reader, writer, far):
        written = 0
        while True:
            writer.write(pattern(100_000, written))
            written += 100_000
            draining = asyncio.create_task(writer.drain())
            await turns()
            if not draining.done():
                break
            await draining
        far.timeout = 10
        received = await far.recv_exactly(written)
        await draining
        assert received == pattern(written)


# -- cancelling ---------------------------------------------------------------------------------

CALLS = {
    "read": lambda reader: reader.read(READ_SIZE),
    "read a little": lambda reader: reader.read(100),
    "readexactly": lambda reader: reader.readexactly(3 * READ_SIZE),
    "readuntil": lambda reader: reader.readuntil(b"END"),
    "readline": lambda reader: reader.readline(),
    "read all": lambda reader: reader.read(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_read_that_is_cancelled_anywhere_loses_nothing(call):
    for turn in range(12):
        async with streams(limit=1 << 20) as (reader, _writer, far):
            data = pattern(4 * READ_SIZE).replace(b"\n", b".")
            sent = far.send_now(data[:100])
            task = asyncio.create_task(CALLS[call](reader))
            for at in range(turn):
                sent += far.send_now(data[sent : sent + (1000 if at % 2 else READ_SIZE)])
                await asyncio.sleep(0)
            task.cancel()
            received = b""
            with suppress(asyncio.CancelledError):
                received = await task
            sending = asyncio.create_task(far.send(data[sent:]))
            received += await reader.readexactly(len(data) - len(received))
            await sending
            assert received == data, f"cancelled in turn {turn}"


class Endless:
    """A descriptor that always has more: whoever reads it never has to wait."""

    def __init__(self, fd, monkeypatch):
        self.fd, self.given, self.read = fd, 0, syscalls.read
        monkeypatch.setattr(syscalls, "read", self)

    def __call__(self, fd, size):
        if fd != self.fd:
            return self.read(fd, size)
        data = pattern(size, self.given)
        self.given += size
        return data


LINE = pattern(4, 65_530)  # once in 65,537 bytes

BULK = {
    "read": lambda reader: reader.read(READ_SIZE),
    "readexactly": lambda reader: reader.readexactly(60_000),
    "readuntil": lambda reader: reader.readuntil(LINE),
}


@pytest.mark.parametrize("call", BULK)
async def test_a_read_that_is_cancelled_while_it_lets_others_run_loses_nothing(call, monkeypatch):
    """After some reads without a wait the reader lets other tasks run: that too is a place to cancel."""
    async with streams(limit=1 << 20) as (reader, writer, _far):
        source = Endless(writer.get_extra_info("fd"), monkeypatch)
        received, let_run = b"", 0
        for _ in range(3 * READS_PER_TURN):
            task = asyncio.create_task(BULK[call](reader))
            await asyncio.sleep(0)  # one step of the task
            let_run += task.cancel()
            with suppress(asyncio.CancelledError):
                received += await task
        assert received + reader.take_unread() == pattern(source.given)
        assert let_run


async def test_a_read_that_was_cancelled_does_not_disturb_the_next():
    async with streams() as (reader, _writer, far):
        first = asyncio.create_task(reader.readexactly(10))
        await turns()
        await far.send(b"abc")
        first.cancel()
        await asyncio.sleep(0)
        second = asyncio.create_task(reader.readexactly(10))
        await turns()
        await far.send(b"defghij")
        assert await second == b"abcdefghij"
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_a_cancelled_reader_that_is_still_to_run_does_not_disturb_the_next():
    async with streams() as (reader, writer, far):
        first = asyncio.create_task(reader.readexactly(10))
        await turns()
        second = asyncio.create_task(reader.readexactly(10))
        far.send_now(b"abc")
        writer.transport.get_protocol().read_ready()  # wakes the first, which is cancelled before it runs
        first.cancel()
        await turns()
        far.send_now(b"defghij")
        async with asyncio.timeout(2):
            assert await second == b"abcdefghij"
        with pytest.raises(asyncio.CancelledError):
            await first


@pytest.mark.parametrize("kind", KINDS)
async def test_a_second_reader_is_refused_as_by_asyncio(kind):
    answers = []
    for open_streams in (asyncio_streams, streams):
        async with open_streams(kind) as (reader, _writer, far):
            first = asyncio.create_task(reader.readexactly(5))
            await turns()
            calls = [(reader.read, 5), (reader.read, READ_SIZE), (reader.read,), (reader.readline,)]
            calls += [(reader.readexactly, 1), (reader.readuntil, b"x")]
            answers.append([await told(call, *args) for call, *args in calls])
            assert {answer[0] for answer in answers[-1]} == {RuntimeError}
            await far.send(b"hello")
            assert await first == b"hello"
    assert answers[0] == answers[1]


READS = st.one_of(
    st.tuples(st.just("read"), st.integers(1, 3000)),
    st.tuples(st.just("read"), st.just(READ_SIZE)),
    st.tuples(st.just("readexactly"), st.integers(0, 3000)),
    st.tuples(st.just("readexactly"), st.integers(READ_SIZE, 2 * READ_SIZE)),
    st.tuples(st.just("readuntil"), st.sampled_from([b"a", b"\n\n", bytes(3)])),
    st.tuples(st.just("readline")),
)
SIZES = st.one_of(
    st.integers(1, 3000), st.sampled_from([READ_SIZE - 1, READ_SIZE, READ_SIZE + 1, 3 * READ_SIZE])
)


@given(
    kind=st.sampled_from(list(KINDS)),
    chunks=st.lists(st.tuples(SIZES, st.integers(0, 3)), max_size=15),
    reads=st.lists(st.tuples(READS, st.none() | st.integers(0, 5)), max_size=30),
)
async def test_random_reads_and_cancels_give_every_byte_once_in_order(kind, chunks, reads):
    data = pattern(sum(size for size, _ in chunks))
    async with streams(kind, limit=len(data) + 1) as (reader, _writer, far):

        async def feed():
            at = 0
            for size, pause in chunks:
                await far.send(data[at : at + size])
                at += size
                await turns(pause)
            far.shutdown_write()

        feeding = asyncio.create_task(feed())
        received = bytearray()
        for (name, *args), cancel_after in reads:
            task = asyncio.create_task(getattr(reader, name)(*args))
            if cancel_after is not None:
                await turns(cancel_after)
                task.cancel()
            try:
                piece = await task
            except asyncio.CancelledError:
                piece = b""
            except asyncio.IncompleteReadError as exc:
                piece = exc.partial
            else:
                check_read(piece, name, *args)
            received += piece
            assert data.startswith(received)
        received += await reader.read()
        await feeding
        assert received == data
        assert reader.at_eof()


def check_read(piece, name, *args):
    if name == "readexactly":
        assert len(piece) == args[0]
    elif name == "read":
        assert len(piece) <= args[0]
    elif name == "readuntil":
        assert piece.index(args[0]) == len(piece) - len(args[0])
    else:
        assert b"\n" not in piece[:-1]


# -- fairness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", BULK)
async def test_others_run_while_a_task_reads_in_bulk(call, monkeypatch):
    async with streams(limit=1 << 20) as (reader, writer, _far):
        source = Endless(writer.get_extra_info("fd"), monkeypatch)
        others = 0

        async def count():
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        while source.given < 5 * READS_PER_TURN * READ_SIZE:
            await BULK[call](reader)
        counting.cancel()
        assert others >= 4


# -- giving the descriptor to somebody else -----------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_detach_gives_the_unread_bytes_back(kind):
    near, other = KINDS[kind]().open_files()
    with FarEnd(other) as far:
        reader, writer = await open_fd(near)
        await far.send(b"one\ntwo")
        assert await reader.readline() == b"one\n"
        await far.send(b"three")
        await turns()
        file, unread, unsent = writer.transport.detach()
        rest = os.read(file[0] if kind == "pipes" else file, 100)
        assert (unread + rest, unsent, file) == (b"twothree", b"", near)
        assert await reader.read() == b""
        await writer.wait_closed()
        for fd in {*near} if kind == "pipes" else {near}:
            os.close(fd)


async def test_detach_gives_back_what_was_read_ahead():
    near, other = socket.socketpair()
    with FarEnd(other) as far, near:
        reader, writer = await open_fd(near)
        await far.send(b"ahead")
        await turns()
        assert writer.transport.detach().unread == b"ahead"
        assert await reader.read() == b""


async def test_detach_ends_a_read_that_waits():
    near, other = socket.socketpair()
    with FarEnd(other) as far, near:
        reader, writer = await open_fd(near)
        waiting = asyncio.create_task(reader.readexactly(10))
        await far.send(b"abc")
        await turns()
        assert writer.transport.detach().unread == b"abc"
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await waiting
        assert caught.value.partial == b""


async def test_another_protocol_takes_over_after_what_the_reader_holds():
    near, other = socket.socketpair()
    with FarEnd(other) as far:
        reader, writer = await open_fd(near)
        await far.send(b"line\nrest")
        assert await reader.readline() == b"line\n"
        protocol = RecordingProtocol()
        protocol.connection_made(writer.transport)
        writer.transport.set_protocol(protocol)
        await far.send(b"for the protocol")
        await until(lambda: protocol.received)
        assert protocol.received == b"for the protocol"
        assert await reader.readexactly(4) == b"rest"
        writer.transport.abort()
        await until(lambda: protocol.lost)


async def test_another_protocol_gets_bytes_though_the_reader_was_not_read():
    near, other = socket.socketpair()
    with FarEnd(other) as far:
        reader, writer = await open_fd(near)
        await far.send(b"one")
        await turns()
        await far.send(b"two")
        await turns()
        protocol = RecordingProtocol()
        protocol.connection_made(writer.transport)
        writer.transport.set_protocol(protocol)
        await far.send(b"three")
        await until(lambda: protocol.received.endswith(b"three"))
        assert await reader.read(3) + protocol.received == b"onetwothree"
        writer.transport.abort()
        await until(lambda: protocol.lost)


async def test_the_protocol_below_feeds_the_reader_once_it_has_taken_over():
    """What TLS does, which sets its own protocol on the transport: the descriptor is not the reader's."""
    near, other = socket.socketpair()
    with FarEnd(other) as far:
        reader, writer = await open_fd(near)
        await far.send(b"plain ")
        await turns()
        protocol = writer.transport.get_protocol()

        def decipher(_below, data):
            protocol.data_received(data.upper())

        below = RecordingProtocol(data=decipher)
        below.connection_made(writer.transport)
        writer.transport.set_protocol(below)
        received = b""
        for call, *args in [
            (reader.readexactly, 10),
            (reader.read, 99),
            (reader.readline,),
            (reader.readuntil, b"!"),
        ]:
            waiting = asyncio.create_task(call(*args))
            await turns()
            await far.send(b"text\n!")
            received += await waiting
        rest = asyncio.create_task(reader.read())
        await far.send(b"end")
        await until(lambda: below.received.endswith(b"end"))
        protocol.eof_received()
        assert received + await rest == b"plain " + 4 * b"TEXT\n!" + b"END"
        writer.transport.abort()
        await until(lambda: below.lost)


async def test_the_reader_goes_on_when_its_protocol_comes_back():
    """What sendfile does, which sets a protocol of its own for a while."""
    async with streams() as (reader, writer, far):
        await far.send(b"one ")
        await turns()
        protocol = writer.transport.get_protocol()
        for sent in (b"two ", b"three "):
            writer.transport.set_protocol(asyncio.Protocol())
            writer.transport.set_protocol(protocol)
            await far.send(sent)
            await turns()
        assert await reader.readexactly(14) == b"one two three "
        waiting = asyncio.create_task(reader.readexactly(READ_SIZE))
        await far.send(pattern(READ_SIZE))
        assert await waiting == pattern(READ_SIZE)


# -- the end of it ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_streams_that_are_dropped_close_the_descriptor_as_asyncio_does():
    for open_fd_ in (lambda fd: asyncio.open_connection(sock=socket.socket(fileno=fd)), open_fd):
        near, other = socket_pair_maker().open_files()
        with FarEnd(other) as far:
            reader, writer = await open_fd_(near)
            alive = weakref.ref(reader)
            del reader, writer
            gc.collect()
            assert alive() is None
            assert await far.recv_to_end() == b""


async def test_bytes_for_a_reader_that_is_gone_are_dropped_as_by_asyncio():
    for asyncios in (True, False):
        near, other = socket.socketpair()
        with FarEnd(other) as far:
            loop = asyncio.get_running_loop()
            reader, protocol = stream_protocol(LIMIT, loop)
            if asyncios:
                transport, _ = await loop.create_connection(lambda protocol=protocol: protocol, sock=near)
            else:
                transport, _ = await connect_fd(lambda protocol=protocol: protocol, near)
            del reader
            gc.collect()
            sending = asyncio.create_task(far.send(bytes(1_000_000)))
            async with asyncio.timeout(5):
                await sending
            transport.write(b"alive")
            assert await far.recv_exactly(5) == b"alive"
            cost = await idle_cost(0.1)
            assert cost.cpu < 0.05, cost
            far.shutdown_write()
            await turns(20)
            cost = await idle_cost(0.1)
            assert cost.cpu < 0.05, cost
            assert not transport.is_closing()
            transport.close()
            assert await far.recv_to_end() == b""
            await turns(20)


async def test_the_reader_lets_go_of_everything_at_the_end():
    near, other = socket.socketpair()
    with FarEnd(other) as far:
        reader, writer = await open_fd(near)
        protocol = weakref.ref(writer.transport.get_protocol())
        await far.send(b"unread")
        await turns()
        await end(writer)
        assert await reader.read() == b"unread"
        del writer
        assert protocol() is None


async def test_a_handler_of_a_server_can_be_given_streams():
    """What a server of streams is made of: the callback gets a reader and a writer of its own."""
    near, other = socket.socketpair()
    with FarEnd(other) as far:

        async def answer(reader, writer):
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        loop = asyncio.get_running_loop()
        reader, protocol = stream_protocol(LIMIT, loop, answer)
        await connect_fd(lambda: protocol, near)
        del reader
        await far.send(b"hello\n")
        assert await far.recv_to_end() == b"HELLO\n"
        await turns()
        assert isinstance(protocol, StreamReaderProtocol)


async def test_cancelling_open_fd_anywhere_leaves_the_descriptor_as_it_was():
    for turn in range(4):
        near, other = socket.socketpair()
        with near, other:
            task = asyncio.create_task(open_fd(near))
            await turns(turn)
            if task.cancel():
                with suppress(asyncio.CancelledError):
                    await task
            if not task.cancelled():
                _reader, writer = task.result()
                assert writer.transport.detach().file is near
            await turns()
            assert near.getblocking()
            other.send(b"x")
            assert near.recv(1) == b"x"
