"""Rows, columns, chips, views and dialogs of the page *Runs*, with all words chosen."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from runyard.server.pages.views import (
    SHAPES,
    TimeText,
    describe_moment,
    format_count,
    format_duration,
    format_number,
    split_words,
)
from vi.api.resources.runs.responses import Run, RunProgress
from vi.api.responses import ConditionKind

PATH = "/ui/runs"
MAX_TAGS = 2
SPARK_WIDTH, SPARK_HEIGHT = 92, 20
# One term of a filter, quoted parts included.
_TERM = re.compile(r'(?:[^\s"]|"(?:\\.|[^"\\])*"?)+')
_PLAIN_VALUE = re.compile(r"[^\s\"\\:=<>!-][^\s\"\\:=<>!]*")

# Columns that may be hidden, in the order of the table: name, heading, order that it sorts by.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "flow": ("Flow", ""),
    "dataset": ("Dataset", ""),
    "progress": ("Progress", ""),
    "loss": ("Loss", ""),
    "metric": ("Best", ""),
    "duration": ("Took", "duration"),
    "created": ("Started", "created"),
    "tags": ("Tags", ""),
}
NO_COLUMNS = "none"

# What to do about a reason whose message does not say it.
NEXT_STEPS: Mapping[str, str] = {
    "WaitingForMachine": "start a controller, or the whole instance: runyard up",
    "WaitingForCapacity": "connect a machine that offers it, or change what the flow requests",
    "WaitingForDisk": "free disk space on the machine; it continues by itself",
    "InvalidFlow": "correct the flow, then run again",
    "InvalidData": "open the log: it names the record",
    "OutOfMemory": "use a smaller micro-batch, or LoRA",
    "Diverged": "lower the learning rate, or resume from an earlier checkpoint",
    "TrainerError": "open the end of the log",
    "WorkerLost": "resume it from the newest checkpoint when the machine is back",
    "StorageUnavailable": "free disk space on the server, then resume",
}


class TagLink(msgspec.Struct, frozen=True):
    """An attribute of a run, and the list of all runs that have it."""

    text: str
    url: str


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run in the table.

    ``kind`` is the condition in lower case, for styles. ``problem`` and ``next_step`` say why a run
    waits or failed, and what to do. ``spark`` is the path of its loss curve.
    """

    id: str
    short_id: str
    name: str
    kind: str
    condition: str
    shape: str
    is_final: bool
    flow: str
    flow_version: str
    dataset: str
    dataset_version: str
    has_bar: bool
    percent: int
    line: str
    note: str
    note_title: str
    is_problem: bool
    loss: str
    spark: str
    metric: str
    metric_name: str
    took: str
    started: TimeText
    tags: tuple[TagLink, ...]
    more_tags: int
    all_tags: str


class Summary(msgspec.Struct, frozen=True):
    """Best value of a run's metric, and the curve of its loss."""

    best: float | None = None
    spark: str = ""


def build_row(run: Run, *, now_ms: int, summary: Summary = Summary(), q: str = "") -> RunRow:
    """Return what the table shows of a run."""
    latest = run.status.conditions[-1] if run.status.conditions else None
    kind = latest.condition if latest else ConditionKind.PENDING
    created = run.metadata.time_created
    ended = latest.last_transition_time if latest and kind.is_final else now_ms
    line, note = describe_progress(run)
    dataset, version = find_dataset(run)
    progress = run.status.progress or RunProgress()
    attributes = sorted(run.metadata.attributes.items())
    return RunRow(
        id=run.run_id,
        short_id=shorten_id(run.run_id),
        name=run.name or run.run_id,
        kind=kind.value.lower(),
        condition=kind.value,
        shape=SHAPES.get(kind.value, "?"),
        is_final=kind.is_final,
        flow=run.spec.flow.name,
        flow_version=find_flow_version(run),
        dataset=dataset,
        dataset_version=version,
        has_bar=not kind.is_final and progress.total_steps > 0,
        percent=compute_percent(progress),
        line=line,
        note=note,
        note_title=(latest.message or "") if latest else "",
        is_problem=kind in (ConditionKind.FAILED, ConditionKind.ERROR),
        loss=format_number(progress.loss),
        spark=summary.spark,
        metric=format_number(progress.metric if summary.best is None else summary.best),
        metric_name=progress.metric_name or "",
        took=format_duration(max(0, ended - created) / 1000),
        started=shorten_moment(describe_moment(created, now_ms)),
        tags=tuple(
            TagLink(f"{key}={value}", build_url(q=add_term(q, format_tag(key, value))))
            for key, value in attributes[:MAX_TAGS]
        ),
        more_tags=max(0, len(attributes) - MAX_TAGS),
        all_tags=", ".join(f"{key}={value}" for key, value in attributes),
    )


