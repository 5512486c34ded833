"""The checkpoint of another run that this run begins from, fetched to this machine before the trainer begins.

It is at ``<data_dir>/weights/<organization>/<hash>/``, with ``model_full/`` and ``model_adapter/`` as a checkpoint has
them, named by a hash over paths and contents, and serves every attempt on this machine that begins from the same bytes.
``runyard.supervisor.shared`` says how it is filled, held and removed. The server says which files they are.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from runyard import rundir
from runyard.datasets.versions import is_hash
from runyard.ids import MODEL_REFERENCE, resolve_folder
from runyard.ports import Files
from runyard.protocol import AttemptWeights, CheckpointFile
from runyard.supervisor.resume import Gone, is_inside
from runyard.supervisor.shared import BRING_LOCK, SharedFolder, blob_path, locked, make_room

log = logging.getLogger(__name__)

FOLDER = "weights"
DEFAULT_LIMIT_BYTES = 100 << 30


class Source(Protocol):
    """The server, as far as this module needs it. What is raised other than ``Gone`` passes: try again later."""

    def weights(self) -> AttemptWeights | None: ...

    def fetch(self, sha256: str, target: Path, /) -> None: ...


class WeightsFetcher:
    """Fetches the weights of one attempt, in as many tries as it takes."""

    def __init__(self, folder: Path, source: Source):
        self._folder, self._source = folder, source
        self._shared = SharedFolder(source)

    def fetch(self, files: Files = rundir) -> None:
        """Fetch the weights and write ``weights.json``; nothing for a run that takes none of another run.

        Weights that the server has lost are reported there as ``problem``, for the trainer to end with.

        Raises:
            OSError: the disk does not take them, or bytes arrived damaged.
        """
        run, placed = files.read_json(self._folder / rundir.RUN), files.read_json(self._folder / rundir.PLACED)
        if run is None or placed is None or not run.get("dataDir") or not names_run(run):
            return
        offered = self._source.weights()
        if offered is None:
            return
        document: dict[str, Any] = {"weights": offered.weights}
        if all(is_inside(file.path) and is_hash(file.sha256) for file in offered.files):
            data_dir, org = Path(str(run["dataDir"])), str(placed["organizationId"])
            name = rundir.weights_name((file.path, file.sha256) for file in offered.files)
            home = resolve_folder(data_dir, FOLDER, org, name)
            document["folder"] = str(home)
            try:
                self._fill(home, offered.files, data_dir, org, int(placed.get("weightsBytes", DEFAULT_LIMIT_BYTES)))
            except Gone as error:
                document["problem"] = f"the server has lost bytes of {offered.weights} ({error}); begin from others"
        else:
            document["problem"] = f"the server's list of the files of {offered.weights} does not fit together"
        files.write_json(self._folder / rundir.WEIGHTS, document)

    def _fill(self, home: Path, files: Sequence[CheckpointFile], data_dir: Path, org: str, limit_bytes: int) -> None:
        self._shared.hold(home)
        with locked(home / BRING_LOCK):
            if rundir.is_complete(home):
                return
            make_room(data_dir / FOLDER, sum(file.size_bytes for file in files), limit_bytes)
            for file in files:
                target = home / file.path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                copies = [blob_path(data_dir, org, file.sha256)]
                self._shared.place(target, file.sha256, file.size_bytes, copies=copies)
            for inner in (*(path for path in home.rglob("*") if path.is_dir()), home, home.parent, home.parent.parent):
                rundir.fsync_dir(inner)
            rundir.write_json(home / rundir.COMPLETE, {"sizes": {file.path: file.size_bytes for file in files}})

    def release(self) -> None:
        """Allow the folder to be removed, as ending the process does."""
        self._shared.release()


def names_run(run: dict[str, Any]) -> bool:
    """Whether the flow in ``run.json`` names a checkpoint of another run as its weights."""
    try:
        blocks = run["run"]["spec"]["flow"]["blocks"]
        found = [block["settings"].get("architecture") or {} for block in blocks if "model" in block["block"]]
        return any(MODEL_REFERENCE.fullmatch(str(architecture.get("weights"))) for architecture in found)
    except (KeyError, TypeError, AttributeError):
        return False
