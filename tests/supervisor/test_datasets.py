"""The run's dataset on its machine: linked or fetched, verified, shared, limited, never removed
while in use.
"""

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
from runyard.datasets.versions import (
    ManifestWriter,
    VersionFolder,
    VersionImage,
    encode_contents_line,
)
from runyard.protocol import AttemptDataset, StoredBytes
from runyard.rundir import is_complete
from runyard.supervisor.datasets import DatasetFetcher
from runyard.supervisor.resume import BlobGone
from runyard.supervisor.shared import free_space

Start = Callable[[Path, str], subprocess.Popen[bytes]]
CONTEXT = multiprocessing.get_context("fork")


class Version:
    """A version of three images in two packs, as the server stores it."""

    def __init__(self, name: str = "a", *, shared: bytes = b"shared image"):
        self.images = {
            f"{n}.png": data
            for n, data in enumerate((name.encode() * 50, shared, name.encode() * 30))
        }
        packs = [b"pack" + self.images["0.png"] + self.images["2.png"], shared]
        locations = [(self.images["0.png"], 0, 4), (self.images["2.png"], 0, 54), (shared, 1, 0)]
        self.blobs = {hash_bytes(pack): pack for pack in packs}
        self.contents = b"".join(
            encode_contents_line(hash_bytes(data), hash_bytes(packs[pack]), offset, len(data))
            for data, pack, offset in locations
        )
        lines = Lines()
        writer = ManifestWriter(lines)  # type: ignore[arg-type]
        for filename, data in self.images.items():
            get_changed_dataset = Vqa(
                interactions=[Interaction(order=1, question="?", answer=name)]
            )
            writer.add(
                VersionImage(
                    filename=filename,
                    sha256=hash_bytes(data),
                    size=len(data),
                    width=1,
                    height=1,
                    mime="image/png",
                    records=[get_changed_dataset],
                )
            )
        self.id = writer.version
        self.packs = sorted(self.blobs)
        self.blobs[writer.sha256] = bytes(lines)
        self.description = AttemptDataset(
            dataset_id="shelves",
            version=self.id,
            type="vqa",
            assets=3,
            records=3,
            size_bytes=1,
            manifest=StoredBytes(sha256=writer.sha256, size_bytes=writer.size_bytes),
            packs=[
                StoredBytes(sha256=name, size_bytes=len(self.blobs[name])) for name in self.packs
            ],
        )


class Lines(bytearray):
    def write(self, data: bytes) -> None:
        self.extend(data)


class DatasetServer:
    """A fake server with one version, which counts what is fetched."""

    def __init__(self, version: Version, log: Path | None = None):
        self.version, self.fetched, self.log = version, list[str](), log
        self.damaged: set[str] = set()
        self.gone: set[str] = set()
        self.asks = 0

    def get_dataset(self, dataset_id: str) -> AttemptDataset | None:
        self.asks += 1
        return self.version.description

    def fetch_contents(self, dataset_id: str, target: Path) -> None:
        target.write_bytes(self.version.contents)

    def fetch_blob(self, sha256: str, target: Path) -> None:
        if sha256 in self.gone:
            raise BlobGone(sha256)
        self.fetched.append(sha256)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{sha256}\n")
        data = self.version.blobs[sha256]
        target.write_bytes(data[:-1] + b"?" if sha256 in self.damaged else data)


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_attempt(
    root: Path, version: Version, *, number: int = 1, limit_bytes: int = 1 << 30
) -> Path:
    folder = root / "runs" / "org" / f"run-{version.id}" / "attempts" / str(number)
    folder.mkdir(parents=True)
    write_run(folder, version, data_dir=root)
    placed = {"organizationId": "org", "datasetsBytes": limit_bytes}
    rundir.AttemptDir(folder).placed.write_text(json.dumps(placed))
    return folder


def write_run(folder: Path, version: Version, *, data_dir: Path) -> None:
    settings = {"datasetId": "shelves", "datasetVersion": version.id, "projectKind": "vqa"}
    flow = {"blocks": [{"block": "vi-dataset", "settings": settings}]}
    rundir.AttemptDir(folder).run.write_text(
        json.dumps({"run": {"spec": {"flow": flow}}, "dataDir": str(data_dir)})
    )


