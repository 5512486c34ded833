"""The check that a value is JSON that the database, the wire and files can store.

A flow may hold anything in its styles, so this checks all of a flow, also the parts that no struct
describes.
"""

import math
from typing import Any

from runyard.flows.problems import ProblemCollector, join_pointer

# Deeper than any real flow, and shallow enough for every JSON parser involved.
MAX_DEPTH = 32


def check_json(
    value: Any,
    problems: ProblemCollector,
    *,
    path: tuple[Any, object] | None = None,
    depth: int = 0,
) -> None:
    """Add a problem for every value that a database or another JSON parser would reject.

    ``path`` is a chain of (parent chain, name), formatted only for a problem, because nearly all
    values are valid.
    """
    if value is None or value is True or value is False:
        return
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            problems.add(_build_pointer(path), value, "a string without lone surrogates")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            problems.add(_build_pointer(path), value, "an integer of at most 63 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            problems.add(_build_pointer(path), value, "a finite number")
    elif isinstance(value, dict | list | tuple):
        if depth >= MAX_DEPTH:
            problems.add(_build_pointer(path), value, f"nested at most {MAX_DEPTH} deep")
            return
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in entries:
            if isinstance(value, dict):
                if not isinstance(name, str):
                    problems.add(
                        _build_pointer((path, name)), name, "a field name that is a string"
                    )
                    continue
                check_json(name, problems, path=(path, name), depth=depth + 1)
            check_json(item, problems, path=(path, name), depth=depth + 1)
    else:
        problems.add(_build_pointer(path), value, "a JSON value")


def _build_pointer(path: tuple[Any, object] | None) -> str:
    names: list[object] = []
    while path is not None:
        path, name = path
        names.append(name)
    pointer = ""
    for name in reversed(names):
        pointer = join_pointer(pointer, name)
    return pointer
