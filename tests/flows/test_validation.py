"""Flows that ``validate`` accepts, the defaults it fills in, and the problems it reports."""

import json
from typing import Any

import pytest

from runyard.flows import FlowProblems, Problem, validate
from runyard.flows.problems import MAX_PROBLEMS
from vi.api.resources.flows.responses import FlowBlock, FlowSpec


def model(**settings: Any) -> dict[str, Any]:
    return {"blocks": [{"block": "vi-model", "settings": settings}]}


def dataset(**settings: Any) -> dict[str, Any]:
    return {"blocks": [{"block": "vi-dataset", "settings": settings}]}


def problems_of(flow: object) -> list[Problem]:
    with pytest.raises(FlowProblems) as caught:
        validate(flow)
    return caught.value.problems


def only_problem(flow: object) -> Problem:
    (problem,) = problems_of(flow)
    return problem


def test_the_empty_flow_is_valid() -> None:
    flow = validate(
        {"name": "Quick Training", "schema": "v1", "blocks": [], "settings": {}, "tolerations": {}}
    )
    assert flow == FlowSpec(
        name="Quick Training", schema="v1", blocks=[], settings={}, tolerations={}
    )


@pytest.mark.parametrize(
    "gap",
    [
        {},
        {
            "name": None,
            "schema": None,
            "blocks": None,
            "settings": None,
            "tolerations": None,
            "trainingProject": None,
        },
    ],
)
def test_defaults_of_the_flow_are_filled_in(gap: dict[str, Any]) -> None:
    assert validate(gap) == FlowSpec(
        name="Untitled", schema="v1", blocks=[], settings={}, tolerations={}
    )


@pytest.mark.parametrize(
    "block", [{}, {"settings": None}, {"style": None}, {"settings": {}, "style": {}}]
)
def test_defaults_of_a_block_are_filled_in(block: dict[str, Any]) -> None:
    flow = validate({"blocks": [{"block": "vi-dataset", **block}]})
    assert flow.blocks == [FlowBlock(block="vi-dataset", settings={}, style={})]


@pytest.mark.parametrize("name", ["vi-model", "model", "my-model-2", "vi_model"])
def test_a_block_is_recognized_by_part_of_its_name_and_keeps_its_name(name: str) -> None:
    flow = validate({"blocks": [{"block": name, "settings": {"packing": True}}]})
    assert flow.blocks[0].block == name


def test_settings_are_kept_as_given() -> None:
    settings = {"hyperparameters": {"epochs": 4}, "evaluation": {"top_k": 3}}
    assert validate(model(**settings)).blocks[0].settings == settings


def test_null_means_not_given_where_the_default_is_auto_or_depends_on_others() -> None:
    flow = validate(
        model(
            packing=None, hyperparameters={"epochs": None, "microBatchSize": None, "maxSteps": None}
        )
    )
    assert flow.blocks[0].settings == {"hyperparameters": {"maxSteps": None}}


def test_null_is_a_problem_where_a_value_is_needed() -> None:
    problem = only_problem(dataset(validationFraction=None))
    assert problem.message == (
        "/blocks/0/settings/validationFraction is null; it must be a number from 0 to 0.9."
    )


def test_style_accepts_any_json_value() -> None:
    style = {"x": 1.5, "nested": [{"deep": [None, True, "ü"]}]}
    assert validate({"blocks": [{"block": "vi-model", "style": style}]}).blocks[0].style == style


def test_the_servers_own_mark_of_the_flow_is_allowed() -> None:
    settings = {"flow": {"id": "flow_1", "generation": 3}}
    assert validate({"settings": settings}).settings == settings


def test_the_training_project_may_be_written_in_snake_case() -> None:
    assert validate({"training_project": "tp-3"}).training_project == "tp-3"


