# Generated from test_datasets_async.py by scripts/unasync: change that file, then run the script.
"""``client.datasets`` against a real server: imports, findings, resumed uploads, clean-up."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

import vi
from vi._concurrency import synchronous as concurrency
from vi.api.resources.datasets.responses import DatasetImport


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class CuttableTransport(httpx2.HTTPTransport):
    """A real connection that breaks permanently after some uploads."""

    def __init__(self, uploads: int) -> None:
        super().__init__()
        self.uploads_left = self.uploads_under_way = uploads
        self.asked: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(f"{request.method} {request.url.path.split('/')[1]}")
        if request.method != "PUT":
            return super().handle_request(request)
        self.uploads_left -= 1
        if self.uploads_left >= 0:
            answer = super().handle_request(request)
            self.uploads_under_way -= 1
            return answer
        while self.uploads_under_way:
            concurrency.sleep(0.01)
        raise httpx2.ConnectError("the network is gone")


@pytest.fixture
def sdk(instance: Any) -> Iterator[vi.Client]:
    with vi.Client(
        instance.secret_key, instance.organization_id, endpoint=instance.endpoint
    ) as client:
        yield client


@pytest.fixture
def make_vqa_files(tmp_path: Path) -> Path:
    """Create twelve images with a question each; line 13 is about a missing image."""
    folder = tmp_path / "shelf"
    (folder / "images").mkdir(parents=True)
    lines = [row(number) for number in range(13)]
    for number in range(12):
        Image.new("RGB", (40, 30), (number * 20, 90, 60)).save(
            folder / "images" / f"{number:02}.png"
        )
    (folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def row(number: int) -> dict[str, Any]:
    return {
        "id": f"row-{number}",
        "asset": {"filename": f"images/{number:02}.png", "width": 40, "height": 30},
        "contents": {
            "type": "Vqa",
            "interactions": [{"order": 1, "question": "Which one?", "answer": f"number {number}"}],
        },
    }


def test_a_folder_becomes_a_dataset_with_a_version_and_its_defects(
    sdk: vi.Client, make_vqa_files: Path
) -> None:
    (make_vqa_files / "out.png").symlink_to("/etc/hostname")
    phases: list[str] = []

    def look(imported: DatasetImport) -> None:
        phases.append(imported.status.progress.phase)

    imported = sdk.datasets.import_folder(make_vqa_files, progress=look)
    assert imported.is_accepted
    assert (imported.dataset.name, imported.dataset.type) == ("shelf", "vqa")
    assert (
        imported.dataset.statistic.asset_total,
        imported.dataset.statistic.annotation_total,
    ) == (12, 12)
    assert imported.version is not None
    assert (imported.version.assets, imported.version.records) == (12, 12)
    assert imported.dataset.version == imported.version.version_id
    assert [(found.file, found.line, found.code) for found in imported.findings] == [
        ("out.png", None, "NameUnsafe"),
        ("labels.jsonl", 13, "ImageMissing"),
    ]
    assert (phases[0], phases[-1]) == ("Sending", "Done")
    assert imported.summary() == (
        "shelf: 12 images, 12 of 13 rows accepted, 1 rejected (ViJsonl, vqa); 1 error, 0 warnings"
    )
    assert [found.file for found in imported.skipped] == ["out.png"]
    sdk.datasets.delete(imported.dataset_id)


def test_the_report_can_be_read_later_and_by_dataset(sdk: vi.Client, make_vqa_files: Path) -> None:
    imported = sdk.datasets.import_folder(make_vqa_files, progress=False)
    report = sdk.datasets.report(imported.dataset_id)
    assert (report.import_id, report.images, report.rows_kept, report.errors) == (
        imported.import_id,
        12,
        12,
        1,
    )
    assert [(group.code, group.count, group.first[0].line) for group in report.groups] == [
        ("ImageMissing", 1, 13)
    ]
    errors = sdk.datasets.findings(imported, severity="error")
    assert [found.cure for found in errors.items] == [report.groups[0].first[0].cure]
    assert (sdk.datasets.findings(imported, code="BoxOutside")).items == []
    assert "ImageMissing" in sdk.datasets.report_html(imported.session)
    sdk.datasets.delete(imported.dataset_id)
    with pytest.raises(vi.ViNotFoundError):
        sdk.datasets.report(imported.dataset_id)


def test_an_import_that_accepts_nothing_says_why_and_can_be_repeated(
    sdk: vi.Client, make_vqa_files: Path
) -> None:
    with pytest.raises(vi.ViImportFailedError, match="onError is RejectAll") as caught:
        sdk.datasets.import_folder(make_vqa_files, on_error="RejectAll", progress=False)
    failed = caught.value.imported
    assert failed is not None
    assert [found.code for found in failed.findings] == ["ImageMissing"]
    assert failed.dataset.statistic.asset_total == 0
    lines = (make_vqa_files / "labels.jsonl").read_text().splitlines(keepends=True)
    (make_vqa_files / "labels.jsonl").write_text("".join(lines[:12]))
    mended = sdk.datasets.import_folder(
        make_vqa_files, on_error="RejectAll", dataset_id=failed.dataset_id, progress=False
    )
    assert (mended.dataset.type, mended.dataset.statistic.annotation_total) == ("vqa", 12)
    assert len((sdk.datasets.imports.list(mended.dataset_id)).items) == 2
    sdk.datasets.delete(mended.dataset_id)


def test_more_files_make_another_version_and_the_same_files_do_not(
    sdk: vi.Client, make_vqa_files: Path
) -> None:
    first = sdk.datasets.import_folder(
        make_vqa_files, name="grows", dataset_type="vqa", progress=False
    )
    again = sdk.datasets.import_folder(make_vqa_files, dataset_id=first.dataset_id, progress=False)
    assert first.version is not None and again.version is not None
    assert again.version.version_id == first.version.version_id
    Image.new("RGB", (40, 30), (9, 9, 9)).save(make_vqa_files / "images" / "12.png")
    more = sdk.datasets.import_folder(make_vqa_files, dataset_id=first.dataset_id, progress=False)
    versions = (sdk.datasets.versions.list(first.dataset_id)).items
    assert more.version is not None
    assert [(version.version_id, version.records) for version in versions] == [
        (more.version.version_id, 13),
        (first.version.version_id, 12),
    ]
    got = sdk.datasets.versions.get(first.dataset_id, first.version.version_id)
    assert got == first.version
    sdk.datasets.delete(first.dataset_id)


def test_an_interrupted_import_resumes_with_the_missing_files(
    sdk: vi.Client, instance: Any, make_vqa_files: Path
) -> None:
    # Bytes that no other test has sent: bytes that are just being removed are requested twice.
    (make_vqa_files / "a.bin").write_bytes(os.urandom(16))
    for number in range(3):  # each is its own pack
        with open(make_vqa_files / f"large{number}.bin", "wb") as file:
            file.write(os.urandom(16))
            file.truncate((16 << 20) + 1)
    weak = CuttableTransport(uploads=2)
    credentials = (instance.secret_key, instance.organization_id)
    client = vi.Client(*credentials, endpoint=instance.endpoint, transport=weak, max_retries=0)
    with pytest.raises(vi.ViNetworkError) as caught:
        client.datasets.import_folder(make_vqa_files, name="cut", progress=False)
    client.close()
    weak.close()
    dataset = next(item for item in (sdk.datasets.list()).items if item.name == "cut")
    broken = (sdk.datasets.imports.list(dataset.dataset_id))[0]
    assert repr(broken.import_id) in str(caught.value.suggestion) and repr(
        dataset.dataset_id
    ) in str(caught.value)
    strong = CuttableTransport(uploads=100)
    with vi.Client(*credentials, endpoint=instance.endpoint, transport=strong) as client:
        done = client.datasets.import_folder(
            make_vqa_files, dataset_id=dataset.dataset_id, resume=broken.import_id, progress=False
        )
    strong.close()
    assert done.import_id == broken.import_id
    assert done.dataset.statistic.annotation_total == 12
    assert (strong.asked.count("HEAD uploads"), strong.asked.count("PUT uploads")) == (4, 2)
    sdk.datasets.delete(dataset.dataset_id)


def test_an_interrupt_cancels_the_import_and_leaves_nothing(
    sdk: vi.Client, make_vqa_files: Path
) -> None:
    def interrupt(imported: DatasetImport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sdk.datasets.import_folder(make_vqa_files, name="interrupted", progress=interrupt)
    assert "interrupted" not in [
        dataset.name for dataset in (sdk.datasets.list({"page_size": 100})).items
    ]


def test_a_cancelled_import_leaves_an_existing_dataset_unchanged(
    sdk: vi.Client, make_vqa_files: Path
) -> None:
    dataset = sdk.datasets.create("mine", "vqa")
    session = sdk.datasets.imports.create(dataset.dataset_id)
    assert (sdk.datasets.imports.cancel(dataset.dataset_id, session.import_id)).has_failed
    with pytest.raises(vi.ViConflictError, match=session.import_id):
        sdk.datasets.imports.finish(dataset.dataset_id, session.import_id, [])
    assert (sdk.datasets.get(dataset.dataset_id)).statistic.asset_total == 0
    sdk.datasets.delete(dataset.dataset_id)


def test_a_dataset_is_created_updated_listed_and_deleted(sdk: vi.Client) -> None:
    dataset = sdk.datasets.create("Shelves", "freeform", description="all", metadata={"room": "1"})
    prefixed = f"{sdk.organization_id}_{dataset.dataset_id}"
    changed = sdk.datasets.update(
        prefixed, {"name": "Racks"}, {"room": None, "floor": "2"}, if_match=dataset.etag
    )
    assert (changed.name, changed.description, changed.metadata.attributes) == (
        "Racks",
        "all",
        {"floor": "2"},
    )
    with pytest.raises(vi.ViConflictError):
        sdk.datasets.update(dataset.dataset_id, {"name": "Other"}, if_match=dataset.etag)
    assert dataset.dataset_id in [item.dataset_id for item in sdk.datasets]
    assert (sdk.datasets.statistics(dataset.dataset_id))["assets"] == 0
    deleted = sdk.datasets.delete(dataset.dataset_id)
    assert deleted.dataset_id == dataset.dataset_id
    assert (sdk.datasets.get_deletion_operation(dataset.dataset_id)).status.conditions[
        0
    ].condition == "Finished"
    with pytest.raises(vi.ViNotFoundError):
        sdk.datasets.get(dataset.dataset_id)


def test_wrong_arguments_are_reported_before_anything_is_sent(
    sdk: vi.Client, make_vqa_files: Path
) -> None:
    before = [item.dataset_id for item in sdk.datasets]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"dataset_id": "d1", "name": "x"}, "dataset_id names an existing one"),
        ({"resume": "i1"}, "resume requires dataset_id"),
    ]
    for arguments, word in wrong:
        with pytest.raises(vi.ViInvalidParameterError, match=word):
            sdk.datasets.import_folder(make_vqa_files, progress=False, **arguments)
    with pytest.raises(vi.ViValidationError):
        sdk.datasets.import_folder(make_vqa_files, on_error="Shrug", progress=False)
    assert [item.dataset_id for item in sdk.datasets] == before
