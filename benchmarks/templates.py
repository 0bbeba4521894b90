"""Score starts from templates on validation: substitution alone and sampling from them.

    python benchmarks/templates.py --library train.templates --data val.store -n 9047 --out t.json

For every composition the best candidate of the library is taken, substituted, and sampled from
with the model; `--best-of K` scores the best of the first K candidates too. Rows: the nearest
template by elemental properties (the plain baseline), the template of the greatest weight as
substituted, the same after sampling, the same with noise where no template is, and for compositions
in the library
(`--new-only`) the first candidate that is none of its phases. Figures as in `quality.py`, split
by atoms, by whether the composition is in the library, by the cost of the first candidate, by the
prototype fraction, and by whether any candidate has the prototype of the truth. `--potential` lets
CHGNet's energies decide between prototypes where the weights are divided; it saw the energies of
these very crystals in its training, so its row is no prediction. `--write` keeps truth and crystals
as extxyz for other metrics.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import ase.io
import numpy as np
import torch
from nearest_template import substitute as nearest
from quality import match_figures

from crystal_fidelity.distances import density_emd
from crystal_fidelity.features.chgnet import ChgnetModel
from crystal_fidelity.matching import MatchResult, match_rate, match_rate_best_of
from crystal_fidelity.validity import structural_validity
from crystorus.checkpoint import SHIPPED, load_checkpoint
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.compositions import Composition
from crystorus.data.convert import crystals_to_atoms, split
from crystorus.data.store import CrystalStore, open_store
from crystorus.diffusion.sampling import Start
from crystorus.geometry import Crystals
from crystorus.sample.options import TEMPLATE_LEVEL, SampleOptions
from crystorus.sample.requests import make_requests
from crystorus.sample.sampler import TEMPLATE_SAMPLER
from crystorus.sample.start import give_templates, phase_of
from crystorus.templates.library import TemplateLibrary, open_library
from crystorus.templates.prototypes import aflow_prototypes
from crystorus.templates.retrieval import Template, find_templates, substitute
from crystorus.templates.surroundings import difference, surroundings

ATOMS = ((1, 5), (6, 10), (11, 15), (16, 20))
COSTS = (0.0, 0.2, 0.4, 0.8, 1.6, np.inf)
SAME = 0.12
DIVIDED = 0.6
"""Fraction of the weights of the first prototype below which a potential is asked."""
ASKED = 6
"""Prototypes whose energy is asked for, those with a hundredth of the weights at least."""
ENERGY_SCALE = 0.08
"""eV/atom that weigh as much as a factor of e in the weights; fitted on 391 compositions."""


def sample_all(
    model: CrystalModel,
    starts: list[Crystals],
    levels: list[float],
    sampler: SamplerConfig,
    *,
    noised: bool,
) -> list[Crystals]:
    """Sample from every start, in batches of similar size, in the order given."""
    noise = (torch.tensor(levels) * model.diffusion.steps).round().long()
    order = sorted(range(len(starts)), key=lambda n: int(starts[n].n_atoms[0]))
    done: list[Crystals | None] = [None] * len(starts)
    for first in range(0, len(order), 64):
        chosen = order[first : first + 64]
        batch = Crystals.concat([starts[n] for n in chosen])
        found = model.sample(
            batch.atomic_numbers,
            batch.n_atoms,
            seeds=chosen,
            sampler=sampler,
            start=Start(batch, noise[chosen], noised=noised),
        )
        for n, crystal in zip(chosen, found.split(), strict=True):
            done[n] = crystal
    return [crystal for crystal in done if crystal is not None]


def level_of(template: Template, a: argparse.Namespace) -> float:
    """Return the level to go back to, as `give_templates` chooses it."""
    if a.level is not None:
        return a.level
    return 0.0 if template.same_composition and not a.noised else TEMPLATE_LEVEL


def prototype_known(wanted: Crystals, found: list[Template]) -> bool:
    """Tell whether a candidate has the surroundings of the truth."""
    truth = surroundings(
        wanted.lattice[0].double().numpy(),
        wanted.frac_coords.double().numpy(),
        wanted.atomic_numbers.numpy(),
    )
    apart = [float(difference(c.distances, truth.distances)) for c in found]
    return bool(apart) and min(apart) < SAME


def splits(
    library: TemplateLibrary, wanted: list[Crystals], found: list[list[Template]]
) -> dict[str, np.ndarray]:
    """Return the groups of compositions that figures are split by."""
    atoms = np.array([int(c.n_atoms[0]) for c in wanted])
    groups = {f"{low} to {high} atoms": (atoms >= low) & (atoms <= high) for low, high in ATOMS}
    same = np.array([in_library(library, crystal) for crystal in wanted])
    groups |= {"composition in library": same, "composition not in library": ~same}
    cost = np.array([f[0].cost if f else np.inf for f in found])
    for low, high in pairwise(COSTS):
        groups[f"cost {low:g} to {high:g}"] = (cost >= low) & (cost < high)
    share = np.array([f[0].prototype_fraction if f else 0.0 for f in found])
    groups |= {
        "prototype fraction above 0.9": share > 0.9,
        "prototype fraction below 0.5": share < 0.5,
    }
    known = np.array([prototype_known(w, f) for w, f in zip(wanted, found, strict=True)])
    return groups | {"prototype among candidates": known, "prototype not among them": ~known}


def in_library(library: TemplateLibrary, crystal: Crystals) -> bool:
    """Tell whether the library holds a crystal with these atoms in its cell."""
    numbers = sorted(crystal.atomic_numbers.tolist())
    phases = library.phases(Composition.of(numbers))
    return any(sorted(library.template(n).atomic_numbers.tolist()) == numbers for n in phases)


def new_only(
    model: CrystalModel,
    library: TemplateLibrary,
    wanted: list[Crystals],
    sampler: SamplerConfig,
    a: argparse.Namespace,
) -> dict:
    """Score the first candidate that is no known phase, for compositions in the library."""
    known = [crystal for crystal in wanted if in_library(library, crystal)]
    compositions = [Composition.of(c.atomic_numbers.tolist()) for c in known]
    options = SampleOptions(start="templates", level=a.level, noised=a.noised, new_only=True)
    requests = [make_requests([c])[0] for c in compositions]
    guided = [give_templates([r], library, model.statistics, options)[0] for r in requests]
    places = [n for n, request in enumerate(guided) if request.start is not None]
    starts = [guided[n].start.crystal for n in places]
    levels = [guided[n].start.level for n in places]
    made = sample_all(model, starts, levels, sampler, noised=a.noised)
    still_new = [
        phase_of(c, guided[n].known_phases) is None for n, c in zip(places, made, strict=True)
    ]
    reference = split(Crystals.concat([known[n] for n in places]))
    match = match_rate(split(Crystals.concat(made)), reference, workers=a.workers)
    row = figures(made, reference, match, len(known))
    return row | {"no_template": len(known) - len(places), "still_new": sum(still_new)}


def by_potential(
    model: CrystalModel,
    library: TemplateLibrary,
    wanted: list[Crystals],
    found: list[list[Template]],
    sampled: list[Crystals],
    a: argparse.Namespace,
    sampler: SamplerConfig,
) -> tuple[dict, np.ndarray]:
    """Score the prototype of greatest weight times exp(-E / 0.08 eV), E from CHGNet after sampling.

    Returns:
        The figures, and which compositions of those with a template matched.
    """
    places = [n for n, f in enumerate(found) if f]
    asked = {
        n: [c for c in found[n][:ASKED] if c.prototype_fraction >= 0.01]
        for n in places
        if found[n][0].prototype_fraction < DIVIDED
    }
    asked = {n: some for n, some in asked.items() if len(some) > 1}
    starts = [
        substitute(library, c, model.statistics).to(dtype=torch.float32)
        for some in asked.values()
        for c in some
    ]
    levels = [level_of(c, a) for some in asked.values() for c in some]
    made = sample_all(model, starts, levels, sampler, noised=a.noised)
    began = time.process_time()
    energies = ChgnetModel().energies(split(Crystals.concat(made)))
    seconds = time.process_time() - began
    chosen, first = dict(zip(places, sampled, strict=True)), 0
    for n, some in asked.items():
        energy = np.nan_to_num(energies[first : first + len(some)], nan=np.inf)
        worth = np.log([c.prototype_fraction for c in some]) - energy / ENERGY_SCALE
        chosen[n] = made[first + int(worth.argmax())]
        first += len(some)
    crystals = list(chosen.values())
    reference = split(Crystals.concat([wanted[n] for n in places]))
    match = match_rate(split(Crystals.concat(crystals)), reference, workers=a.workers)
    row = figures(crystals, reference, match, len(wanted))
    return row | {
        "asked": len(asked),
        "energies": len(made),
        "energy_cpu_seconds": seconds,
    }, match.matched


def figures(crystals: list[Crystals], reference: list, match: MatchResult, total: int) -> dict:
    """Return the figures of one row; compositions without a template count as not matched."""
    made = split(Crystals.concat(crystals))
    return {
        "n": total,
        **match_figures(match, made, reference, total),
        "valid_percent": 100 * structural_validity(made).rate,
        "density_emd": density_emd(made, reference).value,
        "collisions": match.collisions,
    }


def split_figures(match: MatchResult, places: list[int], groups: dict[str, np.ndarray]) -> dict:
    """Return match rate, RMSE, volume error and size of every group."""
    total = len(next(iter(groups.values())))
    matched, rms, volume = (
        np.zeros(total, dtype=bool),
        np.full(total, np.nan),
        np.full(total, np.nan),
    )
    matched[places], rms[places] = match.matched, match.rms
    volume[matched] = match.volume_errors
    return {
        name: {
            "n": int(chosen.sum()),
            "match_percent": 100 * float(matched[chosen].mean()) if chosen.any() else None,
            "rmse": float(rms[chosen & matched].mean()) if (chosen & matched).any() else None,
            "volume_error_percent": 100 * float(np.median(volume[chosen & matched]))
            if (chosen & matched).any()
            else None,
        }
        for name, chosen in groups.items()
    }


def retrieve(
    library: TemplateLibrary, wanted: list[Crystals], limit: int
) -> tuple[list[list[Template]], float]:
    """Return the candidates of every composition and the CPU milliseconds of a look-up."""
    began = time.process_time()
    found = [
        find_templates(library, Composition.of(c.atomic_numbers.tolist()), limit=limit)
        for c in wanted
    ]
    return found, 1e3 * (time.process_time() - began) / len(wanted)


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--library", type=Path, help="without it, the AFLOW prototypes")
    parser.add_argument("--train", type=Path, help="training store, for the plain baseline")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--choice", type=int, default=2)
    parser.add_argument("--level", type=float, default=None)
    parser.add_argument("--steps", type=int, default=TEMPLATE_SAMPLER.steps)
    parser.add_argument("--sampler", default=TEMPLATE_SAMPLER.name)
    parser.add_argument("--anti-annealing", type=float, default=TEMPLATE_SAMPLER.anti_annealing)
    parser.add_argument("--noised", action="store_true")
    parser.add_argument("--best-of", type=int, default=1)
    parser.add_argument("--new-only", action="store_true")
    parser.add_argument("--potential", action="store_true", help="CHGNet where weights are divided")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a folder for the crystals as extxyz")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    library = open_library(a.library) if a.library else aflow_prototypes()
    store = open_store(a.data)
    wanted = store.select(np.random.default_rng(a.choice).permutation(len(store))[: a.n]).split()
    model = load_checkpoint(a.checkpoint)
    found, milliseconds = retrieve(library, wanted, max(20, a.best_of))
    groups = splits(library, wanted, found)
    report = {"checkpoint": model.digest, "library": len(library), "lookup_ms": milliseconds}
    sampler = SamplerConfig(a.sampler, a.steps, a.anti_annealing)
    report |= {"level": a.level, "sampler": vars(sampler), "noised": a.noised}
    places = [n for n, f in enumerate(found) if f]
    reference = split(Crystals.concat([wanted[n] for n in places]))
    rows: dict[str, list[Crystals]] = {}
    rows["substituted"] = [
        substitute(library, found[n][0], model.statistics).to(dtype=torch.float32) for n in places
    ]
    began = time.process_time()
    levels = [level_of(found[n][0], a) for n in places]
    rows["guided"] = sample_all(model, rows["substituted"], levels, sampler, noised=a.noised)
    report["sampling_cpu_seconds_per_crystal"] = (time.process_time() - began) / len(places)
    if a.write is not None:
        a.write.mkdir(parents=True, exist_ok=True)
        for name, crystals in {"truth": [wanted[n] for n in places], **rows}.items():
            ase.io.write(a.write / f"{name}.extxyz", crystals_to_atoms(Crystals.concat(crystals)))
    for name, crystals in rows.items():
        match = match_rate(split(Crystals.concat(crystals)), reference, workers=a.workers)
        row = figures(crystals, reference, match, len(wanted))
        report[name] = row | {"splits": split_figures(match, places, groups)}
        if a.out is not None:
            a.out.write_text(json.dumps(report, indent=2, default=float) + "\n")
    report["guided or noise"] = or_noise(model, wanted, places, crystals, match, a.workers)
    if a.new_only:
        report["new only"] = new_only(model, library, wanted, sampler, a)
    if a.potential:
        report["potential"], decided = by_potential(
            model, library, wanted, found, rows["guided"], a, sampler
        )
        report["potential"]["matched_more"] = int((decided & ~match.matched).sum())
        report["potential"]["matched_no_more"] = int((~decided & match.matched).sum())
    if a.train is not None:
        report["nearest"] = plain_baseline(wanted, open_store(a.train), groups, a.workers)
    if a.best_of > 1:
        report[f"best of {a.best_of}"] = best_of(model, library, wanted, found, a, sampler)
    text = json.dumps(report, indent=2, default=float)
    print(text)
    if a.out is not None:
        a.out.write_text(text + "\n")


def or_noise(
    model: CrystalModel,
    wanted: list[Crystals],
    places: list[int],
    sampled: list[Crystals],
    match: MatchResult,
    workers: int,
) -> dict:
    """Score what `sample` makes: from noise, as the checkpoint says, where no template is."""
    made = dict(zip(places, sampled, strict=True))
    outcomes = dict(zip(places, match.outcomes, strict=True))
    lacking = [n for n in range(len(wanted)) if n not in made]
    if lacking:
        batch = Crystals.concat([wanted[n] for n in lacking])
        found = model.sample(batch.atomic_numbers, batch.n_atoms, seeds=lacking)
        made |= dict(zip(lacking, found.split(), strict=True))
        others = match_rate(split(found), split(batch), workers=workers)
        outcomes |= dict(zip(lacking, others.outcomes, strict=True))
    crystals = [made[n] for n in range(len(wanted))]
    invalid = ~structural_validity(split(Crystals.concat(crystals))).valid
    every = (tuple(outcomes[n] for n in range(len(wanted))),)
    whole = MatchResult(every, invalid[None], match.settings)
    row = figures(crystals, split(Crystals.concat(wanted)), whole, len(wanted))
    return row | {"from_noise": len(lacking), "of_these": int(whole.matched[lacking].sum())}


def plain_baseline(
    wanted: list[Crystals], train: CrystalStore, groups: dict[str, np.ndarray], workers: int
) -> dict:
    """Score the nearest template by elemental properties."""
    plain = nearest(Crystals.concat(wanted), train)
    hits = [n for n, crystal in enumerate(plain) if crystal is not None]
    crystals = [crystal for crystal in plain if crystal is not None]
    reference = split(Crystals.concat([wanted[n] for n in hits]))
    match = match_rate(split(Crystals.concat(crystals)), reference, workers=workers)
    row = figures(crystals, reference, match, len(wanted))
    return row | {"splits": split_figures(match, hits, groups)}


def best_of(
    model: CrystalModel,
    library: TemplateLibrary,
    wanted: list[Crystals],
    found: list[list[Template]],
    a: argparse.Namespace,
    sampler: SamplerConfig,
) -> dict:
    """Score the best of the first K candidates, the last repeated where there are fewer."""
    places = [n for n, f in enumerate(found) if f]
    rounds = []
    for k in range(a.best_of):
        chosen = [found[n][min(k, len(found[n]) - 1)] for n in places]
        starts = [
            substitute(library, one, model.statistics).to(dtype=torch.float32) for one in chosen
        ]
        levels = [level_of(one, a) for one in chosen]
        made = sample_all(model, starts, levels, sampler, noised=a.noised)
        rounds.append(split(Crystals.concat(made)))
    reference = split(Crystals.concat([wanted[n] for n in places]))
    match = match_rate_best_of(rounds, reference, workers=a.workers)
    return {
        "n": len(wanted),
        "match_percent_all": 100 * float(match.matched.sum()) / len(wanted),
        "rmse_all": match.mean_rms,
        "candidates": float(np.mean([min(len(f), a.best_of) for f in found])),
    }


if __name__ == "__main__":
    main()
