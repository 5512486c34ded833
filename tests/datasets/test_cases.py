"""Folders as tools and habits produce them, each with the rows that it must give.

The cases are in ``shared/cases/datasets`` next to the checkout; each has the folder (``data``) and
what is right about it (``expect.json``).
"""

import hashlib
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from runyard.blobs import FolderBlobs
from runyard.cli.main import cli
from runyard.datasets import importing, ingest
from runyard.datasets.findings import Finding
from runyard.datasets.packs import build_pack
from runyard.datasets.records import Freeform, PhraseGrounding, Record, Vqa, encode
from tests.datasets.conftest import KeptRecords
from vi.api.resources.datasets._files import find_files

CASES = Path(__file__).parents[3] / "shared/cases/datasets"
NAMES = sorted(path.name for path in CASES.iterdir()) if CASES.is_dir() else []
SEEN = 1e-3  # of the image: what files round to

pytestmark = pytest.mark.skipif(not NAMES, reason="the cases are not next to this checkout")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> KeptRecords:
    """The records that ``runyard datasets check`` accepts in this test."""
    records = KeptRecords()
    monkeypatch.setattr(ingest, "RecordCounter", lambda: records)
    return records


@pytest.mark.parametrize("name", NAMES)
def test_a_real_folder_gives_the_right_rows(name: str, kept: KeptRecords) -> None:
    expected = json.loads((CASES / name / "expect.json").read_text())
    target = CASES / name / "data" / (expected.get("target") or "")
    result = CliRunner().invoke(
        cli, ["datasets", "check", "--json", *expected.get("args", []), str(target)]
    )
    report = json.loads(result.stdout)
    records = kept.records if report.get("why") is None else []
    texts = [json.dumps(_describe(record), ensure_ascii=False) for record in records]
    if forbidden := expected.get("forbid"):
        assert not [text for text in texts if re.search(forbidden, text)]
    if not _is_alternative(expected, records, result):
        _assert_expected(expected, records, result, report)
    if shown := expected.get("shown"):
        for record in records:
            assert [record.asset.width, record.asset.height] == shown
            assert list(_decode(target / record.asset.filename)) == shown


@pytest.mark.parametrize("name", NAMES)
def test_an_import_gives_what_its_check_gave(name: str, tmp_path: Path) -> None:
    expected = json.loads((CASES / name / "expect.json").read_text())
    target = CASES / name / "data" / (expected.get("target") or "")
    dataset_type = dict(zip(*[iter(expected.get("args", []))] * 2, strict=True)).get("--type")
    findings: list[Finding] = []
    kept = KeptRecords()
    outcome = ingest.check_folder(
        target, dataset_type=dataset_type, on_finding=findings.append, records=kept
    )
    sent = _run_import(tmp_path, target, dataset_type)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["decision"], result["format"]) == (outcome.decision, outcome.format)
    skipped = {"files", "bytes", "errors", "warnings", "byCode"}  # a check has what is not sent
    assert {key: value for key, value in result["counts"].items() if key not in skipped} == {
        key: value for key, value in outcome.counts.items() if key not in skipped
    }
    reported = [
        json.loads(line) for line in (tmp_path / "findings.jsonl").read_bytes().splitlines()
    ]
    assert sorted((found["code"], found["file"]) for found in reported) == sorted(
        (found.code, found.file)
        for found in findings
        if found.code != "NameUnsafe" or found.file in sent
    )
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_bytes().splitlines()]
    assert records == [json.loads(encode(record)) for record in kept.records]


def _run_import(folder: Path, target: Path, dataset_type: str | None) -> set[str]:
    """Run an import in ``folder`` of what the SDK sends; return the paths of its files."""
    files = find_files(target).files
    blobs = FolderBlobs(folder / "blobs")
    data = build_pack((file.path, Path(file.local_path).read_bytes()) for file in files)
    sha256 = hashlib.sha256(data).hexdigest()
    blobs.put(io.BytesIO(data), sha256=sha256, size_bytes=len(data))
    documents: dict[str, dict[str, Any]] = {
        "job.json": {"blobsDir": str(blobs.root), "datasetType": dataset_type, "policies": {}},
        "packs.jsonl": {"sha256": sha256, "size": len(data), "number": 1},
        "sealed.json": {},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document) + "\n")
    importing.run(folder)
    return {file.path for file in files}


def _is_alternative(expected: dict[str, Any], records: list[Record], result: Result) -> bool:
    """Return whether the rows are those that are right as well."""
    if result.exit_code != 0:
        return False
    if "or_rows" in expected and len(records) >= expected["or_rows"]:
        return True
    return "or_records" in expected and _fits(expected["or_records"], records)


def _assert_expected(
    expected: dict[str, Any], records: list[Record], result: Result, report: Any
) -> None:
    found = [finding for group in report["groups"] for finding in group["first"]]
    reported = "\n".join(json.dumps(finding, ensure_ascii=False) for finding in found)
    if expected.get("records") is not None:
        assert _fits(expected["records"], records), (list(map(_describe, records)), reported)
    assert len(records) >= expected.get("need_rows", 0), reported
    if codes := expected.get("codes_any"):
        assert {finding["code"] for finding in found} & set(codes), reported
    if pattern := expected.get("tell"):
        assert re.search(pattern, f"{reported}\n{result.stdout}\n{result.stderr}"), reported
    if expected.get("exit") is not None:
        assert result.exit_code == expected["exit"], reported


def _fits(expected: list[dict[str, Any]], records: list[Record]) -> bool:
    actual = [_describe(record) for record in records]
    return len(actual) == len(expected) and all(
        any(_is_same(one, other) for other in actual) for one in expected
    )


def _describe(record: Record) -> dict[str, Any]:
    filename = unicodedata.normalize("NFC", record.asset.filename)
    document: dict[str, Any] = {"file": filename}
    match record.contents:
        case PhraseGrounding(grounded_phrases=phrases):
            document["boxes"] = [[one.phrase, *box] for one in phrases for box in one.bounds]
        case Vqa(interactions=interactions):
            document["qa"] = [[one.question, one.answer] for one in interactions]
        case Freeform(text=text):
            document["text"] = text
    return document


def _is_same(expected: dict[str, Any], actual: dict[str, Any]) -> bool:
    if not f"/{actual['file']}".endswith(f"/{expected['file']}"):
        return False
    if "boxes" not in expected:
        return all(actual.get(key) == value for key, value in expected.items() if key != "file")
    boxes = actual.get("boxes", [])
    return len(boxes) == len(expected["boxes"]) and all(
        any(_is_same_box(one, other) for other in boxes) for one in expected["boxes"]
    )


def _is_same_box(expected: list[Any], actual: list[Any]) -> bool:
    return bool(expected[0] == actual[0]) and all(
        abs(one - other) < SEEN for one, other in zip(expected[1:], actual[1:], strict=True)
    )


def _decode(path: Path) -> tuple[int, int]:
    from runyard.datasets.pixels import decode_image

    return decode_image(path.read_bytes()).size
