"""The run's dataset, brought to this machine before the trainer begins.

A version lies at ``<data_dir>/datasets/<organization>/<version>/`` and serves every attempt on this machine that needs
it (``runyard.datasets.versions`` says what is in it). Each file is proven by its hash before it gets its name:
hard-linked from the server's blobs where those lie on the same disk, or from another version that has it, else fetched.
``complete.json`` comes last. What has arrived when the line is cut, or when we are killed, is not fetched again.

Every supervisor holds the folder (flock, shared) as long as it lives, and whoever fills it holds ``bring.lock``: two
attempts at once fetch nothing twice. Folders that nobody holds go, least recently used first, when more would be kept
than ``RUNYARD_DATASETS_MAX_GIB``; what living attempts use is never touched, whatever the bound.
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runyard import rundir
from runyard.datasets.versions import (
    COMPLETE,
    CONTENTS,
    ID_LENGTH,
    MANIFEST,
    PACKS,
    VersionError,
    is_hash,
    read_contents,
    read_manifest,
)
from runyard.ids import folder_below
from runyard.protocol import AttemptDataset
from runyard.seams import Files
from runyard.supervisor.resume import Gone

log = logging.getLogger(__name__)

FOLDER = "datasets"
BRING_LOCK = "bring.lock"
NEW_CONTENTS = f".{CONTENTS}"
REMOVING = ".removing-"
ASKS = 3  # the server may move pictures to other packs between our asking and our fetching
DEFAULT_LIMIT_BYTES = 50 << 30
_VERSION = re.compile(r"[0-9a-f]{16}", re.ASCII)


class Source(Protocol):
    """The server, as far as this module needs it. What is raised other than ``Gone`` passes: try again later."""

    def dataset(self) -> AttemptDataset | None: ...

    def fetch_contents(self, target: Path, /) -> None: ...

    def fetch(self, sha256: str, target: Path, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which version an attempt needs, and where this machine keeps such things."""

    organization_id: str
    dataset_id: str
    version: str
    data_dir: Path
    limit_bytes: int

    @property
    def home(self) -> Path:
        return folder_below(self.data_dir, FOLDER, self.organization_id, self.version)


class Unfit(Exception):
    """What the server says of the version does not fit together."""


