"""Backup and restore over HTTP: consistent, all or nothing; attempts, numbers and keys."""

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runyard import backup_file, backup_schema
from runyard.backup_rows import Verifier, parse_columns
from runyard.datasets.packs import build_pack
from runyard.security.key_format import new_key, parse
from runyard.server.services.access.keys import secret_mac
from runyard.server.services.context import Actor
from runyard.server.services.operations import backups
from runyard.server.services.runs import deletion, leases
from runyard.store import backup as rows
from runyard.store import blobs as blob_rows
from runyard.store import lease_clock, organizations
from runyard.store.access import keys as key_rows
from tests.server.datasets import Data, make_vqa_files
from tests.server.test_samples import evaluation, make_png, sample
from tests.support import attempts
from tests.support.server import TestServer, open_server

# Tables that a restore does not simply replace; see runyard.store.backup.
OWN = {"meta", "pulse", "keys", "audit", "attempts", "event_counters"}


async def take_backup(server: TestServer) -> bytes:
    answer = await (await server.api()).post(server.path("storage/backups"))
    assert answer.status_code == 200, answer.text
    assert len(answer.content) == int(answer.headers["content-length"])
    return bytes(answer.content)


def verify_file(data: bytes) -> None:
    """Verify a file as ``runyard backup --verify`` does."""
    tables = {name: parse_columns(notation) for name, notation in backup_schema.TABLES.items()}
    backup_file.verify_backup(iter([data]), Verifier(backup_schema.REVISION, tables))


async def put_back(server: TestServer, data: bytes) -> Any:
    return await (await server.api()).post(server.path("storage/restores"), content=data)


async def restore_backup(server: TestServer, data: bytes) -> None:
    answer = await put_back(server, data)
    assert answer.status_code == 200, answer.text


def dump_store(server: TestServer, *, without: set[str] = frozenset()) -> dict[str, list[bytes]]:  # type: ignore[assignment]
    """Return every row of the store, by table."""
    with server.services.store.snapshot() as connection:
        return {
            name: list(rows.iter_rows(connection, table))
            for name, table in rows.TABLES.items()
            if name not in without
        }


def epoch(server: TestServer) -> str:
    return str(
        server.services.store.read(
            lambda connection: organizations.get_meta(connection, organizations.STORE_ID)
        )
    )


def counted(server: TestServer) -> tuple[int, int]:
    _, lived_ms, token_number = server.services.store.read(
        lambda connection: connection.execute(rows.TABLES["pulse"].select()).one()
    )
    return lived_ms, token_number


async def fill_store(server: TestServer) -> Any:
    """Put rows into every table that can have some.

    Return the attempt that is still open.
    """
    api = await server.api()
    await api.put(server.path("flows/f1"), json={"spec": {"name": "mine"}})
    await api.put(server.path("trainingProjects/p1"), json={"spec": {"name": "project"}})
    await api.put(server.path("views/v1"), json={"spec": {"name": "all"}})
    await api.put(server.path("runs/gone"), json={"spec": {}})
    await api.delete(server.path("runs/gone"))
    done = await attempts.start(server, "done")
    await api.patch(
        server.path("runs/done"), json={"metadata": {"attributes": {"colour": "grün", "empty": ""}}}
    )
    # So many points that most are packed
    points = [{"ev": "step", "step": number, "values": {"loss": 1.0}} for number in range(1, 130)]
    await done.ship(*map(json.dumps, points))
    await done.event("step", step=130, epoch=0.1, totalSteps=9, values={"loss": 0.1 + 0.2})
    # So many lines that a block of them is complete
    await done.ship(
        "hello", "wörld", *(f"line {number}" for number in range(1024)), stream="stdout"
    )
    await done.ship(
        evaluation(9, 1),
        json.dumps({"kind": "image", "index": 0, "png": make_png().hex()}),
        sample(9, 0),
        stream="samples",
    )
    await done.checkpoint(content=b"weights" * 20_000)
    await done.finish(
        0, outcome="Succeeded", reason="Completed", message="done", checkpoint="epoch-1"
    )
    attempt = await attempts.start(server, "open")
    await attempt.ship("first line", stream="stdout")
    return attempt


