"""The defaults of a resolved flow, and how it is written into ``run.json``."""

from typing import Any

import pytest

from runyard.flows import FlowProblems, ResolvedFlow, build_flow_document, resolve, validate
from runyard.flows.families import FAMILIES, find_family
from runyard.flows.resolved_flow import SYSTEM_PROMPTS


def resolve_blocks(*blocks: dict[str, Any], **flow: Any) -> ResolvedFlow:
    return resolve(validate({"blocks": list(blocks), **flow}))


def model(**settings: Any) -> dict[str, Any]:
    return {"block": "vi-model", "settings": settings}


def dataset(**settings: Any) -> dict[str, Any]:
    return {"block": "vi-dataset", "settings": settings}


def block_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(block["settings"] for block in document["blocks"] if block["block"] == name)


def test_the_empty_flow_trains_the_tiny_model_on_the_digits() -> None:
    resolved = resolve_blocks()
    assert (resolved.task, resolved.dataset.dataset_id, resolved.is_tiny) == ("vqa", "digits", True)
    assert (
        resolved.model.architecture.name,
        resolved.model.training.mode,
        resolved.model.training.freeze,
    ) == (
        "idefics3",
        "full",
        [],
    )
    numbers = resolved.model.hyperparameters
    assert (
        numbers.epochs,
        numbers.batch_size,
        numbers.learning_rate,
        numbers.micro_batch_size,
    ) == (
        12,
        32,
        3e-3,
        "auto",
    )


@pytest.mark.parametrize(
    ("training", "rate", "freeze"),
    [({}, 2e-4, ["vision"]), ({"mode": "lora"}, 2e-4, ["vision"]), ({"mode": "full"}, 1e-5, [])],
)
def test_a_real_model_has_gentler_defaults(
    training: dict[str, Any], rate: float, freeze: list[str]
) -> None:
    settings = resolve_blocks(model(architecture={"name": "qwen25vl"}, training=training)).model
    assert (settings.architecture.size, settings.training.mode) == (
        "3B",
        training.get("mode", "lora"),
    )
    assert settings.training.freeze == freeze
    numbers = settings.hyperparameters
    assert (numbers.epochs, numbers.batch_size, numbers.learning_rate) == (3, 8, rate)


def test_given_values_override_every_default() -> None:
    settings = resolve_blocks(
        model(
            training={"mode": "lora", "freeze": []},
            hyperparameters={"epochs": 1, "learningRate": 0.5, "schedule": {"name": "wsd"}},
        )
    ).model
    assert (settings.training.freeze, settings.hyperparameters.epochs) == ([], 1)
    assert (settings.hyperparameters.learning_rate, settings.hyperparameters.batch_size) == (
        0.5,
        32,
    )
    assert (
        settings.hyperparameters.schedule.name,
        settings.hyperparameters.schedule.warmup_fraction,
    ) == ("wsd", 0.03)


@pytest.mark.parametrize(
    ("architecture", "name", "size"),
    [
        ({"weights": "/models/x"}, "auto", "auto"),
        ({"weights": "/models/x", "name": "gemma3"}, "gemma3", "auto"),
        ({"weights": "run:r/best", "size": "tiny"}, "auto", "tiny"),
        ({"name": "auto"}, "idefics3", "tiny"),
        ({"name": "qwen25vl", "family": "idefics3", "size": "tiny"}, "idefics3", "tiny"),
        ({"name": "idefics3", "size": "8B"}, "idefics3", "8B"),
    ],
)
def test_family_and_size_follow_from_each_other(
    architecture: dict[str, Any], name: str, size: str
) -> None:
    resolved = resolve_blocks(model(architecture=architecture)).model.architecture
    assert (resolved.name, resolved.size) == (name, size)


