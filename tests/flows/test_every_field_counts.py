"""No field of a flow is accepted and ignored: each is read outside of ``flows``, or rejected with a
reason.

Whether a field is read is decided from the source: an attribute of that name, taken from an
expression that ends in one of the names by which this part of a flow is known there, or the
field's name on the wire as a key of a document.
"""

import ast
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

import runyard
from runyard.flows import FlowProblems, blocks, resolve, validate
from runyard.flows.consistency import UNSUPPORTED
from runyard.flows.resources import MOST_WORKERS, count_ranks
from vi.api.resources.flows.responses import FlowSpec

SOURCE = Path(runyard.__file__).parent

# The names by which code outside of ``flows`` refers to each part of a flow.
HELD_AS: dict[type[msgspec.Struct], set[str]] = {
    blocks.FlowShape: {"flow", "spec", "frozen", "resolved"},
    blocks.FlowSettings: {"settings"},
    blocks.FlowReference: set(),
    blocks.Resources: {"resources"},
    blocks.Augmentation: {"strengths"},
    blocks.MixedDataset: {"each"},
    blocks.ValidationDataset: {"validation_dataset"},
    blocks.DatasetSettings: {"dataset"},
    blocks.SystemPromptSettings: {"system_prompt"},
    blocks.Architecture: {"architecture"},
    blocks.Lora: {"lora"},
    blocks.LearningRates: set(),
    blocks.Training: {"training"},
    blocks.Quantization: {"quantization"},
    blocks.Compute: {"compute"},
    blocks.Images: {"images"},
    blocks.Answers: {"answers"},
    blocks.Schedule: {"schedule"},
    blocks.Optimizer: {"optimizer", "settings"},
    blocks.Loss: {"loss"},
    blocks.Hyperparameters: {"numbers", "hyperparameters"},
    blocks.Every: {"every"},
    blocks.Checkpoint: {"checkpoint", "settings"},
    blocks.EarlyStopping: {"patience", "early_stopping"},
    blocks.Validation: {"validation", "settings"},
    blocks.Evaluation: {"requested", "evaluation"},
    blocks.ModelSettings: {"model", "settings"},
}
# Read in another way; the named file must contain the text.
ELSEWHERE = {
    "LearningRates.vision": ("trainer/steps/optim.py", "getattr(rates, find_part(name, parts))"),
    "LearningRates.projector": ("trainer/steps/optim.py", "getattr(rates, find_part(name, parts))"),
    "LearningRates.language": ("trainer/steps/optim.py", "getattr(rates, find_part(name, parts))"),
    "DatasetSettings.projectKind": ("trainer/prepare.py", "flow.task"),
    # Those of all datasets are read in the same way, from the flow as JSON.
    **{
        f"{part}.{name}": ("supervisor/datasets.py", f'named.get("{name}")')
        for part in ("MixedDataset", "ValidationDataset")
        for name in ("datasetId", "datasetVersion")
    },
    "Architecture.name": ("trainer/checkpoints/warm_start.py", '"family"'),
    "Architecture.family": ("flows/resolved_flow.py", 'given.get("family")'),  # decides the name
    "Resources.workers": ("flows/resources.py", '_read_count(settings, "workers")'),
    "FlowReference.id": ("server/services/runs/runs.py", 'origin["id"]'),
    "FlowReference.generation": (
        "server/services/runs/accelerators.py",
        '"generation": flow.metadata.generation',
    ),
    "FlowShape.name": ("../vi/api/resources/runs/responses.py", "flow.name"),  # people read it
    "FlowShape.schema": ("flows/blocks.py", 'Literal["v1"]'),  # one value is allowed
    "FlowShape.blocks": ("flows/validation.py", '_check_blocks(checked["blocks"]'),
    "FlowShape.trainingProject": ("server/services/runs/runs.py", "spec.training_project"),
}
FIELDS = [
    (struct, field)
    for struct in HELD_AS
    for field in msgspec.structs.fields(struct)
    if not (struct is blocks.Resources and field.encode_name in UNSUPPORTED)
]


