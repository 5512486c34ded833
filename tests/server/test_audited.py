"""Every change that a user's key can make leaves exactly one audit row.

The calls are compared with the list of routes.
"""

from typing import Any

from runyard.datasets.packs import build_pack
from runyard.server.http.routes import ROUTES
from runyard.store.tables import audit
from tests.server.datasets import Data, grounding_row, jsonl, make_image_bytes
from tests.server.test_ingestion import Session
from tests.server.test_joining import MACHINE, join_machine
from tests.support import attempts
from tests.support.server import TestServer

DATASET = "datasets/{}"
SOURCE = DATASET + "/assetSources/managed/datature/default"
SESSIONS = "/assetIngestionSessions"

# Routes with another method than GET that change nothing.
CHANGES_NOTHING = {
    ("POST", "flows:check"),
    ("POST", DATASET + "/aggregationStatistics:generate"),  # counts
    ("POST", SOURCE + "/multipartUploads/{}/parts/{}"),  # signs a URL
    (
        "POST",
        SOURCE + "/multipartUploads/{}/parts/{}/completion",
    ),  # returns whether a part was received
}
# Controllers and supervisors report many times a minute; what they report is the history of the run
# itself.
REPORTS = "/internal/v1/"


def get_shape(path: str) -> str:
    """Return a route's path below its organization, with empty parameters."""
    parts = path.split("/")[3:]
    return "/".join("{}" if part.startswith("{") else part for part in parts)


MUTATING = {
    (route.method, get_shape(route.path))
    for route in ROUTES
    if route.method not in ("GET", "HEAD") and not route.path.startswith(REPORTS)
} - CHANGES_NOTHING


class AuditWatch:
    """Sends requests, and counts the audit rows of each."""

    def __init__(self, server: TestServer, api: Any) -> None:
        self.server, self.api = server, api
        self.seen: set[tuple[str, str]] = set()

    def rows(self) -> list[Any]:
        return list(
            self.server.services.store.read(
                lambda connection: connection.execute(audit.select()).all()
            )
        )

    async def __call__(
        self, method: str, template: str, *ids: str, rows: int = 1, **request: Any
    ) -> Any:
        """Send one request to a route, given as its shape and parameters."""
        before = self.rows()
        answer = await self.api.request(method, self.server.path(template.format(*ids)), **request)
        assert answer.is_success, (method, template, answer.text)
        new = [row for row in self.rows() if row not in before]
        assert len(new) == rows, (method, template, new)
        for row in new:
            assert (row.org, row.actor) == (self.server.org, f"key {self.server.key[7:23]}")
            assert row.address
            assert row.target
        self.seen.add((method, template))
        return answer.json() if answer.content[:1] == b"{" else answer.content


async def change_documents(watch: AuditWatch) -> None:
    for noun, id in (("runs", "r1"), ("flows", "f1"), ("trainingProjects", "p1")):
        spec = {"flow": {"name": "x"}} if noun == "runs" else {"name": "x"}
        attributes = {"metadata": {"attributes": {"a": "b"}}}
        await watch("PUT", noun + "/{}", id, json={"spec": spec})
        # A repeat changes nothing.
        await watch("PUT", noun + "/{}", id, json={"spec": spec}, rows=0)
        await watch("PATCH", noun + "/{}", id, json=attributes)
        await watch("PATCH", noun + "/{}", id, json=attributes, rows=0)
        await watch("DELETE", noun + "/{}", id)
    view = {"spec": {"name": "failed", "filter": "condition:Failed"}}
    await watch("PUT", "views/{}", "v1", json=view)
    await watch("PUT", "views/{}", "v1", json=view, rows=0)
    await watch("DELETE", "views/{}", "v1")


async def change_many_runs(watch: AuditWatch) -> None:
    for word, more in (("kill", {}), ("delete", {}), ("tag", {"set": {"owner": "kim"}})):
        await watch("PUT", "runs/{}", word, json={"spec": {}})
        await watch("POST", f"runs:{word}", json={"ids": [word], **more})
        await watch("POST", f"runs:{word}", json={"ids": [word], **more}, rows=0)


