"""asyncssh on the drop-in loop, as server and as client: commands, files and forwarded ports."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from real_programs import needed

from fdtransport.testing.observe import until

asyncssh = needed("asyncssh")

LOOPBACK = "127.0.0.1"
DATA = bytes(range(256)) * 8 * 1024


class Forwarding(asyncssh.SSHServer):
    """Lets the clients that have the key forward ports both ways."""

    def connection_requested(self, *_: Any) -> bool:
        return True

    def unix_connection_requested(self, *_: Any) -> bool:
        return True

    def server_requested(self, *_: Any) -> bool:
        return True


#: Exit statuses of the commands that have ended.
ENDED: list[int] = []


async def command(process: Any) -> None:
    """What a client asks for, as a process of this machine with its pipes in the loop."""
    if process.command == "whoami":
        process.stdout.write(process.get_extra_info("username").encode())
        process.exit(0)
        return
    child = await asyncio.create_subprocess_shell(
        process.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    # The channel has one end of file for both outputs: the exit gives it, after both.
    await process.redirect(child.stdin, child.stdout, child.stderr, send_eof=False)
    status = await child.wait()
    if not process.is_closing():
        await asyncio.gather(process.stdout.drain(), process.stderr.drain())
    process.exit(status)
    await process.wait_closed()
    ENDED.append(status)


@pytest.fixture(scope="module")
def keys() -> tuple[Any, Any]:
    return asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")


@asynccontextmanager
async def connected(keys: tuple[Any, Any], **options: Any) -> AsyncIterator[Any]:
    """A client's connection to a server of this loop, with keys on both sides."""
    host, user = keys
    allowed = asyncssh.import_authorized_keys(user.export_public_key().decode())
    server = await asyncssh.listen(
        LOOPBACK, 0, server_factory=Forwarding, server_host_keys=[host], authorized_client_keys=allowed,
        process_factory=command, encoding=None, **options,
    )  # fmt: skip
    async with server:
        port = server.sockets[0].getsockname()[1]
        known = asyncssh.import_known_hosts(f"[{LOOPBACK}]:{port} {host.export_public_key().decode()}")
        async with asyncssh.connect(
            LOOPBACK, port, username="somebody", client_keys=[user], known_hosts=known, config=None
        ) as connection:
            yield connection


def test_a_command_gets_its_input_and_gives_output_errors_and_status(program, keys):
    async def main():
        async with connected(keys) as connection:
            done = await connection.run("cat; echo oops >&2; exit 7", input=DATA, encoding=None)
            assert (done.stdout == DATA, done.stderr, done.exit_status) == (True, b"oops\n", 7)
            assert (await connection.run("whoami")).stdout == "somebody"

    program.run(main())
    assert program.ours == {"SocketTransport": 2, "PipeTransport": 3}


def test_commands_in_parallel_share_the_connection(program, keys):
    async def main():
        async with connected(keys) as connection:
            commands = [f"echo {number}; exit {number}" for number in range(10)]
            done = await asyncio.gather(*map(connection.run, commands))
            assert [(one.stdout, one.exit_status) for one in done] == [(f"{n}\n", n) for n in range(10)]

    program.run(main())


def test_a_conversation_with_a_running_command(program, keys):
    async def main():
        async with connected(keys) as connection, connection.create_process("cat") as process:
            for line in ("one\n", "two\n"):
                process.stdin.write(line)
                assert await process.stdout.readline() == line
            process.stdin.write_eof()
            assert (await process.wait()).exit_status == 0

    program.run(main())


def test_a_key_that_the_server_does_not_know_is_refused(program, keys):
    stranger = asyncssh.generate_private_key("ssh-ed25519")

    async def main():
        async with connected(keys) as connection:
            address = connection.get_extra_info("peername")
            with pytest.raises(asyncssh.PermissionDenied):
                await asyncssh.connect(*address, client_keys=[stranger], known_hosts=None, config=None)

    program.run(main())


def test_files_by_sftp(program, keys, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "file").write_bytes(DATA * 2)

    async def main():
        factory = partial(asyncssh.SFTPServer, chroot=os.fsencode(there))
        async with (
            connected(keys, sftp_factory=factory) as connection,
            connection.start_sftp_client() as sftp,
        ):
            await sftp.put(tmp_path / "file", "/copy")
            assert (await sftp.stat("/copy")).size == len(DATA) * 2
            assert sorted(await sftp.listdir("/")) == [".", "..", "copy"]
            await sftp.get("/copy", tmp_path / "back")
            with pytest.raises(asyncssh.SFTPNoSuchFile):
                await sftp.stat("/missing")

    program.run(main())
    assert (there / "copy").read_bytes() == (tmp_path / "back").read_bytes() == DATA * 2


async def shout(reader, writer):
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def converse(port):
    reader, writer = await asyncio.open_connection(LOOPBACK, port)

    async def talk():
        writer.write(DATA)
        await writer.drain()
        writer.write_eof()

    _, answer = await asyncio.gather(talk(), reader.read())
    assert answer == DATA.upper()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("forward", ["forward_local_port", "forward_remote_port"])
def test_a_forwarded_port_passes_data_and_its_end(program, keys, forward):
    async def main():
        async with await asyncio.start_server(shout, LOOPBACK, 0) as target, connected(keys) as connection:
            port = target.sockets[0].getsockname()[1]
            async with await getattr(connection, forward)(LOOPBACK, 0, LOOPBACK, port) as listener:
                await asyncio.gather(*(converse(listener.get_port()) for _ in range(4)))

    program.run(main())
    assert program.ours == {"SocketTransport": 2 + 4 * 4}


def test_a_forwarded_path(program, keys, tmp_path):
    path = str(tmp_path / "socket")

    async def main():
        async with (
            await asyncio.start_unix_server(shout, path),
            connected(keys) as connection,
            await connection.forward_local_port_to_path(LOOPBACK, 0, path) as listener,
        ):
            await converse(listener.get_port())

    program.run(main())


def test_a_command_ends_when_the_client_goes(program, keys):
    ENDED.clear()

    async def main():
        async with connected(keys) as connection:
            process = await connection.create_process("cat")
            process.stdin.write("there\n")
            assert await process.stdout.readline() == "there\n"
            connection.abort()
            await until(lambda: ENDED == [0], "its input ended", 10)

    program.run(main())
