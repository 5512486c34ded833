"""The writer of images with Vi JSONL, in the layout that the published client's loader reads.

    dump/images/<stem>.jpg       dump/annotations/<stem>.jsonl

or, with a split, the same below ``training/`` and ``validation/``. That loader pairs images and
annotation files by their index in the sorted lists and expects one line per file. So every image
has exactly one file with one line, both with the same stem. A stem contains no point, because
``a.b.png`` and ``a.b.jsonl`` sort differently among ``a.*``. Images without records are left out.
Several records of one image become one: questions are listed, captions are concatenated. Only
freeform texts, which that loader does not read, stay separate lines.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from runyard.datasets.records import (
    AssetRef,
    DatasetType,
    Freeform,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
    encode,
)
from runyard.datasets.splits import is_held_out
from runyard.datasets.writers.base import ExportedImage

_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_BY_MAGIC = (
    (b"\x89PNG", "png"),
    (b"RIFF", "webp"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*", "tiff"),
    (b"MM", "tiff"),
)
_MAX_STEM = 120


class ViFullWriter:
    """Writer of ``training/`` and ``validation/`` if a fraction is held out, else of ``dump/``."""

    name = "ViFull"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")
    loses = "folders of images; images without records; that records of one image were several"

    def __init__(self, *, held_out_fraction: float | None = None, seed: int = 0) -> None:
        self._fraction = held_out_fraction
        self._seed = seed

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        parts = ("dump",) if self._fraction is None else ("training", "validation")
        for part in parts:
            (folder / part / "annotations").mkdir(parents=True)
            (folder / part / "images").mkdir()
        stems: set[str] = set()
        for item in items:
            if item.records:
                _write_item(item, folder / self._choose_part(item), stems, with_images=with_images)

    def _choose_part(self, item: ExportedImage) -> str:
        if self._fraction is None:
            return "dump"
        held_out = is_held_out(bytes.fromhex(item.sha256), seed=self._seed, fraction=self._fraction)
        return "validation" if held_out else "training"


def _write_item(item: ExportedImage, folder: Path, stems: set[str], *, with_images: bool) -> None:
    stem = _make_stem(item.asset.filename, stems)
    data = item.read() if with_images else b""
    name = f"{stem}.{_choose_ending(item.asset.filename, data)}"
    if with_images:
        (folder / "images" / name).write_bytes(data)
    asset = msgspec.structs.replace(item.asset, filename=name)
    lines = [encode(record) + b"\n" for record in merge_records(item.records, asset)]
    (folder / "annotations" / f"{stem}.jsonl").write_bytes(b"".join(lines))


def _make_stem(filename: str, taken: set[str]) -> str:
    """Make a stem that is unique ignoring case, from the characters of the name that are safe in a
    file name.

    Names were checked on import, but this does not depend on it.
    """
    base = filename.rpartition("/")[2].rpartition(".")[0] or filename.rpartition("/")[2]
    safe = "".join(sign if sign.isalnum() or sign in "-_ ()" else "_" for sign in base)
    while len(safe.encode()) > _MAX_STEM:
        safe = safe[: len(safe) - 1 - len(safe) // 8]
    stem, number = safe.strip() or "picture", 2
    safe = stem
    while stem.casefold() in taken:
        stem, number = f"{safe}-{number}", number + 1
    taken.add(stem.casefold())
    return stem


def _choose_ending(filename: str, data: bytes) -> str:
    """Return the extension in lower case, because the loader accepts no other."""
    ending = filename.rpartition(".")[2].lower()
    if ending in _ENDINGS:
        return ending
    return next((known for magic, known in _BY_MAGIC if data.startswith(magic)), "jpg")


def merge_records(records: list[Record], asset: AssetRef) -> list[Record]:
    """Merge all records of an image into one; freeform texts stay separate."""
    first = msgspec.structs.replace(records[0], asset=asset)
    same = [record.contents for record in records]
    if len(same) == 1 or isinstance(first.contents, Freeform):
        return [msgspec.structs.replace(record, asset=asset) for record in records]
    if isinstance(first.contents, Vqa):
        asked = [
            one for contents in same if isinstance(contents, Vqa) for one in contents.interactions
        ]
        numbered = [
            Interaction(order=n, question=one.question, answer=one.answer)
            for n, one in enumerate(asked, 1)
        ]
        return [msgspec.structs.replace(first, contents=Vqa(interactions=numbered))]
    return [
        msgspec.structs.replace(
            first, contents=_join_captions([c for c in same if isinstance(c, PhraseGrounding)])
        )
    ]


def _join_captions(captions: list[PhraseGrounding]) -> PhraseGrounding:
    """Concatenate captions, and shift the word indexes of their phrases."""
    words, phrases = 0, []
    for caption in captions:
        for phrase in caption.grounded_phrases:
            start, end = phrase.start_token_index + words, phrase.end_token_index + words
            phrases.append(
                GroundedPhrase(
                    phrase=phrase.phrase,
                    start_token_index=start,
                    end_token_index=end,
                    bounds=phrase.bounds,
                )
            )
        words += len(caption.caption.split())
    return PhraseGrounding(
        caption=" ".join(caption.caption for caption in captions), grounded_phrases=phrases
    )
