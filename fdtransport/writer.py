"""The await-based writer: asyncio's own, with TLS in the middle on every loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ssl import SSLContext
from typing import Any, Generic

from typing_extensions import TypeVar

from ._core.stream import StreamTransport
from ._core.tls import begin_tls

__all__ = ["StreamWriter", "with_our_writer"]


T_co = TypeVar("T_co", bound=asyncio.WriteTransport, default=StreamTransport, covariant=True)


class StreamWriter(asyncio.StreamWriter, Generic[T_co]):
    """An ``asyncio.StreamWriter`` whose ``start_tls`` works on every loop and transport of this library.

    For type checkers, ``StreamWriter[PtyProcessTransport]`` tells what its ``transport`` is.
    """

    # asyncio's own fields
    _loop: asyncio.AbstractEventLoop
    _protocol: Any
    _transport: Any

    @property
    def transport(self) -> T_co:
        """What carries the bytes, with all that its kind has beyond asyncio's methods."""
        return self._transport  # type: ignore[no-any-return]

    async def drain(self) -> None:
        """Wait until more can be written, as asyncio's does.

        :raises OSError: the connection was lost.
        """
        if getattr(self._transport, "_dropped", False):
            await asyncio.sleep(0)
        await super().drain()

    async def start_tls(
        self,
        sslcontext: SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Upgrade the connection to TLS in the middle; the reader and the writer go on with it.

        The side that a server accepted is the server of TLS, too. Everything else as in
        ``fdtransport.start_tls``. What is written during the handshake is sent after it, encrypted.

        :raises ssl.SSLError, OSError, ValueError, TypeError, RuntimeError: as ``fdtransport.start_tls``.

        ::

            await writer.start_tls(ssl.create_default_context(), server_hostname="example.org")
        """
        error = self._reader.exception() if self._reader is not None else None  # type: ignore[attr-defined]
        if error is not None:
            raise error
        self._transport, begun = begin_tls(
            self._transport,
            self._protocol,
            sslcontext,
            self._protocol._client_connected_cb is not None,
            server_hostname,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
        await begun


def with_our_writer(
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    """*client_connected_cb*, for asyncio's protocol, which makes the writer of a connection by itself."""

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        writer.__class__ = StreamWriter
        return client_connected_cb(reader, writer)

    return connected
