"""Ids and paths: their rules, and the only function that makes a path from ids.

The server checks an id here when it creates the resource, a backup when it is written, verified and
restored, and a machine before it creates a folder. So all parts accept the same ids.

``resolve_folder`` maps ids to folders. It does not rely on these checks: it proves that the result
is a real folder strictly inside its base, so even an unchecked id removes or overwrites nothing
outside. Standard library only, so that every part may import this.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_PLAIN = r"[A-Za-z0-9_-]{1,255}"
_PLAIN_KINDS = (
    *("run", "flow", "training project", "dataset", "import", "export", "bulk deletion"),
    *("machine", "claim", "view"),
)
# Aliases in requests for the checkpoint that it is at that time.
RESERVED_CHECKPOINTS = ("latest", "best")

# Every pattern matches a whole id (\A ... \Z), also where a library searches with it.
PATTERNS: Mapping[str, str] = {
    "organization": r"\A[A-Za-z0-9_-]{1,64}\Z",
    "asset": r"\A[A-Za-z0-9_-]{1,64}\Z",
    "version": r"\A[A-Za-z0-9_-]{1,32}\Z",
    "checkpoint": rf"\A(?!(?:{'|'.join(RESERVED_CHECKPOINTS)})\Z){_PLAIN}\Z",
    # Empty where a system has no boot id; some write dots and colons.
    "boot": r"\A[A-Za-z0-9_.:-]{0,64}\Z",
    "blob": r"\A[0-9a-f]{64}\Z",
    **dict.fromkeys(_PLAIN_KINDS, rf"\A{_PLAIN}\Z"),
}
_ALLOWED_PLAIN = "1 to 255 letters, digits, '_' and '-'"
_ALLOWED = {
    "organization": "1 to 64 letters, digits, '_' and '-'",
    "asset": "1 to 64 letters, digits, '_' and '-'",
    "version": "1 to 32 letters, digits, '_' and '-'",
    "checkpoint": "1 to 255 letters, digits, '_' and '-', and neither 'latest' nor 'best'",
    "boot": "at most 64 letters, digits, '_', '.', ':' and '-'",
    "blob": "64 lower-case hexadecimal digits",
}
_COMPILED = {kind: re.compile(pattern, re.ASCII) for kind, pattern in PATTERNS.items()}

# ``run:RUN_ID/CHECKPOINT``, where a flow names the weights of another run; the checkpoint may be a
# reserved word.
MODEL_REFERENCE = re.compile(rf"run:({_PLAIN})/({_PLAIN})", re.ASCII)

# Paths of files inside a checkpoint: relative, with '/', portable to every system that may unpack
# them.
MAX_PATH_LENGTH, MAX_PATH_PARTS = 1024, 32
_NO_DOTS, _ODD = r"(?!\.{1,2}(?:/|\Z))", r"/\\\x00-\x1f\x7f\ud800-\udfff"
# U+FFFD replaces what no store keeps (see ``limits.clean_text``): a repaired path is another path.
_PART = rf"{_NO_DOTS}[^:\ufffd{_ODD}]{{1,255}}"
PATH_PATTERN = (
    rf"\A(?=[\s\S]{{1,{MAX_PATH_LENGTH}}}\Z){_PART}(?:/{_PART}){{0,{MAX_PATH_PARTS - 1}}}\Z"
)
_PATH = re.compile(PATH_PATTERN)
# Names of files in datasets may hold colons: people chose them.
FILENAME_PATTERN = rf"\A{_NO_DOTS}[^{_ODD}]+(?:/{_NO_DOTS}[^{_ODD}]+)*\Z"
_MAX_NAME_BYTES = 255


class InvalidId(ValueError):
    """An id or a path is not valid; the message has the value and what is expected."""


class PathEscapes(InvalidId):
    """A path made from ids would not be strictly inside its folder."""


def is_id(kind: str, id: object) -> bool:
    """Return whether ``id`` is a valid id of this kind."""
    return isinstance(id, str) and _COMPILED[kind].match(id) is not None


def check_id(kind: str, id: object) -> str:
    """Return the id.

    Raises:
        InvalidId: it is not a valid id of this kind.
    """
    if isinstance(id, str) and _COMPILED[kind].match(id) is not None:
        return id
    raise InvalidId(
        f"{kind} id {shorten(id)} is not valid: expected {_ALLOWED.get(kind, _ALLOWED_PLAIN)}; "
        "try: choose another id"
    )


def check_paths(paths: Iterable[str]) -> None:
    """Check the paths of all files of a checkpoint.

    Raises:
        InvalidId: one is not a plain relative path, is listed twice, or is a folder of another one.
    """
    seen = set[str]()
    for path in paths:
        if _PATH.match(path) is None:
            raise InvalidId(
                f"file path {shorten(path)} is not valid: expected a relative path of at most "
                f"{MAX_PATH_LENGTH} characters and {MAX_PATH_PARTS} parts, without '.', '..', "
                "backslashes, colons or control characters"
            )
        if path in seen:
            raise InvalidId(f"file path {shorten(path)} is listed twice; try: list each file once")
        seen.add(path)
    for path in seen:
        for end in (index for index, character in enumerate(path) if character == "/"):
            if path[:end] in seen:
                raise InvalidId(
                    f"file path {shorten(path[:end])} is a file and the folder of {shorten(path)}"
                )


def is_path(path: str) -> bool:
    """Return whether this is a valid path of a file inside a checkpoint."""
    return _PATH.match(path) is not None


def resolve_folder(base: Path, *names: str) -> Path:
    """Return ``base/name/...``, proven to be inside ``base`` and without links below it.

    ``base`` itself may be a link: an operator may have moved it to another disk.

    Raises:
        PathEscapes: a name is not a plain file name, or a part of the path is a link.
    """
    for name in names:
        if not _is_file_name(name):
            raise PathEscapes(
                f"{shorten(name)} cannot name a folder in {base}: expected a plain file name"
            )
    if not names:
        raise PathEscapes(f"no name of a folder in {base} is given: expected at least one")
    # Each name is one part, so only a link could lead out of the base or to another folder inside.
    path = base
    for name in names:
        path = path / name
        if path.is_symlink():
            raise PathEscapes(f"{path} is a symbolic link: expected a folder inside {base}")
    return path


def shorten(value: object) -> str:
    """Return the repr of a value, cut to fit into a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _is_file_name(name: object) -> bool:
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(character in "/\\\0" for character in name)
    ):
        return False
    return len(name.encode(errors="replace")) <= _MAX_NAME_BYTES
