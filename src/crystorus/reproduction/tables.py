"""Tables 2, 3 and 4: rows of trainings, other systems' files, and what the paper printed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crystorus.checkpoint import SHIPPED, read_card
from crystorus.data.files import file_digest
from crystorus.reproduction.bench import Bench
from crystorus.reproduction.errors import DivergedError
from crystorus.reproduction.settings import Tree, Variant, load_printed, load_variants

BASES = ("paper", "default")
CHECKPOINT_SEED = 0


def systems_table(
    bench: Bench, seeds: Sequence[int], baselines: Mapping[str, Path], checkpoint: Path | None
) -> Tree:
    """Return Tables 2 and 3: both presets, a checkpoint, and other systems' crystals."""
    variants = load_variants()
    rows = [variant_row(bench, variants[name], seeds, ablation=False) for name in BASES]
    rows.append(_checkpoint_row(bench, checkpoint or SHIPPED))
    for name, path in baselines.items():
        scores = bench.scored(path, f"baseline-{name}")
        run = {"file": path.name, "sha256": file_digest(path), **scores}
        rows.append(_row(f"baseline-{name}", name, [run]))
    real = bench.scored(bench.inputs.others, "real")
    rows.append(_row("real", "training crystals, of other compositions", [real]))
    return {"rows": rows, "printed": load_printed()}


def checkpoint_table(bench: Bench, checkpoint: Path | None) -> Tree:
    """Return the row of a checkpoint in Tables 2 and 3, without training anything."""
    return {"rows": [_checkpoint_row(bench, checkpoint or SHIPPED)], "printed": load_printed()}


def ablation_table(bench: Bench, seeds: Sequence[int], names: Sequence[str]) -> Tree:
    """Return Table 4: the paper's ablations, and one per repair of the default preset."""
    rows = []
    variants = load_variants()
    for variant in (variants[name] for name in names):
        row = variant_row(bench, variant, seeds, ablation=True)
        rows.append(row | {"preset": variant.preset, "printed": variant.printed})
    return {"rows": rows, "printed": load_printed()}


def variant_row(bench: Bench, variant: Variant, seeds: Sequence[int], *, ablation: bool) -> Tree:
    """Train, sample and score one variant with every seed."""
    source = load_variants()[variant.weights]
    runs = []
    for seed in seeds:
        try:
            checkpoint, training = bench.trained(source, seed, ablation=ablation)
        except DivergedError as error:
            runs.append({"seed": seed, "diverged": _without_paths(str(error)), "scores": {}})
            continue
        own = "ablation-" if ablation and bench.budget.ablation else ""
        name = f"{own}{variant.name}-s{seed}"
        walk = variant.overrides.get("sampling")
        crystals, sampling = bench.sampled(checkpoint, name, seed=seed, sampler=walk)
        runs.append(
            {"seed": seed, "training": training, "sampling": sampling}
            | bench.scored(crystals, name)
        )
    return _row(variant.name, variant.label, runs)


def _without_paths(message: str) -> str:
    return message.partition(":")[0]


def sample_checkpoint(bench: Bench, checkpoint: Path) -> tuple[Path, Tree]:
    """Sample a trained model, in a folder of its own: another one may be shipped later."""
    digest = read_card(checkpoint)["sha256"]
    return bench.sampled(checkpoint, f"checkpoint-{digest[:12]}", seed=CHECKPOINT_SEED)


def _checkpoint_row(bench: Bench, checkpoint: Path) -> Tree:
    card = read_card(checkpoint)
    shipped = checkpoint == SHIPPED
    crystals, sampling = sample_checkpoint(bench, checkpoint)
    run = {"sampling": sampling, "checkpoint": card["sha256"]} | bench.scored(
        crystals, "checkpoint"
    )
    return _row("checkpoint", "the shipped checkpoint" if shipped else "a checkpoint", [run])


def _row(name: str, label: str, runs: Sequence[Tree]) -> Tree:
    return {"name": name, "label": label, "runs": list(runs), **summary(runs)}


def summary(runs: Sequence[Tree]) -> dict[str, Any]:
    """Return mean and standard deviation of every score over several runs.

    A score that is missing or infinite in one of them has neither.
    """
    names = list(dict.fromkeys(name for run in runs for name in run["scores"]))
    mean, deviation = {}, {}
    for name in names:
        values = [run["scores"].get(name, {}).get("value") for run in runs]
        if any(value is None or not math.isfinite(value) for value in values):
            continue
        mean[name] = statistics.fmean(values)
        if len(values) > 1:
            deviation[name] = statistics.stdev(values)
    return {"mean": mean, "deviation": deviation}
