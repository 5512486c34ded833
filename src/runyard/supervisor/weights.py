"""Fetches the weights of another run that this run starts from, before training starts.

They are stored in ``<data_dir>/weights/<organization>/<hash>/``, with ``model_full/`` and
``model_adapter/`` as in a checkpoint. The name is a hash over paths and contents, so every attempt
on this machine that starts from the same bytes shares them. The server lists the files;
``runyard.supervisor.shared`` documents how the folder is filled, held, and removed.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from runyard import rundir
from runyard.datasets.versions import is_sha256
from runyard.ids import MODEL_REFERENCE, resolve_folder
from runyard.ports import Files
from runyard.protocol import AttemptWeights, CheckpointFile
from runyard.rundir import AttemptDir
from runyard.supervisor.resume import BlobGone, is_checkpoint_path
from runyard.supervisor.shared import FILL_LOCK, SharedFolder, free_space, hold_lock, locate_blob

log = logging.getLogger(__name__)

FOLDER = "weights"
DEFAULT_LIMIT_BYTES = 100 << 30


class WeightsSource(Protocol):
    """The calls of the server that this module needs.

    Errors other than ``BlobGone`` may pass: retry later.
    """

    def get_weights(self) -> AttemptWeights | None: ...

    def fetch_blob(self, sha256: str, target: Path, /) -> None: ...


class WeightsFetcher:
    """Fetches the weights of one attempt, over as many calls as it takes."""

    def __init__(self, folder: Path, source: WeightsSource):
        self._dir, self._source = AttemptDir(folder), source
        self._shared = SharedFolder(source)

    def fetch(self, files: Files = rundir) -> None:
        """Fetch the weights and write ``weights.json``; do nothing if the run uses none of another
        run.

        If the server has lost them, ``problem`` says so there, and the trainer ends with it.

        Raises:
            OSError: the disk is full or failing, or bytes arrived damaged.
        """
        run, placed = files.read_json(self._dir.run), files.read_json(self._dir.placed)
        if run is None or placed is None or not run.get("dataDir") or not has_run_weights(run):
            return
        found = self._source.get_weights()
        if found is None:
            return
        document: dict[str, Any] = {"weights": found.weights}
        if all(is_checkpoint_path(file.path) and is_sha256(file.sha256) for file in found.files):
            data_dir, org = Path(str(run["dataDir"])), str(placed["organizationId"])
            name = rundir.weights_name((file.path, file.sha256) for file in found.files)
            home = resolve_folder(data_dir, FOLDER, org, name)
            document["folder"] = str(home)
            try:
                self._fill_folder(
                    home,
                    found.files,
                    data_dir,
                    org,
                    int(placed.get("weightsBytes", DEFAULT_LIMIT_BYTES)),
                )
            except BlobGone as error:
                document["problem"] = (
                    f"the server has lost bytes of {found.weights} ({error}); try: other weights"
                )
        else:
            document["problem"] = f"the server's list of the files of {found.weights} is invalid"
        files.write_json(self._dir.weights, document)

    def _fill_folder(
        self,
        home: Path,
        files: Sequence[CheckpointFile],
        data_dir: Path,
        org: str,
        limit_bytes: int,
    ) -> None:
        self._shared.hold(home)
        with hold_lock(home / FILL_LOCK):
            if rundir.is_complete(home):
                return
            free_space(data_dir / FOLDER, sum(file.size_bytes for file in files), limit_bytes)
            for file in files:
                target = home / file.path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                copies = [locate_blob(data_dir, org, file.sha256)]
                self._shared.place_file(target, file.sha256, file.size_bytes, copies=copies)
            for inner in (
                *(path for path in home.rglob("*") if path.is_dir()),
                home,
                home.parent,
                home.parent.parent,
            ):
                rundir.fsync_dir(inner)
            rundir.write_json(
                home / rundir.COMPLETE, {"sizes": {file.path: file.size_bytes for file in files}}
            )

    def release(self) -> None:
        """Allow the folder to be removed, as ending the process does."""
        self._shared.release()


def has_run_weights(run: dict[str, Any]) -> bool:
    """Return whether the flow in ``run.json`` names a checkpoint of another run as its weights."""
    try:
        blocks = run["run"]["spec"]["flow"]["blocks"]
        found = [
            block["settings"].get("architecture") or {}
            for block in blocks
            if "model" in block["block"]
        ]
        return any(
            MODEL_REFERENCE.fullmatch(str(architecture.get("weights"))) for architecture in found
        )
    except (KeyError, TypeError, AttributeError):
        return False
