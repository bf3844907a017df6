"""What is left to the garbage collector, for tests."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["nothing_for_the_collector"]


@contextlib.contextmanager
def nothing_for_the_collector(kind: type[BaseException]) -> Iterator[None]:
    """What is done inside leaves no exception of this *kind* in a circle of references."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        found = [thing for thing in gc.garbage if isinstance(thing, kind)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert found == []
