"""What a supervisor says to the server, one call an action, and what each answer means to it.

Only one word of the server ends an attempt: a refusal, which is the code ``LeaseLost`` or a token the server does not
know any more. Everything else that is no success counts as unreachable and is tried again later, except what is plainly
wrong with the thing itself (a client error): that one thing is given up, so that it cannot hold up the rest.

There are no retries down here: the lanes try again by their own clock, and the next try may have newer things to say.
The files of a checkpoint are the exception: there are many of them, and one lost answer shall not begin them all anew.
"""

from pathlib import Path
from typing import Any

from runyard import rundir
from runyard.ids import check_id, check_paths
from runyard.ports import Files
from runyard.protocol import (
    LEASE_LOST,
    AttemptDataset,
    AttemptWeights,
    CheckpointFile,
    CheckpointReport,
    CheckpointsKept,
    ExitReport,
    Lines,
    LinesAccepted,
    ProcessReport,
    Renewal,
    Resumable,
    ResumeCheckpoint,
    Wanted,
)
from runyard.supervisor import messages as mv
from runyard.supervisor.datasets import Bringer
from runyard.supervisor.resume import Gone, prepare
from runyard.supervisor.weights import WeightsFetcher
from vi._http import NO_RETRY, Http, RetryPolicy
from vi.errors import ViError, ViInvalidParameterError

BLOB_MISSING, NOT_FOUND = "BlobMissing", "NotFound"
ROOT = "/internal/v1/attempt"
CALL_TIMEOUT_S = 10.0
BYTES_TIMEOUT_S = 120.0
FILE_RETRY = RetryPolicy(max_retries=3, base_delay_s=0.2, max_delay_s=2.0)
_PASSING_STATUS = (408, 425, 429)  # client errors that say "later", not "never"


