"""Pictures with Vi JSONL, laid out so that the published client's loader finds both.

    dump/images/<stem>.jpg       dump/annotations/<stem>.jsonl

or, with a split, ``training/`` and ``validation/`` alike. That loader pairs pictures and annotation files by their
place in the sorted lists and wants one line a file, so: every picture has exactly one file and one line, both of one
stem, and a stem has no point in it, for ``a.b.png`` sorts elsewhere among ``a.*`` than ``a.b.jsonl`` does. Pictures
of which nothing is said are left out. What is said of one picture several times becomes one record: questions one
after another, captions one after another. Only freeform texts, which that loader does not know, stay lines of their
own.
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
from runyard.datasets.writers import Item

_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_BY_MAGIC = (
    (b"\x89PNG", "png"),
    (b"RIFF", "webp"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*", "tiff"),
    (b"MM", "tiff"),
)
_LONGEST_STEM = 120


class ViFull:
    """``training/`` and ``validation/`` when a fraction is held out, else ``dump/``."""

    name = "ViFull"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")
    loses = "folders of pictures; pictures without records; that records of one picture were several"

    def __init__(self, *, held_out_fraction: float | None = None, seed: int = 0) -> None:
        self._fraction = held_out_fraction
        self._seed = seed

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        parts = ("dump",) if self._fraction is None else ("training", "validation")
        for part in parts:
            (folder / part / "annotations").mkdir(parents=True)
            (folder / part / "images").mkdir()
        stems: set[str] = set()
        for item in items:
            if item.records:
                _write_item(item, folder / self._part(item), stems, with_pictures=with_pictures)

    def _part(self, item: Item) -> str:
        if self._fraction is None:
            return "dump"
        held_out = is_held_out(bytes.fromhex(item.sha256), seed=self._seed, fraction=self._fraction)
        return "validation" if held_out else "training"


def _write_item(item: Item, folder: Path, stems: set[str], *, with_pictures: bool) -> None:
    stem = _stem(item.asset.filename, stems)
    data = item.read() if with_pictures else b""
    name = f"{stem}.{_ending(item.asset.filename, data)}"
    if with_pictures:
        (folder / "images" / name).write_bytes(data)
    asset = msgspec.structs.replace(item.asset, filename=name)
    lines = [encode(record) + b"\n" for record in one_record(item.records, asset)]
    (folder / "annotations" / f"{stem}.jsonl").write_bytes(b"".join(lines))


def _stem(filename: str, taken: set[str]) -> str:
    """A stem of its own for each picture, told apart by letters alone; of the name only what is safe in a file's name.

    The names that come here were checked on import; this holds even if they were not.
    """
    base = filename.rpartition("/")[2].rpartition(".")[0] or filename.rpartition("/")[2]
    safe = "".join(sign if sign.isalnum() or sign in "-_ ()" else "_" for sign in base)
    while len(safe.encode()) > _LONGEST_STEM:
        safe = safe[: len(safe) - 1 - len(safe) // 8]
    stem, number = safe.strip() or "picture", 2
    safe = stem
    while stem.casefold() in taken:
        stem, number = f"{safe}-{number}", number + 1
    taken.add(stem.casefold())
    return stem


def _ending(filename: str, data: bytes) -> str:
    """In lower case, because the loader knows no other."""
    ending = filename.rpartition(".")[2].lower()
    if ending in _ENDINGS:
        return ending
    return next((known for magic, known in _BY_MAGIC if data.startswith(magic)), "jpg")


def one_record(records: list[Record], asset: AssetRef) -> list[Record]:
    """All that is said of a picture in one record; freeform texts stay apart."""
    first = msgspec.structs.replace(records[0], asset=asset)
    same = [record.contents for record in records]
    if len(same) == 1 or isinstance(first.contents, Freeform):
        return [msgspec.structs.replace(record, asset=asset) for record in records]
    if isinstance(first.contents, Vqa):
        asked = [one for contents in same if isinstance(contents, Vqa) for one in contents.interactions]
        numbered = [Interaction(order=n, question=one.question, answer=one.answer) for n, one in enumerate(asked, 1)]
        return [msgspec.structs.replace(first, contents=Vqa(interactions=numbered))]
    return [msgspec.structs.replace(first, contents=_joined([c for c in same if isinstance(c, PhraseGrounding)]))]


def _joined(captions: list[PhraseGrounding]) -> PhraseGrounding:
    """Captions one after another; where words are counted, those of the captions before come first."""
    words, phrases = 0, []
    for caption in captions:
        for phrase in caption.grounded_phrases:
            start, end = phrase.start_token_index + words, phrase.end_token_index + words
            phrases.append(
                GroundedPhrase(phrase=phrase.phrase, start_token_index=start, end_token_index=end, bounds=phrase.bounds)
            )
        words += len(caption.caption.split())
    return PhraseGrounding(caption=" ".join(caption.caption for caption in captions), grounded_phrases=phrases)
