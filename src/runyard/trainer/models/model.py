"""The model: built new (tiny) or loaded from a checked folder, then partly frozen or adapted as the
flow says.

Everything uses transformers' generic classes, so families differ only by ``families.PARTS``.
Weights of a full training are float32 whatever the precision, because small updates vanish in
bfloat16, unless the flow has them rounded at random (``steps/rounding.py``). Base weights under an
adapter never change, so they may have the precision of the forward pass.
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runyard.flows.blocks import Architecture, Part, Quantization
from runyard.flows.families import FAMILIES, find_family
from runyard.model_folders import ModelFolders
from runyard.rundir import CheckpointDir
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.templates import BuiltInTemplate, Renderer, TemplateProcess
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.families import FamilyParts, find_part, get_family_parts
from runyard.trainer.models.adapters import PEFT_PREFIX, merge_adapter, silence_bitsandbytes
from runyard.trainer.models.model_folder import check_inside, check_model_folder
from runyard.trainer.models.tiny import SHAPES, make_model, make_processor
from runyard.trainer.models.video import install_video_stand_in

IMAGE_BACKEND = "pil"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LoadedModel:
    """A model with its processor. ``base`` is the folder of the base weights under an adapter, None
    without one.

    ``renderer`` formats conversations; None leaves its creation to the encoder.
    """

    module: Any
    processor: Any
    model_type: str
    parts: FamilyParts
    base: Path | None = None
    renderer: Renderer | None = None

    @property
    def is_adapted(self) -> bool:
        return self.base is not None

    @property
    def image_token_id(self) -> int | None:
        config = self.module.config
        return getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)

    @property
    def decoder_start_id(self) -> int | None:
        """The first token of answers in encoder-decoder models; None for decoder-only models."""
        config = self.module.config
        return (
            config.get_text_config(decoder=True).decoder_start_token_id
            if config.is_encoder_decoder
            else None
        )

    @property
    def parameter_count(self) -> int:
        """The number of weights; a byte of 4-bit weights counts as two."""
        return sum(_get_shape(parameter).numel() for parameter in self.module.parameters())

    def trainable_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the parameters that are trained, with their names in the family's classes."""
        return [
            (n.removeprefix(PEFT_PREFIX), p)
            for n, p in self.module.named_parameters()
            if p.requires_grad
        ]