class Server:
    """The server, spoken to with the token of one attempt. Thread-safe: each lane calls from a thread of its own."""

    def __init__(self, endpoint: str, *, token: str, folder: Path, server_file: Path | None = None):
        self._folder, self._token, self._server_file = folder, token, server_file
        self._held: set[str] = set()  # what the server is known to hold
        self._http = self._open(endpoint)
        self._bringer = Bringer(folder, self)
        self._weights = WeightsFetcher(folder, self)

    def _open(self, endpoint: str) -> Http:
        headers = {"Authorization": f"Bearer {self._token}"}
        return Http(endpoint, headers=headers, timeout_s=CALL_TIMEOUT_S, retry=NO_RETRY)

    def _failed(self, error: ViError, lane: mv.Lane, *, what: str | None) -> mv.Input:
        """What a failure means; ``what`` names the thing sent, where the server could refuse it for good."""
        if error.code == LEASE_LOST or (error.status_code == 401 and error.code is not None):
            return mv.Refused()
        if what is not None and isinstance(error, ViInvalidParameterError):
            return mv.Rejected(lane, what, error.message)  # JSON cannot carry it, so it would never be sent
        status = error.status_code or 0
        if what is not None and 400 <= status < 500 and status not in (401, *_PASSING_STATUS):
            return mv.Rejected(lane, what, error.message)
        if error.status_code is None:
            self._follow()
        return mv.Unreachable(lane)

    def _follow(self) -> None:
        """The server may have come back elsewhere: it says where in its own file, if that is on this machine."""
        said = rundir.read_json(self._server_file) if self._server_file else None
        endpoint = said.get("endpoint") if said else None
        if isinstance(endpoint, str) and endpoint.rstrip("/") != self._http.endpoint.rstrip("/"):
            self._http = self._open(endpoint)  # the old one is left to calls that other lanes may be making

    def announce(self, report: ProcessReport) -> mv.Input:
        try:
            return mv.Announced(self._http.call("POST", f"{ROOT}/process", body=report, decode_as=Wanted))
        except ViError as error:
            return self._failed(error, "words", what=None)

    def renew(self, phase: str | None, note: str | None = None) -> mv.Input:
        body = Renewal(phase=phase, note=note)
        try:
            return mv.Renewed(self._http.call("POST", f"{ROOT}/renew", body=body, decode_as=Wanted))
        except ViError as error:
            return self._failed(error, "lease", what=None)

    def ship(self, action: mv.ShipLines) -> mv.Input:
        body = Lines(
            stream=action.stream, offset=action.offset, next_offset=action.next_offset, lines=list(action.lines)
        )
        try:
            accepted = self._http.call("POST", f"{ROOT}/lines", body=body, decode_as=LinesAccepted)
        except ViError as error:
            return self._failed(error, "words", what=action.stream)
        return mv.LinesAccepted(action.stream, accepted.offset)

    def store(self, name: str) -> mv.Input:
        """Send the files of a checkpoint that the server does not hold yet, then say that it is there."""
        checkpoint = self._folder / rundir.CHECKPOINTS / name
        manifest = rundir.read_json(checkpoint / rundir.MANIFEST)
        if manifest is None:
            return mv.Rejected("bytes", name, "it was removed from the run folder before it could be sent")
        try:
            report = checkpoint_report(manifest)
            for file in report.files:
                self._store_file(checkpoint / file.path, file.sha256)
            answer = self._http.call(
                "POST", f"{ROOT}/checkpoints", body=report, timeout_s=BYTES_TIMEOUT_S, decode_as=CheckpointsKept
            )
        except ViError as error:
            if error.code == BLOB_MISSING:  # collected between our two calls: send everything again
                self._held.clear()
                return mv.Unreachable("bytes")
            return self._failed(error, "bytes", what=name)
        except (OSError, KeyError, TypeError, ValueError) as error:
            return mv.Rejected("bytes", name, f"it cannot be read: {error!r}")
        return mv.CheckpointStored(name, tuple((kept.attempt, kept.checkpoint_id) for kept in answer.kept))

    def resumable(self) -> list[ResumeCheckpoint]:
        """What there is to go on from. Raises ViError."""
        return self._http.call("GET", f"{ROOT}/resume", decode_as=Resumable).checkpoints

    def fetch(self, sha256: str, target: Path) -> None:
        """Fetch one file of a checkpoint, of weights or of a dataset, in one try.

        Raises Gone when the server has it no more, ViError otherwise.
        """
        self._fetch(f"{ROOT}/blobs/{sha256}", target, name=sha256)

    def dataset(self) -> AttemptDataset | None:
        """The version of a dataset that the run is pinned to; None for built-in data. Raises Gone, ViError."""
        try:
            return self._http.call("GET", f"{ROOT}/dataset", decode_as=AttemptDataset)
        except ViError as error:
            if error.code == BLOB_MISSING:
                raise Gone(error.message) from error
            if error.code == NOT_FOUND:
                return None
            raise

    def weights(self) -> AttemptWeights | None:
        """Return the files of another run that this run begins from; None when there are none. Raises ViError."""
        try:
            return self._http.call("GET", f"{ROOT}/weights", decode_as=AttemptWeights)
        except ViError as error:
            if error.code == NOT_FOUND:
                return None
            raise

    def fetch_contents(self, target: Path) -> None:
        """Fetch where the pictures of that version lie. Raises Gone, ViError."""
        self._fetch(f"{ROOT}/dataset/contents", target, name="the list of contents")

    def _fetch(self, address: str, target: Path, *, name: str) -> None:
        try:
            with target.open("wb") as file:
                self._http.fetch("GET", address, file.write, on_length=lambda _: None, timeout_s=BYTES_TIMEOUT_S)
        except ViError as error:
            if error.code in (BLOB_MISSING, NOT_FOUND):
                raise Gone(name) from error
            raise

    def prepare(self, files: Files) -> mv.Input:
        """Find and fetch what this attempt resumes from, the weights it begins from, and its dataset.

        Raises OSError when the disk does not take it.
        """
        try:
            prepare(self._folder, self, files=files)
            self._weights.fetch(files)
            self._bringer.bring(files)
        except ViError as error:
            return self._failed(error, "bytes", what=None)
        return mv.Prepared()

    def _store_file(self, path: Path, sha256: str) -> None:
        address = f"{ROOT}/blobs/{sha256}"
        if sha256 in self._held:
            return
        if not self._http.exists(address, retry=FILE_RETRY):
            self._http.put_file(address, path, timeout_s=BYTES_TIMEOUT_S, retry=FILE_RETRY)
        self._held.add(sha256)

    def report(self, ended: mv.Exit, *, time_ms: int, result: dict[str, Any] | None, epoch: str = "") -> mv.Input:
        body = ExitReport(
            exit_code=ended.exit_code,
            signal=ended.signal,
            group_empty=ended.group_empty,
            cause=ended.cause,
            time=time_ms,
            result=result,
            epoch=epoch,
        )
        is_last = ended.group_empty
        try:
            self._http.call("POST", f"{ROOT}/finish", body=body)
        except ViError as error:
            return self._failed(error, "words", what=mv.REPORT if is_last else None)
        return mv.ReportAccepted(is_last)


def checkpoint_report(manifest: dict[str, Any]) -> CheckpointReport:
    """Return a manifest, as the trainer writes it, in the words of the protocol.

    Raises:
        InvalidId: a file would be read from outside the checkpoint's folder, or the server would reject the id.
        KeyError, TypeError, ValueError: it is not a manifest.
    """
    files = manifest["files"]
    check_id("checkpoint", manifest["checkpoint"])
    check_paths(file["path"] for file in files)
    return CheckpointReport(
        checkpoint_id=manifest["checkpoint"],
        step=manifest["step"],
        epoch=int(manifest.get("epoch", 0)),
        metrics=manifest.get("metrics") or {},
        is_best=bool(manifest.get("isBest")),
        time=manifest["time"],
        files=[CheckpointFile(path=f["path"], size_bytes=f["sizeBytes"], sha256=f["sha256"]) for f in files],
    )
