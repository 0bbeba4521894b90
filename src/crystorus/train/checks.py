"""Settings that cannot work together are found before the data are read."""

from crystorus.config import Config
from crystorus.train.errors import TrainingError


def check_settings(config: Config) -> None:
    """Check the values of the training section.

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
    if s.sample_every and config.sampling.steps > config.diffusion.steps:
        raise TrainingError(
            f"sampling.steps = {config.sampling.steps} is more than diffusion.steps = "
            f"{config.diffusion.steps}: lower sampling.steps"
        )


def _least(name: str, value: float, limit: int) -> None:
    if not limit <= value < float("inf"):
        raise TrainingError(f"{name} = {value}: give {limit} or more")
