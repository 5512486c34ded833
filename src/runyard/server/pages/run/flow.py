"""The tab *Flow*: blocks as a graph and as YAML, the plan with its reasons, the environment."""

import json
import re
from typing import Any

import msgspec

from runyard.server.pages.views import NOTHING, format_bytes
from vi.api.resources.runs.responses import Run

_ENVIRONMENT = ("versions", "hardware", "revision")
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_MOST_SETTINGS = 8


class BlockCard(msgspec.Struct, frozen=True, kw_only=True):
    """A block of the flow with the settings that the flow changes."""

    name: str
    kind: str
    settings: list[tuple[str, str]]
    more: int


class PlanRow(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved value of the plan, and why it is that."""

    name: str
    value: str
    reason: str


class FlowTab(msgspec.Struct, frozen=True, kw_only=True):
    """The flow of a run."""

    name: str
    origin: str
    origin_href: str
    resume_from: str
    resume_href: str
    dataset: str
    blocks: list[BlockCard]
    yaml: str
    plan: list[PlanRow]
    environment: list[PlanRow]


def build_flow(run: Run) -> FlowTab:
    """Return the flow of a run as the tab shows it."""
    spec, plan = run.spec.flow, run.status.plan or {}
    origin, resume = spec.settings.get("flow"), run.spec.resume_from
    document = msgspec.to_builtins(spec)
    for block in document["blocks"]:
        block.pop("style", None)
    dataset = plan.get("dataset", {})
    return FlowTab(
        name=spec.name,
        origin=f"{origin.get('id')}, version {origin.get('generation')}"
        if isinstance(origin, dict)
        else "",
        origin_href="",
        resume_from=f"{resume.run_id}, checkpoint {resume.checkpoint}, step {resume.step}"
        if resume
        else "",
        resume_href=f"/ui/runs/{resume.run_id}" if resume else "",
        dataset=str(dataset.get("value", "")) if isinstance(dataset, dict) else "",
        blocks=[_build_card(block.block, block.settings) for block in spec.blocks],
        yaml=format_yaml(
            {name: value for name, value in document.items() if value not in (None, {})}
        ),
        plan=[
            _build_plan_row(name, entry)
            for name, entry in plan.items()
            if name not in _ENVIRONMENT and isinstance(entry, dict)
        ],
        environment=[
            PlanRow(name=name, value=_format_value(name, value), reason=section)
            for section in _ENVIRONMENT
            for name, value in _get_values(plan, section).items()
        ],
    )


def _build_card(name: str, settings: dict[str, Any]) -> BlockCard:
    flat = flatten(settings)
    shown = [
        (path, _format_value(path, value)) for path, value in list(flat.items())[:_MOST_SETTINGS]
    ]
    kind = next((part for part in ("prompt", "dataset", "model") if part in name.lower()), "other")
    return BlockCard(name=name, kind=kind, settings=shown, more=max(len(flat) - _MOST_SETTINGS, 0))


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested objects by their dotted paths; lists are leaves."""
    if not isinstance(value, dict) or not value:
        return {path: value} if path else {}
    leaves: dict[str, Any] = {}
    for name, inner in value.items():
        leaves |= flatten(inner, f"{path}.{name}" if path else str(name))
    return leaves


def _build_plan_row(name: str, entry: dict[str, Any]) -> PlanRow:
    return PlanRow(
        name=name,
        value=_format_value(name, entry.get("value")),
        reason=str(entry.get("reason", "")),
    )


def _get_values(plan: dict[str, Any], section: str) -> dict[str, Any]:
    entry = plan.get(section)
    value = entry.get("value") if isinstance(entry, dict) else None
    return value if isinstance(value, dict) else {}


def _format_value(name: str, value: Any) -> str:
    if value is None or value == []:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (name.endswith("Bytes") or name == "memory"):
        return format_bytes(value)
    if isinstance(value, int):
        return f"{value:,}" if name.lower().endswith(("parameters", "samples")) else str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def format_yaml(value: Any, indent: int = 0) -> str:
    """Return JSON data as block-style YAML that every YAML 1.2 reader parses to the same data."""
    space = "  " * indent
    if isinstance(value, dict) and value:
        return "".join(
            f"{space}{_format_scalar(str(name))}:{_format_inner(inner, indent)}"
            for name, inner in value.items()
        )
    if isinstance(value, list) and value:
        return "".join(_format_item(inner, indent) for inner in value)
    return f"{space}{_format_scalar(value)}\n"


def _format_inner(value: Any, indent: int) -> str:
    if isinstance(value, dict | list) and value:
        return "\n" + format_yaml(value, indent + 1)
    return f" {_format_scalar(value)}\n"


def _format_item(value: Any, indent: int) -> str:
    space = "  " * indent
    if isinstance(value, dict | list) and value:
        return f"{space}- {format_yaml(value, indent + 1).lstrip(' ')}"
    return f"{space}- {_format_scalar(value)}\n"


def _format_scalar(value: Any) -> str:
    """Return a scalar; JSON's form is valid YAML, and plain words need no quotes."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    text = json.dumps(value, ensure_ascii=False)
    # Without a point, readers of YAML 1.1 take 1e-05 for a text.
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text
