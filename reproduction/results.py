"""Every table and figure of the paper, measured: one function each, from an experiment to JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from crystal_fidelity.distances import densities
from crystal_fidelity.energies import load_references, make_energy_model
from crystal_fidelity.features import make_featurizer
from crystal_fidelity.files import file_digest, write_atomic
from crystal_fidelity.options import SYMPREC
from crystal_fidelity.structures import Crystal, Entry, ReadFailure, checked
from crystal_fidelity.studies import distributions, extrapolated, noise_curve, size_study
from crystorus.checkpoint import SHIPPED, load_checkpoint, read_card
from crystorus.crystal_model import build_diffusion
from crystorus.data.compositions import Composition
from crystorus.data.convert import split
from crystorus.data.store import CrystalStore
from crystorus.data.writers import extxyz_text
from crystorus.diffusion.cell_prior import fit_cell_statistics
from crystorus.diffusion.losses import draw_normals
from crystorus.diffusion.process import Diffusion
from crystorus.geometry import Crystals
from reproduction import DivergedError, ReproductionError
from reproduction.experiment import Experiment, choose, digest_of, read_crystals
from reproduction.probes import FOLDS, draw_prior, feature_sets, principal_map, probe
from reproduction.settings import (
    BUDGETS,
    PRESETS,
    PRINTED,
    VARIANTS,
    BudgetName,
    Tree,
    Variant,
    merged,
    variant_config,
)
from reproduction.symmetry import conventional_cell, study_lattices

CHECKPOINT_SEED = 0
ENERGY = "formation_energy_per_atom"
"""Column of MP-20 with what the probe predicts, eV/atom."""
RATE_MINUTES: Mapping[BudgetName, float] = {"smoke": 0.02, "cpu": 0.5, "full": 2.0}
"""Processor time of the training a rate is taken from."""
RATE_CRYSTALS: Mapping[BudgetName, int] = {"smoke": 4, "cpu": 32, "full": 128}
"""Crystals sampled for a rate."""
RATE_STEPS = 5
"""Steps in which they are; the time of a crystal is that of a step times the steps."""


def systems_table(run: Experiment) -> Tree:
    """Return Tables 2 and 3: both presets, a checkpoint, and other systems' crystals."""
    seeds = run.options.seeds or run.budget.seeds
    rows = [_variant_row(run, VARIANTS[name], seeds, ablation=False) for name in PRESETS]
    rows.append(_checkpoint_row(run))
    for name, path in run.options.baselines.items():
        about = {"file": path.name, "sha256": file_digest(path)}
        scores = run.score(path, f"baseline-{name}")
        rows.append(_row(f"baseline-{name}", name, [about | scores]))
    real = run.score(run.inputs.others, "real")
    rows.append(_row("real", "training crystals, of other compositions", [real]))
    return {"seeds": list(seeds), "rows": rows, "printed": PRINTED}


def checkpoint_table(run: Experiment) -> Tree:
    """Return the row of a checkpoint in Tables 2 and 3, without training anything."""
    row = _checkpoint_row(run)
    return {"seeds": [CHECKPOINT_SEED], "rows": [row], "printed": PRINTED}


def ablation_table(run: Experiment) -> Tree:
    """Return Table 4: the paper's ablations, and one per repair of the default preset."""
    seeds = run.options.seeds or run.budget.ablation_seeds
    rows = [
        _variant_row(run, variant, seeds, ablation=True)
        | {"preset": variant.preset, "printed": variant.printed}
        for variant in run.options.variants
    ]
    return {"seeds": list(seeds), "rows": rows, "printed": PRINTED}


def _variant_row(
    run: Experiment, variant: Variant, seeds: Sequence[int], *, ablation: bool
) -> Tree:
    """Train, sample and score one variant with every seed."""
    source = VARIANTS[variant.weights or variant.name]
    runs = []
    for seed in seeds:
        try:
            checkpoint, training = run.train(source, seed, ablation=ablation)
        except DivergedError as error:
            what = str(error).partition(":")[0]  # without paths of this machine
            runs.append({"seed": seed, "diverged": what, "scores": {}})
            continue
        name = run.name_of(variant, seed, ablation=ablation)
        sampler = variant.overrides.get("sampling")
        crystals, sampling = run.sample(checkpoint, name, seed=seed, sampler=sampler)
        about = {"seed": seed, "training": training, "sampling": sampling}
        runs.append(about | run.score(crystals, name))
    return _row(variant.name, variant.label, runs)


