"""Files of annotation tools with random damage: each is read, or reported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from tests.datasets.test_fuzz import CHANGES, Change, apply_changes, assert_sound, fuzz

SHAPE = {"label": "tin", "points": [[4, 2], [12, 6]], "shape_type": "rectangle"}
LABELME = {"shapes": [SHAPE, SHAPE], "imagePath": "a.png", "imageWidth": 40, "imageHeight": 20}
VALUE = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["tin"]}
RESULT = {"id": "r", "type": "rectanglelabels", "value": VALUE, "original_width": 40}
TASK = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [RESULT, RESULT]}]}
ITEM = {
    "id": "a",
    "image": {"path": "a.png", "size": [20, 40]},
    "annotations": [{"type": "bbox", "label_id": 0, "bbox": [4, 2, 8, 4]}],
}
CREATE_ML = {
    "image": "a.png",
    "annotations": [{"label": "tin", "coordinates": {"x": 8, "y": 4, "width": 8, "height": 4}}],
}
VIA = {
    "filename": "a.png",
    "regions": [
        {
            "shape_attributes": {"name": "rect", "x": 4, "y": 2, "width": 8, "height": 4},
            "region_attributes": {"class": "tin"},
        }
    ],
}
VIA3 = {
    "attribute": {"1": {"aname": "class", "options": {"0": "tin"}}},
    "file": {"1": {"fname": "a.png"}},
    "metadata": {"1_x": {"vid": "1", "z": [], "xy": [2, 4, 2, 8, 4], "av": {"1": "0"}}},
    "view": {"1": {"fid_list": ["1"]}},
}
CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<image name="a.png" width="40" height="20">
<box label="tin" xtl="4" ytl="2" xbr="12" ybr="6"/><polygon label="tin" points="4,2;12,2;8,6"/>
</image><track label="box"><box frame="1" xtl="4" ytl="2" xbr="12" ybr="6"/></track></annotations>
"""
FILES = {
    "LabelMe": ("a.json", json.dumps(LABELME)),
    "LabelStudio": ("tasks.json", json.dumps([TASK, TASK])),
    "Datumaro": (
        "default.json",
        json.dumps({"categories": {"label": {"labels": [{"name": "tin"}]}}, "items": [ITEM, ITEM]}),
    ),
    "CreateMl": ("labels.json", json.dumps([CREATE_ML, CREATE_ML])),
    "Via": ("via.json", json.dumps({"a.png1": VIA, "a.png2": VIA})),
    "Via 3": ("via3.json", json.dumps(VIA3)),
    "CvatXml": ("annotations.xml", CVAT),
}


@pytest.mark.parametrize("name", FILES)
def test_no_damaged_file_of_a_tool_crashes_an_import(
    source_folder: Any, make_png: Any, tmp_path: Path, name: str
) -> None:
    path, text = FILES[name]
    source_folder.put("frame_000001.png", make_png(41))

    @fuzz
    @given(CHANGES)
    def attempt(changes: list[Change]) -> None:
        shutil.rmtree(source_folder.folder)
        source_folder.put("a.png", make_png()).put(path, apply_changes(text.encode(), changes))
        result = source_folder.check("phrase-grounding", format=name.split()[0])
        assert_sound(result, source_folder.folder)

    attempt()


@pytest.mark.parametrize("name", [name for name, (path, _) in FILES.items() if "json" in path])
@pytest.mark.parametrize("value", [None, True, -1, 1e999, 10**400, "x", [], {}, [[[]]], {"a": {}}])
def test_a_value_of_another_type_is_read_or_reported(
    source_folder: Any, make_png: Any, name: str, value: Any
) -> None:
    """Replace each value of the document, one after the other."""
    path, text = FILES[name]
    source_folder.put("a.png", make_png())
    for place in list_places(json.loads(text)):
        document = json.loads(text)
        *parents, last = place
        target = document
        for key in parents:
            target = target[key]
        target[last] = value
        source_folder.put(path, json.dumps(document))
        result = source_folder.check("phrase-grounding", name.split()[0])
        assert_sound(result, source_folder.folder)


def list_places(value: Any) -> list[list[Any]]:
    """List the path of every value in a JSON document."""
    items = list(value.items()) if isinstance(value, dict) else []
    items = list(enumerate(value)) if isinstance(value, list) else items
    return [
        place for key, inner in items for place in ([key], *([key, *p] for p in list_places(inner)))
    ]
