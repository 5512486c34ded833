"""``runyard worker``: train runs on this machine for a server elsewhere.

The process becomes the controller of the machine, so a service manager supervises it directly.
"""

import os
import sys
from pathlib import Path

import click

from runyard.cli.connection import data_dir_option
from runyard.cli.failures import EXIT_CANNOT_START, EXIT_USAGE, CommandFailed
from runyard.settings import Settings, build_environment, read_settings

TOKEN_VARIABLE = "RUNYARD_JOIN_TOKEN"  # noqa: S105 - the name of a variable


@click.command()
@click.option("--join", "endpoint", metavar="URL", help="Server to join; needed once.")
@click.option(
    "--token",
    envvar=TOKEN_VARIABLE,
    help=f"Invitation from `runyard machines invite`. [default: {TOKEN_VARIABLE}]",
)
@click.option("--name", default="", help="Name of the machine. [default: its host name]")
@click.option(
    "--slots",
    type=click.IntRange(1, 1024),
    help="Runs that train at once. [default: RUNYARD_SLOTS, else 1]",
)
@click.option(
    "--notice",
    metavar="FILE|URL",
    help="File or address whose appearance announces the end of the machine: runs save and stop. "
    "[default: RUNYARD_NOTICE]",
)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="Certificates to trust besides the system's. [default: RUNYARD_CA]",
)
@click.option(
    "--insecure",
    is_flag=True,
    default=None,
    help="Allow a server on another machine without TLS. [default: RUNYARD_INSECURE]",
)
@data_dir_option
@click.option(
    "--end-with-stdin", is_flag=True, hidden=True, help="Stop at the end of standard input."
)
def worker(
    endpoint: str | None,
    token: str | None,
    name: str,
    slots: int | None,
    notice: str | None,
    ca: str | None,
    insecure: bool | None,
    data_dir: Path | None,
    end_with_stdin: bool,
) -> None:
    """Train runs on this machine for a server elsewhere.

    The first start joins the server with --join and --token, as `runyard machines invite` prints
    them; later ones need neither. Ctrl-C and SIGTERM stop it: runs are saved and resume here or on
    another machine.

    Example: `runyard worker --join https://runyard.example:7878 --token ryjn_...`
    """
    settings = read_settings(
        data_dir=data_dir, slots=slots, notice=notice, ca=ca, insecure=insecure
    )
    if endpoint is not None:
        _join(settings, endpoint, token, name)
    _check_joined(settings)
    arguments = [sys.executable, "-P", "-m", "runyard.controller"]
    environment = {**os.environ, **build_environment(settings)}
    environment.pop(TOKEN_VARIABLE, None)
    sys.stdout.flush()
    os.execve(  # noqa: S606 - our own module, by the interpreter that runs this
        sys.executable, [*arguments, *(["--end-with-stdin"] if end_with_stdin else [])], environment
    )


def _join(settings: Settings, endpoint: str, token: str | None, name: str) -> None:
    from runyard.controller.joining import CannotJoin, join

    if not token:
        raise CommandFailed(
            "--join needs the token of an invitation; try: runyard machines invite on the server, "
            "and the command that it prints",
            exit_code=EXIT_USAGE,
        )
    try:
        joined = join(settings, endpoint=endpoint, token=token, name=name)
    except CannotJoin as error:
        raise CommandFailed(str(error), exit_code=EXIT_CANNOT_START) from error
    if joined is None:
        click.echo(f"This machine has joined {endpoint} already; the token was not used.")
    else:
        click.echo(f"Joined {endpoint} as {joined}.")


def _check_joined(settings: Settings) -> None:
    from runyard.rundir import read_json

    known = read_json(settings.controller_file)
    if known is None or known.get("isPending"):
        raise CommandFailed(
            f"this machine has not joined a server (data folder {settings.data_dir}); try: runyard "
            "machines invite on the server, and the command that it prints",
            exit_code=EXIT_USAGE,
        )
    if settings.credentials_file.exists():
        raise CommandFailed(
            f"{settings.data_dir} is the data folder of an instance; try: runyard up, which starts "
            "its server and its machine",
            exit_code=EXIT_USAGE,
        )
