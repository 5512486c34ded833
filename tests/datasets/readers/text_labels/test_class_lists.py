"""The class names that apply to a label file: the nearest list, in whatever form it is written."""

import json
from typing import Any

import pytest

ROW = "0 0.3 0.35 0.4 0.5"
NOTES = json.dumps({"categories": [{"id": 1, "name": "jar"}, {"id": 0, "name": "tin"}]})


def read_names(result: Any) -> dict[str, str]:
    return {
        record.asset.filename: record.contents.grounded_phrases[0].phrase
        for record in result.records
    }


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "tin\njar\n\n"),
        ("Classes.txt", "\ufefftin\r\njar\r\n"),
        ("_darknet.labels", "tin\njar"),
        ("obj.names", "tin\njar"),
        ("data.yaml", "names: [tin, jar]"),
        ("shelf.yml", "names: ['tin', \"jar\"]  # two"),
        ("data.yaml", "names:\n  - tin\n  - jar\nnc: 2"),
        ("data.yaml", "train: x\nnames:\n  0: tin # metal\n  1: jar\n\nval: y"),
        ("data.yaml", "names: {1: jar, 0: tin}"),
        ("data.yaml", "names:\n  '0': tin\n  \"1\": jar"),
        ("data.yaml", "names: [\n  'tin',\n  'jar'\n]"),
        ("data.yaml", "base: &all [tin, jar]\nnames: *all"),
        ("data.yaml", "{names: {tin: 0, jar: 1}, nc: 2}"),
        ("data.yaml", "all: &all\n  names: [tin, jar]\n<<: *all\ntrain: x"),
        ("notes.json", NOTES),
    ],
)
def test_class_lists_have_many_forms(put_labels: Any, file: str, text: str) -> None:
    result = put_labels(ROW, **{file: text}).check()
    assert read_names(result) == {"images/a.png": "tin"}
    assert result.findings == []


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("'part #3'", "part #3"),
        ("part #3", "part"),
        ('"K\\xE4se"', "Käse"),
        ("no", "no"),
        ("007", "007"),
        ("null", "null"),
        ("1.50", "1.50"),
        ("2024-01-02", "2024-01-02"),
        ("'it''s'", "it's"),
        ('"a, b"', "a, b"),
        ("big\n  red tin", "big red tin"),
        (">-\n  big\n  red tin", "big red tin"),
        ("!!str 7", "7"),
    ],
)
def test_names_in_yaml_keep_their_text(put_labels: Any, written: str, name: str) -> None:
    result = put_labels(ROW, **{"data.yaml": f"names:\n- {written}\n"}).check()
    assert read_names(result) == {"images/a.png": name}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"classes.txt": "tin\njar"}, {"classes.txt": "jar\ntin"}),
        ({"data.yaml": "names: [tin, jar]"}, {"data.yaml": "names: [jar, tin]"}),
        ({"data.yaml": "names: [tin]"}, {"obj.names": "jar"}),
        ({"labels/classes.txt": "tin"}, {"classes.txt": "jar"}),
    ],
)
def test_each_label_file_is_read_with_the_nearest_list(
    put_images: Any, one: dict[str, str], two: dict[str, str]
) -> None:
    folder = put_images("one/images/a.png", "two/images/b.png").put("classes.txt", "box\nbag")
    folder.put("one/labels/a.txt", ROW).put("two/labels/b.txt", ROW)
    for name, lists in (("one", one), ("two", two)):
        for path, text in lists.items():
            folder.put(f"{name}/{path}", text)
    assert read_names(folder.check()) == {"one/images/a.png": "tin", "two/images/b.png": "jar"}


@pytest.mark.parametrize(
    "files",
    [
        {"classes.txt": "tin\njar", "data.yaml": "names: [jar, tin]"},
        {"data.yaml": "names: [tin]", "old.yaml": "names: [jar]"},
        {"classes.txt": "tin\nbox", "notes.json": NOTES},
        {"labels/obj.names": "tin", "labels/classes.txt": "jar", "classes.txt": "tin"},
    ],
)
def test_lists_in_one_folder_that_contradict_each_other_are_both_named(
    put_labels: Any, files: dict[str, str]
) -> None:
    result = put_labels(ROW, **files).check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.file) for found in errors] == [("ClassListsDiffer", "labels/a.txt")]
    assert all(path in errors[0].cause for path in list(files)[:2])
    assert (result.records, result.outcome.decision) == ([], "Rejected")


def test_lists_in_one_folder_may_agree(put_labels: Any) -> None:
    files = {"classes.txt": "tin\njar\nbox", "data.yaml": "names: [tin, jar]", "notes.json": NOTES}
    result = put_labels("2 0.3 0.35 0.4 0.5", **files).check()
    assert (read_names(result), result.findings) == ({"images/a.png": "box"}, [])


def test_the_only_list_applies_from_another_folder_and_is_reported(put_labels: Any) -> None:
    result = put_labels(ROW, **{"meta/classes.txt": "tin"}).check()
    assert read_names(result) == {"images/a.png": "tin"}
    assert [(found.code, found.file) for found in result.findings] == [
        ("ClassListDoubtful", "meta/classes.txt")
    ]


