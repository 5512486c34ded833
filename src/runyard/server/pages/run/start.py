"""Another run made from this one: again, resumed from a checkpoint, or branched with changes.

The form starts from the flow of the original. Single fields and the flow as JSON are the same flow:
a field that differs from the original is written into the JSON. What the new run would do
differently, and every problem that the server finds, is shown before anything starts.
"""

import copy
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from runyard.server.pages.forms import Form
from runyard.server.pages.run.flow import flatten
from runyard.server.pages.run.head import RunHead, get_name
from runyard.server.pages.views import NOTHING
from runyard.server.services.errors import Problem
from vi.api.resources.flows.responses import FlowCheck
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run

How = Literal["again", "resume", "branch"]
WAYS: tuple[How, ...] = ("again", "resume", "branch")
TITLES = {"again": "Run again", "resume": "Resume", "branch": "Branch"}
LEADS = {
    "again": "A new run of the same flow, from the beginning.",
    "resume": "A new run of the same flow that continues from a checkpoint of this run.",
    "branch": "A new run with changes, from the beginning or from a checkpoint of this run.",
}
_KINDS = ("prompt", "dataset", "model")


@dataclass(frozen=True)
class Setting:
    """A setting with a field of its own: where it is in the flow, and its name in the plan."""

    name: str
    label: str
    path: str
    plan: str = ""
    is_number: bool = True


SETTINGS = (
    Setting("epochs", "Epochs", "vi-model.hyperparameters.epochs"),
    Setting("maxSteps", "Most steps", "vi-model.hyperparameters.maxSteps"),
    Setting(
        "learningRate", "Learning rate", "vi-model.hyperparameters.learningRate", "learningRate"
    ),
    Setting("batchSize", "Batch size", "vi-model.hyperparameters.batchSize", "batchSize"),
    Setting(
        "microBatchSize", "Micro-batch", "vi-model.hyperparameters.microBatchSize", "microBatchSize"
    ),
    Setting("mode", "Training mode", "vi-model.training.mode", is_number=False),
    Setting("rank", "LoRA rank", "vi-model.training.lora.rank"),
    Setting("seed", "Seed", "settings.seed", "seed"),
    Setting("timeLimitMinutes", "Time limit (min)", "settings.timeLimitMinutes"),
)


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """An input of the form."""

    name: str
    label: str
    value: str
    placeholder: str
    path: str
    problem: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A value that the new run changes."""

    path: str
    before: str
    after: str


class StartOption(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint to start from; an empty value is the beginning."""

    value: str
    text: str
    is_chosen: bool


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What would start: differences, problems, and the same in Python and in a shell."""

    base: str
    differences: list[Difference]
    problems: list[str]
    effects: list[str]
    start: str
    python: str
    command: str


class StartForm(msgspec.Struct, frozen=True, kw_only=True):
    """The page with the form."""

    head: RunHead
    how: str
    title: str
    lead: str
    ways: list[StartOption]
    new_id: str
    name: str
    tags: str
    checkpoints: list[StartOption]
    fields: list[Field]
    flow: str
    preview: Preview


class Draft(msgspec.Struct, kw_only=True):
    """What the form asks for, before the server has checked it."""

    flow: dict[str, Any]
    values: dict[str, str]
    checkpoint: str
    name: str
    tags: dict[str, str]
    problems: list[Problem]


def build_draft(run: Run, how: How, changes: Sequence[str]) -> Draft:
    """Return the draft that a link asks for; ``changes`` are assignments ``name=value``."""
    flow = encode_flow(run)
    values = dict(change.split("=", 1) for change in changes if "=" in change)
    problems = apply_values(flow, values)
    return Draft(
        flow=flow,
        values=values,
        checkpoint="latest" if how == "resume" else "",
        name=suggest_name(run, how),
        tags=dict(run.metadata.attributes),
        problems=problems,
    )


def suggest_name(run: Run, how: How) -> str:
    """Return a name that differs from the original's."""
    suffix = {"again": "again", "resume": "resumed", "branch": "branch"}[how]
    return f"{get_name(run)} {suffix}"[:200]


def parse_draft(run: Run, form: Form) -> Draft:
    """Return the draft of a posted form; what cannot be parsed becomes a problem."""
    problems: list[Problem] = []
    flow = encode_flow(run)
    try:
        given = msgspec.json.decode(form.text("flow") or "{}")
        if not isinstance(given, dict):
            raise ValueError("it is no JSON object")
        flow = given if form.text("flow") else flow
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        problems.append(
            _build_problem("/flow", form.text("flow"), f"The flow is not JSON: {error}.")
        )
    values = {setting.name: form.text(setting.name).strip() for setting in SETTINGS}
    original = read_values(encode_flow(run))
    changed = {name: value for name, value in values.items() if value != original[name]}
    problems += apply_values(flow, changed)
    tags = {}
    for line in form.text("tags").splitlines():
        key, _, value = line.partition("=")
        if key.strip():
            tags[key.strip()] = value.strip()
    return Draft(
        flow=flow,
        values=values,
        checkpoint=form.text("checkpoint"),
        name=form.text("name").strip(),
        tags=tags,
        problems=problems,
    )


