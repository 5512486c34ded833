"""The YOLO readers: one text file per image and one box per line, ``class x y width height``.

Numbers are fractions of the image; x and y are the box's center. A label file is next to its image,
or in ``labels`` if the image is in ``images``. The two variants differ in where classes are named:
Darknet has a list (``classes.txt``, ``obj.names``), Ultralytics a ``data.yaml``. A line with more
numbers is a polygon, whose bounding box is used, or a box with keypoints, if ``data.yaml`` has
``kpt_shape``. An empty label file means that the image shows no object; such an image gets no row.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import LabeledBox, build_row
from runyard.datasets.readers.text_labels.class_lists import (
    ClassDecision,
    ClassNames,
    find_class_lists,
)
from runyard.datasets.readers.text_labels.image_paths import LabelImages
from runyard.datasets.readers.text_labels.label_lines import is_too_large, read_label_lines
from runyard.datasets.readers.text_labels.text_kinds import (
    find_text_kinds,
    is_image_list,
    list_side_files,
)
from runyard.datasets.readers.text_labels.yolo_lines import COLUMNS, RowLayout, parse_line
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source


class YoloDarknetReader:
    """The reader of labels with a plain list of names; see ``base.Reader``."""

    name = "YoloDarknet"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return [] if find_class_lists(source).has_yaml else _list_files(source)

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        yield from _read_rows(source, files, report)


class YoloKerasPytorchReader:
    """The reader of Ultralytics labels, with a ``data.yaml``; see ``base.Reader``."""

    name = "YoloKerasPytorch"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return _list_files(source) if find_class_lists(source).has_yaml else []

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        yield from _read_rows(source, files, report)


@dataclass(frozen=True)
class _Folder:
    """How to read the label files of a folder."""

    decision: ClassDecision
    layout: RowLayout


def _list_files(source: Source) -> list[str]:
    """List the label files, the lists of classes, and the lists of images.

    If there is a list of classes, all label files may be empty.
    """
    kinds = find_text_kinds(source)
    lists = [found.file for found in find_class_lists(source).files]
    labels = kinds.list_files("yolo") or (kinds.list_empty_files() if lists else [])
    if not labels or (not lists and kinds.are_captions(list_side_files(source))):
        return []
    side = [path for path in source.paths() if is_image_list(path)]
    return sorted({*labels, *lists, *side})


def _read_rows(source: Source, files: list[str], report: ReportFinding) -> Iterator[Row]:
    forms = find_text_kinds(source).forms
    labels = [path for path in files if path in forms]
    folders = _decide_folders(source, labels)
    for finding in dict.fromkeys(
        finding for folder in folders.values() for finding in folder.decision.findings
    ):
        report(finding)
    images = LabelImages(source, labels)
    for path in labels:
        folder = folders[posixpath.dirname(path)]
        if source.size_bytes(path) == 0 or is_too_large(source, path, report):
            continue
        if folder.decision.names is None:
            if forms[path].kind != "empty":
                report(_make_unnamed(path, folder.decision))
            continue
        row = _read_file(source, path, images, folder.decision.names, folder.layout)
        if row is not None:
            yield row


def _decide_folders(source: Source, labels: list[str]) -> dict[str, _Folder]:
    """Decide for each folder which names apply, and whether its rows have keypoints."""
    decisions = find_class_lists(source).decide(labels)
    forms = find_text_kinds(source).forms
    counts: dict[tuple[str, ...], set[int]] = {}
    for path in labels:
        if forms[path].pose_numbers:
            key = _get_dataset(decisions[posixpath.dirname(path)])
            counts.setdefault(key, set()).add(forms[path].pose_numbers)
    return {
        folder: _Folder(
            decision,
            RowLayout(
                decision.keypoints,
                decision.is_segmentation,
                is_likely_pose=len(found := counts.get(_get_dataset(decision), set())) == 1
                and -1 not in found,
            ),
        )
        for folder, decision in decisions.items()
    }


def _get_dataset(decision: ClassDecision) -> tuple[str, ...]:
    """Return what label files of one dataset have in common: their lists of names."""
    return () if decision.names is None else decision.names.files


def _make_unnamed(path: str, decision: ClassDecision) -> Finding:
    return make_finding(
        decision.code, file=path, cause=decision.cause, fix=decision.fix, action="FileRejected"
    )


def _read_file(
    source: Source, path: str, images: LabelImages, names: ClassNames, layout: RowLayout
) -> Row | None:
    boxes: list[LabeledBox] = []
    findings: list[Finding] = []
    confident: list[int] = []
    for number, line in read_label_lines(source, path, findings.append):
        found = parse_line(path, number, line, names, layout)
        if isinstance(found, Finding):
            findings.append(found)
        elif found is not None:
            boxes.append(
                LabeledBox(found.name, found.box, BoxLocation(number, " ".join(COLUMNS[1:])))
            )
            if found.confidence is not None:
                confident.append(number)
    if confident:
        cause = f"{len(confident)} of {len(boxes)} boxes have a confidence, which is not used"
        findings.append(
            make_finding("ConfidenceIgnored", file=path, line=confident[0], cause=cause)
        )
    if not boxes and not findings:
        return None
    if rival := images.check_rivals(path):
        findings.append(rival)
    lines = [*(box.location.line for box in boxes), *(found.line for found in findings)]
    first = min((line for line in lines if line is not None), default=1)
    return build_row(source, images.find(path), boxes, file=path, line=first, findings=findings)