async def fill_datasets(server: TestServer) -> tuple[Data, str, dict[str, Any]]:
    """Put rows into every table of datasets.

    Return a dataset and its import in progress.
    """
    data = Data(server, await server.api())
    dataset_id, gone = await data.make(), await data.make()
    done = await data.import_files(dataset_id, make_vqa_files(4) | {"bad.png": b"no image"})
    flow = {"blocks": [{"block": "vi-dataset", "settings": {"datasetId": dataset_id}}]}
    created = await data.api.put(server.path("runs/pinned"), json={"spec": {"flow": flow}})
    assert created.status_code == 201, created.text
    [asset] = (await data.get(dataset_id, "assets", filter="2.png"))["items"]
    await data.api.delete(data.path(dataset_id, "assets", asset["assetId"]))
    await data.api.post(
        data.path(dataset_id, "datasetExports"), json={"spec": {"format": "ViJsonl"}}
    )
    spec = {"filter": "nothing of that name"}
    await data.api.post(data.path(dataset_id, "deleteManyAssetsSessions"), json={"spec": spec})
    await data.api.delete(data.path(gone))
    await server.services.jobs.wait_until_idle()
    begun = await data.begin(dataset_id)
    assert (
        await data.send(
            begun["status"]["upload"]["url"], build_pack(make_vqa_files(2, first=7).items())
        )
    ).status_code == 204
    assert done["status"]["version"]
    return data, dataset_id, begun


async def test_every_table_is_in_a_backup(server: TestServer) -> None:
    await fill_store(server)
    await fill_datasets(server)
    begun = {
        "blocks": [
            {"block": "vi-model", "settings": {"architecture": {"weights": "run:done/best"}}}
        ]
    }
    body = {"spec": {"flow": begun, "resumeFrom": {"runId": "done"}}}
    assert (
        await (await server.api()).put(server.path("runs/continued"), json=body)
    ).status_code == 201
    await server.services.store.write(
        lambda c: blob_rows.mark_unneeded(c, org=server.org, hashes={"0" * 64})
    )
    with tarfile.open(fileobj=io.BytesIO(await take_backup(server))) as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    tables = [part["name"] for part in manifest["tables"]]
    assert tables == list(rows.TABLES)
    assert [name for name in names if name.startswith("tables/")] == [
        f"tables/{name}.jsonl" for name in tables
    ]
    assert all(part["rows"] for part in manifest["tables"]), (
        "the world of these tests leaves a table empty"
    )
    for name, table in rows.TABLES.items():
        if "sha256" in table.c:
            assert "org" in table.c, f"{name} names blobs, but not whose"


async def test_a_restore_restores_everything_and_nothing_else(server: TestServer) -> None:
    await fill_store(server)
    api = await server.api()
    before, document = (
        dump_store(server, without=OWN),
        (await api.get(server.path("runs/done"))).json(),
    )
    data, first_epoch = await take_backup(server), epoch(server)
    await api.put(server.path("runs/later"), json={"spec": {}})
    await api.delete(server.path("runs/done"))
    await api.delete(server.path("flows/f1"))
    assert list(server.services.blobs(server.org).hashes()) == []

    answer = await put_back(server, data)
    assert answer.status_code == 200, answer.text
    assert answer.json()["organizationId"] == server.org
    assert dump_store(server, without=OWN) == before
    assert (await api.get(server.path("runs/done"))).json() == document
    assert (await api.get(server.path("runs/later"))).status_code == 404
    assert (await api.get(server.path("storage"))).json()["agrees"]
    link = (await api.get(server.path("runs/done/outputs/latest"), params={"contents": "y"})).json()
    archive = await (await server.client(None)).get(
        link["status"]["contents"]["downloadUrl"]["url"]
    )
    assert hashlib.sha256(archive.content).hexdigest() == link["status"]["contents"]["sha256"]
    assert epoch(server) == answer.json()["epoch"] != first_epoch
    assert (await api.put(server.path("runs/new"), json={"spec": {}})).status_code == 201
    assert not list((server.settings.data_dir / backups.FOLDER).iterdir())


