# Generated from test_keys_async.py by scripts/unasync: change that file, then run the script.
"""``client.keys`` and ``client.audit``: requests of each call; no secret is shown by accident."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import vi

KEY = {
    "kind": "Key",
    "workspaceId": "lab",
    "keyId": "k-1",
    "spec": {"name": "ci", "role": "viewer", "expires": 1767225600000},
    "status": {"state": "Active", "lastUsed": 5, "createdBy": "key k-0"},
}
SECRET = "dtvi_" + "s" * 98
ISSUED = {**KEY, "secretKey": SECRET}


@pytest.fixture
def client(server: Any, key: str) -> Iterator[vi.Client]:
    with vi.Client(key, "lab", transport=server.transport) as client:
        yield client


def test_a_key_is_created_read_rotated_and_revoked(client: vi.Client, server: Any) -> None:
    for document in (ISSUED, KEY, ISSUED, {**KEY, "status": {"state": "Revoked", "revoked": 7}}):
        server.answers(document)
    created = client.keys.create("ci", "viewer", expires=datetime(2026, 1, 1, tzinfo=UTC))
    read = client.keys.get("k-1")
    rotated = client.keys.rotate("k-1", overlap_s=60)
    revoked = client.keys.revoke("k-1")
    assert (created.secret_key, rotated.secret_key) == (SECRET, SECRET)
    assert not hasattr(read, "secret_key")
    assert (read.spec.role, read.status.last_used, revoked.status.state) == ("viewer", 5, "Revoked")
    base = "/workspaces/lab/keys"
    assert server.asked == [
        f"POST {base}",
        f"GET {base}/k-1",
        f"POST {base}/k-1/rotations",
        f"DELETE {base}/k-1",
    ]
    assert server.body(0) == {"spec": {"name": "ci", "role": "viewer", "expires": 1767225600000}}
    assert server.body(2) == {"spec": {"overlapSeconds": 60, "expires": None}}


def test_a_secret_is_not_in_the_representation(client: vi.Client, server: Any) -> None:
    server.answers(ISSUED)
    assert SECRET not in repr(client.keys.create("ci"))


def test_a_creation_whose_response_was_lost_is_not_repeated(client: vi.Client, server: Any) -> None:
    server.breaks()
    with pytest.raises(vi.ViNetworkError):
        client.keys.create("ci")
    assert len(server.requests) == 1


def test_keys_are_listed_over_all_pages(client: vi.Client, server: Any) -> None:
    for _ in range(2):
        server.answers({"items": [KEY], "nextPage": "t"})
        server.answers({"items": [KEY]})
    assert len(list(client.keys)) == 2
    every = client.keys()
    assert len(list(every)) == 2


def test_the_audit_log_is_filtered(client: vi.Client, server: Any) -> None:
    entry = {
        "number": 3,
        "time": 9,
        "actor": "nobody",
        "address": "::1",
        "action": "reject key",
        "count": 12,
    }
    server.answers({"items": [entry]})
    page = client.audit.list({"page_size": 5}, actor="k-1", action="reject key", since=1, until=9)
    assert (page[0].count, page[0].action) == (12, "reject key")
    assert server.asked == [
        "GET /workspaces/lab/audit?s=5&actor=k-1&action=reject+key&since=1&until=9"
    ]


def test_the_last_admin_key_and_too_many_wrong_keys_have_their_own_errors(
    server: Any, key: str
) -> None:
    server.answers({"message": "the last one", "code": "LastAdminKey"}, status=409)
    server.answers(
        {"message": "too many", "code": "TooManyRequests"}, status=429, headers={"retry-after": "3"}
    )
    with vi.Client(key, "lab", transport=server.transport, max_retries=0) as client:
        with pytest.raises(vi.ViConflictError) as conflict:
            client.keys.revoke("k-1")
        with pytest.raises(vi.ViRateLimitError) as limited:
            client.keys.get("k-1")
    assert (conflict.value.code, limited.value.code, limited.value.retry_after) == (
        "LastAdminKey",
        "TooManyRequests",
        3.0,
    )


@pytest.mark.parametrize("bad", ["", "a/b", None])
def test_an_invalid_id_is_not_sent(client: vi.Client, server: Any, bad: Any) -> None:
    with pytest.raises(vi.ViInvalidParameterError, match="key_id"):
        client.keys.revoke(bad)
    assert server.requests == []
