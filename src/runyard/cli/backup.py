"""``runyard backup`` and ``runyard restore``: everything a server keeps, out of it into one file and back.

Both speak to the running server. What is written is read back and checked before the file gets its name, and what is to
be restored is checked as a whole before the server hears of it: the mistake that is found here costs nothing.
``runyard backup --verify`` makes the same check alone: hashes, schema, and every row with its ids, by the same
functions with which the server writes and restores.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_ERROR, EXIT_USAGE, CommandFailed
from runyard.cli.output import json_option, local_time, print_fields, print_json, print_table, size

if TYPE_CHECKING:
    import vi
    from runyard.backup_file import Manifest

# The server writes all rows down before the first byte comes, and takes all of them in before it answers.
PATIENCE_S = 3600.0
SHOWN = (
    ("organizations", "organizations"),
    ("runs", "runs"),
    ("flows", "flows"),
    ("training projects", "training_projects"),
    ("checkpoints", "outputs"),
    ("log lines", "log_lines"),
    ("metric points", "metrics"),
)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace a file that is there already.")
@click.option("--verify", is_flag=True, help="Verify FILE instead: can it be restored? Needs no server.")
@data_dir_option
@json_option
def backup(file: Path, overwrite: bool, verify: bool, data_dir: Path | None, as_json: bool) -> None:
    """Write everything the server keeps into one file.

    The server goes on meanwhile; the file holds one moment: every run, flow and project with its lines and metrics, and
    every checkpoint. It holds no key that could be used without the server's secrets, yet all your data: it is made for
    your eyes alone (mode 0600). Checkpoints whose bytes were lost before end the command with exit code 1.

    With --verify nothing is written and no server is asked: the whole file is read, every hash compared, and schema,
    rows and ids are checked as a restore checks them. Exit code 0 says that it can be restored whole; 1 that it cannot,
    or that files of checkpoints are missing from it.
    """
    if verify:
        _show_verified(file, overwrite=overwrite, as_json=as_json)
        return
    if file.exists() and not overwrite:
        raise CommandFailed(f"{file} is there already; name another file, or give --overwrite", exit_code=EXIT_USAGE)
    with connect(data_dir) as client:
        manifest = _write(client, file)
    if as_json:
        print_json({"file": file, "sizeBytes": file.stat().st_size, "backup": _summary(manifest)})
    else:
        rows = [(title, manifest.count_rows(table)) for title, table in SHOWN]
        print_fields([("backup", file), ("size", size(file.stat().st_size)), *rows])
    if manifest.missing_blobs:
        click.echo(
            f"{manifest.missing_blobs} files of checkpoints were lost before and are not in the backup; "
            "`runyard gc --check` names them.",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_ERROR)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can be asked.")
@data_dir_option
@json_option
def restore(file: Path, yes: bool, data_dir: Path | None, as_json: bool) -> None:
    """Put a backup in the place of everything the server keeps.

    What the server keeps now is gone afterwards, so this shows it beside what the file holds and asks. Runs that were
    training when the backup was made and still do go on; those that began later are ended. Your key stays good.
    """
    manifest = _check(file)
    with connect(data_dir) as client:
        base = f"/workspaces/{client.organization_id}/storage"
        now = client._http.call("GET", f"{base}/contents", params={"since": manifest.time}, decode_as=dict[str, Any])
        if not yes:
            _ask(file, manifest, now)
        restored = _send(client, f"{base}/restores", file)
    if as_json:
        print_json({"backup": _summary(manifest), "before": now, "restored": restored})
        return
    print_fields([("restored", file), ("as of", local_time(manifest.time)), ("runs", manifest.count_rows("runs"))])
    if restored["organizationId"] != client.organization_id:
        click.echo(
            f"Your key now belongs to the organization {restored['organizationId']}, which the backup is of; "
            "credentials.json in the server's data folder says so already.",
            err=True,
        )


def _show_verified(file: Path, *, overwrite: bool, as_json: bool) -> None:
    """Verify a file and show what it holds."""
    if overwrite or not file.is_file():
        what = "--verify writes nothing, so --overwrite says nothing; leave it out"
        raise CommandFailed(what if overwrite else f"{file} is no file; name a backup", exit_code=EXIT_USAGE)
    manifest = _check(file)
    if as_json:
        told = {"file": file, "sizeBytes": file.stat().st_size, "isRestorable": True, "backup": _summary(manifest)}
        print_json(told)
    else:
        rows = [(title, manifest.count_rows(table)) for title, table in SHOWN]
        fields = [("backup", file), ("as of", local_time(manifest.time)), ("size", size(file.stat().st_size)), *rows]
        print_fields([*fields, ("can be restored", "yes")])
    if manifest.missing_blobs:
        click.echo(
            f"{manifest.missing_blobs} files of checkpoints were lost before the backup was made; a restore brings "
            "back everything else.",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_ERROR)


def _write(client: "vi.Client", file: Path) -> "Manifest":
    """Fetch a backup beside the file, read it back, and only then give it its name."""
    from runyard import rundir

    beside = file.with_name(f".{file.name}.{os.getpid()}")
    path = f"/workspaces/{client.organization_id}/storage/backups"
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as target:
            _fetch(client, path, target)
            target.flush()
            os.fsync(target.fileno())
        manifest = _check(beside, shown_as=file)
        os.replace(beside, file)
        rundir.fsync_dir(file.absolute().parent)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
    return manifest


def _fetch(client: "vi.Client", path: str, target: IO[bytes]) -> None:
    from vi.api._progress import byte_progress

    with ExitStack() as stack:
        draw: Callable[[int], None] | None = None

        def begin(length: int | None) -> None:
            nonlocal draw
            draw = stack.enter_context(byte_progress("Fetching", total_bytes=length, show=True))

        def write(chunk: bytes) -> None:
            target.write(chunk)
            if draw is not None:
                draw(target.tell())

        client._http.fetch("POST", path, write, on_length=begin, timeout_s=PATIENCE_S)


def _check(file: Path, *, shown_as: Path | None = None) -> "Manifest":
    """Read all of a backup and check everything that a restore checks.

    Raises:
        CommandFailed: it cannot be restored.
    """
    from runyard import backup_schema
    from runyard.backup_file import CHUNK_BYTES, BackupFileError, verify_backup
    from runyard.backup_rows import Verifier, parse_columns
    from vi.api._progress import byte_progress

    def pieces() -> Iterator[bytes]:
        with (
            open(file, "rb") as source,
            byte_progress("Checking", total_bytes=file.stat().st_size, show=True) as draw,
        ):
            while piece := source.read(CHUNK_BYTES):
                yield piece
                draw(source.tell())

    tables = {name: parse_columns(notation) for name, notation in backup_schema.TABLES.items()}
    try:
        return verify_backup(pieces(), Verifier(backup_schema.REVISION, tables))
    except BackupFileError as error:
        raise CommandFailed(f"{shown_as or file} cannot be restored: {error}") from error


def _send(client: "vi.Client", path: str, file: Path) -> dict[str, Any]:
    import msgspec

    from vi._http.requests import FileBody
    from vi.api._progress import byte_progress

    with byte_progress("Restoring", total_bytes=file.stat().st_size, show=True) as draw:
        answer = client._http.send("POST", path, content=FileBody(file), timeout_s=PATIENCE_S, on_sent=draw)
    restored: dict[str, Any] = msgspec.json.decode(answer.body)
    return restored


def _ask(file: Path, manifest: "Manifest", now: dict[str, Any]) -> None:
    """Show what is lost and what comes, and go on only with a yes."""
    rows = [(title, now["rows"][table], manifest.count_rows(table)) for title, table in SHOWN]
    print_table(("", "NOW", f"IN THE FILE, OF {local_time(manifest.time)}"), rows)
    newer = now["runsSince"]
    click.echo(f"{newer} runs were created after the backup and will be gone." if newer else "No run is newer.")
    try:
        click.confirm(f"Replace everything the server keeps with {file}?", abort=True)
    except click.Abort:
        raise CommandFailed("nothing was changed; --yes restores without asking", exit_code=EXIT_USAGE) from None


def _summary(manifest: "Manifest") -> dict[str, Any]:
    """The manifest without the hashes of its parts."""
    return {
        "time": manifest.time,
        "epoch": manifest.store_id,
        "schemaRevision": manifest.schema_revision,
        "writtenBy": manifest.written_by,
        "rows": {part.name: part.rows for part in manifest.tables},
        "blobs": manifest.blob_count,
        "blobBytes": manifest.blob_bytes,
        "missingBlobs": manifest.missing_blobs,
    }
