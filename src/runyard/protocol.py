"""What controller and supervisor say to the server, and what it answers.

These documents never leave a deployment, so they are strict on both sides and their names stay snake_case. A controller
authenticates with the controller key and may only claim and look after attempts; a supervisor authenticates with its
attempt token and may only speak for that one attempt. ``docs/run-lifecycle.md`` tells the story in order.

    POST /internal/v1/claims                        controller: Claim -> Claimed           (long poll)
    GET  /internal/v1/machines/{machine_id}         controller: -> Placed                  (what it should hold)
    PUT  /internal/v1/machines/{machine_id}         controller: MachineReport -> 204       (what the machine has)
    POST /internal/v1/attempt/process               supervisor: ProcessReport -> Wanted
    POST /internal/v1/attempt/renew                 supervisor: Renewal -> Wanted
    POST /internal/v1/attempt/lines                 supervisor: Lines -> LinesAccepted
    HEAD /internal/v1/attempt/blobs/{sha256}        supervisor: 200 when the server holds it, 404 when not
    PUT  /internal/v1/attempt/blobs/{sha256}        supervisor: the bytes -> 201
    POST /internal/v1/attempt/checkpoints           supervisor: CheckpointReport -> CheckpointsKept (after its bytes)
    GET  /internal/v1/attempt/resume                supervisor: -> Resumable               (what there is to go on from)
    GET  /internal/v1/attempt/blobs/{sha256}        supervisor: the bytes of one of its files
    GET  /internal/v1/attempt/dataset               supervisor: -> AttemptDataset          (404: built-in data)
    GET  /internal/v1/attempt/weights               supervisor: -> AttemptWeights          (404: none of another run)
    GET  /internal/v1/attempt/dataset/contents      supervisor: [content, blob, offset, size], a JSON line a picture
    POST /internal/v1/attempt/finish                supervisor, or the reaper with its token: ExitReport -> 204

A refusal carries the code ``LeaseLost`` (409): the attempt belongs to nobody or to somebody else now, so its process
must end at once. No answer at all is something else: the trainer goes on and its words wait in the run folder.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runyard import limits
from runyard.limits import within
from vi.api.resources.runs.responses import Run

CONTROLLER_HEADER = "Authorization"
LEASE_LOST = "LeaseLost"
OUT_OF_MEMORY = "out of memory"  # how the cause of an attempt begins whose trainer the kernel ended for that
# How it begins when a supervisor was lost on a machine that has run out of memory: nobody saw whom the kernel ended.
LOST_OUT_OF_MEMORY = "the supervisor was lost, and the kernel has run out of memory since it began"

# What is stored has limits, see ``runyard.limits``. Free texts have none here: the server cuts them.
StoredId = Annotated[str, within(limits.ID)]
Integer = Annotated[int, Meta(ge=0, le=limits.MAX_INTEGER)]
ColumnInteger = Annotated[int, Meta(ge=0, le=limits.MAX_COLUMN)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of every message: keyword-only, strict, texts within their limits in bytes."""

    def __post_init__(self) -> None:
        limits.check_fields(self)


class Claim(Message):
    """A controller offers room. Repeating a claim with the same ``claim_id`` returns the same assignment.

    One that ``lacks_disk`` is given nothing new; the runs that fit it say that they wait for space.
    """

    claim_id: StoredId
    machine_id: StoredId
    host: str
    slots: int
    labels: Annotated[dict[str, list[str]], within(limits.LABELS)] = {}
    wait_s: float = 20.0
    lacks_disk: bool = False


class Assignment(Message):
    """One attempt to place: the run as it was frozen, the lease's length, and the token that speaks for the attempt.

    ``epoch`` is that of the store when it was claimed: after a restore an attempt of the same number may be another.
    ``store_epoch`` is the store's own now: what was told to another one since the backup was made is forgotten.
    ``server_boot_id`` is that of the machine the server runs on, so that a controller knows whether it is there too.
    """

    organization_id: str
    run_id: str
    attempt: int
    token: str
    lease_s: float
    grace_s: float
    run: Run
    resume_checkpoint: str | None = None
    epoch: str = ""
    store_epoch: str = ""
    server_boot_id: str = ""


class Claimed(Message):
    """The answer to a claim; no assignment means that nothing came while we waited."""

    assignment: Assignment | None = None


class Placed(Message):
    """Every attempt the server believes open on one machine, with the tokens to report for them."""

    attempts: list[Assignment]


