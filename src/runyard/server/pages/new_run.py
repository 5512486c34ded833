"""The page that starts a run.

The form itself is built in the browser from the schema of flows; this page supplies what only the
server knows: datasets, base models, and the flow to begin with. Checks and the start are requests
to the API.
"""

from typing import Any

import msgspec

from runyard.flows.blocks import BUILT_IN_DATASETS
from runyard.flows.weights import BASE_PREFIX
from runyard.server.http.request import Query, Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages import templates
from runyard.server.pages.views import format_count
from runyard.server.services.context import Services
from runyard.server.services.datasets import datasets
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs import runs
from vi.api.resources.datasets.responses import Dataset
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import Run

MOST_DATASETS = 200
BUILT_IN_TITLES = {
    "digits": "Handwritten digits",
    "digits-grounding": "Digits on a canvas",
    "digits-both": "Digits, both tasks",
}
GOALS = {
    "vqa": "Answer questions",
    "phrase-grounding": "Find and box what a phrase names",
    "freeform": "Describe the image",
}


class NamedOption(msgspec.Struct, frozen=True, kw_only=True):
    """An option of a selection: its value, its text, and what names of runs contain of it."""

    value: str
    text: str
    name: str
    is_chosen: bool = False


class NewRunPage(msgspec.Struct, frozen=True, kw_only=True):
    """The page that starts a run; ``flow`` is JSON. ``weights`` are those typed in, if any."""

    built_in: list[NamedOption]
    datasets: list[NamedOption]
    has_more_datasets: bool
    models: list[NamedOption]
    goals: list[NamedOption]
    weights: str
    flow: str
    origin: str


class _Datasets(msgspec.Struct, rename="camel"):
    items: list[Dataset]
    next_page: str | None = None


async def get_new_run(request: Request) -> Response:
    """Show the form; ``?from=RUN`` begins with a run's flow, ``?dataset=`` and ``?weights=`` with
    these."""
    services, org, query = get_services(request), get_actor(request).org, Query(request)
    run_id = query.text("from")
    flow = FlowSpec() if run_id is None else _read_flow(services, org, run_id)
    chosen = query.text("dataset") or _get_setting(flow, "dataset", "datasetId") or ""
    weights = query.text("weights") or _get_weights(flow) or ""
    found = msgspec.json.decode(
        await datasets.page(
            services, org=org, page_request=PageRequest(size=MOST_DATASETS, question="new run")
        ),
        type=_Datasets,
    )
    page = NewRunPage(
        built_in=[
            NamedOption(
                value=id,
                text=f"{BUILT_IN_TITLES.get(id, id)}: {GOALS[task].lower()}",
                name=id,
                is_chosen=id == (chosen or "digits"),
            )
            for id, task in BUILT_IN_DATASETS.items()
        ],
        datasets=[_describe_dataset(dataset, chosen) for dataset in found.items],
        has_more_datasets=found.next_page is not None,
        models=_list_models(services, weights),
        goals=[
            NamedOption(value="", text="The dataset's own", name=""),
            *(NamedOption(value=task, text=text, name=task) for task, text in GOALS.items()),
        ],
        weights=weights if not weights.startswith(BASE_PREFIX) else "",
        flow=_encode_flow(flow, chosen, weights),
        origin=run_id or "",
    )
    return templates.render_page(request, "new-run.html", page)


def _read_flow(services: Services, org: str, run_id: str) -> FlowSpec:
    document, _ = runs.get(services, org=org, run_id=run_id)
    flow = msgspec.json.decode(document, type=Run).spec.flow
    flow.settings.pop("flow", None)
    return flow


def _encode_flow(flow: FlowSpec, dataset_id: str, weights: str) -> str:
    """Return the flow as JSON, with what the address names."""
    document: Any = msgspec.to_builtins(flow)
    for part, path in (("dataset", ("datasetId", dataset_id)), ("model", ("weights", weights))):
        name, value = path
        if not value:
            continue
        blocks = document["blocks"]
        block = next((block for block in blocks if part in block["block"]), None)
        if block is None:
            block = {"block": f"vi-{part}", "settings": {}}
            blocks.append(block)
        settings = block.setdefault("settings", {})
        target = settings.setdefault("architecture", {}) if part == "model" else settings
        target[name] = value
    if document["name"] == "Untitled":
        document["name"] = ""
    return msgspec.json.encode(document).decode()


def _get_setting(flow: FlowSpec, part: str, name: str) -> Any:
    return next((block.settings.get(name) for block in flow.blocks if part in block.block), None)


def _get_weights(flow: FlowSpec) -> str | None:
    architecture = _get_setting(flow, "model", "architecture")
    return architecture.get("weights") if isinstance(architecture, dict) else None


def _describe_dataset(dataset: Dataset, chosen: str) -> NamedOption:
    total = dataset.statistic.asset_total
    images = "1 image" if total == 1 else f"{format_count(total)} images"
    return NamedOption(
        value=dataset.dataset_id,
        text=f"{dataset.name} · {images}, {GOALS.get(dataset.type, dataset.type).lower()}",
        name=dataset.name,
        is_chosen=dataset.dataset_id == chosen,
    )


def _list_models(services: Services, weights: str) -> list[NamedOption]:
    """Return the built-in model, those of this server's folders, and a field for all others."""
    names = services.settings.models.list_names()
    values = ["", *(f"{BASE_PREFIX}{name}" for name in names)]
    texts = ["Tiny model, built in: tests the pipeline in about a minute", *names]
    found = [
        NamedOption(value=value, text=text, name=name, is_chosen=value == weights)
        for value, text, name in zip(values, texts, ["tiny", *names], strict=True)
    ]
    other = NamedOption(
        value="other",
        text="Another: a hub id, or a checkpoint of a run",
        name="",
        is_chosen=weights not in values,
    )
    return [*found, other]
