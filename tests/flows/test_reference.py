"""The flow reference matches the checks."""

from pathlib import Path

import pytest

from runyard.flows import resolve, validate
from runyard.flows.families import FAMILIES
from runyard.flows.reference import EXAMPLE, reference

PAGE = Path(__file__).parents[2] / "docs/flow-reference.md"


def test_the_page_is_generated_from_the_fields() -> None:
    assert PAGE.read_text() == reference(), "run scripts/flow-reference"


def test_the_pages_example_can_be_trained() -> None:
    assert resolve(validate(EXAMPLE)).model.hyperparameters.epochs == 5


@pytest.mark.parametrize(
    "name", ["onOutOfMemory", "hyperparameters.optimizer.betas", "augmentation.zoom", *FAMILIES]
)
def test_the_page_names_each_environment_variable(name: str) -> None:
    assert f"`{name}`" in reference()
