"""Every setting has a range; a value outside it is rejected with name, value and range."""

import math
import re
from dataclasses import Field, fields
from typing import Any

import pytest

from runyard.settings import (
    PREFIX,
    SettingError,
    Settings,
    build_environment,
    describe_allowed,
    read_settings,
)

NUMBERS = [item for item in fields(Settings) if item.type in (int, float)]


def outside(item: Field[Any]) -> list[str]:
    """Return values outside of the range."""
    minimum, maximum = item.metadata["minimum"], item.metadata["maximum"]
    step = 1 if item.type is int else abs(minimum) / 1000 + 1e-9
    return [
        str(minimum - step),
        str(maximum + 1),
        "-1",
        "nan",
        "inf",
        "-inf",
        "",
        "two",
        "1e400",
        "0x10",
        "9" * 400,
    ]


@pytest.mark.parametrize("item", NUMBERS, ids=lambda item: item.name)
def test_a_number_outside_its_range_is_rejected_with_name_value_and_range(item: Any) -> None:
    for value in outside(item):
        for given in (
            {"environ": {PREFIX + item.name.upper(): value}},
            {"environ": {}, item.name: value},
        ):
            with pytest.raises(SettingError) as raised:
                read_settings(**given)
            message = str(raised.value)
            assert f"{PREFIX}{item.name.upper()} is {value!r}" in message
            assert describe_allowed(item) in message and "try: " in message


@pytest.mark.parametrize("item", NUMBERS, ids=lambda item: item.name)
def test_both_ends_of_a_range_and_the_default_are_accepted(item: Any) -> None:
    for value in (item.metadata["minimum"], item.metadata["maximum"], item.default):
        assert getattr(read_settings({}, **{item.name: value}), item.name) == value
        assert getattr(read_settings({PREFIX + item.name.upper(): str(value)}), item.name) == value
    assert math.isfinite(item.metadata["minimum"]) and math.isfinite(item.metadata["maximum"])


@pytest.mark.parametrize(
    "item", [item for item in fields(Settings) if item.type is bool], ids=lambda item: item.name
)
def test_a_boolean_that_is_neither_yes_nor_no_is_rejected(item: Any) -> None:
    for value in ("maybe", "2", "tru"):
        with pytest.raises(SettingError, match=re.escape(f"{value!r}; it must be true or false")):
            read_settings({PREFIX + item.name.upper(): value})


def test_an_unknown_log_level_is_rejected() -> None:
    with pytest.raises(SettingError, match="must be one of debug, info, warning, error"):
        read_settings({"RUNYARD_LOG_LEVEL": "loud"})


def test_a_machine_without_slots_is_rejected() -> None:
    with pytest.raises(
        SettingError, match=r"RUNYARD_SLOTS is '0'; it must be an integer from 1 to 1,024"
    ):
        read_settings({"RUNYARD_SLOTS": "0"})


def test_child_processes_read_the_same_settings() -> None:
    settings = read_settings({"RUNYARD_SLOTS": "3", "RUNYARD_WARM": "no"})
    assert read_settings(build_environment(settings)) == settings
