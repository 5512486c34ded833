"""State and progress of a run in a few words: pure functions."""

from typing import TYPE_CHECKING

from vi.api._display import format_duration

if TYPE_CHECKING:
    from vi.api.resources.runs.responses import Run, RunProgress


def describe_state(run: "Run") -> str:
    """Return the condition and its reason."""
    if not run.status.conditions:
        return "no condition yet"
    last = run.status.conditions[-1]
    return f"{last.condition.value} ({last.reason})" if last.reason else last.condition.value


def describe_progress(progress: "RunProgress") -> str:
    """Return steps, loss, metric and time left, as far as they are known."""
    facts = [
        f"step {progress.step}/{progress.total_steps}"
        if progress.total_steps
        else f"step {progress.step}"
    ]
    if progress.loss is not None:
        facts.append(f"loss {progress.loss:.4f}")
    if progress.metric is not None:
        baseline = "" if progress.baseline is None else f" (baseline {progress.baseline:.4f})"
        facts.append(f"{progress.metric_name or 'metric'} {progress.metric:.4f}{baseline}")
    if progress.seconds_left is not None:
        facts.append(f"{format_duration(progress.seconds_left)} left")
    return ", ".join(facts)


def list_finding_fields(run: "Run") -> list[tuple[str, str]]:
    """Return the findings of a run and what to try as fields of a table."""
    fields = []
    for finding in run.status.findings:
        fields.append(("Finding", finding.message))
        fields += [
            ("Try" if not index else "", str(each))
            for index, each in enumerate(finding.suggestions)
        ]
    return fields
