"""The internal protocol: requests of controllers and supervisors, and the server's answers.

These documents never leave a deployment, so both sides are strict and names are snake_case. A
controller authenticates with the instance's controller key, or with the key of its machine, and may
only claim and manage attempts. A machine that joins has no key yet: an invitation stands for it. A
supervisor authenticates with its attempt token and may only act for that attempt.
``docs/run-lifecycle.md`` describes the order of the calls.

    POST /internal/v1/join                          a new machine: JoinRequest -> Joined
    POST /internal/v1/claims                        controller: Claim -> ClaimResult (long poll)
    GET  /internal/v1/machines/{machine_id}         controller: -> Placements (attempts placed here)
    PUT  /internal/v1/machines/{machine_id}         controller: MachineReport -> MachineInstructions
    POST /internal/v1/attempt/process               supervisor: ProcessReport -> DesiredState
    POST /internal/v1/attempt/renew                 supervisor: Renewal -> DesiredState
    POST /internal/v1/attempt/lines                 supervisor: Lines -> LinesAccepted
    HEAD /internal/v1/attempt/blobs/{sha256}        supervisor: 200 if the server has it, 404 if not
    PUT  /internal/v1/attempt/blobs/{sha256}        supervisor: the bytes -> 201
    POST /internal/v1/attempt/checkpoints           supervisor: CheckpointReport -> CheckpointsKept
    GET  /internal/v1/attempt/resume                supervisor: -> ResumeCandidates
    GET  /internal/v1/attempt/blobs/{sha256}        supervisor: the bytes of one of its files
    GET  /internal/v1/attempt/dataset?dataset=      supervisor: -> AttemptDataset (404: built in)
    GET  /internal/v1/attempt/weights               supervisor: -> AttemptWeights (404: none)
    GET  /internal/v1/attempt/dataset/contents?dataset=  supervisor: -> content spans, by line
    POST /internal/v1/attempt/finish                supervisor or reaper: ExitReport -> 204

The code ``LeaseLost`` (409) means that the attempt is closed and another may run, so its processes
must be killed at once. No answer is different: training continues, and its output stays in the run
folder.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runyard import limits
from runyard.limits import within
from vi.api.resources.runs.responses import Run

# Of the messages between machines and server. A machine with another number is refused by name.
PROTOCOL = 1
PROTOCOL_HEADER = "Runyard-Protocol"  # "<number> <version>" of a controller, with every request
LEASE_LOST = "LeaseLost"
# Prefix of an attempt's cause when the kernel killed its trainer for lack of memory
OUT_OF_MEMORY = "out of memory"
# The prefix when a supervisor was lost while the machine was out of memory: the killed process is
# unknown.
LOST_OUT_OF_MEMORY = "the supervisor was lost, and the kernel has run out of memory since it began"

# The prefix when one of several ranks was lost, which ended the others
RANK_LOST = "a rank was lost"

# Stored values have limits, see ``runyard.limits``. Free text has none here: the server truncates
# it.
StoredId = Annotated[str, within(limits.ID)]
Integer = Annotated[int, Meta(ge=0, le=limits.MAX_INTEGER)]
ColumnInteger = Annotated[int, Meta(ge=0, le=limits.MAX_COLUMN)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base class of every message: keyword-only, strict, texts within their limits in bytes."""

    def __post_init__(self) -> None:
        limits.check_fields(self)


class JoinRequest(Message):
    """A machine's request to join, with the token of an invitation.

    ``key`` is the key that the machine has generated for itself; a repeat has the same. ``name`` is
    what people call the machine; empty: its host.
    """

    token: Annotated[str, within(limits.ID)]
    machine_id: StoredId
    key: Annotated[str, within(limits.ID)]
    boot_id: Annotated[str, within(limits.BOOT_ID)]
    host: str
    version: str
    protocol: Integer
    name: str = ""


class Joined(Message):
    """The answer to a machine that has joined: its name, and the server's version."""

    machine_id: str
    name: str
    version: str
    protocol: int


class Claim(Message):
    """A request for work. A repeat with the same ``claim_id`` returns the same assignment.

    With ``lacks_disk`` nothing new is assigned; the matching runs report that they wait for disk
    space. ``accelerators`` are those that no run holds.
    """

    claim_id: StoredId
    machine_id: StoredId
    host: str
    slots: int
    labels: Annotated[dict[str, list[str]], within(limits.LABELS)] = {}
    wait_s: float = 20.0
    lacks_disk: bool = False
    accelerators: int = 0


class Assignment(Message):
    """One attempt to place: the frozen run, the lease's length, and the attempt's token.

    ``store_id`` (on the wire ``epoch``) is the store incarnation in which the attempt was claimed:
    after a restore, another attempt may have the same number. ``current_store_id``
    (``store_epoch``) is the present one: reports accepted by an earlier incarnation after the
    backup are lost. ``server_boot_id`` is the boot id of the server's machine, by which a
    controller knows whether it runs there too.
    """

    organization_id: str
    run_id: str
    attempt: int
    token: str
    lease_s: float
    grace_s: float
    run: Run
    resume_checkpoint: str | None = None
    store_id: str = msgspec.field(default="", name="epoch")
    current_store_id: str = msgspec.field(default="", name="store_epoch")
    server_boot_id: str = ""


class ClaimResult(Message):
    """The answer to a claim; no assignment means that none became available during the wait."""

    assignment: Assignment | None = None


class Placements(Message):
    """Every open attempt of one machine according to the server, with its token."""

    attempts: list[Assignment]


class Accelerator(Message):
    """Accelerators of one kind: ``cpu``, or a short name such as ``h100``, as tolerations use it.

    ``memory_gib`` is the memory of one of them, or main memory for ``cpu``; None if unknown.
    """

    name: Annotated[str, within(limits.HOST)]
    model: Annotated[str, within(limits.HOST)] = ""
    count: ColumnInteger = 1
    memory_gib: float | None = None


