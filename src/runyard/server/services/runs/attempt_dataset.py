"""The data that an attempt trains on: the dataset versions its run is pinned to, and their blobs.

The attempt's token opens these blobs and no others. The span of an image may change while an
attempt fetches it, when a pack is rewritten. Then the blob is not found, and the supervisor asks
again.
"""

from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.blobs import BlobError
from runyard.protocol import AttemptDataset, StoredBytes
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Services
from runyard.server.services.datasets import versions
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import leases
from runyard.store.datasets import assets as asset_rows
from runyard.store.datasets import datasets as dataset_rows
from runyard.store.datasets import versions as rows
from runyard.store.tables import AnyRow


def get_version(
    services: Services, token: AttemptToken, *, dataset_id: str | None = None
) -> AttemptDataset:
    """Return a version that an attempt's run is pinned to, and the blobs that hold it.

    ``dataset_id`` may be left out if there is only one.

    Raises:
        Refusal: LeaseLost; NotFound (its data is built in, or is not that dataset);
            BlobMissing.
    """
    dataset, row = _get_pinned_version(services, token, dataset_id)
    packs = {span.sha256 for span in _find_spans(services, row).values()}
    blobs = services.blobs(token.org)
    if missing := sorted(sha256 for sha256 in packs if not blobs.has(sha256)):
        raise Refusal(
            "BlobMissing",
            f"images of dataset {row.dataset_id!r} are lost: blob {missing[0]} is missing",
        )
    services.packs_of_versions[token.org, row.id] = packs
    return AttemptDataset(
        dataset_id=row.dataset_id,
        version=row.id,
        type=dataset.type,
        assets=row.asset_count,
        records=row.record_count,
        size_bytes=row.size_bytes,
        manifest=StoredBytes(sha256=row.sha256, size_bytes=row.manifest_bytes),
        packs=[
            StoredBytes(sha256=sha256, size_bytes=blobs.size_bytes(sha256))
            for sha256 in sorted(packs)
        ],
    )


def list_blob_spans(
    services: Services, token: AttemptToken, *, dataset_id: str | None = None
) -> bytes:
    """Return where each image of a version of the attempt is stored.

    One JSON line each: content hash, blob, offset, size.

    Raises:
        Refusal: LeaseLost, NotFound, BlobMissing.
    """
    _, row = _get_pinned_version(services, token, dataset_id)
    spans = _find_spans(services, row)
    return b"".join(
        msgspec.json.encode([content, span.sha256, span.offset, span.size_bytes]) + b"\n"
        for content, span in sorted(spans.items())
    )


def has_blob(services: Services, token: AttemptToken, sha256: str) -> bool:
    """Return whether a blob holds part of a version that the attempt's run is pinned to.

    Raises:
        Refusal: LeaseLost, BlobMissing.
    """
    pinned = _list_pinned_versions(services, token)
    if any(
        sha256 == row.sha256 or sha256 in services.packs_of_versions.get((token.org, row.id), set())
        for _, row in pinned
    ):
        return True
    for _, row in pinned:
        packs = {span.sha256 for span in _find_spans(services, row).values()}
        services.packs_of_versions[token.org, row.id] = packs
        if sha256 in packs:
            return True
    return False


def _get_pinned_version(
    services: Services, token: AttemptToken, dataset_id: str | None
) -> tuple[AnyRow, AnyRow]:
    """Return the rows of the dataset and of its version."""
    pinned = _list_pinned_versions(services, token)
    if not pinned:
        raise Refusal("NotFound", "this run trains on built-in data; there is nothing to fetch")
    found = [each for each in pinned if dataset_id in (None, each[0].id)]
    if len(found) != 1:
        given = "no dataset" if dataset_id is None else f"dataset {dataset_id!r}"
        names = ", ".join(dataset.id for dataset, _ in pinned)
        raise Refusal(
            "NotFound", f"{given} was named, but this run's datasets are {names}; try: one of them"
        )
    return found[0]


def _list_pinned_versions(services: Services, token: AttemptToken) -> list[tuple[AnyRow, AnyRow]]:
    """Return the rows of each dataset and of its version; none for built-in data."""

    def find_pinned_versions(tx: Connection) -> list[tuple[AnyRow, AnyRow]]:
        _, run = leases.get_open_attempt(services, tx, token)
        found = []
        for pinned in rows.list_pinned(tx, org=token.org, run_id=run.id):
            key: Any = {"org": token.org, "dataset_id": pinned.dataset_id}
            row = rows.get(tx, **key, version=pinned.version)
            dataset = dataset_rows.get(tx, **key)
            if row is None or dataset is None:
                raise Refusal(
                    "BlobMissing",
                    f"version {pinned.version} of dataset {pinned.dataset_id!r} is gone",
                )
            found.append((dataset, row))
        return found

    return services.store.read(find_pinned_versions)


def _find_spans(services: Services, row: AnyRow) -> dict[str, AnyRow]:
    """Return the span of each image of a version, by content hash."""
    try:
        requested = versions.list_image_hashes(services, row)
    except BlobError as error:
        raise Refusal(
            "BlobMissing",
            f"the manifest of version {row.id} of dataset {row.dataset_id!r} is lost or damaged",
        ) from error
    spans = services.store.read(partial(asset_rows.find_blob_spans, org=row.org, hashes=requested))
    if missing := sorted(requested - set(spans)):
        raise Refusal("BlobMissing", f"image {missing[0]} of dataset {row.dataset_id!r} is missing")
    return spans
