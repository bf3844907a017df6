"""The questions of serial_differential: our own answers."""

from __future__ import annotations

import pytest
from serial_differential import OURS, TABLE


@pytest.mark.parametrize("peer", OURS)
def test_every_answer_is_yes(peer: str) -> None:
    pytest.importorskip("serial")
    if "uvloop" in peer:
        pytest.importorskip("uvloop")
    assert TABLE.answers(peer) == {}
