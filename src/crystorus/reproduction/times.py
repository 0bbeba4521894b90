"""How long the budget `full` takes, from the rates of its own networks on this machine."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from crystorus.config import Config
from crystorus.data.files import write_whole
from crystorus.reproduction.bench import Bench, frames
from crystorus.reproduction.settings import (
    Budget,
    BudgetName,
    Tree,
    load_budget,
    load_variants,
    merged,
    variant_config,
)
from crystorus.reproduction.tables import BASES

MINUTES: Mapping[BudgetName, float] = {"smoke": 0.02, "cpu": 0.5, "full": 2.0}
"""Processor time of the training a rate is taken from, after the budget at hand."""
CRYSTALS: Mapping[BudgetName, int] = {"smoke": 4, "cpu": 32, "full": 128}
"""Crystals sampled for a rate."""
STEPS = 5
"""Steps in which they are; the time of a crystal is that of a step times the steps."""
_SHORT = {"epochs": 1000, "validation_crystals": 16, "validate_every": 1000, "sample_every": 0}


def times_study(bench: Bench) -> Tree:
    """Return the rates of both presets at full size, and what the full experiment needs of each.

    A rate is that of a short training, in crystals per second of processor time without its
    validation, and that of a few steps of sampling.
    """
    held_out = bench.out / "times" / "held-out.extxyz"
    if not held_out.exists():
        held_out.parent.mkdir(parents=True, exist_ok=True)
        several = frames(bench.inputs.held_out.read_text("utf-8"))
        write_whole(held_out, "".join(islice(several, CRYSTALS[bench.budget.name])))
    short = replace(
        bench,
        out=bench.out / "times",
        budget=_short(bench.budget.name),
        inputs=replace(bench.inputs, held_out=held_out),
    )
    return {"presets": {name: _measured(short, name) for name in BASES}, "amounts": amounts(bench)}


def amounts(bench: Bench) -> Tree:
    """Return how many trainings, epochs and crystals the full experiment asks for."""
    full, variants = load_budget("full"), load_variants()
    found: Tree = {
        "train": bench.inputs.about["train"]["crystals"],
        "compositions": bench.inputs.about["held_out"]["crystals"],
        "seeds": len(full.seeds),
        "ablation_seeds": len(full.ablation_seeds),
    }
    for name in BASES:
        rows = [v for v in variants.values() if v.preset == name]
        trained = [v for v in rows if v.weights == v.name]
        found[name] = {
            "epochs": _full_config(name, ablation=False).training.epochs,
            "ablation_epochs": _full_config(name, ablation=True).training.epochs,
            "steps": _full_config(name, ablation=False).sampling.steps,
            "ablation_trainings": len(trained) * len(full.ablation_seeds),
            "ablation_samples": len(rows) * len(full.ablation_seeds),
        }
    return found


def _measured(short: Bench, name: str) -> Tree:
    """Return crystals per second of training, and seconds per crystal and step of sampling."""
    checkpoint, card = short.trained(load_variants()[name], 0, ablation=False)
    _, sampling = short.sampled(checkpoint, f"{name}-s0", seed=0, sampler={"steps": STEPS})
    return {
        "training": card,
        "sampling": sampling,
        "crystals_per_second": card["crystals_seen"] / (60 * card["training_cpu_minutes"]),
        "seconds_per_step": sampling["cpu_seconds"] / (sampling["made"] * STEPS),
    }


def _short(name: BudgetName) -> Budget:
    """Return the full budget with trainings of a moment."""
    full = load_budget("full")
    training = {**_SHORT, "cpu_minutes": MINUTES[name]}
    settings = {k: merged(v, {"training": training}) for k, v in full.settings.items()}
    return replace(full, settings=settings)


def _full_config(name: str, *, ablation: bool) -> Config:
    return variant_config(load_variants()[name], load_budget("full"), ablation=ablation, extra={})