def _sample_checkpoint(run: Experiment) -> tuple[Path, Tree]:
    """Sample a trained model, in a folder of its own: another one may be shipped later."""
    digest = read_card(run.checkpoint)["sha256"]
    return run.sample(run.checkpoint, f"checkpoint-{digest[:12]}", seed=CHECKPOINT_SEED)


def _checkpoint_row(run: Experiment) -> Tree:
    crystals, sampling = _sample_checkpoint(run)
    about = {"sampling": sampling, "checkpoint": sampling["checkpoint"]}
    label = "the shipped checkpoint" if run.checkpoint == SHIPPED else "a checkpoint"
    return _row("checkpoint", label, [about | run.score(crystals, "checkpoint")])


def _row(name: str, label: str, runs: Sequence[Tree]) -> Tree:
    return {"name": name, "label": label, "runs": list(runs), **summary(runs)}


def summary(runs: Sequence[Tree]) -> Tree:
    """Return mean and standard deviation of every score over several runs.

    A score that is missing or infinite in one of them has neither.
    """
    scores = [{name: score["value"] for name, score in run["scores"].items()} for run in runs]
    values = pd.DataFrame(scores, dtype=float).replace([np.inf, -np.inf], np.nan)
    mean, deviation = values.mean(skipna=False), values.std(skipna=False)
    return {"mean": mean.dropna().to_dict(), "deviation": deviation.dropna().to_dict()}


def gallery(run: Experiment) -> Tree:
    """Return Fig. 1: generated crystals above the real ones of their compositions.

    The first of a random order are taken, not the best; only what is no crystal is passed over, and
    counted.

    Raises:
        ReproductionError: If the checkpoint made no usable crystal.
    """
    path, sampling = _sample_checkpoint(run)
    pairs = list(zip(read_crystals(path), read_crystals(run.inputs.compositions), strict=True))
    order = np.random.default_rng(0).permutation(len(pairs))
    usable = [pairs[i] for i in order if isinstance(pairs[i][0], Crystal)]
    shown = usable[: run.budget.gallery]
    if not shown:
        raise ReproductionError("the checkpoint made no usable crystal: there is nothing to draw")
    made, real = ([_drawn(crystal) for crystal in row] for row in zip(*shown, strict=True))
    return {
        "gallery": {"names": ["generated", "real"], "rows": [made, real]},
        "real_groups": [f"{one['symbol']} ({one['number']})" for one in real],
        "no_crystals": len(pairs) - len(usable),
        "sampling": sampling,
    }


def _drawn(crystal: Crystal) -> Tree:
    cell, symbol, number = conventional_cell(crystal, SYMPREC)
    return {
        "formula": Composition.of(cell.atomic_numbers.tolist()).reduced_formula,
        "symbol": symbol,
        "number": number,
        "symprec": SYMPREC,
        "lattice": cell.lattice.T.tolist(),
        "frac_coords": cell.frac_coords.tolist(),
        "atomic_numbers": cell.atomic_numbers.tolist(),
    }


def lattices(run: Experiment) -> Tree:
    """Return Fig. 2's claim as numbers: lattice systems of real, generated and random cells."""
    path, sampling = _sample_checkpoint(run)
    files = {"real": run.inputs.compositions, "checkpoint": path, **_sampled_presets(run)}
    sets = {name: read_crystals(file) for name, file in files.items()}
    store = run.inputs.held_out
    crystals = store.select(choose(store, run.budget.compositions))
    prior = draw_prior(load_checkpoint(run.checkpoint), crystals, range(len(crystals)))
    study = study_lattices(sets | {"prior": split(prior)})
    lost = {
        name: sum(isinstance(entry, ReadFailure) for entry in several)
        for name, several in sets.items()
    }
    return {"lattices": {"sets": study}, "no_crystals": lost, "sampling": sampling}


def _sampled_presets(run: Experiment) -> dict[str, Path]:
    """Return the crystals of both presets, trained with the first seed."""
    seed = run.budget.seeds[0]
    found: dict[str, Path] = {}
    for name in PRESETS:
        trained, _ = run.train(VARIANTS[name], seed, ablation=False)
        found[name], _ = run.sample(trained, f"{name}-s{seed}", seed=seed)
    return found


