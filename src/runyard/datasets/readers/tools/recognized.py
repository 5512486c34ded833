"""Formats of annotation tools that are not read, recognized by the beginning of a file.

A user who exported the wrong format should learn which tool wrote the file and which export to
choose, not that the format is unknown. Each entry of a table is one format.
"""

import json
import posixpath
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from runyard.datasets.readers.lines import read_head
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.sources import Source

_XML_ROOT = re.compile(rb"<([A-Za-z_][\w.-]*)")
_AUTOML_ROW = re.compile(rb"(?i)(TRAIN|VALIDATION|TEST|UNASSIGNED),gs://")


class RecognizedFormat(NamedTuple):
    """The format, named as its tool names it, and what to export or convert to instead."""

    tool: str
    export: str


class _JsonSignature(NamedTuple):
    """A JSON format: the keys it always has, and a test of their values."""

    keys: tuple[str, ...]
    matches: Callable[[JsonForm], bool]
    format: RecognizedFormat


def recognize(source: Source, path: str) -> RecognizedFormat | None:
    """Return the format of a file that no reader reads, or None if it is unknown.

    Read at most the first MiB.
    """
    if found := _recognize_name(source, path):
        return found
    form = sniff_json(source, path) or _sniff_manifest(source, path)
    if form is not None:
        return _recognize_json(form)
    lower = path.lower()
    if lower.endswith(".xml"):
        return _recognize_xml(read_head(source, path))
    if lower.endswith(".csv") and _AUTOML_ROW.match(read_head(source, path)):
        return RecognizedFormat("Google AutoML CSV", "COCO, or convert the rows to COCO JSON")
    return None


def is_panoptic(form: JsonForm | None) -> bool:
    """Return whether a JSON file is COCO in the panoptic format, which has masks, not boxes."""
    return form is not None and _has_key(form.first.get("annotations"), "segments_info")


def _recognize_name(source: Source, path: str) -> RecognizedFormat | None:
    ending = posixpath.splitext(path.lower())[1]
    if found := _BY_ENDING.get(ending):
        return found
    if "ImageSets/Segmentation/" in path and ending == ".txt":
        return RecognizedFormat(
            "Pascal VOC segmentation (masks as PNG)", "Pascal VOC detection (bndbox), or COCO"
        )
    if posixpath.basename(path.lower()) == "data.mdb":
        return RecognizedFormat("an LMDB database", "the images as files, with COCO JSON")
    return None


_TFRECORD = RecognizedFormat("TFRecord", "COCO or Pascal VOC from the tool that wrote it")
_PICKLE = RecognizedFormat("a Python pickle, which is never loaded", "COCO JSON, or JSON Lines")
_HDF5 = RecognizedFormat("HDF5", "the images as files, with COCO JSON")
_NUMPY = RecognizedFormat("NumPy arrays", "the images as files, with COCO JSON or CSV")
_EXCEL = RecognizedFormat("an Excel workbook", "CSV (in Excel: Save As, CSV UTF-8)")
_MXNET = RecognizedFormat("MXNet RecordIO", "the images as files, with COCO JSON")
_BY_ENDING = {
    ".tfrecord": _TFRECORD,
    ".tfrecords": _TFRECORD,
    ".record": _TFRECORD,
    ".mat": RecognizedFormat("a MATLAB .mat file", "COCO JSON or CSV written from MATLAB"),
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".npy": _NUMPY,
    ".npz": _NUMPY,
    ".xls": _EXCEL,
    ".xlsx": _EXCEL,
    ".rec": _MXNET,
    ".vott": RecognizedFormat("a VoTT project", "Pascal VOC or CSV in VoTT's export settings"),
}


def _sniff_manifest(source: Source, path: str) -> JsonForm | None:
    """Return the keys of the first line of a ``.manifest`` file."""
    if not path.lower().endswith(".manifest"):
        return None
    try:
        value = json.loads(read_head(source, path).partition(b"\n")[0])
    except (ValueError, RecursionError):
        return None
    return JsonForm(is_lines=True, keys=tuple(value)) if isinstance(value, dict) else None


def _recognize_json(form: JsonForm) -> RecognizedFormat | None:
    for signature in _JSON_SIGNATURES:
        if set(signature.keys) <= set(form.keys) and signature.matches(form):
            return signature.format
    return None


def _recognize_xml(head: bytes) -> RecognizedFormat | None:
    root = _XML_ROOT.search(head)
    if root is not None and root[1] == b"dataset" and b"<image " in head:
        return RecognizedFormat("dlib imglab XML", "COCO or Pascal VOC, converted from the boxes")
    return None


