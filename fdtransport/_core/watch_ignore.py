"""What is not to be watched: names, patterns, or a function."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

from .watch_tree import joined

__all__ = ["Ignore", "ignoring"]

Ignore = str | Iterable[str] | Callable[[str, bool], bool] | None


def ignoring(ignore: Ignore, root_of: Callable[[str], str]) -> Callable[[str, str, bool], bool] | None:
    """*ignore* as a function of the path of the directory, the name, and whether it is a directory.

    *root_of*: the root that a path is in.

    :raises TypeError: it is none of these.
    """
    if ignore is None:
        return None
    if callable(ignore):
        function = ignore
        return lambda directory, name, is_dir: bool(function(joined(directory, name), is_dir))
    patterns = [ignore] if isinstance(ignore, str) else list(ignore)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern to ignore is a str, not {pattern!r}")
    of_names = _any_of([pattern for pattern in patterns if "/" not in pattern.strip("/")])
    of_paths = _any_of([pattern for pattern in patterns if "/" in pattern.strip("/")])

    def ignored(directory: str, name: str, is_dir: bool) -> bool:
        if of_names is not None and of_names(name):
            return True
        if of_paths is None:
            return False
        path = joined(directory, name)
        return of_paths(path[len(root_of(path)) :].lstrip("/")) is not None

    return ignored


def _any_of(patterns: list[str]) -> Callable[[str], object] | None:
    if not patterns:
        return None
    return re.compile("|".join(fnmatch.translate(pattern.strip("/")) for pattern in patterns)).match
