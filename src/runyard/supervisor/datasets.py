"""Fetches the run's dataset to this machine before training starts.

A version is stored in ``<data_dir>/datasets/<organization>/<version>/`` and shared by every attempt
on this machine that needs it. ``runyard.datasets.versions`` documents its content, and
``runyard.supervisor.shared`` how it is filled, held, and removed.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runyard import rundir
from runyard.datasets.versions import (
    CONTENTS,
    ID_LENGTH,
    MANIFEST,
    PACKS,
    VersionError,
    is_sha256,
    read_contents,
    read_manifest,
)
from runyard.ids import resolve_folder
from runyard.ports import Files
from runyard.protocol import AttemptDataset
from runyard.rundir import AttemptDir
from runyard.supervisor.resume import BlobGone
from runyard.supervisor.shared import (
    FILL_LOCK,
    SharedFolder,
    free_space,
    fsync_file,
    hold_lock,
    locate_blob,
)

log = logging.getLogger(__name__)

FOLDER = "datasets"
NEW_CONTENTS = f".{CONTENTS}"
MAX_TRIES = 3  # the server may move images to other packs between the description and the fetch
DEFAULT_LIMIT_BYTES = 50 << 30
_VERSION = re.compile(r"[0-9a-f]{16}", re.ASCII)


class DatasetSource(Protocol):
    """The calls of the server that this module needs.

    Errors other than ``BlobGone`` may pass: retry later.
    """

    def get_dataset(self) -> AttemptDataset | None: ...

    def fetch_contents(self, target: Path, /) -> None: ...

    def fetch_blob(self, sha256: str, target: Path, /) -> None: ...


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """The dataset version that an attempt needs, and where this machine stores it."""

    organization_id: str
    dataset_id: str
    version: str
    data_dir: Path
    limit_bytes: int

    @property
    def home(self) -> Path:
        return resolve_folder(self.data_dir, FOLDER, self.organization_id, self.version)


class InvalidDataset(Exception):
    """The server's description of a version is inconsistent."""


