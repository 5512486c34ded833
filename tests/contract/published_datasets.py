"""A program for the environment of the published client: datasets, as its users use them.

It reads a folder's path from standard input and prints one JSON object with the result or error of
each call; ``test_published_datasets.py`` judges. That client polls a session
every ten seconds; here it polls more often, which is the only change.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import vi
from vi.api.resources.datasets.types import (
    DatasetExportFormat,
    DatasetExportOptions,
    DatasetExportSettings,
)

REALLY_SLEEP = time.sleep


def sleep_briefly(seconds: Any) -> None:
    REALLY_SLEEP(min(seconds, 0.1))


def attempt(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": call()}
    except vi.ViError as error:
        return {
            "error": type(error).__name__,
            "status": error.status_code,
            "message": error.message,
        }
    except (
        Exception
    ) as error:  # reported as it is, so that the test that looks for another answer shows it
        return {"error": type(error).__name__, "message": str(error)}


def dataset_seen(dataset: Any) -> dict[str, Any]:
    return {
        "id": dataset.dataset_id,
        "name": dataset.name,
        "assets": dataset.statistic.asset_total,
        "annotations": dataset.statistic.annotation_total,
    }


def annotation_seen(annotation: Any) -> dict[str, Any]:
    contents = annotation.spec.contents
    return {
        "id": annotation.annotation_id,
        "kind": type(contents).__name__,
        "whole": annotation.spec.aggregation.whole.id,
    }


def main() -> None:
    given = json.load(sys.stdin)
    folder = Path(given["folder"])
    time.sleep = sleep_briefly
    seen: dict[str, Any] = {}

    def see(name: str, call: Callable[[], Any]) -> Any:
        seen[name] = attempt(call)
        return seen[name].get("value")

    client: Any  # the published package's: the type checker sees ours
    with vi.Client() as client:
        made = client.datasets.create(
            "Shelves", "phrase-grounding", description="boxes", metadata={"team": "v"}
        )
        ds = made.dataset_id
        seen["create"] = {"value": dataset_seen(made)}
        see(
            "upload",
            lambda: str(
                type(client.assets.upload(ds, folder / "images", show_progress=False)).__name__
            ),
        )
        see("get after upload", lambda: dataset_seen(client.datasets.get(ds)))
        see(
            "annotate",
            lambda: (
                client.annotations.upload(ds, folder / "labels", show_progress=False).is_complete
            ),
        )
        see(
            "annotate again",
            lambda: (
                client.annotations.upload(ds, folder / "labels", show_progress=False).is_complete
            ),
        )
        see("get", lambda: dataset_seen(client.datasets.get(ds)))
        see("list", lambda: [d.dataset_id for d in client.datasets.list().all_items()])
        see("list simple", lambda: len(client.datasets.list_simple().items))
        page = client.assets.list(ds, pagination={"page_size": 2}, contents=True)
        see("assets", lambda: [asset.filename for asset in page.items])
        see(
            "filtered",
            lambda: [
                a.filename for a in client.assets.list(ds, filter_criteria={"filename": "1"}).items
            ],
        )
        see("count", lambda: client.assets.count(ds))
        asset = next(item.asset_id for item in page.items if item.filename == "1.png")
        see(
            "asset",
            lambda: client.assets.get(ds, asset, contents=True).contents.asset.url.rpartition("/")[
                2
            ],
        )
        listed = list(client.annotations.list(ds, asset).all_items())
        seen["annotations"] = {"value": [annotation_seen(annotation) for annotation in listed]}
        see(
            "annotation",
            lambda: annotation_seen(client.annotations.get(ds, asset, listed[1].annotation_id)),
        )
        body = {"spec": {"contents": {"bound": [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]}}}
        see(
            "change box",
            lambda: client.annotations.update(
                ds, asset, listed[1].annotation_id, body
            ).spec.contents.bound[2],
        )
        see("delete box", lambda: client.annotations.delete(ds, asset, listed[1].annotation_id).id)
        see(
            "download images",
            lambda: client.assets.download(ds, save_dir=folder / "down", show_progress=False) and 1,
        )
        settings = DatasetExportSettings(
            format=DatasetExportFormat.VI_FULL,
            options=DatasetExportOptions(normalized=True, split_ratio=0.5),
        )

        def export(settings: DatasetExportSettings) -> Any:
            return client.datasets.create_export(ds, settings).spec.format.value

        see("export", partial(export, settings))
        for name, format in (("export Coco", "COCO"), ("export PascalVoc", "PASCAL_VOC")):
            settings = DatasetExportSettings(
                format=DatasetExportFormat[format],
                options=DatasetExportOptions(normalized=True, split_ratio=None),
            )
            see(name, partial(export, settings))
        see("exports", lambda: len(client.datasets.list_exports(ds).items))
        # Its threads unpack without agreeing on who creates a folder, so sometimes it
        # exists already.
        for _ in range(5):
            see(
                "download",
                lambda: (
                    client.datasets.download(ds, save_dir=folder / "full", show_progress=False)
                    and 1
                ),
            )
            if seen["download"].get("error") != "FileExistsError":
                break
            shutil.rmtree(folder / "full")
        see("rename", lambda: client.assets.rename(ds, "renamed.png", asset_id=asset) and 1)
        see("update", lambda: dataset_seen(client.datasets.update(ds, spec={"name": "New name"})))
        see("collaborators", lambda: len(client.datasets.list_collaborators(ds).items))
        see("statistics", lambda: bool(client.datasets.get_aggregation_statistics(ds)))
        see(
            "broken", lambda: client.assets.upload(ds, folder / "broken", show_progress=False) and 1
        )
        see("delete asset", lambda: client.assets.delete(ds, asset).id)
        see(
            "bulk", lambda: client.datasets.bulk_delete_assets(ds, filter_criteria="png").dataset_id
        )
        see("count at last", lambda: client.assets.count(ds))
        see("delete", lambda: client.datasets.delete(ds).dataset_id)
        see("deletion", lambda: client.datasets.get_deletion_operation(ds).dataset_id)
        see("get after delete", lambda: dataset_seen(client.datasets.get(ds)))
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
