"""The head of a run: name, condition, progress, facts and actions, and the same on every tab."""

import math
from collections.abc import Sequence
from itertools import pairwise
from urllib.parse import urlencode

import msgspec

from runyard.server.pages.run.causes import (
    Banner,
    FindingNote,
    build_base,
    describe_findings,
    explain_run,
    get_plan_value,
)
from runyard.server.pages.views import (
    NOTHING,
    SHAPES,
    TimeText,
    describe_moment,
    format_bytes,
    format_duration,
    format_number,
    split_words,
)
from vi.api.resources.runs.responses import Run, RunProgress

# Before this many steps have been timed, the time left is not shown.
MEASURED_STEPS = 10
TIMED_STEPS = 50
TABS = (
    ("", "Overview"),
    ("predictions", "Predictions"),
    ("log", "Log"),
    ("timeline", "Timeline"),
    ("flow", "Flow"),
    ("files", "Files"),
)


class Tab(msgspec.Struct, frozen=True, kw_only=True):
    """A tab of the page, with its own address."""

    name: str
    href: str
    is_current: bool


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """A number in the head, and what it means."""

    label: str
    value: str
    title: str
    is_wide: bool


class RunTag(msgspec.Struct, frozen=True, kw_only=True):
    """An attribute of a run; ``href`` lists the runs that have it too."""

    key: str
    value: str
    href: str


class Step(msgspec.Struct, frozen=True):
    """A step of a run and when it was done, epoch milliseconds."""

    number: int
    time_ms: int


class Recent(msgspec.Struct, frozen=True, kw_only=True):
    """The newest measurements of a run: its last steps, throughput, and memory in bytes."""

    steps: list[Step] = []
    samples_per_second: float | None = None
    memory_bytes: float | None = None
    total_memory_bytes: float | None = None


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """The same action in Python and in a shell."""

    action: str
    python: str
    command: str