def test_a_flow_spec_is_read_like_the_flow_it_came_from() -> None:
    flow = validate(model(hyperparameters={"epochs": 2}))
    assert validate(
        json.loads(
            json.dumps({"blocks": [{"block": "vi-model", "settings": flow.blocks[0].settings}]})
        )
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"checkpoint": {"every": "epoch"}, "validation": {"every": {"minutes": 0.5}}},
        {"checkpoint": {"every": {"steps": 1, "minutes": None}}},
        {"training": {"lora": {"rank": 4}, "mode": "full"}},
        {"training": {"lora": {"targets": ["q_proj", "v_proj"]}, "mode": "lora"}},
        {"hyperparameters": {"batchSize": 12, "microBatchSize": 4, "learningRate": 1}},
        {"quantization": {"enabled": True}, "architecture": {"name": "qwen25vl"}},
        {"architecture": {"weights": "run:0b1c/best"}},
        {"architecture": {"weights": "base:qwen-2b"}},
        {"architecture": {"weights": "base:Qwen/Qwen2.5-VL-3B-Instruct"}},
        {"architecture": {"weights": "/models/any", "size": "13B-chat"}},
        {"architecture": {"name": "auto"}},
        {"architecture": {"name": "qwen3vl", "size": "4B"}},
        {"evaluation": {"eos_token_id": [1, 2], "stop_strings": "</s>", "temperature": 0}},
        {"hyperparameters": {"optimizer": {"betas": [0, 0.5], "maxGradNorm": None}}},
    ],
)
def test_valid_model_settings_are_accepted(settings: dict[str, Any]) -> None:
    validate(model(**settings))


