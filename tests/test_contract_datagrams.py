"""The contract kit over every way to get a datagram transport."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datagram_makers import KINDS, Maker

from fdtransport.testing import Promise, packet_promises


def _cases() -> list[Any]:
    return [
        pytest.param(kind, promise, id=f"{kind}-{promise}")
        for kind, (_, features) in KINDS.items()
        for promise in packet_promises(features)
    ]


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize(("kind", "promise"), _cases())
async def test_contract(kind: str, promise: Promise, tmp_path: Path) -> None:
    make, features = KINDS[kind]
    assert await promise.run(Maker(make, features, tmp_path))
