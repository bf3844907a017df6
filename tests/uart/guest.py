"""Inside: run the checks, one after the other, and tell the host what came of each."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import time
import traceback
import tty
from typing import Any

#: Seconds for one check.
PATIENCE = 40


class Host:
    """The other side of the control port."""

    def __init__(self, path: str = "/dev/ttyS3") -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)
        self._file = os.fdopen(self._fd, "rb", 0)

    def tell(self, **what: Any) -> None:
        rest = json.dumps(what).encode() + b"\n"
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    async def ask(self, what: str, **arguments: Any) -> Any:
        """Have it done: ``break`` on a port, ``unplug`` or ``plug`` of the USB port."""
        self.tell(ask=what, **arguments)
        return json.loads(await asyncio.to_thread(self._file.readline))["done"]


def main() -> None:
    host = Host()
    host.tell(hello=f"Linux {platform.release()}, Python {platform.python_version()}")
    from .checks import CHECKS

    for name in sys.argv[1:] or CHECKS:
        print(f"uart: {name}", flush=True)
        began = time.monotonic()

        async def checked(name: str = name) -> str | None:
            async with asyncio.timeout(PATIENCE):
                return await CHECKS[name](host)

        try:
            seen = asyncio.run(checked())
        except BaseException:
            host.tell(check=name, ok=False, text=traceback.format_exc())
        else:
            host.tell(check=name, ok=True, text=f"{seen or 'ok'} ({time.monotonic() - began:.1f} s)")
    host.tell(end=True)


if __name__ == "__main__":
    main()
