"""``runyard machines``: the machines that train runs.

A machine is given by its id or its name. Changes need an admin's key of the first organization.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_NOT_FOUND, EXIT_USAGE, CommandFailed
from runyard.cli.groups import NounGroup
from runyard.cli.output import (
    format_age,
    format_time,
    json_option,
    print_fields,
    print_json,
    print_table,
)
from runyard.cli.time_arguments import Duration
from runyard.security.transport import is_loopback

if TYPE_CHECKING:
    import vi
    from vi.api.resources.machines.responses import Machine

machine_argument = click.argument("machine", metavar="MACHINE")
note_option = click.option("--note", default="", help="Why, for people, such as 'Xid 79'.")


@click.group(cls=NounGroup)
def machines() -> None:
    """Invite, list, drain, exclude and remove the machines that train runs.

    A machine joins with the command that `runyard machines invite` prints.
    """


@machines.command("list")
@data_dir_option
@json_option
def list_machines(data_dir: Path | None, as_json: bool) -> None:
    """List machines: state, accelerators, runs, when each was last heard.

    Example: `runyard machines list`
    """
    with connect(data_dir) as client:
        found = list(client.machines)
    if as_json:
        print_json({"items": found})
        return
    headings = ("MACHINE", "NAME", "STATE", "HEARD", "ACCELERATORS", "RUNS", "LABELS", "NOTE")
    print_table(headings, [_row(machine) for machine in found])


@machines.command("get")
@machine_argument
@data_dir_option
@json_option
def get_machine(machine: str, data_dir: Path | None, as_json: bool) -> None:
    """Show a machine.

    Example: `runyard machines get gpu-3`
    """
    with connect(data_dir) as client:
        found = find_machine(client, machine)
    if as_json:
        print_json(found)
        return
    status = found.status
    print_fields(
        [
            ("machine", found.machine_id),
            ("name", found.spec.name),
            ("state", _describe_state(found)),
            ("note", found.spec.note),
            ("host", status.host),
            ("version", status.version),
            ("accelerators", _describe_accelerators(found)),
            ("slots", status.slots),
            ("runs", ", ".join(status.runs)),
            ("labels", _describe_labels(found)),
            ("joined", format_time(found.metadata.time_created)),
            ("invited by", status.invited_by),
            ("last heard", format_time(status.last_heard)),
        ]
    )


@machines.command("invite")
@click.option(
    "--labels",
    metavar="NAME=VALUE,...",
    default="",
    help="Labels of the machines that join; runs request them as tolerations.",
)
@click.option(
    "--uses",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="Number of machines that may join with it.",
)
@click.option(
    "--expires",
    "lifetime_s",
    type=Duration(),
    default=3600,
    metavar="DURATION",
    help="Time for which it is valid, at most 7d. [default: 1h]",
)
@click.option("--url", help="Address at which the machine reaches the server. [default: this one]")
@data_dir_option
@json_option
def invite_machines(
    labels: str,
    uses: int,
    lifetime_s: float,
    url: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Print the command with which a machine joins. Treat it like a key until it is used.

    Examples: `runyard machines invite`, `runyard machines invite --labels team=vision --uses 4`
    """
    with connect(data_dir, is_patient=True) as client:
        made = client.machines.invite(
            labels=parse_labels(labels), uses=uses, lifetime_s=round(lifetime_s)
        )
        endpoint = (url or client.endpoint).rstrip("/")
    if as_json:
        print_json(made)
        return
    click.echo(f"runyard worker --join {endpoint} --token {made.token}{_require_flag(endpoint)}")
    times = "one machine" if uses == 1 else f"{uses} machines"
    click.echo(
        f"Run it on the new machine; for {times}, until {format_time(made.expires)}. "
        f"`runyard machines uninvite {made.invitation_id}` revokes it.",
        err=True,
    )
    if is_loopback(endpoint):
        click.echo(
            f"{endpoint} reaches the server from this machine only; try: --url with its address in "
            "the network, once `runyard up --host` listens there",
            err=True,
        )


@machines.command("uninvite")
@click.argument("invitation_id", metavar="INVITATION")
@data_dir_option
def revoke_invitation(invitation_id: str, data_dir: Path | None) -> None:
    """Revoke an invitation; machines that have joined with it stay.

    Example: `runyard machines uninvite 4fY0dZkPq3LmXw81`
    """
    with connect(data_dir, is_patient=True) as client:
        client.machines.revoke_invitation(invitation_id)
    click.echo(f"revoked {invitation_id}")


