"""The JSON Schema accepts what ``validate`` accepts, judged by the few keywords it uses."""

import json
import re
from typing import Any

import pytest

from runyard.flows import FlowProblems, build_flow_document, resolve, schema, validate
from runyard.flows.reference import EXAMPLE

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
# Keywords that only describe.
SAYING = {"$schema", "$defs", "title", "description", "default"}


def is_valid(value: Any, rule: Any, root: dict[str, Any]) -> bool:
    if isinstance(rule, bool):
        return rule
    return all(keyword in SAYING or _holds(keyword, value, rule, root) for keyword in rule)


def _holds(keyword: str, value: Any, rule: dict[str, Any], root: dict[str, Any]) -> bool:
    expected = rule[keyword]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match keyword:
        case "$ref":
            return is_valid(value, root["$defs"][expected.removeprefix("#/$defs/")], root)
        case "type":
            return isinstance(value, TYPES[expected]) and (
                expected == "boolean" or not isinstance(value, bool)
            )
        case "enum":
            return value in expected
        case "anyOf":
            return any(is_valid(value, option, root) for option in expected)
        case "allOf":
            return all(is_valid(value, option, root) for option in expected)
        case "if":
            return not is_valid(value, expected, root) or is_valid(value, rule["then"], root)
        case "then":
            return True
        case "properties":
            return not isinstance(value, dict) or all(
                is_valid(value[name], inner, root)
                for name, inner in expected.items()
                if name in value
            )
        case "additionalProperties":
            known = rule.get("properties", {})
            return not isinstance(value, dict) or all(
                is_valid(item, expected, root) for name, item in value.items() if name not in known
            )
        case "required":
            return not isinstance(value, dict) or all(name in value for name in expected)
        case "items":
            start = len(rule.get("prefixItems", []))
            return not isinstance(value, list) or all(
                is_valid(item, expected, root) for item in value[start:]
            )
        case "prefixItems":
            return not isinstance(value, list) or all(
                map(is_valid, value, expected, [root] * len(expected))
            )
        case "minItems":
            return not isinstance(value, list) or len(value) >= expected
        case "maxItems":
            return not isinstance(value, list) or len(value) <= expected
        case "minLength":
            return not isinstance(value, str) or len(value) >= expected
        case "maxLength":
            return not isinstance(value, str) or len(value) <= expected
        case "pattern":
            return not isinstance(value, str) or re.search(expected, value) is not None
        case "minimum":
            return not is_number or value >= expected
        case "maximum":
            return not is_number or value <= expected
        case "exclusiveMinimum":
            return not is_number or value > expected
        case "exclusiveMaximum":
            return not is_number or value < expected
    raise AssertionError(f"the schema uses a keyword that is not checked here: {keyword}")


COMPLETE = build_flow_document(resolve(validate({})))
FLOWS: list[Any] = [
    {},
    {"name": None, "blocks": None},
    EXAMPLE,
    COMPLETE,
    {
        "blocks": [
            {
                "block": "my-model",
                "settings": {"packing": None, "checkpoint": {"every": {"steps": 3}}},
            }
        ]
    },
    {"blocks": [{"block": "vi-dataset", "settings": None, "style": {"x": [1, {}]}}]},
    [],
    {"schema": "v2"},
    {"nmae": "x"},
    {"blocks": [{"settings": {}}]},
    {"blocks": [{"block": "vi-modle"}]},
    {"blocks": [{"block": "my-model", "settings": {"epochs": 3}}]},
    {"blocks": [{"block": "my-dataset", "settings": {"validationFraction": 2}}]},
    {
        "blocks": [
            {"block": "vi-model", "settings": {"hyperparameters": {"optimizer": {"betas": [0.9]}}}}
        ]
    },
    {"blocks": [{"block": "vi-model", "settings": {"evaluation": {"top_k": True}}}]},
    {"settings": {"flow": {"id": "flow_1"}}},
    {"tolerations": {"accelerator": "h100"}},
]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: json.dumps(flow)[:60])
def test_schema_and_checks_agree(flow: Any) -> None:
    try:
        validate(flow)
        is_accepted = True
    except FlowProblems:
        is_accepted = False
    assert is_valid(flow, schema(), schema()) is is_accepted


def test_the_schema_is_plain_json_and_describes_each_field() -> None:
    document = json.loads(json.dumps(schema()))
    for name, part in document["$defs"].items():
        for field, help_text in part["properties"].items():
            assert help_text.get("description"), f"{name}.{field} has no help"
