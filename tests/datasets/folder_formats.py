"""Builders of small folders in each format: the annotation files for a list of labeled images."""

import io
import json
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import parquet

BOX = (0.25, 0.25, 0.75, 0.5)  # of every image, which have sides that are multiples of 4
Files = dict[str, bytes]


@dataclass(frozen=True)
class LabeledImage:
    """An image, its displayed size, and the text of its label, which no other image has."""

    path: str
    width: int
    height: int
    label: str

    @property
    def corners(self) -> tuple[int, int, int, int]:
        xmin, ymin, xmax, ymax = BOX
        return (
            int(xmin * self.width),
            int(ymin * self.height),
            int(xmax * self.width),
            int(ymax * self.height),
        )

    @property
    def xywh(self) -> tuple[int, int, int, int]:
        xmin, ymin, xmax, ymax = self.corners
        return xmin, ymin, xmax - xmin, ymax - ymin

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.path)[0]


Images = list[LabeledImage]
Build = Callable[[Images], Files]


def _to_json(document: object) -> bytes:
    return json.dumps(document).encode()


def _to_lines(rows: list[object]) -> bytes:
    return b"".join(_to_json(row) + b"\n" for row in rows)


def build_vi_jsonl(images: Images) -> Files:
    rows: list[object] = [
        {
            "id": image.label,
            "asset": {"filename": image.path, "width": image.width, "height": image.height},
            "contents": {
                "type": "Vqa",
                "interactions": [{"order": 1, "question": "What?", "answer": image.label}],
            },
        }
        for image in images
    ]
    return {"rows.jsonl": _to_lines(rows)}


def build_coco(images: Images) -> Files:
    numbered = list(enumerate(images, start=1))
    document = {
        "images": [
            {"id": n, "file_name": one.path, "width": one.width, "height": one.height}
            for n, one in numbered
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n, "bbox": one.xywh, "iscrowd": 0}
            for n, one in numbered
        ],
        "categories": [{"id": n, "name": one.label} for n, one in numbered],
    }
    return {"labels.json": _to_json(document)}


def build_voc(images: Images) -> Files:
    names = ("xmin", "ymin", "xmax", "ymax")
    return {
        f"{one.stem}.xml": (
            f"<annotation><filename>{posixpath.basename(one.path)}</filename>"
            f"<size><width>{one.width}</width><height>{one.height}</height></size>"
            f"<object><name>{one.label}</name><bndbox>"
            + "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, one.corners, strict=True))
            + "</bndbox></object></annotation>"
        ).encode()
        for one in images
    }


def build_yolo(images: Images) -> Files:
    xmin, ymin, xmax, ymax = BOX
    box = f"{(xmin + xmax) / 2} {(ymin + ymax) / 2} {xmax - xmin} {ymax - ymin}"
    labels = {f"{one.stem}.txt": f"{n} {box}\n".encode() for n, one in enumerate(images)}
    return {**labels, "classes.txt": "\n".join(one.label for one in images).encode()}


def build_csv(images: Images) -> Files:
    lines = ["filename,xmin,ymin,xmax,ymax,class"]
    lines += [
        f"{one.path},{','.join(str(value) for value in one.corners)},{one.label}" for one in images
    ]
    return {"boxes.csv": "\n".join(lines).encode()}


def build_llava(images: Images) -> Files:
    rows = [
        {
            "id": one.label,
            "image": one.path,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": one.label},
            ],
        }
        for one in images
    ]
    return {"train.json": _to_json(rows)}


def build_metadata(images: Images) -> Files:
    rows: list[object] = [{"file_name": one.path, "text": one.label} for one in images]
    return {"metadata.jsonl": _to_lines(rows)}


def build_captions(images: Images) -> Files:
    return {f"{one.stem}.txt": one.label.encode() for one in images}


def build_vqa_rows(images: Images) -> Files:
    rows: list[object] = [
        {"image": one.path, "question": "What?", "answer": one.label} for one in images
    ]
    return {"vqa.jsonl": _to_lines(rows)}


def build_parquet(images: Images) -> Files:
    rows = [{"image": one.path, "question": "What?", "answer": one.label} for one in images]
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out)
    return {"rows.parquet": out.getvalue()}


def build_labelme(images: Images) -> Files:
    return {
        f"{one.stem}.json": _to_json(
            {
                "version": "5.2.1",
                "shapes": [
                    {
                        "label": one.label,
                        "points": [one.corners[:2], one.corners[2:]],
                        "shape_type": "rectangle",
                    }
                ],
                "imagePath": posixpath.basename(one.path),
                "imageData": None,
                "imageWidth": one.width,
                "imageHeight": one.height,
            }
        )
        for one in images
    }


def build_create_ml(images: Images) -> Files:
    rows = []
    for one in images:
        x, y, width, height = one.xywh
        center = {"x": x + width / 2, "y": y + height / 2, "width": width, "height": height}
        rows.append(
            {"image": one.path, "annotations": [{"label": one.label, "coordinates": center}]}
        )
    return {"annotations.json": _to_json(rows)}


def build_cvat(images: Images) -> Files:
    names = ("xtl", "ytl", "xbr", "ybr")
    rows = [
        f'<image id="{n}" name="{one.path}" width="{one.width}" height="{one.height}">'
        f'<box label="{one.label}" '
        + " ".join(f'{name}="{value}"' for name, value in zip(names, one.corners, strict=True))
        + "/></image>"
        for n, one in enumerate(images)
    ]
    document = f"<annotations><version>1.1</version>{''.join(rows)}</annotations>"
    return {"annotations.xml": document.encode()}


def build_label_studio(images: Images) -> Files:
    xmin, ymin, xmax, ymax = (100 * value for value in BOX)
    rows = [
        {
            "id": n,
            "data": {"image": f"/data/local-files/?d={one.path}"},
            "annotations": [
                {
                    "result": [
                        {
                            "type": "rectanglelabels",
                            "original_width": one.width,
                            "original_height": one.height,
                            "value": {
                                "x": xmin,
                                "y": ymin,
                                "width": xmax - xmin,
                                "height": ymax - ymin,
                                "rotation": 0,
                                "rectanglelabels": [one.label],
                            },
                        }
                    ]
                }
            ],
        }
        for n, one in enumerate(images)
    ]
    return {"export.json": _to_json(rows)}


FORMATS: dict[str, Build] = {
    "ViJsonl": build_vi_jsonl,
    "Coco": build_coco,
    "PascalVoc": build_voc,
    "YoloDarknet": build_yolo,
    "CsvFourCorner": build_csv,
    "Conversations": build_llava,
    "metadata.jsonl": build_metadata,
    "captions": build_captions,
    "VQA rows": build_vqa_rows,
    "Parquet": build_parquet,
    "LabelMe": build_labelme,
    "CreateMl": build_create_ml,
    "CvatXml": build_cvat,
    "LabelStudio": build_label_studio,
}
LINES = ("ViJsonl", "metadata.jsonl", "VQA rows")  # one row per line
# One file per image, which names the image without folders or not at all.
PER_IMAGE = ("PascalVoc", "YoloDarknet", "captions", "LabelMe")
