"""``runyard backup`` and ``runyard restore``: all data of a server, to one file and back.

Both use the running server. A backup is read back and verified before the file gets its name. A
file is verified completely before a restore sends it to the server. ``runyard backup --verify``
does only the verification: hashes, schema and every row with its ids, by the functions that the
server uses, too.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_ERROR, EXIT_USAGE, CommandFailed
from runyard.cli.output import (
    format_size,
    format_time,
    json_option,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    import vi
    from runyard.backup_file import BackupManifest

# The server reads all rows before it sends the first byte, and stores all of them before it
# responds.
TRANSFER_TIMEOUT_S = 3600.0
SHOWN = (
    ("organizations", "organizations"),
    ("runs", "runs"),
    ("flows", "flows"),
    ("training projects", "training_projects"),
    ("checkpoints", "outputs"),
    ("log lines", "log_lines"),
    ("metrics", "metric_keys"),
)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option(
    "--verify", is_flag=True, help="Only check whether FILE can be restored. Needs no server."
)
@data_dir_option
@json_option
def backup(file: Path, overwrite: bool, verify: bool, data_dir: Path | None, as_json: bool) -> None:
    """Back up all data of the server to one file.

    The server keeps running; the file is a consistent snapshot of every run, flow and project with
    logs and metrics, and of every checkpoint. It contains no key that works without the server's
    secrets, but all your data, so only its owner can read it (mode 0600). If files of checkpoints
    were already lost, the exit code is 1.

    With --verify, nothing is written and no server is needed: the file is read completely, and
    hashes, schema, rows and ids are checked as in a restore. Exit code 0: it can be restored
    completely; 1: it cannot, or files of checkpoints are missing from it.
    """
    if verify:
        _verify_file(file, overwrite=overwrite, as_json=as_json)
        return
    if file.exists() and not overwrite:
        raise CommandFailed(
            f"{file} already exists; try: another file, or --overwrite", exit_code=EXIT_USAGE
        )
    with connect(data_dir) as client:
        manifest = _write(client, file)
    if as_json:
        print_json({"file": file, "sizeBytes": file.stat().st_size, "backup": _summary(manifest)})
    else:
        rows = [(title, manifest.count_rows(table)) for title, table in SHOWN]
        print_fields([("backup", file), ("size", format_size(file.stat().st_size)), *rows])
    if manifest.missing_blobs:
        click.echo(
            f"{manifest.missing_blobs} files of checkpoints were already lost and are not in the "
            "backup; try: runyard gc --check to list them",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_ERROR)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation; required without a terminal."
)
@data_dir_option
@json_option
def restore(file: Path, yes: bool, data_dir: Path | None, as_json: bool) -> None:
    """Replace all data of the server with a backup.

    The current data is lost, so the command compares it with the backup and asks for confirmation.
    Runs that were running at the time of the backup and still are continue; those that started
    later are stopped. Your key stays valid.
    """
    manifest = _check(file)
    with connect(data_dir) as client:
        base = f"/workspaces/{client.organization_id}/storage"
        now = client._http.call(
            "GET", f"{base}/contents", params={"since": manifest.time}, decode_as=dict[str, Any]
        )
        if not yes:
            _ask(file, manifest, now)
        restored = _send(client, f"{base}/restores", file)
    if as_json:
        print_json({"backup": _summary(manifest), "before": now, "restored": restored})
        return
    print_fields(
        [
            ("restored", file),
            ("as of", format_time(manifest.time)),
            ("runs", manifest.count_rows("runs")),
        ]
    )
    if restored["organizationId"] != client.organization_id:
        click.echo(
            f"Your key now belongs to {restored['organizationId']}, the organization of the "
            "backup; credentials.json in the server's data folder is already updated.",
            err=True,
        )


def _verify_file(file: Path, *, overwrite: bool, as_json: bool) -> None:
    """Verify a backup and print its contents."""
    if overwrite or not file.is_file():
        what = "--overwrite has no effect with --verify; try: omit it"
        raise CommandFailed(
            what if overwrite else f"{file} is not a file; try: a backup", exit_code=EXIT_USAGE
        )
    manifest = _check(file)
    if as_json:
        result = {
            "file": file,
            "sizeBytes": file.stat().st_size,
            "isRestorable": True,
            "backup": _summary(manifest),
        }
        print_json(result)
    else:
        rows = [(title, manifest.count_rows(table)) for title, table in SHOWN]
        fields = [
            ("backup", file),
            ("as of", format_time(manifest.time)),
            ("size", format_size(file.stat().st_size)),
            *rows,
        ]
        print_fields([*fields, ("can be restored", "yes")])
    if manifest.missing_blobs:
        click.echo(
            f"{manifest.missing_blobs} files of checkpoints were lost before the backup; a restore "
            "recovers everything else.",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_ERROR)


def _write(client: "vi.Client", file: Path) -> "BackupManifest":
    """Download a backup to a temporary file, verify it, and rename it to ``file``."""
    from runyard import rundir

    staged = file.with_name(f".{file.name}.{os.getpid()}")
    path = f"/workspaces/{client.organization_id}/storage/backups"
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as target:
            _fetch(client, path, target)
            target.flush()
            os.fsync(target.fileno())
        manifest = _check(staged, shown_as=file)
        os.replace(staged, file)
        rundir.fsync_dir(file.absolute().parent)
    finally:
        with suppress(FileNotFoundError):
            staged.unlink()
    return manifest


def _fetch(client: "vi.Client", path: str, target: IO[bytes]) -> None:
    from vi.api._progress import byte_progress

    with ExitStack() as stack:
        draw: Callable[[int], None] | None = None

        def begin(length: int | None) -> None:
            nonlocal draw
            draw = stack.enter_context(byte_progress("Downloading", total_bytes=length, show=True))

        def write(chunk: bytes) -> None:
            target.write(chunk)
            if draw is not None:
                draw(target.tell())

        client._http.fetch("POST", path, write, on_length=begin, timeout_s=TRANSFER_TIMEOUT_S)


def _check(file: Path, *, shown_as: Path | None = None) -> "BackupManifest":
    """Read a backup completely and check everything that a restore checks.

    Raises:
        CommandFailed: It cannot be restored.
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
        response = client._http.send(
            "POST", path, content=FileBody(file), timeout_s=TRANSFER_TIMEOUT_S, on_sent=draw
        )
    restored: dict[str, Any] = msgspec.json.decode(response.body)
    return restored


def _ask(file: Path, manifest: "BackupManifest", now: dict[str, Any]) -> None:
    """Print current data next to that of the backup, and ask for confirmation.

    Raises:
        CommandFailed: The answer was no.
    """
    rows = [(title, now["rows"][table], manifest.count_rows(table)) for title, table in SHOWN]
    print_table(("", "NOW", f"IN THE FILE, OF {format_time(manifest.time)}"), rows)
    newer = now["runsSince"]
    click.echo(
        f"{newer} runs were created after the backup and will be lost."
        if newer
        else "No run is newer."
    )
    try:
        click.confirm(f"Replace all data of the server with {file}?", abort=True)
    except click.Abort:
        raise CommandFailed(
            "nothing was changed; try: --yes to skip the question", exit_code=EXIT_USAGE
        ) from None


def _summary(manifest: "BackupManifest") -> dict[str, Any]:
    """Return the manifest without the hashes of its parts."""
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