class RunHead(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a run."""

    id: str
    base: str
    api: str
    name: str
    etag: str
    kind: str
    shape: str
    reason: str
    message: str
    is_final: bool
    is_running: bool
    may_kill: bool
    has_checkpoint: bool
    step: int
    total_steps: int
    percent: int
    facts: list[Fact]
    tags: list[RunTag]
    banner: Banner | None
    findings: list[FindingNote]
    created: TimeText
    origin_ms: int
    grace: str
    kill_effect: str
    delete_effect: str
    commands: list[Command]


def build_head(run: Run, *, now_ms: int, recent: Recent, has_checkpoint: bool) -> RunHead:
    """Return the head of a run as it is now."""
    latest = run.status.conditions[-1]
    progress = run.status.progress or RunProgress()
    base, is_final = build_base(run.run_id), latest.condition.is_final
    grace_s = run.spec.flow.settings.get("gracePeriodSeconds")
    return RunHead(
        id=run.run_id,
        base=base,
        api=f"/workspaces/{run.organization_id}/runs/{run.run_id}",
        name=get_name(run),
        etag=run.etag,
        kind=latest.condition.value,
        shape=SHAPES.get(latest.condition.value, "?"),
        reason=split_words(latest.reason or ""),
        message=latest.message or "",
        is_final=is_final,
        is_running=latest.condition.value == "Running",
        may_kill=not is_final and run.spec.killed_at is None,
        has_checkpoint=has_checkpoint,
        step=progress.step,
        total_steps=progress.total_steps,
        percent=_compute_percent(progress),
        facts=_list_facts(run, progress, recent, now_ms=now_ms),
        tags=[_build_tag(key, value) for key, value in sorted(run.metadata.attributes.items())],
        banner=explain_run(run, base=base, has_checkpoint=has_checkpoint),
        findings=describe_findings(run, base=base),
        created=describe_moment(run.metadata.time_created, now_ms),
        origin_ms=run.metadata.time_created,
        grace=f"{float(grace_s):g} s" if isinstance(grace_s, int | float) else "",
        kill_effect=_describe_kill(run, has_checkpoint=has_checkpoint),
        delete_effect=_describe_deletion(is_final=is_final),
        commands=list_commands(run.run_id),
    )


def get_name(run: Run) -> str:
    """Return the display name of a run."""
    return run.metadata.name or run.run_id


def list_tabs(base: str, current: str) -> list[Tab]:
    """Return the tabs; ``current`` is the last part of the path, empty for the overview."""
    return [
        Tab(name=name, href=f"{base}/{path}" if path else base, is_current=path == current)
        for path, name in TABS
    ]


def list_commands(run_id: str) -> list[Command]:
    """Return every action on a run in Python and in a shell, with the run's id."""
    return [
        Command(
            action="kill",
            python=f'client.runs.kill("{run_id}")',
            command=f"runyard runs kill {run_id} --wait",
        ),
        Command(
            action="delete",
            python=f'client.runs.delete("{run_id}")',
            command=f"runyard runs delete {run_id}",
        ),
        Command(
            action="rename",
            python=f'client.runs.update("{run_id}", name="...")',
            command=f"runyard runs rename {run_id} NAME",
        ),
        Command(
            action="tag",
            python=f'client.runs.update("{run_id}", metadata={{"owner": "kim"}})',
            command=f"runyard runs tag {run_id} --set owner=kim",
        ),
    ]


def estimate_time_left(steps: Sequence[Step], total_steps: int) -> tuple[float, float] | None:
    """Return the seconds left and their uncertainty; None until enough steps are timed.

    The last steps give the mean duration m and its deviation s. Of n steps to come, the sum
    deviates by s * sqrt(n), and by n * s / sqrt(k) since m is measured on k steps only. The median
    stands for m where an evaluation or a save between two steps made one of them long.
    """
    timed = list(steps)[-TIMED_STEPS - 1 :]
    durations = [
        (later.time_ms - earlier.time_ms) / 1000 / (later.number - earlier.number)
        for earlier, later in pairwise(timed)
        if later.number > earlier.number
    ]
    if len(durations) < MEASURED_STEPS:
        return None
    count, left = len(durations), max(total_steps - timed[-1].number, 0)
    mean = sum(durations) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in durations) / (count - 1))
    return left * mean, deviation * math.sqrt(left + left * left / count)


def _list_facts(run: Run, progress: RunProgress, recent: Recent, *, now_ms: int) -> list[Fact]:
    is_running = run.status.conditions[-1].condition.value == "Running"
    epochs = _count_epochs(run)
    facts = []

    def add(label: str, value: str, title: str = "", *, is_wide: bool = False) -> None:
        # A running run has a place for what is not known yet, so that nothing below moves later.
        if value or is_running:
            facts.append(Fact(label=label, value=value or NOTHING, title=title, is_wide=is_wide))

    step = f"{progress.step:,} / {progress.total_steps:,}" if progress.total_steps else ""
    add("Step", step, "optimizer steps", is_wide=True)
    epoch = f"{progress.epoch:.2g}{f' / {epochs}' if epochs else ''}" if step else ""
    add("Epoch", epoch, "passes over data")
    if is_running:
        add("Time left", *_describe_time_left(run, progress, recent), is_wide=True)
    duration = "Running for" if is_running else "Took"
    add(duration, *_describe_duration(run, now_ms), is_wide=True)
    rate = recent.samples_per_second
    add("Samples/s", "" if rate is None else f"{rate:.3g}", "of the newest step")
    add("Memory", *_describe_memory(recent), is_wide=True)
    if run.status.attempts:
        add("Attempt", str(run.status.attempts[-1].attempt), run.status.attempts[-1].machine)
    add("Dataset", *_describe_dataset(run), is_wide=True)
    seed = get_plan_value(run, "seed")
    add("Seed", "" if seed is None else str(seed), "of the split, the order and new weights")
    loss, metric = progress.loss, progress.metric
    add("Loss", "" if loss is None else format_number(loss), "of the newest step")
    name, baseline = progress.metric_name or "Metric", progress.baseline
    label = name if baseline is None else f"{name}, baseline {format_number(baseline)}"
    value = "" if metric is None else format_number(metric)
    add(label, value, "newest evaluation; baseline: constant answers", is_wide=True)
    return facts


