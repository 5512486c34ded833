"""Results of waiting for a run: pure functions from an observed run to a value or an exception."""

from vi.api.resources.runs.responses import Run
from vi.api.responses import ConditionKind
from vi.errors import ViNotFoundError, ViRunFailedError, ViRunVanishedError, ViTimeoutError


def is_finished(run: Run) -> bool:
    """Return True if the run is in a final state."""
    return run.condition is not None and run.condition.is_final


def require_success(run: Run) -> Run:
    """Return a finished run if it succeeded.

    Raises:
        ViRunFailedError: It ended in Failed, Error or Cancelled.
    """
    last = run.status.conditions[-1]
    if last.condition is ConditionKind.SUCCEEDED:
        return run
    why = f" ({last.reason})" if last.reason else ""
    text = f": {last.message}" if last.message else ""
    raise ViRunFailedError(
        f"run {run.run_id} ended in {last.condition.value}{why}{text}",
        suggestion=f"try: client.runs.logs({run.run_id!r}) for its log",
        details={"runId": run.run_id, "condition": last.condition.value, "reason": last.reason},
        run=run,
    )


def run_vanished_error(run_id: str, error: ViNotFoundError) -> ViRunVanishedError:
    """Return the exception for a run that was deleted during the wait."""
    return ViRunVanishedError(
        f"run {run_id} was deleted during the wait",
        status_code=error.status_code,
        cause=error,
        details=error.details,
    )


def no_checkpoint_error(run: Run, error: ViNotFoundError) -> ViNotFoundError:
    """Return the exception for a checkpoint of a run that has not saved one."""
    last = run.status.conditions[-1] if run.status.conditions else None
    facts = ": ".join(filter(None, [last.reason, last.message])) if last else ""
    state = (
        f"{last.condition.value if last else 'without a condition'}{f' ({facts})' if facts else ''}"
    )
    if is_finished(run):
        text = f"run {run.run_id} ended in {state} and has no checkpoint"
        suggestion = (
            f"try: client.runs.logs({run.run_id!r}), or `runyard runs logs {run.run_id}`, for its "
            "log"
        )
    else:
        text = f"run {run.run_id} has no checkpoint yet; it is {state}"
        suggestion = (
            "A run saves its first checkpoint after its first evaluation. try: "
            f"client.runs.wait({run.run_id!r}), or `runyard runs wait {run.run_id}`, then again"
        )
    details = {**error.details, "state": state}
    return ViNotFoundError(
        text, status_code=error.status_code, suggestion=suggestion, cause=error, details=details
    )


def wait_timeout_error(run_id: str, last_run: Run | None, *, timeout_s: float) -> ViTimeoutError:
    """Return the exception for a wait that timed out; the run itself continues."""
    state = last_run.condition.value if last_run and last_run.condition else "without a condition"
    return ViTimeoutError(
        f"run {run_id} did not end within {timeout_s:g} s; it is {state}",
        suggestion="The run continues. try: wait again, or end it with client.runs.kill",
        details={"runId": run_id},
    )
