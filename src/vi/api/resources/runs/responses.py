"""Run documents: a run is one execution of a frozen flow.

``spec`` is the intent, written only by users; ``status`` is the observation, written only by the
platform. ``status.conditions`` is the history of the run, one entry per transition, newest last.
"""

from typing import Any, Literal

import msgspec

from vi._text import to_single_line
from vi.api._display import format_duration, format_local_time, print_fields
from vi.api.resources.events.responses import Event
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs._summary import (
    describe_progress,
    describe_state,
    list_finding_fields,
)
from vi.api.responses import (
    ConditionKind,
    Document,
    ResourceCondition,
    ResourceMetadata,
    RunFinding,
)


class ResumeFrom(Document):
    """Checkpoint that a run resumes from, resolved at creation: never ``latest`` or ``best``."""

    run_id: str
    checkpoint: str
    step: int = 0
    epoch: int = 0


class RunSpec(Document):
    """Intent of a run: the flow as of its creation, and whether the run is to end early.

    ``grace_seconds`` is the time a kill leaves to save and stop; None uses the value of the flow or
    the platform. ``resume_from`` is None for a run that starts from scratch.
    """

    flow: FlowSpec = msgspec.field(default_factory=FlowSpec)
    killed_at: int | None = None
    grace_seconds: float | None = None
    training_project: str | None = None
    resume_from: ResumeFrom | None = None


class RunProgress(Document):
    """Progress of training, as last reported by the trainer.

    ``metric`` and ``metric_name`` belong to the newest evaluation. ``baseline`` is the same metric
    for answers that ignore the image. ``seconds_left`` estimates training only and respects the
    time limit of the run; it is None unless the run is running.
    """

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    metric_name: str | None = None
    metric: float | None = None
    baseline: float | None = None
    seconds_left: float | None = None