def encode_flow(run: Run) -> dict[str, Any]:
    """Return the flow of a run as JSON data that creates the same flow again."""
    flow: dict[str, Any] = msgspec.to_builtins(run.spec.flow)
    flow["settings"].pop("flow", None)  # written by the server for a saved flow
    for block in flow["blocks"]:
        if not block.get("style"):
            block.pop("style", None)
    return {name: value for name, value in flow.items() if value is not None}


def apply_values(flow: dict[str, Any], values: dict[str, str]) -> list[Problem]:
    """Write the values of fields into a flow; an empty one removes the setting."""
    problems = []
    for setting in SETTINGS:
        if setting.name not in values:
            continue
        text = values[setting.name].strip()
        try:
            value = _parse_value(setting, text)
        except ValueError:
            message = f"{setting.label} is {text[:40]!r}; it must be a number."
            problems.append(_build_problem(setting.path, text, message))
            continue
        _assign(flow, setting.path.split("."), value)
    return problems


def _parse_value(setting: Setting, text: str) -> Any:
    if not text or not setting.is_number:
        return text or None
    if setting.name == "microBatchSize" and text == "auto":
        return text
    number = json.loads(text, parse_constant=lambda _: _refuse())
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(text)
    return number


def _refuse() -> None:
    raise ValueError("no finite number")


def _build_problem(path: str, given: str, message: str) -> Problem:
    return Problem(path=path, given=given[:80], allowed="see the flow reference", message=message)


def _assign(flow: dict[str, Any], names: list[str], value: Any) -> None:
    holder = find_section(flow, names[0], is_added=value is not None)
    for name in names[1:-1]:
        inner = holder.get(name) if holder is not None else None
        if not isinstance(inner, dict):
            if value is None or holder is None:
                return
            inner = holder[name] = {}
        holder = inner
    if holder is None:
        return
    if value is None:
        holder.pop(names[-1], None)
    else:
        holder[names[-1]] = value


def find_section(flow: dict[str, Any], name: str, *, is_added: bool) -> dict[str, Any] | None:
    """Return the settings of the flow, or of the block of that type, which may be added."""
    if name == "settings":
        settings = flow.setdefault("settings", {})
        return settings if isinstance(settings, dict) else None
    kind = next(part for part in _KINDS if part in name)
    blocks = flow.setdefault("blocks", [])
    if not isinstance(blocks, list):
        return None
    for block in blocks:
        if isinstance(block, dict) and kind in str(block.get("block", "")).lower():
            found = block.setdefault("settings", {})
            return found if isinstance(found, dict) else None
    if not is_added:
        return None
    blocks.append({"block": name, "settings": {}})
    added: dict[str, Any] = blocks[-1]["settings"]
    return added


def read_values(flow: dict[str, Any]) -> dict[str, str]:
    """Return the value of each field as the flow states it, as text."""
    values = {}
    for setting in SETTINGS:
        names = setting.path.split(".")
        found: Any = find_section(copy.deepcopy(flow), names[0], is_added=False)
        for name in names[1:]:
            found = found.get(name) if isinstance(found, dict) else None
        is_leaf = isinstance(found, str | int | float) and not isinstance(found, bool)
        values[setting.name] = str(found) if is_leaf else ""
    return values


