"""A far end that speaks TLS: OpenSSL between two memory buffers, on the plain far end's system calls."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

from .ends import CHUNK, FarEnd, File, _steps

__all__ = ["TlsEnd"]

RECORD = 16 * 1024


class TlsEnd(FarEnd):
    """The other side of a transport under TLS: a `FarEnd` whose bytes are encrypted on the way.

    ``context``: of the ``ssl`` module; ``server_hostname`` makes this end the client, else it is the
    server. The handshake goes on with whatever is called; ``handshake()`` waits for it, beside the helper
    that waits for the other half. What is sent before is encrypted after it. ``close`` says TLS's goodbye
    first, ``cut`` and ``reset`` do not; a goodbye that is received is answered. TLS cannot end one
    direction.

    ::

        far = TlsEnd(other, context)
        shaking = asyncio.ensure_future(far.handshake())
        transport, protocol = await create_connection(factory, sock=near, ssl=..., server_hostname=...)
        await shaking
    """

    _tls: Any = None
    _pushing: asyncio.Future[None] | None = None

    def __init__(
        self, file: File, context: ssl.SSLContext, server_hostname: str | None = None, *, timeout: float = 5.0
    ) -> None:
        super().__init__(file, timeout=timeout)
        self.can_shutdown_write = False
        #: Whether the transport's side ended without TLS's goodbye.
        self.cut_short: bool = False
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._unsent = b""
        self._early = bytearray()
        self._ready = False
        server = server_hostname is None
        self._tls = context.wrap_bio(self._came, self._goes, server, server_hostname)

    async def handshake(self) -> None:
        """Wait until the handshake is over, and early bytes are sent. :raises ssl.SSLError: it failed."""
        async for _ in _steps(self.timeout, f"the handshake of {self!r}"):
            if self._shaken() and not self._unsent:
                return

    def send_now(self, data: bytes) -> int:
        """As the plain end; what the kernel does not take of an encrypted piece is kept and sent later."""
        if not self._shaken():
            self._early += data
            return len(data)
        if self._unsent:
            return 0
        sent: int = self._tls.write(data[:RECORD])  # so that the kernel takes a part of one at most
        if not self._flush():
            self._pushing = asyncio.ensure_future(self._push())
        return sent

    def recv_now(self, n: int = CHUNK) -> bytes | None:
        """As the plain end. What is told of a failed handshake is an ``ssl.SSLError``."""
        if not self._shaken():
            return None
        while True:
            try:
                data: bytes = self._tls.read(n)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLEOFError:
                self.cut_short = True
                return b""
            else:
                if not data:
                    self._answer()
                return data
            if not self._take():
                return None

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``."""
        await super().send(data)
        await self._push()

    async def _push(self) -> None:
        """Send the rest of a record that the kernel took a part of."""
        async for _ in _steps(self.timeout, f"{self!r} to send what is encrypted"):
            if not self.filenos() or self._flush():
                return

    def cut(self) -> None:
        """Close without TLS's goodbye, as somebody on the way can."""
        self._let_go()
        super().close()

    def close(self) -> None:
        """Say TLS's goodbye, as far as the kernel takes it, and close. Idempotent."""
        if self._tls is not None and self.filenos():
            with contextlib.suppress(OSError):
                try:
                    self._tls.unwrap()  # wants the other side's goodbye then
                except ssl.SSLWantReadError:
                    pass
                self._flush()
        self._let_go()
        super().close()

    def reset(self) -> None:
        """As the plain end: without TLS's goodbye."""
        self._let_go()
        super().reset()

    def _let_go(self) -> None:
        self._tls = None
        if self._pushing is not None and not self._pushing.get_loop().is_closed():
            self._pushing.cancel()

    def _answer(self) -> None:
        """Say goodbye, too."""
        with contextlib.suppress(OSError):
            self._tls.unwrap()
            self._flush()

    def _shaken(self) -> bool:
        """Carry on with the handshake; whether it is over."""
        while not self._ready:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._take():
                    return False
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert
                raise
            else:
                self._ready = True
                if self._early:
                    self._tls.write(self._early)
        self._flush()
        return True

    def _take(self) -> bool:
        """Feed TLS with what has come; whether there was something, or the end."""
        data = super().recv_now()
        if data is None:
            return False
        if data:
            self._came.write(data)
        else:
            self._came.write_eof()
        return True

    def _flush(self) -> bool:
        """Send what is encrypted; whether that was all."""
        self._unsent += self._goes.read()
        while self._unsent:
            sent = super().send_now(self._unsent)
            self._unsent = self._unsent[sent:]
            if not sent:
                return False
        return True
