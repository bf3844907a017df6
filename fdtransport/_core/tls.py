"""asyncio's own TLS between a transport and a protocol: what the ``ssl`` options of a helper ask for."""

from __future__ import annotations

import asyncio
from asyncio import sslproto
from ssl import SSLContext
from typing import Any, NamedTuple

__all__ = ["Tls", "client_tls", "server_tls"]


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
    ) -> Any:
        """A protocol for the transport below; its ``_app_transport`` is the one for *protocol* above.

        *waiter* is resolved after the handshake.
        """
        make: Any = sslproto.SSLProtocol  # typeshed has it stricter than it is
        return make(
            loop,
            protocol,
            self.context,
            waiter,
            self.server_side,
            self.hostname,
            ssl_handshake_timeout=self.handshake_timeout,
            ssl_shutdown_timeout=self.shutdown_timeout,
        )


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
