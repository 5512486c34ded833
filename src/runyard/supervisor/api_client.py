"""The supervisor's client of the server: one call per action, and the event that each answer means.

Only a lost lease closes the attempt: the code ``LeaseLost``, or a token that the server no longer
knows. Every other failure counts as unreachable and is retried later. The exception is a client
error about the item sent: that item is given up, so that it cannot block the rest.

Calls are not retried here: the lanes retry on their own schedule, perhaps with newer content. The
files of a checkpoint are the exception, because one lost answer must not restart a long upload.
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
    DesiredState,
    ExitReport,
    Lines,
    LinesAccepted,
    ProcessReport,
    Renewal,
    ResumeCandidates,
    ResumeCheckpoint,
)
from runyard.rundir import AttemptDir, CheckpointDir
from runyard.supervisor import messages as msg
from runyard.supervisor.datasets import DatasetFetcher
from runyard.supervisor.resume import BlobGone, prepare_resume
from runyard.supervisor.weights import WeightsFetcher
from vi._http import NO_RETRY, Http, RetryPolicy, Trust
from vi.errors import ViError, ViInvalidParameterError

BLOB_MISSING, NOT_FOUND, INVALID_FLOW = "BlobMissing", "NotFound", "InvalidFlow"
ROOT = "/internal/v1/attempt"
CALL_TIMEOUT_S = 10.0
BYTES_TIMEOUT_S = 120.0
FILE_RETRY = RetryPolicy(max_retries=3, base_delay_s=0.2, max_delay_s=2.0)
_PASSING_STATUS = (408, 425, 429)  # client errors that say "later", not "never"


class AttemptClient:
    """A client with the token of one attempt.

    Thread-safe: each lane calls from its own thread.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        token: str,
        folder: Path,
        server_file: Path | None = None,
        trust: Trust = Trust(),
    ):
        self._folder, self._dir = folder, AttemptDir(folder)
        self._token, self._server_file = token, server_file
        self._stored_blobs: set[str] = set()  # hashes known to be on the server
        self._http = self._connect(endpoint, trust)
        self._dataset_fetcher = DatasetFetcher(folder, self)
        self._weights_fetcher = WeightsFetcher(folder, self)

    def _connect(self, endpoint: str, trust: Trust) -> Http:
        headers = {"Authorization": f"Bearer {self._token}"}
        self._certificate = _read_certificate(trust)
        return Http(
            endpoint, headers=headers, timeout_s=CALL_TIMEOUT_S, retry=NO_RETRY, trust=trust
        )

    def _interpret_error(self, error: ViError, lane: msg.Lane, *, what: str | None) -> msg.Event:
        """Return the event that a failure means.

        ``what`` names the item sent, if the server may reject it for good.
        """
        if error.code == LEASE_LOST or (error.status_code == 401 and error.code is not None):
            return msg.LeaseLost()
        if what is not None and isinstance(error, ViInvalidParameterError):
            # JSON cannot represent it, so no retry helps
            return msg.UploadRejected(lane, what, error.message)
        status = error.status_code or 0
        if what is not None and 400 <= status < 500 and status not in (401, *_PASSING_STATUS):
            return msg.UploadRejected(lane, what, error.message)
        if error.status_code is None:
            self._follow_server()
        return msg.ServerUnreachable(lane)

    def _follow_server(self) -> None:
        """Use the server's current endpoint, which its file names if it runs on this machine.

        A server that was restarted may also present another certificate.
        """
        document = rundir.read_json(self._server_file) if self._server_file else None
        endpoint = document.get("endpoint") if document else None
        if not document or not isinstance(endpoint, str):
            return
        trust = Trust(certificate=str(document.get("certificate") or ""))
        if (
            endpoint.rstrip("/") != self._http.endpoint.rstrip("/")
            or trust.certificate != self._http.trust.certificate
            or _read_certificate(trust) != self._certificate
        ):
            self._http = self._connect(endpoint, trust)  # other lanes may still use the old one

    def announce(self, report: ProcessReport) -> msg.Event:
        try:
            return msg.Announced(
                self._http.call("POST", f"{ROOT}/process", body=report, decode_as=DesiredState)
            )
        except ViError as error:
            return self._interpret_error(error, "reports", what=None)

    def renew(self, phase: str | None, note: str | None = None) -> msg.Event:
        body = Renewal(phase=phase, note=note)
        try:
            return msg.LeaseRenewed(
                self._http.call("POST", f"{ROOT}/renew", body=body, decode_as=DesiredState)
            )
        except ViError as error:
            return self._interpret_error(error, "lease", what=None)

    def ship_lines(self, action: msg.ShipLines) -> msg.Event:
        body = Lines(
            stream=action.stream,
            offset=action.offset,
            next_offset=action.next_offset,
            lines=list(action.lines),
        )
        try:
            accepted = self._http.call("POST", f"{ROOT}/lines", body=body, decode_as=LinesAccepted)
        except ViError as error:
            return self._interpret_error(error, "reports", what=action.stream)
        return msg.LinesShipped(action.stream, accepted.offset)

    def store_checkpoint(self, name: str) -> msg.Event:
        """Upload the files of a checkpoint that the server lacks, then register the checkpoint."""
        checkpoint = self._dir.checkpoints / name
        manifest = rundir.read_json(CheckpointDir(checkpoint).manifest)
        if manifest is None:
            return msg.UploadRejected(
                "transfers", name, "it was removed from the run folder before it could be sent"
            )
        try:
            report = build_checkpoint_report(manifest)
            for file in report.files:
                self._store_blob(checkpoint / file.path, file.sha256)
            answer = self._http.call(
                "POST",
                f"{ROOT}/checkpoints",
                body=report,
                timeout_s=BYTES_TIMEOUT_S,
                decode_as=CheckpointsKept,
            )
        except ViError as error:
            # Garbage-collected between the two calls: upload everything again
            if error.code == BLOB_MISSING:
                self._stored_blobs.clear()
                return msg.ServerUnreachable("transfers")
            return self._interpret_error(error, "transfers", what=name)
        except (OSError, KeyError, TypeError, ValueError) as error:
            return msg.UploadRejected("transfers", name, f"it cannot be read: {error!r}")
        return msg.CheckpointStored(
            name, tuple((kept.attempt, kept.checkpoint_id) for kept in answer.kept)
        )

    def list_resume_candidates(self) -> list[ResumeCheckpoint]:
        """Return the checkpoints that the attempt may resume from.

        Raises:
            ViError: the call failed.
        """
        return self._http.call("GET", f"{ROOT}/resume", decode_as=ResumeCandidates).checkpoints

    def fetch_blob(self, sha256: str, target: Path) -> None:
        """Fetch one file of a checkpoint, of weights, or of a dataset, without retries.

        Raises:
            BlobGone: the server has lost it.
            ViError: the call failed.
        """
        self._fetch_to_file(f"{ROOT}/blobs/{sha256}", target, name=sha256)

    def get_dataset(self, dataset_id: str) -> AttemptDataset | None:
        """Return the version of a dataset that the run is pinned to; None if it is to none.

        Raises:
            BlobGone: the server has lost bytes of it.
            ViError: the call failed.
        """
        try:
            return self._http.call(
                "GET",
                f"{ROOT}/dataset",
                params={"dataset": dataset_id},
                decode_as=AttemptDataset,
            )
        except ViError as error:
            if error.code == BLOB_MISSING:
                raise BlobGone(error.message) from error
            if error.code == NOT_FOUND:
                return None
            raise

    def get_weights(self) -> AttemptWeights | None:
        """Return the weights that this run starts from; None if the server has none.

        Raises:
            BlobGone: the server cannot send them.
            ViError: the call failed.
        """
        try:
            return self._http.call("GET", f"{ROOT}/weights", decode_as=AttemptWeights)
        except ViError as error:
            if error.code == NOT_FOUND:
                return None
            if error.code == INVALID_FLOW:
                raise BlobGone("weights", error.message) from error
            raise

    def fetch_contents(self, dataset_id: str, target: Path) -> None:
        """Fetch the locations of the images of the dataset's version.

        Raises:
            BlobGone: the server has lost them.
            ViError: the call failed.
        """
        address = f"{ROOT}/dataset/contents?dataset={dataset_id}"
        self._fetch_to_file(address, target, name="the list of contents")

    def _fetch_to_file(self, address: str, target: Path, *, name: str) -> None:
        try:
            with target.open("wb") as file:
                self._http.fetch(
                    "GET", address, file.write, on_length=lambda _: None, timeout_s=BYTES_TIMEOUT_S
                )
        except ViError as error:
            if error.code in (BLOB_MISSING, NOT_FOUND):
                raise BlobGone(name, error.message) from error
            raise

    def prepare_attempt(self, files: Files) -> msg.Event:
        """Find and fetch the checkpoint to resume from, the weights to start from, and the data.

        Raises:
            OSError: the disk is full or failing.
        """
        try:
            prepare_resume(self._folder, self, files=files)
            self._weights_fetcher.fetch(files)
            self._dataset_fetcher.fetch(files)
        except ViError as error:
            return self._interpret_error(error, "transfers", what=None)
        return msg.AttemptPrepared()

    def _store_blob(self, path: Path, sha256: str) -> None:
        address = f"{ROOT}/blobs/{sha256}"
        if sha256 in self._stored_blobs:
            return
        if not self._http.exists(address, retry=FILE_RETRY):
            self._http.put_file(address, path, timeout_s=BYTES_TIMEOUT_S, retry=FILE_RETRY)
        self._stored_blobs.add(sha256)

    def report(
        self,
        ended: msg.ExitStatus,
        *,
        time_ms: int,
        result: dict[str, Any] | None,
        store_id: str = "",
    ) -> msg.Event:
        body = ExitReport(
            exit_code=ended.exit_code,
            signal=ended.signal,
            group_empty=ended.group_empty,
            cause=ended.cause,
            time=time_ms,
            result=result,
            store_id=store_id,
        )
        is_last = ended.group_empty
        try:
            self._http.call("POST", f"{ROOT}/finish", body=body)
        except ViError as error:
            return self._interpret_error(error, "reports", what=msg.REPORT if is_last else None)
        return msg.ReportAccepted(is_last)


def _read_certificate(trust: Trust) -> bytes:
    """Return the certificate that a server on this machine presents; empty without one."""
    try:
        return Path(trust.certificate).read_bytes() if trust.certificate else b""
    except OSError:
        return b""


def build_checkpoint_report(manifest: dict[str, Any]) -> CheckpointReport:
    """Return the protocol's message for a manifest that the trainer has written.

    Raises:
        InvalidId: a file would be read from outside the checkpoint's folder, or the server would
            reject the id.
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
        files=[
            CheckpointFile(path=f["path"], size_bytes=f["sizeBytes"], sha256=f["sha256"])
            for f in files
        ],
    )
