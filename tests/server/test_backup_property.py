"""After any accepted requests, a backup is verified and restored, and equals its source.

The requests are generated: valid and hostile ids, names, attributes and bodies, by clients,
controller and supervisors. ``make backup-property EXAMPLES=...`` tries more of them, on both
stores.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from runyard import backup_file, backup_schema, ids
from runyard.backup_rows import Verifier, parse_columns
from runyard.store import backup as rows
from tests.server.datasets import Data, make_vqa_files
from tests.server.raw import send_raw
from tests.support.server import TestServer, open_server

EXAMPLES = os.environ.get("RUNYARD_BACKUP_EXAMPLES")
# the longer form shrinks failures, which takes minutes.
SHORT = (Phase.explicit, Phase.generate)
# A restore does not simply replace these.
OWN = {"meta", "pulse", "keys", "audit", "attempts", "event_counters"}
KEPT_CHECKPOINTS = {"blocks": [{"block": "vi-model", "settings": {"checkpoint": {"keep": 3}}}]}

# Values
# --------------------------------------------------------------------------------------------------

GOOD_IDS = ("r1", "r2", "r3", "_-", "a" * 255, "Latest")
HOSTILE_IDS = (
    *(
        "..",
        ".",
        "",
        "abc:finish",
        "abc:cancel",
        ":finish",
        "../../x",
        "..%2f..",
        "a/b",
        "a\\b",
        "a\0b",
        "a b",
        "a\n",
    ),
    *(
        "<script>",
        "ünï",
        "x" * 256,
        "x" * 5000,
        "latest",
        "best",
        "%2e%2e",
        "~",
        "a.b",
        "\u202e",
        "'; --",
    ),
)
TEXTS = (
    *(
        "",
        "x",
        "grün",
        "a\0b",
        "\ud800",
        "\U0001f600" * 300,
        "x" * 20_000,
        "\u202e",
        "../..",
        "%00",
        "null",
        "\n\t",
    ),
    *("'; DROP TABLE runs; --", "\x7f", "\ufffe"),
)
NUMBERS = (
    0,
    1,
    -1,
    7,
    2**31 - 1,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**12,
    10**30,
    0.5,
    -0.0,
    1e308,
    True,
    None,
)
PATHS = (
    *(
        "model_full/model.safetensors",
        "training_state/state.json",
        "a",
        "a/b",
        ".gitattributes",
        "ü/日本.txt",
    ),
    *(
        "../x",
        "training_state/../../x",
        "/etc/passwd",
        "a\\b",
        "C:x",
        "a\0",
        "",
        ".",
        "a//b",
        "a/",
        "x" * 2000,
    ),
    *("a/" * 40 + "b", "y" * 300, "manifest.json", "\ud800"),
)

some_id = st.one_of(
    st.sampled_from(GOOD_IDS), st.sampled_from(GOOD_IDS + HOSTILE_IDS), st.text(max_size=12)
)
some_text = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(), max_size=30))
some_number = st.one_of(
    st.sampled_from(NUMBERS), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
)
some_attributes = st.dictionaries(
    some_text, st.one_of(some_text, st.none(), some_number), max_size=4
)
some_value = st.recursive(
    st.one_of(st.none(), st.booleans(), some_number, some_text),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(some_text, inner, max_size=3)
    ),
    max_leaves=6,
)
# Spellings of a path. A server that authorizes one spelling and routes another fails on one of
# these.
spellings = st.sampled_from(("{}", "{}", "{}", "/{}", "/.{}", "{}/", "/x/..{}"))

# Requests
# --------------------------------------------------------------------------------------------------


@dataclass
class RecordedApp:
    """An application, the ids created in it, and its claimed attempts."""

    server: TestServer
    dataset_id: str = ""
    attempts: list[Any] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    accepted: int = 0
    claims: Iterator[int] = field(default_factory=itertools.count)

    async def send(
        self, method: str, path: str, body: Any = None, *, key: str = ""
    ) -> dict[str, Any]:
        """Send a request with an unchanged path; return the response, if it was accepted."""
        status, result = await send_raw(self.server, method, path, body, key=key or None)
        if not 200 <= status < 300:
            return {}
        self.accepted += 1
        return result if isinstance(result, dict) else {}


def fill_path(spelling: str, path: str) -> str:
    return spelling.format(path)


async def put(
    app: RecordedApp, kind: str, id: str, spec: Any, attributes: Any, spelling: str
) -> None:
    body = {"spec": spec, "metadata": {"attributes": attributes}}
    await app.send("PUT", fill_path(spelling, app.server.path(f"{kind}/{id}")), body)


async def patch(app: RecordedApp, kind: str, id: str, spec: Any, attributes: Any) -> None:
    await app.send(
        "PATCH",
        app.server.path(f"{kind}/{id}"),
        {"spec": spec, "metadata": {"attributes": attributes}},
    )


async def delete(app: RecordedApp, kind: str, id: str, spelling: str) -> None:
    await app.send("DELETE", fill_path(spelling, app.server.path(f"{kind}/{id}")))


async def make_dataset(app: RecordedApp, name: str, description: Any, attributes: Any) -> None:
    body = {
        "name": name,
        "type": "vqa",
        "description": description,
        "metadata": {"attributes": attributes},
    }
    result = await app.send("POST", app.server.path("datasets"), body)
    app.datasets += [result["datasetId"]] if result else []


async def change_dataset(app: RecordedApp, which: int, body: Any, *, is_deleted: bool) -> None:
    if app.datasets:
        path = app.server.path(f"datasets/{app.datasets[which % len(app.datasets)]}")
        await app.send("DELETE" if is_deleted else "PATCH", path, None if is_deleted else body)


async def begin_import(app: RecordedApp, spec: Any, attributes: Any) -> None:
    path = app.server.path(f"datasets/{app.dataset_id}/imports")
    result = await app.send("POST", path, {"spec": spec, "metadata": {"attributes": attributes}})
    app.imports += [result["datasetImportId"]] if result else []


async def act_on_import(app: RecordedApp, which: int, action: str) -> None:
    id = app.imports[which % len(app.imports)] if app.imports else "none"
    path = app.server.path(f"datasets/{app.dataset_id}/imports/{id}:{action}")
    await app.send("POST", path, {"packs": ["0" * 64]})


async def begin_ingestion(app: RecordedApp, names: list[str], size: Any, mime: str) -> None:
    """Announce images to be uploaded, one of them in parts."""
    source = f"datasets/{app.dataset_id}/assetSources/managed/datature/default"
    files = [{"filename": name, "size": size, "mime": mime, "kind": "Image"} for name in names]
    result = await app.send(
        "POST", app.server.path(f"{source}/assetIngestionSessions"), {"spec": {"assets": files}}
    )
    if result:
        spec = {
            "ingestionId": result["selfLink"].rpartition("/")[2],
            "filename": names[0],
            "sizeBytes": size,
        }
        await app.send("POST", app.server.path(f"{source}/multipartUploads"), {"spec": spec})


async def announce_annotations(app: RecordedApp, names: list[str], size: Any) -> None:
    base = app.server.path(f"datasets/{app.dataset_id}/annotationImportSessions")
    result = await app.send(
        "POST", base, {"spec": {"uploadBefore": app.server.clock.now_ms() + 60_000}}
    )
    if result:
        files = {name: {"sizeBytes": size} for name in names}
        await app.send("POST", f"{result['selfLink']}/files", {"files": files})


async def rename_asset(app: RecordedApp, new: str) -> None:
    base = app.server.path(f"datasets/{app.dataset_id}/assets")
    listed = await app.send("GET", base)
    if listed.get("items"):
        await app.send("POST", f"{base}/{listed['items'][0]['assetId']}/name", {"filename": new})


async def claim_attempt(app: RecordedApp, claim_id: str | None, machine_id: str, host: str) -> None:
    """Claim an attempt; with None for the id, as a controller does."""
    offer: dict[str, Any] = {
        "claim_id": f"c{next(app.claims)}" if claim_id is None else claim_id,
        "machine_id": machine_id,
    }
    offer |= {"host": host, "slots": 1, "wait_s": 0}
    result = await app.send("POST", "/internal/v1/claims", offer, key=app.server.controller_key)
    if result.get("assignment"):
        app.attempts.append(result["assignment"]["token"])


async def ship_lines(app: RecordedApp, name: str, body: Any) -> None:
    """Send a message as the newest attempt."""
    if app.attempts:
        await app.send("POST", f"/internal/v1/attempt/{name}", body, key=app.attempts[-1])


async def upload_checkpoint(
    app: RecordedApp, id: str, files: list[tuple[str, Any]], numbers: Any, metrics: Any
) -> None:
    """Upload and report a checkpoint; a size of None is the real size."""
    if not app.attempts:
        return
    content = b"weights of " + repr((id, files)).encode(errors="replace")
    digest = hashlib.sha256(content).hexdigest()
    upload = await app.server.client(app.attempts[-1])
    await upload.put(f"/internal/v1/attempt/blobs/{digest}", content=content)
    step, epoch, time = numbers
    listed = [
        {"path": path, "size_bytes": len(content) if size is None else size, "sha256": digest}
        for path, size in files
    ]
    body = {
        "checkpoint_id": id,
        "step": step,
        "epoch": epoch,
        "metrics": metrics,
        "is_best": True,
        "time": time,
    }
    await ship_lines(app, "checkpoints", {**body, "files": listed})


kinds = st.sampled_from(("runs", "flows", "trainingProjects"))
some_spec = st.one_of(
    st.just({}),
    st.just({"flow": KEPT_CHECKPOINTS}),
    st.fixed_dictionaries({"name": some_text}),
    st.fixed_dictionaries({"flowId": some_id}),
    st.fixed_dictionaries({"trainingProject": some_id}),
    st.fixed_dictionaries(
        {"flow": st.fixed_dictionaries({"name": some_text, "settings": some_value})}
    ),
    st.fixed_dictionaries(
        {"flow": st.builds(lambda id: {"settings": {"flow": {"id": id, "generation": 1}}}, some_id)}
    ),
    st.fixed_dictionaries(
        {"resumeFrom": st.fixed_dictionaries({"runId": some_id, "checkpoint": some_id})}
    ),
    st.fixed_dictionaries({"killedAt": some_number}),
    some_value,
)
some_files = st.lists(
    st.tuples(st.sampled_from(PATHS), st.one_of(st.none(), st.none(), some_number)), max_size=3
)
some_names = st.lists(
    st.one_of(some_text, st.sampled_from((*PATHS, "a:b.png", "ok/1.png"))), min_size=1, max_size=3
)
good_numbers = st.just((3, 1, 1_700_000_000_900))
some_event = st.builds(
    lambda name, fields: json.dumps({"n": 1, "t": 5, "ev": name, **fields}),
    st.sampled_from(("step", "evaluation", "plan", "phase", "checkpoint", "else")),
    st.dictionaries(
        st.sampled_from(("step", "epoch", "values", "plan", "phase", "metricName")), some_value
    ),
)
a_claim = st.builds(
    partial,
    st.just(claim_attempt),
    claim_id=st.none(),
    machine_id=st.just("m1"),
    host=st.just("here"),
)
a_checkpoint = st.builds(
    partial,
    st.just(upload_checkpoint),
    id=st.one_of(st.sampled_from(("epoch-1", "epoch-2")), some_id),
    files=st.one_of(
        st.just([("model_full/model.safetensors", None), ("training_state/s.json", None)]),
        some_files,
    ),
    numbers=st.one_of(good_numbers, good_numbers, st.tuples(some_number, some_number, some_number)),
    metrics=st.one_of(
        st.just({"exactMatch": 0.5}), st.dictionaries(some_text, some_number, max_size=2)
    ),
)
an_act = st.one_of(
    st.builds(
        partial,
        st.just(put),
        kind=kinds,
        id=some_id,
        spec=some_spec,
        attributes=some_attributes,
        spelling=spellings,
    ),
    st.builds(
        partial,
        st.just(put),
        kind=st.just("runs"),
        id=some_id,
        spec=some_spec,
        attributes=st.just({}),
        spelling=st.just("{}"),
    ),
    st.builds(
        partial, st.just(patch), kind=kinds, id=some_id, spec=some_spec, attributes=some_attributes
    ),
    st.builds(partial, st.just(delete), kind=kinds, id=some_id, spelling=spellings),
    st.builds(
        partial,
        st.just(make_dataset),
        name=some_text,
        description=some_text,
        attributes=some_attributes,
    ),
    st.builds(
        partial,
        st.just(change_dataset),
        which=st.integers(0, 3),
        body=some_value,
        is_deleted=st.booleans(),
    ),
    st.builds(
        partial,
        st.just(begin_import),
        spec=st.one_of(st.just({}), some_value),
        attributes=some_attributes,
    ),
    st.builds(
        partial,
        st.just(act_on_import),
        which=st.integers(0, 3),
        action=st.sampled_from(("finish", "cancel", "explode", "")),
    ),
    st.builds(
        partial, st.just(begin_ingestion), names=some_names, size=some_number, mime=some_text
    ),
    st.builds(partial, st.just(announce_annotations), names=some_names, size=some_number),
    st.builds(
        partial,
        st.just(rename_asset),
        new=st.one_of(some_text, st.sampled_from((*PATHS, "a:b.png"))),
    ),
    a_claim,
    st.builds(
        partial, st.just(claim_attempt), claim_id=some_id, machine_id=some_id, host=some_text
    ),
    st.builds(
        partial,
        st.just(ship_lines),
        name=st.just("process"),
        body=st.fixed_dictionaries(
            {
                "machine_id": some_id,
                "boot_id": some_id,
                "pid": some_number,
                "start_ticks": some_number,
            }
        ),
    ),
    st.builds(
        partial,
        st.just(ship_lines),
        name=st.just("lines"),
        body=st.fixed_dictionaries(
            {
                "stream": st.sampled_from(("events", "stdout")),
                "offset": st.just(0),
                "next_offset": some_number,
                "lines": st.lists(st.one_of(some_text, some_event), max_size=3),
            }
        ),
    ),
    st.builds(
        partial,
        st.just(ship_lines),
        name=st.just("renew"),
        body=st.fixed_dictionaries({"phase": some_text, "note": some_text}),
    ),
    st.builds(
        partial,
        st.just(ship_lines),
        name=st.just("finish"),
        body=st.fixed_dictionaries(
            {
                "exit_code": some_number,
                "signal": st.none(),
                "group_empty": st.booleans(),
                "cause": some_text,
                "time": some_number,
                "result": st.one_of(st.none(), st.dictionaries(some_text, some_value, max_size=2)),
            }
        ),
    ),
    a_checkpoint,
)
# Half of all scenarios train first, so that messages of supervisors are accepted.
a_training = st.tuples(
    st.just(
        partial(
            put, kind="runs", id="r1", spec={"flow": KEPT_CHECKPOINTS}, attributes={}, spelling="{}"
        )
    ),
    a_claim,
    a_checkpoint,
    a_checkpoint,
).map(list)
some_requests = st.builds(
    lambda begin, acts: begin + acts,
    st.one_of(st.just([]), a_training),
    st.lists(an_act, min_size=3, max_size=12),
)

# The property
# --------------------------------------------------------------------------------------------------


class Instances:
    """Two applications on one kind of store: a live one, and one for restored backups."""

    def __init__(self, runner: asyncio.Runner, live: Any, other: Any) -> None:
        self._runner, self._live, self._other = runner, live, other
        self.accepted = 0
        self._dataset_id, self._initial = runner.run(self._settle_in())
        runner.run(self._restore(other, self._initial))
        other.org = live.org

    def apply_requests(self, scenario: list[Any]) -> None:
        self._runner.run(self._apply_requests(scenario))

    async def _settle_in(self) -> tuple[str, bytes]:
        data = Data(self._live, await self._live.api())
        dataset_id = await data.make()
        await data.import_files(dataset_id, make_vqa_files(2))
        return dataset_id, await self._take(self._live)

    async def _apply_requests(self, scenario: list[Any]) -> None:
        live, other = self._live, self._other
        await self._restore(live, self._initial)
        app = RecordedApp(live, dataset_id=self._dataset_id)
        for act in scenario:
            await act(app)
        self.accepted += app.accepted
        await live.services.jobs.wait_until_idle()
        data = await self._take(live)
        before = self._rows(live)
        tables = {name: parse_columns(notation) for name, notation in backup_schema.TABLES.items()}
        backup_file.verify_backup(iter([data]), Verifier(backup_schema.REVISION, tables))
        await self._restore(other, data)
        assert self._rows(other) == before
        assert self._folders(live) <= {live.org}, (
            "a request made a folder outside of its organization's"
        )
        assert all(ids.is_id("run", name) for name in self._folders(live, live.org))

    def _folders(self, server: TestServer, *below: str) -> set[str]:
        folder = server.settings.runs_dir.joinpath(*below)
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    async def _take(self, server: TestServer) -> bytes:
        answer = await (await server.api()).post(server.path("storage/backups"))
        assert answer.status_code == 200, answer.text
        return bytes(answer.content)

    async def _restore(self, server: TestServer, data: bytes) -> None:
        answer = await (await server.api()).post(server.path("storage/restores"), content=data)
        assert answer.status_code == 200, answer.text

    def _rows(self, server: TestServer) -> dict[str, list[bytes]]:
        with server.services.store.snapshot() as connection:
            return {
                name: sorted(rows.iter_rows(connection, table))
                for name, table in rows.TABLES.items()
                if name not in OWN
            }


@contextlib.contextmanager
def open_instances(folder: Path, urls: tuple[str, str]) -> Iterator[Instances]:
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        houses = [
            runner.run(stack.enter_async_context(open_server(folder / name, database_url=url)))
            for name, url in zip(("live", "other"), urls, strict=True)
        ]
        try:
            yield Instances(runner, *houses)
        finally:
            runner.run(stack.aclose())


def check(instances: Instances, *, examples: int) -> None:
    @settings(
        max_examples=int(EXAMPLES or examples),
        deadline=None,
        database=None,
        phases=SHORT if EXAMPLES is None else tuple(Phase),
        suppress_health_check=list(HealthCheck),
    )
    @given(some_requests)
    def run_requests(scenario: list[Any]) -> None:
        instances.apply_requests(scenario)

    # By default always the same requests, whatever this function is called: hypothesis would derive
    # them from its name, and a few examples may happen to contain hardly any accepted request.
    if EXAMPLES is None:
        run_requests = seed(4)(run_requests)
    run_requests()
    assert instances.accepted > 2 * examples, "too few of the requests are accepted to say anything"


def test_a_backup_after_any_accepted_requests_can_be_restored(tmp_path: Path) -> None:
    with open_instances(tmp_path, ("", "")) as instances:
        check(instances, examples=6)


@pytest.mark.slow
def test_a_backup_after_any_accepted_requests_can_be_restored_on_postgresql(
    tmp_path: Path, postgresql: Any
) -> None:
    with open_instances(
        tmp_path, (postgresql.new_database(), postgresql.new_database())
    ) as instances:
        check(instances, examples=4)
