"""The forms of ``architecture.weights``, as text.

Whether the weights exist is checked elsewhere.
"""

import re
from typing import Literal

from runyard.ids import MODEL_REFERENCE

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
BASE_NAME = re.compile(rf"{_NAME}(?:/{_NAME})?", re.ASCII)
BASE_PREFIX = "base:"
HUB_ID = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)
FORMS = (
    "base:NAME, run:RUN_ID/CHECKPOINT, a hub id such as Qwen/Qwen2.5-VL-3B-Instruct, or an "
    "absolute path"
)

Form = Literal["run", "base", "hub", "folder"]


def classify_weights(weights: str) -> Form | None:
    """Return the form of a value; None if it has none of them."""
    if weights.startswith("run:"):
        return "run" if MODEL_REFERENCE.fullmatch(weights) else None
    if weights.startswith(BASE_PREFIX):
        return "base" if BASE_NAME.fullmatch(weights.removeprefix(BASE_PREFIX)) else None
    if weights.startswith(("/", "~")):
        return "folder"
    return "hub" if HUB_ID.fullmatch(weights) else None
