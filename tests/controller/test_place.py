"""The folder of an attempt as the controller writes it."""

import fcntl
from pathlib import Path

import msgspec
import pytest

from runyard import ids, processes, rundir
from runyard.controller.machine import MachineTaken, hold_machine, machine_id, threads_per_run
from runyard.controller.place import has_folder, key_of, place
from runyard.protocol import Assignment
from runyard.settings import Settings
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import Run, RunSpec


def assignment(attempt: int = 1, flow: FlowSpec | None = None) -> Assignment:
    run = Run(run_id="run-1", organization_id="org-1", spec=RunSpec(flow=flow or FlowSpec()))
    return Assignment(
        organization_id="org-1", run_id="run-1", attempt=attempt, token="secret", lease_s=15, grace_s=30, run=run
    )


def test_a_folder_holds_the_run_and_no_secret(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, threads=3)
    folder = place(assignment(), settings=settings, machine_id="machine-1")
    assert folder == tmp_path / "runs" / "org-1" / "run-1" / "attempts" / "1"
    run = rundir.read_json(folder / rundir.RUN)
    assert run is not None
    assert (run["run"]["runId"], run["attempt"], run["threads"], run["dataDir"]) == ("run-1", 1, 3, str(tmp_path))
    placed = rundir.read_json(folder / rundir.PLACED)
    assert placed is not None and placed["machineId"] == "machine-1"
    assert not any(b"secret" in path.read_bytes() for _, path in rundir.files_below(folder))


def test_placing_again_changes_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place(assignment(), settings=settings, machine_id="machine-1")
    place(assignment(), settings=settings, machine_id="machine-2")
    placed = rundir.read_json(folder / rundir.PLACED)
    assert placed is not None and placed["machineId"] == "machine-1"


@pytest.mark.parametrize("name", ["..", ".", "", "../../x", "/etc", "a\0", "abc:finish", "x" * 300])
def test_what_cannot_be_an_attempt_is_not_placed(name: str, tmp_path: Path) -> None:
    """A server that names something else gets no folder made, wherever it would be."""
    settings = Settings(data_dir=tmp_path / "data")
    for change in ({"organization_id": name}, {"run_id": name}):
        with pytest.raises(ids.InvalidId):
            place(msgspec.structs.replace(assignment(), **change), settings=settings, machine_id="m")
        assert not has_folder(settings, key_of(msgspec.structs.replace(assignment(), **change)))
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_a_run_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside" / "attempts").mkdir(parents=True)
    (tmp_path / "runs" / "org-1").mkdir(parents=True)
    (tmp_path / "runs" / "org-1" / "run-1").symlink_to(tmp_path / "outside")
    with pytest.raises(ids.PathEscapes):
        place(assignment(), settings=Settings(data_dir=tmp_path), machine_id="m")
    assert list((tmp_path / "outside" / "attempts").iterdir()) == []


def test_a_folder_says_which_model_folders_the_machine_has(tmp_path: Path) -> None:
    for number, (listed, expected) in enumerate(
        [("", [str(tmp_path / "models")]), ("/big/models:/hub", ["/big/models", "/hub"])]
    ):
        settings = Settings(data_dir=tmp_path, model_folders=listed)
        folder = place(assignment(number + 1), settings=settings, machine_id="m")
        document = rundir.read_json(folder / rundir.RUN)
        assert document is not None and document["modelFolders"] == expected


def test_one_controller_holds_a_machine(tmp_path: Path) -> None:
    hold_machine(tmp_path)
    with pytest.raises(MachineTaken, match="another controller works with"):
        hold_machine(tmp_path)


def test_a_machine_keeps_its_id(tmp_path: Path) -> None:
    assert machine_id(tmp_path) == machine_id(tmp_path)
    (tmp_path / "machine.json").write_text("{torn")
    assert machine_id(tmp_path).startswith("machine-")


def test_cores_are_shared_among_the_slots() -> None:
    assert threads_per_run(0, slots=2, cores=8) == 4
    assert threads_per_run(0, slots=4, cores=2) == 1
    assert threads_per_run(3, slots=4, cores=2) == 3


@pytest.mark.parametrize(
    ("server_boot_id", "limit_s"),
    [(processes.boot_id(), None), ("another-machine", 1800.0), ("", 1800.0), (processes.UNKNOWN_BOOT, 1800.0)],
)
def test_only_on_the_machine_of_the_server_a_run_continues_without_it_for_as_long_as_it_takes(
    server_boot_id: str, limit_s: float | None, tmp_path: Path
) -> None:
    made = assignment()
    made.server_boot_id = server_boot_id
    placed = rundir.read_json(place(made, settings=Settings(data_dir=tmp_path), machine_id="m") / rundir.PLACED) or {}
    assert placed["maxUnreachableS"] == limit_s


def of_epoch(epoch: str, *, store: str = "") -> Assignment:
    made = assignment()
    made.epoch, made.store_epoch = epoch, store or epoch
    return made


def test_the_folder_of_an_attempt_that_a_restore_has_undone_is_put_aside(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place(of_epoch("e1"), settings=settings, machine_id="machine-1")
    (folder / rundir.RESULT).write_text("{}")
    assert place(of_epoch("e1", store="e2"), settings=settings, machine_id="machine-1") == folder
    assert (folder / rundir.RESULT).exists()
    assert place(of_epoch("e2"), settings=settings, machine_id="machine-1") == folder
    assert not (folder / rundir.RESULT).exists()
    assert (folder.parent / "1-e1" / rundir.RESULT).exists()
    placed = rundir.read_json(folder / rundir.PLACED)
    assert placed is not None and placed["epoch"] == "e2"


def test_what_was_put_aside_comes_back_when_a_newer_backup_is_restored_after_an_older_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place(of_epoch("e1"), settings=settings, machine_id="machine-1")
    (folder / rundir.RESULT).write_text("{}")
    place(of_epoch("e2"), settings=settings, machine_id="machine-1")
    place(of_epoch("e1", store="e3"), settings=settings, machine_id="machine-1")
    assert (folder / rundir.RESULT).exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["1", "1-e2"]


def test_a_folder_that_somebody_still_works_in_is_not_put_aside(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place(of_epoch("e1"), settings=settings, machine_id="machine-1")
    with open(folder / rundir.SUPERVISOR_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError):
            place(of_epoch("e2"), settings=settings, machine_id="machine-1")
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


# A supervisor that never heard an epoch may have told any world.
@pytest.mark.parametrize(("told", "store", "is_open"), [("e1", "e1", False), ("e1", "e2", True), ("", "e2", True)])
def test_a_closed_folder_is_opened_again_when_the_server_asks_after_a_restore(
    tmp_path: Path, told: str, store: str, is_open: bool
) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = place(of_epoch("e1"), settings=settings, machine_id="machine-1")
    rundir.write_json(folder / rundir.CLOSED, {"how": "reported", "time": 1, "epoch": told})
    place(of_epoch("e1", store=store), settings=settings, machine_id="machine-1")
    assert (folder / rundir.CLOSED).exists() is not is_open
