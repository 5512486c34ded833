"""Plain text and JSON output of commands."""

import json
from pathlib import Path

import pytest

from runyard.cli.output import (
    format_age,
    format_duration,
    format_number,
    format_size,
    print_fields,
    print_json,
    print_table,
    to_single_line,
)
from vi.api.resources.runs.responses import Run


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0s"), (59, "59s"), (65, "1m 05s"), (12000, "3h 20m"), (352800, "4d 02h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_age_counts_from_now() -> None:
    assert format_age(1_000_000, now=lambda: 1090.0) == "1m 30s"


def test_a_time_in_the_future_has_no_negative_age() -> None:
    assert format_age(2_000_000, now=lambda: 1090.0) == "0s"


@pytest.mark.parametrize(
    ("count", "words"), [(12, "12 B"), (1536, "1.5 KiB"), (5 << 40, "5120.0 GiB")]
)
def test_sizes(count: int, words: str) -> None:
    assert format_size(count) == words


def test_a_missing_number_is_printed_as_nothing() -> None:
    assert (format_number(None), format_number(0.123456)) == ("", "0.1235")


def test_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("RUN", "STATE"), [("a", "Running"), ("long-id", None)])
    assert capsys.readouterr().out.splitlines() == [
        "RUN      STATE",
        "a        Running",
        "long-id  ",
    ]


def test_fields_without_a_value_are_omitted(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("Run", "a"), ("Loss", ""), ("Step", 0), ("Project", None)])
    assert capsys.readouterr().out.splitlines() == ["Run   a", "Step  0"]


def test_text_from_a_run_cannot_control_the_terminal() -> None:
    assert to_single_line("a\x1b[2Jb\nc") == "a [2Jb c"


def test_json_is_the_api_response(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(Run(run_id="r", organization_id="o"))
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["runId"], shown["workspaceId"]) == ("Run", "r", "o")


def test_a_path_in_a_document_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": Path("/a/b")})
    assert json.loads(capsys.readouterr().out) == {"path": "/a/b"}
