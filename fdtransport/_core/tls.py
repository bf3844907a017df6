"""asyncio's own TLS between a transport and a protocol: from the start, or in the middle of a connection.

The machinery is ``asyncio.sslproto``. What is here asks for it, waits for the handshake, and sets
right what asyncio leaves open (`TlsLayer` says what).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from asyncio import sslproto
from collections.abc import Coroutine
from ssl import SSLContext
from typing import Any, NamedTuple

from .reading import MORE_SIZE
from .stream import StreamTransport

__all__ = ["Tls", "TlsLayer", "begin_tls", "client_tls", "server_tls", "shake_hands", "start_tls"]

_State = sslproto.SSLProtocolState
_AppState = sslproto.AppProtocolState


class TlsLayer(sslproto.SSLProtocol):
    """asyncio's protocol for the transport below; its ``_app_transport`` is for the protocol above.

    Beyond asyncio's:

    - An end of file without TLS's own goodbye (close_notify) is an error, ``ssl.SSLEOFError``: what
      came may have been cut short by somebody on the way. A context with the option
      ``ssl.OP_IGNORE_UNEXPECTED_EOF`` takes it for an ordinary end, as asyncio always does, and as all
      do here that are not ``strict``.
    - The last message of a handshake leaves at once, also when the protocol pauses reading in
      ``connection_made``, and so does the alert that tells the peer why it failed.
    - A pause of reading holds for the transport below as well: what the peer left before it went is
      still there after it, and no more than one piece is kept in memory.
    - ``resume_reading()`` does not take the callbacks into the caller's context (contextvars).
    - What comes after ``close()`` is dropped; asyncio's takes it for an error of the peer's.
    - A peer that says goodbye and closes at once has ended in good order, also when our own goodbye
      finds nobody any more.
    - A protocol that was there before TLS is told of a loss in the handshake, too.
    - Addresses stay readable after the loss.
    - What is asked for at once stays just under the size for which glibc maps memory anew; asyncio's
      256 KiB do not always.
    """

    max_size = MORE_SIZE

    # asyncio's own fields
    _app_reading_paused: bool
    _app_state: Any
    _extra: dict[str, Any]
    _get_write_buffer_size: Any
    _incoming: ssl.MemoryBIO
    _on_shutdown_complete: Any
    _process_outgoing: Any
    _sslobj: Any
    _state: Any
    _transport: Any

    #: Whether an end without a goodbye is an error.
    strict = True

    _cut = False  # the transport below came to its end, and nobody had said goodbye
    _done = False  # the peer has said goodbye, and the kernel has everything but our own

    def _on_handshake_complete(self, handshake_exc: Any) -> None:
        self._process_outgoing()
        super()._on_handshake_complete(handshake_exc)
        if self._holds():
            self._transport.pause_reading()  # it was asked for before

    # -- pause and resume: asyncio's reads on below, and when the end comes, it is told too early

    def _holds(self) -> bool:
        return bool(self._app_reading_paused) and self._state is _State.WRAPPED

    def _pause_reading(self) -> None:
        self._app_reading_paused = True
        if self._holds():
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._holds():
            self._transport.resume_reading()
        resume = super()._resume_reading  # type: ignore[misc]
        context = getattr(self._transport, "_context", None)
        try:
            resume() if context is None else context.run(resume)
        except RuntimeError:  # it is entered already
            resume()

    def _start_shutdown(self) -> None:
        if self._holds():
            self._transport.resume_reading()  # the peer's goodbye
        super()._start_shutdown()

    # -- the end

    def eof_received(self) -> Any:
        self._cut = self.strict and self._state is _State.WRAPPED
        return super().eof_received()

    def _do_shutdown(self) -> None:
        if self._cut:
            # Everything that came is delivered. With its input at the end, OpenSSL knows the rest.
            self._cut = False
            self._incoming.write_eof()
            try:
                self._sslobj.read(1)
            except ssl.SSLError as exc:
                exc.__traceback__ = None
                self._on_shutdown_complete(exc)
                return
        with contextlib.suppress(ssl.SSLError):
            while self._sslobj.read(self.max_size):
                pass  # for nobody any more
        heard = self._app_state is _AppState.STATE_EOF
        self._done = heard and not (self._get_write_buffer_size() or self._transport.get_write_buffer_size())
        super()._do_shutdown()  # type: ignore[misc]

    def connection_lost(self, exc: BaseException | None) -> None:
        lower = self._transport
        if isinstance(lower, StreamTransport) and lower._extra:
            self._extra = {**lower._extra, **self._extra}
        if self._done and isinstance(exc, BrokenPipeError | ConnectionResetError):
            exc = None
        untold: Any = None
        if self._state is _State.DO_HANDSHAKE and self._app_state is _AppState.STATE_CON_MADE:
            untold = self._app_protocol
        super().connection_lost(exc)
        if untold is not None:
            self._loop.call_soon(untold.connection_lost, exc)

    def feed(self, data: bytes) -> None:
        """Take what was read from the transport below before this was its protocol."""
        view = memoryview(data)
        while view:
            buffer = self.get_buffer(len(view))
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
            self.buffer_updated(size)
            view = view[size:]


class Tls(NamedTuple):
    """The options, checked."""

    context: SSLContext | None
    server_side: bool
    hostname: str | None
    handshake_timeout: float | None
    shutdown_timeout: float | None

    def layer(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        call_connection_made: bool = True,
        strict: bool = True,
    ) -> Any:
        """A `TlsLayer`, to be the protocol of the transport below.

        *waiter* is resolved after the handshake.
        """
        make: Any = TlsLayer  # typeshed has it stricter than it is
        layer = make(
            loop,
            protocol,
            self.context,
            waiter,
            self.server_side,
            self.hostname,
            call_connection_made=call_connection_made,
            ssl_handshake_timeout=self.handshake_timeout,
            ssl_shutdown_timeout=self.shutdown_timeout,
        )
        layer.strict = strict
        return layer


def client_tls(
    ssl: SSLContext | bool | None,
    server_hostname: str | None,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
) -> Tls | None:
    """What a client's options ask for; None for no TLS. :raises ValueError: options without *ssl*."""
    if not ssl:
        for name, value in (
            ("server_hostname", server_hostname),
            ("ssl_handshake_timeout", handshake_timeout),
            ("ssl_shutdown_timeout", shutdown_timeout),
        ):
            if value is not None:
                raise ValueError(f"{name} is only meaningful with ssl")
        return None
    context = None if isinstance(ssl, bool) else ssl
    return Tls(context, False, server_hostname, handshake_timeout, shutdown_timeout)