async def change_keys(watch: AuditWatch) -> None:
    key = await watch("POST", "keys", json={"spec": {"name": "ci"}})
    key = await watch(
        "POST", "keys/{}/rotations", key["keyId"], json={"spec": {"overlapSeconds": 60}}
    )
    await watch("DELETE", "keys/{}", key["keyId"])
    await watch("DELETE", "keys/{}", key["keyId"], rows=0)


async def change_machines(watch: AuditWatch) -> None:
    made = await watch("POST", "machineInvitations", json={"spec": {}})
    await watch("DELETE", "machineInvitations/{}", made["invitationId"])
    await join_machine(watch.server)
    state = {"spec": {"state": "excluded"}}
    await watch("PATCH", "machines/{}", MACHINE, json=state)
    await watch("DELETE", "machines/{}", MACHINE)


async def change_dataset(watch: AuditWatch, data: Data, dataset_id: str) -> None:
    await watch("PATCH", DATASET, dataset_id, json={"description": "second floor"})
    content = build_pack(
        {"1.png": make_image_bytes(1), "l.jsonl": jsonl(grounding_row(1, "1.png"))}.items()
    )
    begun = await watch("POST", DATASET + "/imports", dataset_id, json={"spec": {}})
    await data.send(begun["status"]["upload"]["url"], content)
    assert (await data.finish(begun, content)).status_code == 200
    await data.wait_until_over(begun)
    begun = await watch("POST", DATASET + "/imports", dataset_id, json={"spec": {}})
    cancelled = begun["datasetImportId"] + ":cancel"
    await watch("POST", DATASET + "/imports/{}", dataset_id, cancelled)
    await watch("POST", DATASET + "/imports/{}", dataset_id, cancelled, rows=0)

    [asset] = (await data.get(dataset_id, "assets"))["items"]
    place, ids = DATASET + "/assets/{}", (dataset_id, asset["assetId"])
    _, box = (await data.get(dataset_id, "assets", asset["assetId"], "annotations"))["items"]
    for method, width in (("PUT", 0.5), ("PATCH", 0.6)):
        bound = [[0, 0], [width, 0], [width, 0.5], [0, 0.5]]
        changed = {"spec": {"contents": {"bound": bound}}}
        await watch(method, place + "/annotations/{}", *ids, box["annotationId"], json=changed)
    await watch("DELETE", place + "/annotations/{}", *ids, box["annotationId"])
    await watch("POST", place + "/name", *ids, json={"filename": "2.png"})
    await watch(
        "POST", DATASET + "/assetFiles/{}/name", dataset_id, "2.png", json={"filename": "3.png"}
    )
    await watch("DELETE", place, *ids)
    await watch(
        "POST", DATASET + "/deleteManyAssetsSessions", dataset_id, json={"spec": {"filter": "none"}}
    )
    await watch(
        "POST", DATASET + "/datasetExports", dataset_id, json={"spec": {"format": "ViJsonl"}}
    )
    await watch("POST", DATASET + "/aggregationStatistics:generate", dataset_id, rows=0)


async def send_files(watch: AuditWatch, data: Data, dataset_id: str) -> None:
    session, uploads, sessions = (
        Session(data, dataset_id),
        SOURCE + "/multipartUploads",
        SOURCE + SESSIONS,
    )
    await session.begin({"large.png": make_image_bytes(1)})
    spec = {
        "ingestionId": session.document["ingestionId"],
        "filename": "large.png",
        "sizeBytes": len(make_image_bytes(1)),
    }
    upload = (await watch("POST", uploads, dataset_id, json={"spec": spec}))["multipartUploadId"]
    await watch("DELETE", uploads + "/{}", dataset_id, upload)
    upload = (await watch("POST", uploads, dataset_id, json={"spec": spec}))["multipartUploadId"]
    part = await watch("POST", uploads + "/{}/parts/{}", dataset_id, upload, "1", rows=0)
    assert (
        await (await data.server.client(None)).put(part["url"], content=make_image_bytes(1))
    ).status_code == 204
    await watch("POST", uploads + "/{}/parts/{}/completion", dataset_id, upload, "1", rows=0)
    await watch("POST", uploads + "/{}/completion", dataset_id, upload)
    assets = [{"filename": "a.png", "mime": "image/png", "size": 5, "kind": "Image"}]
    begun = await watch("POST", sessions, dataset_id, json={"spec": {"assets": assets}})
    await watch("POST", sessions + "/{}", dataset_id, begun["ingestionId"] + ":cancel")


