"""The class names that apply to a label file: those of the nearest list in the folders above it.

Lists in one folder must agree. A list in another folder applies only if it is the only one, and is
not above any label file itself; this is reported.
"""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

from runyard.datasets.findings import Finding, make_finding
from runyard.datasets.readers.text_labels.class_files import ClassFile, read_class_file
from runyard.datasets.sources import Source

_SOURCES: "WeakKeyDictionary[Source, ClassLists]" = WeakKeyDictionary()


@dataclass(frozen=True)
class ClassNames:
    """Names of classes by number, and the files they come from."""

    by_number: dict[int, str]
    files: tuple[str, ...]

    @cached_property
    def _by_text(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in dict.fromkeys(self.by_number.values()):
            names.setdefault(name.casefold(), []).append(name)
        return names

    def find(self, text: str) -> str | None:
        """Return the name that a text means: exactly, else ignoring case if only one fits."""
        similar = self._by_text.get(text.casefold(), [])
        if text in similar:
            return text
        return similar[0] if len(similar) == 1 else None

    def describe(self) -> str:
        """Describe which classes there are, for a finding."""
        where = " and ".join(self.files)
        numbers = sorted(self.by_number)
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{where} names the classes {numbers[0]} to {numbers[-1]}"
        return f"{where} names {len(numbers)} classes, from {numbers[0]} to {numbers[-1]}"


@dataclass(frozen=True)
class ClassDecision:
    """The names for the label files of a folder, or why there are none.

    ``code``, ``cause`` and ``fix`` are those of the finding about each label file if ``names`` is
    None. ``findings`` are about the lists. ``keypoints`` and ``is_segmentation`` are those of the
    nearest YAML file; see ``ClassFile``.
    """

    names: ClassNames | None
    keypoints: tuple[int, int] | None = None
    is_segmentation: bool = False
    findings: tuple[Finding, ...] = ()
    code: str = "ClassUnknown"
    cause: str = ""
    fix: str | None = None


class ClassLists:
    """The files of a source that name classes."""

    def __init__(self, source: Source) -> None:
        self.files: list[ClassFile] = []
        self._by_folder: dict[str, list[ClassFile]] = {}
        self._decisions: dict[str, ClassDecision] = {}
        for path in source.paths():
            if (found := read_class_file(source, path)) is not None:
                self.files.append(found)
                self._by_folder.setdefault(posixpath.dirname(path), []).append(found)

    @property
    def has_yaml(self) -> bool:
        """Return whether any of them is a ``data.yaml``."""
        return any(found.is_yaml for found in self.files)

    def decide(self, labels: Sequence[str]) -> dict[str, ClassDecision]:
        """Decide which names apply to the label files of each folder."""
        folders = list(dict.fromkeys(posixpath.dirname(path) for path in labels))
        above = {folder for label in folders for folder in _list_upward(label)}
        lists = [found for found in self.files if found.claims_names]
        elsewhere = [found for found in lists if posixpath.dirname(found.file) not in above]
        places = {posixpath.dirname(found.file) for found in elsewhere}
        is_only = len(elsewhere) == len(lists) and len(places) == 1
        return {
            folder: self._decide_folder(folder, elsewhere if is_only else []) for folder in folders
        }

    def _decide_folder(self, folder: str, elsewhere: list[ClassFile]) -> ClassDecision:
        findings: list[Finding] = []
        nearest: list[ClassFile] = []
        for above in _list_upward(folder):
            found = self._by_folder.get(above, [])
            findings += [finding for file in found for finding in file.findings]
            nearest = [file for file in found if file.claims_names]
            if nearest:
                break
        if not nearest and elsewhere:
            nearest = elsewhere
            findings += [finding for file in nearest for finding in file.findings]
            findings.append(_make_far(nearest[0].file, folder))
        others = [file.file for file in self.files if file.claims_names]
        if not nearest and others:
            cause = f"no list of classes is in a folder above it, only {', '.join(others[:3])}"
            return ClassDecision(None, findings=tuple(findings), cause=cause, fix=_FIX)
        return _choose_names(nearest, findings, self._find_shapes(folder))

    def _find_shapes(self, folder: str) -> list[ClassFile]:
        """Find the nearest YAML files that say whether rows are poses or polygons."""
        for above in _list_upward(folder):
            found = [
                file
                for file in self._by_folder.get(above, [])
                if file.keypoints is not None or file.is_segmentation
            ]
            if found:
                return found
        return []


_FIX = (
    "put classes.txt with one name per line, or data.yaml with names, in a folder above the labels"
)


def find_class_lists(source: Source) -> ClassLists:
    """Read the files of a source that name classes, once."""
    if source not in _SOURCES:
        _SOURCES[source] = ClassLists(source)
    return _SOURCES[source]


def _choose_names(
    files: list[ClassFile], findings: list[Finding], shapes: list[ClassFile]
) -> ClassDecision:
    """Merge the names of lists in one folder, which must agree."""
    broken = [file for file in files if not file.names]
    if not files or broken:
        cause = f"{broken[0].file} cannot be used" if broken else "no file names the classes"
        fix = f"correct {broken[0].file}" if broken else _FIX
        return ClassDecision(None, findings=tuple(findings), cause=cause, fix=fix)
    merged: dict[int, tuple[str, str]] = {}
    for file in files:
        for number, name in (file.names or {}).items():
            known, first = merged.setdefault(number, (name, file.file))
            if known != name:
                cause = (
                    f"two lists contradict each other: class {number} is {known!r} in {first} and "
                    f"{name!r} in {file.file}"
                )
                return _make_contradiction(findings, cause)
    for file in shapes[1:]:
        if (file.keypoints, file.is_segmentation) != (
            shapes[0].keypoints,
            shapes[0].is_segmentation,
        ):
            cause = f"'kpt_shape' and 'task' of {shapes[0].file} and {file.file} differ"
            return _make_contradiction(findings, cause)
    names = ClassNames(
        {number: name for number, (name, _) in merged.items()}, tuple(file.file for file in files)
    )
    return ClassDecision(
        names,
        keypoints=shapes[0].keypoints if shapes else None,
        is_segmentation=bool(shapes) and shapes[0].is_segmentation,
        findings=tuple(findings),
    )


def _make_contradiction(findings: Iterable[Finding], cause: str) -> ClassDecision:
    return ClassDecision(
        None,
        findings=tuple(findings),
        code="ClassListsDiffer",
        cause=cause,
    )


def _make_far(file: str, folder: str) -> Finding:
    cause = f"it is the only list, but not in a folder above the labels in {folder or '.'!r}"
    return make_finding("ClassListDoubtful", file=file, cause=cause)


def _list_upward(folder: str) -> Iterator[str]:
    """Yield a folder and all folders above it; the top is the empty text."""
    yield folder
    while folder:
        folder = posixpath.dirname(folder)
        yield folder