def shorten_moment(moment: TimeText) -> TimeText:
    """Return a time whose age has one unit, so that it fits its column."""
    words = moment.text.split()
    short = " ".join([*words[:2], "ago"]) if len(words) > 3 else moment.text
    return msgspec.structs.replace(moment, text=short)


def shorten_id(run_id: str) -> str:
    """Return the part of an id that fits below the name."""
    return run_id if len(run_id) <= 12 else run_id[:8]


def find_flow_version(run: Run) -> str:
    """Return the generation of the saved flow that a run was created from, if any."""
    origin = run.spec.flow.settings.get("flow")
    generation = origin.get("generation") if isinstance(origin, dict) else None
    return str(generation) if isinstance(generation, int) else ""


def find_dataset(run: Run) -> tuple[str, str]:
    """Return the id and the version of a run's dataset."""
    for block in run.spec.flow.blocks:
        if "dataset" in block.block:
            version = block.settings.get("datasetVersion")
            return str(block.settings.get("datasetId") or "digits"), str(version or "")[:8]
    return "digits", ""


def find_key_metric(run: Run) -> tuple[str, bool]:
    """Return the metric that decides which checkpoint is best, and whether small values are."""
    plan = run.status.plan or {}
    metric = _read_plan(plan, "metric")
    name = metric if isinstance(metric, str) else ""
    if not name and run.status.progress is not None:
        name = run.status.progress.metric_name or ""
    mode = _read_plan(plan, "mode")
    return name, mode == "min" or (mode is None and name.endswith("loss"))


def _read_plan(plan: Mapping[str, Any], name: str) -> object:
    item = plan.get(name)
    return item.get("value") if isinstance(item, dict) else None


