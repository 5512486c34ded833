import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from runyard.datasets.records import Freeform, PhraseGrounding, Vqa

CLASS = {"_type": "ClassLabel", "names": ["box", "tin"]}


def features(**columns: Any) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": columns}})}


def write(path: Path, rows: list[dict[str, Any]], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), path)


def stream(path: Path, rows: list[dict[str, Any]], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def list_questions(contents: object) -> list[tuple[str, str]]:
    assert isinstance(contents, Vqa)
    return [(one.question, one.answer) for one in contents.interactions]


@pytest.mark.parametrize("make", [write, stream])
def test_questions_with_images_inside(
    source_folder: Any, make_png: Callable[..., bytes], make: Callable[..., None]
) -> None:
    ending = "parquet" if make is write else "arrow"
    rows = [
        {
            "image": {"bytes": make_png(30, 10), "path": "a.png"},
            "question": "How many?",
            "answers": ["2", "3", "2"],
        },
        {
            "image": {"bytes": make_png(31, 10), "path": None},
            "question": "What?",
            "answers": ["a tin"],
        },
        {
            "image": {"bytes": make_png(32, 10), "path": "../x.png"},
            "question": "Who?",
            "answers": ["she"],
        },
    ]
    make(source_folder.folder / f"data/train-0.{ending}", rows)
    result = source_folder.check("vqa")
    assert [(r.asset.filename, r.asset.width) for r in result.records] == [
        ("a.png", 30),
        ("data/train-0/000002.png", 31),
        ("data/train-0/000003.png", 32),
    ]
    assert [list_questions(record.contents) for record in result.records] == [
        [("How many?", "2")],
        [("What?", "a tin")],
        [("Who?", "she")],
    ]
    assert result.outcome.format == "Parquet"
    assert result.findings == []


def test_detection_tables_by_the_features_of_the_schema(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    rows = [
        {
            "image_id": n,
            "photo": {"bytes": make_png(40, 20 + n), "path": None},
            "objects": {"bbox": [[4.0, 5.0, 8.0, 10.0], [0, 0, 40, 20]], "category": [1, 0]},
        }
        for n in range(2)
    ]
    for objects in (
        {"feature": {"category": CLASS}, "_type": "Sequence"},
        {"category": {"feature": CLASS, "_type": "List"}},
    ):
        write(
            source_folder.folder / "train.parquet",
            rows,
            features(photo={"_type": "Image"}, objects=objects),
        )
        result = source_folder.check()
        assert result.outcome.type == "phrase-grounding"
        contents = result.records[0].contents
        assert isinstance(contents, PhraseGrounding)
        assert contents.caption == "tin and box"
        assert [(p.phrase, p.bounds) for p in contents.grounded_phrases] == [
            ("tin", [(0.1, 0.25, 0.3, 0.75)]),
            ("box", [(0.0, 0.0, 1.0, 1.0)]),
        ]


def test_classes_without_names_are_reported(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    rows = [
        {"image": {"bytes": make_png(), "path": "a.png"}, "label": number} for number in (0, 2, -1)
    ]
    write(source_folder.folder / "train.parquet", rows, features(label=CLASS))
    result = source_folder.check("freeform")
    assert [record.contents for record in result.records] == [Freeform(text="box")]
    assert [(f.code, f.line, f.field) for f in result.findings if f.severity == "error"] == [
        ("ClassUnknown", 2, "label"),
        ("ClassUnknown", 3, "label"),
    ]
    assert list_questions(source_folder.check("vqa").records[0].contents) == [
        ("What is this?", "box")
    ]
    assert source_folder.check("vqa").codes.count("QuestionAssumed") == 1


def test_images_by_name_and_captions_in_lists(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("images/a.png", make_png())
    rows = [
        {"file_name": "a.png", "captions": ["red", "a red field"]},
        {"file_name": "b.png", "captions": ["none"]},
    ]
    write(source_folder.folder / "captions.parquet", rows)
    result = source_folder.check("freeform")
    assert [(r.id, r.contents) for r in result.records] == [
        ("captions.parquet:1", Freeform(text="red")),
        ("captions.parquet:1-2", Freeform(text="a red field")),
    ]
    assert [(f.code, f.line) for f in result.findings] == [("ImageMissing", 2)]


def test_conversations_in_columns(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    image = {"bytes": make_png(), "path": "a.png"}
    write(
        source_folder.folder / "a.parquet",
        [{"images": [image], "texts": [{"user": "<image>Who?", "assistant": "She."}]}],
    )
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}]
    write(source_folder.folder / "b.parquet", [{"image": image, "messages": talk}])
    assert [list_questions(record.contents) for record in source_folder.check("vqa").records] == [
        [("Who?", "She.")],
        [("Who?", "He.")],
    ]


def test_rows_of_one_image_share_it(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    image, other = {"bytes": make_png(), "path": "a.png"}, {"bytes": make_png(50), "path": "a.png"}
    rows = [
        {"image": one, "question": f"{n}?", "answer": "yes"}
        for n, one in enumerate([image, image, other])
    ]
    write(source_folder.folder / "train.parquet", rows)
    result = source_folder.check("vqa")
    assert [record.asset.filename for record in result.records] == [
        "a.png",
        "a.png",
        "train/000003-a.png",
    ]
    assert result.outcome.counts["images"] == 2
    assert result.findings == []


def test_unknown_columns_and_invalid_images_are_reported(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    write(source_folder.folder / "a.parquet", [{"question": "Who?", "answer": "She."}])
    write(
        source_folder.folder / "b.parquet",
        [{"image": {"bytes": make_png(), "path": None}, "weight": 3}] * 3,
    )
    write(
        source_folder.folder / "c.parquet",
        [{"image": {"bytes": b"no image", "path": None}, "question": "Who?", "answer": "She."}],
    )
    write(
        source_folder.folder / "d.parquet", [{"image": None, "question": "Who?", "answer": "She."}]
    )
    source_folder.put("e.parquet", b"").put("f.parquet", b"PAR1 and nothing else PAR1").put(
        "cache-1.arrow", b""
    )
    result = source_folder.check("vqa")
    assert result.records == []
    assert [(f.file, f.code) for f in result.findings if f.severity == "error"] == [
        ("a.parquet", "FieldMissing"),
        ("b.parquet", "ContentsUnfit"),
        ("c.parquet", "ImageBroken"),
        ("c.parquet", "ImageMissing"),
        ("d.parquet", "ImageMissing"),
        ("e.parquet", "FileEmpty"),
        ("f.parquet", "FileUnreadable"),
    ]


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "image",
    [
        lambda data: encode_base64(data),
        lambda data: f"data:image/png;base64,{encode_base64(data)}",
        lambda data: data,
        lambda data: [{"bytes": data, "path": None}],
        lambda data: {"bytes": data, "path": "same.png"},
    ],
)
def test_images_are_read_however_a_column_holds_them(
    source_folder: Any, make_png: Callable[..., bytes], image: Callable[[bytes], Any]
) -> None:
    rows = [
        {"image": image(make_png(30 + number)), "question": "What?", "answer": str(number)}
        for number in range(2)
    ]
    write(source_folder.folder / "train.parquet", rows)
    result = source_folder.check("vqa")
    assert [(r.asset.width, list_questions(r.contents)) for r in result.records] == [
        (30, [("What?", "0")]),
        (31, [("What?", "1")]),
    ]
    assert result.findings == []


@pytest.mark.parametrize("make", [write, stream])
def test_rows_that_do_not_fit_the_type_are_all_counted(
    source_folder: Any, make_png: Callable[..., bytes], make: Callable[..., None]
) -> None:
    source_folder.put("a.png", make_png())
    rows = [{"file_name": "a.png", "text": str(number)} for number in range(300)]
    make(source_folder.folder / f"t.{'parquet' if make is write else 'arrow'}", rows)
    result = source_folder.check("vqa")
    [found] = [found for found in result.findings if found.code == "ContentsUnfit"]
    assert (found.rows, result.outcome.counts["rows"]) == (300, 300)


def test_a_row_without_its_columns_does_not_end_the_table(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("a.png", make_png())
    rows = [{"file_name": "a.png", "text": text} for text in (None, "red", None, "blue")]
    write(source_folder.folder / "t.parquet", rows)
    result = source_folder.check("freeform")
    assert [r.contents for r in result.records] == [Freeform(text="red"), Freeform(text="blue")]
    assert [f.rows for f in result.findings if f.severity == "error"] == [2]
