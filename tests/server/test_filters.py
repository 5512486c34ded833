"""The filter text of runs: what each term means, and what an error says."""

from typing import Any

import pytest

from runyard.server.services.errors import Refusal
from runyard.server.services.runs.filters import MAX_TERMS, parse_duration, parse_filter
from runyard.store.lists.run_filter import Term

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("condition:failed", {"field": "condition", "value": ("Failed",)}),
        ("condition:Pending,RUNNING", {"field": "condition", "value": ("Pending", "Running")}),
        ("flow:x", {"field": "flow", "value": "x"}),
        ("project:p", {"field": "project", "value": "p"}),
        ('name:"two words"', {"field": "name", "value": "two words"}),
        ("owner=kim", {"field": "attribute", "key": "owner", "value": "kim"}),
        ("owner=", {"field": "attribute", "key": "owner", "value": ""}),
        ("a=b=c", {"field": "attribute", "key": "a", "value": "b=c"}),
        ("owner!=kim", {"field": "attribute", "key": "owner", "value": "kim", "is_negated": True}),
        ("-owner!=kim", {"field": "attribute", "key": "owner", "value": "kim"}),
        ('"my key"="a:b"', {"field": "attribute", "key": "my key", "value": "a:b"}),
        ("tag:base", {"field": "attribute", "key": "base", "value": None}),
        ("tag:flow=x", {"field": "attribute", "key": "flow", "value": "x"}),
        (
            "metric.validation/iou>=0.6",
            {"field": "metric", "key": "validation/iou", "operator": ">=", "value": 0.6},
        ),
        ("metric.loss<-1e3", {"field": "metric", "key": "loss", "operator": "<", "value": -1000.0}),
        (
            "created>2026-11-01",
            {"field": "created", "operator": ">", "value": 1_793_491_200_000},
        ),
        (
            "created<2026-11-01T02:00+02:00",
            {"field": "created", "operator": "<", "value": 1_793_491_200_000},
        ),
        (
            "-created>7d",
            {"field": "created", "operator": "<=", "value": 168 * HOUR_MS, "is_age": True},
        ),
        ("duration>1h30m", {"field": "duration", "operator": ">", "value": 3 * HOUR_MS // 2}),
        ("text", {"field": "text", "value": "text"}),
        ("-text", {"field": "text", "value": "text", "is_negated": True}),
        ('"-text"', {"field": "text", "value": "-text"}),
        ('"condition:Failed"', {"field": "text", "value": "condition:Failed"}),
        (r'"say \"hi\" \\"', {"field": "text", "value": 'say "hi" \\'}),
    ],
)
def test_a_term_means(text: str, term: dict[str, Any]) -> None:
    assert parse_filter(text).terms == (Term(**term),)


def test_terms_are_separated_by_any_blanks() -> None:
    fields = [term.field for term in parse_filter("  condition:Failed\t a\n b=c ").terms]
    assert fields == ["condition", "text", "attribute"]
    assert parse_filter("").is_empty and parse_filter("  ").is_empty
    assert not parse_filter("x").is_empty


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("a conditon:Failed", 3, "did you mean condition?"),
        ("condition:Faild", 1, "did you mean Failed?"),
        ("condition:", 1, "the value is missing"),
        ("x  iou>0.6", 4, "try: metric.iou>0.6"),
        ("metric.iou>high", 1, "a number"),
        ("metric.>1", 1, "a number"),
        ("metric.iou>nan", 1, "a number"),
        ("created:today", 1, "created<VALUE"),
        ("created>yesterday", 1, "2026-11-01"),
        ("duration>5", 1, "1h30m"),
        ("http://x", 1, "use quotes"),
        ("=x", 1, "is empty"),
        ('ok "open', 4, "no closing quote"),
        ("- x", 1, "condition:Failed"),
        (" ".join(["x"] * (MAX_TERMS + 1)), 65, "at most 32 terms"),
        ("x\0", 1, "NUL"),
        ("x" * 5000, 1, "4,096"),
    ],
)
def test_an_error_has_the_position_and_what_is_allowed(
    text: str, position: int, expected: str
) -> None:
    with pytest.raises(Refusal) as raised:
        parse_filter(text)
    assert raised.value.code == "InvalidFilter"
    assert f"character {position}:" in raised.value.message
    assert expected in raised.value.message
    assert len(raised.value.message) < 500
    assert raised.value.problems[0].path == f"?filter/{position}"


def test_durations_are_sums_of_parts() -> None:
    assert parse_duration("1.5h") == parse_duration("1h30m") == parse_duration("90m") == 5_400_000
    assert parse_duration("1w") == parse_duration("7d")
    assert parse_duration("250ms") == 250
    for text in ("", "h", "5", "1y", "1h ", "-1h", "1,5h"):
        assert parse_duration(text) is None
