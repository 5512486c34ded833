"""The supported model families: their ``model_type``, and the hub ids of their usual weights.

A model folder must never choose code (docs/security.md): a folder whose ``model_type`` is not in
this table is rejected before any library opens it. The keys are the values of ``architecture.name``
in a flow. If the published client has a loader of that name, it is the same word; ``loader`` is the
word that a model's own ``run.json`` must use so that the client loads it. No torch here: the server
reads this table too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

AUTO = "auto"
# The published client has loaders only for some families. All but two of them load whatever
# transformers' image-text classes load, so a family without its own loader uses this one.
STAND_IN_LOADER = "qwen25vl"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: ``sizes`` maps a size's name to the hub id of its usual weights.

    ``has_native_form``: it was pretrained to write boxes in a form of its own.
    """

    key: str
    model_type: str
    default_size: str
    sizes: Mapping[str, str] = field(default_factory=dict)
    has_loader: bool = False
    has_native_form: bool = False

    @property
    def loader(self) -> str:
        """The name of this family's loader in the published client."""
        return self.key if self.has_loader else STAND_IN_LOADER


_ALL = (
    Family(
        key="idefics3",
        model_type="idefics3",
        default_size="tiny",
        sizes={"8B": "HuggingFaceM4/Idefics3-8B-Llama3"},
    ),
    Family(
        key="smolvlm",
        model_type="smolvlm",
        default_size="500M",
        sizes={
            "256M": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
            "500M": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            "2.2B": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        },
    ),
    Family(
        key="qwen25vl",
        model_type="qwen2_5_vl",
        default_size="3B",
        sizes={size: f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")},
        has_loader=True,
        has_native_form=True,
    ),
    Family(
        key="qwen3vl",
        model_type="qwen3_vl",
        default_size="2B",
        sizes={size: f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B")},
        has_loader=True,
        has_native_form=True,
    ),
    Family(
        key="qwen35",
        model_type="qwen3_5",
        default_size="2B",
        sizes={size: f"Qwen/Qwen3.5-{size}" for size in ("0.8B", "2B", "4B", "9B", "27B")},
        has_loader=True,
    ),
    Family(
        key="internvl35",
        model_type="internvl",
        default_size="2B",
        sizes={
            size: f"OpenGVLab/InternVL3_5-{size}-HF"
            for size in ("1B", "2B", "4B", "8B", "14B", "38B")
        },
        has_loader=True,
    ),
    Family(
        key="llava",
        model_type="llava",
        default_size="7B",
        sizes={"7B": "llava-hf/llava-1.5-7b-hf", "13B": "llava-hf/llava-1.5-13b-hf"},
    ),
    Family(
        key="llavanext",
        model_type="llava_next",
        default_size="7B",
        sizes={
            "7B": "llava-hf/llava-v1.6-mistral-7b-hf",
            "13B": "llava-hf/llava-v1.6-vicuna-13b-hf",
        },
        has_loader=True,
    ),
    Family(
        key="llavaonevision",
        model_type="llava_onevision",
        default_size="0.5B",
        sizes={
            "0.5B": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "7B": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        },
    ),
    Family(
        key="gemma3",
        model_type="gemma3",
        default_size="4B",
        sizes={
            "4B": "google/gemma-3-4b-it",
            "12B": "google/gemma-3-12b-it",
            "27B": "google/gemma-3-27b-it",
        },
    ),
    Family(
        key="gemma4",
        model_type="gemma4",
        default_size="E2B",
        sizes={
            "E2B": "google/gemma-4-E2B-it",
            "E4B": "google/gemma-4-E4B-it",
            "31B": "google/gemma-4-31B-it",
        },
        has_loader=True,
    ),
    Family(
        key="paligemma2",
        model_type="paligemma",
        default_size="3B",
        sizes={size.upper(): f"google/paligemma2-{size}-pt-224" for size in ("3b", "10b", "28b")},
        has_native_form=True,
    ),
    Family(
        key="florence2",
        model_type="florence2",
        default_size="base",
        sizes={
            "base": "florence-community/Florence-2-base",
            "large": "florence-community/Florence-2-large",
        },
        has_native_form=True,
    ),
    Family(
        key="cosmosreason1",
        model_type="qwen2_5_vl",
        default_size="7B",
        sizes={"7B": "nvidia/Cosmos-Reason1-7B"},
        has_loader=True,
        has_native_form=True,
    ),
    Family(
        key="cosmosreason2",
        model_type="qwen3_vl",
        default_size="2B",
        sizes={"2B": "nvidia/Cosmos-Reason2-2B", "8B": "nvidia/Cosmos-Reason2-8B"},
        has_loader=True,
        has_native_form=True,
    ),
)

FAMILIES: Mapping[str, Family] = {family.key: family for family in _ALL}


def find_family(model_type: str) -> Family | None:
    """Return the first family with this ``model_type``, or None if it is not supported."""
    return next((family for family in _ALL if family.model_type == model_type), None)
