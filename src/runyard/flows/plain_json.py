"""Whether a value is JSON that every part on the way can keep: database, wire, files.

A recipe may hold anything in its styles, so this walk goes through all of a flow, also where no struct looks.
"""

import math
from typing import Any

from runyard.flows.problems import Findings, step

# Deeper than any recipe, and shallow enough that every JSON reader on the way copes.
DEEPEST = 32


def check_is_json(value: Any, findings: Findings, *, path: tuple[Any, object] | None = None, depth: int = 0) -> None:
    """Note whatever a database or another JSON reader would choke on, also where a recipe may hold anything.

    ``path`` is a chain of (chain above, name), written out only for a finding, because nearly all values are fine.
    """
    if value is None or value is True or value is False:
        return
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            findings.add(_pointer(path), value, "text in Unicode without lone surrogates")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            findings.add(_pointer(path), value, "an integer of at most 63 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            findings.add(_pointer(path), value, "a finite number")
    elif isinstance(value, dict | list | tuple):
        if depth >= DEEPEST:
            findings.add(_pointer(path), value, f"nested at most {DEEPEST} deep")
            return
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in entries:
            if isinstance(value, dict):
                if not isinstance(name, str):
                    findings.add(_pointer((path, name)), name, "a field named by a text")
                    continue
                check_is_json(name, findings, path=(path, name), depth=depth + 1)
            check_is_json(item, findings, path=(path, name), depth=depth + 1)
    else:
        findings.add(_pointer(path), value, "a value that JSON has")


def _pointer(path: tuple[Any, object] | None) -> str:
    names: list[object] = []
    while path is not None:
        path, name = path
        names.append(name)
    pointer = ""
    for name in reversed(names):
        pointer = step(pointer, name)
    return pointer
