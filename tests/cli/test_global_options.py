"""Options that every command accepts: output formats, fields, profiles, tracebacks, colors."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import click
import msgspec
import pytest

from runyard.cli import output
from runyard.cli.fields import list_fields, select_fields
from runyard.cli.global_options import GlobalOptions, choose_color, split_global_options
from runyard.cli.progress import ProgressLine
from tests.support.commands import Runyard
from vi.api.resources.runs.responses import Run, RunMetadata, RunProgress, RunStatus
from vi.api.responses import ConditionKind, ResourceCondition

KEY = "dtvi_" + "k" * 98


@pytest.mark.parametrize(
    ("arguments", "options", "others"),
    [
        (["runs", "list"], GlobalOptions(), ["runs", "list"]),
        (["-q", "runs", "list"], GlobalOptions(format="quiet"), ["runs", "list"]),
        (["runs", "list", "--quiet"], GlobalOptions(format="quiet"), ["runs", "list"]),
        (["runs", "--format", "agent", "ls"], GlobalOptions(format="agent"), ["runs", "ls"]),
        (["runs", "ls", "--format=json"], GlobalOptions(format="json"), ["runs", "ls"]),
        (["env", "--debug"], GlobalOptions(is_debug=True), ["env"]),
        (["--profile", "lab", "env"], GlobalOptions(profile="lab"), ["env"]),
        (["--ca", "/ca.pem", "env"], GlobalOptions(ca="/ca.pem"), ["env"]),
        (["env", "--ca=/ca.pem"], GlobalOptions(ca="/ca.pem"), ["env"]),
        (["env", "--json=a, b"], GlobalOptions(fields=("a", "b")), ["env", "--json"]),
        (["env", "--json", "a,b"], GlobalOptions(fields=("a", "b")), ["env", "--json"]),
        (["env", "--json="], GlobalOptions(fields=()), ["env", "--json"]),
        (["runs", "get", "--json", "r-1"], GlobalOptions(), ["runs", "get", "--json", "r-1"]),
        (["x", "--", "-q", "--debug"], GlobalOptions(), ["x", "--", "-q", "--debug"]),
        (
            ["datasets", "import", "p", "--format", "coco"],
            GlobalOptions(),
            ["datasets", "import", "p", "--format", "coco"],
        ),
    ],
)
def test_global_options_are_taken_out_of_the_arguments(
    arguments: list[str], options: GlobalOptions, others: list[str]
) -> None:
    assert split_global_options(arguments) == (options, others)


@pytest.mark.parametrize("arguments", [["--format", "xml"], ["--format"], ["--profile"], ["--ca"]])
def test_a_global_option_with_a_missing_or_unknown_value_is_wrong_usage(
    runyard: Runyard, arguments: list[str]
) -> None:
    result = runyard("config", "show", *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_agents_get_tabs_and_quiet_prints_the_first_column(runyard: Runyard) -> None:
    table = runyard("config", "show", "--format", "agent").stdout.splitlines()
    assert table[0] == "SETTING\tVALUE\tFROM\tMEANING"
    assert all(line.count("\t") == 3 for line in table)
    assert runyard("config", "show", "-q").stdout.splitlines()[0] == "data_dir"
    assert json.loads(runyard("config", "show", "--format", "json").stdout)["settings"]
    assert runyard("config", "show", "--format", "human").stdout.startswith("SETTING  ")


def make_run() -> Run:
    return Run(
        run_id="r-1",
        status=RunStatus(
            conditions=[ResourceCondition(condition=ConditionKind.RUNNING, reason="Training")],
            progress=RunProgress(step=3, total_steps=9, metric_name="iou", metric=0.5),
        ),
        metadata=RunMetadata(attributes={"owner": "kim"}),
    )


def test_fields_are_short_names_or_paths_of_the_document() -> None:
    fields = ["id", "condition", "metric.iou", "metric.f1", "status.progress.step", "attributes"]
    assert select_fields(make_run(), fields) == {
        "id": "r-1",
        "condition": "Running",
        "metric.iou": 0.5,
        "metric.f1": None,
        "status.progress.step": 3,
        "attributes": {"owner": "kim"},
    }
    listed = select_fields({"items": [make_run(), Run()]}, ["id", "metadata.attributes.owner"])
    assert listed["items"][0]["metadata.attributes.owner"] == "kim"
    assert listed["items"][1] == {"id": "", "metadata.attributes.owner": None}
    assert select_fields({"items": []}, ["anything"]) == {"items": []}


def test_an_unknown_field_is_answered_with_the_closest_one() -> None:
    with pytest.raises(click.UsageError, match=r"no field 'condtion'.*Did you mean 'condition'"):
        select_fields({"items": [make_run()]}, ["condtion"])
    with pytest.raises(click.UsageError, match=r"no field 'etag\.x'"):
        select_fields(make_run(), ["etag.x"])


def test_the_fields_of_a_document_without_values_are_listed_too() -> None:
    names = list_fields({"items": [Run()]})
    assert names[:3] == ["id", "name", "condition"]
    assert {"runId", "status.progress.secondsLeft", "spec.resumeFrom.step"} <= set(names)
    assert select_fields(Run(), names).keys() == set(names)


def test_a_command_prints_the_fields(runyard: Runyard) -> None:
    shown = runyard("config", "show", "--json=name,source")
    assert set(json.loads(shown.stdout)["settings"][0]) == {"name", "source"}
    assert runyard("config", "show", "--json=").stdout.split() == [
        "name",
        "value",
        "source",
        "help",
    ]
    wrong = runyard("config", "show", "--json=nam")
    assert wrong.exit_code == 2 and "Did you mean 'name'?" in wrong.stderr


@pytest.mark.parametrize(
    ("environ", "color"),
    [
        ({}, None),
        ({"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, False),
        ({"NO_COLOR": ""}, None),
        ({"CLICOLOR_FORCE": "1"}, True),
        ({"CLICOLOR_FORCE": "0"}, None),
    ],
)
def test_colors_follow_the_variables(environ: dict[str, str], color: bool | None) -> None:
    assert choose_color(environ) is color


def test_colors_can_be_forced_without_a_terminal(
    runyard: Runyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[" not in runyard("config", "show").stdout
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    assert "\x1b[1m" in runyard("config", "show").stdout


def test_progress_can_be_disabled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNYARD_NO_PROGRESS", "1")
    with ProgressLine() as line:
        line.update(make_run())
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("RUNYARD_NO_PROGRESS")
    with ProgressLine() as line:
        line.update(make_run())
    assert "Running" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_and_its_traceback_is_kept(
    runyard: Runyard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_value: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("runyard.cli.environment.print_json", fail)
    result = runyard("env", "--json")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert "unexpected KeyError" in result.stderr and "runyard env" in result.stderr
    (kept,) = tmp_path.glob("runyard-*.txt")
    assert "KeyError: 'oops'" in kept.read_text()
    assert isinstance(runyard("env", "--json", "--debug").exception, KeyError)


def test_debug_prints_the_traceback_of_an_expected_error(
    runyard: Runyard, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("runs", "list", "--data-dir", "no-such-folder")
    assert "Traceback" not in runyard(*arguments).stderr
    result = runyard(*arguments, "--debug")
    assert result.exit_code == 5
    assert "Traceback" in result.stderr


def test_an_unknown_command_is_answered_with_the_closest_and_the_valid_ones(
    runyard: Runyard,
) -> None:
    for arguments, closest, valid in (
        (["rums"], "runs", "datasets"),
        (["runs", "crate"], "create", "compare"),
    ):
        result = runyard(*arguments)
        assert result.exit_code == 2
        assert f"Did you mean '{closest}'?" in result.stderr
        assert valid in result.stderr.splitlines()[-1]


def test_ls_and_rm_are_aliases(runyard: Runyard) -> None:
    assert runyard("runs", "ls", "--help").exit_code == 0
    assert "Delete runs" in runyard("runs", "rm", "--help").stdout
    assert "Delete a base model" in runyard("models", "rm", "--help").stdout
    assert runyard("keys", "rm", "--help").exit_code == 2  # keys are revoked, not deleted


def test_env_prints_versions_and_no_values_of_variables(
    runyard: Runyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATATURE_VI_SECRET_KEY", KEY)
    shown = runyard("env").stdout
    assert "commit" in shown and "msgspec" in shown and "DATATURE_VI_SECRET_KEY" in shown
    assert KEY not in shown
    document = json.loads(runyard("env", "--json").stdout)
    assert document["packages"]["msgspec"] == msgspec.__version__


@pytest.fixture
def profile(runyard: Runyard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a profile named lab."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    values = {"endpoint": "http://lab.test:1", "organization_id": "lab", "secret_key": KEY}
    added = runyard("profiles", "add", "lab", "-", stdin=json.dumps(values))
    assert added.exit_code == 0, added.stderr
    return tmp_path / "config" / "runyard" / "profiles" / "lab.json"


def test_a_profile_is_saved_listed_used_and_deleted(
    runyard: Runyard, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(profile.stat().st_mode) == 0o600
    again = runyard("profiles", "add", "lab", str(profile))
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    listed = runyard("profiles", "list", "--profile", "lab").stdout
    assert "http://lab.test:1" in listed and "*" in listed and KEY not in listed
    monkeypatch.setenv("DATATURE_VI_API_ENDPOINT", "http://other.test")
    monkeypatch.setenv("RUNYARD_PROFILE", "lab")
    origin = runyard("config", "show", "--origin").stdout
    assert "http://lab.test:1" in origin and str(profile) in origin and KEY not in origin
    monkeypatch.delenv("RUNYARD_PROFILE")
    other = runyard("config", "show", "--origin").stdout
    assert "http://other.test" in other and "DATATURE_VI_API_ENDPOINT" in other
    assert runyard("profiles", "rm", "lab").exit_code == 0
    missing = runyard("runs", "list", "--profile", "lab")
    assert missing.exit_code == 2 and "there is no profile 'lab'" in missing.stderr


def test_a_profile_keeps_the_certificates_to_trust(
    runyard: Runyard, profile: Path, tmp_path: Path
) -> None:
    added = runyard("--ca", "ca.pem", "profiles", "add", "lab", str(profile), "--overwrite")
    assert added.exit_code == 0, added.stderr
    assert json.loads(profile.read_text())["ca"] == str(tmp_path / "ca.pem")
    # Saved again without the option, it keeps them.
    assert runyard("profiles", "add", "copy", str(profile)).exit_code == 0
    assert json.loads(profile.with_name("copy.json").read_text())["ca"] == str(tmp_path / "ca.pem")


@pytest.mark.parametrize("name", ["../lab", "", "a b", "x" * 65])
def test_a_profile_cannot_name_another_file(runyard: Runyard, profile: Path, name: str) -> None:
    result = runyard("profiles", "add", name, str(profile))
    assert result.exit_code == 2 and "malformed" in result.stderr


def test_a_profile_needs_all_three_values(runyard: Runyard, profile: Path) -> None:
    result = runyard("profiles", "add", "x", "-", stdin='{"endpoint": "http://a"}')
    assert result.exit_code == 2
    assert "organization_id" in result.stderr


def test_the_request_id_is_part_of_the_message() -> None:
    import vi.errors
    from runyard.cli.failures import to_command_failure

    failure = to_command_failure(
        vi.errors.ViServerError("it broke", details={"code": "Internal"}, trace_id="8f2c")
    )
    assert failure is not None
    assert failure.message.splitlines()[-1] == "(code Internal, request 8f2c)"


def test_a_second_interrupt_ends_a_command_that_tidies_up() -> None:
    script = """
import sys, time, click
from runyard.cli import main
command = click.Command("slow", callback=lambda: None)
def run():
    try:
        print("started", flush=True); time.sleep(60)
    finally:
        print("tidying", flush=True); time.sleep(60)
command.callback = run
main.LazyGroup.get_command = lambda self, ctx, name: command
main.COMMANDS["slow"] = main.COMMANDS["env"]
sys.argv = ["runyard", "slow"]
main.main()
"""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environ, text=True
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "tidying\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT


def test_a_table_for_people_on_stderr_keeps_its_form(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(click.Command("x"), obj=GlobalOptions(format="quiet"))
    with context.scope():
        output.print_table(("A", "B"), [("1", "2")], err=True)
        output.print_table(("A", "B"), [("1", "2")])
    captured = capsys.readouterr()
    assert captured.out == "1\n" and captured.err == "A  B\n1  2\n"
