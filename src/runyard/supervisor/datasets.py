"""Fetches the run's datasets to this machine before training starts.

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

    def get_dataset(self, dataset_id: str, /) -> AttemptDataset | None: ...

    def fetch_contents(self, dataset_id: str, target: Path, /) -> None: ...

    def fetch_blob(self, sha256: str, target: Path, /) -> None: ...


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """A dataset version that an attempt needs, and where this machine stores it."""

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
    """Fetches the datasets of one attempt, over as many calls as it takes."""

    def __init__(self, folder: Path, source: DatasetSource):
        self._folder, self._dir, self._source = folder, AttemptDir(folder), source
        self._shared: dict[Path, SharedFolder] = {}
        # By dataset; kept between calls until bytes are lost.
        self._described: dict[str, AttemptDataset] = {}

    def fetch(self, files: Files = rundir) -> None:
        """Fetch the run's datasets and write ``dataset.json``; do nothing for built-in data.

        If the server has lost data, ``problem`` says so there, and the trainer ends with it.

        Raises:
            OSError: the disk is full or failing, or bytes arrived damaged.
        """
        pinned = list_pinned_versions(self._folder, files)
        for version in pinned:
            self._share(version).hold(version.home)
        if not pinned or files.read_json(self._dir.dataset) is not None:
            return
        fetched = list[dict[str, Any]]()
        problem: str | None = None
        for version in pinned:
            with hold_lock(version.home / FILL_LOCK):
                if not rundir.is_complete(version.home):
                    problem = problem or self._fetch_version(version)
            if problem == "":
                return
            fetched.append(
                {
                    "folder": str(version.home),
                    "dataset": version.dataset_id,
                    "version": version.version,
                }
            )
        document = fetched[0]
        if len(fetched) > 1:
            document["others"] = fetched[1:]
        if problem is not None:
            document["problem"] = problem
        files.write_json(self._dir.dataset, document)

    def _share(self, version: PinnedVersion) -> SharedFolder:
        return self._shared.setdefault(version.home, SharedFolder(self._source))

    def _fetch_version(self, pinned: PinnedVersion) -> str | None:
        """Fetch a version.

        Return None on success, "" when the server has none, else the problem.
        """
        problem, name = "", pinned.dataset_id
        for _ in range(MAX_TRIES):
            try:
                described = self._described.get(name) or self._source.get_dataset(name)
                if described is None:
                    return ""
                self._described[name] = described
                self._fill_folder(pinned, described)
                return None
            except BlobGone as error:
                problem = f"the server has lost bytes of it ({error})"
            except (InvalidDataset, VersionError) as error:
                problem = f"the server's description of it is inconsistent: {error}"
            self._described.pop(name, None)
            self._share(pinned).discard(pinned.home / NEW_CONTENTS)
            log.warning("Dataset %s, version %s: %s", name, pinned.version, problem)
        return (
            f"cannot fetch version {pinned.version} of dataset {name!r}: {problem}; "
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
        contents, shared = home / NEW_CONTENTS, self._share(pinned)
        if not shared.is_proven(contents):
            self._source.fetch_contents(pinned.dataset_id, contents)
            check_contents(home / MANIFEST, contents, packs)
            shared.mark_proven(contents)
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
        self._share(pinned).place_file(target, sha256, size_bytes, copies=copies)

    def release(self) -> None:
        """Allow the folders to be removed, as ending the process does."""
        for shared in self._shared.values():
            shared.release()


def list_pinned_versions(folder: Path, files: Files = rundir) -> list[PinnedVersion]:
    """Return the versions that the attempt in ``folder`` needs; none for built-in data.

    That of the flow's own dataset is first.
    """
    run, placed = (
        files.read_json(AttemptDir(folder).run),
        files.read_json(AttemptDir(folder).placed),
    )
    if run is None or placed is None or not run.get("dataDir"):
        return []
    settings = _find_dataset_settings(run)
    further = [*settings.get("mixture", ()), settings.get("validationDataset")]
    return [
        PinnedVersion(
            organization_id=str(placed["organizationId"]),
            dataset_id=str(named.get("datasetId")),
            version=version,
            data_dir=Path(str(run["dataDir"])),
            limit_bytes=int(placed.get("datasetsBytes", DEFAULT_LIMIT_BYTES)),
        )
        for named in (settings, *filter(None, further))
        if isinstance(version := named.get("datasetVersion"), str) and _VERSION.fullmatch(version)
    ]


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