async def test_a_restore_restores_datasets_and_an_import_can_continue(server: TestServer) -> None:
    data, dataset_id, begun = await fill_datasets(server)
    whole = await take_backup(server)
    before = dump_store(server, without=OWN | {"unneeded_blobs"})
    await data.api.delete(server.path("runs/pinned"))
    assert (await data.api.delete(data.path(dataset_id))).status_code == 200
    async with asyncio.timeout(30):
        await server.services.jobs.wait_until_idle()
    assert list(server.services.blobs(server.org).hashes()) == []

    await restore_backup(server, whole)
    assert dump_store(server, without=OWN | {"unneeded_blobs"}) == before
    assert (await data.storage())["agrees"]
    assets = (await data.get(dataset_id, "assets", contents="y"))["items"]
    anonymous = await server.client(None)
    for asset in assets:
        content = (await anonymous.get(asset["contents"]["asset"]["url"])).content
        assert hashlib.sha256(content).hexdigest() == asset["metadata"]["sha256"]
    assert (
        await data.finish(begun, build_pack(make_vqa_files(2, first=7).items()))
    ).status_code == 200
    await data.wait_until_over(begun)
    assert (await data.get(dataset_id))["statistic"]["assetTotal"] == len(assets) + 2


def test_a_backup_moves_from_sqlite_to_postgresql_and_back(tmp_path: Path, postgresql: Any) -> None:
    """Into new instances, whose own key gives access to the restored organization."""

    async def scenario() -> None:
        async with open_server(tmp_path / "sqlite") as server:
            await fill_store(server)
            data, before, org = (
                await take_backup(server),
                dump_store(server, without=OWN),
                server.org,
            )
        for folder, url in (("there", postgresql.new_database()), ("back", "")):
            async with open_server(tmp_path / folder, database_url=url) as server:
                assert server.org != org
                answer = await put_back(server, data)
                assert answer.json()["organizationId"] == org, answer.text
                assert dump_store(server, without=OWN) == before
                credentials = json.loads(server.settings.credentials_file.read_text())
                assert (credentials["organization_id"], credentials["secret_key"]) == (
                    org,
                    server.key,
                )
                api = await server.api()
                listed = (await api.get(f"/workspaces/{org}/runs")).json()["items"]
                assert {run["runId"] for run in listed} == {"done", "open"}
                assert (await api.get(server.path("runs"))).status_code == 404
                # The keys of the other instance could not verify here, so they are not restored.
                assert {key.org for key in server.services.store.read(key_rows.list_all)} == {
                    org,
                    None,
                }
                assert len(server.services.store.read(key_rows.list_all)) == 2
                await check_folders_of_nobody(server, org)
                assert await attempts.try_claim(server, "c-none") is None
                await api.put(f"/workspaces/{org}/runs/new", json={"spec": {}})
                assert (await attempts.claim(server, "c-new")).assignment["run_id"] == "new"
                server.org = org
                await api.delete(server.path("runs/new"))
                data = await take_backup(server)
                before = dump_store(server, without=OWN)
                # As if killed between the rows and the file: the next start repairs it.
                credentials["organization_id"] = "org-before"
                server.settings.credentials_file.write_text(json.dumps(credentials))
            async with open_server(tmp_path / folder, database_url=url) as server:
                assert server.org == org

    asyncio.run(scenario())


