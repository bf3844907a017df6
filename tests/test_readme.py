"""The recipes of the README run as they are printed, and say something."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
RECIPES = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
CERTIFICATE = re.search(r"^(openssl .*?)^```$", README, re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they are for Linux")


def name_of(recipe: str) -> str:
    return ",".join(sorted(set(re.findall(r"fdtransport\.(\w+)", recipe)) - {"testing"}))


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_recipe_of_the_readme_runs_as_printed(recipe: str, tmp_path: Path) -> None:
    for program in ("ssh-keygen", "stty", "openssl"):
        if f'"{program}"' in recipe and shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    if "cert.pem" in recipe:
        if shutil.which("openssl") is None:
            pytest.skip("there is no openssl here")
        assert CERTIFICATE is not None
        subprocess.run(CERTIFICATE[1], shell=True, cwd=tmp_path, check=True, capture_output=True)
    dev = [] if "testing" in recipe else ["-X", "dev"]  # the kit takes twice as long in it
    ended = subprocess.run(
        [sys.executable, *dev, "-c", recipe],
        cwd=tmp_path, input=b"one line\n", capture_output=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.decode()) == (0, "")
    assert ended.stdout
