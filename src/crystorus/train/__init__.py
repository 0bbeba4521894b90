"""Training: from crystals and a configuration to a checkpoint (Algorithm 1, Table 1)."""

from crystorus.train.errors import TrainingError
from crystorus.train.run import train

__all__ = ["TrainingError", "train"]