def _count_epochs(run: Run) -> int:
    total, per_epoch = (get_plan_value(run, name) for name in ("totalSteps", "stepsPerEpoch"))
    if not isinstance(total, int) or not isinstance(per_epoch, int) or per_epoch < 1:
        return 0
    return math.ceil(total / per_epoch)


def _describe_time_left(run: Run, progress: RunProgress, recent: Recent) -> tuple[str, str]:
    estimate = estimate_time_left(recent.steps, progress.total_steps)
    if estimate is None:
        return "measuring", f"shown after {MEASURED_STEPS} steps"
    seconds, spread = estimate
    if progress.seconds_left is not None:
        # The trainer's own estimate also counts evaluations, saving and the time limit.
        seconds = progress.seconds_left
    text = format_duration(max(seconds, 0))
    if spread >= 1:
        text = f"{text} ± {_round_duration(spread)}"
    return text, f"spread of the last {min(len(recent.steps) - 1, TIMED_STEPS)} steps"


def _round_duration(seconds: float) -> str:
    """Return a duration in one unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def _describe_duration(run: Run, now_ms: int) -> tuple[str, str]:
    attempts, latest = run.status.attempts, run.status.conditions[-1]
    if not attempts:
        return "", ""
    end = latest.last_transition_time if latest.condition.is_final else now_ms
    return format_duration((end - attempts[0].time_started) / 1000), "since the first attempt"


def _describe_memory(recent: Recent) -> tuple[str, str]:
    if recent.memory_bytes is None:
        return "", ""
    used = format_bytes(recent.memory_bytes)
    total = recent.total_memory_bytes
    return (f"{used} / {format_bytes(total)}" if total else used), "in use by the trainer"


def _describe_dataset(run: Run) -> tuple[str, str]:
    dataset, version = (get_plan_value(run, name) for name in ("dataset", "datasetVersion"))
    if not isinstance(dataset, str):
        return "", ""
    others = _list_further_datasets(run)
    if others:
        return f"{dataset} + {len(others)}", f"version {version}, and {', '.join(others)}"
    return (
        f"{dataset}@{str(version)[:8]}" if version else dataset,
        f"version {version or 'unknown'}",
    )


def _list_further_datasets(run: Run) -> list[str]:
    """Return the ids of the datasets that a run's own one is mixed with or validated on."""
    for block in run.spec.flow.blocks:
        if "dataset" in block.block:
            named = [*block.settings.get("mixture", ()), block.settings.get("validationDataset")]
            return [str(each["datasetId"]) for each in named if each]
    return []


def _describe_kill(run: Run, *, has_checkpoint: bool) -> str:
    """Return what a kill would do to this run now."""
    if not run.status.attempts or run.status.attempts[-1].time_ended:
        return "It has not started. It will be Cancelled at once; nothing of it runs."
    kept = " Checkpoints that exist are kept." if has_checkpoint else ""
    return (
        "The trainer finishes its step, saves a checkpoint and stops. If it takes longer than the "
        f"grace period, its processes are ended without saving.{kept} The log and the metrics "
        "are kept. The run becomes Cancelled when no process of it is left."
    )


def _describe_deletion(*, is_final: bool) -> str:
    """Return what a deletion would do to this run now."""
    first = "" if is_final else "It has not ended: it is killed first, without saving. "
    return (
        f"{first}Its log, metrics, predictions and checkpoints are removed, on the server and on "
        "this machine, and cannot be restored. Its id is never used again."
    )


def _compute_percent(progress: RunProgress) -> int:
    return min(round(100 * progress.step / (progress.total_steps or math.inf)), 100)


def _build_tag(key: str, value: str) -> RunTag:
    return RunTag(key=key, value=value, href="/ui/runs?" + urlencode({"q": f"{key}={value}"}))
