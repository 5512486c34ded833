"""``validate`` accepts JSON or raises FlowProblems; accepted flows can be stored and trained."""

import copy
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runyard.flows import FlowProblems, build_flow_document, resolve, validate
from vi.api.resources.flows.responses import FlowSpec

numbers = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([0, 1, -1, 0.5, 10**30])
)
texts = st.text(max_size=8) | st.sampled_from(
    ["auto", "epoch", "tiny", "vi-model", "dataset", "lora", "v1"]
)
anything = st.recursive(
    numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
COMPLETE = build_flow_document(
    resolve(
        validate(
            {
                "settings": {"flow": {"id": "flow_1", "generation": 1}},
                "blocks": [
                    {"block": "vi-dataset", "settings": {"augmentation": {}}},
                    {
                        "block": "vi-model",
                        "settings": {
                            "training": {"learningRates": {}},
                            "checkpoint": {"every": {"steps": 5}},
                            "validation": {"earlyStopping": {}},
                        },
                    },
                ],
            }
        )
    )
)


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a document."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for name, item in inner for place in list_paths(item, (*path, name)))]


PLACES = [place for place in list_paths(COMPLETE) if place]


@st.composite
def nearly_good_flows(draw: st.DrawFn) -> dict[str, Any]:
    """Return a complete flow with a few random changes: far deeper than random JSON."""
    flow = copy.deepcopy(COMPLETE)
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=4)):
        inside: Any = flow
        try:
            for name in place[:-1]:
                inside = inside[name]
            match draw(st.sampled_from(["change", "drop", "add"])):
                case "change":
                    inside[place[-1]] = draw(anything)
                case "drop":
                    del inside[place[-1]]
                case "add":
                    inside[draw(texts)] = draw(anything)
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change has removed this value
    return flow


def validate_or_none(flow: object) -> FlowSpec | None:
    try:
        return validate(flow)
    except FlowProblems as refused:
        assert refused.problems
        json.dumps(msgspec.to_builtins(refused.problems), allow_nan=False).encode()
        return None


@settings(max_examples=100, deadline=None)
@given(anything)
def test_any_json_is_accepted_or_rejected_with_problems(flow: object) -> None:
    validate_or_none(flow)


@settings(max_examples=200, deadline=None)
@given(nearly_good_flows())
def test_an_accepted_flow_can_be_stored_completed_and_read_again(flow: dict[str, Any]) -> None:
    spec = validate_or_none(flow)
    if spec is None:
        return
    stored = msgspec.json.decode(msgspec.json.encode(spec), type=FlowSpec)
    resolved = resolve(stored)
    document = json.loads(json.dumps(build_flow_document(resolved), allow_nan=False))
    assert resolve(validate(document)) == resolved


@settings(max_examples=100, deadline=None)
@given(nearly_good_flows())
def test_checking_twice_changes_nothing(flow: dict[str, Any]) -> None:
    spec = validate_or_none(flow)
    if spec is not None:
        assert validate(msgspec.to_builtins(spec)) == spec


def list_numbers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of numbers in a complete flow, and of null where a number is allowed."""
    if isinstance(value, dict):
        return [
            found for name, item in value.items() for found in list_numbers(item, (*path, name))
        ]
    if isinstance(value, list):
        return [
            found
            for index, item in enumerate(value)
            for found in list_numbers(item, (*path, index))
        ]
    return [path] if value is None or isinstance(value, int | float) else []


NUMBERS = list_numbers(COMPLETE)


def test_the_complete_flow_includes_the_optional_numbers() -> None:
    names = {path[-1] for path in NUMBERS}
    assert {"learningRate", "maxGradNorm", "timeLimitMinutes", "maxSteps", "maxSamples"} <= names


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2**64])
def test_nan_and_infinity_are_refused_in_a_flow(path: tuple[Any, ...], bad: float) -> None:
    flow = copy.deepcopy(COMPLETE)
    place = flow
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = bad
    with pytest.raises(FlowProblems) as raised:
        validate(flow)
    assert "".join(f"/{name}" for name in path) in {
        problem.path for problem in raised.value.problems
    }