@machines.command("drain")
@machine_argument
@click.option(
    "--within",
    "within_s",
    type=Duration(),
    metavar="DURATION",
    help="Time after which its runs save, stop, and resume on other machines; without it they end "
    "by themselves.",
)
@note_option
@data_dir_option
@json_option
def drain_machine(
    machine: str, within_s: float | None, note: str, data_dir: Path | None, as_json: bool
) -> None:
    """Let a machine take no new run, and move its runs to others after a while.

    Example: `runyard machines drain gpu-3 --within 10m`
    """
    with _change(machine, data_dir) as (client, found):
        seconds = None if within_s is None else round(within_s)
        changed = client.machines.drain(found.machine_id, within_s=seconds, note=note)
        _print_change(changed, as_json=as_json)


@machines.command("exclude")
@machine_argument
@note_option
@data_dir_option
@json_option
def exclude_machine(machine: str, note: str, data_dir: Path | None, as_json: bool) -> None:
    """Let a machine take no new run, because something is wrong with it.

    Example: `runyard machines exclude gpu-3 --note "Xid 79"`
    """
    with _change(machine, data_dir) as (client, found):
        changed = client.machines.exclude(found.machine_id, note=note)
        _print_change(changed, as_json=as_json)


@machines.command("resume")
@machine_argument
@data_dir_option
@json_option
def resume_machine(machine: str, data_dir: Path | None, as_json: bool) -> None:
    """Let a drained or excluded machine take runs again.

    Example: `runyard machines resume gpu-3`
    """
    with _change(machine, data_dir) as (client, found):
        _print_change(client.machines.resume(found.machine_id), as_json=as_json)


@machines.command("remove")
@machine_argument
@click.option(
    "--force",
    is_flag=True,
    help="Remove it although it has runs: they resume on other machines and lose what is not "
    "saved.",
)
@data_dir_option
def remove_machine(machine: str, force: bool, data_dir: Path | None) -> None:
    """Remove a machine and revoke its key; a new invitation lets it join again.

    Example: `runyard machines remove gpu-3`
    """
    with _change(machine, data_dir) as (client, found):
        client.machines.remove(found.machine_id, force=force)
    click.echo(f"removed {found.spec.name}")


def find_machine(client: "vi.Client", machine: str) -> "Machine":
    """Return the machine with an id or a name.

    Raises:
        CommandFailed: No machine has it.
    """
    found = list(client.machines)
    for each in found:
        if machine in (each.machine_id, each.spec.name):
            return each
    names = ", ".join(sorted(each.spec.name for each in found)) or "none"
    raise CommandFailed(
        f"machine {machine!r} was not found (machines: {names})", exit_code=EXIT_NOT_FOUND
    )


def parse_labels(text: str) -> dict[str, list[str]]:
    """Return labels from ``name=value,name=value``; a name may occur several times.

    Raises:
        CommandFailed: A part has no value.
    """
    labels: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, separator, value = part.partition("=")
        if not (name and separator and value):
            raise CommandFailed(
                f"label {part!r} has no value; try: --labels team=vision,zone=b",
                exit_code=EXIT_USAGE,
            )
        labels.setdefault(name, []).append(value)
    return labels


@contextmanager
def _change(machine: str, data_dir: Path | None) -> "Iterator[tuple[vi.Client, Machine]]":
    with connect(data_dir, is_patient=True) as client:
        yield client, find_machine(client, machine)


def _print_change(machine: "Machine", *, as_json: bool) -> None:
    if as_json:
        print_json(machine)
    else:
        click.echo(f"{machine.spec.name}: {_describe_state(machine)}")


def _row(machine: "Machine") -> tuple[object, ...]:
    status = machine.status
    return (
        machine.machine_id,
        machine.spec.name,
        _describe_state(machine),
        format_age(status.last_heard) if status.last_heard else "",
        _describe_accelerators(machine),
        f"{status.running}" if status.slots is None else f"{status.running}/{status.slots}",
        _describe_labels(machine),
        machine.spec.note,
    )


def _describe_state(machine: "Machine") -> str:
    status = machine.status
    words = [status.state]
    if status.drain_by is not None:
        words.append(f"by {format_time(status.drain_by)}")
    if not status.is_connected:
        words.append("(not connected)")
    elif status.lacks_disk:
        words.append("(too little disk space)")
    return " ".join(words)


def _describe_accelerators(machine: "Machine") -> str:
    return ", ".join(f"{kind.count} x {kind.name}" for kind in machine.status.accelerators)


def _describe_labels(machine: "Machine") -> str:
    labels = machine.spec.labels.items()
    return ",".join(f"{name}={value}" for name, values in labels for value in values)


def _require_flag(endpoint: str) -> str:
    """Return the flag without which a machine refuses to send its key there."""
    is_plain = not endpoint.lower().startswith("https:") and not is_loopback(endpoint)
    return " --insecure" if is_plain else ""
