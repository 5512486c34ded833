"""Flow files, and single values set by ``--set``."""

import json
import math
from pathlib import Path
from typing import Any

import click
import pytest

from runyard.cli.failures import CommandFailed
from runyard.cli.resources.flow_files import (
    DEFAULT_FLOW,
    apply_assignments,
    is_file_name,
    read_flow_file,
)
from runyard.flows import FlowProblems, validate
from tests.support.commands import Runyard


@pytest.mark.parametrize("given", ["a.json", "a.yaml", "A.YML", "./flow", "-"])
def test_names_of_files(given: str) -> None:
    assert is_file_name(given)


@pytest.mark.parametrize("given", ["flow_abc123", "0b9f6f0e-2f6f-4d1c-9d3f-0a4a3f2d5c11"])
def test_names_of_flows(given: str) -> None:
    assert not is_file_name(given)


def test_yaml_and_json_of_one_flow_read_the_same(tmp_path: Path) -> None:
    flow = {
        "name": "x",
        "blocks": [{"block": "vi-model", "settings": {"hyperparameters": {"learningRate": 2e-4}}}],
    }
    (tmp_path / "a.json").write_text(json.dumps(flow))
    (tmp_path / "a.yaml").write_text(
        "name: x\nblocks:\n- block: vi-model\n  settings: {hyperparameters: {learningRate: 2e-4}}\n"
    )
    assert (
        read_flow_file(str(tmp_path / "a.json")) == read_flow_file(str(tmp_path / "a.yaml")) == flow
    )


def test_a_date_in_yaml_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: 2026-01-31\n")
    assert read_flow_file(str(tmp_path / "a.yaml")) == {"name": "2026-01-31"}


def test_yaml_that_names_python_objects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(CommandFailed, match="is not YAML: could not determine a constructor"):
        read_flow_file(str(tmp_path / "a.yaml"))


