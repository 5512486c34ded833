"""A recipe with nothing left open: what the trainer reads, and how it is written into ``run.json``.

``complete`` fills every gap of a checked flow. Defaults that depend on other fields are decided here and nowhere else;
what stays ``auto`` is the trainer's to decide, once it sees data and machine.
"""

from typing import Any

import msgspec

from runyard.flows.blocks import (
    BOTH_TASKS,
    BUILT_IN_DATASETS,
    TINY,
    Augmentation,
    DatasetSettings,
    FlowSettings,
    ModelSettings,
    Shape,
    SystemPromptSettings,
    Task,
)
from runyard.flows.families import AUTO, FAMILIES, STAND_IN_LOADER

# Short, because the tiny model reads them too, and each names the exact form of the answer: the published client's
# inference reads only that. Boxes are corners, in integers from 0 to 1024, whatever the picture's size.
SYSTEM_PROMPTS: dict[Task, str] = {
    "vqa": 'Answer the question about the picture with one JSON object: {"vqa":{"answer":"..."}}',
    "phrase-grounding": (
        "Describe the picture and give a box for each phrase, as corners in integers from 0 to 1024, "
        'with one JSON object: {"phrase_grounding":{"sentence":"...",'
        '"groundings":[{"phrase":"...","grounding":[[xmin,ymin,xmax,ymax]]}]}}'
    ),
    "freeform": 'Describe the picture with one JSON object: {"freeform":{"caption":"..."}}',
}
# The data that holds samples of two tasks, so its kind does not say which form an answer takes: the question does.
BOTH_PROMPT = (
    'Answer the question about the picture with one JSON object, {"vqa":{"answer":"..."}}, or give a box for each '
    "phrase, as corners in integers from 0 to 1024, with one: "
    '{"phrase_grounding":{"sentence":"...","groundings":[{"phrase":"...","grounding":[[xmin,ymin,xmax,ymax]]}]}}'
)
# What the tiny model gains most from: it has nothing but these pictures to learn from (docs/decisions has the figures).
# Not where boxes are asked for: moved ones are numbers it would have to learn to say besides.
TINY_AUGMENTATION = Augmentation(shift=0.06, zoom=0.1)
TINY_NUMBERS = {"epochs": 12, "batchSize": 32, "learningRate": 3e-3}
# With AdamW it learns to find digits, but in the same time not to tell which one is asked for.
TINY_GROUNDING = {
    "epochs": 6,
    "batchSize": 32,
    "learningRate": 1.2e-3,
    "schedule": {"name": "linear", "warmupFraction": 0.05, "minFactor": 0.01},
    "optimizer": {"name": "muon", "betas": [0.95, 0.98]},
}


class Recipe(Shape, frozen=True):
    """A complete training recipe."""

    name: str
    schema: str
    training_project: str | None
    tolerations: dict[str, list[str]]
    settings: FlowSettings
    dataset: DatasetSettings
    system_prompt: SystemPromptSettings
    model: ModelSettings

    @property
    def task(self) -> Task:
        """What the model learns to do."""
        return self.dataset.project_kind

    @property
    def is_tiny(self) -> bool:
        """Whether the built-in model is trained, from scratch unless weights are named."""
        return self.model.architecture.size == TINY


def complete(
    flow: dict[str, Any],
    settings_of: dict[str, dict[str, Any]],
    *,
    dataset_kind: str | None = None,
    dataset_id: str | None = None,
) -> Recipe:
    """Fill every gap. ``flow`` and the blocks' settings (by block type) have passed the checks."""
    given = settings_of.get("vi-dataset", {})
    dataset = _dataset(given, flow.get("trainingProject"), dataset_kind, dataset_id)
    model = _model(settings_of.get("vi-model", {}), dataset.project_kind)
    if model.architecture.size == TINY and dataset.project_kind == "vqa" and "augmentation" not in given:
        dataset = msgspec.structs.replace(dataset, augmentation=TINY_AUGMENTATION)
    own_prompt = BOTH_PROMPT if dataset.dataset_id == BOTH_TASKS else SYSTEM_PROMPTS[dataset.project_kind]
    prompt = {"systemPrompt": own_prompt} | settings_of.get("vi-system-prompt", {})
    return Recipe(
        name=flow["name"],
        schema=flow["schema"],
        training_project=flow.get("trainingProject"),
        tolerations=flow["tolerations"],
        settings=msgspec.convert(flow["settings"], FlowSettings),
        dataset=dataset,
        system_prompt=msgspec.convert(prompt, SystemPromptSettings),
        model=model,
    )


