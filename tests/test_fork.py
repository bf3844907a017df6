"""A process that forks: what its child throws away is a copy, and the parent's transports go on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from child_checks import QUIET

PROGRAM = """
    import asyncio, gc, os, socket, sys, fdtransport
    from fdtransport.testing.observe import until

    class Collects(asyncio.Protocol):
        got = b""
        def data_received(self, data):
            self.got += data

    class CollectsRecords(asyncio.DatagramProtocol):
        got = b""
        def datagram_received(self, data, _):
            self.got += data

    async def main(path, collected):
        read, write = os.pipe()
        near, far = socket.socketpair()
        kept = [
            await fdtransport.connect_fd(Collects, read),
            await fdtransport.create_connection(Collects, sock=near),
            await fdtransport.create_datagram_endpoint(CollectsRecords, path + "d", family=socket.AF_UNIX),
        ]
        protocols = [protocol for _, protocol in kept]
        accepted = []
        servers = [
            await fdtransport.create_unix_server(lambda: accepted.append(None) or Collects(), path),
            await fdtransport.create_datagram_server(
                lambda: accepted.append(None) or CollectsRecords(), path + "s", family=socket.AF_UNIX),
        ]
        child = os.fork()
        if child == 0:
            if collected:
                for one in [*(transport for transport, _ in kept), *servers]:
                    one.__del__()
                os._exit(0)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not os.get_blocking(read)
        os.write(write, b"x")
        far.send(b"x")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", path + "d")
            sender.sendto(b"x", path + "s")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            await until(lambda: len(accepted) == 2, "both servers serve")
        await until(lambda: [p.got for p in protocols] == [b"x"] * 3, "everything has come")
        for transport, _ in kept:
            await transport.aclose()
        for server in servers:
            await server.aclose()
        assert not any(os.path.exists(path + more) for more in ("", "d", "s"))
        far.close()
        os.close(write)

    asyncio.run(main(sys.argv[1], sys.argv[2] == "collected"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork(2) here")
@pytest.mark.parametrize("how", ["collected", "exit"])
def test_a_child_that_ends_takes_nothing_from_its_parent(how, tmp_path):
    done = subprocess.run(
        # The socket objects of the child's copies warn.
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(PROGRAM),
         str(tmp_path / "socket"), how],
        capture_output=True, text=True, timeout=60, check=False, env=QUIET,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


TAKES_OVER = """
    import asyncio, os, fdtransport

    async def main():
        read, write = os.pipe()
        transport, _ = await fdtransport.connect_fd(asyncio.Protocol, read)
        child = os.fork()
        if child == 0:
            os._exit(asyncio.Runner().run(again(read)))
        assert os.waitpid(child, 0)[1] == 0
        await transport.aclose()
        os.close(write)

    async def again(fd):
        transport, _ = await fdtransport.connect_fd(asyncio.Protocol, fd)
        transport.close()
        return 0

    asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork(2) here")
def test_a_child_may_put_a_transport_of_its_own_on_what_it_has_inherited():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TAKES_OVER)],
        capture_output=True, text=True, timeout=60, check=False, env=QUIET,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
