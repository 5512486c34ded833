import json
from collections.abc import Callable
from typing import Any

import pytest

from runyard.datasets.records import Conversation, DatasetType, Freeform, Turn, Vqa

LABEL = "Pict" + "ure"  # that Qwen-VL writes before its tags
LLAVA = {
    "id": "000000033471",
    "image": "coco/bus.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat colour is the bus?"},
        {"from": "gpt", "value": "It is white and red."},
        {"from": "human", "value": "Is it raining?"},
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


def say(*texts: str, system: str | None = None) -> list[Turn]:
    turns = [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]
    return turns if system is None else [Turn("system", system), *turns]


@pytest.mark.parametrize("task", ["vqa", "freeform"])
def test_several_questions_become_one_conversation(
    source_folder: Any, make_png: Callable[..., bytes], task: DatasetType
) -> None:
    source_folder.put("coco/bus.png", make_png()).put("llava.json", json.dumps([LLAVA]))
    result = source_folder.check(task)
    assert result.findings == []
    [record] = result.records
    assert (record.id, record.asset.filename, record.asset.width) == (
        "000000033471",
        "coco/bus.png",
        40,
    )
    assert record.contents == Conversation(
        turns=say("What colour is the bus?", "It is white and red.", "Is it raining?", "No.")
    )


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


