"""The folder of an attempt as the controller writes it."""

import fcntl
from pathlib import Path

import msgspec
import pytest

from runyard import ids, processes, rundir
from runyard.controller.machine import (
    MachineTaken,
    count_threads_per_run,
    load_machine_id,
    lock_machine,
)
from runyard.controller.placement import has_folder, make_attempt_key, place_attempt
from runyard.protocol import Assignment
from runyard.settings import Settings
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import Run, RunSpec


def make_assignment(attempt: int = 1, flow: FlowSpec | None = None) -> Assignment:
    run = Run(run_id="run-1", organization_id="org-1", spec=RunSpec(flow=flow or FlowSpec()))
    return Assignment(
        organization_id="org-1",
        run_id="run-1",
        attempt=attempt,
        token="secret",
        lease_s=15,
        grace_s=30,
        run=run,
    )


def test_a_placed_folder_has_the_run_and_no_secret(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, threads=3)
    folder = place_attempt(make_assignment(), settings=settings, machine_id="machine-1")
    assert folder == tmp_path / "runs" / "org-1" / "run-1" / "attempts" / "1"
    run = rundir.read_json(rundir.AttemptDir(folder).run)
    assert run is not None
    assert (run["run"]["runId"], run["attempt"], run["threads"], run["dataDir"]) == (
        "run-1",
        1,
        3,
        str(tmp_path),
    )
    placed = rundir.read_json(rundir.AttemptDir(folder).placed)
    assert placed is not None and placed["machineId"] == "machine-1"
    assert not any(b"secret" in path.read_bytes() for _, path in rundir.files_below(folder))


def test_placing_again_changes_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place_attempt(make_assignment(), settings=settings, machine_id="machine-1")
    place_attempt(make_assignment(), settings=settings, machine_id="machine-2")
    placed = rundir.read_json(rundir.AttemptDir(folder).placed)
    assert placed is not None and placed["machineId"] == "machine-1"


@pytest.mark.parametrize("name", ["..", ".", "", "../../x", "/etc", "a\0", "abc:finish", "x" * 300])
def test_an_invalid_id_is_not_placed(name: str, tmp_path: Path) -> None:
    """An invalid id from the server creates no folder anywhere."""
    settings = Settings(data_dir=tmp_path / "data")
    for change in ({"organization_id": name}, {"run_id": name}):
        with pytest.raises(ids.InvalidId):
            place_attempt(
                msgspec.structs.replace(make_assignment(), **change),
                settings=settings,
                machine_id="m",
            )
        assert not has_folder(
            settings, make_attempt_key(msgspec.structs.replace(make_assignment(), **change))
        )
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_in_place_of_a_run_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside" / "attempts").mkdir(parents=True)
    (tmp_path / "runs" / "org-1").mkdir(parents=True)
    (tmp_path / "runs" / "org-1" / "run-1").symlink_to(tmp_path / "outside")
    with pytest.raises(ids.PathEscapes):
        place_attempt(make_assignment(), settings=Settings(data_dir=tmp_path), machine_id="m")
    assert list((tmp_path / "outside" / "attempts").iterdir()) == []


def test_run_json_has_the_machines_model_folders(tmp_path: Path) -> None:
    for number, (listed, expected) in enumerate(
        [("", [str(tmp_path / "models")]), ("/big/models:/hub", ["/big/models", "/hub"])]
    ):
        settings = Settings(data_dir=tmp_path, model_folders=listed)
        folder = place_attempt(make_assignment(number + 1), settings=settings, machine_id="m")
        document = rundir.read_json(rundir.AttemptDir(folder).run)
        assert document is not None and document["modelFolders"] == expected


def test_only_one_controller_locks_a_machine(tmp_path: Path) -> None:
    lock_machine(tmp_path)
    with pytest.raises(MachineTaken, match="another controller uses"):
        lock_machine(tmp_path)


def test_a_machine_keeps_its_id(tmp_path: Path) -> None:
    assert load_machine_id(tmp_path) == load_machine_id(tmp_path)
    (tmp_path / "machine.json").write_text("{torn")
    assert load_machine_id(tmp_path).startswith("machine-")


