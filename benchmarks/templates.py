"""Score crystals that start at templates, as `crystorus sample --like` makes them.

    python benchmarks/templates.py --library train.templates --data val.store -n 9047 --best-of 5

Each composition starts at its first prototypes, from noise where no template is left. Match rate,
RMSE and volume error (figures as in `quality.py`) are of each composition asked alone: its first
prototype, and the best of its first K. METRe, cRMSE and the match rate `as_asked` are of the whole
list asked at once: a composition that stands in it several times gets as many distinct prototypes
(`--n 1`), or K times as many (`--n K`). Figures of the first prototype are split by atoms, by
whether the composition is in the library, and by prototype fraction. `--level 0` is substitution
alone, `quality.py --library` the plain baseline; `--write` keeps truth and crystals.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
from quality import match_figures

from crystal_fidelity.distances import density_emd
from crystal_fidelity.matching import (
    MatchResult,
    MetreResult,
    match_rate,
    match_rate_best_of,
    metre,
)
from crystal_fidelity.structures import Crystal, Entry, ReadFailure
from crystal_fidelity.validity import structural_validity
from crystorus.checkpoint import SHIPPED, load_checkpoint
from crystorus.data.compositions import Composition
from crystorus.data.convert import crystals_to_atoms, split
from crystorus.data.store import open_store
from crystorus.sample.options import SampleOptions
from crystorus.sample.requests import Request, make_requests
from crystorus.sample.sampler import GeneratedCrystals, make, plan_sampling

ATOMS = ((1, 5), (6, 10), (11, 15), (16, 20))


def parts(requests: list[Request]) -> dict[str, np.ndarray]:
    """Return the groups of compositions that figures are split by."""
    atoms = np.array([request.n_atoms for request in requests])
    groups = {f"{low} to {high} atoms": (atoms >= low) & (atoms <= high) for low, high in ATOMS}
    same = np.array([in_library(request) for request in requests])
    share = np.array([(one.start and one.start.prototype_fraction) or 0.0 for one in requests])
    return groups | {
        "composition in library": same,
        "composition not in library": ~same,
        "prototype fraction above 0.9": share > 0.9,
        "prototype fraction below 0.5": share < 0.5,
    }


def in_library(request: Request) -> bool:
    """Tell whether the library holds a crystal with these atoms in its cell."""
    phases = (Composition.of(phase.atomic_numbers.tolist()) for _, phase in request.known_phases)
    return request.composition in phases


def figures(match: MatchResult, candidates: list[list[Entry]], reference: list[Crystal]) -> dict:
    """Return the figures of one set, or of the best of several."""
    return {
        "n": len(reference),
        **match_figures(match, candidates, reference),
        "valid_percent": 100 * structural_validity(candidates[0]).rate,
        "density_emd": density_emd(candidates[0], reference).value,
        "collisions": match.collisions,
    }


def figures_by_part(match: MatchResult, groups: dict[str, np.ndarray]) -> dict:
    """Return match rate, RMSE, volume error and size of every group."""
    volume = np.full(len(match.matched), np.nan)
    volume[match.matched] = match.volume_errors
    rows = {}
    for name, chosen in groups.items():
        hit = chosen & match.matched
        rows[name] = {"n": int(chosen.sum())} | (
            {
                "match_percent": 100 * float(match.matched[chosen].mean()),
                "rmse": float(match.rms[hit].mean()),
                "volume_error_percent": 100 * float(np.median(volume[hit])),
            }
            if hit.any()
            else {}
        )
    return rows


def figures_of_list(
    match: MatchResult,
    rounds: list[list[Entry]],
    requests: list[Request],
    reference: list[Crystal],
    workers: int,
) -> dict:
    """Return METRe, cRMSE and paired match rate of the whole list asked at once.

    Args:
        match: Of the compositions asked alone. For one that no other entry shares, in a cell of
            any size, it is the outcome of the list too.
        rounds: K crystals of every entry, as the list asks for them.
        requests: Those of the first round.
        reference: The truth of every entry.
        workers: Processes.
    """
    times = Counter(request.composition.reduced for request in requests)
    shared = [n for n, one in enumerate(requests) if times[one.composition.reduced] > 1]
    rms = np.array([[outcome.rms for outcome in run] for run in match.runs])
    if shared:
        made = [one[n] for n in shared for one in rounds]
        truth = [reference[n] for n in shared]
        rms[:, shared] = metre(made, truth, candidates=len(rounds), workers=workers).runs
    paired = match.first(1).matched
    later = [n for n in shared if requests[n].sample > 0]
    if later:
        again = match_rate([rounds[0][n] for n in later], [reference[n] for n in later])
        paired[later] = again.matched
    rows: dict = {
        "match_percent_as_asked": 100 * float(paired.mean()),
        "n_shared": len(shared),
    }
    for score in MetreResult(rms, rms.size, 0, rms.size, match.settings).scores():
        scale = 100 if score.rate else 1
        rows[score.name] = [scale * score.value, scale * (score.uncertainty or 0.0)]
    return rows


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--library", type=Path, help="without it, the AFLOW prototypes")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--choice", type=int, default=2, help="seed of which n")
    parser.add_argument("--best-of", type=int, default=1)
    parser.add_argument("--level", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--no-noise", action="store_true", help="no template, no crystal")
    parser.add_argument("--noised", action="store_true")
    parser.add_argument("--new-only", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a folder for the crystals as extxyz")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    store = open_store(a.data)
    wanted = store.select(np.random.default_rng(a.choice).permutation(len(store))[: a.n])
    reference = split(wanted)
    compositions = [Composition.of(one.atomic_numbers.tolist()) for one in reference]
    options = SampleOptions(
        start="templates",
        library=a.library,
        level=a.level,
        steps=a.steps,
        noised=a.noised,
        new_only=a.new_only,
        quality="fast",
    )
    model = load_checkpoint(a.checkpoint)
    began = time.process_time()
    requests, plan = plan_sampling(model, make_requests(compositions * a.best_of), options)
    looked_up = time.process_time()
    wished = [one for one in requests if one.start or not a.no_noise]
    made = GeneratedCrystals.concat(list(make(model, wished, plan)))
    seconds = time.process_time() - looked_up
    crystals: list[Entry] = [ReadFailure("none", "no template")] * len(requests)
    for request, crystal in zip(wished, split(made.crystals), strict=True):
        crystals[request.index] = crystal
    n = len(reference)
    rounds = [crystals[first : first + n] for first in range(0, len(crystals), n)]
    if a.write is not None:
        a.write.mkdir(parents=True, exist_ok=True)
        for name, some in {"truth": wanted, "made": made.crystals}.items():
            ase.io.write(a.write / f"{name}.extxyz", crystals_to_atoms(some))
    known = {(r.composition, r.sample): one for r, one in zip(requests, crystals, strict=True)}
    alone = [[known[c, k] for c in compositions] for k in range(a.best_of)]
    match, first = match_rate_best_of(alone, reference, workers=a.workers), list(requests[:n])
    groups = parts(first)
    report = {
        "checkpoint": model.digest,
        "options": {name: str(value) for name, value in vars(a).items()},
        "lookup_ms": 1e3 * (looked_up - began) / len(set(compositions)),
        "sampling_cpu_seconds_per_crystal": seconds / len(wished),
        "from_noise": [
            sum(r.start is None for r in requests[k * n : k * n + n]) for k in range(a.best_of)
        ],
        "first": figures(match.first(1), alone[:1], reference)
        | {"parts": figures_by_part(match.first(1), groups)},
        "list": figures_of_list(match, rounds, first, reference, a.workers),
    }
    if a.best_of > 1:
        report[f"best of {a.best_of}"] = figures(match, alone, reference)
    text = json.dumps(report, indent=2, default=float)
    print(text)
    if a.out is not None:
        a.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
