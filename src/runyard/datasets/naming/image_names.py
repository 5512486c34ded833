"""Find the image that a row names, or explain why there is none.

A name is tried in its forms: as written, then without a URL's host and query, percent-decoded, and
without a drive letter. For each form the first of these rules that has a candidate decides:

1. The exact path, relative to the folder of the annotation file, then to the top.
2. The same file name.
3. The same file name, ignoring case.
4. The same file name without its extension, ignoring case.

Rules 2 to 4 accept no candidate that contradicts the name. If the named folder exists, the image
must be in it. Otherwise the name's folders and the image's folders are compared from the end, and
all that both have must be equal: ``two/7.jpg`` is never ``one/7.jpg``. An absolute path comes from
another machine, so there a folder with a general name, such as ``images``, contradicts nothing. A
name without folders means an image below the nearest folder above the annotation file that holds
images, and not one of another split.

A rejected image is a candidate like any other: a row that means it gets no other image. Of several
candidates, the one that shares most folders with the name is taken, then the one nearest to the
annotation file, then one in a folder with a general name such as ``images``, then the one whose
folders occur in the annotation file's path. If that leaves several, the name is ambiguous.
"""

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Literal, get_args
from urllib.parse import parse_qs, unquote, urlsplit

from runyard.datasets.images import is_image_name
from runyard.datasets.splits import Split, find_split

# Folders that hold images of any origin.
_IMAGE_FOLDERS = frozenset(
    (
        *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "media"),
        *("jpegimages", "jpg", "jpeg", "png", "data", "default", "raw", "assets"),
    )
)
# Folders whose images are annotations of other images.
_MASK_FOLDERS = frozenset(
    (
        *("mask", "masks", "segmentation", "segmentations", "segmentationclass"),
        *("segmentationobject", "depth", "panoptic", "semantic"),
    )
)
_WORD = re.compile(r"[a-z0-9]+")
_MAX_SHOWN = 2

