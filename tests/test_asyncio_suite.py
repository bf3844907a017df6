"""CPython's own tests of asyncio on our loop: see asyncio_suite."""

from __future__ import annotations

import importlib.util
import os

import pytest
from asyncio_suite import MODULE_TIME, MODULES, run


@pytest.mark.timeout(2 * MODULE_TIME)
@pytest.mark.parametrize("module", MODULES)
def test_what_passes_on_asyncios_loop_passes_on_ours(module):
    if importlib.util.find_spec("test.test_asyncio") is None and not os.environ.get("CI"):
        pytest.skip("this Python came without its own tests")
    outcome = run(module)
    assert outcome.good, str(outcome)
