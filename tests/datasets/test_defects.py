"""Seventy defects of every kind in rows and images, spread over many valid rows: exactly these are
reported.

Each finding has the file, line and cause of its defect. ``make defects ROWS=1000000`` runs longer
and prints the time.
"""

import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

ROWS = int(os.environ.get("RUNYARD_DEFECT_ROWS", "100000"))
IMAGES = 12
MAX_MIB = 150 + ROWS / 4000

CHECK = """
import json, sys, time
from runyard.datasets.ingest import check_folder
began, findings, first = time.monotonic(), [], []
def report(found):
    first or first.append(time.monotonic() - began)
    findings.append([found.file, found.line, found.code, found.cause])
outcome = check_folder(sys.argv[1], on_finding=report)
status = dict(line.split(":") for line in open("/proc/self/status"))
print(json.dumps({
    "findings": findings,
    "outcome": outcome.document(),
    "mib": int(status["VmHWM"].split()[0]) / 1024,
    "first_s": first,
    "took_s": time.monotonic() - began,
}))
"""


class Expected(NamedTuple):
    """An inserted defect: its file, line and code, and what the cause of its finding contains."""

    file: str
    line: int | None
    code: str
    cause: str


def encode_image(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.effect_noise((64, 48), 60).convert("RGB")).save(file, format, **options)
    return file.getvalue()


def make_rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encode_image("JPEG", exif=exif)


def make_huge_png() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    tail = b"".join(struct.pack(">I4sI", 0, kind, zlib.crc32(kind)) for kind in (b"IDAT", b"IEND"))
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + tail
    )


def write_images(folder: Path) -> list[Expected]:
    """Write valid images for the rows, and one of each invalid kind."""
    for number in range(IMAGES):
        (folder / f"{number}.jpg").write_bytes(encode_image("JPEG"))
    for name in ("left", "right"):
        (folder / name).mkdir()
        (folder / name / "twice.jpg").write_bytes(encode_image("JPEG"))
    grey16 = Image.new("I;16", (64, 48))
    frames: dict[str, Any] = {
        "save_all": True,
        "append_images": [Image.new("RGB", (64, 48), "red")],
    }
    odd: dict[str, tuple[bytes, str, str]] = {
        "x/animated.gif": (encode_image("GIF", **frames), "ImageAnimated", "2 frames"),
        "x/cmyk.jpg": (
            encode_image("JPEG", Image.new("CMYK", (64, 48))),
            "ImageCmyk",
            "four color",
        ),
        "x/cut.jpg": (encode_image("JPEG")[:-200], "ImageTruncated", "does not end"),
        "x/cut.png": (encode_image("PNG")[:-20], "ImageTruncated", "chunk"),
        "x/deep.png": (encode_image("PNG", grey16), "ImageDeep", "16 bits"),
        "x/empty.jpg": (b"", "ImageEmpty", "no bytes"),
        "x/huge.png": (make_huge_png(), "ImageTooLarge", "60000 x 60000"),
        "x/page.jpg": (b"<!DOCTYPE html><html></html>", "ImageBroken", "web page"),
        "x/phone.heic": (b"\0\0\0\x18ftypheic" + bytes(50), "ImageTypeUnsupported", "HEIC"),
        "x/really.png": (encode_image("JPEG"), "ImageTypeMismatch", "JPEG"),
        "x/same.jpg": ((folder / "0.jpg").read_bytes(), "ImageDuplicate", "'0.jpg'"),
        "x/tiny.png": (encode_image("PNG", Image.new("RGB", (1, 1))), "ImageTiny", "1 x 1"),
        "x/zeros.jpg": (bytes(999), "ImageBroken", "zero"),
        "turned.jpg": (make_rotated_jpeg(), "ImageRotated", "orientation is 6"),
    }
    expected = []
    (folder / "x").mkdir()
    for path, (data, code, cause) in odd.items():
        (folder / path).write_bytes(data)
        expected.append(Expected(path, None, code, cause))
    (folder / "notes.md").write_text("# to do")
    expected.append(Expected("notes.md", None, "FileIgnored", "not part of the ViJsonl data"))
    return expected


def make_row(number: int) -> dict[str, Any]:
    phrase = {
        "phrase": "red tin",
        "startTokenIndex": 1,
        "endTokenIndex": 3,
        "bounds": [[0.1, 0.2, 0.5, 0.6]],
    }
    return {
        "id": number,
        "asset": {"filename": f"{number % IMAGES}.jpg", "width": 64, "height": 48},
        "contents": {
            "type": "PhraseGrounding",
            "caption": f"a red tin on shelf {number}",
            "groundedPhrases": [phrase],
        },
    }


