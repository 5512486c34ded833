"""``runyard profiles``: names for servers and keys.

A profile is a file with endpoint, organization and key, as ``runyard keys create --out`` writes it,
and the certificates to trust. ``vi.Client(config_file=...)`` reads it too.
"""

import os
from pathlib import Path
from typing import IO

import click

from runyard.cli.connection import (
    check_profile_name,
    choose_profile,
    get_profile_folder,
    read_profile,
)
from runyard.cli.failures import EXIT_NOT_FOUND, EXIT_USAGE, CommandFailed
from runyard.cli.global_options import get_global_options
from runyard.cli.groups import NounGroup
from runyard.cli.output import json_option, print_json, print_table

_NAMES = ("endpoint", "organization_id", "secret_key")
_TRUST = ("ca", "certificate")  # paths; both are optional


@click.group(cls=NounGroup)
def profiles() -> None:
    """Name servers and keys, to choose one with --profile.

    \b
    Examples:
      runyard keys create --name laptop --out lab.json
      runyard profiles add lab lab.json
      runyard --profile lab runs list
    """


@profiles.command("list")
@json_option
def list_profiles(as_json: bool) -> None:
    """List the profiles; * marks the one in use."""
    chosen = choose_profile()
    found = []
    for path in sorted(get_profile_folder().glob("*.json")):
        known = read_profile(path.stem)
        found.append(
            {
                "name": path.stem,
                "endpoint": known["endpoint"],
                "organizationId": known["organization_id"],
                "file": str(path),
                "isInUse": path.stem == chosen,
            }
        )
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (one["name"], one["endpoint"], one["organizationId"], "*" if one["isInUse"] else "")
        for one in found
    ]
    print_table(("PROFILE", "ENDPOINT", "ORGANIZATION", "IN USE"), rows)


@profiles.command("add")
@click.argument("name")
@click.argument("file", type=click.File("rb"))
@click.option("--overwrite", is_flag=True, help="Replace an existing profile of this name.")
def add_profile(name: str, file: IO[bytes], overwrite: bool) -> None:
    """Save the endpoint, organization and key in FILE (`-` reads standard input) as a profile.

    With --ca the profile also has the certificates to trust.
    """
    import json

    try:
        given = json.loads(file.read())
        values = {key: str(given[key]) for key in _NAMES}
        values |= {key: str(given[key]) for key in _TRUST if given.get(key)}
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed(
            f"{getattr(file, 'name', '-')} is not a JSON object with {', '.join(_NAMES)} "
            f"({error}); try: the file that `runyard keys create --out FILE` wrote",
            exit_code=EXIT_USAGE,
        ) from error
    ca = get_global_options().ca
    if ca is not None:
        values["ca"] = ca
        values.pop("certificate", None)
    path = get_profile_folder() / f"{check_profile_name(name)}.json"
    if path.exists() and not overwrite:
        raise CommandFailed(
            f"the profile {name} exists; try: --overwrite, or another name", exit_code=EXIT_USAGE
        )
    _write_secret(path, json.dumps(values, indent=2).encode() + b"\n")
    click.echo(f"{name}: {values['endpoint']}")


@profiles.command("delete")
@click.argument("name")
def delete_profile(name: str) -> None:
    """Delete a profile. Its key stays valid; `runyard keys revoke` revokes it."""
    path = get_profile_folder() / f"{check_profile_name(name)}.json"
    try:
        path.unlink()
    except FileNotFoundError:
        raise CommandFailed(f"there is no profile {name}", exit_code=EXIT_NOT_FOUND) from None
    click.echo(f"deleted {name}")


def _write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
