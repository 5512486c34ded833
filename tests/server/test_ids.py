"""A hostile id creates, reads or removes nothing, on any route and in any service."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from runyard import ids
from runyard.protocol import CheckpointFile, CheckpointReport, Claim, ProcessReport
from runyard.server.http.route import Route
from runyard.server.http.routes import ROUTES
from runyard.server.pages.routes import PAGES
from runyard.server.services.context import Actor
from runyard.server.services.errors import Refusal
from runyard.server.services.operations import legacy_ids
from runyard.server.services.runs import flows, leases, models, runs
from runyard.store import attempts as attempt_rows
from runyard.store import backup as rows
from runyard.store.tables import metadata, output_files, outputs
from runyard.store.tables import runs as run_table
from tests.server.datasets import Data, make_vqa_files
from tests.server.raw import send_raw
from tests.support import attempts
from tests.support.server import TestServer

HOSTILE = (
    *(
        "..",
        ".",
        "abc:finish",
        "abc:cancel",
        ":cancel",
        "a b",
        "a\\b",
        "a\0b",
        "a\n",
        "<script>",
        "ü",
        "a.b",
        "~",
        "*",
    ),
    *("x" * 256, "x" * 4000),
)
# Spellings of an id in a path: plain, encoded, and encoded twice, so that one layer decodes it
# later than another.
SPELLED = [
    *(*HOSTILE, *(quote(id, safe="") for id in ("..", ".", "abc:finish", "a\\b", "a\n"))),
    *("..%2f..", "..%5c..", "%252e%252e", "%2e%2e%2fruns", ".%2e", "..%00", "..;", "../.."),
]


def params(route: Route) -> list[str]:
    return [name for name in re.findall(r"\{([a-z_0-9]+):str\}", route.path) if name != "org"]


NAMING = [(route, name) for route in ROUTES + PAGES for name in params(route)]


async def test_a_hostile_id_in_a_path_does_nothing(server: TestServer, tmp_path: Path) -> None:
    """On every route, in place of every id in its path."""
    attempt = await attempts.start(server, "good")
    server.settings.imports_dir.mkdir(exist_ok=True)
    guarded = [
        server.settings.runs_dir / "other" / "run",
        server.settings.runs_dir / server.org / "good",
    ]
    guarded += [
        server.settings.imports_dir / "other",
        server.settings.blobs_dir / "other",
        tmp_path / "outside",
    ]
    for folder in guarded:
        folder.mkdir(parents=True)
        (folder / "kept").write_text("kept")
    before = dump_everything(server)
    assert len(NAMING) > 80
    for route, name in NAMING:
        for spelled in SPELLED:
            path = route.path.replace("{org:str}", server.org).replace(f"{{{name}:str}}", spelled)
            path = re.sub(r"\{[a-z_0-9]+:str\}", "good", path)
            key = (
                attempt.assignment["token"]
                if path.startswith("/internal/v1/attempt")
                else server.key
            )
            key = server.controller_key if path.startswith("/internal/v1/machines") else key
            status, document = await send_raw(server, route.method, path, body(route), key=key)
            assert 400 <= status < 500, (route.method, route.path, spelled, status, document)
        assert dump_everything(server) == before, (route.method, route.path)
        assert all((folder / "kept").read_text() == "kept" for folder in guarded), (
            route.method,
            route.path,
        )


def body(route: Route) -> Any:
    """Return a body that the route accepts."""
    if route.path.startswith("/internal/v1/machines"):
        return {"host": "h", "labels": {}, "accelerators": []}
    return {"filename": "new.png"} if route.path.endswith("/name") else {"spec": {}}


def dump_everything(server: TestServer) -> dict[str, list[bytes]]:
    with server.services.store.snapshot() as connection:
        return {
            name: list(rows.iter_rows(connection, table)) for name, table in rows.TABLES.items()
        }


# Every service that creates something under a given id: the kind of id, and a call.
def _report(
    checkpoint_id: str = "epoch-1", path: str = "model_full/a", **changes: Any
) -> CheckpointReport:
    content: dict[str, Any] = {
        "step": 1,
        "epoch": 1,
        "metrics": {},
        "is_best": True,
        "time": 5,
    } | changes
    file = CheckpointFile(
        path=path, size_bytes=content.pop("size_bytes", 7), sha256=content.pop("sha256", "0" * 64)
    )
    return CheckpointReport(checkpoint_id=checkpoint_id, files=[file], **content)


def _offer(claim_id: str = "c2", machine_id: str = "m1", host: str = "here") -> Claim:
    return Claim(claim_id=claim_id, machine_id=machine_id, host=host, slots=1, wait_s=0)


def _process(
    machine_id: str = "m1", boot_id: str = "b", pid: int = 7, start_ticks: int = 8
) -> ProcessReport:
    return ProcessReport(machine_id=machine_id, boot_id=boot_id, pid=pid, start_ticks=start_ticks)


CREATING: dict[str, tuple[str, Callable[..., Any]]] = {
    "run": (
        "run",
        lambda s, actor, token, id: runs.create(s, actor, id, body=b"{}", attributes={}),
    ),
    "flow": (
        "flow",
        lambda s, actor, token, id: flows.put(
            s, actor, id, body=b"{}", spec={}, attributes={}, if_match=None
        ),
    ),
    "checkpoint": (
        "checkpoint",
        lambda s, actor, token, id: models.register(s, token, _report(id)),
    ),
    "claim": ("claim", lambda s, actor, token, id: leases.claim(s, actor, _offer(claim_id=id))),
    "machine of a claim": (
        "machine",
        lambda s, actor, token, id: leases.claim(s, actor, _offer(machine_id=id)),
    ),
    "machine of a process": (
        "machine",
        lambda s, actor, token, id: leases.report_process(s, token, _process(machine_id=id)),
    ),
    "boot of a process": (
        "boot",
        lambda s, actor, token, id: leases.report_process(s, token, _process(boot_id=id)),
    ),
}


@pytest.mark.parametrize("what", CREATING)
async def test_a_service_creates_nothing_under_a_hostile_id(what: str, server: TestServer) -> None:
    attempt = await attempts.start(server)
    token = server.services.signer.verify_attempt_token(attempt.assignment["token"])
    actor = Actor(org=server.org, name="key", role="admin", address="")
    await (await server.api()).put(server.path("runs/waiting"), json={"spec": {}})
    before, (kind, create) = dump_everything(server), CREATING[what]
    hostile = [
        id
        for id in (*HOSTILE, "", "../../x", "a/b", "latest", "best", "\ud800")
        if not ids.is_id(kind, id)
    ]
    assert len(hostile) > 10
    for id in hostile:
        with pytest.raises((Refusal, ValueError)) as refused:
            await create(server.services, actor, token, id)
        if isinstance(refused.value, Refusal):  # else no message can hold it (see ``limits``)
            assert (refused.value.code, refused.value.status) == ("InvalidId", 400), id
            assert "try: choose another id" in refused.value.message
    assert dump_everything(server) == before


BAD_REPORTS: dict[str, Any] = {
    **{
        f"id {id[:20]!r}": {"checkpoint_id": id}
        for id in ("../../x", "latest", "best", "", "x" * 5000, "<script>", "a.b")
    },
    **{
        f"path {path[:20]!r}": {"path": path}
        for path in (
            "../x",
            "training_state/../../x",
            "/etc/passwd",
            "a\\b",
            "C:x",
            "a\0",
            "",
            "a//b",
            "x" * 2000,
            "\x01",
        )
    },
    **{
        f"size {size}": {"size_bytes": size}
        for size in (-1, 0, 8, 10**12, 2**44 + 1, 2**63, 10**30)
    },
    **{f"step {step}": {"step": step} for step in (-1, 2**53 + 1, 2**63)},
    **{f"epoch {epoch}": {"epoch": epoch} for epoch in (-1, 2**31, 2**63)},
    **{f"time {time}": {"time": time} for time in (-1, 2**63)},
    "hash in capitals": {"sha256": "A" * 64},
    "hash that is a path": {"sha256": "../" * 21 + "x"},
    "a file twice": {"paths": ["a", "a"]},
    "a file in a file": {"paths": ["a", "a/b"]},
    "no file": {"paths": []},
}


async def test_an_invalid_checkpoint_is_not_registered(server: TestServer) -> None:
    attempt = await attempts.start(server)
    digest = await attempt.upload(b"weights")
    good = {
        "checkpoint_id": "epoch-1",
        "step": 1,
        "epoch": 1,
        "metrics": {"loss": 0.5},
        "is_best": True,
        "time": 5,
    }
    before = dump_everything(server)
    for what, change in BAD_REPORTS.items():
        change = dict(change)
        paths = change.pop("paths", [change.pop("path", "model_full/a")])
        file = {"size_bytes": change.pop("size_bytes", 7), "sha256": change.pop("sha256", digest)}
        answer = await attempt.post(
            "checkpoints", **{**good, **change, "files": [{"path": p, **file} for p in paths]}
        )
        assert answer.status_code == 400, (what, answer.status_code, answer.text)
        assert answer.json()["code"] in ("InvalidId", "InvalidBody"), what
    assert dump_everything(server) == before
    files = [{"path": "model_full/a", "size_bytes": 7, "sha256": digest}]
    assert (await attempt.post("checkpoints", **good, files=files)).status_code == 201


async def test_a_custom_verb_is_accepted_only_where_a_route_defines_it(
    server: TestServer,
) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    begun = await data.begin(dataset_id)
    known = {action for route in ROUTES for action in route.actions}
    assert known == {"finish", "cancel"}
    values = {"org": server.org, "dataset": dataset_id, "import_id": begun["datasetImportId"]}
    before = dump_everything(server)
    for route in ROUTES:
        if not route.path.endswith(":str}") or route.path.startswith("/internal"):
            continue
        path = re.sub(
            r"\{([a-z_0-9]+):str\}", lambda found: values.get(found[1], "good"), route.path
        )
        for action in known - set(route.actions) | {"explode", ""}:
            status, document = await send_raw(server, route.method, f"{path}:{action}", body(route))
            assert 400 <= status < 500, (route.method, path, action, document)
    assert dump_everything(server) == before
    status, document = await send_raw(
        server, "POST", data.path(dataset_id, "imports", f"{begun['datasetImportId']}:cancel")
    )
    assert (status, document["status"]["conditions"][0]["status"]) == (200, "FailedReach")


# Ids from before they were checked
# ----------------------------------------------------------------------------------


async def rename_run(server: TestServer, old: str, new: str) -> None:
    """Rename a run to an id that earlier versions accepted."""

    def work(connection: Any) -> None:
        connection.execute(run_table.update().where(run_table.c.id == old).values(id=new))
        for table in metadata.sorted_tables:
            if "run_id" in table.c:
                connection.execute(table.update().where(table.c.run_id == old).values(run_id=new))

    await server.services.store.write(work)


async def test_a_backup_that_no_restore_would_accept_names_the_row(
    server: TestServer,
) -> None:
    api = await server.api()
    attempt = await attempts.start(server)
    await attempt.checkpoint()
    path = server.path("storage/backups")
    is_it = output_files.c.path == "model_full/model.safetensors"
    await server.services.store.write(
        lambda c: c.execute(output_files.update().where(is_it).values(path="../../x"))
    )
    document = (await api.post(path)).json()
    assert (
        document["code"],
        "'../../x'" in document["message"],
        "delete run 'r1'" in document["message"],
    ) == (
        "BackupImpossible",
        True,
        True,
    )
    assert not list((server.settings.data_dir / "backups").iterdir())
    is_it = output_files.c.path == "../../x"
    await server.services.store.write(
        lambda c: c.execute(
            output_files.update().where(is_it).values(path="model_full/model.safetensors")
        )
    )
    assert (await api.post(path)).status_code == 200
    await rename_run(server, "r1", "abc:finish")
    document = (await api.post(path)).json()
    assert (document["status"], document["code"]) == (409, "BackupImpossible")
    assert "'abc:finish'" in document["message"]
    assert "restart the server" in document["message"]


async def test_an_id_from_before_ids_were_checked_is_renamed_at_startup(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("flows/f"), json={"spec": {"name": "mine"}})
    await api.put(server.path("trainingProjects/p"), json={"spec": {"name": "project"}})
    attempt = await attempts.start(server, "r1")
    await attempt.checkpoint()
    for name in ("r1", "other"):
        (server.settings.runs_dir / server.org / name).mkdir(parents=True)
    await rename_run(server, "r1", "abc:finish")
    (server.settings.runs_dir / server.org / "r1").rename(
        server.settings.runs_dir / server.org / "abc:finish"
    )
    await api.put(server.path("runs/r2"), json={"spec": {}})
    await rename_run(server, "r2", "..")

    def spoil(connection: Any) -> None:
        for name, new in (("flows", "f:cancel"), ("training_projects", "..")):
            connection.execute(rows.TABLES[name].update().values(id=new))
        connection.execute(outputs.update().values(id="latest"))
        connection.execute(output_files.update().values(output_id="latest"))

    await server.services.store.write(spoil)
    await legacy_ids.rename_invalid(server.services)
    old = {"run": "abc:finish", "up": "..", "flow": "f:cancel"}
    names = {kind: legacy_ids.build_valid_id(id) for kind, id in old.items()}
    listed = {run["runId"] for run in (await api.get(server.path("runs"))).json()["items"]}
    assert names["up"] in listed
    # The attempt of the first is still open: its machine knows it by its old id.
    assert (server.settings.runs_dir / server.org / "abc:finish").is_dir()
    assert (await api.post(server.path("storage/backups"))).status_code == 409
    assert (await attempt.finish(0, outcome="Succeeded", reason="Completed")).status_code == 204
    assert not server.services.store.read(
        lambda c: attempt_rows.has_open(c, org=server.org, run_id="abc:finish")
    )

    await legacy_ids.rename_invalid(server.services)
    run = (await api.get(server.path(f"runs/{names['run']}"))).json()
    assert (run["runId"], run["status"]["log"]) == (
        names["run"],
        server.path(f"runs/{names['run']}/logs"),
    )
    assert (server.settings.runs_dir / server.org / names["run"]).is_dir()
    [model] = (await api.get(server.path(f"runs/{names['run']}/outputs"))).json()["items"]
    assert model["selfLink"].rpartition("/")[2] == legacy_ids.build_valid_id("latest")
    for kind, id in (("flows", names["flow"]), ("trainingProjects", names["up"])):
        assert (await api.get(server.path(f"{kind}/{id}"))).json()["selfLink"] == server.path(
            f"{kind}/{id}"
        )
    assert all(ids.is_id("run", id) for id in names.values())
    assert (await api.post(server.path("storage/backups"))).status_code == 200
    assert (server.settings.runs_dir / server.org / "other").is_dir()


async def test_a_backup_with_a_colon_in_a_file_name_can_be_restored(
    server: TestServer,
) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_vqa_files(1))
    [asset] = (await data.get(dataset_id, "assets"))["items"]
    renamed = await data.api.post(
        data.path(dataset_id, "assets", asset["assetId"], "name"), json={"filename": "a:b.png"}
    )
    assert renamed.status_code == 200
    backup = (await data.api.post(server.path("storage/backups"))).content
    assert (await data.api.post(server.path("storage/restores"), content=backup)).status_code == 200
    assert (await data.get(dataset_id, "assets"))["items"][0]["filename"] == "a:b.png"
