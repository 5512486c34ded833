"""Fetches the weights that a run starts from, before training starts.

They are another run's checkpoint, or a base model that this machine's model folders lack. They are
stored in ``<data_dir>/weights/<organization>/<hash>/``, or ``base-<hash>/`` for a base model, with
``model_full/`` and ``model_adapter/`` as in a checkpoint. The name is a hash over paths and
contents, so every attempt on this machine that starts from the same bytes shares them. The server
lists the files; ``runyard.supervisor.shared`` documents how the folder is filled, held, and
removed.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from runyard import rundir
from runyard.datasets.versions import is_sha256
from runyard.ids import MODEL_REFERENCE, resolve_folder
from runyard.model_folders import ModelFolders
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
        self._shared, self._home = SharedFolder(source), Path()
        self._damaged = 0  # files of a base model that arrived with other bytes than listed

    def fetch(self, files: Files = rundir) -> None:
        """Fetch the weights and write ``weights.json``; do nothing if the run needs none.

        If the server has lost them, ``problem`` says so there, and the trainer ends with it.

        Raises:
            OSError: the disk is full or failing, or bytes arrived damaged.
        """
        run, placed = files.read_json(self._dir.run), files.read_json(self._dir.placed)
        if run is None or placed is None or not run.get("dataDir"):
            return
        base = None if has_run_weights(run) else find_missing_model(run)
        if base is None and not has_run_weights(run):
            return
        try:
            found = self._source.get_weights()
        except BlobGone as error:
            files.write_json(self._dir.weights, {"weights": base, "problem": error.reason})
            return
        if found is None:
            return
        document: dict[str, Any] = {"weights": found.weights}
        if all(is_checkpoint_path(file.path) and is_sha256(file.sha256) for file in found.files):
            data_dir, org = Path(str(run["dataDir"])), str(placed["organizationId"])
            name = rundir.weights_name((file.path, file.sha256) for file in found.files)
            prefix = "" if base is None else rundir.BASE_MODEL_PREFIX
            home = resolve_folder(data_dir, FOLDER, org, f"{prefix}{name}")
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
                    if base is None
                    else error.reason
                )
            except ConnectionError as error:
                # Bytes that are damaged on the way arrive intact the next time.
                self._damaged += 1
                if base is None or self._damaged == 1:
                    raise
                document["problem"] = (
                    f"model {base!r} has changed on the server's machine while it was fetched "
                    f"({error}); try: start the run again once the model is complete"
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
        if home != self._home:  # a base model may have changed since an interrupted fetch
            self._shared.release()
            self._shared, self._home = SharedFolder(self._source), home
        self._shared.hold(home)
        with hold_lock(home / FILL_LOCK):
            if rundir.is_complete(home):
                return
            size_bytes = sum(file.size_bytes for file in files)
            free_space(data_dir / FOLDER, size_bytes, limit_bytes)
            log.info("fetching %d files of weights, %d MiB", len(files), size_bytes >> 20)
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
    return any(
        MODEL_REFERENCE.fullmatch(str(architecture.get("weights")))
        for architecture in _list_architectures(run)
    )


def find_missing_model(run: dict[str, Any]) -> str | None:
    """Return the base model of the flow in ``run.json`` if this machine lacks it or its base."""
    if not any(_list_architectures(run)):
        return None  # most runs: the built-in model, without an import of the flow language
    from runyard.base_models import ModelMissing, UnreadableModel, get_base_weights, locate_model
    from runyard.flows import FlowProblems, resolve

    folders = ModelFolders(
        tuple(Path(str(path)) for path in run.get("modelFolders") or ()), Path(str(run["dataDir"]))
    )
    try:
        weights = get_base_weights(resolve(run["run"]["spec"]["flow"]).model.architecture)
        if weights is not None:
            locate_model(weights, folders)
    except ModelMissing:
        return weights
    except (FlowProblems, UnreadableModel):  # the trainer reports them
        pass
    return None


def _list_architectures(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of the flow in ``run.json`` that choose the model."""
    try:
        blocks = run["run"]["spec"]["flow"]["blocks"]
        found = [
            block["settings"].get("architecture") for block in blocks if "model" in block["block"]
        ]
    except (KeyError, TypeError, AttributeError):
        return []
    return [architecture for architecture in found if isinstance(architecture, dict)]
