"""Files that name the classes of YOLO labels, each by itself.

classes.txt, _darknet.labels, *.names    one name per line
data.yaml, or any YAML with ``names``    a list, or a mapping of numbers to names
notes.json of Label Studio               ``categories``, each with ``id`` and ``name``
"""

import json
import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from runyard.datasets.findings import Finding, make_finding
from runyard.datasets.readers.lines import read_head, read_text
from runyard.datasets.readers.text_labels.text_kinds import is_name_list
from runyard.datasets.readers.text_labels.words import parse_whole
from runyard.datasets.readers.text_labels.yaml_nodes import YamlNode, YamlRejected, parse_yaml
from runyard.datasets.sources import Source

MAX_BYTES = 4 << 20
MAX_NAMES = 100_000
MAX_KEYPOINTS = 1000
NOTES = "notes.json"
_HEAD_BYTES = 1 << 20
_COCO_KEYS = re.compile(rb'"(?:images|annotations)"\s*:')
_DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YAML_HINT = re.compile(rb"\b(?:names|nc)\b")
_YAML_NAMES = re.compile(rb"^[\"']?names[\"']?[ \t]*:", re.M)
# Keys of a file that describes a network, which has a count of classes but no names.
_NETWORK_KEYS = ("backbone", "model", "head")