# How a candidate's file name compares with the wanted one, strictest first.
_Rule = Literal["name", "case", "stem"]
_RULES: tuple[_Rule, ...] = get_args(_Rule)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The facts about one accepted image. Width and height are as displayed, in pixels.

    ``orientation`` is the EXIF orientation, 1 to 8, which is applied to the stored pixels for
    display.
    """

    path: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    mime: str
    is_turned: bool = False  # its EXIF orientation swaps width and height
    frames: int = 1
    orientation: int = 1


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a name means.

    ``status`` says whether ``image`` was found. ``is_exact`` means that it is the named path, and
    not the only image that fits. ``candidates`` are the paths of the rejected image, of the images
    that fit equally well, or of the nearest image.
    """

    status: Literal["found", "missing", "rejected", "ambiguous"]
    image: ImageFacts | None = None
    is_exact: bool = False
    candidates: tuple[str, ...] = ()
    why: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the images that the name means, accepted or rejected."""
        if self.image is not None:
            return (self.image.path,)
        return () if self.status == "missing" else self.candidates

    @property
    def code(self) -> str:
        """The code of the finding about a row whose image was not found."""
        return "ImageAmbiguous" if self.status == "ambiguous" else "ImageMissing"


class ImageNames:
    """The accepted and rejected images of a source, searched by name."""

    def __init__(self) -> None:
        self._accepted: dict[str, ImageFacts] = {}  # by path in NFC, as are all keys here
        self._rejected: dict[str, tuple[str, str]] = {}  # path as stored, and code of the finding
        self._by_stem: dict[str, str | list[str]] = {}
        self._folders: set[str] = set()  # with images in them or below
        self._last: tuple[tuple[str, str], Resolution] | None = None

    def __len__(self) -> int:
        return len(self._accepted)

    def __iter__(self) -> Iterator[ImageFacts]:
        return iter(self._accepted.values())

    def has(self, path: str) -> bool:
        """Return whether an image with exactly this path was accepted or rejected."""
        path = _to_nfc(path)
        return path in self._accepted or path in self._rejected

    def get(self, path: str) -> ImageFacts | None:
        """Return the accepted image with exactly this path."""
        return self._accepted.get(_to_nfc(path))

    def add(self, facts: ImageFacts) -> None:
        path = _to_nfc(facts.path)
        if path not in self._accepted:
            self._index(path)
        self._accepted[path] = facts

    def add_rejected(self, path: str, code: str) -> None:
        """Add an image that cannot be used; ``code`` is that of its finding."""
        if not self.has(path):
            self._index(_to_nfc(path))
        self._rejected[_to_nfc(path)] = (path, code)

    def resolve(self, name: str, relative_to: str = "") -> Resolution:
        """Find the image that the annotation file ``relative_to`` calls by this name."""
        if self._last is None or self._last[0] != (name, relative_to):
            self._last = (name, relative_to), self._resolve(name, _to_nfc(relative_to))
        return self._last[1]

    def _index(self, path: str) -> None:
        self._last = None
        stem = posixpath.splitext(posixpath.basename(path))[0].casefold()
        known = self._by_stem.setdefault(stem, path)
        if isinstance(known, list):
            known.append(path)
        elif known != path:
            self._by_stem[stem] = [known, path]
        folder = posixpath.dirname(path)
        while folder not in self._folders:
            self._folders.add(folder)
            folder = posixpath.dirname(folder)

    def _resolve(self, name: str, file: str) -> Resolution:
        forms = list(dict.fromkeys(_list_forms(name)))
        scope = self._find_scope(file)
        for form in forms:
            for path in _list_paths(form, file, scope):
                if path in self._accepted:
                    return Resolution("found", self._accepted[path], is_exact=True)
                if path in self._rejected:
                    return self._make_rejected(path)
        is_foreign = any(map(_is_foreign, forms))
        for form in forms:
            wanted = _Wanted(form, file, scope, is_foreign=is_foreign)
            wanted.known_folders = self._find_named_folders(form, file, scope)
            for rule in _RULES:
                found = self._choose(wanted, rule)
                if found is not None:
                    return found
        return self._explain_missing(forms)

    def _choose(self, wanted: "_Wanted", rule: _Rule) -> Resolution | None:
        similar = self._list_similar(wanted.base)
        fitting = [path for path in similar if wanted.allows(path, rule)]
        if rule == "stem":
            fitting = [path for path in fitting if path in self._accepted] or fitting
        fitting = wanted.prefer(fitting)
        if not fitting:
            return None
        if len(fitting) > 1:
            return _make_ambiguous([self._get_stored_path(path) for path in fitting])
        if fitting[0] in self._rejected:
            return self._make_rejected(fitting[0])
        return Resolution("found", self._accepted[fitting[0]])

    def _list_similar(self, base: str) -> list[str]:
        """List the paths of images whose name may be this one, in any case, with any extension."""
        folded = base.casefold()
        stems = {folded}
        if is_image_name(folded) or folded.endswith("."):
            stems.add(posixpath.splitext(folded)[0])
        found: list[str] = []
        for stem in sorted(stems):
            known = self._by_stem.get(stem, [])
            found += [known] if isinstance(known, str) else known
        return found

    def _find_scope(self, file: str) -> str:
        """Return the nearest folder above the annotation file that has images in it or below."""
        folder = posixpath.dirname(file)
        while folder and folder not in self._folders:
            folder = posixpath.dirname(folder)
        return folder

    def _find_named_folders(self, form: str, file: str, scope: str) -> set[str]:
        """Find the folders of this source that a name with folders may mean."""
        if "/" not in form.strip("/"):
            return set()
        named = {posixpath.dirname(path) for path in _list_paths(form, file, scope)}
        return named & self._folders

    def _make_rejected(self, path: str) -> Resolution:
        stored, code = self._rejected[path]
        why = f"the image {stored!r} was rejected: {code}"
        return Resolution("rejected", candidates=(stored,), why=why)

    def _get_stored_path(self, path: str) -> str:
        return self._rejected[path][0] if path in self._rejected else self._accepted[path].path

    def _explain_missing(self, forms: Sequence[str]) -> Resolution:
        for form in reversed(forms):
            if near := self._list_similar(posixpath.basename(form)):
                nearest = self._get_stored_path(near[0])
                why = f"no image has this name; the nearest is {nearest!r}"
                return Resolution("missing", candidates=(nearest,), why=why)
        return Resolution("missing", why="no image has this name")


def _make_ambiguous(paths: Sequence[str]) -> Resolution:
    shown = " and ".join(repr(path) for path in paths[:_MAX_SHOWN])
    why = f"{len(paths)} images have this name, such as {shown}"
    return Resolution("ambiguous", candidates=tuple(paths), why=why)


# -- the forms of a name ---------------------------------------------------------------------------


def normalize_name(name: str) -> str:
    """Normalize a name from a row to a path: forward slashes, no leading ``./``, Unicode NFC."""
    if "\\" in name:
        name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    return _to_nfc(name)


def _to_nfc(name: str) -> str:
    """Compose letters and accents, which some file systems store apart and rows seldom do."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _list_forms(name: str) -> Iterator[str]:
    name = normalize_name(name.strip()) or "."
    yield name
    if "://" in name or "?" in name:
        yield from _list_url_forms(name)
    if "%" in name:
        decoded = normalize_name(unquote(name))
        yield decoded
        if "?" in decoded:
            yield from _list_url_forms(decoded)
    if re.match(r"[A-Za-z]:/", name):
        yield name[2:]


def _list_url_forms(name: str) -> Iterator[str]:
    """Yield the paths that a URL may mean: that in its query, then its own."""
    try:
        url = urlsplit(name)
        # Label Studio serves local files as /data/local-files/?d=path.
        for value in parse_qs(url.query).get("d", []):
            yield f"/{normalize_name(value)}"
    except ValueError:
        return
    path = url.path
    if path.strip("/"):
        yield f"/{normalize_name(path).lstrip('/')}"
        if "%" in path:
            yield f"/{normalize_name(unquote(path)).lstrip('/')}"


