"""`crystorus judge`: names, help texts and nothing else."""

from pathlib import Path
from typing import Annotated

import typer

from crystorus.cli_choices import Checkpoint, Seed


def judge(
    data: Annotated[
        Path, typer.Argument(help="Known crystals: what the checkpoint was trained on.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the run; an interrupted one goes on there.")
    ] = Path("runs/judge"),
    compositions: Annotated[int, typer.Option(help="Known crystals to learn from.")] = 8000,
    candidates: Annotated[int, typer.Option(help="Crystals made of each composition.")] = 8,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 4,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    workers: Annotated[int, typer.Option(help="Processes that make crystals.")] = 1,
) -> None:
    """Train a judge: it chooses among the --candidates of `sample` better than the model itself.

    Writes OUT/judged, the checkpoint with its judge.
    """
    from crystorus.train.command import train_scorer
    from crystorus.train.options import ScorerOptions

    options = ScorerOptions(out, checkpoint, compositions, candidates, epochs, seed, workers)
    train_scorer(data, options)