def noise_study(run: Experiment) -> Tree:
    """Return Fig. 3: the distance of noised training crystals from the held-out ones.

    The noise is that of each preset's forward process, at fractions of its steps.
    """
    store = run.inputs.train
    crystals = store.select(choose(store, run.inputs.about["compositions"]), dtype=torch.float64)
    statistics_ = fit_cell_statistics(store.select(range(len(store))))
    curves = {}
    for preset in PRESETS:
        config = variant_config(VARIANTS[preset], run.budget)
        diffusion = build_diffusion(config, statistics_)
        key = {"inputs": run.inputs.about, "levels": list(run.budget.noise_levels)}
        key |= {"diffusion": asdict(config.diffusion)}
        measure = partial(_noise_curve, run, crystals, diffusion)
        curves[preset] = run.kept(f"studies/noise-{preset}", key, measure)
    return {"curves": curves}


def _noise_curve(run: Experiment, crystals: Crystals, diffusion: Diffusion) -> Tree:
    fractions = {round(f * diffusion.steps): f for f in run.budget.noise_levels}
    sets = {float(step): _noised(crystals, diffusion, step) for step in fractions}
    network = make_featurizer("chgnet", cache=run.cache)
    points = noise_curve(sets, read_crystals(run.inputs.compositions), network)
    return {
        "points": [asdict(p) | {"share": fractions[int(p.level)]} for p in points],
        "identity": asdict(network.identity),
    }


def _noised(crystals: Crystals, diffusion: Diffusion, step: int) -> list[Entry]:
    if step > 0:
        atoms, cells = draw_normals(crystals, torch.Generator().manual_seed(0))
        t = torch.full((len(crystals),), step)
        crystals = diffusion.noise(crystals, t, atoms, cells)[0]
    # Cells may have collapsed: they are told from crystals as a reader does.
    return [checked(c.lattice, c.frac_coords, c.atomic_numbers) for c in split(crystals)]


def sample_size_study(run: Experiment) -> Tree:
    """Return Fig. 4: the distance of training from held-out crystals against their number."""

    def measure() -> Tree:
        network = make_featurizer("chgnet", cache=run.cache)
        left, right = (
            network.features(split(store.select(choose(store, count), dtype=torch.float64)))
            for store in (run.inputs.train, run.inputs.held_out)
        )
        points = size_study(left, right)
        return {
            "points": [asdict(point) for point in points],
            "limit": extrapolated(points),
            "identity": asdict(network.identity),
        }

    count = run.budget.study_crystals
    key = {"inputs": run.inputs.about, "crystals": count}
    return run.kept("studies/size", key, measure)


def distribution_study(run: Experiment, name: str) -> Tree:
    """Return Fig. 5 or 6: "density" or "formation energy" of generated and real crystals."""
    files = {"real": run.inputs.compositions, **_sampled_presets(run)}
    files["checkpoint"], _ = _sample_checkpoint(run)
    files |= run.options.baselines

    def measure() -> Tree:
        sets = {label: read_crystals(path) for label, path in files.items()}
        model = make_energy_model("chgnet", cache=run.cache)
        return {
            one.name: {
                "unit": one.unit,
                "values": {label: row.round(4) for label, row in one.values.items()},
            }
            for one in distributions(sets, model, load_references())
        }

    key = {label: digest_of(path) for label, path in files.items()}
    return {"property": name, **run.kept("studies/distributions", key, measure)[name]}


def latent_space(run: Experiment) -> Tree:
    """Return what the representation knows: a map, and linear probes beside their controls.

    Probes predict the formation energy where the crystals come with it, else the density.
    """
    model = load_checkpoint(run.checkpoint, device=run.options.device)
    (train, known), (judged, theirs) = (
        with_energies(store, run.budget.study_crystals, model.max_atoms)
        for store in (run.inputs.train, run.inputs.held_out)
    )
    of_train, of_judged = feature_sets(model, train), feature_sets(model, judged)
    energies = bool(np.isfinite(known).all() and np.isfinite(theirs).all())
    dense, denser = densities(split(train)), densities(split(judged))
    target = (known, theirs) if energies else (dense, denser)
    run.log("linear probes")
    compositions = [Composition.of(c.atomic_numbers.tolist()) for c in judged.split()]
    study = probe(
        {name: (of_train[name], of_judged[name]) for name in of_train},
        target,
        name="formation energy, eV/atom" if energies else "density, g/cm³",
        compositions=[composition.reduced_formula for composition in compositions],
        sizes=sorted({n for n in (100, 500, len(train)) if 2 * FOLDS <= n <= len(train)}),
        seeds=(0, 1, 2),
        shuffled=("latent",),
    )
    shown = principal_map(of_judged["latent"], judged, theirs.tolist(), denser.tolist())
    return {"map": shown, "probe": study, "checkpoint": model.digest}