async def send_annotations(watch: AuditWatch, data: Data, dataset_id: str) -> None:
    sessions, until = DATASET + "/annotationImportSessions", data.server.clock.now_ms() + 60_000
    for report in (
        {"spec": {"status": "Cancelled"}},
        {"status": {"conditions": [{"condition": "FilesInserted", "status": "FailedReach"}]}},
        {"status": {"conditions": [{"condition": "FilesInserted", "status": "Reached"}]}},
    ):
        begun = await watch("POST", sessions, dataset_id, json={"spec": {"uploadBefore": until}})
        ids, files = (dataset_id, begun["annotationImportSessionId"]), {"l": {"sizeBytes": 1}}
        places = await watch("POST", sessions + "/{}/files", *ids, json={"files": files})
        await (await data.server.client(None)).put(places["files"]["l"]["url"], content=b"x")
        await watch("PATCH", sessions + "/{}/status", *ids, json=report)


async def use_sessions(watch: AuditWatch) -> None:
    """Sign in and out; the pages leave the same rows as routes."""
    server, before = watch.server, len(watch.rows())
    own = {"sec-fetch-site": "same-origin"}
    code = await watch.api.post("/ui/codes")
    browser = await server.client(None, **own)
    for given in ({"code": code.json()["code"]}, {"key": server.key}):
        assert (await browser.post("/ui/sessions", json=given)).status_code == 201
    assert (await browser.post("/ui/leave")).status_code == 303
    actions = [row.action for row in watch.rows()[before:]]
    assert actions == ["create sign-in code", "begin session", "begin session", "end session"]
    listed = (await watch.api.get(server.path("sessions"))).json()["items"]
    await watch("DELETE", "sessions/{}", listed[0]["sessionId"])


async def change_everything(server: TestServer) -> set[tuple[str, str]]:
    """Use every mutating route, successfully; return those that were used."""
    watch = AuditWatch(server, await server.api())
    data = Data(server, watch.api)
    await change_documents(watch)
    await change_many_runs(watch)
    await change_keys(watch)
    await change_machines(watch)
    await use_sessions(watch)
    dataset_id = (
        await watch("POST", "datasets", json={"name": "shelves", "type": "phrase-grounding"})
    )["datasetId"]
    for change in (change_dataset, send_files, send_annotations):
        await change(watch, data, dataset_id)
        await server.services.jobs.wait_until_idle()
    await watch("DELETE", DATASET, dataset_id)
    await server.services.jobs.wait_until_idle()
    await watch("POST", "flows:check", json={"spec": {}}, rows=0)
    await watch("POST", "storage/collections")
    await watch("POST", "storage/restores", content=await watch("POST", "storage/backups"))
    return watch.seen


async def test_every_mutating_route_leaves_exactly_one_audit_row(server: TestServer) -> None:
    seen = await change_everything(server)
    assert seen - CHANGES_NOTHING == MUTATING, "a route that changes something is not used here"
    assert seen >= CHANGES_NOTHING


async def test_a_claim_is_audited_and_only_when_it_gets_a_run(server: TestServer) -> None:
    api = await server.api()
    assert await attempts.try_claim(server, "c0") is None
    await api.put(server.path("runs/r1"), json={"spec": {}})
    await attempts.claim(server, "c1")
    watch = AuditWatch(server, api)
    assert [row.action for row in watch.rows()] == ["create run", "claim run"]