# flow, path, allowed values, and message.
BAD = [
    (
        [],
        "",
        None,
        "The flow is a list of 0; it must be an object with the fields name, schema, "
        "trainingProject, tolerations, settings, blocks.",
    ),
    (
        "flow_1",
        "",
        None,
        'The flow is "flow_1"; it must be an object with the fields name, schema, '
        "trainingProject, "
        "tolerations, settings, blocks.",
    ),
    ({"schema": "v2"}, "/schema", '"v1"', '/schema is "v2"; it must be "v1".'),
    ({"nmae": "x"}, "/nmae", None, "/nmae is not a field of a flow; did you mean name?"),
    ({"name": 7}, "/name", "a string of at most 200 characters", None),
    (
        {"tolerations": {"accelerator": "h100"}},
        "/tolerations/accelerator",
        None,
        '/tolerations/accelerator is "h100"; it must be a list of at most 1000, each a string of '
        "at "
        "most 256 characters.",
    ),
    ({"trainingProject": "a/b"}, "/trainingProject", None, None),
    ({"settings": {"seed": "7"}}, "/settings/seed", "an integer from 0 to 2147483647", None),
    (
        {"settings": {"seed": True}},
        "/settings/seed",
        "an integer from 0 to 2147483647",
        "/settings/seed is true; it must be an integer from 0 to 2147483647.",
    ),
    (
        {"settings": {"resources": {"memoryGib": 2}}},
        "/settings/resources/memoryGib",
        None,
        "/settings/resources/memoryGib is not a field of a flow; did you mean memoryGiB?",
    ),
    (
        {"settings": {"learning_rate": 0.1}},
        "/settings/learning_rate",
        None,
        "/settings/learning_rate is not a field of a flow; did you mean "
        "hyperparameters.learningRate of the block vi-model?",
    ),
    (
        {"settings": {"flow": {"id": "flow_1"}}},
        "/settings/flow/generation",
        "an integer from 1 to 9007199254740992",
        "/settings/flow/generation is missing; it must be an integer from 1 to 9007199254740992.",
    ),
    ({"blocks": {}}, "/blocks", "a list of at most 100 objects", None),
    (
        {"blocks": ["vi-model"]},
        "/blocks/0",
        None,
        '/blocks/0 is "vi-model"; it must be an object with the fields block, settings, style.',
    ),
    (
        {"blocks": [{"settings": {}}]},
        "/blocks/0/block",
        None,
        "/blocks/0/block is missing; it must be vi-system-prompt, vi-dataset or vi-model.",
    ),
    (
        {"blocks": [{"block": "vi-modle"}]},
        "/blocks/0/block",
        "one of vi-system-prompt, vi-dataset, vi-model",
        '/blocks/0/block "vi-modle" is not a known block; did you mean vi-model?',
    ),
    (
        {"blocks": [{"block": "trainer"}]},
        "/blocks/0/block",
        None,
        '/blocks/0/block "trainer" is not a known block; known are vi-system-prompt, vi-dataset, '
        "vi-model.",
    ),
    (
        {"blocks": [{"block": "Dataset"}]},
        "/blocks/0/block",
        None,
        '/blocks/0/block "Dataset" is not a known block; did you mean vi-dataset?',
    ),
    (
        {"blocks": [{"block": "dataset-of-model"}]},
        "/blocks/0/block",
        None,
        '/blocks/0/block "dataset-of-model" could be vi-dataset or vi-model; write one of them.',
    ),
    (
        {"blocks": [{"block": "vi-model"}, {"block": "model"}]},
        "/blocks/1/block",
        None,
        "/blocks/1/block is a second vi-model; the first is /blocks/0. Remove one of them.",
    ),
    ({"blocks": [{"block": "vi-model", "style": 3}]}, "/blocks/0/style", None, None),
    (
        dataset(validationFraction=1),
        "/blocks/0/settings/validationFraction",
        "a number from 0 to 0.9",
        None,
    ),
    (
        dataset(projectKind="vqaa"),
        "/blocks/0/settings/projectKind",
        '"freeform", "phrase-grounding" or "vqa"',
        '/blocks/0/settings/projectKind is "vqaa"; it must be "freeform", "phrase-grounding" or '
        '"vqa". Did you mean vqa?',
    ),
    (
        dataset(datasetId="digits", projectKind="phrase-grounding"),
        "/blocks/0/settings/projectKind",
        '"vqa"',
        "/blocks/0/settings/projectKind is phrase-grounding, but dataset digits is of kind vqa.",
    ),
    (dataset(datasetId="digits\n"), "/blocks/0/settings/datasetId", None, None),
    (dataset(datasetId="../digits"), "/blocks/0/settings/datasetId", None, None),
    (
        dataset(maxSamples=0),
        "/blocks/0/settings/maxSamples",
        "an integer from 1 to 1000000000 or null",
        None,
    ),
    (dataset(augmentation={"flip": 1}), "/blocks/0/settings/augmentation/flip", None, None),
    (
        model(epochs=3),
        "/blocks/0/settings/epochs",
        None,
        "/blocks/0/settings/epochs is not a field of a flow; did you mean hyperparameters.epochs?",
    ),
    (
        model(hyperparameters={"learning_rate": 1e-3}),
        "/blocks/0/settings/hyperparameters/learning_rate",
        None,
        "/blocks/0/settings/hyperparameters/learning_rate is not a field of a flow; did you mean "
        "learningRate?",
    ),
    (
        model(evaluation={"maxNewTokens": 5}),
        "/blocks/0/settings/evaluation/maxNewTokens",
        None,
        "/blocks/0/settings/evaluation/maxNewTokens is not a field of a flow; did you mean "
        "max_new_tokens?",
    ),
    (
        model(hyperparameters={"epochs": 0}),
        "/blocks/0/settings/hyperparameters/epochs",
        "an integer from 1 to 10000",
        "/blocks/0/settings/hyperparameters/epochs is 0; it must be an integer from 1 to 10000.",
    ),
    (
        model(hyperparameters={"epochs": 2.0}),
        "/blocks/0/settings/hyperparameters/epochs",
        None,
        None,
    ),
    (
        model(hyperparameters={"batchSize": 10**400}),
        "/blocks/0/settings/hyperparameters/batchSize",
        None,
        None,
    ),
    (
        model(hyperparameters={"learningRate": float("nan")}),
        "/blocks/0/settings/hyperparameters/learningRate",
        "a finite number",
        "/blocks/0/settings/hyperparameters/learningRate is nan; it must be a finite number.",
    ),
    (
        model(hyperparameters={"learningRate": float("inf")}),
        "/blocks/0/settings/hyperparameters/learningRate",
        "a finite number",
        None,
    ),
    (
        model(hyperparameters={"learningRate": 0}),
        "/blocks/0/settings/hyperparameters/learningRate",
        "a number above 0 to 10",
        None,
    ),
    (
        model(hyperparameters={"learningRate": "fast"}),
        "/blocks/0/settings/hyperparameters/learningRate",
        None,
        None,
    ),
    (
        model(hyperparameters={"microBatchSize": "some"}),
        "/blocks/0/settings/hyperparameters/microBatchSize",
        '"auto" or an integer from 1 to 65536',
        None,
    ),
    (
        model(hyperparameters={"batchSize": 12, "microBatchSize": 8}),
        "/blocks/0/settings/hyperparameters/microBatchSize",
        "a divisor of batchSize 12",
        "/blocks/0/settings/hyperparameters/microBatchSize is 8, which does not divide batchSize "
        "12.",
    ),
    (
        model(hyperparameters={"microBatchSize": 64}),
        "/blocks/0/settings/hyperparameters/microBatchSize",
        "a divisor of batchSize 32",
        None,
    ),
    (
        model(hyperparameters={"optimizer": {"name": "adam"}}),
        "/blocks/0/settings/hyperparameters/optimizer/name",
        None,
        '/blocks/0/settings/hyperparameters/optimizer/name is "adam"; it must be "adafactor", '
        '"adamw", "adamw8bit", "muon" or "sgd". Did you mean adamw?',
    ),
    (
        model(hyperparameters={"optimizer": {"betas": [0.9]}}),
        "/blocks/0/settings/hyperparameters/optimizer/betas",
        "a list of 2, each a number from 0 to below 1",
        None,
    ),
    (
        model(hyperparameters={"schedule": {"warmupFraction": 1.01}}),
        "/blocks/0/settings/hyperparameters/schedule/warmupFraction",
        "a number from 0 to 1",
        None,
    ),
    (model(hyperparameters=3), "/blocks/0/settings/hyperparameters", None, None),
    (
        model(checkpoint={"every": {}}),
        "/blocks/0/settings/checkpoint/every",
        "epoch, or an object with exactly one of steps and minutes",
        None,
    ),
    (
        model(validation={"every": {"steps": 3, "minutes": 1}}),
        "/blocks/0/settings/validation/every",
        None,
        None,
    ),
    (
        model(checkpoint={"every": "epochs"}),
        "/blocks/0/settings/checkpoint/every",
        None,
        '/blocks/0/settings/checkpoint/every is "epochs"; it must be "epoch" or an object with the '
        "fields steps, minutes. "
        "Did you mean epoch?",
    ),
    (
        model(training={"freeze": ["visoin"]}),
        "/blocks/0/settings/training/freeze/0",
        '"language", "projector" or "vision"',
        None,
    ),
    (
        model(training={"freeze": ["vision", "projector", "language"]}),
        "/blocks/0/settings/training/freeze",
        None,
        "/blocks/0/settings/training/freeze freezes every part, so there is nothing to train; "
        "leave one out.",
    ),
    (
        model(quantization={"enabled": True}),
        "/blocks/0/settings/quantization/enabled",
        None,
        "/blocks/0/settings/quantization/enabled is true, but 4-bit weights cannot be trained in "
        "full; set training.mode to lora.",
    ),
    (
        model(images={"minPixels": 100, "maxPixels": 10}),
        "/blocks/0/settings/images/minPixels",
        "at most maxPixels 10",
        None,
    ),
    (model(architecture={"name": "qwen25v"}), "/blocks/0/settings/architecture/name", None, None),
    (
        model(architecture={"name": "qwen25vl", "size": "tiny"}),
        "/blocks/0/settings/architecture/size",
        None,
        "/blocks/0/settings/architecture/size tiny is built in for the family idefics3 alone; for "
        "qwen25vl take one of 3B, 7B, 32B, 72B.",
    ),
    (
        model(architecture={"name": "qwen25vl", "size": "5B"}),
        "/blocks/0/settings/architecture/size",
        None,
        "/blocks/0/settings/architecture/size 5B is not a usual size of qwen25vl (3B, 7B, 32B, "
        "72B); take one of these or give architecture.weights.",
    ),
    (
        model(architecture={"name": "auto", "size": "3B"}),
        "/blocks/0/settings/architecture/name",
        None,
        None,
    ),
    (
        model(architecture={"weights": "run:only-a-run"}),
        "/blocks/0/settings/architecture/weights",
        "base:NAME, run:RUN_ID/CHECKPOINT, a hub id such as Qwen/Qwen2.5-VL-3B-Instruct, or an "
        "absolute path",
        None,
    ),
    (
        model(architecture={"weights": "base:../x"}),
        "/blocks/0/settings/architecture/weights",
        None,
        None,
    ),
    (
        model(architecture={"weights": "qwen"}),
        "/blocks/0/settings/architecture/weights",
        None,
        None,
    ),
    (
        model(architecture={"weights": "a/../b"}),
        "/blocks/0/settings/architecture/weights",
        None,
        None,
    ),
    (
        {"blocks": [{"block": "vi-system-prompt", "settings": {"systemPrompt": 3}}]},
        "/blocks/0/settings/systemPrompt",
        "a string of at most 20000 characters",
        None,
    ),
    (
        {"blocks": [{"block": "vi-model", "style": {"a/b~c": float("-inf")}}]},
        "/blocks/0/style/a~1b~0c",
        "a finite number",
        None,
    ),
    ({"name": "\ud800"}, "/name", "a string without lone surrogates", None),
]


