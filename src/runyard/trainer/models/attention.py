"""Flash attention (Dao 2023): whether this machine and the plan's precision permit it.

Checked before data and model are read: otherwise a missing package ends the run minutes later, with
an error of the library.
"""

import importlib

from runyard.trainer.errors import InvalidFlow

FLASH = "flash_attention_2"
MIN_CAPABILITY = (8, 0)  # Ampere
FIX = "try: compute.attention 'auto'"


def check_attention(attention: str, *, precision: str, device: str, device_name: str) -> None:
    """Check that the attention implementation works here.

    Raises:
        InvalidFlow: flash attention needs another device, precision or package.
    """
    if attention != FLASH:
        return
    if device != "cuda":
        raise InvalidFlow(f"attention {FLASH!r} needs CUDA; {FIX}")
    if precision == "float32":
        raise InvalidFlow(
            f"attention {FLASH!r} computes in 16 bits, but the precision is float32; {FIX}, or "
            "precisionType 'bfloat16'"
        )
    capability = get_capability()
    if capability is not None and capability < MIN_CAPABILITY:
        found = ".".join(map(str, capability))
        raise InvalidFlow(
            f"attention {FLASH!r} needs compute capability 8.0, and {device_name} has "
            f"{found}; {FIX}"
        )
    check_flash_package()


def get_capability() -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA card; None for cards of other vendors."""
    import torch

    if torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability()
    return int(major), int(minor)


def check_flash_package() -> None:
    """Check that the package of flash attention is installed and fits the installed torch.

    Raises:
        InvalidFlow: it is missing, too old or built for another torch.
    """
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise InvalidFlow(
            f"attention {FLASH!r} needs the package flash-attn 2.3.3 or later, which is not "
            f"installed; {FIX}, or install flash-attn"
        )
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError) as error:
        raise InvalidFlow(
            f"the installed package flash-attn does not fit the installed torch ({error}); "
            f"{FIX}, or install flash-attn again"
        ) from error
