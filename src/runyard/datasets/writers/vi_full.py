"""The writer of images with Vi JSONL, in the layout that the published client's loader reads.

    dump/images/<stem>.jpg       dump/annotations/<stem>.jsonl

or, with a split, the same below ``training/`` and ``validation/``. That loader pairs images and
annotation files by their index in the sorted lists and expects one line per file. So every image
has exactly one file with one line, both with the same stem. A stem contains no point, because
``a.b.png`` and ``a.b.jsonl`` sort differently among ``a.*``. Images without records are left out.
Several records of one image become one: questions are listed, captions are concatenated. Only
freeform texts and conversations, which that loader does not read, stay separate lines. An image
that a conversation shows and that has no records in the same part is in ``further_images/``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from runyard.datasets.records import (
    AssetRef,
    Conversation,
    DatasetType,
    Freeform,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
    encode,
    rename_images,
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
        export = _Export(folder, with_images=with_images)
        waiting: list[ExportedImage] = []  # until all images are known
        sources: dict[str, ExportedImage] = {}  # of images that a part may need from another
        for item in items:
            if not item.records or any(record.further_images for record in item.records):
                waiting.append(item)
            else:
                export.add_image(item, self._choose_part(item))
                export.write_annotations(item, self._choose_part(item))
                if self._fraction is not None:
                    sources[item.asset.filename] = item
        sources |= {item.asset.filename: item for item in waiting}
        waiting = [item for item in waiting if item.records]
        for item in waiting:
            export.add_image(item, self._choose_part(item))
        for item in waiting:
            export.add_further_images(item, self._choose_part(item), sources)
            export.write_annotations(item, self._choose_part(item))

    def _choose_part(self, item: ExportedImage) -> str:
        if self._fraction is None:
            return "dump"
        held_out = is_held_out(bytes.fromhex(item.sha256), seed=self._seed, fraction=self._fraction)
        return "validation" if held_out else "training"


class _Export:
    """The files of an export, with the names that its images have in each part."""

    def __init__(self, folder: Path, *, with_images: bool) -> None:
        self._folder = folder
        self._with_images = with_images
        self._stems: set[str] = set()
        self._names: dict[tuple[str, str], str] = {}  # by part and name in the dataset

    def add_image(self, item: ExportedImage, part: str, *, below: str = "images") -> None:
        """Choose the name of an image in a part, and write its bytes."""
        stem = _make_stem(item.asset.filename, self._stems)
        data = item.read() if self._with_images else b""
        name = f"{stem}.{_choose_ending(item.asset.filename, data)}"
        self._names[part, item.asset.filename] = name
        if self._with_images:
            (self._folder / part / below).mkdir(exist_ok=True)
            (self._folder / part / below / name).write_bytes(data)

    def add_further_images(
        self, item: ExportedImage, part: str, sources: Mapping[str, ExportedImage]
    ) -> None:
        """Add the images that conversations of this one show, unless they are in the part."""
        for record in item.records:
            for name in record.further_images:
                if (part, name) not in self._names and name in sources:
                    self.add_image(sources[name], part, below="further_images")

    def write_annotations(self, item: ExportedImage, part: str) -> None:
        """Write the records of an image; all images that they show have been added."""
        name = self._names[part, item.asset.filename]
        asset = msgspec.structs.replace(item.asset, filename=name)
        names = {
            shown: self._names[part, shown]
            for record in item.records
            for shown in (item.asset.filename, *record.further_images)
            if (part, shown) in self._names
        }
        records = [
            msgspec.structs.replace(record, contents=rename_images(record.contents, names))
            for record in item.records
        ]
        lines = [encode(record) + b"\n" for record in merge_records(records, asset)]
        path = self._folder / part / "annotations" / f"{name.rpartition('.')[0]}.jsonl"
        path.write_bytes(b"".join(lines))


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
    """Merge all records of an image into one; freeform texts and conversations stay separate."""
    records = [msgspec.structs.replace(record, asset=asset) for record in records]
    kinds = (Freeform, Conversation)
    separate = [record for record in records if isinstance(record.contents, kinds)]
    merging = [record for record in records if not isinstance(record.contents, kinds)]
    return [*_merge_same(merging), *separate] if merging else separate


def _merge_same(records: list[Record]) -> list[Record]:
    first = records[0]
    same = [record.contents for record in records]
    if len(same) == 1:
        return records
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
