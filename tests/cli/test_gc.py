"""What ``runyard gc`` prints of a report; the comparison itself is tested with the server."""

from typing import Any

import pytest

from runyard.cli.resources import gc

SPACE = dict.fromkeys(("database", "blobs", "runFolders", "importFolders", "otherFolders"), 0)
REPORT: dict[str, Any] = {
    "agrees": False,
    "blobs": 0,
    "arriving": 0,
    "blobsWithoutRows": [],
    "rowsWithoutBlobs": [],
    "foldersWithoutRuns": [],
    "foldersWithoutOrganizations": [],
    "foldersWithoutImports": [],
    "isRemoved": False,
    "leftOverBytes": SPACE,
    "freedBytes": None,
}


@pytest.mark.parametrize(
    ("is_removed", "label"),
    [
        (False, "run folders on machines unreferenced"),
        (True, "run folders on machines to be deleted"),
    ],
)
def test_run_folders_on_machines_are_listed_with_their_host(is_removed: bool, label: str) -> None:
    folders = [
        {"machineId": "m1", "host": "gpu-1", "organizationId": "o", "runId": run_id}
        for run_id in ("r1", "r2")
    ]
    report = REPORT | {"isRemoved": is_removed, "foldersOnMachines": folders}
    assert dict(gc._fields(report))[label] == "r1 on gpu-1, r2 on gpu-1"


def test_a_server_of_an_earlier_version_lists_no_machines() -> None:
    assert dict(gc._fields(REPORT))["run folders on machines unreferenced"] == 0
