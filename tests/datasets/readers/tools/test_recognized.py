"""Formats that are not read are recognized, and the export to choose instead is named."""

import json
from typing import Any

import pytest

from runyard.datasets.readers.tools.recognized import recognize
from runyard.datasets.sources import FolderSource

PANOPTIC = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1}]}],
    "categories": [{"id": 1, "name": "tin", "isthing": 1}],
}
SUPERVISELY = {
    "description": "",
    "tags": [],
    "size": {"height": 20, "width": 40},
    "objects": [{"classTitle": "tin", "geometryType": "rectangle", "points": {"exterior": []}}],
}
LABELBOX = {"data_row": {"id": "x"}, "media_attributes": {"width": 40}, "projects": {}}
LABELBOX_V1 = [{"ID": "x", "Labeled Data": "http://x/a.jpg", "Label": {"objects": []}}]
SCALE = [{"task_id": "x", "type": "imageannotation", "response": {"annotations": []}}]
VOTT = {"name": "p", "securityToken": "t", "tags": [], "assets": {"1": {"asset": {}}}}
VOTT_ASSET = {"asset": {"id": "1", "name": "a.jpg"}, "regions": [], "version": "2.2.0"}
SAGEMAKER = {"source-ref": "s3://b/a.jpg", "job": {"annotations": []}, "job-metadata": {}}
VERTEX = {"imageGcsUri": "gs://b/a.jpg", "boundingBoxAnnotations": []}
DARWIN = {"version": "2.0", "item": {"name": "a.jpg", "slots": []}, "annotations": []}
DARWIN_V1 = {"dataset": "d", "image": {"filename": "a.jpg", "width": 4}, "annotations": []}
BDD = [{"name": "a.jpg", "labels": [{"category": "tin", "box2d": {"x1": 1}}]}]
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
DLIB = "<?xml version='1.0'?><dataset><images><image file='a.jpg'><box top='1'/></image></images>"


@pytest.mark.parametrize(
    ("path", "content", "tool"),
    [
        ("panoptic.json", PANOPTIC, "panoptic format"),
        ("ds/ann/a.jpg.json", SUPERVISELY, "Supervisely"),
        ("meta.json", {"classes": [{"title": "tin"}], "tags": []}, "Supervisely"),
        ("export.ndjson", LABELBOX, "Labelbox"),
        ("export.json", LABELBOX_V1, "Labelbox"),
        ("tasks.json", SCALE, "Scale"),
        ("p-export.json", VOTT, "VoTT"),
        ("1-asset.json", VOTT_ASSET, "VoTT"),
        ("p.vott", "{}", "VoTT"),
        ("output.manifest", SAGEMAKER, "SageMaker"),
        ("output.jsonl", SAGEMAKER, "SageMaker"),
        ("export.jsonl", VERTEX, "Vertex"),
        ("automl.csv", "TRAIN,gs://b/a.jpg,tin,0.1,0.1,,,0.5,0.6,,\n", "AutoML"),
        ("a.json", DARWIN, "Darwin"),
        ("a.json", DARWIN_V1, "Darwin"),
        ("det.json", BDD, "BDD100K"),
        ("results.json", RESULTS, "COCO results"),
        ("a.xml", DLIB, "imglab"),
        ("train-00000.tfrecord", "\0", "TFRecord"),
        ("wider.mat", "MATLAB 5.0", "MATLAB"),
        ("data.pkl", "\x80", "pickle"),
        ("VOC/ImageSets/Segmentation/train.txt", "a\n", "Pascal VOC segmentation"),
    ],
)
def test_a_format_without_a_reader_is_recognized(
    source_folder: Any, path: str, content: Any, tool: str
) -> None:
    source_folder.put(path, content if isinstance(content, str) else json.dumps(content))
    source = FolderSource(source_folder.folder, lambda _: None)
    source.find_files()
    found = recognize(source, path)
    assert found is not None
    assert tool in found.tool
    assert found.export


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("a.json", '{"images": [], "annotations": []}'),
        ("a.json", '{"item": 1, "annotations": [[[['),
        ("a.json", '{"size": NaN, "objects": [' + "[" * 9000),
        ("a.manifest", '{"source-ref": ' + "[" * 9000),
        ("a.manifest", "[1]"),
        ("a.csv", "train,a.jpg,tin\n"),
        ("notes.txt", "hello"),
        ("a.xml", "<annotation/>"),
        ("a.json", ""),
    ],
)
def test_other_and_damaged_files_are_not_recognized(
    source_folder: Any, path: str, content: str
) -> None:
    source_folder.put(path, content)
    source = FolderSource(source_folder.folder, lambda _: None)
    source.find_files()
    assert recognize(source, path) is None
