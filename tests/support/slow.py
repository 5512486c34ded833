"""Cases of parametrized tests of which the default suite takes a part."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def mark_slow(cases: Iterable[Any], *, unless: Callable[[Any], bool]) -> list[Any]:
    """Return the cases, with the mark ``slow`` unless a case is quick; tuples are arguments."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if unless(case) else pytest.mark.slow,
        )
        for case in cases
    ]
