"""What the trainer needs to know of a model family beyond ``runyard.flows.families``.

Families differ by data, not by code. Each row names the modules of the vision encoder, the
projector and the language model in transformers' classes, and the few peculiarities that a batch
must respect. A family without a row is refused.
"""

from dataclasses import dataclass, replace

from runyard.trainer.errors import InvalidFlow


@dataclass(frozen=True, kw_only=True)
class FamilyParts:
    """Module-name prefixes of a family's three parts, and its peculiarities.

    ``projector`` is matched first, because some families nest it inside the vision encoder.
    ``vision`` holds all encoders, including those for audio. ``answer_token_type`` is the value of
    ``token_type_ids`` on the answer's tokens. ``plain_prompt`` is the prompt for processors without
    a chat template; its ``{text}`` is the system prompt and the question. ``answer_prefix``
    precedes every answer. ``packing_obstacle`` says why samples of this family cannot share a row.
    """

    projector: tuple[str, ...]
    vision: tuple[str, ...]
    language: tuple[str, ...] = ("model.language_model", "language_model", "lm_head")
    answer_token_type: int = 0
    plain_prompt: str | None = None
    answer_prefix: str = ""
    packing_obstacle: str | None = None


_LLAVA = FamilyParts(projector=("model.multi_modal_projector",), vision=("model.vision_tower",))
_IDEFICS = FamilyParts(
    projector=("model.connector",),
    vision=("model.vision_model",),
    language=("model.text_model", "lm_head"),
)
_QWEN = FamilyParts(
    projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
    vision=("model.visual",),
)
_BIDIRECTIONAL = "its attention is bidirectional within images"

PARTS: dict[str, FamilyParts] = {
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_5": replace(
        _QWEN, packing_obstacle="its linear attention carries a state from token to token"
    ),
    "internvl": _LLAVA,
    "llava": _LLAVA,
    "llava_next": FamilyParts(
        projector=("model.multi_modal_projector", "model.image_newline"),
        vision=("model.vision_tower",),
    ),
    "llava_onevision": FamilyParts(
        projector=("model.multi_modal_projector", "model.image_newline"),
        vision=("model.vision_tower",),
    ),
    "gemma3": replace(_LLAVA, packing_obstacle=_BIDIRECTIONAL),
    "gemma4": FamilyParts(
        projector=("model.embed_vision", "model.embed_audio"),
        vision=("model.vision_tower", "model.audio_tower"),
        packing_obstacle=_BIDIRECTIONAL,
    ),
    "paligemma": FamilyParts(
        projector=("model.multi_modal_projector",),
        vision=("model.vision_tower",),
        answer_token_type=1,
        plain_prompt="<image>{text}",
        packing_obstacle=_BIDIRECTIONAL,
    ),
    "florence2": replace(
        _LLAVA,
        plain_prompt="{text}",
        answer_prefix="<s>",
        packing_obstacle="an encoder reads its prompts and a decoder writes its answers",
    ),
}


def get_family_parts(model_type: str) -> FamilyParts:
    """Return the row of a model type.

    Raises:
        InvalidFlow: the trainer does not support that family.
    """
    if model_type not in PARTS:
        raise InvalidFlow(
            f"model type {model_type!r} cannot be trained yet; supported: {', '.join(PARTS)}"
        )
    return PARTS[model_type]


def find_part(name: str, parts: FamilyParts) -> str:
    """Return the part that a parameter belongs to; unlisted names belong to the language model."""
    for part, prefixes in (("projector", parts.projector), ("vision", parts.vision)):
        if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
            return part
    return "language"
