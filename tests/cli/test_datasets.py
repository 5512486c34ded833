"""``runyard datasets``: import, findings and export."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

import vi
from tests.support.commands import Runyard
from tests.support.instance import Instance


@pytest.fixture
def data_dir(instance: Instance) -> str:
    return str(instance.data_dir)


@pytest.fixture
def images_folder(tmp_path: Path) -> Path:
    """Four images with a caption and a box each; the second box is outside its image."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    lines = []
    for number in range(4):
        Image.new("RGB", (40, 30), (number * 60, 90, 60)).save(folder / f"{number}.png")
        bounds = [[2.5, 0.1, 2.9, 0.4]] if number == 1 else [[0.1, 0.1, 0.5, 0.4]]
        phrase = {"phrase": "red box", "startTokenIndex": 1, "endTokenIndex": 3, "bounds": bounds}
        contents = {"type": "PhraseGrounding", "caption": "a red box", "groundedPhrases": [phrase]}
        asset = {"filename": f"{number}.png", "width": 40, "height": 30}
        lines.append(
            json.dumps({"id": f"row {number}", "asset": asset, "contents": contents}) + "\n"
        )
    (folder / "labels.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def imported(runyard: Runyard, data_dir: str, images_folder: Path) -> str:
    """The id of a dataset made from the shelf."""
    result = runyard("datasets", "import", str(images_folder), "--data-dir", data_dir)
    assert result.exit_code == 0, result.output
    dataset_id: str = result.stdout.strip()
    return dataset_id


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_an_import_prints_the_id_and_its_findings(
    runyard: Runyard, data_dir: str, images_folder: Path
) -> None:
    result = runyard(
        "datasets", "import", str(images_folder), "--name", "red boxes", "--data-dir", data_dir
    )
    assert result.exit_code == 0, result.output
    dataset_id = result.stdout.strip()
    assert "red boxes: 4 images, 3 of 4 rows accepted, 1 rejected (ViJsonl" in result.stderr
    assert "Sending  5/5 files" in result.stderr
    assert "labels.jsonl:2" in result.stderr
    listed = document(runyard("datasets", "list", "--json", "--data-dir", data_dir))["items"]
    assert [item["name"] for item in listed if item["datasetId"] == dataset_id] == ["red boxes"]
    shown = runyard("datasets", "get", dataset_id, "--data-dir", data_dir).stdout
    assert (
        "phrase-grounding" in shown
        and "4, 3 of them with records" in shown
        and "Succeeded" in shown
    )


def test_the_report_has_file_line_field_cause_and_fix(
    runyard: Runyard, data_dir: str, imported: str, tmp_path: Path
) -> None:
    shown = runyard("datasets", "report", imported, "--data-dir", data_dir).stdout
    report = document(runyard("datasets", "report", imported, "--json", "--data-dir", data_dir))
    [group] = [group for group in report["groups"] if group["severity"] == "error"]
    [found] = group["first"]
    assert (found["file"], found["line"]) == ("labels.jsonl", 2)
    for part in (group["code"], found["cause"], found["cure"], "labels.jsonl:2", found["field"]):
        assert part in shown
    html = tmp_path / "report.html"
    assert (
        runyard(
            "datasets", "report", imported, "--html", str(html), "--data-dir", data_dir
        ).exit_code
        == 0
    )
    assert group["code"] in html.read_text()
    lines = runyard(
        "datasets", "report", imported, "--all", "--data-dir", data_dir
    ).stdout.splitlines()
    assert found in [json.loads(line) for line in lines]


def test_versions_are_listed_and_a_deleted_dataset_is_gone(
    runyard: Runyard, data_dir: str, imported: str
) -> None:
    [version] = document(
        runyard("datasets", "versions", imported, "--json", "--data-dir", data_dir)
    )["items"]
    assert (version["assets"], version["records"]) == (3, 3)
    assert version["datasetVersionId"] in runyard("datasets", "list", "--data-dir", data_dir).stdout
    kept = runyard("datasets", "delete", imported, "--data-dir", data_dir)
    assert kept.exit_code == 2 and "try: --yes" in kept.stderr
    shown = runyard("datasets", "delete", imported, "--dry-run", "--data-dir", data_dir)
    assert "would delete" in shown.stdout and "4 images" in shown.stdout
    deleted = runyard("datasets", "delete", imported, "--yes", "--data-dir", data_dir)
    assert deleted.stdout == f"deleted {imported}\n"
    assert runyard("datasets", "get", imported, "--data-dir", data_dir).exit_code == 4


def test_an_import_that_accepts_nothing_fails_with_a_suggestion(
    runyard: Runyard, data_dir: str, images_folder: Path
) -> None:
    result = runyard(
        "datasets", "import", str(images_folder), "--on-error", "rejectall", "--data-dir", data_dir
    )
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "labels.jsonl:2" in result.stderr and "onError is RejectAll" in result.stderr
    again = result.stderr.rpartition("--dataset ")[2].strip()
    (images_folder / "labels.jsonl").write_text(
        (images_folder / "labels.jsonl").read_text().replace("2.5", "0.5").replace("2.9", "0.9")
    )
    arguments = ("--on-error", "RejectAll", "--dataset", again, "--json", "--data-dir", data_dir)
    session = document(runyard("datasets", "import", str(images_folder), *arguments))
    assert session["kind"] == "DatasetImport"
    assert session["status"]["progress"]["rowsKept"] == 4


def test_an_invalid_path_is_rejected_at_once(
    runyard: Runyard, data_dir: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for path, word in (("nowhere", "does not exist"), ("empty", "no file to import")):
        result = runyard("datasets", "import", path, "--data-dir", data_dir)
        assert result.exit_code == 2
        assert word in result.stderr
    assert runyard("datasets", "report", "d0000000000", "--data-dir", data_dir).exit_code == 4


def test_ctrl_c_cancels_an_import_and_leaves_nothing(
    instance: Instance, client: vi.Client, images_folder: Path, eventually: Callable[..., Any]
) -> None:
    for number in range(20):
        with open(images_folder / f"large{number:02}.bin", "wb") as file:
            file.write(os.urandom(16))
            file.truncate(16 << 20)
    command = (
        sys.executable,
        "-P",
        "-m",
        "runyard.cli",
        "datasets",
        "import",
        str(images_folder),
        "--name",
        "interrupted",
    )
    process = subprocess.Popen(
        [*command, "--data-dir", str(instance.data_dir)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert "Sending" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    eventually(
        lambda: (
            "interrupted"
            not in [item.name for item in client.datasets.list({"page_size": 100}).items]
        ),
        timeout_s=10,
        what="the dataset is gone",
    )


def test_check_finds_what_an_import_would_without_a_server(
    runyard: Runyard, images_folder: Path, tmp_path: Path
) -> None:
    result = runyard(
        "datasets", "check", str(images_folder), "--html", str(tmp_path / "report.html")
    )
    assert result.exit_code == 1
    assert "4 images, 3 of 4 rows accepted, 1 rejected (ViJsonl" in result.stdout
    assert "labels.jsonl:2" in result.stdout
    assert "labels.jsonl:2" in (tmp_path / "report.html").read_text()
    report = json.loads(runyard("datasets", "check", str(images_folder), "--json").stdout)
    assert (report["rowsKept"], report["errors"]) == (3, 1)
    (images_folder / "labels.jsonl").write_text(
        (images_folder / "labels.jsonl").read_text().replace("2.5", "0.5").replace("2.9", "0.9")
    )
    clean = runyard("datasets", "check", str(images_folder))
    assert (clean.exit_code, clean.output.splitlines()[-1]) == (
        0,
        "4 images, 4 of 4 rows accepted (ViJsonl, phrase-grounding); 0 errors, 0 warnings",
    )
    assert runyard("datasets", "check", str(tmp_path / "nowhere")).exit_code == 4


def test_check_accepts_an_archive_like_an_import(runyard: Runyard, images_folder: Path) -> None:
    archive = images_folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in images_folder.iterdir():
            file.write(path, path.name)
        file.writestr(".ipynb_checkpoints/0.png", b"")
    result = runyard("datasets", "check", str(archive))
    assert result.exit_code == 1
    assert "4 images, 3 of 4 rows accepted, 1 rejected (ViJsonl" in result.stdout
    labels = runyard("datasets", "check", str(images_folder / "labels.jsonl"))
    assert labels.exit_code == 1
    assert "ImageMissing (4)" in labels.stdout
    missing = runyard("datasets", "check", str(images_folder / "no.zip"))
    assert (missing.exit_code, "no.zip does not exist" in missing.stderr) == (4, True)


def test_box_options_are_checked_before_anything_is_read(
    runyard: Runyard, images_folder: Path
) -> None:
    for option, value in (
        ("--box-unit", "percent"),
        ("--box-form", "size"),
        ("--on-bad-box", "drop"),
    ):
        for command in ("check", "import"):
            refused = runyard("datasets", command, str(images_folder), option, "px")
            assert (refused.exit_code, option in refused.stderr) == (2, True)
            assert value in refused.stderr
        checked = runyard("datasets", "check", str(images_folder), option, value.upper())
        assert "rows accepted" in checked.stdout


def test_files_that_are_not_sent_are_listed_with_a_fix(
    runyard: Runyard, data_dir: str, images_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.png").write_bytes(b"x")
    (images_folder / "out.png").symlink_to(tmp_path / "out.png")
    result = runyard("datasets", "import", str(images_folder), "--data-dir", data_dir)
    assert result.exit_code == 0
    _, _, skipped = result.stderr.partition("Not uploaded:\n")
    assert skipped.startswith("  out.png: it is a link that leads outside the folder; fix: replace")
    checked = runyard("datasets", "check", str(images_folder))
    assert "out.png: it is a link that leads outside the folder" in checked.stdout


def test_a_folder_whose_data_is_hidden_says_so(
    runyard: Runyard, data_dir: str, images_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "project").mkdir()
    images_folder.rename(tmp_path / "project" / ".shelf")
    for command in (("check",), ("import", "--data-dir", data_dir)):
        result = runyard("datasets", command[0], str(tmp_path / "project"), *command[1:])
        assert result.exit_code != 0
        assert ".shelf/0.png" in result.output
        assert "only hidden files hold data" in result.output


def test_check_shows_the_split_unless_it_is_to_be_ignored(
    runyard: Runyard, images_folder: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (images_folder / "labels.jsonl").read_text().splitlines()]
    for row, split in zip(rows, ("train", "train", "val", "test"), strict=True):
        row["split"] = split
    (images_folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "report.html"
    check = ("datasets", "check", str(images_folder))
    result = runyard(*check, "--on-error", "Warn", "--html", str(page))
    assert "split: 1 train, 1 validation, 1 test images, 1 of no split" in result.stdout
    assert "Split: 1 train, 1 validation" in page.read_text()
    splits = json.loads(runyard(*check, "--json").stdout)["splits"]
    assert splits == {"train": 1, "validation": 1, "test": 1, "unsplit": 1}
    assert "split:" not in runyard(*check, "--split", "ignore").stdout
    assert runyard(*check, "--split", "merge").exit_code == 2


def test_a_dataset_is_previewed_and_exported(
    runyard: Runyard, data_dir: str, imported: str, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    drawn = runyard("datasets", "preview", imported, "-o", str(sheet), "--data-dir", data_dir)
    assert (drawn.exit_code, drawn.stdout) == (0, f"{sheet}\n")
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
    out = tmp_path / "out"
    written = runyard(
        "datasets", "export", imported, "--format", "coco", "-o", str(out), "--data-dir", data_dir
    )
    assert (written.exit_code, written.stdout) == (0, f"{out / imported}\n"), written.output
    labels = [path for path in (out / imported).rglob("*.json") if path.name != "metadata.json"]
    assert len(json.loads(labels[0].read_text())["annotations"]) == 3
    assert sorted(path.name for path in (out / imported).rglob("*.png")) == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
    ]
    arguments = (
        "--format",
        "CsvFourCorner",
        "--pixels",
        "--no-pictures",
        "-o",
        str(out / "pixels"),
    )
    assert (
        runyard("datasets", "export", imported, *arguments, "--data-dir", data_dir).exit_code == 0
    )
    assert list((out / "pixels").rglob("*.png")) == []
    [table] = (out / "pixels").rglob("*.csv")
    assert table.read_text().splitlines()[1:] == [
        f"{number}.png,4.0,3.0,20.0,12.0,red box" for number in (0, 2, 3)
    ]
    again = runyard("datasets", "export", imported, "-o", str(out), "--data-dir", data_dir)
    assert again.exit_code == 1
    assert "already exists" in again.stderr
