"""Certificates for the tests: an authority, and what it issues; made once in a process."""

from __future__ import annotations

import datetime
import functools
import ssl
from pathlib import Path

import trustme

__all__ = ["Files", "authority", "issued", "serving", "trusting"]


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def issued(*names: str, expired: bool = False) -> trustme.LeafCert:
    """A certificate for these names or addresses."""
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return authority().issue_cert(*names, not_after=yesterday if expired else None)


def serving(certificate: trustme.LeafCert | None = None, *, asks_for_clients: bool = False) -> ssl.SSLContext:
    """A server's context; for localhost unless a certificate is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (certificate or issued("localhost", "127.0.0.1")).configure_cert(context)
    if asks_for_clients:
        authority().configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def trusting() -> ssl.SSLContext:
    """A client's context that trusts the authority, and nobody else."""
    return ssl.create_default_context(cadata=authority().cert_pem.bytes().decode())


class Files:
    """The same as files in a directory, for what takes paths."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.pem"
        authority().cert_pem.write_to_path(str(self.ca))
        self.cert, self.key = self.of(issued("localhost", "127.0.0.1"), "server")

    def of(self, certificate: trustme.LeafCert, name: str) -> tuple[Path, Path]:
        """Chain and key."""
        chain, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        for number, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(str(chain), append=number > 0)
        certificate.private_key_pem.write_to_path(str(key))
        return chain, key
