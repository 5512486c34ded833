"""Random folders of every format with random damage: no row is lost in silence or misplaced.

The rows of a folder are the rows kept and the rows reported, whatever is damaged. No row is on an
image whose path its label contradicts. The size in a record is that of the decoded image.
"""

import io
import posixpath
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from runyard.datasets.pixels import decode_image
from runyard.datasets.records import Conversation, Freeform, PhraseGrounding, Record, Vqa
from tests.datasets.conftest import CheckResult, SourceFolder
from tests.datasets.folder_formats import FORMATS, LINES, PER_IMAGE, Files, LabeledImage
from tests.datasets.test_fuzz import NASTY, fuzz

FOLDERS = ("", "one/", "two/", "train/", "val/", "images/")
STEMS = ("7", "8", "a", "B", "c.d")
ENDINGS = (".png", ".jpg", ".JPG")
ORIENTATION = 274  # the EXIF tag
REJECTED = ("RowRejected", "FileRejected")

Damage = tuple[str, float, str]
DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(["remove", "cut", "move", "rename", "convert", "rotate"]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(FOLDERS),
    ),
    max_size=4,
)
PATHS = st.builds("{}{}{}".format, *map(st.sampled_from, (FOLDERS, STEMS, ENDINGS)))
IMAGES = st.lists(PATHS, min_size=1, max_size=6, unique_by=lambda path: posixpath.splitext(path)[0])


def encode_image(image: LabeledImage, *, orientation: int = 1) -> bytes:
    """Encode an image whose displayed size is that of ``image``."""
    stored = (image.height, image.width) if orientation >= 5 else (image.width, image.height)
    red, green, blue = image.label.encode()[-3:]
    picture, exif, out = Image.new("RGB", stored, (red, green, blue)), Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    picture.save(out, "PNG" if image.path.lower().endswith("png") else "JPEG", exif=exif)
    return out.getvalue()


def build_images(paths: list[str]) -> list[LabeledImage]:
    return [
        LabeledImage(path, 40 + 4 * number, 24, f"label of {number:03}")
        for number, path in enumerate(paths)
    ]


def damage_images(images: list[LabeledImage], damages: list[Damage]) -> Files:
    files = {image.path: encode_image(image) for image in images}
    for kind, at, folder in damages:
        if not files:
            break
        path = sorted(files)[int(at * len(files))]
        stem, ending = posixpath.splitext(path)
        match kind:
            case "remove":
                del files[path]
            case "cut":
                files[path] = files[path][: len(files[path]) // 2]
            case "move":
                files.setdefault(folder + posixpath.basename(path), files.pop(path))
            case "rename":
                files.setdefault(stem.swapcase() + ending, files.pop(path))
            case "convert":
                files.setdefault(stem + ".jpeg", files.pop(path))
            case "rotate":
                for image in images:
                    if image.path == path:
                        files[path] = encode_image(image, orientation=6)
    return files


def check(files: Files) -> tuple[CheckResult, dict[str, tuple[int, int]]]:
    """Check a folder; return the result, and the decoded size of each kept image."""
    with tempfile.TemporaryDirectory() as folder:
        source = SourceFolder(Path(folder))
        for path, data in files.items():
            source.put(path, data)
        result = source.check()
        names = {record.asset.filename for record in result.records}
        sizes = {name: decode_image((source.folder / name).read_bytes()).size for name in names}
    return result, sizes


def get_label(record: Record) -> str:
    match record.contents:
        case PhraseGrounding(grounded_phrases=phrases):
            return phrases[0].phrase
        case Vqa(interactions=interactions):
            return interactions[0].answer
        case Conversation(turns=turns):
            return turns[-1].content
        case Freeform(text=text):
            return text


def agrees(named: str, actual: str) -> bool:
    """Return whether no folder of two paths differs, as far as both have folders."""
    (named, _), (actual, _) = map(posixpath.splitext, (named.casefold(), actual.casefold()))
    pairs = zip(reversed(named.split("/")), reversed(actual.split("/")), strict=False)
    return all(one == other for one, other in pairs)


def list_rejected_files(result: CheckResult) -> set[str]:
    return {found.file for found in result.findings if found.action == "FileRejected"}


def assert_nothing_is_lost(result: CheckResult) -> None:
    counts = result.outcome.counts
    assert counts["rows"] == counts["rowsKept"] + counts["rowsRejected"]
    if result.outcome.why is None:
        assert counts["rowsKept"] == len(result.records)
    reported = sum(
        found.rows or 1
        for found in result.findings
        if found.action in ("RowRejected", "FileRejected")
    )
    assert counts["rowsRejected"] == 0 or reported > 0


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_kept_or_reported_and_never_on_another_image(format: str) -> None:
    build = FORMATS[format]

    @fuzz
    @given(paths=IMAGES, damages=DAMAGES)
    def run(paths: list[str], damages: list[Damage]) -> None:
        images = build_images(paths)
        labels = build(images)
        result, sizes = check({**damage_images(images, damages), **labels})
        assert_nothing_is_lost(result)
        # Without its image, a text may be anything: it is reported as a file.
        if format != "captions" and labels.keys().isdisjoint(list_rejected_files(result)):
            assert result.outcome.counts["rows"] == len(images)
        named = {image.label: image.path for image in images}
        used: dict[str, set[str]] = {}
        for record in result.records:
            name = unicodedata.normalize("NFC", record.asset.filename)
            path = named[get_label(record)]
            written = posixpath.basename(path) if format in PER_IMAGE else path
            # Label Studio writes paths of its server, where images/ says nothing.
            found = name.removeprefix("images/") if format == "LabelStudio" else name
            assert agrees(written, found), (written, name)
            assert (record.asset.width, record.asset.height) == sizes[record.asset.filename]
            used.setdefault(name, set()).add(path)
        assert all(len(paths) == 1 for paths in used.values()), used

    run()


Change = Callable[[bytes, float, bytes], bytes]
CHANGES: dict[str, Change] = {
    "cut": lambda data, at, _: data[: int(at * len(data))],
    "insert": lambda data, at, new: data[: int(at * len(data))] + new + data[int(at * len(data)) :],
    "replace": lambda data, at, new: (
        data[: int(at * len(data))] + new + data[int(at * len(data)) + len(new) :]
    ),
    "double": lambda data, _at, _new: data + data,
}


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_labels_are_accounted_for(format: str) -> None:
    build = FORMATS[format]

    @fuzz
    @given(
        paths=IMAGES,
        which=st.floats(0, 1, exclude_max=True),
        kind=st.sampled_from(list(CHANGES)),
        at=st.floats(0, 1),
        new=st.sampled_from(NASTY),
    )
    def run(paths: list[str], which: float, kind: str, at: float, new: bytes) -> None:
        images = build_images(paths)
        labels = build(images)
        damaged = sorted(labels)[int(which * len(labels))]
        labels[damaged] = CHANGES[kind](labels[damaged], at, new)
        files: dict[str, Any] = {image.path: encode_image(image) for image in images}
        result, sizes = check({**files, **labels})
        assert_nothing_is_lost(result)
        for record in result.records:
            assert (record.asset.width, record.asset.height) == sizes[record.asset.filename]
        if format in LINES and damaged not in list_rejected_files(result):
            lines = [line for line in labels[damaged].split(b"\n") if line.strip()]
            assert result.outcome.counts["rows"] == len(lines)

    run()
