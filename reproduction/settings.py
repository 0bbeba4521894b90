"""What can be asked for: options, budgets, variants of Table 4. Nothing here imports torch."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from crystorus.config import Config, Preset, config_from_dict
from reproduction import ReproductionError

Tree = dict[str, Any]
ExperimentName = Literal[
    "table2", "table3", "table4", "figure1", "figure2", "figure3", "figure4", "figure5",
    "figure6", "latent", "times",
]  # fmt: skip
BudgetName = Literal["smoke", "cpu", "full"]
PRESETS: tuple[Preset, ...] = ("paper", "default")
_FILES = ("data", "validation", "held_out", "alignn_weights")


@dataclass(frozen=True)
class Variant:
    """One row of Table 4; the fields are described in `variants.toml`."""

    name: str
    preset: Preset
    label: str
    weights: str = ""
    printed: int | None = None
    overrides: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """How large an experiment is; the fields are described in `budgets.toml`."""

    name: BudgetName
    about: str
    compositions: int
    seeds: Sequence[int]
    ablation_seeds: Sequence[int]
    noise_levels: Sequence[float]
    study_crystals: int
    gallery: int
    settings: Tree
    ablation: Tree


def _read(name: str) -> Tree:
    return tomllib.loads((Path(__file__).parent / name).read_text("utf-8"))


def _budget(name: BudgetName, table: Tree) -> Budget:
    settings: Tree = {preset: table.pop(preset, {}) for preset in PRESETS}
    defaults = {"ablation_seeds": table["seeds"], "ablation": {}}
    return Budget(name=name, settings=settings, **defaults | table)


_TABLES: Any = _read("budgets.toml")
_FULL_SIZE = _TABLES.pop("presets")
BUDGETS: Mapping[str, Budget] = {name: _budget(name, table) for name, table in _TABLES.items()}
VARIANTS = {row["name"]: Variant(**row) for row in _read("variants.toml")["variant"]}
"""By name, in the order of the table."""
PRINTED: Tree = json.loads((Path(__file__).parent / "printed.json").read_text("utf-8"))
"""The paper's tables."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """Return nested settings with some of them replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def variant_config(
    variant: Variant, budget: Budget, *, ablation: bool = False, extra: Tree | None = None
) -> Config:
    """Return the settings of a variant's training and sampling.

    Args:
        variant: The variant.
        budget: How much of it.
        ablation: Whether it is trained as a row of Table 4.
        extra: Data, seed and device.
    """
    preset = variant.preset
    tree = merged({"preset": preset} | _FULL_SIZE[preset], budget.settings[preset])
    for layer in (budget.ablation if ablation else {}, variant.overrides, extra or {}):
        tree = merged(tree, layer)
    return config_from_dict(tree)


def _list_of(kind: Callable[[str], Any]) -> Parameter:
    """Let an option take values that are separated by commas."""

    def split(_type: Any, tokens: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for token in tokens for part in token.value.split(","))

    return Parameter(converter=split, n_tokens=1)


@dataclass(frozen=True)
class Options:
    """What is measured, and on what."""

    budget: BudgetName = "smoke"
    """Minutes, an hour, or the paper's own settings."""
    out: Path = Path("runs/paper")
    """Folder of the experiment; an interrupted one goes on there."""
    data: Path | None = None
    """Crystals to train on; prototypes for smoke."""
    validation: Path | None = None
    """Crystals that choose the checkpoint."""
    held_out: Path | None = None
    """Crystals whose compositions are sampled; those of --validation by default."""
    seeds: Annotated[tuple[int, ...], _list_of(int)] = ()
    """Seeds of the trainings, as in 0,1; the budget's by default."""
    rows: Annotated[tuple[str, ...], _list_of(str)] = ()
    """Rows of Table 4, as in paper-a,default-ode, with the presets that they are compared with; all
    by default."""
    baseline: tuple[str, ...] = ()
    """Another system's crystals, NAME=FILE; can be repeated."""
    checkpoint: Path | None = None
    """A trained model; the shipped one by default."""
    alignn_weights: Path | None = None
    """ALIGNN's weights, for FAD; see `crystal-fidelity weights`."""
    device: str = "cpu"
    """Where networks run: cpu, cuda, cuda:1, mps."""
    docs: Path = Path("docs")
    """Folder of the page; its paper/ holds the published results."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before anything is trained.

        Raises:
            ReproductionError: With the value and the remedy.
        """
        seeds = self.seeds
        unknown = ", ".join(row for row in self.rows if row not in VARIANTS)
        unnamed = ", ".join(x for x in self.baseline if not re.fullmatch("[^/=]+=.+", x))
        files = {f"--{name.replace('_', '-')}": getattr(self, name) for name in _FILES}
        files |= {f"--baseline {name}": file for name, file in self.baselines.items()}
        absent = [f"{name} {path}" for name, path in files.items() if path and not path.exists()]
        for wrong, message in (
            (
                len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0,
                f"--seeds {','.join(map(str, seeds))}: give different whole numbers from 0 up",
            ),
            (unknown, f"--rows has no {unknown}: choose from {', '.join(VARIANTS)}"),
            (unnamed, f"--baseline {unnamed}: write NAME=FILE, as in CDVAE=cdvae.extxyz"),
            (
                len(self.baselines) < len(self.baseline),
                f"--baseline {' '.join(self.baseline)}: a name is given twice, choose another",
            ),
            (
                (self.data is None) != (self.validation is None),
                "--data and --validation go together: give both",
            ),
            (
                absent,
                f"{', '.join(absent)} does not exist: `crystorus data get mp-20` fetches crystals, "
                "`crystal-fidelity weights fetch` ALIGNN's weights",
            ),
        ):
            if wrong:
                raise ReproductionError(message)

    @property
    def baselines(self) -> dict[str, Path]:
        """Files of other systems' crystals, by name."""
        pairs = (text.partition("=") for text in self.baseline)
        return {name: Path(file) for name, _, file in pairs}

    @property
    def variants(self) -> list[Variant]:
        """Rows of Table 4, the presets that they are compared with among them."""
        wanted = self.rows or VARIANTS
        needed = {*wanted, *(VARIANTS[name].preset for name in wanted)}
        return [variant for name, variant in VARIANTS.items() if name in needed]