class RunAttempt(Document):
    """One attempt of a run: where and when it ran, and how it ended; ``cause`` is empty until then.

    ``micro_batch_size`` is the last micro-batch size in samples, which lack of memory may have
    reduced.
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
    """Observed state of a run. ``plan`` holds every value of the flow as resolved before training.

    ``micro_batch_limit`` is set once an attempt ran out of memory and the flow allows a smaller
    micro-batch; later attempts do not exceed it. ``log_lines_left_out`` counts the lines that were
    dropped because the log had reached the server's limit; metrics are never dropped for that.
    ``metric_values_left_out`` counts values of metrics beyond the number that a run may have.
    ``findings`` say what the condition does not, such as that nothing was learned.
    """

    log: str = ""
    observed_generation: int = 0
    conditions: list[ResourceCondition] = []
    progress: RunProgress | None = None
    plan: dict[str, Any] | None = None
    attempts: list[RunAttempt] = []
    micro_batch_limit: int | None = None
    log_lines_left_out: int | None = None
    metric_values_left_out: int | None = None
    findings: list[RunFinding] = []


class RunMetadata(ResourceMetadata):
    """Metadata of a run. ``name`` is the name of its flow unless another one was given."""

    name: str = ""


class Run(Document):
    """One training execution."""

    kind: Literal["Run"] = "Run"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    run_id: str = ""
    spec: RunSpec = msgspec.field(default_factory=RunSpec)
    status: RunStatus = msgspec.field(default_factory=RunStatus)
    metadata: RunMetadata = msgspec.field(default_factory=RunMetadata)
    self_link: str = ""
    etag: str = ""

    def __post_init__(self) -> None:
        # A document from before runs had names; another server has none.
        if not self.metadata.name:
            self.metadata.name = self.spec.flow.name

    @property
    def name(self) -> str:
        """Name of the run: that of its flow unless another one was given."""
        return self.metadata.name or self.spec.flow.name

    @property
    def condition(self) -> ConditionKind | None:
        """Current state of the run; None if it has no history yet."""
        return self.status.conditions[-1].condition if self.status.conditions else None

    def __repr__(self) -> str:
        facts = [f"Run({self.run_id!r}", f"name={self.name!r}", describe_state(self)]
        if self.status.progress is not None:
            facts.append(describe_progress(self.status.progress))
        return to_single_line(", ".join(facts)) + ")"

    def _repr_html_(self) -> str:
        from vi.api.resources.runs._cards import render_run_card

        return render_run_card(self)

    def _to_record(self) -> dict[str, Any]:
        from vi.api.resources.runs._cards import build_run_record

        return build_run_record(self)

    def _to_table_row(self) -> dict[str, Any]:
        from vi.api.resources.runs._cards import build_run_row

        return build_run_row(self)

    def info(self) -> None:
        """Print a summary of the run."""
        fields = summarize_run(self)
        style = _CONDITION_STYLES.get(self.condition, "") if self.condition else ""
        print_fields(
            f"Run {self.run_id}",
            [(name, value, style if name == "Status" else "") for name, value in fields],
        )


class RunChange(Document):
    """One change of a watched run: the event, and the state of the run when it was received.

    ``run`` is None if the run was deleted, or is not matched by the filter any more. ``event`` is
    None in the first change of a watch, which is the state at its begin. ``number`` is where a
    later watch continues, as its ``after``. ``is_reset`` is True if events before it are lost, as
    after the restore of a backup.
    """

    run: Run | None = None
    event: Event | None = None
    number: int = 0
    is_reset: bool = False


class RunOutcome(Document):
    """Effect of a bulk request on one run.

    ``outcome`` is ``Killed``, ``Deleted``, ``AlreadyDeleted``, ``Refused``, or for a dry run
    ``WouldKill`` or ``WouldDelete``. A refused run has the ``code`` and ``message`` that a request
    for this run alone would have raised, such as ``NotFound`` or ``RunFinished``. ``condition`` is
    the state of a killed run.
    """

    run_id: str
    outcome: str
    code: str | None = None
    message: str | None = None
    condition: ConditionKind | None = None


class RunOutcomes(Document):
    """One outcome per selected run; ``more`` is True if the filter matches further runs."""

    items: list[RunOutcome] = []
    more: bool = False

    @property
    def refused(self) -> list[RunOutcome]:
        """Outcomes of the runs that were not changed, each with the reason."""
        return [item for item in self.items if item.outcome == "Refused"]

    @property
    def run_ids(self) -> list[str]:
        """Ids of the runs that were changed, or would be."""
        return [item.run_id for item in self.items if item.outcome != "Refused"]


class RunCount(Document):
    """Number of runs that match a filter, in total and by condition.

    ``more`` is True if counting stopped at the server's limit, so that there may be further runs.
    """

    total: int = 0
    conditions: dict[str, int] = {}
    more: bool = False


class LogLine(Document):
    """One log line of a run's trainer. ``number`` increases by one per line over all attempts.

    ``level`` is derived from the line: from the prefix of its text, or the kind of event.
    """

    number: int
    time: int
    attempt: int
    stream: Literal["events", "stdout", "stderr"]
    text: str
    level: Literal["debug", "info", "warning", "error"] = "info"


class SampleBox(Document):
    """A box ``[left, top, right, bottom]`` from 0 to 1, and the phrase it belongs to."""

    box: tuple[float, float, float, float]
    phrase: str


class SampleAnswer(Document):
    """A true or predicted answer: its text, and its boxes if any."""

    text: str
    boxes: list[SampleBox] = []


class SampleImage(Document):
    """The image of a sample: its size in pixels, and where it is.

    ``sha256`` and ``filename`` are those of an uploaded image's file; None for built-in datasets.
    ``href`` is the path of its bytes on the server; ``client.runs.sample_image`` fetches them.
    """

    width: int
    height: int
    href: str = ""
    sha256: str | None = None
    filename: str | None = None


class Sample(Document):
    """A prediction of one evaluation for one held-out sample.

    ``index`` is the sample's place in the held-out data, the same in every evaluation. ``score`` is
    what samples are sorted by: the run's metric if it scores single samples, otherwise the first of
    ``scores`` that does. ``parse`` is ``ok`` if the model's answer has the expected form, otherwise
    why not; ``raw`` is what it generated. ``is_cut``: texts or boxes are not complete.
    """

    index: int
    step: int
    image: SampleImage
    question: str
    truth: SampleAnswer
    predicted: SampleAnswer
    scores: dict[str, float]
    parse: str
    score: float | None = None
    raw: str = ""
    is_cut: bool = False

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score={self.score:.4g}"
        answers = f"truth={self.truth.text[:60]!r}, predicted={self.predicted.text[:60]!r}"
        return f"Sample({self.index}, step={self.step}{score}, {answers})"

    def _repr_html_(self) -> str:
        from vi.api.resources.runs._cards import render_sample_card

        return render_sample_card(self)

    def _to_table_row(self) -> dict[str, Any]:
        return {
            "sample": self.index,
            "step": self.step,
            "score": "" if self.score is None else f"{self.score:.4g}",
            "question": self.question,
            "truth": self.truth.text,
            "predicted": self.predicted.text,
        }


class MetricPoint(Document):
    """Metrics of one optimizer step.

    ``values`` maps names such as ``validation/loss`` to numbers.
    """

    step: int
    epoch: float
    time: int
    attempt: int
    values: dict[str, float]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.6g}" for name, value in self.values.items())
        values = to_single_line(values)
        return f"MetricPoint(step={self.step}, epoch={self.epoch:g}, {values})"

    def _repr_html_(self) -> str:
        from vi.api._html import render_card

        title = f"Step {self.step:,}, epoch {self.epoch:.4g}"
        values = [(name, f"{value:.6g}") for name, value in self.values.items()]
        return render_card(title, "", values)


_CONDITION_STYLES = {
    ConditionKind.PENDING: "yellow",
    ConditionKind.RUNNING: "cyan",
    ConditionKind.SUCCEEDED: "green",
    ConditionKind.FAILED: "red",
    ConditionKind.ERROR: "red",
    ConditionKind.CANCELLED: "magenta",
}


def summarize_run(run: Run) -> list[tuple[str, str]]:
    """Return the fields that ``Run.info`` prints; times are local."""
    flow = run.spec.flow
    fields = [("Name", run.name), ("Status", describe_state(run))]
    if run.status.conditions and run.status.conditions[-1].message:
        fields.append(("Message", run.status.conditions[-1].message))
    if run.status.progress is not None:
        fields.append(("Progress", describe_progress(run.status.progress)))
    fields += list_finding_fields(run)
    fields += [
        ("Organization", run.organization_id),
        ("Flow", f"{flow.name} (schema {flow.schema}, {len(flow.blocks)} blocks)"),
    ]
    if run.spec.training_project:
        fields.append(("Training project", run.spec.training_project))
    fields += [
        ("Created", format_local_time(run.metadata.time_created)),
        ("Last updated", format_local_time(run.metadata.last_updated)),
    ]
    if run.status.log_lines_left_out:
        fields.append(("Log lines omitted", f"{run.status.log_lines_left_out:,}"))
    if run.spec.killed_at is not None:
        fields.append(("Killed", format_local_time(run.spec.killed_at)))
    fields += [
        ("Attribute", f"{key} = {value}") for key, value in sorted(run.metadata.attributes.items())
    ]
    for index, condition in enumerate(run.status.conditions):
        reason = f" ({condition.reason})" if condition.reason else ""
        time = format_local_time(condition.last_transition_time)
        fields.append(("" if index else "History", f"{time}  {condition.condition.value}{reason}"))
    fields += [
        (f"Attempt {attempt.attempt}", _describe_attempt(attempt))
        for attempt in run.status.attempts
    ]
    return fields


def _describe_attempt(attempt: RunAttempt) -> str:
    facts = [f"on {attempt.machine}"] if attempt.machine else []
    if attempt.time_ended:
        facts.append(f"took {format_duration((attempt.time_ended - attempt.time_started) / 1000)}")
    exits = (
        None if attempt.exit_code is None else f"exit code {attempt.exit_code}",
        attempt.signal,
    )
    # The cause may contain it.
    facts += [text for text in exits if text and text not in attempt.cause]
    if attempt.cause:
        facts.append(attempt.cause)
    return ", ".join(facts) or "-"