class DatasetFetcher:
    """Fetches the dataset of one attempt, over as many calls as it takes."""

    def __init__(self, folder: Path, source: DatasetSource):
        self._folder, self._dir, self._source = folder, AttemptDir(folder), source
        self._shared = SharedFolder(source)
        self._described: AttemptDataset | None = None  # kept between calls until bytes are lost

    def fetch(self, files: Files = rundir) -> None:
        """Fetch the run's dataset and write ``dataset.json``; do nothing for built-in data.

        If the server has lost the data, ``problem`` says so there, and the trainer ends with it.

        Raises:
            OSError: the disk is full or failing, or bytes arrived damaged.
        """
        pinned = read_pinned_version(self._folder, files)
        if pinned is None or files.read_json(self._dir.dataset) is not None:
            if pinned is not None:
                self._shared.hold(pinned.home)
            return
        document: dict[str, Any] = {
            "folder": str(pinned.home),
            "dataset": pinned.dataset_id,
            "version": pinned.version,
        }
        self._shared.hold(pinned.home)
        with hold_lock(pinned.home / FILL_LOCK):
            if not rundir.is_complete(pinned.home):
                problem = self._fetch_version(pinned)
                if problem == "":
                    return
                if problem is not None:
                    document["problem"] = problem
        files.write_json(self._dir.dataset, document)

    def _fetch_version(self, pinned: PinnedVersion) -> str | None:
        """Fetch a version.

        Return None on success, "" when the server has none, else the problem.
        """
        problem = ""
        for _ in range(MAX_TRIES):
            try:
                self._described = self._described or self._source.get_dataset()
                if self._described is None:
                    return ""
                self._fill_folder(pinned, self._described)
                return None
            except BlobGone as error:
                problem = f"the server has lost bytes of it ({error})"
            except (InvalidDataset, VersionError) as error:
                problem = f"the server's description of it is inconsistent: {error}"
            self._described = None
            self._shared.discard(pinned.home / NEW_CONTENTS)
            log.warning("Dataset %s, version %s: %s", pinned.dataset_id, pinned.version, problem)
        return (
            f"cannot fetch version {pinned.version} of dataset {pinned.dataset_id!r}: {problem}; "
            "try: import the dataset again"
        )

    def _fill_folder(self, pinned: PinnedVersion, described: AttemptDataset) -> None:
        home = pinned.home
        packs = {pack.sha256: pack.size_bytes for pack in described.packs}
        if not all(map(is_sha256, (*packs, described.manifest.sha256))):
            raise InvalidDataset("the name of a blob is not a SHA-256 hash")
        if described.manifest.sha256[:ID_LENGTH] != pinned.version:
            raise InvalidDataset(
                f"its manifest belongs to version {described.manifest.sha256[:ID_LENGTH]}"
            )
        free_space(
            pinned.data_dir / FOLDER,
            sum(packs.values()) + described.manifest.size_bytes,
            pinned.limit_bytes,
        )
        (home / PACKS).mkdir(mode=0o700, exist_ok=True)
        self._place_blob(
            pinned, home / MANIFEST, described.manifest.sha256, described.manifest.size_bytes
        )
        contents = home / NEW_CONTENTS
        if not self._shared.is_proven(contents):
            self._source.fetch_contents(contents)
            check_contents(home / MANIFEST, contents, packs)
            self._shared.mark_proven(contents)
        for sha256, size_bytes in packs.items():
            self._place_blob(pinned, home / PACKS / sha256, sha256, size_bytes)
        for path in (home / PACKS).iterdir():
            if path.name not in packs:  # of an earlier description, or a partial file
                path.unlink()
        fsync_file(contents)
        os.replace(contents, home / CONTENTS)
        for folder in (home / PACKS, home, home.parent, home.parent.parent):
            rundir.fsync_dir(folder)
        sizes = {
            MANIFEST: described.manifest.size_bytes,
            CONTENTS: (home / CONTENTS).stat().st_size,
        }
        sizes |= {f"{PACKS}/{sha256}": size_bytes for sha256, size_bytes in packs.items()}
        rundir.write_json(home / rundir.COMPLETE, {"version": pinned.version, "sizes": sizes})

    def _place_blob(
        self, pinned: PinnedVersion, target: Path, sha256: str, size_bytes: int
    ) -> None:
        siblings = (
            home / PACKS / sha256 for home in pinned.home.parent.iterdir() if home != pinned.home
        )
        copies = (locate_blob(pinned.data_dir, pinned.organization_id, sha256), *siblings)
        self._shared.place_file(target, sha256, size_bytes, copies=copies)

    def release(self) -> None:
        """Allow the folder to be removed, as ending the process does."""
        self._shared.release()


def read_pinned_version(folder: Path, files: Files = rundir) -> PinnedVersion | None:
    """Return the version that the attempt in ``folder`` needs; None for built-in data."""
    run, placed = (
        files.read_json(AttemptDir(folder).run),
        files.read_json(AttemptDir(folder).placed),
    )
    if run is None or placed is None or not run.get("dataDir"):
        return None
    settings = _find_dataset_settings(run)
    version = settings.get("datasetVersion")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        return None
    return PinnedVersion(
        organization_id=str(placed["organizationId"]),
        dataset_id=str(settings.get("datasetId")),
        version=version,
        data_dir=Path(str(run["dataDir"])),
        limit_bytes=int(placed.get("datasetsBytes", DEFAULT_LIMIT_BYTES)),
    )


def check_contents(manifest: Path, contents: Path, packs: dict[str, int]) -> None:
    """Check that every image of the manifest has a location inside one of the packs.

    Raises:
        InvalidDataset: an image has no location, or one outside its pack.
    """
    images = {item.sha256 for item in read_manifest(manifest)}
    located = set()
    for span in read_contents(contents):
        if span.offset + span.size > packs.get(span.pack, -1):
            raise InvalidDataset(f"image {span.sha256} is outside pack {span.pack}")
        located.add(span.sha256)
    if missing := images - located:
        raise InvalidDataset(
            f"{len(missing)} of {len(images)} images have no location, for example {min(missing)}"
        )


def _find_dataset_settings(run: dict[str, Any]) -> dict[str, Any]:
    try:
        blocks = run["run"]["spec"]["flow"]["blocks"]
        return next((block["settings"] for block in blocks if block["block"] == "vi-dataset"), {})
    except (KeyError, TypeError):
        return {}