@pytest.mark.parametrize(
    ("flow", "kind", "of_project", "dataset_id", "task"),
    [
        ({}, None, None, "digits", "vqa"),
        ({}, "freeform", "shelves", "shelves", "freeform"),
        (
            {"blocks": [dataset(datasetId="ds5")]},
            "phrase-grounding",
            "shelves",
            "ds5",
            "phrase-grounding",
        ),
        ({"blocks": [dataset(datasetId="ds5")]}, None, None, "ds5", "vqa"),
        (
            {"blocks": [dataset(datasetId="digits-grounding")]},
            None,
            None,
            "digits-grounding",
            "phrase-grounding",
        ),
        (
            {"trainingProject": "digits-grounding"},
            None,
            None,
            "digits-grounding",
            "phrase-grounding",
        ),
        ({"trainingProject": "tp-3"}, None, None, "digits", "vqa"),
    ],
)
def test_data_and_task_follow_from_dataset_and_project(
    flow: dict[str, Any], kind: str | None, of_project: str | None, dataset_id: str, task: str
) -> None:
    resolved = resolve(validate(flow), dataset_kind=kind, dataset_id=of_project)
    assert (resolved.dataset.dataset_id, resolved.task) == (dataset_id, task)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vqa", "/blocks/0/settings/projectKind is freeform, but dataset ds5 is of kind vqa."),
        (
            "video",
            '/blocks is "video"; it must be a dataset of kind vqa, phrase-grounding, freeform.',
        ),
    ],
)
def test_a_dataset_of_another_kind_is_a_problem(kind: str, message: str) -> None:
    flow = validate({"blocks": [dataset(datasetId="ds5", projectKind="freeform")]})
    with pytest.raises(FlowProblems) as caught:
        resolve(flow, dataset_kind=kind)
    assert [problem.message for problem in caught.value.problems] == [message]


@pytest.mark.parametrize(
    ("task", "word"),
    [("vqa", "vqa"), ("phrase-grounding", "phrase_grounding"), ("freeform", "freeform")],
)
def test_each_tasks_default_prompt_names_the_answer_format(task: str, word: str) -> None:
    resolved = resolve_blocks(dataset(datasetId="ds5", projectKind=task))
    assert f'{{"{word}":' in resolved.system_prompt.system_prompt


def test_the_prompt_of_both_tasks_names_both_formats() -> None:
    resolved = resolve_blocks(dataset(datasetId="digits-both"))
    assert resolved.task == "phrase-grounding"
    assert all(
        form in resolved.system_prompt.system_prompt for form in ('{"vqa":', '{"phrase_grounding":')
    )


def test_an_own_prompt_is_kept_even_when_it_is_empty() -> None:
    assert (
        resolve_blocks(
            {"block": "vi-system-prompt", "settings": {"systemPrompt": ""}}
        ).system_prompt.system_prompt
        == ""
    )


def test_run_json_contains_what_the_published_client_reads() -> None:
    document = build_flow_document(resolve_blocks())
    assert all({"block", "settings", "style"} <= set(block) for block in document["blocks"])
    settings = block_of(document, "vi-model")
    # Its loader opens what transformers' classes open.
    assert settings["architecture"]["name"] == "qwen25vl"
    assert settings["architecture"]["size"] == "tiny"
    assert settings["quantization"] == {"enabled": False, "type": "nf4", "parts": ["language"]}
    assert settings["evaluation"] == {
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "repetition_penalty": 1.05,
        "max_new_tokens": 1024,
        "do_sample": False,
        "seed": 0,
    }
    assert "precisionType" not in settings["compute"]
    assert block_of(document, "vi-dataset")["projectKind"] == "vqa"
    assert block_of(document, "vi-system-prompt")["systemPrompt"] == SYSTEM_PROMPTS["vqa"]


def test_a_flow_document_for_people_names_its_own_family() -> None:
    settings = block_of(
        build_flow_document(resolve_blocks(), for_published_client=False), "vi-model"
    )
    assert (settings["architecture"]["name"], settings["compute"]["precisionType"]) == (
        "idefics3",
        "auto",
    )


