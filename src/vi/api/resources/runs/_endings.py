"""How waiting for a run ends: pure functions from what was seen to a value or an error."""

from vi.api.resources.runs.responses import Run
from vi.api.responses import ConditionKind
from vi.errors import ViNotFoundError, ViRunFailedError, ViRunVanishedError, ViTimeoutError


def is_over(run: Run) -> bool:
    """Whether the run has its last condition."""
    return run.condition is not None and run.condition.is_final


def succeeded(run: Run) -> Run:
    """The run, if it ended well.

    Raises:
        ViRunFailedError: it ended otherwise.
    """
    last = run.status.conditions[-1]
    if last.condition is ConditionKind.SUCCEEDED:
        return run
    why = f" ({last.reason})" if last.reason else ""
    text = f": {last.message}" if last.message else ""
    raise ViRunFailedError(
        f"run {run.run_id} ended in {last.condition.value}{why}{text}",
        suggestion=f"What it wrote: client.runs.logs({run.run_id!r}).",
        details={"runId": run.run_id, "condition": last.condition.value, "reason": last.reason},
        run=run,
    )


def vanished(run_id: str, error: ViNotFoundError) -> ViRunVanishedError:
    """The end of waiting for a run that is no longer there."""
    return ViRunVanishedError(
        f"run {run_id} was deleted while it was waited for",
        status_code=error.status_code,
        cause=error,
        details=error.details,
    )


def no_checkpoint(run: Run, error: ViNotFoundError) -> ViNotFoundError:
    """The answer to a request for a checkpoint of a run that has handed over none."""
    last = run.status.conditions[-1] if run.status.conditions else None
    facts = ": ".join(filter(None, [last.reason, last.message])) if last else ""
    state = f"{last.condition.value if last else 'without a condition'}{f' ({facts})' if facts else ''}"
    if is_over(run):
        text = f"run {run.run_id} ended in {state} and has no checkpoint"
        suggestion = f"try: client.runs.logs({run.run_id!r}), or `runyard runs logs {run.run_id}`, for what happened"
    else:
        text = f"run {run.run_id} has no checkpoint yet; it is {state}"
        suggestion = (
            "A run hands over its first checkpoint after its first evaluation. "
            f"try: client.runs.wait({run.run_id!r}), or `runyard runs wait {run.run_id}`, then again"
        )
    details = {**error.details, "state": state}
    return ViNotFoundError(text, status_code=error.status_code, suggestion=suggestion, cause=error, details=details)


def too_long(run_id: str, last_seen: Run | None, *, timeout_s: float) -> ViTimeoutError:
    """The end of a caller's patience; the run itself goes on."""
    state = last_seen.condition.value if last_seen and last_seen.condition else "without a condition"
    return ViTimeoutError(
        f"run {run_id} did not end within {timeout_s:g} s; it is {state}",
        suggestion="It goes on: wait again, or end it with client.runs.kill.",
        details={"runId": run_id},
    )
