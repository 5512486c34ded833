"""The published client uploads images and annotations, lists, exports, downloads and deletes.

``published_datasets.py`` makes the calls in that client's own environment; each test checks the
result of one.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.server.datasets import grounding_row, jsonl, make_image_bytes

PROGRAM = Path(__file__).with_name("published_datasets.py")
PROGRAM_TIMEOUT_S = 120
COUNT = 3


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, eventually: Callable[..., Any]
) -> Iterator[dict[str, str]]:
    """Start a server, and return the client's three variables."""
    data_dir = tmp_path_factory.mktemp("datasets") / "data"
    environ = {**os.environ, "RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"}
    with subprocess.Popen([sys.executable, "-P", "-m", "runyard.server"], env=environ) as process:
        try:
            eventually((data_dir / "server.json").exists, timeout_s=60, what="the server is up")
            values = json.loads((data_dir / "credentials.json").read_text())
            yield {
                "DATATURE_VI_API_ENDPOINT": values["endpoint"],
                "DATATURE_VI_SECRET_KEY": values["secret_key"],
                "DATATURE_VI_ORGANIZATION_ID": values["organization_id"],
            }
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, annotations of them, and an invalid image."""
    root = tmp_path_factory.mktemp("published")
    for name in ("images", "labels", "broken"):
        (root / name).mkdir()
    for number in range(1, COUNT + 1):
        (root / "images" / f"{number}.png").write_bytes(make_image_bytes(number))
    rows = [grounding_row(number, f"{number}.png") for number in range(1, COUNT + 1)]
    (root / "labels" / "labels.jsonl").write_bytes(jsonl(*rows))
    (root / "broken" / "9.png").write_bytes(make_image_bytes(9)[:60])
    return root


@pytest.fixture(scope="module")
def report(repository: Path, server: dict[str, str], folder: Path) -> dict[str, dict[str, Any]]:
    """Return the output of the program."""
    with FileLock(repository / ".venv" / ".vi-sdk.lock"):
        subprocess.run([repository / "scripts" / "setup-vi-sdk"], check=True, timeout=300)
    done = subprocess.run(
        [repository / ".venv-vi-sdk" / "bin" / "python", PROGRAM],
        input=json.dumps({"folder": str(folder)}),
        env={**os.environ, **server, "VI_ENABLE_FILE": "false", "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return seen


def value(report: dict[str, dict[str, Any]], call: str) -> Any:
    """Return the result of a call; fail with the error that it raised."""
    assert "value" in report[call], report[call]
    return report[call]["value"]


def test_images_and_annotations_are_uploaded(report: dict[str, Any]) -> None:
    assert value(report, "create")["assets"] == 0
    assert value(report, "upload")
    assert value(report, "get after upload")["assets"] == COUNT
    assert value(report, "annotate") is True
    seen = value(report, "get")
    assert (seen["assets"], seen["annotations"]) == (COUNT, COUNT)
    assert "_" not in seen["id"]


def test_annotations_that_would_overwrite_others_are_refused_on_request(
    report: dict[str, Any],
) -> None:
    assert report["annotate again"]["error"] == "ViOperationError", report["annotate again"]


def test_a_broken_image_ends_the_wait_with_an_error(report: dict[str, Any]) -> None:
    assert report["broken"]["error"] == "ViOperationError", report["broken"]


def test_datasets_are_listed(report: dict[str, Any]) -> None:
    assert value(report, "list") == [value(report, "create")["id"]]
    assert value(report, "list simple") == 1
    assert value(report, "collaborators") == 0
    assert value(report, "statistics") is True
    assert value(report, "update")["name"] == "New name"


def test_its_unpaginated_list_of_images_is_complete(report: dict[str, Any]) -> None:
    assert sorted(value(report, "assets")) == ["1.png", "2.png", "3.png"]
    assert value(report, "filtered") == ["1.png"]
    assert value(report, "count") == COUNT
    assert value(report, "asset") == "1.png"
    assert value(report, "rename")


def test_annotations_are_listed_and_changed_part_by_part(report: dict[str, Any]) -> None:
    caption, box = value(report, "annotations")
    assert (caption["whole"], box["whole"]) == ("1", "1")
    assert value(report, "annotation") == box
    assert value(report, "change box") == [0.5, 0.5]
    assert value(report, "delete box") == box["id"]


def test_what_it_downloads_is_what_was_uploaded(report: dict[str, Any], folder: Path) -> None:
    assert value(report, "download images")
    sent = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "images").iterdir()}
    down = {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "down").rglob("*.png")
    }
    assert down == sent


def test_exports_have_the_formats_and_layout_that_its_loader_expects(
    report: dict[str, Any], folder: Path
) -> None:
    assert value(report, "export") == "ViFull"
    assert value(report, "export Coco") == value(report, "export PascalVoc") == "ViJsonl"
    assert value(report, "exports") == 3
    assert value(report, "download")
    dump = folder / "full" / value(report, "create")["id"] / "dump"
    images = sorted(path.stem for path in (dump / "images").iterdir())
    assert (
        images == sorted(path.stem for path in (dump / "annotations").iterdir()) == ["1", "2", "3"]
    )
    assert all(
        len(path.read_bytes().splitlines()) == 1 for path in (dump / "annotations").iterdir()
    )


def test_everything_is_deleted(report: dict[str, Any]) -> None:
    assert value(report, "delete asset")
    assert value(report, "bulk") == value(report, "create")["id"]
    assert value(report, "count at last") == 0
    assert value(report, "delete") == value(report, "deletion") == value(report, "create")["id"]
    assert report["get after delete"]["error"] == "ViNotFoundError"
