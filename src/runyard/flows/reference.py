"""Writes ``docs/flow-reference.md`` from the structs, so that the page cannot say anything the checks do not do.

``scripts/flow-reference`` writes the file and a test compares it. Prose that no struct holds stands here.
"""

import inspect as python_inspect
import json
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from runyard.flows.blocks import BLOCKS, BOTH_TASKS, BUILT_IN_DATASETS, FlowSettings, FlowShape, Shape
from runyard.flows.checks import Choice, check_of_type, default_in_words
from runyard.flows.families import FAMILIES, STAND_IN_LOADER
from runyard.flows.recipe import BOTH_PROMPT, SYSTEM_PROMPTS

EXAMPLE = {
    "name": "shelf-count",
    "schema": "v1",
    "tolerations": {"accelerator": ["h100", "a100"]},
    "settings": {"seed": 11, "timeLimitMinutes": 240, "attempts": 2},
    "blocks": [
        {"block": "vi-system-prompt", "settings": {"systemPrompt": "Answer about the shelf."}},
        {"block": "vi-dataset", "settings": {"datasetId": "shelves", "projectKind": "vqa", "validationFraction": 0.1}},
        {
            "block": "vi-model",
            "settings": {
                "architecture": {"name": "qwen25vl", "size": "3B", "weights": "base:qwen-3b"},
                "training": {"mode": "lora", "lora": {"rank": 32, "alpha": 64}},
                "hyperparameters": {"epochs": 5, "batchSize": 16, "microBatchSize": 2, "learningRate": 1e-4},
                "checkpoint": {"every": {"steps": 500}, "keep": 2},
                "evaluation": {"max_new_tokens": 64},
            },
        },
    ],
}

OPENING = """\
# Flow reference

<!-- Written by scripts/flow-reference from src/runyard/flows; change it there. -->

A flow is the recipe of a training run. It is what `client.flows.create(spec=...)` saves and what
`client.runs.create(flow=...)` runs. Every field has a default, and an empty list of blocks is a complete recipe: it
trains the built-in tiny model on real handwritten digits.

The server refuses a flow that cannot run with code `InvalidFlow` and names every problem at once: a JSON pointer to
the place, what was given, what is allowed, and a sentence. Fields and blocks it does not know are problems too, with
the nearest known name. It also serves this page as JSON Schema, for editors: `GET /workspaces/{org}/flowSchemas/v1`.

How to read the tables: a nested field is written with dots, so `hyperparameters.epochs` is the field `epochs` of the
object `hyperparameters`. `auto` stays open until training begins; then it is decided once, from data and machine, and
the plan in `run.status.plan` says what was taken and why. Where a default is `auto`, or depends on other fields, `null`
means the same as leaving the field out. Names are camelCase, except inside `evaluation`, whose keys are snake_case.
"""

RULES = """\
## What must fit together

- Each type of block stands in a flow at most once, in any order. A block is known by what its name contains
  (`system-prompt`, `dataset` or `model`); a name with two of them is refused.
- `microBatchSize` divides `batchSize`.
- `every` is `epoch`, or an object with exactly one of `steps` and `minutes`.
- 4-bit base weights cannot be trained in full: `quantization.enabled` goes with `training.mode` `lora`.
- `training.freeze` leaves something to train in mode `full`.
- `training.lora` has no effect in mode `full`, and is kept, so that an editor may switch back and forth.
- `earlyStopping` needs held-out data, so `validationFraction` above 0.
- `tiny` belongs to the family `idefics3`. It is trained from scratch, or from `weights` where they are given.
- `weights` is `base:NAME` (or `base:OWNER/NAME`), `run:RUN_ID/CHECKPOINT`, a hub id, or an absolute path. A path is
  compared by its real path with the folders of the server's setting `model_folders`; any other is rejected, whether or
  not something exists there. A hub id is looked up as `OWNER/NAME` in those folders of the machine that trains.
- `run:RUN_ID/latest` and `run:RUN_ID/best` become the checkpoint that has that place when the run is created.
- Without `weights` a real size is one of the family's in the table below; with `weights` it is only a label.
- `minPixels` is at most `maxPixels`.
- `projectKind` agrees with the dataset's own kind, where that is known.

Whether a dataset, a training project, a run's checkpoint or a model `base:NAME` exists is checked when a run is
created. Whether the machine can do what is asked (4-bit weights need CUDA) is found when the plan is made, before the
first step.
"""