def compute_percent(progress: RunProgress) -> int:
    """Return how much of its plan a run has done."""
    if progress.total_steps <= 0:
        return 0
    return max(0, min(100, 100 * progress.step // progress.total_steps))


def describe_progress(run: Run) -> tuple[str, str]:
    """Return two short lines: how far a run is or why it ended, and what follows."""
    if not run.status.conditions:
        return "", ""
    latest, progress = run.status.conditions[-1], run.status.progress
    reason, message = latest.reason or "", latest.message or ""
    steps = describe_steps(progress)
    if latest.condition is ConditionKind.RUNNING:
        parts = [f"{compute_percent(progress)} %"] if progress and progress.total_steps else []
        if progress is not None and progress.seconds_left:
            parts.append(f"{format_duration(progress.seconds_left)} left")
        note = " · ".join(
            filter(None, ["" if reason == "Training" else split_words(reason), steps])
        )
        return " · ".join(parts) or split_words(reason), note
    if latest.condition is ConditionKind.SUCCEEDED:
        return steps, "" if reason == "Completed" else split_words(reason)
    if latest.condition is ConditionKind.CANCELLED:
        return " · ".join(filter(None, ["Killed", steps])), ""
    if latest.condition is ConditionKind.PENDING:
        step = NEXT_STEPS.get(reason, "")
        return split_words(reason), message if not step else f"→ {step}"
    has_all = progress is not None and progress.step == progress.total_steps
    where = "" if not steps else f"{'after' if has_all else 'at'} {steps}"
    return " ".join(
        filter(None, [split_words(reason), where])
    ), f"→ {find_next_step(reason, message)}"


def find_next_step(reason: str, message: str) -> str:
    """Return what to do about a failure: what its message suggests, else what the reason does."""
    _, found, suggestion = message.partition("try: ")
    if found:
        return suggestion.rstrip(".")
    return NEXT_STEPS.get(reason) or message or "open the log"


def describe_steps(progress: RunProgress | None) -> str:
    """Return the step, and of how many."""
    if progress is None or not progress.step:
        return ""
    step, total = format_count(progress.step), format_count(progress.total_steps)
    if progress.step == progress.total_steps:
        return f"{step} steps"
    return f"step {step} of {total}" if progress.total_steps else f"step {step}"


def draw_spark(values: Sequence[float]) -> str:
    """Return the path of a small curve: whole numbers, each point relative to the one before."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = (SPARK_HEIGHT - 2) / (high - low) if high > low else 0.0
    points = [
        (round(index * SPARK_WIDTH / (len(finite) - 1)), round(1 + (high - value) * scale))
        for index, value in enumerate(finite)
    ]
    path, (x, y) = f"M{points[0][0]} {points[0][1]}", points[0]
    for next_x, next_y in points[1:]:
        path += f"l{next_x - x} {next_y - y}"
        x, y = next_x, next_y
    return path


# Addresses and filters.


class ListState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the address of the list holds."""

    q: str = ""
    sort: str = ""
    columns: str = ""
    p: str = ""
    before: str = ""

    def get_url(self, **changes: str) -> str:
        """Return the address of this list with changes; another filter begins with page 1."""
        page = {"p": "", "before": ""} if {"q", "sort"} & set(changes) else {}
        return build_url(**{**msgspec.structs.asdict(self), **page, **changes})

    def list_columns(self) -> tuple[str, ...]:
        """Return the chosen columns, in the order of the table."""
        if not self.columns:
            return tuple(COLUMNS)
        chosen = self.columns.split(",")
        return tuple(name for name in COLUMNS if name in chosen)


def build_url(path: str = PATH, **query: str) -> str:
    """Return an address with the parameters that are not empty."""
    given = urlencode({name: value for name, value in query.items() if value}, quote_via=quote)
    return f"{path}?{given}" if given else path


def split_terms(q: str) -> list[str]:
    """Return the terms of a filter as they are written."""
    return _TERM.findall(q)


def replace_condition(q: str, condition: str) -> str:
    """Return a filter with another condition, or with none if that is empty."""
    kept = [term for term in split_terms(q) if not re.match(r"-?condition(:|!?=)", term)]
    return " ".join([*([f"condition:{condition}"] if condition else []), *kept])


def find_condition(q: str) -> str:
    """Return the condition that a filter asks for, if it is one alone."""
    found = [term for term in split_terms(q) if re.match(r"-?condition(:|!?=)", term)]
    match = re.fullmatch(r"condition[:=](\w+)", found[0]) if len(found) == 1 else None
    return match[1].capitalize() if match else ""


def add_term(q: str, term: str) -> str:
    """Return a filter with one more term."""
    terms = split_terms(q)
    return " ".join(terms if term in terms else [*terms, term])


def format_tag(key: str, value: str) -> str:
    """Return the term that finds an attribute."""
    return f"{quote_value(key)}={quote_value(value)}"


def quote_value(value: str) -> str:
    """Return a value as a filter takes it, in quotes where it needs them."""
    if _PLAIN_VALUE.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


# Parts of the page.


class Chip(msgspec.Struct, frozen=True, kw_only=True):
    """A condition with how many runs have it, and the list of these."""

    name: str
    kind: str
    shape: str
    count: str
    url: str
    is_current: bool


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """A column: its heading, and the list sorted by it; ``direction`` is that of ``aria-sort``."""

    name: str
    title: str
    sort_url: str = ""
    direction: str = ""
    is_shown: bool = True
    may_hide: bool = False


class ViewLink(msgspec.Struct, frozen=True, kw_only=True):
    """A saved view as the menu shows it."""

    id: str
    name: str
    filter: str
    url: str
    is_current: bool


class FilterProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Mistake in a filter: the text before it, the wrong part, and the rest."""

    message: str
    head: str = ""
    wrong: str = ""
    tail: str = ""


class Snippet(msgspec.Struct, frozen=True, kw_only=True):
    """The same action in Python and as a command."""

    python: str
    command: str


class RunsTable(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the page that a filter, an order or a page changes."""

    state: ListState
    rows: tuple[RunRow, ...]
    columns: tuple[str, ...]
    headings: tuple[Heading, ...]
    chips: tuple[Chip, ...]
    total: int
    is_total_open: bool
    total_text: str
    has_filter: bool
    all_url: str
    older_url: str
    newer_url: str
    first_url: str
    order_text: str
    refresh_query: str
    new_count: int
    may_change: bool
    list_snippet: Snippet
    start_snippet: Snippet
    csv_url: str
    json_url: str


class RunsPage(msgspec.Struct, frozen=True, kw_only=True):
    """The whole page; ``problem`` is set if the filter of the address is not valid."""

    table: RunsTable
    problem: FilterProblem | None
    views: tuple[ViewLink, ...]
    is_fragment: bool


def build_headings(state: ListState, metric: str) -> tuple[Heading, ...]:
    """Return the columns that are shown or may be; ``metric`` is what the best values are of."""
    shown = state.list_columns()
    orders = {name: order for name, (_, order) in COLUMNS.items()}
    orders |= {"name": "name", "metric": f"metric.{metric}" if metric else ""}
    titles = {"condition": "Condition", "name": "Name"} | {
        name: title for name, (title, _) in COLUMNS.items()
    }
    return tuple(
        _build_heading(state, name, title, orders.get(name, ""), name in shown)
        for name, title in titles.items()
    )


def _build_heading(state: ListState, name: str, title: str, order: str, is_shown: bool) -> Heading:
    may_hide = name in COLUMNS
    is_shown = is_shown or not may_hide
    if not order:
        return Heading(name=name, title=title, is_shown=is_shown, may_hide=may_hide)
    sort = state.sort or "-created"
    direction = {order: "ascending", f"-{order}": "descending"}.get(sort, "")
    # Names are first sorted up, times and numbers down.
    first, second = (order, f"-{order}") if order == "name" else (f"-{order}", order)
    wanted = second if sort == first else first
    url = state.get_url(sort="" if wanted == "-created" else wanted)
    return Heading(
        name=name,
        title=title,
        sort_url=url,
        direction=direction,
        is_shown=is_shown,
        may_hide=may_hide,
    )


def describe_order(sort: str) -> str:
    """Return how a list is sorted, in words."""
    sort = sort or "-created"
    if sort in ("-created", "created"):
        return "newest first" if sort == "-created" else "oldest first"
    return f"by {sort.removeprefix('-')}, {'descending' if sort[0] == '-' else 'ascending'}"


def format_total(total: int, *, more: bool) -> str:
    """Return a count; with a plus if counting stopped."""
    return f"{format_count(total)}{'+' if more else ''}"


def build_chips(
    state: ListState, counts: Mapping[str, int], *, more: bool = False
) -> tuple[Chip, ...]:
    """Return one chip for all runs that match the rest of the filter, and one per condition.

    ``more``: counting stopped, so that there may be more of each.
    """
    current = find_condition(state.q)
    everything = replace_condition(state.q, "")
    chips = [
        Chip(
            name="All",
            kind="all",
            shape="",
            count=format_total(sum(counts.values()), more=more),
            url=state.get_url(q=everything),
            is_current=split_terms(everything) == split_terms(state.q),
        )
    ]
    for name, shape in SHAPES.items():
        chips.append(
            Chip(
                name=name,
                kind=name.lower(),
                shape=shape,
                count=format_total(counts.get(name, 0), more=more),
                url=state.get_url(q=replace_condition(state.q, name)),
                is_current=name == current,
            )
        )
    return tuple(chips)


def mark_problem(q: str, message: str, position: int, given: str) -> FilterProblem:
    """Return the filter with its wrong part marked; ``position`` counts from 1."""
    start = max(0, min(len(q), position - 1))
    end = min(len(q), start + max(1, len(given)))
    return FilterProblem(message=message, head=q[:start], wrong=q[start:end], tail=q[end:])


# The same in Python and as a command.


def quote_python(value: object) -> str:
    """Return a value as a Python literal, texts in double quotes."""
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text
    return repr(value)


def write_list_snippet(state: ListState) -> Snippet:
    """Return how the list is read elsewhere."""
    arguments = {"filter": state.q, "order_by": state.sort}
    given = ", ".join(f"{name}={quote_python(value)}" for name, value in arguments.items() if value)
    return Snippet(
        python=f"client.runs.list({given})",
        command=join_command("runs", "list", filter=state.q, sort=state.sort),
    )


def write_start_snippet() -> Snippet:
    """Return how the built-in run is started elsewhere."""
    return Snippet(python="client.runs.create(flow={})", command=join_command("runs", "create"))


def write_action_snippet(
    verb: str, ids: Sequence[str], q: str | None, python: Iterable[str] = (), **options: str
) -> Snippet:
    """Return how runs are killed, deleted or tagged elsewhere: by their ids, or by a filter."""
    if q is None:
        runs = quote_python(ids[0]) if len(ids) == 1 else f"[{', '.join(map(quote_python, ids))}]"
    else:
        runs = f"filter={quote_python(q or 'all')}"
    selected = ids if q is None else () if q else ("--all",)
    return Snippet(
        python=f"client.runs.{verb}({', '.join([runs, *python])})",
        command=join_command("runs", verb, *selected, filter=q, **options),
    )


def join_command(*words: str, **options: str | None) -> str:
    """Return a command line that a shell can run."""
    found = ["runyard", *words]
    for name, value in options.items():
        if value:
            flag = f"--{name.replace('_', '-')}"
            found += [f"{flag}={value}"] if value.startswith("-") else [flag, value]
    return shlex.join(found)
