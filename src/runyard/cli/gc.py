"""``runyard gc``: whether the server's database and its disk agree, and the removal of what nothing needs.

The running server compares, since it alone knows what is arriving just now; this is its voice.
"""

from pathlib import Path
from typing import Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_ERROR
from runyard.cli.output import json_option, print_fields, print_json, size


@click.command()
@click.option("--check", "is_check", is_flag=True, help="Remove nothing; exit with 1 when store and disk disagree.")
@data_dir_option
@json_option
def gc(is_check: bool, data_dir: Path | None, as_json: bool) -> None:
    """Prove that database and disk agree; remove what nothing needs.

    Bytes that nothing needs are left alone while runs of the organisation are held by a machine or imports are under
    way, since they may just be arriving. Free space of the database goes back to the disk; the first time, a database
    of an older Runyard is rebuilt for that, and writes wait meanwhile. Lost bytes cannot be mended here; they end the
    command with exit code 1.
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
    left_over = "removed" if report["isRemoved"] else "left over"
    lost = [
        f"{file['runId']}/{file['modelId']}/{file['path']}" if file["runId"] else f"{file['datasetId']} {file['path']}"
        for file in report["rowsWithoutBlobs"]
    ]
    omitted = int(report.get("omitted", 0))
    return [
        ("store and disk", "agree" if report["agrees"] else "disagree"),
        ("blobs", report["blobs"]),
        ("perhaps arriving", report["arriving"]),
        (f"blobs {left_over}", len(report["blobsWithoutRows"])),
        (f"run folders {left_over}", ", ".join(report["foldersWithoutRuns"]) or 0),
        (f"import folders {left_over}", ", ".join(report["foldersWithoutImports"]) or 0),
        (f"organizations' folders {left_over}", ", ".join(report["foldersWithoutOrganizations"]) or 0),
        ("files lost", ", ".join(lost) or 0),
        *([("further entries, not listed", omitted)] if omitted else []),
        *_space("freed" if report["isRemoved"] else "could free", report["freedBytes"] or report["leftOverBytes"]),
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
        (f"{what}: {name}", "left to PostgreSQL (autovacuum)" if space[field] is None else size(space[field]))
        for field, name in places.items()
    ]
