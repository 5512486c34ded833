"""Each miniature belongs to its family, reads an image with a question, and answers."""

from typing import Any

import pytest
import torch
from PIL import Image

from runyard.flows.families import FAMILIES
from tests.trainer import miniatures

USER = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}],
}
WITHOUT_TEMPLATE = {"paligemma": "<image>Which digit is this?", "florence2": "Which digit is this?"}


def test_every_family_has_a_miniature() -> None:
    assert set(miniatures.MINIATURES) == {family.model_type for family in FAMILIES.values()}


@pytest.mark.parametrize("model_type", miniatures.MINIATURES)
def test_a_miniature_answers_about_an_image(model_type: str) -> None:
    model, processor = miniatures.make(model_type)
    assert model.config.model_type == model_type
    assert 40_000 < sum(parameter.numel() for parameter in model.parameters()) < 150_000

    text = WITHOUT_TEMPLATE.get(model_type) or processor.apply_chat_template(
        [USER], add_generation_prompt=True
    )
    red, blue = (ask(model, processor, text, color) for color in ("red", "blue"))
    assert torch.equal(ask(model, processor, text, "red"), red)
    assert red.shape == (3, model.get_output_embeddings().out_features)
    assert not torch.allclose(red, blue, atol=1e-6)  # it uses the image


def ask(model: Any, processor: Any, text: str, color: str) -> torch.Tensor:
    """Return the logits of each of three generated tokens."""
    made = processor(images=[Image.new("RGB", (32, 32), color)], text=[text], return_tensors="np")
    # PaliGemma's processor adds labels.
    inputs = {name: torch.as_tensor(value) for name, value in made.items() if name != "labels"}
    output = model.eval().generate(
        **inputs,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(output.logits)