class RunName(Message):
    """A run of an organization."""

    organization_id: StoredId
    run_id: StoredId


class SelfTest(Message):
    """The outcome of a machine's self-test. ``id`` marks repeated reports of it."""

    passed: bool
    message: str
    id: Annotated[str, within(limits.ID)] = ""


class MachineReport(Message):
    """The capacity of a machine, sent with each request for placements; silence means the machine
    is gone.

    ``slots`` is how many runs it trains at once; None if not reported. ``run_folders`` are the runs
    with a folder there. If there are too many for one report, further ones follow, in which
    ``continues_folders`` is set. ``self_test`` is the outcome of one that the server has asked for.
    """

    host: str
    labels: Annotated[dict[str, list[str]], within(limits.LABELS)]
    accelerators: Annotated[list[Accelerator], within(limits.LABELS)]
    slots: Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_COLUMN)] | None = None
    run_folders: Annotated[list[RunName], within(limits.RUN_FOLDERS)] = []
    continues_folders: bool = False
    self_test: SelfTest | None = None


class RunRemoval(Message):
    """A run that was deleted, whose folder a machine must remove.

    With ``store_id`` only if every attempt in the folder was placed in this store incarnation: the
    server has no record of the run, so another incarnation may have one.
    """

    organization_id: str
    run_id: str
    store_id: str = ""


class MachineInstructions(Message):
    """The answer to a machine's report: what to remove, and whether to test itself."""

    remove: list[RunRemoval] = []
    self_test: bool = False


class ProcessReport(Message):
    """The identity of the supervisor. With this report the attempt starts to count."""

    machine_id: StoredId
    boot_id: Annotated[str, within(limits.BOOT_ID)]
    pid: Integer
    start_ticks: Integer


class Renewal(Message):
    """A lease renewal. ``phase`` is the trainer's last reported phase.

    ``note`` is a message for people about the attempt's current state; it becomes the condition's
    message.
    """

    phase: str | None = None
    note: str | None = None


class DesiredState(Message):
    """The desired state of the attempt.

    ``continue``; ``kill``: save and stop because the run was killed; ``stop``: save and stop, so
    that the run resumes on another machine.

    ``store_id`` (on the wire ``epoch``) is the store incarnation. A new value means that a backup
    was restored: the supervisor requests the server's offsets and ships again what came after them.
    """

    action: Literal["continue", "kill", "stop"] = "continue"
    store_id: str = msgspec.field(default="", name="epoch")
    lease_s: float = 15.0
    grace_s: float = 30.0


class Lines(Message):
    """Complete lines of one stream, from byte ``offset`` of its file up to ``next_offset``.

    The server accepts them only if ``offset`` is its own, so a repeat changes nothing.
    """

    stream: Literal["events", "stdout", "stderr", "system", "samples"]
    offset: Integer
    next_offset: Integer
    lines: list[str]


class LinesAccepted(Message):
    """The server's offset in that stream now; the supervisor continues from there."""

    offset: int


class CheckpointFile(Message):
    """One file of a checkpoint: its path inside the checkpoint folder, its length and its hash."""

    path: Annotated[str, within(limits.FILE_NAME, at_least=1)]
    size_bytes: Integer
    sha256: Sha256


class CheckpointReport(Message):
    """A verified checkpoint.

    Files below ``training_state/`` are for resuming and not for download.
    """

    checkpoint_id: StoredId
    step: Integer
    epoch: ColumnInteger
    metrics: dict[str, float]
    is_best: bool
    time: Integer
    files: Annotated[
        list[CheckpointFile], Meta(min_length=1, max_length=limits.CHECKPOINT_FILES.value)
    ]


class KeptCheckpoint(Message):
    """A checkpoint that the server lists, and the attempt that saved it."""

    attempt: int
    checkpoint_id: str


class CheckpointsKept(Message):
    """Every checkpoint of the run that is listed now; others may be removed everywhere."""

    kept: list[KeptCheckpoint]


class ResumeCheckpoint(Message):
    """A checkpoint to resume from.

    ``run_id`` is this run, or the other run that it resumes from.
    """

    run_id: str
    checkpoint_id: str
    step: int
    epoch: int
    time: int
    files: list[CheckpointFile]


class ResumeCandidates(Message):
    """The checkpoints an attempt may resume from, best first; empty on a fresh start."""

    checkpoints: list[ResumeCheckpoint]


class StoredBytes(Message):
    """A blob to fetch."""

    sha256: str
    size_bytes: int


class AttemptDataset(Message):
    """A dataset version that the run is pinned to: its manifest, and each blob with an image of it.

    ``size_bytes`` is the size of the images. Blobs may contain more; the contents give each image's
    location.
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
    """The weights that the run starts from, as the flow names them, and their files.

    They are a checkpoint of another run, or a base model in the layout of a checkpoint.
    """

    weights: str
    files: list[CheckpointFile]


class ExitReport(Message):
    """How the attempt ended; ``group_empty`` means that provably none of its processes is alive.

    ``result`` is the trainer's ``result.json``; None if there is none. ``store_id`` (on the wire
    ``epoch``) is the store incarnation that lines and checkpoints were shipped to. So the server
    rejects a report that relies on what a restore has undone.
    """

    exit_code: Annotated[int, Meta(ge=-limits.MAX_COLUMN, le=limits.MAX_COLUMN)] | None
    signal: str | None
    group_empty: bool
    cause: str
    time: Integer
    result: dict[str, Any] | None = None
    store_id: str = msgspec.field(default="", name="epoch")
