"""What the command shows while it moves bytes; how it looks in a run is in test_command."""

from __future__ import annotations

import asyncio
import sys

import pytest

from fdtransport import progress as module
from fdtransport.progress import progress, size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (64 << 20, "64.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (7 << 40, "7.0 TiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_a_size_is_told_in_words(count, words):
    assert size(count) == words


@pytest.mark.parametrize("installed", [True, False])
async def test_it_is_shown_again_and_again_and_once_more_at_the_end(monkeypatch, capsys, installed):
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(module, "TICK", 0.001)
    moved, shown = [0, 0], asyncio.Event()

    def count():
        moved[0] += 1024
        if moved[0] == 3072:
            shown.set()
        return tuple(moved)

    with progress(count):
        await shown.wait()
        moved[0] = 8 << 20
    printed = capsys.readouterr().err
    assert "> 8.0 MiB, < 0 B" in printed


async def test_nobody_who_looks_is_no_error(monkeypatch):
    class Gone:
        def write(self, _):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(module, "TICK", 0.001)
    monkeypatch.setattr(sys, "stderr", Gone())
    with progress(lambda: (1, 1)):
        await asyncio.sleep(0.005)
