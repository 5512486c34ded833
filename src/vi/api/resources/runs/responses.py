"""Runs on the wire: one execution of a frozen flow.

``spec`` is what was asked for and only users write it; ``status`` is what was seen and only the platform writes it.
``status.conditions`` is the history of the run, one entry per transition, most recent last.
"""

from typing import Any, Literal

import msgspec

from vi.api.resources.flows.responses import FlowSpec
from vi.api.responses import ConditionKind, Document, ResourceCondition, ResourceMetadata


class ResumeFrom(Document):
    """The checkpoint a run goes on from, as it was found when the run was made: never ``latest`` or ``best``."""

    run_id: str
    checkpoint: str
    step: int = 0
    epoch: int = 0


class RunSpec(Document):
    """What was asked for: the flow as it was when the run was made, and whether the run shall end early.

    ``grace_seconds`` is what a kill gives it to save and stop; without it the flow's or the platform's own holds.
    ``resume_from`` is None for a run that begins from nothing.
    """

    flow: FlowSpec = msgspec.field(default_factory=FlowSpec)
    killed_at: int | None = None
    grace_seconds: float | None = None
    training_project: str | None = None
    resume_from: ResumeFrom | None = None


class RunProgress(Document):
    """Where training stands, as last reported by the trainer.

    ``metric`` and ``metric_name`` are those of the newest evaluation. ``seconds_left`` estimates training alone and
    respects the run's time limit; it is None unless the run is running.
    """

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    metric_name: str | None = None
    metric: float | None = None
    seconds_left: float | None = None


class RunAttempt(Document):
    """One try at a run: where and when it ran, and how it ended (``cause`` is empty while it runs).

    ``micro_batch_size`` is how many samples at once it trained with last; memory may have made it smaller.
    """

    attempt: int
    machine: str = ""
    time_started: int = 0
    time_ended: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    cause: str = ""
    micro_batch_size: int | None = None


class RunStatus(Document):
    """What the platform has seen. ``plan`` holds every number of the recipe as it was resolved before training.

    ``micro_batch_limit`` is there once an attempt was ended for want of memory and the recipe lets the micro-batch
    shrink: no later attempt takes more samples at once. ``log_lines_left_out`` counts the lines that were not kept
    because the log had reached the server's limit; metrics are always kept.
    """

    log: str = ""
    observed_generation: int = 0
    conditions: list[ResourceCondition] = []
    progress: RunProgress | None = None
    plan: dict[str, Any] | None = None
    attempts: list[RunAttempt] = []
    micro_batch_limit: int | None = None
    log_lines_left_out: int | None = None


class Run(Document):
    """One training execution."""

    kind: Literal["Run"] = "Run"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    run_id: str = ""
    spec: RunSpec = msgspec.field(default_factory=RunSpec)
    status: RunStatus = msgspec.field(default_factory=RunStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""

    @property
    def condition(self) -> ConditionKind | None:
        """The state the run is in now; None for a run that has no history yet."""
        return self.status.conditions[-1].condition if self.status.conditions else None

    def info(self) -> None:
        """Print a summary of the run."""
        from vi.api.resources.runs._info import print_run  # rich loads on first use, not on import

        print_run(self)


class RunOutcome(Document):
    """What one request for many runs did to one of them.

    ``outcome`` is ``Killed``, ``Deleted``, ``AlreadyDeleted``, ``Refused``, or for a dry run ``WouldKill`` or
    ``WouldDelete``. A refused run has the ``code`` and ``message`` that a request for it alone would have raised, such
    as ``NotFound`` or ``RunFinished``. ``condition`` is the state of a killed run afterwards.
    """

    run_id: str
    outcome: str
    code: str | None = None
    message: str | None = None
    condition: ConditionKind | None = None


class RunOutcomes(Document):
    """One outcome for each run that was named or found; ``more`` says that a filter finds further ones."""

    items: list[RunOutcome] = []
    more: bool = False

    @property
    def refused(self) -> list[RunOutcome]:
        """The runs that nothing was done to, each with the reason."""
        return [item for item in self.items if item.outcome == "Refused"]

    @property
    def run_ids(self) -> list[str]:
        """The runs that it was done to, or would be."""
        return [item.run_id for item in self.items if item.outcome != "Refused"]


class LogLine(Document):
    """One line a run's trainer wrote. ``number`` grows by one a line over all attempts, so it says where to go on."""

    number: int
    time: int
    attempt: int
    stream: Literal["events", "stdout", "stderr"]
    text: str


class MetricPoint(Document):
    """What was measured at one optimizer step: ``values`` maps names such as ``validation/loss`` to numbers."""

    step: int
    epoch: float
    time: int
    attempt: int
    values: dict[str, float]