def reference() -> str:
    """The whole page."""
    parts = [OPENING, _example(), "## The flow itself\n\n" + _table(FlowShape), _settings()]
    parts += [_block(name, struct) for name, struct in BLOCKS.items()]
    parts += [RULES, _prompts(), _families()]
    return "\n".join(parts)


def _example() -> str:
    return f"```json\n{json.dumps(EXAMPLE, indent=2)}\n```\n"


def _settings() -> str:
    return f"## settings\n\n{_story(FlowSettings)}\n\n{_table(FlowSettings)}"


def _block(name: str, struct: type[Shape]) -> str:
    return f"## {name}\n\n{_story(struct)}\n\n{_table(struct)}"


def _story(struct: type[msgspec.Struct]) -> str:
    return python_inspect.getdoc(struct) or ""


def _table(struct: type[msgspec.Struct]) -> str:
    rows = ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {default} | {allowed} | {told} |" for name, default, allowed, told in _rows(struct, "")]
    return "\n".join(rows) + "\n"


def _rows(struct: type[msgspec.Struct], above: str) -> Iterator[tuple[str, str, str, str]]:
    info = inspect.type_info(struct)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{struct} is not a struct")
    for field in info.fields:
        name = above + field.encode_name
        nested = _nested(field.type)
        if nested is None or field.default is not msgspec.NODEFAULT:
            yield name, _default(field), _cell(_allowed(field, nested)), _help(field)
        if nested is not None and struct is not FlowShape:
            yield from _rows(nested, f"{name}.")


def _nested(kind: inspect.Type) -> type[Any] | None:
    """The struct inside a field's type, if there is one."""
    match kind:
        case inspect.Metadata():
            return _nested(kind.type)
        case inspect.UnionType():
            return next((found for option in kind.types if (found := _nested(option))), None)
        case inspect.StructType():
            return kind.cls
    return None


def _allowed(field: inspect.Field, nested: type[Any] | None) -> str:
    check = check_of_type(field.type)
    if nested is None or not isinstance(check, Choice):
        return check.allowed
    return " or ".join(
        "an object" if "with the fields" in option.allowed else option.allowed for option in check.options
    )


def _default(field: inspect.Field) -> str:
    words = default_in_words(field)
    if words is not None:
        return _cell(words)
    if field.default is msgspec.NODEFAULT:
        return "`[]`" if field.default_factory is list else "required"
    return f"`{json.dumps(field.default)}`"


def _help(field: inspect.Field) -> str:
    kind = field.type
    if isinstance(kind, inspect.Metadata):
        return _cell((kind.extra_json_schema or {}).get("description", ""))
    return ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _prompts() -> str:
    lines = ["## Tasks, built-in data and default prompts", ""]
    for task, prompt in SYSTEM_PROMPTS.items():
        data = [f"`{dataset}`" for dataset, kind in BUILT_IN_DATASETS.items() if kind == task]
        built_in = f" (built-in dataset {', '.join(data)})" if data else ""
        lines += [f"`{task}`{built_in}:", "", "```text", prompt, "```", ""]
    lines += [f"`{BOTH_TASKS}` asks for both forms of one model:", "", "```text", BOTH_PROMPT, "```", ""]
    return "\n".join(lines)


def _families() -> str:
    lines = [
        "## Families",
        "",
        "A model folder is opened only if its `model_type` stands here. Hub ids are what `weights: null` means.",
        f"In a model's own `run.json`, a family without a loader in the published client is named `{STAND_IN_LOADER}`,",
        "whose loader opens any of them, and `architecture.family` holds the true one.",
        "",
        "| name | model_type | sizes and usual weights | own loader in the published client |",
        "|---|---|---|---|",
    ]
    for family in FAMILIES.values():
        sizes = [f"{size}: `{hub_id}`" for size, hub_id in family.sizes.items()]
        sizes = (["tiny: built in"] if family.default_size == "tiny" else []) + sizes
        loader = "yes" if family.has_loader else "no"
        lines.append(f"| `{family.key}` | `{family.model_type}` | {'<br>'.join(sizes)} | {loader} |")
    return "\n".join(lines) + "\n"
