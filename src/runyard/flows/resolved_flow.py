"""The resolved flow: a flow with every default filled in, as the trainer reads it and ``run.json``
stores it.

``fill_defaults`` completes a checked flow. Defaults that depend on other fields are decided only
here. The trainer decides what stays ``auto``, once it knows the data and the machine.
"""

from typing import Any, cast

import msgspec

from runyard.flows.blocks import (
    BOTH_TASKS,
    BUILT_IN_DATASETS,
    TINY,
    AnswerFormName,
    Augmentation,
    DatasetSettings,
    FlowSettings,
    ModelSettings,
    Shape,
    SystemPromptSettings,
    Task,
)
from runyard.flows.families import AUTO, FAMILIES, STAND_IN_LOADER

# Short, because the tiny model reads them too. Each names the exact form of the answer, the only
# one that the published client's inference parses. Boxes are corners in integers from 0 to 1024,
# whatever the image's size.
SYSTEM_PROMPTS: dict[Task, str] = {
    "vqa": 'Answer the question about the picture with one JSON object: {"vqa":{"answer":"..."}}',
    "phrase-grounding": (
        "Describe the picture and give a box for each phrase, as corners in integers from 0 to "
        "1024, "
        'with one JSON object: {"phrase_grounding":{"sentence":"...",'
        '"groundings":[{"phrase":"...","grounding":[[xmin,ymin,xmax,ymax]]}]}}'
    ),
    "freeform": 'Describe the picture with one JSON object: {"freeform":{"caption":"..."}}',
}
# For the dataset with samples of two tasks: the question, not the dataset's kind, decides the form
# of the answer.
BOTH_PROMPT = (
    'Answer the question about the picture with one JSON object, {"vqa":{"answer":"..."}}, or give '
    "a box for each phrase, as corners in integers from 0 to 1024, with one: "
    '{"phrase_grounding":{"sentence":"...",'
    '"groundings":[{"phrase":"...","grounding":[[xmin,ymin,xmax,ymax]]}]}}'
)
# Of the other forms. Families that were pretrained with boxes know these questions without any
# more words; Florence-2 and PaliGemma locate phrases only after words of their own.
TEXT_PROMPTS: dict[Task, str] = {
    "vqa": "Answer the question about the image in plain words.",
    "phrase-grounding": "Locate the phrases in the caption:",
    "freeform": "Describe the image in plain words.",
}
LOCATE_IN_JSON = "Locate each phrase of the caption and output its bounding box in JSON format."
LOCATION_PROMPTS = {
    "paligemma2": "detect",
    "qwen25vl": LOCATE_IN_JSON,
    "qwen3vl": LOCATE_IN_JSON,
    "cosmosreason1": LOCATE_IN_JSON,
    "cosmosreason2": LOCATE_IN_JSON,
}
# The tiny model learns from nothing but these images, so it gains most from augmentation (figures
# in docs/decisions). Not for phrase grounding: shifted boxes would be further numbers that it has
# to learn to write.
TINY_AUGMENTATION = Augmentation(shift=0.06, zoom=0.1)
USUAL_RATES = {"lora": 2e-4, "full": 1e-5}
TINY_NUMBERS = {"epochs": 12, "batchSize": 32, "learningRate": 3e-3}
# With AdamW it learns in the same time to find digits, but not which one the question is about.
TINY_GROUNDING = {
    "epochs": 6,
    "batchSize": 32,
    "learningRate": 1.2e-3,
    "schedule": {"name": "linear", "warmupFraction": 0.05, "minFactor": 0.01},
    "optimizer": {"name": "muon", "betas": [0.95, 0.98]},
}


class ResolvedFlow(Shape, frozen=True):
    """A complete flow, with every default filled in."""

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
        """The task that the model learns."""
        return self.dataset.project_kind

    @property
    def is_tiny(self) -> bool:
        """Whether the built-in model is trained, from scratch unless weights are given."""
        return self.model.architecture.size == TINY


def fill_defaults(
    flow: dict[str, Any],
    settings_of: dict[str, dict[str, Any]],
    *,
    dataset_kind: str | None = None,
    dataset_id: str | None = None,
) -> ResolvedFlow:
    """Fill in every default.

    ``flow`` and the blocks' settings (by block type) have passed the checks.
    """
    given = settings_of.get("vi-dataset", {})
    dataset = _fill_dataset(given, flow.get("trainingProject"), dataset_kind, dataset_id)
    model = _fill_model(settings_of.get("vi-model", {}), dataset.project_kind)
    if (
        model.architecture.size == TINY
        and dataset.project_kind == "vqa"
        and "augmentation" not in given
    ):
        dataset = msgspec.structs.replace(dataset, augmentation=TINY_AUGMENTATION)
    own_prompt = _choose_prompt(dataset, model.answers.form, model.architecture.name)
    prompt = {"systemPrompt": own_prompt} | settings_of.get("vi-system-prompt", {})
    return ResolvedFlow(
        name=flow["name"],
        schema=flow["schema"],
        training_project=flow.get("trainingProject"),
        tolerations=flow["tolerations"],
        settings=msgspec.convert(flow["settings"], FlowSettings),
        dataset=dataset,
        system_prompt=msgspec.convert(prompt, SystemPromptSettings),
        model=model,
    )


