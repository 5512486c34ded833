"""A program for the environment of the published client, which is also imported as ``vi``.

It reads ids from standard input, calls the client as its users do, and prints one JSON object with
the result or error of each call. It judges nothing; ``test_published_client.py`` does.
Endpoint, key and organization come from the client's own three environment variables.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from vi.api.resources.training_projects.flows.responses import (  # type: ignore[import-not-found]
    FlowBlock,
    FlowSpec,
)

import vi
from vi.api.types import PaginationParams

EMPTY_RECIPE = {
    "name": "Quick Training",
    "schema": "v1",
    "blocks": [],
    "settings": {},
    "tolerations": {},
}
DEADLINE_S = 60
# The published package's, which the type checker does not see: it sees ours.
Client = Any


def attempt(call: Callable[[], Any]) -> dict[str, Any]:
    """Return the result of a call, or the error as its user sees it."""
    try:
        return {"value": call()}
    except vi.ViError as error:
        return {
            "error": type(error).__name__,
            "code": error.error_code.value,
            "status": error.status_code,
            "message": error.message,
        }
    except (
        Exception
    ) as error:  # reported as it is, so that the test that looks for another answer shows it
        return {"error": type(error).__name__, "message": str(error)}


def flow_seen(flow: Any) -> dict[str, Any]:
    return {
        "id": flow.flow_id,
        "name": flow.spec.name,
        "schema": flow.spec.schema,
        "blocks": [[block.block, block.settings] for block in flow.spec.blocks],
        "settings": flow.spec.settings,
        "attributes": flow.metadata.attributes,
        "organization": flow.organization_id,
    }


def accelerators_seen(found: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": item.accelerator.training_accelerator_id,
            "enabled": item.accelerator.spec.enabled,
            "labels": item.accelerator.spec.labels,
            "resources": item.accelerator.spec.resources,
            "verdicts": [
                [each.count, str(getattr(each.action, "value", each.action)), each.reason]
                for each in item.configurations
            ],
        }
        for item in found.items
    ]


def run_seen(run: Any) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "organization": run.organization_id,
        "flowName": run.spec.flow.name,
        "blocks": [block.block for block in run.spec.flow.blocks],
        "trainingProject": run.spec.training_project,
        "killedAt": run.spec.killed_at,
        "conditions": [condition.condition.value for condition in run.status.conditions],
        "attributes": run.metadata.attributes,
        "generation": run.metadata.generation,
        "log": run.status.log,
    }


def model_seen(model: Any) -> dict[str, Any]:
    contents = model.status.contents
    return {
        "id": model.model_id,
        "run": model.run_id,
        "epoch": model.spec.epoch,
        "metrics": model.spec.evaluation_metrics,
        "url": contents.download_url.url if contents else None,
    }


def flows(client: Client) -> Iterator[tuple[str, Callable[[], Any]]]:
    made: dict[str, str] = {}

    def create(name: str, spec: Any, metadata: dict[str, str] | None = None) -> dict[str, Any]:
        flow = client.flows.create(spec=spec, metadata=metadata)
        made[name] = flow.flow_id
        return flow_seen(flow)

    def accelerators_of_large_model() -> list[dict[str, Any]]:
        settings = {
            "architecture": {"name": "qwen25vl", "size": "72B"},
            "training": {"mode": "full"},
        }
        flow = client.flows.create(
            spec={**EMPTY_RECIPE, "blocks": [{"block": "vi-model", "settings": settings}]}
        )
        return accelerators_seen(client.flows.get_accelerators(flow.flow_id))

    flow_spec = FlowSpec(
        name="Shelves",
        schema="v1",
        tolerations={},
        settings={"seed": 7},
        blocks=[FlowBlock(block="vi-dataset", settings={"datasetId": "digits"}, style={"x": 3})],
    )
    yield "create from a dict", lambda: create("dict", EMPTY_RECIPE, {"team": "vision"})
    yield "create from a spec", lambda: create("spec", flow_spec)
    yield "get", lambda: flow_seen(client.flows.get(made["spec"]))
    yield "list", lambda: [flow_seen(flow) for flow in client.flows.list().items]
    yield (
        "list over pages",
        lambda: [flow.flow_id for flow in client.flows.list({"page_size": 1}).all_items()],
    )
    yield (
        "update",
        lambda: flow_seen(
            client.flows.update(made["dict"], spec={"name": "Renamed"}, metadata={"stage": "two"})
        ),
    )
    yield "get after update", lambda: flow_seen(client.flows.get(made["dict"]))
    yield "list simple", lambda: client.flows.list_simple().items
    yield (
        "accelerators of tiny",
        lambda: accelerators_seen(client.flows.get_accelerators(made["dict"])),
    )
    yield "accelerators of a large model", accelerators_of_large_model
    yield (
        "accelerators of nothing",
        lambda: accelerators_seen(client.flows.get_accelerators("no-such-flow")),
    )
    yield (
        "update accelerators",
        lambda: accelerators_seen(client.flows.update_accelerators(made["dict"], {})),
    )
    yield "delete", lambda: client.flows.delete(made["spec"]).id
    yield "get after delete", lambda: flow_seen(client.flows.get(made["spec"]))


def runs(client: Client, ids: dict[str, str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    made: dict[str, str] = {}

    def kill(name: str) -> dict[str, Any]:
        return run_seen(client.runs.kill(made[name]))

    def create(name: str, flow: Any, **arguments: Any) -> dict[str, Any]:
        run = client.runs.create(flow=flow, **arguments)
        made[name] = run.run_id
        return run_seen(run)

    def create_with_project() -> dict[str, Any]:
        project = client.training_projects.create(spec={"name": "Shelves", "type": "vqa"})
        made["project"] = project.training_project_id
        return create(
            "id", client.flows.create(spec=EMPTY_RECIPE).flow_id, training_project=made["project"]
        )

    def wait_until_final(run_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            seen = run_seen(client.runs.get(run_id))
            if seen["conditions"][-1] not in ("Pending", "Running"):
                return seen
            time.sleep(0.2)
        raise TimeoutError(f"run {run_id} has not ended within {DEADLINE_S} s")

    spec = FlowSpec(name="By spec", schema="v1", tolerations={}, settings={}, blocks=[])
    yield "create by flow id", create_with_project
    yield "create from a spec", lambda: create("spec", spec)
    yield (
        "create from a dict",
        lambda: create("dict", EMPTY_RECIPE, metadata={"experiment": "baseline"}),
    )
    yield "create from an empty dict", lambda: create("empty", {})
    yield "start", lambda: create("start", {"blocks": [{"block": "vi-dataset"}]})
    yield "get finished", lambda: run_seen(client.runs.get(ids["finished"]))
    yield "get running", lambda: run_seen(client.runs.get(ids["running"]))
    yield "get pending", lambda: run_seen(client.runs.get(made["spec"]))
    yield "list", lambda: [run.run_id for run in client.runs.list().items]
    yield (
        "list over pages",
        lambda: [
            [run.run_id for run in page.items]
            for page in client.runs.list(PaginationParams(page_size=2))
        ],
    )
    yield (
        "list all items",
        lambda: [run.run_id for run in client.runs.list({"page_size": 3}).all_items()],
    )
    yield "list simple", lambda: client.runs.list_simple().items
    yield (
        "update attributes",
        lambda: run_seen(client.runs.update(made["dict"], metadata={"experiment": "two"})),
    )
    yield (
        "update training project",
        lambda: run_seen(
            client.runs.update(made["dict"], spec={"training_project": made["project"]})
        ),
    )
    yield "update nothing", lambda: run_seen(client.runs.update(made["dict"]))
    yield "logs", lambda: client.runs.get_logs(ids["finished"], limit=3)
    yield "logs continue", lambda: client.runs.get_logs(ids["finished"], since="3", limit=3)
    yield "kill pending", lambda: run_seen(client.runs.kill(made["spec"]))
    yield "get after kill", lambda: run_seen(client.runs.get(made["spec"]))
    for name in ("id", "dict", "empty", "start"):
        yield f"kill {name}", partial(kill, name)
    yield "kill running", lambda: run_seen(client.runs.kill(ids["running"]))
    yield "wait for the killed run", lambda: wait_until_final(ids["running"])
    yield "delete", lambda: client.runs.delete(made["spec"]).id
    yield "get after delete", lambda: run_seen(client.runs.get(made["spec"]))
    yield "delete again", lambda: client.runs.delete(made["spec"]).id


def models(client: Client, ids: dict[str, str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    run = ids["finished"]

    def download(folder: str, ckpt: str | None = None) -> dict[str, Any]:
        got = client.models.download(
            run, ckpt=ckpt, save_dir=f"{ids['folder']}/{folder}", show_progress=False
        )
        return {
            "model": str(got.model_path),
            "adapter": got.adapter_path,
            "config": str(got.run_config_path),
        }

    yield (
        "list",
        lambda: [model_seen(model) for model in client.models.list(run, {"page_size": 100}).items],
    )
    yield (
        "list over pages",
        lambda: [model.model_id for model in client.models.list(run, {"page_size": 1}).all_items()],
    )
    yield "get latest", lambda: model_seen(client.models.get(run))
    yield "get by name", lambda: model_seen(client.models.get(run, ckpt=ids["firstModel"]))
    yield "get with contents", lambda: model_seen(client.models.get(run, contents=True))
    yield "download latest", lambda: download("latest")
    yield "download by name", lambda: download("first", ids["firstModel"])


def errors(client: Client, ids: dict[str, str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    finished = ids["finished"]
    stranger = vi.Client(secret_key=ids["wrongKey"])
    yield (
        "400 unknown block",
        lambda: client.runs.create(flow={"blocks": [{"block": "vi-datasset"}]}).run_id,
    )
    yield "400 unknown flow field", lambda: client.flows.create(spec={"nmae": "x"}).flow_id
    yield (
        "400 page token",
        lambda: client.runs.list({"page_size": 2, "page_token": "made-up"}).items,
    )
    yield "401 wrong key", lambda: stranger.runs.list().items
    yield "404 run", lambda: client.runs.get("no-such-run").run_id
    yield "404 update", lambda: client.runs.update("no-such-run", metadata={"a": "b"}).run_id
    yield "404 kill", lambda: client.runs.kill("no-such-run").run_id
    yield "404 delete", lambda: client.runs.delete("no-such-run").id
    yield "404 flow of a new run", lambda: client.runs.create(flow="no-such-flow").run_id
    yield "404 model", lambda: client.models.get(finished, ckpt="no-such-checkpoint").model_id
    yield "409 kill of a finished run", lambda: client.runs.kill(finished).run_id
    yield (
        "409 other body under a known id",
        lambda: client.runs.replace(finished, {"flow": {"name": "Other"}}).run_id,
    )


def main() -> None:
    ids = json.load(sys.stdin)
    with vi.Client() as client:
        report = {
            "flows": {name: attempt(call) for name, call in flows(client)},
            "runs": {name: attempt(call) for name, call in runs(client, ids)},
            "models": {name: attempt(call) for name, call in models(client, ids)},
            "errors": {name: attempt(call) for name, call in errors(client, ids)},
            "version": vi.__version__,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