def test_run_json_keeps_the_family_that_has_a_loader_of_its_own() -> None:
    document = build_flow_document(
        resolve_blocks(
            model(architecture={"name": "internvl35"}, compute={"precisionType": "float32"})
        )
    )
    settings = block_of(document, "vi-model")
    assert (settings["architecture"]["name"], settings["compute"]["precisionType"]) == (
        "internvl35",
        "float32",
    )


def test_the_document_gives_the_same_flow_again() -> None:
    resolved = resolve_blocks(
        {"block": "system-prompt", "settings": {"systemPrompt": "Look."}, "style": {"x": 3}},
        dataset(datasetId="ds5", projectKind="freeform", augmentation={"zoom": 0.1}),
        model(
            architecture={"name": "llava", "weights": "run:r-1/epoch-3"},
            training={"learningRates": {"vision": 1e-6}},
            checkpoint={"every": {"minutes": 5}},
            validation={"earlyStopping": {"patience": 2}},
            evaluation={"pad_token_id": 0, "eos_token_id": [2, 3]},
        ),
        name="Everything",
        trainingProject="tp-3",
        tolerations={"accelerator": ["h100"]},
        settings={"seed": 1, "priority": 3, "flow": {"id": "flow_1", "generation": 2}},
    )
    assert resolve(validate(build_flow_document(resolved))) == resolved
    assert resolve(validate(build_flow_document(resolved, for_published_client=False))) == resolved


def test_a_family_is_found_by_the_weights_model_type() -> None:
    found = {key: find_family(family.model_type) for key, family in FAMILIES.items()}
    assert {key: family.key for key, family in found.items() if family} == {
        **{key: key for key in FAMILIES},
        "cosmosreason1": "qwen25vl",
        "cosmosreason2": "qwen3vl",
    }
    assert find_family("gpt2") is None


def test_every_family_can_be_trained_by_naming_it_alone() -> None:
    for key in FAMILIES:
        assert resolve_blocks(model(architecture={"name": key})).model.architecture.name == key


@pytest.mark.parametrize(
    ("kind", "form", "family", "prompt"),
    [
        ("vqa", "json", "qwen25vl", SYSTEM_PROMPTS["vqa"]),
        ("vqa", "text", "idefics3", "Answer the question about the image in plain words."),
        ("freeform", "text", "llava", "Describe the image in plain words."),
        ("vqa", "native", "florence2", ""),
        ("phrase-grounding", "native", "paligemma2", "detect"),
        ("phrase-grounding", "native", "florence2", "Locate the phrases in the caption:"),
        ("phrase-grounding", "native", "auto", "Locate the phrases in the caption:"),
    ],
)
def test_the_default_system_prompt_asks_for_the_form_of_answers(
    kind: str, form: str, family: str, prompt: str
) -> None:
    architecture = {"name": family, "weights": "base:x"}
    resolved = resolve_blocks(
        model(architecture=architecture, answers={"form": form}),
        dataset(datasetId="own", projectKind=kind),
    )
    assert resolved.model.answers.form == form
    assert resolved.system_prompt.system_prompt == prompt
    again = build_flow_document(resolved)
    assert block_of(again, "vi-model")["answers"] == {"form": form}


@pytest.mark.parametrize(
    ("kind", "form", "family", "message"),
    [
        ("phrase-grounding", "text", "qwen25vl", "plain words have no boxes"),
        ("vqa", "native", "idefics3", "idefics3 has no form of its own"),
        ("vqa", "words", "qwen25vl", "answers/form"),
    ],
)
def test_a_form_that_is_not_possible_is_a_problem(
    kind: str, form: str, family: str, message: str
) -> None:
    architecture = {"name": family, "weights": "base:x"}
    blocks = (
        model(architecture=architecture, answers={"form": form}),
        dataset(datasetId="own", projectKind=kind),
    )
    with pytest.raises(FlowProblems, match=message):
        resolve_blocks(*blocks)
