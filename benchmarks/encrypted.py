"""TLS: bulk and ping-pong, by a protocol and await-based (row 22).

The far end is the ssl module's own socket, in blocking code.

The handshake is within the timed part; it is the same for all, and short beside the rest.
"""

from __future__ import annotations

import ssl
from typing import Any

from benchmarks.certificates import certificate
from benchmarks.job import Job, carries_out
from benchmarks.reads import CHUNK, Echo, Reader
from benchmarks.writes import Flow


def context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate())


@carries_out("tls-reads", "protocol")
async def read_by_protocol(job: Job) -> None:
    reader, end, trust = Reader(job), job.end("tls_source"), context()
    with job.clock(certificate=certificate()):
        await job.library.connect_tls(reader, end, trust)
        await reader.lost
    job.took(reader.count)


@carries_out("tls-writes", "protocol")
async def write_by_protocol(job: Job) -> None:
    flow, batches, end, trust = Flow(job), job.batches(), job.end("tls_sink"), context()
    with job.clock(certificate=certificate()):
        transport = await job.library.connect_tls(flow, end, trust)
        write = transport.write
        for batch in batches:
            for piece in batch:
                write(piece)
            if flow.resumed is not None:
                await flow.resumed
        transport.close()
        await flow.lost


@carries_out("tls-ping", "protocol")
async def answer_by_protocol(job: Job) -> None:
    echo, end, trust = Echo(job), job.end("tls_client"), context()
    with job.clock(certificate=certificate()):
        echo.transport = await job.library.connect_tls(echo, end, trust)
        await echo.lost


@carries_out("tls-streams", "protocol")
async def read_by_stream(job: Job) -> None:
    take, count, end, trust = job.taker(), 0, job.end("tls_source"), context()
    with job.clock(certificate=certificate()):
        stream = await job.library.stream_tls(end, trust)
        while data := await stream.receive(CHUNK):
            take(data)
            count += len(data)
    job.took(count)
    await stream.close()


def _wrapped(end: Any, trust: ssl.SSLContext) -> ssl.SSLSocket:
    sock = end.sock
    end.sock = None  # the wrapped one has the descriptor
    end.reader = end.writer = None
    return trust.wrap_socket(sock, server_hostname="localhost")


@carries_out("tls-reads", "blocking")
@carries_out("tls-streams", "blocking")
def read_blocking(job: Job) -> None:
    take, count, end, trust = job.taker(), 0, job.end("tls_source"), context()
    with job.clock(certificate=certificate()), _wrapped(end, trust) as sock:
        while data := sock.recv(CHUNK):
            take(data)
            count += len(data)
        sock.unwrap()
    job.took(count)


@carries_out("tls-writes", "blocking")
def write_blocking(job: Job) -> None:
    batches, end, trust = job.batches(), job.end("tls_sink"), context()
    with job.clock(certificate=certificate()):
        sock = _wrapped(end, trust)
        for batch in batches:
            for piece in batch:
                sock.sendall(piece)
        sock.unwrap().close()


@carries_out("tls-ping", "blocking")
def answer_blocking(job: Job) -> None:
    end, trust = job.end("tls_client"), context()
    with job.clock(certificate=certificate()), _wrapped(end, trust) as sock:
        while data := sock.recv(CHUNK):
            sock.sendall(data)
        sock.unwrap()