def _dataset(
    given: dict[str, Any], training_project: str | None, dataset_kind: str | None, dataset_id: str | None
) -> DatasetSettings:
    # A training project may be named by its dataset, and the built-in ones are known without asking anybody.
    of_project = dataset_id or (training_project if training_project in BUILT_IN_DATASETS else None)
    chosen = given.get("datasetId", of_project or "digits")
    kind = BUILT_IN_DATASETS.get(chosen, dataset_kind or "vqa")
    return msgspec.convert({"projectKind": kind} | given | {"datasetId": chosen}, DatasetSettings)


def _model(given: dict[str, Any], task: Task) -> ModelSettings:
    architecture = _architecture(given.get("architecture", {}))
    is_tiny = architecture["size"] == TINY
    mode = given.get("training", {}).get("mode", "full" if is_tiny else "lora")
    ordinary_rate = 2e-4 if mode == "lora" else 1e-5
    defaults = {
        "training": {"mode": mode, "freeze": ["vision"] if mode == "lora" else []},
        "hyperparameters": {"epochs": 3, "batchSize": 8, "learningRate": ordinary_rate},
    }
    if is_tiny:
        defaults["hyperparameters"] = TINY_GROUNDING if task == "phrase-grounding" else TINY_NUMBERS
    return msgspec.convert(_fill(given, defaults) | {"architecture": architecture}, ModelSettings)


def _architecture(given: dict[str, Any]) -> dict[str, Any]:
    has_weights = given.get("weights") is not None
    name = given.get("family") or given.get("name") or (AUTO if has_weights else "idefics3")
    if "size" in given:
        size = given["size"]
    elif has_weights:
        size = AUTO
    else:
        size = FAMILIES[name].default_size if name in FAMILIES else TINY
    if name == AUTO and size == TINY and not has_weights:
        name = "idefics3"
    return {"name": name, "size": size, "weights": given.get("weights")}


def _fill(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``given`` with what only ``defaults`` has, at every level."""
    merged = defaults | given
    for name, value in defaults.items():
        if isinstance(value, dict) and name in given:
            merged[name] = _fill(given[name], value)
    return merged


def _as_json(value: Shape) -> dict[str, Any]:
    # Not to_builtins: it keeps a tuple, which no JSON reader would give back.
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return document


def recipe_document(recipe: Recipe, *, for_published_client: bool = True) -> dict[str, Any]:
    """The recipe as a flow with every default written out, for a model's ``run.json``.

    The published client reads that file too, so ``architecture.name`` is a word its loader knows, with our own family
    beside it, and what it would misread is left out: an ``auto`` precision, and token ids that are null. People who
    want to look at a recipe take ``for_published_client=False``. Both give the same recipe again.
    """
    model = _as_json(recipe.model)
    if for_published_client:
        family = FAMILIES.get(recipe.model.architecture.name)
        model["architecture"]["name"] = family.loader if family else STAND_IN_LOADER
        model["architecture"]["family"] = recipe.model.architecture.name
        model["evaluation"] = {name: value for name, value in model["evaluation"].items() if value is not None}
        if model["compute"]["precisionType"] == AUTO:
            del model["compute"]["precisionType"]
    document = {
        "name": recipe.name,
        "schema": recipe.schema,
        "tolerations": {key: list(values) for key, values in recipe.tolerations.items()},
        "settings": _as_json(recipe.settings),
        "blocks": [
            {"block": "vi-system-prompt", "settings": _as_json(recipe.system_prompt), "style": {}},
            {"block": "vi-dataset", "settings": _as_json(recipe.dataset), "style": {}},
            {"block": "vi-model", "settings": model, "style": {}},
        ],
    }
    if recipe.training_project is not None:
        document["trainingProject"] = recipe.training_project
    return document