def with_energies(store: CrystalStore, count: int, max_atoms: int) -> tuple[Crystals, np.ndarray]:
    """Return crystals of a set and their formation energies in eV/atom.

    Crystals whose energy is unknown are left out, unless none is known: then all are NaN.

    Args:
        store: The set.
        count: How many are chosen, before any is left out; 0 means all.
        max_atoms: Larger crystals are left out.
    """
    chosen = choose(store, count)
    chosen = chosen[store.n_atoms[chosen] <= max_atoms]
    energies = np.full(len(chosen), np.nan)
    if ENERGY in store.extra_columns:
        energies = np.asarray(store.extra(ENERGY), float)[chosen]
    kept = np.isfinite(energies) | ~np.isfinite(energies).any()
    return store.select(chosen[kept]), energies[kept]


def times_study(run: Experiment) -> Tree:
    """Return the rates of both presets at full size, and what the full experiment needs of each.

    A rate is that of a short training, in crystals per second of processor time without its
    validation, and that of a few steps of sampling.
    """
    out, budget, full = run.options.out / "times", run.budget.name, BUDGETS["full"]
    few = out / "compositions.extxyz"
    if not few.exists():
        out.mkdir(parents=True, exist_ok=True)
        store = run.inputs.held_out
        chosen = choose(store, run.budget.compositions)[: RATE_CRYSTALS[budget]]
        write_atomic(few, extxyz_text(store.select(chosen, dtype=torch.float64)))
    training: Tree = {"epochs": 1000, "validation_crystals": 16, "validate_every": 1000}
    training |= {"sample_every": 0, "cpu_minutes": RATE_MINUTES[budget]}
    settings = {k: merged(v, {"training": training}) for k, v in full.settings.items()}
    short = replace(
        run,
        options=replace(run.options, out=out),
        budget=replace(full, settings=settings),
        inputs=replace(run.inputs, compositions=few),
    )
    rates = {}
    for name in PRESETS:
        checkpoint, card = short.train(VARIANTS[name], 0, ablation=False)
        _, sampling = short.sample(checkpoint, f"{name}-s0", seed=0, sampler={"steps": RATE_STEPS})
        rates[name] = {
            "training": card,
            "sampling": sampling,
            "crystals_per_second": card["crystals_seen"] / (60 * card["training_cpu_minutes"]),
            "seconds_per_step": sampling["cpu_seconds"] / (sampling["made"] * RATE_STEPS),
        }
    return {"presets": rates, "amounts": amounts(run)}


def amounts(run: Experiment) -> Tree:
    """Return how many trainings, epochs and crystals the full experiment asks for."""
    full = BUDGETS["full"]
    found: Tree = {
        "train": run.inputs.about["train"]["crystals"],
        "compositions": run.inputs.about["held_out"]["crystals"],
        "seeds": len(full.seeds),
        "ablation_seeds": len(full.ablation_seeds),
    }
    for name in PRESETS:
        whole, less = (
            variant_config(VARIANTS[name], full, ablation=ablation) for ablation in (False, True)
        )
        rows = [v for v in VARIANTS.values() if v.preset == name]
        found[name] = {
            "epochs": whole.training.epochs,
            "ablation_epochs": less.training.epochs,
            "steps": whole.sampling.steps,
            "ablation_trainings": sum(not v.weights for v in rows) * len(full.ablation_seeds),
            "ablation_samples": len(rows) * len(full.ablation_seeds),
        }
    return found


MEASURES: Mapping[str, Callable[[Experiment], Tree]] = {
    "table2": systems_table,
    "table3": systems_table,
    "table4": ablation_table,
    "figure1": gallery,
    "figure2": lattices,
    "figure3": noise_study,
    "figure4": sample_size_study,
    "figure5": partial(distribution_study, name="density"),
    "figure6": partial(distribution_study, name="formation energy"),
    "latent": latent_space,
    "times": times_study,
}
"""How each experiment is measured."""
