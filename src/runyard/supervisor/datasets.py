"""The run's dataset, brought to this machine before the trainer begins.

A version lies at ``<data_dir>/datasets/<organization>/<version>/`` and serves every attempt on this machine that needs
it (``runyard.datasets.versions`` says what is in it, ``runyard.supervisor.shared`` how it is filled, held and removed).
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
    is_hash,
    read_contents,
    read_manifest,
)
from runyard.ids import resolve_folder
from runyard.ports import Files
from runyard.protocol import AttemptDataset
from runyard.supervisor.resume import Gone
from runyard.supervisor.shared import BRING_LOCK, SharedFolder, blob_path, fsync, locked, make_room

log = logging.getLogger(__name__)

FOLDER = "datasets"
NEW_CONTENTS = f".{CONTENTS}"
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
        return resolve_folder(self.data_dir, FOLDER, self.organization_id, self.version)


class Unfit(Exception):
    """What the server says of the version does not fit together."""


class Bringer:
    """Brings the dataset of one attempt, in as many tries as it takes."""

    def __init__(self, folder: Path, source: Source):
        self._folder, self._source = folder, source
        self._shared = SharedFolder(source)
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
                self._shared.hold(wanted.home)
            return
        told: dict[str, Any] = {"folder": str(wanted.home), "dataset": wanted.dataset_id, "version": wanted.version}
        self._shared.hold(wanted.home)
        with locked(wanted.home / BRING_LOCK):
            if not rundir.is_complete(wanted.home):
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
            self._shared.doubt(wanted.home / NEW_CONTENTS)
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
        if not self._shared.is_proven(contents):
            self._source.fetch_contents(contents)
            check_contents(home / MANIFEST, contents, packs)
            self._shared.prove(contents)
        for sha256, size_bytes in packs.items():
            self._place(wanted, home / PACKS / sha256, sha256, size_bytes)
        for path in (home / PACKS).iterdir():
            if path.name not in packs:  # of an earlier ask, or half a file
                path.unlink()
        fsync(contents)
        os.replace(contents, home / CONTENTS)
        for folder in (home / PACKS, home, home.parent, home.parent.parent):
            rundir.fsync_dir(folder)
        sizes = {MANIFEST: told.manifest.size_bytes, CONTENTS: (home / CONTENTS).stat().st_size}
        sizes |= {f"{PACKS}/{sha256}": size_bytes for sha256, size_bytes in packs.items()}
        rundir.write_json(home / rundir.COMPLETE, {"version": wanted.version, "sizes": sizes})

    def _place(self, wanted: Wanted, target: Path, sha256: str, size_bytes: int) -> None:
        siblings = (home / PACKS / sha256 for home in wanted.home.parent.iterdir() if home != wanted.home)
        copies = (blob_path(wanted.data_dir, wanted.organization_id, sha256), *siblings)
        self._shared.place(target, sha256, size_bytes, copies=copies)

    def release(self) -> None:
        """Let the folder be removed; ending the process does the same."""
        self._shared.release()


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


def _dataset_settings(run: dict[str, Any]) -> dict[str, Any]:
    try:
        blocks = run["run"]["spec"]["flow"]["blocks"]
        return next((block["settings"] for block in blocks if block["block"] == "vi-dataset"), {})
    except (KeyError, TypeError):
        return {}