def test_a_single_question_is_a_text_of_a_freeform_dataset(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("bus.png", make_png()).put("chat.json", json.dumps([CHAT]))
    [record] = source_folder.check("freeform").records
    assert record.contents == Freeform(
        prompt="What colour is the bus?", text="It is white and red."
    )


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        ({"conversations": make_turns("Who?", "He.")}, "FieldMissing", "[1].image"),
        ({"image": 3, "conversations": make_turns("Who?", "He.")}, "FieldInvalid", "[1].image"),
        (
            {"images": ["a.png", "a.png"], "conversations": make_turns("Who?", "He.")},
            "ConversationInvalid",
            "[1].conversations",
        ),
        (
            {"image": "https://x.org/z.png", "conversations": make_turns("Who?", "He.")},
            "ImageMissing",
            "[1]",
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


def test_a_system_turn_is_the_first_turn_of_a_conversation(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    row = {
        "image": "a.png",
        "conversations": [{"from": "system", "value": "Be brief."}, *make_turns("Who?", "She.")],
    }
    empty = {
        "image": "a.png",
        "conversations": [{"from": "system", "value": " "}, *make_turns("Who?", "She.")],
    }
    source_folder.put("a.png", make_png()).put("talks.json", json.dumps([row, empty]))
    first, second = source_folder.check("vqa").records
    assert first.contents == Conversation(turns=say("Who?", "She.", system="Be brief."))
    assert list_questions(second.contents) == [("Who?", "She.")]


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


def check_rows(
    source_folder: Any, make_png: Callable[..., bytes], *rows: Any, images: str = "a.png b.png"
) -> Any:
    for number, name in enumerate(images.split()):
        source_folder.put(name, make_png(40 + number, 20))
    source_folder.put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return source_folder.check("vqa")


def test_several_images_stay_in_order_with_their_marks(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    swift = {
        "images": ["b.png", "a.png"],
        "messages": [
            {"role": "user", "content": "<image>Is <img> smaller than <image> ?"},
            {"role": "assistant", "content": "Yes, <image>."},
        ],
    }
    parts = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    {"type": "image", "path": "./b.png"},
                    {"type": "text", "text": "Which is larger?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "value": "The second."}]},
        ]
    }
    qwen = {
        "conversations": make_turns(
            f"{LABEL} 1: <img>a.png</img>\nWhat?", "A.", f"{LABEL} 2: <img>b.png</img>\nAnd?", "B."
        )
    }
    result = check_rows(source_folder, make_png, swift, parts, qwen)
    assert result.findings == []
    assert [record.contents for record in result.records] == [
        Conversation(
            images=["b.png", "a.png"],
            turns=say("<image>Is <img> smaller than <image> ?", "Yes, <image>."),
        ),
        Conversation(
            images=["a.png", "b.png"],
            turns=say("<image>\n<image>\nWhich is larger?", "The second."),
        ),
        Conversation(
            images=["a.png", "b.png"],
            turns=say(f"{LABEL} 1: <image>\nWhat?", "A.", f"{LABEL} 2: <image>\nAnd?", "B."),
        ),
    ]
    assert [record.asset.filename for record in result.records] == ["b.png", "a.png", "a.png"]


def test_names_of_several_images_become_the_accepted_paths(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    row = {
        "images": ["C:\\shop\\a.png", "/data/b.png"],
        "conversations": make_turns("<image><image>Same?", "No."),
    }
    result = check_rows(source_folder, make_png, row, images="images/a.png images/b.png")
    [record] = result.records
    assert record.contents.images == ["images/a.png", "images/b.png"]
    assert result.codes == []


def test_every_missing_image_of_a_row_is_reported(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    row = {
        "images": ["x.png", "a.png", "y.png"],
        "conversations": make_turns("<image><image><image>Same?", "No."),
    }
    good = {"image": "b.png", "conversations": make_turns("What?", "A tin.")}
    result = check_rows(source_folder, make_png, row, good)
    assert len(result.records) == 1
    missing = [found.value for found in result.findings if found.code == "ImageMissing"]
    assert sorted(missing) == ["x.png", "y.png"]


@pytest.mark.parametrize(
    ("row", "code", "cause"),
    [
        (
            {"images": ["a.png", "b.png"], "conversations": make_turns("<image>Same?", "No.")},
            "ConversationInvalid",
            "the numbers of image marks in user turns (1) and of images (2) differ",
        ),
        (
            {"image": "a.png", "conversations": make_turns("<image>A?", "B.", "<image>C?", "D.")},
            "ConversationInvalid",
            "the numbers of image marks in user turns (2) and of images (1) differ",
        ),
        (
            {"image": "a.png", "images": ["b.png"], "conversations": make_turns("A?", "B.")},
            "FieldInvalid",
            "the fields image and images name different images",
        ),
        (
            {"images": ["a.png", 3], "conversations": make_turns("<image><image>A?", "B.")},
            "FieldInvalid",
            "not the name of an image",
        ),
        (
            {"image": "a.png", "videos": ["v.mp4"], "conversations": make_turns("A?", "B.")},
            "FieldInvalid",
            "only images are supported",
        ),
        (
            {
                "image": "a.png",
                "messages": [
                    {"role": "user", "content": [{"type": "video", "video": "v.mp4"}]},
                    {"role": "assistant", "content": "B."},
                ],
            },
            "FieldInvalid",
            "a part of a turn is a text or an image",
        ),
        (
            {
                "image": "a.png",
                "conversations": [
                    {"from": "system", "value": "See <image>."},
                    *make_turns("A?", "B."),
                ],
            },
            "ConversationInvalid",
            "an image in a turn of the role system; images belong to user turns",
        ),
        (
            {
                "image": "a.png",
                "conversations": [
                    *make_turns("A?", "B."),
                    {"from": "system", "value": "Stop."},
                    *make_turns("C?", "D."),
                ],
            },
            "ConversationInvalid",
            "a system turn comes first, and there is at most one",
        ),
        (
            {"conversations": make_turns("Say hello.", "Hello.")},
            "FieldMissing",
            "the row does not name an image",
        ),
        (
            {"image": "a.png", "conversations": make_turns("A?", "B.", "C?", " ")},
            "AnswerEmpty",
            "the answer is empty",
        ),
        (
            {"image": "a.png", "conversations": make_turns("A?", "B.", " ", "D.")},
            "QuestionEmpty",
            "the user turn is empty",
        ),
        (
            {
                "image": "a.png",
                "conversations": make_turns("Find the <ref-object>.", "<bbox><bbox>"),
                "objects": {"ref": ["tin"], "bbox": [[1, 2, 3, 4]]},
            },
            "ConversationInvalid",
            "the turns have 2 <bbox>, but objects has 1 bbox",
        ),
        (
            {"image": "a.png", "conversations": make_turns("Where?", "<bbox>")},
            "FieldInvalid",
            "the turns have placeholders, which need objects with ref (names) and bbox (lists of 2 "
            "or 4 numbers)",
        ),
    ],
)
def test_an_inconsistent_row_is_rejected_with_its_cause(
    source_folder: Any, make_png: Callable[..., bytes], row: Any, code: str, cause: str
) -> None:
    good = {"images": ["a.png", "b.png"], "conversations": make_turns("<image><image>A?", "B.")}
    result = check_rows(source_folder, make_png, row, good)
    assert len(result.records) == 1
    assert [(found.code, found.cause, found.line) for found in result.findings] == [
        (code, cause, 1)
    ]


@pytest.mark.parametrize(
    ("first", "stored"),
    [
        ("<image>\nWhat?", "What?"),
        ("What?", "What?"),
        ("What?\n<image>", "What?\n<image>"),
        ("Is <image> a tin?", "Is <image> a tin?"),
        ("<image>", "<image>"),
    ],
)
def test_the_mark_of_one_image_stays_unless_it_comes_first(
    source_folder: Any, make_png: Callable[..., bytes], first: str, stored: str
) -> None:
    row = {"image": "a.png", "conversations": make_turns(first, "A tin.", "Sure?", "Yes.")}
    [record] = check_rows(source_folder, make_png, row, images="a.png").records
    assert record.contents == Conversation(turns=say(stored, "A tin.", "Sure?", "Yes."))


def test_tags_in_answers_are_text(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    row = {
        "image": "a.png",
        "conversations": make_turns("<image>\nWrite HTML.", "<img src='x'> <img> <image>"),
    }
    [record] = check_rows(source_folder, make_png, row, images="a.png").records
    assert list_questions(record.contents) == [("Write HTML.", "<img src='x'> <img> <image>")]


def test_a_tag_with_a_name_is_the_image_of_the_row(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    row = {"conversations": make_turns(f"{LABEL} 1: <img>a.png</img>\nWhat is it?", "A tin.")}
    [record] = check_rows(source_folder, make_png, row, images="a.png").records
    assert list_questions(record.contents) == [("What is it?", "A tin.")]


@pytest.mark.parametrize(
    "objects",
    [
        {"ref": ["tin", "box"], "bbox": [[20, 10, 100, 60], [0.5, 1, 2, 3]]},
        [
            {"caption": "tin", "bbox": [20, 10, 100, 60], "bbox_type": "real"},
            {"caption": "box", "bbox": [0.5, 1, 2, 3]},
        ],
        json.dumps({"ref": ["tin", "box"], "bbox": [[20, 10, 100, 60], [0.5, 1, 2, 3]]}),
    ],
)
def test_placeholders_are_filled_in_order(
    source_folder: Any, make_png: Callable[..., bytes], objects: Any
) -> None:
    row = {
        "image": "a.png",
        "objects": objects,
        "conversations": make_turns("<image>Find <ref-object> and <ref-object>.", "<bbox> <bbox>"),
    }
    result = check_rows(source_folder, make_png, row, row | {"id": "2"}, images="a.png")
    assert list_questions(result.records[0].contents) == [
        ("Find tin and box.", "[20, 10, 100, 60] [0.5, 1, 2, 3]")
    ]
    assert result.codes == ["BoxesInText", "RowDuplicate"]


def test_boxes_in_texts_are_reported_once_per_file(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    rows = [
        {
            "id": number,
            "image": "a.png",
            "conversations": make_turns(
                f"Find {number}.", "<|box_start|>(100,100),(500,600)<|box_end|>"
            ),
        }
        for number in range(3)
    ]
    result = check_rows(source_folder, make_png, *rows, images="a.png")
    assert len(result.records) == 3
    assert result.codes == ["BoxesInText"]


@pytest.mark.parametrize("is_array", [True, False])
def test_turns_after_a_long_field_are_detected(
    source_folder: Any, make_png: Callable[..., bytes], is_array: bool
) -> None:
    row = {
        "source": {"messages": ["[", "}"], "text": 'a \\" b' * 20_000},
        "image": "a.png",
        "conversations": make_turns("Who?", "She."),
    }
    text = json.dumps([row]) if is_array else json.dumps(row) + "\n"
    source_folder.put("a.png", make_png()).put(f"a.json{'' if is_array else 'l'}", text)
    assert len(source_folder.check().records) == 1


def test_turns_within_another_field_are_not_a_conversation(source_folder: Any) -> None:
    row = {"text": "x" * 2000, "meta": {"messages": [{"role": "user", "content": "Hi."}]}}
    source_folder.put("notes.json", json.dumps([row]))
    assert source_folder.check().outcome.format is None


def test_the_type_of_a_file_is_that_of_its_first_decisive_row(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    contents = [
        {"type": "Conversation", "turns": [{"role": "user", "content": "A?"}] * number}
        for number in (1, 1)
    ]
    for one in contents:
        one["turns"] = [*one["turns"], {"role": "assistant", "content": "B."}]
    lines = [
        {"id": str(n), "asset": {"filename": "a.png"}, "contents": one}
        for n, one in enumerate([*contents, {"type": "Freeform", "text": "A tin."}])
    ]
    source_folder.put("a.png", make_png()).put(
        "rows.jsonl", "".join(json.dumps(line) + "\n" for line in lines)
    )
    result = source_folder.check()
    assert result.outcome.type == "freeform"
    assert len(result.records) == 3


def test_earlier_questions_of_a_table_row_are_turns(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    row: dict[str, Any] = {"file_name": "a.png", "query": "<image>Sure?", "response": "Yes."}
    wrong = row | {"history": ["Who?"]}
    source_folder.put("a.png", make_png()).put(
        "metadata.jsonl",
        "".join(
            json.dumps(one) + "\n"
            for one in (row | {"history": [["Who?", "She."]]}, row | {"history": []}, wrong)
        ),
    )
    result = source_folder.check("vqa")
    first, second = result.records
    assert first.contents == Conversation(turns=say("Who?", "She.", "<image>Sure?", "Yes."))
    assert list_questions(second.contents) == [("Sure?", "Yes.")]
    assert [(found.code, found.field, found.line) for found in result.findings] == [
        ("FieldInvalid", "history", 3)
    ]


def test_conversations_of_a_table_about_its_image(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    turns = make_turns("<image>\nWho?", "She.", "Sure?", "<|box_start|>(1,1),(2,2)<|box_end|>")
    rows = [{"file_name": "a.png", "conversations": turns}] * 2
    rows.append({"file_name": "a.png", "conversations": make_turns("<image><image>Who?", "She.")})
    source_folder.put("a.png", make_png()).put(
        "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
    )
    result = source_folder.check("freeform")
    assert result.records[0].contents == Conversation(
        turns=say("Who?", "She.", "Sure?", "<|box_start|>(1,1),(2,2)<|box_end|>")
    )
    assert sorted(result.codes) == ["BoxesInText", "ConversationInvalid", "RowDuplicate"]


@pytest.mark.parametrize("task", ["vqa", "freeform"])
def test_a_row_with_an_empty_list_of_images_is_text_only(
    source_folder: Any, make_png: Callable[..., bytes], task: DatasetType
) -> None:
    rows = [
        {"images": ["bus.png"], "conversations": make_turns("<image>What?", "A bus.")},
        {"images": [], "conversations": make_turns("What is <b>?", "A tag.", "Why?", "So.")},
        {"images": [], "conversations": make_turns("<image>Which?", "None.")},
    ]
    source_folder.put("bus.png", make_png()).put("a/mixed.json", json.dumps(rows))
    result = source_folder.check(task)
    texts = say("What is <b>?", "A tag.", "Why?", "So.")
    assert [
        (record.asset.filename, record.contents)
        for record in result.records
        if isinstance(record.contents, Conversation)
    ] == [("a/mixed/text-000002.png", Conversation(turns=texts, is_text_only=True))]
    assert [found.cause for found in result.findings] == [
        "the numbers of image marks in user turns (1) and of images (0) differ"
    ]