def list_differences(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    """Return every value that two flows do not share, by path."""
    left, right = (flatten(_name_blocks(flow)) for flow in (before, after))
    return [
        Difference(path=path, before=_show(left.get(path)), after=_show(right.get(path)))
        for path in {**left, **right}
        if left.get(path) != right.get(path)
    ]


def _name_blocks(flow: dict[str, Any]) -> dict[str, Any]:
    """Return a flow whose blocks are named by type, so that paths read as in ``--set``."""
    blocks = flow.get("blocks")
    if not isinstance(blocks, list):
        return flow
    named: dict[str, Any] = {}
    for index, block in enumerate(blocks):
        if not isinstance(block, dict):
            named[f"blocks[{index}]"] = block
            continue
        name = str(block.get("block", index))
        named[name if name not in named else f"{name}[{index}]"] = block.get("settings")
    return {key: value for key, value in flow.items() if key != "blocks"} | named


def _show(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def build_preview(run: Run, draft: Draft, *, base: str, check: FlowCheck) -> Preview:
    """Return what would start, with the server's problems."""
    problems = [problem.message for problem in draft.problems]
    problems += [problem.message for problem in check.problems]
    differences = list_differences(encode_flow(run), draft.flow)
    start = f"from checkpoint {draft.checkpoint} of this run" if draft.checkpoint else ""
    return Preview(
        base=base,
        differences=differences,
        problems=problems,
        effects=_list_effects(check),
        start=start or "from the beginning",
        python=format_python(run, draft, differences),
        command=format_command(run, draft, differences),
    )


def _list_effects(check: FlowCheck) -> list[str]:
    """Return how long the run would be, and where it would not fit into memory."""
    effects = []
    plan = check.plan or {}
    steps = plan.get("totalSteps")
    if isinstance(steps, dict):
        effects.append(f"{steps['value']:,} steps ({steps['reason']})")
    for item in check.memory.items if check.memory else ():
        for verdict in item.configurations:
            if verdict.action != "Allow" and verdict.reason:
                effects.append(verdict.reason)
    return list(dict.fromkeys(effects))


def format_python(run: Run, draft: Draft, differences: Sequence[Difference]) -> str:
    """Return the same start as Python."""
    lines = [f'flow = msgspec.to_builtins(client.runs.get("{run.run_id}").spec.flow)']
    if differences:
        lines[0] = f"flow = {json.dumps(draft.flow, ensure_ascii=True)}"
        lines[0] = lines[0].replace(": true", ": True").replace(": false", ": False")
        lines[0] = lines[0].replace(": null", ": None")
    else:
        lines.insert(0, "import msgspec")
    arguments = ["flow", f"name={draft.name!r}"] if draft.name else ["flow"]
    if draft.tags:
        arguments.append(f"metadata={draft.tags!r}")
    if draft.checkpoint:
        arguments.append(f'resume_from=("{run.run_id}", "{draft.checkpoint}")')
    lines.append(f"client.runs.create({', '.join(arguments)})")
    return "\n".join(lines)


def format_command(run: Run, draft: Draft, differences: Sequence[Difference]) -> str:
    """Return the same start as a command; changes follow as ``--set``."""
    parts = [
        f"runyard runs get {run.run_id} --json | jq .spec.flow |",
        "runyard runs create --flow -",
    ]
    parts += [
        f"--set {shlex.quote(f'{difference.path}={difference.after}')}"
        for difference in differences
        if difference.after != NOTHING
    ]
    if draft.name:
        parts.append(f"--name {shlex.quote(draft.name)}")
    if draft.checkpoint:
        parts.append(f"--resume-from {run.run_id}/{draft.checkpoint}")
    parts += [f"--attribute {shlex.quote(f'{key}={value}')}" for key, value in draft.tags.items()]
    return " \\\n  ".join(parts)


def build_form(
    run: Run,
    head: RunHead,
    draft: Draft,
    *,
    how: How,
    models: Sequence[Model],
    check: FlowCheck,
    new_id: str,
) -> StartForm:
    """Return the page of a draft."""
    values = read_values(draft.flow) | {
        name: value for name, value in draft.values.items() if draft.problems
    }
    original, plan = read_values(encode_flow(run)), run.status.plan or {}
    by_path = _group_problems(draft, check)
    fields = []
    for setting in SETTINGS:
        entry = plan.get(setting.plan) if setting.plan else None
        planned = str(entry.get("value")) if isinstance(entry, dict) else ""
        fields.append(
            Field(
                name=setting.name,
                label=setting.label,
                value=values[setting.name],
                placeholder=original[setting.name] or planned or "default",
                path=setting.path,
                problem=by_path.get(setting.path.split(".", 1)[1].replace(".", "/"), ""),
            )
        )
    return StartForm(
        head=head,
        how=how,
        title=TITLES[how],
        lead=LEADS[how],
        ways=[StartOption(value=way, text=TITLES[way], is_chosen=way == how) for way in WAYS],
        new_id=new_id,
        name=draft.name,
        tags="\n".join(f"{key}={value}" for key, value in draft.tags.items()),
        checkpoints=_list_checkpoints(draft, models, is_needed=how == "resume"),
        fields=fields,
        flow=json.dumps(draft.flow, indent=2, ensure_ascii=False),
        preview=build_preview(run, draft, base=head.base, check=check),
    )


def _group_problems(draft: Draft, check: FlowCheck) -> dict[str, str]:
    """Return messages by the end of their path, without the block that they begin with."""
    messages = [(problem.path, problem.message) for problem in draft.problems]
    messages += [(problem.path, problem.message) for problem in check.problems]
    found = {}
    for given, message in messages:
        path = given.replace(".", "/").strip("/")
        _, _, inner = path.partition("settings/")
        found[inner or path.partition("/")[2]] = message
    return found


def _list_checkpoints(
    draft: Draft, models: Sequence[Model], *, is_needed: bool
) -> list[StartOption]:
    choices = [] if is_needed else [("", "none: from the beginning")]
    if models:
        choices += [("latest", "latest"), ("best", "best")]
        choices += [
            (model.model_id, f"{model.model_id}, step {model.spec.step}")
            for model in reversed(models)
        ]
    return [
        StartOption(value=value, text=text, is_chosen=value == draft.checkpoint)
        for value, text in choices
    ]
