"""The tab *Overview*: charts with their settings, checkpoints, and one prediction of the newest
evaluation.
"""

import re
from collections.abc import Sequence

import msgspec

from runyard.server.pages.run.causes import get_plan_value
from runyard.server.pages.views import TimeText, describe_moment, format_bytes, format_number
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run

AXES = (("step", "step"), ("epoch", "epoch"), ("time", "time"))
DEFAULT_SMOOTHING = "0.6"
_SHOWN_METRICS = 4


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart: the keys it shows; ``validation/*`` names all that begin so."""

    title: str
    keys: str
    excluded: str
    unit: str
    size: str
    is_exact: bool
    empty: str


class ChartSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that all charts share, as the address states them."""

    x: str
    smooth: str
    y: str
    axes: list[tuple[str, str]]
    is_zoomed: bool


class CheckpointRow(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint: its metrics, and how to get it."""

    id: str
    step: str
    is_best: bool
    metrics: list[tuple[str, str]]
    size: str
    href: str
    time: TimeText
    python: str
    command: str


class Checkpoints(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoints of a run. ``marks`` are those and the evaluations, for the charts.

    ``shown`` are the best and the newest one, each under its badge in a place of its own: where
    one follows another, nothing on the page moves.
    """

    id: str
    base: str
    shown: list[tuple[str, CheckpointRow]]
    rows: list[CheckpointRow]
    marks: str
    empty: str
    policy: str


def list_charts(run: Run) -> list[Chart]:
    """Return the charts of a run; a chart without points says why."""
    metric = get_plan_value(run, "metric")
    has_baseline = isinstance(metric, str) and metric != "loss"
    main = f"validation/{metric} baseline/{metric} " if has_baseline else ""
    early = _explain_empty(run, "The first point appears after the first step.")
    evaluated = _explain_empty(run, "Metrics appear after the first evaluation.")
    measured = _explain_empty(run, "Measured every few seconds while the run trains.")
    return [
        _build_chart("Loss", "loss validation/loss", early, size="large"),
        _build_chart("Metrics", f"{main}validation/*", evaluated, excluded="validation/loss"),
        _build_chart("Learning rate", "learningRate", early, is_exact=True),
        _build_chart("Gradient norm", "gradNorm", early),
        _build_chart("Throughput, samples per second", "samplesPerSecond", early),
        _build_chart(
            "Memory",
            "system/memoryBytes system/acceleratorMemoryBytes*",
            measured,
            unit="bytes",
            is_exact=True,
        ),
        _build_chart(
            "Processor and accelerator",
            "system/cpuPercent system/acceleratorPercent*",
            measured,
            unit="percent",
        ),
        _build_chart(
            "Free disk space", "system/diskFreeBytes", measured, unit="bytes", is_exact=True
        ),
    ]


def _build_chart(
    title: str,
    keys: str,
    empty: str,
    *,
    excluded: str = "",
    unit: str = "",
    size: str = "",
    is_exact: bool = False,
) -> Chart:
    return Chart(
        title=title,
        keys=keys,
        excluded=excluded,
        unit=unit,
        size=size,
        is_exact=is_exact,
        empty=empty,
    )


def _explain_empty(run: Run, text: str) -> str:
    if run.condition is not None and run.condition.is_final:
        return "The run ended before there was a point."
    return f"No points yet. {text}"


def parse_settings(
    x: str | None, smooth: str | None, y: str | None, *, is_zoomed: bool
) -> ChartSettings:
    """Return the settings of a query; a value that does not exist is the default."""
    return ChartSettings(
        x=x if x in ("step", "epoch", "time") else "step",
        smooth=smooth if smooth and re.fullmatch(r"0|0?\.\d{1,4}", smooth) else DEFAULT_SMOOTHING,
        y="log" if y == "log" else "lin",
        axes=list(AXES),
        is_zoomed=is_zoomed,
    )


def build_checkpoints(
    run: Run,
    models: Sequence[Model],
    *,
    evaluations: Sequence[tuple[int, int]],
    saved: int,
    base: str,
    now_ms: int,
) -> Checkpoints:
    """Return the checkpoints, newest first; ``saved`` counts those that were ever saved."""
    marks = [f"c{model.spec.step}" for model in models] + [f"e{step}" for step, _ in evaluations]
    is_final = run.condition is not None and run.condition.is_final
    rows = [_build_row(run, model, now_ms=now_ms) for model in reversed(models)]
    return Checkpoints(
        id=run.run_id,
        base=base,
        shown=[("best", row) for row in rows if row.is_best]
        + [("newest", row) for row in rows[:1]],
        rows=rows,
        marks=" ".join(marks),
        empty="No checkpoint was saved."
        if is_final
        else "No checkpoint yet. The first is saved after an epoch, or as the flow says.",
        policy=_describe_policy(run, kept=len(models), saved=saved),
    )


def _build_row(run: Run, model: Model, *, now_ms: int) -> CheckpointRow:
    contents = model.status.contents
    main = get_plan_value(run, "metric")
    values = {
        name.removeprefix("validation/"): value
        for name, value in (model.spec.evaluation_metrics or {}).items()
        if isinstance(value, int | float)
    }
    order = sorted(values, key=lambda name: (name != main, name != "loss"))
    return CheckpointRow(
        id=model.model_id,
        step=f"{model.spec.step:,}" if model.spec.step is not None else "",
        is_best=model.spec.is_best,
        metrics=[(name, format_number(values[name])) for name in order[:_SHOWN_METRICS]],
        size=format_bytes(contents.size_bytes) if contents and contents.size_bytes else "",
        href=contents.download_url.url if contents else "",
        time=describe_moment(model.metadata.time_created, now_ms),
        python=f'client.models.download("{run.run_id}", "{model.model_id}")',
        command=f"runyard models download {run.run_id} {model.model_id}",
    )


def _describe_policy(run: Run, *, kept: int, saved: int) -> str:
    """Return which checkpoints are kept."""
    settings = next(
        (block.settings for block in run.spec.flow.blocks if "model" in block.block.lower()), {}
    )
    checkpoint = settings.get("checkpoint")
    given = checkpoint if isinstance(checkpoint, dict) else {}
    keep, keep_best = given.get("keep", 3), given.get("keepBest", True)
    policy = f"The newest {keep}{' and the best' if keep_best else ''} are kept"
    return f"{policy}: {kept} of {saved}." if saved > kept else f"{policy}."
