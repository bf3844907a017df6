"""The questions of the README's table: our own answers, and that the table is of these questions."""

from __future__ import annotations

import pytest
from differential import BEGIN, END, OURS, README, answer
from differential_cases import CASES


@pytest.mark.parametrize("question", CASES)
@pytest.mark.parametrize("peer", OURS)
def test_the_answer_is_yes(peer, question):
    if "uvloop" in peer:
        pytest.importorskip("uvloop")
    assert answer(peer, question) == "yes"


def test_the_readmes_table_has_the_same_questions():
    table = README.read_text().partition(BEGIN)[2].partition(END)[0]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[4:]] == list(CASES)
