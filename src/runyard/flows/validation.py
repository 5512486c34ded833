"""The entry points for flows: ``validate`` at the server, ``resolve`` before training.

Both check each value by itself, fill in defaults, and then check consistency across fields. Whether
a dataset, project or registered model exists is checked by the server, which has the database.
"""

from typing import Any

import msgspec

from runyard.flows.blocks import BLOCKS, FRAGMENTS, TASKS, FlowShape
from runyard.flows.checks import INVALID, find_nearest, get_validator
from runyard.flows.consistency import check_consistency, check_supported
from runyard.flows.plain_json import check_json
from runyard.flows.problems import FlowProblems, ProblemCollector, describe_value
from runyard.flows.resolved_flow import ResolvedFlow, fill_defaults
from vi.api.resources.flows.responses import FlowBlock, FlowSpec


def validate(flow: object) -> FlowSpec:
    """Check a flow from outside and add the fields the wire requires: name, schema, settings,
    styles.

    Raises:
        FlowProblems: the flow cannot run; the exception holds every problem found.
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


def resolve(
    flow: FlowSpec, *, dataset_kind: str | None = None, dataset_id: str | None = None
) -> ResolvedFlow:
    """Resolve a flow: fill in every default.

    ``dataset_id`` is the training project's dataset, used if the flow names none. ``dataset_kind``
    is the task of the dataset, if it is known.

    Raises:
        FlowProblems: the flow cannot run, or not with a dataset of that kind.
    """
    _, resolved = _read(msgspec.to_builtins(flow), dataset_kind=dataset_kind, dataset_id=dataset_id)
    return resolved


def _read(
    flow: object,
    *,
    dataset_kind: str | None = None,
    dataset_id: str | None = None,
    is_new: bool = False,
) -> tuple[dict[str, Any], ResolvedFlow]:
    """Check a flow; return it with the required fields, and resolved.

    A new flow must not use unsupported settings. Runs that were accepted before that was checked
    still resolve.
    """
    problems = ProblemCollector()
    check_json(flow, problems)
    given = get_validator(FlowShape).validate(_rename_training_project(flow), "", problems)
    if given is INVALID:
        raise FlowProblems(problems.to_list())
    checked: dict[str, Any] = {
        "name": "Untitled",
        "schema": "v1",
        "tolerations": {},
        "settings": {},
        "blocks": [],
    }
    checked |= given
    kinds = _check_blocks(checked["blocks"], problems)
    settings_of = {kind: checked["blocks"][index]["settings"] for kind, index in kinds.items()}
    if dataset_kind is not None and dataset_kind not in TASKS:
        problems.add("/blocks", dataset_kind, f"a dataset of kind {', '.join(TASKS)}")
        dataset_kind = None
    # Invalid values have been dropped, so this works on the rest and all problems are reported at
    # once.
    resolved = fill_defaults(checked, settings_of, dataset_kind=dataset_kind, dataset_id=dataset_id)
    at = {
        kind: f"/blocks/{kinds[kind]}/settings" if kind in kinds else "/blocks" for kind in BLOCKS
    }
    inconsistent = check_consistency(resolved, at, problems, dataset_kind=dataset_kind)
    unsupported = check_supported(resolved, at).to_list() if is_new else []
    if problems or inconsistent or unsupported:
        raise FlowProblems(problems.to_list() + inconsistent.to_list() + unsupported)
    return checked, resolved


def _rename_training_project(flow: object) -> object:
    """Rename ``training_project``: the published client documents this name in snake_case and sends
    it unchanged.
    """
    if not isinstance(flow, dict) or "training_project" not in flow or "trainingProject" in flow:
        return flow
    return {
        ("trainingProject" if name == "training_project" else name): value
        for name, value in flow.items()
    }


def _check_blocks(blocks: list[Any], problems: ProblemCollector) -> dict[str, int]:
    """Check and clean each block's settings in place; return the index of each block type."""
    kinds: dict[str, int] = {}
    for index, block in enumerate(blocks):
        if not isinstance(block, dict):
            continue
        path = f"/blocks/{index}"
        block.setdefault("style", {})
        settings = block.setdefault("settings", {})
        kind = _find_block_type(block["block"], f"{path}/block", problems)
        if kind in kinds:
            problems.add(
                f"{path}/block",
                block["block"],
                "each type of block at most once",
                message=f"{path}/block is a second {kind}; the first is /blocks/{kinds[kind]}. "
                "Remove one of them.",
            )
        elif kind is not None:
            kinds[kind] = index
            block["settings"] = get_validator(BLOCKS[kind]).validate(
                settings, f"{path}/settings", problems
            )
    return kinds


def _find_block_type(name: str, path: str, problems: ProblemCollector) -> str | None:
    """Return the block type whose fragment the name contains.

    The published client finds blocks the same way.
    """
    known = ", ".join(BLOCKS)
    found = [kind for fragment, kind in FRAGMENTS.items() if fragment in name]
    if len(found) == 1:
        return found[0]
    if found:
        hint = f"could be {' or '.join(found)}; write one of them."
    elif suggestion := find_nearest(name, BLOCKS):
        hint = f"is not a known block; did you mean {suggestion}?"
    else:
        hint = f"is not a known block; known are {known}."
    problems.add(path, name, f"one of {known}", message=f"{path} {describe_value(name)} {hint}")
    return None
