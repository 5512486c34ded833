"""The generator of ``docs/flow-reference.md`` from the structs, so that the page always matches the
checks.

``scripts/flow-reference`` writes the file and a test compares it. Prose that belongs to no struct
is in this module.
"""

import inspect as python_inspect
import json
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from runyard.flows.blocks import (
    BLOCKS,
    BOTH_TASKS,
    BUILT_IN_DATASETS,
    FlowSettings,
    FlowShape,
    Shape,
)
from runyard.flows.checks import Choice, build_validator, describe_default
from runyard.flows.families import FAMILIES, STAND_IN_LOADER
from runyard.flows.resolved_flow import BOTH_PROMPT, SYSTEM_PROMPTS

EXAMPLE = {
    "name": "shelf-count",
    "schema": "v1",
    "tolerations": {"accelerator": ["h100", "a100"]},
    "settings": {"seed": 11, "timeLimitMinutes": 240, "attempts": 2},
    "blocks": [
        {"block": "vi-system-prompt", "settings": {"systemPrompt": "Answer about the shelf."}},
        {
            "block": "vi-dataset",
            "settings": {"datasetId": "shelves", "projectKind": "vqa", "validationFraction": 0.1},
        },
        {
            "block": "vi-model",
            "settings": {
                "architecture": {"name": "qwen25vl", "size": "3B", "weights": "base:qwen-3b"},
                "training": {"mode": "lora", "lora": {"rank": 32, "alpha": 64}},
                "hyperparameters": {
                    "epochs": 5,
                    "batchSize": 16,
                    "microBatchSize": 2,
                    "learningRate": 1e-4,
                },
                "checkpoint": {"every": {"steps": 500}, "keep": 2},
                "evaluation": {"max_new_tokens": 64},
            },
        },
    ],
}

OPENING = """\
# Flow reference

<!-- Written by scripts/flow-reference from src/runyard/flows; change it there. -->

A flow is a saved training configuration, the recipe of a run. `client.flows.create(spec=...)` saves
it and `client.runs.create(flow=...)` runs it. Every field has a default, and an empty list of
blocks is a complete flow: it trains the built-in tiny model on real handwritten digits.

The server rejects a flow that cannot run with code `InvalidFlow` and reports every problem at once:
a JSON pointer, the given value, the allowed values, and a message. Unknown fields and blocks are
problems too, with the nearest known name as a hint. The server also returns this page as JSON
Schema, for editors: `GET /workspaces/{org}/flowSchemas/v1`.

How to read the tables: a nested field is written with dots, so `hyperparameters.epochs` is the
field `epochs` of the object `hyperparameters`. `auto` is decided once when training begins, from
the data and the machine; the plan in `run.status.plan` shows the choice and the reason. If a
default is `auto`, or depends on other fields, `null` means the same as leaving out the field. Names
are camelCase, except inside `evaluation`, whose keys are snake_case.
"""

RULES = """\
## Consistency rules

- A flow has each type of block at most once, in any order. The type of a block is what its name
  contains (`system-prompt`, `dataset` or `model`); a name with two of them is rejected.
- `microBatchSize` divides `batchSize`.
- `every` is `epoch`, or an object with exactly one of `steps` and `minutes`.
- 4-bit base weights cannot be trained in full: `quantization.enabled` goes with `training.mode`
  `lora`.
- In mode `full`, `training.freeze` must leave a part to train.
- `training.lora` has no effect in mode `full`, and is kept, so that an editor may switch back and
  forth.
- `earlyStopping` needs held-out data, so `validationFraction` above 0.
- `tiny` belongs to the family `idefics3`. It is trained from scratch, or from `weights` where they
  are given.
- `weights` is `base:NAME` (or `base:OWNER/NAME`), `run:RUN_ID/CHECKPOINT`, a hub id, or an absolute
  path. A path is compared by its real path with the folders of the server's setting
  `model_folders`; any other is rejected, whether or not something exists there. A hub id is looked
  up as `OWNER/NAME` in those folders. Machines that lack the model fetch it from the server.
- `run:RUN_ID/latest` and `run:RUN_ID/best` are resolved to a checkpoint when the run is created.
- Without `weights`, a size other than `tiny` is one of the family's sizes below; with `weights` it
  is only a label.
- `minPixels` is at most `maxPixels`.
- `projectKind` agrees with the dataset's own kind, where that is known.

Whether a dataset, a training project, a run's checkpoint or a base model exists is checked when a
run is created. Whether the machine supports the settings (4-bit weights need CUDA) is
checked when the plan is made, before the first step.
"""


