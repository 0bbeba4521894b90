"""Which trainings an experiment compares, and how much of them a budget affords."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

from crystorus.config import Config, Preset, config_from_dict

BudgetName = Literal["smoke", "cpu", "full"]
BUDGETS: tuple[BudgetName, ...] = get_args(BudgetName)
Tree = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One row of Table 4: a preset with one thing changed.

    Attributes:
        name: Names its folders and rows.
        preset: What it is a variant of.
        label: What the table calls it.
        overrides: Settings that differ from the preset's.
        weights: The variant whose weights it samples with, itself if it is trained.
        printed: Its row in the paper's Table 4, if it has one.
    """

    name: str
    preset: Preset
    label: str
    overrides: Tree
    weights: str
    printed: int | None


@dataclass(frozen=True)
class Budget:
    """How large an experiment is.

    Attributes:
        name: "smoke", "cpu" or "full".
        about: What it affords, in words.
        compositions: Held-out compositions, one crystal each; 0 means all.
        seeds: Trainings of the two presets.
        ablation_seeds: Trainings of every variant of Table 4.
        noise_levels: Shares of the diffusion steps of Fig. 3.
        study_crystals: Crystals of Fig. 4 on each side; 0 means all.
        gallery: Crystals drawn in Fig. 1.
        settings: Settings that differ from the presets', by preset.
        ablation: Settings of Table 4's trainings that differ from those of Tables 2 and 3.
    """

    name: BudgetName
    about: str
    compositions: int
    seeds: tuple[int, ...]
    ablation_seeds: tuple[int, ...]
    noise_levels: tuple[float, ...]
    study_crystals: int
    gallery: int
    settings: Tree
    ablation: Tree


def load_budget(name: BudgetName) -> Budget:
    """Return a budget by name."""
    table = _read("budgets.toml")[name]
    seeds = tuple(table["seeds"])
    return Budget(
        name=name,
        about=table["about"],
        compositions=table["compositions"],
        seeds=seeds,
        ablation_seeds=tuple(table.get("ablation_seeds", seeds)),
        noise_levels=tuple(table["noise_levels"]),
        study_crystals=table["study_crystals"],
        gallery=table["gallery"],
        settings={preset: table.get(preset, {}) for preset in get_args(Preset)},
        ablation=table.get("ablation", {}),
    )


def load_variants() -> dict[str, Variant]:
    """Return every variant by name, in the order of the table."""
    variants = {}
    for entry in _read("variants.toml")["variant"]:
        variants[entry["name"]] = Variant(
            entry["name"],
            entry["preset"],
            entry["label"],
            entry.get("overrides", {}),
            entry.get("weights", entry["name"]),
            entry.get("printed"),
        )
    return variants


def load_printed() -> Tree:
    """Return the paper's tables as printed."""
    text = resources.files("crystorus.reproduction").joinpath("printed.json").read_text("utf-8")
    return dict(json.loads(text))


def variant_config(variant: Variant, budget: Budget, *, ablation: bool, extra: Tree) -> Config:
    """Return the settings of a variant's training and sampling.

    Args:
        variant: The variant.
        budget: How much of it.
        ablation: Whether it is trained as a row of Table 4.
        extra: Data, seed and device.
    """
    presets = _read("budgets.toml")["presets"]
    tree: Tree = {"preset": variant.preset}
    layers = [presets[variant.preset], budget.settings[variant.preset]]
    layers += [budget.ablation] if ablation else []
    for layer in (*layers, variant.overrides, extra):
        tree = merged(tree, layer)
    return config_from_dict(tree)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """Return nested settings with some of them replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _read(name: str) -> Tree:
    text = resources.files("crystorus.reproduction").joinpath(name).read_text("utf-8")
    return tomllib.loads(text)