@pytest.mark.parametrize(
    ("flow", "path", "allowed", "message"), BAD, ids=[f"{n}:{row[1]}" for n, row in enumerate(BAD)]
)
def test_an_invalid_flow_gets_a_path_and_a_message(
    flow: object, path: str, allowed: str | None, message: str | None
) -> None:
    problem = only_problem(flow)
    assert problem.path == path
    assert problem.allowed == allowed or allowed is None
    assert problem.message == message or message is None
    assert problem.message.isprintable()


def test_all_problems_are_reported_at_once() -> None:
    flow = {
        "schema": "v3",
        "settings": {"seed": -1},
        "blocks": [
            {"block": "vi-dataset", "settings": {"shufle": True, "validationFraction": 0}},
            {
                "block": "vi-model",
                "settings": {
                    "architecture": {"name": "gemma3", "size": "5B"},
                    "hyperparameters": {"epochs": 0, "batchSize": 10, "microBatchSize": 3},
                    "validation": {"earlyStopping": {}},
                },
            },
            {"block": "vi-mdel"},
        ],
    }
    assert {problem.path for problem in problems_of(flow)} == {
        "/schema",
        "/settings/seed",
        "/blocks/0/settings/shufle",
        "/blocks/1/settings/architecture/size",
        "/blocks/1/settings/hyperparameters/epochs",
        "/blocks/1/settings/hyperparameters/microBatchSize",
        "/blocks/1/settings/validation/earlyStopping",
        "/blocks/2/block",
    }


def test_a_mistake_in_one_field_is_not_reported_again_as_an_inconsistency() -> None:
    problem = only_problem(model(hyperparameters={"batchSize": "many", "microBatchSize": 7}))
    assert problem.path == "/blocks/0/settings/hyperparameters/batchSize"


def test_the_exception_names_every_problem_in_its_message() -> None:
    with pytest.raises(
        FlowProblems, match=r"The flow has 2 problems: /schema is 1; .*; /settings is 2; "
    ):
        validate({"schema": 1, "settings": 2})


def test_a_hostile_flow_gets_a_short_error_message() -> None:
    flow = {"settings": {f"{'epoch' * 18}{n}": n for n in range(20_000)}}
    assert len(problems_of(flow)) == MAX_PROBLEMS


def test_given_values_are_abbreviated() -> None:
    problem = only_problem({"schema": "x" * 100_000})
    assert problem.given == "x" * 80 + "…"
    assert len(problem.message) < 200


def test_a_style_deeper_than_any_flow_is_rejected() -> None:
    style: dict[str, Any] = {}
    for _ in range(100_000):
        style = {"in": style}
    assert "deep" in only_problem({"blocks": [{"block": "vi-model", "style": style}]}).allowed