def reference() -> str:
    """Render the whole page."""
    parts = [
        OPENING,
        _render_example(),
        "## The flow itself\n\n" + _render_table(FlowShape),
        _render_settings(),
    ]
    parts += [_render_block(name, struct) for name, struct in BLOCKS.items()]
    parts += [RULES, _render_prompts(), _render_families()]
    return "\n".join(parts)


def _render_example() -> str:
    return f"```json\n{json.dumps(EXAMPLE, indent=2)}\n```\n"


def _render_settings() -> str:
    return f"## settings\n\n{_get_docstring(FlowSettings)}\n\n{_render_table(FlowSettings)}"


def _render_block(name: str, struct: type[Shape]) -> str:
    return f"## {name}\n\n{_get_docstring(struct)}\n\n{_render_table(struct)}"


def _get_docstring(struct: type[msgspec.Struct]) -> str:
    return python_inspect.getdoc(struct) or ""


def _render_table(struct: type[msgspec.Struct]) -> str:
    rows = ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {default} | {allowed} | {meaning} |"
        for name, default, allowed, meaning in _iter_rows(struct, "")
    ]
    return "\n".join(rows) + "\n"


def _iter_rows(struct: type[msgspec.Struct], above: str) -> Iterator[tuple[str, str, str, str]]:
    info = inspect.type_info(struct)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{struct} is not a struct")
    for field in info.fields:
        name = above + field.encode_name
        nested = _find_struct(field.type)
        if nested is None or field.default is not msgspec.NODEFAULT:
            yield (
                name,
                _render_default(field),
                _escape_cell(_describe_allowed(field, nested)),
                _get_help(field),
            )
        if nested is not None and struct is not FlowShape:
            yield from _iter_rows(nested, f"{name}.")


def _find_struct(kind: inspect.Type) -> type[Any] | None:
    """Return the struct inside a field's type, if there is one."""
    match kind:
        case inspect.Metadata():
            return _find_struct(kind.type)
        case inspect.UnionType():
            return next((found for option in kind.types if (found := _find_struct(option))), None)
        case inspect.StructType():
            return kind.cls
    return None


def _describe_allowed(field: inspect.Field, nested: type[Any] | None) -> str:
    check = build_validator(field.type)
    if nested is None or not isinstance(check, Choice):
        return check.allowed
    return " or ".join(
        "an object" if "with the fields" in option.allowed else option.allowed
        for option in check.options
    )


def _render_default(field: inspect.Field) -> str:
    words = describe_default(field)
    if words is not None:
        return _escape_cell(words)
    if field.default is msgspec.NODEFAULT:
        return "`[]`" if field.default_factory is list else "required"
    return f"`{json.dumps(field.default)}`"


def _get_help(field: inspect.Field) -> str:
    kind = field.type
    if isinstance(kind, inspect.Metadata):
        return _escape_cell((kind.extra_json_schema or {}).get("description", ""))
    return ""


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _render_prompts() -> str:
    lines = ["## Tasks, built-in data and default prompts", ""]
    for task, prompt in SYSTEM_PROMPTS.items():
        data = [f"`{dataset}`" for dataset, kind in BUILT_IN_DATASETS.items() if kind == task]
        built_in = f" (built-in dataset {', '.join(data)})" if data else ""
        lines += [f"`{task}`{built_in}:", "", "```text", prompt, "```", ""]
    lines += [
        f"`{BOTH_TASKS}` trains one model for both forms of answers:",
        "",
        "```text",
        BOTH_PROMPT,
        "```",
        "",
    ]
    return "\n".join(lines)


def _render_families() -> str:
    lines = [
        "## Families",
        "",
        "A model folder is opened only if its `model_type` is in this table. `weights: null` means "
        "the hub id here.",
        "In a model's own `run.json`, a family without a loader in the published client is named "
        f"`{STAND_IN_LOADER}`,",
        "whose loader opens any of them, and `architecture.family` holds the true one.",
        "",
        "| name | model_type | sizes and usual weights | own loader in the published client |",
        "|---|---|---|---|",
    ]
    for family in FAMILIES.values():
        sizes = [f"{size}: `{hub_id}`" for size, hub_id in family.sizes.items()]
        sizes = (["tiny: built in"] if family.default_size == "tiny" else []) + sizes
        loader = "yes" if family.has_loader else "no"
        lines.append(
            f"| `{family.key}` | `{family.model_type}` | {'<br>'.join(sizes)} | {loader} |"
        )
    return "\n".join(lines) + "\n"
