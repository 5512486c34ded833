"""The dataset's own split is read from names and columns; else content, seed and share decide."""

import hashlib
import json
from pathlib import Path

import pytest

from runyard.datasets.findings import Finding
from runyard.datasets.ingest import IngestOutcome, check_folder
from runyard.datasets.splits import (
    KnownImage,
    Split,
    SplitAssigner,
    SplitPolicy,
    find_common_folder,
    find_row_split,
    find_split,
    format_counts,
    is_held_out,
)
from tests.datasets.conftest import SourceFolder, png


def test_the_split_is_by_content_and_seed_alone() -> None:
    images = [hashlib.sha256(bytes([number])).digest() for number in range(200)]
    first = [is_held_out(image, seed=1, fraction=0.2) for image in images]
    assert first == [is_held_out(image, seed=1, fraction=0.2) for image in images]
    assert first != [is_held_out(image, seed=2, fraction=0.2) for image in images]
    # A larger share only adds.
    assert all(
        is_held_out(image, seed=1, fraction=0.5)
        for image, was in zip(images, first, strict=True)
        if was
    )


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        *(("train", "train"), ("Training", "train"), ("train2017", "train")),
        *(("train_images", "train"), ("TrainImages", "train"), ("training-set", "train")),
        *(("val", "validation"), ("VALID", "validation"), ("dev", "validation")),
        *(("val2017", "validation"), ("validation", "validation"), ("images_val", "validation")),
        *(("test", "test"), ("testing", "test"), ("test-dev", "test"), ("test-dev2017", "test")),
        *(("trainval", None), ("val_test", None), ("my test", None), ("contest", None)),
        *(("images", None), ("trains", None), ("2017", None), ("testbench", None), ("", None)),
    ],
)
def test_a_whole_folder_name_is_a_split(folder: str, split: Split | None) -> None:
    assert find_split(f"{folder}/a.jpg") == split
    assert find_split(f"shelf/{folder}/images/a.jpg") == split
    assert find_split(f"{folder}.jpg") is None


def test_the_outermost_folder_decides() -> None:
    assert find_split("test/train/7.jpg") == "test"  # of a class of trains


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("train.csv", "train"),
        ("_annotations.valid.jsonl", "validation"),
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("image_info_test-dev2017.json", "test"),
        ("test/metadata.jsonl", "test"),
        ("latest.json", None),
        ("train_val.json", None),
    ],
)
def test_a_word_of_a_label_file_is_a_split(path: str, split: Split | None) -> None:
    assert find_split(path, reads_name=True) == split


@pytest.mark.parametrize(
    ("row", "split"),
    [
        ({"split": "TRAIN"}, "train"),
        ({"Split": " val "}, "validation"),
        ({"ml_use": "validate"}, "validation"),
        ({"subset": "test"}, "test"),
        ({"split": "holdout"}, None),
        ({"split": 1}, None),
        ({"split": None, "text": "train"}, None),
    ],
)
def test_a_column_names_the_split(row: dict[str, object], split: Split | None) -> None:
    assert find_row_split(row) == split


def test_the_common_folder_contains_all_paths() -> None:
    assert find_common_folder(["a/b/1", "a/b/2", "a/b/c/3"]) == "a/b"
    assert find_common_folder(["a/b/1", "a/bc/2"]) == "a"
    assert find_common_folder(["a/1", "a-b/2"]) == ""
    assert (find_common_folder(["1"]), find_common_folder([])) == ("", "")


def test_counts_are_shown_for_people() -> None:
    assert format_counts({"train": 1700, "test": 62}) == "1,700 train, 62 test images"
    assert format_counts({"test": 1, "unsplit": 4}) == "1 test image, 4 of no split"
    assert (format_counts({}), format_counts({"unsplit": 4})) == ("", "")


# Folders ------------------------------------------------------------------------------------------


def check(folder: SourceFolder, split: SplitPolicy = "keep") -> tuple[IngestOutcome, list[Finding]]:
    findings: list[Finding] = []
    outcome = check_folder(folder.folder, split=split, on_finding=findings.append)
    assert outcome.decision == "Accepted", findings
    return outcome, [found for found in findings if found.code == "SplitConflict"]


def put_yolo(folder: SourceFolder, *names: str) -> SourceFolder:
    """Write images of different colors, each with a label below ``labels``."""
    folder.put("data.yaml", "names: [tin]\n")
    for number, name in enumerate(names):
        folder.put(f"{name}.png", png(color=(number * 40, 9, 9)))
        folder.put(f"{name.replace('images', 'labels')}.txt", "0 .5 .5 .2 .2\n")
    return folder


