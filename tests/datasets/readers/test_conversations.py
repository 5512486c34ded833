import json
from collections.abc import Callable
from typing import Any

import pytest

from runyard.datasets.records import Freeform, Vqa

LLAVA = {
    "id": "000000033471",
    "image": "coco/bus.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat colour is the bus?"},
        {"from": "gpt", "value": "It is white and red."},
        {"from": "human", "value": "Is it raining?\n<image>"},
        {"from": "gpt", "value": "No."},
    ],
}
CHAT = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "bus.png"},
                {"type": "text", "text": "What colour is the bus?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "It is white and red."}]},
    ]
}


def make_turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": "human" if n % 2 == 0 else "gpt", "value": text} for n, text in enumerate(texts)
    ]


def list_questions(contents: object) -> list[tuple[str, str]]:
    assert isinstance(contents, Vqa)
    assert [one.order for one in contents.interactions] == list(
        range(1, len(contents.interactions) + 1)
    )
    return [(one.question, one.answer) for one in contents.interactions]


def test_turns_of_an_array_become_interactions_of_one_record(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("coco/bus.png", make_png()).put("llava.json", json.dumps([LLAVA]))
    result = source_folder.check()
    assert result.findings == []
    [record] = result.records
    assert (record.id, record.asset.filename, record.asset.width) == (
        "000000033471",
        "coco/bus.png",
        40,
    )
    assert list_questions(record.contents) == [
        ("What colour is the bus?", "It is white and red."),
        ("Is it raining?", "No."),
    ]


def test_chat_messages_with_parts_in_lines(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("bus.png", make_png()).put(
        "chat.jsonl", f"{json.dumps(CHAT)}\n\n{json.dumps(CHAT | {'id': 7})}\n"
    )
    result = source_folder.check("vqa")
    assert [record.id for record in result.records] == ["chat.jsonl:1", "7"]
    assert list_questions(result.records[1].contents) == [
        ("What colour is the bus?", "It is white and red.")
    ]
    assert result.codes == ["RowDuplicate"]


def test_each_turn_is_a_record_of_a_freeform_dataset(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("coco/bus.png", make_png()).put("llava.json", json.dumps([LLAVA]))
    first, second = source_folder.check("freeform").records
    assert first.contents == Freeform(prompt="What colour is the bus?", text="It is white and red.")
    assert (second.id, second.contents) == (
        "000000033471-2",
        Freeform(prompt="Is it raining?", text="No."),
    )


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        ({"conversations": make_turns("Who?", "He.")}, "FieldMissing", "[1].image"),
        ({"image": 3, "conversations": make_turns("Who?", "He.")}, "FieldInvalid", "[1].image"),
        (
            {"images": ["a.png", "b.png"], "conversations": make_turns("Who?", "He.")},
            "FieldInvalid",
            "[1].images",
        ),
        (
            {"image": "https://x.org/a.png", "conversations": make_turns("Who?", "He.")},
            "FieldInvalid",
            "[1].image",
        ),
        ({"image": "b.png", "conversations": make_turns("Who?", "He.")}, "ImageMissing", "[1]"),
        ({"image": "a.png", "conversations": "Who?"}, "FieldInvalid", "[1].conversations"),
        ({"image": "a.png", "conversations": []}, "FieldInvalid", "[1].conversations"),
        ({"image": "a.png"}, "FieldMissing", "[1]"),
        (
            {"image": "a.png", "conversations": make_turns("Who?")},
            "ConversationInvalid",
            "[1].conversations",
        ),
        (
            {"image": "a.png", "conversations": make_turns("Who?", "He.")[1:]},
            "ConversationInvalid",
            "[1].conversations[0]",
        ),
        (
            {
                "image": "a.png",
                "conversations": [*make_turns("Who?"), *make_turns("Where?", "Here.")],
            },
            "ConversationInvalid",
            "[1].conversations[1]",
        ),
        (
            {"image": "a.png", "conversations": [{"from": "tool", "value": "x"}]},
            "ConversationInvalid",
            None,
        ),
        (
            {"image": "a.png", "conversations": [{"from": "human", "value": 3}]},
            "FieldInvalid",
            None,
        ),
        ({"image": "a.png", "conversations": ["Who?"]}, "FieldInvalid", None),
        ({"image": "a.png", "conversations": make_turns("Who?", "")}, "AnswerEmpty", None),
        ("no object", "RowInvalid", "[1]"),
    ],
)
def test_a_wrong_row_is_reported_with_its_field_and_the_others_are_accepted(
    source_folder: Any, make_png: Callable[..., bytes], row: Any, code: str, field: str | None
) -> None:
    good = {"image": "a.png", "conversations": make_turns("Who?", "She.")}
    source_folder.put("a.png", make_png()).put(
        "talks.json", json.dumps([good, row, good | {"id": "last"}], indent=1)
    )
    result = source_folder.check("vqa")
    assert [record.id for record in result.records] == ["talks.json:1", "last"]
    errors = [found for found in result.findings if found.severity == "error"]
    assert [found.code for found in errors] == [code]
    assert errors[0].file == "talks.json"
    assert field is None or (errors[0].field or "").startswith(field)


def test_system_turns_are_ignored_and_reported_once(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    row = {
        "image": "a.png",
        "conversations": [{"from": "system", "value": "Be brief."}, *make_turns("Who?", "She.")],
    }
    source_folder.put("a.png", make_png()).put(
        "talks.jsonl", "".join(json.dumps(row | {"id": n}) + "\n" for n in range(3))
    )
    result = source_folder.check("vqa")
    assert list_questions(result.records[0].contents) == [("Who?", "She.")]
    assert result.codes.count("FileIgnored") == 1


def test_a_torn_array_gives_the_rows_before_the_tear(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    text = json.dumps(
        [
            {"id": n, "image": "a.png", "conversations": make_turns(f"{n}?", "Yes.")}
            for n in range(50)
        ],
        indent=2,
    )
    source_folder.put("a.png", make_png()).put("talks.json", text[: len(text) // 2])
    result = source_folder.check("vqa")
    assert 20 <= len(result.records) < 26
    [error] = [found for found in result.findings if found.severity == "error"]
    assert error.code == "FileUnreadable"
    assert error.line == text[: len(text) // 2].count("\n") + 1


def test_rows_longer_than_a_chunk_are_complete(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    long = "ö" * 1_500_000
    rows = [
        {"image": "a.png", "conversations": make_turns(f"{n}?", long + str(n))} for n in range(3)
    ]
    source_folder.put("a.png", make_png()).put("talks.json", json.dumps(rows, ensure_ascii=False))
    assert [
        list_questions(record.contents)[0][1][-2:] for record in source_folder.check("vqa").records
    ] == ["ö0", "ö1", "ö2"]


@pytest.mark.parametrize(
    ("data", "code"), [(b'[{"messages": [\xff', "EncodingWrong"), (b'[{"messages": [' * 9999, None)]
)
def test_invalid_characters_and_deep_nesting_are_reported(
    source_folder: Any, data: bytes, code: str | None
) -> None:
    result = source_folder.put("talks.json", data).check("vqa")
    assert result.outcome.decision == "Rejected"
    assert result.codes == [code or "FileUnreadable"]
