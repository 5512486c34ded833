"""The writer of conversations as LLaVA reads them: one array in ``conversations.json``, and the
images under their own names in the same folder.

    {"id": "7", "image": "a/b.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                       {"from": "gpt", "value": "A shelf."}]}

``image`` is a list if there are several images. A row of text only has an empty list ``images``,
and the image that stands for it is not written. Each question of a record whose questions are
independent of each other is a row of its own. A text without a prompt has only the mark ``<image>``
as its question.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from runyard.datasets.readers.stand_ins import STAND_IN_SHA256
from runyard.datasets.records import (
    IMAGE_MARK,
    Conversation,
    DatasetType,
    Freeform,
    Record,
    Turn,
    Vqa,
)
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.files import write_image

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


class ConversationsWriter:
    """The writer of questions, texts and conversations; see ``base.Writer``."""

    name = "Conversations"
    types: tuple[DatasetType, ...] = ("vqa", "freeform")
    loses = "categories of rows; that independent questions were one record"

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        separator = b"[\n"
        with open(folder / "conversations.json", "wb") as file:
            for item in items:
                for record in item.records:
                    for row in _build_rows(record, item.asset.filename):
                        file.write(separator + msgspec.json.encode(row))
                        separator = b",\n"
                if with_images and item.sha256 != STAND_IN_SHA256:
                    write_image(folder, item.asset.filename, item)
            file.write(b"\n]\n" if separator == b",\n" else b"[]\n")


def _build_rows(record: Record, filename: str) -> Iterator[dict[str, Any]]:
    contents = record.contents
    if isinstance(contents, Conversation):
        images = [] if contents.is_text_only else contents.images or filename
        yield _build_row(record.id, images, contents.turns)
    elif isinstance(contents, Vqa):
        for number, one in enumerate(contents.interactions, start=1):
            own_id = record.id if number == 1 else f"{record.id}-{number}"
            yield _build_row(
                own_id, filename, [Turn("user", one.question), Turn("assistant", one.answer)]
            )
    elif isinstance(contents, Freeform):
        yield _build_row(
            record.id,
            filename,
            [Turn("user", contents.prompt), Turn("assistant", contents.text)],
        )


def _build_row(id: str, image: str | list[str], turns: list[Turn]) -> dict[str, Any]:
    rows = [{"from": _SPEAKERS[turn.role], "value": turn.content} for turn in turns]
    if not image:
        return {"id": id, "images": [], "conversations": rows}
    if not any(turn.role == "user" and IMAGE_MARK in turn.content for turn in turns):
        first = next(row for row in rows if row["from"] == "human")
        first["value"] = f"{IMAGE_MARK}\n{first['value']}"
    return {"id": id, "image": image, "conversations": rows}
