"""`crystorus train` and `crystorus train-scorer`; torch is loaded once their values are checked."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from crystorus.train.options import ScorerOptions


def train(config: Path, folder: Path, /, *overrides: str, resume: bool = False) -> None:
    """Train a model.

    Args:
        config: A TOML file, as in configs/.
        folder: Where checkpoints and logs go.
        overrides: KEY=VALUE, as in diffusion.steps=25.
        resume: Go on with the folder's run: an interrupted one, or a finished one with more
            training.epochs or training.minutes.

    Raises:
        ConfigError: If the configuration cannot be read, or a value does not fit.
        TrainingError: If the run cannot start or go on.
    """
    from crystorus.config import load_config
    from crystorus.train.options import check_settings

    settings = load_config(config, overrides)
    check_settings(settings)
    from crystorus.train.loop import train as run_training

    run_training(settings, folder, resume=resume)


def train_scorer(
    data: Path,
    /,
    options: Annotated[ScorerOptions, Parameter(name="*")] = ScorerOptions(),  # noqa: B008
) -> None:
    """Train a scorer, which chooses among the --candidates of `sample`.

    Writes OUT/checkpoint, the checkpoint with its scorer.

    Args:
        data: Known crystals: what the checkpoint was trained on.
        options: How many candidates of how many compositions, and where they go.

    Raises:
        TrainingError: If there is nothing to learn from.
    """
    from crystorus.terminal import echo
    from crystorus.train.scorer import train_scorer as run_training

    folder, report = run_training(data, options)
    seen = "" if report is None else f"; {report}"
    echo(f"{folder}: a checkpoint with its scorer{seen}")
