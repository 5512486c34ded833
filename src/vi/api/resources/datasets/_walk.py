"""The files of a folder that an import sends, and those that it leaves out.

An import and a check of a local folder must select the same files, so both use this module:
``_files`` in the SDK, and ``runyard.datasets.sources``, which may import nothing else of this
package. It therefore needs the standard library alone.

Hidden files, whose name or folder begins with a dot, and files of operating systems are left out
silently. Files outside the folder are never listed. A symbolic link is followed only if it leads to
a regular file inside the folder, or from a snapshot of the Hub's cache (``X/snapshots/<revision>``)
to a file in ``X/blobs``. Whatever else is left out is returned with the reason.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAX_PATH_BYTES = 1024
# In lower case, since some programs change the case.
_SYSTEM_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini", "__macosx"})
# Endings of images and annotations. Those of texts are missing: README.txt is no data.
_DATA_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".json", ".jsonl", ".csv", ".tsv", ".xml", ".parquet", ".arrow"),
    *(".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
)
_MAX_LINK_BYTES = 512
_MAX_HIDDEN = 1000  # hidden files and folders that are searched for data


class LocalFile(NamedTuple):
    """File to import: ``path`` is its name in the dataset, ``local_path`` its path on disk."""

    path: str
    local_path: str
    size_bytes: int


class LeftOutFile(NamedTuple):
    """File or folder that is not imported, with a code of ``docs/findings.md``."""

    path: str
    code: str
    cause: str
    fix: str


def list_files(top: Path) -> tuple[list[LocalFile], list[LeftOutFile]]:
    """List the files to import and those that are left out with a reason, each sorted by path.

    ``top`` is a folder or a single file.

    Raises:
        OSError: A folder or file cannot be read.
    """
    walk = _Walk(top.resolve())
    if top.is_file():
        walk.add_file(top)
    else:
        walk.add_folder()
    return sorted(walk.list_files()), sorted(walk.left_out)


def is_hidden(path: str) -> bool:
    """Return whether a name in the path begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def is_system_file(path: str) -> bool:
    """Return whether an operating system created the file, such as ``.DS_Store``."""
    parts = path.lower().split("/")
    return parts[-1].startswith("._") or not _SYSTEM_NAMES.isdisjoint(parts)


class _Walk:
    """One walk of a folder."""

    def __init__(self, root: Path) -> None:
        self.left_out: list[LeftOutFile] = []
        self._root = root
        self._files: list[LocalFile] = []
        self._links: list[LocalFile] = []
        self._blobs: set[str] = set()  # files of the Hub's cache that a snapshot links to
        self._hidden: list[str] = []

    def add_file(self, file: Path) -> None:
        """Add a single file. It was named, so it may be hidden, or a link."""
        if not self._leave_out_odd_name(file.name):
            self._files.append(LocalFile(file.name, str(file), file.stat().st_size))

    def add_folder(self) -> None:
        """Add the files of the root and its subfolders."""
        pending = [(str(self._root), "")]
        while pending:
            folder, below = pending.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = below + entry.name
                    if is_hidden(entry.name) or is_system_file(entry.name):
                        self._note_hidden(path)
                    elif self._leave_out_odd_name(path):
                        continue
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, f"{path}/"))
                    else:
                        self._add_entry(path, entry)
        self._report_hidden_data()

    def list_files(self) -> Iterator[LocalFile]:
        """Yield the files; those of the Hub's cache only by their names in a snapshot."""
        yield from self._links
        yield from (file for file in self._files if file.local_path not in self._blobs)

    def _add_entry(self, path: str, entry: "os.DirEntry[str]") -> None:
        if entry.is_symlink():
            self._add_link(path, Path(entry.path))
        elif not entry.is_file(follow_symlinks=False):
            fix = "replace it by a regular file, or remove it"
            self._leave_out(path, "it is neither a file nor a folder", fix)
        elif (blob := _read_link_text(entry)) is not None:
            self._links.append(LocalFile(path, str(blob), blob.stat().st_size))
            self._blobs.add(str(blob))
        else:
            self._files.append(LocalFile(path, entry.path, entry.stat().st_size))

    def _add_link(self, path: str, link: Path) -> None:
        target = Path(os.path.realpath(link))
        is_blob = _leads_to_blob(link, target)
        fix = "replace the link by a copy of its target"
        if not is_blob and not target.is_relative_to(self._root):
            self._leave_out(path, "it is a link that leads outside the folder", fix)
        elif not target.is_file():
            self._leave_out(path, "it is a link to a folder or to a missing file", fix)
        else:
            self._links.append(LocalFile(path, str(target), target.stat().st_size))
            if is_blob:
                self._blobs.add(str(target))

    def _leave_out_odd_name(self, path: str) -> bool:
        """Return whether the file is left out for its name."""
        if not path.isprintable() or "\\" in path:
            cause = "its name contains a backslash or unprintable characters"
        elif len(path.encode()) > MAX_PATH_BYTES:
            cause = f"its name has {len(path.encode()):,} bytes, more than {MAX_PATH_BYTES:,}"
        else:
            return False
        self._leave_out(path, cause, "rename it to a short name of printable characters")
        return True

    def _leave_out(self, path: str, cause: str, fix: str, code: str = "NameUnsafe") -> None:
        shown = path.encode(errors="backslashreplace").decode()
        self.left_out.append(LeftOutFile(shown, code, cause, fix))

    def _note_hidden(self, path: str) -> None:
        if not is_system_file(path) and len(self._hidden) < _MAX_HIDDEN:
            self._hidden.append(path)

    def _report_hidden_data(self) -> None:
        """Report the first hidden file that holds data, in a folder where no other file does."""
        if any(_may_hold_data(file.path) for file in (*self._files, *self._links)):
            return
        for path in sorted(self._hidden):
            for file in (path, *_list_below(self._root, path)):
                if _may_hold_data(file):
                    cause = "only hidden files hold data, and names that begin with a dot are not "
                    fix = "rename the file or its folder so that no name begins with a dot"
                    self._leave_out(file, f"{cause}imported", fix, "FileIgnored")
                    return


def _leads_to_blob(link: Path, target: Path) -> bool:
    """Return whether a link leads from ``X/snapshots/<revision>`` to a file of ``X/blobs``."""
    snapshots = target.parent.parent / "snapshots"
    is_inside = link.is_relative_to(snapshots) and link.parent != snapshots
    return target.parent.name == "blobs" and is_inside


def _read_link_text(entry: "os.DirEntry[str]") -> Path | None:
    """Return the blob that a file of a snapshot names in place of a link; None for other files.

    Git and archives write the target of a link as text where links are not supported.
    """
    if "snapshots" not in entry.path or entry.stat().st_size > _MAX_LINK_BYTES:
        return None
    link = Path(entry.path)
    text = link.read_bytes()
    if b"/blobs/" not in text or not text.isascii() or not text.decode().isprintable():
        return None
    target = Path(os.path.realpath(link.parent / text.decode()))
    return target if _leads_to_blob(link, target) and target.is_file() else None


def _may_hold_data(path: str) -> bool:
    return path.lower().endswith(_DATA_ENDINGS)


def _list_below(root: Path, path: str) -> Iterator[str]:
    """Yield the files in a hidden folder by paths from the root; follow no link."""
    if (root / path).is_symlink():
        return
    for folder, subfolders, names in os.walk(root / path):
        subfolders.sort()
        for name in sorted(names):
            yield os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118
