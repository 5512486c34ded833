"""What an attempt learns from: the version of a dataset that its run is pinned to, and the blobs that hold it.

Its token opens these and no others. Where pictures lie may change while an attempt fetches them, when a pack is written
anew; then a blob is not found any more, and the supervisor asks again.
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
from runyard.store import assets as asset_rows
from runyard.store import datasets as dataset_rows
from runyard.store import versions as rows
from runyard.store.tables import AnyRow


def offered(services: Services, token: AttemptToken) -> AttemptDataset:
    """The version that an attempt's run is pinned to, and which blobs hold it.

    Raises:
        Refusal: LeaseLost; NotFound (its data is built in); BlobMissing.
    """
    dataset, row = _of_attempt(services, token)
    packs = {place.sha256 for place in _places(services, row).values()}
    blobs = services.blobs(token.org)
    if missing := sorted(sha256 for sha256 in packs if not blobs.has(sha256)):
        raise Refusal("BlobMissing", f"pictures of dataset {row.dataset_id!r} are lost: blob {missing[0]} is not here")
    services.packs_of_versions[token.org, row.id] = packs
    return AttemptDataset(
        dataset_id=row.dataset_id,
        version=row.id,
        type=dataset.type,
        assets=row.asset_count,
        records=row.record_count,
        size_bytes=row.size_bytes,
        manifest=StoredBytes(sha256=row.sha256, size_bytes=row.manifest_bytes),
        packs=[StoredBytes(sha256=sha256, size_bytes=blobs.size_bytes(sha256)) for sha256 in sorted(packs)],
    )


def offered_places(services: Services, token: AttemptToken) -> bytes:
    """Where each picture of the attempt's version lies, a JSON line each: content, blob, offset, size.

    Raises:
        Refusal: LeaseLost, NotFound, BlobMissing.
    """
    _, row = _of_attempt(services, token)
    places = _places(services, row)
    return b"".join(
        msgspec.json.encode([content, place.sha256, place.offset, place.size_bytes]) + b"\n"
        for content, place in sorted(places.items())
    )


def has_blob(services: Services, token: AttemptToken, sha256: str) -> bool:
    """Whether a blob holds something of the version that the attempt's run is pinned to.

    Raises:
        Refusal: LeaseLost.
    """
    try:
        _, row = _of_attempt(services, token)
    except Refusal as error:
        if error.code == "NotFound":
            return False
        raise
    known = services.packs_of_versions.get((token.org, row.id), set())
    if sha256 == row.sha256 or sha256 in known:
        return True
    services.packs_of_versions[token.org, row.id] = {place.sha256 for place in _places(services, row).values()}
    return sha256 in services.packs_of_versions[token.org, row.id]


def _of_attempt(services: Services, token: AttemptToken) -> tuple[AnyRow, AnyRow]:
    def work(connection: Connection) -> tuple[AnyRow, AnyRow]:
        _, run = leases.open_attempt(connection, token)
        pinned = rows.get_pinned(connection, org=token.org, run_id=run.id)
        if pinned is None:
            raise Refusal("NotFound", "this run learns from built-in data; there is nothing to fetch")
        place: Any = {"org": token.org, "dataset_id": pinned.dataset_id}
        row = rows.get(connection, **place, version=pinned.version)
        dataset = dataset_rows.get(connection, **place)
        if row is None or dataset is None:
            raise Refusal("BlobMissing", f"version {pinned.version} of dataset {pinned.dataset_id!r} is gone")
        return dataset, row

    return services.store.read(work)


def _places(services: Services, row: AnyRow) -> dict[str, AnyRow]:
    try:
        wanted = versions.contents(services, row)
    except BlobError as error:
        raise Refusal(
            "BlobMissing", f"the manifest of version {row.id} of dataset {row.dataset_id!r} is lost or damaged"
        ) from error
    places = services.store.read(partial(asset_rows.find_blob_spans, org=row.org, hashes=wanted))
    if missing := sorted(wanted - set(places)):
        raise Refusal("BlobMissing", f"picture {missing[0]} of dataset {row.dataset_id!r} is not here any more")
    return places
