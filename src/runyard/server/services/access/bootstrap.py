"""The first start: an organization, its admin key, the controller's key.

The key file is written before the rows, because a key exists in clear only once. A crash in between
leaves a file whose key the next start adopts, never a database whose key nobody knows. Keys go to
files of mode 0600 and nowhere else.
"""

import json
import secrets
import string
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from runyard.rundir import read_json
from runyard.security import key_format
from runyard.server.services.access.keys import secret_mac
from runyard.server.services.access.secrets import (
    UnusableSecret,
    fingerprint,
    read_private,
    write_private,
)
from runyard.settings import Settings
from runyard.store import Store, lease_clock, organizations
from runyard.store.access import keys as key_rows

ORG_ALPHABET = string.ascii_lowercase + string.digits


async def bootstrap(settings: Settings, store: Store, pepper: bytes, *, now_ms: int) -> bool:
    """Create what a new store lacks; return whether it was new.

    Raises:
        UnusableSecret: a file of keys is damaged, or the secrets do not belong to this store.
    """
    credentials = read_private(settings.credentials_file)
    if not is_new(store):
        await _check_secrets(settings, store, pepper, credentials or {}, now_ms=now_ms)
        name_organization(settings, store)
        return False
    org, secret_key = _read_or_create_credentials(settings.credentials_file)
    controller_key = _read_or_create_controller_key(settings.controller_file)

    def insert_organization_and_keys(tx: Connection) -> None:
        organizations.set_meta(tx, organizations.STORE_ID, secrets.token_hex(4))
        organizations.set_meta(tx, organizations.PEPPER, fingerprint(pepper))
        lease_clock.insert_clock(tx)
        organizations.add(tx, org=org, name="My organization", time_ms=now_ms)
        for key, of, role, name in (
            (secret_key, org, "admin", "first key"),
            (controller_key, None, "controller", "controller"),
        ):
            add_key(
                tx,
                key,
                pepper,
                org=of,
                role=role,
                name=name,
                now_ms=now_ms,
                created_by="first start",
            )

    await store.write(insert_organization_and_keys)
    return True


def is_new(store: Store) -> bool:
    """Return whether a store has never been served from."""
    return store.read(lambda tx: organizations.get_meta(tx, organizations.STORE_ID)) is None


async def _check_secrets(
    settings: Settings, store: Store, pepper: bytes, credentials: dict[str, Any], *, now_ms: int
) -> None:
    """Refuse secrets under which no key of the store verifies: every request would be rejected.

    A store from before its pepper was recorded gets the record now, unless a key in a file says
    that this is another pepper. A missing controller key is replaced; its file is the server's own.
    """
    path = settings.controller_file
    machine_key = (read_private(path) or {}).get("key")
    known = {row.id: bytes(row.secret_mac) for row in store.read(key_rows.list_all)}
    noted = store.read(lambda tx: organizations.get_meta(tx, organizations.PEPPER))
    parts = [key_format.parse(str(key)) for key in (machine_key, credentials.get("secret_key"))]
    foreign = [
        each
        for each in parts
        if each and each.key_id in known and known[each.key_id] != secret_mac(pepper, each.secret)
    ]
    if noted != fingerprint(pepper) and (noted is not None or foreign):
        raise UnusableSecret(
            f"the secrets in {settings.secrets_dir} do not belong to this database: every key "
            "would be rejected; try: put back the folder that was used with it, or name the data "
            "folder that belongs to it with --data-dir"
        )
    of_machine = parts[0]
    if path.exists() and (
        of_machine is None or of_machine.key_id not in known or of_machine in foreign
    ):
        raise UnusableSecret(
            f"{path} holds no key of this database, so no machine could claim a run; try: put back "
            "a copy of it, or remove it, and the server creates another at its next start"
        )
    made = None if path.exists() else _read_or_create_controller_key(path)

    def insert_missing_pepper_and_key(tx: Connection) -> None:
        if noted is None:
            organizations.set_meta(tx, organizations.PEPPER, fingerprint(pepper))
        if made is not None:
            add_key(
                tx,
                made,
                pepper,
                org=None,
                role="controller",
                name="controller",
                now_ms=now_ms,
                created_by="start without a controller key",
            )

    if noted is None or made is not None:
        await store.write(insert_missing_pepper_and_key)


def name_organization(settings: Settings, store: Store) -> None:
    """Write the organization that the key belongs to into the credentials file.

    A restore may have changed it. This also runs at each start, since the restored store is on disk
    before the file is.
    """
    document = read_json(settings.credentials_file) or {}
    parts = key_format.parse(str(document.get("secret_key")))
    org = next(
        (row.org for row in store.read(key_rows.list_all) if parts and row.id == parts.key_id), None
    )
    if org is not None and document.get("organization_id") != org:
        write_private(
            settings.credentials_file,
            json.dumps(document | {"organization_id": org}, indent=2) + "\n",
        )


def write_endpoint(settings: Settings, endpoint: str, *, certificate: str | None = None) -> None:
    """Write the server's address into the files that hold keys, keeping the keys.

    ``certificate`` is the file of the certificate that the server presents; None without TLS.
    """
    for path in (settings.credentials_file, settings.controller_file):
        before = read_json(path)
        if before is None:
            continue
        document = before | {"endpoint": endpoint, "certificate": certificate}
        if certificate is None:
            del document["certificate"]
        if document != before:
            write_private(path, json.dumps(document, indent=2) + "\n")


def add_key(
    tx: Connection,
    key: str,
    pepper: bytes,
    *,
    org: str | None,
    role: str,
    name: str,
    now_ms: int,
    created_by: str,
    expires: int | None = None,
) -> str:
    """Insert a key without its secret; return its id."""
    parts = key_format.parse(key)
    if parts is None:
        raise ValueError(
            f"the {name} in the data folder is not a key; try: remove its file, and a new one is "
            "created"
        )
    key_rows.add(
        tx,
        key_id=parts.key_id,
        org=org,
        role=role,
        secret_mac=secret_mac(pepper, parts.secret),
        name=name,
        time_ms=now_ms,
        created_by=created_by,
        expires=expires,
    )
    return parts.key_id


def _read_or_create_credentials(path: Path) -> tuple[str, str]:
    document = read_json(path) or {}
    if not ("organization_id" in document and key_format.parse(str(document.get("secret_key")))):
        # No underscore: dataset ids are sent as {org}_{dataset} and are cut at the last one.
        document["organization_id"] = "org-" + "".join(
            secrets.choice(ORG_ALPHABET) for _ in range(8)
        )
        document["secret_key"] = key_format.new_key()
        write_private(path, json.dumps({"endpoint": "", **document}, indent=2) + "\n")
    return str(document["organization_id"]), str(document["secret_key"])


def _read_or_create_controller_key(path: Path) -> str:
    document = read_json(path) or {}
    if not key_format.parse(str(document.get("key"))):
        document["key"] = key_format.new_key()
        write_private(path, json.dumps({"endpoint": "", **document}, indent=2) + "\n")
    return str(document["key"])
