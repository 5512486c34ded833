"""The run's dataset on its machine: linked or fetched, proven, shared, bounded, and never taken from under a run."""

import hashlib
import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import processes, rundir
from runyard.datasets.records import Interaction, Vqa
from runyard.datasets.versions import Item, ManifestWriter, VersionFolder, contents_line
from runyard.protocol import AttemptDataset, StoredBytes
from runyard.rundir import is_complete
from runyard.supervisor.datasets import Bringer
from runyard.supervisor.resume import Gone
from runyard.supervisor.shared import make_room

Start = Callable[[Path, str], subprocess.Popen[bytes]]
CONTEXT = multiprocessing.get_context("fork")


class Version:
    """A version of three pictures in two packs, as the server would hold it."""

    def __init__(self, name: str = "a", *, shared: bytes = b"shared picture"):
        self.pictures = {f"{n}.png": data for n, data in enumerate((name.encode() * 50, shared, name.encode() * 30))}
        packs = [b"pack" + self.pictures["0.png"] + self.pictures["2.png"], shared]
        places = [(self.pictures["0.png"], 0, 4), (self.pictures["2.png"], 0, 54), (shared, 1, 0)]
        self.blobs = {sha(pack): pack for pack in packs}
        self.contents = b"".join(
            contents_line(sha(data), sha(packs[pack]), offset, len(data)) for data, pack, offset in places
        )
        lines = Lines()
        writer = ManifestWriter(lines)  # type: ignore[arg-type]
        for filename, data in self.pictures.items():
            asked = Vqa(interactions=[Interaction(order=1, question="?", answer=name)])
            writer.add(
                Item(
                    filename=filename,
                    sha256=sha(data),
                    size=len(data),
                    width=1,
                    height=1,
                    mime="image/png",
                    records=[asked],
                )
            )
        self.id = writer.version
        self.packs = sorted(self.blobs)
        self.blobs[writer.sha256] = bytes(lines)
        self.told = AttemptDataset(
            dataset_id="shelves",
            version=self.id,
            type="vqa",
            assets=3,
            records=3,
            size_bytes=1,
            manifest=StoredBytes(sha256=writer.sha256, size_bytes=writer.size_bytes),
            packs=[StoredBytes(sha256=name, size_bytes=len(self.blobs[name])) for name in self.packs],
        )


class Lines(bytearray):
    def write(self, data: bytes) -> None:
        self.extend(data)


class Shelf:
    """A server that holds one version, and counts what is fetched."""

    def __init__(self, version: Version, log: Path | None = None):
        self.version, self.fetched, self.log = version, list[str](), log
        self.damaged: set[str] = set()
        self.gone: set[str] = set()
        self.asks = 0

    def dataset(self) -> AttemptDataset | None:
        self.asks += 1
        return self.version.told

    def fetch_contents(self, target: Path) -> None:
        target.write_bytes(self.version.contents)

    def fetch(self, sha256: str, target: Path) -> None:
        if sha256 in self.gone:
            raise Gone(sha256)
        self.fetched.append(sha256)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{sha256}\n")
        data = self.version.blobs[sha256]
        target.write_bytes(data[:-1] + b"?" if sha256 in self.damaged else data)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def attempt(root: Path, version: Version, *, number: int = 1, limit_bytes: int = 1 << 30) -> Path:
    folder = root / "runs" / "org" / f"run-{version.id}" / "attempts" / str(number)
    folder.mkdir(parents=True)
    write_run(folder, version, data_dir=root)
    placed = {"organizationId": "org", "datasetsBytes": limit_bytes}
    (folder / rundir.PLACED).write_text(json.dumps(placed))
    return folder


def write_run(folder: Path, version: Version, *, data_dir: Path) -> None:
    settings = {"datasetId": "shelves", "datasetVersion": version.id, "projectKind": "vqa"}
    flow = {"blocks": [{"block": "vi-dataset", "settings": settings}]}
    (folder / rundir.RUN).write_text(json.dumps({"run": {"spec": {"flow": flow}}, "dataDir": str(data_dir)}))


