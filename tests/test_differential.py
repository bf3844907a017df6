"""The questions of the README's table: our own answers, and that the table is of these questions."""

from __future__ import annotations

import pytest
from differential import OURS, TABLE


@pytest.mark.parametrize("question", TABLE.cases)
@pytest.mark.parametrize("peer", OURS)
def test_the_answer_is_yes(peer, question):
    if "uvloop" in peer:
        pytest.importorskip("uvloop")
    assert TABLE.answer(peer, question) == "yes"


def test_the_readmes_table_has_the_same_questions():
    assert TABLE.questions_in_readme() == list(TABLE.cases)