async def check_folders_of_nobody(server: TestServer, org: str) -> None:
    """Files of the replaced organization are found and removed, and nothing else."""
    (server.settings.runs_dir / server.org / "r").mkdir(parents=True)
    (server.settings.blobs_dir / server.org / "ab").mkdir(parents=True)
    api = await server.api()
    found = (await api.get(f"/workspaces/{org}/storage")).json()
    assert (found["agrees"], found["foldersWithoutOrganizations"]) == (False, [server.org])
    await api.post(f"/workspaces/{org}/storage/collections")
    assert (await api.get(f"/workspaces/{org}/storage")).json()["agrees"]
    assert not (server.settings.runs_dir / server.org).exists()
    assert not (server.settings.blobs_dir / server.org).exists()


def test_an_instance_moves_to_another_store_and_every_key_stays_valid(
    tmp_path: Path, postgresql: Any
) -> None:
    async def scenario() -> None:
        async with open_server(tmp_path / "data") as server:
            await fill_store(server)
            viewer = await make_key(server, "viewer")
            data, before = await take_backup(server), dump_store(server, without=OWN)
        async with open_server(tmp_path / "data", database_url=postgresql.new_database()) as server:
            assert (await (await server.client(viewer)).get(server.path("runs"))).status_code == 401
            await restore_backup(server, data)
            assert dump_store(server, without=OWN) == before
            assert (await (await server.client(viewer)).get(server.path("runs"))).status_code == 200
            assert (await (await server.api()).get(server.path("storage"))).json()["agrees"]

    asyncio.run(scenario())


async def test_a_revoked_key_stays_revoked_and_a_later_key_stays_valid(
    server: TestServer,
) -> None:
    old = await make_key(server, "viewer")
    parts = parse(old)
    assert parts is not None
    data = await take_backup(server)
    await server.services.store.write(
        lambda connection: key_rows.revoke(
            connection, org=server.org, key_id=parts.key_id, time_ms=5
        )
    )
    young = await make_key(server, "viewer")
    await restore_backup(server, data)
    assert (await (await server.client(old)).get(server.path("runs"))).status_code == 401
    assert (await (await server.client(young)).get(server.path("runs"))).status_code == 200
    assert await (await server.client(server.controller_key)).get("/internal/v1/machines/m1")


async def make_key(server: TestServer, role: str, org: str = "") -> str:
    key = new_key()
    parts = parse(key)
    assert parts is not None
    values: dict[str, Any] = {
        "key_id": parts.key_id,
        "org": org or server.org,
        "role": role,
        "name": "k",
        "time_ms": 1,
    }
    mac = secret_mac(server.services.pepper, parts.secret)
    await server.services.store.write(
        lambda connection: key_rows.add(connection, secret_mac=mac, **values)
    )
    backups._refresh(server.services)
    return key


async def test_only_admins_of_the_first_organization_may_back_up_and_restore(
    server: TestServer,
) -> None:
    await server.services.store.write(
        lambda connection: organizations.add(
            connection, org="org-second", name="n", time_ms=2 * 10**12
        )
    )
    data = await take_backup(server)
    before = dump_store(server)
    for role, org in (("viewer", server.org), ("member", server.org), ("admin", "org-second")):
        client = await server.client(await make_key(server, role, org))
        before["keys"] = dump_store(server)["keys"]
        for method, name in (("GET", "contents"), ("POST", "backups"), ("POST", "restores")):
            answer = await client.request(method, f"/workspaces/{org}/storage/{name}", content=data)
            assert (answer.status_code, answer.json()["code"]) == (403, "RoleForbidden"), (
                role,
                org,
                name,
            )
    assert dump_store(server) == before


