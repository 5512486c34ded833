"""A substitute for the video part of processors, so that families which need torchvision only for
video work without it.

The processors of Qwen-VL, SmolVLM, InternVL, LLaVA-OneVision and Gemma 4 require a video processor,
and every video processor in transformers imports torchvision; torchvision from the registry does
not fit the CPU build of torch. Images never use that part. The substitute keeps the settings of the
part it replaces unchanged and writes them back when saved, so a checkpoint is the same for users
who have torchvision.

SmolVLM's processor also requires the package num2words, with which it writes how many frames a
video has. Its substitute raises when a video is processed.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

# Attributes of the video part that processors read even for images only.
_DEFAULTS = {
    "merge_size": 2,
    "temporal_patch_size": 2,
    "patch_size": 14,
    "num_frames": None,
    "fps": None,
}
_FILES = ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json")


def install_video_stand_in() -> bool:
    """Make transformers use the substitute for video processors, unless torchvision is installed.

    Call before a processor is created or loaded. Returns whether the substitute is in place.
    """
    from transformers.models.smolvlm import processing_smolvlm

    if processing_smolvlm.num2words is None:
        processing_smolvlm.num2words = _refuse_to_count_frames
    if importlib.util.find_spec("torchvision") is not None:
        return False
    from transformers import processing_utils
    from transformers.video_processing_utils import VideoProcessorMixin

    names = processing_utils._LazyAutoProcessorMapping._MAPPING_NAMES
    names["video_processor"] = (__name__, "StandInVideoProcessor")
    # transformers checks a processor's parts against the base class in a lazy module, where it is a
    # placeholder.
    processing_utils.transformers_module.VideoProcessorMixin = VideoProcessorMixin
    return True


def _refuse_to_count_frames(*_: Any, **__: Any) -> str:
    raise NotImplementedError("videos need num2words, which is not installed; try: images")


def _make_stand_in_class() -> type:
    from transformers.video_processing_utils import VideoProcessorMixin

    class StandInVideoProcessor(VideoProcessorMixin):  # type: ignore[misc]
        """Keeps the settings and processes nothing."""

        model_input_names = ("pixel_values_videos",)

        def __init__(self, **settings: Any):
            self.settings = settings
            for name, value in (_DEFAULTS | settings).items():
                setattr(self, name, value)

        def __call__(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError(
                "videos need torchvision, which is not installed; try: images"
            )

        preprocess = __call__

        def to_dict(self) -> dict[str, Any]:
            return dict(self.settings)

        @classmethod
        def from_pretrained(cls, folder: Any, *_: Any, **__: Any) -> "StandInVideoProcessor":
            return cls(**_read_saved_settings(Path(folder)))

        def save_pretrained(self, *_: Any, **__: Any) -> list[str]:
            return []

    return StandInVideoProcessor


def _read_saved_settings(folder: Path) -> dict[str, Any]:
    """Return a model folder's video settings, from whichever file has them."""
    for name in _FILES:
        try:
            saved = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        if not isinstance(saved, dict):
            continue
        if name == "video_preprocessor_config.json":
            return saved
        if isinstance(saved.get("video_processor"), dict):
            return dict(saved["video_processor"])
    return {}


def __getattr__(name: str) -> Any:
    # The class derives from one of transformers, which is imported only on first use.
    if name == "StandInVideoProcessor":
        globals()[name] = _make_stand_in_class()
        return globals()[name]
    raise AttributeError(name)
