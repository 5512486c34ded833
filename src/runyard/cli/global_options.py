"""Options that every command accepts, before or after its name: output, connection, tracebacks.

They are taken out of the arguments before the commands see them. ``--json`` stays an option of the
commands that have JSON; its fields, ``--json=FIELDS``, are taken out here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

FORMATS = ("auto", "human", "agent", "json", "quiet")
PROFILE_VARIABLE = "RUNYARD_PROFILE"
NO_PROGRESS_VARIABLE = "RUNYARD_NO_PROGRESS"
# Commands whose own --format names a format of files; the global one goes before them.
_OWN_FORMAT = (["datasets", "import"], ["datasets", "check"], ["datasets", "export"])


@dataclass(frozen=True)
class GlobalOptions:
    """Options of the whole command line.

    ``format`` is one of ``FORMATS``; ``agent`` prints tables as tab-separated lines, without
    questions and progress, and ``quiet`` prints ids alone. ``fields`` are the fields of JSON
    documents to print; None prints documents whole, and an empty tuple lists the fields. ``ca`` is
    the absolute path of a file of certificates to trust.
    """

    format: str = "auto"
    fields: tuple[str, ...] | None = None
    is_debug: bool = False
    profile: str | None = None
    ca: str | None = None

    @property
    def is_interactive(self) -> bool:
        """True if a person is there to answer questions."""
        return self.format != "agent"

    @property
    def shows_progress(self) -> bool:
        """True unless progress is disabled."""
        is_off = self.format in ("agent", "quiet") or os.environ.get(NO_PROGRESS_VARIABLE)
        return not is_off


def split_global_options(arguments: Sequence[str]) -> tuple[GlobalOptions, list[str]]:
    """Return the global options, and the other arguments.

    Raises:
        click.UsageError: A value is missing or unknown.
    """
    options, others, left = GlobalOptions(), list[str](), list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            return options, [*others, argument, *left]
        name, equals, value = argument.partition("=")
        if argument in ("-q", "--quiet"):
            options = replace(options, format="quiet")
        elif argument == "--debug":
            options = replace(options, is_debug=True)
        elif name == "--json" and (equals or (left and "," in left[0])):
            fields = value if equals else left.pop(0)
            options = replace(
                options, fields=tuple(filter(None, map(str.strip, fields.split(","))))
            )
            others.append("--json")
        elif name in ("--profile", "--ca") or (
            name == "--format" and others[:2] not in _OWN_FORMAT
        ):
            if not equals and not left:
                raise click.UsageError(f"Option {name!r} requires an argument.")
            value = value if equals else left.pop(0)
            if name == "--format":
                options = replace(options, format=value)
            elif name == "--ca":
                options = replace(options, ca=str(Path(value).expanduser().absolute()))
            else:
                options = replace(options, profile=value)
        else:
            others.append(argument)
    if options.format not in FORMATS:
        raise click.UsageError(
            f"Invalid value for '--format': {options.format!r} is not one of {', '.join(FORMATS)}."
        )
    return options, others


def get_global_options() -> GlobalOptions:
    """Return the options of the running command; the defaults outside of one."""
    context = click.get_current_context(silent=True)
    found = context.find_root().obj if context is not None else None
    return found if isinstance(found, GlobalOptions) else GlobalOptions()


def choose_color(environ: Mapping[str, str]) -> bool | None:
    """Return whether to print colors; None colors terminals only.

    NO_COLOR, set to anything, disables them; CLICOLOR_FORCE enables them everywhere.
    """
    if environ.get("NO_COLOR"):
        return False
    return True if environ.get("CLICOLOR_FORCE", "0") not in ("", "0") else None
