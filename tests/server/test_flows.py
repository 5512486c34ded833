"""Flows and training projects over HTTP."""

from tests.support.server import TestServer


async def test_a_flow_reads_as_a_flow_and_as_its_own_spec(server: TestServer) -> None:
    """The published client decodes one response in both ways."""
    api = await server.api()
    spec = {
        "name": "Shelf",
        "blocks": [{"block": "vi-dataset", "settings": {"datasetId": "digits"}}],
    }
    made = (await api.put(server.path("flows/f1"), json={"spec": spec})).json()
    got = (await api.get(server.path("flows/f1"))).json()
    assert {key: got[key] for key in made} == made
    assert got["name"] == "Shelf"
    assert got["blocks"] == got["spec"]["blocks"]
    assert got["schema"] == "v1"
    assert got["tolerations"] == {}
    # Only the copy names its origin: a run created from it is linked to the flow.
    assert got["settings"] == {"flow": {"id": "f1", "generation": 1}}
    assert got["spec"]["settings"] == {}
    copy = {key: got[key] for key in ("name", "schema", "tolerations", "settings", "blocks")}
    await api.put(server.path("runs/r1"), json={"spec": {"flow": copy}})
    listed = (await api.get(server.path("runs"), params={"flow": "f1"})).json()["items"]
    assert [run["runId"] for run in listed] == ["r1"]


async def test_a_put_creates_then_replaces_and_its_repeat_changes_nothing(
    server: TestServer,
) -> None:
    api = await server.api()
    url = server.path("flows/f1")
    first = await api.put(url, json={"spec": {"name": "A"}})
    again = await api.put(url, json={"spec": {"name": "A"}})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    replaced = (await api.put(url, json={"spec": {"name": "B"}})).json()
    assert (replaced["spec"]["name"], replaced["metadata"]["generation"]) == ("B", 2)
    back = (await api.put(url, json={"spec": {"name": "A"}})).json()
    assert (back["spec"]["name"], back["metadata"]["generation"]) == ("A", 3)
    missing = await api.put(server.path("flows/f2"), json={"spec": {}}, headers={"if-match": "*"})
    assert missing.status_code == 412


async def test_a_patch_replaces_given_fields_and_validates_the_result(server: TestServer) -> None:
    api = await server.api()
    url = server.path("flows/f1")
    await api.put(url, json={"spec": {"name": "A", "settings": {"seed": 3}}})
    await api.put(server.path("trainingProjects/p1"), json={"spec": {}})
    changed = (await api.patch(url, json={"spec": {"name": "B", "training_project": "p1"}})).json()
    assert (changed["spec"]["name"], changed["spec"]["settings"]) == ("B", {"seed": 3})
    assert changed["spec"]["trainingProject"] == "p1"
    bad = await api.patch(url, json={"spec": {"blocks": [{"block": "vi-modle"}]}})
    assert (bad.status_code, bad.json()["code"]) == (400, "InvalidFlow")
    assert (await api.get(url)).json()["spec"] == changed["spec"]


async def test_a_deleted_flow_stays_deleted(server: TestServer) -> None:
    api = await server.api()
    for noun in ("flows/f1", "trainingProjects/p1"):
        url = server.path(noun)
        await api.put(url, json={"spec": {"name": "A"}})
        deleted = await api.delete(url)
        assert (deleted.status_code, deleted.content) == (204, b"")
        assert (await api.get(url)).status_code == 404
        assert (await api.delete(url)).status_code == 404
        assert (await api.patch(url, json={})).status_code == 404
        assert (await api.put(url, json={"spec": {"name": "A"}})).json()["code"] == "IdDeleted"
        assert (await api.get(server.path(noun.partition("/")[0]))).json()["items"] == []


async def test_training_projects_are_created_updated_and_listed(server: TestServer) -> None:
    api = await server.api()
    url = server.path("trainingProjects/p1")
    body = {"spec": {"name": "Shelves", "type": "vqa", "datasetId": "digits"}}
    made = (await api.put(url, json=body)).json()
    assert (made["kind"], made["trainingProjectId"], made["status"]) == (
        "TrainingProject",
        "p1",
        {},
    )
    assert made["spec"] == body["spec"] | {"description": None}
    changed = (await api.patch(url, json={"spec": {"name": "Racks", "dataset_id": None}})).json()
    assert changed["spec"] == {
        "name": "Racks",
        "type": "vqa",
        "datasetId": None,
        "description": None,
    }
    for spec in ({"type": "speech"}, {"datasetId": "ds9"}):
        bad = await api.patch(url, json={"spec": spec})
        assert (bad.status_code, bad.json()["code"]) == (400, "InvalidBody")
        assert str(*spec.values()) in bad.json()["message"]
    listed = (await api.get(server.path("trainingProjects"))).json()["items"]
    assert [project["spec"]["name"] for project in listed] == ["Racks"]


async def test_the_flow_schema_and_the_openapi_document_are_served(server: TestServer) -> None:
    api = await server.api()
    assert "properties" in (await api.get(server.path("flowSchemas/v1"))).text
    assert (await api.get(server.path("flowSchemas/v2"))).status_code == 404
    document = (await api.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    run = document["components"]["schemas"]["Run"]["properties"]
    assert {"workspaceId", "runId", "spec", "status", "metadata", "selfLink", "etag"} <= set(run)
    operation = document["paths"]["/workspaces/{org}/runs/{run_id}"]["put"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/NewRun"}
    assert document["components"]["schemas"]["NewRun"]["additionalProperties"] is False
    assert document["paths"]["/health"]["get"]["security"] == []
