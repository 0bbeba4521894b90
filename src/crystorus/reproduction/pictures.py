"""Figures 1 and 2 and the latent space, measured on the crystals of an experiment."""

from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms

from crystorus.checkpoint import SHIPPED, load_checkpoint
from crystorus.crystal_model import CrystalModel
from crystorus.data.arrays import ReadingError
from crystorus.data.compositions import Composition
from crystorus.data.io import crystals_from_atoms, density
from crystorus.data.store import CrystalStore, open_store
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.geometry import Crystals
from crystorus.reproduction.bench import Bench
from crystorus.reproduction.drawing import Gallery
from crystorus.reproduction.errors import PaperError
from crystorus.reproduction.inputs import choose
from crystorus.reproduction.latent import feature_sets, principal_map
from crystorus.reproduction.lattice_systems import study_lattices
from crystorus.reproduction.portraits import portrait
from crystorus.reproduction.probing import FOLDS, probe
from crystorus.reproduction.records import to_json
from crystorus.reproduction.settings import Tree, load_variants
from crystorus.reproduction.tables import BASES, sample_checkpoint

ENERGY = "formation_energy_per_atom"
"""Column of MP-20 with what the probe predicts, eV/atom."""
ORDER_SEED = 0
PROBE_SEEDS = (0, 1, 2)


def gallery(bench: Bench, checkpoint: Path | None) -> Tree:
    """Return Fig. 1: generated crystals above the real ones of their compositions.

    The first of a random order are taken, not the best; only what is no crystal is passed over,
    and counted.
    """
    path, sampling = sample_checkpoint(bench, checkpoint or SHIPPED)
    made, real = _read(path), _read(bench.inputs.held_out)
    order = np.random.default_rng(ORDER_SEED).permutation(len(real))
    usable = [int(i) for i in order if is_crystal(made[i])]
    passed = len(order) - len(usable)
    shown = usable[: bench.budget.gallery]
    if not shown:
        raise PaperError("the checkpoint made no usable crystal: there is nothing to draw")
    rows = tuple(tuple(portrait(several[i]) for i in shown) for several in (made, real))
    return {
        "gallery": to_json(Gallery(("generated", "real"), rows)),
        "real_groups": [f"{p.symbol} ({p.number})" for p in rows[1]],
        "no_crystals": passed,
        "sampling": sampling,
    }


def lattices(bench: Bench, checkpoint: Path | None) -> Tree:
    """Return Fig. 2's claim as numbers: lattice systems of real, generated and random cells."""
    variants = load_variants()
    path, sampling = sample_checkpoint(bench, checkpoint or SHIPPED)
    sets = {"real": _read(bench.inputs.held_out), "checkpoint": _read(path)}
    seed = bench.budget.seeds[0]
    for name in BASES:
        trained, _ = bench.trained(variants[name], seed, ablation=False)
        sets[name] = _read(bench.sampled(trained, f"{name}-s{seed}", seed=seed)[0])
    kept = {name: [a if is_crystal(a) else None for a in made] for name, made in sets.items()}
    lost = {name: several.count(None) for name, several in kept.items()}
    model = load_checkpoint(checkpoint or SHIPPED)
    prior = _prior_cells(model, open_store(bench.inputs.held_out_store, verify=False), bench)
    study = study_lattices(kept, cells={"prior": prior})
    return {"lattices": to_json(study), "no_crystals": lost, "sampling": sampling}


def latent_space(bench: Bench, checkpoint: Path | None) -> Tree:
    """Return what the representation knows: a map, and linear probes beside their controls.

    Probes predict the formation energy where the crystals come with it, else the density.
    """
    model = load_checkpoint(checkpoint or SHIPPED, device=bench.device)
    count, largest = bench.budget.study_crystals, model.max_atoms
    train, known = with_energies(open_store(bench.inputs.train, verify=False), count, largest)
    held_out = open_store(bench.inputs.held_out_store, verify=False)
    judged, theirs = with_energies(held_out, count, largest)
    of_train, of_judged = feature_sets(model, train), feature_sets(model, judged)
    energies = bool(np.isfinite(known).all() and np.isfinite(theirs).all())
    target = (known, theirs) if energies else (_densities(train), _densities(judged))
    bench.tell("linear probes")
    sizes = sorted({n for n in (100, 500, len(train)) if 2 * FOLDS <= n <= len(train)})
    study = probe(
        {name: (of_train[name], of_judged[name]) for name in of_train},
        target,
        name="formation energy, eV/atom" if energies else "density, g/cm³",
        compositions=[_formula(c) for c in judged.split()],
        sizes=sizes,
        seeds=PROBE_SEEDS,
        shuffled=("latent",),
    )
    shown = principal_map(of_judged["latent"], judged, theirs.tolist(), _densities(judged).tolist())
    return {
        "map": to_json(shown),
        "probe": to_json(study),
        "checkpoint": model.digest,
    }


def _read(path: Path) -> list[Atoms]:
    frames = ase.io.read(path, index=":", format="extxyz")
    assert isinstance(frames, list)
    return frames


def is_crystal(atoms: Atoms) -> bool:
    """Whether a generated structure can be read: finite, in a cell that has not collapsed."""
    try:
        crystals_from_atoms(atoms, dtype=torch.float64)
    except ReadingError:
        return False
    return True


def _prior_cells(model: CrystalModel, store: CrystalStore, bench: Bench) -> np.ndarray:
    """Return cells as the prior draws them for the held-out compositions, columns."""
    crystals = store.select(choose(store, bench.budget.compositions))
    noise = CrystalNoise(list(range(len(crystals))), crystals.n_atoms)
    cells = model.diffusion.cell.prior(crystals, noise)
    return cells.double().numpy()


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
    if ENERGY not in store.extra_columns:
        return store.select(chosen), np.full(len(chosen), np.nan)
    energies = np.asarray(store.extra(ENERGY), float)[chosen]
    known = np.isfinite(energies)
    chosen, energies = (chosen[known], energies[known]) if known.any() else (chosen, energies)
    return store.select(chosen), energies


def _densities(crystals: Crystals) -> np.ndarray:
    return density(crystals).numpy()


def _formula(crystal: Crystals) -> str:
    return Composition.of(crystal.atomic_numbers.tolist()).reduced_formula
