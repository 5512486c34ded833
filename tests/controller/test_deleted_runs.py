"""Run folders of deleted runs: removed when nothing uses them, and never anything else."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runyard import limits, processes, removal, rundir
from runyard.controller.decide import AttemptKey
from runyard.controller.deleted_runs import detach_deleted_runs, finish_removals
from runyard.protocol import RunRemoval
from runyard.settings import Settings

ORG = f"org-{os.getpid()}"
Control = Any


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def make_run(settings: Settings, run_id: str = "run-1", *, store: str = "s1") -> Path:
    attempt = rundir.AttemptDir.locate(settings.runs_dir, ORG, run_id, 1)
    attempt.logs.mkdir(parents=True)
    attempt.stdout.write_text("a line")
    rundir.write_json(attempt.placed, {"epoch": store})
    return attempt.path.parent.parent


def name_run(run_id: str = "run-1", org: str = ORG, *, store: str = "") -> RunRemoval:
    return RunRemoval(organization_id=org, run_id=run_id, store_id=store)


def remove(settings: Settings, *removals: RunRemoval, held: tuple[AttemptKey, ...] = ()) -> bool:
    """Remove as a controller does; return whether any of the runs is gone."""
    is_gone = detach_deleted_runs(settings, removals, held=held, processes=processes)
    finish_removals(settings)
    return is_gone


def list_files(folder: Path) -> list[str]:
    return [path for path, _ in rundir.files_below(folder)]


def test_only_the_named_run_is_removed_with_everything_in_its_folder(here: Settings) -> None:
    folder, other = make_run(here), make_run(here, "run-2")
    assert remove(here, name_run())
    assert list(folder.parent.iterdir()) == [other]
    assert remove(here, name_run())  # idempotent


def test_a_run_with_the_longest_id_is_removed(here: Settings) -> None:
    folder = make_run(here, "r" * 255)
    assert remove(here, name_run("r" * 255))
    assert list(folder.parent.iterdir()) == []


def test_a_run_that_an_attempt_of_this_controller_uses_is_kept(here: Settings) -> None:
    folder = make_run(here)
    assert not remove(here, name_run(), held=(AttemptKey(ORG, "run-1", 1),))
    assert folder.exists()


@pytest.mark.parametrize("lock", ["run.lock", "attempts/1/supervisor.lock"])
def test_a_run_whose_lock_is_held_is_kept_until_it_is_free(here: Settings, lock: str) -> None:
    folder = make_run(here)
    with open(folder / lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not remove(here, name_run())
        assert folder.exists()
    assert remove(here, name_run())
    assert not folder.exists()


@pytest.mark.skipif(not processes.IS_LINUX, reason="marks need /proc")
def test_a_run_of_which_a_process_lives_is_kept_until_it_ends(here: Settings) -> None:
    folder = make_run(here)
    environ = {**os.environ, processes.ATTEMPT_MARK: f"{ORG}/run-1/1"}
    with subprocess.Popen(["/bin/sleep", "600"], env=environ) as process:
        assert not remove(here, name_run())
        process.kill()
    assert folder.exists()
    assert remove(here, name_run())


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc", "a/b", "run-1\0", "run 1"])
def test_a_name_that_is_not_a_valid_id_removes_nothing(here: Settings, name: str) -> None:
    make_run(here)
    before = list_files(here.data_dir.parent)
    assert not remove(here, name_run(name), name_run("run-1", name), name_run(name, name))
    assert list_files(here.data_dir.parent) == before


@pytest.mark.parametrize("level", ["run", "organization"])
def test_a_link_is_not_followed(here: Settings, tmp_path: Path, level: str) -> None:
    elsewhere = Settings(data_dir=tmp_path / "elsewhere")
    target = make_run(elsewhere)
    link = here.runs_dir / ORG / "run-1"
    if level == "organization":
        target, link = target.parent, link.parent
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    assert removal.list_run_folders(here.runs_dir) == []
    assert not remove(here, name_run())
    assert (elsewhere.runs_dir / ORG / "run-1/attempts/1/placed.json").exists() and link.exists()


def test_a_link_inside_a_run_is_removed_and_its_target_is_kept(
    here: Settings, tmp_path: Path
) -> None:
    folder, target = make_run(here), tmp_path / "kept"
    target.mkdir()
    (target / "file").write_text("x")
    (folder / "link").symlink_to(target)
    assert remove(here, name_run())
    assert not folder.exists() and (target / "file").exists()


@pytest.mark.parametrize(("store", "is_removed"), [("s1", True), ("s2", False)])
def test_a_run_without_a_record_is_removed_only_if_the_present_store_placed_it(
    here: Settings, store: str, is_removed: bool
) -> None:
    folder = make_run(here, store="s1")
    remove(here, name_run(store=store))
    assert folder.exists() is not is_removed


def test_a_run_without_a_record_is_kept_if_another_store_placed_one_attempt(
    here: Settings,
) -> None:
    folder = make_run(here, store="s1")
    (folder / "attempts" / "1-s0").mkdir()  # set aside by a restore
    rundir.write_json(folder / "attempts" / "1-s0" / "placed.json", {"epoch": "s0"})
    assert not remove(here, name_run(store="s1"))
    assert folder.exists()


# Dies like a killed controller while it removes.
REMOVE_AND_DIE = """
import os, shutil, sys
from pathlib import Path
from runyard import removal
real, removed = os.unlink, []
def unlink(path, **options):
    if removed:
        os.kill(os.getpid(), 9)
    removed.append(path)
    real(path, **options)