class _Rejected(Exception):
    """The file names its classes in a way that cannot be used."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.cause)
        self.finding = finding


@dataclass
class ClassFile:
    """What one file says about the classes.

    ``names`` maps the numbers of classes to names; it is None if the file has no usable names.
    ``keypoints`` is ``kpt_shape``: the count of keypoints, and the numbers of each (2 or 3).
    ``is_segmentation`` means that the file says ``task: segment``. ``findings`` are about the file.
    """

    file: str
    names: dict[int, str] | None = None
    keypoints: tuple[int, int] | None = None
    is_segmentation: bool = False
    claims_names: bool = True
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_yaml(self) -> bool:
        return is_yaml(self.file)

    def doubt(self, cause: str, *, field: str | None = None, fix: str | None = None) -> None:
        """Add a warning about the names."""
        found = make_finding("ClassListDoubtful", file=self.file, field=field, cause=cause, fix=fix)
        self.findings.append(found)


def is_yaml(path: str) -> bool:
    return path.lower().endswith((".yaml", ".yml"))


def is_notes(source: Source, path: str) -> bool:
    """Return whether this is the list of classes in a YOLO export of Label Studio."""
    if posixpath.basename(path).lower() != NOTES:
        return False
    head = read_head(source, path)
    return b'"categories"' in head and _COCO_KEYS.search(head) is None


def read_class_file(source: Source, path: str) -> ClassFile | None:
    """Read a file that names classes; return None for any other file.

    A file that should name classes but cannot be used has no names and a finding.
    """
    if is_name_list(path):
        return _read_file(source, path, _read_lines)
    if is_notes(source, path):
        return _read_file(source, path, _read_notes)
    if not is_yaml(path):
        return None
    head = read_head(source, path, _HEAD_BYTES)
    if _YAML_HINT.search(head) is None:
        return None
    is_data = posixpath.basename(path).lower() in _DATA_FILES
    is_likely = is_data or _YAML_NAMES.search(head) is not None
    found = _read_file(source, path, _read_yaml, claims_names=is_likely)
    return found if found.claims_names or found.findings or found.keypoints else None


def _read_file(
    source: Source,
    path: str,
    read: Callable[[str, ClassFile], None],
    *,
    claims_names: bool = True,
) -> ClassFile:
    """Read a file; ``claims_names`` applies if it cannot be parsed."""
    result = ClassFile(path, claims_names=claims_names)
    text = read_text(source, path, result.findings.append, limit_bytes=MAX_BYTES)
    is_parsed = text is not None
    try:
        if text is not None:
            read(text, result)
    except YamlRejected as error:
        is_parsed = False
        result.findings.append(
            make_finding(
                "FileUnreadable",
                file=path,
                line=error.line,
                cause=error.cause,
                action="FileRejected",
            )
        )
    except _Rejected as error:
        result.names = None
        result.findings.append(error.finding)
    if not is_parsed:
        result.names = None
        if not result.claims_names:  # another program's file
            result.findings.clear()
    return result


def _read_lines(text: str, result: ClassFile) -> None:
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    result.claims_names = bool(lines)
    if lines:
        _set_names(result, enumerate(lines))
    else:
        result.doubt("it is empty", fix="write one name per line, or remove the file")


def _read_notes(text: str, result: ClassFile) -> None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        cause = f"not valid JSON: {error}"
        raise _Rejected(
            make_finding("FileUnreadable", file=result.file, cause=cause, action="FileRejected")
        ) from error
    categories = data.get("categories") if isinstance(data, dict) else None
    if not isinstance(categories, list):
        raise _reject(result, "categories", "'categories' is not a list", None)
    names = []
    for index, category in enumerate(categories):
        field = f"categories[{index}]"
        number = category.get("id") if isinstance(category, dict) else None
        whole = parse_whole(str(number)) if not isinstance(number, bool) else None
        name = category.get("name") if isinstance(category, dict) else None
        if whole is None or not isinstance(name, str):
            raise _reject(
                result, field, "expected an object with a number 'id' and a 'name'", number
            )
        names.append((whole, name))
    _set_names(result, names, field="categories")


def _read_yaml(text: str, result: ClassFile) -> None:
    root = parse_yaml(text)
    names, task = root.get("names"), root.get("task")
    result.claims_names = names is not None
    result.is_segmentation = task is not None and task.text == "segment"
    count = root.get("nc")
    if names is not None:
        _set_names(result, _list_yaml_names(names, result), field="names")
        _check_count(result, count)
    elif count is not None and not any(root.get(key) for key in _NETWORK_KEYS):
        result.doubt(
            f"it has 'nc: {count.text}', the count of classes, but no 'names'",
            field="names",
            fix="add 'names' with one name for each class",
        )
    result.keypoints = _read_keypoints(root.get("kpt_shape"), result)


def _list_yaml_names(names: YamlNode, result: ClassFile) -> list[tuple[int, str]]:
    if names.items is not None:
        return [
            (number, _get_text(node, f"names[{number}]", result))
            for number, node in enumerate(names.items)
        ]
    if names.pairs is None:
        cause = "'names' is neither a list nor a mapping of numbers to names"
        raise _reject(result, "names", cause, names.text, line=names.line)
    texts = [
        (_get_text(key, "names", result), _get_text(value, f"names.{key.text}", result))
        for key, value in names.pairs
    ]
    numbers = [parse_whole(key) for key, _ in texts]
    if None in numbers and all(parse_whole(value) is not None for _, value in texts):
        # Names with their numbers, as other tools write them.
        texts, numbers = (
            [(value, key) for key, value in texts],
            [parse_whole(value) for _, value in texts],
        )
    listed = []
    for number, (key, name), (node, _) in zip(numbers, texts, names.pairs, strict=True):
        if number is None:
            cause = "the key is not the number of a class"
            raise _reject(result, "names", cause, key, line=node.line)
        listed.append((number, name))
    return listed


def _get_text(node: YamlNode, field: str, result: ClassFile) -> str:
    if node.text is None:
        raise _reject(result, field, "expected a text", None, line=node.line)
    return node.text


def _set_names(
    result: ClassFile, names: Iterable[tuple[int, str]], *, field: str | None = None
) -> None:
    by_number: dict[int, str] = {}
    blank: list[int] = []
    for number, name in names:
        if number >= MAX_NAMES or len(by_number) >= MAX_NAMES:
            cause = f"more than {MAX_NAMES:,} classes are not supported"
            raise _reject(result, field, cause, number)
        name = " ".join(name.split())
        if by_number.setdefault(number, name) != name:
            cause = f"class {number} has two names: {by_number[number]!r} and {name!r}"
            raise _reject(result, field, cause, number)
        if not name:
            blank.append(number)
    result.names = {number: name for number, name in by_number.items() if name}
    missing = sorted({*blank, *_find_holes(by_number)})
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        result.doubt(f"{len(missing)} of its classes have no name: {shown}", field=field)
    if not result.names:
        raise _reject(result, field, "it has no names", None)


def _find_holes(names: dict[int, str]) -> set[int]:
    """Find the numbers without a name before the last; numbers from 1 have no hole at 0."""
    return set(range(min(names, default=0), max(names, default=0))).difference(names)


def _check_count(result: ClassFile, count: YamlNode | None) -> None:
    number = parse_whole(count.text or "") if count is not None else None
    if number is not None and result.names and number != max(result.names) + 1:
        highest = max(result.names)
        result.doubt(
            f"it has 'nc: {number}', but the names end with class {highest}",
            field="nc",
            fix="make 'nc' and 'names' agree",
        )


def _read_keypoints(node: YamlNode | None, result: ClassFile) -> tuple[int, int] | None:
    if node is None:
        return None
    numbers = [parse_whole(item.text or "") for item in node.items or ()]
    if len(numbers) == 2 and numbers[0] and numbers[0] <= MAX_KEYPOINTS and numbers[1] in (2, 3):
        return numbers[0], numbers[1]
    cause = "expected the count of keypoints and 2 or 3 numbers for each, such as [17, 3]"
    value = node.text if node.items is None else [item.text for item in node.items]
    result.findings.append(_reject(result, "kpt_shape", cause, value, line=node.line).finding)
    return None


def _reject(
    result: ClassFile, field: str | None, cause: str, value: object, *, line: int | None = None
) -> _Rejected:
    return _Rejected(
        make_finding(
            "FieldInvalid",
            file=result.file,
            line=line,
            field=field,
            cause=cause,
            value=value,
            action="FileRejected",
        )
    )