def _is_foreign(form: str) -> bool:
    """Return whether a name is an absolute path, whose folders are those of another machine."""
    return form.startswith(("/", "~")) or re.match(r"[A-Za-z]:/|[a-z0-9+.-]+://", form) is not None


def _list_paths(form: str, file: str, scope: str) -> Iterator[str]:
    """Yield the exact paths that a name may mean."""
    folder = posixpath.dirname(file)
    if folder and not form.startswith("/"):
        yield posixpath.normpath(posixpath.join(folder, form))
    if not scope or "/" in form:
        yield form
        yield posixpath.normpath(form).lstrip("/")


# -- the rules -------------------------------------------------------------------------------------


class _Wanted:
    """A name that is searched for, and what contradicts it."""

    def __init__(self, form: str, file: str, scope: str, *, is_foreign: bool) -> None:
        parts = [part for part in form.split("/") if part not in ("", ".", "..")]
        self.base = parts[-1] if parts else ""
        self.folders = parts[:-1]
        self.file = file
        self.known_folders: set[str] = set()
        self._scope, self._is_foreign = scope, is_foreign
        self._split = _find_file_split(file)

    def allows(self, path: str, rule: _Rule) -> bool:
        """Return whether this image has the name by this rule, and no folder contradicts it."""
        base = posixpath.basename(path)
        folders = path.split("/")[:-1]
        if rule == "name" and base != self.base:
            return False
        if rule == "case" and base.casefold() != self.base.casefold():
            return False
        if rule == "stem" and _MASK_FOLDERS.intersection(_fold(folders)).difference(
            _fold(self.folders)
        ):
            return False
        if self.known_folders:
            return posixpath.dirname(path) in self.known_folders
        if self.folders:
            return self._agrees(folders, ignores_case=rule != "name")
        return self._is_near(path)

    def _agrees(self, folders: list[str], *, ignores_case: bool) -> bool:
        """Return whether the last folders, as far as both have them, are equal."""
        pairs = zip(reversed(self.folders), reversed(folders), strict=False)
        for number, (named, actual) in enumerate(pairs):
            if named == actual or (ignores_case and named.casefold() == actual.casefold()):
                continue
            rest = folders[: len(folders) - number]
            return self._is_foreign and _IMAGE_FOLDERS.issuperset(_fold(rest))
        return True

    def _is_near(self, path: str) -> bool:
        """Return whether a name without folders may mean an image in that place."""
        if self._scope and not path.startswith(f"{self._scope}/"):
            return False
        folder = posixpath.dirname(path[len(self._scope) :].lstrip("/"))
        return self._split is None or _find_folder_split(folder) in (None, self._split)

    def prefer(self, paths: list[str]) -> list[str]:
        """Return the candidates that fit best."""
        for count in (self._count_named, self._count_near, _count_general, self._count_hinted):
            if len(paths) > 1:
                most = max(map(count, paths))
                paths = [path for path in paths if count(path) == most]
        return paths

    def _count_named(self, path: str) -> int:
        """Return how many of the image's last folders the name has."""
        return _count_shared(reversed(self.folders), reversed(path.split("/")[:-1]))

    def _count_near(self, path: str) -> int:
        return count_shared_folders(path, self.file)

    def _count_hinted(self, path: str) -> int:
        """Return how many of the image's folders are words of the annotation file's path."""
        folder = posixpath.dirname(path)
        words = _WORD.findall(self.file.casefold())
        has_split = self._split is not None and _find_folder_split(folder) == self._split
        return len(_fold(folder.split("/")).intersection(words)) + has_split


def _count_general(path: str) -> int:
    """Return how many of the image's folders are named for images, as ``JPEGImages`` is."""
    return sum(part.casefold() in _IMAGE_FOLDERS for part in path.split("/")[:-1])


def is_mask(path: str) -> bool:
    """Return whether an image is in a folder of masks, which annotate other images."""
    return not _MASK_FOLDERS.isdisjoint(_fold(path.split("/")[:-1]))


def count_shared_folders(path: str, other: str) -> int:
    """Return how many folders two paths have in common, from the top."""
    return _count_shared(path.split("/")[:-1], other.split("/")[:-1])


def _count_shared(some: Iterable[str], others: Iterable[str]) -> int:
    pairs = zip(some, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@lru_cache(maxsize=1024)
def _find_file_split(file: str) -> Split | None:
    return find_split(file, reads_name=True)


@lru_cache(maxsize=1024)
def _find_folder_split(folder: str) -> Split | None:
    return find_split(f"{folder}/")


def _fold(parts: Iterable[str]) -> set[str]:
    return {part.casefold() for part in parts}
