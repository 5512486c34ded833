"""Two names for one image: at most one is used, whatever the order, and both are shown."""

import json
from typing import Any

import pytest

Named = tuple[str, str]


def row(name: str, answer: str) -> str:
    interactions = [{"order": 1, "question": "What?", "answer": answer}]
    contents = {"type": "Vqa", "interactions": interactions}
    return json.dumps({"id": answer, "asset": {"filename": name}, "contents": contents})


@pytest.mark.parametrize(
    ("images", "rows", "kept"),
    [
        # An image's own path wins, before or after the other name.
        (["1.png"], [("rows.jsonl", "1.png"), ("rows.jsonl", "two/1.png")], [0]),
        (["1.png"], [("rows.jsonl", "two/1.png"), ("rows.jsonl", "1.png")], [1]),
        (["one/1.png"], [("rows.jsonl", "1.png"), ("rows.jsonl", "one/1.png")], [1]),
        # Neither of two equally good names.
        (["1.png"], [("rows.jsonl", "one/1.png"), ("rows.jsonl", "two/1.png")], []),
        (["a.png"], [("rows.jsonl", "a.jpg"), ("rows.jsonl", "a.tif")], []),
        (["a.png"], [("rows.jsonl", "A.png")] * 2 + [("rows.jsonl", "a.PNG")] * 2, []),
        # The annotations nearest to the image.
        (
            ["setA/images/1.png"],
            [("setA/labels/rows.jsonl", "1.png"), ("setB/labels/rows.jsonl", "1.png")],
            [0],
        ),
        (
            ["setB/images/1.png"],
            [("setA/labels/rows.jsonl", "1.png"), ("setB/labels/rows.jsonl", "1.png")],
            [1],
        ),
        # One name for one image is never a conflict.
        (["one/1.png"], [("rows.jsonl", "1.png")] * 3, [0, 1, 2]),
        (["images/1.png"], [("x/rows.jsonl", "1.png"), ("y/rows.jsonl", "1.png")], [0, 1]),
    ],
)
def test_only_the_better_of_two_names_is_used(
    source_folder: Any, make_png: Any, images: list[str], rows: list[Named], kept: list[int]
) -> None:
    for number, path in enumerate(images):
        source_folder.put(path, make_png(20 + number))
    files: dict[str, list[str]] = {}
    for number, (file, name) in enumerate(rows):
        files.setdefault(file, []).append(row(name, str(number)))
    for file, lines in files.items():
        source_folder.put(file, "\n".join(lines))
    result = source_folder.check()
    assert [int(record.id) for record in result.records] == kept
    conflicts = [found for found in result.findings if found.code == "ImageAmbiguous"]
    assert sum(found.rows or 1 for found in conflicts) == len(rows) - len(kept)
    for found in conflicts:
        assert any(repr(name) in found.cause for _, name in rows if name != found.value) or (
            len({name for _, name in rows}) == 1
        )
    counts = result.outcome.counts
    assert counts["rows"] == len(rows) == counts["rowsKept"] + counts["rowsRejected"]
    assert counts["rowsKept"] == len(kept)
