"""Settings that cannot work together are found before the data are read."""

import dataclasses

import torch

from crystorus.config import Config
from crystorus.crystal_model import build_diffusion
from crystorus.diffusion.strain_process import CellStatistics
from crystorus.train.errors import TrainingError

_LAYERS = ("before_skip", "after_skip", "concat", "atom_layers")  # residual: none is a choice


def check_settings(config: Config) -> None:
    """Check what a run is to be, before its folder is made.

    Raises:
        TrainingError: With the setting, its value, the limit and the remedy.
    """
    s = config.training
    for name in ("epochs", "validate_every", "log_every", "devices", "nodes"):
        _least(f"training.{name}", getattr(s, name), 1)
    for name in (
        "batch_size",
        "batch_pairs",
        "warmup_steps",
        "sample_every",
        "sample_crystals",
        "validation_crystals",
        "workers",
        "minutes",
        "cpu_minutes",
        "save_minutes",
        "clip_norm",
        "cell_weight",
        "loss_limit",
    ):
        _least(f"training.{name}", getattr(s, name), 0)
    for name in ("decay", "high_noise_fraction", "ema_decay", "adam_beta2"):
        value = getattr(s, name)
        if not 0 <= value <= 1:
            raise TrainingError(f"training.{name} = {value}: give a number from 0 to 1")
    if not 0 < s.learning_rate < float("inf"):
        raise TrainingError(f"training.learning_rate = {s.learning_rate}: give a positive number")
    if s.precision == "bf16" and config.preset == "paper":
        raise TrainingError(
            'training.precision = "bf16" is for the default preset: set training.precision = "fp32"'
        )
    _check_system(config)
    if s.accelerator not in ("auto", "cpu") and not _there(s.accelerator):
        raise TrainingError(
            f'training.accelerator = "{s.accelerator}" is not there: set training.accelerator = '
            '"cpu" or "auto"'
        )


def _check_system(config: Config) -> None:
    _least("diffusion.steps", config.diffusion.steps, 1)
    _least("sampling.steps", config.sampling.steps, 1)
    if config.sampling.steps > config.diffusion.steps:
        raise TrainingError(
            f"sampling.steps = {config.sampling.steps} is more than diffusion.steps = "
            f"{config.diffusion.steps}: lower sampling.steps"
        )

    for item in dataclasses.fields(config.network):
        value = getattr(config.network, item.name)
        if item.type is int:
            _least(f"network.{item.name}", value, 0 if item.name in _LAYERS else 1)
    try:
        build_diffusion(config, CellStatistics.neutral())
    except ValueError as error:
        raise TrainingError(f"the diffusion section makes no process: {error}") from error


def _there(accelerator: str) -> bool:
    return torch.cuda.is_available() if accelerator == "cuda" else torch.mps.is_available()


def _least(name: str, value: float, limit: int) -> None:
    if not limit <= value < float("inf"):
        raise TrainingError(f"{name} = {value}: give {limit} or more")
