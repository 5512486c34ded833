# Generated from test_assets_async.py by scripts/unasync: change that file, then run the script.
"""``client.assets`` and ``client.annotations`` with a real server: create, read, change, delete."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vi
from vi.api.resources.annotations.responses import BoundingBox, Caption
from vi.api.resources.assets.types import AssetSortCriterion, SortCriterion, SortOrder
from vi.api.resources.datasets.responses import Dataset


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def png(number: int, side: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (number * 30, 10, 200)).save(file, "PNG")
    return file.getvalue()


def grounding(number: int, filename: str) -> str:
    phrase = {
        "phrase": "blue square",
        "startTokenIndex": 1,
        "endTokenIndex": 3,
        "bounds": [[0.25, 0.25, 0.5, 0.75]],
    }
    contents = {"type": "PhraseGrounding", "caption": "a blue square", "groundedPhrases": [phrase]}
    asset = {"filename": filename, "width": 24, "height": 24}
    return json.dumps({"id": f"row-{number}", "asset": asset, "contents": contents}) + "\n"


@pytest.fixture
def sdk(instance: Any) -> Iterator[vi.Client]:
    with vi.Client(
        instance.secret_key, instance.organization_id, endpoint=instance.endpoint
    ) as client:
        yield client


@pytest.fixture
def dataset(sdk: vi.Client, tmp_path: Path) -> Iterator[Dataset]:
    """Create three images: two from a folder, one from memory."""
    dataset = sdk.datasets.create("squares")
    folder = tmp_path / "squares"
    (folder / "more").mkdir(parents=True)
    (folder / "0.png").write_bytes(png(0))
    (folder / "more" / "1.png").write_bytes(png(1))
    (folder / "notes.txt").write_text("no image")
    sent = sdk.assets.upload(dataset.dataset_id, folder, [("2.png", png(2))], show_progress=False)
    assert (sent.total_files, sent.total_succeeded, sent.failed_files, sent.is_complete) == (
        3,
        3,
        {},
        True,
    )
    yield dataset
    sdk.datasets.delete(dataset.dataset_id)


def test_images_are_listed_counted_and_sorted(sdk: vi.Client, dataset: Dataset) -> None:
    page = sdk.assets.list(dataset.dataset_id, sort_by="filename")
    assert [asset.filename for asset in page.items] == ["0.png", "2.png", "more/1.png"]
    down = AssetSortCriterion(SortCriterion.FILENAME, SortOrder.DESC)
    pages = sdk.assets.list(dataset.dataset_id, {"page_size": 2}, sort_by=down)
    assert [asset.filename for asset in pages.all_items()] == ["more/1.png", "2.png", "0.png"]
    found = sdk.assets.list(dataset.dataset_id, filter_criteria="more", contents=True)
    assert [asset.filename for asset in found.items] == ["more/1.png"]
    assert found[0].contents is not None and found[0].contents.asset is not None
    assert sdk.assets.count(dataset.dataset_id) == 3
    assert sdk.assets.count(dataset.dataset_id, "more") == 1
    one = sdk.assets.get(dataset.dataset_id, page[0].asset_id)
    assert (one.metadata.width, one.metadata.height, one.metadata.mime_type) == (
        24,
        24,
        "image/png",
    )
    assert one.metadata.sha256 == hashlib.sha256(png(0)).hexdigest()


def test_images_are_renamed_and_deleted(sdk: vi.Client, dataset: Dataset) -> None:
    first, second, _ = (sdk.assets.list(dataset.dataset_id, sort_by="filename")).items
    sdk.assets.rename(dataset.dataset_id, "a.png", asset_id=first.asset_id)
    sdk.assets.rename(dataset.dataset_id, "b.png", filename="more/1.png")
    with pytest.raises(vi.ViConflictError):
        sdk.assets.rename(dataset.dataset_id, "a.png", asset_id=second.asset_id)
    with pytest.raises(vi.ViInvalidParameterError):
        sdk.assets.rename(dataset.dataset_id, "c.png")
    assert (sdk.assets.delete(dataset.dataset_id, second.asset_id)).id == second.asset_id
    left = sdk.assets.list(dataset.dataset_id, sort_by="filename")
    assert [asset.filename for asset in left.items] == ["a.png", "b.png"]
    sdk.datasets.bulk_delete_assets(dataset.dataset_id, filter_criteria="b.png")
    assert sdk.assets.count(dataset.dataset_id) == 1


def test_images_are_downloaded_unchanged(sdk: vi.Client, dataset: Dataset, tmp_path: Path) -> None:
    fetched = sdk.assets.download(dataset.dataset_id, tmp_path / "out", show_progress=False)
    assert (fetched.count, fetched.file_list) == (3, ["0.png", "2.png", "more/1.png"])
    assert (fetched.save_path / "more" / "1.png").read_bytes() == png(1)
    (fetched.save_path / "0.png").write_bytes(b"cut")
    sdk.assets.download(dataset.dataset_id, tmp_path / "out", show_progress=False)
    assert (fetched.save_path / "0.png").read_bytes() == png(0)


def test_a_file_that_is_not_an_image_is_named(sdk: vi.Client, dataset: Dataset) -> None:
    broken = [("ok.png", png(5)), ("broken.png", b"\x89PNG and nothing more")]
    with pytest.raises(vi.ViOperationError, match=r"broken\.png"):
        sdk.assets.upload(dataset.dataset_id, assets_bytes=broken, show_progress=False)
    assert sdk.assets.count(dataset.dataset_id) == 4
    some = sdk.assets.upload(
        dataset.dataset_id, assets_bytes=broken, failure_mode="FailAfterAll", show_progress=False
    )
    assert (some.total_succeeded, list(some.failed_files)) == (1, ["broken.png"])
    assert sdk.assets.count(dataset.dataset_id) == 4


def test_annotations_are_sent_listed_updated_and_deleted(
    sdk: vi.Client, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "labels.jsonl").write_text(grounding(0, "0.png") + grounding(1, "1.png"))
    sent = sdk.annotations.upload(
        dataset.dataset_id, tmp_path / "labels.jsonl", show_progress=False
    )
    assert sent.is_complete
    assert sent.total_files == 1
    assert (sdk.datasets.get(dataset.dataset_id)).statistic.annotation_total == 2
    asset = (sdk.assets.list(dataset.dataset_id, sort_by="filename"))[0]
    parts = (sdk.annotations.list(dataset.dataset_id, asset.asset_id)).items
    [caption] = [part for part in parts if isinstance(part.spec.contents, Caption)]
    [box] = [part for part in parts if isinstance(part.spec.contents, BoundingBox)]
    assert caption.spec.contents == Caption(contents="a blue square")
    assert isinstance(box.spec.contents, BoundingBox)
    assert box.spec.contents.bound[0] == (0.25, 0.25)
    place = (dataset.dataset_id, asset.asset_id, box.annotation_id)
    assert sdk.annotations.get(*place) == box
    corners = [[0.5, 0.5], [1, 0.5], [1, 1], [0.5, 1]]
    contents = {"kind": "PhraseGroundingBoundingBox", "bound": corners, "target": [1, 3]}
    changed = sdk.annotations.update(*place, {"spec": {"contents": contents}})
    assert isinstance(changed.spec.contents, BoundingBox)
    assert changed.spec.contents.bound[2] == (1, 1)
    sdk.annotations.delete(*place)
    with pytest.raises(vi.ViNotFoundError):
        sdk.annotations.get(*place)


def test_bad_annotations_are_refused_by_policy(
    sdk: vi.Client, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "labels.jsonl").write_text(grounding(0, "0.png") + grounding(1, "nowhere.png"))
    with pytest.raises(vi.ViOperationError, match="the upload of annotations failed"):
        sdk.annotations.upload(dataset.dataset_id, tmp_path / "labels.jsonl", show_progress=False)
    assert (sdk.datasets.get(dataset.dataset_id)).statistic.annotation_total == 0
    sdk.annotations.upload(
        dataset.dataset_id,
        tmp_path / "labels.jsonl",
        show_progress=False,
        on_bad_annotation="Warn",
        on_bad_file="Warn",
    )
    assert (sdk.datasets.get(dataset.dataset_id)).statistic.annotation_total == 1


def test_a_dataset_is_exported_and_imported_again(
    sdk: vi.Client, dataset: Dataset, tmp_path: Path
) -> None:
    lines = [grounding(0, "0.png"), grounding(1, "more/1.png"), grounding(2, "2.png")]
    (tmp_path / "labels.jsonl").write_text("".join(lines))
    sdk.annotations.upload(dataset.dataset_id, tmp_path, show_progress=False)
    whole = sdk.datasets.download(
        dataset.dataset_id, save_dir=tmp_path / "whole", show_progress=False
    )
    assert (whole.splits, whole.asset_count) == (["dump"], 3)
    with pytest.raises(vi.ViDownloadError, match="already exists"):
        sdk.datasets.download(dataset.dataset_id, save_dir=tmp_path / "whole", show_progress=False)
    settings = {"format": "Coco", "options": {"splitRatio": None}}
    coco = sdk.annotations.download(
        dataset.dataset_id,
        export_settings=settings,
        save_dir=tmp_path / "coco",
        show_progress=False,
    )
    [labels] = [path for path in coco.save_path.rglob("*.json") if path.name != "metadata.json"]
    assert len(json.loads(labels.read_text())["annotations"]) == 3
    exports = (sdk.datasets.list_exports(dataset.dataset_id)).items
    assert [export.spec.format for export in exports][-1] == "ViFull"
    again = sdk.datasets.import_folder(whole.save_path, name="again", progress=False)
    assert (again.dataset.statistic.asset_total, again.dataset.statistic.annotation_total) == (3, 3)
    sheet = sdk.datasets.preview(again.dataset_id, tmp_path / "sheet.png", count=2)
    with Image.open(sheet) as drawn:
        assert drawn.format == "PNG"
    sdk.datasets.delete(again.dataset_id)
