"""Dictionaries as other clients write them are parsed, and nothing else is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.server.services.datasets.dict_params import parse_dict_param

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUES))
def test_what_python_writes_is_read_back(value: dict[str, Any]) -> None:
    assert parse_dict_param(repr(value)) == value


@given(st.text())
def test_any_text_is_a_dictionary_or_nothing(text: str) -> None:
    assert parse_dict_param(text) is None or text.strip().startswith("{")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "{'a': open('x')}",
        "{'a': b'x'}",
        "{'a': 1 + 1}",
        "{1: 2}",
        "{" * 5000,
        "{'a'",
        "'\\",
        "{'a': '\ud800'}",
    ],
)
def test_anything_else_is_none(text: str) -> None:
    assert parse_dict_param(text) is None


def test_json_is_read_as_it_is() -> None:
    assert parse_dict_param('{"filename": "a\\u00e9", "all": true}') == {
        "filename": "aé",
        "all": True,
    }
