"""YAML is parsed within limits, and every scalar keeps its text."""

import time

import pytest

from runyard.datasets.readers.text_labels.yaml_nodes import MAX_NODES, YamlRejected, parse_yaml

LAUGHS = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (LAUGHS, "expands to more than"),
        ("names: " + "[" * 40 + "]" * 40, "deeper than 32"),
        ("[" * 500_000, "deeper than 32"),
        ("a: &a [*a]", "no complete anchor"),
        ("names: [" + "a," * (MAX_NODES + 1) + "]", "expands to more than"),
        ("a: \x00", "not valid YAML"),
        ("a: !custom b", "the tag"),
        ("a: [b\n", "not valid YAML"),
        ("? ? ? a", ""),
    ],
)
def test_a_file_beyond_the_limits_is_rejected_fast(text: str, cause: str) -> None:
    started_s = time.process_time()
    if cause:
        with pytest.raises(YamlRejected, match=cause.replace("[", r"\[")):
            parse_yaml(text)
    else:
        parse_yaml(text)
    assert time.process_time() - started_s < 5


def test_the_line_of_a_defect_is_known() -> None:
    with pytest.raises(YamlRejected) as rejected:
        parse_yaml("a: b\nc: [d\ne: f\n")
    assert rejected.value.line >= 2


@pytest.mark.parametrize("text", ["no", "007", "1e3", "~", "0x1F", "12:30:00", "y"])
def test_a_scalar_keeps_its_text(text: str) -> None:
    node = parse_yaml(f"key: {text}").get("key")
    assert node is not None and node.text == text


def test_an_empty_file_has_no_keys() -> None:
    assert parse_yaml("").get("names") is None
