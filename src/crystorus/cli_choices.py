"""The words that options of the command line take, and options that several commands have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class SamplerName(StrEnum):
    """The samplers by name."""

    bridge = "bridge"
    ode = "ode"
    paper = "paper"


class QualityName(StrEnum):
    """Measured ways to sample."""

    fast = "fast"
    default = "default"
    best = "best"


class PrecisionName(StrEnum):
    """Precisions of the network's products."""

    fp32 = "fp32"
    bf16 = "bf16"
    auto = "auto"


class StartName(StrEnum):
    """Where a walk begins."""

    noise = "noise"
    templates = "templates"
    both = "both"


class DatasetName(StrEnum):
    """The data sets by name."""

    mp_20 = "mp-20"


class OptimizerName(StrEnum):
    """The optimisers by name."""

    BFGS = "BFGS"
    LBFGS = "LBFGS"
    FIRE = "FIRE"


OWN = "the checkpoint's"
Seed = Annotated[int, typer.Option(help="Same seed, same crystals.")]
Steps = Annotated[
    int | None,
    typer.Option(help="Denoising steps.", show_default=OWN, rich_help_panel="Sampling"),
]
Quality = Annotated[
    QualityName | None,
    typer.Option(
        help="fast: 12 steps from noise, best: 120, default: the checkpoint's; instead of other "
        "options of the walk.",
        show_default=OWN,
        rich_help_panel="Sampling",
    ),
]
Candidates = Annotated[
    int,
    typer.Option(
        help="Walks from noise per crystal; the one that the model finds likeliest is kept.",
        rich_help_panel="Sampling",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="A trained model.", show_default="shipped", rich_help_panel="Sampling"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.", rich_help_panel="Sampling")]
Start = Annotated[
    StartName | None,
    typer.Option(
        help="Begin at noise, at known crystals with other elements, or half at each.",
        show_default="templates with --library, else noise",
        rich_help_panel="Start",
    ),
]
Library = Annotated[
    Path | None,
    typer.Option(
        help="Known crystals, from `crystorus templates build`.",
        show_default="AFLOW prototypes",
        rich_help_panel="Start",
    ),
]
