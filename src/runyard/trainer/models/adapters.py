"""Low-rank adapters (LoRA, Hu et al. 2022): added to a base model, continued, attached and merged.

An adapter's folder is what peft saves. Like a model folder it is untrusted: it is checked before it
is opened, and its settings choose nothing in a training. They are compared with the flow's.
"""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runyard.flows.blocks import Lora, Training
from runyard.model_folders import ADAPTER_CONFIG
from runyard.rundir import MODEL_FULL, read_json
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.families import FamilyParts, find_part
from runyard.trainer.models.model_folder import ADAPTER_WEIGHTS, check_adapter_folder

if TYPE_CHECKING:
    from runyard.trainer.models.model import LoadedModel

PEFT_PREFIX = "base_model.model."
SAVED_MODULE = ".modules_to_save."  # in names of parts that an adapter replaces as a whole


def add_adapter(
    model: "LoadedModel", training: Training, *, base: Path, adapter: Path | None = None
) -> "LoadedModel":
    """Return the model with a low-rank adapter, optionally with weights from ``adapter``.

    Only the adapter is trained, and the projector with ``lora.trainProjector``: peft then wraps it,
    and saves its weights with the adapter. ``training.freeze`` excludes parts from its targets;
    ``auto`` targets the linear layers of the language model. ``lora.useDora`` adds a magnitude per
    column (DoRA, Liu et al. 2024), ``lora.useRslora`` scales by alpha / sqrt(rank) (Kalajdzievski
    2023).
    """
    silence_bitsandbytes()  # peft imports it where it is installed
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=training.lora.rank,
        lora_alpha=training.lora.alpha,
        lora_dropout=training.lora.dropout,
        use_dora=training.lora.use_dora,
        use_rslora=training.lora.use_rslora,
        target_modules=_find_lora_targets(model, training.lora, training.freeze),
        modules_to_save=_list_projectors(model) if training.lora.train_projector else None,
        bias="none",
    )
    with _ignore_peft_warning():
        module = get_peft_model(model.module, config)
    # Relative, as in a checkpoint, not this machine's path.
    config.base_model_name_or_path = MODEL_FULL
    for _, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if adapter is not None:
        _load_adapter_weights(module, adapter, model.parts)
    return replace(model, module=module, base=base)


def list_adapter_tensors(module: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that an adapter's files hold, by the names in the module.

    These are all trained parameters, and the buffers of the parts that are trained with it.
    """
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return trained | {name: item for name, item in module.named_buffers() if SAVED_MODULE in name}


def check_adapter_settings(adapter: Path, lora: Lora, weights: str) -> None:
    """Check that the flow trains an adapter of the same kind, so that it can be trained further.

    Raises:
        InvalidFlow: naming everything that differs.
    """
    check_adapter_folder(adapter)
    config = read_json(adapter / ADAPTER_CONFIG) or {}
    for name, usual in (("bias", "none"), ("rank_pattern", {}), ("alpha_pattern", {})):
        if (config.get(name) or usual) != usual:
            raise InvalidFlow(
                f"adapter {weights!r} has {name} {config[name]!r}, which cannot be trained further "
                f"(supported: {usual!r}); try: training.mode 'full', which starts from the merged "
                "weights"
            )
    has_projector = bool(config.get("modules_to_save"))
    different = [
        f"training.lora.{name} is {requested!r} in the flow and {saved!r} in the adapter"
        for name, requested, saved in (
            ("rank", lora.rank, config.get("r")),
            ("alpha", lora.alpha, config.get("lora_alpha")),
            ("useDora", lora.use_dora, config.get("use_dora") or False),
            ("useRslora", lora.use_rslora, config.get("use_rslora") or False),
            ("trainProjector", lora.train_projector, has_projector or lora.train_projector),
        )
        if requested != saved
    ]
    if different:
        raise InvalidFlow(
            f"the flow does not fit adapter {weights!r}, which is trained further: "
            f"{'; '.join(different)}; try: the adapter's values, or runyard models export, and a "
            "new adapter on the merged weights"
        )


def _load_adapter_weights(module: Any, adapter: Path, parts: FamilyParts) -> None:
    """Load an adapter's weights into the module's own.

    A projector that this adapter does not have stays that of the base model.

    Raises:
        InvalidFlow: they are of other layers.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    found = load_file(adapter / ADAPTER_WEIGHTS)
    expected = get_peft_model_state_dict(
        module, state_dict=list_adapter_tensors(module), save_embedding_layers=False
    )
    absent = [
        name
        for name in expected.keys() - found.keys()
        if find_part(name.removeprefix(PEFT_PREFIX), parts) != "projector" or ".lora_" in name
    ]
    unknown = [name for name in found if name not in expected]
    others = [name for name in found.keys() & expected if found[name].shape != expected[name].shape]
    for names, problem in (
        (unknown, "has {} tensors of layers that the flow does not adapt, such as {}"),
        (absent, "lacks {} tensors of layers that the flow adapts, such as {}"),
        (others, "has {} tensors of other shapes, such as {}"),
    ):
        if names:
            layers = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in found})
            raise InvalidFlow(
                f"the adapter {problem.format(len(names), min(names))}; try: training.lora.targets "
                f"{layers}, and the base model that it was trained on"
            )
    set_peft_model_state_dict(module, expected | found)


def attach_adapter(module: Any, adapter: Path) -> Any:
    """Return the model with an adapter on it, after the adapter's folder has been checked.

    Raises:
        InvalidFlow: the folder is not allowed.
    """
    silence_bitsandbytes()
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    check_adapter_folder(adapter)
    with _ignore_peft_warning():
        found = PeftModel.from_pretrained(module, adapter, local_files_only=True)
    replaced = [(n, part) for n, part in found.named_parameters() if SAVED_MODULE in n]
    if replaced:  # peft rounds them to the dtype of the part that they replace
        for _, parameter in replaced:
            parameter.data = parameter.data.float()
        set_peft_model_state_dict(found, load_file(adapter / ADAPTER_WEIGHTS))
    return found


def merge_adapter(module: Any, adapter: Path) -> Any:
    """Return the model with an adapter's weights merged into its own.

    Raises InvalidFlow, see ``attach_adapter``.
    """
    return attach_adapter(module, adapter).merge_and_unload()


@contextlib.contextmanager
def _ignore_peft_warning() -> Iterator[None]:
    """Suppress the warning that peft uses an old attribute name of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _find_lora_targets(model: "LoadedModel", lora: Lora, frozen: Sequence[str]) -> list[str] | str:
    linear = [n for n, m in model.module.named_modules() if isinstance(m, torch.nn.Linear)]
    excluded = {*frozen, "projector"} if lora.train_projector else frozen
    free = [name for name in linear if find_part(name, model.parts) not in excluded]
    if lora.targets == "auto":
        found = [n for n in free if find_part(n, model.parts) == "language" and "lm_head" not in n]
    else:
        found = [
            n
            for n in free
            if any(re.search(rf"(^|\.){re.escape(t)}($|\.)", n) for t in lora.targets)
        ]
    if not found:
        raise InvalidFlow(
            f"lora.targets {lora.targets!r} matches no linear layer that is not frozen"
        )
    return found


def _list_projectors(model: "LoadedModel") -> list[str]:
    """Return the modules of the projector, those in a list one by one.

    Single parameters that some families have next to it are in no module and stay as they are.
    """
    found: list[str] = []
    for name, module in model.module.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        is_container = isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict)
        if find_part(name, model.parts) == "projector" and not is_inside and not is_container:
            found.append(name)
    return found


def silence_bitsandbytes() -> None:
    """Suppress its warning on import that an optional package with faster code is missing."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