def _choose_prompt(dataset: DatasetSettings, form: AnswerFormName, family: str) -> str:
    """Return the system prompt of a flow that names none."""
    task = dataset.project_kind
    if form == "json":
        return BOTH_PROMPT if dataset.dataset_id == BOTH_TASKS else SYSTEM_PROMPTS[task]
    if form == "text":
        return TEXT_PROMPTS[task]
    if task == "phrase-grounding":
        return LOCATION_PROMPTS.get(family, TEXT_PROMPTS[task])
    return ""  # the question alone, as in pretraining


def _fill_dataset(
    given: dict[str, Any],
    training_project: str | None,
    dataset_kind: str | None,
    dataset_id: str | None,
) -> DatasetSettings:
    # A training project may be named by its dataset; the built-in datasets need no lookup.
    of_project = dataset_id or (training_project if training_project in BUILT_IN_DATASETS else None)
    chosen = given.get("datasetId", of_project or "digits")
    kind = BUILT_IN_DATASETS.get(chosen, dataset_kind or "vqa")
    if "mixture" in given:  # an invalid item keeps its place
        valid = [each for each in given["mixture"] if isinstance(each, dict)]
        given = given | {"mixture": valid}
    return msgspec.convert({"projectKind": kind} | given | {"datasetId": chosen}, DatasetSettings)


def _fill_model(given: dict[str, Any], task: Task) -> ModelSettings:
    architecture = _fill_architecture(given.get("architecture", {}))
    is_tiny = architecture["size"] == TINY
    mode = given.get("training", {}).get("mode", "full" if is_tiny else "lora")
    defaults = {
        "training": {"mode": mode, "freeze": ["vision"] if mode == "lora" else []},
        "hyperparameters": {"epochs": 3, "batchSize": 8, "learningRate": USUAL_RATES[mode]},
    }
    if is_tiny:
        defaults["hyperparameters"] = TINY_GROUNDING if task == "phrase-grounding" else TINY_NUMBERS
    return msgspec.convert(
        _merge_defaults(given, defaults) | {"architecture": architecture}, ModelSettings
    )


def get_usual_rate(flow: ResolvedFlow) -> float:
    """Return the learning rate of a flow that names none."""
    if flow.is_tiny:
        numbers = TINY_GROUNDING if flow.task == "phrase-grounding" else TINY_NUMBERS
        return cast(float, numbers["learningRate"])
    return USUAL_RATES[flow.model.training.mode]


def _fill_architecture(given: dict[str, Any]) -> dict[str, Any]:
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


def _merge_defaults(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Add to ``given`` what only ``defaults`` has, at every level."""
    merged = defaults | given
    for name, value in defaults.items():
        if isinstance(value, dict) and name in given:
            merged[name] = _merge_defaults(given[name], value)
    return merged


def _as_json(value: Shape) -> dict[str, Any]:
    # Not to_builtins, which keeps tuples: a JSON parser would not return them.
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return document


def build_flow_document(flow: ResolvedFlow, *, for_published_client: bool = True) -> dict[str, Any]:
    """Return the flow as a document with every default written out, for a model's ``run.json``.

    The published client reads that file too. So ``architecture.name`` is a name that its loader
    supports, next to our own family, and what it would misread is left out: an ``auto`` precision,
    and token ids that are null. Use ``for_published_client=False`` to show a flow to people. Both
    documents resolve to the same flow again.
    """
    model = _as_json(flow.model)
    if for_published_client:
        family = FAMILIES.get(flow.model.architecture.name)
        model["architecture"]["name"] = family.loader if family else STAND_IN_LOADER
        model["architecture"]["family"] = flow.model.architecture.name
        model["evaluation"] = {
            name: value for name, value in model["evaluation"].items() if value is not None
        }
        if model["compute"]["precisionType"] == AUTO:
            del model["compute"]["precisionType"]
    document = {
        "name": flow.name,
        "schema": flow.schema,
        "tolerations": {key: list(values) for key, values in flow.tolerations.items()},
        "settings": _as_json(flow.settings),
        "blocks": [
            {"block": "vi-system-prompt", "settings": _as_json(flow.system_prompt), "style": {}},
            {"block": "vi-dataset", "settings": _as_json(flow.dataset), "style": {}},
            {"block": "vi-model", "settings": model, "style": {}},
        ],
    }
    if flow.training_project is not None:
        document["trainingProject"] = flow.training_project
    return document
