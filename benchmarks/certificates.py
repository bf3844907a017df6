"""A certificate for localhost, made by the openssl program once in a process."""

from __future__ import annotations

import atexit
import functools
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def certificate() -> str:
    """The path of a PEM file with it and its key."""
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    chain, key = Path(directory.name, "chain.pem"), Path(directory.name, "key.pem")
    # fmt: off
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
         "-keyout", key, "-out", chain],
        check=True, capture_output=True,
    )
    # fmt: on
    with chain.open("ab") as file:
        file.write(key.read_bytes())
    return str(chain)