def put_blob(root: Path, data: bytes) -> Path:
    path = root / "blobs" / "org" / hash_bytes(data)[:2] / hash_bytes(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read_dataset_document(folder: Path) -> dict[str, Any]:
    document = rundir.read_json(rundir.AttemptDir(folder).dataset)
    assert document is not None
    return document


def has_all_files(folder: Path, version: Version) -> bool:
    found = VersionFolder(Path(read_dataset_document(folder)["folder"]))
    try:
        return {item.filename: found.read(item.sha256) for item in found.items()} == version.images
    finally:
        found.close()


def test_a_version_is_fetched_completely_and_written_to_dataset_json(tmp_path: Path) -> None:
    version = Version()
    folder, dataset_server = write_attempt(tmp_path, version), DatasetServer(version)
    DatasetFetcher(folder, dataset_server).fetch()
    home = tmp_path / "datasets" / "org" / version.id
    assert read_dataset_document(folder) == {
        "folder": str(home),
        "dataset": "shelves",
        "version": version.id,
    }
    assert has_all_files(folder, version)
    assert sorted(dataset_server.fetched) == sorted(version.blobs)
    assert not list(home.rglob(".*"))


def test_blobs_on_the_same_disk_are_linked_and_damaged_ones_fetched(tmp_path: Path) -> None:
    version = Version()
    folder, dataset_server = write_attempt(tmp_path, version), DatasetServer(version)
    whole = put_blob(tmp_path, version.blobs[version.packs[0]])
    damaged = put_blob(tmp_path, version.blobs[version.packs[1]])
    damaged.write_bytes(b"?" * damaged.stat().st_size)
    before = damaged.read_bytes()
    DatasetFetcher(folder, dataset_server).fetch()
    home = Path(read_dataset_document(folder)["folder"])
    assert whole.samefile(home / "packs" / version.packs[0])
    assert not damaged.samefile(home / "packs" / version.packs[1])
    # The fetched bytes were not written through the hard link
    assert damaged.read_bytes() == before
    assert version.packs[0] not in dataset_server.fetched
    assert has_all_files(folder, version)


def test_packs_of_another_version_are_linked(tmp_path: Path) -> None:
    first, second = Version("a"), Version("b")
    DatasetFetcher(write_attempt(tmp_path, first), DatasetServer(first)).fetch()
    dataset_server = DatasetServer(second)
    DatasetFetcher(write_attempt(tmp_path, second), dataset_server).fetch()
    assert hash_bytes(b"shared image") not in dataset_server.fetched
    assert len(dataset_server.fetched) == 2


def test_files_that_arrived_before_a_failure_are_not_fetched_again(tmp_path: Path) -> None:
    version = Version()
    folder, dataset_server = write_attempt(tmp_path, version), DatasetServer(version)
    dataset_server.damaged = {version.packs[1]}
    with pytest.raises(ConnectionError, match="arrived damaged"):
        DatasetFetcher(folder, dataset_server).fetch()
    assert not is_complete(tmp_path / "datasets" / "org" / version.id)
    dataset_server.damaged, dataset_server.fetched = set(), []
    DatasetFetcher(folder, dataset_server).fetch()
    assert dataset_server.fetched == [version.packs[1]]
    assert has_all_files(folder, version)


def test_a_folder_without_complete_json_is_verified_again(tmp_path: Path) -> None:
    """A trainer that finds a damaged pack removes complete.json."""
    version = Version()
    DatasetFetcher(write_attempt(tmp_path, version), DatasetServer(version)).fetch()
    home = tmp_path / "datasets" / "org" / version.id
    pack = home / "packs" / version.packs[0]
    pack.write_bytes(b"?" * pack.stat().st_size)
    (home / "complete.json").unlink()
    dataset_server, again = DatasetServer(version), write_attempt(tmp_path, version, number=2)
    DatasetFetcher(again, dataset_server).fetch()
    assert dataset_server.fetched == [version.packs[0]]
    assert has_all_files(again, version)


def test_packs_that_moved_are_requested_again(tmp_path: Path) -> None:
    version = Version()
    folder, dataset_server = write_attempt(tmp_path, version), DatasetServer(version)
    moved = {**version.blobs}
    dataset_server.gone = {version.packs[0]}
    ask = dataset_server.get_dataset

    def get_changed_dataset(dataset_id: str) -> AttemptDataset | None:
        if dataset_server.asks:
            dataset_server.gone = set()
        return ask(dataset_id)

    dataset_server.get_dataset = get_changed_dataset  # type: ignore[method-assign]
    DatasetFetcher(folder, dataset_server).fetch()
    assert dataset_server.asks == 2
    assert moved == version.blobs
    assert has_all_files(folder, version)


@pytest.mark.parametrize(
    "case", ["lost", "manifest of another version", "an image without a location", "outside"]
)
def test_unavailable_data_is_reported_to_the_trainer_as_a_problem(
    tmp_path: Path, case: str
) -> None:
    version = Version()
    folder, dataset_server = write_attempt(tmp_path, version), DatasetServer(version)
    if case == "lost":
        dataset_server.gone = {version.packs[0]}
    elif case == "manifest of another version":
        dataset_server.version = Version("other")
    else:
        line = version.contents.splitlines(keepends=True)[0]
        moved = json.loads(line)
        moved[2] = 10_000
        version.contents = version.contents.replace(
            line, b"" if "without" in case else json.dumps(moved).encode() + b"\n"
        )
    DatasetFetcher(folder, dataset_server).fetch()
    problem = read_dataset_document(folder)["problem"]
    assert f"cannot fetch version {version.id} of dataset 'shelves'" in problem
    assert dataset_server.asks == 3
    assert not is_complete(Path(read_dataset_document(folder)["folder"]))


class ServerOfSeveral(DatasetServer):
    """A fake server of a run with several datasets, by id."""

    def __init__(self, versions: dict[str, Version]):
        super().__init__(next(iter(versions.values())))
        self.versions = versions

    def get_dataset(self, dataset_id: str) -> AttemptDataset | None:
        self.version = self.versions[dataset_id]
        return super().get_dataset(dataset_id)

    def fetch_contents(self, dataset_id: str, target: Path) -> None:
        target.write_bytes(self.versions[dataset_id].contents)

    def fetch_blob(self, sha256: str, target: Path) -> None:
        self.version = next(each for each in self.versions.values() if sha256 in each.blobs)
        super().fetch_blob(sha256, target)


def write_mixture(root: Path, versions: dict[str, Version]) -> Path:
    """Write an attempt that trains on all but the last version, which is held out."""
    own, *mixed, held_out = [
        {"datasetId": name, "datasetVersion": version.id} for name, version in versions.items()
    ]
    folder = write_attempt(root, next(iter(versions.values())))
    settings = own | {"mixture": mixed, "validationDataset": held_out}
    flow = {"blocks": [{"block": "vi-dataset", "settings": settings}]}
    rundir.AttemptDir(folder).run.write_text(
        json.dumps({"run": {"spec": {"flow": flow}}, "dataDir": str(root)})
    )
    return folder


def test_each_dataset_of_a_mixture_is_fetched_held_and_named(tmp_path: Path) -> None:
    versions = {name: Version(name, shared=name.encode() * 400) for name in "abc"}
    folder, server = write_mixture(tmp_path, versions), ServerOfSeveral(versions)
    server.gone = {versions["b"].packs[0]}
    fetcher = DatasetFetcher(folder, server)
    fetcher.fetch()
    document = read_dataset_document(folder)
    assert "dataset 'b'" in document["problem"]
    rundir.AttemptDir(folder).dataset.unlink()
    server.gone, server.fetched = set(), []
    fetcher.fetch()
    document = read_dataset_document(folder)
    homes = {name: tmp_path / "datasets" / "org" / each.id for name, each in versions.items()}
    named = [
        {"folder": str(homes[name]), "dataset": name, "version": versions[name].id}
        for name in versions
    ]
    assert document == named[0] | {"others": named[1:]}
    assert all(is_complete(home) for home in homes.values())
    assert not set(server.fetched) & set(versions["a"].blobs)  # was complete the first time
    free_space(tmp_path / "datasets", 0, 0)
    assert all(home.exists() for home in homes.values())
    fetcher.release()
    free_space(tmp_path / "datasets", 0, 0)
    assert not any(home.exists() for home in homes.values())


def test_built_in_data_causes_no_calls(tmp_path: Path) -> None:
    version = Version()
    folder, dataset_server = write_attempt(tmp_path, version), DatasetServer(version)
    rundir.AttemptDir(folder).run.write_text(
        json.dumps({"run": {"spec": {"flow": {"blocks": []}}}, "dataDir": str(tmp_path)})
    )
    DatasetFetcher(folder, dataset_server).fetch()
    assert (dataset_server.asks, rundir.AttemptDir(folder).dataset.exists()) == (0, False)


def fetch_and_log(folder: Path, version: Version, log: Path) -> None:
    DatasetFetcher(folder, DatasetServer(version, log)).fetch()


def test_two_concurrent_attempts_fetch_nothing_twice(tmp_path: Path) -> None:
    version, log = Version(), tmp_path / "fetched"
    folders = [write_attempt(tmp_path, version, number=number) for number in (1, 2, 3)]
    running = [
        CONTEXT.Process(target=fetch_and_log, args=(folder, version, log)) for folder in folders
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(30)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert sorted(log.read_text().split()) == sorted(version.blobs)
    assert all(has_all_files(folder, version) for folder in folders)


def test_the_limit_removes_the_least_recently_used_versions_and_none_in_use(tmp_path: Path) -> None:
    versions = [Version(name, shared=name.encode() * 400) for name in "abcd"]
    homes = [tmp_path / "datasets" / "org" / version.id for version in versions]
    held: list[DatasetFetcher] = []
    for number, version in enumerate(versions[:3]):
        fetcher = DatasetFetcher(write_attempt(tmp_path, version), DatasetServer(version))
        fetcher.fetch()
        os.utime(homes[number], (1000 + number, 1000 + number))
        held.append(fetcher)
    held[1].release()
    held[2].release()
    one = sum(path.stat().st_size for path in homes[0].rglob("*") if path.is_file())
    last = DatasetFetcher(
        write_attempt(tmp_path, versions[3], limit_bytes=3 * one + one // 2),
        DatasetServer(versions[3]),
    )
    last.fetch()
    # The oldest is in use by its attempt, so the next one is removed.
    assert [home.exists() for home in homes] == [True, False, True, True]
    free_space(tmp_path / "datasets", 0, 0)
    assert [home.exists() for home in homes] == [True, False, False, True]
    held[0].release()
    free_space(tmp_path / "datasets", 0, 0)
    assert [home.exists() for home in homes] == [False, False, False, True]
    last.release()


# Writes down the dataset it got.
READS_DATASET = """
import json
def train(folder):
    from runyard import rundir
    rundir.write_json(folder / "seen", rundir.read_json(folder / "dataset.json"))
    result = {"outcome": "Succeeded", "reason": "Completed", "message": ""}
    rundir.write_json(folder / "result.json", result)
    return 0
"""


def serve_version(server: Any, version: Version) -> None:
    import msgspec

    server.dataset = msgspec.to_builtins(version.description)
    server.contents = version.contents
    server.blobs |= version.blobs


@pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")
@pytest.mark.parametrize("failure", [None, "503", "cut"])
def test_a_real_supervisor_fetches_the_dataset_before_training_starts(
    folder: Path, tmp_path: Path, server: Any, start: Start, failure: str | None
) -> None:
    version = Version()
    write_run(folder, version, data_dir=tmp_path)
    serve_version(server, version)
    fails = ("attempt/dataset", "dataset/contents", version.packs[0])
    server.fail = lambda path, times: (
        failure if times == 1 and path.partition("?")[0].endswith(fails) else None
    )
    assert start(folder, READS_DATASET).wait(60) == 0
    assert rundir.read_json(folder / "seen") == read_dataset_document(folder)
    assert has_all_files(folder, version)


@pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")
def test_a_kill_while_a_dataset_is_fetched_works(
    folder: Path, tmp_path: Path, server: Any, start: Start
) -> None:
    version = Version()
    write_run(folder, version, data_dir=tmp_path)
    serve_version(server, version)
    server.fail = lambda path, times: "503" if "blobs" in path else None
    supervisor = start(folder, READS_DATASET)
    server.wait_for(lambda: any("blobs" in call for call in server.calls))
    with server.changed:
        server.renewal = {"action": "kill", "lease_s": 1.2, "grace_s": 0.5, "epoch": "e1"}
    assert supervisor.wait(20) == 0
    assert not (folder / "seen").exists()
    assert (server.reports[0]["exit_code"], server.reports[0]["group_empty"]) == (75, True)
