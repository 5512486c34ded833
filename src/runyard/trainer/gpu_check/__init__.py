"""A check of this machine's accelerator with the trainer's own code, for ``scripts/gpu-check``."""
