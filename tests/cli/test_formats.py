"""Round trips of a small sample of every format: import, export to every format, import again.

``make formats`` writes each sample in each format that can carry it, ``make test-slow`` each format
once, and the default suite one format for each type of dataset.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vi
from runyard.datasets.writers.registry import WRITERS
from tests.support.slow import mark_slow

SAMPLES = Path(__file__).parent.parent / "samples"
# The type of each sample.
FORMATS = {
    "captions": ("Captions", "freeform"),
    "class-folders": ("Captions", "vqa"),
    "coco": ("Coco", "phrase-grounding"),
    "coco-captions": ("Coco", "freeform"),
    "csv-four-corner": ("CsvFourCorner", "phrase-grounding"),
    "csv-width-height": ("CsvWidthHeight", "phrase-grounding"),
    "hugging-face": ("Parquet", "phrase-grounding"),
    "image-folder": ("Table", "freeform"),
    "llava": ("Conversations", "vqa"),
    "messages": ("Conversations", "vqa"),
    "parquet": ("Parquet", "vqa"),
    "vi-jsonl-freeform": ("ViJsonl", "freeform"),
    "vi-jsonl-grounding": ("ViJsonl", "phrase-grounding"),
    "vi-jsonl-vqa": ("ViJsonl", "vqa"),
    "voc": ("PascalVoc", "phrase-grounding"),
    "webdataset": ("WebDataset", "freeform"),
    "yolo-darknet": ("YoloDarknet", "phrase-grounding"),
    "yolo-ultralytics": ("YoloKerasPytorch", "phrase-grounding"),
}
# One sample for each type of dataset, and a format to write it in.
QUICK = {"captions": "ViFull", "csv-width-height": "Coco", "vi-jsonl-vqa": "Conversations"}
KEEPS_EVERYTHING = ("ViJsonl", "ViFull", "Parquet")
Said = dict[str, list[Any]]


def grid() -> list[Any]:
    """Sample and format out."""
    pairs = []
    for place, writer in enumerate(WRITERS):
        fitting = [sample for sample, (_, task) in FORMATS.items() if task in writer.types]
        if not os.environ.get("RUNYARD_ALL_FORMATS"):
            fitting = [fitting[2 * place % len(fitting)]]
        pairs += [(sample, writer.name) for sample in fitting]
    return mark_slow(pairs, unless=lambda pair: pair in QUICK.items())


@pytest.fixture(scope="module")
def import_sample(client: vi.Client) -> Callable[[str], Any]:
    """A sample that the SDK has imported, once for all tests."""
    done: dict[str, Any] = {}

    def find(sample: str) -> Any:
        if sample not in done:
            done[sample] = client.datasets.import_folder(
                SAMPLES / sample, name=sample, progress=False
            )
        return done[sample]

    return find


def read_annotations(client: vi.Client, dataset_id: str, folder: Path) -> Said:
    """Annotations of each image by its SHA-256, without ids and names."""
    client.datasets.download(
        dataset_id, export_settings="ViJsonl", save_dir=folder, show_progress=False
    )
    images = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.jpg")
        if path.is_file()
    }
    found: Said = {}
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(images[Path(row["asset"]["filename"]).name], []).append(
                row["contents"]
            )
    return found


def boxes(contents: dict[str, Any]) -> list[tuple[str, list[float]]]:
    return [
        (phrase["phrase"], box)
        for phrase in contents["groundedPhrases"]
        for box in phrase["bounds"]
    ]


def list_questions(records: list[dict[str, Any]]) -> list[Any]:
    """List turns, texts, and independent questions, which may be in one record or in several."""
    return [part for contents in records for part in list_parts(contents)]


def list_parts(contents: dict[str, Any]) -> list[Any]:
    if contents["type"] == "Vqa":
        return [(one["question"], one["answer"]) for one in contents["interactions"]]
    return [contents]


def assert_carried(before: Said, after: Said, format: str) -> None:
    """Equal except for what a detection or caption format cannot store: sentences and prompts."""
    assert after.keys() == before.keys()
    for picture, [contents] in before.items():
        if format == "Conversations":
            assert list_questions(after[picture]) == list_questions([contents])
            continue
        [again] = after[picture]
        if format in KEEPS_EVERYTHING:
            assert again == contents
        elif contents["type"] == "Freeform":
            assert again["text"] == contents["text"]
        else:
            assert len(boxes(again)) == len(boxes(contents))
            for (phrase, box), (known, corners) in zip(
                sorted(boxes(again)), sorted(boxes(contents)), strict=True
            ):
                assert phrase == known
                assert box == pytest.approx(corners, abs=4e-6)
            if contents["caption"] == ", ".join(
                phrase["phrase"] for phrase in contents["groundedPhrases"]
            ):
                assert again["caption"] == contents["caption"]


@pytest.mark.parametrize("sample", mark_slow(FORMATS, unless=lambda sample: sample in QUICK))
def test_sdk_and_command_line_import_the_same_rows_of_a_sample(
    runyard: Callable[..., Any],
    instance: Any,
    client: vi.Client,
    import_sample: Callable[[str], Any],
    sample: str,
) -> None:
    ours = import_sample(sample)
    assert (ours.session.status.format, ours.dataset.type) == FORMATS[sample]
    assert (ours.session.status.progress.rows_kept, ours.session.status.findings.errors) == (4, 0)
    arguments = ("--name", f"{sample} again", "--json", "--data-dir", str(instance.data_dir))
    result = runyard("datasets", "import", str(SAMPLES / sample), *arguments)
    assert result.exit_code == 0, result.output
    session = json.loads(result.stdout)
    # A version's id is the hash of all that it holds.
    assert session["status"]["version"] == ours.version.version_id
    client.datasets.delete(session["datasetId"])


@pytest.mark.parametrize(("sample", "format"), grid())
def test_imported_data_survives_an_export_and_reimport(
    client: vi.Client, import_sample: Callable[[str], Any], tmp_path: Path, sample: str, format: str
) -> None:
    ours = import_sample(sample)
    client.datasets.download(
        ours.dataset_id, export_settings=format, save_dir=tmp_path / "out", show_progress=False
    )
    again = client.datasets.import_folder(
        tmp_path / "out" / ours.dataset_id,
        name=f"{sample} as {format}",
        dataset_type=ours.dataset.type,
        progress=False,
    )
    assert again.session.status.findings.errors == 0
    before = read_annotations(client, ours.dataset_id, tmp_path / "before")
    assert_carried(before, read_annotations(client, again.dataset_id, tmp_path / "after"), format)
    client.datasets.delete(again.dataset_id)
