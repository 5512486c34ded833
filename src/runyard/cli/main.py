"""Root of the command line: the table of commands, and the handling of errors.

A command's module is imported only when the command is used. ``COMMANDS`` therefore has a help text
for the overview, and the docstring of the command has the details.
"""

import importlib
import os
import signal
import threading
from typing import Any, NamedTuple

import click

from runyard.cli.failures import (
    EXIT_INTERRUPTED,
    CommandFailed,
    is_handled_by_click,
    to_command_failure,
)
from runyard.cli.global_options import FORMATS, GlobalOptions, choose_color, get_global_options
from runyard.cli.global_options import split_global_options as split_options
from runyard.cli.groups import describe_unexpected, raise_unknown_command
from runyard.vi_package import describe_conflict


class CommandEntry(NamedTuple):
    """Module (below ``runyard.cli``) and attribute of a command, and its line in the overview."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "up": CommandEntry(
        "instance.up", "up", "Start and supervise server and controller on this machine."
    ),
    "worker": CommandEntry(
        "instance.worker", "worker", "Train runs on this machine for a server elsewhere."
    ),
    "open": CommandEntry(
        "resources.sessions", "open_pages", "Open the pages in a browser, signed in with this key."
    ),
    "down": CommandEntry(
        "instance.down",
        "down",
        "Stop the instance of a data folder and report which runs were saved.",
    ),
    "status": CommandEntry(
        "instance.status", "status", "Show the state of an instance, its processes and runs."
    ),
    "demo": CommandEntry(
        "instance.demo", "demo", "Train a small model on this machine and show its answers."
    ),
    "runs": CommandEntry(
        "resources.runs", "runs", "Create, follow, compare, kill and delete training runs."
    ),
    "top": CommandEntry(
        "live.top", "top", "Show running and waiting runs and the use of machines, live."
    ),
    "flows": CommandEntry(
        "resources.flows", "flows", "Save, validate and inspect flows (training configurations)."
    ),
    "views": CommandEntry(
        "resources.views", "views", "Save, list and delete views: named filters of runs."
    ),
    "datasets": CommandEntry(
        "resources.datasets", "datasets", "Import, check, preview and export datasets."
    ),
    "models": CommandEntry(
        "resources.models",
        "models",
        "List, download, export and query checkpoints; add base models.",
    ),
    "backup": CommandEntry(
        "resources.backup", "backup", "Back up all data of the server to one file."
    ),
    "restore": CommandEntry(
        "resources.backup", "restore", "Replace all data of the server with a backup."
    ),
    "events": CommandEntry(
        "resources.events",
        "events",
        "Show what has happened to runs, datasets, imports and flows, oldest first.",
    ),
    "machines": CommandEntry(
        "resources.machines",
        "machines",
        "Invite, list, drain, exclude and remove the machines that train runs.",
    ),
    "keys": CommandEntry("resources.keys", "keys", "Create, list, revoke and rotate API keys."),
    "sessions": CommandEntry(
        "resources.sessions", "sessions", "List browsers that are signed in, and sign them out."
    ),
    "audit": CommandEntry(
        "resources.audit", "audit", "Show the audit log of actions and rejected keys, newest first."
    ),
    "gc": CommandEntry(
        "resources.gc", "gc", "Compare database and disk, and delete unreferenced data."
    ),
    "config": CommandEntry("config", "config", "Show every setting, its value and its source."),
    "profiles": CommandEntry(
        "profiles", "profiles", "Name servers and keys, to choose one with --profile."
    ),
    "env": CommandEntry("environment", "show_environment", "Print versions, for bug reports."),
    "doctor": CommandEntry(
        "instance.doctor", "doctor", "Check the installation and suggest fixes."
    ),
    "simulate": CommandEntry(
        "instance.simulate", "simulate", "Simulate how the queue places runs on many machines."
    ),
    "completion": CommandEntry(
        "completion", "completion", "Print the completion script for a shell."
    ),
}


class LazyGroup(click.Group):
    """Command group that imports the module of a command on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        # Every command but doctor uses vi; doctor reports conflicts in detail.
        if cmd_name != "doctor" and (conflict := describe_conflict()) is not None:
            raise CommandFailed(conflict)
        command: click.Command = getattr(
            importlib.import_module(f"runyard.cli.{entry.module}"), entry.attribute
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise_unknown_command(self, ctx, args[0])
        return super().resolve_command(ctx, args)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            options, others = split_options(args)
        except click.UsageError:
            if not extra.get("resilient_parsing"):
                raise
            options, others = GlobalOptions(), args  # a line that is still being typed
        color = choose_color(os.environ)
        return super().make_context(info_name, others, parent, obj=options, color=color, **extra)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; print expected errors as one line on stderr and set the exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            failure = to_command_failure(error)
            is_debug = get_global_options().is_debug
            if is_debug and (failure is not None or isinstance(error, CommandFailed)):
                import traceback

                traceback.print_exception(error)
            if failure is not None:
                raise failure from error
            if is_debug or is_handled_by_click(error):
                raise
            raise CommandFailed(describe_unexpected(error)) from error


def _print_version(ctx: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        click.echo(f"runyard {version('runyard')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    expose_value=False,
    help="Output of tables: agent is tab-separated without questions and progress, quiet is ids "
    "alone. Accepted anywhere, like the next four.",
)
@click.option("-q", "--quiet", is_flag=True, expose_value=False, help="Print ids alone.")
@click.option(
    "--profile",
    metavar="NAME",
    expose_value=False,
    help="Server and key to use; see `runyard profiles`. [default: RUNYARD_PROFILE]",
)
@click.option(
    "--ca",
    metavar="FILE",
    expose_value=False,
    help="Certificate of the server or of its authority to trust. [default: that of the profile, "
    "RUNYARD_CA, SSL_CERT_FILE, or those of the system]",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Print the traceback of an error.")
def cli() -> None:
    """Train vision-language models on your own machines.

    Start with `runyard demo`, or with `runyard up` in one terminal and `runyard runs create --wait`
    in another.

    Exit codes: 0 success; 1 error; 2 invalid usage or setting; 3 run did not succeed; 4 not found;
    5 server unreachable; 6 key rejected; 7 timeout; 8 instance cannot start; 130 interrupted.
    With `runyard runs watch --exit-status`: 10 Failed; 11 Error; 12 Cancelled.
    `runyard status` exits with 0 if an instance is up and with 3 if none is.
    """


def _interrupt_once(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def main() -> None:
    """Run the ``runyard`` command.

    The first Ctrl-C interrupts, which tidies up; a second one ends the process at once.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt_once)
    cli(prog_name="runyard")
