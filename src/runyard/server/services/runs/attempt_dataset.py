"""The data that an attempt trains on: the dataset version its run is pinned to, and its blobs.

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


def get_version(services: Services, token: AttemptToken) -> AttemptDataset:
    """Return the version that an attempt's run is pinned to, and the blobs that hold it.

    Raises:
        Refusal: LeaseLost; NotFound (its data is built in); BlobMissing.
    """
    dataset, row = _get_pinned_version(services, token)
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


def list_blob_spans(services: Services, token: AttemptToken) -> bytes:
    """Return where each image of the attempt's version is stored.

    One JSON line each: content hash, blob, offset, size.

    Raises:
        Refusal: LeaseLost, NotFound, BlobMissing.
    """
    _, row = _get_pinned_version(services, token)
    spans = _find_spans(services, row)
    return b"".join(
        msgspec.json.encode([content, span.sha256, span.offset, span.size_bytes]) + b"\n"
        for content, span in sorted(spans.items())
    )


def has_blob(services: Services, token: AttemptToken, sha256: str) -> bool:
    """Return whether a blob holds part of the version that the attempt's run is pinned to.

    Raises:
        Refusal: LeaseLost.
    """
    try:
        _, row = _get_pinned_version(services, token)
    except Refusal as error:
        if error.code == "NotFound":
            return False
        raise
    known = services.packs_of_versions.get((token.org, row.id), set())
    if sha256 == row.sha256 or sha256 in known:
        return True
    services.packs_of_versions[token.org, row.id] = {
        span.sha256 for span in _find_spans(services, row).values()
    }
    return sha256 in services.packs_of_versions[token.org, row.id]


def _get_pinned_version(services: Services, token: AttemptToken) -> tuple[AnyRow, AnyRow]:
    """Return the rows of the dataset and of its version."""

    def find_pinned_version(tx: Connection) -> tuple[AnyRow, AnyRow]:
        _, run = leases.get_open_attempt(tx, token)
        pinned = rows.get_pinned(tx, org=token.org, run_id=run.id)
        if pinned is None:
            raise Refusal("NotFound", "this run trains on built-in data; there is nothing to fetch")
        key: Any = {"org": token.org, "dataset_id": pinned.dataset_id}
        row = rows.get(tx, **key, version=pinned.version)
        dataset = dataset_rows.get(tx, **key)
        if row is None or dataset is None:
            raise Refusal(
                "BlobMissing", f"version {pinned.version} of dataset {pinned.dataset_id!r} is gone"
            )
        return dataset, row

    return services.store.read(find_pinned_version)


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