class Bringer:
    """Brings the dataset of one attempt, in as many tries as it takes."""

    def __init__(self, folder: Path, source: Source):
        self._folder, self._source = folder, source
        self._held: int | None = None
        self._proven: set[Path] = set()
        self._told: AttemptDataset | None = None  # what was asked in an earlier try and holds until bytes are gone

    def bring(self, files: Files = rundir) -> None:
        """Bring the run's dataset and write ``dataset.json``; nothing for built-in data.

        Data that the server has lost is told there as ``problem``, for the trainer to end with.

        Raises:
            OSError: the disk does not take it, or bytes arrived damaged.
        """
        wanted = wanted_of(self._folder, files)
        if wanted is None or files.read_json(self._folder / rundir.DATASET) is not None:
            if wanted is not None:
                self._hold(wanted.home)
            return
        told: dict[str, Any] = {"folder": str(wanted.home), "dataset": wanted.dataset_id, "version": wanted.version}
        self._hold(wanted.home)
        with _locked(wanted.home / BRING_LOCK):
            if not is_complete(wanted.home):
                problem = self._bring(wanted)
                if problem == "":
                    return
                if problem is not None:
                    told["problem"] = problem
        files.write_json(self._folder / rundir.DATASET, told)

    def _bring(self, wanted: Wanted) -> str | None:
        """None once it is here; empty when there is nothing to bring; else why it cannot be had."""
        why = ""
        for _ in range(ASKS):
            try:
                self._told = self._told or self._source.dataset()
                if self._told is None:
                    return ""
                self._take(wanted, self._told)
                return None
            except Gone as error:
                why = f"the server has lost bytes of it ({error})"
            except (Unfit, VersionError) as error:
                why = f"what the server says of it does not fit together: {error}"
            self._told = None
            self._proven.discard(wanted.home / NEW_CONTENTS)
            (wanted.home / NEW_CONTENTS).unlink(missing_ok=True)
            log.warning("Dataset %s, version %s: %s", wanted.dataset_id, wanted.version, why)
        return f"version {wanted.version} of dataset {wanted.dataset_id!r} cannot be had: {why}; import it again"

    def _take(self, wanted: Wanted, told: AttemptDataset) -> None:
        home = wanted.home
        packs = {pack.sha256: pack.size_bytes for pack in told.packs}
        if not all(map(is_hash, (*packs, told.manifest.sha256))):
            raise Unfit("a blob's name is no hash")
        if told.manifest.sha256[:ID_LENGTH] != wanted.version:
            raise Unfit(f"its manifest is that of version {told.manifest.sha256[:ID_LENGTH]}")
        make_room(wanted.data_dir / FOLDER, sum(packs.values()) + told.manifest.size_bytes, wanted.limit_bytes)
        (home / PACKS).mkdir(mode=0o700, exist_ok=True)
        self._place(wanted, home / MANIFEST, told.manifest.sha256, told.manifest.size_bytes)
        contents = home / NEW_CONTENTS
        if contents not in self._proven:
            self._source.fetch_contents(contents)
            check_contents(home / MANIFEST, contents, packs)
            self._proven.add(contents)
        for sha256, size_bytes in packs.items():
            self._place(wanted, home / PACKS / sha256, sha256, size_bytes)
        for path in (home / PACKS).iterdir():
            if path.name not in packs:  # of an earlier ask, or half a file
                path.unlink()
        _fsync(contents)
        os.replace(contents, home / CONTENTS)
        for folder in (home / PACKS, home, home.parent, home.parent.parent):
            rundir.fsync_dir(folder)
        sizes = {MANIFEST: told.manifest.size_bytes, CONTENTS: (home / CONTENTS).stat().st_size}
        sizes |= {f"{PACKS}/{sha256}": size_bytes for sha256, size_bytes in packs.items()}
        rundir.write_json(home / COMPLETE, {"version": wanted.version, "sizes": sizes})

    def _place(self, wanted: Wanted, target: Path, sha256: str, size_bytes: int) -> None:
        """Have a file under its name, proven: the one that is there, a link to another, or fetched."""
        if target in self._proven or is_whole(target, sha256, size_bytes):
            self._proven.add(target)
            return
        staged = target.with_name(f".{target.name}")
        staged.unlink(missing_ok=True)  # never written into: it may be a link to a blob
        if not _linked(wanted, staged, sha256, size_bytes):
            self._source.fetch(sha256, staged)
            if not is_whole(staged, sha256, size_bytes):
                raise ConnectionError(f"blob {sha256} arrived damaged")
            _fsync(staged)
        target.unlink(missing_ok=True)
        os.replace(staged, target)
        self._proven.add(target)

    def _hold(self, home: Path) -> None:
        """Keep the folder from being removed as long as this process lives, and note that it was used."""
        while self._held is None:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if _is_at(descriptor, home):
                    self._held = descriptor
                    os.utime(descriptor)
                else:  # removed while we waited
                    os.close(descriptor)

    def release(self) -> None:
        """Let the folder be removed; ending the process does the same."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def wanted_of(folder: Path, files: Files = rundir) -> Wanted | None:
    """Which version the attempt in ``folder`` needs; None for built-in data, which has none."""
    run, placed = files.read_json(folder / rundir.RUN), files.read_json(folder / rundir.PLACED)
    if run is None or placed is None or not run.get("dataDir"):
        return None
    settings = _dataset_settings(run)
    version = settings.get("datasetVersion")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        return None
    return Wanted(
        organization_id=str(placed["organizationId"]),
        dataset_id=str(settings.get("datasetId")),
        version=version,
        data_dir=Path(str(run["dataDir"])),
        limit_bytes=int(placed.get("datasetsBytes", DEFAULT_LIMIT_BYTES)),
    )


def is_complete(home: Path) -> bool:
    """Whether every file of a version is there, at its length. Hashes were proven when they came."""
    told = rundir.read_json(home / COMPLETE)
    try:
        return told is not None and all((home / path).stat().st_size == size for path, size in told["sizes"].items())
    except (OSError, KeyError, AttributeError):
        return False


def check_contents(manifest: Path, contents: Path, packs: dict[str, int]) -> None:
    """Compare the places of the pictures with the pictures there are and the packs they lie in.

    Raises:
        Unfit: a picture has no place, or one outside of the packs.
    """
    pictures = {item.sha256 for item in read_manifest(manifest)}
    placed = set()
    for place in read_contents(contents):
        if place.offset + place.size > packs.get(place.pack, -1):
            raise Unfit(f"picture {place.sha256} lies outside of pack {place.pack}")
        placed.add(place.sha256)
    if missing := pictures - placed:
        raise Unfit(f"{len(missing)} of {len(pictures)} pictures have no place, {min(missing)} among them")


def make_room(root: Path, needed_bytes: int, limit_bytes: int) -> None:
    """Remove versions that nobody holds, least recently used first, until so much more fits or none is left."""
    for torn in root.glob(f"*/{REMOVING}*"):
        shutil.rmtree(torn, ignore_errors=True)
    homes = sorted(
        (path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith(".")), key=_mtime_ns
    )
    for home in homes:
        if sum(_inodes(root)) + needed_bytes <= limit_bytes:
            return
        _remove(home)


def is_whole(path: Path, sha256: str, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes and rundir.sha256_of(path) == sha256
    except FileNotFoundError:
        return False


def _linked(wanted: Wanted, staged: Path, sha256: str, size_bytes: int) -> bool:
    """Link a file that lies on this disk already: a blob of the server, or of another version."""
    blob = wanted.data_dir.joinpath("blobs", wanted.home.parent.name, sha256[:2], sha256)
    siblings = (home / PACKS / sha256 for home in wanted.home.parent.iterdir() if home != wanted.home)
    for path in (blob, *siblings):
        with contextlib.suppress(OSError):  # not there, another disk, or a system that allows no such link
            os.link(path, staged)
            if is_whole(staged, sha256, size_bytes):
                return True
            staged.unlink()
    return False


def _remove(home: Path) -> None:
    """Remove a version unless somebody holds it."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, home):
                aside = home.with_name(f"{REMOVING}{home.name}")
                os.replace(home, aside)
                shutil.rmtree(aside)
                log.info("Removed version %s of a dataset, which nobody uses, to make room", home.name)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _inodes(root: Path) -> Iterator[int]:
    """Sizes of all files below, each counted once however many versions link it."""
    seen = set()
    for _, path in rundir.files_below(root):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                yield found.st_size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open folder still has its name."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dataset_settings(run: dict[str, Any]) -> dict[str, Any]:
    try:
        blocks = run["run"]["spec"]["flow"]["blocks"]
        return next((block["settings"] for block in blocks if block["block"] == "vi-dataset"), {})
    except (KeyError, TypeError):
        return {}
