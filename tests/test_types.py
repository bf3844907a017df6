"""What type checkers are told is what comes, by each of the two that are common."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKERS = {
    "mypy": ["--cache-dir", "/dev/null"],
    "pyright": ["--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_know_what_the_library_gives(checker: str) -> None:
    pytest.importorskip(checker)
    command = [sys.executable, "-m", checker, *CHECKERS[checker], "tests/typed_programs.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