class Accelerator(Message):
    """Accelerators of one kind on a machine: ``cpu``, or a short name such as ``h100``, as tolerations name it.

    ``memory_gib`` is that of one of them; for the processor, what there is of main memory. None where it is not known.
    """

    name: Annotated[str, within(limits.HOST)]
    model: Annotated[str, within(limits.HOST)] = ""
    count: ColumnInteger = 1
    memory_gib: float | None = None


class MachineReport(Message):
    """What a machine has, told whenever its controller asks what it should hold, so that silence says it is gone.

    ``slots`` is how many runs it trains at once; None where that was not said.
    """

    host: str
    labels: Annotated[dict[str, list[str]], within(limits.LABELS)]
    accelerators: Annotated[list[Accelerator], within(limits.LABELS)]
    slots: Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_COLUMN)] | None = None


class ProcessReport(Message):
    """Who the supervisor is. Only now does the attempt count."""

    machine_id: StoredId
    boot_id: Annotated[str, within(limits.BOOT_ID)]
    pid: Integer
    start_ticks: Integer


class Renewal(Message):
    """The supervisor is alive. ``phase`` is what the trainer last said it was doing.

    ``note`` is something people should know about the attempt as it is now; it becomes the condition's message.
    """

    phase: str | None = None
    note: str | None = None


class Wanted(Message):
    """What shall become of the attempt now: go on, or save and stop because of a kill.

    ``epoch`` is the store's. When it is another than before, a backup has been restored: the supervisor asks where the
    server stands and sends again what came after.
    """

    action: Literal["continue", "kill"] = "continue"
    epoch: str = ""
    lease_s: float = 15.0
    grace_s: float = 30.0


class Lines(Message):
    """Whole lines of one stream, beginning at byte ``offset`` of its file and ending before ``next_offset``.

    The server takes them only if ``offset`` is where it stands, so a repeat changes nothing.
    """

    stream: Literal["events", "stdout", "stderr"]
    offset: Integer
    next_offset: Integer
    lines: list[str]


class LinesAccepted(Message):
    """Where the server stands in that stream now; the supervisor goes on from there."""

    offset: int


class CheckpointFile(Message):
    """One file of a checkpoint: its path inside the checkpoint folder, its length and its hash."""

    path: Annotated[str, within(limits.FILE_NAME, at_least=1)]
    size_bytes: Integer
    sha256: Sha256


class CheckpointReport(Message):
    """A proven checkpoint. Files below ``training_state/`` are for resuming and stay out of the download."""

    checkpoint_id: StoredId
    step: Integer
    epoch: ColumnInteger
    metrics: dict[str, float]
    is_best: bool
    time: Integer
    files: Annotated[list[CheckpointFile], Meta(min_length=1, max_length=limits.CHECKPOINT_FILES.value)]


class KeptCheckpoint(Message):
    """A checkpoint that the server lists, and the attempt that saved it."""

    attempt: int
    checkpoint_id: str


class CheckpointsKept(Message):
    """Every checkpoint of the run that is listed now; the others need not be kept anywhere."""

    kept: list[KeptCheckpoint]


class ResumeCheckpoint(Message):
    """A checkpoint to go on from. ``run_id`` says whose it is: the run's own, or that of the run it continues."""

    run_id: str
    checkpoint_id: str
    step: int
    epoch: int
    time: int
    files: list[CheckpointFile]


class Resumable(Message):
    """What an attempt may go on from, the best choice first; empty on a fresh start."""

    checkpoints: list[ResumeCheckpoint]


class StoredBytes(Message):
    """A blob to fetch."""

    sha256: str
    size_bytes: int


class AttemptDataset(Message):
    """The dataset's version that the run is pinned to: its manifest, and every blob that holds a picture of it.

    ``size_bytes`` is that of the pictures. Blobs may hold other things besides; where a picture lies, the contents say.
    """

    dataset_id: str
    version: str
    type: str
    assets: int
    records: int
    size_bytes: int
    manifest: StoredBytes
    packs: list[StoredBytes]


class AttemptWeights(Message):
    """The checkpoint of another run that the run takes its weights from, as the flow names it, and its files."""

    weights: str
    files: list[CheckpointFile]


class ExitReport(Message):
    """How the attempt's process ended, proven: ``group_empty`` says that nothing of it lives.

    ``result`` is ``result.json`` as the trainer left it, or None if it left none. ``epoch`` is the one that lines and
    checkpoints were told to, so that no last word is taken that stands on what a restore has undone.
    """

    exit_code: Annotated[int, Meta(ge=-limits.MAX_COLUMN, le=limits.MAX_COLUMN)] | None
    signal: str | None
    group_empty: bool
    cause: str
    time: Integer
    result: dict[str, Any] | None = None
    epoch: str = ""