@pytest.mark.parametrize(
    "others",
    [
        {"meta/classes.txt": "tin", "more/classes.txt": "jar"},
        {"two/classes.txt": "jar", "two/labels/b.txt": ROW},
    ],
)
def test_a_list_of_other_labels_does_not_apply(put_labels: Any, others: dict[str, str]) -> None:
    result = put_labels(ROW, **others).check()
    found = next(found for found in result.findings if found.file == "labels/a.txt")
    assert (found.code, found.action) == ("ClassUnknown", "FileRejected")
    assert "classes.txt" in found.cause and "above the labels" in found.fix


def test_labels_without_any_names_are_each_rejected(put_images: Any) -> None:
    result = put_images("a.png", "b.png").put("a.txt", ROW).put("b.txt", ROW).check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.file) for found in errors] == [
        ("ClassUnknown", "a.txt"),
        ("ClassUnknown", "b.txt"),
    ]
    assert "classes.txt" in errors[0].fix
    assert result.outcome.decision == "Rejected"


@pytest.mark.parametrize(
    "text",
    [
        "task: detect\nmode: train\nmodel: y.pt\ndata: data.yaml\nval: true\n",
        "lr0: 0.01\nnames_seen: 3\n",
        "nc: 80\nbackbone: [[-1, 1, Conv]]\nhead: []\n",
        "names\n  : {[",
    ],
)
def test_other_yaml_files_are_no_lists(put_labels: Any, text: str) -> None:
    result = put_labels(ROW, **{"classes.txt": "tin", "args.yaml": text}).check()
    assert (result.outcome.format, read_names(result)) == ("YoloDarknet", {"images/a.png": "tin"})
    assert result.codes == ["FileIgnored"]


@pytest.mark.parametrize(
    ("file", "text", "cause"),
    [
        ("data.yaml", "train: images\nnc: 2", "'nc: 2', the count of classes, but no 'names'"),
        ("data.yaml", "nc: 3\nnames: [tin, jar]", "the names end with class 1"),
        ("data.yaml", "names: {0: tin, 2: jar}", "1 of its classes have no name: 1"),
        ("data.yaml", "names: [tin, '', jar]", "1 of its classes have no name: 1"),
        ("classes.txt", "tin\n\njar", "1 of its classes have no name: 1"),
        ("obj.names", "", "it is empty"),
    ],
)
def test_a_doubtful_list_is_reported(put_labels: Any, file: str, text: str, cause: str) -> None:
    files = {file: text, "_darknet.labels": "tin"}
    result = put_labels(ROW, **files).check()
    assert read_names(result) == {"images/a.png": "tin"}
    found = next(found for found in result.findings if found.code == "ClassListDoubtful")
    assert (found.file, found.severity) == (file, "warning")
    assert cause in found.cause


@pytest.mark.parametrize(
    ("file", "text", "code", "cause"),
    [
        ("data.yaml", "names: tin", "FieldInvalid", "neither a list nor a mapping"),
        ("data.yaml", "names: [tin, [jar]]", "FieldInvalid", "expected a text"),
        ("data.yaml", "names: {a: tin, b: jar}", "FieldInvalid", "not the number of a class"),
        ("data.yaml", "names: {0: tin, '0': jar}", "FieldInvalid", "class 0 has two names"),
        ("data.yaml", "names: {999999: tin}", "FieldInvalid", "more than 100,000 classes"),
        ("data.yaml", "names:\n", "FieldInvalid", "neither a list"),
        ("data.yaml", "names: [tin]\nnames: [jar]", "FileUnreadable", "lines 1 and 2"),
        ("data.yaml", "names: [tin\n", "FileUnreadable", "not valid YAML"),
        ("data.yaml", "names: [tin]\n---\nnames: [jar]", "FileUnreadable", "one document"),
        ("data.yaml", "names: [!!python/name:os.system tin]", "FileUnreadable", "the tag"),
        ("data.yaml", "names: *all\n", "FileUnreadable", "*all has no complete anchor"),
        ("data.yaml", b"names: [K\xe4se]", "EncodingWrong", "not UTF-8"),
        ("notes.json", '{"categories": {}}', "FieldInvalid", "not a list"),
        ("notes.json", '{"categories": [{"id": "x", "name": "a"}]}', "FieldInvalid", "'id'"),
        ("notes.json", '{"categories": [', "FileUnreadable", "not valid JSON"),
    ],
)
def test_a_list_that_cannot_be_used_rejects_its_labels(
    put_labels: Any, file: str, text: Any, code: str, cause: str
) -> None:
    result = put_labels(ROW, **{file: text}).check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.file) for found in errors] == [
        (code, file),
        ("ClassUnknown", "labels/a.txt"),
    ]
    assert cause in errors[0].cause
    assert errors[1].cause == f"{file} cannot be used"


def test_an_unknown_class_is_reported_with_the_known_ones(put_labels: Any) -> None:
    result = put_labels("2 0.3 0.35 0.4 0.5").check()
    found = result.findings[0]
    assert (found.code, found.value) == ("ClassUnknown", "2")
    assert found.cause == "there is no class 2: classes.txt names the classes 0 to 1"


def test_more_names_than_the_limit_are_rejected(put_labels: Any) -> None:
    result = put_labels(ROW, **{"classes.txt": "\n".join(map(str, range(100_001)))}).check()
    assert "more than 100,000 classes" in result.findings[0].cause
