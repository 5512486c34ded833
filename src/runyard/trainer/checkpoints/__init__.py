"""Checkpoints: what they contain, writing them during training, and resuming from them."""
