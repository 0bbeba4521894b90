"""Options of `crystorus train-scorer`, and what a configuration of a training must obey."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from crystorus.config import Config
from crystorus.errors import RequestError, TrainingError

_LAYERS = ("before_skip", "after_skip", "concat", "atom_layers")  # residual: none is a choice
_AT_LEAST_ONE = ("epochs", "validate_every", "log_every", "devices", "nodes")
_FRACTIONS = ("decay", "high_noise_fraction", "ema_decay", "adam_beta2")


@dataclass(frozen=True)
class ScorerOptions:
    """What to train a scorer from."""

    out: Path = Path("runs/scorer")
    """Folder of the run; an interrupted one goes on there."""
    checkpoint: Path | None = None
    """Checkpoint folder whose crystals are scored; the shipped one where None."""
    compositions: int = 8000
    """Known crystals to learn from, at most."""
    candidates: int = 8
    """Crystals made of each composition."""
    epochs: int = 4
    """Passes over them."""
    seed: int = 0
    """Decides which crystals are taken, their noise, and the order of learning."""
    workers: int = 1
    """Processes that make crystals."""

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            RequestError: With the value and its limits.
        """
        limits = {
            "compositions": (1, 10_000_000),
            "candidates": (2, 100),
            "epochs": (1, 1000),
            "workers": (1, 1000),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise RequestError(f"--{name} is {value}: give {least} to {most}")


def check_settings(config: Config) -> None:
    """Check what a run is to be, before its folder is made.

    Raises:
        TrainingError: With the setting, its value, the limit and the remedy.
    """
    s = config.training
    for item in dataclasses.fields(s):
        value = getattr(s, item.name)
        if isinstance(value, str):
            continue
        if item.name in _FRACTIONS:
            if not 0 <= value <= 1:
                raise TrainingError(f"training.{item.name} = {value}: give a number from 0 to 1")
        elif item.name == "learning_rate":
            if not 0 < value < math.inf:
                raise TrainingError(f"training.learning_rate = {value}: give a positive number")
        elif item.name != "seed":
            _least(f"training.{item.name}", value, 1 if item.name in _AT_LEAST_ONE else 0)
    if s.precision == "bf16" and config.preset == "paper":
        raise TrainingError(
            'training.precision = "bf16" is for the default preset: set training.precision = "fp32"'
        )
    if s.batch_size == s.batch_pairs == 0:
        raise TrainingError(
            "training.batch_size = 0 and batch_pairs = 0: one must be positive; set "
            "training.batch_size = 128"
        )
    _least("diffusion.steps", config.diffusion.steps, 1)
    _least("sampling.steps", config.sampling.steps, 1)
    if config.sampling.steps > config.diffusion.steps:
        raise TrainingError(
            f"sampling.steps = {config.sampling.steps} is more than diffusion.steps = "
            f"{config.diffusion.steps}: lower sampling.steps"
        )
    for item in dataclasses.fields(config.network):
        if item.type is int:
            least = 0 if item.name in _LAYERS else 1
            _least(f"network.{item.name}", getattr(config.network, item.name), least)


def _least(name: str, value: float, limit: int) -> None:
    if not limit <= value < math.inf:
        raise TrainingError(f"{name} = {value}: give {limit} or more")