async def test_attempts_in_the_backup_continue_and_later_ones_are_refused(
    server: TestServer,
) -> None:
    attempt = await fill_store(server)
    data = await take_backup(server)
    await attempt.ship("second line", stream="stdout")
    later = await attempts.start(server, "later")
    numbers = counted(server)
    await restore_backup(server, data)

    for call in (
        later.start,
        lambda: later.post("renew"),
        lambda: later.finish(0),
        lambda: later.ship("x"),
    ):
        answer = await call()
        assert (answer.status_code, answer.json()["code"]) == (409, "LeaseLost")
    renewal = (await attempt.post("renew")).json()
    assert (renewal["action"], renewal["epoch"]) == ("continue", epoch(server))
    # The supervisor gets the server's offset, continues from there, and each line is stored once.
    answer = await attempt.ship("third line", stream="stdout")
    assert answer.json()["offset"] == len("first line\n")
    await attempt.ship("second line", stream="stdout")
    await attempt.ship("third line", stream="stdout")
    logs = (await (await server.api()).get(server.path("runs/open/logs"))).json()["items"]
    assert [line["text"] for line in logs] == ["first line", "second line", "third line"]

    await (await server.api()).put(server.path("runs/later"), json={"spec": {}})
    again = await attempts.claim(server, "claim-again")
    assert again.assignment["epoch"] == epoch(server) != attempt.assignment["epoch"]
    assert counted(server)[1] > numbers[1]
    assert again.assignment["token"] != later.assignment["token"]


async def test_a_final_report_that_depends_on_undone_data_is_deferred(server: TestServer) -> None:
    attempt = await attempts.start(server)
    known = (await attempt.post("renew")).json()["epoch"]
    data = await take_backup(server)
    await attempt.checkpoint()
    await restore_backup(server, data)
    end = {"exit_code": 0, "signal": None, "group_empty": True, "cause": "exit code 0", "time": 5}
    result = {
        "outcome": "Succeeded",
        "reason": "Completed",
        "message": "done",
        "checkpoint": "epoch-1",
    }
    answer = await attempt.post("finish", **end, result=result, epoch=known)
    assert (answer.status_code, answer.json()["code"]) == (503, "StoreRestored")
    await attempt.checkpoint()
    assert (
        await attempt.post("finish", **end, result=result, epoch=epoch(server))
    ).status_code == 204
    assert (await attempts.read_condition(server))[0] == "Succeeded"
    assert (await (await server.api()).get(server.path("storage"))).json()["agrees"]