def change_asset(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["asset"].update(change)


def change_contents(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["contents"].update(change)


def change_phrase(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["contents"]["groundedPhrases"][0].update(change)


def add_box(*corners: float) -> Callable[[dict[str, Any]], None]:
    return change_phrase(bounds=[[0.1, 0.2, 0.5, 0.6], list(corners)])


def remove_field(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.pop(name)


def change_type(row: dict[str, Any]) -> None:
    row["contents"] = {"type": "Freeform", "text": "a tin"}


# Kind, change of the row, text of the cause. Each is inserted twice.
ROW_DEFECTS: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("FieldMissing", remove_field("contents"), "'contents'"),
    ("FieldMissing", remove_field("asset"), "'asset'"),
    ("FieldInvalid", change_contents(caption=7), "str"),
    ("FieldInvalid", change_phrase(bounds=[[1, 2, 3]]), "length"),
    ("ImageMissing", change_asset(filename="99.jpg"), "no image has this name"),
    ("ImageMissing", change_asset(filename="x/cut.jpg"), "rejected: ImageTruncated"),
    ("ImageAmbiguous", change_asset(filename="twice.jpg"), "2 images"),
    ("SizeMismatch", change_asset(width=640, height=100), "says 640 x 100"),
    ("SizeTurned", change_asset(filename="turned.jpg"), "EXIF rotates"),
    ("BoxOutside", add_box(1.1, 0.1, 1.3, 0.2), "outside"),
    ("BoxClipped", add_box(0.1, 0.1, 1.25, 0.2), "16 pixels past"),
    ("BoxOtherFrame", add_box(10, 12, 60, 40), "pixels of 64 x 48"),
    ("BoxOtherFrame", add_box(100, 120, 900, 800), "0-1000"),
    ("BoxCornersSwapped", add_box(0.5, 0.2, 0.1, 0.6), "larger x"),
    ("BoxEmpty", add_box(0.5, 0.2, 0.5, 0.6), "width is zero"),
    ("BoxNotFinite", add_box(0.1, float("nan"), 0.5, 0.6), "NaN"),
    ("PhraseNotInCaption", change_phrase(phrase="blue tin"), "does not contain"),
    ("PhraseEmpty", change_phrase(phrase=" "), "empty"),
    ("CaptionEmpty", change_contents(caption=" "), "empty"),
    ("SpanWrong", change_phrase(startTokenIndex=2), "1 to 3"),
    ("ContentsUnfit", change_type, "freeform"),
    ("IdDuplicate", lambda row: row.update(id=0), "another row has this id"),
]


def write_rows(folder: Path) -> list[Expected]:
    """Write the rows, with invalid lines far apart."""
    lines = [json.dumps(make_row(number)).encode() for number in range(ROWS)]
    # The same each time.
    places = random.Random(5).sample(range(10, ROWS), 2 * len(ROW_DEFECTS) + 6)  # noqa: S311
    expected = []
    for number, (code, damage, cause) in enumerate(ROW_DEFECTS * 2):
        row = make_row(places[number])
        damage(row)
        lines[places[number]] = json.dumps(row).encode()
        expected.append(Expected("rows.jsonl", places[number] + 1, code, cause))
    torn, twice, latin = places[-6:-4], places[-4:-2], places[-2:]
    for place in torn:
        lines[place] = lines[place][:70]
        expected.append(Expected("rows.jsonl", place + 1, "RowInvalid", "not JSON"))
    for place in twice:
        row = {**make_row(place), "contents": make_row(place % IMAGES)["contents"]}
        lines[place] = json.dumps(row).encode()
        expected.append(
            Expected("rows.jsonl", place + 1, "RowDuplicate", f"line {place % IMAGES + 1} of rows")
        )
    for place in latin:
        lines[place] = lines[place].replace(b"shelf", b"caf\xe9")
        expected.append(Expected("rows.jsonl", place + 1, "EncodingWrong", "UTF-8"))
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    return expected


def run_check(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, folder], check=True, capture_output=True, text=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_every_defect_is_reported_and_nothing_else(tmp_path: Path) -> None:
    began_s = time.monotonic()
    expected = [*write_images(tmp_path), *write_rows(tmp_path)]
    unused = Expected("left/twice.jpg", None, "AnnotationsAbsent", "images have no rows")
    made_s = time.monotonic() - began_s
    answer = run_check(tmp_path)
    reported = [(file, line, code) for file, line, code, _ in answer["findings"]]
    assert sorted(reported, key=str) == sorted(
        ((one.file, one.line, one.code) for one in [*expected, unused]), key=str
    )
    causes = {(file, line, code): cause for file, line, code, cause in answer["findings"]}
    for one in expected:
        assert re.search(re.escape(one.cause), causes[one.file, one.line, one.code]), (
            one,
            causes[one[:3]],
        )
    kinds = {code for _, _, code in reported}
    assert (len(reported) >= 60, len(kinds) >= 25) == (True, True)
    assert answer["outcome"]["counts"]["rows"] > ROWS - 20
    assert answer["mib"] < MAX_MIB
    print(
        f"{len(reported)} defects of {len(kinds)} kinds in {ROWS:,} rows: made in {made_s:.1f} s, "
        f"first reported after {answer['first_s'][0]:.2f} s, all after {answer['took_s']:.2f} s, "
        f"{answer['mib']:.0f} MiB at most"
    )
