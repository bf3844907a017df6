"""Programs on asyncio's subprocesses, on the drop-in loop: their pipes are this library's too."""

from __future__ import annotations

import asyncio
import gzip
import signal
from asyncio.subprocess import PIPE

from real_programs import executable

DATA = bytes(range(256)) * 32 * 1024


def test_data_is_fed_and_collected(program):
    gzipper = executable("gzip", "gzip")

    async def main():
        child = await asyncio.create_subprocess_exec(gzipper, "-1", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        out, err = await child.communicate(DATA)
        assert (gzip.decompress(out), err, child.returncode) == (DATA, b"", 0)

    program.run(main())
    assert program.ours == {"PipeTransport": 3}


def test_a_pipeline_of_processes_is_fed_and_read_at_once(program):
    gzipper = executable("gzip", "gzip")

    async def main():
        stages = [
            await asyncio.create_subprocess_exec(gzipper, option, stdin=PIPE, stdout=PIPE)
            for option in ("-1", "-d")
        ]

        async def pump(source, sink):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.close()
            await sink.wait_closed()

        async def feed():
            stages[0].stdin.write(DATA)
            await stages[0].stdin.drain()
            stages[0].stdin.close()

        _, _, out = await asyncio.gather(
            feed(), pump(stages[0].stdout, stages[1].stdin), stages[1].stdout.read()
        )
        assert out == DATA
        assert [await stage.wait() for stage in stages] == [0, 0]

    program.run(main())


def test_many_at_once(program):
    async def main():
        async def ask(number):
            child = await asyncio.create_subprocess_shell(
                f"read x; echo $x; exit {number}", stdin=PIPE, stdout=PIPE
            )
            out, _ = await child.communicate(b"%d\n" % number)
            return out, child.returncode

        answers = await asyncio.gather(*map(ask, range(30)))
        assert answers == [(b"%d\n" % number, number) for number in range(30)]

    program.run(main())
    assert program.ours == {"PipeTransport": 60}


def test_a_process_that_ignores_its_input_and_is_ended(program):
    async def main():
        child = await asyncio.create_subprocess_shell("echo ready; exec sleep 60", stdin=PIPE, stdout=PIPE)
        assert await child.stdout.readline() == b"ready\n"
        child.stdin.write(DATA)
        child.terminate()
        assert await child.wait() == -signal.SIGTERM
        assert await child.stdout.read() == b""

    program.run(main())
