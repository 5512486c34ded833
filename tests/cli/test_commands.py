"""Commands on runs, flows and models against a real server."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.support.commands import Runyard
from tests.support.instance import Instance, LongRuns
from vi.api.resources.runs.responses import Run


@pytest.fixture
def data_dir(instance: Instance) -> str:
    return str(instance.data_dir)


@pytest.fixture
def waiting_run(runyard: Runyard, data_dir: str, long_runs: LongRuns) -> str:
    """A run that waits behind another one."""
    return long_runs.pending().run_id


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_created_run_is_listed_shown_killed_and_deleted(
    runyard: Runyard, data_dir: str, long_runs: LongRuns
) -> None:
    long_runs.running()  # holds the only slot, so the new run waits
    arguments = (
        "--set",
        "name=typed",
        "--set",
        "vi-model.hyperparameters.epochs=2",
        "--attribute",
        "made=by-hand",
    )
    run_id = runyard("runs", "create", *arguments, "--data-dir", data_dir).stdout.strip()

    listed = document(
        runyard("runs", "list", "--attribute", "made=by-hand", "--json", "--data-dir", data_dir)
    )
    assert [run["runId"] for run in listed["items"]] == [run_id]

    run = document(runyard("runs", "get", run_id, "--json", "--data-dir", data_dir))
    assert run["kind"] == "Run"
    assert run["spec"]["flow"]["name"] == "typed"
    assert run["metadata"]["attributes"] == {"made": "by-hand"}

    shown = runyard("runs", "get", run_id, "--data-dir", data_dir).stdout
    assert "Condition" in shown and "Pending" in shown and "made=by-hand" in shown

    killed = runyard("runs", "kill", run_id, "--wait", "--data-dir", data_dir)
    assert (killed.exit_code, killed.stdout) == (0, f"{run_id} has ended: Cancelled\n")

    waited = runyard("runs", "wait", run_id, "--data-dir", data_dir)
    assert waited.exit_code == 3
    assert f"run {run_id} ended in Cancelled" in waited.stderr

    deleted = runyard("runs", "delete", "--yes", run_id, "--data-dir", data_dir)
    assert deleted.stdout == f"deleted {run_id}\n"
    assert runyard("runs", "get", run_id, "--data-dir", data_dir).exit_code == 4


def test_runs_are_named_tagged_filtered_sorted_and_counted(
    runyard: Runyard, data_dir: str, long_runs: LongRuns
) -> None:
    long_runs.running()  # holds the only slot
    here = ("--data-dir", data_dir)
    made = [
        runyard("runs", "create", "--name", name, *here).stdout.strip()
        for name in ("named b", "named a")
    ]
    mine = ("--filter", 'name:"named "')
    tagged = document(runyard("runs", "tag", *mine, "--set", "group=cli", "--yes", "--json", *here))
    assert {item["outcome"] for item in tagged["items"]} == {"Tagged"}
    chosen = ("--filter", "group=cli condition:pending")
    listed = document(runyard("runs", "list", *chosen, "--sort", "name", "--json", *here))
    assert [run["runId"] for run in listed["items"]] == made[::-1]
    counted = document(runyard("runs", "count", *chosen, "--json", *here))
    assert (counted["total"], counted["conditions"]["Pending"]) == (2, 2)
    assert "total      2" in runyard("runs", "count", *chosen, *here).stdout
    renamed = runyard("runs", "rename", made[0], "named c", *here).stdout
    assert renamed == f"{made[0]} is now named named c\n"
    removed = runyard("runs", "tag", made[0], "--remove", "group", *here)
    assert "Tagged" in removed.stdout
    assert document(runyard("runs", "count", *chosen, "--json", *here))["total"] == 1
    wrong = runyard("runs", "list", "--filter", "conditon:Failed", *here)
    assert wrong.exit_code != 0 and "did you mean condition?" in wrong.stderr
    assert runyard("runs", "tag", made[0], *here).exit_code == 2
    assert runyard("runs", "delete", *mine, "--yes", *here).exit_code == 0


def test_a_run_with_an_explicit_id_is_started_once(
    runyard: Runyard, data_dir: str, long_runs: LongRuns
) -> None:
    long_runs.running()
    run_id = str(uuid.uuid4())
    for _ in range(2):
        result = runyard("runs", "create", "--run-id", run_id, "--data-dir", data_dir)
        assert result.stdout == f"{run_id}\n"
    runyard("runs", "kill", run_id, "--data-dir", data_dir)


def test_a_run_resumes_from_a_checkpoint_of_another_run(
    runyard: Runyard, data_dir: str, long_runs: LongRuns, finished_run: Run
) -> None:
    long_runs.running()  # holds the only slot
    source = finished_run.run_id
    arguments = ("--resume-from", f"{source}/best", "--json", "--data-dir", data_dir)
    run = document(runyard("runs", "create", *arguments))
    origin = run["spec"]["resumeFrom"]
    assert origin["runId"] == source and origin["step"] > 0
    shown = runyard("runs", "get", run["runId"], "--data-dir", data_dir).stdout
    assert f"{source}/{origin['checkpoint']}, step {origin['step']}" in shown
    latest = document(
        runyard("runs", "create", "--resume-from", source, "--json", "--data-dir", data_dir)
    )
    for made in (run, latest):
        runyard("runs", "delete", "--yes", made["runId"], "--data-dir", data_dir)
    refused = runyard(
        "runs", "create", "--resume-from", f"{source}/epoch-999", "--data-dir", data_dir
    )
    assert refused.exit_code == 4
    assert "checkpoint 'epoch-999'" in refused.stderr


def test_waiting_times_out_with_a_message(
    runyard: Runyard, data_dir: str, waiting_run: str
) -> None:
    result = runyard("runs", "wait", waiting_run, "--timeout", "0.2", "--data-dir", data_dir)
    assert result.exit_code == 7
    assert "did not end within 0.2 s" in result.stderr


def test_a_run_in_the_table_has_its_condition(
    runyard: Runyard, data_dir: str, waiting_run: str
) -> None:
    lines = runyard(
        "runs", "list", "--condition", "pending", "--data-dir", data_dir
    ).stdout.splitlines()
    assert lines[0].split()[:2] == ["RUN", "CONDITION"]
    assert waiting_run in [line.split()[0] for line in lines[1:]]
    assert {line.split()[1] for line in lines[1:]} == {"Pending"}


def test_an_invalid_flow_is_rejected_with_all_its_problems(runyard: Runyard, data_dir: str) -> None:
    bad = ("--set", "vi-model.hyperparameters.epochs=0", "--set", "settings.seeds=3")
    result = runyard("runs", "create", *bad, "--data-dir", data_dir)
    assert result.exit_code == 1
    assert "epochs" in result.stderr and "seeds" in result.stderr
    assert "Traceback" not in result.stderr


def test_flows_are_saved_listed_shown_and_deleted(runyard: Runyard, data_dir: str) -> None:
    Path("shelf.yaml").write_text(
        "name: shelf\nblocks:\n- {block: vi-dataset, settings: {datasetId: digits}}\n"
    )
    flow_id = runyard("flows", "create", "shelf.yaml", "--data-dir", data_dir).stdout.strip()

    assert flow_id in runyard("flows", "list", "--data-dir", data_dir).stdout
    flow = document(runyard("flows", "get", flow_id, "--json", "--data-dir", data_dir))
    assert (flow["kind"], flow["spec"]["name"]) == ("Flow", "shelf")

    changed = ("--set", "vi-model.hyperparameters.epochs=7", "--json", "--data-dir", data_dir)
    plan = document(runyard("flows", "plan", flow_id, *changed))
    assert plan["blocks"][2]["settings"]["hyperparameters"]["epochs"] == 7
    assert (
        runyard("flows", "check", flow_id, "--data-dir", data_dir).stdout == "shelf: no problems\n"
    )

    assert runyard("flows", "rm", flow_id, "--yes", "--data-dir", data_dir).exit_code == 0
    assert runyard("flows", "get", flow_id, "--data-dir", data_dir).exit_code == 4


def test_the_verdict_on_each_accelerator_is_shown(runyard: Runyard, data_dir: str) -> None:
    flow_id = runyard("flows", "create", "--data-dir", data_dir).stdout.strip()
    found = document(runyard("flows", "accelerators", flow_id, "--json", "--data-dir", data_dir))
    assert [item["configurations"][0]["action"] for item in found["items"]] == ["Allow"]
    heading, row = runyard(
        "flows", "accelerators", flow_id, "--data-dir", data_dir
    ).stdout.splitlines()
    assert heading.split() == ["ACCELERATOR", "COUNT", "MEMORY", "VERDICT", "REASON"]
    assert row.split()[:2] == ["cpu", "1"]
    assert found["items"][0]["configurations"][0]["reason"] in row
    assert runyard("flows", "accelerators", "no-such-flow", "--data-dir", data_dir).exit_code == 4


@pytest.mark.parametrize(
    "command", [("runs", "get"), ("runs", "logs"), ("runs", "wait"), ("models", "list")]
)
def test_an_unknown_run_is_not_found(
    runyard: Runyard, data_dir: str, command: tuple[str, str]
) -> None:
    result = runyard(*command, "no-such-run", "--data-dir", data_dir)
    assert result.exit_code == 4
    assert "no-such-run" in result.stderr


def test_a_wrong_key_is_refused(
    runyard: Runyard, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (instance.environ | {"DATATURE_VI_SECRET_KEY": "dtvi_" + "a" * 98}).items():
        monkeypatch.setenv(name, value)
    result = runyard("runs", "list")
    assert result.exit_code == 6
    assert "a" * 20 not in result.stderr


def test_the_variables_of_the_sdk_are_enough(
    runyard: Runyard, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in instance.environ.items():
        monkeypatch.setenv(name, value)
    assert runyard("runs", "list", "--limit", "1", "--json").exit_code == 0


def test_a_second_up_over_the_same_folder_is_refused(runyard: Runyard, instance: Instance) -> None:
    result = runyard("up", "--port", "0", "--data-dir", str(instance.data_dir))
    assert result.exit_code == 1
    assert (
        f"already running with the data folder {instance.data_dir}, at {instance.endpoint}"
        in result.stderr
    )


def test_the_doctor_sees_the_instance(
    runyard: Runyard, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.cli.instance import doctor

    monkeypatch.setattr(
        doctor, "query_torch", lambda: {"version": "2", "cuda": [], "mps": False, "threads": 1}
    )
    findings = document(runyard("doctor", "--json", "--data-dir", str(instance.data_dir)))[
        "findings"
    ]
    seen = {finding["name"]: (finding["state"], finding["seen"]) for finding in findings}
    assert seen["instance"] == ("ok", f"up at {instance.endpoint}")


def test_the_key_is_in_no_log(instance: Instance) -> None:
    logs = sorted((instance.data_dir / "logs").iterdir())
    assert [
        log.name for log in logs if instance.secret_key in log.read_text(errors="replace")
    ] == []
    assert "server.log" in [log.name for log in logs]


def test_only_the_owner_can_read_the_credentials(instance: Instance) -> None:
    assert instance.credentials_file.stat().st_mode & 0o777 == 0o600


def test_reading_runs_loads_no_rich_and_no_torch(instance: Instance) -> None:
    script = (
        "import sys; from runyard.cli.main import cli; cli(['runs', 'list'], "
        "standalone_mode=False)\n"
        "print('loaded', *[n for n in ('rich', 'torch', 'PIL', 'yaml', 'granian') if n in "
        "sys.modules])"
    )
    environ = {**os.environ, **instance.environ}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded"


def test_logs_metrics_and_models_of_a_finished_run(
    runyard: Runyard, data_dir: str, finished_run: Run
) -> None:
    run_id = finished_run.run_id
    logs = runyard("runs", "logs", run_id, "--json", "--data-dir", data_dir).stdout.splitlines()
    assert [json.loads(line)["number"] for line in logs] == list(range(1, len(logs) + 1))
    tail = runyard("runs", "logs", run_id, "--tail", "2", "--data-dir", data_dir).stdout
    assert len(tail.splitlines()) == 2
    search = ("--search", "^plan (resolved|made)", "--json", "--data-dir", data_dir)
    (line,) = runyard("runs", "logs", run_id, *search).stdout.splitlines()
    assert json.loads(line)["text"].startswith("plan resolved")
    late = ("--since", "2030-01-01", "--data-dir", data_dir)
    assert runyard("runs", "logs", run_id, *late).stdout == ""
    failed = runyard("runs", "logs", run_id, "--failed", "--data-dir", data_dir)
    assert (failed.exit_code, "no attempt of run" in failed.stderr) == (1, True)

    arguments = ("runs", "samples", run_id, "--data-dir", data_dir)
    samples = [json.loads(line) for line in runyard(*arguments, "--json").stdout.splitlines()]
    assert len(samples) == 20
    scores = [sample["score"] for sample in samples]
    assert scores == sorted(scores)
    rows = runyard(*arguments, "--limit", "3").stdout.splitlines()
    assert (rows[0].split()[:3], len(rows)) == (["STEP", "INDEX", "SCORE"], 4)
    index = str(samples[0]["index"])
    runyard(*arguments, "--index", index, "--image", "sample.png")
    assert Path("sample.png").read_bytes().startswith(b"\x89PNG")

    points = runyard(
        "runs", "metrics", run_id, "--json", "--data-dir", data_dir
    ).stdout.splitlines()
    assert {"step", "values"} <= set(json.loads(points[0]))
    table = runyard(
        "runs", "metrics", run_id, "--name", "loss", "--last", "3", "--data-dir", data_dir
    ).stdout
    assert table.splitlines()[0].split() == ["STEP", "EPOCH", "loss"]
    assert len(table.splitlines()) == 4
    here = ("--keys", "loss", "--points", "3", "--data-dir", data_dir)
    [series] = runyard("runs", "metrics", run_id, *here, "--json").stdout.splitlines()
    course = json.loads(series)
    assert course["key"] == "loss"
    assert course["count"] == len(course["columns"]["last"]) <= 3
    rows = runyard("runs", "metrics", run_id, *here).stdout.splitlines()
    assert rows[1].split() == ["STEP", "EPOCH", "MIN", "MAX", "LAST"]
    assert len(rows) == 2 + course["count"]
    used = ("--keys", "system/memoryBytes", "--points", "9", "--data-dir", data_dir)
    [series] = runyard("runs", "metrics", run_id, *used, "--json").stdout.splitlines()
    assert min(json.loads(series)["columns"]["last"]) > 1 << 20
    events = [json.loads(line) for line in logs]
    assert not [
        line for line in events if line["stream"] == "events" and line["text"].startswith("step ")
    ]
    curve = runyard("runs", "metrics", run_id, "--keys", "loss", "--plot", "--data-dir", data_dir)
    assert len(curve.stdout.splitlines()) == 13

    checkpoints = document(runyard("models", "list", run_id, "--json", "--data-dir", data_dir))[
        "items"
    ]
    assert {checkpoint["runId"] for checkpoint in checkpoints} == {run_id}
    assert runyard("runs", "wait", run_id, "--data-dir", data_dir).exit_code == 0


def test_a_downloaded_model_answers_on_the_command_line(
    runyard: Runyard, data_dir: str, finished_run: Run
) -> None:
    from runyard.cli.instance.demo import load_held_out

    sample = load_held_out(finished_run.spec.flow)[0]
    sample.image.save("digit.png")
    folder = runyard(
        "models", "download", finished_run.run_id, "best", "--data-dir", data_dir
    ).stdout.strip()
    ask_model = runyard("models", "predict", folder, "digit.png", sample.question, "--json")
    answer = document(ask_model)
    assert answer["answer"].isdigit()
    assert answer["groundings"] == []
    by_run = runyard(
        "models",
        "predict",
        f"{finished_run.run_id}/best",
        "digit.png",
        sample.question,
        "--data-dir",
        data_dir,
    )
    assert by_run.stdout == f"{answer['answer']}\n"


def test_an_export_is_verified_and_one_with_other_answers_fails(
    runyard: Runyard, data_dir: str, finished_run: Run
) -> None:
    done = runyard(
        "models", "export", f"{finished_run.run_id}/best", "--out", "out", "--data-dir", data_dir
    )
    assert (done.exit_code, done.stdout) == (0, "out\n"), done.stderr
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert f"Replaying 0/{len(lines)}" in done.stderr
    assert ask_model(runyard, "out", finished_run) == ask_model(
        runyard, f"{finished_run.run_id}/best", finished_run, data_dir
    )

    [downloaded] = Path("models").glob("*/*/")
    stored = downloaded / "predictions.jsonl"
    stored.write_text("".join(json.dumps({**line, "raw": "no"}) + "\n" for line in lines[:2]))
    arguments = ("models", "export", str(downloaded), "--out", "other", "--json")
    refused = runyard(*arguments)
    assert refused.exit_code == 1
    assert "2 of 2 answers of the exported files differ from the stored ones" in refused.stderr
    assert not Path("other").exists()
    report = document(runyard(*arguments, "--tolerate", "1"))
    assert (report["path"], report["replayed"], report["different"], report["tolerated"]) == (
        "other",
        2,
        2,
        1,
    )
    report = document(runyard(*arguments, "--overwrite", "--no-replay"))
    assert (report["form"], report["replayed"]) == ("full", 0)


def ask_model(runyard: Runyard, model: str, run: Run, *data_dir: str) -> str:
    """Return the answer of a model about a held-out image."""
    from runyard.cli.instance.demo import load_held_out

    sample = load_held_out(run.spec.flow)[0]
    sample.image.save("digit.png")
    said = runyard(
        "models",
        "predict",
        model,
        "digit.png",
        sample.question,
        *(("--data-dir", *data_dir) * bool(data_dir)),
    )
    assert said.exit_code == 0, said.stderr
    return str(said.stdout)


def test_an_invalid_image_is_named(runyard: Runyard, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "text.png").write_text("no image")
    assert runyard("models", "predict", "model", "missing.png", "?").exit_code == 4
    result = runyard("models", "predict", "model", "text.png", "?")
    assert result.exit_code == 1
    assert "cannot read text.png as an image" in result.stderr


def test_a_photo_is_predicted_as_displayed(tmp_path: Path) -> None:
    from PIL import Image

    from runyard.cli.resources.models import _open_image

    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "photo.jpg", exif=exif)
    assert _open_image(tmp_path / "photo.jpg").size == (32, 64)


def test_a_missing_server_is_unreachable(runyard: Runyard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATATURE_VI_SECRET_KEY", "dtvi_" + "a" * 98)
    monkeypatch.setenv("DATATURE_VI_ORGANIZATION_ID", "org-1")
    monkeypatch.setenv("DATATURE_VI_API_ENDPOINT", "http://127.0.0.1:1/")
    result = runyard("runs", "list")
    assert result.exit_code == 5
    assert "runyard up" in result.stderr


def test_without_a_key_the_message_has_a_suggestion(runyard: Runyard) -> None:
    result = runyard("runs", "list")
    assert result.exit_code == 2
    assert "runyard up" in result.stderr and "--data-dir" in result.stderr


def test_a_data_folder_without_an_instance_is_unreachable(runyard: Runyard) -> None:
    result = runyard("runs", "list", "--data-dir", "nowhere")
    assert result.exit_code == 5
    assert "runyard up --data-dir nowhere" in result.stderr


def test_gc_finds_a_folder_without_a_run_and_removes_it(
    runyard: Runyard, data_dir: str, instance: Instance
) -> None:
    stray = instance.data_dir / "runs" / instance.organization_id / "stray"
    stray.mkdir(parents=True)
    checked = runyard("gc", "--check", "--json", "--data-dir", data_dir)
    assert (checked.exit_code, json.loads(checked.stdout)["foldersWithoutRuns"]) == (1, ["stray"])
    assert stray.is_dir()
    assert runyard("gc", "--data-dir", data_dir).exit_code == 0
    assert not stray.exists()
    checked = runyard("gc", "--check", "--data-dir", data_dir)
    assert checked.exit_code == 0, checked.stdout
    assert "agree" in checked.stdout


def test_many_runs_are_killed_and_deleted_with_one_command(
    runyard: Runyard, data_dir: str, long_runs: LongRuns
) -> None:
    long_runs.running()  # holds the only slot
    here, sweep = ("--data-dir", data_dir), uuid.uuid4().hex
    made = [
        runyard("runs", "create", "--attribute", f"sweep={sweep}", *here).stdout.strip()
        for _ in range(3)
    ]
    chosen = ("--attribute", f"sweep={sweep}")

    refused = runyard("runs", "kill", *chosen, *here)
    assert refused.exit_code == 2
    assert "try: --yes" in refused.stderr
    assert all(run_id in refused.stderr for run_id in made)  # the affected runs are shown first
    dry = document(runyard("runs", "kill", *chosen, "--dry-run", "--json", *here))
    assert {item["outcome"] for item in dry["items"]} == {"WouldKill"}
    assert {
        run["status"]["conditions"][-1]["condition"] for run in runs_of(runyard, chosen, here)
    } == {"Pending"}

    killed = document(
        runyard("runs", "kill", *chosen, "--yes", "--grace", "2.5", "--wait", "--json", *here)
    )
    assert {
        item["runId"]: (item["outcome"], item["condition"]) for item in killed["items"]
    } == dict.fromkeys(made, ("Killed", "Cancelled"))
    assert {run["spec"]["graceSeconds"] for run in runs_of(runyard, chosen, here)} == {2.5}
    nothing = runyard("runs", "kill", *chosen, *here)
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "no run matches\n")

    partly = runyard("runs", "delete", "--yes", made[0], "no-such-run", *here)
    assert partly.exit_code == 1
    lines = partly.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [made[0], "Deleted"],
        ["no-such-run", "Refused"],
    ]
    assert runyard("runs", "delete", "--yes", *chosen, *here).exit_code == 0
    assert runs_of(runyard, chosen, here) == []


def runs_of(
    runyard: Runyard, chosen: tuple[str, ...], here: tuple[str, ...]
) -> list[dict[str, Any]]:
    return list(document(runyard("runs", "list", *chosen, "--json", *here))["items"])


@pytest.mark.parametrize("verb", ["kill", "delete"])
@pytest.mark.parametrize(
    "named",
    [
        (),
        ("a", "--flow", "f"),
        ("--all", "--condition", "Failed"),
        ("a", "--all"),
        ("--attribute", "x"),
    ],
)
def test_runs_are_named_in_exactly_one_way(
    runyard: Runyard, verb: str, named: tuple[str, ...]
) -> None:
    result = runyard("runs", verb, "--yes", *named)
    assert result.exit_code == 2
    assert (
        "expected: exactly one of run ids" in result.stderr
        or "expected: KEY=VALUE" in result.stderr
    )


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_on_a_terminal_confirmation_is_required(
    runyard: Runyard,
    data_dir: str,
    long_runs: LongRuns,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
) -> None:
    long_runs.running()
    here = ("--data-dir", data_dir)
    made = [runyard("runs", "create", *here).stdout.strip() for _ in range(2)]
    monkeypatch.setattr("runyard.cli.resources.selection.has_terminal", lambda: True)
    result = runyard("runs", "delete", *made, *here, stdin=answer)
    assert "Delete 2 runs with all logs, metrics and checkpoints?" in result.stderr
    assert result.exit_code == code
    left = [run_id for run_id in made if runyard("runs", "get", run_id, *here).exit_code == 0]
    assert left == ([] if code == 0 else made)
    if left:
        runyard("runs", "delete", "--yes", *left, *here)
