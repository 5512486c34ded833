"""What the trainer has to know of a model family beyond ``runyard.flows.families``: where its parts lie.

Data, not forks: each row says which modules are the vision encoder, the projector and the language model in
transformers' classes, and the two or three quirks that a batch must respect. A family without a row here is refused.
"""

from dataclasses import dataclass, replace

from runyard.trainer.errors import InvalidFlow


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Module-name prefixes of the three parts, tried in order: the projector of some lies inside the vision encoder.

    ``vision`` holds all encoders, of sound too. ``answer_token_type`` is what ``token_type_ids`` hold on the answer's
    tokens. ``plain_prompt`` is the prompt for processors without a chat template; its ``{text}`` is the system text and
    the question. ``answer_begin`` stands before every answer. ``unpacked`` says why samples of this family cannot share
    a row.
    """

    projector: tuple[str, ...]
    vision: tuple[str, ...]
    language: tuple[str, ...] = ("model.language_model", "language_model", "lm_head")
    answer_token_type: int = 0
    plain_prompt: str | None = None
    answer_begin: str = ""
    unpacked: str | None = None


_LLAVA = Parts(projector=("model.multi_modal_projector",), vision=("model.vision_tower",))
_IDEFICS = Parts(
    projector=("model.connector",), vision=("model.vision_model",), language=("model.text_model", "lm_head")
)
_QWEN = Parts(projector=("model.visual.merger", "model.visual.deepstack_merger_list"), vision=("model.visual",))
_BOTH_WAYS = "its attention looks both ways within pictures"

PARTS: dict[str, Parts] = {
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_5": replace(_QWEN, unpacked="its linear attention carries a state from token to token"),
    "internvl": _LLAVA,
    "llava": _LLAVA,
    "llava_next": Parts(
        projector=("model.multi_modal_projector", "model.image_newline"), vision=("model.vision_tower",)
    ),
    "llava_onevision": Parts(
        projector=("model.multi_modal_projector", "model.image_newline"), vision=("model.vision_tower",)
    ),
    "gemma3": replace(_LLAVA, unpacked=_BOTH_WAYS),
    "gemma4": Parts(
        projector=("model.embed_vision", "model.embed_audio"),
        vision=("model.vision_tower", "model.audio_tower"),
        unpacked=_BOTH_WAYS,
    ),
    "paligemma": Parts(
        projector=("model.multi_modal_projector",),
        vision=("model.vision_tower",),
        answer_token_type=1,
        plain_prompt="<image>{text}",
        unpacked=_BOTH_WAYS,
    ),
    "florence2": replace(
        _LLAVA,
        plain_prompt="{text}",
        answer_begin="<s>",
        unpacked="an encoder reads its prompts and a decoder writes its answers",
    ),
}


def parts_of(model_type: str) -> Parts:
    """The row of a model type.

    Raises:
        InvalidFlow: the trainer cannot train that family yet.
    """
    if model_type not in PARTS:
        raise InvalidFlow(f"model type {model_type!r} cannot be trained yet; those that can are {', '.join(PARTS)}")
    return PARTS[model_type]


def part_of(name: str, parts: Parts) -> str:
    """Which part a parameter belongs to; what is named nowhere counts to the language model."""
    for part, prefixes in (("projector", parts.projector), ("vision", parts.vision)):
        if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
            return part
    return "language"
