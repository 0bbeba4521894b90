"""Options of `crystorus train-scorer`, and what a configuration of a training must obey."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crystorus.errors import RequestError, TrainingError

if TYPE_CHECKING:
    from crystorus.config import Config  # imports torch

_FRACTIONS = ("decay", "high_noise_fraction", "symmetric_fraction", "ema_decay", "adam_beta2")
MOST, MOST_PROCESSES = 2**63 - 1, 4096
"""Whole numbers that torch can hold; devices of a node, and nodes."""
_AT_LEAST_ONE = ("epochs", "validate_every", "log_every", "devices", "nodes")
_MAY_BE_NONE = ("before_skip", "after_skip", "concat", "atom_layers")  # residual layers


@dataclass(frozen=True, kw_only=True)
class ScorerOptions:
    """What to train a scorer from.

    Raises:
        RequestError: If a value is out of its limits.
    """

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
        limits = {"compositions": 10_000_000, "candidates": 100, "epochs": 1000, "workers": 1000}
        for name, most in (limits | {"seed": MOST}).items():
            value, least = getattr(self, name), {"candidates": 2, "seed": 0}.get(name, 1)
            if not least <= value <= most:
                raise RequestError(f"--{name} is {value}: give {least} to {most}")


def check_settings(config: "Config") -> None:
    """Check what a run is to be, before its folder is made.

    Args:
        config: Of the run.

    Raises:
        TrainingError: With the setting, its value, the limit and the remedy.
    """
    s = config.training
    validation_fraction(config)
    numbers = {f"training.{k}": v for k, v in vars(s).items() if not isinstance(v, str)}
    numbers |= {"diffusion.steps": config.diffusion.steps, "sampling.steps": config.sampling.steps}
    sizes = [item.name for item in dataclasses.fields(config.network) if item.type is int]
    numbers |= {f"network.{name}": getattr(config.network, name) for name in sizes}
    for setting, value in numbers.items():
        section, name = setting.split(".")
        least = 1 if section != "training" or name in _AT_LEAST_ONE else 0
        least = 0 if name in _MAY_BE_NONE else least
        if name in _FRACTIONS and not 0 <= value <= 1:
            raise TrainingError(f"{setting} = {value}: give a number from 0 to 1")
        if name == "learning_rate" and not 0 < value < math.inf:
            raise TrainingError(f"{setting} = {value}: give a positive number")
        if name != "seed" and not least <= value < math.inf:
            raise TrainingError(f"{setting} = {value}: give {least} or more")
        most = MOST_PROCESSES if name in ("devices", "nodes") else MOST
        if isinstance(value, int) and not -most <= value <= most:
            raise TrainingError(f"{setting} = {str(value)[:30]}: give at most {most}")
    if s.batch_size == s.batch_pairs == 0:
        raise TrainingError(
            "training.batch_size = 0 and batch_pairs = 0: one must be positive; set "
            "training.batch_size = 128"
        )
    if s.precision == "bf16" and config.preset == "paper":
        raise TrainingError(
            'training.precision = "bf16" is for the default preset: set training.precision = "fp32"'
        )
    if s.symmetric_fraction and config.preset == "paper":
        raise TrainingError(
            f"training.symmetric_fraction = {s.symmetric_fraction} is for the default preset: the "
            "process of paper's cells keeps no symmetry; set training.symmetric_fraction = 0"
        )
    if config.sampling.steps > config.diffusion.steps:
        raise TrainingError(
            f"sampling.steps = {config.sampling.steps} is more than diffusion.steps = "
            f"{config.diffusion.steps}: lower sampling.steps"
        )


def validation_fraction(config: "Config") -> float:
    """Return the fraction of the training crystals that are for validation; 0 if a file is named.

    Args:
        config: Of the run.

    Raises:
        TrainingError: If it is a number, but no such fraction.
    """
    try:
        fraction = float(config.data.validation)
    except ValueError:
        return 0.0
    if not 0 < fraction < 1:
        raise TrainingError(
            f"data.validation = {fraction:g}: give a fraction above 0 and below 1, or a file"
        )
    return fraction
