"""The contract kit over asyncio's TLS transport, with our transports below it.

What is above TLS is asyncio's class, and so are its rules; `BROKEN` names each promise that it does not
keep, and why.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from certificates import serving, trusting

import fdtransport
from fdtransport.testing import (
    ContractViolation,
    Features,
    Promise,
    RecordingProtocol,
    TlsEnd,
    stream_promises,
)
from fdtransport.testing.ends import FarEnd
from fdtransport.testing.observe import turns

Factory = Callable[[], Any]

#: TLS has no half-close; ``connection_lost`` of the protocol above comes a turn after the descriptor is
#: closed; a hang-up and the system calls are the business of the transport below.
TLS = Features(
    half_close=False,
    extended=False,
    seam=False,
    hangup=False,
    open_in_lost=False,
    tidy_maker=True,
    resets=True,
)


def _context() -> ssl.SSLContext:
    """The far end cannot say goodbye when the kernel is full; test_tls has what that means otherwise."""
    context = trusting()
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


async def _shaken(near: socket.socket, far: TlsEnd, connecting: Any) -> Any:
    """The transport that *connecting* returns, with the far end's half of the handshake done meanwhile."""
    connection, shaking = asyncio.ensure_future(connecting), asyncio.ensure_future(far.handshake())
    try:
        transport = await connection
        await asyncio.wait([shaking])  # what fails there shows on our side
    except BaseException:
        shaking.cancel()
        (made,) = await asyncio.gather(connection, return_exceptions=True)
        if isinstance(made, asyncio.Transport):
            made.abort()
        await turns(3)
        near.close()
        far.close()
        raise
    shaking.exception()
    return transport


#: The far end answers a goodbye only when it reads; asyncio waits for that so many seconds.
PATIENCE = 0.2
#: What our transports have; asyncio's TLS begins with eight times as much.
LIMITS = 65536, 16384


async def connected(protocol_factory: Factory) -> tuple[Any, FarEnd]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far = TlsEnd(listener.accept()[0], serving())

    def factory() -> Any:
        protocol = protocol_factory()
        told = protocol.connection_made

        def connection_made(transport: Any) -> None:
            del protocol.connection_made
            transport.set_write_buffer_limits(*LIMITS)
            told(transport)

        protocol.connection_made = connection_made
        return protocol

    async def connect() -> Any:
        options: Any = {"ssl": _context(), "server_hostname": "localhost", "ssl_shutdown_timeout": PATIENCE}
        return (await fdtransport.create_connection(factory, sock=near, **options))[0]

    return await _shaken(near, far, connect()), far


async def upgraded(protocol_factory: Factory) -> tuple[Any, FarEnd]:
    near, other = socket.socketpair()
    far = TlsEnd(other, serving())

    async def connect() -> Any:
        protocol = protocol_factory()
        transport, plain = await fdtransport.connect_fd(RecordingProtocol, near)
        upper = await fdtransport.start_tls(
            transport, plain, _context(), server_hostname="localhost", ssl_shutdown_timeout=PATIENCE
        )
        # Protocols that know TLS from the start have been told of it; here it is for us to tell.
        upper.set_protocol(protocol)
        upper.set_write_buffer_limits(*LIMITS)  # type: ignore[attr-defined]
        try:
            protocol.connection_made(upper)
        except BaseException:
            upper.abort()
            raise
        return upper

    return await _shaken(near, far, connect()), far


KINDS = {
    "connected": (connected, TLS.but(tcp=True, socket=True)),
    "upgraded": (upgraded, TLS),
}

GOODBYE = (
    "close() waits for the peer's goodbye, up to ssl_shutdown_timeout, and tells the loss with TimeoutError"
)
RECORDS = "the size is that of what OpenSSL has encrypted, records and all, without what waits below"
UNCHECKED = "writelines() looks at nothing: neither at its items nor at the water marks"

#: Not asked: when this far end goes, its last record is often in the kernel by half, which is no data.
CUT = {
    "what_the_kernel_holds_when_the_far_end_goes_is_delivered",
    "what_the_kernel_holds_is_delivered_before_a_reset",
}
BROKEN = {
    "no_flow_callback_comes_before_connection_made_has_returned": "the water marks hold from the start",
    "close_and_abort_tell_none": GOODBYE,
    "close_stops_reading_at_once": "is_reading() knows of pause_reading() only",
    "no_data_comes_after_a_close_inside_a_data_callback": GOODBYE,
    "close_and_abort_work_in_any_order_from_any_callback": "a second close() breaks its other methods",
    "a_write_after_close_is_sent_while_the_flush_is_under_way": "dropped: the goodbye is under way",
    "repr_never_raises": "__del__ of a transport without __init__ does",
    "an_exception_in_a_reading_callback_is_reported_once_and_ends_the_transport": (
        "reported once and with our transport, which is below the one that the protocol knows"
    ),
    "an_exception_in_connection_made_is_reported_and_the_transport_lives": "it goes through to what reads",
    "callbacks_run_in_the_context_of_the_creation": "pause_writing() runs in the context of who writes",
    "callbacks_share_one_context": "connection_made is told by this test, from outside",
    "is_reading_is_always_right": "it knows of pause_reading() only",
    "an_empty_buffer_is_an_error": "it counts as the end",
    "a_transport_with_a_backlog_does_not_spin": GOODBYE,
    "write_takes_bytes_like_objects_and_counts_bytes": RECORDS,
    "anything_else_is_a_type_error_before_anything_else_is_looked_at": UNCHECKED,
    "writelines_checks_everything_before_it_queues_anything": UNCHECKED,
    "writelines_obeys_flow_control": UNCHECKED,
    "the_write_buffer_size_is_what_abort_drops": RECORDS,
    "limits_default_and_validate_as_asyncios_do": "the defaults are 512 and 128 KiB",
    "pause_comes_above_high_and_not_at_it": RECORDS,
    "a_write_error_is_told_once_with_its_errno": "the peer's goodbye ends both directions in good order",
    "a_number_that_is_not_owned_any_more_is_left_alone": "setting limits after the loss is reported",
    "asyncios_streams_work_on_it": GOODBYE,
}
"""What asyncio's TLS transport does instead."""

#: Kept by one kind only.
KEPT = {
    ("connected", "callbacks_share_one_context"),
}


def _cases() -> list[Any]:
    return [
        pytest.param(kind, promise, id=f"{kind}-{promise}", marks=_marks(kind, promise.name))
        for kind, (_, features) in KINDS.items()
        for promise in stream_promises(features)
        if promise.name not in CUT
    ]


def _marks(kind: str, name: str) -> list[pytest.MarkDecorator]:
    if name not in BROKEN or (kind, name) in KEPT:
        return []
    return [pytest.mark.xfail(raises=ContractViolation, reason=BROKEN[name], strict=True)]


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize(("kind", "promise"), _cases())
async def test_contract(kind: str, promise: Promise) -> None:
    make, features = KINDS[kind]
    assert await promise.run(make, features, timeout=20)  # each byte is encrypted and decrypted here


def test_what_is_named_is_in_the_contract() -> None:
    assert {*BROKEN, *CUT} <= {promise.name for promise in stream_promises()}
