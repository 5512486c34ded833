"""A stand-in for the video part of processors, so that families which want torchvision only for video work without it.

The processors of Qwen-VL, SmolVLM, InternVL, LLaVA-OneVision and Gemma 4 refuse to be made without a video processor,
and every video processor in transformers imports torchvision; torchvision from the registry does not fit the CPU build
of torch. Pictures never touch that part. The stand-in keeps the settings of the part it replaces word for word and
writes them back when saved, so a checkpoint is the same for people who have torchvision.

SmolVLM's processor moreover refuses to be made without the package num2words, with which it writes how many frames a
video has. That too has a stand-in, which refuses when a video comes.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

# What processors ask their video part for even where there are only pictures.
_LOOKED_AT = {"merge_size": 2, "temporal_patch_size": 2, "patch_size": 14, "num_frames": None, "fps": None}
_FILES = ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json")


def install_video_stand_in() -> bool:
    """Make transformers take the stand-in wherever it would look for a video processor; no effect with torchvision.

    Call before a processor is made or loaded. Returns whether the stand-in is in place.
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
    # The check of a processor's parts looks the base class up in a copy of the package, where it is a placeholder.
    processing_utils.transformers_module.VideoProcessorMixin = VideoProcessorMixin
    return True


def _refuse_to_count_frames(*_: Any, **__: Any) -> str:
    raise NotImplementedError("videos need num2words, which is not installed here; use pictures")


def _stand_in_class() -> type:
    from transformers.video_processing_utils import VideoProcessorMixin

    class StandInVideoProcessor(VideoProcessorMixin):  # type: ignore[misc]
        """Keeps settings, processes nothing."""

        model_input_names = ("pixel_values_videos",)

        def __init__(self, **settings: Any):
            self.settings = settings
            for name, value in (_LOOKED_AT | settings).items():
                setattr(self, name, value)

        def __call__(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError("videos need torchvision, which is not installed here; use pictures")

        preprocess = __call__

        def to_dict(self) -> dict[str, Any]:
            return dict(self.settings)

        @classmethod
        def from_pretrained(cls, folder: Any, *_: Any, **__: Any) -> "StandInVideoProcessor":
            return cls(**_saved_settings(Path(folder)))

        def save_pretrained(self, *_: Any, **__: Any) -> list[str]:
            return []

    return StandInVideoProcessor


def _saved_settings(folder: Path) -> dict[str, Any]:
    """The settings of the video part in a model folder, wherever its age keeps them."""
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
    # The class derives from one of transformers', which is not to be imported before it is wanted.
    if name == "StandInVideoProcessor":
        globals()[name] = _stand_in_class()
        return globals()[name]
    raise AttributeError(name)
