"""The published client, in its own environment, against a real instance: scripts work unchanged.

``published_client.py`` makes the calls there; each test here checks the result of one.
"""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import vi
from vi.api.resources.runs.responses import Run

Report = dict[str, dict[str, dict[str, Any]]]
PROGRAM = Path(__file__).with_name("published_client.py")
PROGRAM_TIMEOUT_S = 120


@pytest.fixture(scope="session")
def published_python(repository: Path) -> Path:
    """Return the interpreter that has the published client."""
    with FileLock(repository / ".venv" / ".vi-sdk.lock"):
        subprocess.run([repository / "scripts" / "setup-vi-sdk"], check=True, timeout=300)
    return repository / ".venv-vi-sdk" / "bin" / "python"


@pytest.fixture(scope="module")
def ids(
    client: vi.Client,
    finished_run: Run,
    long_runs: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Inputs of the program: a finished and a running run, and a well-formed unknown key."""
    return {
        "finished": finished_run.run_id,
        "running": long_runs.running().run_id,
        "firstModel": next(iter(client.models.list(finished_run.run_id).all_items())).model_id,
        "wrongKey": "dtvi_" + "a" * 98,
        "folder": str(tmp_path_factory.mktemp("published")),
    }


@pytest.fixture(scope="module")
def report(instance: Any, published_python: Path, ids: dict[str, str]) -> Report:
    """Return the output of the program."""
    done = subprocess.run(
        [published_python, PROGRAM],
        input=json.dumps(ids),
        env={**os.environ, **instance.environ, "VI_ENABLE_FILE": "false"},
        cwd=ids["folder"],
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: Report = json.loads(done.stdout)
    return seen


def value(report: Report, part: str, call: str) -> Any:
    """Return the result of a call; fail with the error that it raised."""
    assert "value" in report[part][call], report[part][call]
    return report[part][call]["value"]


def test_the_other_client_really_is_the_published_one(report: Report) -> None:
    assert report["version"] == "0.1.0b7"  # type: ignore[comparison-overlap]


def test_flows_are_created_from_a_dict(report: Report, instance: Any) -> None:
    flow = value(report, "flows", "create from a dict")
    assert (flow["name"], flow["schema"], flow["blocks"]) == ("Quick Training", "v1", [])
    assert flow["attributes"] == {"team": "vision"}
    assert flow["organization"] == instance.organization_id


def test_flows_are_created_from_a_spec(report: Report) -> None:
    flow = value(report, "flows", "create from a spec")
    assert flow["name"] == "Shelves"
    assert flow["settings"]["seed"] == 7
    assert [block[0] for block in flow["blocks"]] == ["vi-dataset"]
    assert flow["blocks"][0][1]["datasetId"] == "digits"


def test_a_flow_reads_back_as_it_was_created(report: Report) -> None:
    assert value(report, "flows", "get") == value(report, "flows", "create from a spec")


def test_flows_are_listed_and_paged(report: Report) -> None:
    made = {
        value(report, "flows", "create from a dict")["id"],
        value(report, "flows", "create from a spec")["id"],
    }
    assert made <= {flow["id"] for flow in value(report, "flows", "list")}
    over_pages = value(report, "flows", "list over pages")
    assert made <= set(over_pages)
    assert len(over_pages) == len(set(over_pages))


def test_updating_a_flow_changes_what_was_given_and_keeps_the_rest(report: Report) -> None:
    flow = value(report, "flows", "update")
    assert flow["name"] == "Renamed"
    assert flow["attributes"] == {"team": "vision", "stage": "two"}
    assert value(report, "flows", "get after update") == flow


def test_the_simple_list_of_flows_names_their_ids(report: Report) -> None:
    listed = {flow["flowId"] for flow in value(report, "flows", "list simple")}
    assert value(report, "flows", "create from a dict")["id"] in listed


def test_the_default_flow_fits_into_the_memory_of_this_machine(report: Report) -> None:
    (found,) = value(report, "flows", "accelerators of tiny")
    assert (found["enabled"], found["labels"]["accelerator"], found["resources"]["count"]) == (
        True,
        "cpu",
        1,
    )
    memory_gib = found["resources"]["memoryGiB"]
    ((count, action, reason),) = found["verdicts"]
    assert (count, action) == (1, "Allow")
    assert f"{memory_gib:.1f} GiB available" in reason


def test_a_model_that_needs_more_than_a_terabyte_is_denied_with_a_reason(report: Report) -> None:
    (found,) = value(report, "flows", "accelerators of a large model")
    ((_, action, reason),) = found["verdicts"]
    assert action == "Deny"
    assert "estimated from 72B parameters" in reason


def test_accelerators_of_no_flow_are_not_found_and_are_not_set(report: Report) -> None:
    assert report["flows"]["accelerators of nothing"]["error"] == "ViNotFoundError"
    assert report["flows"]["update accelerators"]["status"] == 405


def test_a_deleted_flow_is_gone(report: Report) -> None:
    assert value(report, "flows", "delete") == value(report, "flows", "create from a spec")["id"]
    assert report["flows"]["get after delete"]["error"] == "ViNotFoundError"


def test_a_run_is_created_by_flow_id_with_its_training_project(
    report: Report, instance: Any
) -> None:
    run = value(report, "runs", "create by flow id")
    assert run["flowName"] == "Quick Training"
    assert run["trainingProject"]
    assert run["conditions"] == ["Pending"]
    assert run["organization"] == instance.organization_id


def test_a_run_is_created_from_a_spec(report: Report) -> None:
    run = value(report, "runs", "create from a spec")
    assert run["flowName"] == "By spec"
    assert run["conditions"] == ["Pending"]


def test_a_run_is_created_from_a_dict_with_attributes(report: Report) -> None:
    run = value(report, "runs", "create from a dict")
    assert run["flowName"] == "Quick Training"
    assert run["attributes"] == {"experiment": "baseline"}


def test_missing_flow_fields_are_filled_so_that_the_response_decodes(report: Report) -> None:
    assert value(report, "runs", "create from an empty dict")["conditions"] == ["Pending"]
    assert "vi-dataset" in value(report, "runs", "start")["blocks"]


def test_runs_in_every_state_are_decoded_correctly(report: Report, ids: dict[str, str]) -> None:
    assert value(report, "runs", "get finished")["conditions"][-1] == "Succeeded"
    assert value(report, "runs", "get finished")["id"] == ids["finished"]
    assert value(report, "runs", "get running")["conditions"] == ["Pending", "Running"]
    assert value(report, "runs", "get pending") == value(report, "runs", "create from a spec")


def test_the_list_has_the_newest_run_first(report: Report) -> None:
    assert value(report, "runs", "list")[0] == value(report, "runs", "start")["id"]


def test_paging_through_runs_names_each_once(report: Report, ids: dict[str, str]) -> None:
    pages = value(report, "runs", "list over pages")
    assert all(len(page) == 2 for page in pages[:-1])
    listed = [run_id for page in pages for run_id in page]
    assert len(listed) == len(set(listed))
    assert {ids["finished"], ids["running"]} <= set(listed)
    assert value(report, "runs", "list all items") == listed


def test_the_simple_list_of_runs_names_their_ids(report: Report, ids: dict[str, str]) -> None:
    listed = {run["runId"] for run in value(report, "runs", "list simple")}
    assert value(report, "runs", "start")["id"] in listed


def test_attributes_of_a_run_are_updated(report: Report) -> None:
    assert value(report, "runs", "update attributes")["attributes"] == {"experiment": "two"}


def test_the_training_project_is_updated_in_snake_case_too(report: Report) -> None:
    project = value(report, "runs", "create by flow id")["trainingProject"]
    assert value(report, "runs", "update training project")["trainingProject"] == project


def test_an_empty_update_changes_nothing(report: Report) -> None:
    assert value(report, "runs", "update nothing") == value(
        report, "runs", "update training project"
    )


def test_logs_are_read_and_continue_where_they_stopped(report: Report) -> None:
    first = value(report, "runs", "logs")
    assert [line["number"] for line in first["items"]] == [1, 2, 3]
    following = value(report, "runs", "logs continue")
    assert [line["number"] for line in following["items"]] == [4, 5, 6]


def test_a_pending_run_is_killed_at_once(report: Report) -> None:
    assert isinstance(value(report, "runs", "kill pending")["killedAt"], int)
    assert value(report, "runs", "get after kill")["conditions"] == ["Pending", "Cancelled"]


def test_a_running_run_is_killed(report: Report) -> None:
    assert isinstance(value(report, "runs", "kill running")["killedAt"], int)
    assert value(report, "runs", "wait for the killed run")["conditions"][-1] == "Cancelled"


def test_a_deleted_run_is_gone(report: Report) -> None:
    assert value(report, "runs", "delete") == value(report, "runs", "create from a spec")["id"]
    assert report["runs"]["get after delete"]["error"] == "ViNotFoundError"
    assert report["runs"]["delete again"]["error"] == "ViNotFoundError"


def test_models_are_listed_oldest_first(
    report: Report, client: vi.Client, ids: dict[str, str]
) -> None:
    listed = value(report, "models", "list")
    assert [model["id"] for model in listed] == value(report, "models", "list over pages")
    assert [model["id"] for model in listed] == [
        m.model_id for m in client.models.list(ids["finished"]).all_items()
    ]
    epochs = [model["epoch"] for model in listed]
    assert epochs == sorted(epochs)
    assert all(isinstance(epoch, int) for epoch in epochs)


def test_the_default_model_is_the_newest(report: Report) -> None:
    assert value(report, "models", "get latest") == value(report, "models", "list")[-1]


def test_a_model_is_fetched_by_name(report: Report, ids: dict[str, str]) -> None:
    assert value(report, "models", "get by name")["id"] == ids["firstModel"]
    assert value(report, "models", "get by name")["metrics"]


def test_a_link_is_returned_only_on_request(report: Report) -> None:
    assert value(report, "models", "get latest")["url"] is None
    assert value(report, "models", "get with contents")["url"].startswith("http")


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("call", ["download latest", "download by name"])
def test_it_downloads_the_same_as_our_client(
    report: Report, client: vi.Client, ids: dict[str, str], call: str, tmp_path: Path
) -> None:
    theirs = Path(value(report, "models", call)["model"])
    name = ids["firstModel"] if call == "download by name" else None
    ours = client.models.download(
        ids["finished"], ckpt=name, save_dir=tmp_path, show_progress=False
    )
    assert contents(theirs) == contents(ours.model_path)
    assert (theirs / "model.safetensors").is_file()
    assert json.loads((theirs / "run.json").read_text())["runId"] == ids["finished"]


@pytest.mark.parametrize(
    ("call", "error", "code", "status"),
    [
        ("400 unknown block", "ViValidationError", "ValidationFailed", 400),
        ("400 unknown flow field", "ViValidationError", "ValidationFailed", 400),
        ("400 page token", "ViValidationError", "ValidationFailed", 400),
        ("401 wrong key", "ViAuthenticationError", "AuthenticationFailed", 401),
        ("404 run", "ViNotFoundError", "ResourceNotFound", 404),
        ("404 update", "ViNotFoundError", "ResourceNotFound", 404),
        ("404 kill", "ViNotFoundError", "ResourceNotFound", 404),
        ("404 delete", "ViNotFoundError", "ResourceNotFound", 404),
        ("404 flow of a new run", "ViNotFoundError", "ResourceNotFound", 404),
        ("404 model", "ViNotFoundError", "ResourceNotFound", 404),
        ("409 kill of a finished run", "ViConflictError", "ResourceConflict", 409),
        ("409 other body under a known id", "ViConflictError", "ResourceConflict", 409),
    ],
)
def test_refusals_become_its_error_classes(
    report: Report, call: str, error: str, code: str, status: int
) -> None:
    seen = report["errors"][call]
    assert (seen.get("error"), seen.get("code"), seen.get("status")) == (error, code, status), seen
    assert seen["message"]


def test_a_rejected_flow_names_the_value_and_what_is_expected(report: Report) -> None:
    message = report["errors"]["400 unknown block"]["message"]
    assert "vi-datasset" in message
    assert "vi-dataset" in message
