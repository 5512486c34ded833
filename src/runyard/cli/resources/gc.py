"""``runyard gc``: comparison of the server's database with its disk, and deletion of unreferenced
data.

The running server does the comparison, because only it knows which uploads are in progress.
"""

from pathlib import Path
from typing import Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_ERROR
from runyard.cli.output import format_size, json_option, print_fields, print_json


@click.command()
@click.option(
    "--check",
    "is_check",
    is_flag=True,
    help="Delete nothing; exit with 1 if database and disk disagree.",
)
@data_dir_option
@json_option
def gc(is_check: bool, data_dir: Path | None, as_json: bool) -> None:
    """Compare database and disk, and delete unreferenced data.

    Unreferenced data is kept while runs of the organization are on a machine or imports are in
    progress, because it may belong to an upload. Free space of the database is returned to the
    disk; the first time, a database of an older version is rebuilt for that, which blocks writes.
    Lost files cannot be repaired; they result in exit code 1.
    """
    with connect(data_dir) as client:
        path = f"/workspaces/{client.organization_id}/storage"
        if is_check:
            report = client._http.call("GET", path, decode_as=dict[str, Any])
        else:
            report = client._http.call("POST", f"{path}/collections", decode_as=dict[str, Any])
    if as_json:
        print_json(report)
    else:
        print_fields(_fields(report))
    is_bad = not report["agrees"] if is_check else bool(report["rowsWithoutBlobs"])
    if is_bad:
        raise click.exceptions.Exit(EXIT_ERROR)


def _fields(report: dict[str, Any]) -> list[tuple[str, object]]:
    state = "deleted" if report["isRemoved"] else "unreferenced"
    lost = [
        f"{file['runId']}/{file['modelId']}/{file['path']}"
        if file["runId"]
        else f"{file['datasetId']} {file['path']}"
        for file in report["rowsWithoutBlobs"]
    ]
    omitted = int(report.get("omitted", 0))
    return [
        ("store and disk", "agree" if report["agrees"] else "disagree"),
        ("blobs", report["blobs"]),
        ("possibly uploading", report["arriving"]),
        (f"blobs {state}", len(report["blobsWithoutRows"])),
        (f"run folders {state}", ", ".join(report["foldersWithoutRuns"]) or 0),
        (f"import folders {state}", ", ".join(report["foldersWithoutImports"]) or 0),
        (
            "run folders on machines " + ("to be deleted" if report["isRemoved"] else state),
            ", ".join(
                f"{folder['runId']} on {folder['host']}"
                for folder in report.get("foldersOnMachines", ())
            )
            or 0,
        ),
        (f"organizations' folders {state}", ", ".join(report["foldersWithoutOrganizations"]) or 0),
        ("lost files", ", ".join(lost) or 0),
        *([("further entries, not listed", omitted)] if omitted else []),
        *_space(
            "freed" if report["isRemoved"] else "could free",
            report["freedBytes"] or report["leftOverBytes"],
        ),
    ]


def _space(what: str, space: dict[str, Any]) -> list[tuple[str, object]]:
    places = {
        "database": "database",
        "blobs": "blobs",
        "runFolders": "run folders",
        "importFolders": "import folders",
        "otherFolders": "other folders",
    }
    return [
        (
            f"{what}: {name}",
            "left to PostgreSQL (autovacuum)"
            if space[field] is None
            else format_size(space[field]),
        )
        for field, name in places.items()
    ]