def collect_reads() -> tuple[dict[str, set[str]], set[str]]:
    """Return the attributes read, with the names of their objects.

    Also return the keys read from documents.
    """
    attributes: dict[str, set[str]] = defaultdict(set)
    keys: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        if "flows" in file.relative_to(SOURCE).parts[:1]:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Attribute(value=ast.Attribute(attr=held) | ast.Name(id=held), attr=name):
                    attributes[name].add(held)
                case ast.Call(
                    func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(key)), *_]
                ):
                    keys.add(key)
    return attributes, keys


def test_every_part_of_a_flow_is_checked() -> None:
    parts = {
        value
        for value in vars(blocks).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value.__module__ == blocks.__name__
    }
    assert parts - {blocks.Shape, blocks.Block} == set(HELD_AS)


def test_each_field_is_read_outside_of_flows() -> None:
    attributes, keys = collect_reads()

    def is_read(struct: type[msgspec.Struct], field: Any) -> bool:
        if where := ELSEWHERE.get(f"{struct.__name__}.{field.encode_name}"):
            return where[1] in (SOURCE / where[0]).read_text()
        is_key = struct is blocks.FlowSettings and field.encode_name in keys
        return bool(attributes[field.name] & HELD_AS[struct]) or is_key

    unread = [
        f"{struct.__name__}.{field.encode_name}"
        for struct, field in FIELDS
        if not is_read(struct, field)
    ]
    assert unread == [], "accepted, and read by nothing"


@pytest.mark.parametrize(
    "name",
    [
        field.encode_name
        for field in msgspec.structs.fields(blocks.Resources)
        if field.name not in ("accelerators", "workers", "strategy")
    ],
)
@pytest.mark.parametrize("value", [1, 2, 0.5, 8])
def test_unsupported_resources_are_rejected_with_reason_and_suggestion(
    name: str, value: Any
) -> None:
    flow = {"settings": {"resources": {name: value}}}
    with pytest.raises(FlowProblems) as raised:
        validate(flow)
    [problem] = raised.value.problems
    assert problem.path == f"/settings/resources/{name}" and problem.given == value
    assert (
        f"{problem.path} is {value:g}, which is not supported yet: " in problem.message
        and "try: " in problem.message
    )


def test_a_run_may_have_several_workers_but_not_any_number() -> None:
    assert validate({"settings": {"resources": {"workers": 2}}}).settings
    with pytest.raises(FlowProblems) as raised:
        validate({"settings": {"resources": {"workers": MOST_WORKERS + 1}}})
    assert [problem.path for problem in raised.value.problems] == ["/settings/resources/workers"]


def test_each_accelerator_has_one_process() -> None:
    for resources in ({"accelerators": 4}, {"accelerators": 4, "workers": 4}):
        flow = resolve(FlowSpec(settings={"resources": resources}))
        assert flow.settings.resources.ranks == 4
        assert count_ranks({"resources": resources}) == 4
    assert resolve(FlowSpec(settings={})).settings.resources.ranks == count_ranks({}) == 1
    with pytest.raises(FlowProblems) as raised:
        validate({"settings": {"resources": {"accelerators": 4, "workers": 2}}})
    [problem] = raised.value.problems
    assert problem.message == (
        "/settings/resources/workers is 2, but accelerators is 4, and each accelerator has one "
        "process; leave workers out."
    )


def test_values_without_effect_are_accepted() -> None:
    resources = {"accelerators": None, "cpus": None, "memoryGiB": None}
    assert validate({"settings": {"resources": resources}}).settings


def test_every_unsupported_field_is_reported_together_with_other_problems() -> None:
    flow = {"settings": {"seed": -1, "resources": {"cpus": 4, "memoryGiB": 2}}}
    with pytest.raises(FlowProblems) as raised:
        validate(flow)
    assert {problem.path for problem in raised.value.problems} == {
        "/settings/seed",
        "/settings/resources/cpus",
        "/settings/resources/memoryGiB",
    }


def test_a_run_that_was_accepted_before_the_check_still_resolves() -> None:
    assert resolve(FlowSpec(settings={"resources": {"cpus": 4}})).settings.resources.cpus == 4