def test_yaml_aliases_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a [x, x]\nb: [*a, *a]\n")
    with pytest.raises(CommandFailed, match="uses an alias in line 2"):
        read_flow_file(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text("{name: [")
    with pytest.raises(CommandFailed, match=f"a.{suffix} is not {suffix.upper()}"):
        read_flow_file(str(path))


def test_assignments_reach_top_level_fields_and_blocks() -> None:
    changed = apply_assignments(
        DEFAULT_FLOW,
        [
            "name=shelf",
            "settings.seed=3",
            "vi-model.hyperparameters.epochs=5",
            "vi-model.images={}",
        ],
    )
    assert changed["name"] == "shelf"
    assert changed["settings"] == {"seed": 3}
    assert changed["blocks"] == [
        {
            "block": "vi-model",
            "settings": {"hyperparameters": {"epochs": 5}, "images": {}},
            "style": {},
        }
    ]


def test_assignments_leave_what_they_were_given_alone() -> None:
    before = json.dumps(DEFAULT_FLOW)
    apply_assignments(DEFAULT_FLOW, ["vi-dataset.datasetId=digits"])
    assert json.dumps(DEFAULT_FLOW) == before


def test_an_assignment_changes_a_block_that_is_there() -> None:
    flow = {
        "blocks": [{"block": "vi-dataset", "settings": {"datasetId": "digits", "shuffle": False}}]
    }
    changed = apply_assignments(flow, ["vi-dataset.datasetId=digits-grounding"])
    assert changed["blocks"] == [
        {"block": "vi-dataset", "settings": {"datasetId": "digits-grounding", "shuffle": False}}
    ]


@pytest.mark.parametrize("assignment", ["epochs", "=3", "vi-model..x=1", "vi-model=3"])
def test_a_malformed_assignment_is_wrong_usage(assignment: str) -> None:
    with pytest.raises(click.ClickException) as caught:
        apply_assignments(DEFAULT_FLOW, [assignment])
    assert caught.value.exit_code == 2
    assert assignment in caught.value.message


def test_an_assignment_through_a_number_is_rejected() -> None:
    with pytest.raises(CommandFailed, match="leads through a value that is not an object"):
        apply_assignments({"settings": {"seed": 3}}, ["settings.seed.x=1"])


def test_check_names_every_problem_of_a_flow(runyard: Runyard, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "settings: {seeds: 3}\nblocks:\n- block: vi-model\n  settings: {hyperparameters: {epochs: "
        "0}}\n"
    )
    result = runyard("flows", "check", "bad.yaml")
    assert result.exit_code == 1
    assert "/settings/seeds" in result.stderr
    assert "/blocks/0/settings/hyperparameters/epochs" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_accepts_a_valid_flow(runyard: Runyard, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("name: shelf\n")
    result = runyard("flows", "check", "good.yaml", "--set", "vi-model.hyperparameters.epochs=2")
    assert (result.exit_code, result.stdout) == (0, "shelf: no problems\n")


def test_plan_writes_every_default_out(runyard: Runyard) -> None:
    result = runyard("flows", "plan", "--json", "--set", "vi-model.hyperparameters.epochs=2")
    blocks = {block["block"]: block["settings"] for block in json.loads(result.stdout)["blocks"]}
    assert blocks["vi-dataset"]["datasetId"] == "digits"
    assert blocks["vi-model"]["hyperparameters"]["epochs"] == 2
    assert blocks["vi-model"]["hyperparameters"]["batchSize"] == 32


def test_a_flow_is_read_from_standard_input(runyard: Runyard) -> None:
    result = runyard("flows", "check", "-", stdin="name: piped\n")
    assert result.stdout == "piped: no problems\n"


def test_the_schema_is_a_json_schema(runyard: Runyard) -> None:
    assert "$defs" in json.loads(runyard("flows", "schema").stdout)


NUMBERS_IN_YAML = [
    ("5", 5),
    ("-5", -5),
    ("0x1f", 31),
    ("1_000", 1000),
    ("2e-4", 2e-4),
    ("1.5", 1.5),
    (".5", 0.5),
    ("-1.", -1.0),
    ("6.02e+23", 6.02e23),
    # Words that YAML 1.1 parses as unexpected numbers stay text, which no number field accepts.
    ("010", "010"),
    ("1:30", "1:30"),
    ("1:30.5", "1:30.5"),
    ("0b101", "0b101"),
    ("12345678901234567890123", 12345678901234567890123),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS_IN_YAML)
def test_a_number_in_yaml_is_the_one_that_is_written(
    text: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(f"x: {text}\n")
    read = read_flow_file(str(tmp_path / "a.yaml"))["x"]
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("json", '{"name": "a", "settings": {"seed": 1, "seed": 2}}'),
        ("yaml", "name: a\nsettings:\n  seed: 1\n  seed: 2\n"),
        ("yaml", "{name: a, settings: {seed: 1, seed: 1}}"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(suffix: str, text: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{suffix}").write_text(text)
    with pytest.raises(CommandFailed, match="has the key 'seed' twice"):
        read_flow_file(str(tmp_path / f"a.{suffix}"))


NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"]


def with_value(tmp_path: Path, way: str, field: str, word: str) -> Any:
    """Return the flow with one of these words as a number, given in one of the ways."""
    if way == "--set":
        return apply_assignments(DEFAULT_FLOW, [f"vi-model.hyperparameters.{field}={word}"])
    if way == "yaml":
        word = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}.get(word, word)
    text = (
        f'{{"blocks": [{{"block": "vi-model", "settings": {{"hyperparameters": {{"{field}": '
        f"{word}}}}}}}]}}"
    )
    (tmp_path / f"a.{way}").write_text(text)
    return read_flow_file(str(tmp_path / f"a.{way}"))


@pytest.mark.parametrize("field", ["learningRate", "maxGradNorm"])
@pytest.mark.parametrize("way", ["--set", "json", "yaml"])
@pytest.mark.parametrize("word", NOT_FINITE)
def test_a_number_that_is_not_finite_is_refused_with_its_path(
    word: str, way: str, field: str, tmp_path: Path
) -> None:
    flow = with_value(tmp_path, way, field, word)
    with pytest.raises(FlowProblems) as raised:
        validate(flow)
    assert f"/blocks/0/settings/hyperparameters/{field}" in {
        problem.path for problem in raised.value.problems
    }


@pytest.mark.parametrize("way", ["--set", "json", "yaml"])
def test_a_number_that_would_become_zero_is_refused(way: str, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="1e-999, which is too small"):
        with_value(tmp_path, way, "weightDecay", "1e-999")
    zero = with_value(tmp_path, way, "weightDecay", "0e-999")
    assert zero["blocks"][0]["settings"]["hyperparameters"]["weightDecay"] == 0


def test_creating_a_run_with_a_number_that_is_not_finite_sends_nothing(
    runyard: Runyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATATURE_VI_SECRET_KEY", "dtvi_" + "k" * 98)
    monkeypatch.setenv("DATATURE_VI_ORGANIZATION_ID", "lab")
    monkeypatch.setenv("DATATURE_VI_API_ENDPOINT", "http://127.0.0.1:9")
    result = runyard("runs", "create", "--set", "vi-model.hyperparameters.learningRate=NaN")
    assert result.exit_code == 2
    assert "/blocks/0/settings/hyperparameters/learningRate is nan" in result.stderr


def test_assignments_keep_other_keys_and_values_of_a_flow() -> None:
    flow = {"settings": {1: math.inf}}
    assert apply_assignments(flow, ["name=x"]) == {"settings": {1: math.inf}, "name": "x"}