def text_row(filename: str, **more: str) -> str:
    contents = {"type": "Freeform", "text": f"about {filename}"}
    row = {"id": f"{filename}{more}", "asset": {"filename": filename}, "contents": contents}
    return json.dumps({**row, **more}) + "\n"


def test_folders_divide_a_dataset(source_folder: SourceFolder) -> None:
    put_yolo(source_folder, "train/images/a", "train/images/b", "valid/images/c", "test/images/d")
    outcome, conflicts = check(source_folder)
    assert outcome.counts["splits"] == {"train": 2, "validation": 1, "test": 1}
    assert conflicts == []
    assert check(source_folder, "ignore")[0].counts["splits"] == {}


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["train/images/a", "train/images/b"], {}),
        (["test/images/a", "test/images/b"], {}),
        (["train/images/a", "more/images/b"], {}),  # both are trained on
        (["shelf/images/a", "test/images/b"], {"test": 1, "unsplit": 1}),
        # A folder that everything is in divides nothing.
        (["test/images/train/a", "test/images/val/b"], {"train": 1, "validation": 1}),
    ],
)
def test_a_split_is_kept_only_if_it_divides(
    source_folder: SourceFolder, names: list[str], counts: dict[str, int]
) -> None:
    assert check(put_yolo(source_folder, *names))[0].counts["splits"] == counts


def test_names_of_label_files_divide_a_dataset(source_folder: SourceFolder) -> None:
    for number, split in enumerate(("train", "val")):
        source_folder.put(f"images/{number}.png", png(color=(number, 9, 9)))
        document = {
            "images": [{"id": 1, "file_name": f"{number}.png", "width": 40, "height": 20}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10]}],
            "categories": [{"id": 1, "name": "tin"}],
        }
        source_folder.put(f"annotations/instances_{split}2017.json", json.dumps(document))
    assert check(source_folder)[0].counts["splits"] == {"train": 1, "validation": 1}


def test_the_label_file_of_one_image_names_no_split(source_folder: SourceFolder) -> None:
    put_yolo(source_folder, "images/test_1", "images/train_1", "images/val_1")
    assert check(source_folder)[0].counts["splits"] == {}


def test_a_column_wins_over_the_label_file_and_that_over_folders(
    source_folder: SourceFolder,
) -> None:
    for number, name in enumerate(("train/a.png", "train/b.png", "train/c.png", "d.png")):
        source_folder.put(name, png(color=(number, 9, 9)))
    source_folder.put("rows.jsonl", text_row("train/a.png"))
    rows = text_row("train/b.png") + text_row("train/c.png", split="val")
    source_folder.put("test.jsonl", rows)
    counts = {"train": 1, "validation": 1, "test": 1, "unsplit": 1}
    assert check(source_folder)[0].counts["splits"] == counts


def test_a_column_of_a_csv_divides_a_dataset(source_folder: SourceFolder) -> None:
    lines = ["filename,xmin,ymin,xmax,ymax,class,split"]
    for number, split in enumerate(("train", "train", "test")):
        source_folder.put(f"{number}.png", png(color=(number, 9, 9)))
        lines.append(f"{number}.png,1,2,20,10,tin,{split}")
    source_folder.put("labels.csv", "\n".join(lines))
    assert check(source_folder)[0].counts["splits"] == {"train": 2, "test": 1}
    source_folder.put("labels.csv", "\n".join([*lines, "0.png,1,2,20,15,jar,test"]))
    outcome, [conflict] = check(source_folder)
    assert outcome.counts["splits"] == {"train": 2, "test": 1}
    assert conflict.file == "labels.csv"


def test_an_image_in_two_splits_is_reported_and_used_for_training(
    source_folder: SourceFolder,
) -> None:
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        source_folder.put(name, png(color=(number, 9, 9)))
    source_folder.put("train.jsonl", text_row("a.png") + text_row("b.png"))
    source_folder.put("test.jsonl", text_row("b.png", category="x") + text_row("c.png"))
    outcome, [conflict] = check(source_folder)
    assert outcome.counts["splits"] == {"train": 2, "test": 1}
    assert (conflict.severity, conflict.action, conflict.value) == ("warning", "Mended", "b.png")
    assert conflict.file == "train.jsonl" and conflict.line == 2  # files are read in order
    assert "put into train here, and into test before" in conflict.cause


def test_equal_bytes_in_two_splits_are_reported_and_used_for_training(
    source_folder: SourceFolder,
) -> None:
    put_yolo(source_folder, "train/images/a", "test/images/b", "test/images/c")
    source_folder.put(
        "test/images/b.png", (source_folder.folder / "train/images/a.png").read_bytes()
    )
    outcome, [conflict] = check(source_folder)
    assert outcome.counts["splits"] == {"train": 2, "test": 1}
    assert conflict.file == "train/images/a.png"
    assert "same bytes as 'test/images/b.png'" in conflict.cause


