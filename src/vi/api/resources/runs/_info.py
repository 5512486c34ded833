"""``run.info()``: everything about one run on one screen."""

from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vi.api._progress import duration_text, progress_text, state_text
from vi.api.resources.runs.responses import Run, RunAttempt
from vi.api.responses import ConditionKind

_STYLES = {
    ConditionKind.PENDING: "yellow",
    ConditionKind.RUNNING: "cyan",
    ConditionKind.SUCCEEDED: "green",
    ConditionKind.FAILED: "red",
    ConditionKind.ERROR: "red",
    ConditionKind.CANCELLED: "magenta",
}


def print_run(run: Run) -> None:
    """Print the run; what a server or a user wrote is shown as plain text, never read as markup."""
    table = Table(title=Text(f"Run {run.run_id}"), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts_of(run):
        style = _STYLES.get(run.condition, "") if name == "Status" and run.condition else ""
        table.add_row(Text(name), Text(value, style=style))
    Console().print(table)


def facts_of(run: Run) -> list[tuple[str, str]]:
    """What there is to say about the run, line by line; times are local."""
    flow = run.spec.flow
    facts = [("Status", state_text(run))]
    if run.status.conditions and run.status.conditions[-1].message:
        facts.append(("Message", run.status.conditions[-1].message))
    if run.status.progress is not None:
        facts.append(("Progress", progress_text(run.status.progress)))
    facts += [
        ("Organization", run.organization_id),
        ("Flow", f"{flow.name} (schema {flow.schema}, {len(flow.blocks)} blocks)"),
    ]
    if run.spec.training_project:
        facts.append(("Training project", run.spec.training_project))
    facts += [
        ("Created", local_time(run.metadata.time_created)),
        ("Last updated", local_time(run.metadata.last_updated)),
    ]
    if run.status.log_lines_left_out:
        facts.append(("Log lines left out", f"{run.status.log_lines_left_out:,}"))
    if run.spec.killed_at is not None:
        facts.append(("Killed", local_time(run.spec.killed_at)))
    facts += [("Attribute", f"{key} = {value}") for key, value in sorted(run.metadata.attributes.items())]
    facts += [
        (
            "History" if index == 0 else "",
            f"{local_time(condition.last_transition_time)}  {condition.condition.value}"
            + (f" ({condition.reason})" if condition.reason else ""),
        )
        for index, condition in enumerate(run.status.conditions)
    ]
    facts += [(f"Attempt {attempt.attempt}", _attempt_text(attempt)) for attempt in run.status.attempts]
    return facts


def local_time(time_ms: int) -> str:
    """Epoch milliseconds as the clock on the wall shows them."""
    if not time_ms:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _attempt_text(attempt: RunAttempt) -> str:
    words = [f"on {attempt.machine}"] if attempt.machine else []
    if attempt.time_ended:
        words.append(f"took {duration_text((attempt.time_ended - attempt.time_started) / 1000)}")
    ends = (None if attempt.exit_code is None else f"exit code {attempt.exit_code}", attempt.signal)
    words += [end for end in ends if end and end not in attempt.cause]  # the cause often tells it already
    if attempt.cause:
        words.append(attempt.cause)
    return ", ".join(words) or "-"
