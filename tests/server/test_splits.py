"""The data's own split through imports, versions and exports."""

import io
import json
import zipfile
from functools import partial

import msgspec
import pytest

from runyard.datasets.packs import build_pack
from runyard.server.services.datasets import versions
from runyard.store.datasets import imports as import_rows
from runyard.store.datasets import versions as version_rows
from tests.server.datasets import Data, jsonl, make_image_bytes, vqa_row
from tests.support.server import TestServer


def make_files(*names: str, splits: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return images of different colors, and a file with a question about each."""
    rows = [vqa_row(number, name) for number, name in enumerate(names, 1)]
    for row, split in zip(rows, splits, strict=False):
        row["split"] = split
    images = {name: make_image_bytes(number) for number, name in enumerate(names, 1)}
    return {**images, "labels.jsonl": jsonl(*rows)}


def read_splits(data: Data, dataset_id: str, version: str) -> dict[str, str | None]:
    """Return the split of each image of a version."""
    services, org = data.server.services, data.server.org
    row = services.store.read(
        partial(version_rows.get, org=org, dataset_id=dataset_id, version=version)
    )
    return {line.filename: line.split for line in versions.iter_lines(services, row)}


async def export(data: Data, dataset_id: str, format: str) -> dict[str, bytes]:
    spec = {"format": format, "options": {"normalized": True, "pictures": True}}
    path = data.path(dataset_id, "datasetExports")
    begun = (await data.api.post(path, json={"spec": spec})).json()
    await data.server.services.jobs.wait_until_idle()
    document = await data.get(dataset_id, "datasetExports", begun["datasetExportId"])
    client = await data.server.client(None)
    content = (await client.get(document["status"]["downloadUrl"]["url"])).content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


async def test_an_import_keeps_the_split_and_pins_it_in_the_version(server: TestServer) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    files = make_files("train/1.png", "train/2.png", "valid/3.png", "test/4.png")
    done = await data.import_files(dataset_id, files)
    counts = {"train": 2, "validation": 1, "test": 1}
    assert (done["spec"]["split"], done["status"]["splits"]) == ("keep", counts)
    report_path = ("imports", done["datasetImportId"], "report")
    assert (await data.get(dataset_id, *report_path))["splits"] == counts
    html = await data.api.get(data.path(dataset_id, *report_path), headers={"accept": "text/html"})
    assert "Split: 2 train, 1 validation, 1 test images." in html.text
    version = done["status"]["version"]
    expected = {"train/1.png": "train", "train/2.png": "train"}
    assert read_splits(data, dataset_id, version) == {
        **expected,
        "valid/3.png": "validation",
        "test/4.png": "test",
    }

    again = await data.import_files(dataset_id, files)
    assert again["status"]["version"] == version
    merged = await data.import_files(dataset_id, files, split="ignore")
    assert (merged["spec"]["split"], merged["status"]["splits"]) == ("ignore", {})
    assert set(read_splits(data, dataset_id, merged["status"]["version"]).values()) == {None}
    other = await data.make(name="merged")
    ignored = await data.import_files(other, files, split="ignore")
    assert ignored["status"]["version"] == merged["status"]["version"] != version


@pytest.mark.sqlite_only
async def test_an_unknown_policy_for_splits_is_refused(server: TestServer) -> None:
    data = Data(server, await server.api())
    path = data.path(await data.make(), "imports")
    refused = await data.api.post(path, json={"spec": {"split": "merge"}})
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidBody")
    assert refused.json()["problems"][0]["path"] == "/spec/split"


@pytest.mark.sqlite_only
async def test_a_later_import_knows_the_splits_of_earlier_ones(server: TestServer) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_files("train/1.png", "test/2.png"))
    leaked = {"test/9.png": make_image_bytes(1), "l.jsonl": jsonl(vqa_row(9, "test/9.png"))}
    done = await data.import_files(dataset_id, leaked)
    assert done["status"]["findings"]["byCode"]["SplitConflict"] == 1
    assert read_splits(data, dataset_id, done["status"]["version"]) == {
        "train/1.png": "train",
        "test/2.png": "test",
        "test/9.png": "train",
    }


@pytest.mark.sqlite_only
@pytest.mark.parametrize("format", ["ViJsonl", "Parquet"])
async def test_an_export_carries_the_split(server: TestServer, format: str) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    files = make_files("1.png", "2.png", "3.png", splits=("train", "val", "test"))
    done = await data.import_files(dataset_id, files)
    exported = await export(data, dataset_id, format)
    copy = await data.make(name="copy")
    again = await data.import_files(copy, exported)
    assert again["status"]["version"] == done["status"]["version"]
    assert again["status"]["splits"] == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.sqlite_only
async def test_the_full_export_names_the_split_in_each_record(server: TestServer) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_files("train/1.png", "test/2.png"))
    exported = await export(data, dataset_id, "ViFull")
    records = [json.loads(text) for name, text in exported.items() if name.endswith(".jsonl")]
    assert [record["split"] for record in records] == ["train", "test"]
    again = await data.import_files(await data.make(name="copy"), exported)
    assert again["status"]["splits"] == {"train": 1, "test": 1}


async def remove_policy(server: TestServer, import_id: str) -> None:
    """Make an import one from before there was a policy for splits."""
    values = {"spec": msgspec.json.encode({"format": "auto", "onError": "RejectRow"})}
    await server.services.store.write(
        partial(import_rows.change, org=server.org, import_id=import_id, values=values)
    )


@pytest.mark.sqlite_only
async def test_an_import_from_before_splits_ends_as_it_began(server: TestServer) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    begun = await data.begin(dataset_id)
    await remove_policy(server, begun["datasetImportId"])
    document = await data.get(dataset_id, "imports", begun["datasetImportId"])
    assert document["spec"]["split"] == "ignore"
    packed = build_pack(make_files("train/1.png", "test/2.png").items())
    await data.send(begun["status"]["upload"]["url"], packed)
    await data.finish(begun, packed)
    done = await data.wait_until_over(begun)
    assert set(read_splits(data, dataset_id, done["status"]["version"]).values()) == {None}
