"""The files of an import, wherever they lie: a folder of this machine, or packs that were sent.

Paths are relative, POSIX, without ``..``; they are display text and dictionary keys, never opened as given by a caller
without a check. Readers ask a source for files by path and for pictures by the name that a row gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of one picture after it was inspected. Width and height are as shown, in pixels."""

    path: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    mime: str
    is_turned: bool = False  # its EXIF orientation swaps width and height
    frames: int = 1


class Source(Protocol):
    """Files, and the pictures among them.

    ``image`` finds a picture by the name a row gives: its exact path; else relative to the folder of ``beside`` (the
    annotation file); else by base name, if only one picture has it. None when there is none, or when it was refused.
    """

    def paths(self) -> Sequence[str]:
        """Every file, pictures included, sorted."""
        ...

    def size_bytes(self, path: str) -> int: ...

    def open(self, path: str) -> BinaryIO:
        """A seekable file to read."""
        ...

    def image(self, name: str, *, beside: str = "") -> ImageFacts | None: ...

    def is_ambiguous(self, name: str, *, beside: str = "") -> bool:
        """Whether ``image`` found nothing because several pictures have this base name."""
        ...

    def add_image(self, path: str, data: bytes, *, found_in: str, line: int | None = None) -> ImageFacts | None:
        """Take a picture that a container (Parquet, tar) carries; None when it is refused, which has been told."""
        ...