async def test_server_lived_time_never_decreases_and_open_attempts_get_time_to_report(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    data = await take_backup(server)
    await server.services.store.write(lambda connection: lease_clock.advance(connection, 3_600_000))
    lived_ms, _ = counted(server)
    await restore_backup(server, data)
    assert counted(server)[0] == lived_ms
    for _ in range(22):  # 44 s of 45: its controller may have to report first
        await leases.tick(server.services, 2.0)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Preparing")
    assert (await attempt.post("renew")).status_code == 200
    for _ in range(9):
        await leases.tick(server.services, 2.0)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")


async def test_store_ids_and_fencing_numbers_never_repeat_over_many_restores(
    server: TestServer,
) -> None:
    api = await server.api()
    data, tokens, epochs = await take_backup(server), set(), {epoch(server)}
    for number in range(5):
        await api.put(server.path("runs/r1"), json={"spec": {}})
        attempt = await attempts.claim(server, f"c{number}")
        assert attempt.assignment["attempt"] == 1
        tokens.add(attempt.assignment["token"])
        await restore_backup(server, data)
        epochs.add(epoch(server))
    assert (len(tokens), len(epochs)) == (5, 6)
    assert counted(server)[1] == 5


async def test_a_backup_during_writes_contains_only_complete_runs(server: TestServer) -> None:
    api, is_over = await server.api(), asyncio.Event()

    async def write_on() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            await api.put(
                server.path(f"runs/r{number}"),
                json={"spec": {}, "metadata": {"attributes": {"n": "1"}}},
            )
            attempt = await attempts.claim(server, f"c{number}")
            await attempt.start()
            await attempt.ship("a", "b", stream="stdout")
            await attempt.checkpoint(content=f"weights {number}".encode())
            await attempt.finish(64)
            if number % 3 == 0:
                await api.delete(server.path(f"runs/r{number - 1}"))

    writing = asyncio.create_task(write_on())
    files = []
    for _ in range(5):
        files.append(await take_backup(server))
        await asyncio.sleep(0.05)
    is_over.set()
    await writing
    seen = [check_whole(data) for data in files]
    assert len(set(seen)) > 1, "nothing was written meanwhile"
    assert (await put_back(server, files[-1])).status_code == 200
    await deletion.sweep(server.services)
    assert (await api.get(server.path("storage"))).json()["rowsWithoutBlobs"] == []


def check_whole(data: bytes) -> int:
    """Check that each run of a backup is consistent; return the number of runs."""
    manifest, tables, blobs = opened(data)
    columns = {part.name: part.columns for part in manifest.tables}

    def of(name: str) -> list[dict[str, Any]]:
        return [dict(zip(columns[name], row, strict=True)) for row in tables[name]]

    found = of("runs")
    for run in found:
        mine = {
            name: [row for row in of(name) if row["run_id"] == run["id"]]
            for name in ("attempts", "log_lines")
        }
        assert run["log_count"] == len(mine["log_lines"])
        assert (run["condition"] == "Failed") <= all(row["closed"] for row in mine["attempts"])
        assert len([row for row in of("run_attributes") if row["run_id"] == run["id"]]) == 1
    ids = {run["id"] for run in found}
    assert {
        row["run_id"] for name in ("attempts", "log_lines", "outputs") for row in of(name)
    } <= ids
    assert {(row["org"], row["sha256"]) for row in of("output_files")} == {
        tuple(blob.split("/")[1:]) for blob in blobs
    }
    return len(found)


def opened(data: bytes) -> tuple[backup_file.BackupManifest, dict[str, list[Any]], list[str]]:
    backup_file.verify_backup(iter([data]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        manifest = backup_file.decode_manifest(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
        tables = {
            part.name: [json.loads(line) for line in tar.extractfile(f"tables/{part.name}.jsonl")]  # type: ignore[union-attr]
            for part in manifest.tables
        }
        return manifest, tables, [name for name in tar.getnames() if name.startswith("blobs/")]


async def test_bytes_that_a_backup_reads_are_kept_until_it_is_done(
    server: TestServer,
) -> None:
    await fill_store(server)
    api = await server.api()
    (digest,) = server.services.blobs(server.org).hashes()
    actor = Actor(org=server.org, name="key", role="admin", address="")
    outgoing = await backups.prepare(server.services, actor)
    assert (await api.delete(server.path("runs/done"))).status_code == 204
    assert (await api.get(server.path("runs/done"))).status_code == 404
    await api.post(server.path("storage/collections"))
    assert server.services.blobs(server.org).has(digest)
    data = b"".join(outgoing.pieces())
    outgoing.close()
    await deletion.sweep(server.services)
    assert not server.services.blobs(server.org).has(digest)
    assert "done" in {run[1] for run in opened(data)[1]["runs"]}


async def test_a_backup_reports_bytes_that_were_lost_before(server: TestServer) -> None:
    await fill_store(server)
    (digest,) = server.services.blobs(server.org).hashes()
    server.services.blobs(server.org).delete(digest)
    manifest, _, blobs = opened(await take_backup(server))
    assert (manifest.missing_blobs, manifest.blob_count, blobs) == (1, 0, [])


async def test_a_restore_repairs_a_damaged_blob(server: TestServer) -> None:
    await fill_store(server)
    data = await take_backup(server)
    (digest,) = server.services.blobs(server.org).hashes()
    server.services.blobs(server.org)._path(digest).write_bytes(b"rubbish")
    await restore_backup(server, data)
    assert server.services.blobs(server.org).verify(digest)


HEADER = backup_file.BLOCK_BYTES


def bad_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield every kind of damage to a file, each at a few positions."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    for member in members:
        middle = member.offset_data + member.size // 2
        yield f"cut before {member.name}", data[: member.offset]
        yield f"cut within {member.name}", data[:middle]
        yield f"cut after the header of {member.name}", data[: member.offset_data]
        if member.size:
            yield f"a bit of {member.name}", flipped(data, middle)
        yield f"a bit of the header of {member.name}", flipped(data, member.offset + 3)
    yield "no end", data[: -2 * HEADER]
    yield "half an end", data[:-1]
    yield "more after the end", data + bytes(HEADER)
    yield (
        "a member twice",
        data[: members[1].offset] + data[members[1].offset : members[2].offset] * 2,
    )
    yield "nothing", b""
    yield "an image", b"\x89PNG" * 1000
    yield "another tar", another_tar("manifest.json", b"{}")
    yield "a manifest of 8 GiB", backup_file._build_header("manifest.json", 8**11 - 1) + b"{" * 4096


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def another_tar(name: str, content: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


def rewritten(
    data: bytes,
    change: Callable[[backup_file.BackupManifest, dict[str, bytes], dict[str, bytes]], None],
) -> bytes:
    """Write a file with valid hashes in which only ``change`` is wrong."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        content = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    manifest = backup_file.decode_manifest(content["manifest.json"])
    tables = {part.name: content[f"tables/{part.name}.jsonl"] for part in manifest.tables}
    blobs = {name: value for name, value in content.items() if name.startswith("blobs/")}
    change(manifest, tables, blobs)
    for part in manifest.tables:
        part.size_bytes, part.sha256 = (
            len(tables[part.name]),
            hashlib.sha256(tables[part.name]).hexdigest(),
        )
    parts = []
    for name, value in blobs.items():
        _, org, digest = name.split("/")
        parts.append(backup_file.BlobPart(org, digest, len(value)))
    listed = backup_file.encode_blobs(parts)
    manifest.blob_count, manifest.blob_bytes = len(parts), sum(part.size_bytes for part in parts)
    manifest.blob_list_size_bytes, manifest.blob_list_sha256 = (
        len(listed),
        hashlib.sha256(listed).hexdigest(),
    )

    def opened_member(member: backup_file.BackupMember) -> Iterator[bytes]:
        yield tables[member.table] if member.table else blobs[member.path]

    return b"".join(backup_file.iter_chunks(manifest, parts, opened_member))


def forged_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    def newer_format(manifest: Any, _tables: Any, _blobs: Any) -> None:
        manifest.version = 2

    def newer_schema(manifest: Any, _tables: Any, _blobs: Any) -> None:
        manifest.schema_revision = "9999"

    def unknown_table(manifest: Any, tables: Any, _blobs: Any) -> None:
        manifest.tables[0].name, tables["strangers"] = "strangers", b""

    def unknown_column(manifest: Any, _tables: Any, _blobs: Any) -> None:
        next(part for part in manifest.tables if part.name == "runs").columns[0] = "strange"

    def table_twice(manifest: Any, _tables: Any, _blobs: Any) -> None:
        manifest.tables.append(next(part for part in manifest.tables if part.name == "runs"))

    def endless(manifest: Any, tables: Any, _blobs: Any) -> None:
        manifest.tables[0].columns.append(manifest.tables[0].columns[0])

    def path_in_org(_manifest: Any, _tables: Any, blobs: Any) -> None:
        blobs["blobs/../" + hashlib.sha256(b"x").hexdigest()] = b"x"

    def path_in_hash(_manifest: Any, _tables: Any, blobs: Any) -> None:
        blobs["blobs/org/.."] = b"x"

    def wrong_blob(_manifest: Any, _tables: Any, blobs: Any) -> None:
        blobs["blobs/org/" + "ab" * 32] = b"x"

    def put(table: str, column: str, value: Any) -> Any:
        def change(manifest: Any, tables: Any, _blobs: Any) -> None:
            columns = next(part.columns for part in manifest.tables if part.name == table)
            row = json.loads(tables[table].splitlines()[0])
            row[columns.index(column)] = value
            tables[table] = (
                json.dumps(row).encode()
                + b"\n"
                + b"".join(tables[table].splitlines(keepends=True)[1:])
            )

        return change

    def without_server_clock(_manifest: Any, tables: Any, _blobs: Any) -> None:
        tables["pulse"] = b""

    def row_twice(_manifest: Any, tables: Any, _blobs: Any) -> None:
        tables["log_lines"] *= 2

    def nobody(_manifest: Any, tables: Any, _blobs: Any) -> None:
        tables["organizations"] = b""

    def another_operator(manifest: Any, _tables: Any, _blobs: Any) -> None:
        manifest.operator = "org-another"

    def garbage(_manifest: Any, tables: Any, _blobs: Any) -> None:
        tables["metrics"] = b"\xff\xfe{]"

    for change in (
        *(newer_format, newer_schema, unknown_table, unknown_column, table_twice, endless),
        *(
            path_in_org,
            path_in_hash,
            wrong_blob,
            without_server_clock,
            row_twice,
            garbage,
            nobody,
            another_operator,
        ),
    ):
        yield change.__name__, rewritten(data, change)
    for table, column, value in (
        ("runs", "id", "../../elsewhere"),
        ("runs", "org", ".."),
        ("organizations", "id", ""),
        ("attempts", "run_id", "a/b"),
        ("output_files", "path", "../../../etc/passwd"),
        ("output_files", "path", "/etc/passwd"),
        ("output_files", "sha256", "../" * 8),
        ("datasets", "id", "../d"),
        ("imports", "id", "../i"),
        ("runs", "log_count", "many"),
        ("runs", "document", "no base64!"),
        ("runs", "condition", None),
        ("attempts", "closed", 7),
    ):
        yield f"{table}.{column} = {value!r}", rewritten(data, put(table, column, value))


async def test_an_altered_backup_file_changes_nothing(server: TestServer) -> None:
    await fill_store(server)
    datasets = Data(server, await server.api())
    await datasets.begin(await datasets.make())
    data = await take_backup(server)
    # So that blobs of the file are not here.
    await (await server.api()).delete(server.path("runs/done"))
    before, first_epoch = dump_store(server), epoch(server)
    assert rewritten(data, lambda *_: None) == data
    verify_file(data)
    # Only rows that are wrong reach the database, so only those are of interest on each.
    files = [*forged_files(data), *(() if server.settings.database_url else bad_files(data))]
    for what, bad in files:
        with pytest.raises(backup_file.BackupFileError):
            verify_file(bad)
        answer = await put_back(server, bad)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBackup"), (
            what,
            answer.text,
        )
        assert "nothing was changed" in answer.json()["message"]
        assert list(server.services.blobs(server.org).hashes()) == [], what
    assert (dump_store(server), epoch(server)) == (before, first_epoch)
    assert len(files) > (20 if server.settings.database_url else 100)
    assert not list((server.settings.data_dir / backups.FOLDER).iterdir())
    await restore_backup(server, data)


async def test_a_backup_too_large_for_the_disk_is_refused_before_the_upload(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_store(server)
    data, before = await take_backup(server), dump_store(server)
    monkeypatch.setattr(backups, "free_bytes", lambda _: 100)
    answer = await put_back(server, data)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBackup")
    assert "disk space" in answer.json()["message"]
    assert dump_store(server) == {**before, "audit": dump_store(server)["audit"]}


async def test_only_one_restore_runs_at_a_time(server: TestServer) -> None:
    data = await take_backup(server)
    actor = Actor(org=server.org, name="key", role="admin", address="")
    async with backups.receive(server.services, actor):
        answer = await put_back(server, data)
        assert (answer.status_code, answer.json()["code"]) == (409, "RestoreUnderWay")
    await restore_backup(server, data)
