"""The two doors of the recipe language: ``validate`` at the server, ``resolve`` before training.

Both read a flow in the same way: each value by itself, then the gaps filled, then what must fit together. Whether a
dataset, project or registered model exists is for those who have a database.
"""

from typing import Any

import msgspec

from runyard.flows.blocks import BLOCKS, FRAGMENTS, TASKS, FlowShape
from runyard.flows.checks import FAULTY, check_of, nearest
from runyard.flows.fitting import check_across, check_supported
from runyard.flows.plain_json import check_is_json
from runyard.flows.problems import Findings, FlowProblems, in_words
from runyard.flows.recipe import Recipe, complete
from vi.api.resources.flows.responses import FlowBlock, FlowSpec


def validate(flow: object) -> FlowSpec:
    """Check a flow as it came from outside and fill what the wire may not lack: name, schema, settings, styles.

    Raises:
        FlowProblems: the flow cannot run; it holds every problem found.
    """
    checked, _ = _read(flow, is_new=True)
    return FlowSpec(
        name=checked["name"],
        schema=checked["schema"],
        blocks=[FlowBlock(**block) for block in checked["blocks"]],
        settings=checked["settings"],
        tolerations=checked["tolerations"],
        training_project=checked.get("trainingProject"),
    )


def resolve(flow: FlowSpec, *, dataset_kind: str | None = None, dataset_id: str | None = None) -> Recipe:
    """The complete recipe of a flow.

    ``dataset_id`` is the training project's dataset, taken when the flow names none; ``dataset_kind`` is the task that
    the dataset was made for, where somebody knows it.

    Raises:
        FlowProblems: the flow cannot run, or not with a dataset of that kind.
    """
    _, recipe = _read(msgspec.to_builtins(flow), dataset_kind=dataset_kind, dataset_id=dataset_id)
    return recipe


def _read(
    flow: object, *, dataset_kind: str | None = None, dataset_id: str | None = None, is_new: bool = False
) -> tuple[dict[str, Any], Recipe]:
    """The flow with gaps filled, and its complete recipe.

    A new one must not contain what is not supported yet; runs that were accepted before that was checked still resolve.
    """
    findings = Findings()
    check_is_json(flow, findings)
    given = check_of(FlowShape).walk(_in_camel_case(flow), "", findings)
    if given is FAULTY:
        raise FlowProblems(findings.found())
    checked: dict[str, Any] = {"name": "Untitled", "schema": "v1", "tolerations": {}, "settings": {}, "blocks": []}
    checked |= given
    kinds = _check_blocks(checked["blocks"], findings)
    settings_of = {kind: checked["blocks"][index]["settings"] for kind, index in kinds.items()}
    if dataset_kind is not None and dataset_kind not in TASKS:
        findings.add("/blocks", dataset_kind, f"a dataset of kind {', '.join(TASKS)}")
        dataset_kind = None
    # Whatever is faulty has been dropped, so that this works on what is left and all problems are told at once.
    recipe = complete(checked, settings_of, dataset_kind=dataset_kind, dataset_id=dataset_id)
    at = {kind: f"/blocks/{kinds[kind]}/settings" if kind in kinds else "/blocks" for kind in BLOCKS}
    misfits = check_across(recipe, at, findings, dataset_kind=dataset_kind)
    unsupported = check_supported(recipe).found() if is_new else []
    if findings or misfits or unsupported:
        raise FlowProblems(findings.found() + misfits.found() + unsupported)
    return checked, recipe


def _in_camel_case(flow: object) -> object:
    """The published client sends a dict as it was written, and its own help writes this one name in snake_case."""
    if not isinstance(flow, dict) or "training_project" not in flow or "trainingProject" in flow:
        return flow
    return {("trainingProject" if name == "training_project" else name): value for name, value in flow.items()}


def _check_blocks(blocks: list[Any], findings: Findings) -> dict[str, int]:
    """Check and clean each block's settings in place; returns where each type of block stands."""
    kinds: dict[str, int] = {}
    for index, block in enumerate(blocks):
        if not isinstance(block, dict):
            continue
        path = f"/blocks/{index}"
        block.setdefault("style", {})
        settings = block.setdefault("settings", {})
        kind = _kind_of(block["block"], f"{path}/block", findings)
        if kind in kinds:
            findings.add(
                f"{path}/block",
                block["block"],
                "each type of block at most once",
                message=f"{path}/block is a second {kind}; the first is /blocks/{kinds[kind]}. Remove one of them.",
            )
        elif kind is not None:
            kinds[kind] = index
            block["settings"] = check_of(BLOCKS[kind]).walk(settings, f"{path}/settings", findings)
    return kinds


def _kind_of(name: str, path: str, findings: Findings) -> str | None:
    """The block type that a name contains; the published client finds blocks in the same way."""
    known = ", ".join(BLOCKS)
    found = [kind for fragment, kind in FRAGMENTS.items() if fragment in name]
    if len(found) == 1:
        return found[0]
    if found:
        hint = f"could be {' or '.join(found)}; write one of them."
    elif suggestion := nearest(name, BLOCKS):
        hint = f"is not a known block; did you mean {suggestion}?"
    else:
        hint = f"is not a known block; known are {known}."
    findings.add(path, name, f"one of {known}", message=f"{path} {in_words(name)} {hint}")
    return None
