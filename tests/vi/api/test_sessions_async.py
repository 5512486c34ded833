"""``client.sessions``: requests of each call; no link is shown by accident."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

import vi

pytestmark = pytest.mark.anyio

SESSION = {
    "kind": "Session",
    "workspaceId": "lab",
    "sessionId": "s-1",
    "keyId": "k-1",
    "expires": 9,
    "lastUsed": 5,
    "address": "127.0.0.1",
    "agent": "Firefox",
    "metadata": {"timeCreated": 1},
}
CODE = "c" * 43


@pytest.fixture
async def client(server: Any, key: str) -> AsyncIterator[vi.AsyncClient]:
    async with vi.AsyncClient(key, "lab", transport=server.transport) as client:
        yield client


async def test_sessions_are_listed_and_revoked(client: vi.AsyncClient, server: Any) -> None:
    server.answers({"items": [SESSION], "nextPage": None})
    server.answers({})
    [session] = [session async for session in client.sessions]
    revoked = await client.sessions.revoke(session.session_id)
    assert (session.key_id, session.agent, session.last_used) == ("k-1", "Firefox", 5)
    assert revoked.id == "s-1"
    base = "/workspaces/lab/sessions"
    assert server.asked == [f"GET {base}?s=100", f"DELETE {base}/s-1"]


async def test_a_link_opens_a_page_and_hides_its_code(client: vi.AsyncClient, server: Any) -> None:
    server.answers({"code": CODE, "path": f"/ui/enter#{CODE}", "expires": 7})
    link = await client.sessions.create_link("/ui/runs/r1?tab=log")
    assert server.asked == ["POST /ui/codes"]
    assert link.url.endswith(f"/ui/enter?next=%2Fui%2Fruns%2Fr1%3Ftab%3Dlog#{CODE}")
    assert CODE not in repr(link)
