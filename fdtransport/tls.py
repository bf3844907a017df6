"""Contexts for TLS from PEM files, verified by default, and TLS's errors in one line."""

from __future__ import annotations

import errno
import logging
import os
import ssl
import stat

from ._core import syscalls
from .errors import EndpointError, TransportError

__all__ = ["client_context", "explain", "server_context"]

_log = logging.getLogger("fdtransport")

#: What OpenSSL says to bytes that are no TLS.
_NO_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "UNKNOWN_PROTOCOL",
    }
)


def client_context(
    ca: str | None = None, cert: str | None = None, key: str | None = None, *, insecure: bool = False
) -> ssl.SSLContext:
    """A context that verifies the server: by the system's authorities, or only by those in *ca*.

    *cert*, *key*: PEM files with the client's own certificate, if it has one. *insecure*: take any
    certificate; whoever is on the way can read and change everything then, which is logged as a
    warning.

    :raises EndpointError: what is in a file is of no use, or options contradict each other.
    :raises TransportError: a file cannot be read; with its errno.
    """
    if (cert is None) != (key is None):
        raise EndpointError("a certificate of our own takes both options, 'cert' and 'key'")
    if insecure and ca is not None:
        raise EndpointError("option 'insecure' takes any certificate, so that 'ca' is of no use")
    context = ssl.create_default_context() if ca is None else _trusting(ssl.Purpose.SERVER_AUTH, ca)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        _log.warning("TLS takes any certificate: option 'insecure' is given")
    if cert is not None and key is not None:
        _load(context, cert, key)
    return context


def server_context(cert: str, key: str, ca: str | None = None) -> ssl.SSLContext:
    """A server's context. *ca*: clients must have a certificate of these authorities.

    :raises EndpointError: what is in a file is of no use.
    :raises TransportError: a file cannot be read; with its errno.
    """
    if ca is None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    else:
        context = _trusting(ssl.Purpose.CLIENT_AUTH, ca)
        context.verify_mode = ssl.CERT_REQUIRED
    _load(context, cert, key)
    return context


def _trusting(purpose: ssl.Purpose, ca: str) -> ssl.SSLContext:
    _check_readable("ca", ca)
    try:
        return ssl.create_default_context(purpose, cafile=ca)
    except ssl.SSLError:
        raise EndpointError(f"option 'ca': there is no certificate in PEM form in {ca!r}") from None


def _load(context: ssl.SSLContext, cert: str, key: str) -> None:
    def password() -> str:  # OpenSSL would ask for it on the terminal, and wait
        raise EndpointError(f"option 'key': the key in {key!r} is encrypted; one without a password would do")

    _check_readable("cert", cert)
    _check_readable("key", key)
    try:
        context.load_cert_chain(cert, key, password)
    except EndpointError:
        raise
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise EndpointError(f"the key in {key!r} is not that of the certificate in {cert!r}") from None
        wanted = f"a certificate and its key in PEM form are wanted in {cert!r} and {key!r}"
        raise EndpointError(f"options 'cert' and 'key': {wanted}") from None


def _check_readable(option: str, path: str) -> None:
    # The ssl module tells neither which file it was, nor of a directory anything that helps.
    try:
        fd = syscalls.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISDIR(syscalls.fstat(fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        finally:
            syscalls.close(fd)
    except OSError as exc:
        raise TransportError(exc.errno, f"option {option!r}: {exc.strerror}: {path!r}") from None


def explain(exc: ssl.SSLError) -> str:
    """What went wrong, in one line without OpenSSL's source lines."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the certificate does not verify: {exc.verify_message.rstrip('.')}"
    if isinstance(exc, ssl.SSLEOFError):
        return "cut off without TLS's goodbye; something may be missing"
    reason = exc.reason or ""
    if reason in _NO_TLS:
        return "the other side does not speak TLS"
    return f"TLS failed: {reason.replace('_', ' ').lower() or exc.strerror or exc}"