def put_blob(root: Path, data: bytes) -> Path:
    path = root / "blobs" / "org" / sha(data)[:2] / sha(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def told(folder: Path) -> dict[str, Any]:
    document = rundir.read_json(folder / rundir.DATASET)
    assert document is not None
    return document


def is_whole(folder: Path, version: Version) -> bool:
    found = VersionFolder(Path(told(folder)["folder"]))
    try:
        return {item.filename: found.read(item.sha256) for item in found.items()} == version.pictures
    finally:
        found.close()


def test_a_version_is_fetched_whole_and_told_to_the_trainer(tmp_path: Path) -> None:
    version = Version()
    folder, shelf = attempt(tmp_path, version), Shelf(version)
    Bringer(folder, shelf).bring()
    home = tmp_path / "datasets" / "org" / version.id
    assert told(folder) == {"folder": str(home), "dataset": "shelves", "version": version.id}
    assert is_whole(folder, version)
    assert sorted(shelf.fetched) == sorted(version.blobs)
    assert not list(home.rglob(".*"))


def test_blobs_on_the_same_disk_are_linked_and_damaged_ones_fetched(tmp_path: Path) -> None:
    version = Version()
    folder, shelf = attempt(tmp_path, version), Shelf(version)
    whole = put_blob(tmp_path, version.blobs[version.packs[0]])
    damaged = put_blob(tmp_path, version.blobs[version.packs[1]])
    damaged.write_bytes(b"?" * damaged.stat().st_size)
    before = damaged.read_bytes()
    Bringer(folder, shelf).bring()
    home = Path(told(folder)["folder"])
    assert whole.samefile(home / "packs" / version.packs[0])
    assert not damaged.samefile(home / "packs" / version.packs[1])
    assert damaged.read_bytes() == before  # what was fetched was not written through the link
    assert version.packs[0] not in shelf.fetched
    assert is_whole(folder, version)


def test_what_another_version_has_is_linked(tmp_path: Path) -> None:
    first, second = Version("a"), Version("b")
    Bringer(attempt(tmp_path, first), Shelf(first)).bring()
    shelf = Shelf(second)
    Bringer(attempt(tmp_path, second), shelf).bring()
    assert sha(b"shared picture") not in shelf.fetched
    assert len(shelf.fetched) == 2


def test_what_arrived_before_a_fault_is_not_fetched_again(tmp_path: Path) -> None:
    version = Version()
    folder, shelf = attempt(tmp_path, version), Shelf(version)
    shelf.damaged = {version.packs[1]}
    with pytest.raises(ConnectionError, match="arrived damaged"):
        Bringer(folder, shelf).bring()
    assert not is_complete(tmp_path / "datasets" / "org" / version.id)
    shelf.damaged, shelf.fetched = set(), []
    Bringer(folder, shelf).bring()
    assert shelf.fetched == [version.packs[1]]
    assert is_whole(folder, version)


def test_a_folder_that_lost_its_last_word_is_proven_anew(tmp_path: Path) -> None:
    """So does a trainer that finds a pack damaged say it."""
    version = Version()
    Bringer(attempt(tmp_path, version), Shelf(version)).bring()
    home = tmp_path / "datasets" / "org" / version.id
    pack = home / "packs" / version.packs[0]
    pack.write_bytes(b"?" * pack.stat().st_size)
    (home / "complete.json").unlink()
    shelf, again = Shelf(version), attempt(tmp_path, version, number=2)
    Bringer(again, shelf).bring()
    assert shelf.fetched == [version.packs[0]]
    assert is_whole(again, version)


def test_packs_that_moved_meanwhile_are_asked_for_again(tmp_path: Path) -> None:
    version = Version()
    folder, shelf = attempt(tmp_path, version), Shelf(version)
    moved = {**version.blobs}
    shelf.gone = {version.packs[0]}
    ask = shelf.dataset

    def asked() -> AttemptDataset | None:
        if shelf.asks:
            shelf.gone = set()
        return ask()

    shelf.dataset = asked  # type: ignore[method-assign]
    Bringer(folder, shelf).bring()
    assert shelf.asks == 2
    assert moved == version.blobs
    assert is_whole(folder, version)


@pytest.mark.parametrize("fault", ["lost", "manifest of another version", "a picture without a place", "outside"])
def test_data_that_cannot_be_had_is_a_problem_the_trainer_is_told(tmp_path: Path, fault: str) -> None:
    version = Version()
    folder, shelf = attempt(tmp_path, version), Shelf(version)
    if fault == "lost":
        shelf.gone = {version.packs[0]}
    elif fault == "manifest of another version":
        shelf.version = Version("other")
    else:
        line = version.contents.splitlines(keepends=True)[0]
        moved = json.loads(line)
        moved[2] = 10_000
        version.contents = version.contents.replace(
            line, b"" if "without" in fault else json.dumps(moved).encode() + b"\n"
        )
    Bringer(folder, shelf).bring()
    problem = told(folder)["problem"]
    assert f"version {version.id} of dataset 'shelves' cannot be had" in problem
    assert shelf.asks == 3
    assert not is_complete(Path(told(folder)["folder"]))


def test_built_in_data_asks_nobody(tmp_path: Path) -> None:
    version = Version()
    folder, shelf = attempt(tmp_path, version), Shelf(version)
    (folder / rundir.RUN).write_text(json.dumps({"run": {"spec": {"flow": {"blocks": []}}}, "dataDir": str(tmp_path)}))
    Bringer(folder, shelf).bring()
    assert (shelf.asks, (folder / rundir.DATASET).exists()) == (0, False)


def bring_it(folder: Path, version: Version, log: Path) -> None:
    Bringer(folder, Shelf(version, log)).bring()


def test_two_attempts_at_once_fetch_nothing_twice(tmp_path: Path) -> None:
    version, log = Version(), tmp_path / "fetched"
    folders = [attempt(tmp_path, version, number=number) for number in (1, 2, 3)]
    running = [CONTEXT.Process(target=bring_it, args=(folder, version, log)) for folder in folders]
    for process in running:
        process.start()
    for process in running:
        process.join(30)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert sorted(log.read_text().split()) == sorted(version.blobs)
    assert all(is_whole(folder, version) for folder in folders)


def test_the_bound_removes_what_was_used_longest_ago_and_nothing_in_use(tmp_path: Path) -> None:
    versions = [Version(name, shared=name.encode() * 400) for name in "abcd"]
    homes = [tmp_path / "datasets" / "org" / version.id for version in versions]
    held: list[Bringer] = []
    for number, version in enumerate(versions[:3]):
        bringer = Bringer(attempt(tmp_path, version), Shelf(version))
        bringer.bring()
        os.utime(homes[number], (1000 + number, 1000 + number))
        held.append(bringer)
    held[1].release()
    held[2].release()
    one = sum(path.stat().st_size for path in homes[0].rglob("*") if path.is_file())
    last = Bringer(attempt(tmp_path, versions[3], limit_bytes=3 * one + one // 2), Shelf(versions[3]))
    last.bring()
    # The oldest is in use by its attempt, so the next one goes.
    assert [home.exists() for home in homes] == [True, False, True, True]
    make_room(tmp_path / "datasets", 0, 0)
    assert [home.exists() for home in homes] == [True, False, False, True]
    held[0].release()
    make_room(tmp_path / "datasets", 0, 0)
    assert [home.exists() for home in homes] == [False, False, False, True]
    last.release()


# Says what it was given.
READS = """
import json
def train(folder):
    from runyard import rundir
    rundir.write_json(folder / "seen", rundir.read_json(folder / "dataset.json"))
    rundir.write_json(folder / "result.json", {"outcome": "Succeeded", "reason": "Completed", "message": ""})
    return 0
"""


def serve(server: Any, version: Version) -> None:
    import msgspec

    server.dataset = msgspec.to_builtins(version.told)
    server.contents = version.contents
    server.blobs |= version.blobs


@pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")
@pytest.mark.parametrize("failure", [None, "503", "cut"])
def test_a_real_supervisor_brings_the_dataset_before_its_trainer_begins(
    folder: Path, tmp_path: Path, server: Any, start: Start, failure: str | None
) -> None:
    version = Version()
    write_run(folder, version, data_dir=tmp_path)
    serve(server, version)
    fails = ("attempt/dataset", "dataset/contents", version.packs[0])
    server.fail = lambda path, times: failure if times == 1 and path.endswith(fails) else None
    assert start(folder, READS).wait(60) == 0
    assert rundir.read_json(folder / "seen") == told(folder)
    assert is_whole(folder, version)


@pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")
def test_a_kill_while_a_dataset_is_fetched_works(folder: Path, tmp_path: Path, server: Any, start: Start) -> None:
    version = Version()
    write_run(folder, version, data_dir=tmp_path)
    serve(server, version)
    server.fail = lambda path, times: "503" if "blobs" in path else None
    supervisor = start(folder, READS)
    server.wait_for(lambda: any("blobs" in call for call in server.calls))
    with server.changed:
        server.wanted = {"action": "kill", "lease_s": 1.2, "grace_s": 0.5, "epoch": "e1"}
    assert supervisor.wait(20) == 0
    assert not (folder / "seen").exists()
    assert (server.reports[0]["exit_code"], server.reports[0]["group_empty"]) == (75, True)
