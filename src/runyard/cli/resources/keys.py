"""``runyard keys``: API keys with their roles and expiry.

A secret is shown once: on a terminal, in a file of mode 0600, or in JSON output that was requested.
It is never written to a pipe otherwise. The key in ``credentials.json`` is rotated so that the file
always has a valid key: the new key is written before the old one is revoked, using the new one.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option, find_key
from runyard.cli.failures import EXIT_UNREACHABLE, EXIT_USAGE, CommandFailed
from runyard.cli.groups import NounGroup
from runyard.cli.output import (
    format_age,
    format_time,
    json_option,
    print_fields,
    print_json,
    print_table,
)
from runyard.cli.time_arguments import Duration, Moment

if TYPE_CHECKING:
    import vi
    from vi.api.resources.keys.responses import IssuedKey, Key

ROLES = ("viewer", "member", "admin")
# Minimum time for which the old key of credentials.json stays valid. If the response with the new
# key is lost, the rotation can be repeated within it.
SAFE_OVERLAP_S = 3600
RECOVERY_TIMEOUT_S = 30.0
# A key consists of ``dtvi_``, a version of two characters, its id, its secret and a checksum.
KEY_ID = slice(7, 23)

out_option = click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="New file (mode 0600) for endpoint, organization and secret, readable by "
    "`vi.Client(config_file=...)`.",
)
expires_option = click.option(
    "--expires",
    type=Moment(is_past=False),
    metavar="WHEN",
    help="Expiry, such as 90d or 2027-01-31.",
)


@click.group(cls=NounGroup)
def keys() -> None:
    """Create, list, revoke and rotate API keys.

    All commands require an admin's key, except `recover`, which requires write access to the data
    folder.
    """


@keys.command("list")
@click.option("--all", "shows_all", is_flag=True, help="Include revoked and expired keys.")
@data_dir_option
@json_option
def list_keys(shows_all: bool, data_dir: Path | None, as_json: bool) -> None:
    """List keys, newest first: role, expiry, last use.

    Example: `runyard keys list --all`
    """
    with connect(data_dir) as client:
        found = [key for key in client.keys if shows_all or key.status.state == "Active"]
    if as_json:
        print_json({"items": found})
    else:
        headings = ("KEY", "NAME", "ROLE", "STATE", "AGE", "EXPIRES", "LAST USED")
        print_table(headings, [_row(key) for key in found])


@keys.command("create")
@click.option("--name", required=True, help="Purpose of the key.")
@click.option(
    "--role", type=click.Choice(ROLES), default="member", show_default=True, help="Role of the key."
)
@expires_option
@out_option
@data_dir_option
@json_option
def create_key(
    name: str,
    role: str,
    expires: int | None,
    out: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Create a key and show its secret once.

    A viewer reads; a member also creates, changes and deletes resources; an admin also manages keys
    and storage.

    Examples: `runyard keys create --name ci --role member --expires 90d --out ci.json`, `runyard
    keys create --name dashboard --role viewer`
    """
    _check_output(out, as_json=as_json)
    with connect(data_dir) as client, _create_secret_file(out) as file:
        # Click checked the role.
        issued = client.keys.create(name, role, expires=expires)  # type: ignore[arg-type]
        _deliver_secret(client, issued, file, out=out, as_json=as_json)