def build_tiny(
    *, task: str, phrases: Sequence[str], samples: Sequence[Sample] | None, seed: int
) -> LoadedModel:
    """Return the built-in model with fresh weights. Pixels are normalized with mean and deviation
    of ``samples``.

    Without samples they are normalized as photographs: the mean of a growing dataset would
    invalidate its encodings.
    """
    import numpy as np

    shape = SHAPES.get(task, SHAPES["vqa"])
    mean, deviation = 0.5, 0.5
    if samples is not None:
        pixels = (
            np.concatenate(
                [np.asarray(sample.image, np.float32).ravel() for sample in samples[:2000]]
            )
            / 255
        )
        mean, deviation = float(pixels.mean()), max(0.01, float(pixels.std()))
    processor = make_processor(shape, list(phrases), pixel_mean=mean, pixel_std=deviation)
    torch.manual_seed(seed)
    renderer = BuiltInTemplate(processor)
    return LoadedModel(
        make_model(shape, processor),
        processor,
        "idefics3",
        get_family_parts("idefics3"),
        renderer=renderer,
    )


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    quantization: Quantization | None = None,
    folders: ModelFolders | None = None,
    device: torch.device | None = None,
    check_type: Callable[[str], None] = lambda model_type: None,
) -> LoadedModel:
    """Return a model from a local folder or a checkpoint's tree, after the folder has been checked.

    With ``folders`` everything that is read must be inside them, links included, before and after
    reading. With ``quantization`` the matrices of its parts are stored in 4 bits and used in
    ``dtype``, everything else of these parts becomes float32, and only an adapter can be trained.
    Weights are read straight to ``device``, without a copy of all of them in host memory.
    ``check_type`` may refuse the model type before anything is loaded.

    Raises:
        InvalidFlow: the folder is not allowed, or lacks weights; bitsandbytes is missing; the
            model does not support ``attention``.
    """
    from transformers import AutoModelForImageTextToText

    if folders is not None:
        check_inside(folder, folders)
    root, folder = folder, CheckpointDir(folder).model
    model_type = check_model_folder(folder)
    check_type(model_type)
    parts = get_family_parts(model_type)
    processor = load_processor(folder)
    # Forked before loading the weights, which it would keep in memory a second time.
    renderer = TemplateProcess(processor)
    renderer.check_tokenizer()
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if device is not None and device.type != "cpu":
        options["device_map"] = {"": device}
    if quantization is not None:
        options["quantization_config"] = _make_4bit_config(quantization, parts, dtype)
    try:
        module, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (ImportError, ValueError) as error:  # of the classes, before the weights are read
        if attention is None or attention.split("_")[0] not in str(error).casefold():
            raise
        raise InvalidFlow(
            f"model type {model_type!r} does not support attention {attention!r}: "
            f"{str(error).splitlines()[0]}; try: compute.attention 'auto'"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InvalidFlow(
            f"the weights in {folder.name} lack {len(missing)} tensors, such as {missing[0]}"
        )
    if quantization is not None:
        _prepare_quantized(module, parts, quantization.parts)
    if CheckpointDir(root).has_adapter and root != folder:
        module = merge_adapter(module, CheckpointDir(root).model_adapter)
        module.requires_grad_(True)  # peft froze the layers it adapted
    if folders is not None:
        check_inside(root, folders)
    return LoadedModel(module, processor, model_type, parts, renderer=renderer)


def _prepare_quantized(module: Any, parts: FamilyParts, quantized: Sequence[Part]) -> None:
    """Freeze the model, and store in float32 what is not in 4 bits of the quantized parts."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.is_floating_point() and find_part(name, parts) in quantized:
            parameter.data = parameter.data.float()
    for layer in module.modules():
        # On CPUs with bfloat16, bitsandbytes would repack the weights when first used outside of
        # training, with scales rounded to bfloat16: an evaluation would change the model.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def read_quantization(run: dict[str, Any]) -> Quantization | None:
    """Return how the base weights of a checkpoint's ``run.json`` were quantized.

    Checkpoints of older versions do not name parts: all of them were.
    """
    flow = run.get("spec", {}).get("flow", {})
    blocks = {block["block"]: block["settings"] for block in flow.get("blocks", [])}
    saved = blocks.get("vi-model", {}).get("quantization") or {}
    if not saved.get("enabled"):
        return None
    return Quantization(
        enabled=True,
        type=saved.get("type", "nf4"),
        parts=saved.get("parts") or ["vision", "projector", "language"],
    )


def _find_unquantized(parts: FamilyParts, quantized: Sequence[Part]) -> list[str] | None:
    """Return patterns of modules that are not quantized, anchored at the beginning of their names.

    None leaves them to transformers, which leaves out the output layer.
    """
    if len(set(quantized)) == 3:
        return None
    patterns = ["lm_head"]
    if "projector" not in quantized:
        patterns += map(re.escape, parts.projector)
    if "language" not in quantized:
        patterns += map(re.escape, parts.language)
    if "vision" not in quantized:
        for prefix in parts.vision:
            nested = [
                re.escape(name.removeprefix(prefix))
                for name in parts.projector
                if name.startswith(f"{prefix}.")
            ]
            # The projector, which some families nest inside the vision encoder, has its own line.
            patterns.append(
                re.escape(prefix) + (rf"(?!({'|'.join(nested)})(\.|$))" if nested else "")
            )
    return patterns


def _make_4bit_config(quantization: Quantization, parts: FamilyParts, dtype: torch.dtype) -> Any:
    """Return the quantization that the published client uses too: QLoRA with double quantization
    (Dettmers et al. 2023). The client quantizes all parts.

    Raises:
        InvalidFlow: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    silence_bitsandbytes()
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidFlow(
            f"quantization.enabled true (type {quantization.type!r}) needs the package "
            "bitsandbytes, which is not installed; try: install runyard[quantization], or set "
            "quantization.enabled false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        llm_int8_skip_modules=_find_unquantized(parts, quantization.parts),
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def dequantize(parameter: torch.Tensor) -> torch.Tensor:
    """Return the weights of a parameter, dequantized if it is stored in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    weights: torch.Tensor = dequantize_4bit(parameter.detach(), state)
    return weights


def _get_shape(parameter: torch.Tensor) -> torch.Size:
    state = getattr(parameter, "quant_state", None)
    return parameter.shape if state is None else torch.Size(state.shape)


def load_processor(folder: Path) -> Any:
    """Return the folder's processor with the PIL image backend."""
    from transformers import AutoProcessor

    install_video_stand_in()
    return AutoProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, backend=IMAGE_BACKEND
    )


def check_family(architecture: Architecture, model_type: str) -> None:
    """Check that the weights are of the family that the flow names.

    ``auto`` accepts any. Raises InvalidFlow.
    """
    family = FAMILIES.get(architecture.name)
    if family is not None and family.model_type != model_type:
        found = find_family(model_type)
        raise InvalidFlow(
            f"architecture.name is {architecture.name!r}, but the weights are of family "
            f"{found.key if found else model_type!r}; try: that name, or 'auto'"
        )


def freeze_parts(model: LoadedModel, frozen: Sequence[str]) -> None:
    """Disable training of these parts."""
    for name, parameter in model.module.named_parameters():
        if find_part(name, model.parts) in frozen:
            parameter.requires_grad_(False)


def get_pad_id(tokenizer: Any) -> int:
    """Return the padding token, or the end token where there is none: padding is masked."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found or 0)