def test_cores_are_shared_among_the_slots() -> None:
    assert count_threads_per_run(0, slots=2, cores=8) == 4
    assert count_threads_per_run(0, slots=4, cores=2) == 1
    assert count_threads_per_run(3, slots=4, cores=2) == 3


@pytest.mark.parametrize(
    ("server_boot_id", "limit_s"),
    [
        (processes.boot_id(), None),
        ("another-machine", 1800.0),
        ("", 1800.0),
        (processes.UNKNOWN_BOOT, 1800.0),
    ],
)
def test_training_without_the_server_is_unlimited_only_on_its_machine(
    server_boot_id: str, limit_s: float | None, tmp_path: Path
) -> None:
    assignment = make_assignment()
    assignment.server_boot_id = server_boot_id
    placed = (
        rundir.read_json(
            rundir.AttemptDir(
                place_attempt(assignment, settings=Settings(data_dir=tmp_path), machine_id="m")
            ).placed
        )
        or {}
    )
    assert placed["maxUnreachableS"] == limit_s


def make_assignment_in_store(store_id: str, *, current: str = "") -> Assignment:
    assignment = make_assignment()
    assignment.store_id, assignment.current_store_id = store_id, current or store_id
    return assignment


def test_the_folder_of_an_attempt_that_a_restore_has_undone_is_set_aside(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place_attempt(
        make_assignment_in_store("e1"), settings=settings, machine_id="machine-1"
    )
    rundir.AttemptDir(folder).result.write_text("{}")
    assert (
        place_attempt(
            make_assignment_in_store("e1", current="e2"), settings=settings, machine_id="machine-1"
        )
        == folder
    )
    assert rundir.AttemptDir(folder).result.exists()
    assert (
        place_attempt(make_assignment_in_store("e2"), settings=settings, machine_id="machine-1")
        == folder
    )
    assert not rundir.AttemptDir(folder).result.exists()
    assert rundir.AttemptDir(folder.parent / "1-e1").result.exists()
    placed = rundir.read_json(rundir.AttemptDir(folder).placed)
    assert placed is not None and placed["epoch"] == "e2"


def test_a_folder_set_aside_returns_with_the_restore_of_a_newer_backup(
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place_attempt(
        make_assignment_in_store("e1"), settings=settings, machine_id="machine-1"
    )
    rundir.AttemptDir(folder).result.write_text("{}")
    place_attempt(make_assignment_in_store("e2"), settings=settings, machine_id="machine-1")
    place_attempt(
        make_assignment_in_store("e1", current="e3"), settings=settings, machine_id="machine-1"
    )
    assert rundir.AttemptDir(folder).result.exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["1", "1-e2"]


def test_a_folder_in_use_is_not_set_aside(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place_attempt(
        make_assignment_in_store("e1"), settings=settings, machine_id="machine-1"
    )
    with open(rundir.AttemptDir(folder).supervisor_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError):
            place_attempt(make_assignment_in_store("e2"), settings=settings, machine_id="machine-1")
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


# A report without a store id may have gone to any store. A refused one was not recorded.
@pytest.mark.parametrize(
    ("how", "written", "current", "is_open"),
    [
        ("reported", "e1", "e1", False),
        ("reported", "e1", "e2", True),
        ("reported", "", "e2", True),
        ("refused", "e1", "e1", True),
    ],
)
def test_a_closed_folder_is_reopened_if_the_server_still_waits_for_its_report(
    tmp_path: Path, how: str, written: str, current: str, is_open: bool
) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place_attempt(
        make_assignment_in_store("e1"), settings=settings, machine_id="machine-1"
    )
    rundir.write_json(rundir.AttemptDir(folder).closed, {"how": how, "time": 1, "epoch": written})
    place_attempt(
        make_assignment_in_store("e1", current=current), settings=settings, machine_id="machine-1"
    )
    assert rundir.AttemptDir(folder).closed.exists() is not is_open
