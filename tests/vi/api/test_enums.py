"""Every enumeration member of the SDK equals, hashes and prints as its wire value."""

import enum
import importlib
import json
import pickle
import pkgutil

import msgspec
import pytest

import vi
from vi.api.responses import OpenEnum, ResourceCondition

MODULES = [
    importlib.import_module(found.name) for found in pkgutil.walk_packages(vi.__path__, "vi.")
]
INTERNAL = {"vi._http.retry"}  # never handed to a caller
ENUMS = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, enum.Enum)
        and value.__module__.startswith("vi.")
        and value.__module__ not in INTERNAL
    },
    key=lambda kind: kind.__qualname__,
)


def test_the_enumerations_are_found() -> None:
    assert {"ConditionKind", "ConditionStatus", "ViErrorCode", "DatasetType"} <= {
        kind.__name__ for kind in ENUMS
    }


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_each_member_equals_its_value(kind: type[enum.Enum]) -> None:
    for member in kind:
        word = member.value
        assert (str(member), f"{member}", f"{member:>1}", "%s" % member) == (word,) * 4  # noqa: UP031
        assert member == word
        assert word == member
        assert {member: 1}[word] == {word: 1}[member] == 1
        assert (
            json.loads(json.dumps(member))
            == msgspec.json.decode(msgspec.json.encode(member))
            == word
        )
        assert msgspec.json.decode(msgspec.json.encode(word), type=kind) is member
        assert pickle.loads(pickle.dumps(member)) is member  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    "kind", [kind for kind in ENUMS if issubclass(kind, OpenEnum)], ids=lambda kind: kind.__name__
)
def test_an_unknown_value_becomes_a_member_that_equals_it(kind: type[OpenEnum]) -> None:
    if not list(kind):
        return  # the base of the others
    decoded = msgspec.json.decode(b'"Hibernating"', type=kind)
    assert decoded == "Hibernating"
    assert f"{decoded}" == decoded.value == "Hibernating"
    assert decoded is kind("Hibernating")
    assert decoded not in list(kind)
    assert isinstance(decoded, kind)


def test_a_condition_is_compared_with_its_name() -> None:
    condition = msgspec.json.decode(b'{"condition": "Cancelled"}', type=ResourceCondition)
    assert condition.condition == "Cancelled"
    assert condition.condition in ("Failed", "Cancelled")
    assert condition.condition != "Failed"
    assert condition.condition.is_final