def server_tls(
    ssl: SSLContext | None, handshake_timeout: float | None, shutdown_timeout: float | None
) -> Tls | None:
    """As ``client_tls``, for a server. :raises TypeError: *ssl* is a bool."""
    if isinstance(ssl, bool):
        raise TypeError("ssl argument must be an SSLContext or None")
    if ssl is None:
        return client_tls(None, None, handshake_timeout, shutdown_timeout)
    return Tls(ssl, True, None, handshake_timeout, shutdown_timeout)


async def shake_hands(layer: Any, waiter: asyncio.Future[None]) -> None:
    """Wait until TLS is up.

    :raises ssl.SSLError: the two sides do not agree.
    :raises OSError: the connection ended, or the time.
    """
    try:
        await waiter
    except ConnectionResetError as exc:
        if exc.args:
            raise
        # asyncio says no more than the type when the peer ends in the middle of it.
        raise ConnectionResetError(
            errno.ECONNRESET, "the peer closed the connection during the TLS handshake"
        ) from None
    if "ssl_object" not in layer._extra:
        raise ConnectionAbortedError(errno.ECONNABORTED, "the transport was closed during the TLS handshake")


async def start_tls(
    transport: asyncio.Transport,
    protocol: asyncio.BaseProtocol,
    sslcontext: SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> asyncio.Transport:
    """Upgrade a connection to TLS in the middle; ``loop.start_tls`` for every loop and byte stream.

    *transport*: any byte stream of this library with a read and a write side (a socket, a pair of
    descriptors), or a TLS transport of asyncio's over one. *protocol* is what gets the decrypted bytes;
    ``connection_made`` is not called again. The options are asyncio's, timeouts in seconds (default:
    60 for the handshake, 30 for the goodbye); but a client has to give *server_hostname*, without
    which asyncio's takes a certificate for any name. Returns the transport that *protocol* writes to from
    now on; the old one must not be used any more.

    What was written before leaves first, as plain text. What was read from the peer and is still in
    a StreamReader is taken for the beginning of TLS: it is never given out as if it had come
    encrypted.

    :raises ssl.SSLError: the handshake failed; ``ssl.SSLCertVerificationError`` because of the
        certificate.
    :raises OSError: the connection ended meanwhile, or the handshake took too long
        (ConnectionAbortedError).
    :raises TypeError, ValueError, RuntimeError: *transport* is of no use for this, or an option is;
        it goes on as it was.

    When it raises anything else, and when it is cancelled, *transport* is aborted and *protocol* is
    told by ``connection_lost``.

    ::

        transport = await start_tls(transport, protocol, context, server_hostname="example.org")
    """
    upgraded, begun = begin_tls(
        transport,
        protocol,
        sslcontext,
        server_side,
        server_hostname,
        ssl_handshake_timeout,
        ssl_shutdown_timeout,
    )
    await begun
    return upgraded


def begin_tls(
    transport: asyncio.Transport,
    protocol: asyncio.BaseProtocol,
    sslcontext: SSLContext,
    server_side: bool,
    server_hostname: str | None,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
) -> tuple[asyncio.Transport, Coroutine[Any, Any, None]]:
    """``start_tls`` without the wait: the transport to use at once, and what to await for the rest."""
    if not isinstance(sslcontext, SSLContext):
        raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
    lower: Any = transport
    ours = isinstance(lower, StreamTransport)
    if not getattr(lower, "_start_tls_compatible", False) and not (ours and lower.is_closing()):
        raise TypeError(f"transport {transport!r} is not supported by start_tls()")
    if ours:
        lower._check_upgrade()
    if server_hostname is None and not server_side and sslcontext.check_hostname:
        # The ssl module would say yes to a certificate for any name.
        raise ValueError("check_hostname requires server_hostname ('' for taking any name)")
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    options = Tls(sslcontext, server_side, server_hostname, handshake_timeout, shutdown_timeout)
    layer = options.layer(loop, protocol, waiter, call_connection_made=False)
    upper = layer._app_transport
    if lower.is_closing() or (ours and not lower._state.reads):
        upper.abort()  # it would warn that it was never closed
        lower.abort()
        raise ConnectionResetError(errno.ECONNRESET, "the transport has ended: TLS cannot start on it")
    try:
        unread = _take_unread(lower.get_protocol())
        lower.set_protocol(layer)
        upgraded = getattr(protocol, "upgraded", None)  # one that does its own reading
        if upgraded is not None:
            upgraded(upper)
        if lower._protocol_paused:
            # What is queued below goes on holding TLS back. TLS itself has nothing queued.
            layer.pause_writing()
            protocol.resume_writing()
        layer.connection_made(lower)
        layer.feed(unread)
        lower.resume_reading()
    except BaseException:
        lower.abort()
        raise
    return upper, _finish_tls(lower, layer, waiter)


async def _finish_tls(lower: asyncio.Transport, layer: Any, waiter: asyncio.Future[None]) -> None:
    try:
        await shake_hands(layer, waiter)
    except BaseException:
        lower.abort()
        raise


def _take_unread(protocol: Any) -> bytes:
    """What *protocol*, of ours or of asyncio's streams, has read and not given out."""
    take = getattr(protocol, "take_unread", None)
    if take is not None:
        unread: bytes = take()
        return unread
    reader: Any = getattr(protocol, "_stream_reader", None)
    if not isinstance(reader, asyncio.StreamReader):
        return b""
    stream: Any = reader
    unread = bytes(stream._buffer)
    stream._buffer.clear()
    stream._paused = False
    return unread
