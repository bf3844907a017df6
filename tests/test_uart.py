"""The library on real UARTs, in a virtual machine: see tests/uart. A minute, and 90 MB of Debian's packages,
therefore only if asked for: ``python -m pytest -n 0 -m uart tests/test_uart.py``.
"""

from __future__ import annotations

import pytest
from uart.machine import PATIENCE, run
from uart.packages import PATIENCE as DOWNLOAD
from uart.packages import Missing

pytestmark = [pytest.mark.uart, pytest.mark.timeout(PATIENCE + 3 * DOWNLOAD)]


def test_what_is_so_on_a_real_uart(pytestconfig, record_property) -> None:
    if "uart" not in pytestconfig.option.markexpr:
        pytest.skip("boots a virtual machine: python -m pytest -n 0 -m uart tests/test_uart.py")
    try:
        report = run()
    except Missing as exc:
        pytest.skip(str(exc))
    record_property("uart", str(report))
    assert report.good, str(report)
