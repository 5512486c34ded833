"""The root of the command line: which commands there are, and how anything that goes wrong is said.

``COMMANDS`` is the whole map. A command's module is imported when the command is used and not before, so the help text
here is written beside the name and the module's own docstring adds the rest.
"""

import importlib
from typing import Any, NamedTuple

import click

from runyard.cli.failures import EXIT_INTERRUPTED, CommandFailed, explain
from runyard.vi_package import describe_conflict


class Entry(NamedTuple):
    """Where a command lives, and its line in the overview."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "up": Entry("runyard.cli.up", "up", "Start server and controller here, and watch over them."),
    "down": Entry("runyard.cli.down", "down", "End the instance over a data folder; report which runs were saved."),
    "status": Entry("runyard.cli.status", "status", "Show whether an instance is up, and what it is doing."),
    "demo": Entry("runyard.cli.demo", "demo", "Train a small model on this machine and show what it learned."),
    "runs": Entry("runyard.cli.runs", "runs", "Start, follow, kill and delete training runs."),
    "flows": Entry("runyard.cli.flows", "flows", "Keep recipes, check them, and see them with every default."),
    "datasets": Entry("runyard.cli.datasets", "datasets", "Import your own pictures and labels, check them, see them."),
    "models": Entry(
        "runyard.cli.models", "models", "List, download, export and query checkpoints; add models to begin from."
    ),
    "backup": Entry("runyard.cli.backup", "backup", "Write everything the server keeps into one file."),
    "restore": Entry("runyard.cli.backup", "restore", "Put a backup in the place of everything the server keeps."),
    "keys": Entry("runyard.cli.keys", "keys", "Create, list, revoke and rotate keys."),
    "audit": Entry("runyard.cli.audit", "audit", "Show who did what, and which keys were rejected."),
    "gc": Entry("runyard.cli.gc", "gc", "Prove that database and disk agree; remove what nothing needs."),
    "config": Entry("runyard.cli.config", "config", "Show every setting, its value, and where it comes from."),
    "doctor": Entry("runyard.cli.doctor", "doctor", "Say what is installed here, what is missing, and what to do."),
    "completion": Entry("runyard.cli.completion", "completion", "Print the script that completes commands in a shell."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        # Every other command uses vi; doctor says more about it.
        if cmd_name != "doctor" and (conflict := describe_conflict()) is not None:
            raise CommandFailed(conflict)
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that has an explanation ends as one line on stderr and its exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            failure = explain(error)
            if failure is None:
                raise
            raise failure from error


def _print_version(ctx: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        click.echo(f"runyard {version('runyard')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """Train vision-language models on your own machines.

    Begin with `runyard demo`, or with `runyard up` in one terminal and `runyard runs create --wait` in another.

    Exit codes: 0 done; 1 an error; 2 wrong usage or setting; 3 the run did not succeed; 4 not found; 5 the server
    cannot be reached; 6 the key was refused; 7 time is up; 8 the instance cannot start; 130 interrupted. `runyard
    status` ends with 0 when an instance is up and with 3 when none is.
    """


def main() -> None:
    """The entry point of the ``runyard`` script."""
    cli(prog_name="runyard")
