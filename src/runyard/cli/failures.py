"""What the command line does when something goes wrong: one clear line with the remedy, and an exit code.

``explain`` knows the errors of the parts a command may have used, and looks them up in ``sys.modules`` instead of
importing them: an error can only come from a module that is already loaded, and ``--help`` shall load none of them.
What it does not know is a defect of Runyard and keeps its traceback.
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
EXIT_CANNOT_START = 8  # an instance that starting again does not help
EXIT_DOWN = 3  # of `runyard status` alone, as service managers expect it
EXIT_INTERRUPTED = 130

# Names in vi.errors; the first that fits counts, so leaves stand before what they derive from.
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
    """A command cannot do what it was asked for: the sentence to print, and the exit code."""

    def __init__(self, message: str, *, exit_code: int = EXIT_ERROR):
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click calls it a class variable and reads the instance's


def explain(error: Exception) -> CommandFailed | None:
    """The sentence and exit code for an error; None for one that click handles or nobody foresaw."""
    if isinstance(error, (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError)):
        return None
    if sentence := explain_missing_extra(error):
        return CommandFailed(sentence, exit_code=EXIT_USAGE)
    settings = sys.modules.get("runyard.settings")
    if settings is not None and isinstance(error, settings.SettingError):
        return CommandFailed(str(error), exit_code=EXIT_USAGE)
    problems = sys.modules.get("runyard.flows.problems")
    if problems is not None and isinstance(error, problems.FlowProblems):
        return CommandFailed(_lines("the flow cannot run:", [problem.message for problem in error.problems]))
    trainer = sys.modules.get("runyard.trainer.errors")
    if trainer is not None and isinstance(error, (trainer.TrainingFailed, trainer.ExportFailed)):
        return CommandFailed(str(error))
    errors = sys.modules.get("vi.errors")
    if errors is not None and isinstance(error, errors.ViError):
        exit_code = next(code for name, code in _EXIT_BY_ERROR if isinstance(error, getattr(errors, name)))
        return CommandFailed(_words_of(error), exit_code=exit_code)
    if isinstance(error, OSError):
        return CommandFailed(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    return None


def _words_of(error: Any) -> str:
    """An error of the SDK in the words it carries, every problem the server named on a line of its own."""
    problems = [problem for problem in error.details.get("problems") or [] if isinstance(problem, dict)]
    if problems:
        told = [str(problem.get("message")) for problem in problems]
        is_all = len(told) == 1 and error.message.endswith(told[0])  # one problem alone is often the whole message
        return error.message if is_all else _lines(error.message, told)
    if "condition" in error.details and "runId" in error.details:  # the SDK's suggestion is a line of Python
        return f"{error.message}\nWhat it wrote: runyard runs logs {error.details['runId']}"
    return "\n".join(filter(None, [error.message, error.suggestion]))


def _lines(first: str, rest: list[str]) -> str:
    return "\n".join([first, *(f"  {line}" for line in rest)])