def _has_key(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _first_has(name: str, *keys: str) -> Callable[[JsonForm], bool]:
    """Return a test whether the first element of a list has one of these keys."""
    return lambda form: any(_has_key(form.first.get(name), key) for key in keys)


def _value_has(name: str, *keys: str) -> Callable[[JsonForm], bool]:
    """Return a test whether an object has one of these keys."""
    return lambda form: any(_has_key(form.values.get(name), key) for key in keys)


def _always(form: JsonForm) -> bool:
    return True


_JSON_SIGNATURES = (
    _JsonSignature(
        ("annotations",),
        is_panoptic,
        RecognizedFormat(
            "COCO in the panoptic format (segments_info, masks as PNG)",
            "COCO instances (an annotation with a 'bbox' for each object)",
        ),
    ),
    _JsonSignature(
        ("objects", "size"),
        lambda form: _has_key(form.values["size"], "width") if "size" in form.values else False,
        RecognizedFormat("Supervisely JSON", "COCO, Pascal VOC or YOLO (Export apps)"),
    ),
    _JsonSignature(
        ("classes", "tags"),
        _first_has("classes", "title"),
        RecognizedFormat("Supervisely project meta", "COCO, Pascal VOC or YOLO (Export apps)"),
    ),
    _JsonSignature(
        ("data_row",),
        _always,
        RecognizedFormat("Labelbox NDJSON", "COCO, converted from Labelbox's bounding boxes"),
    ),
    _JsonSignature(
        ("Label", "Labeled Data"),
        _always,
        RecognizedFormat("Labelbox JSON", "COCO, converted from Labelbox's bounding boxes"),
    ),
    _JsonSignature(
        ("task_id", "response"),
        _value_has("response", "annotations", "labels"),
        RecognizedFormat("Scale AI tasks", "COCO, converted from the tasks"),
    ),
    _JsonSignature(
        ("assets", "tags", "name"),
        _always,
        RecognizedFormat("VoTT JSON", "Pascal VOC or CSV in VoTT's export settings"),
    ),
    _JsonSignature(
        ("asset", "regions"),
        _always,
        RecognizedFormat("VoTT asset JSON", "Pascal VOC or CSV in VoTT's export settings"),
    ),
    _JsonSignature(
        ("source-ref",),
        _always,
        RecognizedFormat(
            "an Amazon SageMaker Ground Truth manifest", "COCO, converted from the manifest"
        ),
    ),
    _JsonSignature(
        ("imageGcsUri",),
        _always,
        RecognizedFormat("Google Vertex AI JSONL", "COCO, converted from the lines"),
    ),
    _JsonSignature(
        ("item", "annotations"),
        _value_has("item", "name", "slots"),
        RecognizedFormat("Darwin JSON of V7", "COCO, YOLO or Pascal VOC (Exports)"),
    ),
    _JsonSignature(
        ("image", "annotations", "dataset"),
        _value_has("image", "filename"),
        RecognizedFormat("Darwin JSON of V7", "COCO, YOLO or Pascal VOC (Exports)"),
    ),
    _JsonSignature(
        ("label_hash", "data_units"),
        _always,
        RecognizedFormat("Encord JSON", "COCO in Encord's export"),
    ),
    _JsonSignature(
        ("instances", "metadata"),
        _always,
        RecognizedFormat("SuperAnnotate JSON", "COCO, converted with SuperAnnotate's own SDK"),
    ),
    _JsonSignature(
        ("images", "label_classes"),
        _always,
        RecognizedFormat("Hasty JSON", "COCO or Pascal VOC in its export"),
    ),
    _JsonSignature(
        ("imgHeight", "imgWidth", "objects"),
        _always,
        RecognizedFormat("Cityscapes polygons", "COCO, converted from the polygons"),
    ),
    _JsonSignature(
        ("name", "labels"),
        _first_has("labels", "box2d", "poly2d", "box3d"),
        RecognizedFormat("BDD100K JSON", "COCO, converted with the dataset's own toolkit"),
    ),
    _JsonSignature(
        ("image_id", "category_id", "score"),
        _always,
        RecognizedFormat("COCO results (predictions)", "COCO instances, with images and classes"),
    ),
    _JsonSignature(
        ("_input_hash", "spans"),
        _always,
        RecognizedFormat("Prodigy JSONL", "COCO, converted from the spans"),
    ),
)
