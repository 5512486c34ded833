"""Display of settings."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from runyard.settings import Settings
from tests.support.commands import Runyard


def test_every_setting_is_shown_with_value_source_and_meaning(
    runyard: Runyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNYARD_SLOTS", "2")
    shown = {
        each["name"]: each
        for each in json.loads(runyard("config", "show", "--json").stdout)["settings"]
    }
    assert set(shown) == {item.name for item in fields(Settings)}
    assert (shown["slots"]["value"], shown["slots"]["source"]) == (2, "RUNYARD_SLOTS")
    assert (shown["port"]["value"], shown["port"]["source"]) == (7878, "default")
    assert all(each["help"] for each in shown.values())


def test_a_data_dir_given_here_is_where_it_comes_from(runyard: Runyard, tmp_path: Path) -> None:
    shown = json.loads(
        runyard("config", "show", "--json", "--data-dir", str(tmp_path / "d")).stdout
    )["settings"][0]
    assert (shown["value"], shown["source"]) == (str(tmp_path / "d"), "--data-dir")


def test_the_table_has_a_line_for_each_setting(runyard: Runyard) -> None:
    lines = runyard("config", "show").stdout.splitlines()
    assert len(lines) == 1 + len(fields(Settings))
