"""Seventy defects of every kind that rows and pictures can have, spread over many sound rows: each is told with its
file, line and cause, and nothing else is. ``make defects ROWS=1000000`` does it at length and says how long it took.
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
PICTURES = 12
MOST_MIB = 150 + ROWS / 4000

CHECK = """
import json, sys, time
from runyard.datasets.intake import check_folder
began, findings, first = time.monotonic(), [], []
def say(found):
    first or first.append(time.monotonic() - began)
    findings.append([found.file, found.line, found.code, found.cause])
outcome = check_folder(sys.argv[1], say=say)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
took = time.monotonic() - began
print(json.dumps({"findings": findings, "outcome": outcome.document(), "mib": peak, "first_s": first, "took_s": took}))
"""


class Expected(NamedTuple):
    """A defect that was put in: where, of which kind, and what its cause must say."""

    file: str
    line: int | None
    code: str
    cause: str


def encoded(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.effect_noise((64, 48), 60).convert("RGB")).save(file, format, **options)
    return file.getvalue()


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded("JPEG", exif=exif)


def huge_png() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    tail = b"".join(struct.pack(">I4sI", 0, kind, zlib.crc32(kind)) for kind in (b"IDAT", b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + tail


def put_pictures(folder: Path) -> list[Expected]:
    """Sound pictures for the rows, and one of each kind that is not."""
    for number in range(PICTURES):
        (folder / f"{number}.jpg").write_bytes(encoded("JPEG"))
    for name in ("left", "right"):
        (folder / name).mkdir()
        (folder / name / "twice.jpg").write_bytes(encoded("JPEG"))
    grey16 = Image.new("I;16", (64, 48))
    frames = {"save_all": True, "append_images": [Image.new("RGB", (64, 48), "red")]}
    odd: dict[str, tuple[bytes, str, str]] = {
        "x/animated.gif": (encoded("GIF", **frames), "ImageAnimated", "2 frames"),
        "x/cmyk.jpg": (encoded("JPEG", Image.new("CMYK", (64, 48))), "ImageCmyk", "four colour"),
        "x/cut.jpg": (encoded("JPEG")[:-200], "ImageTruncated", "do not end"),
        "x/cut.png": (encoded("PNG")[:-20], "ImageTruncated", "chunk"),
        "x/deep.png": (encoded("PNG", grey16), "ImageDeep", "16 bits"),
        "x/empty.jpg": (b"", "ImageEmpty", "no bytes"),
        "x/huge.png": (huge_png(), "ImageTooLarge", "60000 x 60000"),
        "x/page.jpg": (b"<!DOCTYPE html><html></html>", "ImageBroken", "web page"),
        "x/phone.heic": (b"\0\0\0\x18ftypheic" + bytes(50), "ImageTypeUnsupported", "HEIC"),
        "x/really.png": (encoded("JPEG"), "ImageTypeMismatch", "JPEG"),
        "x/same.jpg": ((folder / "0.jpg").read_bytes(), "ImageDuplicate", "'0.jpg'"),
        "x/tiny.png": (encoded("PNG", Image.new("RGB", (1, 1))), "ImageTiny", "1 x 1"),
        "x/zeros.jpg": (bytes(999), "ImageBroken", "zero"),
        "turned.jpg": (turned_jpeg(), "ImageRotated", "orientation is 6"),
    }
    expected = []
    (folder / "x").mkdir()
    for path, (data, code, cause) in odd.items():
        (folder / path).write_bytes(data)
        expected.append(Expected(path, None, code, cause))
    (folder / "notes.md").write_text("# to do")
    expected.append(Expected("notes.md", None, "FileIgnored", "no ViJsonl data"))
    return expected


def sound_row(number: int) -> dict[str, Any]:
    phrase = {"phrase": "red tin", "startTokenIndex": 1, "endTokenIndex": 3, "bounds": [[0.1, 0.2, 0.5, 0.6]]}
    return {
        "id": number,
        "asset": {"filename": f"{number % PICTURES}.jpg", "width": 64, "height": 48},
        "contents": {
            "type": "PhraseGrounding",
            "caption": f"a red tin on shelf {number}",
            "groundedPhrases": [phrase],
        },
    }


def in_asset(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["asset"].update(change)


def in_contents(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["contents"].update(change)


def in_phrase(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["contents"]["groundedPhrases"][0].update(change)


def box(*corners: float) -> Callable[[dict[str, Any]], None]:
    return in_phrase(bounds=[[0.1, 0.2, 0.5, 0.6], list(corners)])


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.pop(name)


def another_type(row: dict[str, Any]) -> None:
    row["contents"] = {"type": "Freeform", "text": "a tin"}


# Kind, what is done to the row, what the cause says. Each is done twice.
ROW_DEFECTS: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("FieldMissing", without("contents"), "'contents'"),
    ("FieldMissing", without("asset"), "'asset'"),
    ("FieldInvalid", in_contents(caption=7), "str"),
    ("FieldInvalid", in_phrase(bounds=[[1, 2, 3]]), "length"),
    ("ImageMissing", in_asset(filename="99.jpg"), "no picture of this name"),
    ("ImageMissing", in_asset(filename="x/cut.jpg"), "refused: ImageTruncated"),
    ("ImageAmbiguous", in_asset(filename="twice.jpg"), "2 pictures"),
    ("SizeMismatch", in_asset(width=640, height=100), "says 640 x 100"),
    ("SizeTurned", in_asset(filename="turned.jpg"), "EXIF turns"),
    ("BoxOutside", box(1.1, 0.1, 1.3, 0.2), "outside"),
    ("BoxClipped", box(0.1, 0.1, 1.25, 0.2), "16 pixels over"),
    ("BoxOtherFrame", box(10, 12, 60, 40), "pixels of 64 x 48"),
    ("BoxOtherFrame", box(100, 120, 900, 800), "0-1000"),
    ("BoxCornersSwapped", box(0.5, 0.2, 0.1, 0.6), "larger x"),
    ("BoxEmpty", box(0.5, 0.2, 0.5, 0.6), "no wider"),
    ("BoxNotFinite", box(0.1, float("nan"), 0.5, 0.6), "NaN"),
    ("PhraseNotInCaption", in_phrase(phrase="blue tin"), "does not hold"),
    ("PhraseEmpty", in_phrase(phrase=" "), "empty"),
    ("CaptionEmpty", in_contents(caption=" "), "empty"),
    ("SpanWrong", in_phrase(startTokenIndex=2), "1 to 3"),
    ("ContentsUnfit", another_type, "freeform"),
    ("IdDuplicate", lambda row: row.update(id=0), "another row has this id"),
]


def put_rows(folder: Path) -> list[Expected]:
    """The rows, in which lines far apart are broken."""
    lines = [json.dumps(sound_row(number)).encode() for number in range(ROWS)]
    places = random.Random(5).sample(range(10, ROWS), 2 * len(ROW_DEFECTS) + 6)  # noqa: S311 - the same each time
    expected = []
    for number, (code, spoil, cause) in enumerate(ROW_DEFECTS * 2):
        row = sound_row(places[number])
        spoil(row)
        lines[places[number]] = json.dumps(row).encode()
        expected.append(Expected("rows.jsonl", places[number] + 1, code, cause))
    torn, twice, latin = places[-6:-4], places[-4:-2], places[-2:]
    for place in torn:
        lines[place] = lines[place][:70]
        expected.append(Expected("rows.jsonl", place + 1, "RowInvalid", "not JSON"))
    for place in twice:
        row = {**sound_row(place), "contents": sound_row(place % PICTURES)["contents"]}
        lines[place] = json.dumps(row).encode()
        expected.append(Expected("rows.jsonl", place + 1, "RowDuplicate", f"line {place % PICTURES + 1} of rows"))
    for place in latin:
        lines[place] = lines[place].replace(b"shelf", b"caf\xe9")
        expected.append(Expected("rows.jsonl", place + 1, "EncodingWrong", "UTF-8"))
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    return expected


def checked(folder: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", CHECK, folder], check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_every_defect_is_told_and_nothing_else(tmp_path: Path) -> None:
    began_s = time.monotonic()
    expected = [*put_pictures(tmp_path), *put_rows(tmp_path)]
    unused = Expected("left/twice.jpg", None, "AnnotationsAbsent", "pictures have no rows")
    made_s = time.monotonic() - began_s
    answer = checked(tmp_path)
    told = [(file, line, code) for file, line, code, _ in answer["findings"]]
    assert sorted(told, key=str) == sorted(((one.file, one.line, one.code) for one in [*expected, unused]), key=str)
    causes = {(file, line, code): cause for file, line, code, cause in answer["findings"]}
    for one in expected:
        assert re.search(re.escape(one.cause), causes[one.file, one.line, one.code]), (one, causes[one[:3]])
    kinds = {code for _, _, code in told}
    assert (len(told) >= 60, len(kinds) >= 25) == (True, True)
    assert answer["outcome"]["counts"]["rows"] > ROWS - 20
    assert answer["mib"] < MOST_MIB
    print(
        f"{len(told)} defects of {len(kinds)} kinds in {ROWS:,} rows: made in {made_s:.1f} s, first told after "
        f"{answer['first_s'][0]:.2f} s, all after {answer['took_s']:.2f} s, {answer['mib']:.0f} MiB at most"
    )
