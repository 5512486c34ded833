"""Conversion of exceptions to one-line messages with a suggestion, and exit codes.

``to_command_failure`` knows the exceptions of the packages that commands use. It looks these up in
``sys.modules`` instead of importing them: an exception can only come from a loaded module, and
``--help`` must load none of them. An unknown exception is a bug of Runyard and keeps its traceback.
"""

import sys
from typing import Any

import click

from runyard.extras import explain_missing_extra

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_RUN_FAILED = 3
EXIT_NOT_FOUND = 4
EXIT_UNREACHABLE = 5
EXIT_REFUSED = 6
EXIT_TIME_UP = 7
EXIT_CANNOT_START = 8  # starting the instance again would fail again
EXIT_WATCHED_FAILED = 10  # only of `runyard runs watch --exit-status`, with the next two
EXIT_WATCHED_ERROR = 11
EXIT_WATCHED_CANCELLED = 12
EXIT_DOWN = 3  # only of `runyard status`, as service managers expect
EXIT_INTERRUPTED = 130

# Names in vi.errors; the first match applies, so subclasses precede their bases.
_EXIT_BY_ERROR = (
    ("ViRunFailedError", EXIT_RUN_FAILED),
    ("ViNotFoundError", EXIT_NOT_FOUND),
    ("ViAuthenticationError", EXIT_REFUSED),
    ("ViPermissionError", EXIT_REFUSED),
    ("ViNetworkError", EXIT_UNREACHABLE),
    ("ViTimeoutError", EXIT_TIME_UP),
    ("ViConfigurationError", EXIT_USAGE),
    ("ViInvalidParameterError", EXIT_USAGE),
    ("ViError", EXIT_ERROR),
)


class CommandFailed(click.ClickException):
    """Failure of a command, with the message to print and the exit code."""

    def __init__(self, message: str, *, exit_code: int = EXIT_ERROR):
        super().__init__(message)
        # Click calls it a class variable and reads the instance's.
        self.exit_code = exit_code  # type: ignore[misc]


def to_command_failure(error: Exception) -> CommandFailed | None:
    """Return message and exit code for an exception.

    None if click handles it or it is unexpected.
    """
    if is_handled_by_click(error):
        return None
    if message := explain_missing_extra(error):
        return CommandFailed(message, exit_code=EXIT_USAGE)
    settings = sys.modules.get("runyard.settings")
    if settings is not None and isinstance(error, settings.SettingError):
        return CommandFailed(str(error), exit_code=EXIT_USAGE)
    problems = sys.modules.get("runyard.flows.problems")
    if problems is not None and isinstance(error, problems.FlowProblems):
        return CommandFailed(
            _lines("the flow cannot run:", [problem.message for problem in error.problems])
        )
    trainer = sys.modules.get("runyard.trainer.errors")
    if trainer is not None and isinstance(error, (trainer.TrainingFailed, trainer.ExportFailed)):
        return CommandFailed(str(error))
    errors = sys.modules.get("vi.errors")
    if errors is not None and isinstance(error, errors.ViError):
        exit_code = next(
            code for name, code in _EXIT_BY_ERROR if isinstance(error, getattr(errors, name))
        )
        message = _format_sdk_error(error)
        if error.trace_id:
            code = error.details.get("code")
            message += f"\n({f'code {code}, ' if code else ''}request {error.trace_id})"
        return CommandFailed(message, exit_code=exit_code)
    if isinstance(error, OSError):
        return CommandFailed(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    return None


def is_handled_by_click(error: Exception) -> bool:
    """Return True for exceptions that click turns into messages and exit codes."""
    return isinstance(
        error, (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError)
    )


def _format_sdk_error(error: Any) -> str:
    """Return the message of an SDK exception with its problems, one per line, or suggestion."""
    problems = [
        problem for problem in error.details.get("problems") or [] if isinstance(problem, dict)
    ]
    if problems:
        messages = [str(problem.get("message")) for problem in problems]
        is_repeated = len(messages) == 1 and error.message.endswith(messages[0])
        return error.message if is_repeated else _lines(error.message, messages)
    if "condition" in error.details and "runId" in error.details:  # the SDK suggests Python code
        return f"{error.message}\ntry: runyard runs logs {error.details['runId']}"
    return "\n".join(filter(None, [error.message, error.suggestion]))


def _lines(first: str, rest: list[str]) -> str:
    return "\n".join([first, *(f"  {line}" for line in rest)])