@keys.command("revoke")
@click.argument("key_ids", metavar="KEY...", nargs=-1, required=True)
@data_dir_option
@json_option
def revoke_keys(key_ids: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Revoke keys immediately.

    New requests are rejected at once, running requests within seconds. The last admin key that does
    not expire cannot be revoked.

    Example: `runyard keys revoke 4fY0dZkPq3LmXw81`
    """
    with connect(data_dir, is_patient=True) as client:
        for key_id in key_ids:
            revoked = client.keys.revoke(key_id)
            if as_json:
                print_json(revoked)
            else:
                click.echo(f"revoked {key_id}")


@keys.command("rotate")
@click.argument("key_id", metavar="[KEY]", required=False)
@click.option(
    "--overlap",
    "overlap_s",
    type=Duration(),
    default=0,
    metavar="DURATION",
    help="Time for which the old key stays valid.",
)
@expires_option
@out_option
@data_dir_option
@json_option
def rotate_key(
    key_id: str | None,
    overlap_s: int,
    expires: int | None,
    out: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Replace a key with one of the same name, role and lifetime. Default: the key in use.

    The key of credentials.json is replaced in that file before it is revoked. Any other secret is
    shown once.

    Examples: `runyard keys rotate`, `runyard keys rotate 4fY0dZkPq3LmXw81 --overlap 24h --out
    ci.json`
    """
    from runyard.rundir import read_json
    from runyard.settings import read_settings

    file = read_settings(data_dir=data_dir).credentials_file
    target = key_id or find_key(data_dir)[KEY_ID]
    if str((read_json(file) or {}).get("secret_key", ""))[KEY_ID] == target:
        if out is not None:
            raise CommandFailed(
                f"the new secret is written to {file}, which has the old one; try: omit --out",
                exit_code=EXIT_USAGE,
            )
        with connect(data_dir) as client:
            issued = _rotate_credentials_file(
                client, target, file, overlap_s=overlap_s, expires=expires
            )
        if as_json:
            print_json(_remove_secret(issued))
        else:
            click.echo(f"replaced {target} with {issued.key_id} in {file}")
        return
    _check_output(out, as_json=as_json)
    with connect(data_dir) as client, _create_secret_file(out) as reserved:
        issued = client.keys.rotate(target, overlap_s=overlap_s, expires=expires)
        _deliver_secret(client, issued, reserved, out=out, as_json=as_json)


@keys.command("recover")
@data_dir_option
def recover_key(data_dir: Path | None) -> None:
    """Request a new admin key after the last one was lost. Requires write access to the data
    folder.

    The server writes it to credentials.json, at once if it is running, else at its next start. A
    valid admin key in that file is kept.

    Example: `runyard keys recover --data-dir /srv/runyard`
    """
    from runyard.cli.instance.instance import live_endpoint
    from runyard.settings import read_settings

    settings = read_settings(data_dir=data_dir)
    if not settings.secrets_dir.is_dir():
        raise CommandFailed(
            f"{settings.data_dir} is not the data folder of an instance; try: --data-dir",
            exit_code=EXIT_USAGE,
        )
    marker = settings.secrets_dir / "recover"
    marker.touch(mode=0o600)
    if live_endpoint(settings) is None:
        click.echo(
            "The server is not running. At its next start it writes an admin key to "
            f"{settings.credentials_file}."
        )
        return
    deadline_s = time.monotonic() + RECOVERY_TIMEOUT_S
    while marker.exists():
        if time.monotonic() > deadline_s:
            raise CommandFailed(
                f"the server has not processed {marker} within {RECOVERY_TIMEOUT_S:g} s; try: its "
                f"log in {settings.logs_dir}",
                exit_code=EXIT_UNREACHABLE,
            )
        time.sleep(0.1)
    click.echo(f"{settings.credentials_file} has a valid admin key.")


def _rotate_credentials_file(
    client: "vi.Client", key_id: str, file: Path, *, overlap_s: int, expires: int | None
) -> "IssuedKey":
    import vi
    from runyard.rundir import read_json, write_json

    issued = client.keys.rotate(key_id, overlap_s=overlap_s or SAFE_OVERLAP_S, expires=expires)
    try:
        write_json(file, {**(read_json(file) or {}), "secret_key": issued.secret_key}, mode=0o600)
    except OSError as error:
        raise CommandFailed(
            f"{file} cannot be written ({error.strerror}); it still has the old key, which stays "
            f"valid for {(overlap_s or SAFE_OVERLAP_S) // 60} minutes; try: make the file "
            f"writable, rotate again, and revoke {issued.key_id}, whose secret is lost"
        ) from error
    if overlap_s == 0:
        with vi.Client(
            issued.secret_key, client.organization_id, file, endpoint=client.endpoint
        ) as renewed:
            renewed.keys.revoke(key_id)
    return issued


def _check_output(out: Path | None, *, as_json: bool) -> None:
    if out is None and not as_json and not sys.stdout.isatty():
        raise CommandFailed(
            "standard output is not a terminal, so the secret is not printed; try: --out FILE, or "
            "--json",
            exit_code=EXIT_USAGE,
        )


@contextmanager
def _create_secret_file(out: Path | None) -> Iterator[IO[bytes] | None]:
    """Yield a new file of mode 0600, created before the secret is issued.

    Delete it if it stays empty.
    """
    if out is None:
        yield None
        return
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CommandFailed(
            f"{out} already exists; try: another file", exit_code=EXIT_USAGE
        ) from None
    with open(descriptor, "wb") as file:
        try:
            yield file
        finally:
            if file.tell() == 0:
                out.unlink(missing_ok=True)


def _deliver_secret(
    client: "vi.Client",
    issued: "IssuedKey",
    file: IO[bytes] | None,
    *,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write the secret to the file, to JSON output or to the terminal."""
    import json
    from dataclasses import asdict

    from runyard.cli.instance.instance import find_named_endpoint

    if file is not None:
        values = {
            "endpoint": find_named_endpoint(client),
            "organization_id": client.organization_id,
            "secret_key": issued.secret_key,
        }
        if values["endpoint"] == client.endpoint:
            trust = asdict(client._credentials.trust)
            values |= {name: path for name, path in trust.items() if path}
        file.write(json.dumps(values, indent=2).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if as_json:
        print_json(issued if file is None else _remove_secret(issued))
        return
    print_fields(
        [
            ("key", issued.key_id),
            ("name", issued.spec.name),
            ("role", issued.spec.role),
            ("expires", format_time(issued.spec.expires) or "never"),
            ("file", out),
        ]
    )
    if file is None:
        click.echo(f"\nSecret (shown only once): {issued.secret_key}")


def _remove_secret(issued: "IssuedKey") -> dict[str, Any]:
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(issued)
    del document["secretKey"]
    return document


def _row(key: "Key") -> tuple[object, ...]:
    status, spec = key.status, key.spec
    return (
        key.key_id,
        spec.name,
        spec.role,
        status.state,
        format_age(key.metadata.time_created),
        format_time(spec.expires) or "never",
        format_time(status.last_used) or "never",
    )
