"""Checkpoints: read from everything that `--checkpoint` takes, written whole or not at all, and exported."""

from alip.checkpoint.load import fingerprint, load_model, load_weights
from alip.checkpoint.save import atomic_save
from alip.model.weights import find_checkpoint, read_weights

__all__ = ["atomic_save", "find_checkpoint", "fingerprint", "load_model", "load_weights", "read_weights"]
