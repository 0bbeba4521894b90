"""Options of a comparison, and limits that options of both packages have, written once.

The command line and the Python interface take them; nothing heavy is imported.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

from crystal_fidelity.errors import OptionError

Metric = Literal[
    "validity",
    "composition",
    "density",
    "energy",
    "frechet",
    "match",
    "metre",
    "coverage",
    "uniqueness",
    "novelty",
    "prototypes",
    "spacegroups",
    "sun",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
DEFAULT_METRICS: tuple[Metric, ...] = ("validity", "density", "uniqueness", "spacegroups")
MIN_DISTANCE = 0.5
"""Å between two atoms, own images included, of a valid structure: CDVAE's threshold."""
MIN_VOLUME = 0.1
"""Å³ of the cell of a valid structure: CDVAE's threshold."""
SYMPREC = 0.1
"""Å, of space groups; generated atoms miss their special positions by hundredths of Å."""
FeaturizerName = Literal["chgnet", "alignn", "alignn-invariant"]


def parse_metrics(text: str) -> tuple[Metric, ...]:
    """Return the metrics named in a comma-separated list, or every one for "all".

    Args:
        text: The list.

    Raises:
        ValueError: A name is not a metric.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return METRICS
    chosen = [metric for metric in METRICS if metric in names]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not chosen:
        listed = ", ".join(unknown) or "(none)"
        raise ValueError(f"metrics {listed}: choose from {', '.join(METRICS)}, or all")
    return tuple(chosen)


def _metrics_of(_type: Any, tokens: Sequence[Any]) -> tuple[Metric, ...]:
    return parse_metrics(tokens[0].value)


@dataclass(frozen=True)
class MatchSettings:
    """How structures are paired and compared.

    Raises:
        OptionError: A value is out of its limits.
    """

    best_of: int = 1
    """Consecutive generated candidates per reference; match rate and METRe are given with the first
    and with all of them."""
    timeout_s: Annotated[float | None, Parameter(name="--timeout")] = None
    """Seconds per pair; longer ones are reported undecided."""
    seed: int = 0
    """Of random splits and baselines."""
    workers: Annotated[int, Parameter(parse=False)] = 1
    """Processes for reading and matching."""

    def __post_init__(self) -> None:
        if self.best_of < 1:
            raise OptionError(f"--best-of is {self.best_of}: give 1 candidate or more")
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise OptionError(f"--timeout is {self.timeout_s:g}: give a number of seconds above 0")
        if self.seed < 0:
            raise OptionError(f"--seed is {self.seed}: give 0 or more")


@dataclass(frozen=True)
class Settings(MatchSettings):
    """What to compute and under which protocol."""

    metrics: Annotated[
        tuple[Metric, ...],
        Parameter(
            converter=_metrics_of,
            n_tokens=1,
            show_choices=False,
            negative=(),
            show_default=",".join,
            help=f"Comma-separated, of {', '.join(METRICS)}; or all.",
        ),
    ] = DEFAULT_METRICS
    """What to compute."""
    energy: str = "chgnet"
    """Source of energies: chgnet, an ASE calculator's module:factory, or file:KEY for a number that
    came with the structures."""
    references: Path | None = None
    """Elemental references (JSON) of an ASE calculator; CHGNet's are shipped."""
    featurizer: FeaturizerName = "chgnet"
    """Network of the Fréchet distance."""
    weights: Path | None = None
    """Weights of the featurizer, where it needs some."""
    cache: Path | None = None
    """Folder of cached network outputs; ~/.cache/crystal-fidelity without."""
    known: Path | None = None
    """Structures that novelty is judged against; the reference set without."""
    hull_key: str = "e_above_hull"
    """Number of the generated structures that S.U.N. reads, eV/atom, without --hull-references."""
    hull_references: Path | None = None
    """Known phases, to compute energies above their hull by --energy, of structures as they are."""
    coverage_scale: str = "cdvae"
    """What coverage standardises compositions with: cdvae for its constants, reference for the
    reference set's own means and deviations, or a JSON file."""