def test_the_folders_of_a_yaml_divide_a_dataset(source_folder: SourceFolder) -> None:
    put_yolo(source_folder, "images/one/a", "images/two/b", "images/three/c")
    lines = ["path: /home/me/set", "train: images/one", "val:", "  - images/two", "names: [tin]"]
    source_folder.put("data.yaml", "\n".join([*lines, "test: '../images/three'  # held out"]))
    counts = {"train": 1, "validation": 1, "test": 1}
    assert check(source_folder)[0].counts["splits"] == counts
    # As written by exports: the same folder twice divides nothing.
    source_folder.put("data.yaml", "path: .\ntrain: images\nval: images\nnames: [tin]\n")
    assert check(source_folder)[0].counts["splits"] == {}


def test_lists_of_images_divide_a_dataset(source_folder: SourceFolder) -> None:
    put_yolo(source_folder, "images/a", "images/b", "images/c")
    source_folder.put("data.yaml", "train: lists/one.txt\nval: test.txt\nnames: [tin]\n")
    source_folder.put("lists/one.txt", "./images/a.png\n/content/set/images/b.png\n\n")
    source_folder.put("test.txt", "images/c.png\nimages/nowhere.png\n")
    assert check(source_folder)[0].counts["splits"] == {"train": 2, "validation": 1}
    source_folder.put("train.txt", "images/c.png\n")
    outcome, [conflict] = check(source_folder)
    assert outcome.counts["splits"] == {}
    assert (conflict.file, conflict.line, conflict.value) == ("train.txt", 1, "images/c.png")


def test_image_sets_of_voc_divide_a_dataset(source_folder: SourceFolder) -> None:
    for number, name in enumerate(("2007_1", "2007_2")):
        source_folder.put(f"VOC/JPEGImages/{name}.png", png(color=(number, 9, 9)))
        box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        size = "<size><width>40</width><height>20</height><depth>3</depth></size>"
        source_folder.put(
            f"VOC/Annotations/{name}.xml",
            f"<annotation><filename>{name}.png</filename>{size}<object><name>tin</name>{box}"
            "</object></annotation>",
        )
    source_folder.put("VOC/ImageSets/Main/train.txt", "2007_1\n")
    source_folder.put("VOC/ImageSets/Main/val.txt", "2007_2 -1\n")
    source_folder.put("VOC/ImageSets/Main/trainval.txt", "2007_1\n2007_2\n")
    source_folder.put("VOC/ImageSets/Action/val.txt", "2007_1\n")
    assert check(source_folder)[0].counts["splits"] == {"train": 1, "validation": 1}


# Datasets that have images already ----------------------------------------------------------------


class FakeImage:
    def __init__(self, path: str, sha256: str = "") -> None:
        self.path, self.sha256 = path, sha256 or path


def assign(
    assigner: SplitAssigner, images: list[FakeImage], rows: list[str]
) -> dict[str, Split | None]:
    assigner.begin(images)
    for path in rows:
        assigner.add_row(path, None, file="labels.jsonl", line=1)
    assigner.assign(images, lambda _: None)
    return assigner.changes


def test_images_of_earlier_imports_count_and_keep_their_split() -> None:
    known = {"a": KnownImage("train", True), "b": KnownImage("test", True), "c": KnownImage()}
    images = [FakeImage(path) for path in ("a", "b", "c", "test/d")]
    assigner = SplitAssigner("keep", known)
    assert assign(assigner, images, ["test/d"]) == {"test/d": "test"}
    assert assigner.counts == {"test": 1}
    # Alone, a test split would divide nothing.
    assert assign(SplitAssigner(), images[3:], ["test/d"]) == {}


def test_new_bytes_that_were_trained_on_before_are_no_test_image() -> None:
    known = {"a": KnownImage(None, True), "b": KnownImage("test", True)}
    images = [FakeImage("a", "0"), FakeImage("b", "1"), FakeImage("test/c", "0")]
    assert assign(SplitAssigner("keep", known), images, ["test/c"]) == {"test/c": "train"}


def test_ignoring_splits_merges_the_images_of_the_import_only() -> None:
    known = {"train/a": KnownImage("train", True), "test/b": KnownImage("test", True)}
    images = [FakeImage(path) for path in ("train/a", "test/b", "test/c")]
    changes = assign(SplitAssigner("ignore", known), images, ["test/b", "test/c"])
    assert changes == {"test/b": None}


def test_a_check_of_another_policy_is_refused(tmp_path: Path) -> None:
    from runyard.datasets.importing import parse_split_policy

    assert parse_split_policy({}) == "keep"
    with pytest.raises(ValueError, match="split is 'merge'; it must be one of keep, ignore"):
        parse_split_policy({"split": "merge"})
