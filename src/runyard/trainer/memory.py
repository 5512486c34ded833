"""What memory has to do with training: telling want of it from other errors."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and Python have classes for it, the CPU allocator only words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
