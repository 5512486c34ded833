"""What the built-in tiny model sees of an image, in words for the people who use it.

It is trained from scratch on images of a few hundred pixels. That suffices for the built-in
datasets, and is rarely enough for photographs or documents, so a run on other images says so from
its creation on.
"""

from runyard.flows.resolved_flow import ResolvedFlow
from vi.api.responses import RunFinding, RunSuggestion

TINY_IMAGES = "TinyImages"
WEIGHTS = "vi-model.architecture.weights"
ADD_MODEL = "runyard models add FOLDER --name NAME"
# Side of an image in pixels, by task. Locating objects needs more than an answer about the image.
IMAGE_SIDES = {"vqa": 32, "phrase-grounding": 48}


def get_image_size(task: str) -> str:
    """Return the width and height in pixels that every image is resized to."""
    side = IMAGE_SIDES.get(task, IMAGE_SIDES["vqa"])
    return f"{side} x {side}"


def describe_tiny_images(task: str) -> str:
    """Return what happens to images, as create, plan and pages state it."""
    return f"tiny: images become {get_image_size(task)}"


def find_tiny_images(flow: ResolvedFlow, *, is_uploaded: bool) -> RunFinding | None:
    """Return the finding of a run that trains the tiny model on uploaded images, else None."""
    if not (flow.is_tiny and is_uploaded):
        return None
    return RunFinding(
        code=TINY_IMAGES,
        message=f"{describe_tiny_images(flow.task)} pixels, in which writing and small objects "
        "cannot be recognized; the built-in model starts from random weights and is a test of the "
        "pipeline",
        suggestions=[suggest_base_model()],
    )


def suggest_base_model() -> RunSuggestion:
    """Return the suggestion to train a pretrained model."""
    return RunSuggestion(
        text=f"train a real base model: add it once with `{ADD_MODEL}`, then name it",
        setting=WEIGHTS,
        value="base:NAME",
    )