os.unlink = unlink
removal.remove_run(Path(sys.argv[1]), sys.argv[2], "run-1")
"""


def test_a_removal_that_was_killed_is_finished_by_the_next_one(here: Settings) -> None:
    folder = make_run(here)
    killed = subprocess.run(
        [sys.executable, "-P", "-c", REMOVE_AND_DIE, str(here.runs_dir), ORG], check=False
    )
    assert killed.returncode == -9 and not folder.exists()
    assert list_files(here.runs_dir) != []
    assert removal.list_run_folders(here.runs_dir) == []
    finish_removals(here)
    assert list(folder.parent.iterdir()) == []


def test_server_and_controller_remove_one_run_at_the_same_time(here: Settings) -> None:
    folder = make_run(here)
    for number in range(2000):
        (folder / f"file-{number}").touch()
    removal.detach_run(here.runs_dir, ORG, "run-1")
    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(removal.remove_detached, here.runs_dir) for _ in range(4)]
        assert [end.result() for end in ends] == [None] * 4
    assert list(folder.parent.iterdir()) == []


def make_weights(settings: Settings, name: str, *, used_by: Path | None = None) -> Path:
    home = settings.weights_dir / ORG / name
    home.mkdir(parents=True)
    (home / "model.safetensors").write_text("weights")
    if used_by is not None:
        rundir.write_json(used_by / "attempts" / "1" / "weights.json", {"folder": str(home)})
    return home


def test_weights_go_with_the_last_run_that_starts_from_them(here: Settings) -> None:
    first, second = make_run(here), make_run(here, "run-2")
    shared = make_weights(here, "shared", used_by=first)
    rundir.write_json(second / "attempts" / "1" / "weights.json", {"folder": str(shared)})
    alone = make_weights(here, "alone", used_by=make_run(here, "run-3"))
    remove(here, name_run(), name_run("run-3"))
    assert shared.exists() and not alone.exists()
    remove(here, name_run("run-2"))
    assert not shared.exists()


def test_weights_that_a_supervisor_holds_are_kept(here: Settings) -> None:
    home = make_weights(here, "held")
    descriptor = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        finish_removals(here)
        assert home.exists()
    finally:
        os.close(descriptor)
    finish_removals(here)
    assert not home.exists()


def test_a_fetched_base_model_stays_for_the_next_run(here: Settings) -> None:
    home = make_weights(here, f"{rundir.BASE_MODEL_PREFIX}0123", used_by=make_run(here))
    remove(here, name_run())
    assert home.exists()


Assign = Callable[..., dict[str, Any]]


def test_the_folders_are_reported_and_removed_as_the_server_says(
    control: Control, server: Any, settings: Settings
) -> None:
    folder, other = make_run(settings), make_run(settings, "run-2")
    server.instructions = lambda report: {
        "remove": [name for name in report["run_folders"] if name["run_id"] == "run-1"]
    }
    control()
    server.wait_for(lambda: not folder.exists())
    server.wait_for(lambda: len(server.machines["machine-1"]["run_folders"]) == 1)
    assert server.machines["machine-1"]["run_folders"][0]["run_id"] == "run-2"
    assert other.exists()


def test_an_attempt_that_ends_is_reported_at_once(
    control: Control, server: Any, settings: Settings, assign: Assign
) -> None:
    """Its run may be deleted; without this its folder would stay for half a minute."""
    server.waiting.append(assign())
    server.instructions = lambda report: {"remove": report["run_folders"] if server.reports else []}
    control()
    server.wait_for(lambda: server.reports)
    server.wait_for(lambda: removal.list_run_folders(settings.runs_dir) == [])


def test_many_folders_are_reported_in_pieces(
    control: Control, server: Any, settings: Settings
) -> None:
    most = limits.RUN_FOLDERS.value
    for number in range(most + 1):
        (settings.runs_dir / ORG / f"run-{number}").mkdir(parents=True)
    reports: list[dict[str, Any]] = []

    def record(report: dict[str, Any]) -> dict[str, Any]:
        reports.append(report)
        return {"remove": []}

    server.instructions = record
    control()
    server.wait_for(lambda: len(reports) == 2)
    assert [len(report["run_folders"]) for report in reports] == [most, 1]
    assert [report["continues_folders"] for report in reports] == [False, True]
